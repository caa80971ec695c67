"""Owns what the report says of a sweep: the choice, a plot an axis, every setting and trial."""

from collections.abc import Mapping, Sequence

from ellama_jax.experiments.sweep_results import axis_rows, say_part
from ellama_jax.experiments.sweep_show import settings_rows
from ellama_jax.report.plots import Change, change_chart
from ellama_jax.report.sections import make_section


def sweep_section(found: Mapping) -> dict:
    """The sentence, the rule, how each axis moved both metrics, and the sorted table."""
    waiting = [trial for trial in found["trials"] if trial["status"] != "done"]
    bullets = [
        f"{trial['name']}: {trial['status']}{', ' if trial['said'] else ''}{trial['said']}"
        for trial in waiting
    ]
    rule = found["rule"]
    rows = [["setting", "seeds", rule["gain"], rule["keep"], ""], *settings_rows(found)]
    plots = [plot for key in found["axes"] if (plot := _axis_plot(found, key))]
    return make_section(
        "Which setting is best", [found["sentence"], rule["says"], f"Made by `{found['command']}`."],
        bullets, plots=plots, tables=[_table(rows)],
    )  # fmt: skip


def _axis_plot(found: Mapping, key: str) -> dict | None:
    rows = axis_rows(found, key)
    if len(rows) < 2:
        return None
    changes = [_change(row, side, found["rule"]) for side in ("gain", "keep") for row in rows]
    title = f"By {key}"
    caption = (
        "Improvement over the base in %, mean over seeds with its 95 % interval (spread over seeds, "
        "pooled over settings). The tick is what the rule allows to be lost."
    )
    return {"title": title, "svg": change_chart(title, changes), "caption": caption}


def _change(row: Mapping, side: str, rule: Mapping) -> Change:
    part = row[side]
    mean, half = 100 * part["mean"], part["half"]
    ends = (None, None) if half is None else (mean - 100 * half, mean + 100 * half)
    mark = -100 * rule["limit"] if side == "keep" else None
    colour = 0 if side == "gain" else 1
    return Change(rule[side], row["label"], mean, *ends, colour, mark, say_part(part))


def _table(rows: Sequence[Sequence[str]]) -> dict:
    """A table of rows of text, the first its header."""
    cells = [[{"text": text, "small": "", "tone": ""} for text in row] for row in rows[1:]]
    return {"header": rows[0], "rows": cells, "text_columns": 1}
