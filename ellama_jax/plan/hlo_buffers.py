"""Which buffers are alive when a step's memory peaks, from its compiled schedule.

Owns an estimate: the compiler's own assignment of buffers is not handed out for TPUs, so the order of
the schedule is read and each buffer lives from what makes it to its last use. The size of the
peak comes from `compiled.memory_analysis()`; this says what it is made of.
"""

from dataclasses import dataclass, field

from ellama_jax.plan.hlo_module import HBM, Array, Computation, Instruction, Module

_SAME = ("bitcast", "optimization-barrier", "opt-barrier", "while", "add-dependency")
# What may write over an operand of the same size that nobody reads any more.
_IN_PLACE = ("fusion", "all-reduce", "add", "multiply", "select", "convert", "scatter")


@dataclass(frozen=True)
class Buffer:
    """One allocation in HBM.

    Attributes:
        name: of the instruction that makes it.
        bytes: its size, padding of tiles included.
        shape: dtype and dims.
        op_name: the JAX operation it came from; "" where the compiler made it.
        kind: argument (state and batch), gradients (arrays of a parameter's size that start as zeros),
            weights (copies of parameters: cast, gathered or laid out anew) or activations (the rest).
    """

    name: str
    bytes: int
    shape: str
    op_name: str
    kind: str


@dataclass(eq=False)
class _Life:
    """A buffer while it is traced; one that a caller owns has no bytes here."""

    maker: Instruction | None
    array: Array | None
    born: int
    dies: int

    @property
    def bytes(self):
        return self.array.padded_bytes if self.array is not None else 0


@dataclass
class _Trace:
    """Buffers of one computation: value (instruction, leaf) -> buffer."""

    module: Module
    computation: Computation
    at_entry: bool
    lives: list[_Life] = field(default_factory=list)
    of_value: dict[str, tuple[_Life, ...]] = field(default_factory=dict)
    results: set[str] = field(default_factory=set)  # names of what the root hands out


def find_peak(module: Module) -> tuple[Buffer, ...]:
    """Returns what is alive at the peak of one step, the largest first, arguments among it.

    A donated argument lives until its last use, its successor from its making on. With code added,
    the sum came within 2 % of the compiler's `peak_memory_in_bytes` (8B on v5p-8: 39.60 of
    39.62 GiB; 70B on v6e-256: 19.43 of
    19.20; 8B on v6e-8 with tensor 4: 21.90 of 21.51). A module that has no schedule gives ().
    """
    if not module.is_scheduled:
        return ()
    entry = module.computations[module.entry]
    _, alive = _peak(module, entry, at_entry=True)
    sizes = {_dims(i.arrays[0]) for i in entry.parameters.values() if len(i.arrays[0].dims) > 1}
    buffers = [
        Buffer(
            life.maker.name, life.bytes, str(life.array), op_name, _kind(life, op_name, sizes)
        )  # fmt: skip
        for life in alive
        for op_name in (_op_name(module, life.maker),)
    ]
    return tuple(sorted(buffers, key=lambda buffer: -buffer.bytes))


def _peak(module, computation, at_entry=False):
    """Returns (bytes, buffers) alive at the worst moment, those of called computations included."""
    trace = _traced(module, computation, at_entry)
    starts, ends = {}, {}
    for life in trace.lives:
        if life.bytes:
            starts.setdefault(life.born, []).append(life)
            ends.setdefault(life.dies, []).append(life)
    alive, size = {}, 0
    best, at_best = 0, []
    for place, instruction in enumerate(computation.instructions):
        for life in starts.get(place, ()):
            alive[id(life)] = life
            size += life.bytes
        inner, inside = 0, []
        if instruction.opcode in ("while", "call", "conditional"):
            names = dict.fromkeys(instruction.called)
            peaks = [_peak(module, module.computations[name]) for name in names]
            inner, inside = max(peaks, key=lambda peak: peak[0])
        if size + inner > best:
            best, at_best = size + inner, [*alive.values(), *inside]
        for life in ends.get(place, ()):
            del alive[id(life)]
            size -= life.bytes
    return best, at_best


def _traced(module, computation, at_entry):
    results = set() if at_entry else _results(computation)
    trace = _Trace(module, computation, at_entry, results=results)
    last_use = {}
    for place, instruction in enumerate(computation.instructions):
        for operand in instruction.operands:
            last_use[operand] = place
    for place, instruction in enumerate(computation.instructions):
        leaves = _leaves(trace, instruction, place, last_use)
        trace.of_value[instruction.name] = leaves
        for life in leaves:
            life.dies = max(life.dies, place)
        for operand in instruction.operands:
            for life in trace.of_value[operand]:
                life.dies = max(life.dies, place)
    for life in trace.of_value[computation.root.name]:
        if at_entry:
            life.dies = len(computation.instructions) - 1
        else:
            life.array = None  # a result: it lies where the caller wants it
    return trace


def _results(computation):
    names, wanted = set(), [computation.root.name]
    while wanted:
        instruction = computation.by_name[wanted.pop()]
        names.add(instruction.name)
        if instruction.opcode in ("tuple", "get-tuple-element", "copy-done", *_SAME):
            wanted += [name for name in instruction.operands if name not in names]
    return names


def _leaves(trace, instruction, place, last_use):
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "parameter" and trace.at_entry:
        life = _new(trace, instruction, instruction.arrays[0], 0)
        life.dies = (
            place
            if instruction.proto.parameter_number in trace.module.donated
            else len(trace.computation.instructions) - 1
        )
        return (life,)
    if opcode in ("parameter", "constant"):
        return tuple(_Life(None, None, place, place) for _ in instruction.arrays)
    if opcode == "tuple":
        return tuple(life for name in operands for life in trace.of_value[name])
    if opcode == "get-tuple-element":
        start = _offset(trace.computation, operands[0], instruction.proto.tuple_index)
        return trace.of_value[operands[0]][start : start + len(instruction.arrays)]
    if opcode in _SAME:
        return trace.of_value[operands[0]]
    if opcode.endswith("-done"):
        return _of_start(trace, instruction)
    known = [life for name in operands for life in trace.of_value[name]]
    if opcode == "copy-start":
        made, source = instruction.arrays[0], known[0]
        context = (_Life(None, None, place, place),) * (len(instruction.arrays) - 2)
        return (_new(trace, instruction, made, place), source, *context)
    if (opcode == "send" or opcode.endswith(("-start", "-update"))) and len(
        instruction.arrays
    ) > len(known):
        rest = instruction.arrays[len(known) :]
        return (*known, *(_new(trace, instruction, array, place) for array in rest))
    taken = set()
    return tuple(
        _written_over(trace, instruction, leaf, place, last_use, taken)
        or _new(trace, instruction, array, place)
        for leaf, array in enumerate(instruction.arrays)
    )


def _new(trace, instruction, array, place):
    life = _Life(instruction, array if array.space == HBM else None, place, place)
    trace.lives.append(life)
    return life


def _offset(computation, name, index):
    """Returns the first leaf of element `index` of a tuple; elements are single arrays elsewhere."""
    made = computation.by_name[name]
    if made.opcode != "tuple":
        return index
    return sum(len(computation.by_name[operand].arrays) for operand in made.operands[:index])


def _of_start(trace, done):
    """A done hands out the leaves of its start that have its shapes, the last ones but for copies."""
    name = done.operands[0]
    made, lives = trace.computation.by_name[name], list(trace.of_value[name])
    if made.opcode == "copy-start":
        return tuple(lives[:1])
    chosen, pairs = [], list(zip(made.arrays, lives, strict=False))
    for array in reversed(done.arrays):
        fits = [p for p in pairs if (p[0].dtype, p[0].dims) == (array.dtype, array.dims)]
        if not fits:
            chosen.append(_Life(None, None, 0, 0))
            continue
        pairs.remove(fits[-1])
        chosen.append(fits[-1][1])
    return tuple(reversed(chosen))


def _written_over(trace, instruction, leaf, place, last_use, taken):
    """Returns the operand's buffer that result number `leaf` is written into, if there is one."""
    number = _updated_operand(trace.module, trace.computation, instruction, leaf)
    if number is not None:
        lives = trace.of_value[instruction.operands[number]]
        return lives[0] if len(lives) == 1 else None
    # A result lies in its caller's buffer, so it is written over no temporary.
    if instruction.opcode not in _IN_PLACE or instruction.name in trace.results:
        return None
    if instruction.opcode == "fusion" and instruction.proto.fusion_kind != "kLoop":
        return None
    array = instruction.arrays[leaf]
    for name in instruction.operands:
        lives = trace.of_value[name]
        if len(lives) != 1 or lives[0].array is None or lives[0].dies > place:
            continue
        if id(lives[0]) in taken or lives[0].bytes != array.padded_bytes:
            continue
        holders = [n for n, held in trace.of_value.items() if lives[0] in held]
        if array.space == HBM and all(last_use.get(n, 0) <= place for n in holders):
            taken.add(id(lives[0]))
            return lives[0]
    return None


def _updated_operand(module, computation, instruction, leaf):
    """Returns which operand is updated in place to give result `leaf`; None where none is."""
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 0
    if instruction.opcode != "fusion":
        return None
    inner = module.computations[instruction.called[0]]
    value = inner.root
    if value.opcode == "tuple":
        value = inner.by_name[value.operands[leaf]]
    while True:
        if value.opcode == "parameter":
            return value.proto.parameter_number if _has_update(module, inner) else None
        number = 0 if value.opcode == "bitcast" else _updated_operand(module, inner, value, 0)
        if number is None:
            return None
        value = inner.by_name[value.operands[number]]


def _has_update(module, computation):
    return any(
        i.opcode in ("dynamic-update-slice", "scatter")
        or (i.opcode == "fusion" and _has_update(module, module.computations[i.called[0]]))
        for i in computation.instructions
    )


def _dims(array):
    """Dims without those of 1, in no order: a layout's or a loop's copy of an array has them too."""
    return tuple(sorted(dim for dim in array.dims if dim > 1))


def _kind(life, op_name, argument_sizes):
    maker = life.maker
    if maker.opcode == "parameter":
        return "argument"
    if maker.opcode == "all-gather":
        return "weights"
    if len(life.array.dims) > 1 and _dims(life.array) in argument_sizes:
        zeros = ("broadcast", "custom-call")  # the latter is AllocateBuffer
        backward = maker.opcode in zeros or "transpose(" in op_name
        return "gradients" if backward else "weights"
    return "activations"


def _op_name(module, instruction):
    if instruction.op_name or instruction.opcode != "fusion":
        return instruction.op_name
    return module.computations[instruction.called[0]].root.op_name
