"""What devices tell each other in one step: collectives, their bytes and mesh axes.

Owns the reading of collectives from a compiled module. What hides them is plan/schedule.py's part,
seconds are plan/roofline.py's.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet
from jax.sharding import Mesh

from ellama_jax.plan.hlo_module import Computation, Instruction, Module

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# Part of an operation's path -> what is sent, the first that fits. Layers are scanned: what a loop
# over layers gathers is their weights, and what its transpose reduces their gradients.
_SOURCES = (
    (re.compile(r"cd,vd->cv|cv,vd->cd|cv,cd->vd|log_softmax|logsumexp"), "loss"),
    (re.compile(r"state\.params|params\["), "weights"),
    (re.compile(r"_take|embed"), "embedding"),
    (re.compile(r"attention|splash|shard_map.*ppermute"), "attention"),
)


@dataclass(frozen=True)
class Collective:
    """One collective of the program; bytes are a device's.

    Attributes:
        kind: one of `KINDS`.
        name: of the instruction.
        op_name: the JAX operation it came from.
        source: a word for what is sent: weights, gradients, activations, loss, embedding, attention,
            scalars (under 1 KiB) or other.
        axes: mesh axes along which it talks; () where only one device would.
        slices: how many slices a group spans; above 1 it crosses the data-centre network.
        group_size: devices of a group.
        dtype: of the largest array it sends.
        payload_bytes: of the whole array of one execution: the gathered one of an all-gather, the
            operand of the others.
        count: executions a step.
        channel: the program's number for it, which all its parts bear; 0 where it has none.
    """

    kind: str
    name: str
    op_name: str
    source: str
    axes: tuple[str, ...]
    slices: int
    group_size: int
    dtype: str
    payload_bytes: int
    count: int
    channel: int = 0

    @property
    def network(self) -> str:
        """`dcn` where a group spans slices, else `ici`."""
        return "dcn" if self.slices > 1 else "ici"

    @property
    def ici_bytes(self) -> float:
        """Bytes a device sends to its neighbours in a step, by the ring formula."""
        inside = self.group_size // self.slices
        return self.count * _ring_bytes(self.kind, self.payload_bytes, inside)

    @property
    def dcn_bytes(self) -> float:
        """Bytes a device sends to other slices in a step: each sends its part of the slice's."""
        inside = self.group_size // self.slices
        part = self.payload_bytes / (inside if self.kind != "collective-permute" else 1)
        return self.count * _ring_bytes(self.kind, part, self.slices)


@dataclass(frozen=True)
class CollectiveSum:
    """Collectives alike in kind, axes, network, dtype and source: a row of a table."""

    kind: str
    source: str
    axes: tuple[str, ...]
    network: str
    dtype: str
    count: int
    payload_bytes: float
    link_bytes: float
    overlapped_bytes: float | None  # of link_bytes; None where no peaks are known


def collectives_in(
    module: Module, computation: Computation, instruction: Instruction, count: int, mesh: Mesh
) -> list[Collective]:
    """Finds the collectives of one instruction: itself, or what stands in what it calls.

    Args:
        module: of a program compiled for all devices of `mesh`.
        computation: where the instruction stands.
        count: how often it runs in a step.
        mesh: its axes and devices, those of other slices told by their `slice_index`.
    """
    found = []
    for visit in module.walk_instruction(computation, instruction):
        inner = visit.instruction
        kind = inner.opcode.removesuffix("-start")
        if kind == "send" and inner.frontend_attribute("_xla_megascale_target"):
            found.append(_between_slices(visit.computation, inner, count, mesh))
        if kind not in KINDS:
            continue
        groups = read_groups(inner.proto, mesh.size)
        if groups.shape[1] < 2:
            continue
        kind = "reduce-scatter" if visit.fused and _is_scattered(visit.computation) else kind
        arrays = _payload(kind, inner, visit.computation)
        payload = sum(array.bytes for array in arrays)
        op_name = inner.op_name or instruction.op_name or _maker(computation, instruction).op_name
        axes = _axes(groups, mesh)
        found.append(
            Collective(
                kind, inner.name, op_name, _source(kind, op_name, payload, axes), axes,
                _slices(groups, mesh), groups.shape[1],
                max(arrays, key=lambda array: array.bytes).dtype, payload, count * visit.count,
                inner.proto.channel_id,
            )
        )  # fmt: skip
    return found


def _maker(computation, instruction):
    """Returns what made the first operand, copies left out."""
    made = computation.by_name[instruction.operands[0]]
    while made.opcode in ("copy", "copy-done", "copy-start", "bitcast", "get-tuple-element"):
        made = computation.by_name[made.operands[0]]
    return made


def _between_slices(computation, send: Instruction, count: int, mesh: Mesh) -> Collective:
    """Reads a collective over the data-centre network, which libtpu writes as a send and a recv.

    `_xla_megascale_target="{1,2}x{0:3}"` names its slices and, of each, its devices; what is sent is
    the device's part already.
    """
    kind = send.frontend_attribute("_xla_megascale_transfer_type").lower().replace("_", "-")
    target = send.frontend_attribute("_xla_megascale_target")
    listed = re.findall(r"\d+", target.split("}")[0])
    array = computation.by_name[send.operands[0]].arrays[0]
    slices = _slice_grid(mesh)
    axes = tuple(
        axis
        for place, axis in enumerate(mesh.axis_names)
        if (slices != slices.take([0], axis=place)).any()
    )
    source = _source(kind, send.op_name, array.bytes, axes)
    return Collective(
        kind, send.name, send.op_name, source, axes, len(listed), len(listed), array.dtype,
        array.bytes, count,
    )  # fmt: skip


def _slice_grid(mesh):
    numbers = [getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat]
    return np.array(numbers).reshape(mesh.devices.shape)


def summarize_collectives(
    collectives: Sequence[Collective], hidden: Sequence[float] | None
) -> tuple[CollectiveSum, ...]:
    """Adds up collectives that are alike; what sends most comes first.

    Args:
        hidden: of each the share that runs beside computation, None where that is not known.
    """

    def key(pair):
        c = pair[0]
        return c.kind, c.source, c.axes, c.network, c.dtype

    rows = []
    pairs = zip(collectives, hidden or [None] * len(collectives), strict=True)
    for alike, group in itertools.groupby(sorted(pairs, key=key), key):
        group = list(group)
        sent = [c.ici_bytes + c.dcn_bytes for c, _ in group]
        beside = (
            sum(b * share for b, (_, share) in zip(sent, group, strict=True)) if hidden else None
        )
        payload = float(sum(c.payload_bytes * c.count for c, _ in group))
        count = sum(c.count for c, _ in group)
        rows.append(CollectiveSum(*alike, count, payload, float(sum(sent)), beside))
    return tuple(sorted(rows, key=lambda row: -row.link_bytes))


def read_groups(proto, num_devices: int) -> np.ndarray:
    """Reads which devices talk to each other, in any of the forms that XLA has for it.

    Returns:
        [groups, size] int: places in the mesh, in the order of its devices.
    """
    if proto.opcode.startswith("collective-permute"):
        pairs = [(p.source, p.target) for p in proto.source_target_pairs if p.source != p.target]
        return np.array(pairs or [[0]])
    if proto.HasField("mesh_axes_replica_group_list"):
        return _mesh_groups(proto)
    listed = proto.collective_device_list
    for iota in (proto.iota_collective_device_list, listed.iota_replica_group_list):
        if iota.num_replica_groups:
            grid = np.arange(math.prod(iota.iota_reshape_dims)).reshape(iota.iota_reshape_dims)
            shape = iota.num_replica_groups, iota.num_devices_per_group
            return grid.transpose(iota.iota_transpose_perm).reshape(shape)
    groups = [list(group.replica_ids) for group in proto.replica_groups or listed.replica_groups]
    return np.array(groups or [range(num_devices)])  # none: all devices


def _mesh_groups(proto):
    """Groups by axes of a mesh, or by parts of axes: each is cut into (before, part, after)."""
    listed = proto.mesh_axes_replica_group_list
    sizes = [axis.size for axis in listed.mesh.axes]
    devices = np.array(listed.mesh.device_ids or range(math.prod(sizes)))
    for field in UnknownFieldSet(listed.mesh):
        # Newer than TensorFlow's schema: a range, its dims in field 1 and their order in field 2. The
        # numbers of a dot's dims lie in the same fields in the same form.
        if field.field_number == 3:
            iota = type(proto.dot_dimension_numbers).FromString(field.data)
            dims, order = iota.lhs_contracting_dimensions, iota.rhs_contracting_dimensions
            devices = np.arange(math.prod(dims)).reshape(dims).transpose(order)
    cuts = {axis: (size, 1) for axis, size in enumerate(sizes)}
    for axis in listed.axes:
        part = axis.sub_axis_info
        whole = 1, sizes[axis.mesh_axis_index]
        cuts[axis.mesh_axis_index] = (part.pre_size, part.size) if part.size else whole
    parts = [
        (before, part, sizes[axis] // (before * part)) for axis, (before, part) in cuts.items()
    ]
    grid = devices.reshape([size for cut in parts for size in cut])
    last = [3 * axis.mesh_axis_index + 1 for axis in listed.axes]
    rest = [place for place in range(grid.ndim) if place not in last]
    group = math.prod(grid.shape[place] for place in last)
    return grid.transpose(rest + last).reshape(-1, group)


def _axes(groups, mesh):
    """Returns the mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(groups, mesh.devices.shape), axis=-1)
    differs = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(axis for axis, yes in zip(mesh.axis_names, differs, strict=True) if yes)


def _slices(groups, mesh):
    return max(len(set(row)) for row in _slice_grid(mesh).reshape(-1)[groups].tolist())


def _ring_bytes(kind, payload, size):
    """What one device of a ring of `size` sends.

    A gather or a scatter passes each of the other parts on once; a reduction over all is a scatter
    and a gather (Thakur et al. 2005, doi 10.1177/1094342005051521); a permutation sends the array.
    """
    if size < 2:
        return 0.0
    if kind in ("collective-permute", "collective-broadcast"):
        return float(payload)
    passes = 2 if kind == "all-reduce" else 1
    return passes * payload * (size - 1) / size


def _payload(kind, instruction, computation: Computation):
    if kind == "all-gather":
        return computation.results_of(instruction)
    operands = [computation.by_name[name] for name in instruction.operands]
    return tuple(array for operand in operands for array in operand.arrays if array.size)


def _is_scattered(computation):
    """Whether a fusion keeps only this device's part of what it reduces (a reduce-scatter)."""
    root = computation.root
    while root.opcode in ("bitcast", "copy", "convert"):
        root = computation.by_name[root.operands[0]]
    return root.opcode == "dynamic-slice"


def _source(kind, op_name, payload, axes):
    if payload < 1024:
        return "scalars"
    for pattern, source in _SOURCES:
        if pattern.search(op_name):
            return source
    if axes == ("tensor",):  # it divides what layers compute, and no weight is gathered along it
        return "activations"
    if "while/body" in op_name:
        if kind == "all-gather":
            return "weights"
        if kind in ("reduce-scatter", "all-reduce") and "transpose" in op_name:
            return "gradients"
    return "other"
