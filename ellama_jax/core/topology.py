"""TPU slices by name, and what each kind of accelerator can do at most.

Owns the names (`v5p-128`, `2xv6e-256`, `v5p:4x4x4`), the shapes that Google makes of them, the
compile-only devices that libtpu gives for one, and the table of peaks. How devices become a mesh is
core/sharding.py's.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """Peaks of one chip, as published; what a program reaches is lower.

    Attributes:
        name: generation of a TPU, or the name of a GPU.
        flops_per_sec: dense bfloat16 FLOP/s.
        hbm_bytes: memory as published. The compiler keeps some: v5e 15.75 GiB of 16, v6e 31.25 of
            32, v5p 95.74 of 96 are left (what libtpu says when a program needs more).
        hbm_bytes_per_sec: memory bandwidth.
        ici_bytes_per_sec: bandwidth of one link to a neighbour, one way (NVLink: all links together).
        ici_links: links of a chip, two an axis of the torus; 1 where a switch joins all.
        dcn_bytes_per_sec: the chip's share of its host's network, one way.
        devices_per_chip: how many devices JAX counts for one chip.
    """

    name: str
    flops_per_sec: float
    hbm_bytes: float
    hbm_bytes_per_sec: float
    ici_bytes_per_sec: float
    ici_links: int
    dcn_bytes_per_sec: float
    devices_per_chip: int = 1

    @property
    def device_flops_per_sec(self) -> float:
        """Peak of what JAX calls one device."""
        return self.flops_per_sec / self.devices_per_chip


# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read November 2026. There "ICI
# bandwidth per chip" is both ways over all links (v5p 1,200 GB/s, v5e 400, v6e 800, tpu7x 1,200), so
# it is divided by 2 and the links; the results are those of the scaling book's table "ICI BW/link
# (one-way)" (jax-ml.github.io/scaling-book/tpus), which also gives v4's. DCN is given per chip in
# Gbit/s (v5p 50, v6e and tpu7x 100), for v5e as 6.4 Tbit/s a pod of 256; v4 from the scaling book,
# 25 GB/s a host of 4.
_GIB = 2**30
HARDWARE: Mapping[str, Hardware] = {
    "v4": Hardware("v4", 275e12, 32 * _GIB, 1.2e12, 4.5e10, 6, 25e9 / 4),
    "v5e": Hardware("v5e", 197e12, 16 * _GIB, 8.19e11, 5e10, 4, 25e9 / 8),
    "v5p": Hardware("v5p", 459e12, 96 * _GIB, 2.765e12, 1e11, 6, 50e9 / 8),
    "v6e": Hardware("v6e", 918e12, 32 * _GIB, 1.638e12, 1e11, 4, 100e9 / 8),
    "tpu7x": Hardware(
        "tpu7x", 2307e12, 192 * _GIB, 7.38e12, 1e11, 6, 100e9 / 8, devices_per_chip=2
    ),
    # GPUs: NVIDIA's data sheets of H100, H200 and A100, dense figures (those with sparsity are
    # twice as high); NVLink is published both ways (900, 600 GB/s), so it is halved. Network: the
    # DGX H100, H200 (400 Gbit/s a GPU) and A100 (200 Gbit/s a GPU) system data sheets.
    "H100 SXM": Hardware("H100 SXM", 989.4e12, 80e9, 3.35e12, 450e9, 1, 50e9),
    "H100 PCIe": Hardware("H100 PCIe", 756e12, 80e9, 2.0e12, 300e9, 1, 50e9),
    "H100 NVL": Hardware("H100 NVL", 835e12, 94e9, 3.9e12, 300e9, 1, 50e9),
    "H200 SXM": Hardware("H200 SXM", 989.4e12, 141e9, 4.8e12, 450e9, 1, 50e9),
    "A100 SXM 80GB": Hardware("A100 SXM 80GB", 312e12, 80e9, 2.039e12, 300e9, 1, 25e9),
    "A100 SXM 40GB": Hardware("A100 SXM 40GB", 312e12, 40e9, 1.555e12, 300e9, 1, 25e9),
    "A100 PCIe 80GB": Hardware("A100 PCIe 80GB", 312e12, 80e9, 1.935e12, 300e9, 1, 25e9),
    "A100 PCIe 40GB": Hardware("A100 PCIe 40GB", 312e12, 40e9, 1.555e12, 300e9, 1, 25e9),
}

# `device_kind` of a JAX device -> row above. "TPU v5p" is what some runtimes say for "TPU v5".
_KINDS: Mapping[str, str] = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200 SXM",
    "NVIDIA A100-SXM4-80GB": "A100 SXM 80GB",
    "NVIDIA A100-SXM4-40GB": "A100 SXM 40GB",
    "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
    "NVIDIA A100-PCIE-40GB": "A100 PCIe 40GB",
}

# Spellings of a generation in the names of slices: Google's own (`v5litepod-16`) and common ones.
_SPELLINGS = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "v5": "v5p"}
# Those named by TensorCores, two a chip: `v5p-8` has 4 chips. The others are named by chips.
_CORES_IN_NAME = {"v4": 2, "v5p": 2, "tpu7x": 2}
# Two-dimensional generations: every shape there is (docs: v5e, v6e "supported configurations").
_FLAT_SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Three-dimensional ones: parts of a cube of 64 chips, then whole cubes up to so many chips in a job
# (docs: v4 pods of 4,096; v5p "the largest job is 96 cubes"; tpu7x pods of 9,216).
_PART_SHAPES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_MAX_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
GENERATIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


@dataclass(frozen=True)
class Topology:
    """One TPU slice, or several alike joined by the data-centre network (DCN).

    Attributes:
        name: as Google writes it, `v5p-128`; several slices `2xv6e-256`.
        generation: a key of `HARDWARE`.
        shape: chips along each axis of one slice.
        num_slices: how many slices.
    """

    name: str
    generation: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chips_per_slice(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return self.chips_per_slice * self.num_slices

    @property
    def devices_per_chip(self) -> int:
        """How many devices JAX counts for one chip."""
        return HARDWARE[self.generation].devices_per_chip

    @property
    def num_devices(self) -> int:
        """What `jax.device_count()` says on all slices together."""
        return self.num_chips * self.devices_per_chip

    @property
    def chips_per_host(self) -> int:
        """Chips of one process: 4, or all of a slice of one host (1, 4 or 8 chips)."""
        return self.chips_per_slice if self.shape in _FLAT_SHAPES[:3] else 4

    @property
    def num_hosts(self) -> int:
        """Processes of all slices."""
        return self.num_chips // self.chips_per_host

    @property
    def libtpu_name(self) -> str:
        """What libtpu calls one slice, `v5p:4x4x4`."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which axes of a slice are rings: those of whole cubes; 16 on two-dimensional ones."""
        if len(self.shape) == 2:
            return tuple(size == 16 for size in self.shape)
        return (all(size % 4 == 0 for size in self.shape),) * 3

    @property
    def hardware(self) -> Hardware:
        """Peaks of one of its chips."""
        return HARDWARE[self.generation]


def hardware_of(device_kind: str) -> Hardware | None:
    """Returns the peaks of a JAX device's `device_kind`, None if the table has none.

    >>> hardware_of("TPU v6 lite").flops_per_sec
    918000000000000.0
    """
    return HARDWARE[_KINDS[device_kind]] if device_kind in _KINDS else None


def parse_topology(name: str) -> Topology:
    """Reads the name of a slice or of several.

    Args:
        name: `v5p-128` (Google's name: v4, v5p and tpu7x count TensorCores, two a chip; v5e and v6e
            count chips), `v5p:4x4x4` (libtpu's: chips along each axis), either with `2x` before it
            for two slices. `v5litepod-16` is `v5e-16`.

    Raises:
        ValueError: for a generation or size that is not made; names the nearest that are.

    >>> parse_topology("2xv5p-128").libtpu_name, parse_topology("2xv5p-128").num_chips
    ('v5p:4x4x4', 128)
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)+))", name.strip().lower())
    if match is None:
        raise ValueError(
            f"topology: must be like v5p-128, v5p:4x4x4 or 2xv6e-256, got {name}; "
            f"generations: {', '.join(GENERATIONS)}."
        )
    slices, spelling, size, axes = match.groups()
    generation = _SPELLINGS.get(spelling, spelling)
    if generation not in GENERATIONS:
        raise ValueError(
            f"topology: must be of a generation among {', '.join(GENERATIONS)}, got {name}."
        )
    if slices is not None and int(slices) < 1:
        raise ValueError(f"topology: must have at least one slice, got {name}.")
    cores = _CORES_IN_NAME.get(generation, 1)
    if axes is None:
        shape = _shape_of(generation, name, int(size), cores)
    else:
        shape = tuple(int(axis) for axis in axes.split("x"))
        _check_shape(generation, name, shape)
    count = 1 if slices is None else int(slices)
    own = f"{generation}-{math.prod(shape) * cores}"
    if axes is not None and shape != _cubest(generation, math.prod(shape)):
        own = f"{generation}:{axes}"  # a longer shape of that size has no other name
    return Topology(own if count == 1 else f"{count}x{own}", generation, shape, count)


def get_devices(topology: Topology, chips_per_host: int | None = None) -> list:
    """Returns the slice's devices for compilation: they hold nothing and run nothing.

    libtpu, and so JAX's TPU backend, is loaded here and not before.

    Args:
        chips_per_host: 4 for a slice of eight chips that is two hosts, as GKE's ct6e-standard-4t
            makes a v6e-8; None: the slice's own.

    Raises:
        ValueError: if libtpu is not installed.
    """
    # Before libtpu loads: no question to a metadata server that is not there, no claim on a chip.
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import jax
    from jax.experimental import topologies

    if jax.config.jax_platforms is None:
        # With libtpu installed JAX would look for a TPU here first; compiling needs none.
        jax.config.update("jax_platforms", "cpu")
    # libtpu knows neither the rings of a real slice nor its large hosts unless told.
    chips_per_host = chips_per_host or topology.chips_per_host
    bounds = (2, 2, 1) if chips_per_host == 4 else (*topology.shape, 1)
    options = {
        "chips_per_host_bounds": bounds,
        "wrap": (*topology.wrap, False)[:3],
        "num_slices": topology.num_slices,
    }
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as on Cloud TPU
    try:
        return list(
            topologies.get_topology_desc(
                platform="tpu", topology_name=topology.libtpu_name, **options
            ).devices
        )
    except RuntimeError as error:
        if "not installed" not in str(error):
            raise
        raise ValueError(
            "libtpu: must be installed to compile for a TPU, got none; pip install libtpu (the "
            "version that belongs to this jax: pip install 'jax[tpu]')."
        ) from error


_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def _shape_of(generation: str, name: str, size: int, cores: int) -> tuple[int, ...]:
    """Returns the default shape of the slice with `size` in its name."""
    shapes = {math.prod(shape) * cores: shape for shape in _default_shapes(generation)}
    if size not in shapes:
        below = [f"{generation}-{other}" for other in shapes if other < size][-1:]
        above = [f"{generation}-{other}" for other in shapes if other > size][:1]
        unit = "TensorCores, two a chip" if cores == 2 else "chips"
        raise ValueError(
            f"topology: must be a size of {generation} that is made, got {name}; nearest: "
            f"{' and '.join(below + above)} (the number counts {unit})."
        )
    return shapes[size]


def _check_shape(generation: str, name: str, shape: tuple[int, ...]) -> None:
    """Raises unless libtpu's form names a shape that is made."""
    known = shape in set(_default_shapes(generation))
    whole_cubes = (
        generation in _MAX_CHIPS
        and len(shape) == 3
        and all(size and size % 4 == 0 for size in shape)
        and list(shape) == sorted(shape)
        and math.prod(shape) <= _MAX_CHIPS[generation]
    )
    if not known and not whole_cubes:
        near = sorted(
            _default_shapes(generation),
            key=lambda other: abs(math.log(math.prod(other) / max(math.prod(shape), 1))),
        )[:2]
        nearest = " and ".join(f"{generation}:{'x'.join(map(str, other))}" for other in near)
        rule = "axes of whole cubes are multiples of 4, smallest first"
        hint = f"; {rule}" if generation in _MAX_CHIPS else ""
        raise ValueError(
            f"topology: must be a shape of {generation} that is made, got {name}; nearest: "
            f"{nearest}{hint}."
        )


def _default_shapes(generation: str) -> Iterator[tuple[int, ...]]:
    """Yields the shape that a size gets, smallest size first."""
    if generation not in _MAX_CHIPS:
        yield from _FLAT_SHAPES
        return
    yield from _PART_SHAPES
    for chips in range(64, _MAX_CHIPS[generation] + 1, 64):
        shape = _cubest(generation, chips)
        if shape[-1] <= 256:  # longer ones are in no list (xpk's ends at 4x4x244)
            yield shape


def _cubest(generation: str, chips: int) -> tuple[int, ...]:
    """Returns the shape nearest to a cube, the default of a size (docs: TPU types and topologies)."""
    for shape in _FLAT_SHAPES if generation not in _MAX_CHIPS else _PART_SHAPES:
        if math.prod(shape) == chips:
            return shape
    cubes = chips // 64
    shapes = [
        (4 * a, 4 * b, 4 * (cubes // (a * b)))
        for a in range(1, cubes + 1)
        if a**3 <= cubes and cubes % a == 0
        for b in range(a, cubes + 1)
        if a * b * b <= cubes and cubes % (a * b) == 0
    ]
    return min(shapes, key=sum)
