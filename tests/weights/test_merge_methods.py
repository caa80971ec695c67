"""Every method against its formula, stated anew in NumPy; and what holds of all of them."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.core.tree import flatten_paths
from ellama_jax.merge.methods import (
    METHODS,
    keep_mask,
    kept_count,
    mask_key,
    slerp_weights,
    stock_weights,
)
from ellama_jax.merge.stream import Group, Recipe, merge_arrays, narrow, widen
from ellama_jax.merge.verb import merge_models
from ellama_jax.weights.alphas import Alphas, parse_alphas_by_part
from ellama_jax.weights.checkpoint import restore_params
from ellama_jax.weights.content_hash import leaf_arrays
from ellama_jax.weights.lazy import from_array
from ellama_jax.weights.tensors import extract_tensor, tensor_names

FLOAT64 = np.float64


# --- the formulas, written from the papers, on one tensor in float64 -----------------------------


def linear(base, models, weights, **_):
    return (1 - weights[0]) * base + weights[0] * models[0]


def slerp(base, models, weights, **_):
    a, b, t = base.ravel(), models[0].ravel(), weights[0]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * models[0]
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * base + np.sin(t * theta) * models[0]) / np.sin(theta)


def task_arithmetic(base, models, weights, **_):
    return base + sum(w * (m - base) for m, w in zip(models, weights, strict=True))


def ties(base, models, weights, density, **_):
    trimmed = []
    for model in models:
        delta = (model.astype(np.float32) - base.astype(np.float32)).astype(FLOAT64)
        last = np.sort(np.abs(delta).ravel())[::-1][max(1, int(density * delta.size)) - 1]
        trimmed.append(np.where(np.abs(delta) >= last, delta, 0))
    return base + elected(trimmed, weights, divide=True)


def elected(deltas, weights, divide):
    deltas = np.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    sign = np.where(deltas.sum(0) >= 0, 1, -1)
    agrees = np.sign(deltas) == sign
    total = (deltas * agrees).sum(0)
    if not divide:
        return total
    counted = (agrees * np.reshape(weights, (-1, *[1] * (deltas.ndim - 1)))).sum(0)
    return total / np.where(counted == 0, 1, counted)


def thinned(base, models, density, seed, name):
    for number, model in enumerate(models):
        positions = np.arange(base.size, dtype=np.uint32)
        kept = keep_mask(mask_key(seed, number, name), positions, density).reshape(base.shape)
        yield np.where(kept, (model - base) / density, 0)


def dare(base, models, weights, density, seed, name):
    deltas = thinned(base, models, density, seed, name)
    return base + sum(w * d for d, w in zip(deltas, weights, strict=True))


def dare_ties(base, models, weights, density, seed, name):
    return base + elected(list(thinned(base, models, density, seed, name)), weights, divide=False)


def model_stock(base, models, **_):
    deltas = [(m - base).ravel() for m in models]
    pairs = itertools.combinations(deltas, 2)
    cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    count = len(models)
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * np.mean(models, axis=0) + (1 - t) * base


FORMULAS = {f.__name__: f for f in (linear, slerp, task_arithmetic, ties, dare, dare_ties,
                                    model_stock)}  # fmt: skip


def recipe_of(method, count, weights=(0.6, 0.3, 0.2), density=0.3, seed=7):
    takes = METHODS[method]
    return Recipe(
        method,
        tuple(Alphas((w,)) for w in weights[:count]) if takes.weights else (),
        density if takes.density else None,
        seed if takes.seed else None,
    )


def models_for(method):
    return 1 if method in ("linear", "slerp") else 3


@pytest.fixture
def models(tiny, draw_params):
    """Returns a base and three models not far from it, as paths -> leaf."""
    base = flatten_paths(draw_params(tiny, seed=0))
    found = [base]
    for seed in (1, 2, 3):
        away = flatten_paths(draw_params(tiny, seed))
        found.append({path: leaf + 0.3 * away[path] for path, leaf in base.items()})
    return found


def merge(recipe, models, config, dtype=None, grid=None):
    arrays = leaf_arrays(config, {path: from_array(leaf) for path, leaf in models[0].items()})
    groups = {
        path: Group(array, tuple(from_array(m[path]) for m in models))
        for path, array in arrays.items()
    }
    return merge_arrays(recipe, groups, config.num_layers, dtype)


def foreign(config, leaves):
    """Yields (name, tensor) as a Hugging Face file has them."""
    for path, names in tensor_names(config).items():
        for layer, name in enumerate(names):
            leaf = np.asarray(leaves[path])
            yield name, extract_tensor(path, leaf[layer] if path.startswith("layers/") else leaf)


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_is_its_formula_tensor_by_tensor(tiny, models, method):
    count = models_for(method)
    recipe = recipe_of(method, count)
    merged = {p: a.load() for p, a in merge(recipe, models[: count + 1], tiny).items()}
    inputs = [dict(foreign(tiny, model)) for model in models[: count + 1]]
    for name, got in foreign(tiny, merged):
        base, *others = (tensor[name].astype(FLOAT64) for tensor in inputs)
        expected = FORMULAS[method](
            base, others, weights=[a.depth[0] for a in recipe.weights], density=0.3, seed=7,
            name=name,
        )  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5, err_msg=name)
        assert not np.allclose(got, base, atol=1e-3), name


@pytest.mark.parametrize("method", METHODS)
def test_any_boxes_give_the_same_bits(tiny, models, method, monkeypatch):
    count = models_for(method)
    arrays = merge(recipe_of(method, count), models[: count + 1], tiny, ml_dtypes.bfloat16)
    at_once = {path: array.load() for path, array in arrays.items()}
    for name, value in (("_BLOCK", 100), ("_BUDGET_BYTES", 5000)):
        monkeypatch.setattr(f"ellama_jax.merge.stream.{name}", value)
    for path, array in arrays.items():
        for box in boxes(array.shape):
            got, expected = array.read(box), at_once[path][box]
            assert got.tobytes() == np.ascontiguousarray(expected).tobytes(), path
    # Statistics are sums, whose last bit may differ; never by more than a rounding of the result.
    again = merge(recipe_of(method, count), models[: count + 1], tiny)
    for path, array in again.items():
        np.testing.assert_allclose(
            array.load(), at_once[path].astype(np.float32), rtol=1e-2, atol=1e-2
        )


def boxes(shape):
    """Cuts an array in two in every dim, unevenly."""
    cuts = [(slice(0, max(1, s // 3)), slice(max(1, s // 3), s)) for s in shape]
    for box in itertools.product(*cuts):
        if all(part.stop > part.start for part in box):
            yield box


@pytest.mark.parametrize("method", METHODS)
def test_equal_models_merge_to_themselves(tiny, models, method):
    count = max(2, models_for(method)) if method not in ("linear", "slerp") else 1
    one = {path: leaf.astype(ml_dtypes.bfloat16) for path, leaf in models[0].items()}
    merged = merge(recipe_of(method, count), [one] * (count + 1), tiny)
    for path, array in merged.items():
        assert array.load().tobytes() == one[path].tobytes(), path


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "model_stock"])
def test_the_order_of_models_does_not_matter(tiny, models, method):
    base, a, b, c = models
    recipe = recipe_of(method, 3, weights=(0.4, 0.4, 0.4))
    first = [] if method == "linear" else [base]
    one = merge(recipe, [*first, a, b, c], tiny)
    other = merge(recipe, [*first, c, a, b], tiny)
    for path, array in one.items():
        np.testing.assert_allclose(array.load(), other[path].load(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_bitwise_the_inputs(tiny, models, method, alpha):
    if alpha and method not in ("linear", "slerp"):
        pytest.skip("base + (adapted - base) rounds")
    merged = merge(recipe_of(method, 1, weights=(alpha,)), models[:2], tiny)
    for path, array in merged.items():
        assert array.load().tobytes() == models[int(alpha)][path].tobytes(), path


def test_layers_and_parts_have_alphas_of_their_own(tiny, models):
    alphas = parse_alphas_by_part("0,1", ["embed=0.5"])
    merged = merge(Recipe("linear", (alphas,)), models[:2], tiny)
    base, adapted = models[:2]
    got = merged["layers/mlp/w_up"].load()
    np.testing.assert_array_equal(got[0], base["layers/mlp/w_up"][0])
    np.testing.assert_array_equal(got[-1], adapted["layers/mlp/w_up"][-1])
    middle = (base["embed/table"] + adapted["embed/table"]) / 2
    np.testing.assert_allclose(merged["embed/table"].load(), middle, rtol=1e-5, atol=1e-6)


def test_weights_of_a_mean_are_divided_by_their_sum(tiny, models):
    recipe = recipe_of("linear", 3, weights=(1, 2, 5))
    for path, array in merge(recipe, models[1:], tiny).items():
        expected = (models[1][path] + 2 * models[2][path] + 5 * models[3][path]) / 8
        np.testing.assert_allclose(array.load(), expected, rtol=1e-5, atol=1e-6, err_msg=path)


# --- what divides --------------------------------------------------------------------------------


def test_parallel_vectors_are_interpolated_linearly():
    for gram in (np.ones((2, 2)), [[1, -1], [-1, 1]], np.zeros((2, 2)), [[1, 0.9996], [0.9996, 1]]):
        assert slerp_weights(np.array(gram, float), 0.25) == (0.75, 0.25)


def test_models_without_an_angle_leave_the_base():
    assert stock_weights(np.zeros((3, 3)))[0] == 1.0
    opposed = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert stock_weights(opposed) == [1.0, 0.0, 0.0]


def test_the_published_ratio_of_model_stock():
    # Two models at 60 degrees: t = 2 cos / (1 + cos) = 2/3.
    gram = np.array([[1.0, 0.5], [0.5, 1.0]])
    np.testing.assert_allclose(stock_weights(gram), [1 / 3, 1 / 3, 1 / 3])


def test_ties_keeps_the_exact_share(tiny, models):
    base, other = models[0], models[1]
    merged = merge(recipe_of("ties", 1, weights=(1.0,), density=0.2), [base, other], tiny)
    got = dict(foreign(tiny, {path: array.load() for path, array in merged.items()}))
    before = dict(foreign(tiny, base))
    for name, tensor in got.items():
        moved = int((tensor != before[name]).sum())
        assert moved == kept_count(0.2, tensor.size), name


# --- DARE's masks --------------------------------------------------------------------------------


def test_masks_keep_their_share_and_are_independent():
    positions = np.arange(400_000, dtype=np.uint32)
    masks = [
        keep_mask(mask_key(seed, model, name), positions, 0.3)
        for seed, model, name in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))
    ]
    spread = math.sqrt(0.3 * 0.7 / positions.size)
    for mask in masks:
        assert abs(mask.mean() - 0.3) < 5 * spread
        assert abs((mask[1:] & mask[:-1]).mean() - 0.09) < 5 * spread
    for a, b in itertools.combinations(masks, 2):
        assert abs((a & b).mean() - 0.09) < 5 * spread


def test_a_seed_draws_the_same_and_another_does_not(tiny, models):
    first, same, other = (
        merge(recipe_of("dare", 2, seed=seed), models[:3], tiny)["layers/attn/wo"].load()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).mean() > 0.3


# --- dtypes --------------------------------------------------------------------------------------


def test_bfloat16_goes_through_bits_as_through_the_library():
    patterns = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = patterns[np.isfinite(patterns.astype(np.float32))]
    assert widen(finite).tobytes() == finite.astype(np.float32).tobytes()
    numbers = np.random.default_rng(0).integers(0, 2**32, 10**5, np.uint32).view(np.float32)
    middles = (widen(finite).view(np.uint32) + np.uint32(0x8000)).view(np.float32)
    for given in (numbers[np.isfinite(numbers)], middles[np.isfinite(middles)], np.float32([3e38])):
        out = np.empty(given.size, ml_dtypes.bfloat16)
        narrow(given, out)
        assert out.tobytes() == given.astype(ml_dtypes.bfloat16).tobytes()


# --- on disk -------------------------------------------------------------------------------------


def test_checkpoints_merge_as_arrays_do(tmp_path, tiny, make_checkpoint):
    trees = [
        flatten_paths(make_checkpoint(tmp_path / f"m{seed}", tiny, seed, ml_dtypes.bfloat16))
        for seed in range(3)
    ]
    recipe = recipe_of("ties", 2)
    merge_models(recipe, [tmp_path / "m1", tmp_path / "m2"], tmp_path / "out", base=tmp_path / "m0")
    merged = merge(recipe, trees, tiny)
    for path, leaf in flatten_paths(restore_params(tmp_path / "out")).items():
        assert np.asarray(leaf).tobytes() == merged[path].load().tobytes(), path
