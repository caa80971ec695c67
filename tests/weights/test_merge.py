"""Merging against the formula in NumPy, and what may not be merged."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from ellama_jax.core.tree import flatten_paths
from ellama_jax.merge.verb import main_merge, merge_checkpoints, merge_linear
from ellama_jax.weights.checkpoint import find_checkpoint, restore_params


def assert_same_bits(got, expected):
    got, expected = flatten_paths(got), flatten_paths(expected)
    assert got.keys() == expected.keys()
    for path, leaf in expected.items():
        found, leaf = np.asarray(got[path]), np.asarray(leaf)
        assert (found.dtype, found.tobytes()) == (leaf.dtype, leaf.tobytes()), path


@pytest.fixture
def trees(tiny, draw_params):
    return draw_params(tiny, seed=1), draw_params(tiny, seed=2)


@pytest.fixture
def roots(tmp_path, tiny, make_checkpoint):
    """Returns (base in bfloat16, adapted in float32): a model before and after training."""
    make_checkpoint(tmp_path / "base", tiny, seed=1, dtype=ml_dtypes.bfloat16)
    make_checkpoint(tmp_path / "adapted", tiny, seed=2)
    return tmp_path / "base", tmp_path / "adapted"


# --- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.25, 0.3, 0.9, -0.5, 1.5])
def test_a_merge_is_the_weighted_sum(trees, alpha):
    merged = flatten_paths(merge_linear(*trees, alpha))
    base, adapted = map(flatten_paths, trees)
    for path, leaf in merged.items():
        expected = (1 - alpha) * base[path].astype(np.float64) + alpha * adapted[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_merge_by_hand():
    base = {"a": np.float32([0, 10]), "b": {"c": np.float32([[4]])}}
    adapted = {"a": np.float32([10, 0]), "b": {"c": np.float32([[8]])}}
    merged = merge_linear(base, adapted, 0.25)
    assert merged["a"].tolist() == [2.5, 7.5] and merged["b"]["c"].tolist() == [[5.0]]


@pytest.mark.parametrize(("alpha", "which"), [(0.0, 0), (1.0, 1), (0, 0), (1, 1)])
def test_the_ends_are_bitwise_the_inputs(trees, alpha, which):
    for tree in trees:
        tree["final_norm"]["scale"][:4] = [-0.0, np.inf, np.nan, 1e-45]
    assert_same_bits(merge_linear(*trees, alpha), trees[which])


def test_bfloat16_is_summed_in_float32_and_rounded_once():
    base = {"w": np.array([1.0, 256.0], ml_dtypes.bfloat16)}
    adapted = {"w": np.array([1.0078125, 258.0], ml_dtypes.bfloat16)}
    merged = merge_linear(base, adapted, 0.6)["w"]
    assert merged.dtype == ml_dtypes.bfloat16
    exact = np.float32(0.4) * base["w"].astype(np.float32)
    exact += np.float32(0.6) * adapted["w"].astype(np.float32)
    assert merged.tolist() == exact.astype(ml_dtypes.bfloat16).tolist() == [1.0078125, 258.0]


@pytest.mark.parametrize(
    ("ours", "theirs", "asked", "expected"),
    [
        ("float32", "float32", None, "float32"),
        ("bfloat16", "bfloat16", None, "bfloat16"),
        ("bfloat16", "float32", None, "float32"),
        ("bfloat16", "float16", None, "float32"),
        ("float32", "float32", "bfloat16", "bfloat16"),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_result_has_the_asked_or_the_wider_dtype(ours, theirs, asked, expected, alpha):
    names = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float16": np.float16}
    base, adapted = {"w": np.ones(2, names[ours])}, {"w": np.ones(2, names[theirs])}
    dtype = names[asked] if asked else None
    assert merge_linear(base, adapted, alpha, dtype=dtype)["w"].dtype == names[expected]


def test_inputs_are_not_changed(trees):
    before = jax.tree.map(np.copy, trees)
    merge_linear(*trees, 0.3)
    assert_same_bits(trees[0], before[0])
    assert_same_bits(trees[1], before[1])


def test_jax_arrays_can_be_merged(trees):
    on_device = [jax.tree.map(jax.numpy.asarray, tree) for tree in trees]
    assert_same_bits(merge_linear(*on_device, 0.3), merge_linear(*trees, 0.3))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), float("-inf")])
def test_an_alpha_that_is_no_number_is_refused(trees, alpha):
    with pytest.raises(ValueError, match="alpha: must be a finite number, got -?(nan|inf)"):
        merge_linear(*trees, alpha)


def test_extrapolation_is_done_and_said(trees, caplog):
    merge_linear(*trees, 1.5)
    assert "alpha: 1.5 is outside [0, 1]" in caplog.text
    caplog.clear()
    merge_linear(*trees, 1.0)
    assert caplog.text == ""


def test_trees_that_differ_are_named():
    base = {"a": np.zeros((2, 3)), "b": np.zeros(1), "c": np.zeros(1)}
    adapted = {"a": np.zeros((2, 4)), "b": np.zeros(1), "d": np.zeros(1)}
    message = (
        r"merge: 3 leaves differ: a is \[2, 3\] in base, \[2, 4\] in adapted; "
        "c is missing in adapted; d is missing in base."
    )
    with pytest.raises(ValueError, match=message):
        merge_linear(base, adapted, 0.5)


# --- checkpoints ---------------------------------------------------------------------------------


def test_two_checkpoints_become_a_third(roots, tmp_path):
    info = merge_checkpoints(*roots, 0.3, tmp_path / "merged")
    expected = merge_linear(restore_params(roots[0]), restore_params(roots[1]), 0.3)
    assert_same_bits(restore_params(tmp_path / "merged"), expected)
    assert info.step == 0 and info.config == find_checkpoint(roots[0]).config
    assert (info.tokenizer_dir / "tokenizer.json").read_bytes() == (
        roots[0] / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_a_merge_in_bfloat16_is_half_as_large(roots, tmp_path):
    merge_checkpoints(*roots, 0.3, tmp_path / "merged", dtype=ml_dtypes.bfloat16)
    merged = restore_params(tmp_path / "merged")
    expected = merge_linear(*map(restore_params, roots), 0.3, dtype=ml_dtypes.bfloat16)
    assert_same_bits(merged, expected)


def test_provenance_names_both_inputs_by_content(roots, tmp_path):
    made = merge_checkpoints(*roots, 0.3, tmp_path / "merged").meta["provenance"]
    assert (made["kind"], made["method"], made["alpha"]) == ("merge", "linear", 0.3)
    base, adapted = made["sources"]
    assert (base["role"], base["name"], base["step"]) == ("base", "base", 0)
    assert base["provenance"]["sources"][0]["name"] == "seed 1"
    assert len(base["weights_hash"]) == 64 and base["weights_hash"] != adapted["weights_hash"]
    # The same content has the same hash wherever it lies.
    shutil.move(roots[0], tmp_path / "moved")
    again = merge_checkpoints(tmp_path / "moved", roots[1], 0.7, tmp_path / "again")
    assert again.meta["provenance"]["sources"][0]["weights_hash"] == base["weights_hash"]


def test_a_tokenizer_changed_on_disk_is_refused(roots, tmp_path):
    path = roots[0] / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": None}))
    with pytest.raises(ValueError, match="was the tokenizer changed"):
        merge_checkpoints(*roots, 0.3, tmp_path / "merged")


def test_models_of_two_sizes_are_refused(roots, tmp_path, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "wide", dataclasses.replace(tiny, mlp_dim=256))
    with pytest.raises(ValueError, match=r"3 leaves differ: layers/mlp/w_down is \[2, 192, 64\]"):
        merge_checkpoints(roots[0], tmp_path / "wide", 0.3, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_models_of_two_rope_bases_are_refused(roots, tmp_path, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "far", dataclasses.replace(tiny, rope_theta=5e5))
    with pytest.raises(ValueError, match="constants, but rope_theta is 10000.0 and 500000.0"):
        merge_checkpoints(roots[0], tmp_path / "far", 0.3, tmp_path / "merged")


def test_an_unknown_method_is_named_with_the_nearest(roots, tmp_path):
    with pytest.raises(ValueError, match="must be one of linear, .* got tie; did you mean ties"):
        merge_checkpoints(*roots, 0.3, tmp_path / "merged", method="tie")


def test_an_occupied_place_is_refused_before_reading(roots, monkeypatch):
    monkeypatch.setattr("ellama_jax.merge.verb.merge_arrays", None)
    with pytest.raises(ValueError, match="base: must not exist yet; pass --overwrite"):
        merge_checkpoints(*roots, 0.3, roots[0])


def test_a_missing_input_is_named(roots, tmp_path):
    with pytest.raises(ValueError, match="checkpoint .*nowhere: must be a directory, got nothing"):
        merge_checkpoints(roots[0], tmp_path / "nowhere", 0.3, tmp_path / "merged")


def test_a_root_can_be_merged_into_its_own_place(roots):
    expected = merge_linear(*map(restore_params, roots), 0.5)
    merge_checkpoints(*roots, 0.5, roots[1], overwrite=True)
    assert_same_bits(restore_params(roots[1]), expected)


# --- the verb ------------------------------------------------------------------------------------


def test_the_verb_merges_and_says_so(roots, tmp_path, capsys):
    argv = ["--base", str(roots[0]), "--adapted", str(roots[1]), "--alpha", "0.3"]
    main_merge([*argv, "--out", str(tmp_path / "merged")])
    said = capsys.readouterr().out
    assert f"Merged 0.7 x {roots[0]} (step 0) + 0.3 x {roots[1]} (step 0) into" in said
    assert find_checkpoint(tmp_path / "merged").meta["provenance"]["alpha"] == 0.3


def test_the_verb_shows_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        main_merge(["--help"])
    assert exit_.value.code == 0
    assert "ellama merge --base" in capsys.readouterr().out
