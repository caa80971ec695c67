"""From a compiled train step to numbers: FLOPs, memory traffic, collectives, the largest buffers.

Owns what `ellama plan` asks of a compiled program. Reading it is plan/hlo_module.py's part,
the split of memory by use plan/hlo_memory.py's, seconds and ratios plan/roofline.py's.
"""

from dataclasses import dataclass

from jax.sharding import Mesh

from ellama_jax.plan.hlo_buffers import Buffer, find_peak
from ellama_jax.plan.hlo_collectives import (
    Collective,
    CollectiveSum,
    summarize_collectives,
)
from ellama_jax.plan.hlo_costs import (
    Flops,
    Operation,
    Traffic,
    count_flops,
    estimate_traffic,
)
from ellama_jax.plan.hlo_module import read_module
from ellama_jax.plan.schedule import Event, read_timeline

__all__ = (
    "Buffer", "Collective", "CollectiveSum", "Flops", "Operation", "StepCosts", "Traffic",
    "analyze_step", "summarize_collectives",
)  # fmt: skip


@dataclass(frozen=True)
class StepCosts:
    """What one step costs one device.

    `timeline` is what happens in the order of the schedule, naming collectives by their places;
    `peak` is what is alive when its memory peaks.
    """

    flops: Flops
    traffic: Traffic
    collectives: tuple[Collective, ...]
    timeline: tuple[Event, ...]
    peak: tuple[Buffer, ...]

    @property
    def largest(self) -> tuple[Buffer, ...]:
        """The twelve largest buffers at the peak that are not arguments."""
        return tuple(buffer for buffer in self.peak if buffer.kind != "argument")[:12]

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Bytes at the peak by kind of buffer: argument, gradients, weights, activations."""
        kinds = dict.fromkeys(("argument", "gradients", "weights", "activations"), 0)
        for buffer in self.peak:
            kinds[buffer.kind] += buffer.bytes
        return kinds


def analyze_step(serialized: bytes, mesh: Mesh) -> StepCosts:
    """Reads the costs of one step out of its compiled module.

    Args:
        serialized: `hlo_module.serialize` of a program for the devices of `mesh`.
        mesh: its axes name what collectives run along.

    Raises:
        ValueError: if it is no compiled module, or a loop's trip count is not in it.
    """
    module = read_module(serialized)
    timeline, collectives = read_timeline(module, mesh)
    return StepCosts(
        count_flops(module), estimate_traffic(module), collectives, timeline, find_peak(module)
    )
