"""What every shipped configuration divides, and how, changes only on purpose."""

import pytest
from golden_shardings import GOLDENS, RUNS, absent_devices, golden_name, render

from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.topology import parse_topology


@pytest.mark.parametrize(("config", "topology", "overrides"), RUNS)
def test_a_shipped_configuration_lies_as_its_golden_says(config, topology, overrides):
    """After a change that is meant: python tests/golden_shardings.py, then read the difference."""
    golden = GOLDENS / golden_name(config, topology)
    assert render(config, topology, overrides) == golden.read_text()


def test_there_is_no_golden_without_a_run():
    assert {path.name for path in GOLDENS.iterdir()} == {golden_name(n, t) for n, t, _ in RUNS}


def test_every_shipped_run_has_a_golden():
    """Each variant of each configuration file that is a run."""
    from configs import demo, ellama

    shipped = {f"{module.__name__.split('.')[1]}.py:{variant}" for module in (demo, ellama)
               for variant in module.VARIANTS}  # fmt: skip
    assert shipped == {name for name, _, _ in RUNS}


def test_slices_divide_data_and_stay_whole():
    """Each half of `data` is one slice."""
    devices = absent_devices(parse_topology("2xv5p-16"))
    mesh = make_mesh({"data": 4, "fsdp": -1, "context": 1, "tensor": 2}, devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 2}
    halves = mesh.devices.reshape(2, -1)
    assert [{device.slice_index for device in half} for half in halves] == [{0}, {1}]
