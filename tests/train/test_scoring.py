"""Scores and the retention gate inside a run: the numbers of `ellama evaluate`, and no bit changed."""

import json

import jax
import numpy as np
import pytest
from test_loop import assert_same_state, steady
from test_loop_watched import compiled_once, without_evaluation  # noqa: F401

from ellama_jax.cli import main
from ellama_jax.core.exits import EXIT_GATE
from ellama_jax.core.sharding import make_mesh
from ellama_jax.evaluate import retention, scorecard
from ellama_jax.model.llama import init_params
from ellama_jax.train.goodput import read_goodput, summarize
from ellama_jax.train.kept import RunFiles
from ellama_jax.train.loop import prepare_run, train
from ellama_jax.train.metrics import read_metrics
from ellama_jax.train.scoring import RunScores

# What is trained on are words of lamps and tables: of the letters below a model unlearns.
FORGOTTEN = ["QXQXZZ 0817 KJKJ", "WVWV 9931 ZZQ", "XYXY 7755 QQ JJ", "ZKZK 3090 VVW"]
KNOWN = ["rote Lampe Eiche", "Tisch Preis rote", "Lampe rote Tisch", "Eiche Preis Lampe"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A benchmark directory and a file of texts."""
    folder = tmp_path_factory.mktemp("questions")
    items = []
    for number in range(6):
        for language, context, choices in (
            ("en", "red lamp oak", [" table", " QQQ", " zz", " 0"]),
            ("de", "rote Lampe", [" Eiche", " Preis", " XX", " 9"]),
        ):
            items.append({
                "id": f"price_prediction/{number}/{language}", "task": "price_prediction",
                "domain": "ecommerce", "language": language, "answer": number % 4,
                "context": f"{context} {number}", "metric": "accuracy", "choices": choices,
                "product_id": str(number), "split": "validation",
            })  # fmt: skip
    lines = [json.dumps(item) + "\n" for item in items]
    (folder / "items.jsonl").write_text("".join(lines))
    texts = [
        {"text": text, "domain": "general", "language": language}
        for language, parts in (("en", FORGOTTEN), ("de", KNOWN))
        for text in parts
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder


@pytest.fixture
def scored(tiny_config, questions):
    """Returns `make(**overrides)`: a six-step run scored every two steps."""

    def make(**overrides):
        keys = {
            "mesh__fsdp": 8, "evaluate__tasks": "ecommerce,bits_per_byte",
            "evaluate__benchmark_dir": questions, "evaluate__texts_path": questions / "texts.jsonl",
            "evaluate__every_steps": 2, "evaluate__row_length": 64, "evaluate__rows_per_batch": 8,
            "evaluate__texts_per_source": 4,
        }  # fmt: skip
        return tiny_config(**{**keys, **overrides})

    return make


def read_card(run, step):
    return scorecard.read_scorecard(run / "evaluations" / f"{step}.json")


def test_a_scored_run_ends_with_the_bits_of_one_that_is_not(tiny_config, scored, tmp_path, capsys):
    plain, run = tmp_path / "plain", tmp_path / "run"
    train(prepare_run(tiny_config(mesh__fsdp=8), plain))
    capsys.readouterr()
    train(prepare_run(scored(evaluate__gate__bits_per_byte=100.0), run))
    said = capsys.readouterr().out
    assert_same_state(run / "checkpoints", plain / "checkpoints")
    records = read_metrics(run)
    assert without_evaluation(records) == steady(read_metrics(plain))
    assert [r["step"] for r in records if "eval_score/ecommerce" in r] == [0, 2, 4, 6]
    assert "every 2 steps the scores of 12 questions and 8 texts; retention gate: warn" in said
    assert "step 6 against base, gain with" in said and "retention gate: passed" in said
    assert summarize(read_goodput(run))["evaluation"] > 0
    assert records[0].get("eval_gate") is None and records[-1]["eval_gate"] == 1.0
    base, last = read_card(run, 0), read_card(run, 6)
    assert (base["model"], last["model"]) == ("base", "step 6")
    comparison = retention.compare(base, last)
    assert last["against_base"] == comparison
    for name, row in comparison["overall"].items():
        assert records[-1].get(f"eval_change/{name}") == row["change"]
    # The verb, from the checkpoint on one device, finds what the run found on eight.
    items, texts = prepare_run(scored(), run).questions
    alone = scorecard.evaluate_checkpoint(
        run / "checkpoints" / "6", items, texts,
        scoring=scorecard.Scoring(row_length=128, rows_per_batch=2),
    )  # fmt: skip
    for ours, theirs in zip(last["results"], alone["results"], strict=True):
        assert ours["correct"] == theirs["correct"]
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)


def test_a_broken_gate_warns_or_stops_and_stays_stopped(scored, tmp_path, capsys):
    strict = {"evaluate__gate__bits_per_byte": 0.0, "evaluate__gate__fails_when": "likely"}
    warned = tmp_path / "warned"
    train(prepare_run(scored(**strict), warned))
    said = capsys.readouterr().out
    assert "retention gate: FAILED: bits per byte en +" in said and "limit +0.0 %" in said
    assert [r["eval_gate"] for r in read_metrics(warned) if "eval_gate" in r][-1] == 0.0
    failing = [r["step"] for r in read_metrics(warned) if r.get("eval_gate") == 0.0]
    stopped = tmp_path / "stopped"
    strict["evaluate__gate__action"] = "stop"
    with pytest.raises(SystemExit) as left:
        train(prepare_run(scored(**strict), stopped))
    assert left.value.code == EXIT_GATE
    (line,) = [x for x in capsys.readouterr().err.split("\n") if x.startswith("stopped after")]
    assert f"stopped after step {failing[0]} by the retention gate: FAILED" in line
    steps = sorted(int(p.name) for p in (stopped / "checkpoints").iterdir() if p.name.isdigit())
    assert steps[-1] == failing[0] == read_metrics(stopped)[-1]["step"]
    # Started again, as a scheduler does, it trains no step more.
    with pytest.raises(SystemExit) as left:
        train(prepare_run(scored(**strict), stopped))
    assert left.value.code == EXIT_GATE
    assert read_metrics(stopped)[-1]["step"] == failing[0]
    # With other rules it goes on, and ends as the run that was never stopped.
    strict["evaluate__gate__action"] = "off"
    capsys.readouterr()
    train(prepare_run(scored(**strict), stopped))
    assert "retention gate: FAILED" not in capsys.readouterr().out
    assert_same_state(stopped / "checkpoints", warned / "checkpoints")
    assert "eval_gate" not in read_metrics(stopped)[-1]


def test_a_resumed_run_is_compared_with_the_first_base(scored, tmp_path):
    run = tmp_path / "run"
    train(prepare_run(scored(train__steps=4, evaluate__gate__action="off"), run))
    base = read_card(run, 0)
    train(prepare_run(scored(train__steps=6, evaluate__gate__action="off"), run))
    assert read_card(run, 0) == base
    assert read_card(run, 6)["against_base"] == retention.compare(base, read_card(run, 6))
    (run / "evaluations" / "0.json").unlink()
    with pytest.raises(ValueError, match="^evaluate.tasks: needs the scores of the base"):
        train(prepare_run(scored(train__steps=8), run))


@pytest.mark.slow
def test_scores_do_not_depend_on_the_mesh(scored, tmp_path):
    cards = []
    for sizes in ((1, 8, 1, 1), (1, 4, 1, 2), (2, 2, 2, 1)):
        axes = dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True))
        config = scored(**{f"mesh__{axis}": size for axis, size in axes.items()})
        run, mesh = prepare_run(config, tmp_path / str(sizes)), make_mesh(axes)
        with jax.set_mesh(mesh):
            RunScores(run, mesh, 0, RunFiles(run.workdir)).run(
                init_params(run.model, 3, mesh=mesh), 0
            )
        cards.append(read_card(run.workdir, 0))
    for ours, *others in zip(*(card["results"] for card in cards), strict=True):
        for theirs in others:
            assert ours["correct"] == theirs["correct"]
            if ours["metric"] == "bits_per_byte":
                np.testing.assert_allclose(ours["bits"], theirs["bits"], rtol=1e-5)


def test_general_questions_are_limited_by_language(tiny_config, tmp_path):
    config = tiny_config(evaluate__tasks="mmlu", evaluate__mmlu_per_language=2)
    items, texts = prepare_run(config, tmp_path / "run").questions
    assert len(items) == 10 and texts == []
    assert {item["split"] for item in items} == {"validation"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"evaluate__tasks": "mmul"}, "^evaluate.tasks: must be known tasks, got mmul; did you"),
        ({"evaluate__tasks": " ,"}, "^evaluate.tasks: must name at least one of"),
        (
            {"evaluate__benchmark_dir": ""},
            "^evaluate.benchmark_dir: must be given for e-commerce tasks, got none",
        ),
        ({"evaluate__texts_path": ""}, "^evaluate.texts_path: must be given for bits_per_byte"),
        ({"evaluate__split": "test"}, "^evaluate.split: must be a split that .* has items of"),
        ({"evaluate__split": "all"}, "^evaluate.split: must be one of validation, test, got all"),
        ({"evaluate__gate__action": "halt"}, "^evaluate.gate.action: must be one of off, warn"),
        (
            {"evaluate__tasks": "bits_per_byte", "evaluate__texts_path": "/no/such.jsonl"},
            "No such file",
        ),
        ({"evaluate__window": 0}, "^evaluate.window: must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_scored_is_said_before_any_device_is_used(keys, message, scored, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        prepare_run(scored(**keys), tmp_path / "run")


def test_the_verb_exits_with_the_gates_status(tiny_arguments, questions, tmp_path, capsys):
    keys = {
        "mesh.fsdp": 8, "evaluate.tasks": "bits_per_byte", "evaluate.every_steps": 2,
        "evaluate.texts_path": questions / "texts.jsonl", "evaluate.gate.action": "stop",
        "evaluate.gate.bits_per_byte": 0.0, "evaluate.row_length": 64,
        "evaluate.gate.fails_when": "likely", "evaluate.texts_per_source": 4,
    }  # fmt: skip
    arguments = [f"--config.{key}={value}" for key, value in keys.items()]
    with pytest.raises(SystemExit) as left:
        main(["train", *tiny_arguments, *arguments, f"--workdir={tmp_path / 'run'}"])
    assert left.value.code == 3 and jax.process_count() == 1
    assert "by the retention gate: FAILED" in capsys.readouterr().err
