"""A model between two: made where it is used, it computes what the merged weights compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import map_paths
from ellama_jax.evaluate.scorer import Request, _score_rows, score
from ellama_jax.model.llama import Blend, init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.weights.alphas import Alphas, parse_alphas_by_part

TIED = dataclasses.replace(get_preset("tiny"), num_layers=3)
UNTIED = dataclasses.replace(TIED, tied_embeddings=False)
REQUESTS = [Request([1, 5, 9, 3], [[7, 8], [4]]), Request([2, 6], [[11, 12, 13]])]
UNEVEN = parse_alphas_by_part("0.2,0.9", ["embed=0", "norms=0.5", "layers.1=1"])


def blend(base, adapted, alphas: Alphas, num_layers: int):
    def leaf(path, pair):
        return Blend(*pair, jnp.asarray(alphas.of(path, num_layers), jnp.float32))

    return map_paths(leaf, jax.tree.map(lambda a, b: (a, b), base, adapted))


def merge(base, adapted, alphas: Alphas, num_layers: int):
    """The same in NumPy."""

    def leaf(path, pair):
        a, b = (np.asarray(x, np.float32) for x in pair)
        alpha = np.asarray(alphas.of(path, num_layers), np.float32)
        alpha = alpha.reshape(alpha.shape + (1,) * (a.ndim - alpha.ndim))
        return jnp.asarray((1 - alpha) * a + alpha * b, pair[0].dtype)

    return map_paths(leaf, jax.tree.map(lambda a, b: (a, b), base, adapted))


def log_probs(params, config, mesh=None):
    found = score(params, config, REQUESTS, row_length=16, rows_per_batch=4, mesh=mesh)
    return np.concatenate([result.log_probs for result in found])


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_blend_scores_what_the_merged_weights_score(config, dtype):
    base, adapted = (init_params(config, seed, dtype) for seed in (0, 1))
    blended = log_probs(blend(base, adapted, UNEVEN, 3), config)
    np.testing.assert_allclose(
        blended, log_probs(merge(base, adapted, UNEVEN, 3), config), rtol=1e-5, atol=1e-5
    )
    assert np.abs(blended - log_probs(base, config)).max() > 1e-2


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_its_ends_it_is_one_of_the_two(alpha):
    pair = [init_params(TIED, seed) for seed in (0, 1)]
    found = log_probs(blend(*pair, Alphas((alpha,)), 3), TIED)
    np.testing.assert_array_equal(found, log_probs(pair[int(alpha)], TIED))


def test_another_alpha_compiles_nothing():
    base, adapted = (init_params(TIED, seed) for seed in (0, 1))
    log_probs(blend(base, adapted, Alphas((0.25,)), 3), TIED)
    programs = _score_rows._cache_size()
    log_probs(blend(base, adapted, UNEVEN, 3), TIED)
    assert _score_rows._cache_size() == programs


def test_a_divided_blend_scores_the_same():
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    on_mesh = [init_params(UNTIED, seed, mesh=mesh) for seed in (0, 1)]
    alone = [init_params(UNTIED, seed) for seed in (0, 1)]
    np.testing.assert_allclose(
        log_probs(blend(*on_mesh, UNEVEN, 3), UNTIED, mesh),
        log_probs(blend(*alone, UNEVEN, 3), UNTIED),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
