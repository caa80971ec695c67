"""From what a step computes and moves to bounds on its time.

Owns the arithmetic of rooflines. What the compiled step costs comes from plan/hlo.py, the FLOPs of
the model itself from model/flops.py, what the hardware can do from core/topology.py. All results are
bounds, not promises: no program reaches every peak.
"""

import collections
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from ellama_jax.core.topology import Hardware
from ellama_jax.model.flops import ModelFlops
from ellama_jax.plan.hlo import StepCosts
from ellama_jax.plan.schedule import replay


@dataclass(frozen=True)
class Roofline:
    """Bounds on one step.

    Attributes:
        compute_secs: matrix products and attention at the matrix unit's peak.
        hbm_secs: bytes moved at the memory's bandwidth.
        ici_secs: the busiest mesh axis' time on its links; axes have links of their own.
        ici_secs_by_axis: mesh axis -> seconds of its links.
        dcn_secs: bytes between slices at a chip's share of the network.
        exposed_secs: what the compiled schedule waits for collectives.
        hidden: of each collective the share that runs beside computation.
        step_secs: the largest of compute, hbm, ici and dcn: no step is faster.
        serial_step_secs: operations one after the other, each at its own roofline, and between them
            the waiting: what the schedule allows at the peaks.
        bound_by: which of the four it is.
        flops_ratio: compiled over model FLOPs: 1.0 is no recompute, 4/3 all of it.
        tokens_per_sec_per_chip, mfu: of `step_secs`; those with `serial_` of `serial_step_secs`.
    """

    compute_secs: float
    hbm_secs: float
    ici_secs: float
    ici_secs_by_axis: dict[str, float]
    dcn_secs: float
    exposed_secs: float
    hidden: tuple[float, ...]
    step_secs: float
    serial_step_secs: float
    bound_by: str
    flops_ratio: float
    tokens_per_sec_per_chip: float
    mfu: float
    serial_tokens_per_sec_per_chip: float
    serial_mfu: float


def roofline(
    costs: StepCosts,
    flops: ModelFlops,
    tokens_per_step: int,
    mesh: Mesh,
    hardware: Hardware,
    wrap: tuple[bool, ...] = (),
) -> Roofline:
    """Bounds a step's time from below.

    Args:
        costs: of one device and step.
        flops: of the model, a token.
        tokens_per_step: over all devices.
        mesh: devices with `coords` where links are to be counted one by one.
        hardware: a chip's peaks.
        wrap: per axis of the slice's torus, whether its ends are joined.
    """
    share = 1 / hardware.devices_per_chip
    peak = hardware.flops_per_sec * share
    bandwidth = hardware.hbm_bytes_per_sec * share
    compute, hbm = costs.flops.total / peak, costs.traffic.hbm_bytes / bandwidth

    by_axis, dcn, sends = collections.defaultdict(float), 0.0, []
    for collective in costs.collectives:
        links = count_links(mesh, collective.axes, wrap, hardware.ici_links)
        on_ici = collective.ici_bytes / (links * hardware.ici_bytes_per_sec * share)
        on_dcn = collective.dcn_bytes / (hardware.dcn_bytes_per_sec * share)
        for axis in collective.axes if on_ici else ():
            by_axis[axis] += on_ici
        dcn += on_dcn
        sends.append(((collective.network, collective.axes), (on_ici + on_dcn) / collective.count))

    bounds = {"compute": compute, "hbm": hbm, "ici": max(by_axis.values(), default=0.0), "dcn": dcn}
    step = max(bounds.values())

    def operation_secs(operation):
        return max(operation.flops / peak, operation.hbm_bytes / bandwidth)

    played = replay(costs.timeline, operation_secs, tuple(sends))
    hidden = tuple(
        max(0.0, 1 - exposed / (secs * collective.count)) if secs else 0.0
        for exposed, (_, secs), collective in zip(
            played.exposed_secs, sends, costs.collectives, strict=True
        )
    )
    serial = max(step, played.secs)
    chips = mesh.size * share
    needed = tokens_per_step * flops.total_per_token
    return Roofline(
        compute_secs=compute, hbm_secs=hbm, ici_secs=bounds["ici"], ici_secs_by_axis=dict(by_axis),
        dcn_secs=dcn, exposed_secs=sum(played.exposed_secs), hidden=hidden, step_secs=step, serial_step_secs=serial,
        bound_by=max(bounds, key=bounds.get), flops_ratio=costs.flops.total * mesh.size / needed,
        tokens_per_sec_per_chip=tokens_per_step / step / chips,
        mfu=needed / (step * mesh.size * peak),
        serial_tokens_per_sec_per_chip=tokens_per_step / serial / chips,
        serial_mfu=needed / (serial * mesh.size * peak),
    )  # fmt: skip


def count_links(mesh: Mesh, axes: tuple[str, ...], wrap: tuple[bool, ...], most: int) -> int:
    """Returns how many links of a chip a collective along `axes` can send on at once.

    A ring through a whole axis of the torus that wraps round sends both ways; an open line, or two
    neighbours, one. Where devices have no coordinates (GPUs behind a switch) all links serve.
    """
    devices = mesh.devices
    if any(getattr(device, "coords", None) is None for device in devices.flat):
        return most
    chosen = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    group = np.array([device.coords for device in np.ravel(devices[chosen])])
    every = np.array([device.coords for device in devices.flat])
    links = 0
    for dim in range(group.shape[1]):
        size, whole = len(set(group[:, dim])), len(set(every[:, dim]))
        joined = dim < len(wrap) and wrap[dim] and size == whole
        links += 0 if size == 1 else 2 if joined and size > 2 else 1
    return max(1, min(links, most))
