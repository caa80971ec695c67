"""What a plan is made for: TPU slices by name, this machine's GPUs, fake CPU devices.

Owns reading the names, the environment in which a process compiles for one, and whether a run's
sizes go onto it. TPU names themselves are topology.py's.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ellama_jax.config import RunConfig
from ellama_jax.topology import Topology, parse_topology

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


def check_model(config: RunConfig, target: Target) -> None:
    """Checks what holds for every mesh: the preset, its longest row, the kernel, the policy.

    Raises:
        ValueError: naming the key and what must hold.
    """
    from ellama_jax.model.attention import resolve_attention
    from ellama_jax.model.llama import REMAT_POLICIES
    from ellama_jax.model.presets import get_preset
    from ellama_jax.train.optimizer import peak_learning_rate

    model = get_preset(config.model.preset)
    if config.data.seq_len > model.max_seq_len:
        raise ValueError(
            f"data.seq_len: must not exceed the model's max_seq_len ({model.max_seq_len}), "
            f"got {config.data.seq_len}."
        )
    if config.model.remat not in REMAT_POLICIES:
        raise ValueError(
            f"model.remat: must be one of {', '.join(REMAT_POLICIES)}, got {config.model.remat}."
        )
    peak_learning_rate(config.schedule, model)
    resolve_attention(config.model.attention, target.platform)


def check_sizes(config: RunConfig, target: Target) -> None:
    """Checks by arithmetic what the program would refuse, before anything is compiled.

    Raises:
        ValueError: naming what must divide what, and the nearest that does.
    """
    from ellama_jax.model.llama import dim_sizes, param_dims
    from ellama_jax.model.presets import get_preset
    from ellama_jax.sharding import STORAGE_AXES, partition_spec

    model = get_preset(config.model.preset)
    sizes = axis_sizes(config, target)
    parts = sizes["data"] * sizes["fsdp"]
    rows = config.data.global_batch_size
    if rows % parts:
        near = sorted({max(rows // parts, 1) * parts, -(-rows // parts) * parts})
        raise ValueError(
            f"data.global_batch_size: must be divisible by mesh.data x mesh.fsdp ({parts} on "
            f"{target.name}), got {rows}; {' and '.join(map(str, near))} {'are' if near[1:] else 'is'}, or a "
            "mesh with fewer parts of the batch (--search tries all)."
        )
    if config.data.seq_len % sizes["context"]:
        raise ValueError(
            f"data.seq_len: must be divisible by mesh.context ({sizes['context']}), "
            f"got {config.data.seq_len}."
        )
    elements = dim_sizes(model)
    for path, dims in param_dims(model).items():
        partition_spec(dims, [elements[dim] for dim in dims], sizes, STORAGE_AXES, path)


def axis_sizes(config: RunConfig, target: Target) -> dict[str, int]:
    """Returns the sizes of the mesh axes on a target.

    Raises:
        ValueError: if they do not multiply to its devices; names a mesh that does.
    """
    from ellama_jax.sharding import MESH_AXES, resolve_axis_sizes

    wanted = dataclasses.asdict(config.mesh)
    try:
        shape = resolve_axis_sizes(wanted, target.num_devices)
    except ValueError as error:
        raise ValueError(
            f"{str(error)[:-1]}; on {target.name} {_mesh_hint(wanted, target)}."
        ) from None
    if shape[0] % target.num_slices:
        raise ValueError(
            f"mesh.data: must be divisible by the slices of {target.name} ({target.num_slices}), "
            f"got {shape[0]}; set mesh.data={target.num_slices}, which alone crosses slices."
        )
    return dict(zip(MESH_AXES, shape, strict=True))


def _mesh_hint(wanted: Mapping[str, int], target: Target) -> str:
    """Says how to make a mesh multiply to the devices: by its largest axis, or from nothing."""
    largest = max(wanted, key=lambda axis: wanted[axis])
    others = math.prod(size for axis, size in wanted.items() if axis != largest and size > 0)
    if -1 not in wanted.values() and target.num_devices % others == 0:
        return f"mesh.{largest}={target.num_devices // others} fits"
    slices = target.num_slices
    return (
        f"data={slices} fsdp={target.num_devices // slices} context=1 tensor=1 fits, and so does "
        "any product of the four that is that number"
    )
