"""Scores answers to the e-commerce tasks, and reads their items, for lm-eval.

Owns the normalisation and the metrics of generated answers. `ellama build-benchmark` copies this file
beside the tasks that it writes, where lm-eval loads it from there: it therefore imports nothing of
this project, and ROUGE only when it is asked for.

Normalised, two values are the same when they differ in case, width, quotes, final stops, spaces, the
decimal sign of a number or the order of a list ("27,5 cm", "27.5cm"; "S, M", "m / s").
"""

import collections
import functools
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

# A price that could not be read counts as this many times too high; no error counts as more.
WORST_PRICE_RATIO = 1000.0

_QUOTES = "\"'“”„«»‘’`*"
_DECIMAL = re.compile(r"(?<=\d),(?=\d)")
_UNIT = re.compile(r"(?<=\d)\s+(?=[^\W\d])")
_SEPARATORS = re.compile(r"\s*(?:[;|•]|,(?!\d)|(?<!\d),|\s/\s)\s*")
_NUMBER = re.compile(r"\d+(?:[.,'’ \u00a0\u202f]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*")
_MARK = r"(?:[A-Z]{0,2}\$|[€£¥₹]|zł|kr\b|Fr\.|\b[A-Z]{3}\b)"
_MARK_BEFORE, _MARK_AFTER = re.compile(rf"({_MARK})\s*$"), re.compile(rf"\s*({_MARK})")


def load_items(*, file: str, **_) -> dict:
    """Reads a task's items from beside this file: lm-eval's `custom_dataset`.

    Args:
        file: name of the JSONL; lm-eval also passes the task's metadata, which is not needed.

    Returns:
        Datasets by split: "test", and "validation" where there is one.
    """
    import datasets

    splits = collections.defaultdict(list)
    with (Path(__file__).resolve().parent / file).open(encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            splits[item["split"]].append(item)
    return {split: datasets.Dataset.from_list(items) for split, items in splits.items()}


def process_choices(doc: Mapping, results: Sequence) -> dict:
    """Scores a multiple-choice item whose wrong answers are not equally wrong.

    Args:
        doc: with choices, answer, and `credits`, what each choice is worth.
        results: (log-likelihood, is greedy) of each choice.

    Returns:
        acc, acc_norm (by characters, as lm-eval has it), and `credit` of the choice that acc_norm
        judges.
    """
    scores = [result[0] for result in results]
    normed = [score / len(text) for score, text in zip(scores, doc["choices"], strict=True)]
    pick, pick_norm = (max(range(len(row)), key=row.__getitem__) for row in (scores, normed))
    return {
        "acc": float(pick == doc["answer"]),
        "acc_norm": float(pick_norm == doc["answer"]),
        "credit": float(doc["credits"][pick_norm]),
    }


def process_generated(doc: Mapping, results: Sequence[str]) -> dict:
    """Scores a generated answer: lm-eval's `process_results`; see `score_answer`."""
    return score_answer(doc, results[0])


def score_answer(item: Mapping, text: str) -> dict[str, float]:
    """Scores a generated answer by its item's metric.

    Args:
        item: of generative.jsonl.
        text: what the model wrote; its first line counts.

    Returns:
        By the item's metric: "value" exact_match and f1; "category" exact_match and shared_depth;
        "list" recall_at_k; "title" rouge_l; "price" abs_log_error and answered.
    """
    answer = first_line(text)
    references = item["references"]
    if item["metric"] == "value":
        return {
            "exact_match": float(any(same_value(answer, value) for value in references)),
            "f1": max(token_f1(answer, value) for value in references),
        }
    if item["metric"] == "category":
        return {
            "exact_match": float(any(same_value(answer, path) for path in references)),
            "shared_depth": max(shared_depth(answer, path) for path in references),
        }
    if item["metric"] == "list":
        return {"recall_at_k": recall_at_k(answer, references, item["k"])}
    if item["metric"] == "title":
        return {"rouge_l": max(rouge_l(answer, title) for title in references)}
    assert item["metric"] == "price", f"unknown metric {item['metric']}"
    error = price_error(answer, item["price"], item["marks"])
    worst = math.log(WORST_PRICE_RATIO)
    return {
        "abs_log_error": worst if error is None else min(error, worst),
        "answered": float(error is not None),
    }


def first_line(text: str) -> str:
    """Returns the first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def normalise_value(text: str) -> str:
    """Writes a value as it is compared.

    >>> normalise_value("„27,5  CM“."), normalise_value("27.5cm"), normalise_value("Été")
    ('27.5cm', '27.5cm', 'été')
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(sign for sign in plain if sign not in _QUOTES)
    plain = _UNIT.sub("", _DECIMAL.sub(".", plain))
    return " ".join(plain.split()).strip(" .,:;!?")


def _parts(text: str) -> list[str]:
    found = (normalise_value(part) for part in _SEPARATORS.split(" ".join(text.split())))
    return sorted(part for part in found if part)


def same_value(answer: str, truth: str) -> bool:
    """Tells whether two values say the same; the order of a list says nothing.

    >>> same_value("M, S", "s; m."), same_value("dark red", "red"), same_value("", "")
    (True, False, False)
    """
    return bool(_parts(answer)) and _parts(answer) == _parts(truth)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)*|[^\W\d_]+", normalise_value(text))


def token_f1(answer: str, truth: str) -> float:
    """Returns F1 over words and numbers, as SQuAD has it (arXiv 1606.05250, section 6.1).

    >>> round(token_f1("dark red wool", "red wool"), 3), token_f1("blue", "red")
    (0.8, 0.0)
    """
    said, true = (collections.Counter(_tokens(text)) for text in (answer, truth))
    shared = (said & true).total()
    if not shared:
        return 0.0
    return 2 * shared / (said.total() + true.total())


def shared_depth(answer: str, truth: str) -> float:
    """Returns the share of a category path's levels that the answer has from the top.

    >>> shared_depth("Home > Lamps > Floor lamps", "Home > Lamps > Table lamps")
    0.6666666666666666
    """
    said, true = ([normalise_value(level) for level in path.split(">")] for path in (answer, truth))
    depth = 0
    while depth < min(len(said), len(true)) and said[depth] == true[depth]:
        depth += 1
    return depth / len(true)


def recall_at_k(answer: str, references: Sequence[str], k: int) -> float:
    """Returns how many of the first k different answers are right, over k.

    Args:
        answer: a list, separated by commas.
        references: k answers, or more where several are as good as the k-th.
        k: how many were asked for.

    >>> recall_at_k("Color, color, Brand, Size", ["size", "color"], 2)
    0.5
    """
    listed = re.split(r"[,;•\n]|\s\d+[.)]\s", answer)
    said = dict.fromkeys(normalise_value(re.sub(r"^\W*\d*[.)]?\s*", "", one)) for one in listed)
    right = {normalise_value(truth) for truth in references}
    return sum(one in right for one in [one for one in said if one][:k]) / k


class _Words:
    """Tokenizer for ROUGE: rouge_score's own knows only the letters a to z."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _rouge_scorer():
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(answer: str, truth: str) -> float:
    """Returns ROUGE-L's F measure over words of any alphabet (Lin 2004)."""
    return float(_rouge_scorer().score(truth, answer)["rougeL"].fmeasure)


def read_amount(text: str) -> float | None:
    """Reads the first amount of a text, written in any locale's style.

    Of two kinds of separators the last is the decimal one. A single one groups thousands where
    exactly three digits follow it ("1.234", "12,990"), as catalogues' prices are read.

    >>> [read_amount(text) for text in ("1.234,56 EUR", "1,234.56", "1 234,50", "12")]
    [1234.56, 1234.56, 1234.5, 12.0]
    >>> read_amount("ca. 1.234 €"), read_amount("0.500"), read_amount("nothing") is None
    (1234.0, 0.5, True)
    """
    found = _NUMBER.search(text)
    return None if found is None else _amount_of(found.group())


def _amount_of(number: str) -> float:
    digits = re.sub(r"['’\s]", "", number)
    signs = re.findall(r"[.,]", digits)
    point = signs[-1] if signs else None
    if point and len(set(signs)) == 1:
        groups = digits.split(point)
        if len(signs) > 1 or (len(groups[1]) == 3 and len(groups[0]) <= 3 and groups[0] != "0"):
            point = None
    whole, _, cents = digits.rpartition(point) if point else (digits, "", "0")
    return float(f"{re.sub('[.,]', '', whole) or '0'}.{cents}")


def price_error(text: str, price: float, marks: Sequence[str]) -> float | None:
    """Returns |log(answer / price)|; None without an amount, or in another currency than `marks`.

    >>> round(price_error("$20.00", 10.0, ["$", "USD"]), 3)
    0.693
    >>> print(price_error("20 EUR", 10.0, ["$", "USD"]))
    None
    """
    found = _NUMBER.search(text)
    if found is None:
        return None
    amount = _amount_of(found.group())
    beside = (_MARK_BEFORE.search(text[: found.start()]), _MARK_AFTER.match(text[found.end() :]))
    if any(mark and mark[1] not in marks for mark in beside) or not 0 < amount < math.inf:
        return None
    return abs(math.log(amount / price))
