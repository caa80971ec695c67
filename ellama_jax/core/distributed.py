"""Several processes as one job: how they find each other, and what they tell each other.

Owns the start of jax.distributed and messages between processes at the same place of their work. Where
arrays lie is core/sharding.py's part, how they end ending.py's. With one process everything here does
nothing and costs nothing.
"""

import contextlib
import functools
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax._src.distributed import global_state  # jax.distributed does not give its key-value store
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.core.ending import (
    AGAIN,
    end_here,
    ends_as_one,
    listen,
    say_last_words,
    sigterm_stops,
)
from ellama_jax.core.exits import EXIT_AGAIN

log = logging.getLogger(__name__)

_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_NAME_BYTES = 64
# JAX's own 100 s are long for a pod that is paid by the second.
_HEARTBEAT_SECS = 30
# Hosts of a pod are set up one after the other; JAX's own limit, beyond which one is lost.
_JOINING_SECS = 300


@contextlib.contextmanager
def one_job(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Context of all that a job does, in which its processes are joined, if there are several.

    They are found by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, or without these by what JAX detects itself: a TPU pod, SLURM, Open MPI. On a
    machine alone, or with `JAX_NUM_PROCESSES=1`, nothing is started. Enter it before any device is
    used. An error in one process ends all of them, with its status and its line; so does SIGTERM.

    Raises:
        ValueError: if only some of the three are set, or they do not fit each other.
    """
    _join(environment)
    if not jax.distributed.is_initialized():
        yield
        return
    try:
        with sigterm_stops(), ends_as_one():
            if not leads():
                # What is true for all is said once.
                logging.getLogger("ellama_jax").setLevel(logging.ERROR)
            yield
    except (Exception, KeyboardInterrupt) as error:
        end_here(error)  # on the way out Python would wait for threads that wait for the others


def _join(environment: Mapping[str, str]) -> None:
    given = {name: environment[name] for name in (_ADDRESS, _COUNT, _ID) if environment.get(name)}
    if given.get(_COUNT) == "1" or jax.distributed.is_initialized():
        return
    # JAX's own answer to SIGTERM stops after the same step as ending.py's (docs/RESULTS.md), but only a
    # loop that asks: not one that compiles, restores or imports.
    jax.config.update("jax_enable_preemption_service", False)
    found = _read_numbers(given) if given else ()
    me = f"process {found[1]}" if given else socket.gethostname()
    say_last_words(
        f"{me}: not all processes of the job came up and reached process 0 in {_JOINING_SECS} s; this "
        f"one ends with status {EXIT_AGAIN}. Look for the host that is missing, and start the same "
        "command again on all."
    )
    secs = {
        "heartbeat_timeout_seconds": _HEARTBEAT_SECS, "initialization_timeout": _JOINING_SECS,
    }  # fmt: skip
    if given:
        jax.distributed.initialize(
            given[_ADDRESS], *found, cluster_detection_method="deactivate", **secs
        )
    else:
        _start_detected(secs)
    if not jax.distributed.is_initialized():
        say_last_words("")
        return
    job = global_state
    say_last_words(f"process {job.process_id}: aborted, most likely for {AGAIN}")
    listen(job.client, job.process_id, job.num_processes)


def _read_numbers(given: Mapping[str, str]) -> tuple[int, int]:
    if missing := [name for name in (_ADDRESS, _COUNT, _ID) if name not in given]:
        raise ValueError(
            f"{', '.join(missing)}: must be set beside {', '.join(given)}, got nothing."
        )
    for name in (_COUNT, _ID):
        if not given[name].isdecimal():
            raise ValueError(f"{name}: must be a whole number, got {given[name]}.")
    count, index = int(given[_COUNT]), int(given[_ID])
    if not index < count:
        raise ValueError(f"{_ID}: must be smaller than {_COUNT} ({count}), got {index}.")
    if ":" not in given[_ADDRESS]:
        raise ValueError(f"{_ADDRESS}: must be HOST:PORT, got {given[_ADDRESS]}.")
    return count, index


def _start_detected(secs: Mapping[str, int]) -> None:
    """Starts jax.distributed where JAX detects a cluster, and not elsewhere."""
    with warnings.catch_warnings():
        # A pod of Kubernetes that is no job is warned of a package it does not need.
        warnings.simplefilter("ignore")
        try:
            jax.distributed.initialize(**secs)
        except ValueError as error:
            # How JAX says that it detected nothing; there is no question to ask it first.
            if "coordinator_address should be defined" not in str(error):
                raise
        except RuntimeError:
            # JAX asks for it before its first computation: a notebook that has computed already.
            log.info("JAX was in use before this job: it runs in this process alone")
        except Exception as error:
            # A pod that has no service account is no job; only where the package kubernetes is
            # installed does JAX come so far as to find out.
            kind = type(error)
            if (kind.__module__.split(".")[0], kind.__name__) != ("kubernetes", "ConfigException"):
                raise


def leads() -> bool:
    """Says whether this process writes what is written once: logs, configuration, messages."""
    return jax.process_index() == 0


def on_leader(action: Callable[[], object]) -> None:
    """Runs `action` on process 0 alone; every process goes on once it is done.

    An error is raised there; the others wait, and end as `one_job` says.
    """
    if leads():
        action()
    exchange(b".")()


def process_names() -> list[str]:
    """Returns the host name of every process, by process index. All processes must call this."""
    mine = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    return [word.rstrip(b"\0").decode(errors="replace") for word in exchange(mine)()]


def exchange(words: bytes) -> Callable[[], list[bytes]]:
    """Begins to tell every process `words`, and returns without waiting.

    All processes must call this at the same places with words of one length. The exchange queues
    behind what the devices are doing, so a step under way is not waited for.

    Returns:
        a function that waits and gives the words of all processes, by process index.
    """
    if jax.process_count() == 1:
        return lambda: [words]
    mesh, spread = _process_mesh()
    # Bytes, for 64-bit integers are off in JAX by default.
    mine = np.frombuffer(words, np.uint8)[None]
    shape = (jax.process_count(), len(words))
    # Put there by name: the loop's transfer guard refuses what goes to devices unasked.
    pieces = [jax.device_put(mine, device) for device in mesh.local_devices]
    spread_out = NamedSharding(mesh, PartitionSpec("processes"))
    with jax.set_mesh(mesh):
        told = spread(jax.make_array_from_single_device_arrays(shape, spread_out, pieces))
    return lambda: [bytes(row) for row in jax.device_get(told.addressable_data(0))]


@functools.cache
def _process_mesh() -> tuple[Mesh, Callable]:
    by_process = [
        [device for device in jax.devices() if device.process_index == process]
        for process in range(jax.process_count())
    ]
    mesh = Mesh(np.array(by_process), ("processes", "local"))
    return mesh, jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
