"""Owns comparisons: averages of a scorecard, differences of two, and what is a gain.

It reads scorecards (see `scorecard`) and runs no model.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

# Overall means: domain, metrics, and whether a language belongs to it. A generated task whose answers
# are better or worse has just one of the three metrics; its answers are no part of any accuracy.
OVERALL = {
    "ecommerce_en": ("ecommerce", ("accuracy",), lambda language: language == "en"),
    "ecommerce_other": ("ecommerce", ("accuracy",), lambda language: language != "en"),
    "ecommerce": ("ecommerce", ("accuracy",), lambda language: True),
    "ecommerce_generated": (
        "ecommerce", ("exact_match", "recall_at_k", "rouge_l"), lambda language: True,
    ),
    "general": ("general", ("accuracy",), lambda language: True),
    "bpb_ecommerce": ("ecommerce", ("bits_per_byte",), lambda language: True),
    "bpb_general": ("general", ("bits_per_byte",), lambda language: True),
}  # fmt: skip


def summary(scorecard: dict) -> dict[str, float | None]:
    """Averages a scorecard, every task and language alike.

    Returns:
        Accuracy as ecommerce_en, ecommerce_other (not English), ecommerce and general, bits per
        byte as bpb_ecommerce and bpb_general, generated answers (exact match, recall at k or
        ROUGE-L, by the task) as ecommerce_generated, and the standard error of each as
        `<name>_stderr`; None where nothing was scored.
    """
    means = {}
    for name, (domain, metrics, fits) in OVERALL.items():
        cells = [
            row
            for row in scorecard["results"]
            if row["domain"] == domain and row["metric"] in metrics and fits(row["language"])
        ]
        means[name], means[f"{name}_stderr"] = mean_of_cells(cells)
    return means


def mean_of_cells(cells: Sequence[dict]) -> tuple[float | None, float | None]:
    """Returns the plain mean of results, and its standard error (cells are independent)."""
    if not cells:
        return None, None
    value = float(np.mean([cell["value"] for cell in cells]))
    errors = [cell["stderr"] for cell in cells]
    if None in errors:
        return value, None
    return value, math.sqrt(sum(error**2 for error in errors)) / len(cells)


def paired_difference(
    a: dict, b: dict, domain: str | None = None
) -> tuple[float, float | None, int]:
    """Compares two models on the questions both answered.

    Pairing takes away what makes questions hard for both, so the error is smaller than that of
    two separate means.

    Args:
        a, b: scorecards.
        domain: only this domain's items; None is all.

    Returns:
        Mean of (b's accuracy - a's), its standard error (None for one item), number of items.

    Raises:
        ValueError: if they share no item.
    """
    ours, theirs = (_accuracies(card, domain) for card in (a, b))
    differences = []
    for key in ours.keys() & theirs.keys():
        before, after = (
            dict(zip(row["ids"], row["correct"], strict=True)) for row in (ours[key], theirs[key])
        )
        shared = shared_questions(ours[key], theirs[key])
        differences += [after[name] - before[name] for name in shared]
    if not differences:
        raise ValueError(f"scorecards {a['model']} and {b['model']}: must share an item, got none.")
    differences, count = np.array(differences, float), len(differences)
    stderr = float(differences.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return float(differences.mean()), stderr, count


def _accuracies(scorecard: dict, domain: str | None) -> dict[tuple, dict]:
    return {
        (row["task"], row["domain"], row["language"]): row
        for row in scorecard["results"]
        if row["metric"] == "accuracy" and domain in (None, row["domain"])
    }


def shared_questions(ours: dict, theirs: dict) -> list[str]:
    """Returns the ids of what two results were both asked, in the first one's order.

    Questions of one name that are worded otherwise, or accept another answer, are not the same.
    Results without `asked` (texts, whose ids are their content) go by the ids alone.
    """
    asked = dict(zip(theirs["ids"], theirs.get("asked", theirs["ids"]), strict=True))
    if "asked" not in ours or "asked" not in theirs:
        return [name for name in ours["ids"] if name in asked]
    pairs = zip(ours["ids"], ours["asked"], strict=True)
    return [name for name, printed in pairs if asked.get(name) == printed]


def is_share(name: str) -> bool:
    """Tells whether a metric, or a mean of it, is told in percent, and more of it is better.

    >>> [is_share(name) for name in ("accuracy", "rouge_l", "bpb_general", "median_abs_log_error")]
    [True, True, False, False]
    """
    return not name.startswith(("bpb", "bits_per_byte", "median"))


def task_label(task: str, metric: str) -> str:
    """Names a task, and its metric where it is not the one that goes without saying.

    >>> task_label("mmlu", "accuracy"), task_label("review_rating", "credit")
    ('mmlu', 'review_rating, credit')
    """
    silent = metric in ("accuracy", "bits_per_byte")
    return task if silent else f"{task}, {metric.replace('_', ' ')}"


def table_groups(scorecard: dict) -> dict[tuple[str, str, str], set[str]]:
    """Returns the languages of each (task, domain, metric), leaving unnormalised accuracy out."""
    groups: dict = {}
    for row in scorecard["results"]:
        if row["metric"] != "accuracy_unnormalised":
            key = (row["task"], row["domain"], row["metric"])
            groups.setdefault(key, set()).add(row["language"])
    return groups


def relative_gain(value: float | None, base: float | None) -> float | None:
    """Returns value / base - 1, None where there is no base.

    >>> relative_gain(0.5, 0.4)
    0.25
    """
    return None if not base or value is None else value / base - 1


@dataclasses.dataclass(frozen=True)
class Gain:
    """How much better a model is than its base: up is better, whatever the metric.

    Attributes:
        value: points, of shares of right answers in %; for losses the part of the base's that went, in %.
        low, high: ends of the 95 % interval, None where it is not known.
        unit: "points" or "%".
    """

    value: float
    low: float | None
    high: float | None
    unit: str

    @property
    def certain(self) -> bool:
        """Whether the interval leaves no doubt that it is better, or worse."""
        return self.low is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.value:+.1f} {self.unit}{interval}"


def gain_of(row: Mapping | None, name: str) -> Gain | None:
    """Returns the gain that a change of `retention.compare` is; None where there is none.

    >>> share = {"difference": 0.1, "difference_low": 0.02, "difference_high": 0.18, "change": 0.25}
    >>> print(gain_of(share, "accuracy"))
    +10.0 points [+2.0, +18.0]
    >>> loss = {"change": -0.28, "low": -0.3, "high": -0.26}
    >>> print(gain_of(loss, "bits_per_byte"), gain_of(loss, "bits_per_byte").certain)
    +28.0 % [+26.0, +30.0] True
    """
    if row is None:
        return None
    if is_share(name):
        found = [row[key] for key in ("difference", "difference_low", "difference_high")]
        return Gain(*(None if x is None else 100 * x for x in found), "points")
    if row["change"] is None:
        return None
    ends = (None, None) if row["low"] is None else (0.0 - 100 * row["high"], 0.0 - 100 * row["low"])
    return Gain(0.0 - 100 * row["change"], *ends, "%")
