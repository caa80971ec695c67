"""Stochastic rounding to bfloat16: what is added up step by step in 8 bits keeps its mean.

Owns the random bits and the rounding. There is no state: bits follow from a seed, the step, the
leaf and the place in it, so a resumed run and any mesh have the same. Which arrays are rounded so
is optimizer.py's and step.py's to say.
"""

import math

import jax
import jax.numpy as jnp

# Streams of random bits of one step; two arrays of equal shape must not share theirs.
PARAMS, FIRST_MOMENT, SECOND_MOMENT, AVERAGE = range(4)


def round_tree(tree: dict, like: dict, seed: int, step: jax.Array, stream: int) -> dict:
    """Brings float32 leaves to the dtypes of `like`; those that lose bits are rounded at random.

    Round-to-nearest drops every change below half a unit in the last place (2^-9 of the value),
    which at a learning rate of 1e-5 is nearly all of them; rounded stochastically they are kept in
    expectation (arXiv 2010.06192).

    Args:
        tree: float32 leaves.
        like: the same structure; leaves with a dtype, float32 or bfloat16.
        seed: of the run.
        step: scalar int32.
        stream: one of `PARAMS`, `FIRST_MOMENT`, `SECOND_MOMENT`, `AVERAGE`.
    """
    leaves, structure = jax.tree.flatten(tree)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stream)
    rounded = []
    for number, (leaf, wanted) in enumerate(zip(leaves, jax.tree.leaves(like), strict=True)):
        if wanted.dtype == jnp.bfloat16:
            word = jax.random.bits(jax.random.fold_in(key, number), (), jnp.uint32)
            leaf = round_stochastically(leaf, hash_places(leaf.shape, word))
        rounded.append(leaf.astype(wanted.dtype))
    return jax.tree.unflatten(structure, rounded)


def round_stochastically(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds float32 to one of the two nearest bfloat16, the nearer one more often.

    The expected value is `x`: half the bits of a float32 are added at random below those that stay,
    and carry into them as often as the rest is large.

    Args:
        x: float32.
        bits: the shape of `x`, uint32, of which the upper 16 bits are used.

    A value a quarter of the way from 1 to the next bfloat16, 1 + 2^-7:

        >>> bits = (jnp.arange(4, dtype=jnp.uint32) * 2**14) << 16
        >>> round_stochastically(jnp.full(4, 1 + 2**-9), bits).tolist()
        [1.0, 1.0, 1.0, 1.0078125]
    """
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = ((word + (bits >> 16)) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    # A carry would turn some NaN into -0.
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def hash_places(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
    """Returns 32 random bits for each place of an array: MurmurHash3 (x86, 32) of its index.

    Elementwise in the index, so a compiler fuses it into what uses it and each device makes its
    own part. Threefry becomes a loop over whole arrays on CPU and a call on GPU, and takes about
    four times the operations on TPU.

    Args:
        shape: of the array; places are hashed as two little-endian words, the index into the
            leading dims and that into the trailing ones, whose sizes multiply to below 2^32.
        seed: scalar uint32.
    """
    split = len(shape)
    while split > 0 and math.prod(shape[split - 1 :]) < 2**32:
        split -= 1
    high = _linear_index(shape, 0, split)
    low = _linear_index(shape, split, len(shape))
    state = _mix_word(_mix_word(jnp.broadcast_to(seed, shape), high), low) ^ jnp.uint32(8)
    state = (state ^ (state >> 16)) * jnp.uint32(0x85EBCA6B)
    state = (state ^ (state >> 13)) * jnp.uint32(0xC2B2AE35)
    return state ^ (state >> 16)


def _linear_index(shape: tuple[int, ...], first: int, stop: int) -> jax.Array:
    index = jnp.zeros(shape, jnp.uint32)
    for dim in range(first, stop):
        stride = jnp.uint32(math.prod(shape[dim + 1 : stop]))
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * stride
    return index


def _mix_word(state: jax.Array, word: jax.Array) -> jax.Array:
    word = _rotate(word * jnp.uint32(0xCC9E2D51), 15) * jnp.uint32(0x1B873593)
    return _rotate(state ^ word, 13) * jnp.uint32(5) + jnp.uint32(0xE6546B64)


def _rotate(word: jax.Array, bits: int) -> jax.Array:
    return (word << bits) | (word >> (32 - bits))
