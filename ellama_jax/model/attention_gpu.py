"""Attention kernels for NVIDIA GPUs: JAX's Pallas-Triton kernel and cuDNN's fused attention.

Owns how packed documents are said to each. JAX's Mosaic kernel (attention_mgpu) is not here: in
JAX 0.10 and 0.12 it takes no segment ids, and its backward refuses causal masks.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ellama_jax.model.attention_blocks import fit_blocks

TRITON_BLOCK = 64
# cuDNN keeps a log-sum of [B x runs, N, T] float32: 1 GiB a row of 8,192 with 32 heads and 32 runs.
CUDNN_MAX_RUNS = 32


def triton(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """Computes causal attention within documents by JAX's Pallas-Triton kernel.

    It knows no grouped queries: keys and values are repeated.

    Args:
        q: [B, T, N, H]; k, v: [B, T, K, H].
        segment_ids: [B, T] int32.
        interpret: runs the kernel's code on any platform, slowly.

    Returns:
        [B, T, N, H] in the dtype of `q`.
    """
    from jax.experimental.pallas.ops.gpu import attention

    length, group = q.shape[1], q.shape[2] // k.shape[2]
    padded, (block, _) = fit_blocks(length, (TRITON_BLOCK, TRITON_BLOCK), 16)
    extra = [(0, 0), (0, padded - length)]
    q, k, v = (jnp.pad(x, [*extra, (0, 0), (0, 0)]) for x in (q, k, v))
    ids = jnp.pad(segment_ids, extra, constant_values=-1)
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    sizes = attention.BlockSizes(
        block_q=block, block_k=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block,
        block_kv_dq=block,
    )  # fmt: skip
    out = attention.mha(
        q, k, v, ids, sm_scale=q.shape[-1] ** -0.5, causal=True, block_sizes=sizes,
        interpret=interpret,
    )  # fmt: skip
    return checkpoint_name(out[:, :length], "attention")


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, otherwise) -> jax.Array:
    """Computes causal attention within documents by cuDNN's packed layout (Hopper and newer).

    cuDNN is told where each document begins and ends, and how many there can be. A batch with a row
    of more than `CUDNN_MAX_RUNS` goes the other way.

    Args:
        q: [B, T, N, H] float16 or bfloat16; k, v: [B, T, K, H].
        segment_ids: [B, T] int32; equal ids must be side by side.
        otherwise: computes the same from (q, k, v, segment_ids).
    """
    max_runs = min(CUDNN_MAX_RUNS, q.shape[1])
    num_runs = 1 + jnp.sum(segment_ids[:, 1:] != segment_ids[:, :-1], axis=1)
    fits = jnp.max(num_runs) <= max_runs
    return jax.lax.cond(fits, _cudnn_packed, otherwise, q, k, v, segment_ids)


def _cudnn_packed(q, k, v, segment_ids):
    # jax.nn.dot_product_attention(implementation="cudnn") is this without the offsets.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths, offsets = find_runs(segment_ids, min(CUDNN_MAX_RUNS, q.shape[1]))
    out = dot_product_attention(
        q, k, v, None, None, lengths, lengths, offsets, offsets, scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL,
    )  # fmt: skip
    return checkpoint_name(out, "attention")


def find_runs(segment_ids: jax.Array, max_runs: int) -> tuple[jax.Array, jax.Array]:
    """Finds the runs of equal ids in each row, padding included, as cuDNN wants them.

    Args:
        segment_ids: [B, T] int32, at most `max_runs` runs a row.

    Returns:
        lengths [B, max_runs] and offsets [B, max_runs + 1] int32, the end among them; -1 where a
        row has fewer.

    >>> lengths, offsets = find_runs(jnp.array([[1, 1, 2, 0], [1, 1, 1, 1]]), 3)
    >>> lengths.tolist(), offsets.tolist()
    ([[2, 1, 1], [4, -1, -1]], [[0, 2, 3, 4], [0, 4, -1, -1]])
    """
    rows, length = segment_ids.shape
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = jnp.concatenate([jnp.ones((rows, 1), bool), changes], axis=1)

    def places(begins):
        return jnp.nonzero(begins, size=max_runs, fill_value=length)[0]

    ends = jnp.full((rows, 1), length)
    offsets = jnp.concatenate([jax.vmap(places)(begins), ends], axis=1).astype(jnp.int32)
    lengths = jnp.diff(offsets, axis=1)
    beyond = jnp.concatenate([jnp.zeros((rows, 1), bool), offsets[:, :-1] == length], axis=1)
    return jnp.where(lengths == 0, -1, lengths), jnp.where(beyond, -1, offsets)
