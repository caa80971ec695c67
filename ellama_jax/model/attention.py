"""Attention over packed rows: grouped queries, causal, documents kept apart.

Owns the mask and the choice of kernel; projections and RoPE belong to llama.py.
"""

import jax
import jax.numpy as jnp


def attention_mask(segment_ids: jax.Array, branch_ids: jax.Array | None = None) -> jax.Array:
    """Says which position may look at which.

    A position sees itself and what stands before it in the same segment. With `branch_ids` a
    segment holds a shared context (branch 0) and alternatives (branches 1, 2, ...) laid one after
    the other; an alternative sees the context and itself, never another alternative.

    Args:
        segment_ids: [B, T] int32, document number from 1; 0 is padding.
        branch_ids: [B, T] int32 or None.

    Returns:
        [B, T, S] bool, true where query t may look at key s.

    >>> attention_mask(jnp.array([[1, 1, 2]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    >>> attention_mask(jnp.array([[1, 1, 1]]), jnp.array([[0, 1, 2]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    length = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if branch_ids is not None:
        same = branch_ids[:, :, None] == branch_ids[:, None, :]
        mask &= same | (branch_ids[:, None, :] == 0)
    return mask


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes softmax(q k^T / sqrt(H)) v for grouped queries, softmax in float32.

    Args:
        q: [B, T, N, H]; k, v: [B, S, K, H], N a multiple of K: query head n reads kv head n // (N/K).
        mask: [B, T, S] bool.

    Returns:
        [B, T, N, H] in the dtype of `q`.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")
