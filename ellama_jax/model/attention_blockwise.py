"""Attention block by block in plain XLA, on any platform: [T, S] is never built.

Owns the running softmax (arXiv 2112.05682) and its backward, which recomputes each block's weights
from the saved log-sum (arXiv 2205.14135, algorithm 4). Both visit a list of pairs of blocks known
when the step is compiled, so what lies above the diagonal costs nothing and every loop has a fixed
number of turns. Which pairs those are is said by attention_blocks.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

LOW = float(-0.7 * np.finfo(np.float32).max)  # the score of what is not seen


class Views(NamedTuple):
    """Who sees whom: a query sees keys of its document that are not after it.

    `q_order` [T] and `k_order` [S] int32 are places in the row, `q_ids` [B, T] and `k_ids` [B, S]
    int32 documents. With branches ([B, T], [B, S], or None) see `attention.attention_mask`.
    """

    q_order: jax.Array
    k_order: jax.Array
    q_ids: jax.Array
    k_ids: jax.Array
    q_branches: jax.Array | None = None
    k_branches: jax.Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    views: Views,
    pairs: jax.Array,
    blocks: tuple[int, int],
) -> jax.Array:
    """Computes attention over the listed pairs of blocks.

    Args:
        q: [B, T, N, H]; k, v: [B, S, K, H], N a multiple of K.
        views: who sees whom.
        pairs: [pairs, 2] int32, sorted by block of queries, each of which occurs; a pair left out
            must hold nothing visible.
        blocks: queries and keys a block; they divide T and S.

    Returns:
        [B, T, N, H] in the dtype of `q`; 0 where nothing is seen.
    """
    return forward(q, k, v, views, pairs, blocks)[0]


def _blockwise_fwd(q, k, v, views, pairs, blocks):
    out, log_sum = forward(q, k, v, views, pairs, blocks)
    out, log_sum = (checkpoint_name(x, "attention") for x in (out, log_sum))
    return out, (q, k, v, views, pairs, out, log_sum)


def _blockwise_bwd(blocks, saved, d_out):
    q, k, v, views, pairs, out, log_sum = saved
    d_qkv = backward(q, k, v, views, pairs, blocks, log_sum, d_out, inner(out, d_out))
    return *(d.astype(x.dtype) for d, x in zip(d_qkv, (q, k, v), strict=True)), None, None


blockwise.defvjp(_blockwise_fwd, _blockwise_bwd)


def inner(out: jax.Array, d_out: jax.Array) -> jax.Array:
    """Returns the sum over H of out x d_out, [B, T, N] float32, which softmax's backward needs."""
    return jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    views: Views,
    pairs: jax.Array,
    blocks: tuple[int, int],
    out_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """Computes attention and its log-sum, for `blockwise` and for those who join partial results.

    Returns:
        [B, T, N, H] in `out_dtype` (the dtype of `q`), and the logarithm of the sum of each query's exponentials,
        [B, T, N] float32, `LOW` where nothing is seen.
    """
    num_kv, block_q = k.shape[2], blocks[0]
    qs = _query_blocks(q, num_kv, block_q)
    ks, vs = (_key_blocks(x, blocks[1]) for x in (k, v))
    visible = _mask_by_block(views, blocks)
    scale = q.shape[-1] ** -0.5
    empty = jnp.full(qs.shape[1:-1], LOW, jnp.float32)
    none_yet = jnp.zeros(qs.shape[1:], jnp.float32), empty, jnp.zeros_like(empty)

    def visit(carry, pair):
        running, outs, log_sums = carry
        i, j, is_first = pair
        out, top, total = (
            jnp.where(is_first, start, x) for start, x in zip(none_yet, running, strict=True)
        )
        seen = visible(i, j)
        scores = jnp.where(seen, _scores(qs[i], ks[j]) * scale, LOW)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
        shrink = jnp.exp(top - new_top)
        total = total * shrink + weights.sum(axis=-1)
        out = out * shrink[..., None] + _weighted(weights.astype(v.dtype), vs[j])
        # Written at every visit: a block's last one stays.
        divisor = jnp.where(total == 0, 1.0, total)
        outs = outs.at[i].set((out / divisor[..., None]).astype(outs.dtype))
        log_sums = log_sums.at[i].set(jnp.where(total == 0, LOW, new_top + jnp.log(divisor)))
        return ((out, new_top, total), outs, log_sums), None

    start = none_yet, jnp.zeros_like(qs, out_dtype), jnp.zeros(qs.shape[:-1], jnp.float32)
    (_, outs, log_sums), _ = jax.lax.scan(visit, start, _turns(pairs))
    return _rows(outs), _rows(log_sums[..., None])[..., 0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    views: Views,
    pairs: jax.Array,
    blocks: tuple[int, int],
    log_sum: jax.Array,
    d_out: jax.Array,
    out_d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of q, k and v, each in its shape, float32.

    Args:
        log_sum: [B, T, N], over all keys of the query, those of other calls included.
        d_out: [B, T, N, H]; out_d_out: [B, T, N], see `inner`, of the whole output likewise.
    """
    num_kv, (block_q, block_kv) = k.shape[2], blocks
    qs, d_outs = (_query_blocks(x, num_kv, block_q) for x in (q, d_out.astype(q.dtype)))
    log_sums, inners = (_query_blocks(x[..., None], num_kv, block_q) for x in (log_sum, out_d_out))
    ks, vs = (_key_blocks(x, block_kv) for x in (k, v))
    visible = _mask_by_block(views, blocks)
    scale = q.shape[-1] ** -0.5

    def visit(carry, pair):
        d_q, d_qs, d_ks, d_vs = carry
        i, j, is_first = pair
        scores = _scores(qs[i], ks[j]) * scale
        weights = jnp.where(visible(i, j), jnp.exp(scores - log_sums[i]), 0.0)
        d_weights = _scores(d_outs[i], vs[j])
        d_scores = (weights * (d_weights - inners[i]) * scale).astype(q.dtype)
        d_q = jnp.where(is_first, 0.0, d_q) + _weighted(d_scores, ks[j])
        d_qs = d_qs.at[i].set(d_q)
        d_ks = d_ks.at[j].add(_gathered(d_scores, qs[i]))
        d_vs = d_vs.at[j].add(_gathered(weights.astype(q.dtype), d_outs[i]))
        return (d_q, d_qs, d_ks, d_vs), None

    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    start = zeros(qs.shape[1:]), zeros(qs.shape), zeros(ks.shape), zeros(vs.shape)
    (_, d_qs, d_ks, d_vs), _ = jax.lax.scan(visit, start, _turns(pairs))
    return _rows(d_qs), _key_rows(d_ks), _key_rows(d_vs)


def _turns(pairs):
    """Splits pairs into what a scan takes: both blocks, and whether the first one is new."""
    pairs = jnp.asarray(pairs)
    i = pairs[:, 0]
    return i, pairs[:, 1], jnp.concatenate([jnp.ones((1,), bool), i[1:] != i[:-1]])


def _mask_by_block(views: Views, blocks: tuple[int, int]):
    """Returns a function from a pair of blocks to [B, 1, 1, block_q, block_kv] bool."""

    def by_block(x, block):
        return None if x is None else jnp.moveaxis(x.reshape(*x.shape[:-1], -1, block), -2, 0)

    q_order, q_ids, q_branches = (
        by_block(x, blocks[0]) for x in (views.q_order, views.q_ids, views.q_branches)
    )
    k_order, k_ids, k_branches = (
        by_block(x, blocks[1]) for x in (views.k_order, views.k_ids, views.k_branches)
    )

    def visible(i, j):
        seen = q_order[i][:, None] >= k_order[j][None, :]
        seen = seen & (q_ids[i][:, :, None] == k_ids[j][:, None, :])
        if q_branches is not None:
            theirs = k_branches[j][:, None, :]
            seen &= (q_branches[i][:, :, None] == theirs) | (theirs == 0)
        return seen[:, None, None]

    return visible


def _query_blocks(x, num_kv, block):
    """[B, T, N, H] -> [T / block, B, K, N / K, block, H]."""
    batch, length, heads, size = x.shape
    x = x.reshape(batch, length // block, block, num_kv, heads // num_kv, size)
    return x.transpose(1, 0, 3, 4, 2, 5)


def _key_blocks(x, block):
    """[B, S, K, H] -> [S / block, B, K, block, H]."""
    batch, length, heads, size = x.shape
    return x.reshape(batch, length // block, block, heads, size).transpose(1, 0, 3, 2, 4)


def _rows(x):
    """Undoes `_query_blocks`."""
    num_blocks, batch, num_kv, group, block, size = x.shape
    x = x.transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, num_blocks * block, num_kv * group, size)


def _key_rows(x):
    """Undoes `_key_blocks`."""
    num_blocks, batch, heads, block, size = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, num_blocks * block, heads, size)


_float32_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
# Letters: b row, k kv head, g query head of it, q query, s key, h head_dim.
_scores = functools.partial(_float32_einsum, "bkgqh,bksh->bkgqs")
_weighted = functools.partial(_float32_einsum, "bkgqs,bksh->bkgqh")
_gathered = functools.partial(_float32_einsum, "bkgqs,bkgqh->bksh")
