"""The next-token loss, without ever holding [B, T, V] logits.

Owns the fused projection and cross-entropy; which positions count is the batch's `loss_weights`.
"""

from functools import partial

import jax
import jax.numpy as jnp


def token_losses(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, chunk_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Computes the weighted sum of next-token cross-entropies and each token's own.

    The positions are taken `chunk_tokens` at a time: a chunk's logits live only while it is
    computed. Under differentiation the same pass also forms the gradients, so that the projection
    onto the vocabulary is not done twice (the idea of Liger's fused linear cross-entropy,
    arXiv 2410.10989).

    Args:
        hidden: [B, T, D]; kernel: [V, D]; targets: [B, T] int32; weights: [B, T] float32.
        chunk_tokens: positions a chunk; the last chunk is padded.

    Returns:
        `total`, float32 scalar, differentiable in `hidden` and `kernel`, and `losses` [B, T]
        float32 in nats, unweighted, not differentiable.
    """
    batch, length, dim = hidden.shape
    count = batch * length
    chunk = min(chunk_tokens, count)
    padding = -count % chunk

    def chunked(x):
        flat = x.reshape(count, *x.shape[2:])
        padded = jnp.pad(flat, ((0, padding),) + ((0, 0),) * (flat.ndim - 1))
        return padded.reshape(-1, chunk, *flat.shape[1:])

    total, losses = _fused(chunked(hidden), kernel, chunked(targets), chunked(weights))
    losses = losses.reshape(-1)[:count].reshape(batch, length)
    return total, jax.lax.stop_gradient(losses)


def _logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    kernel = kernel.astype(hidden.dtype)
    return jnp.einsum("cd,vd->cv", hidden, kernel, preferred_element_type=jnp.float32)


def _chunk_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return normaliser - chosen, normaliser


@jax.custom_vjp
def _fused(hidden, kernel, targets, weights):
    """Sums over chunks: hidden [C, c, D], targets and weights [C, c] -> total, losses [C, c]."""

    def add_chunk(total, chunk):
        h, t, w = chunk
        losses, _ = _chunk_losses(_logits(h, kernel), t)
        return total + jnp.sum(losses * w), losses

    return jax.lax.scan(add_chunk, jnp.float32(0), (hidden, targets, weights))


def _fused_forward(hidden, kernel, targets, weights):
    def add_chunk(carry, chunk):
        total, kernel_grad = carry
        h, t, w = chunk
        logits = _logits(h, kernel)
        losses, normaliser = _chunk_losses(logits, t)
        # d loss / d logits = softmax - onehot, times the token's weight.
        probabilities = jnp.exp(logits - normaliser[:, None])
        hit = jax.nn.one_hot(t, logits.shape[-1], dtype=jnp.float32)
        logits_grad = ((probabilities - hit) * w[:, None]).astype(h.dtype)
        hidden_grad = jnp.einsum("cv,vd->cd", logits_grad, kernel.astype(h.dtype))
        kernel_grad += jnp.einsum("cv,cd->vd", logits_grad, h, preferred_element_type=jnp.float32)
        return (total + jnp.sum(losses * w), kernel_grad), (losses, hidden_grad)

    start = (jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32))
    (total, kernel_grad), (losses, hidden_grad) = jax.lax.scan(
        add_chunk, start, (hidden, targets, weights)
    )
    # The residuals are the gradients themselves; only their dtypes are needed besides.
    return (total, losses), (hidden_grad, kernel_grad.astype(kernel.dtype))


def _fused_backward(gradients, cotangents):
    hidden_grad, kernel_grad = gradients
    scale, _ = cotangents
    scaled = partial(jax.tree.map, lambda g: (g * scale).astype(g.dtype))
    return scaled(hidden_grad), scaled(kernel_grad), None, None


_fused.defvjp(_fused_forward, _fused_backward)
