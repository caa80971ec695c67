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
    """One compiler flag: its value, the generations it is set for, and why.

    One whose name does not begin with `xla_` is libtpu's own: no compile option, set at launch alone.
    """

    name: str
    value: str
    generations: tuple[str, ...]
    reason: str


# Descriptions in quotes are those of openxla.org/xla/flags_guidance. What was tried and left out
# stands in docs/LOG.md: the compiler's defaults are kept unless there is a reason. What each of those
# for SparseCores changes was told apart by tools/benchmarks/schedule.py, docs/RESULTS.md; on tpu7x the
# compiler does all of that by default, v5e has no SparseCores, and on v4 none was tried.
_OFFLOADED = ("v5p", "v6e")
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
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_all_gather", "true", _OFFLOADED,
        "Gathers of weights run on the SparseCores beside the products; without it each waits.",
    ),
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather", "true", _OFFLOADED,
        "The same for a group that lies over two dims of the torus, such as a whole v6e slice.",
    ),
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather", "true", _OFFLOADED,
        "The same over three dims, such as a whole v5p slice.",
    ),
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce", "true", _OFFLOADED,
        "Sums of gradients over replicas run on the SparseCores too.",
    ),
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter", "true", _OFFLOADED,
        "And so do scattered sums of gradients.",
    ),
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter", "true", _OFFLOADED,
        "Without it a scattered sum over a whole slice becomes an all-reduce, which sends twice as much "
        "and leaves the whole array on every device, whatever its shape.",
    ),
    Flag(
        "xla_tpu_check_legacy_constraints_in_reduce_scatter_legalizer", "false", _OFFLOADED,
        "The same for parts narrower than 128 columns, as of the float32 embedding over 64 devices.",
    ),
    Flag(
        "deepsea_chip_config_name", "megachip_tccontrol", _OFFLOADED,
        "Set beside the offload in the published recipes for v6e and v5p. The compiled program is the "
        "same without it.",
    ),
)  # fmt: skip


def flags_for(generation: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the compile options of a TPU generation, by name without dashes.

    Args:
        generation: one of `GENERATIONS`.
        changes: flag -> value, added or put in place of the table's; "" takes a flag away.

    >>> flags_for("v4", {"xla_tpu_enable_data_parallel_all_reduce_opt": ""})
    {'xla_tpu_data_parallel_opt_different_sized_ops': 'true'}
    """
    flags = {name: value for name, value in _table(generation).items() if name.startswith("xla_")}
    return {name: value for name, value in {**flags, **(changes or {})}.items() if value}


def _table(generation):
    return {flag.name: flag.value for flag in FLAGS if generation in flag.generations}


def flags_for_device(device_kind: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the flags for a JAX device's `device_kind`; no TPU, then only `changes`."""
    hardware = hardware_of(device_kind)
    generation = hardware.name if hardware is not None else ""
    return flags_for(generation, changes)


def launch_environment(generation: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment that gives a TPU process these flags; set before JAX starts.

    >>> launch_environment("v4", {"xla_tpu_data_parallel_opt_different_sized_ops": ""})
    {'LIBTPU_INIT_ARGS': '--xla_tpu_enable_data_parallel_all_reduce_opt=true'}
    """
    flags = {**_table(generation), **flags_for(generation, changes)}
    flags = {name: value for name, value in flags.items() if (changes or {}).get(name, value)}
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
