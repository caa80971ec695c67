"""Meshes, and the two tables that say where each named dim lives.

Owns the way from dims (`embed`, `mlp`, ...) to mesh axes (`data fsdp context tensor`). Which dims an
array has is said where the array is defined, not here.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")

# Where parameters and optimizer state are stored. `layers` is scanned and never divided; `head_dim`
# stays whole so that RoPE's halves meet on one device.
STORAGE_AXES: Mapping[str, tuple[str, ...]] = {
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp", "context"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "norm": (),
}

# Where activations are computed. `batch` is what data parallelism (plain and FSDP) divides.
ACTIVATION_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": (),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "vocab": ("tensor",),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh whose axes have `sizes`; slices (DCN) go to the `data` axis.

    Args:
        sizes: size by axis for each of `MESH_AXES`; one may be -1, "all remaining devices".
        devices: the devices to use, by default all.

    Raises:
        ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve_axis_sizes(sizes, len(devices))
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices > 1:
        if shape[0] % num_slices:
            raise ValueError(
                f"mesh.data: must be divisible by the number of slices ({num_slices}), got {shape[0]}."
            )
        ici = (shape[0] // num_slices, *shape[1:])
        dcn = (num_slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(ici, dcn, devices=devices)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices=devices)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def resolve_axis_sizes(sizes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
    """Returns the axis sizes in the order of `MESH_AXES`, -1 replaced by what remains.

    >>> resolve_axis_sizes({"data": 1, "fsdp": -1, "context": 1, "tensor": 2}, 8)
    (1, 4, 1, 2)
    """
    shape = [sizes[axis] for axis in MESH_AXES]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and num_devices % known == 0:
        shape[shape.index(-1)] = num_devices // known
    if -1 in shape or math.prod(shape) != num_devices:
        wanted = " x ".join(f"{axis} {sizes[axis]}" for axis in MESH_AXES)
        raise ValueError(
            f"mesh: axis sizes must multiply to the number of devices ({num_devices}), got {wanted}; "
            "at most one axis may be -1 (all that remain)."
        )
    return tuple(shape)


def partition_spec(
    dims: Sequence[str],
    shape: Sequence[int],
    axis_sizes: Mapping[str, int],
    table: Mapping[str, tuple[str, ...]],
    name: str = "array",
) -> PartitionSpec:
    """Maps named dims to mesh axes; axes of size 1 divide nothing and are left out.

    Args:
        dims: one name a dimension.
        shape: sizes, in elements.
        axis_sizes: mesh axis -> number of devices along it.
        table: dim -> mesh axes, `STORAGE_AXES` or `ACTIVATION_AXES`.
        name: what to call the array in errors.

    Raises:
        ValueError: for an unknown dim, one mesh axis on two dims, or a size that is not divisible.

    >>> sizes = {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    >>> tuple(partition_spec(("embed", "mlp"), (64, 192), sizes, STORAGE_AXES))
    ('fsdp', 'tensor')
    """
    taken: dict[str, str] = {}
    entries = []
    for dim, size in zip(dims, shape, strict=True):
        if dim not in table:
            raise ValueError(f"{name}: dim {dim} is unknown; known: {', '.join(table)}.")
        axes = tuple(axis for axis in table[dim] if axis_sizes[axis] > 1)
        for axis in axes:
            if axis in taken:
                raise ValueError(
                    f"{name}: dims {taken[axis]} and {dim} both want mesh axis {axis}; "
                    "one axis can divide one dim."
                )
            taken[axis] = dim
        total = math.prod(axis_sizes[axis] for axis in axes)
        if size % total:
            raise ValueError(
                f"{name}: dim {dim} of size {size} must be divisible by mesh axes {axes} of total "
                f"size {total}."
            )
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def storage_sharding(
    mesh: Mesh, dims: Sequence[str], shape: Sequence[int], name: str
) -> NamedSharding:
    """Returns where a parameter with these dims is stored on `mesh`."""
    return NamedSharding(mesh, partition_spec(dims, shape, mesh.shape, STORAGE_AXES, name))


def batch_sharding(mesh: Mesh, shape: Sequence[int], name: str) -> NamedSharding:
    """Returns where a batch array [B] or [B, T] lies on `mesh`."""
    dims = ("batch", "length")[: len(shape)]
    return NamedSharding(mesh, partition_spec(dims, shape, mesh.shape, ACTIVATION_AXES, name))


@functools.cache
def row_parts(mesh: Mesh) -> tuple[int, ...]:
    """Returns which part of the global batch each process feeds, by process index.

    Processes that divide rows among them feed different parts. Those that hold different pieces
    of the same rows, because `context` or `tensor` spans them, feed the same one.

    Raises:
        ValueError: if the rows of a process do not lie side by side in the batch.
    """
    shards = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
    rows: dict[int, set[int]] = {}
    sharding = batch_sharding(mesh, (shards,), "batch")
    for device, (index,) in sharding.devices_indices_map((shards,)).items():
        rows.setdefault(device.process_index, set()).update(range(*index.indices(shards)))
    parts = []
    for process, mine in sorted(rows.items()):
        part, rest = divmod(min(mine), len(mine))
        if rest or max(mine) - min(mine) >= len(mine) or shards % len(mine):
            raise ValueError(
                f"mesh: the rows of one process must lie side by side, got shards {sorted(mine)} of "
                f"{shards} on process {process}; change mesh.data or mesh.fsdp."
            )
        parts.append(part)
    return tuple(parts)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of the global batch onto `mesh`.

    Args:
        batch: this process's rows, [B / parts] or [B / parts, T] each, see `row_parts`.

    Returns:
        the global arrays, [B] or [B, T], divided over the mesh.
    """

    def place(name, rows):
        shape = (rows.shape[0] * (max(row_parts(mesh)) + 1), *rows.shape[1:])
        sharding = batch_sharding(mesh, shape, name)
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return {name: place(name, rows) for name, rows in batch.items()}


def constrain(x: jax.Array, *dims: str) -> jax.Array:
    """Pins an activation to the current mesh (`jax.set_mesh`); without a mesh, returns `x`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = partition_spec(dims, x.shape, mesh.shape, ACTIVATION_AXES, "activation")
    return jax.lax.with_sharding_constraint(x, spec)


def describe(path: str, leaf: jax.ShapeDtypeStruct, dims: Sequence[str]) -> str:
    """Says in one line how an array is divided; `/` reads "divided by".

    The form is that of `layers/mlp/w_up float32[32 layers, 4096 embed/fsdp, 14336 mlp/tensor]`.
    """
    spec = leaf.sharding.spec if leaf.sharding is not None else (None,) * len(dims)
    parts = []
    for size, dim, axes in zip(leaf.shape, dims, spec, strict=True):
        divided = "" if axes is None else "/" + (axes if isinstance(axes, str) else "*".join(axes))
        parts.append(f"{size} {dim}{divided}")
    return f"{path} {leaf.dtype}[{', '.join(parts)}]"
