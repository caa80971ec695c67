"""A sweep of two tiny checkpoints: its points, what is written, what is reused, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from ellama_jax.core.estimate import FEWEST
from ellama_jax.corpus import catalogue, listings
from ellama_jax.evaluate import ecommerce, scorecard
from ellama_jax.merge import blend, tradeoff
from ellama_jax.merge.tradeoff import SweepPlan
from ellama_jax.merge.verb import merge_checkpoints
from ellama_jax.weights.checkpoint import find_checkpoint

RECORDS = list(catalogue.generate_listings(0, 15))
ITEMS = ecommerce.build_items(RECORDS, seed=0, items_per_task=2, languages=["en", "it"])
TEXTS = [listings.listing_to_text_record(record, seed=0) for record in RECORDS[:5]]
TEST = ecommerce.build_items(RECORDS[7:], seed=1, items_per_task=1, languages=["en"])
TEST = [item for item in TEST if item["id"] not in {other["id"] for other in ITEMS}]
PLAN = SweepPlan(alphas=(0.0, 0.5, 1.0), adaptive=False)


@pytest.fixture(scope="module")
def done(checkpoints, tmp_path_factory):
    """A workdir and its sweep, with further curves and a line."""
    workdir = tmp_path_factory.mktemp("sweep")
    plan = SweepPlan(alphas=(0.0, 0.5, 1.0), adaptive=False, profiles=("late",), line=3)
    plan = SweepPlan(**{**vars(plan), "extrapolate": True})
    return workdir, tradeoff.sweep(
        checkpoints["base"], checkpoints["adapted"], (ITEMS, TEXTS), workdir, plan, test=(TEST, [])
    )


def flat(card):
    """Values of a scorecard's results in their order."""
    return [(row["task"], row["language"], row["metric"], row["value"]) for row in card["results"]]


def test_a_sweep_scores_base_and_every_alpha(done, checkpoints):
    workdir, found = done
    assert [point["alpha"] for point in found["alphas"]] == [0.0, 0.5, 1.0]
    assert json.loads((workdir / "sweep.json").read_text()) == json.loads(json.dumps(found))
    for point, name in ((found["alphas"][0], "base"), (found["alphas"][2], "adapted")):
        card = scorecard.evaluate_checkpoint(checkpoints[name], ITEMS, TEXTS)
        assert flat(point["scorecard"]) == flat(card)


def test_a_point_is_what_evaluate_says_of_the_merged_checkpoint(done, checkpoints, tmp_path):
    out = tmp_path / "merged"
    merge_checkpoints(checkpoints["base"], checkpoints["adapted"], 0.5, out)
    card = scorecard.evaluate_checkpoint(out, ITEMS, TEXTS)
    point = done[1]["alphas"][1]["scorecard"]
    for ours, theirs in zip(point["results"], card["results"], strict=True):
        if "bits" in ours:
            np.testing.assert_allclose(ours["bits"], theirs["bits"], rtol=1e-5)
        assert ours["correct"] == theirs["correct"]


def test_every_point_has_intervals_overall_and_by_language(done):
    point = done[1]["alphas"][2]
    for name in ("ecommerce", "bpb_ecommerce"):
        change = point["changes"][name]
        assert change["clusters"] > 0
        if change["difference_low"] is None:  # too few to tell
            assert change["clusters"] < FEWEST
        else:
            assert change["difference_low"] <= change["difference"] <= change["difference_high"]
    assert {row["language"] for row in point["by_language"]} == {"en", "it", "de", "fr", "es"} & {
        *(row["language"] for row in point["scorecard"]["results"])
    }


def test_the_test_questions_are_asked_of_three_models_and_choose_nothing(done, checkpoints):
    _, found = done
    cards = found["test"]["scorecards"]
    assert list(cards) == ["base", "chosen", "adapted"]
    asked = {name for row in cards["chosen"]["results"] for name in row["ids"]}
    assert asked == {item["id"] for item in TEST}
    for name in ("base", "adapted"):
        direct = scorecard.evaluate_checkpoint(checkpoints[name], TEST, [])
        assert flat(cards[name]) == flat(direct)
    chosen = {0.0: "base", 1.0: "adapted"}.get(found["chosen"])
    if chosen:
        assert flat(cards["chosen"]) == flat(cards[chosen])
    change = found["test"]["changes"]["adapted"]["overall"]["ecommerce"]
    assert (change["difference_low"] is None) == (change["clusters"] < FEWEST)
    assert found["sentence"].endswith(".")


def test_a_profile_is_another_curve_and_ends_at_another_model(done):
    late = done[1]["profiles"]["late"]
    assert [(point["alpha"], point["profile"]) for point in late] == [(0.5, "late"), (1.0, "late")]
    assert flat(late[1]["scorecard"]) != flat(done[1]["alphas"][2]["scorecard"])


def test_the_line_has_a_point_beyond_both_ends_and_the_curves_own_values(done):
    line = done[1]["line"]["domains"]["ecommerce"]
    assert line["alphas"] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert line["values"][1] == pytest.approx(done[1]["alphas"][0]["bpb_ecommerce"])
    rise = line["values"][2] - (line["values"][1] + line["values"][3]) / 2
    assert line["barrier"] == pytest.approx(rise) and line["at"] == 0.5


def run_again(done, checkpoints, monkeypatch, *, items=ITEMS, **changes):
    """Sweeps in the same workdir again; returns what was found and the models scored anew."""
    scored = []
    original = tradeoff.score_blend

    def count(*args, model, **options):
        scored.append(model)
        return original(*args, model=model, **options)

    monkeypatch.setattr(tradeoff, "score_blend", count)
    plan = SweepPlan(**{**vars(PLAN), **changes})
    roots = checkpoints["base"], checkpoints["adapted"]
    return tradeoff.sweep(*roots, (items, TEXTS), done[0], plan), scored


def test_a_sweep_goes_on_with_the_points_that_are_there(done, checkpoints, monkeypatch):
    written = (done[0] / "sweep.json").read_text()
    found, scored = run_again(done, checkpoints, monkeypatch, alphas=(0.25, 0.5, 1.0))
    assert scored == ["alpha 0.25"]
    assert found["alphas"][2] == done[1]["alphas"][1]
    (done[0] / "sweep.json").write_text(written)


def test_points_of_other_questions_are_scored_anew(done, checkpoints, monkeypatch):
    written = (done[0] / "sweep.json").read_text()
    _, scored = run_again(done, checkpoints, monkeypatch, items=ITEMS[1:], alphas=(0.0, 1.0))
    assert scored == ["alpha 0", "alpha 1"]
    (done[0] / "sweep.json").write_text(written)


def test_a_broken_sweep_leaves_its_points_and_no_result(checkpoints, tmp_path, monkeypatch):
    original = tradeoff.score_blend

    def break_at_1(*args, model, **options):
        if model == "alpha 1":
            raise KeyboardInterrupt
        return original(*args, model=model, **options)

    monkeypatch.setattr(tradeoff, "score_blend", break_at_1)
    roots = checkpoints["base"], checkpoints["adapted"]
    with pytest.raises(KeyboardInterrupt):
        tradeoff.sweep(*roots, (ITEMS, []), tmp_path, PLAN)
    assert not (tmp_path / "sweep.json").exists()
    assert len(list((tmp_path / "sweep-points").iterdir())) == 2
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep-points").iterdir()}
    monkeypatch.setattr(tradeoff, "score_blend", original)
    tradeoff.sweep(*roots, (ITEMS, []), tmp_path, PLAN)
    assert all(path.stat().st_mtime_ns == at for path, at in files.items())
    assert len(list((tmp_path / "sweep-points").iterdir())) == 3


def sweep_to(alpha, checkpoints, workdir, monkeypatch, **options):
    """Sweeps with a rule that chooses `alpha`."""

    def take(points, rule):
        return next(point for point in points if point["alpha"] == alpha)

    monkeypatch.setattr(tradeoff, "choose", take)
    roots = checkpoints["base"], checkpoints["adapted"]
    return tradeoff.sweep(*roots, (ITEMS, []), workdir, PLAN, write_merged=True, **options)


def test_the_chosen_model_is_written_and_an_earlier_one_replaced_only_if_asked(
    checkpoints, tmp_path, monkeypatch
):
    found = sweep_to(0.5, checkpoints, tmp_path, monkeypatch)
    info = find_checkpoint(tmp_path / "merged")
    assert found["checkpoint"] == str(info.path)
    assert (info.meta["provenance"]["kind"], info.meta["provenance"]["alpha"]) == ("merge", 0.5)
    with pytest.raises(ValueError, match="merged: must not exist yet; pass --overwrite"):
        sweep_to(0.5, checkpoints, tmp_path, monkeypatch)
    # Base and adapted are not copied, and the earlier choice does not pass for the new one.
    for alpha, name in ((0.0, "base"), (1.0, "adapted")):
        found = sweep_to(alpha, checkpoints, tmp_path, monkeypatch, overwrite=True)
        assert found["checkpoint"] == str(find_checkpoint(checkpoints[name]).path)
        assert not (tmp_path / "merged").exists()


def test_a_chosen_profile_is_written_as_it_was_scored(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(tradeoff, "choose", lambda points, rule: points[-1])
    plan = SweepPlan(**{**vars(PLAN), "profiles": ("late",)})
    roots = checkpoints["base"], checkpoints["adapted"]
    found = tradeoff.sweep(*roots, (ITEMS, TEXTS), tmp_path, plan, write_merged=True)
    assert (found["chosen"], found["chosen_profile"]) == (1.0, "late")
    card = scorecard.evaluate_checkpoint(found["checkpoint"], ITEMS, TEXTS)
    scored = found["profiles"]["late"][-1]["scorecard"]
    for ours, theirs in zip(scored["results"], card["results"], strict=True):
        if "bits" in ours:
            np.testing.assert_allclose(ours["bits"], theirs["bits"], rtol=1e-5)


class _Tokenizer:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


@pytest.mark.parametrize(
    ("questions", "test", "changes", "words"),
    [
        (([], TEXTS), None, {}, "needs e-commerce items to choose by, got none"),
        ((ITEMS, []), None, {"rule": tradeoff.SweepConfig(best_by="bits_per_byte")},
         "needs e-commerce texts to choose by, got none; add bits_per_byte to --tasks"),
        ((ITEMS, []), None, {"line": 5}, "--line: must have validation texts to score, got none"),
        ((ITEMS, TEXTS), None, {"line": 2}, "--line: must be 0 or at least 3 alphas, got 2"),
        ((ITEMS, []), ([], []), {}, "needs test questions to report on the choice, got none"),
        ((ITEMS, []), (ITEMS[:1], []), {}, "no test question may choose, got 1 in both splits"),
        (([*ITEMS], TEXTS), ([], TEXTS[:2]), {}, "no test question may choose, got 2 in both"),
        ((ITEMS, []), None, {"alphas": (0.0,)}, "--alphas: must name an alpha beside 0"),
        ((ITEMS, []), None, {"alphas": (0.5, 1.5)}, "alpha: must be from 0 .* got 1.5; pass --ex"),
        ((ITEMS, []), None, {"alphas": (float("nan"),)}, "alpha: must be a finite number, got nan"),
        ((ITEMS, []), None, {"rule": tradeoff.SweepConfig(max_points=1)}, "--max-points: must be a"),
    ],
)  # fmt: skip
def test_what_cannot_choose_or_report_is_refused_and_nothing_is_written(
    checkpoints, tmp_path, questions, test, changes, words
):
    plan = SweepPlan(**{**vars(PLAN), **changes})
    roots = checkpoints["base"], checkpoints["adapted"]
    with pytest.raises(ValueError, match=words):
        tradeoff.sweep(*roots, questions, tmp_path, plan, test=test)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"tokenizer": _Tokenizer("b" * 20)},
            "base and adapted must share a tokenizer, got finger",
        ),
        ({"config": {"mlp_dim": 224}}, "mlp_dim must be equal, got 192 and 224; were both made"),
        ({"config": {"rope_theta": 1.0}}, "rope_theta must be equal"),
        ({"config": {"tied_embeddings": None}}, "tied_embeddings must be equal"),
    ],
)
def test_models_that_differ_are_refused_before_they_are_loaded(
    checkpoints, tmp_path, monkeypatch, change, words
):
    original = blend.find_source

    def find(path, **options):
        source = original(path, **options)
        if path != checkpoints["adapted"]:
            return source
        config = dataclasses.replace(source.config, **change.get("config", {}))
        other = {"tokenizer": change["tokenizer"]} if "tokenizer" in change else {}
        return dataclasses.replace(source, config=config, **other)

    monkeypatch.setattr(tradeoff, "find_source", find)
    monkeypatch.setattr(tradeoff, "load_pair", lambda *args, **options: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=words):
        tradeoff.sweep(checkpoints["base"], checkpoints["adapted"], (ITEMS, []), tmp_path, PLAN)
