"""How a sweep looks: the live table while it runs, the sorted table, a plot an axis.

Owns looks alone; what is shown comes from experiments/sweep.py and experiments/sweep_results.py.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ellama_jax.core.terminal import obeyed, printable
from ellama_jax.experiments.sweep_grid import Sweep
from ellama_jax.experiments.sweep_results import (
    alone_rows,
    axis_rows,
    improvement,
    mean_change,
    say_part,
)
from ellama_jax.train.metrics import METRICS_FILE

_TAIL_BYTES = 2**16
_SECS_BETWEEN_TABLES = 1.0
_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow"}
_BLUE, _ORANGE = "#4269d0", "#c05a00"


class Board:
    """The trials and where they stand: a live table on a terminal, a line a change elsewhere.

    with Board(sweep, states, workdir) as board:
        board.say(state); board.refresh()
    """

    def __init__(self, sweep: Sweep, states: Sequence, workdir: Path):
        self._sweep, self._states, self._workdir = sweep, states, workdir
        self._started, self._last = time.monotonic(), 0.0
        self._live = None

    def __enter__(self) -> "Board":
        done = sum(state.status == "done" for state in self._states)
        skipped = f", {done} of them done before" if done else ""
        print(f"{self._sweep.title}: {len(self._states)} trials{skipped}", flush=True)
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._table(), console=_console(), auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.__exit__(*error)

    def say(self, state) -> None:
        """Says that a trial began or ended, where there is no table that shows it."""
        if self._live is None:
            print(
                f"  {state.status:<8} {state.trial.name}  {self._words(state)}".rstrip(), flush=True
            )

    def refresh(self) -> None:
        """Draws the table anew, if it is time."""
        now = time.monotonic()
        if self._live is not None and now - self._last > _SECS_BETWEEN_TABLES:
            self._last = now
            self._live.update(self._table(), refresh=True)

    def _table(self):
        from rich.table import Table
        from rich.text import Text

        done = sum(state.status == "done" for state in self._states)
        minutes = (time.monotonic() - self._started) / 60
        table = Table(title=f"{done} of {len(self._states)} trials done, {minutes:.0f} min")
        for column in ("trial", "status", "step", "loss", ""):
            table.add_column(column, justify="right" if column in ("step", "loss") else "left")
        for state in self._shown():
            record = last_record(self._workdir / state.trial.name) or {}
            step = f"{record.get('step', 0)}/{state.trial.config.train.steps}"
            loss = f"{record['loss']:.3f}" if "loss" in record else ""
            status = Text(state.status, style=_COLOURS.get(state.status, ""))
            table.add_row(state.trial.name, status, step, loss, printable(self._words(state)))
        return table

    def _shown(self) -> Sequence:
        """All trials, or those near the ones that run where they are too many for a screen."""
        running = [i for i, state in enumerate(self._states) if state.status == "running"]
        start = max(0, (running[0] if running else 0) - 10)
        return self._states[start : start + 30]

    def _words(self, state) -> str:
        if state.status != "done":
            return state.said
        rule = self._sweep.rule
        parts = [
            (name, improvement(mean_change(state.changes, name), name))
            for name in (rule.gain, rule.keep)
        ]
        return ", ".join(f"{name} {100 * x:+.1f} %" for name, x in parts if x is not None)


def last_record(directory: Path) -> dict | None:
    """Returns the last whole record of a run's metrics, read from the file's end."""
    path = directory / METRICS_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def print_settings(found: Mapping) -> None:
    """Prints the settings, best first, and the choice."""
    console = _console()
    console.print(_settings_table(found))
    console.print(f"{found['sentence']}\n", highlight=False, soft_wrap=True)


def _console():
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(file=obeyed(sys.stdout), width=width, markup=False)


def _settings_table(found: Mapping):
    from rich import box
    from rich.table import Table

    rule = found["rule"]
    table = Table(title=printable(found["title"]), caption=f"{rule['says']}", box=box.SIMPLE_HEAD)
    for name in ("setting", "seeds", rule["gain"], rule["keep"], ""):
        table.add_column(name, justify="left" if name in ("setting", "") else "right")
    for row in settings_rows(found):
        table.add_row(*map(printable, row))
    return table


def settings_rows(found: Mapping) -> list[list[str]]:
    """Returns the cells of the sorted table, best setting first."""
    return [
        [row["says"], str(row["seeds"]), say_part(row["gain"]), say_part(row["keep"]),
         "best" if number == 0 and found["chosen"] is not None else "" if row["keeps"] else "loses too much"]
        for number, row in enumerate(alone_rows(found["settings"]))
    ]  # fmt: skip


def draw_axes(found: Mapping, directory: Path) -> list[Path]:
    """Draws one plot an axis, `axis-<key>.png`, of what both metrics of the rule did.

    Returns:
        the files, none for an axis without two values that are done.
    """
    drawn = []
    for key in found["axes"]:
        rows = axis_rows(found, key)
        if len(rows) > 1:
            path = directory / f"axis-{key}.png"
            _draw(key, rows, found["rule"], path)
            drawn.append(path)
    return drawn


def _draw(key: str, rows: Sequence[Mapping], rule: Mapping, path: Path) -> None:
    # Only drawing pays for matplotlib, and without pyplot: there is no display to find.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    places = range(len(rows))
    panels = zip(figure.subplots(1, 2), ("gain", "keep"), (_BLUE, _ORANGE), strict=True)
    for axes, side, colour in panels:
        means = [100 * row[side]["mean"] for row in rows]
        halves = [100 * (row[side]["half"] or 0.0) for row in rows]
        axes.errorbar(places, means, halves, color=colour, marker="o", capsize=3)
        for place, row in zip(places, rows, strict=True):
            values = [100 * value for value in row[side]["values"]]
            axes.plot([place] * len(values), values, ".", color="#555555", markersize=4)
        axes.axhline(0.0, color="#999999", linewidth=0.8)
        if side == "keep":
            axes.axhline(-100 * rule["limit"], color="#999999", linestyle="--", linewidth=0.8)
        axes.set_xticks(list(places), [row["label"] for row in rows])
        axes.set_xlabel(key)
        axes.set_title(f"{rule[side]}: improvement over the base in %", fontsize=9)
        axes.grid(axis="y", color="#e5e5e5")
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
