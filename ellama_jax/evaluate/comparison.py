"""Owns comparisons: averages of a scorecard, differences of two, several as one table.

It reads scorecards (see `scorecard`) and runs no model.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

_MOST_WITH_GAINS = 3
_ENGLISH, _OTHERS = "English", "other languages"
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


def print_table(scorecards: Sequence[dict]) -> None:
    """Prints scorecards side by side; see `format_table`."""
    print(format_table(scorecards))


def format_table(scorecards: Sequence[dict]) -> str:
    """Lays models side by side: a row a task for English, and one for all other languages.

    Accuracies are in percent, each with its standard error. Up to three models also get their gains
    relative to the first; more would not fit a terminal.
    Rows of several languages are plain means over them, averages over tasks and languages alike.
    """
    rows = [_header(scorecards)]
    for (task, domain, metric), languages in table_groups(scorecards[0]).items():
        name = f"{task} ({domain})" if metric == "bits_per_byte" else task_label(task, metric)
        for label, members in _language_groups(languages):
            cells = [_pick_cells(card, task, domain, metric, members) for card in scorecards]
            rows.append(_table_row(name, label, cells))
            name = ""
    for label, members in _language_groups({"en", *_languages(scorecards[0], "ecommerce")}):
        cells = [
            [r for r in card["results"] if _is_headline(r) and r["language"] in members]
            for card in scorecards
        ]
        if all(cells):
            rows.append(_table_row("e-commerce average", label, cells))
    text = _align(rows)
    lines = [text, "accuracies in % with standard error; bits per byte: lower is better"]
    if any(task_label("", metric) for _, _, metric in table_groups(scorecards[0])):
        lines.append("credit and generated answers in % too; median abs log error: lower is better")
    return "\n".join(lines)


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


def _is_headline(row: dict) -> bool:
    return row["domain"] == "ecommerce" and row["metric"] == "accuracy"


def _languages(scorecard: dict, domain: str) -> set[str]:
    return {row["language"] for row in scorecard["results"] if row["domain"] == domain}


def _language_groups(languages: Iterable[str]) -> list[tuple[str, set[str]]]:
    languages = set(languages)
    groups = [(_ENGLISH, languages & {"en"}), (_OTHERS, languages - {"en"})]
    return [(label, members) for label, members in groups if members]


def _pick_cells(scorecard, task, domain, metric, languages) -> list[dict]:
    return [
        row
        for row in scorecard["results"]
        if (row["task"], row["domain"], row["metric"]) == (task, domain, metric)
        and row["language"] in languages
    ]


def _header(scorecards: Sequence[dict]) -> list[str]:
    names = [card["model"] for card in scorecards]
    gains = [f"{name} gain" for name in names[1:]] if len(names) <= _MOST_WITH_GAINS else []
    return ["task", "languages", "n", "chance", *names, *gains]


def _table_row(name: str, label: str, cells: Sequence[list[dict]]) -> list[str]:
    """Writes one line from each model's results, one list a model."""
    percent = is_share(cells[0][0]["metric"])
    means = [mean_of_cells(model) for model in cells]
    chances = [row["chance"] for row in cells[0]]
    line = [name, label, str(sum(row["n"] for row in cells[0]))]
    line.append("" if None in chances else f"{100 * np.mean(chances):.0f}")
    line += [_write_value(value, stderr, percent) for value, stderr in means]
    if len(means) > _MOST_WITH_GAINS:
        return line
    gains = [relative_gain(value, means[0][0]) for value, _ in means[1:]]
    line += ["" if gain is None else f"{100 * gain:+.1f} %" for gain in gains]
    return line


def _write_value(value: float | None, stderr: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    error = "" if stderr is None else f" ±{scale * stderr:.{digits}f}"
    return f"{scale * value:.{digits}f}{error}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    align: list[Callable] = [str.ljust, str.ljust] + [str.rjust] * (len(widths) - 2)
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)
