"""Attention over packed rows: grouped queries, causal, documents kept apart.

Owns the mask and the choice of kernel; projections and RoPE belong to llama.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ellama_jax.config import AttentionConfig

AUTO = AttentionConfig()  # the kernel that fits the platform


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


def resolve_attention(attention: AttentionConfig, platform: str) -> AttentionConfig:
    """Replaces `auto` by the kernel for `platform`, a device's `platform` (cpu, gpu or tpu)."""
    if attention.kernel != "auto":
        return attention
    return dataclasses.replace(attention, kernel="splash" if platform == "tpu" else "dense")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    branch_ids: jax.Array | None,
    attention: AttentionConfig,
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(H)) v for grouped queries, softmax in float32.

    Args:
        q: [B, T, N, H]; k, v: [B, T, K, H], N a multiple of K: query head n reads kv head n // (N/K).
        segment_ids, branch_ids: [B, T] int32, see `attention_mask`.
        attention: with a resolved kernel, see `resolve_attention`.

    Returns:
        [B, T, N, H] in the dtype of `q`.
    """
    if attention.kernel == "splash" and branch_ids is None:
        return _splash(q, k, v, segment_ids, attention)
    mask = attention_mask(segment_ids, branch_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")


def _splash(q, k, v, segment_ids, attention):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    length, heads = q.shape[1], q.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    tensor = mesh.shape["tensor"] if not mesh.empty else 1
    block_q, block_kv = min(attention.block_q, length), min(attention.block_kv, length)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv, block_q_dkv=block_q,
        block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv, block_q_dq=block_q,
        block_kv_dq=block_kv,
    )  # fmt: skip
    causal = splash_attention_mask.CausalMask((length, length))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([causal] * (heads // tensor)),
        block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name="attention",
    )  # fmt: skip

    def local(q, k, v, segment_ids):
        q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)
        return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2)

    if mesh.empty:
        return local(q, k, v, segment_ids)
    P = jax.sharding.PartitionSpec
    rows, heads = ("data", "fsdp"), "tensor"
    spec = P(rows, None, heads, None)
    return jax.shard_map(
        local, in_specs=(spec, spec, spec, P(rows, None)), out_specs=spec, check_vma=False
    )(q, k, v, segment_ids)
