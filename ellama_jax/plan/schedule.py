"""When a step computes, what is in flight meanwhile, and what it waits for.

Owns the timeline of a compiled schedule and its replay. What an instruction costs is plan/hlo_costs.py's
part, what a collective sends plan/hlo_collectives.py's, how fast plan/roofline.py's.

What runs beside computation looks so in a scheduled TPU program: pairs `X-start` and `X-done`, where X
is a collective, or `call` for a computation on another thread (`sparsecore` for collectives that are
offloaded to it); a `send` and a `recv-done` between slices; the permutations of a collective matrix
product, whose pairs stand around the products' parts; and asynchronous collective fusions, a chain of
fusions that all hold the same collective: the first with a custom call AsyncCollectiveStart, then any
with products inside, the last with AsyncCollectiveDone. A collective by itself is waited for.
"""

import collections
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from jax.sharding import Mesh

from ellama_jax.plan.hlo_collectives import Collective, collectives_in
from ellama_jax.plan.hlo_costs import Operation, read_operation
from ellama_jax.plan.hlo_module import Computation, Instruction, Module

_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclass(frozen=True)
class Start:
    """A collective, by its place in the list of all, is in flight from here on ..."""

    place: int


@dataclass(frozen=True)
class Wait:
    """... and here it must have arrived."""

    place: int


@dataclass(frozen=True)
class Loop:
    """Events that happen `trips` times."""

    trips: int
    events: tuple["Event", ...]


Event = Start | Wait | Operation | Loop


@dataclass(frozen=True)
class Replay:
    """A step played through: its seconds, and of each collective those that it was waited for."""

    secs: float
    exposed_secs: tuple[float, ...]


def read_timeline(module: Module, mesh: Mesh) -> tuple[tuple[Event, ...], tuple[Collective, ...]]:
    """Reads the schedule of a program compiled for the devices of `mesh`.

    Returns:
        what happens in the order of the program, and the collectives, in that order too.
    """
    found: list[Collective] = []
    entry = module.computations[module.entry]
    return tuple(_events(module, entry, 1, mesh, found)), tuple(found)


def _events(module, computation, count, mesh, found):
    pending: dict[str, list[int]] = {}
    for instruction in computation.instructions:
        opcode = instruction.opcode
        if opcode == "while":
            trips, (body,) = module.callees(computation, instruction)
            yield Loop(trips, tuple(_events(module, body, count * trips, mesh, found)))
        elif opcode in ("conditional", "call"):
            for callee in module.callees(computation, instruction)[1]:
                yield from _events(module, callee, count, mesh, found)
        elif opcode.endswith("-done"):
            yield from map(Wait, pending.pop(_origin(computation, instruction, pending), ()))
        else:
            inside = collectives_in(module, computation, instruction, count, mesh)
            targets = _targets(module, computation, instruction) if inside else ()
            channels = {c.channel: f"channel {c.channel}" for c in inside}
            over = [pending.pop(handle, []) for handle in channels.values() if _DONE in targets]
            inside = [c for c in inside if not over and channels[c.channel] not in pending]
            places = list(range(len(found), len(found) + len(inside)))
            found += inside
            yield from map(Start, places)
            operation = read_operation(module, computation, instruction)
            if operation is not None:
                yield operation
            yield from map(Wait, itertools.chain(*over))
            if _START in targets:
                for place in places:
                    pending[channels[found[place].channel]] = [place]
            elif places and (opcode == "send" or opcode.endswith("-start")):
                pending[_handle(computation, instruction)] = places
            else:
                yield from map(Wait, places)
    for places in pending.values():
        yield from map(Wait, places)


def _targets(module, computation, instruction) -> set[str]:
    """Returns the custom calls inside a fusion."""
    if instruction.opcode != "fusion":
        return set()
    visits = module.walk_instruction(computation, instruction)
    return {v.instruction.proto.custom_call_target for v in visits}


def _origin(computation: Computation, done: Instruction, pending) -> str:
    """Returns the name of the start that a done belongs to, "" where it is not here."""
    name = done.operands[0]
    while name not in pending:
        between = computation.by_name[name]
        if between.opcode != "get-tuple-element" and not between.opcode.endswith("-update"):
            return ""
        name = between.operands[0]
    return name


def _handle(computation: Computation, start: Instruction) -> str:
    """Returns what the done of a start names: of a send between slices the recv of its answer."""
    if start.opcode != "send":
        return start.name
    name = "_xla_host_transfer_rendezvous"
    where = start.frontend_attribute(name)
    received = (i for i in computation.instructions if i.opcode == "recv")
    return next((i.name for i in received if i.frontend_attribute(name) == where), start.name)


def replay(
    timeline: tuple[Event, ...],
    operation_secs: Callable[[Operation], float],
    sends: tuple[tuple[object, float], ...],
) -> Replay:
    """Plays a timeline through, operations one after the other.

    What is sent on the same links goes one after the other too, in the order it is started. Where the
    step waits, the seconds are those of the collectives that are on the links meanwhile.

    Args:
        operation_secs: how long an operation takes.
        sends: of each collective its links, by any key, and its seconds on them.
    """
    player = _Player(operation_secs, sends)
    secs = player.play(timeline, 0.0, 1)
    return Replay(secs, tuple(player.exposed))


class _Player:
    """The state of the links while a timeline is played."""

    def __init__(self, operation_secs, sends):
        self.operation_secs = operation_secs
        self.sends = sends
        self.exposed = [0.0] * len(sends)
        self.free_at = collections.defaultdict(float)  # links -> when the last transfer ends
        self.in_flight: dict[int, tuple[float, float]] = {}  # place -> on its links from, to

    def play(self, events, now, times):
        """Returns when events that happen `times` times a step are over, begun at `now` once."""
        for event in events:
            if isinstance(event, Operation):
                now += self.operation_secs(event)
            elif isinstance(event, Loop):
                took = self.play(event.events, now, times * event.trips) - now
                now += took * event.trips
            elif isinstance(event, Start):
                links, secs = self.sends[event.place]
                begin = max(now, self.free_at[links])
                self.in_flight[event.place] = begin, begin + secs
                self.free_at[links] = begin + secs
            else:
                now = self._wait(event.place, now, times)
        return now

    def _wait(self, place, now, times):
        links, _ = self.sends[place]
        end = self.in_flight[place][1]
        for other, (begin, over) in self.in_flight.items():
            if self.sends[other][0] == links:
                self.exposed[other] += times * max(0.0, min(over, end) - max(begin, now))
        del self.in_flight[place]
        return max(now, end)
