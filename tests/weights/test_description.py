"""What `ellama inspect` says of a checkpoint: facts as data, and words that tell them."""

import datetime
import json
import math

import jax
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params, count_params
from ellama_jax.weights.checkpoint import open_manager, restore_params, save_training
from ellama_jax.weights.description import describe_facts, find_facts, parse_mesh
from ellama_jax.weights.layout import find_checkpoint, list_steps
from ellama_jax.weights.origin import describe_provenance, describe_verification
from ellama_jax.weights.stored import seal

LEDGER = {"ecommerce-de": 3000, "general-en": 1000}


@pytest.fixture
def run(tmp_path, tiny, make_checkpoint):
    """A training root: two steps saved from a mesh of eight devices, and what was interrupted."""
    make_checkpoint(tmp_path / "base", tiny)
    base = find_checkpoint(tmp_path / "base")
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    params = restore_params(base.path, mesh=mesh)
    provenance = {"kind": "train", "base": str(base.path), "mixture_fingerprint": "f" * 64,
                  "base_provenance": base.meta["provenance"]}  # fmt: skip
    root = tmp_path / "run"
    with open_manager(
        root, save_every_steps=1, keep_last=9, tokenizer_dir=base.tokenizer_dir
    ) as manager:
        for step in (10, 2000):
            data = {"step": step, "ledger": LEDGER, "mixture_fingerprint": "f" * 64, "skipped": 3,
                    "guard": {"spikes": 2}}  # fmt: skip
            meta = {**base.meta, "provenance": {**provenance, "step": step}}
            meta["config"] = {"checkpoint": {"best_metric": "loss"}}
            save_training(manager, step, params, {"count": np.int32(step)}, data, meta)
    for step, loss in ((10, 1.5), (2000, 1.75)):
        (root / str(step) / "metrics").mkdir(exist_ok=True)
        (root / str(step) / "metrics" / "metrics").write_text(json.dumps(seal({"loss": loss})))
    (root / "2001.orbax-checkpoint-tmp").mkdir()
    (root / "30.incomplete").mkdir()
    return root


def section(said: str, label: str) -> str:
    """Returns the lines that stand under a label of the page."""
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{label} "))
    rest = [line for line in lines[start + 1 :]]
    count = next((i for i, line in enumerate(rest) if not line.startswith(" " * 14)), len(rest))
    return "\n".join(line[14:] for line in lines[start : start + 1 + count])


def test_leaves_are_shown_as_they_were_divided_when_saved(run):
    facts = find_facts(run)
    assert facts["saved_on"] == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    texts = [leaf["text"] for leaf in facts["leaves"].values()]
    assert "layers/mlp/w_up float32[2 layers, 64 embed/fsdp, 192 mlp/tensor]" in texts
    assert "embed/table float32[512 vocab/tensor, 64 embed/fsdp]" in texts
    assert "final_norm/scale float32[64 norm]" in texts
    assert facts["leaves"]["layers/mlp/w_up"]["divided_by"] == [[], ["fsdp"], ["tensor"]]
    said = describe_facts(facts)
    assert "As it was saved, from 8 devices, mesh fsdp 4 x tensor 2" in said
    assert all(text in said for text in texts)


def test_what_was_saved_agrees_with_the_shards_of_the_arrays_themselves(run, tiny):
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    arrays = flatten_paths(restore_params(run, mesh=mesh))
    for path, leaf in find_facts(run)["leaves"].items():
        shards = {shard.data.shape for shard in arrays[path].addressable_shards}
        assert {math.prod(shape) * 4 for shape in shards} == {leaf["device_bytes"]}
        assert leaf["bytes"] == arrays[path].nbytes


def test_an_import_is_undivided_and_shown_on_a_mesh_that_is_not_here(tmp_path, tiny, tiny_root):
    facts = find_facts(tiny_root)
    assert facts["saved_on"] is None and "undivided" in describe_facts(facts)
    facts = find_facts(tiny_root, parse_mesh("fsdp=32,tensor=2"))
    assert math.prod(facts["mesh"].values()) == 64 > jax.device_count()
    w_up = facts["leaves"]["layers/mlp/w_up"]
    assert w_up["text"] == "layers/mlp/w_up bfloat16[2 layers, 64 embed/fsdp, 192 mlp/tensor]"
    assert w_up["device_bytes"] == w_up["bytes"] / 64
    assert "64 devices, mesh fsdp 32 x tensor 2" in describe_facts(facts)


def test_sizes_add_up_to_the_model(tiny_root, tiny):
    facts = find_facts(tiny_root)
    assert facts["preset"] == "tiny" and facts["params_by_dtype"] == {
        "bfloat16": count_params(tiny)
    }
    assert facts["params_bytes"] == 2 * count_params(tiny)
    shapes = {p: list(leaf.shape) for p, leaf in flatten_paths(abstract_params(tiny)).items()}
    assert {path: leaf["shape"] for path, leaf in facts["leaves"].items()} == shapes
    files = [file for file in (tiny_root / "0").rglob("*") if file.is_file()]
    assert facts["steps"][0]["bytes"] == sum(file.stat().st_size for file in files)


def test_one_layer_is_a_chunk_of_an_import(tiny_root):
    leaf = find_facts(tiny_root)["leaves"]["layers/mlp/w_up"]
    assert leaf["shape"] == [2, 64, 192] and leaf["chunk_shape"] == [1, 64, 192]
    assert "\n  1 layer    layers/attn/wk, " in describe_facts(find_facts(tiny_root))


def test_steps_are_listed_with_date_size_and_metric_and_what_is_ignored(run):
    steps = section(describe_facts(find_facts(run)), "steps").splitlines()
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    assert steps[0].split() == ["step", "saved", "(UTC)", "on", "disk", "loss"]
    ten, aside, newest, under_way = steps[1:]
    assert ten.split()[:2] == ["10", today] and ten.endswith("1.5000  best")
    assert newest.split()[:2] == ["2,000", today] and newest.endswith("1.7500  shown here")
    assert aside.endswith("IGNORED: incomplete (set aside as 30.incomplete)")
    assert under_way.endswith("IGNORED: incomplete (being written, or interrupted)")


def test_a_step_that_was_asked_for_is_the_one_shown(run):
    facts = find_facts(run / "10")
    assert facts["step"] == 10
    assert "best, shown here" in describe_facts(facts)


def test_the_best_step_of_a_root_can_be_asked_for(run):
    assert find_facts(run / "best")["step"] == 10


def test_dims_that_jax_left_out_of_a_stored_sharding_are_shown(run):
    file = run / "10" / "params" / "_sharding"
    file.write_text(file.read_text().replace(r"\"tensor\", null]", r"\"tensor\"]"))
    leaf = find_facts(run / "10")["leaves"]["layers/attn/wq"]
    assert leaf["divided_by"] == [[], ["fsdp"], ["tensor"], []]


def test_a_metric_that_is_not_finite_is_neither_shown_nor_best(run):
    (run / "10" / "metrics" / "metrics").write_text(json.dumps(seal({"loss": -math.inf})))
    facts = find_facts(run)
    json.dumps(facts, allow_nan=False)
    assert "1.7500  best, shown here" in describe_facts(facts)


def test_incomplete_steps_are_told_in_the_table_only(run, caplog):
    find_facts(run)
    assert caplog.text == ""


def test_list_steps_dates_what_orbax_committed_and_nothing_else(run):
    entries = {entry.path.name: entry for entry in list_steps(run)}
    age = datetime.datetime.now(datetime.UTC) - entries["2000"].saved_at
    assert datetime.timedelta() < age < datetime.timedelta(minutes=10)
    assert entries["30.incomplete"].saved_at is None
    assert [entry.step for entry in entries.values()] == [10, 30, 2000, 2001]


def test_training_says_what_it_read_and_what_it_started_from(run):
    # Lines are cut where they get long; how long this one is depends on where the test runs.
    said = " ".join(section(describe_facts(find_facts(run)), "provenance").split())
    for words in (
        "continually pretrained for 2,000 steps on mixture ffffffffffff",
        "3,000 tokens read, 75.0%",
        "4,000 tokens read",
        "3 updates were skipped",
        "2 updates were left out as spikes of loss or gradient",
        f"from {run.parent / 'base' / '0'}, which was",
        "seed 0",
    ):
        assert words in said


def test_provenance_goes_down_to_the_first_files():
    imported = {
        "kind": "import", "format": "gguf",
        "sources": [{"name": "m.gguf", "bytes": 98362432, "sha256": "ab" * 32}],
    }  # fmt: skip
    trained = {"kind": "train", "step": 6, "base": "base/0", "base_provenance": imported,
               "mixture_fingerprint": "0" * 64}  # fmt: skip
    merged = {
        "kind": "merge", "method": "linear", "alpha": 0.25,
        "sources": [
            {"role": "base", "name": "b", "step": 0, "params_sha256": "12" * 32, "provenance": imported},
            {"role": "adapted", "name": "a", "step": 6, "params_sha256": "34" * 32, "provenance": trained},
        ],
    }  # fmt: skip
    lines = list(describe_provenance(merged))
    assert lines[0] == "merged, method linear, alpha 0.25:"
    assert lines[1] == "  0.75 x base, b/0, weights sha256 121212121212, which was"
    assert lines[4] == "  0.25 x adapted, a/6, weights sha256 343434343434, which was"
    assert [line.strip() for line in lines].count("imported from a GGUF file:") == 2
    assert sum("98,362,432 bytes  sha256 abababababab" in line for line in lines) == 2


@pytest.mark.parametrize("provenance", [{}, {"kind": "import"}, {"kind": "train"}, {"kind": "merge"},
                                        {"kind": "quantised", "bits": 4}])  # fmt: skip
def test_partial_provenance_is_told_as_far_as_it_goes(provenance):
    assert list(describe_provenance(provenance))


def verification(found, kind="import"):
    facts = {"path": "base/0", "provenance": {"kind": kind}, "verification": found}
    return "\n".join(describe_verification(facts))


def test_verification_says_status_date_source_and_the_command():
    assert verification(None).startswith("never verified; `ellama verify base/0 SRC`")
    assert "nor was what it was made from" in verification(None, "train")
    passed = {"status": "passed", "date": "2026-01-02T03:04:05Z", "source": {"name": "m.gguf"},
              "summary": "12 checks passed"}  # fmt: skip
    assert verification(passed) == "passed on 2026-01-02 against m.gguf\n  12 checks passed"
    failed = verification({"status": "failed", "summary": "logits: off; rope: off"})
    assert failed.splitlines()[:3] == ["FAILED", "  logits: off", "  rope: off"]
    assert "`ellama verify base/0 SRC`" in failed
    assert "inherited from base/0" in verification({"status": "passed", "inherited_from": "base/0"})
    assert verification({}) == "of unknown outcome"


def test_a_changed_tokenizer_is_a_problem_told_with_the_rest(tiny_root):
    config = tiny_root / "tokenizer" / "tokenizer.json"
    content = json.loads(config.read_text())
    content["model"]["merges"].pop()
    config.write_text(json.dumps(content))
    said = " ".join(describe_facts(find_facts(tiny_root)).split())
    assert "PROBLEM: " in said and "was the tokenizer changed?" in said and "preset tiny" in said
    config.unlink()
    assert "PROBLEM: " in describe_facts(find_facts(tiny_root))


def test_every_line_fits_a_terminal_of_100_columns(run):
    said = describe_facts(find_facts(run)).replace(str(run.parent), "runs")
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model=2", "axis must be one of data, fsdp, context, tensor, got 'model'"),
        ("fsdp", "fsdp must be a size of at least 1, as in fsdp=2, got ''"),
        ("fsdp=0", "got '0'"),
        ("fsdp=-1", "got '-1'"),
        ("", "axis must be one of"),
    ],
)
def test_a_mesh_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(ValueError, match="--mesh: ") as error:
        parse_mesh(text)
    assert words in str(error.value)


def test_a_mesh_that_does_not_divide_the_model_is_refused(tiny_root):
    with pytest.raises(ValueError, match="embed of size 64 must be divisible by mesh axes"):
        find_facts(tiny_root, parse_mesh("fsdp=7"))
