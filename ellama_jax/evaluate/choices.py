"""Owns what multiple-choice items come to: the choice preferred, accuracy, and credit.

Log-probabilities are `scorer`'s; the results are cells of a `scorecard`.
"""

import collections
import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np


def choice_results(items: Sequence[dict], log_probs: Sequence[Sequence[float]]) -> list[dict]:
    """Returns the cells of a scorecard: accuracies, and credit where wrong answers differ in worth.

    Args:
        items: multiple-choice items; `credits`, what each choice is worth, is optional.
        log_probs: of each item's choices.

    Returns:
        For each task, domain and language "accuracy", "accuracy_unnormalised" (see `pick_choice`)
        and, where all items have `credits`, "credit" of the choice that "accuracy" judges.
    """
    groups = collections.defaultdict(list)
    for item, scores in zip(items, log_probs, strict=True):
        groups[item["task"], item["domain"], item["language"]].append((item, scores))
    results = []
    for (task, domain, language), members in groups.items():
        cell = {"task": task, "domain": domain, "language": language}
        for metric, normalise in (("accuracy", True), ("accuracy_unnormalised", False)):
            results.append({**cell, "metric": metric, **_accuracy(members, normalise)})
        if all("credits" in item for item, _ in members):
            results.append({**cell, "metric": "credit", **_credit(members)})
    return results


def _accuracy(members: Sequence[tuple[dict, Sequence[float]]], normalise: bool) -> dict:
    correct = [int(pick_choice(i["choices"], lp, normalise) == i["answer"]) for i, lp in members]
    value, count = float(np.mean(correct)), len(correct)
    # The standard error of a mean from its own sample, as lm-eval has it.
    stderr = math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else None
    return {
        "value": value,
        "stderr": stderr,
        "n": count,
        "chance": float(np.mean([1 / len(item["choices"]) for item, _ in members])),
        "higher_is_better": True,
        "correct": correct,
        "ids": [item["id"] for item, _ in members],
        "asked": [question_print(item) for item, _ in members],
    }


def _credit(members: Sequence[tuple[dict, Sequence[float]]]) -> dict:
    worth = [item["credits"][pick_choice(item["choices"], scores)] for item, scores in members]
    return {
        **mean_of_items(worth),
        "chance": float(np.mean([np.mean(item["credits"]) for item, _ in members])),
        "higher_is_better": True,
        "correct": None,
        "values": [float(value) for value in worth],
        "ids": [item["id"] for item, _ in members],
        "asked": [question_print(item) for item, _ in members],
    }


def question_print(item: dict) -> str:
    """Returns 8 hex digits of what an item asks and accepts, whatever its name.

    A benchmark built anew from another seed gives other questions the same names.
    """
    asked = [item.get(key) for key in ("context", "choices", "answer", "references")]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def mean_of_items(values: Sequence[float]) -> dict:
    """Returns the mean of items' values, its standard error (None for one item), and n.

    >>> mean_of_items([0.0, 1.0])
    {'value': 0.5, 'stderr': 0.5, 'n': 2}
    """
    count = len(values)
    stderr = float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None
    return {"value": float(np.mean(values)), "stderr": stderr, "n": count}


def pick_choice(choices: Sequence[str], log_probs: Sequence[float], normalise: bool = True) -> int:
    """Returns the number of the choice the model prefers.

    Longer answers are less probable only because they are longer, so log-probabilities are
    divided by the answer's length in UTF-8 bytes (lm-eval's acc_norm divides by characters, which
    would treat languages differently).

    >>> pick_choice([" no", " certainly not"], [-4.0, -6.0])
    1
    >>> pick_choice([" no", " certainly not"], [-4.0, -6.0], normalise=False)
    0
    """
    lengths = [len(choice.strip().encode()) if normalise else 1 for choice in choices]
    return int(np.argmax(np.asarray(log_probs) / np.maximum(lengths, 1)))
