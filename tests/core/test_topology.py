"""Names of TPU slices, the devices libtpu makes of them, and peaks."""

import math

import pytest

from ellama_jax.core.topology import (
    GENERATIONS,
    HARDWARE,
    get_devices,
    hardware_of,
    parse_topology,
)

# Google's tables of shapes: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, and xpk's.
# Name, libtpu's name, chips, hosts.
PUBLISHED = [
    ("v4-8", "v4:2x2x1", 4, 1),
    ("v4-512", "v4:4x8x8", 256, 64),
    ("v5p-8", "v5p:2x2x1", 4, 1),
    ("v5p-16", "v5p:2x2x2", 8, 2),
    ("v5p-32", "v5p:2x2x4", 16, 4),
    ("v5p-64", "v5p:2x4x4", 32, 8),
    ("v5p-128", "v5p:4x4x4", 64, 16),
    ("v5p-384", "v5p:4x4x12", 192, 48),
    ("v5p-512", "v5p:4x8x8", 256, 64),
    ("v5p-640", "v5p:4x4x20", 320, 80),
    ("v5p-1024", "v5p:8x8x8", 512, 128),
    ("v5p-1152", "v5p:4x12x12", 576, 144),
    ("v5p-12288", "v5p:16x16x24", 6144, 1536),
    ("v5litepod-4", "v5e:2x2", 4, 1),
    ("v5litepod-8", "v5e:2x4", 8, 1),
    ("v5e-128", "v5e:8x16", 128, 32),
    ("v6e-1", "v6e:1x1", 1, 1),
    ("v6e-16", "v6e:4x4", 16, 4),
    ("v6e-256", "v6e:16x16", 256, 64),
    ("tpu7x-8", "tpu7x:2x2x1", 4, 1),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 16),
]


@pytest.mark.parametrize(("name", "libtpu", "chips", "hosts"), PUBLISHED)
def test_names_mean_the_published_shapes(name, libtpu, chips, hosts):
    topology = parse_topology(name)
    assert (topology.libtpu_name, topology.num_chips, topology.num_hosts) == (libtpu, chips, hosts)
    assert parse_topology(libtpu) == topology


def test_several_slices_are_counted_together():
    topology = parse_topology("2xv6e-256")
    assert topology.name == "2xv6e-256" and topology.libtpu_name == "v6e:16x16"
    assert (topology.num_slices, topology.chips_per_slice, topology.num_chips) == (2, 256, 512)
    assert topology.num_hosts == 128
    assert parse_topology("2xv6e:16x16") == topology
    assert parse_topology(" V6E-256 ").num_slices == 1


def test_a_longer_shape_keeps_its_own_name():
    assert parse_topology("v5p:4x4x16").name == "v5p:4x4x16"
    assert parse_topology("v5p:4x8x8").name == "v5p-512"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p-100", r"size of v5p that is made, got v5p-100; nearest: v5p-64 and v5p-128 .*Cores"),
        ("v6e-12", r"got v6e-12; nearest: v6e-8 and v6e-16 \(the number counts chips\)\.$"),
        ("v6e-512", r"nearest: v6e-256 \("),
        ("v5p-4", r"nearest: v5p-8 \("),
        ("v5p:3x3x3", r"shape of v5p that is made, got v5p:3x3x3; nearest: v5p:2x4x4 and"),
        ("v5p:4x8x4", r"got v5p:4x8x4; nearest: v5p:4x4x8 and .*smallest first"),
        ("v6e:4x4x4", r"shape of v6e that is made, got v6e:4x4x4; nearest: v6e:8x8"),
        ("v3-8", r"generation among v4, v5e, v5p, v6e, tpu7x, got v3-8"),
        ("0xv6e-8", r"at least one slice, got 0xv6e-8"),
        ("h100", r"like v5p-128, v5p:4x4x4 or 2xv6e-256, got h100"),
    ],
)
def test_what_is_not_made_is_one_line_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=rf"^topology: must be .*{message}|^topology: .*{message}"):
        parse_topology(name)


def test_rings_are_those_of_whole_cubes_and_of_sixteen():
    assert parse_topology("v5p-64").wrap == (False, False, False)
    assert parse_topology("v5p-128").wrap == (True, True, True)
    assert parse_topology("v5e-128").wrap == (False, True)
    assert parse_topology("v6e-256").wrap == (True, True)


@pytest.mark.parametrize(
    "name", ["v4-8", "v5e-1", "v5e-8", "v5p-128", "2xv6e-16", "tpu7x-16", "v5p:4x4x16"]
)
def test_libtpu_makes_the_devices_the_name_promises(name):
    pytest.importorskip("libtpu")
    topology = parse_topology(name)
    devices = get_devices(topology)
    assert len(devices) == topology.num_devices
    assert len({device.process_index for device in devices}) == topology.num_hosts
    assert len({getattr(device, "slice_index", 0) for device in devices}) == topology.num_slices
    assert hardware_of(devices[0].device_kind) is topology.hardware


def test_a_missing_libtpu_is_one_line(monkeypatch):
    from jax.experimental import topologies

    def refuse(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology. See ...")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=r"^libtpu: must be installed .* pip install libtpu"):
        get_devices(parse_topology("v5p-8"))


def test_the_table_of_peaks_agrees_with_google_s_figures_of_whole_chips():
    """ICI both ways over all links, GB/s, and DCN, Gbit/s, as the pages of each generation say."""
    published = {"v5e": (400, 25), "v5p": (1200, 50), "v6e": (800, 100), "tpu7x": (1200, 100)}
    for generation, (ici, dcn) in published.items():
        hardware = HARDWARE[generation]
        assert math.isclose(2 * hardware.ici_links * hardware.ici_bytes_per_sec, ici * 1e9)
        assert math.isclose(8 * hardware.dcn_bytes_per_sec, dcn * 1e9)
    assert set(GENERATIONS) <= set(HARDWARE)


def test_mfu_counts_devices_not_chips():
    """An Ironwood chip is two devices to JAX; the chip's peak is 2,307 TFLOP/s."""
    assert hardware_of("TPU7x").device_flops_per_sec == 2307e12 / 2
    assert hardware_of("TPU v5").device_flops_per_sec == 459e12
    assert hardware_of("NVIDIA H100 80GB HBM3").flops_per_sec == 989.4e12
    assert hardware_of("cpu") is None
