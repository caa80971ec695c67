"""An optimized HLO module -> instructions, and how often each runs in one step.

Owns the reading of compiled programs (TPU, GPU and CPU executables alike) and the trip counts of
loops. What an instruction costs is plan/hlo_costs.py's and plan/hlo_collectives.py's part.

A program is read as the protocol buffer that its executable hands out: JAX's own
`compiled.cost_analysis()` counts a loop's body once and a Pallas call as nothing, and its HLO bindings
show neither shapes nor attributes in every version we support.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

HBM, HOST = 0, 5  # memory spaces of layouts; the others (1 is VMEM) are on the core

_BITS = {"pred": 8, "token": 0, "opaque_type": 0} | {
    kind + str(bits): bits
    for kind, sizes in {"s": (1, 2, 4, 8, 16, 32, 64), "u": (1, 2, 4, 8, 16, 32, 64)}.items()
    for bits in sizes
}
_BITS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_COPIES = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "broadcast")
_PACKAGES = ("tensorflow", "tensorflow.compiler", "tensorflow.compiler.xla",
             "tensorflow.compiler.xla.service")  # fmt: skip


@dataclass(frozen=True)
class Array:
    """One array of a shape: its dims as written, and where and how it lies in memory."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of the elements, padding left out."""
        return _bytes(self.dtype, self.size)

    @property
    def padded_bytes(self) -> int:
        """Bytes in memory: the minor dims are rounded up to whole tiles, such as T(8,128)."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        dims = [self.dims[d] for d in reversed(order)]
        tile = self.tile[-len(dims) :] if dims else ()
        for place, size in enumerate(tile, start=len(dims) - len(tile)):
            dims[place] = -(-dims[place] // size) * size
        return _bytes(self.dtype, math.prod(dims))

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
        opcode: as it is printed: the start of an asynchronous `slice` is a `slice-start`.
        arrays: the leaves of its result, in order.
        operands: names of instructions of the same computation.
        called: the computations it runs, in order; of a while its body, then its condition.
        proto: all else, an `HloInstructionProto`.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    proto: object

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """The JAX operation it came from, as a path; "" where the compiler made it."""
        return self.proto.metadata.op_name

    @functools.cached_property
    def backend_config(self) -> dict:
        """What the backend adds to it; {} where it is nothing, or not JSON."""
        with contextlib.suppress(ValueError):
            config = json.loads(self.proto.backend_config or b"{}")
            return config if isinstance(config, dict) else {}
        return {}

    def frontend_attribute(self, name: str) -> str:
        """Returns a frontend attribute's value; "" where it is absent."""
        return self.proto.frontend_attributes.map.get(name, "")

    @functools.cached_property
    def integer(self) -> int | None:
        """The value of a whole constant of one element; None for all else."""
        literal = self.proto.literal
        if self.opcode != "constant" or self.arrays[0].size != 1:
            return None
        values = [*literal.s32s, *literal.s64s, *literal.u32s, *literal.u64s]
        return values[0] if values else None


@dataclass(frozen=True)
class Computation:
    """A list of instructions in the order they run where the module is scheduled."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {i.proto.parameter_number: i for i in self.instructions if i.opcode == "parameter"}

    def results_of(self, instruction: Instruction) -> tuple[Array, ...]:
        """Returns an instruction's results; the tuple of an asynchronous start holds more.

        That of a copy names its result first, those of the others their operands before.
        """
        if instruction.opcode == "copy-start":
            return instruction.arrays[:1]
        if not instruction.opcode.endswith("-start"):
            return instruction.arrays
        count = sum(len(self.by_name[name].arrays) for name in instruction.operands)
        return instruction.arrays[count : 2 * count] or instruction.arrays

    @functools.cached_property
    def users(self) -> dict[str, tuple[Instruction, ...]]:
        users = {}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                users[operand] = (*users.get(operand, ()), instruction)
        return users


@dataclass(frozen=True)
class Module:
    """A whole program for one device."""

    entry: str
    computations: dict[str, Computation]
    is_scheduled: bool
    donated: frozenset[int]  # numbers of the entry's parameters whose buffers results take

    def walk(self) -> Iterator["Visit"]:
        """Yields every instruction that runs, with how often it runs in one step.

        Of a conditional the branch with the most matrix products and kernels is taken. Scalar
        functions (what a reduce or a sort applies) are not entered.

        Raises:
            ValueError: if the trip count of a loop is not in it.
        """
        yield from self._walk(self.computations[self.entry], 1, False)

    def walk_instruction(self, computation: Computation, instruction: Instruction):
        """Yields the visits of one run of `instruction` of `computation`, itself first."""
        yield from self._walk(computation, 1, False, (instruction,))

    def _walk(self, computation, count, fused, only=None):
        for instruction in only or computation.instructions:
            yield Visit(instruction, computation, count, fused)
            times, callees = self.callees(computation, instruction)
            inside = fused or instruction.opcode == "fusion"
            for callee in callees:
                yield from self._walk(callee, count * times, inside)

    def callees(self, computation: Computation, instruction: Instruction):
        """Returns how often an instruction runs other computations, and which."""
        opcode = instruction.opcode
        if opcode not in ("while", "conditional", "fusion", "call", "call-start", "async-start"):
            return 1, ()
        called = [self.computations[name] for name in instruction.called]
        if opcode == "while":
            return self.trip_count(computation, instruction), called[:1]
        if opcode == "conditional":
            return 1, [max(called, key=self._weight)]
        return 1, called

    def _weight(self, computation):
        heavy = ("dot", "convolution", "custom-call")
        visits = self._walk(computation, 1, False)
        return sum(visit.count for visit in visits if visit.instruction.opcode in heavy)

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """Returns how often the body of `loop`, a while of `computation`, runs."""
        known = loop.backend_config.get("known_trip_count")
        if known:
            return int(known["n"])
        condition = self.computations[loop.called[1]]
        limit = _limit(self, condition)
        if limit is None:
            raise ValueError(
                f"{loop.name}: its trip count must be a constant of the program, got condition "
                f"{condition.name} without one; a step with such a loop cannot be counted."
            )
        index, bound = limit
        start = _start(computation, loop, index)
        step = _step(self, self.computations[loop.called[0]], index)
        return max(0, -(-(bound - start) // step))


@dataclass(frozen=True)
class Visit:
    """An instruction, the computation it stands in, its runs a step; `fused` inside a fusion."""

    instruction: Instruction
    computation: Computation
    count: int
    fused: bool


def serialize(compiled: jax.stages.Compiled) -> bytes:
    """Returns the optimized module of a compiled program, an `HloModuleProto`."""
    return compiled.runtime_executable().hlo_modules()[0].as_serialized_hlo_module_proto()


def read_module(serialized: bytes) -> Module:
    """Reads one optimized module, as `serialize` gives it.

    Raises:
        ValueError: if it has no entry computation.
    """
    proto = _schema().HloModuleProto.FromString(serialized)
    names = {computation.id: computation.name for computation in proto.computations}
    if proto.entry_computation_id not in names:
        raise ValueError("HLO module: must hold an entry computation, got none.")
    roots = {
        c.name: next(i for i in c.instructions if i.id == c.root_id) for c in proto.computations
    }
    # An instruction's id is its own in its computation, in newer modules in the whole module.
    orders = {key: tuple(value.instruction_ids) for key, value in proto.schedule.sequences.items()}
    computations = {}
    for computation in proto.computations:
        by_id = {i.id: i for i in computation.instructions}
        order = orders.get(computation.id, tuple(by_id))
        instructions = {i: _instruction(by_id[i], by_id, names, roots) for i in order}
        computations[computation.name] = Computation(
            computation.name, tuple(instructions.values()), instructions[computation.root_id]
        )
    donated = frozenset(entry.parameter_number for entry in proto.input_output_alias.entries)
    entry = names[proto.entry_computation_id]
    return Module(entry, computations, proto.entry_computation_id in orders, donated)


@functools.cache
def _schema():
    """Returns TensorFlow's `hlo_pb2`, without the 12 s and the gigabyte of TensorFlow itself.

    While it is imported the packages around it are empty ones with the same path.
    """
    found = importlib.util.find_spec("tensorflow")
    if "tensorflow" in sys.modules or found is None:
        return importlib.import_module(f"{_PACKAGES[-1]}.hlo_pb2")
    root = Path(found.origin).parent
    before = set(sys.modules)
    try:
        for name in _PACKAGES:
            package = types.ModuleType(name)
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = package
        return importlib.import_module(f"{_PACKAGES[-1]}.hlo_pb2")
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "tensorflow":
                del sys.modules[name]


def _instruction(proto, by_id, names, roots):
    called = tuple(names[i] for i in proto.called_computation_ids)
    opcode = proto.opcode
    if opcode.startswith("async-") and called:  # as it is printed: after what it wraps
        opcode = roots[called[0]].opcode + opcode.removeprefix("async")
    operands = tuple(by_id[i].name for i in proto.operand_ids)
    return Instruction(proto.name, opcode, tuple(_arrays(proto.shape)), operands, called, proto)


def _arrays(shape):
    """Yields the arrays of a shape, those of tuples in order."""
    if shape.tuple_shapes:
        for part in shape.tuple_shapes:
            yield from _arrays(part)
        return
    dtype = _dtype(shape.element_type)
    if dtype == "tuple":  # an empty one
        return
    layout = shape.layout
    tile = tuple(layout.tiles[0].dimensions) if layout.tiles else ()
    yield Array(
        dtype, tuple(shape.dimensions), layout.memory_space, tuple(layout.minor_to_major), tile
    )


@functools.cache
def _dtype(number):
    shape = _schema().HloInstructionProto.DESCRIPTOR.fields_by_name["shape"].message_type
    kinds = shape.fields_by_name["element_type"].enum_type
    return kinds.values_by_number[number].name.lower()


def _limit(module, condition):
    """Returns (place of the counter in a loop's tuple, first value that ends the loop) or None."""
    compare, home, outer = condition.root, condition, None
    if compare.opcode == "fusion":
        outer = condition, compare.operands
        home = module.computations[compare.called[0]]
        compare = home.root
    if compare.opcode != "compare":
        return None
    counter, bound = (_source(home, name, outer) for name in compare.operands)
    direction = compare.proto.comparison_direction
    if counter.opcode == "constant":
        counter, bound, direction = bound, counter, {"GT": "LT", "GE": "LE"}.get(direction)
    value = bound.integer
    if value is None or counter.opcode != "get-tuple-element" or direction not in ("LT", "LE"):
        return None
    return counter.proto.tuple_index, value + (direction == "LE")


def _start(computation, loop, index):
    """Returns the counter's first value; loops that JAX and XLA make start at 0 unless it says so."""
    made = computation.by_name[loop.operands[0]]
    if made.opcode != "tuple":
        return 0
    return _source(computation, made.operands[index]).integer or 0


def _step(module, body, index):
    """Returns what a round adds to the counter; 1 unless the body says so."""
    if body.root.opcode != "tuple":
        return 1
    made, home, outer = _source(body, body.root.operands[index]), body, None
    if made.opcode == "fusion":
        outer = body, made.operands
        home = module.computations[made.called[0]]
        made = home.root
    if made.opcode != "add":
        return 1
    values = [_source(home, name, outer).integer for name in made.operands]
    return next((value for value in values if value), 1)


def _source(computation, name, outer=None):
    """Follows copies back to what they copy, and out of a fusion to what it was given.

    `outer` is (the computation the fusion stands in, the fusion's operands).
    """
    instruction = computation.by_name[name]
    while True:
        if instruction.opcode in _COPIES:
            instruction = computation.by_name[instruction.operands[0]]
        elif instruction.opcode == "parameter" and outer:
            computation, operands = outer
            instruction, outer = (
                computation.by_name[operands[instruction.proto.parameter_number]],
                None,
            )
        else:
            return instruction


def _bytes(dtype, size):
    bits = _BITS.get(dtype)
    if bits is None:  # f8e4m3fn and its kin
        found = re.match(r"f(\d)", dtype)
        assert found, f"dtype {dtype} of the program is unknown"
        bits = int(found.group(1))
    return -(-size * bits // 8)
