"""What multiple-choice items come to, on log-probabilities written by hand."""

import math

import numpy as np
import pytest

from ellama_jax.evaluate import answers, choices


def make_item(number, texts, answer, credits=None, language="en"):
    item = {
        "id": f"rating/{number}/{language}", "task": "rating", "domain": "ecommerce",
        "language": language, "choices": texts, "answer": answer,
    }  # fmt: skip
    return item if credits is None else item | {"credits": credits}


def test_choices_are_compared_by_log_probability_per_byte():
    texts = [" ab", " abcdefgh"]
    assert choices.pick_choice(texts, [-2.0, -6.0]) == 1  # -1.0 a byte against -0.75
    assert choices.pick_choice(texts, [-2.0, -6.0], normalise=False) == 0
    # "é" is two bytes: -0.75 a byte beats -1.0.
    assert choices.pick_choice([" aé", " abc"], [-2.25, -3.0]) == 0


STARS = [f" {n}" for n in range(1, 6)]
RATED = [
    make_item(0, STARS, 4, [0.0, 0.25, 0.5, 0.75, 1.0]),
    make_item(1, STARS, 0, [1.0, 0.75, 0.5, 0.25, 0.0]),
    make_item(2, STARS, 2, [0.0, 0.5, 1.0, 0.5, 0.0]),
]
# Four stars of five, one of one, and one of three.
SAID = [[-9, -9, -9, -1, -2], [-1, -9, -9, -9, -9], [-1, -2, -3, -4, -5]]


def test_credit_is_the_worth_of_the_choice_that_accuracy_judges():
    cells = {cell["metric"]: cell for cell in choices.choice_results(RATED, SAID)}
    assert set(cells) == {"accuracy", "accuracy_unnormalised", "credit"}
    assert cells["accuracy"]["correct"] == [0, 1, 0]
    credit = cells["credit"]
    assert credit["values"] == [0.75, 1.0, 0.0]
    assert credit["value"] == pytest.approx(1.75 / 3)
    assert credit["stderr"] == pytest.approx(np.std([0.75, 1, 0], ddof=1) / math.sqrt(3))
    assert credit["chance"] == pytest.approx((0.5 + 0.5 + 0.4) / 3)
    assert (credit["n"], credit["correct"], credit["higher_is_better"]) == (3, None, True)
    assert credit["ids"] == [item["id"] for item in RATED]


def test_credit_is_that_of_the_tasks_that_lm_eval_runs():
    """Of choices as long as each other, its acc_norm prefers what `pick_choice` does."""
    cells = {cell["metric"]: cell for cell in choices.choice_results(RATED, SAID)}
    for number, (item, said) in enumerate(zip(RATED, SAID, strict=True)):
        found = answers.process_choices(item, [(score, False) for score in said])
        assert found["credit"] == cells["credit"]["values"][number]
        assert found["acc_norm"] == cells["accuracy"]["correct"][number]


def test_choices_that_are_equally_wrong_have_no_credit():
    plain = [make_item(0, STARS, 1), make_item(1, STARS, 1, language="de")]
    cells = choices.choice_results(plain, SAID[:2])
    assert [(cell["language"], cell["metric"]) for cell in cells] == [
        (code, metric)
        for code in ("en", "de")
        for metric in ("accuracy", "accuracy_unnormalised")
    ]  # fmt: skip
    assert {cell["stderr"] for cell in cells} == {None}
