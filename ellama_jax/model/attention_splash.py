"""Splash attention, JAX's Pallas kernel for TPUs: causal, packed documents, grouped queries.

Owns how the kernel is built and put on a mesh; blocks above the diagonal are skipped, also where
`context` divides the row. The kernel is JAX's own (jax.experimental.pallas.ops.tpu).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ellama_jax.model.attention_blocks import fit_blocks, largest_block
from ellama_jax.model.attention_context import (
    AXIS,
    context_size,
    gather_rows,
    per_device,
    zigzag_order,
)

LANES = 128  # blocks are multiples of it


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    blocks: tuple[int, int],
    fused_backward: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Computes causal attention within documents on the current mesh.

    Output and log-sum are named "attention" for a policy of `jax.checkpoint`.

    Args:
        q: [B, T, N, H]; k, v: [B, T, K, H]; with `context` in zig-zag order.
        segment_ids: [B, T] int32; padding is a document like any other.
        blocks: wanted queries and keys a block, see `splash_blocks`.
        fused_backward: one kernel for all gradients: 5 matrix products in place of 7, and a part of
            the queries' gradient for each block of keys, in their dtype, summed afterwards.
        interpret: runs the kernel's code on any platform, slowly.

    Returns:
        [B, T, N, H] in the dtype of `q`.
    """
    length, shards = q.shape[1], context_size()
    padded, blocks = splash_blocks(length, blocks, shards)
    kernel = _make_kernel(padded, shards, blocks, fused_backward, interpret)

    def local(kernel, q, k, v, ids):
        k, v, k_ids = (gather_rows(x, shards) for x in (k, v, ids))
        q = q * q.shape[-1] ** -0.5
        q, k, v = (_pad(x, padded - length, 0).swapaxes(1, 2) for x in (q, k, v))
        q_ids, k_ids = (_pad(x, padded - length, -1) for x in (ids, k_ids))
        out = jax.vmap(kernel)(q, k, v, _kernels().SegmentIds(q_ids, k_ids)).swapaxes(1, 2)
        return out[:, :length] if padded > length else out

    # Of the kernel's arrays, [T] and [1, T / block, S / block], each shard takes its queries' part.
    specs = jax.tree.map(lambda x: P(AXIS) if x.ndim == 1 else P(None, AXIS), kernel)
    arrays, dims = (q, k, v, segment_ids), ("heads", "heads", "heads", "rows")
    return per_device(local, arrays, dims, kernel, specs)


def splash_blocks(length: int, blocks: tuple[int, int], shards: int) -> tuple[int, tuple[int, int]]:
    """Returns to which length a row is padded, and the sizes of the blocks.

    Divided over `context`, a row is not padded: its chunks must be multiples of 128.

    >>> splash_blocks(131072, (1024, 1024), 16)
    (131072, (1024, 1024))
    """
    if shards == 1:
        return fit_blocks(length, blocks, LANES)
    chunk = length // (2 * shards)
    return length, tuple(largest_block(chunk, block, LANES) for block in blocks)


def _pad(x, extra, value):
    return jnp.pad(x, [(0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2)], constant_values=value)


@functools.lru_cache(maxsize=32)
def _make_kernel(length, shards, blocks, fused_backward, interpret):
    """Builds the kernel for rows of `length` in zig-zag order; its leaves are NumPy arrays.

    JAX's `make_splash_mha` looks at each position of the mask, two minutes' work at 131,072. Which
    blocks are seen wholly, partly or not at all depends on the ratio of the block sizes alone, so
    the mask looked at here is one scaled down until blocks are as small as that ratio allows; the
    kernel computes the mask within a block from the true order.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask_info as infos,
    )

    block_q, block_kv = blocks
    scale = math.gcd(block_q, block_kv) // 2
    small = length // scale
    mask = masks.CausalMask((small, small))
    mask.q_sequence = zigzag_order(small, shards)
    order = zigzag_order(length, shards)

    def info(process):
        small_blocks = block_q // scale, block_kv // scale
        found, _ = process(masks.MultiHeadMask([mask]), small_blocks, q_seq_shards=shards)
        return found._replace(q_sequence=order)

    by_keys = functools.partial(infos.process_mask_dkv, shrink_grid=not fused_backward)
    seen, seen_by_keys = info(infos.process_mask), info(by_keys)
    block_q_dq, block_kv_dq, seen_dq = (None,) * 3 if fused_backward else (block_q, block_kv, seen)
    sizes = _kernels().BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
        block_q_dq=block_q_dq, block_kv_dq=block_kv_dq, use_fused_bwd_kernel=fused_backward,
    )  # fmt: skip
    return _kernels().SplashAttentionKernel(
        seen, seen_dq, seen_by_keys, block_sizes=sizes, is_mqa=False, save_residuals=False,
        mask_value=_kernels().DEFAULT_MASK_VALUE, attn_logits_soft_cap=None,
        residual_checkpoint_name="attention", mask_function=_not_after, interpret=interpret,
    )  # fmt: skip


def _not_after(q_order, k_order):
    return q_order >= k_order


def _kernels():
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel
