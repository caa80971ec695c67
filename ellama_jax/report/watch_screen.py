"""The page of a run on a terminal: what stands on it and in which words.

Owns how things look; what is known of the run is report/watch_log.py's. Names of numbers are those of the
metrics file, TensorBoard and W&B.
"""

import math
import re
import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ellama_jax.core.progress import duration
from ellama_jax.core.terminal import printable
from ellama_jax.report.watch_log import MEAN_OF, Curve, Watched, domain_of

_CURVES = re.compile(r"(eval_)?loss(/.*)?|eval_(score|change)/[^/]+|eval_gate")
# Numbers of a step that have no curve on the page, and how they are written.
SPEEDS = {
    "tokens_per_sec": "{:,.0f}",
    "tokens_per_sec_per_chip": "{:,.0f}",
    "mfu": "{:.1%}",
    "step_secs": "{:.3g}",
    "learning_rate": "{:.3g}",
    "grad_norm": "{:.3g}",
}
COUNTS = ("skipped_updates", "spikes")
PARTS = ("goodput", "goodput/data_wait")
_WIDE, _NUMBERS_WIDTH = 125, 65  # columns from which two tables stand side by side
_LEAST_TREND = 8
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#"


def page(run: Watched, console: Console) -> RenderableType:
    """Returns the page of a run as it is known now, to be printed on `console`."""
    # What matters most stands first: a low terminal shows only that.
    head = [
        Text(printable(_title(run)), style="bold"),
        _progress(run, console),
        *_status(run),
        *_saved(run),
    ]
    if run.step is None:
        return Group(*head)
    numbers = [_speed(run), *([Text(), _mixture(run)] if run.tokens else [])]
    if console.width < _WIDE:
        return Group(*head, Text(), _losses(run, console, console.width), Text(), *numbers)
    beside = Table.grid(padding=(0, 3, 0, 0))
    beside.add_row(_losses(run, console, console.width - _NUMBERS_WIDTH), Group(*numbers))
    return Group(*head, Text(), beside)


def _title(run: Watched) -> str:
    model = ((run.config or {}).get("model") or {}).get("preset")
    title = run.run.get("title") or run.workdir.name
    return f"{title}, {model}" if model and model not in title else title


def _progress(run: Watched, console: Console) -> RenderableType:
    done, steps = run.step or 0, run.steps
    if not steps:
        return Text(f"step {done}; config.json does not say of how many")
    row = Table.grid(padding=(0, 1))
    width = max(10, min(40, console.width - 36))
    row.add_row(
        f"step {done:,} of {steps:,}",
        ProgressBar(total=steps, completed=done, width=width), f"{done / steps:.0%}",
    )  # fmt: skip
    return row


def _status(run: Watched) -> Iterator[Text]:
    """Says whether the run lives, and when it will be done."""
    if said := run.ended():
        yield Text(said, style="bold green")
        return
    age, silent = run.age(), run.silent()
    if silent is not None:
        yield Text(f"silent for {duration(int(silent))}: is it still running?", style="bold red")
    elif run.step is None:
        yield Text("no step yet: it starts, compiles, or waits for its data", style="yellow")
    elif age is not None:
        yield Text(f"last heard of {duration(int(age))} ago", style="green")
    left, each = run.secs_left(), run.secs_per_step()
    if left is None or silent is not None:
        yield Text("ETA unknown")
    elif not left:
        yield Text("all steps are done; the last checkpoint is not there yet")
    else:
        at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.now + left))
        yield Text(f"ETA {duration(int(left))}, at {at} ({each:.3g} s a step)")


def _losses(run: Watched, console: Console, width: int) -> Table:
    names = sorted(filter(_CURVES.fullmatch, run.curves), key=_order)
    table = _table(("", "last", f"mean of {MEAN_OF}"))
    room = min(40, width - max(map(len, names), default=0) - 25)
    if room >= _LEAST_TREND:
        table.add_column("trend", no_wrap=True, width=room, overflow="crop")
    for name in names:
        curve = run.curves[name]
        rare = name.startswith("eval_")
        cells = [_number(curve.last), f"step {curve.step}" if rare else _number(curve.mean)]
        if room >= _LEAST_TREND:
            cells.append(sparkline(curve, room, console.options.ascii_only))
        table.add_row(printable(name), *cells)
    return table


def _order(name: str) -> tuple[int, str]:
    kinds = ("loss", "eval_loss", "eval_score", "eval_change", "eval_gate")
    return kinds.index(name.partition("/")[0]), name


def _speed(run: Watched) -> Table:
    table = _table(("", "last", f"mean of {MEAN_OF}"))
    for name, form in SPEEDS.items():
        if name in run.curves:
            curve = run.curves[name]
            table.add_row(name, form.format(curve.last), form.format(curve.mean))
        elif name == "mfu":
            table.add_row(name, "-", "no known peak")
    for name in COUNTS:
        count = run.curves[name].last if name in run.curves else math.nan
        style = "" if count == 0 else "bold yellow"
        table.add_row(name, Text("-" if math.isnan(count) else f"{count:,.0f}", style=style), "")
    for name in PARTS:
        value = run.goodput.get(name, 0.0) if run.goodput else math.nan
        table.add_row(name, "-" if math.isnan(value) else f"{value:.1%}", "whole run")
    return table


def _mixture(run: Watched) -> Table:
    """Tokens consumed of each source beside the share that its domain and language should have."""
    wanted, total = run.wanted_shares(), sum(run.tokens.values()) or 1
    keys = [domain_of(name) for name in run.tokens]
    table = _table(("", "tokens", "share", "wanted"))
    for name, count in sorted(run.tokens.items()):
        key = domain_of(name)
        share = f"{wanted[key]:.1%}" if key in wanted else "-"
        together = " together" if keys.count(key) > 1 and key in wanted else ""
        row = f"{count:,}", f"{count / total:.1%}", share + together
        table.add_row(printable(f"tokens_consumed/{name}"), *row)
    return table


def _saved(run: Watched) -> Iterator[Text]:
    if run.saved is None:
        yield Text("last checkpoint: none yet")
    else:
        at = run.saved.saved_at
        age = f", {duration(max(0, int(run.now - at.timestamp())))} ago" if at else ""
        yield Text(f"last checkpoint: step {run.saved.step:,}{age}")
    if run.gate() is not None:
        word, style = ("passed", "green") if run.gate() else ("failed", "bold red")
        yield Text(f"retention gate: {word} at step {run.curves['eval_gate'].step:,}", style=style)
    if run.broken:
        lines = "1 line" if run.broken == 1 else f"{run.broken} lines"
        yield Text(f"left out of the log: {lines} that hold no record", style="yellow")


def _table(header: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def sparkline(curve: Curve, width: int, ascii_only: bool = False) -> str:
    """Draws a curve in at most `width` characters, lowest value to highest.

    >>> curve = Curve()
    >>> for step, value in enumerate([3.0, 2.0, 1.0, 1.5]): curve.add(step, value)
    >>> sparkline(curve, 4), sparkline(curve, 2, ascii_only=True)
    ('█▅▁▃', '#_')
    """
    points, marks = curve.points(width), _ASCII_BLOCKS if ascii_only else _BLOCKS
    if not points:
        return ""
    low, span = min(points), (max(points) - min(points)) or 1.0
    return "".join(marks[round((value - low) / span * (len(marks) - 1))] for value in points)
