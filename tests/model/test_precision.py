"""Programs of float32 ask for products of float32; those of bfloat16 ask for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.config import AttentionConfig
from ellama_jax.core.sharding import make_mesh
from ellama_jax.evaluate import decoding, scorer
from ellama_jax.model.llama import init_params, run_layer
from ellama_jax.model.presets import get_preset
from ellama_jax.train.step import init_state, make_loss_sums, make_train_step

TINY = get_preset("tiny")
HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
ROWS = {
    "inputs": jnp.int32, "targets": jnp.int32, "positions": jnp.int32, "segment_ids": jnp.int32,
    "loss_weights": jnp.float32,
}  # fmt: skip


def precisions(jaxpr):
    """What each matrix product of a traced program asks for, those of its kernels too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found += precisions(inner) if hasattr(inner, "eqns") else []
    return found


def scoring(dtype):
    rows = {n: np.ones((2, 32), np.int32) for n in ("tokens", "positions", "segment_ids")}
    picks = np.zeros(8, np.int32), np.zeros((8, 4), np.int32), np.int32(3)
    trace = lambda params: scorer._score_rows(params, TINY, rows, picks, dtype)  # noqa: E731
    return trace, (init_params(TINY, 0),)


def generating(dtype):
    rows, ends = np.ones(2, np.int32), np.zeros(1, np.int32)
    ones = np.ones(2, np.float32)
    sampling = decoding.Sampling(ones, ones, rows, rows.astype(np.uint32), np.uint32(0))

    def trace(params):
        state = decoding.start(
            params, TINY, np.ones((2, 8), np.int32), rows, rows, ends, sampling, num_new=4,
            compute_dtype=dtype, sampled=True,
        )  # fmt: skip
        return decoding.advance(
            params, TINY, state, rows > 1, np.int32(4), rows, rows, ends, sampling, sampled=True
        )

    return trace, (init_params(TINY, 0),)


def layer_alone(dtype):
    params = jax.tree.map(lambda x: x[0].astype(dtype), init_params(TINY, 0)["layers"])
    ids = np.ones((2, 32), np.int32)
    return lambda x: run_layer(params, TINY, x, ids, ids), (jnp.ones((2, 32, 64), dtype),)


def training(kernel, dtype):
    attention = AttentionConfig(kernel=kernel, block_q=128, block_kv=128, context="all_gather")
    sums = make_loss_sums(
        TINY, num_sources=1, compute_dtype=dtype, remat="full", chunk_tokens=64, attention=attention
    )
    step = make_train_step(sums, optax.sgd(1.0), optax.constant_schedule(1.0), 1, dtype)
    batch = {name: jnp.ones((2, 256), kind) for name, kind in ROWS.items()}
    params = init_params(TINY, 0)
    state = init_state(params, optax.sgd(1.0).init(params))
    return step, (state, batch | {"source_ids": jnp.zeros(2, jnp.int32)})


PROGRAMS = {
    "scoring": scoring, "generating": generating, "a layer alone": layer_alone,
    **{f"training with {k}": lambda d, k=k: training(k, d) for k in ("dense", "blockwise", "splash")},
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_a_float32_program_are_float32_and_of_bfloat16_the_default(name, dtype):
    trace, arguments = PROGRAMS[name](dtype)
    found = precisions(jax.make_jaxpr(trace)(*arguments).jaxpr)
    assert len(found) >= 8
    if dtype == jnp.float32:
        assert set(found) == {HIGHEST}
    else:  # jax.nn's attention names the algorithm that bfloat16 has anyway
        assert set(found) <= {None, jax.lax.DotAlgorithmPreset.BF16_BF16_F32}


def test_a_mesh_asks_for_the_same():
    trace, (state, batch) = training("blockwise", jnp.float32)
    mesh = make_mesh({"data": 2, "fsdp": 1, "context": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        found = precisions(jax.make_jaxpr(trace)(state, batch).jaxpr)
    assert set(found) == {HIGHEST}
