"""What may be merged with what, in which form it lies, and what is refused in one line."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from ellama_jax.cli import main
from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.merge.average import average_checkpoints
from ellama_jax.merge.stream import Recipe
from ellama_jax.merge.verb import load_merged, main_merge, merge_checkpoints, merge_models
from ellama_jax.tokens.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.weights import layout
from ellama_jax.weights.alphas import Alphas
from ellama_jax.weights.checkpoint import (
    find_checkpoint,
    make_meta,
    restore_params,
    write_checkpoint,
)
from ellama_jax.weights.export import export_checkpoint
from ellama_jax.weights.huggingface import load_params, read_config
from ellama_jax.weights.importer import import_weights
from ellama_jax.weights.origin import describe_provenance

LINEAR = Recipe("linear", (Alphas((0.3,)),))
TIES = Recipe("ties", (Alphas((1.0,)), Alphas((0.5,))), density=0.3)


def load(path):
    found = restore_params(path) if (path / "0").is_dir() else load_params(path, read_config(path))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(found).items()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for path, leaf in expected.items():
        assert (got[path].dtype, got[path].tobytes()) == (leaf.dtype, leaf.tobytes()), path


@pytest.fixture
def roots(tmp_path, untied, make_checkpoint):
    """Returns three checkpoints in bfloat16; each is a Hugging Face directory at NAME-hf too."""
    made = []
    for seed, name in enumerate(("base", "one", "two")):
        make_checkpoint(tmp_path / name, untied, seed, ml_dtypes.bfloat16)
        export_checkpoint(tmp_path / name, tmp_path / f"{name}-hf", shard_bytes=100_000)
        made.append(tmp_path / name)
    return made


def foreign(path):
    return path.with_name(f"{path.name}-hf")


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [LINEAR, TIES], ids=lambda recipe: recipe.method)
def test_it_does_not_matter_in_which_form_a_model_lies(tmp_path, roots, recipe):
    count = len(recipe.weights)
    base, *models = roots[: count + 1]
    ours = merge_models(recipe, models, tmp_path / "a", base=base)
    mixed = merge_models(recipe, [foreign(models[0]), *models[1:]], tmp_path / "b", base=base)
    theirs = merge_models(
        recipe, [foreign(m) for m in models], tmp_path / "c", base=foreign(base),
        format="huggingface",
    )  # fmt: skip
    back = merge_models(recipe, models, tmp_path / "d", base=base, format="huggingface")
    for name in "bcd":
        assert_same(load(tmp_path / name), load(tmp_path / "a"))
    hashes = [
        [source["weights_hash"] for source in info.meta["provenance"]["sources"]]
        for info in (ours, mixed, theirs, back)
    ]
    assert hashes[0] == hashes[1] == hashes[2] == hashes[3] and len(set(hashes[0])) == count + 1
    assert theirs.path == tmp_path / "c" and (tmp_path / "c" / "config.json").is_file()


def test_the_hash_tells_one_bit_and_a_swap(tmp_path, roots, untied, draw_params, tokenizer_dir):
    def hash_of(change, name):
        params = draw_params(untied, 0, ml_dtypes.bfloat16)
        change(params)
        fingerprint = load_tokenizer(tokenizer_dir).fingerprint
        meta = make_meta(untied, tokenizer_fingerprint=fingerprint, provenance={"kind": "import"})
        args = {"config": untied, "meta": meta, "tokenizer_dir": tokenizer_dir}
        write_checkpoint(tmp_path / name, params, **args)
        made = merge_checkpoints(tmp_path / name, roots[1], 0.5, tmp_path / f"{name}-out")
        return made.meta["provenance"]["sources"][0]["weights_hash"]

    def flip(params):
        params["layers"]["mlp"]["w_up"].view(np.uint16)[1, 3, 5] ^= 1

    def swap(params):
        leaf = params["layers"]["attn"]["wq"]
        leaf[0, [3, 4]] = leaf[0, [4, 3]]

    def swap_outputs(params):
        leaf = params["layers"]["attn"]["wq"]
        leaf[0, :, 0, [3, 4]] = leaf[0, :, 0, [4, 3]]

    changes = (lambda _: None, flip, swap, swap_outputs)
    assert len({hash_of(change, f"m{i}") for i, change in enumerate(changes)}) == 4


def test_the_card_of_a_direct_merge_says_what_was_merged(tmp_path, roots):
    base, one, two = roots
    merge_models(TIES, [one, foreign(two)], tmp_path / "hf", base=base, format="huggingface",
                 dtype=np.float16)  # fmt: skip
    card = (tmp_path / "hf" / "README.md").read_text()
    for words in (
        "# Merged Llama model: untied", "Merged by ellama_jax;", "merged, method ties, density 0.3",
        "dtype float16", "base, base/0, weights hash ", "weight 1 of model 1, one/0,",
        "weight 0.5 of model 2, two-hf, weights hash", "imported from a Hugging Face directory",
    ):  # fmt: skip
        assert words in card, words
    assert {leaf.dtype for leaf in load(tmp_path / "hf").values()} == {np.dtype(np.float16)}


def test_a_mesh_gets_what_the_file_would_have(tmp_path, roots):
    base, one, two = roots
    mesh = make_mesh({"data": 2, "fsdp": 2, "context": 1, "tensor": 2})
    for number, (recipe, models) in enumerate(((LINEAR, [foreign(one)]), (TIES, [one, two]))):
        merge_models(recipe, models, tmp_path / str(number), base=base)
        placed = flatten_paths(load_merged(recipe, models, base=base, mesh=mesh))
        assert len(placed["layers/mlp/w_up"].sharding.device_set) == 8
        assert_same(jax.tree.map(np.asarray, placed), load(tmp_path / str(number)))


def test_alphas_by_depth_are_in_the_record(tmp_path, roots):
    argv = ["--base", str(roots[0]), "--adapted", str(roots[1]), "--alpha", "0,1"]
    main_merge([*argv, "--alpha-of", "embed=0.5", "--out", str(tmp_path / "out")])
    info = find_checkpoint(tmp_path / "out")
    assert next(describe_provenance(info.meta["provenance"])) == (
        "merged, method linear, alpha 0,1 embed=0.5, dtype the widest of the inputs:"
    )
    merged, base, adapted = load(tmp_path / "out"), load(roots[0]), load(roots[1])
    for row, side in ((0, base), (-1, adapted)):
        got, expected = merged["layers/attn/wo"][row], side["layers/attn/wo"][row]
        assert got.tobytes() == expected.tobytes()


# --- vocabularies --------------------------------------------------------------------------------


@pytest.fixture
def wider(tmp_path, untied, draw_params):
    """A model whose tokenizer has the ids of the others and more, in an embedding of more rows."""
    text = ["The blue shoe costs 20 euros.", "Der blaue Schuh kostet 20 Euro.",
            "La chaussure bleue."]  # fmt: skip
    tokenizer = train_byte_bpe(text, 300)
    ids = [tokenizer.token_to_id(t) for t in ("<|begin_of_text|>", "<|end_of_text|>")]
    tokenizer.add_tokens([f"<extra {i}>" for i in range(5)])
    save_tokenizer(tmp_path / "wide-tokenizer", tokenizer, *ids)
    rows = untied.vocab_size + 8
    config = dataclasses.replace(untied, vocab_size=rows)
    fingerprint = load_tokenizer(tmp_path / "wide-tokenizer").fingerprint
    meta = make_meta(config, tokenizer_fingerprint=fingerprint, provenance={"kind": "import"})
    write_checkpoint(
        tmp_path / "wide", draw_params(config, 9, ml_dtypes.bfloat16), config=config, meta=meta,
        tokenizer_dir=tmp_path / "wide-tokenizer",
    )  # fmt: skip
    return tmp_path / "wide"


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_vocabularies_that_nest_share_their_rows(tmp_path, roots, wider, format, swapped):
    pair = (wider, roots[0]) if swapped else (roots[0], wider)
    info = merge_models(LINEAR, [pair[1]], tmp_path / "out", base=pair[0], format=format)
    merged, small, large = load(tmp_path / "out"), load(roots[0]), load(wider)
    shared = load_tokenizer(roots[0] / "tokenizer").vocab_size
    shares = np.float32([0.3, 0.7] if swapped else [0.7, 0.3])
    for path, rows in (("embed/table", lambda x: x), ("lm_head/kernel", lambda x: x.T)):
        got, ours, theirs = (rows(side[path]) for side in (merged, small, large))
        expected = shares[0] * ours[:shared].astype(np.float32)
        expected += shares[1] * theirs[:shared].astype(np.float32)
        np.testing.assert_allclose(got[:shared].astype(np.float32), expected, rtol=1e-2, atol=1e-2)
        assert got.shape == theirs.shape
        np.testing.assert_array_equal(got[shared:], theirs[shared:])
    assert info.meta["tokenizer_fingerprint"] == load_tokenizer(wider / "tokenizer").fingerprint
    said = "\n".join(describe_provenance(info.meta["provenance"]))
    assert f"the first {shared} rows of the vocabulary; the others, up to {len(got)}" in said


def test_tokenizers_of_other_ids_are_refused(tmp_path, roots, untied, draw_params):
    tokenizer = train_byte_bpe(["entirely different words, over and over: words words"], 280)
    ids = [tokenizer.token_to_id(t) for t in ("<|begin_of_text|>", "<|end_of_text|>")]
    save_tokenizer(tmp_path / "other-tokenizer", tokenizer, *ids)
    fingerprint = load_tokenizer(tmp_path / "other-tokenizer").fingerprint
    meta = make_meta(untied, tokenizer_fingerprint=fingerprint, provenance={"kind": "import"})
    write_checkpoint(tmp_path / "other", draw_params(untied), config=untied, meta=meta,
                     tokenizer_dir=tmp_path / "other-tokenizer")  # fmt: skip
    refuse(
        tmp_path, roots[0], [tmp_path / "other"], r"one tokenizer, or one whose ids .* got id \d"
    )


# --- bad input -----------------------------------------------------------------------------------


def refuse(tmp_path, base, models, message, recipe=LINEAR, **kwargs):
    """Fails unless the merge is refused in one line, in either format, and leaves nothing."""
    for format in ("orbax", "huggingface"):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ValueError, match=message) as refused:
            merge_models(recipe, models, tmp_path / "out", base=base, format=format, **kwargs)
        assert "\n" not in str(refused.value)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinite")])
def test_a_number_that_is_none_is_named_by_tensor_and_layer(
    tmp_path, roots, untied, draw_params, tokenizer_dir, value, kind
):
    params = draw_params(untied, 5)
    params["layers"]["mlp"]["w_down"][1, 7, 9] = value
    meta = find_checkpoint(roots[0]).meta
    write_checkpoint(tmp_path / "bad", params, config=untied, meta=meta,
                     tokenizer_dir=tokenizer_dir)  # fmt: skip
    message = (
        f"bad/0: .* finite, got one that is {kind} in .*layers.1.mlp.down_proj.weight .layer 1"
    )
    refuse(tmp_path, roots[0], [tmp_path / "bad"], message)
    # A method that measures first finds it in the first pass; an average as it is written.
    refuse(tmp_path, roots[0], [tmp_path / "bad"], message, Recipe("slerp", LINEAR.weights))
    with pytest.raises(ValueError, match="finite, got one that is"):
        average_checkpoints([roots[0], tmp_path / "bad"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_what_stops_a_merge_midway_is_said_once(
    tmp_path, roots, untied, draw_params, tokenizer_dir, format, capfd
):
    params = draw_params(untied, 5)
    params["final_norm"]["scale"][3] = np.nan
    meta = find_checkpoint(roots[0]).meta
    write_checkpoint(tmp_path / "bad", params, config=untied, meta=meta,
                     tokenizer_dir=tokenizer_dir)  # fmt: skip
    before = sorted(tmp_path.iterdir())
    argv = ["merge", "--base", str(roots[0]), "--adapted", str(tmp_path / "bad"), "--alpha", "0.5"]
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([*argv, "--format", format, "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said and said.count("every number must be finite") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_one_model_given_twice_is_refused(tmp_path, roots):
    (tmp_path / "link").symlink_to(roots[0])
    refuse(
        tmp_path, roots[0], [tmp_path / "link"], "models must differ, got .* as base and as adap"
    )
    refuse(tmp_path, foreign(roots[0]), [foreign(roots[0])], "models must differ")


def test_missing_leaves_are_named(tmp_path, roots):
    directory = foreign(roots[1])
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    file = index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    (directory / file).unlink()
    refuse(tmp_path, roots[0], [directory], f"must hold .*{file}.* got none")


def test_other_architectures_are_refused(tmp_path, roots, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "tied", tiny)
    refuse(tmp_path, roots[0], [tmp_path / "tied"], "lm_head/kernel is missing in adapted")
    config = foreign(roots[1]) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 1e6}))
    refuse(tmp_path, roots[0], [foreign(roots[1])], "constants, but rope_theta is .* and 1000000.0")


def test_a_damaged_input_is_named(tmp_path, roots):
    for path in (roots[1] / "0" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(tmp_path, roots[0], [roots[1]], "one/0: the checkpoint is damaged or truncated")
    file = next(foreign(roots[2]).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    refuse(tmp_path, roots[0], [foreign(roots[2])], "whole safetensors file, got a truncated")


def test_what_is_there_is_not_replaced_unasked(tmp_path, roots):
    refused = "must not exist yet; pass --overwrite"
    with pytest.raises(ValueError, match=refused):
        merge_models(LINEAR, [roots[1]], roots[2], base=roots[0])
    with pytest.raises(ValueError, match="only an earlier export is replaced"):
        merge_models(LINEAR, [roots[1]], roots[2], base=roots[0], format="huggingface",
                     overwrite=True)  # fmt: skip
    expected = load(merge_models(LINEAR, [roots[1]], tmp_path / "a", base=roots[0]).root)
    # Into the place of an input: it is read until the result stands.
    merge_models(LINEAR, [foreign(roots[1])], foreign(roots[1]), base=roots[0],
                 format="huggingface", overwrite=True)  # fmt: skip
    assert_same(load(foreign(roots[1])), expected)


def test_a_full_disk_is_refused_before_and_cleared_after(tmp_path, roots, monkeypatch, small_disk):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    with monkeypatch.context() as patched:
        patched.setattr(layout.shutil, "disk_usage", lambda path: usage)
        refuse(tmp_path, roots[0], [roots[1]], "out: the disk must have .* MiB free, got 1 MiB")
    disk = small_disk(300)
    monkeypatch.setattr(layout, "check_disk_space", lambda *_: None)
    for format in ("orbax", "huggingface"):
        with pytest.raises((ValueError, OSError), match="No space left|the disk must have room"):
            merge_models(LINEAR, [roots[1]], disk / "out", base=roots[0], format=format)
        assert list(disk.iterdir()) == []


ONE = Alphas((1.0,))


@pytest.mark.parametrize(
    ("recipe", "count", "base", "message"),
    [
        (Recipe("linear", (Alphas((1.2,)),)), 1, True, "alpha: .* got 1.2; pass --extrapolate"),
        (Recipe("linear", (Alphas((0.5,), (("layers.9", (1.0,)),)),)), 1, True, "layers 0 to 1"),
        (Recipe("linear", (ONE, Alphas((-1.0,)))), 2, False, "weight of model 2: .* got -1;"),
        (Recipe("linear", (Alphas((0.0,)),) * 2), 2, False, "weights: must not sum to 0"),
        (Recipe("linear", (ONE,)), 1, False, "linear: must be given at least 2 models, got 1"),
        (Recipe("slerp", (ONE, ONE)), 2, True, "slerp: must be given exactly 1 model beside the"),
        (Recipe("slerp", (ONE,)), 1, False, "slerp: must be given a base"),
        (Recipe("model_stock"), 1, True, "model_stock: .* at least 2 models beside the base, got 1"),
        (Recipe("model_stock", (ONE, ONE)), 2, True, "must be given 0 weights, got 2"),
        (Recipe("ties", (ONE,)), 1, True, "ties: must be given a density"),
        (Recipe("dare", (ONE,), 0.0), 1, True, "density: must be above 0 and at most 1, got 0"),
        (Recipe("linear", (ONE,), 0.5), 1, True, "density: must be left out with linear, only ties"),
        (Recipe("ties", (ONE,), 0.5, 1), 1, True, "seed: must be left out with ties, only dare"),
        (Recipe("dares", (ONE,)), 1, True, "got dares; did you mean dare"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_a_method_are_refused(
    tmp_path, roots, recipe, count, base, message
):
    refuse(tmp_path, roots[0] if base else None, roots[1 : 1 + count], message, recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--base A", "--adapted: must be given, or --model once or more, got neither"),
        ("--base A --adapted B --model C --alpha 1", "--adapted: .* got both"),
        ("--adapted B --alpha 1", "--base: must be given with --adapted"),
        ("--base A --adapted B", "--alpha: must be given with --adapted"),
        ("--base A --adapted B --alpha 1 --weight 1", "--weight: must go with --model"),
        ("--base A --adapted B --alpha x", "--alpha: must be numbers and commas, got 'x'"),
        ("--base A --adapted B --alpha 1 --alpha-of emb=0", "got emb; did you mean embed"),
        ("--model B --model C --weight 1", r"--weight: must be given once for each .* \(2\), got 1"),
        ("--model B --model C --alpha 1", "--alpha: must go with --adapted"),
        ("--model B --model C --weight 1 --weight y", "--weight: must be numbers and commas"),
        ("--base A --model B --weight 1", "--base: must be left out of a weighted mean"),
        ("--base A --model B --model C --weight 1 --weight 1 --method model_stock",
         "--weight: must be left out with model_stock"),
        ("--base A --adapted B --alpha 1 --method slurp", "got slurp; did you mean slerp"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        main_merge([*options.split(), "--out", "nowhere"])
    assert "\n" not in str(refused.value)


def test_the_verb_merges_several_and_extrapolates_when_asked(tmp_path, roots, capsys):
    argv = ["--method", "dare_ties", "--density", "0.5", "--seed", "3", "--base", str(roots[0]),
            "--model", str(foreign(roots[1])), "--weight", "1.5 embed=0", "--model", str(roots[2]),
            "--weight", "0.5"]  # fmt: skip
    with pytest.raises(ValueError, match="pass --extrapolate"):
        main_merge([*argv, "--out", str(tmp_path / "out")])
    main_merge([*argv, "--extrapolate", "--dtype", "float32", "--out", str(tmp_path / "out")])
    assert f"{roots[2]} (step 0) by dare_ties into {tmp_path}/out/0" in capsys.readouterr().out
    made = find_checkpoint(tmp_path / "out").meta["provenance"]
    assert (made["density"], made["seed"], made["dtype"]) == (0.5, 3, "float32")


def test_a_merge_written_for_others_can_be_imported_again(tmp_path, roots):
    merge_models(LINEAR, [roots[1]], tmp_path / "hf", base=roots[0], format="huggingface")
    import_weights(tmp_path / "hf", tmp_path / "back")
    assert_same(load(tmp_path / "back"), load(tmp_path / "hf"))
