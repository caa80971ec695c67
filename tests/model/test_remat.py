"""Remat policies: the same values and gradients, and what each keeps for backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ellama_jax.config import AttentionConfig
from ellama_jax.model.llama import hidden_states, init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.model.remat import REMAT_POLICIES, check_remat

TINY = get_preset("tiny")
ROWS, LENGTH = 2, 64
BLOCKWISE = AttentionConfig("blockwise", 32, 32, "all_gather")

INPUT = (ROWS, LENGTH, TINY.embed_dim)
QUERIES = (ROWS, LENGTH, TINY.num_heads, TINY.head_dim)
FLAT = ROWS * LENGTH  # of products, on one device
WIDTHS = {
    "q": TINY.num_heads * TINY.head_dim, "k": TINY.num_kv_heads * TINY.head_dim,
    "v": TINY.num_kv_heads * TINY.head_dim, "out": TINY.embed_dim,
    "gate": TINY.mlp_dim, "up": TINY.mlp_dim,
}  # fmt: skip
ATTENTION = [QUERIES, QUERIES[:3]]  # its output, and the log of its sums
KEPT = {
    "dots": [INPUT, *ATTENTION, *((FLAT, width) for width in WIDTHS.values())],
    "attention": [INPUT, *ATTENTION],
    "full": [INPUT],
    "offload": [INPUT],
}


def loss(params, remat):
    tokens = jnp.arange(ROWS * LENGTH, dtype=jnp.int32).reshape(ROWS, LENGTH) % 500
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), tokens.shape)
    segments = jnp.ones_like(tokens)
    hidden = hidden_states(
        params, TINY, tokens, positions, segments, remat=remat, attention=BLOCKWISE
    )
    return jnp.sum(hidden * jnp.sin(jnp.arange(hidden.size).reshape(hidden.shape)))


@pytest.fixture(scope="module")
def params():
    return init_params(TINY, 0)


@pytest.fixture(scope="module")
def plain(params):
    return jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, "none")


@pytest.mark.parametrize("remat", REMAT_POLICIES[1:])
def test_a_policy_changes_neither_values_nor_gradients(remat, params, plain):
    again = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, again)


def kept(remat, params):
    """Returns what the forward loop over layers leaves for backward, a layer's part of each."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda params: loss(params, remat)))(params)
    forward = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    return [variable.aval for variable in forward.outvars[forward.params["num_carry"] :]]


@pytest.mark.parametrize("remat", KEPT)
def test_a_policy_keeps_what_its_name_says_and_nothing_else(remat, params):
    avals = kept(remat, params)
    assert sorted(aval.shape[1:] for aval in avals) == sorted(KEPT[remat])
    places = {str(aval.memory_space) for aval in avals}
    assert places == {"MemorySpace.Host" if remat == "offload" else "MemorySpace.Device"}


def test_an_unknown_policy_is_an_error_that_names_those_there_are(params):
    with pytest.raises(ValueError, match="^model.remat: must be one of none, dots, .* got most.$"):
        loss(params, "most")
    with pytest.raises(ValueError, match="full, offload, auto, got most"):
        check_remat("most", "auto")
    check_remat("auto", "auto")
