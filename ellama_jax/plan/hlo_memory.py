"""A compiled step's memory by use, and what a compiler says that ran out of it.

Owns the compiler's own figures. Which buffers they are made of is plan/hlo_buffers.py's estimate.
"""

import math
import re
from dataclasses import dataclass

import jax

from ellama_jax.train.program import Program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = r"(\d+(?:\.\d+)?)\s*([KMGTP]?)i?B?"
# libtpu 0.0.42 and 0.0.50: one line, and the older report, which XLA:TPU still prints when the
# program's own memory fits and what is around it does not.
_SHORT = re.compile(
    rf"Ran out of memory on (\w+), the total memory required for .*?\({_SIZE}\) exceeds "
    rf"available \w+ \({_SIZE}\)"
)
_LONG = re.compile(
    rf"Ran out of memory in memory space (\w+).*?Used {_SIZE} of {_SIZE} \w+\. "
    rf"Exceeded \w+ capacity by {_SIZE}", re.S,
)  # fmt: skip
_ALLOCATION = re.compile(
    rf"^\s*\d+\. Size: {_SIZE}\s*\n(.*?)(?:Allocation type: ([^\n]*)|={{5,}}|\Z)", re.S | re.M
)


@dataclass(frozen=True)
class MemorySplit:
    """Bytes of one device's memory.

    Attributes:
        peak_bytes: the most that is alive at once, arguments included: what must fit.
        params_bytes: parameters.
        optimizer_bytes: state of the optimizer.
        batch_bytes: one global batch's part.
        other_bytes: the other arguments (counters) and what padding adds to any.
        temporary_bytes: activations, gradients and copies alive at the peak: the rest of it.
        code_bytes: the program itself, beside the peak.
        host_bytes: memory of the host that the program uses (arguments and temporaries there).
    """

    peak_bytes: int
    params_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    other_bytes: int
    temporary_bytes: int
    code_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class Allocation:
    """One of the largest buffers of a program that does not fit, in the compiler's words."""

    bytes: int
    shape: str
    op_name: str
    kind: str


@dataclass(frozen=True)
class OutOfMemory:
    """What a compiler said: bytes a device needs, has, and lacks, and its largest allocations."""

    needed_bytes: int
    available_bytes: int
    missing_bytes: int
    space: str
    largest: tuple[Allocation, ...]


def split_memory(stats, program: Program) -> MemorySplit:
    """Splits a compiled step's memory by use.

    Args:
        stats: `compiled.memory_analysis()`.
        program: what was compiled; its abstract arrays say whose an argument is.
    """
    params = device_bytes(program.state.params)
    optimizer = device_bytes(program.state.opt_state)
    batch = device_bytes(program.batch)
    # Arguments that live on the host are no part of the device's.
    arguments = stats.argument_size_in_bytes
    peak = stats.peak_memory_in_bytes
    if program.mesh.devices.flat[0].platform == "cpu":  # there it leaves temporaries out
        peak = arguments + stats.temp_size_in_bytes
    known = params + optimizer + batch
    host = stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes
    return MemorySplit(
        peak, params, optimizer, batch, max(0, arguments - known), max(0, peak - arguments),
        stats.generated_code_size_in_bytes, host,
    )  # fmt: skip


def device_bytes(tree) -> int:
    """Returns the bytes one device holds of abstract arrays with shardings; those on a host are 0."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if leaf.sharding.memory_kind == "pinned_host":
            continue
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def whole_bytes(tree) -> int:
    """Returns the bytes of abstract arrays, each counted once however many devices hold it."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parse_out_of_memory(message: str) -> OutOfMemory | None:
    """Reads a compiler's refusal; None where it is about something else.

    >>> parse_out_of_memory(
    ...     "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    ...     "temporaries (23.50G) exceeds available HBM (15.75G)."
    ... ).missing_bytes / 2**30
    7.75
    """
    found = _SHORT.search(message)
    if found:
        space, *sizes = found.groups()
        needed, available = _size(*sizes[:2]), _size(*sizes[2:])
        return OutOfMemory(needed, available, needed - available, space.lower(), ())
    found = _LONG.search(message)
    if found:
        space, *sizes = found.groups()
        figures = [_size(*sizes[place : place + 2]) for place in (0, 2, 4)]
        return OutOfMemory(*figures, space.lower(), _allocations(message))
    return None


def _size(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _allocations(message):
    def after(word, text):
        match = re.search(rf'{word}: (?:op_name=)?"?([^"\n]*)', text)
        return match.group(1).strip() if match else ""

    return tuple(
        Allocation(
            _size(found[1], found[2]),
            after("Shape", found[3]),
            after("Operator", found[3]),
            (found[4] or "").strip(),
        )  # fmt: skip
        for found in _ALLOCATION.finditer(message)
    )
