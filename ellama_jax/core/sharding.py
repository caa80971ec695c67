"""Meshes, and the two tables that say where each named dim lives.

Owns the way from dims (`embed`, `mlp`, ...) to mesh axes (`data fsdp context tensor`), and what
divides what. Which dims an array has is said where the array is defined, not here.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

log = logging.getLogger(__name__)

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
    # The residual stream between the parts of a layer, where nothing looks along the length: divided
    # over `tensor` too, a device keeps 1 / tensor of it (sequence parallelism, arXiv 2205.05198).
    "residual_length": ("context", "tensor"),
    "embed": (),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "vocab": ("tensor",),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh whose axes have `sizes`, neighbours on the torus side by side.

    Slices, joined by a network (DCN) far slower than a slice's own (ICI), divide the `data` axis:
    across it only gradients travel, once a micro-batch, while `fsdp` gathers every weight for every layer.
    Hosts of GPUs, which JAX calls slices too, have a fast network: what `data` leaves of them
    divides `fsdp`.

    Args:
        sizes: size by axis for each of `MESH_AXES`; one may be -1, "all remaining devices".
        devices: the devices to use, present or only compiled for; by default all.

    Raises:
        ValueError: if the sizes do not multiply to the number of devices, or slices do not fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve_axis_sizes(sizes, len(devices))
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices > 1:
        dcn = _slices_by_axis(shape, num_slices, len(devices), devices[0].platform)
        ici = tuple(size // across for size, across in zip(shape, dcn, strict=True))
        by_slice = {number: [] for number in sorted({d.slice_index for d in devices})}
        for device in devices:
            by_slice[device.slice_index].append(device)
        parts = [_lay_out(ici, part) for part in by_slice.values()]
        numbers = np.arange(num_slices).reshape(dcn)
        grid = np.block(np.vectorize(parts.__getitem__, otypes=[object])(numbers).tolist())
    else:
        grid = _lay_out(shape, devices)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _lay_out(shape: tuple[int, ...], devices: list) -> np.ndarray:
    """Lays one slice's devices out, neighbours on the torus side by side as far as JAX can."""
    try:
        # Parts of the torus are split where no whole axis has the size asked for.
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    except (TypeError, ValueError) as error:
        # jax 0.10.2 cannot split every axis of a torus with a side of 20, as v4-640 has, and fails
        # while it reshapes. The mesh works in any order of devices.
        log.warning(
            "mesh %s: devices are taken by their numbers, JAX cannot place them on the torus (%s).",
            " x ".join(map(str, shape)), error,
        )  # fmt: skip
        return np.array(devices, dtype=object).reshape(shape)


def _slices_by_axis(
    shape: tuple[int, ...], num_slices: int, num_devices: int, platform: str
) -> tuple[int, ...]:
    """Returns how many slices lie along each mesh axis."""
    data, fsdp = shape[:2]
    along_data = math.gcd(data, num_slices)
    along_fsdp = num_slices // along_data
    if along_fsdp > 1 and (platform == "tpu" or fsdp % along_fsdp):
        wanted = dict(zip(MESH_AXES, shape, strict=True))
        fit = _nearest_mesh(wanted | {"data": num_slices}, num_devices)
        raise ValueError(
            f"mesh.data: must be divisible by the number of slices ({num_slices}), got {data}; "
            f"{fit}."
        )
    return (along_data, along_fsdp, 1, 1)


def resolve_axis_sizes(sizes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
    """Returns the axis sizes in the order of `MESH_AXES`, -1 replaced by what remains.

    Raises:
        ValueError: if they do not multiply to `num_devices`; names a mesh that does.

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
            f"{_nearest_mesh(sizes, num_devices)}. At most one axis may be -1 (all that remain)."
        )
    return tuple(shape)


def _nearest_mesh(sizes: Mapping[str, int], num_devices: int) -> str:
    """Names a mesh that fits: the sizes asked for as far as they divide, `fsdp` takes the rest."""
    fit, rest = {}, num_devices
    for axis in ("tensor", "context", "data"):
        fit[axis] = math.gcd(max(sizes[axis], 1), rest)
        rest //= fit[axis]
    fit["fsdp"] = rest
    parts = [f"{axis} {fit[axis]}" for axis in MESH_AXES if fit[axis] > 1] or ["fsdp 1"]
    devices = "1 device" if num_devices == 1 else f"{num_devices} devices"
    return f"{' x '.join(parts)} fits {devices}"


def check_dims(dim_sizes: Mapping[str, int], axis_sizes: Mapping[str, int]) -> None:
    """Checks that a model's dims can be divided as a mesh asks, with no device.

    Args:
        dim_sizes: size by dim, in elements, of those that parameters and activations have.
        axis_sizes: mesh axis -> size; -1, not known yet, is taken for 1.

    Raises:
        ValueError: names the axes that do not divide, and the sizes that do.

    >>> check_dims({"heads": 32, "kv_heads": 8}, {"data": 1, "fsdp": 1, "context": 1, "tensor": 16})
    Traceback (most recent call last):
    ValueError: mesh.tensor: must divide kv_heads (8), got 16; 1, 2, 4 or 8 fit.
    """
    dims_of: dict[tuple[str, ...], set[str]] = {}
    for table in (STORAGE_AXES, ACTIVATION_AXES):
        for dim, axes in table.items():
            if axes and dim in dim_sizes:
                dims_of.setdefault(axes, set()).add(dim)
    for axes, dims in dims_of.items():
        total = math.prod(max(axis_sizes[axis], 1) for axis in axes)
        bad = {dim: dim_sizes[dim] for dim in sorted(dims) if dim_sizes[dim] % total}
        if bad:
            common = math.gcd(*(dim_sizes[dim] for dim in dims))
            said = ", ".join(f"{dim} ({size})" for dim, size in bad.items())
            raise ValueError(
                f"{_name_axes(axes)}: must divide {said}, got {total}; {_divisors(common)} fit."
            )


def check_batch(
    rows: int,
    length: int,
    axis_sizes: Mapping[str, int],
    num_parts: int = 1,
    key: str = "data.global_batch_size",
) -> None:
    """Checks that a batch can be divided over a mesh and into parts, with no device.

    Args:
        rows: rows of the global batch.
        length: tokens a row.
        axis_sizes: mesh axis -> size; -1, not known yet, is taken for 1.
        num_parts: micro-batches, each divided over the mesh.
        key: of the configuration, that says `rows`.

    Raises:
        ValueError: names what would fit.

    >>> check_batch(12, 64, {"data": 1, "fsdp": 8, "context": 1, "tensor": 1})
    Traceback (most recent call last):
    ValueError: data.global_batch_size: must be divisible by mesh.data x mesh.fsdp (8), got 12; 8 or 16 fit.
    """
    axes = ACTIVATION_AXES["batch"]
    shards = math.prod(max(axis_sizes[axis], 1) for axis in axes)
    unit = shards * num_parts
    if rows % unit:
        parts = f" x {num_parts} micro-batches" if num_parts > 1 else ""
        below, above = rows // unit * unit, (rows // unit + 1) * unit
        fit = f"{below} or {above} fit" if below else f"{above} fits"
        raise ValueError(
            f"{key}: must be divisible by {_name_axes(axes)}{parts} ({unit}), got {rows}; {fit}."
        )
    axes = ACTIVATION_AXES["length"]
    shards = math.prod(max(axis_sizes[axis], 1) for axis in axes)
    if length % shards:
        raise ValueError(
            f"{_name_axes(axes)}: must divide data.seq_len ({length}), got {shards}; "
            f"{_divisors(length, up_to=shards)} fit."
        )


def _name_axes(axes: Sequence[str]) -> str:
    return " x ".join(f"mesh.{axis}" for axis in axes)


def _divisors(number: int, up_to: int | None = None) -> str:
    """Lists divisors in words, the largest four: `2, 4, 8 or 16`."""
    limit = number if up_to is None else min(number, up_to)
    found = [d for d in range(1, limit + 1) if number % d == 0][-4:]
    return " or ".join(filter(None, [", ".join(map(str, found[:-1])), str(found[-1])]))


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
def rows_by_process(mesh: Mesh, num_rows: int) -> dict[int, np.ndarray]:
    """Returns which rows of a global batch each process feeds: those of its own devices' shards.

    They need not lie side by side: a host of a TPU slice owns a block of chips, 2 x 2 of a v6e,
    whose shards are seldom neighbours. Processes that hold different pieces of the same rows,
    because `context` or `tensor` spans them, all feed them.

    Args:
        num_rows: B, of the global batch.

    Returns:
        process index -> [n] row numbers in [0, B), ascending; processes without a device are left
        out.

    Raises:
        ValueError: if the mesh does not divide the rows.
    """
    shards: dict[int, set[tuple[int, int]]] = {}
    sharding = batch_sharding(mesh, (num_rows,), "batch")
    for device, (index,) in sharding.devices_indices_map((num_rows,)).items():
        start, stop, _ = index.indices(num_rows)
        shards.setdefault(device.process_index, set()).add((start, stop))
    return {
        process: np.concatenate([np.arange(*shard) for shard in sorted(shards[process])])
        for process in sorted(shards)
    }


def local_rows(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Returns the rows of a global batch of `num_rows` that this process feeds, ascending."""
    return rows_by_process(mesh, num_rows)[jax.process_index()]


def rows_counted_here(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Tells which of its `local_rows` this process counts: those that none before it feeds.

    Returns:
        [n] bool; over all processes together every row is counted once.
    """
    return _first_process(mesh, num_rows)[local_rows(mesh, num_rows)] == jax.process_index()


@functools.cache
def _first_process(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Returns the lowest process that feeds each row, [B] int."""
    found = np.zeros(num_rows, int)
    for process, rows in reversed(rows_by_process(mesh, num_rows).items()):
        found[rows] = process
    return found


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of the global batch onto `mesh`.

    Args:
        batch: its `local_rows`, [n] or [n, T] each.

    Returns:
        the global arrays, [B] or [B, T], divided over the mesh.
    """
    shards = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
    shards_here = len(local_rows(mesh, shards))

    def place(name: str, array: np.ndarray) -> jax.Array:
        shape = (len(array) * shards // shards_here, *array.shape[1:])
        rows = local_rows(mesh, shape[0])
        sharding = batch_sharding(mesh, shape, name)
        return jax.make_array_from_callback(
            shape, sharding, lambda index: cut_shard(array, rows, index, shape[0])
        )

    return {name: place(name, array) for name, array in batch.items()}


def cut_shard(
    array: np.ndarray, rows: np.ndarray, index: tuple[slice, ...], num_rows: int
) -> np.ndarray:
    """Returns a device's piece of a global array of `num_rows`, of which a process has `rows`.

    >>> cut_shard(np.array([[0, 1], [4, 5]]), np.array([0, 2]), (slice(2, 3), slice(1, 2)), 3)
    array([[5]])
    """
    start, stop, _ = index[0].indices(num_rows)
    first = np.searchsorted(rows, start)  # rows that are neighbours in a shard are so here too
    assert np.array_equal(rows[first : first + stop - start], np.arange(start, stop))
    return array[(slice(first, first + stop - start), *index[1:])]


def read_whole(arrays: Any, mesh: Mesh | None) -> Any:
    """Returns a pytree of arrays as NumPy's, whole on every process whichever holds their pieces.

    All processes of the mesh must call this; None is one device, or arrays that are whole.
    """
    if mesh is not None:
        arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(np.asarray, arrays)


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
    spec = tuple(leaf.sharding.spec) if leaf.sharding is not None else ()
    spec += (None,) * (len(dims) - len(spec))  # what a spec leaves out is not divided
    parts = []
    for size, dim, axes in zip(leaf.shape, dims, spec, strict=True):
        divided = "" if axes is None else "/" + (axes if isinstance(axes, str) else "*".join(axes))
        parts.append(f"{size} {dim}{divided}")
    return f"{path} {leaf.dtype}[{', '.join(parts)}]"
