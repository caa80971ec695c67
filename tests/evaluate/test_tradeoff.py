"""The rule on hand-written scorecards, and a sweep of two tiny checkpoints."""

import json

import jax
import pytest

from ellama_jax.data import catalogue, listings
from ellama_jax.evaluate import benchmark, ecommerce, scorecard, tradeoff
from ellama_jax.weights import checkpoint

RECORDS = list(catalogue.generate_listings(0, 15))
ITEMS = ecommerce.build_items(RECORDS, seed=0, items_per_task=2, languages=["en", "it"])
TEXTS = [listings.listing_to_text_record(record, seed=0) for record in RECORDS[:5]]


def make_card(ecommerce_accuracy, general_correct, bpb=1.0):
    accuracy = {"metric": "accuracy", "stderr": 0.01, "chance": 0.25, "language": "en"}
    general = [1] * general_correct + [0] * (1000 - general_correct)
    return {
        "model": "m", "made_with": {}, "results": [
            {"task": "t", "domain": "ecommerce", "value": ecommerce_accuracy, "ids": [],
             "correct": [], **accuracy},
            {"task": "mmlu", "domain": "general", "value": general_correct / 1000,
             "ids": list(range(1000)), "correct": general, **accuracy},
            {"task": "bits_per_byte", "domain": "general", "metric": "bits_per_byte",
             "language": "en", "value": bpb, "stderr": 0.01},
        ],
    }  # fmt: skip


def choose(**cards):
    return tradeoff.choose_alpha({float(k[1:]) / 10: card for k, card in cards.items()})


def test_the_best_at_e_commerce_is_chosen_where_all_keep_general_ability():
    found = choose(a0=make_card(0.3, 500), a5=make_card(0.6, 500), a10=make_card(0.5, 499))
    assert found["chosen"] == 0.5
    assert [point["keeps_general"] for point in found["alphas"]] == [True] * 3
    assert [point["ecommerce"] for point in found["alphas"]] == [0.3, 0.6, 0.5]


def test_an_alpha_that_forgets_is_passed_over():
    # 20 of 1000 questions lost: two points, with a paired standard error under half a point.
    found = choose(a0=make_card(0.3, 500), a5=make_card(0.5, 491), a10=make_card(0.9, 480))
    assert found["chosen"] == 0.5
    assert [point["keeps_general"] for point in found["alphas"]] == [True, True, False]


def test_an_alpha_that_writes_general_text_worse_is_passed_over():
    cards = {
        "a0": make_card(0.3, 500, bpb=1.0),
        "a5": make_card(0.5, 500, bpb=1.01),
        "a10": make_card(0.9, 500, bpb=1.011),
    }
    assert choose(**cards)["chosen"] == 0.5


def test_of_equals_the_smaller_alpha_is_chosen():
    found = choose(a0=make_card(0.3, 500), a5=make_card(0.6, 500), a10=make_card(0.6, 500))
    assert found["chosen"] == 0.5


def test_if_every_merge_forgets_the_base_remains():
    assert choose(a0=make_card(0.3, 500), a10=make_card(0.9, 100))["chosen"] == 0.0


def test_without_e_commerce_items_nothing_can_be_chosen():
    card = make_card(0.3, 500)
    card["results"] = card["results"][1:]
    with pytest.raises(ValueError, match="needs e-commerce items"):
        choose(a0=card)


@pytest.fixture(scope="module")
def sweep(checkpoints, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, tradeoff.sweep_alphas(
        checkpoints["base"], checkpoints["adapted"], [0.5, 1.0], ITEMS, TEXTS, workdir, keep=True
    )


def test_a_sweep_scores_base_and_every_alpha(sweep, checkpoints):
    workdir, found = sweep
    assert [point["alpha"] for point in found["alphas"]] == [0.0, 0.5, 1.0]
    assert json.loads((workdir / "sweep.json").read_text()) == found
    assert found["rule"] == tradeoff.RULE
    for point, name in ((found["alphas"][0], "base"), (found["alphas"][2], "adapted")):
        card = scorecard.evaluate_checkpoint(checkpoints[name], ITEMS, TEXTS)
        assert point["scorecard"]["results"] == card["results"]


def test_kept_merges_are_checkpoints_with_the_same_scores(sweep):
    workdir, found = sweep
    card = scorecard.evaluate_checkpoint(workdir / "merged-0.5", ITEMS, TEXTS)
    assert card["results"] == found["alphas"][1]["scorecard"]["results"]


def test_known_scorecards_are_used_and_not_scored_again(sweep, checkpoints, tmp_path, monkeypatch):
    _, found = sweep
    known = {point["alpha"]: point["scorecard"] for point in found["alphas"]}

    def fail(*args, **kwargs):
        raise AssertionError("scored again")

    monkeypatch.setattr(tradeoff, "evaluate_params", fail)
    roots = checkpoints["base"], checkpoints["adapted"]
    again = tradeoff.sweep_alphas(*roots, [0.5, 1.0], ITEMS, TEXTS, tmp_path, known=known)
    assert again["alphas"] == found["alphas"]


def test_a_known_scorecard_of_other_questions_is_refused(sweep, checkpoints, tmp_path):
    _, found = sweep
    known = {0.0: found["alphas"][0]["scorecard"]}
    roots = checkpoints["base"], checkpoints["adapted"]
    with pytest.raises(ValueError, match="alpha 0: must answer the same items"):
        tradeoff.sweep_alphas(*roots, [1.0], ITEMS[1:], TEXTS, tmp_path, known=known)
    assert not (tmp_path / "sweep.json").exists()


def test_models_of_other_sizes_or_tokenizers_are_refused(checkpoints, tmp_path, monkeypatch):
    config = checkpoint.find_checkpoint(checkpoints["base"]).config
    params = jax.tree.map(lambda x: x[:1] if x.ndim > 2 else x, {})
    loaded = iter([(params, config, _Tokenizer("a"), {}), (params, config, _Tokenizer("b"), {})])
    monkeypatch.setattr(tradeoff, "load_model", lambda path: next(loaded))
    with pytest.raises(ValueError, match="must share a tokenizer"):
        tradeoff.sweep_alphas("b", "a", [1.0], ITEMS, TEXTS, tmp_path)


class _Tokenizer:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def test_alphas_are_numbers():
    assert tradeoff.parse_alphas("0,0.5, 1") == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="--alphas: must be numbers and commas, got 0;1"):
        tradeoff.parse_alphas("0;1")


def test_the_verb_prints_the_curve_and_the_choice(checkpoints, tmp_path, capsys):
    source = tmp_path / "catalogue.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    bench = tmp_path / "bench"
    benchmark.main_build_benchmark([str(source), str(bench), "--heldout-frac", "0.6"])
    tradeoff.main_merge_sweep([
        "--base", str(checkpoints["base"]), "--adapted", str(checkpoints["adapted"]),
        "--workdir", str(tmp_path / "run"), "--tasks", "ecommerce", "--benchmark", str(bench),
        "--split", "test", "--limit", "1", "--alphas", "0,1",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "alpha 0" in said and "alpha 1" in said and "\nchosen: alpha" in said
    written = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert written["command"].startswith("ellama merge-sweep --base")
