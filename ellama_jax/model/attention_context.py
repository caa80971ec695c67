"""Rows divided over the mesh axis `context`: their order, and how keys reach queries.

Owns the zig-zag order, the gather of keys and values, and how kernels are put on a mesh; the ring
is in attention_ring.py. Cut into contiguous shards, a causal row gives its last shard nearly twice the mean work; so a row is cut into 2n chunks,
and shard i of n holds chunks i and 2n - 1 - i: every shard sees the same number of keys. The rows of
a batch are put into this order once, before the model; RoPE takes its positions along, and the loss
is a sum. The kernels know the true order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ellama_jax.core.sharding import ACTIVATION_AXES
from ellama_jax.model.attention_blocks import visible_pairs
from ellama_jax.model.attention_blockwise import Views

AXIS = "context"


def context_size() -> int:
    """Returns over how many devices the current mesh (`jax.set_mesh`) divides a row."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[AXIS]


def zigzag_order(length: int, shards: int) -> np.ndarray:
    """Returns the true place of each position of a row in zig-zag order, [length] int32.

    >>> zigzag_order(8, 2).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    >>> zigzag_order(4, 1).tolist()
    [0, 1, 2, 3]
    """
    if shards == 1:
        return np.arange(length, dtype=np.int32)
    chunks = np.arange(length, dtype=np.int32).reshape(2 * shards, -1)
    return chunks[_zigzag_chunks(shards)].reshape(-1)


def to_zigzag(x: jax.Array, shards: int) -> jax.Array:
    """Puts the positions of [B, T, ...] into zig-zag order."""
    return x if shards == 1 else _take_chunks(x, _zigzag_chunks(shards))


def from_zigzag(x: jax.Array, shards: int) -> jax.Array:
    """Undoes `to_zigzag`."""
    return x if shards == 1 else _take_chunks(x, np.argsort(_zigzag_chunks(shards)))


def batch_to_zigzag(batch: dict) -> dict:
    """Puts every [B, T] array of a batch into the order of the current mesh's `context` axis."""
    shards = context_size()
    return {name: x if x.ndim == 1 else to_zigzag(x, shards) for name, x in batch.items()}


def _zigzag_chunks(shards):
    first = np.arange(shards)
    return np.stack([first, 2 * shards - 1 - first], axis=1).reshape(-1)


def _take_chunks(x, chunks):
    parts = x.reshape(x.shape[0], len(chunks), -1, *x.shape[2:])
    return parts[:, chunks].reshape(x.shape)


def gather_rows(x: jax.Array, shards: int) -> jax.Array:
    """Gathers [B, T / n, ...] over `context` into [B, T, ...] in true order, in its own dtype.

    Call it inside `jax.shard_map`. Its transpose sums the gradient over the shards and divides it.
    """
    if shards == 1:
        return x
    return from_zigzag(jax.lax.all_gather(x, AXIS, axis=1, tiled=True), shards)


def shard_views(
    length: int, shards: int, blocks: tuple[int, int], ids: jax.Array, branches: jax.Array | None
) -> tuple[Views, jax.Array]:
    """Returns what this shard's queries see of the gathered row, and the pairs of blocks for it.

    Args:
        length: T of the whole row.
        shards: size of `context`.
        blocks: sizes that divide T / 2n.
        ids, branches: [B, T / n] int32, this shard's.

    Returns:
        `Views` of T / n queries and T keys, and pairs as `blockwise` takes them. Every shard has
        equally many, which is what the zig-zag order is for.
    """
    whole = np.arange(length, dtype=np.int32)
    k_ids = gather_rows(ids, shards)
    k_branches = None if branches is None else gather_rows(branches, shards)
    orders = zigzag_order(length, shards).reshape(shards, -1)
    pairs = np.stack([visible_pairs(order, whole, *blocks) for order in orders])
    mine = jax.lax.axis_index(AXIS) if shards > 1 else 0
    q_order = jnp.asarray(orders)[mine]
    return Views(q_order, whole, ids, k_ids, branches, k_branches), jnp.asarray(pairs)[mine]


def per_device(local, arrays: tuple, dims: tuple, extra=None, extra_specs=None) -> jax.Array:
    """Runs a kernel on each device's rows, positions and heads of the current mesh.

    Args:
        local: `local(*arrays)`, or `local(extra, *arrays)`, for one device's part.
        arrays: [B, T, heads, H] or [B, T], or None; the result is like the first.
        dims: per array "heads" or "rows", which of the two it is.
        extra, extra_specs: a tree of small arrays, and how they are divided.
    """
    mesh = jax.sharding.get_abstract_mesh()
    given = arrays if extra is None else (extra, *arrays)
    if mesh.empty or mesh.size == 1:
        return local(*given)
    rows = ACTIVATION_AXES["batch"]
    spec = {"heads": P(rows, AXIS, "tensor", None), "rows": P(rows, AXIS)}
    specs = tuple(None if x is None else spec[kind] for x, kind in zip(arrays, dims, strict=True))
    in_specs = specs if extra is None else (extra_specs, *specs)
    return jax.shard_map(local, in_specs=in_specs, out_specs=specs[0], check_vma=False)(*given)
