"""Adaptation and forgetting against SciPy's bootstrap and NumPy's means; the gate at its limits."""

import json

import numpy as np
import pytest
from scipy import stats

from ellama_jax.config import GateConfig, check_gate
from ellama_jax.core.estimate import pair
from ellama_jax.evaluate import card_text, comparison, retention, score_table


def make_result(task, language, correct, domain="general", ids=None):
    ids = ids or [f"{task}/{number:03}/{language}" for number in range(len(correct))]
    correct = [int(x) for x in correct]
    return {
        "task": task, "domain": domain, "language": language, "metric": "accuracy",
        "value": float(np.mean(correct)), "stderr": 0.1, "n": len(correct), "chance": 0.25,
        "higher_is_better": True, "correct": correct, "ids": ids,
    }  # fmt: skip


def make_text_result(language, bits, sizes, domain="general"):
    return {
        "task": "bits_per_byte", "domain": domain, "language": language, "stderr": None,
        "metric": "bits_per_byte", "value": sum(bits) / sum(sizes), "n": len(bits), "chance": None,
        "higher_is_better": False, "correct": None, "bits": list(bits), "bytes": list(sizes),
        "ids": [f"{language}{number:03}" for number in range(len(bits))],
    }  # fmt: skip


def make_card(model, *results):
    return {"model": model, "checkpoint": None, "made_with": {}, "results": list(results)}


def draw(seed, count, share):
    return (np.random.default_rng(seed).random(count) < share).astype(int)


def test_a_change_is_the_estimators_of_its_answers():
    before, after = draw(1, 60, 0.5), draw(2, 60, 0.6)
    found = retention.compare(
        make_card("base", make_result("t", "en", before)),
        make_card("other", make_result("t", "en", after)),
    )["cells"][0]
    sums = np.stack([before, after]).astype(float)[..., None]
    expected = pair(sums, np.ones((60, 1)), np.array([True]))
    assert (found["low"], found["high"]) == pytest.approx(expected.relative())
    assert (found["difference_low"], found["difference_high"]) == pytest.approx(
        expected.difference()
    )
    assert found["change"] == pytest.approx(after.mean() / before.mean() - 1)
    assert found["difference"] == pytest.approx(after.mean() - before.mean())
    assert found["clusters"] == found["n"] == 60


def test_a_ratio_of_sums_is_taken_by_document():
    """Bits and bytes of one document stay together; SciPy's bootstrap of documents is about the same."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 60)
    before = sizes * rng.normal(1.0, 0.1, 60)
    after = before * rng.normal(1.05, 0.05, 60)
    found = retention.compare(
        make_card("base", make_text_result("de", before, sizes.tolist())),
        make_card("other", make_text_result("de", after, sizes.tolist())),
    )["overall"]["bpb_general"]
    drawn = stats.bootstrap(
        (before, after), lambda a, b, axis: b.sum(axis) / a.sum(axis) - 1, paired=True,
        n_resamples=4000, vectorized=True, random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert [found["low"], found["high"]] == pytest.approx([drawn.low, drawn.high], abs=0.003)
    assert found["value"] == pytest.approx(after.sum() / sizes.sum())
    assert found["change"] == pytest.approx(after.sum() / before.sum() - 1)


def test_translations_of_a_question_and_tasks_of_a_product_are_drawn_together():
    """Ten copies of the same answers are no more evidence than one."""
    before, after = draw(1, 80, 0.5), draw(2, 80, 0.5)
    one, ten = (
        retention.compare(
            make_card("base", *(make_result("t", code, before) for code in codes)),
            make_card("other", *(make_result("t", code, after) for code in codes)),
        )["overall"]["general"]
        for codes in (["en"], list("abcdefghij"))
    )
    for key in ("change", "low", "high"):
        assert ten[key] == pytest.approx(one[key])
    assert (one["n"], ten["n"]) == (80, 800)
    apart = retention.compare(
        make_card("base", *(make_result(f"t{i}", "en", np.roll(before, i)) for i in range(10))),
        make_card("other", *(
            make_result(f"t{i}", "en", np.roll(after, i)) for i in range(10))),
    )["overall"]["general"]  # fmt: skip
    assert apart["high"] - apart["low"] < (one["high"] - one["low"]) * 0.6


BASE = make_card(
    "base",
    make_result("aspect", "en", [1, 0, 0, 0] * 8, "ecommerce"),
    make_result("aspect", "de", [1, 0, 1, 0] * 8, "ecommerce"),
    make_result("price", "en", [1, 1, 0, 0] * 8, "ecommerce"),
    make_result("mmlu", "en", [1, 1, 1, 0] * 8),
    make_result("mmlu", "de", [1, 1, 0, 0] * 8),
    make_text_result("en", [10.0, 30.0] * 4, [10, 20] * 4),
)
ADAPTED = make_card(
    "adapted",
    make_result("aspect", "en", [1, 1, 1, 0] * 8, "ecommerce"),
    make_result("aspect", "de", [1, 1, 1, 0] * 8, "ecommerce"),
    make_result("price", "en", [1, 1, 0, 0] * 8, "ecommerce"),
    make_result("mmlu", "en", [1, 1, 0, 0] * 8),
    make_result("mmlu", "de", [1, 1, 0, 0] * 8),
    make_text_result("en", [11.0, 33.0] * 4, [10, 20] * 4),
)


def test_means_are_those_of_the_summary():
    """Two modules, one definition: `comparison.summary` on each card alone."""
    before, after = comparison.summary(BASE), comparison.summary(ADAPTED)
    overall = retention.compare(BASE, ADAPTED)["overall"]
    assert set(overall) == {n for n, x in before.items() if x is not None and "stderr" not in n}
    for name, row in overall.items():
        assert row["base"] == pytest.approx(before[name])
        assert row["value"] == pytest.approx(after[name])
        assert row["change"] == pytest.approx(after[name] / before[name] - 1)
        assert row["low"] <= row["change"] <= row["high"]


def test_only_what_both_were_asked_counts():
    fewer = make_card(
        "fewer", make_result("mmlu", "en", [1, 0], ids=["mmlu/001/en", "mmlu/003/en"]),
        make_result("arc", "en", [1]),
    )  # fmt: skip
    found = retention.compare(BASE, fewer)
    assert found["overall"]["general"]["n"] == 2
    assert found["overall"]["general"]["base"] == 0.5  # answers 1 and 3 of the base: right, wrong
    assert found["left_out"] == 6
    with pytest.raises(
        ValueError, match="base and x: must share a question, word for word, got none"
    ):
        retention.compare(BASE, make_card("x", make_result("arc", "en", [1])))


def test_a_scorecard_without_single_answers_has_changes_and_no_intervals():
    old = json.loads(json.dumps([BASE, ADAPTED]))
    for card in old:
        del card["results"][-1]["bits"]
    found = retention.compare(*old)["overall"]
    assert found["bpb_general"]["change"] == pytest.approx(0.1)
    assert found["bpb_general"]["low"] is None and found["general"]["low"] is not None


def test_a_base_that_answers_nothing_has_no_relative_change():
    zero = make_card("zero", make_result("mmlu", "en", [0, 0, 0]))
    one = make_card("one", make_result("mmlu", "en", [1, 0, 0]))
    row = retention.compare(zero, one)["overall"]["general"]
    assert row["change"] is row["low"] is None and row["difference"] == pytest.approx(1 / 3)
    gate = retention.check_gate(retention.compare(zero, one), GateConfig())
    assert gate["passed"] is None and "nothing was checked" in card_text.say_gate(gate)


def make_comparison(change, low, high, bits=(0.0, 0.0, 0.0)):
    row = {"base": 0.5, "value": 0.5 * (1 + change), "n": 9, "clusters": 9, "error": 0.05}
    mean = row | {"change": change, "low": low, "high": high}
    text = row | dict(zip(("change", "low", "high"), bits, strict=True))
    languages = [
        {"domain": "general", "metric": "accuracy", "language": "de", **mean},
        {"domain": "general", "metric": "bits_per_byte", "language": "de", **text},
        {"domain": "ecommerce", "metric": "accuracy", "language": "de", **mean, "change": -0.9},
    ]
    return {"overall": {"general": mean}, "by_language": languages}


@pytest.mark.parametrize(
    ("interval", "passes"),
    [
        ((-0.005, -0.02, 0.01), {"certain": True, "likely": True, "possible": False}),
        ((-0.02, -0.04, 0.0), {"certain": True, "likely": False, "possible": False}),
        ((-0.03, -0.045, -0.015), {"certain": False, "likely": False, "possible": False}),
        ((0.02, 0.01, 0.03), {"certain": True, "likely": True, "possible": True}),
        ((-0.02, None, None), {"certain": None, "likely": None, "possible": None}),
        ((-0.01, -0.01, -0.01), {"certain": True, "likely": True, "possible": True}),
    ],
)
def test_the_gate_takes_the_interval_into_account_as_asked(interval, passes):
    for fails_when, passed in passes.items():
        gate = GateConfig(fails_when=fails_when, language=-0.5)
        assert retention.check_gate(make_comparison(*interval), gate)["passed"] is passed


def test_of_bits_per_byte_more_is_worse():
    for bits, passed in (((0.05, 0.04, 0.06), False), ((0.05, 0.02, 0.07), True),
                         ((-0.5, -0.6, -0.4), True)):  # fmt: skip
        gate = retention.check_gate(make_comparison(0, 0, 0, bits), GateConfig())
        assert gate["passed"] is passed
        assert [check["rule"] for check in gate["checks"]] == [
            "general_mean", "language", "bits_per_byte",
        ]  # fmt: skip


def test_the_gate_says_what_was_broken_and_by_how_much():
    found = retention.check_gate(make_comparison(-0.1, -0.12, -0.08), GateConfig())
    assert card_text.say_gate(found) == (
        "retention gate: FAILED: general mean -10.0 % [-12.0, -8.0], limit -1.0 %; "
        "general de -10.0 % [-12.0, -8.0], limit -3.0 %."
    )
    few = retention.check_gate(make_comparison(-1.0, None, None), GateConfig())
    assert few["passed"] is None
    assert card_text.say_gate(few).startswith(
        "retention gate: CANNOT TELL: general mean -100.0 %, limit -1.0 %: too few to decide (9 products or "
        "questions, about "
    )
    passed = retention.check_gate(make_comparison(0.0, -0.005, 0.005), GateConfig())
    assert card_text.say_gate(passed) == (
        "retention gate: passed, 3 rules; closest: general mean +0.0 % [-0.5, +0.5], limit -1.0 %."
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"action": "halt"}, "^evaluate.gate.action: must be one of off, warn, stop, got halt"),
        ({"fails_when": "x"}, "^evaluate.gate.fails_when: must be one of certain, likely"),
        ({"general_mean": 0.01}, r"^evaluate.gate.general_mean: must lie in \(-1, 0\], as -0.01"),
        ({"language": -3.0}, r"^evaluate.gate.language: must lie in \(-1, 0\]"),
        ({"bits_per_byte": -0.1}, "^evaluate.gate.bits_per_byte: must not be negative"),
    ],
)
def test_rules_that_cannot_hold_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        check_gate(GateConfig(**keys))


def test_the_markdown_has_every_number_a_reader_asks_for():
    found = retention.compare(BASE, ADAPTED)
    gate = retention.check_gate(found, GateConfig(fails_when="likely"))
    text = card_text.format_markdown([BASE, ADAPTED], [found], [gate])
    lines = text.split("\n")
    row = next(line for line in lines if line.startswith("| e-commerce, English"))
    assert row.startswith("| e-commerce, English | 37.5 % | 62.5 %, +25.0 points [")
    text_row = next(line for line in lines if line.startswith("| bits per byte, general"))
    assert text_row.startswith("| bits per byte, general text | 1.333 | 1.467, -10.0 % [")
    assert "- `adapted`: FAILED: general mean -20.0 %" in text
    assert "fails where the change itself is beyond the limit" in text
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables[:6]}) == 1
    assert score_table.format_table([BASE, ADAPTED]) in text
