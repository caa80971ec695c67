"""Owns adaptation and forgetting: what a model gained and lost against its base, and the gate.

It reads scorecards (see `scorecard`), pairs two of them question by question and gives every change
an interval. Words and tables of it are `card_text`'s.

The intervals are those of a paired bootstrap (Efron and Tibshirani 1993, section 13.3): products and
questions are drawn with replacement, both models are given the same draw, and the middle 95 % of the
changes found are the interval. All that asks about one product, or translates one question, is drawn
together, for those answers are not independent.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ellama_jax.config import GateConfig
from ellama_jax.evaluate.comparison import OVERALL, shared_questions

DRAWS, LEVEL = 2000, 0.95
_DRAWS_AT_ONCE = 200  # of all questions: 200 x 10,000 counts are 16 MB


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

    @property
    def is_median(self) -> bool:
        """Tells whether the cell is the median of its questions, and not a ratio of sums."""
        return self.metric.startswith("median")


def compare(base: dict, model: dict, *, draws: int = DRAWS, seed: int = 0) -> dict:
    """Says what a model gained and lost against its base, with intervals.

    Args:
        base, model: scorecards; what only one of them was asked is left out.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        {"base", "model", "level", "draws", "seed", "overall": {name: change}, "by_language":
        [{domain, metric, language, change...}], "cells": [{task, domain, metric, language,
        change...}], "left_out": number of results without a partner}. A change is {"base", "value",
        "n", "difference", "difference_low", "difference_high", "change", "low", "high"}: `change`
        is value / base - 1, and None (with its limits) where the base has 0; limits are None where
        a scorecard keeps no single answers. Means weigh every task and language alike.

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
    drawn = _draw(cells, draws, seed)
    changes = _Changes(cells, drawn)
    overall = {name: changes.of(*rule) for name, rule in OVERALL.items()}
    languages = sorted({(c.domain, c.metric, c.language) for c in cells})
    return {
        "base": base["model"],
        "model": model["model"],
        "level": LEVEL,
        "draws": draws,
        "seed": seed,
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


def _draw(cells: Sequence[_Cell], draws: int, seed: int) -> np.ndarray:
    """Returns [2, draws, cells] values of base and model; NaN where a draw has none of a cell.

    A draw says how often each cluster was taken; sums over clusters are then matrix products.
    """
    names = list(dict.fromkeys(name for cell in cells for name in cell.clusters))
    places = {name: number for number, name in enumerate(names)}
    count = len(names)
    sums, sizes = np.zeros((2, count, len(cells))), np.zeros((count, len(cells)))
    for number, cell in enumerate(cells):
        if cell.sums is not None:
            at = [places[name] for name in cell.clusters]
            np.add.at(sizes[:, number], at, cell.sizes)
            for side in (0, 1):
                np.add.at(sums[side, :, number], at, cell.sums[side])
    medians = [n for n, cell in enumerate(cells) if cell.is_median and cell.sums is not None]
    values = np.full((2, draws, len(cells)), np.nan)
    rng = np.random.default_rng(seed)
    for start in range(0, draws if count else 0, _DRAWS_AT_ONCE):
        taken = rng.integers(0, count, (min(_DRAWS_AT_ONCE, draws - start), count))
        times = np.stack([np.bincount(row, minlength=count) for row in taken]).astype(float)
        with np.errstate(invalid="ignore"):
            values[:, start : start + len(taken)] = (times @ sums) / (times @ sizes)
        for number in medians:
            at = [places[name] for name in cells[number].clusters]
            for side in (0, 1):
                drawn = _medians(cells[number].sums[side], times[:, at])
                values[side, start : start + len(taken), number] = drawn
    return values


def _medians(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns [draws] medians of `values` [questions], each taken `times` [draws, questions] times.

    >>> _medians(np.array([3.0, 1.0, 2.0]), np.array([[1, 1, 0], [0, 2, 1], [0, 0, 0]]))
    array([ 2.,  1., nan])
    """
    order = np.argsort(values)
    counts = np.cumsum(times[:, order], axis=1)
    total = counts[:, -1:]
    # The middle one, or the mean of the two in the middle.
    low, high = (counts * 2 < total).sum(axis=1), (counts * 2 <= total).sum(axis=1)
    last = len(values) - 1
    ordered = values[order]
    middle = (ordered[np.minimum(low, last)] + ordered[np.minimum(high, last)]) / 2
    return np.where(total[:, 0] > 0, middle, np.nan)


class _Changes:
    """Changes of means over cells, from the values and the draws of each."""

    def __init__(self, cells: Sequence[_Cell], drawn: np.ndarray):
        self._cells, self._drawn = cells, drawn

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
        bases, values = self._means(chosen)
        found |= {"difference": value - base} | _limits("difference_", values - bases)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = values / bases - 1
        if not base:
            return found | {"change": None, "low": None, "high": None}
        return found | {"change": value / base - 1} | _limits("", relative)

    def _means(self, chosen: Sequence[int]) -> np.ndarray:
        """Returns [2, draws] plain means over cells; a cell that a draw has nothing of is left out."""
        known = all(self._cells[number].sums is not None for number in chosen)
        drawn = self._drawn[:, :, list(chosen)]
        found = ~np.isnan(drawn)
        with np.errstate(invalid="ignore"):
            means = np.where(found, drawn, 0).sum(axis=2) / found.sum(axis=2)
        return means if known else np.full_like(means, np.nan)


def _limits(name: str, drawn: np.ndarray) -> dict[str, float | None]:
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)) if drawn.size else (None, None)
    return {
        f"{name}{side}": None if x is None else float(x)
        for side, x in (("low", low), ("high", high))
    }


def check_gate(comparison: Mapping, gate: GateConfig) -> dict:
    """Says whether a model kept what its base could do, by the rules of `gate`.

    A rule is broken by a change beyond its limit. What that takes is `gate.fails_when`: `certain`,
    the whole interval lies beyond; `likely`, the change itself does; `possible`, any of the interval
    does. Where there is no interval the change itself decides.

    Returns:
        {"action", "fails_when", "passed": bool, or None where nothing general was scored,
        "checks": [{"rule", "language" or None, "limit", "change", "low", "high", "passed"}]}.
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
    passed = all(check["passed"] for check in checks) if checks else None
    return {
        "action": gate.action,
        "fails_when": gate.fails_when,
        "passed": passed,
        "checks": checks,
    }


def _check(rule: str, language: str | None, limit: float, row: Mapping, fails_when: str) -> dict:
    # Bits per byte are a loss: there more is worse, and the worst end of the interval is its high.
    worse_up = rule == "bits_per_byte"
    change = row["change"]
    low, high = (change if row[end] is None else row[end] for end in ("low", "high"))
    best, worst = (low, high) if worse_up else (high, low)
    decides = {"certain": best, "likely": change, "possible": worst}[fails_when]
    # Equal to the limit up to rounding is not beyond it.
    passed = decides <= limit + 1e-12 if worse_up else decides >= limit - 1e-12
    return {
        "rule": rule, "language": language, "limit": limit, "change": change,
        "low": row["low"], "high": row["high"], "passed": bool(passed),
    }  # fmt: skip
