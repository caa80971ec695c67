"""Packed rows for the tests of attention, and what a reference nobody here wrote says of them."""

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.config import AttentionConfig
from ellama_jax.model.attention import attend
from ellama_jax.model.attention_gpu import triton
from ellama_jax.model.attention_splash import splash

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def packed_rows(batch, length, heads, kv_heads, head_dim, dtype="float32", seed=0):
    """Random q, k, v and output weights, and documents with padding at the end of each row."""
    rng = np.random.default_rng(seed)
    sizes = (heads, kv_heads, kv_heads, heads)
    q, k, v, w = (jnp.asarray(rng.normal(size=(batch, length, n, head_dim)), dtype) for n in sizes)
    ids = np.zeros((batch, length), np.int32)
    for row in ids:
        cuts = np.sort(rng.integers(1, length - 3, 3))
        row[:] = 1 + np.searchsorted(cuts, np.arange(length), side="right")
        row[length - 1 - rng.integers(0, length // 5) :] = 0
    return (q, k, v), w, ids


def mask_in_numpy(ids):
    length = ids.shape[1]
    return (ids[:, :, None] == ids[:, None, :]) & np.tri(length, dtype=bool)


def reference(q, k, v, ids):
    """jax.nn's plain attention, in float32, under a mask made with NumPy."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    mask = jnp.asarray(mask_in_numpy(ids))[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def kernel(name, ids, block_q=128, block_kv=128, context="all_gather", interpret=True):
    """A kernel as a function of q, k and v; those of TPU and GPU are interpreted."""
    blocks = (block_q, block_kv)
    if name.startswith("splash"):
        fused = name == "splash, fused backward"
        return lambda q, k, v: splash(q, k, v, ids, blocks, fused, interpret=interpret)
    if name == "triton":
        return lambda q, k, v: triton(q, k, v, ids, interpret=interpret)
    config = AttentionConfig(name, *blocks, context=context)
    return lambda q, k, v: attend(q, k, v, ids, None, config)


def out_and_gradients(function, qkv, weights):
    """The output, and the gradients of its weighted sum, as float32 NumPy arrays."""

    def total(*qkv):
        out = function(*qkv)
        return jnp.sum(out.astype(jnp.float32) * weights.astype(jnp.float32)), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def assert_close(ours, theirs, tolerance):
    for name, mine, wanted in zip(("out", "d_q", "d_k", "d_v"), ours, theirs, strict=True):
        error = np.max(np.abs(mine - wanted)) / np.max(np.abs(wanted))
        assert error < tolerance, f"{name}: {error}"
