"""Owns the picture of a sweep as a file: e-commerce against general ability, with intervals.

The report draws its own, that follows the page's colours; this one stands alone, in PNG or SVG.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ellama_jax.evaluate.comparison import gain_of
from ellama_jax.merge.tradeoff_profiles import UNIFORM
from ellama_jax.merge.tradeoff_text import find_chosen

# Panels: quantity along x, quantity along y, in the order they are preferred.
_PANELS = (
    ("general", "ecommerce"),
    ("bpb_general", "ecommerce"),
    ("bpb_general", "bpb_ecommerce"),
)
_MOST = 2
AXES = {
    "general": "gain on general questions, points",
    "ecommerce": "gain on e-commerce questions, points",
    "bpb_general": "gain on general text, % of its bits per byte",
    "bpb_ecommerce": "gain on e-commerce text,\n% of its bits per byte",
}


def draw_sweep(found: Mapping, path: Path) -> None:
    """Draws a sweep's curves over the gains of their quantities: up and right is better.

    Args:
        found: as `tradeoff.sweep` returns it.
        path: a file ending in .png or .svg, replaced whole.
    """
    # Only drawing pays for matplotlib, and without pyplot: there is no display to find.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [pair for pair in _PANELS if all(_known(found, name) for name in pair)][:_MOST]
    if not panels:  # one domain alone was scored, or the base has nothing to change from
        shown = [name for name in AXES if found["alphas"][0][name] is not None]
        panels = [("alpha", name) for name in shown[:_MOST]]
    figure = Figure(figsize=(8.5, 5.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (x, y) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels,
                            strict=True):  # fmt: skip
        _draw_curve(axes, found["alphas"], x, y, "every layer alike", 0)
        for number, (name, points) in enumerate(found["profiles"].items(), start=1):
            _draw_curve(axes, [found["alphas"][0], *points], x, y, name, number)
        for number, entry in enumerate(found["steps"][:-1], start=1 + len(found["profiles"])):
            _draw_curve(axes, entry["points"], x, y, f"step {entry['step']}", number)
        _mark_chosen(axes, find_chosen(found), x, y)
        _mark_limits(axes, x, found)
        axes.set_xlabel(AXES.get(x, "alpha: 0 is the base, 1 the adapted model"), fontsize=11)
        axes.set_ylabel(AXES[y], fontsize=11)
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        axes.legend(fontsize=9)
    figure.suptitle("From the base (alpha 0) towards the adapted model (alpha 1)\n"
                    "validation questions, bars: 95 % intervals", fontsize=12)  # fmt: skip
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        figure.savefig(partial, format=path.suffix[1:], dpi=110)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _known(found: Mapping, name: str) -> bool:
    return gain_of(found["alphas"][0]["changes"].get(name), name) is not None


def _place(point: Mapping, name: str) -> tuple[float, float, float]:
    """Returns a gain and how far its interval reaches below and above it."""
    if name == "alpha":
        return point["alpha"], 0.0, 0.0
    gain = gain_of(point["changes"][name], name)
    if gain.low is None:
        return gain.value, 0.0, 0.0
    return gain.value, max(0.0, gain.value - gain.low), max(0.0, gain.high - gain.value)


def _draw_curve(axes, points, x: str, y: str, label: str, number: int) -> None:
    places = [(_place(point, x), _place(point, y)) for point in points]
    xs, ys = zip(*places, strict=True)
    bars = {
        "xerr": [[p[i] for p in xs] for i in (1, 2)],
        "yerr": [[p[i] for p in ys] for i in (1, 2)],
    }
    faint = {} if number == 0 else {"xerr": None, "yerr": None}
    axes.errorbar(
        [p[0] for p in xs], [p[0] for p in ys], **(bars | faint), fmt="o-", color=f"C{number % 10}",
        ecolor="#aaaaaa", elinewidth=1, markersize=5, linewidth=1.2, label=label, zorder=3 - 0.1 * number,
    )  # fmt: skip
    if number == 0:
        for index, point in enumerate(points):
            up = 8 if index % 2 == 0 else -15
            axes.annotate(f"{point['alpha']:g}", (xs[index][0], ys[index][0]), xytext=(6, up),
                          textcoords="offset points", fontsize=9)  # fmt: skip


def _mark_chosen(axes, point: Mapping, x: str, y: str) -> None:
    shape = "" if point["profile"] == UNIFORM else f", {point['profile']}"
    step = "" if point["step"] is None else f", step {point['step']}"
    axes.plot(
        [_place(point, x)[0]], [_place(point, y)[0]], "o", markersize=14, markerfacecolor="none",
        markeredgecolor="#d62728", markeredgewidth=2, zorder=4,
        label=f"chosen: alpha {point['alpha']:g}{shape}{step}",
    )  # fmt: skip


def limit_of(found: Mapping, x: str) -> float:
    """Returns what the rule allows to be lost of `general` or `bpb_general`, as a gain."""
    rule, base = found["rule_settings"], found["alphas"][0]["changes"][x]["base"]
    return 100 * (base * rule["general_mean"] if x == "general" else -rule["bits_per_byte"])


def _mark_limits(axes, x: str, found: Mapping) -> None:
    if x in ("general", "bpb_general"):
        axes.axvline(limit_of(found, x), color="#d62728", linestyle="--", linewidth=1,
                     label="what the rule allows")  # fmt: skip
