"""Flags of the TPU compiler that a run is compiled with, each with its reason.

Owns one table by generation. The training step gets them at compile (`program.py`), on a TPU and for
one that is not here alike; what else a TPU process compiles gets them from its environment at launch.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ellama_jax.core.topology import GENERATIONS, hardware_of, parse_topology


@dataclass(frozen=True)
class Flag:
    """One compiler flag: its value, the generations it is set for, and why."""

    name: str
    value: str
    generations: tuple[str, ...]
    reason: str


# Descriptions in quotes are those of openxla.org/xla/flags_guidance. What was tried and left out
# stands in docs/LOG.md: the compiler's defaults are kept unless there is a reason.
FLAGS: tuple[Flag, ...] = (
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt", "true", GENERATIONS,
        'Several slices: "increase overlap opportunities for DCN all-reduces used for data '
        'parallel sharding". One slice has none, and its program stays the same.',
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops", "true", GENERATIONS,
        'Several slices: "pipelining of data parallel ops across multiple iterations even if their '
        'output sizes" differ; gradients of unlike layers do.',
    ),
)  # fmt: skip


def flags_for(generation: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the flags of a TPU generation, by name without dashes.

    Args:
        generation: one of `GENERATIONS`.
        changes: flag -> value, added or put in place of the table's; "" takes a flag away.

    >>> flags_for("v4", {"xla_tpu_enable_data_parallel_all_reduce_opt": ""})
    {'xla_tpu_data_parallel_opt_different_sized_ops': 'true'}
    """
    flags = {flag.name: flag.value for flag in FLAGS if generation in flag.generations}
    return {name: value for name, value in {**flags, **(changes or {})}.items() if value}


def flags_for_device(device_kind: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the flags for a JAX device's `device_kind`; no TPU, then only `changes`."""
    hardware = hardware_of(device_kind)
    generation = hardware.name if hardware is not None else ""
    return flags_for(generation, changes)


def launch_environment(generation: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment that gives a TPU process the same flags; set before JAX starts.

    >>> launch_environment("v4", {"xla_tpu_data_parallel_opt_different_sized_ops": ""})
    {'LIBTPU_INIT_ARGS': '--xla_tpu_enable_data_parallel_all_reduce_opt=true'}
    """
    flags = flags_for(generation, changes)
    return {"LIBTPU_INIT_ARGS": " ".join(f"--{name}={value}" for name, value in flags.items())}


def main(argv: list[str]) -> None:
    """Prints `launch_environment` as lines of a shell, `python -m ellama_jax.core.xla_flags v6e-64`."""
    try:
        if len(argv) != 1:
            raise ValueError(f"arguments: must be the name of one slice, got {argv!r}.")
        generation = parse_topology(argv[0]).generation
    except ValueError as error:
        print(f"xla_flags: error: {error}", file=sys.stderr)
        sys.exit(2)
    for name, value in launch_environment(generation).items():
        print(f"{name}={shlex.quote(value)}")


if __name__ == "__main__":
    main(sys.argv[1:])
