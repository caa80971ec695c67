"""Two sets of weights compared: the numbers are NumPy's, and a change is found where it was made."""

import dataclasses
import json
import math

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.report.heat_map import draw_heat_map
from ellama_jax.tokens.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.weights import difference as module
from ellama_jax.weights.checkpoint import make_meta, open_leaves, write_checkpoint
from ellama_jax.weights.difference import (
    Difference,
    compare,
    compare_leaves,
    constants_that_differ,
    difference,
)
from ellama_jax.weights.difference_text import describe_difference, difference_to_data
from ellama_jax.weights.importer import main_import
from ellama_jax.weights.lazy import LazyArray, from_array


def reference(a, b) -> dict:
    """What NumPy says of two whole arrays in float64."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = np.linalg.norm(a), np.linalg.norm(b)
    return {
        "norm_a": norms[0],
        "norm_b": norms[1],
        "norm_difference": np.linalg.norm(b - a),
        "relative": np.linalg.norm(b - a) / norms[0],
        "cosine": np.dot(a, b) / (norms[0] * norms[1]),
        "max_abs": np.max(np.abs(b - a)),
        "changed_frac": np.mean(a != b),
    }


def assert_equals_numpy(found: Difference, a, b):
    for name, expected in reference(a, b).items():
        assert math.isclose(getattr(found, name), expected, rel_tol=1e-12), name


@pytest.fixture
def save(tmp_path, tiny, tokenizer_dir):
    """Returns `save(name, params)`, which writes a checkpoint and returns its root."""

    def save(name, params, config=tiny, tokenizer=tokenizer_dir):
        fingerprint = load_tokenizer(tokenizer).fingerprint
        provenance = {"kind": "import", "format": "huggingface", "sources": []}
        meta = make_meta(config, tokenizer_fingerprint=fingerprint, provenance=provenance)
        write_checkpoint(tmp_path / name, params, config=config, meta=meta, tokenizer_dir=tokenizer)
        return tmp_path / name

    return save


@pytest.fixture
def base(save, tiny, draw_params):
    return save("base", draw_params(tiny))


@pytest.fixture
def change(save, tiny, draw_params):
    """Returns `change(name, **layers)`: the base with `path=function(array)` applied, saved."""

    def change(edits, name="other", dtype=np.float32):
        flat = flatten_paths(draw_params(tiny))
        for path, edit in edits.items():
            flat[path] = edit(flat[path].copy())
        return save(name, unflatten_paths({p: leaf.astype(dtype) for p, leaf in flat.items()}))

    return change


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (3, 7, 11), (40, 1000)])
def test_norms_cosine_and_change_equal_numpy_s(shape, dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=shape).astype(dtype)
    b = np.where(rng.random(shape) < 0.5, a, a + rng.normal(size=shape).astype(dtype) / 8)
    b = b.astype(dtype)
    b.flat[0] += dtype(1)  # however small the array, something changed
    assert_equals_numpy(difference(a, b), a, b)


def test_the_angle_between_a_change_and_what_was_there_equals_numpys():
    rng = np.random.default_rng(5)
    a = rng.normal(size=(40, 9)).astype(np.float32)
    b = (0.9 * a + 0.1 * rng.normal(size=a.shape)).astype(np.float32)
    change, before = (b.astype(np.float64) - a).ravel(), a.astype(np.float64).ravel()
    expected = change @ before / np.linalg.norm(change) / np.linalg.norm(before)
    assert difference(a, b).cosine_with_a == pytest.approx(expected, rel=1e-9)
    assert difference(a, 2 * a).cosine_with_a == pytest.approx(1)
    assert difference(a, a / 2).cosine_with_a == pytest.approx(-1)
    assert math.isnan(difference(a, a).cosine_with_a)


def test_a_layer_is_all_its_parameters_together(base, change):
    found = compare(base, change({"layers/mlp/w_up": lambda x: 1.5 * x}))
    assert len(found.layers) == found.a.config.num_layers
    for layer, whole in enumerate(found.layers):
        parts = [found.parts[path][layer] for path in found.stacked]
        assert whole.dd == pytest.approx(sum(part.dd for part in parts))
        assert whole.size == sum(part.size for part in parts)
        assert whole.dd == pytest.approx(found.parts["layers/mlp/w_up"][layer].dd) and whole.dd > 0
    told = difference_to_data(found)["layers"]
    assert [row["norm_difference"] for row in told] == [p.norm_difference for p in found.layers]


def test_sums_do_not_depend_on_how_the_arrays_are_cut(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 6, 50, 40)).astype(np.float32)
    monkeypatch.setattr(module, "PIECE_BYTES", 4096)
    for grids in ((None, None), ((1, 50, 40), (6, 7, 11)), ((4, 13, 40), (2, 50, 3))):
        sides = [
            {"layers/x": LazyArray(side.shape, side.dtype, lambda box, s=side: s[box], grid)}
            for side, grid in zip((a, b), grids, strict=True)
        ]
        parts = compare_leaves(*sides)["layers/x"]
        assert len(parts) == 6
        for layer, part in enumerate(parts):
            assert part.size == 2000
            assert_equals_numpy(part, a[layer], b[layer])


def test_pieces_stay_small_whatever_the_chunks_of_both_sides(monkeypatch):
    """Chunks by layer on one side and across all layers on the other must not add up to it all."""
    sizes = []

    def lazy(grid):
        def read(box):
            shape = tuple(part.stop - part.start for part in box)
            sizes.append(math.prod(shape) * 4)
            return np.zeros(shape, np.float32)

        return LazyArray((32, 64, 64), np.dtype(np.float32), read, grid)

    monkeypatch.setattr(module, "PIECE_BYTES", 2**14)
    compare_leaves({"layers/x": lazy((1, 64, 64))}, {"layers/x": lazy((32, 8, 8))})
    assert max(sizes) <= 2 * 2**14 < 32 * 64 * 64 * 4


def test_checkpoints_of_two_dtypes_are_compared_as_numbers(base, change):
    other = change({}, dtype=ml_dtypes.bfloat16)
    found = compare(base, other)
    for path, leaf in open_leaves(base).items():
        a = leaf.load()
        assert_equals_numpy(found.leaves[path], a, a.astype(ml_dtypes.bfloat16))
    assert found.total.size == sum(leaf.size for leaf in open_leaves(base).values())
    assert "(float32)" in describe_difference(found) and "(bfloat16)" in describe_difference(found)


def test_a_checkpoint_does_not_differ_from_itself(base):
    found = compare(base, base)
    assert found.total.changed == 0 and found.total.relative == 0 and found.total.cosine == 1
    assert describe_difference(found).endswith(
        "Nothing differs: every element of B has the value it has in A."
    )


def test_a_known_change_is_found_where_it_is(base, change):
    def scale_layer_1(wq):
        wq[1] *= 1.5
        return wq

    def swap_layers(wo):
        return wo[::-1]

    def one_element(table):
        table[3, 5] += 0.25
        return table

    edits = {"layers/attn/wq": scale_layer_1, "layers/attn/wo": swap_layers,
             "embed/table": one_element}  # fmt: skip
    found = compare(base, change(edits))
    still, scaled = found.parts["layers/attn/wq"]
    assert still.changed == 0
    assert math.isclose(scaled.relative, 0.5, rel_tol=1e-6) and math.isclose(scaled.cosine, 1.0)
    assert math.isclose(scaled.norm_b, 1.5 * scaled.norm_a, rel_tol=1e-6)
    first, second = found.parts["layers/attn/wo"]
    assert (first.norm_a, first.norm_b) == (second.norm_b, second.norm_a)
    assert first.cosine == second.cosine < 0.1  # random matrices have nothing in common
    table = found.leaves["embed/table"]
    assert table.changed == 1 and math.isclose(table.max_abs, 0.25, rel_tol=1e-6)
    moved = {path for path, part in found.leaves.items() if part.changed}
    assert moved == set(edits)


def test_the_closing_words_name_what_moved_most_and_least(base, change):
    def everything(leaf):
        return leaf * np.float32(1.01)

    def much(leaf):
        leaf[1] *= 2
        return leaf

    paths = open_leaves(base)
    edits = {path: everything for path in paths} | {"layers/mlp/w_up": lambda x: much(x * 1.01)}
    edits["final_norm/scale"] = lambda x: x * np.float32(1.001)
    said = describe_difference(compare(base, change(edits)))
    assert "Moved most: layer 1 of layers/mlp/w_up, by 102%." in said
    assert "Moved least: final_norm/scale, by 0.100%." in said


def test_what_did_not_move_is_counted(base, change):
    said = describe_difference(compare(base, change({"final_norm/scale": lambda x: x + 1})))
    assert "Moved most: final_norm/scale" in said
    assert "Not moved at all: 19 of 20 tensors, the first of them embed/table." in said


def test_nan_and_infinity_are_named_and_stay_out_of_the_sums(base, change, tiny, draw_params):
    def poison(table):
        table[0, 0], table[0, 1], table[2, 2] = np.nan, np.inf, 7
        return table

    found = compare(base, change({"embed/table": poison}))
    part, a = found.leaves["embed/table"], draw_params(tiny)["embed"]["table"]
    assert (part.nonfinite_a, part.nonfinite_b, part.changed) == (0, 2, 3)
    left = np.ones(a.shape, bool)
    left[0, :2] = False
    assert math.isclose(part.norm_a, np.linalg.norm(a[left].astype(np.float64)), rel_tol=1e-12)
    assert math.isclose(part.norm_difference, abs(7 - float(a[2, 2])), rel_tol=1e-12)
    said = describe_difference(found)
    assert "NOT FINITE: embed/table has 0 NaN or infinite elements in A and 2 in B" in said
    json.dumps(difference_to_data(found), allow_nan=False)


def test_nan_in_both_places_is_no_change():
    a = np.float32([np.nan, np.inf, 1, np.inf])
    b = np.float32([np.nan, np.inf, 1, -np.inf])
    found = difference(a, b)
    assert (found.nonfinite_a, found.nonfinite_b, found.changed) == (3, 3, 1)


def test_a_zero_array_has_no_relative_change_and_no_cosine():
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert difference(zero, zero).relative == 0
    assert difference(zero, one).relative == math.inf and math.isnan(difference(zero, one).cosine)
    assert difference(one, zero).relative == 1


def test_other_shapes_are_refused_and_every_leaf_is_named(base, save, tiny, draw_params):
    config = dataclasses.replace(tiny, name="wide", mlp_dim=64)
    other = save("wide", draw_params(config), config)
    with pytest.raises(ValueError, match="3 leaves differ.*Was mlp_dim changed") as error:
        compare(base, other)
    for name in ("w_down", "w_gate", "w_up"):
        assert f"layers/mlp/{name} is " in str(error.value)


def test_an_untied_head_is_a_leaf_too_many(base, save, untied, draw_params):
    other = save("untied", draw_params(untied), untied)
    with pytest.raises(ValueError, match="lm_head/kernel is not expected.*tied_embeddings"):
        compare(base, other)


def test_another_tokenizer_and_other_constants_are_said(base, save, tiny, draw_params, tmp_path):
    bpe = train_byte_bpe(["other words entirely"], 290)
    ends = map(bpe.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    save_tokenizer(tmp_path / "tokenizer", bpe, *ends)
    config = dataclasses.replace(tiny, rope_theta=77.0)
    other = save("other", draw_params(tiny), config, tmp_path / "tokenizer")
    found = compare(base, other)
    said = describe_difference(found)
    assert "THE TOKENIZERS DIFFER" in said
    assert f"rope_theta is {tiny.rope_theta} and 77.0" in said
    assert not difference_to_data(found)["same_tokenizer"]
    assert constants_that_differ(tiny, tiny) == []


def test_a_hugging_face_directory_is_compared_with_its_import(base, tmp_path, capsys):
    from ellama_jax.weights.export import main_export

    main_export([str(base), str(tmp_path / "hf")])
    main_import([str(tmp_path / "hf"), str(tmp_path / "again")])
    for found in (compare(tmp_path / "hf", tmp_path / "again"), compare(base, tmp_path / "hf")):
        assert found.total.changed == 0 and found.a.fingerprint == found.b.fingerprint


def test_a_damaged_side_is_an_error_and_ends_the_work(base, change):
    other = change({})
    largest = max(
        (file for file in (other / "0" / "params").rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged or truncated"):
        compare(base, other)


def test_the_layer_table_has_a_line_a_layer_in_the_order_of_computation(base, change):
    def layer_0(leaf):
        leaf[0] *= 1.25
        return leaf

    found = compare(base, change({"layers/mlp/w_gate": layer_0}))
    lines = describe_difference(found, by_layer=True).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    names = ["attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w_gate", "w_up", "w_down"]
    assert lines[head].split() == ["layer", *names]
    zeros = ["0%"] * 6
    assert lines[head + 1].split() == ["0", *zeros, "25.0%", "0%", "0%"]
    assert lines[head + 2].split() == ["1", *zeros, "0%", "0%", "0%"]
    assert lines[head + 3].split()[0] == "all"
    assert max(map(len, lines)) <= 100 or str(base) in max(lines, key=len)


def test_data_hold_every_leaf_and_every_layer(base, change):
    found = compare(base, change({"final_norm/scale": lambda x: -x}))
    data = json.loads(json.dumps(difference_to_data(found), allow_nan=False))
    assert data["leaves"].keys() == open_leaves(base).keys()
    assert data["leaves"]["final_norm/scale"]["cosine"] == -1
    assert data["leaves"]["final_norm/scale"]["relative_change"] == 2
    assert [len(leaf.get("layers", [])) for leaf in data["leaves"].values()].count(2) == 9
    assert data["total"]["size"] == found.total.size


def test_the_heat_map_is_brightest_where_the_change_is(base, change, tmp_path):
    """The drawn picture is read back: the yellow cell is layer 0 of the MLP's gate."""
    from matplotlib.image import imread

    def layer_0(leaf):
        leaf[0] *= 1.25
        return leaf

    found = compare(base, change({"layers/mlp/w_gate": layer_0}))
    draw_heat_map(found, tmp_path / "moved.png", "png")
    pixels = imread(tmp_path / "moved.png")[..., :3]
    assert pixels.shape[0] >= 500 and pixels.shape[1] >= 1200
    yellow = np.abs(pixels - np.array([0.993, 0.906, 0.144])).max(-1) < 0.02
    # The colour bar ends in yellow too; the cells lie left of it.
    rows, columns = np.nonzero(yellow[:, : int(0.75 * pixels.shape[1])])
    assert rows.size > 5000
    assert rows.max() < pixels.shape[0] / 2 < columns.mean()


def test_leaves_in_memory_can_be_compared_too():
    a = {"w": from_array(np.float32([3, 4]))}
    b = {"w": from_array(np.float32([3, 5]))}
    assert compare_leaves(a, b)["w"][0].norm_difference == 1
