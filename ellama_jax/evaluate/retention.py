"""Owns adaptation and forgetting: what a model gained and lost against its base, and the gate.

It reads scorecards (see `scorecard`), pairs two of them question by question and gives every change
an interval. Words and tables of it are `card_text`'s.

Intervals are core/estimate.py's, by product or question: all that asks about one product, or translates
one question, is one cluster. A rule that too few of them could break is neither kept nor broken.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ellama_jax.config import GateConfig
from ellama_jax.core.estimate import LEVEL, Pair, needed, pair
from ellama_jax.evaluate.comparison import OVERALL, is_share, shared_questions


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One task and language of two models, over what both were asked.

    `sums` is [2, questions] (values, 1 where an answer is right, or bits) of base and model, `sizes` [questions] what
    they are divided by (1, or bytes), `clusters` names what is drawn together. Without any of them
    (a scorecard that keeps no single answers) `values` is all that is known.
    """

    task: str
    domain: str
    language: str
    metric: str
    values: tuple[float, float]
    n: int
    sums: np.ndarray | None = None
    sizes: np.ndarray | None = None
    clusters: Sequence[str] = ()


def compare(base: dict, model: dict) -> dict:
    """Says what a model gained and lost against its base, with intervals.

    Args:
        base, model: scorecards; what only one of them was asked is left out.

    Returns:
        {"base", "model", "level", "overall": {name: change}, "by_language": [{domain, metric,
        language, change...}], "cells": [{task, domain, metric, language, change...}], "left_out":
        number of results without a partner}. A change is {"base", "value", "n", "clusters",
        "difference", "difference_low", "difference_high", "change", "low", "high", "error"}:
        `change` is value / base - 1, and None (with its limits) where the base has 0; limits are
        None where there are fewer clusters than `estimate.FEWEST`, of a median, and where a
        scorecard keeps no single answers. `error` is the standard error of the difference. Means
        weigh every task and language alike.

    Raises:
        ValueError: if the scorecards share no question.
    """
    ours, theirs = (_rows(card) for card in (base, model))
    shared = [key for key in ours if key in theirs]
    cells = [cell for key in shared if (cell := _pair(key, ours[key], theirs[key])) is not None]
    if not cells:
        raise ValueError(
            f"scorecards {base['model']} and {model['model']}: must share a question, word for word, got none."
        )
    changes = _Changes(cells)
    overall = {name: changes.of(*rule) for name, rule in OVERALL.items()}
    languages = sorted({(c.domain, c.metric, c.language) for c in cells})
    return {
        "base": base["model"],
        "model": model["model"],
        "level": LEVEL,
        "overall": {name: change for name, change in overall.items() if change is not None},
        "by_language": [
            {"domain": domain, "metric": metric, "language": language}
            | changes.of(domain, (metric,), lambda code, language=language: code == language)
            for domain, metric, language in languages
        ],
        "cells": [
            {"task": c.task, "domain": c.domain, "metric": c.metric, "language": c.language}
            | changes.over([number])
            for number, c in enumerate(cells)
        ],
        "left_out": len(ours) + len(theirs) - 2 * len(cells),
    }


def changes_between(base: dict, model: dict):
    """Returns a function (domain, metric, task, languages) -> change, or None where nothing is shared.

    `task` None is the mean over all.
    """
    ours, theirs = (_rows(card) for card in (base, model))
    shared = [key for key in ours if key in theirs]
    cells = [cell for key in shared if (cell := _pair(key, ours[key], theirs[key])) is not None]

    def change(domain: str, metric: str, task: str | None, languages) -> dict | None:
        chosen = [
            number
            for number, cell in enumerate(cells)
            if (cell.domain, cell.metric) == (domain, metric)
            and cell.language in languages
            and task in (None, cell.task)
        ]
        return _Changes(cells).over(chosen) if chosen else None

    return change


def _rows(card: dict) -> dict[tuple, dict]:
    """Returns results by (task, domain, language, metric), one way to choose an answer only."""
    return {
        (row["task"], row["domain"], row["language"], row["metric"]): row
        for row in card["results"]
        if row["metric"] != "accuracy_unnormalised"
    }


def _pair(key: tuple, ours: dict, theirs: dict) -> _Cell | None:
    task, domain, language, metric = key
    answers = [_answers(row, metric) for row in (ours, theirs)]
    if None in answers:
        values = ours["value"], theirs["value"]
        return _Cell(task, domain, language, metric, values, min(ours["n"], theirs["n"]))
    shared = shared_questions(ours, theirs)
    if not shared:
        return None
    sums = np.array([[found[name][0] for name in shared] for found in answers], float)
    sizes = np.array([answers[0][name][1] for name in shared], float)
    found = np.median(sums, axis=1) if metric.startswith("median") else sums.sum(1) / sizes.sum()
    values = tuple(float(value) for value in found)
    clusters = [_cluster(name, task, language) for name in shared]
    return _Cell(task, domain, language, metric, values, len(shared), sums, sizes, clusters)


def _answers(row: dict, metric: str) -> dict[str, tuple[float, float]] | None:
    """Returns by id what a question adds to the sum and to what it is divided by."""
    if metric == "bits_per_byte":
        if "bits" not in row:
            return None
        return {
            name: (bits, size)
            for name, bits, size in zip(row["ids"], row["bits"], row["bytes"], strict=True)
        }
    values = row["correct"] if row["correct"] is not None else row["values"]
    return {name: (value, 1) for name, value in zip(row["ids"], values, strict=True)}


def _cluster(name: str, task: str, language: str) -> str:
    """Names the product or question behind an item, whatever the task and language.

    >>> _cluster("price_prediction/B07/de", "price_prediction", "de")
    'B07'
    >>> _cluster("mmlu/anatomy/3/fr", "mmlu", "fr")
    'anatomy/3'
    """
    return name.removeprefix(f"{task}/").removesuffix(f"/{language}")


class _Changes:
    """Changes of means over cells."""

    def __init__(self, cells: Sequence[_Cell]):
        self._cells = cells

    def of(self, domain: str, metrics: Sequence[str], fits) -> dict | None:
        """Returns the change over all cells of a domain, metrics and languages; None if none."""
        chosen = [
            number
            for number, cell in enumerate(self._cells)
            if cell.domain == domain and cell.metric in metrics and fits(cell.language)
        ]
        return self.over(chosen) if chosen else None

    def over(self, chosen: Sequence[int]) -> dict:
        """Returns the change of the plain mean over some cells."""
        cells = [self._cells[number] for number in chosen]
        base, value = (float(np.mean([cell.values[side] for cell in cells])) for side in (0, 1))
        found = {"base": base, "value": value, "n": sum(cell.n for cell in cells)}
        paired = _pair_of(cells)
        found["clusters"] = paired.clusters if paired else None
        found |= {"difference": value - base}
        found |= _limits("difference_", paired and paired.difference())
        found["change"] = value / base - 1 if base else None
        found |= _limits("", paired and paired.relative() if base else None)
        return found | {"error": paired and paired.error()}


def _pair_of(cells: Sequence[_Cell]) -> Pair | None:
    """Estimates the mean over cells; None where single answers are not known, or make a median."""
    if any(cell.sums is None or cell.metric.startswith("median") for cell in cells):
        return None
    names = list(dict.fromkeys(name for cell in cells for name in cell.clusters))
    places = {name: number for number, name in enumerate(names)}
    sums, sizes = np.zeros((2, len(names), len(cells))), np.zeros((len(names), len(cells)))
    for number, cell in enumerate(cells):
        at = [places[name] for name in cell.clusters]
        np.add.at(sizes[:, number], at, cell.sizes)
        for side in (0, 1):
            np.add.at(sums[side, :, number], at, cell.sums[side])
    return pair(sums, sizes, np.array([is_share(cell.metric) for cell in cells]))


def _limits(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}low": low, f"{name}high": high}


def check_gate(comparison: Mapping, gate: GateConfig) -> dict:
    """Says whether a model kept what its base could do, by the rules of `gate`.

    A rule is broken by a change beyond its limit. What that takes is `gate.fails_when`: `certain`,
    the whole interval lies beyond; `likely`, the change itself does; `possible`, any of the interval
    does. Where there is no interval the questions are too few to tell, which is no pass.

    Returns:
        {"action", "fails_when", "passed": bool, or None where that cannot be told, "checks":
        [{"rule", "language" or None, "limit", "change", "low", "high", "passed": bool or None, "n",
        "clusters", "needed"}]}. `needed` is about how many products or questions would show a change
        of the size of the limit; there are no checks where nothing general was scored.
    """
    checks = []
    mean = comparison["overall"].get("general")
    if mean is not None and mean["change"] is not None:
        checks.append(_check("general_mean", None, gate.general_mean, mean, gate.fails_when))
    for row in comparison["by_language"]:
        known = row["metric"] in ("accuracy", "bits_per_byte")
        if row["domain"] != "general" or row["change"] is None or not known:
            continue
        rule = "language" if row["metric"] == "accuracy" else "bits_per_byte"
        checks.append(_check(rule, row["language"], getattr(gate, rule), row, gate.fails_when))
    verdicts = {check["passed"] for check in checks}
    passed = False if False in verdicts else None if None in verdicts or not checks else True
    return {
        "action": gate.action,
        "fails_when": gate.fails_when,
        "passed": passed,
        "checks": checks,
    }


def _check(rule: str, language: str | None, limit: float, row: Mapping, fails_when: str) -> dict:
    # Bits per byte are a loss: there more is worse, and the worst end of the interval is its high.
    worse_up = rule == "bits_per_byte"
    change, low, high = row["change"], row["low"], row["high"]
    passed = None
    if low is not None:
        best, worst = (low, high) if worse_up else (high, low)
        decides = {"certain": best, "likely": change, "possible": worst}[fails_when]
        # Equal to the limit up to rounding is not beyond it.
        passed = decides <= limit + 1e-12 if worse_up else decides >= limit - 1e-12
    return {
        "rule": rule, "language": language, "limit": limit, "change": change, "low": low,
        "high": high, "passed": None if passed is None else bool(passed), "n": row["n"], "clusters": row["clusters"],
        "needed": needed(row["clusters"], row["error"], limit * row["base"]),
    }  # fmt: skip
