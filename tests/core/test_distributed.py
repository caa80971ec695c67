"""How processes find each other: what is refused, and that one process needs nothing."""

import jax
import pytest

from ellama_jax.core import ending
from ellama_jax.core.distributed import exchange, leads, on_leader, one_job


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, r"JAX_NUM_PROCESSES, JAX_PROCESS_ID: must be set beside"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID: must be set"),
        (("a:1", "2", "2"), r"JAX_PROCESS_ID: must be smaller than JAX_NUM_PROCESSES \(2\), got 2"),
        (("a:1", "two", "0"), "JAX_NUM_PROCESSES: must be a whole number, got two"),
        (("a", "2", "0"), "JAX_COORDINATOR_ADDRESS: must be HOST:PORT, got a"),
    ],
)  # fmt: skip
def test_half_a_description_of_the_processes_is_refused(given, message):
    if not isinstance(given, dict):
        names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
        given = dict(zip(names, given, strict=True))
    with pytest.raises(ValueError, match=message), one_job(given):
        raise AssertionError("it began")


def test_one_process_needs_no_coordinator():
    with one_job({"JAX_NUM_PROCESSES": "1"}):
        assert not jax.distributed.is_initialized()
        assert exchange(b"word")() == [b"word"]


def test_one_process_leads_and_its_errors_are_its_own():
    done = []
    on_leader(lambda: done.append(leads()))
    assert done == [True]
    with pytest.raises(OSError, match="no room"):
        on_leader(_fail)


def _fail():
    raise OSError("no room")


@pytest.mark.parametrize(
    ("error", "of_others"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllReduce failed: connection reset"), True),
        # jaxlib raises this one where it reads an array.
        (ValueError("UNKNOWN: Gloo AllGather failed: Read error: connection reset by peer"), True),
        (ValueError("UNAVAILABLE: notified of an error"), True),
        (ValueError("data.windows_dir: must exist, got nothing."), False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory in HBM"), False),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such device"), False),
        (OSError(5, "Input/output error"), False),
    ],
)
def test_the_loss_of_another_process_is_told_from_an_error_of_ones_own(error, of_others):
    assert ending._is_of_others(error) is of_others
