"""`ellama moved` on two tiny models that differ in one layer alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_tradeoff import ITEMS, TEST, TEXTS

from ellama_jax import cli
from ellama_jax.core.tree import map_paths
from ellama_jax.evaluate import comparison, scorecard
from ellama_jax.merge import moved, revert
from ellama_jax.merge.verb import merge_checkpoints
from ellama_jax.report import verb as report
from ellama_jax.weights.checkpoint import (
    find_checkpoint,
    restore_params,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def models(checkpoints, tmp_path_factory):
    """The base, and the same with its last layer drawn anew."""
    base, other = (restore_params(checkpoints[name]) for name in ("base", "adapted"))
    flat = {}

    def last_layer_of_other(path, leaf):
        return leaf.at[-1].set(flat[path][-1]) if path.startswith("layers/") else leaf

    map_paths(lambda path, leaf: flat.update({path: leaf}), other)
    info = find_checkpoint(checkpoints["base"])
    root = tmp_path_factory.mktemp("moved") / "adapted"
    params = map_paths(last_layer_of_other, base)
    write_checkpoint(root, params, config=info.config, meta=info.meta,
                     tokenizer_dir=info.tokenizer_dir)  # fmt: skip
    return checkpoints["base"], root


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(models, workdir):
    return moved.study_models(*models, (ITEMS, TEXTS), workdir, test=(TEST, []))


def test_what_never_changed_costs_nothing_and_goes_back(study):
    costs = {entry["part"]: entry["cost"] for entry in study["alone"]}
    assert list(costs) == ["embed", "layers.0", "layers.1"]
    assert costs["embed"] == costs["layers.0"] == 0 and costs["layers.1"] == 1
    assert {"embed", "layers.0"} <= set(study["reverted"])
    assert study["merge"][:3] == ["--alpha=1", "--alpha-of=embed=0", "--alpha-of=layers.0=0"]


def test_the_models_at_both_ends_are_base_and_adapted(study, models):
    for name, model in zip(("base", "whole"), models, strict=True):
        card = scorecard.evaluate_checkpoint(model, ITEMS, TEXTS)
        means = comparison.summary(card)
        assert study[name]["ecommerce"] == means["ecommerce"]
        assert study[name]["bpb_ecommerce"] == pytest.approx(means["bpb_ecommerce"], rel=1e-6)


def test_test_questions_report_on_three_models(study):
    assert study["test"]["whole"]["model"] == "adapted"
    assert study["test"]["reverted"]["model"] == "reverted"
    asked = sum(
        row["n"] for row in study["test"]["reverted"]["cells"] if row["metric"] == "accuracy"
    )
    assert asked == len(TEST)


def test_a_study_that_was_broken_off_goes_on(study, models, workdir, monkeypatch):
    def score_nothing(*args, **options):
        raise AssertionError("everything is scored already")

    monkeypatch.setattr(moved, "score_blend", score_nothing)
    again = moved.study_models(*models, (ITEMS, TEXTS), workdir, test=(TEST, []))
    assert again == study


def test_the_words_name_the_command_that_writes_the_model(study):
    said = moved.say_study(study, "my base", "run")
    assert "on test questions, which chose nothing:" in said
    assert "ellama merge --base 'my base' --adapted run --alpha=1 --alpha-of=embed=0" in said


def test_the_written_model_is_the_one_that_was_scored(study, models, tmp_path):
    alphas = revert.revert(1.0, ["embed", "layers.1"])
    info = merge_checkpoints(*models, alphas, tmp_path / "out")
    base, ours = restore_params(models[0]), restore_params(info.path)
    np.testing.assert_array_equal(ours["layers"]["mlp"]["w_up"], base["layers"]["mlp"]["w_up"])
    assert jnp.array_equal(ours["embed"]["table"], base["embed"]["table"])


def test_the_verb_without_tasks_says_where_weights_moved(models, tmp_path, capsys):
    moved.main_moved(["--base", str(models[0]), "--adapted", str(models[1]),
                      f"--workdir={tmp_path}"])  # fmt: skip
    said = capsys.readouterr().out
    assert "relative change |B-A| / |A|, layer by layer" in said
    found = json.loads((tmp_path / "moved.json").read_text())
    assert [layer["norm_difference"] > 0 for layer in found["difference"]["layers"]] == [
        False,
        True,
    ]
    assert found["revert"] is None
    page = report.write_report(tmp_path).read_text()
    assert "<h2>What moved</h2>" in page and "<h2>What can go back to base</h2>" not in page


def test_the_report_shows_the_study(study, models, tmp_path, capsys):
    moved.main_moved(["--base", str(models[0]), "--adapted", str(models[1]),
                      f"--workdir={tmp_path}"])  # fmt: skip
    content = json.loads((tmp_path / "moved.json").read_text()) | {"revert": study}
    (tmp_path / "moved.json").write_text(json.dumps(content))
    page = report.write_report(tmp_path).read_text()
    assert "<h2>What can go back to base</h2>" in page
    for part in (
        "embed",
        "layers.0",
        "layers.1",
        "number of parts back at base",
        "--alpha-of=embed=0",
    ):
        assert part in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--alpha=0"], "--alpha: must be above 0, got 0, which is the base itself."),
        (["--alpha=2"], "alpha: must be from 0 (base) to 1 (adapted), got 2;"),
        (["--layers-a-part=3"], "--layers-a-part: must be from 1 to the model's 2 layers, got 3."),
        (["--max-gain-loss=-1"], "--max-gain-loss: must be from 0 to below 1, got -1."),
        (["--tasks=prices"], "--tasks: must be known tasks, got prices;"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(models, tmp_path, capsys, arguments, line):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["moved", "--base", str(models[0]), "--adapted", str(models[1]),
                  f"--workdir={tmp_path}/w", "--tasks=bits_per_byte", f"--texts={texts}",
                  "--no-test", *arguments])  # fmt: skip
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ellama moved: error: {line}")
    assert not (tmp_path / "w" / "moved.json").exists()
