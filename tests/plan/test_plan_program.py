"""What is read from a compiler that refuses."""

import dataclasses

import pytest

from ellama_jax.config import load_config
from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.topology import get_devices, parse_topology
from ellama_jax.plan.program import count_hosts, refusal

TOO_MUCH = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space {0}. "
    "Used 40.00G of 31.25G {0}. Exceeded {0} capacity by 8.75G.\n\nTotal usage"
)


def test_a_program_too_large_for_a_device_does_not_fit():
    answer = refusal(TOO_MUCH.format("hbm"))
    assert answer["outcome"] == "no_fit"
    assert answer["out_of_memory"]["missing_bytes"] == 8.75 * 2**30


@pytest.mark.parametrize(
    "text", [TOO_MUCH.format("vmem"), "INTERNAL: Mosaic failed to compile TPU kernel\nat x.py"]
)
def test_a_kernel_that_is_refused_says_nothing_of_what_fits_a_device(text):
    answer = refusal(text)
    assert answer == {"outcome": "failed", "message": text.splitlines()[0]}


@pytest.mark.parametrize(
    ("variant", "slices", "count", "rows"),
    [("8b_v5p-256", "v5p-256", 32, 90), ("70b_2xv6e-256", "2xv6e-256", 128, 90)],
)
def test_what_a_host_reads_is_told_of_the_slices_own_hosts(variant, slices, count, rows):
    """Hosts that `context` spans read the same rows: each more than its part of all."""
    pytest.importorskip("libtpu")
    config, _ = load_config([f"--config=configs/ellama.py:{variant}"], "plan")
    mesh = make_mesh(dataclasses.asdict(config.mesh), get_devices(parse_topology(slices)))
    assert count_hosts(config, mesh) == {"count": count, "rows": rows, "bytes": rows * 8192 * 4}
