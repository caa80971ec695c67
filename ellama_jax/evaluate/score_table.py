"""Scorecards side by side as a table for a terminal: a row a task, for English and for the others."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ellama_jax.evaluate.comparison import (
    gain_of,
    is_share,
    mean_of_cells,
    table_groups,
    task_label,
)
from ellama_jax.evaluate.retention import changes_between

_MOST_WITH_GAINS = 3
_ENGLISH, _OTHERS = "English", "other languages"
_SHORT_UNITS = {"points": "pt", "%": "%"}


def print_table(scorecards: Sequence[dict]) -> None:
    """Prints scorecards side by side; see `format_table`."""
    print(format_table(scorecards))


def format_table(scorecards: Sequence[dict]) -> str:
    """Lays models side by side: a row a task for English, and one for all other languages.

    Accuracies are in percent, each with its standard error. Up to three models also get their gains
    over the first, on the questions that both were asked; more would not fit a terminal.
    Rows of several languages are plain means over them, averages over tasks and languages alike.
    """
    rows = [_header(scorecards)]
    others = scorecards[1:] if len(scorecards) <= _MOST_WITH_GAINS else ()
    changes = [changes_between(scorecards[0], card) for card in others]
    for (task, domain, metric), languages in table_groups(scorecards[0]).items():
        name = f"{task} ({domain})" if metric == "bits_per_byte" else task_label(task, metric)
        for label, members in _language_groups(languages):
            cells = [_pick_cells(card, task, domain, metric, members) for card in scorecards]
            gains = [_gain(change(domain, metric, task, members), metric) for change in changes]
            rows.append([*_table_row(name, label, cells), *gains])
            name = ""
    for label, members in _language_groups({"en", *_languages(scorecards[0], "ecommerce")}):
        cells = [
            [r for r in card["results"] if _is_headline(r) and r["language"] in members]
            for card in scorecards
        ]
        if all(cells):
            gains = [_gain(c("ecommerce", "accuracy", None, members), "accuracy") for c in changes]
            rows.append([*_table_row("e-commerce average", label, cells), *gains])
    text = _align(rows)
    lines = [text, "accuracies in % with standard error; bits per byte: lower is better"]
    if any(task_label("", metric) for _, _, metric in table_groups(scorecards[0])):
        lines.append("credit and generated answers in % too; median abs log error: lower is better")
    if changes:
        lines.append(
            "gain: points, or the part of the bits per byte that went; up is better, * where its 95 % "
            "interval excludes 0"
        )
    return "\n".join(lines)


def _gain(change: dict | None, metric: str) -> str:
    gain = gain_of(change, metric)
    if gain is None:
        return "-"
    return f"{gain.value:+.1f} {_SHORT_UNITS[gain.unit]}{'*' if gain.certain else ' '}"


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
