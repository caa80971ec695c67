"""The whole job on the tiny model, run once as a user runs it."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from ellama_jax.evaluate.comparison import summary
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.tokens.windows import PADDING, WindowSet
from ellama_jax.train.metrics import read_metrics
from ellama_jax.weights.layout import find_checkpoint

pytestmark = pytest.mark.slow

LANGUAGES = ("en", "de", "fr", "it", "es")
PHASES = [
    "gather and split text",
    "import the base model",
    "tokenise and pack windows",
    "build the questions",
    "evaluate the base model",
    "continue pretraining",
    "evaluate the adapted model",
    "sweep the merge",
    "merge and evaluate",
]
# Left by an earlier demo, which the next one is to clear away.
STALE = "scores/yesterday.json"


def read_json(path):
    return json.loads(path.read_text())


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The directory of a finished demo, made where an earlier one lay, and what it printed."""
    workdir = tmp_path_factory.mktemp("demo") / "run"
    (workdir / "scores").mkdir(parents=True)
    (workdir / "demo.json").write_text('{"made_by": "ellama demo"}\n')
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    (workdir / STALE).write_text("{}")
    (workdir / "sources").mkdir()
    (workdir / "sources" / "fetched.tgz").write_text("a download")
    argv = ["--model", "tiny", "--offline", "--workdir", str(workdir)]
    done = subprocess.run(
        [sys.executable, "-m", "ellama_jax.cli", "demo", *argv],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir, done


@pytest.fixture
def workdir(demo):
    return demo[0]


@pytest.fixture
def cards(workdir):
    return {
        name: read_json(workdir / f"scores/{name}.json") for name in ("base", "adapted", "merged")
    }


def test_the_run_directory_holds_every_part(workdir):
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "base", "checkpoints", "config.json", "data", "demo.json", "goodput.json", "merged",
        "metrics.jsonl", "report.html", "run.json", "scores", "sweep.json", "sweep.md", "sweep.png",
        "sweep.svg", "tensorboard", "windows",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")]
    sets = {path.name for path in (workdir / "windows").iterdir()}
    assert sets == {f"{d}-{language}" for d in ("ecommerce", "general") for language in LANGUAGES}


def test_a_demo_where_another_lay_starts_over_but_keeps_what_was_fetched(workdir):
    assert not (workdir / STALE).exists()
    records = read_metrics(workdir)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert records[0]["loss"] > 1.0
    assert (workdir / "sources" / "fetched.tgz").read_text() == "a download"


def test_run_json_lists_the_phases_and_their_commands(workdir):
    run = read_json(workdir / "run.json")
    assert [phase["name"] for phase in run["phases"]] == PHASES
    assert all(phase["seconds"] >= 0 for phase in run["phases"])
    assert run["command"] == f"ellama demo --model tiny --offline --workdir {workdir}"
    verbs = [command.split()[:2] for command in run["commands"]]
    for verb in ("prepare", "train", "merge"):
        assert ["ellama", verb] in verbs
    assert 0 < run["peak_memory_bytes"] < 8 * 2**30


def test_run_json_says_which_text_is_synthetic_and_that_the_scores_mean_nothing(workdir):
    run = read_json(workdir / "run.json")
    assert {source["kind"] for source in run["sources"]} == {"synthetic"}
    assert {source["domain"] for source in run["sources"]} == {"ecommerce", "general"}
    assert any("random weights" in note for note in run["notes"])


def test_three_scorecards_answer_the_same_questions(cards):
    for card in cards.values():
        assert (
            card["made_with"]["items_fingerprint"]
            == cards["base"]["made_with"]["items_fingerprint"]
        )
        assert (
            card["made_with"]["texts_fingerprint"]
            == cards["base"]["made_with"]["texts_fingerprint"]
        )
        cells = {(row["task"], row["domain"], row["language"]) for row in card["results"]}
        for language in LANGUAGES:
            assert ("aspect_prediction", "ecommerce", language) in cells
            assert ("category_prediction", "ecommerce", language) in cells
            assert ("price_prediction", "ecommerce", language) in cells
            assert ("mmlu", "general", language) in cells
            assert ("bits_per_byte", "ecommerce", language) in cells
            assert ("bits_per_byte", "general", language) in cells
        for row in card["results"]:
            assert row["n"] > 0 and math.isfinite(row["value"])


def test_training_lowers_bits_per_byte_of_unseen_text(cards):
    base, adapted = summary(cards["base"]), summary(cards["adapted"])
    assert adapted["bpb_ecommerce"] < 0.85 * base["bpb_ecommerce"]
    assert adapted["bpb_general"] < 0.85 * base["bpb_general"]


def test_the_sweep_has_five_alphas_at_most_and_a_chosen_one_that_was_merged(workdir, cards):
    sweep = read_json(workdir / "sweep.json")
    alphas = [point["alpha"] for point in sweep["alphas"]]
    assert 3 <= len(alphas) <= 5 and alphas[0] == 0.0 and alphas[-1] == 1.0
    assert sweep["chosen"] in alphas
    assert all(point["scorecard"]["results"] for point in sweep["alphas"])
    # Validation questions choose, test questions report.
    chooses = {
        i for p in sweep["alphas"] for r in p["scorecard"]["results"] for i in r.get("ids", [])
    }
    reports = {i for row in cards["merged"]["results"] for i in row.get("ids", [])}
    assert chooses and reports and not chooses & reports
    # They were asked of three models, once, and say what the choice brings.
    assert [card["results"] for card in sweep["test"]["scorecards"].values()] == [
        cards[name]["results"] for name in ("base", "merged", "adapted")
    ]
    assert sweep["sentence"] in (workdir / "sweep.md").read_text()
    provenance = find_checkpoint(workdir / "merged").meta["provenance"]
    assert (provenance["kind"], provenance["alpha"]) == ("merge", sweep["chosen"])


def test_both_domains_gave_the_same_number_of_tokens(workdir):
    consumed = read_metrics(workdir)[-1]["tokens_consumed"]
    assert len(consumed) == 10
    domains = {"ecommerce": 0, "general": 0}
    for name, tokens in consumed.items():
        domains[name.split("-")[0]] += tokens
    assert domains["ecommerce"] / domains["general"] == pytest.approx(1.0, abs=0.05)


def test_the_report_shows_the_tables_and_needs_no_other_file(workdir):
    page = (workdir / "report.html").read_text()
    assert page.count("<table") >= 3
    for word in ("aspect_prediction", "base", "adapted", "merged", "synthetic-catalogue", *PHASES):
        assert word in page, word
    assert not re.search(r'(src|href)="(https?:|/|\.)', page)


def test_the_closing_table_is_printed(demo):
    workdir, done = demo
    tail = done.stdout.split("[9/9]")[1]
    assert re.search(r"task +languages +n +chance +base +adapted +merged", tail)
    for row in ("aspect_prediction", "mmlu", r"bits_per_byte \(ecommerce\)", "e-commerce average"):
        assert re.search(rf"^{row} +English", tail, re.MULTILINE), row
    assert re.search(r"\d+\.\d minutes, peak memory \d+\.\d GiB\n", tail)
    assert tail.endswith(f"report: {workdir / 'report.html'}\n")


def test_every_phase_is_announced_in_order(demo):
    announced = re.findall(r"^\[(\d)/9\] (.*)$", demo[1].stdout, re.MULTILINE)
    assert announced == [(str(number), name) for number, name in enumerate(PHASES, start=1)]
    assert "Traceback" not in demo[1].stderr


def test_no_product_that_is_asked_about_stands_in_training_text(workdir):
    asked = {item["product_id"] for item in read_jsonl(workdir / "data/questions.jsonl")} - {None}
    assert len(asked) > 50
    for name in ("train_listings", "train"):
        trained = {record["product_id"] for record in read_jsonl(workdir / f"data/{name}.jsonl")}
        assert len(trained) > 100 and not asked & trained
    heldout = {
        record["product_id"] for record in read_jsonl(workdir / "data/heldout_listings.jsonl")
    }
    assert asked <= heldout


def test_no_held_out_text_stands_in_the_windows(workdir):
    """Looks into the windows themselves, by the titles of the products held out."""
    tokenizer = load_tokenizer(workdir / "base" / "tokenizer")
    windows = WindowSet(workdir / "windows" / "ecommerce-de", tokenizer.fingerprint)
    rows = (windows[index] for index in range(len(windows)))
    text = "".join(tokenizer.decode(row[row != PADDING].tolist()) for row in rows)
    titles = {}
    for name in ("train_listings", "heldout_listings"):
        records = read_jsonl(workdir / f"data/{name}.jsonl")
        titles[name] = {f"Titel: {r['title']}\n" for r in records if r["language"] == "de"}
    found = {
        name: [title for title in members if title in text] for name, members in titles.items()
    }
    # Documents that were split may hide a title of training; none may show one held out.
    assert len(found["train_listings"]) > 0.9 * len(titles["train_listings"])
    assert not set(found["heldout_listings"]) - titles["train_listings"]
