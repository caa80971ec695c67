"""Ring attention (arXiv 2310.01889): keys and values go round the mesh axis `context`.

Owns the order of the turns and the joining of their results; the arithmetic of one turn is
attention_blockwise.py's. Rows are in zig-zag order, see attention_context.py, so that a turn is the
same work on every device: shard i, holding chunks i and 2n - 1 - i, meets the chunks of shard s. Its
late chunk sees all of s's early one. Besides, if s < i its early chunk sees s's early one, and if
s > i its late chunk sees s's late one. These two halves are computed as rows of one batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ellama_jax.model.attention_blocks import visible_pairs
from ellama_jax.model.attention_blockwise import LOW, Views, backward, forward, inner
from ellama_jax.model.attention_context import AXIS


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    shards: int,
    blocks: tuple[int, int],
) -> jax.Array:
    """Computes causal attention within documents; call it inside `jax.shard_map`.

    Args:
        q: [B, T / n, N, H], this shard's positions in zig-zag order; k, v: [B, T / n, K, H].
        ids: [B, T / n] int32, documents.
        shards: n, the size of `context`.
        blocks: queries and keys a block; they divide T / 2n.

    Returns:
        [B, T / n, N, H] in the dtype of `q`.
    """
    return _ring_forward(q, k, v, ids, shards, blocks)[0].astype(q.dtype)


def _ring_forward(q, k, v, ids, shards, blocks):
    out, log_sum = forward(q, k, v, *_own(ids, blocks), blocks, jnp.float32)

    def turn(carry, step):
        keys, out, log_sum = carry
        keys = _pass_on(keys, shards)
        is_before = _is_before(step, shards)
        k, v, k_ids = (_meet_keys(x, is_before) for x in keys)
        views, pairs = _met(_meet_queries(ids, is_before), k_ids, blocks)
        part = forward(_meet_queries(q, is_before), k, v, views, pairs, blocks, jnp.float32)
        for some_out, some_log_sum in _parts_of_queries(part, is_before):
            out, log_sum = _join(out, log_sum, some_out, some_log_sum)
        return (keys, out, log_sum), None

    start = (k, v, ids), out, log_sum
    (_, out, log_sum), _ = jax.lax.scan(turn, start, jnp.arange(1, shards))
    return out, log_sum


def _ring_fwd(q, k, v, ids, shards, blocks):
    out, log_sum = _ring_forward(q, k, v, ids, shards, blocks)
    out, log_sum = (checkpoint_name(x, "attention") for x in (out.astype(q.dtype), log_sum))
    return out, (q, k, v, ids, out, log_sum)


def _ring_bwd(shards, blocks, saved, d_out):
    q, k, v, ids, out, log_sum = saved
    out_d_out = inner(out, d_out)
    own = backward(q, k, v, *_own(ids, blocks), blocks, log_sum, d_out, out_d_out)

    def turn(carry, step):
        # The gradients of keys and values travel with them.
        keys, d_q, d_keys = carry
        keys, d_keys = _pass_on((keys, d_keys), shards)
        is_before = _is_before(step, shards)
        k, v, k_ids = (_meet_keys(x, is_before) for x in keys)
        mine = (_meet_queries(x, is_before) for x in (q, ids, log_sum, d_out, out_d_out))
        met_q, met_ids, met_log_sum, met_d_out, met_inner = mine
        views, pairs = _met(met_ids, k_ids, blocks)
        parts = backward(
            met_q, k, v, views, pairs, blocks, met_log_sum, met_d_out, met_inner
        )  # fmt: skip
        d_q += _unmeet_queries(parts[0], is_before)
        d_keys = tuple(
            d + _unmeet_keys(part, is_before) for d, part in zip(d_keys, parts[1:], strict=True)
        )
        return (keys, d_q, d_keys), None

    start = (k, v, ids), own[0], own[1:]
    (_, d_q, d_keys), _ = jax.lax.scan(turn, start, jnp.arange(1, shards))
    d_k, d_v = _pass_on(d_keys, shards)  # the last of n steps brings them home
    return *(d.astype(x.dtype) for d, x in ((d_q, q), (d_k, k), (d_v, v))), None


ring.defvjp(_ring_fwd, _ring_bwd)


def _pass_on(tree, shards):
    to_next = [(shard, (shard + 1) % shards) for shard in range(shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, to_next), tree)


def _is_before(step, shards):
    """Says whether the keys held after `step` turns come from a shard of a smaller number."""
    mine = jax.lax.axis_index(AXIS)
    return (mine - step) % shards < mine


def _own(ids, blocks):
    """A shard's own chunks are in true order, one after the other."""
    order = np.arange(ids.shape[1], dtype=np.int32)
    return Views(order, order, ids, ids), visible_pairs(order, order, *blocks)


def _met(q_ids, k_ids, blocks):
    """All that `_meet_queries` and `_meet_keys` bring together is in causal order."""
    after, before = (np.full(q_ids.shape[1], place, np.int32) for place in (1, 0))
    return Views(after, before, q_ids, k_ids), visible_pairs(after, before, *blocks)


def _meet_queries(x, is_before):
    early, late = jnp.split(x, 2, axis=1)
    return jnp.concatenate([late, jnp.where(is_before, early, late)])


def _meet_keys(x, is_before):
    early, late = jnp.split(x, 2, axis=1)
    return jnp.concatenate([early, jnp.where(is_before, early, late)])


def _unmeet_queries(x, is_before):
    """Transposes `_meet_queries`."""
    late, either = jnp.split(x, 2)
    early, more = jnp.where(is_before, either, 0), jnp.where(is_before, 0, either)
    return jnp.concatenate([early, late + more], axis=1)


def _unmeet_keys(x, is_before):
    """Transposes `_meet_keys`."""
    early, either = jnp.split(x, 2)
    more, late = jnp.where(is_before, either, 0), jnp.where(is_before, 0, either)
    return jnp.concatenate([early + more, late], axis=1)


def _parts_of_queries(part, is_before):
    """Yields (out, log-sum) over all queries for each half of a turn."""
    for half in (0, 1):
        out, log_sum = (jnp.split(x, 2)[half] for x in part)
        is_early = is_before if half else False

        def place(x, fill, is_early=is_early):
            nothing = jnp.full_like(x, fill)
            pieces = jnp.where(is_early, x, nothing), jnp.where(is_early, nothing, x)
            return jnp.concatenate(pieces, axis=1)

        yield place(out, 0), place(log_sum, LOW)


def _join(out, log_sum, more_out, more_log_sum):
    """Joins softmax averages over disjoint keys."""
    total = jnp.logaddexp(log_sum, more_log_sum)
    weight, more_weight = (jnp.exp(x - total)[..., None] for x in (log_sum, more_log_sum))
    return out * weight + more_out * more_weight, total
