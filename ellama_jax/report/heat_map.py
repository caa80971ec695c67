"""A picture of where weights moved: relative change by layer and parameter.

Owns the drawing; the numbers are difference.py's.
"""

import math
from pathlib import Path

from ellama_jax.weights.difference import Comparison
from ellama_jax.weights.difference_text import LAYER_ORDER, format_share, short_name

SUFFIXES = (".png", ".svg", ".pdf")

_NAMES = {
    "attn_norm": "norm before\nattention",
    "wq": "attention\nquery",
    "wk": "attention\nkey",
    "wv": "attention\nvalue",
    "wo": "attention\noutput",
    "mlp_norm": "norm before\nMLP",
    "w_gate": "MLP\ngate",
    "w_up": "MLP\nup",
    "w_down": "MLP\ndown",
    "embed": "embedding",
    "final_norm": "final norm",
    "lm_head": "output head",
}
_ORDER = (*LAYER_ORDER, "embed", "final_norm", "lm_head")


def draw_heat_map(found: Comparison, path: Path, image_format: str) -> None:
    """Draws the relative change of every layer's parameters, and of those outside the layers.

    Args:
        found: from `compare`.
        path: the file to write.
        image_format: png, svg or pdf.
    """
    # Only drawing pays for matplotlib, and without pyplot: there is no display to find.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inside = _columns(found.stacked)
    outside = _columns({p: parts for p, parts in found.parts.items() if p not in found.stacked})
    layers = len(next(iter(inside.values())))
    figure = Figure(figsize=(13, max(5.0, 2.6 + 0.34 * layers)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(len(inside), len(outside)))
    highest = max(
        (x for side in (inside, outside) for column in side.values() for x in column
         if math.isfinite(x)), default=0.0,
    )  # fmt: skip
    image = _draw(left, inside, highest)
    _draw(right, outside, highest)
    left.set_ylabel("layer, the first one at the top", fontsize=12)
    left.set_xlabel("parameter of a layer, in the order of computation", fontsize=12)
    right.set_xlabel("outside the layers", fontsize=12)
    right.set_yticks([])
    bar = figure.colorbar(image, ax=right, pad=0.03, fraction=0.08 + 0.02 * len(outside))
    bar.set_label("size of the change, % of the size before", fontsize=12)
    figure.suptitle(
        f"How far the weights moved from A to B: {format_share(found.total.relative)} over all\n"
        f"A: {found.a.title}    B: {found.b.title}",
        fontsize=13,
    )
    figure.savefig(path, format=image_format, dpi=110)


def _columns(parts) -> dict[str, list[float]]:
    """Returns the relative changes by plain name, in the order of computation."""
    by_name = {short_name(path): [part.relative for part in row] for path, row in parts.items()}
    return {_NAMES[name]: by_name[name] for name in _ORDER if name in by_name}


def _draw(axes, columns: dict[str, list[float]], highest: float):
    rows = list(zip(*columns.values(), strict=True))
    percent = [[100 * value if math.isfinite(value) else math.nan for value in row] for row in rows]
    image = axes.imshow(
        percent, aspect="auto", cmap="viridis", vmin=0.0, vmax=100 * highest or 1.0,
        interpolation="nearest",
    )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, fontsize=10)
    axes.set_yticks(range(0, len(rows), 1 if len(rows) <= 40 else 5))
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            dark = not math.isfinite(value) or value < 0.6 * highest
            colour = "white" if dark else "black"
            axes.text(x, y, format_share(value), ha="center", va="center", color=colour, fontsize=9)
    return image
