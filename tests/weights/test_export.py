"""An export is what was imported, bit for bit, and transformers loads it without a word."""

import contextlib
import dataclasses
import io
import json
import logging
import shutil
import warnings

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ellama_jax.core.tree import flatten_paths
from ellama_jax.merge.verb import merge_checkpoints
from ellama_jax.model.llama import abstract_params, hidden_states, project_logits
from ellama_jax.model.presets import RopeScaling, config_to_dict, get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights import layout
from ellama_jax.weights.checkpoint import (
    make_meta,
    open_manager,
    restore_params,
    save_training,
    write_checkpoint,
)
from ellama_jax.weights.export import export_checkpoint, main_export, make_config, write_tensors
from ellama_jax.weights.huggingface import open_safetensors, read_config
from ellama_jax.weights.importer import import_weights
from ellama_jax.weights.lazy import PIECE_BYTES, LazyArray, from_array, split
from ellama_jax.weights.model_card import make_card
from ellama_jax.weights.tensors import open_tensors

SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.fixture
def scaled(untied):
    """Llama 3.1 in small: untied, RoPE scaled, 128k context."""
    return dataclasses.replace(
        untied, name="scaled", rope_theta=500000.0, rope_scaling=SCALING, max_seq_len=131072
    )


def contents(directory):
    return sorted(path.name for path in directory.iterdir())


# --- what transformers makes of it ---------------------------------------------------------------


@contextlib.contextmanager
def silence_expected(transformers):
    """Fails on anything that transformers says: warnings, log lines, text on stderr."""
    heard, said = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(heard)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
    assert heard.getvalue() + said.getvalue() == ""


@pytest.mark.parametrize(
    ("kind", "dtype", "shard_bytes"),
    [
        ("tiny", np.float32, 10**9),
        ("tiny", np.float16, 100_000),
        ("scaled", ml_dtypes.bfloat16, 10**9),
        ("scaled", np.float32, 200_000),
    ],
)
def test_transformers_loads_it_silently_with_the_same_logits_and_text(
    tmp_path, request, make_checkpoint, kind, dtype, shard_bytes
):
    torch = pytest.importorskip("torch", reason="the reference is transformers on torch")
    transformers = pytest.importorskip("transformers", reason="the reference model")
    config = request.getfixturevalue(kind)
    make_checkpoint(tmp_path / "c", config, dtype=dtype)
    export_checkpoint(tmp_path / "c", tmp_path / "hf", shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == (shard_bytes < 10**9)
    with silence_expected(transformers):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.dtype == getattr(torch, np.dtype(dtype).name)
    ours = load_tokenizer(tmp_path / "c" / "tokenizer")
    ids = [ours.bos_id, *ours.encode("The blue shoe costs 20 euros.")]
    assert tokenizer.encode("The blue shoe costs 20 euros.", add_special_tokens=False) == ids[1:]
    logits = our_logits(tmp_path / "c", config, ids)
    theirs = model.float()(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-4 * np.abs(theirs).max())
    with silence_expected(transformers):
        said = model.generate(
            torch.tensor([ids]), max_new_tokens=5, do_sample=False,
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64), pad_token_id=ours.eos_id,
        )[0].tolist()  # fmt: skip
    for _ in range(len(said) - len(ids)):
        ids.append(int(our_logits(tmp_path / "c", config, ids)[-1].argmax()))
    assert said == ids


def our_logits(path, config, ids):
    tokens = jnp.asarray([ids], jnp.int32)
    positions = jnp.arange(len(ids), dtype=jnp.int32)[None]
    params = restore_params(path, dtype=jnp.float32)
    hidden = hidden_states(params, config, tokens, positions, jnp.ones_like(tokens))
    return np.asarray(project_logits(params, config, hidden))[0]


def test_the_config_reads_back_as_the_model_it_was(tmp_path, scaled, tiny):
    for config in (scaled, tiny):
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
        raw = make_config(config, np.dtype(np.float32), ids)
        (tmp_path / "config.json").write_text(json.dumps(raw))
        expected = dataclasses.replace(config, name=tmp_path.name, base_peak_learning_rate=None)
        assert config_to_dict(read_config(tmp_path)) == config_to_dict(expected)


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "scaled"])
def test_hf_to_orbax_to_hf_is_bitwise(tmp_path, request, kind):
    """From a directory that transformers wrote, in bfloat16."""
    torch = pytest.importorskip("torch", reason="the source is written by transformers")
    transformers = pytest.importorskip("transformers", reason="writes the source")
    config = request.getfixturevalue(kind)
    raw = make_config(config, np.dtype(ml_dtypes.bfloat16), {"bos_token_id": 1})
    skip = ("architectures", "model_type", "torch_dtype")
    theirs = transformers.LlamaConfig(**{k: v for k, v in raw.items() if k not in skip})
    model = transformers.LlamaForCausalLM(theirs).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="150KB")
    shutil.copytree(request.getfixturevalue("tokenizer_dir"), tmp_path / "hf", dirs_exist_ok=True)
    import_weights(tmp_path / "hf", tmp_path / "base")
    export_checkpoint(tmp_path / "base", tmp_path / "back")
    assert_same_tensors(tmp_path / "hf", tmp_path / "back")
    ours, source = (read_config(tmp_path / name) for name in ("back", "hf"))
    assert dataclasses.replace(ours, name="") == dataclasses.replace(source, name="")


def assert_same_tensors(directory, other):
    ours, theirs = open_safetensors(directory), open_safetensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.shape, tensor.dtype) == (theirs[name].shape, theirs[name].dtype)
        assert tensor.load().tobytes() == theirs[name].load().tobytes(), name


def test_orbax_to_hf_to_orbax_keeps_weights_and_tokenizer(tmp_path, scaled, make_checkpoint):
    params = flatten_paths(make_checkpoint(tmp_path / "c", scaled, dtype=ml_dtypes.bfloat16))
    export_checkpoint(tmp_path / "c", tmp_path / "hf", shard_bytes=100_000)
    info = import_weights(tmp_path / "hf", tmp_path / "again")
    for path, leaf in flatten_paths(restore_params(info.path)).items():
        assert np.asarray(leaf).tobytes() == params[path].tobytes(), path
    names = ("c", "again")
    prints = [load_tokenizer(tmp_path / name / "tokenizer").fingerprint for name in names]
    assert prints[0] == prints[1]


def test_special_float_values_survive(tmp_path, tiny, draw_params):
    params = draw_params(tiny)
    params["final_norm"]["scale"][:5] = [-0.0, np.inf, -np.inf, np.nan, 1e-45]
    write_tensors(tmp_path, {"x": from_array(params["final_norm"]["scale"])})
    again = open_safetensors(tmp_path)["x"].load()
    assert again.tobytes() == params["final_norm"]["scale"].tobytes()


def test_safetensors_itself_reads_what_is_written_in_pieces(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(33, 7)).astype(np.float32), "b": np.ones(5, np.float16)}
    # Blocks that cut rows, and so small that each is a piece.
    monkeypatch.setattr("ellama_jax.weights.lazy.PIECE_BYTES", 48)
    grid = LazyArray((33, 7), np.dtype(np.float32), lambda box: arrays["a"][box], (4, 3))
    write_tensors(tmp_path, {"a": grid, "b": from_array(arrays["b"])})
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_another_dtype_is_rounded_to_the_nearest(tmp_path, tiny, make_checkpoint):
    params = make_checkpoint(tmp_path / "c", tiny)
    export_checkpoint(tmp_path / "c", tmp_path / "hf", dtype="bfloat16")
    table = open_safetensors(tmp_path / "hf")["model.embed_tokens.weight"]
    expected = params["embed"]["table"].astype(ml_dtypes.bfloat16)
    assert table.load().tobytes() == expected.tobytes()
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("preset", ["llama3.1-8b", "llama3.1-70b", "llama3.1-405b"])
def test_no_piece_grows_with_the_model(preset, dtype):
    """The chunks that Orbax chooses for the real shapes, and the boxes of import and export."""
    from orbax.checkpoint._src.arrays.subchunking import choose_chunk_shape

    config, dtype, leaves = get_preset(preset), np.dtype(dtype), {}
    for path, leaf in flatten_paths(abstract_params(config)).items():
        layers = (0,) if path.startswith("layers/") else ()
        grid = choose_chunk_shape(leaf.shape, leaf.shape, dtype, PIECE_BYTES, shard_axes=layers)
        leaves[path] = LazyArray(leaf.shape, dtype, None, grid)
    for array in (*leaves.values(), *open_tensors(config, leaves).values()):
        box = next(split(array.shape, dtype.itemsize, array.grid))
        elements = np.prod([part.stop - part.start for part in box])
        assert elements * dtype.itemsize <= PIECE_BYTES


# --- what lies beside the weights ----------------------------------------------------------------


def test_ends_of_text_are_the_ones_that_were_trained_with(tmp_path, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "c", tiny)
    ours = load_tokenizer(tmp_path / "c" / "tokenizer")
    export_checkpoint(tmp_path / "c", tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((tmp_path / "hf" / name).read_text())
        assert (raw["bos_token_id"], raw["eos_token_id"]) == (ours.bos_id, ours.eos_id)


def test_generation_settings_of_the_source_are_kept(tmp_path, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "c", tiny)
    kept = tmp_path / "c" / "tokenizer"
    ours = load_tokenizer(kept)
    ends = [ours.eos_id, 7]
    (kept / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    (kept / "config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": 4}))
    export_checkpoint(tmp_path / "c", tmp_path / "hf")
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and generation["eos_token_id"] == ends
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (raw["eos_token_id"], raw["pad_token_id"]) == (ends, 4)


def test_the_card_names_everything_a_merged_model_was_made_of(
    tmp_path, tiny, make_checkpoint, tokenizer_dir, draw_params
):
    make_checkpoint(tmp_path / "base", tiny)
    train(tmp_path / "run", tiny, draw_params(tiny, seed=1), tokenizer_dir)
    merge_checkpoints(tmp_path / "base", tmp_path / "run", 0.25, tmp_path / "merged")
    export_checkpoint(tmp_path / "merged", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    for fact in (
        "# Merged Llama model: tiny", "131,392 parameters", "merged, method linear, alpha 0.25",
        "0.75 x base, base/0, weights hash ", "0.25 x adapted, run/7, weights hash ",
        "continually pretrained for 7 steps on mixture abc", "asked for 60.0%",
        "on disk 4,321 tokens in 56 documents", "imported from a GGUF file", "seed 0",
        "never verified",
    ):  # fmt: skip
        assert fact in card, fact
    export_checkpoint(tmp_path / "run", tmp_path / "adapted")
    card = (tmp_path / "adapted" / "README.md").read_text()
    assert "# Adapted Llama model: tiny" in card and "1,234 tokens read, 100.0%" in card


def test_results_stand_in_the_card(tmp_path, tiny, make_checkpoint, capsys):
    make_checkpoint(tmp_path / "c", tiny)
    (tmp_path / "card.md").write_text("| task | base |\n|---|---|\n| prix en € | 40 |\n")
    main_export([str(tmp_path / "c"), str(tmp_path / "hf"), f"--results={tmp_path}/card.md"])
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    results, provenance = card.index("## Results\n\n| task | base |"), card.index("## Provenance")
    assert results < card.index("| prix en € | 40 |\n\n") < provenance
    (tmp_path / "card.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="--results: must be Markdown in UTF-8, got .*card.md"):
        main_export([str(tmp_path / "c"), str(tmp_path / "no"), f"--results={tmp_path}/card.md"])
    with pytest.raises(OSError, match="absent.md"):
        main_export([str(tmp_path / "c"), str(tmp_path / "no"), f"--results={tmp_path}/absent.md"])
    assert not (tmp_path / "no").exists()


def train(root, config, params, tokenizer_dir):
    """Saves step 7 of a run as the training loop does."""
    source = {
        "name": "ecommerce-de", "domain": "ecommerce", "language": "de", "token_share": 0.6,
        "num_tokens": 4321, "num_documents": 56,
    }  # fmt: skip
    provenance = {
        "kind": "train", "step": 7, "base": "base/0", "mixture_fingerprint": "abc", "data": [source],
        "base_provenance": {"kind": "import", "format": "gguf", "sources": [
            {"name": "seed 0", "bytes": 5, "sha256": "00"}]},
    }  # fmt: skip
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    meta = make_meta(config, tokenizer_fingerprint=fingerprint, provenance=provenance)
    data = {"step": 7, "ledger": {"ecommerce-de": 1234}, "mixture_fingerprint": "abc"}
    with open_manager(
        root, save_every_steps=1, keep_last=1, tokenizer_dir=tokenizer_dir
    ) as manager:
        save_training(manager, 7, params, {"count": np.zeros(())}, data, meta)


# --- what is refused, and that nothing is left ---------------------------------------------------


def test_a_place_that_is_taken_is_refused(tmp_path, tiny_root):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="hf: must not exist yet; pass --overwrite to replace it"):
        export_checkpoint(tiny_root, tmp_path / "hf")
    with pytest.raises(ValueError, match="hf: only an earlier export is replaced, got something"):
        export_checkpoint(tiny_root, tmp_path / "hf", overwrite=True)
    assert contents(tmp_path / "hf") == ["mine.txt"]


def test_an_earlier_export_is_replaced_when_asked(tmp_path, tiny_root):
    export_checkpoint(tiny_root, tmp_path / "hf", shard_bytes=50_000)
    export_checkpoint(tiny_root, tmp_path / "hf", overwrite=True)
    assert [p.name for p in (tmp_path / "hf").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_damaged_checkpoint_is_named_and_nothing_is_left(tmp_path, tiny_root):
    for path in (tiny_root / "0" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="the checkpoint is damaged or truncated"):
        export_checkpoint(tiny_root, tmp_path / "hf")
    assert contents(tmp_path) == ["root"]


def test_a_disk_that_fills_up_keeps_nothing(tmp_path, tiny_root, small_disk, monkeypatch, capsys):
    disk = small_disk(300)  # less than a tiny model in bfloat16 with all that lies beside it
    monkeypatch.setattr(layout, "check_disk_space", lambda *_: None)
    with pytest.raises((ValueError, OSError), match="No space left|the disk must have room"):
        export_checkpoint(tiny_root, disk / "hf", dtype="float32")
    assert contents(disk) == []
    export_checkpoint(tiny_root, tmp_path / "hf", dtype="float32")
    with pytest.raises(ValueError, match="disk: the disk must have room .* got full while writing"):
        import_weights(tmp_path / "hf", disk / "base")
    assert contents(disk) == []


def test_the_verb_says_what_it_wrote(tmp_path, tiny_root, capsys):
    main_export([str(tiny_root), str(tmp_path / "hf"), "--shard-bytes", "100000"])
    out = capsys.readouterr().out
    assert "Exported" in out and "files of weights, 1 MiB" in out
    with pytest.raises(ValueError, match="--shard-bytes: must be at least 1, got 0"):
        main_export([str(tiny_root), str(tmp_path / "x"), "--shard-bytes", "0"])


def test_a_tokenizer_that_was_changed_is_refused(tmp_path, tiny_root):
    path = tiny_root / "tokenizer" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["merges"].pop()
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="was the tokenizer changed"):
        export_checkpoint(tiny_root, tmp_path / "hf")
    assert contents(tmp_path) == ["root"]


def test_parameters_are_written_from_lazy_arrays(tmp_path, tiny, draw_params, tokenizer_dir):
    """The other direction of streaming: a checkpoint made of pieces is the one made of arrays."""
    params = draw_params(tiny)
    lazy = {path: from_array(leaf) for path, leaf in flatten_paths(params).items()}
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    meta = make_meta(tiny, tokenizer_fingerprint=fingerprint, provenance={"kind": "import"})
    write_checkpoint(tmp_path / "c", lazy, config=tiny, meta=meta, tokenizer_dir=tokenizer_dir)
    for path, leaf in flatten_paths(restore_params(tmp_path / "c")).items():
        assert np.asarray(leaf).tobytes() == flatten_paths(params)[path].tobytes(), path


def test_the_card_names_no_place_on_a_machine(tmp_path, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "c", tiny)
    info = layout.find_checkpoint(tmp_path / "c")
    base = {"kind": "import", "source": "/srv/my models/Llama-3.1-8B"}
    provenance = {
        "kind": "train",
        "step": 3,
        "base": "/home/me/runs/base/0",
        "base_provenance": base,
    }
    verification = {"status": "passed", "summary": "as /home/me/hf/model.safetensors; all logits 1/2",
                    "source": {"name": "~/models/hf"}, "inherited_from": ["gs://shop/a/base/0"]}  # fmt: skip
    meta = {**info.meta, "provenance": provenance, "verification": verification}
    card = make_card(dataclasses.replace(info, meta=meta), "| /home/me/runs/de | and/or |")
    for place in ("/home", "/srv", "gs://", "~", str(tmp_path)):
        assert place not in card
    for fact in ("from base/0, which was", "made of my models/Llama-3.1-8B", "against models/hf",
                 "as hf/model.safetensors", "all logits 1/2", "| runs/de | and/or |"):  # fmt: skip
        assert fact in card, fact
