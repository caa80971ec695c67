"""What the trials of a sweep came to, and which setting is best."""

import dataclasses
import json
import math
import re

import pytest
from scipy import stats

from ellama_jax.experiments.sweep_grid import Rule, Setting, Sweep
from ellama_jax.experiments.sweep_results import axis_rows, judge, pooled_spread, read_changes
from ellama_jax.experiments.sweep_show import settings_rows

AXES = {"lr": ("low", "mid", "high")}


def make_sweep(rule=None, seeds=2):
    settings = tuple(
        Setting({"lr": label}, tuple(f"{label}-{seed}" for seed in range(seeds)))
        for label in AXES["lr"]
    )
    return Sweep("Rates", (), settings, AXES, rule or Rule(), False)


def losses(ecommerce, general):
    return {
        "eval_loss": 0.0,
        "eval_loss/ecommerce/en": ecommerce - 0.01, "eval_loss/ecommerce/de": ecommerce + 0.01,
        "eval_loss/general/en": general, "eval_loss/general/de": general,
    }  # fmt: skip


DONE = {
    "low-0": losses(-0.10, -0.01), "low-1": losses(-0.12, -0.01),
    "mid-0": losses(-0.30, 0.004), "mid-1": losses(-0.34, 0.008),
    "high-0": losses(-0.50, 0.09), "high-1": losses(-0.50, 0.07),
}  # fmt: skip


def test_the_best_gains_most_of_those_that_keep_enough():
    found = judge(make_sweep(), DONE)
    assert found["chosen"] == {"lr": "mid"}
    assert [row["labels"]["lr"] for row in found["settings"]] == ["mid", "low", "high"]
    assert [row["keeps"] for row in found["settings"]] == [True, True, False]
    mid = found["settings"][0]
    assert mid["gain"]["mean"] == pytest.approx(0.32)
    assert mid["keep"]["mean"] == pytest.approx(-0.006)
    assert found["sentence"].startswith("Best of 3: lr mid (eval_loss/ecommerce better by +32.0 %")
    assert "1 of them lose more of eval_loss/general than 1 %" in found["sentence"]


def test_a_wider_limit_chooses_another_and_none_left_takes_what_loses_least():
    assert judge(make_sweep(Rule(limit=0.1)), DONE)["chosen"] == {"lr": "high"}
    worse = {name: losses(-0.1, 0.02 + 0.01 * n) for n, name in enumerate(DONE)}
    found = judge(make_sweep(), worse)
    assert found["chosen"] == {"lr": "low"}
    assert found["sentence"].startswith("All 3 lose more")


def test_scores_are_better_when_they_rise():
    rule = Rule(gain="eval_score/ecommerce", keep="eval_score/general")
    done = {
        f"{label}-0": {"eval_score/ecommerce": gain, "eval_score/general": keep}
        for label, gain, keep in (("low", 0.1, 0.0), ("mid", 0.5, -0.2), ("high", 0.3, 0.02))
    }
    found = judge(make_sweep(rule, seeds=1), done)
    assert found["chosen"] == {"lr": "high"}
    assert not next(r for r in found["settings"] if r["labels"]["lr"] == "mid")["keeps"]


def test_the_interval_is_that_of_student_s_t_with_the_spread_pooled_over_settings():
    groups = [[1.0, 3.0, 2.0], [10.0, 11.0], [5.0]]
    deviation, freedom = pooled_spread(groups)
    # Of an analysis of variance: the mean square within groups.
    residuals = [x - sum(g) / len(g) for g in groups for x in g]
    assert freedom == 3 and deviation == pytest.approx(math.sqrt(sum(r * r for r in residuals) / 3))
    half = judge(make_sweep(), DONE)["settings"][0]["gain"]["half"]
    spread = math.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 3)
    low, high = stats.t.interval(0.95, 3, scale=spread / math.sqrt(2))
    assert half == pytest.approx(high) == pytest.approx(-low)


def test_one_seed_gives_no_interval():
    once = {name: changes for name, changes in DONE.items() if name.endswith("0")}
    found = judge(make_sweep(), once)
    assert {row["gain"]["half"] for row in found["settings"]} == {None}
    assert "[" not in found["sentence"]


def test_settings_that_share_trials_do_not_make_the_spread_look_surer():
    sweep = make_sweep()
    twin = Setting({"mix": "same"}, sweep.settings[1].trials)
    twice = Sweep("x", (), (*sweep.settings, twin), {**AXES, "mix": ("same",)}, Rule(), False)
    halves = [judge(s, DONE)["settings"][0]["gain"]["half"] for s in (sweep, twice)]
    assert halves[0] == halves[1]


def test_what_is_not_done_or_lacks_a_metric_is_left_out():
    some = {"mid-0": DONE["mid-0"], "low-0": {"eval_loss": 0.1}}
    found = judge(make_sweep(), some)
    assert [row["labels"] for row in found["settings"]] == [{"lr": "mid"}]
    assert judge(make_sweep(), {})["sentence"] == "No trial is done yet."


def test_an_axis_stands_in_its_own_order():
    found = {**judge(make_sweep(), DONE), "axes": AXES}
    rows = axis_rows(found, "lr")
    assert [row["label"] for row in rows] == ["low", "mid", "high"]
    assert rows[2]["gain"]["mean"] == pytest.approx(0.5)


def test_changes_are_those_between_the_first_and_the_last_step(tmp_path):
    records = [
        {"step": 0, "eval_loss": 4.0, "eval_loss/general/en": 2.0, "eval_score/mmlu": 0.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 3.0, "eval_loss": 3.0, "eval_loss/general/en": 2.5, "eval_score/mmlu": 1.0},
    ]  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:2]))
    assert read_changes(tmp_path, 2) is None
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_changes(tmp_path, 2) == {"eval_loss": -0.25, "eval_loss/general/en": 0.25}
    assert read_changes(tmp_path, 3) is None and read_changes(tmp_path / "none", 2) is None


def test_a_lead_within_the_spread_of_seeds_is_said_to_be_noise():
    assert "noise" not in judge(make_sweep(), DONE)["sentence"]
    close = {**DONE, "low-0": losses(-0.25, -0.01), "low-1": losses(-0.38, -0.01)}
    said = judge(make_sweep(), close)["sentence"]
    wanted = re.search(
        r"Its lead over lr low is within the noise of the seeds: 2, about ([\d,]+) needed", said
    )
    assert int(wanted[1].replace(",", "")) > 2
    once = {name: change for name, change in DONE.items() if name.endswith("0")}
    said = judge(make_sweep(seeds=1), once)["sentence"]
    assert "With one seed a setting nothing tells its lead over lr low from noise." in said


def test_a_default_that_stands_on_two_axes_is_one_row():
    sweep = make_sweep()
    same = Setting({"wd": "0.1"}, sweep.settings[1].trials)
    found = judge(dataclasses.replace(sweep, settings=(*sweep.settings, same)), DONE)
    rows = settings_rows(found)
    assert [row[0] for row in rows] == ["lr mid = wd 0.1", "lr low", "lr high"]
    assert [row[-1] for row in rows] == ["best", "", "loses too much"]
    assert found["sentence"].startswith("Best of 3: lr mid = wd 0.1 (")
