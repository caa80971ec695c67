"""Averages, paired differences and the table, on scorecards written by hand."""

import numpy as np
import pytest

from ellama_jax.evaluate import comparison, retention, score_table
from ellama_jax.evaluate.choices import question_print


def make_result(task, language, correct, domain="ecommerce", **changes):
    value = float(np.mean(correct))
    return {
        "task": task, "domain": domain, "language": language, "metric": "accuracy",
        "value": value, "stderr": 0.1, "n": len(correct), "chance": 0.25,
        "higher_is_better": True, "correct": correct,
        "ids": [f"{task}/{number}/{language}" for number in range(len(correct))], **changes,
    }  # fmt: skip


def make_text_result(domain, language, value):
    return {
        "task": "bits_per_byte", "domain": domain, "language": language,
        "metric": "bits_per_byte", "value": value, "stderr": 0.02, "n": 3, "chance": None,
        "higher_is_better": False, "correct": None,
    }  # fmt: skip


def make_card(model, *results):
    return {"model": model, "checkpoint": None, "made_with": {}, "results": list(results)}


BASE = make_card(
    "base",
    make_result("aspect", "en", [1, 0, 0, 0]),
    make_result("aspect", "de", [1, 0, 1, 0]),
    make_result("aspect", "fr", [0, 0, 0, 0]),
    make_result("price", "en", [1, 1, 0, 0]),
    make_result("aspect", "en", [1, 1, 1, 1], metric="accuracy_unnormalised"),
    make_result("mmlu", "en", [1, 0], domain="general"),
    make_text_result("general", "en", 1.0),
    make_text_result("general", "de", 1.5),
)
ADAPTED = make_card(
    "adapted",
    make_result("aspect", "en", [1, 1, 1, 0]),
    make_result("aspect", "de", [1, 1, 1, 0]),
    make_result("aspect", "fr", [0, 1, 0, 0]),
    make_result("price", "en", [1, 1, 0, 0]),
    make_result("mmlu", "en", [0, 0], domain="general"),
    make_text_result("general", "en", 1.1),
    make_text_result("general", "de", 1.4),
)


def test_a_summary_weighs_every_task_and_language_alike():
    means = comparison.summary(BASE)
    assert means["ecommerce_en"] == pytest.approx((0.25 + 0.5) / 2)
    assert means["ecommerce_other"] == pytest.approx((0.5 + 0.0) / 2)
    assert means["ecommerce"] == pytest.approx((0.25 + 0.5 + 0.0 + 0.5) / 4)
    assert means["general"] == 0.5
    assert means["bpb_general"] == 1.25
    assert means["ecommerce_en_stderr"] == pytest.approx(np.hypot(0.1, 0.1) / 2)


def test_what_was_not_scored_is_none():
    means = comparison.summary(make_card("empty"))
    assert set(means.values()) == {None}
    assert comparison.summary(BASE)["bpb_ecommerce"] is None


def test_one_unknown_error_makes_the_mean_error_unknown():
    cells = [make_result("a", "en", [1]), make_result("b", "en", [0], stderr=None)]
    assert comparison.mean_of_cells(cells) == (0.5, None)


def test_a_paired_difference_is_that_of_the_shared_items():
    mean, stderr, count = comparison.paired_difference(BASE, ADAPTED, domain="ecommerce")
    differences = [0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert (mean, count) == (np.mean(differences), 16)
    assert stderr == pytest.approx(np.std(differences, ddof=1) / 4)
    assert comparison.paired_difference(BASE, ADAPTED, domain="general")[:1] == (-0.5,)
    fewer = make_card("fewer", make_result("price", "en", [0]))
    assert comparison.paired_difference(BASE, fewer) == (-1.0, None, 1)


def test_questions_of_one_name_that_ask_something_else_are_not_paired():
    """As those of a benchmark that was built anew from another seed."""
    before = make_card("a", make_result("price", "en", [1, 0, 0], asked=["p", "q", "r"]))
    after = make_card("b", make_result("price", "en", [0, 1, 1], asked=["p", "q", "other"]))
    assert comparison.paired_difference(before, after)[::2] == (0.0, 2)
    cell = retention.compare(before, after)["cells"][0]
    assert (cell["n"], cell["base"], cell["value"]) == (2, 0.5, 0.5)
    unnamed = make_card("c", make_result("price", "en", [0, 1, 1]))  # as older scorecards are
    assert comparison.paired_difference(before, unnamed)[2] == 3


def test_what_an_item_asks_tells_questions_apart():
    item = {"id": "x", "context": "Price:", "choices": [" 1", " 2"], "answer": 0}
    printed = question_print(item)
    assert printed == question_print({**item, "id": "y", "split": "test"})
    for change in ({"context": "Cost:"}, {"choices": [" 2", " 1"]}, {"answer": 1}):
        assert question_print({**item, **change}) != printed


def test_models_without_shared_items_cannot_be_paired():
    with pytest.raises(ValueError, match="base and other: must share an item"):
        comparison.paired_difference(BASE, make_card("other"))


TABLE = """\
task                     languages        n  chance          base       adapted  adapted gain
---------------------------------------------------------------------------------------------
aspect                   English          4      25    25.0 ±10.0    75.0 ±10.0     +50.0 pt
                         other languages  8      25     25.0 ±7.1     50.0 ±7.1     +25.0 pt
price                    English          4      25    50.0 ±10.0    50.0 ±10.0      +0.0 pt
mmlu                     English          2      25    50.0 ±10.0     0.0 ±10.0     -50.0 pt
bits_per_byte (general)  English          3          1.000 ±0.020  1.100 ±0.020      -10.0 %
                         other languages  3          1.500 ±0.020  1.400 ±0.020       +6.7 %
e-commerce average       English          8      25     37.5 ±7.1     62.5 ±7.1     +25.0 pt
e-commerce average       other languages  8      25     25.0 ±7.1     50.0 ±7.1     +25.0 pt
accuracies in % with standard error; bits per byte: lower is better
gain: points, or the part of the bits per byte that went; up is better, * where its 95 % interval excludes 0"""


def test_the_table_in_full():
    assert score_table.format_table([BASE, ADAPTED]) == TABLE


def test_one_model_has_no_gain_and_many_models_neither():
    assert "gain" not in score_table.format_table([BASE])
    assert "gain" not in score_table.format_table([BASE, ADAPTED, BASE, ADAPTED])


def test_a_task_one_model_lacks_is_a_dash(capsys):
    lacking = make_card("lacking", make_result("aspect", "en", [1, 0]))
    score_table.print_table([BASE, lacking])
    price = next(line for line in capsys.readouterr().out.split("\n") if line.startswith("price"))
    assert price.split()[-1] == "-"
