"""The loss in blocks of words against optax on whole logits, on one device and on meshes of eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxprs import arrays_in

from ellama_jax.core.sharding import MESH_AXES, make_mesh
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


# --- both layouts of the kernel, padded blocks, bfloat16, meshes ---------------------------------

BATCH, LENGTH, DIM = 8, 8, 16  # divided by every mesh below
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def counted(vocab, seed=0):
    """An example whose weights are zeros, fractions and more than one; each end is a target."""
    hidden, kernel, targets, _ = example(seed, BATCH, LENGTH, DIM, vocab)
    targets = targets.at[0, :2].set(jnp.array([0, vocab - 1]))
    weights = np.random.default_rng(seed).choice([0.0, 0.25, 1.0, 1.5], (BATCH, LENGTH))
    return hidden, kernel, targets, jnp.asarray(weights, jnp.float32).at[0, :2].set(1.0)


@functools.partial(jax.jit, static_argnames=("chunk_tokens", "dims"))
def fused(hidden, kernel, targets, weights, chunk_tokens, dims):
    """What a plain call says, and what one under differentiation does, with the gradients."""

    def ours(hidden, kernel):
        return token_losses(hidden, kernel, targets, weights, chunk_tokens, kernel_dims=dims)

    said = ours(hidden, kernel)
    (total, losses), gradients = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(
        hidden, kernel
    )
    return said, (total, losses), gradients


def assert_equals_optax(arguments, chunk_tokens, dims, got=None, tolerance=None):
    """Totals and losses to 1e-5, gradients to `tolerance` of their largest value."""
    hidden, kernel, targets, weights = arguments
    kernel_rounded = kernel.astype(hidden.dtype).astype(jnp.float32)
    whole = (hidden.astype(jnp.float32), kernel_rounded)
    (total, losses), gradients = jax.value_and_grad(optax_total, argnums=(0, 1), has_aux=True)(
        *whole, targets, weights
    )
    if got is None:
        got = fused(hidden, turned(kernel, dims), targets, weights, chunk_tokens, dims)
    *said, (hidden_grad, kernel_grad) = jax.device_get(got)
    for our_total, our_losses in said:
        np.testing.assert_allclose(our_total, total, rtol=1e-5)
        np.testing.assert_allclose(our_losses, losses, rtol=1e-5, atol=1e-5)
    assert (hidden_grad.dtype, kernel_grad.dtype) == (hidden.dtype, kernel.dtype)
    tolerance = tolerance or TOLERANCE[hidden.dtype.name]
    pairs = zip((hidden_grad, turned(kernel_grad, dims)), gradients, strict=True)
    for ours, theirs in pairs:
        apart = np.abs(np.asarray(ours, np.float32) - theirs).max()
        assert apart <= tolerance * np.abs(theirs).max()
    unweighted = np.asarray(hidden_grad, np.float32)[np.asarray(weights) == 0]
    assert len(unweighted) and np.all(unweighted == 0)


def turned(kernel, dims):
    return kernel if dims == "vd" else kernel.T


@pytest.mark.parametrize("dims", ["vd", "dv"])
@pytest.mark.parametrize(
    "vocab, chunk_tokens, dtype",
    [
        (48, 64, "float32"),  # one block
        (48, 16, "float32"),  # four of 12 words
        (53, 16, "float32"),  # four of 14, three words of padding
        (13, 11, "float32"),  # six of 3, the last of padding alone
        (53, 64, "bfloat16"),
        (53, 16, "bfloat16"),
    ],
)
def test_both_layouts_and_padded_blocks_equal_optax(vocab, chunk_tokens, dtype, dims):
    hidden, *others = counted(vocab)
    assert_equals_optax((hidden.astype(dtype), *others), chunk_tokens, dims)


def test_padding_stays_out_of_the_gradients_where_every_logit_is_far_below_zero():
    """A word of padding has logit 0; exp(0 - normaliser) is infinite there."""
    hidden, kernel, targets, weights = counted(53)
    # Quarters and eighths: logits are exact. Of normalisers near -100 the sixth digit is rounded.
    hidden, kernel = 1.0 + jnp.round(jnp.abs(hidden)) / 8, -8.0 + jnp.round(2 * kernel) / 4
    assert jnp.max(hidden @ kernel.T) < -100
    assert_equals_optax((hidden, kernel, targets, weights), 16, "vd", tolerance=1e-4)


# (data, fsdp, context, tensor), words, positions a block on a device.
MESHES = {
    "batch": ((8, 1, 1, 1), 53, 2),
    "embedding": ((1, 8, 1, 1), 53, 2),
    "length": ((1, 1, 8, 1), 53, 2),
    "vocabulary": ((1, 1, 1, 8), 104, 16),
    "one block of all": ((1, 2, 2, 2), 48, 64),
    "batch x embedding x vocabulary": ((2, 2, 1, 2), 106, 4),
    "embedding x length x vocabulary": ((1, 2, 2, 2), 106, 4),
    "length x vocabulary": ((1, 1, 2, 4), 52, 8),
}


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_equals_optax(name):
    """13 or 53 words a device and block counts of 4 and more: padding inside each device's part."""
    shape, vocab, chunk_tokens = MESHES[name]
    dtype = "bfloat16" if name == "batch x embedding x vocabulary" else "float32"
    hidden, kernel, targets, weights = counted(vocab)
    arguments = (hidden.astype(dtype), kernel, targets, weights)
    dims = "dv" if list(MESHES).index(name) % 2 else "vd"
    with on_mesh(shape):
        got = fused(arguments[0], turned(kernel, dims), targets, weights, chunk_tokens, dims)
    assert_equals_optax(arguments, chunk_tokens, dims, got)


def on_mesh(shape):
    return jax.set_mesh(make_mesh(dict(zip(MESH_AXES, shape, strict=True))))


def largest_array(arguments, chunk_tokens, dims="vd", inside=None):
    jaxpr = jax.make_jaxpr(functools.partial(fused, chunk_tokens=chunk_tokens, dims=dims))(
        *arguments
    )
    return max(array.size for array in arrays_in(jaxpr, inside))


@pytest.mark.parametrize("chunk_tokens", [4, 8, 16, 64])
@pytest.mark.parametrize("vocab", [96, 101])
def test_no_array_has_more_logits_than_the_positions_of_a_chunk(vocab, chunk_tokens):
    """The embedding is so small here that only logits can be large."""
    hidden, kernel, targets, weights = example(0, 4, 16, 2, vocab)
    positions = targets.size
    block = -(-chunk_tokens * vocab // positions)  # words, rounded up
    largest = largest_array((hidden, kernel, targets, weights), chunk_tokens)
    assert positions * block // 2 <= largest <= positions * block


def test_on_a_mesh_a_device_has_its_part_of_the_logits_and_a_block_of_the_kernel():
    hidden, kernel, targets, weights = example(0, 8, 8, 64, 96)
    with on_mesh((1, 4, 1, 2)):
        largest = largest_array((hidden, kernel, targets, weights), 4, inside="shard_map")
    # 16 positions a device, so 4 blocks of the 48 words here; the whole embedding of a block.
    assert largest == max(16 * 12, 12 * 64, 48 * 16, 16 * 64)
    assert largest < 48 * 64
