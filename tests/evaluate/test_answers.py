"""Scores of generated answers, against literal values, ROUGE's own code and lm-eval's metrics."""

import json
import math
import shutil
import subprocess
import sys

import pytest

from ellama_jax.corpus import prices
from ellama_jax.evaluate import answers


def score(text, metric, *references, **fields):
    return answers.score_answer({"metric": metric, "references": references, **fields}, text)


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        (" Oak\n", "oak"),
        ("„Nussbaum“.", "Nussbaum"),
        ("27,5 cm", "27.5cm"),
        ("S, M, XL", "xl; s; m"),
        ("Coton / Lin", "lin, coton"),
        ("ＵＳＢ-C", "USB-C"),
        ("1,5 l, 2 l", "2 L, 1.5 L"),
        ("\n\nOak\nPrice: 3", "Oak"),
    ],
)
def test_values_that_say_the_same_match(said, truth):
    assert score(said, "value", truth) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("said", "truth", "f1"),
    [
        ("dark oak", "oak", 2 / 3),
        ("S, M", "M", 2 / 3),  # more than asked
        ("M", "M, S", 2 / 3),  # less
        ("the oak", "pine", 0.0),
        ("", "oak", 0.0),
        ("27 cm", "27.5 cm", 0.5),  # the unit, not the number
        ("oak oak oak", "oak", 0.5),  # a word said thrice was right once
    ],
)
def test_other_values_get_the_share_of_their_words(said, truth, f1):
    found = score(said, "value", truth)
    assert found["exact_match"] == 0.0
    assert found["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("said", "depth", "exact"),
    [
        ("home > lamps > Floor lamps", 1.0, 1.0),
        ("Home>Lamps>Table lamps", 2 / 3, 0.0),
        ("Home", 1 / 3, 0.0),
        ("Lamps > Floor lamps", 0.0, 0.0),
        ("Home > Sofas > Floor lamps", 1 / 3, 0.0),  # what comes after a wrong level is wrong
        ("Home > Lamps > Floor lamps > Oak", 1.0, 0.0),
    ],
)
def test_a_category_is_worth_its_shared_levels(said, depth, exact):
    found = score(said, "category", "Home > Lamps > Floor lamps")
    assert found == {"exact_match": exact, "shared_depth": pytest.approx(depth)}


@pytest.mark.parametrize(
    ("said", "recall"),
    [
        ("Color, Size", 1.0),
        ("size; color; brand", 1.0),
        ("1. Size 2. Color", 1.0),
        ("Color, COLOR, Size", 1.0),  # a repetition is no second answer
        ("Brand, Color, Size", 0.5),  # the third of two comes too late
        ("Color", 0.5),
        ("", 0.0),
    ],
)
def test_lists_are_judged_by_their_first_k(said, recall):
    assert score(said, "list", "Size", "Color", k=2) == {"recall_at_k": recall}


def test_any_of_equally_common_aspects_is_right():
    assert score("C, A", "list", "A", "B", "C", k=2) == {"recall_at_k": 1.0}


def test_rouge_is_that_of_the_library_and_knows_umlauts():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    said, truth = "The red lamp for a desk", "Red desk lamp, the best for home"
    expected = scorer.score(truth, said)["rougeL"].fmeasure
    assert 0 < expected < 1
    assert score(said, "title", truth) == {"rouge_l": pytest.approx(expected)}
    # The library's own words end at every letter beyond z.
    assert scorer.score("Größe", "Gräße")["rougeL"].fmeasure > 0
    assert answers.rouge_l("Gräße", "Größe") == 0.0
    assert answers.rouge_l("GRÖSSE", "größe") == 1.0


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1.234,56 EUR", 1234.56), ("1,234.56", 1234.56), ("1 234,56 €", 1234.56),
        ("1\u202f234,56 €", 1234.56), ("1'234.50 CHF", 1234.5), ("12,99", 12.99), ("12.9", 12.9),
        ("12.990", 12990.0), ("1.234.567", 1234567.0), ("0,500", 0.5), ("about $20", 20.0),
        ("1234,5", 1234.5), ("49.99 - 59.99", 49.99),
    ],
)  # fmt: skip
def test_amounts_are_read_in_any_style(text, amount):
    assert answers.read_amount(text) == amount


@pytest.mark.parametrize("language", ["en", "de", "fr", "it", "es"])
@pytest.mark.parametrize("price", [0.99, 9.5, 49.99, 1234.56, 1234567.0])
def test_every_price_that_a_listing_writes_is_read_without_error(language, price):
    for currency in ("EUR", "USD", "GBP", "CHF"):
        written = prices.format_price(price, currency, language)
        mark = written.strip("0123456789., ")
        found = score(written, "price", written, price=price, marks=[currency, mark])
        assert found == {"abs_log_error": pytest.approx(0, abs=1e-9), "answered": 1.0}


def test_price_errors_are_ratios_and_have_an_end():
    fields = {"price": 10.0, "marks": ["$", "USD"]}
    for text, ratio in (("$20.00", 2), ("5", 2), ("10 USD", 1), ("USD 10", 1)):
        found = score(text, "price", "$10.00", **fields)
        assert found == {"abs_log_error": pytest.approx(math.log(ratio)), "answered": 1.0}
    worst = {"abs_log_error": math.log(answers.WORST_PRICE_RATIO), "answered": 0.0}
    for text in ("", "cheap", "10 €", "CHF 10", "0"):
        assert score(text, "price", "$10.00", **fields) == worst
    assert score("99999999", "price", "$10.00", **fields) == worst | {"answered": 1.0}


def test_an_unknown_metric_is_not_passed_over():
    with pytest.raises(AssertionError, match="unknown metric bleu"):
        score("a", "bleu", "a")


def test_graded_choices_have_credit_beside_accuracy():
    doc = {"choices": [" a", " bbbb", " cc"], "answer": 0, "credits": [1.0, 0.5, 0.0]}
    found = answers.process_choices(doc, [(-3.0, False), (-4.0, False), (-9.0, False)])
    # a has the highest score, bbbb the highest by length.
    assert found == {"acc": 1.0, "acc_norm": 0.0, "credit": 0.5}


@pytest.mark.slow
def test_items_are_found_beside_the_file_and_by_split(tmp_path):
    shutil.copy(answers.__file__, tmp_path / "answers.py")
    rows = [{"split": "test", "id": "1"}, {"split": "validation", "id": "2"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # In another directory and without this package: only what the file itself imports is there.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['ellama_jax'] = None\n"
        "import answers; found = answers.load_items(file='x.jsonl', version=1.0, n=2)\n"
        "print({split: list(rows['id']) for split, rows in found.items()})\n"
        "print(answers.score_answer({'metric': 'title', 'references': ['a b']}, 'a b'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'test': ['1'], 'validation': ['2']}\n{'rouge_l': 1.0}\n"
