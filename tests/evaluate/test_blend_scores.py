"""Scoring between two models: the same numbers as of merged weights, in every dtype and place."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.corpus import catalogue, listings
from ellama_jax.evaluate import ecommerce, scorecard, scorer
from ellama_jax.evaluate.scorecard import Scoring
from ellama_jax.merge import blend
from ellama_jax.merge.verb import merge_checkpoints
from ellama_jax.model.llama import count_params
from ellama_jax.weights.alphas import Alphas, parse_alphas_by_part
from ellama_jax.weights.checkpoint import find_checkpoint, restore_params, write_checkpoint
from ellama_jax.weights.export import export_checkpoint

RECORDS = list(catalogue.generate_listings(0, 12))
ITEMS = ecommerce.build_items(RECORDS, seed=0, items_per_task=2, languages=["en"])
TEXTS = [listings.listing_to_text_record(record, seed=0) for record in RECORDS[:4]]
UNEVEN = parse_alphas_by_part("0.2,0.9", ["embed=0", "norms=0.5"])


@pytest.fixture(scope="module")
def sources(checkpoints):
    return blend.find_source(checkpoints["base"]), blend.find_source(checkpoints["adapted"])


@pytest.fixture(scope="module")
def pair(sources):
    return blend.load_pair(*sources)


def log_probs(params, source):
    requests = scorecard.encode_items(source.tokenizer, ITEMS, source.tokenizer.bos_id)
    found = scorer.score(params, source.config, requests)
    return np.concatenate([result.log_probs for result in found])


def cast(root, out, dtype):
    """Writes a copy of a checkpoint in another dtype."""
    info = find_checkpoint(root)
    params = restore_params(root, dtype=dtype)
    write_checkpoint(
        out, params, config=info.config, meta=info.meta, tokenizer_dir=info.tokenizer_dir
    )
    return out


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.5])
def test_log_likelihoods_are_those_of_the_merged_checkpoint(
    checkpoints, sources, pair, tmp_path, alpha
):
    out = tmp_path / "merged"
    merge_checkpoints(checkpoints["base"], checkpoints["adapted"], alpha, out)
    merged = log_probs(restore_params(out), sources[0])
    blended = log_probs(blend.blend_params(*pair, Alphas((alpha,)), sources[0].config), sources[0])
    np.testing.assert_allclose(blended, merged, rtol=1e-5)
    if alpha:
        assert np.abs(blended - log_probs(pair[0], sources[0])).max() > 0.1


def test_a_scorecard_of_a_blend_says_which_one_it_is(sources, pair):
    card = blend.score_blend(
        *pair, UNEVEN, sources[0].config, sources[0].tokenizer, ITEMS, TEXTS, model="uneven"
    )
    assert card["model"] == "uneven" and card["made_with"]["alphas"] == UNEVEN.to_dict()
    assert {row["metric"] for row in card["results"]} >= {"accuracy", "bits_per_byte"}


def test_on_a_mesh_a_blend_scores_the_same(sources, pair):
    mesh = make_mesh({"data": 1, "fsdp": 2, "context": 1, "tensor": 1}, jax.devices()[:2])
    divided = blend.load_pair(*sources, mesh=mesh)
    tokenizer = sources[0].tokenizer
    cards = [
        blend.score_blend(*models, UNEVEN, sources[0].config, tokenizer, [], TEXTS, model="m",
                          scoring=Scoring(mesh=place))
        for models, place in ((pair, None), (divided, mesh))
    ]  # fmt: skip
    bits = [row["bits"] for card in cards for row in card["results"]]
    half = len(bits) // 2
    for alone, on_mesh in zip(bits[:half], bits[half:], strict=True):
        np.testing.assert_allclose(on_mesh, alone, rtol=1e-5)
    assert len(divided[0]["embed"]["table"].sharding.device_set) == 2


def test_two_dtypes_meet_in_the_wider_as_in_a_merge(checkpoints, tmp_path):
    narrow = cast(checkpoints["base"], tmp_path / "narrow", jnp.bfloat16)
    sources = blend.find_source(narrow), blend.find_source(checkpoints["adapted"])
    pair = blend.load_pair(*sources)
    assert {leaf.dtype for leaf in jax.tree.leaves(pair)} == {jnp.dtype("float32")}
    merge_checkpoints(narrow, checkpoints["adapted"], 0.5, tmp_path / "merged")
    merged = log_probs(restore_params(tmp_path / "merged"), sources[0])
    blended = log_probs(blend.blend_params(*pair, Alphas((0.5,)), sources[0].config), sources[0])
    np.testing.assert_allclose(blended, merged, rtol=1e-5)


def test_another_adapted_model_is_loaded_beside_the_same_base(sources, pair):
    again = blend.replace_adapted(pair[0], sources[0])
    assert again[0]["embed"]["table"] is pair[0]["embed"]["table"]
    flat = flatten_paths(again[1])
    for path, leaf in flatten_paths(pair[0]).items():
        np.testing.assert_array_equal(flat[path], leaf)


def test_a_hugging_face_directory_can_be_one_of_the_two(checkpoints, sources, pair, tmp_path):
    hf = tmp_path / "hf"
    export_checkpoint(checkpoints["adapted"], hf, allow_unverified=True)
    source = blend.find_source(hf)
    blend.check_fit(sources[0], source)
    assert source.step is None
    mixed = blend.load_pair(sources[0], source)
    for ours, theirs in zip(jax.tree.leaves(mixed), jax.tree.leaves(pair), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_weights_have_another_identity_and_the_same_written_anew_have_not(
    checkpoints, tmp_path
):
    source = blend.find_source(checkpoints["base"])
    again = blend.find_source(cast(checkpoints["base"], tmp_path / "again", jnp.float32))
    assert source.identity == again.identity
    assert source.identity != blend.find_source(checkpoints["adapted"]).identity
    shutil.copytree(checkpoints["base"], tmp_path / "copy")
    assert blend.find_source(tmp_path / "copy").identity == source.identity


def test_a_model_with_a_number_that_is_none_is_refused(checkpoints, sources, tmp_path):
    info = find_checkpoint(checkpoints["adapted"])
    params = restore_params(info.path)
    params["layers"]["mlp"]["w_up"] = params["layers"]["mlp"]["w_up"].at[1, 2, 3].set(jnp.nan)
    write_checkpoint(tmp_path / "nan", params, config=info.config, meta=info.meta,
                     tokenizer_dir=info.tokenizer_dir)  # fmt: skip
    words = "nan/0: every parameter must be finite, got NaN or infinity in layers/mlp/w_up"
    with pytest.raises(ValueError, match=words):
        blend.load_pair(sources[0], blend.find_source(tmp_path / "nan"))


def test_the_room_that_a_model_takes_is_that_of_its_leaves(sources):
    assert blend.stored_bytes(sources[0]) == 4 * count_params(sources[0].config)
