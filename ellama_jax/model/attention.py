"""Attention over packed rows: grouped queries, causal, documents kept apart.

Owns the mask, the choice of kernel and what a kernel asks of platform, mesh and lengths. The kernels
are in attention_splash.py (TPU), attention_gpu.py, attention_blockwise.py (any platform) and, for
rows divided over `context`, attention_ring.py; projections and RoPE belong to llama.py.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ellama_jax.config import AttentionConfig
from ellama_jax.model import attention_gpu
from ellama_jax.model.attention_blocks import fit_blocks, largest_block
from ellama_jax.model.attention_blockwise import blockwise
from ellama_jax.model.attention_context import (
    context_size,
    gather_rows,
    per_device,
    shard_views,
    zigzag_order,
)
from ellama_jax.model.attention_ring import ring
from ellama_jax.model.attention_splash import LANES, splash, splash_blocks
from ellama_jax.model.presets import LlamaConfig

AUTO = AttentionConfig()  # the kernel that fits the platform
LONG = 256  # positions from which blocks are faster than [T, S], measured on CPU
CPU_BLOCK = 128  # the fastest there
PLATFORM_OF = {"splash": "tpu", "cudnn": "gpu", "triton": "gpu", "mosaic": "gpu"}


def attention_mask(
    segment_ids: jax.Array, branch_ids: jax.Array | None = None, order: jax.Array | None = None
) -> jax.Array:
    """Says which position may look at which.

    A position sees itself and what stands before it in the same segment. With `branch_ids` a
    segment holds a shared context (branch 0) and alternatives (branches 1, 2, ...) laid one after
    the other; an alternative sees the context and itself, never another alternative.

    Args:
        segment_ids: [B, T] int32, document number from 1; 0 is padding.
        branch_ids: [B, T] int32 or None.
        order: [T] int32, each position's place in its row, by default as they lie.

    Returns:
        [B, T, S] bool, true where query t may look at key s.

    >>> attention_mask(jnp.array([[1, 1, 2]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    >>> attention_mask(jnp.array([[1, 1, 1]]), jnp.array([[0, 1, 2]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    order = jnp.arange(segment_ids.shape[1]) if order is None else order
    causal = order[:, None] >= order[None, :]
    mask = causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if branch_ids is not None:
        same = branch_ids[:, :, None] == branch_ids[:, None, :]
        mask &= same | (branch_ids[:, None, :] == 0)
    return mask


def resolve_attention(
    attention: AttentionConfig, platform: str, length: int, context: int = 1
) -> AttentionConfig:
    """Replaces `auto` by the kernel for a platform and a row.

    Args:
        platform: a device's `platform`: cpu, gpu or tpu.
        length: positions of a row.
        context: over how many devices the row is divided.
    """
    if attention.kernel != "auto":
        return attention
    if context > 1 and attention.context == "ring":
        return dataclasses.replace(attention, kernel="blockwise")
    if platform == "tpu":
        return dataclasses.replace(attention, kernel="splash")
    if length < LONG:
        return dataclasses.replace(attention, kernel="dense")
    if platform == "gpu" and context == 1:
        return dataclasses.replace(attention, kernel="triton")
    sizes = {"block_q": attention.block_q, "block_kv": attention.block_kv}
    if platform == "cpu":
        sizes = {key: min(size, CPU_BLOCK) for key, size in sizes.items()}
    return dataclasses.replace(attention, kernel="blockwise", **sizes)


def check_attention(
    attention: AttentionConfig,
    platform: str,
    model: LlamaConfig,
    length: int,
    axis_sizes: Mapping[str, int],
    compute_dtype,
) -> None:
    """Raises for what a run's attention cannot do, before anything is compiled.

    Args:
        attention: as configured, or resolved.
        platform: a device's `platform`: cpu, gpu or tpu.
        length: positions of a row.
        axis_sizes: devices along each mesh axis.

    Raises:
        ValueError: one line that says what is missing and what would fit.
    """
    context, tensor = axis_sizes["context"], axis_sizes["tensor"]
    kernel = resolve_attention(attention, platform, length, context).kernel
    name, fits = "model.attention.kernel", "use auto or blockwise"
    if kernel == "mosaic":
        raise ValueError(
            f"{name}: mosaic, JAX's Mosaic GPU kernel, has neither segment ids nor a causal backward "
            "pass; use auto, triton or cudnn."
        )
    needed = PLATFORM_OF.get(kernel, platform)
    if needed != platform:
        raise ValueError(f"{name}: {kernel} needs a {needed.upper()}, got {platform}; {fits}.")
    _check_divided(attention, kernel, length, context)
    if model.num_kv_heads % tensor:
        raise ValueError(
            f"mesh.tensor: must divide the number of kv heads ({model.num_kv_heads}), got {tensor}; "
            f"use at most {model.num_kv_heads} and more of mesh.fsdp."
        )
    if kernel == "splash":
        for key in ("block_q", "block_kv"):
            block = getattr(attention, key)
            if block % LANES:
                rule = f"must be a multiple of {LANES} for kernel splash"
                raise ValueError(f"model.attention.{key}: {rule}, got {block}; use 512 or 1024.")
    if kernel == "cudnn":
        if jnp.dtype(compute_dtype).itemsize != 2:
            raise ValueError(
                f"{name}: cudnn computes in bfloat16, got {jnp.dtype(compute_dtype).name}; set "
                "model.compute_dtype=bfloat16, or use auto."
            )
        if model.head_dim % 8 or model.head_dim > 256:
            raise ValueError(
                f"{name}: cudnn needs a head_dim up to 256 that 8 divides, got {model.head_dim}; "
                f"{fits}."
            )


def _check_divided(attention, kernel, length, context):
    if context == 1:
        return
    if kernel in ("cudnn", "triton"):
        raise ValueError(
            f"model.attention.kernel: {kernel} works on whole rows, got mesh.context={context}; use "
            "auto or blockwise."
        )
    if attention.context == "ring" and kernel != "blockwise":
        raise ValueError(
            f"model.attention.kernel: must be blockwise for model.attention.context=ring, got "
            f"{kernel}; use auto, or context=all_gather."
        )
    multiple = 2 * context * (LANES if kernel == "splash" else 1)
    if length % multiple:
        least = -(-length // multiple) * multiple
        raise ValueError(
            f"data.seq_len: must be a multiple of {multiple} for kernel {kernel} over "
            f"mesh.context={context}, got {length}; use {least} or a smaller mesh.context."
        )


def describe_attention(
    attention: AttentionConfig, platform: str, length: int, context: int = 1
) -> str:
    """Says in one phrase how attention is computed, for logs and plans.

    >>> describe_attention(AUTO, "tpu", 8192)
    'attention: splash, blocks 1024 x 1024'
    >>> describe_attention(AUTO, "cpu", 8192)
    'attention: blockwise, blocks 128 x 128'
    >>> describe_attention(AUTO, "tpu", 131072, 16)
    'attention: splash, blocks 1024 x 1024, keys by all_gather over 16 devices'
    """
    attention = resolve_attention(attention, platform, length, context)
    phrase = f"attention: {attention.kernel}"
    wanted = attention.block_q, attention.block_kv
    if attention.kernel in ("splash", "blockwise"):
        sizes = splash_blocks if attention.kernel == "splash" else _blockwise_blocks
        padded, (block_q, block_kv) = sizes(length, wanted, context)
        phrase += f", blocks {block_q} x {block_kv}"
        phrase += f", rows padded to {padded}" if padded > length else ""
    if context > 1:
        way = "as XLA decides" if attention.kernel == "dense" else f"by {attention.context}"
        phrase += f", keys {way} over {context} devices"
    return phrase


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    branch_ids: jax.Array | None,
    attention: AttentionConfig,
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(H)) v for grouped queries, softmax in float32.

    Where the current mesh divides rows over `context` they must be in zig-zag order, see
    attention_context.py. With branches a kernel that knows none is replaced by one that does.

    Args:
        q: [B, T, N, H]; k, v: [B, T, K, H], N a multiple of K: query head n reads kv head n // (N/K).
        segment_ids, branch_ids: [B, T] int32, see `attention_mask`.
        attention: with a resolved kernel, see `resolve_attention`.

    Returns:
        [B, T, N, H] in the dtype of `q`.
    """
    kernel, length = attention.kernel, q.shape[1]
    if branch_ids is not None and kernel != "dense":
        kernel = "blockwise" if length >= LONG else "dense"
    if kernel == "dense":
        shards = context_size()
        order = zigzag_order(length, shards) if shards > 1 else None
        mask = attention_mask(segment_ids, branch_ids, order)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")
        return checkpoint_name(out, "attention")
    blocks = attention.block_q, attention.block_kv
    if kernel == "splash":
        return splash(q, k, v, segment_ids, blocks, attention.fused_backward)
    if kernel == "blockwise":
        by_ring = attention.context == "ring" and branch_ids is None
        return _blockwise(q, k, v, segment_ids, branch_ids, blocks, by_ring)
    dims = ("heads", "heads", "heads", "rows")
    arrays = (q, k, v, segment_ids)
    if kernel == "triton":
        return per_device(attention_gpu.triton, arrays, dims)

    def otherwise(*arrays):
        return _blockwise_whole(*arrays, None, blocks)

    return per_device(lambda *part: attention_gpu.cudnn(*part, otherwise), arrays, dims)


def _blockwise(q, k, v, segment_ids, branch_ids, blocks, by_ring):
    length, shards = q.shape[1], context_size()

    def local(q, k, v, ids, branches):
        if shards == 1:
            return _blockwise_whole(q, k, v, ids, branches, blocks)
        _, fitted = _blockwise_blocks(length, blocks, shards)
        if by_ring:
            return ring(q, k, v, ids, shards, fitted)
        views, pairs = shard_views(length, shards, fitted, ids, branches)
        k, v = gather_rows(k, shards), gather_rows(v, shards)
        return blockwise(q, k, v, views, pairs, fitted)

    dims = ("heads", "heads", "heads", "rows", "rows")
    return per_device(local, (q, k, v, segment_ids, branch_ids), dims)


def _blockwise_whole(q, k, v, ids, branches, blocks):
    """Runs whole rows, padded where no block fits."""
    length = q.shape[1]
    padded, fitted = _blockwise_blocks(length, blocks, 1)

    def pad(x, value=0):
        widths = [(0, 0), (0, padded - length), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, widths, constant_values=value)

    if padded > length:
        q, k, v, ids = pad(q), pad(k), pad(v), pad(ids, -1)
        branches = None if branches is None else pad(branches)
    views, pairs = shard_views(padded, 1, fitted, ids, branches)
    return blockwise(q, k, v, views, pairs, fitted)[:, :length]


def _blockwise_blocks(length, blocks, shards):
    if shards == 1:
        return fit_blocks(length, blocks, 1)
    chunk = length // (2 * shards)
    return length, tuple(largest_block(chunk, block, 1) for block in blocks)
