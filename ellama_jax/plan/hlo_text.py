"""Optimized HLO text -> instructions, and how often each runs in one step.

Owns the reading of what `compiled.as_text()` prints (TPU, GPU and CPU executables alike) and the trip
counts of loops. What an instruction costs is plan/hlo_costs.py's and plan/hlo_collectives.py's part.

JAX's own `compiled.cost_analysis()` counts a loop's body once and a Pallas call as nothing, and its
HLO bindings show neither shapes nor attributes in every version we support; the text has all of it.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

HBM, HOST = 0, 5  # memory spaces in layouts, `S(5)`; the others (1 is VMEM) are on the core

_BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    kind + str(bits): bits
    for kind, sizes in {"s": (2, 4, 8, 16, 32, 64), "u": (2, 4, 8, 16, 32, 64)}.items()
    for bits in sizes
}
_BITS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}

_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_END = re.compile(r"^\}(, execution_thread.*)?$")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COPIES = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "broadcast")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|branch_computations|true_computation|false_computation)="
)


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
    """One line of a computation. `arrays` are the leaves of its result, in order."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str  # what stands in the parentheses: a parameter's number, a constant's value
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations it runs, in the order they are named; of a while the body alone."""
        names = []
        for match in _CALLED.finditer(self.attributes):
            rest = self.attributes[match.end() :]
            end = rest.index("}") if rest.startswith("{") else re.match(r"%?[\w.\-]+", rest).end()
            names += re.findall(r"[\w.\-]+", rest[:end])
        return tuple(names)

    def attribute(self, name: str) -> str | None:
        """Returns an attribute's value as written, braces and all; None where it is absent."""
        match = re.search(rf"(?:^|, ){name}=", self.attributes)
        return _until_comma(self.attributes, match.end()) if match else None

    def frontend_attribute(self, name: str) -> str:
        """Returns a frontend attribute's value; "" where it is absent."""
        match = re.search(rf'\b{name}="((?:[^"\\]|\\.)*)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def op_name(self) -> str:
        """The JAX operation it came from, as a path; "" where the compiler made it."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match.group(1).replace("\\'", "'") if match else ""


@dataclass(frozen=True)
class Computation:
    """A list of instructions in the order they run where the module is scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions) if i.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.literal): i for i in self.instructions if i.opcode == "parameter"}

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
    header: str

    @functools.cached_property
    def callers(self) -> dict[str, tuple[Computation, Instruction]]:
        """Which instruction of which computation runs a computation: the last one that names it."""
        return {
            name: (computation, instruction)
            for computation in self.computations.values()
            for instruction in computation.instructions
            for name in instruction.called
        }

    def walk(self) -> Iterator["Visit"]:
        """Yields every instruction that runs, with how often it runs in one step.

        Of a conditional the branch with the most matrix products and kernels is taken. Scalar
        functions (what a reduce or a sort applies) are not entered.

        Raises:
            ValueError: if the trip count of a loop is not in the text.
        """
        yield from self._walk(self.computations[self.entry], 1, False)

    def walk_instruction(self, computation: Computation, instruction: Instruction):
        """Yields the visits of one run of `instruction` of `computation`, itself first."""
        yield from self._walk(computation, 1, False, (instruction,))

    def _walk(self, computation, count, fused, only=None):
        for instruction in only or computation.instructions:
            yield Visit(instruction, computation, count, fused)
            times, callees = self._callees(computation, instruction)
            inside = fused or instruction.opcode == "fusion"
            for callee in callees:
                yield from self._walk(callee, count * times, inside)

    def _callees(self, computation, instruction):
        opcode = instruction.opcode
        if opcode not in ("while", "conditional", "fusion", "call", "call-start", "async-start"):
            return 1, ()
        called = [self.computations[name] for name in instruction.called]
        if opcode == "while":
            return self.trip_count(computation, instruction), called
        if opcode == "conditional":
            return 1, [max(called, key=self._weight)]
        return 1, called

    def _weight(self, computation):
        heavy = ("dot", "convolution", "custom-call")
        visits = self._walk(computation, 1, False)
        return sum(visit.count for visit in visits if visit.instruction.opcode in heavy)

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """Returns how often the body of `loop`, a while of `computation`, runs."""
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        limit = _limit(self, condition)
        if limit is None:
            raise ValueError(
                f"{loop.name}: its trip count must be a constant in the compiled text, got condition "
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


def parse_module(text: str) -> Module:
    """Reads the text of one optimized module.

    Raises:
        ValueError: if it has no entry computation.
    """
    computations, entry = {}, None
    name, lines = None, []
    header = text[: text.find("\n")]
    for line in text.splitlines():
        if name is None:
            match = _HEADER.match(line)
            if match:
                name, lines = match.group(2), []
                entry = name if match.group(1) else entry
        elif _END.match(line):
            instructions = tuple(_instruction(text) for text in lines)
            computations[name] = Computation(name, instructions)
            name = None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # attributes may hold line breaks
            lines[-1] += "\n" + line
    if entry is None:
        raise ValueError(
            "HLO text: must hold an ENTRY computation, got none; pass compiled.as_text()."
        )
    return Module(entry, computations, header)


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
    direction = compare.attribute("direction")
    if counter.opcode == "constant":
        counter, bound, direction = bound, counter, {"GT": "LT", "GE": "LE"}.get(direction)
    value = _integer(bound)
    if value is None or counter.opcode != "get-tuple-element" or direction not in ("LT", "LE"):
        return None
    return int(counter.attribute("index")), value + (direction == "LE")


def _start(computation, loop, index):
    """Returns the counter's first value; loops that JAX and XLA make start at 0 unless it says so."""
    made = computation.by_name[loop.operands[0]]
    if made.opcode != "tuple":
        return 0
    return _integer(_source(computation, made.operands[index])) or 0


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
    values = [_integer(_source(home, name, outer)) for name in made.operands]
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
            instruction, outer = computation.by_name[operands[int(instruction.literal)]], None
        else:
            return instruction


def _integer(instruction):
    whole = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal)
    return int(instruction.literal) if whole else None


def parse_arrays(text: str) -> tuple[Array, ...]:
    """Reads the arrays of a shape, those of tuples in order.

    >>> [str(array) for array in parse_arrays("(f32[2,3]{1,0:T(8,128)S(1)}, s32[])")]
    ['f32[2,3]', 's32[]']
    """
    return tuple(_array(match) for match in _ARRAY.finditer(text))


def _array(match):
    dtype, dims, layout = match.groups()
    dims = tuple(int(dim.lstrip("<=")) for dim in dims.split(",") if dim.strip())
    order, _, properties = (layout or "").partition(":")
    space = re.search(r"S\((\d+)\)", properties)
    tile = re.search(r"T\(([\d,]+)\)", properties)
    return Array(
        dtype, dims, int(space.group(1)) if space else HBM,
        tuple(int(d) for d in order.split(",") if d),
        tuple(int(t) for t in tile.group(1).split(",")) if tile else (),
    )  # fmt: skip


def _bytes(dtype, size):
    bits = _BITS.get(dtype)
    if bits is None:  # f8e4m3fn and its kin
        found = re.match(r"f(\d)", dtype)
        assert found, f"dtype {dtype} of the compiled text is unknown"
        bits = int(found.group(1))
    return -(-size * bits // 8)


def _instruction(text):
    match = _INSTRUCTION.match(text)
    start = match.end()
    end = _closing(text, start) + 1 if text[start] == "(" else text.index(" ", start)
    opcode = _OPCODE.match(text, end)
    close = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : close]
    literal = opcode.group(1) in ("parameter", "constant")
    return Instruction(
        name=match.group(2), opcode=opcode.group(1), arrays=parse_arrays(text[start:end]),
        operands=() if literal else tuple(_NAME.findall(inside)),
        literal=inside if literal else "", attributes=text[close + 1 :].lstrip(", "),
        is_root=match.group(1) is not None,
    )  # fmt: skip


def _closing(text, start):
    """Returns where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise AssertionError(f"unbalanced brackets in {text[:80]}")


def _until_comma(text, start):
    """Returns the text from `start` to the comma that ends an attribute."""
    depth, quoted = 0, False
    for place in range(start, len(text)):
        letter = text[place]
        if letter == '"' and text[place - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and depth == 0:
            return text[start:place]
    return text[start:]
