"""Stochastic rounding: unbiased, reproducible, the same on every mesh; bits are MurmurHash3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.train.rounding import (
    FIRST_MOMENT,
    PARAMS,
    hash_places,
    round_stochastically,
    round_tree,
)

BELOW, ABOVE = 1.0, 1.0 + 2**-7  # neighbours in bfloat16


def round_many(value, number=1 << 16, step=0):
    x = {"x": jnp.full(number, value, jnp.float32)}
    like = {"x": jax.ShapeDtypeStruct((number,), jnp.bfloat16)}
    return np.asarray(round_tree(x, like, 0, jnp.int32(step), PARAMS)["x"], np.float32)


def test_bits_are_murmurhash3_of_the_place():
    """scikit-learn has Appleby's own code."""
    murmurhash3_32 = pytest.importorskip("sklearn.utils").murmurhash3_32
    bits = np.asarray(hash_places((3, 5, 7), jnp.uint32(12345)))
    for place, ours in zip(np.ndindex(3, 5, 7), bits.reshape(-1), strict=True):
        index = np.ravel_multi_index(place, (3, 5, 7))
        words = np.array([0, index], "<u4").tobytes()
        assert ours == murmurhash3_32(words, seed=12345, positive=True)


def test_places_of_arrays_beyond_32_bits_are_told_apart():
    """The 405B's w_up has 1.1e11; only its index is computed here, at two places."""
    shape = (126, 16384, 53248)

    def at(layer):
        return jax.jit(lambda: hash_places(shape, jnp.uint32(1))[layer, 7, 11])()

    murmurhash3_32 = pytest.importorskip("sklearn.utils").murmurhash3_32
    for layer in (0, 125):
        words = np.array([layer, 7 * 53248 + 11], "<u4").tobytes()
        assert int(at(layer)) == murmurhash3_32(words, seed=1, positive=True)


@pytest.mark.parametrize("part", [0.5, 0.25, 1 / 64, 1 / 1024])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_is_the_value_where_nearest_would_lose_it(part, sign):
    value = sign * (BELOW + part * (ABOVE - BELOW))
    rounded = round_many(value)
    assert set(rounded.tolist()) <= {sign * BELOW, sign * ABOVE}
    # Four standard errors of a share among 2^16.
    error = 4 * np.sqrt(part * (1 - part) / len(rounded)) * (ABOVE - BELOW)
    assert abs(rounded.mean(dtype=np.float64) - value) < error


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 2.0**-130, np.inf, -np.inf])
def test_what_bfloat16_holds_stays_as_it_is(value):
    rounded = round_many(value, 256)
    np.testing.assert_array_equal(rounded, np.float32(value))
    assert np.all(np.signbit(rounded) == np.signbit(value))


def test_nan_stays_nan_whatever_its_bits():
    words = jnp.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], jnp.uint32)
    x = jax.lax.bitcast_convert_type(words, jnp.float32)
    bits = jnp.full(3, 0xFFFFFFFF, jnp.uint32)
    assert np.all(np.isnan(np.asarray(round_stochastically(x, bits), np.float32)))


def test_steps_streams_leaves_and_places_have_bits_of_their_own():
    x = {"a": jnp.full(4096, 1 + 2**-8), "b": jnp.full(4096, 1 + 2**-8)}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), x)
    outcomes = []
    for seed, step, stream in (
        (0, 0, PARAMS),
        (0, 1, PARAMS),
        (0, 0, FIRST_MOMENT),
        (1, 0, PARAMS),
    ):
        rounded = round_tree(x, like, seed, jnp.int32(step), stream)
        outcomes += [np.asarray(leaf, np.float32) > 1 for leaf in rounded.values()]
    outcomes.append(np.roll(outcomes[0], 1))  # neighbours
    apart = np.corrcoef(np.array(outcomes)) - np.eye(len(outcomes))
    assert np.abs(apart).max() < 5 / np.sqrt(4096)


def test_equal_bits_on_every_mesh_and_again():
    shape = (4, 8, 16)
    x = {"w": jax.random.normal(jax.random.key(0), shape)}
    like = {"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}

    def rounded(placed):
        step = jax.jit(lambda tree: round_tree(tree, like, 3, jnp.int32(5), PARAMS))
        return np.asarray(step(placed)["w"], np.float32)

    alone = rounded(x)
    for spec in (("fsdp", None, "tensor"), (None, ("fsdp", "tensor"))):
        mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        np.testing.assert_array_equal(rounded(jax.device_put(x, sharding)), alone)
    np.testing.assert_array_equal(rounded(x), alone)


def test_float32_passes_through():
    x = {"w": jnp.array([1 + 2**-20], jnp.float32)}
    np.testing.assert_array_equal(round_tree(x, x, 0, jnp.int32(0), PARAMS)["w"], x["w"])
