"""What a plan is made for: TPU slices by name, this machine's GPUs, fake CPU devices.

Owns reading the names, the environment in which a process compiles for one, and whether a run's
sizes go onto it. TPU names themselves are core/topology.py's.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ellama_jax.config import RunConfig
from ellama_jax.core.topology import Topology, parse_topology

_CPU = re.compile(r"cpu-(\d{1,4})")


@dataclass(frozen=True)
class Target:
    """Devices that a step is compiled for.

    Attributes:
        name: `v5p-128`, `2xv6e-256`, `gpu` (those of this machine) or `cpu-8` (fake devices).
        platform: tpu, gpu or cpu.
        topology: of a TPU.
        num_devices: as JAX counts them; 0 for GPUs that were not counted yet.
    """

    name: str
    platform: str
    topology: Topology | None
    num_devices: int

    @property
    def num_slices(self) -> int:
        """How many slices the data-centre network joins."""
        return self.topology.num_slices if self.topology else 1

    @property
    def devices_per_chip(self) -> int:
        """Two on tpu7x, one elsewhere."""
        return self.topology.devices_per_chip if self.topology else 1

    @property
    def price_key(self) -> str:
        """What a price is given for: a generation, gpu or cpu."""
        return self.topology.generation if self.topology else self.platform


def parse_targets(names: str) -> list[Target]:
    """Reads names between commas.

    Raises:
        ValueError: for one that is not made, with the nearest that are, or one given twice.

    >>> [target.num_devices for target in parse_targets("v5p-128,2xv6e-256,cpu-8")]
    [64, 512, 8]
    """
    targets = [_parse_target(name.strip()) for name in names.split(",") if name.strip()]
    if not targets:
        raise ValueError("--topology: must name one or more, as v5p-128,v6e-256, got none.")
    seen: set[str] = set()
    for target in targets:
        if target.name in seen:
            raise ValueError(f"--topology: must name each once, got {target.name} twice.")
        seen.add(target.name)
    return targets


def _parse_target(name: str) -> Target:
    if name == "gpu":
        return Target("gpu", "gpu", None, 0)
    if name.startswith("cpu"):
        match = _CPU.fullmatch(name)
        if match is None or int(match[1]) < 1:
            raise ValueError(f"topology: fake devices are named like cpu-8, got {name}.")
        return Target(name, "cpu", None, int(match[1]))
    topology = parse_topology(name)
    return Target(topology.name, "tpu", topology, topology.num_devices)


def check_compiler(targets: Sequence[Target]) -> None:
    """Raises a ValueError if the TPU compiler is asked for and not installed."""
    tpus = [target.name for target in targets if target.platform == "tpu"]
    if tpus and importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"libtpu: must be installed to compile for {tpus[0]}, got none; "
            "pip install 'jax[tpu]' (no TPU is needed)."
        )


def compiler_environment(
    target: Target, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Returns the environment of a process that compiles for `target`.

    A TPU compiler needs no device, and a plan must not take one from a run: everything but `gpu`
    hides those of this machine. For `cpu-N` there are N fake ones.
    """
    mine = dict(environment)
    if target.platform == "gpu":
        mine.pop("JAX_PLATFORMS", None)
        # Compiling needs a device's name and size, not three quarters of its memory.
        mine["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        return mine
    mine["JAX_PLATFORMS"] = "cpu"
    if target.platform == "cpu":
        mine["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={target.num_devices}"
        return mine
    # What libtpu would say of the TPU that is not here.
    mine.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    mine.setdefault("TPU_STDERR_LOG_LEVEL", "2")
    return mine


def check_sizes(config: RunConfig, target: Target) -> None:
    """Checks by arithmetic what the program would refuse, before anything is compiled.

    Raises:
        ValueError: naming what must hold, what would, and the target.
    """
    from ellama_jax.model.presets import get_preset
    from ellama_jax.train import program

    try:
        sizes = axis_sizes(config, target)
        program.check_sizes(config, get_preset(config.model.preset), sizes, target.platform)
    except ValueError as error:
        said = str(error).removesuffix(".")
        # A search changes meshes and micro-batches, not batches' sizes, lengths or kernels.
        hint = "; --search tries all that fit" if "mesh." in said else ""
        raise ValueError(f"{said} (on {target.name}{hint}).") from None


def axis_sizes(config: RunConfig, target: Target) -> dict[str, int]:
    """Returns the sizes of the mesh axes on a target.

    Raises:
        ValueError: if they do not multiply to its devices, or slices do not divide `data`.
    """
    from ellama_jax.core.sharding import MESH_AXES, resolve_axis_sizes

    shape = resolve_axis_sizes(dataclasses.asdict(config.mesh), target.num_devices)
    if shape[0] % target.num_slices:
        raise ValueError(
            f"mesh.data: must be divisible by the number of slices ({target.num_slices}), "
            f"got {shape[0]}; mesh.data={target.num_slices} fits."
        )
    return dict(zip(MESH_AXES, shape, strict=True))
