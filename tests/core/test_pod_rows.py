"""Rows reach their devices on every slice: the devices, coordinates and processes are libtpu's own."""

import dataclasses
import functools
import itertools
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from golden_shardings import RUNS

from ellama_jax.config import batch_sizes, configs_dir, load_config
from ellama_jax.core.sharding import (
    MESH_AXES,
    batch_sharding,
    cut_shard,
    make_mesh,
    rows_by_process,
)
from ellama_jax.core.topology import (
    GENERATIONS,
    Topology,
    _default_shapes,
    get_devices,
    parse_topology,
)

pytest.importorskip("libtpu")

_MOST_PROCESSES = 64  # of a slice, whose devices are all fed; of larger ones so many are


@functools.cache
def devices_of(name, chips_per_host=None):
    return get_devices(parse_topology(name), chips_per_host)


def assert_rows_reach_their_devices(mesh, rows=None):
    """Feeds every device from its own process's rows, and from no other row.

    Args:
        mesh: of the slice.
        rows: of the global batch; by default two a shard.
    """
    shape = dict(mesh.shape)
    rows = rows or 2 * shape["data"] * shape["fsdp"]
    batch = np.arange(rows * shape["context"]).reshape(rows, shape["context"])
    fed = rows_by_process(mesh, rows)
    wanted = {process: set() for process in fed}
    pieces = batch_sharding(mesh, batch.shape, "batch").devices_indices_map(batch.shape)
    local = {process: batch[mine] for process, mine in fed.items()}  # what a host has read
    looked_at = set(list(fed)[:: max(1, len(fed) // _MOST_PROCESSES)])
    for device, index in pieces.items():
        process = device.process_index
        wanted[process].add((index[0].start or 0, index[0].stop or rows))
        if process in looked_at:
            found = cut_shard(local[process], fed[process], index, rows)
            assert np.array_equal(found, batch[index]), (device, index)
    assert len(pieces) == mesh.size
    for process, shards in wanted.items():  # no row more than its shards have
        assert fed[process].tolist() == [row for shard in sorted(shards) for row in range(*shard)]
    return fed


def sizes(data=1, fsdp=-1, context=1, tensor=1):
    return dict(zip(MESH_AXES, (data, fsdp, context, tensor), strict=True))


def feed_every_slice(generation, chips):
    for shape in _default_shapes(generation):
        if math.prod(shape) in chips:
            name = Topology("", generation, shape).libtpu_name
            mesh = make_mesh(sizes(), get_devices(parse_topology(name)))
            fed = assert_rows_reach_their_devices(mesh)
            assert len(fed) == parse_topology(name).num_hosts, name


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_default_mesh_is_fed_on_every_slice_that_is_made(generation):
    feed_every_slice(generation, range(1025))


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_default_mesh_is_fed_on_the_largest_slices(generation):
    # libtpu keeps every topology that it was asked for, 60 kB a chip: gigabytes, given back here.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        process.submit(feed_every_slice, generation, range(1025, 10**5)).result()


@pytest.mark.parametrize(
    "name", ["2xv4-64", "2xv5e-64", "2xv5p-128", "2xv6e-64", "4xv6e-256", "2xtpu7x-64"]
)
def test_slices_joined_by_the_network_are_fed(name):
    topology = parse_topology(name)
    mesh = make_mesh(sizes(data=topology.num_slices), devices_of(name))
    assert len(assert_rows_reach_their_devices(mesh)) == topology.num_hosts


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_eight_chips_are_fed_as_one_host_and_as_two(generation):
    for chips_per_host, hosts in ((8, 1), (4, 2)):
        devices = devices_of(f"{generation}-8", chips_per_host)
        for context in (1, 2, 8):
            fed = assert_rows_reach_their_devices(make_mesh(sizes(context=context), devices))
            assert len(fed) == hosts


@pytest.mark.parametrize(
    "name", ["v4-64", "v5p-16", "v5p-128", "v6e-16", "v6e-64", "tpu7x-32", "2xv6e-32"]
)
def test_every_mesh_of_powers_of_two_is_fed(name):
    topology, devices = parse_topology(name), devices_of(name)
    powers = [2**i for i in range(len(devices).bit_length())]
    tried = 0
    for shape in itertools.product(powers, repeat=4):
        if math.prod(shape) == len(devices) and shape[0] % topology.num_slices == 0:
            assert_rows_reach_their_devices(make_mesh(sizes(*shape), devices))
            tried += 1
    assert tried >= math.comb(int(math.log2(len(devices))) + 2, 3)


# What docs/GUIDE.md and tpu_scripts/env.example run besides.
FURTHER = (
    ("ellama.py:8b", "v6e-64", ("data.global_batch_size=256",)),
    ("ellama.py:8b", "v6e-64", ("mesh.fsdp=32", "mesh.context=2")),
)


@pytest.mark.parametrize(
    ("config_name", "topology", "overrides"), [run for run in (*RUNS, *FURTHER) if run[1]]
)
def test_shipped_configurations_are_fed_at_every_size_of_their_batch(
    config_name, topology, overrides
):
    arguments = [f"--config={configs_dir() / config_name}"]
    config, _ = load_config([*arguments, *(f"--config.{item}" for item in overrides)], "train")
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices_of(topology))
    for _, rows in batch_sizes(config.data):
        assert_rows_reach_their_devices(mesh, rows)
