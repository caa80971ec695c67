"""The chunked loss against optax on whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.model.loss import token_losses


def example(seed=0, batch=3, length=7, dim=8, vocab=50):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (batch, length, dim))
    kernel = jax.random.normal(keys[1], (vocab, dim))
    targets = jax.random.randint(keys[2], (batch, length), 0, vocab)
    weights = jax.random.uniform(keys[3], (batch, length)).at[0, 2].set(0.0)
    return hidden, kernel, targets, weights


def optax_total(hidden, kernel, targets, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel.T, targets)
    return jnp.sum(losses * weights), losses


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 21, 1000])
def test_sum_and_token_losses_equal_optax(chunk_tokens):
    arguments = example()
    total, losses = token_losses(*arguments, chunk_tokens)
    expected_total, expected_losses = optax_total(*arguments)
    np.testing.assert_allclose(total, expected_total, rtol=1e-5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [4, 21])
def test_gradients_equal_optax_under_any_cotangent(chunk_tokens):
    hidden, kernel, targets, weights = example()

    def ours(hidden, kernel):
        return -2.5 * token_losses(hidden, kernel, targets, weights, chunk_tokens)[0]

    def theirs(hidden, kernel):
        return -2.5 * optax_total(hidden, kernel, targets, weights)[0]

    got, expected = (jax.grad(f, argnums=(0, 1))(hidden, kernel) for f in (ours, theirs))
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5)


def test_gradients_keep_the_dtypes_of_their_arguments():
    hidden, kernel, targets, weights = example()
    hidden = hidden.astype(jnp.bfloat16)
    total = lambda h, k: token_losses(h, k, targets, weights, 4)[0]  # noqa: E731
    hidden_grad, kernel_grad = jax.grad(total, argnums=(0, 1))(hidden, kernel)
    assert (hidden_grad.dtype, kernel_grad.dtype) == (jnp.bfloat16, jnp.float32)


def test_full_logits_never_exist():
    """The compiled gradient holds a chunk's logits at the most (vocab dominates all else here)."""
    batch, length, dim, vocab = 4, 64, 8, 4096
    hidden, kernel, targets, weights = example(0, batch, length, dim, vocab)
    total = lambda h, k: token_losses(h, k, targets, weights, 32)[0]  # noqa: E731
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, kernel).compile()
    whole_logits_bytes = batch * length * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole_logits_bytes


def test_huge_logits_stay_finite():
    hidden, kernel, targets, weights = example()
    total, losses = token_losses(hidden * 1e4, kernel, targets, weights, 4)
    assert np.isfinite(total) and np.all(np.isfinite(losses))
