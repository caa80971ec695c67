"""The page that lays what was measured beside the paper's figures, and the order of `ellama evidence`."""

import json
import shlex

import pytest
from sweep_records import make_answers, make_sweep

from ellama_jax.config import configs_dir
from ellama_jax.evaluate.retention import compare
from ellama_jax.experiments import evidence
from ellama_jax.experiments.evidence_tables import BEGIN, END, describe, pool, verdict
from ellama_jax.experiments.sweep_grid import Rule, Setting, Sweep
from ellama_jax.experiments.sweep_results import judge

CONFIG = f"--config={configs_dir() / 'evidence.py'}:demo.py:tiny"


def make_ablation():
    axes = {"schedule.peak_frac": ["0.1", "1"]}
    settings = tuple(Setting({"schedule.peak_frac": label}, (f"{label}-0", f"{label}-1"))
                     for label in axes["schedule.peak_frac"])  # fmt: skip
    done = {
        f"{label}-{seed}": {
            "eval_loss/ecommerce/en": -gain - seed / 100,
            "eval_loss/general/en": keep,
        }
        for label, gain, keep in (("0.1", 0.2, 0.0), ("1", 0.5, 0.1))
        for seed in (0, 1)
    }
    found = judge(Sweep("x", (), settings, axes, Rule(), False), done)
    trials = [{"name": name, "status": "done", "steps": 20} for name in done]
    return {**found, "axes": axes, "trials": trials,
            "rule": {"gain": "eval_loss/ecommerce", "keep": "eval_loss/general", "limit": 0.01,
                     "says": str(Rule())}}  # fmt: skip


def write_demo(directory, seed, argv=()):
    (directory / "scores").mkdir(parents=True)
    scores = {"base": (0.3, 0.5), "adapted": (0.6, 0.4), "merged": (0.5, 0.5)}
    for name, (ecommerce, general) in scores.items():
        card = make_answers(ecommerce + seed / 10, general)
        (directory / "scores" / f"{name}.json").write_text(json.dumps({**card, "model": name}))
    (directory / "sweep.json").write_text(json.dumps(make_sweep()))
    sources = [{"name": "debian-reference", "kind": "real", "available": True},
               {"name": "shopify", "kind": "real", "available": False}]  # fmt: skip
    run = {"command": shlex.join(["ellama", *argv]), "commit": "0123456789abcdef", "model": "tiny",
           "sources": sources}  # fmt: skip
    (directory / "run.json").write_text(json.dumps(run))


@pytest.fixture
def page(tmp_path):
    demos = [tmp_path / "seed-0", tmp_path / "seed-1"]
    for seed, demo in enumerate(demos):
        write_demo(demo, seed)
    return describe(demos, make_ablation(), "ellama evidence")


def rows_of(page):
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in page.splitlines() if line.startswith("| ") and "---" not in line]  # fmt: skip


def test_each_claim_stands_beside_the_paper_s_figure_with_its_interval_and_a_verdict(page):
    rows = {row[0]: row for row in rows_of(page)}
    # Base 30 and 40 % right, adapted 60 and 70 %: +30 of 35.
    name, paper, adapted, merged, n, said = rows["e-commerce, English"]
    assert paper == "+25 %" and adapted.startswith("+85.7 % [") and n == "400"
    assert merged.startswith("+57.1 % [") and said == "same direction, more than the paper"
    assert rows["e-commerce, other languages"][1] == "+30 %"
    assert rows["general questions, all languages"][1] == "-1 %"
    assert rows["general questions, all languages"][2].startswith("-20.0 % [")
    assert rows["bits per byte, general text"][1] == ""


def test_the_page_has_curve_ablations_sources_and_the_command(page):
    assert "`ellama evidence`, commit 0123456789ab, tiny, 2 seeds" in page
    assert "missing: shopify; real: debian-reference" in page
    rows = rows_of(page)
    assert sum("**chosen**" in row for row in rows) == 2  # one a seed
    at = rows.index(["schedule.peak_frac", "eval_loss/ecommerce", "eval_loss/general"])
    assert [row[0] for row in rows[at + 1 : at + 3]] == ["0.1", "1"]
    assert rows[at + 2][2].startswith("-10.0 %")
    assert "4 of 4 trials of 20 steps" in page and "Best of 2: schedule.peak_frac 0.1" in page


def test_pooled_seeds_count_every_question_once_and_keep_them_apart():
    bases, models = ([make_answers(x, 0.5) for x in pair] for pair in ((0.2, 0.4), (0.6, 0.6)))
    base, model = pool(bases), pool(models)
    row = base["results"][0]
    assert row["n"] == len(set(row["ids"])) == 400 and row["value"] == pytest.approx(0.3)
    found = compare(base, model)["overall"]["ecommerce"]
    assert found["change"] == pytest.approx(1.0) and found["n"] == 800  # two languages
    # Twice the questions, a narrower interval than with one seed's.
    alone = compare(bases[0], models[0])["overall"]["ecommerce"]
    assert found["high"] - found["low"] < (alone["high"] - alone["low"]) / 1.2


def test_what_one_seed_alone_was_asked_is_left_out():
    one, two = make_answers(0.3, 0.5), make_answers(0.3, 0.5)
    two["results"] = [row for row in two["results"] if row["language"] == "en"]
    assert {row["language"] for row in pool([one, two])["results"]} == {"en"}


@pytest.mark.parametrize(
    ("change", "low", "high", "paper", "said"),
    [
        (0.10, 0.05, 0.15, 0.25, "same direction, less than the paper"),
        (-0.30, -0.4, -0.2, 0.25, "does not agree"),
        (-0.30, -0.4, -0.2, -0.01, "same direction, more than the paper"),
        (0.01, -0.01, 0.03, 0.25, "does not agree"),
        (0.2, 0.1, 0.3, 0.25, "cannot tell: the interval spans 20 points"),
        (-0.2, None, None, -0.01, "cannot tell: no interval"),
    ],
)  # fmt: skip
def test_the_verdict_says_no_more_than_the_interval(change, low, high, paper, said):
    assert verdict({"change": change, "low": low, "high": high}, paper) == said


@pytest.fixture
def verbs(monkeypatch, tmp_path):
    """Runs of verbs, which only leave what the next step reads."""
    ran = []

    def run_verb(words):
        ran.append(words)
        out = dict(zip(words, words[1:], strict=False))
        if words[0] == "demo":
            write_demo(tmp_path / out["--workdir"], int(out["--seed"]), words)
        elif words[0] == "prepare":
            (tmp_path / out["--out"]).mkdir()
        else:
            (tmp_path / out["--workdir"]).mkdir()
            (tmp_path / out["--workdir"] / "trials.json").write_text(json.dumps(make_ablation()))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence, "run_verb", run_verb)
    return ran


def test_demos_are_run_for_every_seed_and_not_again(verbs, tmp_path):
    evidence.main_evidence([CONFIG, "--workdir", "e", "--offline"])
    assert [words[0] for words in verbs] == ["demo", "demo", "prepare", "sweep"]
    assert [words[4] for words in verbs[:2]] == ["0", "1"] and "--offline" in verbs[0]
    assert CONFIG in verbs[3] and "model.checkpoint=e/seed-0/base" in verbs[3]
    assert (tmp_path / "e" / "evidence.md").read_text().startswith("`ellama evidence --config=")


def test_the_same_command_skips_demos_that_are_done_and_another_one_is_refused(verbs):
    argv = ["--config", CONFIG.partition("=")[2], "--workdir", "e"]
    evidence.main_evidence(argv)
    (evidence.Path("e/ablation/trials.json")).unlink()
    for name in ("ablation", "heldout"):
        evidence.Path("e", name).rmdir()
    verbs.clear()
    evidence.main_evidence(argv)
    assert [words[0] for words in verbs] == ["prepare", "sweep"]
    assert verbs[1][1] == CONFIG
    with pytest.raises(
        ValueError, match="new or of the same command, got e/seed-0 of `ellama demo"
    ):
        evidence.main_evidence([*argv, "--offline"])


def test_the_page_replaces_what_stands_between_the_marks(verbs, tmp_path):
    results = tmp_path / "RESULTS.md"
    results.write_text(f"# Results\n{BEGIN}\nold\n{END}\nafter\n")
    evidence.main_evidence([CONFIG, "--workdir", "e", "--write", "RESULTS.md"])
    text = results.read_text()
    assert text.startswith(f"# Results\n{BEGIN}\n`ellama evidence") and "old" not in text
    assert text.endswith(f"{END}\nafter\n")


def test_a_file_without_marks_or_a_config_of_no_demo_is_refused_before_anything_runs(
    verbs, tmp_path
):
    (tmp_path / "no.md").write_text("# Results\n")
    with pytest.raises(ValueError, match="--write: no.md must have the lines"):
        evidence.main_evidence([CONFIG, "--write", "no.md"])
    other = f"--config={configs_dir() / 'sweeps' / 'warmup.py'}:ellama.py:8b_v5p-256"
    with pytest.raises(
        ValueError, match="must be a sweep over demo.py:smollm2-135m or demo.py:tiny"
    ):
        evidence.main_evidence([other])
    assert not verbs
