"""Bad input ends in one clear line and exit status 2, and nothing is left half written.

The whole temporary directory, inputs and outputs, is compared before and after each command.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from directory_contents import contents

from ellama_jax import cli
from ellama_jax.experiments.demo import SMOLLM2_REFERENCE, write_jsonl
from ellama_jax.tokens.windows import MANIFEST_FILE
from ellama_jax.weights import layout

WINDOW = 32


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def damage(root):
    """Cuts every array of a checkpoint in half."""
    for path in (root / "0" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            cut(path, path.stat().st_size // 2)


def spoil_line(path, number, line):
    """Replaces a line of a file, counted from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def full_disk(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(layout.shutil, "disk_usage", lambda path: usage)


# --- import --------------------------------------------------------------------------------------


def test_weights_that_are_not_there_are_refused(refused):
    assert (
        refused("import", "nowhere", "dst") == "nowhere: must exist, got no such file or directory."
    )


def test_a_directory_without_its_weights_is_refused(refused, place):
    (place / "hf" / "model.safetensors").unlink()
    line = refused("import", "hf", "dst")
    assert line.startswith("hf: must hold model.safetensors or") and line.endswith("got neither.")


def test_a_missing_shard_is_named(refused, place):
    (place / "hf" / "model.safetensors").rename(place / "hf" / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (place / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "hf: must hold part-2.safetensors" in refused("import", "hf", "dst")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1000])
def test_truncated_safetensors_are_refused(refused, place, kept):
    cut(place / "hf" / "model.safetensors", kept)
    line = refused("import", "hf", "dst")
    assert line.startswith("hf/model.safetensors: must be a whole safetensors file, got")


@pytest.mark.parametrize("kept", [4, 20, 100, -1000])
def test_a_truncated_gguf_file_is_refused(refused, place, kept):
    cut(place / "model.gguf", kept)
    assert refused("import", "model.gguf", "dst").startswith(
        "model.gguf: must be a whole GGUF file"
    )


def test_an_empty_gguf_file_is_refused(refused, place):
    cut(place / "model.gguf", 0)
    assert refused("import", "model.gguf", "dst").startswith("model.gguf: must be a GGUF file, got")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(refused, place):
    config = place / "hf" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 300}))
    line = refused("import", "hf", "dst")
    assert line.startswith("tokenizer: ids must be below the model's vocab_size 300, got ids up to")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\xff"])
def test_a_broken_tokenizer_is_refused(refused, place, content):
    (place / "hf" / "tokenizer.json").write_bytes(content)
    assert refused("import", "hf", "dst").startswith("tokenizer hf: tokenizer.json must be")


def edit_tensors(place, edit):
    """Rewrites the safetensors file of the Hugging Face directory with changed tensors."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(place / "hf" / "model.safetensors")
    edit(tensors)
    save_file(tensors, place / "hf" / "model.safetensors")


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(UP), f"hf: 1 tensors are missing: {UP}; is the directory complete?"),
        (lambda t: t.update(extra=t[UP]), "hf: 1 tensors have no place in this model: extra."),
        (lambda t: t.update({UP: t[UP].astype(np.float16)}), "must have the dtype of its other la"),
        (lambda t: t.update({UP: t[UP].astype(np.int8)}), f"{UP} must be one of F32, F16, BF16, got"),
        (lambda t: t.update({UP: t[UP].T.copy()}), f"hf: {UP} must be [192, 64] as the config says"),
    ],
    ids=["missing", "extra", "another dtype", "quantised", "transposed"],
)  # fmt: skip
def test_tensors_that_do_not_make_the_model_are_refused(refused, place, edit, words):
    edit_tensors(place, edit)
    assert words in refused("import", "hf", "dst")


def test_padded_safetensors_are_refused(refused, place):
    path = place / "hf" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0" * 64)
    line = refused("import", "hf", "dst")
    assert line.startswith("hf/model.safetensors: must be a whole safetensors file, got")


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 3), ("intermediate_size", 256)])
def test_a_config_that_disagrees_with_the_tensors_is_refused(refused, place, key, value):
    config = place / "hf" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    assert refused("import", "hf", "dst").startswith("hf: ")


def test_a_gguf_file_of_another_architecture_is_refused(refused, place):
    content = (place / "model.gguf").read_bytes()
    (place / "model.gguf").write_bytes(content.replace(b"llama", b"qwen2", 1))
    line = refused("import", "model.gguf", "dst")
    assert line == "model.gguf: general.architecture must be llama, got qwen2."


def test_code_in_a_pth_file_is_refused_and_not_run(refused, place):
    torch = pytest.importorskip("torch", reason="torch parses .pth files")
    params = {"dim": 64, "n_layers": 1, "n_heads": 4, "multiple_of": 64, "norm_eps": 1e-5}
    (place / "meta").mkdir()
    (place / "meta" / "params.json").write_text(json.dumps({**params, "vocab_size": 512}))
    torch.save({"norm.weight": Payload(place / "ran")}, place / "meta" / "consolidated.00.pth")
    line = refused("import", "meta", "dst")
    assert line.startswith("meta/consolidated.00.pth: must hold nothing but tensors, got a pickle")
    assert not (place / "ran").exists()


class Payload:
    """Would make a file, were it unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_import_never_replaces_what_is_no_checkpoint(refused, place):
    (place / "dst").mkdir()
    (place / "dst" / "thesis.txt").write_text("three years of work")
    assert "dst: must not exist yet" in refused("import", "hf", "dst")
    assert "dst: only a checkpoint root is replaced" in refused(
        "import", "hf", "dst", "--overwrite"
    )


# --- export --------------------------------------------------------------------------------------


def test_an_export_of_a_damaged_checkpoint_leaves_nothing(refused, place):
    damage(place / "base")
    assert "the checkpoint is damaged or truncated" in refused("export", "base", "out")


def test_an_export_never_replaces_what_is_no_export(refused, place):
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("three years of work")
    assert "out: must not exist yet" in refused("export", "base", "out")
    line = refused("export", "base", "out", "--overwrite")
    assert line == "out: only an earlier export is replaced, got something else."


def test_an_export_of_no_checkpoint_says_what_it_found(refused):
    assert "must hold Orbax steps, got a Hugging Face directory" in refused("export", "hf", "out")


# --- text ----------------------------------------------------------------------------------------


def prepare(*arguments):
    rest = ("--tokenizer", "base/tokenizer", "--window-length", WINDOW, "--out", "out")
    return ("prepare", *arguments, *rest)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"title": "Lamp"}', '{"title": "", "language": "en"}', "\udcff"]
)
@pytest.mark.parametrize("verb", ["prepare", "build-benchmark"])
def test_a_listing_file_with_broken_lines_is_refused(refused, place, verb, line):
    path = place / "listings.jsonl"
    for number in (3, 4, 50):
        lines = path.read_bytes().splitlines()
        lines[number - 1] = line.encode(errors="surrogateescape")
        path.write_bytes(b"\n".join(lines) + b"\n")
    argv = prepare("--listings", path.name) if verb == "prepare" else (verb, path.name, "out")
    got = refused(*argv)
    # Workers may be on another machine: prepare names files by their whole paths.
    name = path if verb == "prepare" else path.name
    assert got.startswith(f"{name}: at most 1.0% of the lines may be broken, got 3 of 200;")
    assert "the first is line 3: " in got


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ('{"text": "x", "domain": "news", "language": "en", "source": "s"}', "got 'news'"),
        ('{"domain": "general", "language": "en", "source": "s"}', "text: must be a string"),
        ('{"text": "x", "domain": "general", "language": "../en", "source": "s"}', "'../en'"),
    ],
)
def test_a_broken_document_is_named_by_its_line(refused, place, line, reason):
    spoil_line(place / "documents.jsonl", 7, line)
    got = refused(*prepare("--documents", "documents.jsonl"))
    path = place / "documents.jsonl"
    assert got.startswith(f"{path}:7: must be a document, got ") and reason in got


def test_good_documents_are_not_written_when_later_listings_are_bad(refused, place):
    cut(place / "listings.jsonl", 0)
    got = refused(*prepare("--documents", "documents.jsonl", "--listings", "listings.jsonl"))
    path = place / "listings.jsonl"
    assert got == f"{path}: must hold at least one listing, got an empty file."


@pytest.mark.parametrize(
    "argv",
    [
        prepare("--documents", "nowhere.jsonl"),
        prepare("--listings", "nowhere.jsonl"),
        ("build-benchmark", "nowhere.jsonl", "out"),
        (
            "evaluate",
            "--checkpoint",
            "base",
            "--tasks",
            "bits_per_byte",
            "--texts",
            "nowhere.jsonl",
        ),
    ],
)
def test_a_text_file_that_is_not_there_is_named(refused, argv):
    assert refused(*argv) == "nowhere.jsonl: must exist, got no such file or directory."


def test_a_benchmark_needs_product_ids(refused, place):
    first = json.loads((place / "listings.jsonl").read_text().splitlines()[0])
    write_jsonl(place / "listings.jsonl", [{**first, "product_id": None}])
    assert refused("build-benchmark", "listings.jsonl", "out").startswith(
        "product_id: must be given"
    )


# --- verify --------------------------------------------------------------------------------------


def test_a_checkpoint_or_source_that_is_not_there_is_named(refused):
    line = refused("verify", "nowhere", SMOLLM2_REFERENCE)
    assert line == "checkpoint nowhere: must be a directory, got nothing."
    for source in ("nowhere", "nowhere.gguf"):
        line = refused("verify", "base", source)
        assert line == f"{source}: must exist, got no such file or directory."
    assert refused("verify", "base", "nowhere.npz") == "nowhere.npz: must exist, got no such file."
    line = refused("verify", "--write-reference", "ref.npz", "nowhere")
    assert line == "nowhere: must exist, got no such file or directory."


def test_the_reference_of_another_model_is_refused(refused):
    line = refused("verify", "base", SMOLLM2_REFERENCE)
    assert line.startswith("checkpoint base/0: must have the sizes of SmolLM2-135M-Instruct.Q4_1")
    assert "num_layers is 2, the source's 30" in line


@pytest.mark.parametrize("kept", [0, 100, 20000, -1000])
def test_a_truncated_reference_is_refused(refused, place, kept):
    shutil.copyfile(SMOLLM2_REFERENCE, place / "ref.npz")
    cut(place / "ref.npz", kept)
    line = refused("verify", "base", "ref.npz")
    assert line.startswith("ref.npz: must be a whole reference of `ellama verify --write-ref")


def test_arrays_of_something_else_are_no_reference(refused, place):
    np.savez(place / "ref.npz", tokens=np.arange(3))
    assert "must be a whole reference" in refused("verify", "base", "ref.npz")


def test_a_reference_needs_its_name(refused):
    line = refused("verify", "--write-reference", "ref", "hf")
    assert line == "--write-reference: must end in .npz, got ref."


def mark(root, **verification):
    """Writes a verdict into a checkpoint as the gate would."""
    info = layout.find_checkpoint(root)
    layout.write_meta(info, {**info.meta, "verification": verification or None})


def test_a_checkpoint_that_failed_the_gate_is_refused(refused, place):
    mark(place / "base", status="failed", summary="gate and up are exchanged")
    wanted = (
        "checkpoint base/0: must pass the conversion gate, got: gate and up are exchanged; import it "
        "again, or pass --allow-unverified."
    )
    assert refused(*train()) == wanted
    assert refused(*MERGE, "out") == wanted


def test_a_checkpoint_that_failed_is_taken_where_that_is_asked_for(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    mark(place / "base", status="failed", summary="gate and up are exchanged")
    for argv in (train("run"), (*MERGE, "out")):
        cli.main([*map(str, argv), "--allow-unverified"])
        warned = "warning: checkpoint base/0: failed the conversion gate and is used all the same."
        assert warned in capfd.readouterr().err
    for made in ("run/checkpoints", "out"):
        verification = layout.find_checkpoint(made).meta["verification"]
        assert verification["status"] == "failed"


def test_a_checkpoint_never_verified_is_used_with_one_line_of_warning(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    mark(place / "base")
    cli.main(list(map(str, train())))
    said = [line for line in capfd.readouterr().err.splitlines() if "verif" in line]
    assert said == [
        "warning: checkpoint base/0: was never verified against its source; run "
        "`ellama verify base/0 SRC`."
    ]
    assert layout.find_checkpoint("run/checkpoints").meta["verification"] is None


# --- windows and training ------------------------------------------------------------------------


def train(workdir="run", **changes):
    keys = {"model.checkpoint": "base", "data.windows_dir": "windows", **changes}
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    return ("train", "--config=run.py", *overrides, "--workdir", workdir)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data.max_epochs": 0.01}, "data.max_epochs: no set may be read more often in 2 steps, got"),
        ({"data.max_epochs": -1}, "data.max_epochs: must be positive, got -1.0."),
        ({"data.on_repetition": "never"}, "data.on_repetition: must be one of error, warn, got never"),
        ({"data.on_repetion": "warn"}, "on_repetion"),
        ({"data.seqio_module": "mine"}, "data.seqio_module: must be empty without data.seqio_mixture"),
        ({"data.seqio_mixture": "m", "data.seqio_module": "not/there.py"}, "data.seqio_module: must be a"),
    ],
)  # fmt: skip
def test_a_mixture_that_cannot_be_is_refused(refused, keys, words):
    assert words in refused(*train(**keys))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"start_step": 2}, "data.stages.late.start_step: must be from 1 to below train.steps (2)"),
        ({"start_stop": 1}, "data.stages.late.start_stop: is no configuration key; did you mean"),
        ({"start_step": 1, "general_shares": {"fr": 1.0}}, "must hold a window set general-fr, got"),
        ({"start_step": 1, "source_weights": {"general": 1.0}}, "late.source_weights.general: is no s"),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_is_refused(refused, place, stage, words):
    lines = (place / "run.py").read_text().replace("    return config\n", "")
    lines += f"    config.data.stages.late = {stage}\n    return config\n"
    (place / "run.py").write_text(lines)
    assert words in refused(*train())


def test_a_cut_shard_is_refused(refused, place):
    (shard,) = (place / "windows" / "general-en").glob("*.npy")
    size = shard.stat().st_size
    cut(shard, size - 100)
    wanted = f"windows windows/general-en: {shard.name} must have {size} bytes, got {size - 100}"
    assert refused(*train()).startswith(wanted)
    assert refused("inspect", "windows/general-en").startswith(wanted)


def test_a_missing_shard_of_windows_is_refused(refused, place):
    (shard,) = (place / "windows" / "general-en").glob("*.npy")
    shard.unlink()
    assert f"{shard.name} must have" in refused(*train())


def test_a_shard_of_garbage_is_refused(refused, place):
    (shard,) = (place / "windows" / "general-en").glob("*.npy")
    shard.write_bytes(bytes(shard.stat().st_size))
    assert refused(*train()).startswith("windows windows/general-en: ")


def test_a_damaged_record_stops_training_and_is_named(refused, place):
    (shard,) = (place / "windows" / "general-en").glob("*.npy")
    data = bytearray(shard.read_bytes())
    for at in range(200, 2000, 64):
        data[at] ^= 0xFF
    shard.write_bytes(data)
    line = refused(*train(), changed=["run"])
    assert line.startswith("windows windows/general-en: window ") and "damaged" in line
    assert not list((place / "run" / "checkpoints").glob("[0-9]*"))


def test_windows_without_a_manifest_do_not_exist(refused, place):
    (place / "windows" / "general-en" / MANIFEST_FILE).unlink()
    assert "must hold a window set general-en, got ecommerce-en" in refused(*train())


def test_windows_of_another_tokenizer_are_refused(refused):
    line = refused(*train(**{"model.checkpoint": "stranger"}))
    assert (
        "tokenizer_fingerprint must be that of the model" in line and "prepare the windows" in line
    )


def test_a_checkpoint_of_another_size_is_refused(refused):
    line = refused(*train(**{"model.checkpoint": "wide"}))
    assert line.startswith(
        "model.preset: tiny does not fit the checkpoint wide/0, which has mlp_dim 256"
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.stepz", 2, "stepz"),
        ("train.steps", "two", "train.steps"),
        ("schedule.warmup_steps", 9, "must be smaller than train.steps (2), got 9."),
        ("data.seq_len", 24, "data.seq_len: must be 2 or more and divide the window_length 32"),
        ("mesh.tensor", 3, "mesh: "),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(refused, key, value, words):
    assert words in refused(*train(**{key: value}), changed=["run"])


def test_a_damaged_base_model_is_refused(refused, place):
    damage(place / "base")
    line = refused(
        "merge", "--base", "base", "--adapted", "adapted", "--alpha", 0.5, "--out", "out"
    )
    assert line.startswith("restore base/0: the checkpoint is damaged or truncated")
    argv = ("evaluate", "--checkpoint", "base", "--tasks", "mmlu", "--json", "card.json")
    assert refused(*argv).startswith("restore base/0: the checkpoint is damaged or truncated")


def test_a_step_that_was_never_finished_is_no_checkpoint(refused, place):
    (place / "base" / "0" / "_CHECKPOINT_METADATA").unlink()
    line = refused("merge", "--base", "base", "--adapted", "wide", "--alpha", 0.5, "--out", "out")
    assert line == "checkpoint base: must hold a complete step, got only incomplete ones (0)."


# --- merging, scoring, reporting -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            "stranger",
            "merge: all models must have one tokenizer, or one whose ids the larger keeps,",
        ),
        ("wide", "layers/mlp/w_down is [2, 192, 64] in base, [2, 256, 64] in adapted"),
        ("nowhere", "checkpoint nowhere: must be a directory, got nothing."),
        ("hf", "both models must have the same constants, but norm_eps is 1e-05 and 1e-06."),
        ("model.gguf", "model.gguf: must give llama.attention.head_count, got none."),
    ],
)
def test_two_different_models_are_not_merged(refused, other, words):
    argv = ("--base", "base", "--adapted", other)
    assert words in refused("merge", *argv, "--alpha", 0.5, "--out", "out")


def sweep(*changes):
    """Returns a sweep's arguments; the directory that it writes to is still to follow."""
    argv = (
        "--base",
        "base",
        "--adapted",
        "base",
        "--tasks",
        "ecommerce",
        "--benchmark",
        "benchmark",
    )
    return ("merge-sweep", *argv, *changes, "--workdir")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("stranger", "must share a tokenizer, got"),
        ("wide", "mlp_dim must be equal, got 192 and 256"),
    ],
)
def test_two_different_models_are_not_swept(refused, other, words):
    line = refused(*sweep("--adapted", other), "out")
    assert line.startswith("merge-sweep: ") and words in line


def test_a_sweep_without_e_commerce_items_is_refused_before_it_scores(refused):
    line = refused(*sweep("--tasks", "mmlu"), "out")
    assert line == "merge-sweep: needs e-commerce items to choose by, got none."


def test_an_alpha_that_is_no_number_is_refused(refused):
    models = ("--base", "base", "--adapted", "adapted")
    line = refused("merge", *models, "--alpha", "nan", "--out", "out")
    assert line == "alpha: must be a finite number, got nan."
    line = refused(*sweep("--alphas", "0,half"), "out")
    assert line == "--alphas: must be numbers and commas, got 0,half."


def test_an_unknown_task_is_refused_with_the_nearest(refused):
    line = refused("evaluate", "--checkpoint", "base", "--tasks", "mmlu,prize_prediction")
    assert line.startswith(
        "--tasks: must be known tasks, got prize_prediction; did you mean price_"
    )


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("ecommerce", "--benchmark: must name the built benchmark"),
        ("bits_per_byte", "--texts: must name held-out texts"),
        ("", "--tasks: must name at least one of"),
    ],
)
def test_a_task_without_its_questions_is_refused(refused, tasks, words):
    assert refused("evaluate", "--checkpoint", "base", "--tasks", tasks).startswith(words)


@pytest.mark.parametrize("line", ["{", '{"text": "x"}', "\udcff"])
def test_broken_texts_for_bits_per_byte_are_refused(refused, place, line):
    path = place / "documents.jsonl"
    lines = [path.read_bytes().splitlines()[0], line.encode(errors="surrogateescape")]
    path.write_bytes(b"\n".join(lines))
    argv = ("--checkpoint", "base", "--tasks", "bits_per_byte", "--texts", "documents.jsonl")
    line = refused("evaluate", *argv)
    assert line.startswith("documents.jsonl: line 2 must have text, domain and language, got")


def test_a_directory_that_is_no_run_has_no_report(refused, place):
    (place / "empty").mkdir()
    for path in ("empty", "nowhere", "run.py"):
        assert f"{path} must be a run directory" in refused("report", path)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "sweep.json"])
@pytest.mark.parametrize("content", [b"{\n", b"\xff\n"])
def test_a_run_with_a_broken_file_has_no_report(refused, place, name, content):
    (place / "broken").mkdir()
    (place / "broken" / name).write_bytes(content)
    line = refused("report", "broken")
    assert line.startswith(f"broken/{name}: ") and "must be" in line


# --- places --------------------------------------------------------------------------------------


def test_a_demo_does_not_touch_a_directory_of_someone_else(refused, place):
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("three years of work")
    line = refused("demo", "--model", "tiny", "--offline", "--workdir", "mine")
    assert line == "--workdir: must be empty or hold an earlier demo, got mine; choose another."


MERGE = ("merge", "--base", "base", "--adapted", "adapted", "--alpha", 0.5, "--out")
WRITERS = {
    "import": ("import", "hf"),
    "export": ("export", "base"),
    "verify": ("verify", "base", SMOLLM2_REFERENCE, "--json"),
    "verify --write-reference": ("verify", "hf", "--write-reference"),
    "prepare": prepare("--documents", "documents.jsonl")[:-1],
    "build-benchmark": ("build-benchmark", "listings.jsonl"),
    "train": train()[:-1],
    "evaluate": ("evaluate", "--checkpoint", "base", "--tasks", "mmlu", "--limit", 1, "--json"),
    "merge": MERGE,
    "merge-sweep": sweep(),
    "demo": ("demo", "--model", "tiny", "--offline", "--workdir"),
}


# Permissions do not stop root, so the places are impossible: below a file, and in /proc.
@pytest.mark.parametrize("path", ["listings.jsonl/below", "/proc/ellama"])
@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_where_nobody_can_write_is_refused(refused, verb, path):
    if not Path("/proc/self").exists() and path.startswith("/proc"):
        pytest.skip("needs /proc")
    line = refused(*WRITERS[verb], path)
    assert path.split("/ellama")[0].split("/below")[0] in line
    assert " must " in line and not line.startswith("[Errno")


@pytest.mark.parametrize("verb", ["import", "export", "merge", "merge-sweep"])
def test_a_full_disk_is_said_before_a_checkpoint_is_written(refused, full_disk, verb):
    line = refused(*WRITERS[verb], "out")
    assert re.match(
        r"out(/merged)?: the disk must have \d+ MiB free, got 1 MiB; make room or choose", line
    )


def test_a_full_disk_is_said_before_the_first_step_of_a_training(refused, full_disk, place):
    line = refused(*train(), changed=["run"])
    assert re.search(r"train run: the disk must have \d+ MiB free, got 1 MiB", line)
    assert list((place / "run").iterdir()) == []


# --- curate and build-classifier -----------------------------------------------------------------

CURATE_CONFIG = """
from configs.data import base
def get_config():
    config = base.get_config()
    config.sources.shop = base.source(kind="listings", paths=("listings.jsonl",))
    config.decontamination.sets = ()
    return config
"""


def curate(*changes, out="curated"):
    return ("curate", "--config=curate.py", *changes, "--out", out)


def source(key, value):
    return f"--config.sources.shop.{key}={value}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--config.lisstings.templates=x"], "lisstings"),
        ([source("paths", "('no/*.jsonl',)")], "sources.shop.paths: no/*.jsonl: must match a file"),
        ([source("paths", "('run.py',)")], "sources.shop.paths: run.py: must end in one of .jsonl"),
        ([source("kind", "listing")], "sources.shop.kind: must be one of listings, reviews"),
        ([source("format", "xml")], "sources.shop.paths: format: must be one of auto, jsonl"),
        (["--config.listings.templates=('haiku',)"], "listings.templates: must be among"),
        (["--config.languages=('xx',)"], "languages: must be among"),
        ([source("max_bad_frac", "2.0")], "sources.shop.max_bad_frac: must lie in [0, 1]"),
        ([source("fields", "{'title': 'a..b'}")], "sources.shop: title: must have a name between"),
        ([source("fields", "{'title': 'name'}")], "(no record has name)"),
        (["--config.decontamination.sets=('mmlou',)"], "decontamination.sets: must be among mmlu"),
        (["--config.decontamination.files=('no.jsonl',)"], "no.jsonl: must exist, got no such file"),
        (["--config.decontamination.files=('no*.jsonl',)"], "decontamination.files: no*.jsonl must"),
        (["--config.decontamination.files=('run.py',)"], "evaluation file: must end in one of"),
        (["--overwrit"], "--overwrit: must be an option of the verb or of Beam, got neither; did "
         "you mean --overwrite?"),
        (["--runner=NoSuchRunner"], "--runner: must be one of Beam's, got NoSuchRunner"),
        (["--direct_num_workers=many"], "--direct_num_workers: invalid int value: 'many'."),
    ],
)  # fmt: skip
def test_a_curation_that_cannot_work_is_refused_before_it_starts(refused, place, changes, words):
    (place / "curate.py").write_text(CURATE_CONFIG)
    assert words in refused(*curate(*changes))


def test_a_curation_without_its_recipe_is_refused(refused):
    assert "curate.py" in refused(*curate())


def test_a_source_of_bad_records_is_refused_with_the_first_of_them(refused, place):
    (place / "curate.py").write_text(CURATE_CONFIG)
    (place / "listings.jsonl").write_text("{\n" * 5)
    line = refused(*curate())
    assert "got 5 of the first 5; listings.jsonl@byte 0: " in line


def test_pages_with_a_classifier_that_is_none_are_refused(refused, place):
    (place / "curate.py").write_text(CURATE_CONFIG)
    changes = [source("kind", "pages"), source("paths", "('documents.jsonl',)")]
    assert "nowhere" in refused(*curate(*changes, "--config.pages.classifier=nowhere"))
    assert "windows" in refused(*curate(*changes, "--config.pages.classifier=windows"))


def test_what_lies_where_a_curation_is_to_be_is_not_touched(refused, place):
    (place / "curate.py").write_text(CURATE_CONFIG)
    for out in ("windows", "run.py"):
        assert refused(*curate("--overwrite", out=out)).startswith(f"{out}: must be new or empty")
    (place / "mine").mkdir()
    (place / "mine" / "curation.json").write_text("{}")
    assert refused(*curate(out="mine")) == (
        "mine: must not exist yet, got a finished curation; --overwrite it."
    )


def test_seeds_of_a_classifier_that_are_none_are_refused(refused, place):
    (place / "seeds.jsonl").write_text('{"text": "x", "language": "en", "label": "ecomerce"}\n')
    for path, words in [("nowhere.jsonl", "nowhere.jsonl: must exist"),
                        ("run.py", "run.py:2: must be a line of JSON"),
                        ("seeds.jsonl", "seeds.jsonl:1: label must be ecommerce or other"),
                        ("windows", "windows: must be a file")]:  # fmt: skip
        assert words in refused("build-classifier", path, "model")
    assert refused("build-classifier", "seeds.jsonl", "windows").startswith(
        "windows: must not exist"
    )


def test_a_curation_on_a_disk_that_fills_up_leaves_nothing(refused, place, small_disk):
    (place / "curate.py").write_text(CURATE_CONFIG)
    disk = small_disk(8)
    line = refused(*curate(out="disk/out"))
    assert "o space left on device" in line
    assert list(disk.iterdir()) == []


def test_an_interrupted_curation_leaves_nothing(refused, place, monkeypatch):
    from ellama_jax.corpus import curation

    def interrupt(*_):
        raise KeyboardInterrupt

    (place / "curate.py").write_text(CURATE_CONFIG)
    monkeypatch.setattr(curation, "run_pipeline", interrupt)
    assert refused(*curate(), status=130).startswith("interrupted")


# --- the program itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (train(workdir="listings.jsonl/run"), b"--workdir: must be a directory that can be made"),
        (("import", "model.gguf", "dst"), b"model.gguf: must be a whole GGUF file"),
        ((*MERGE, "out"), b"restore base/0: the checkpoint is damaged or truncated"),
    ],
)
def test_the_program_says_one_line_and_no_traceback(place, argv, words):
    cut(place / "model.gguf", -1000)
    damage(place / "base")
    before = contents(place)
    command = [sys.executable, "-m", "ellama_jax.cli", *map(str, argv)]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ellama {argv[0]}: error: ".encode()) and words in done.stderr
    assert done.stderr.count(b"\n") == 1 and done.stdout == b""
    assert contents(place) == before


def test_output_that_nobody_reads_is_no_error(place):
    command = [sys.executable, "-m", "ellama_jax.cli", "inspect", "windows/general-en"]
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 128 + 13
