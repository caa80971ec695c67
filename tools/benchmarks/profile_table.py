"""A trace of JAX's profiler as two short tables: time by phase of a step, and by kernel.

Owns the reading of the trace, without xprof, and what belongs to which phase. That a kernel belongs to
the backward pass is told by the name that JAX gave its operation, which the compiled text carries.
"""

import re
from collections import Counter
from pathlib import Path

import jax

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
# Their time is that of what they run.
_CONTAINERS = ("while", "conditional", "call")
_TOP = 12


def phase_of(op_name: str) -> str:
    """Returns the phase of a step that an operation belongs to, by JAX's name of it.

    The loss forms its gradient while it is computed, so that counts as forward.

    >>> phase_of("jit(train_step)/transpose(jvp())/while/body/dot_general")
    'backward'
    >>> phase_of("jit(train_step)/transpose(jvp())/while/body/checkpoint/rematted_computation/mul")
    'recomputation'
    """
    if "transpose(" in op_name:
        return "recomputation" if "rematted_computation" in op_name else "backward"
    return "forward and loss" if "jvp(" in op_name else "update and the rest"


def read_names(hlo: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns JAX's name and the opcode of every instruction of a compiled program's text.

    A fusion without a name has that of the last named instruction in it; an instruction that has
    none at all, a copy for example, the most common one of those around it.
    """
    names, opcodes, calls, inside, computation = {}, {}, {}, {}, None
    for line in hlo.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened[1]
        elif found := _INSTRUCTION.match(line):
            instruction, opcodes[found[1]] = found[1], found[2]
            inside[instruction] = computation
            if named := _OP_NAME.search(line):
                names[instruction] = named[1]
            if called := _CALLS.search(line):
                calls[instruction] = called[1]
    within: dict[str, list[str]] = {}
    for instruction, name in names.items():
        within.setdefault(inside[instruction], []).append(name)
    # By phase, and then any of its names: a computation rarely repeats one.
    around = {place: _of_commonest_phase(found) for place, found in within.items()}
    for instruction, place in inside.items():
        if instruction not in names:
            fused = within.get(calls.get(instruction))
            names[instruction] = fused[-1] if fused else around.get(place, "")
    return names, opcodes


def _of_commonest_phase(names: list[str]) -> str:
    phase = Counter(map(phase_of, names)).most_common(1)[0][0]
    return next(name for name in names if phase_of(name) == phase)


def phases_and_kernels(directory: str, hlo: str, steps: int) -> dict:
    """Returns `phases` and `kernels`, rows of tables; both empty where nothing could be read.

    Args:
        directory: what `jax.profiler.trace` wrote.
        hlo: the compiled text of the step that ran.
        steps: how often it ran in the trace.
    """
    names, opcodes = read_names(hlo)
    nanoseconds, counts, kernels = Counter(), Counter(), {}
    for file in Path(directory).rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    instruction, kernel = _instruction_of(event, plane.name, opcodes)
                    if instruction is not None:
                        nanoseconds[instruction] += event.duration_ns
                        counts[instruction] += 1
                        kernels[instruction] = kernel
    total = sum(nanoseconds.values())
    if not total:
        return {"phases": [], "kernels": []}
    phases = Counter()
    for instruction, duration in nanoseconds.items():
        phases[phase_of(names.get(instruction, ""))] += duration

    def row(label, duration):
        return label | {
            "ms a step": f"{duration / 1e6 / steps:.2f}",
            "share": f"{100 * duration / total:.1f} %",
        }

    return {
        "phases": [row({"phase": name}, spent) for name, spent in phases.most_common()],
        "kernels": [
            row(
                {
                    "kernel": f"`{kernels[name][:60]}`",
                    "operation": f"`{_short(names.get(name, name))}`",
                    "phase": phase_of(names.get(name, "")),
                    "runs a step": f"{counts[name] / steps:g}",
                },
                spent,
            )
            for name, spent in nanoseconds.most_common(_TOP)
        ],
    }


def _instruction_of(event, plane: str, opcodes: dict) -> tuple[str | None, str]:
    """Returns the HLO instruction that an event runs, None if it is another's, and its name.

    On a GPU an event is a kernel and its statistics name the instruction; on a CPU the event is
    named as the instruction.
    """
    name = event.name
    if plane.startswith("/device:"):
        stats = {key: value for key, value in event.stats if key in ("hlo_op", "hlo_module")}
        instruction = str(stats.get("hlo_op", "")).split("/")[-1].lstrip("%") or None
    else:
        instruction = name
    known = instruction is not None and opcodes.get(instruction) not in (None, *_CONTAINERS)
    return (instruction if known else None), name


def _short(op_name: str) -> str:
    return "/".join(op_name.split("/")[-2:])[:60]
