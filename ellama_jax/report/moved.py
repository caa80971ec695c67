"""Owns what the report says of where training moved the weights, and of what can go back to base.

Everything is read from moved.json, which `ellama moved` writes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from ellama_jax.evaluate.card_text import HEADLINES, say_gain, write_value
from ellama_jax.evaluate.comparison import is_share, relative_gain
from ellama_jax.merge.revert import say_reverts
from ellama_jax.report.plots import Change, Line, change_chart, line_chart
from ellama_jax.report.sections import RunFiles, make_section
from ellama_jax.weights.difference_text import format_share

_GROUPS = {
    "attention": ("layers/attn/",),
    "MLP": ("layers/mlp/",),
    "norms": ("layers/attn_norm/", "layers/mlp_norm/"),
}
_MEANS = ("ecommerce", "bpb_ecommerce", "general", "bpb_general")


def _moved_section(files: RunFiles) -> dict | None:
    """Size and direction of the change by layer."""
    if files.moved is None:
        return None
    found = files.moved["difference"]
    layers, total = found["layers"], found["total"]
    text = (
        f"All parameters together moved by {format_share(total['relative_change'] or 0.0)} of the base's "
        f"norm. A change that points along the base's weights (cosine near 1) makes them longer, one "
        "near -1 shortens them, one near 0 adds something new."
    )
    numbers = list(range(len(layers)))
    groups = [
        Line(name, numbers, _relative_by_layer(found["leaves"], prefixes), colour)
        for colour, (name, prefixes) in enumerate(_GROUPS.items())
    ]
    angles = [_or_nan(layer["cosine_of_change_with_a"]) for layer in layers]
    plots = [
        {
            "title": "Size of the change by layer",
            "svg": line_chart(
                "size of the change by layer", groups, "layer, the first one left",
                "change, % of the size before",
            ),
            "caption": "",
        },
        {
            "title": "Direction of the change by layer",
            "svg": line_chart(
                "direction of the change by layer", [Line("all of a layer", numbers, angles, 3)],
                "layer, the first one left", "cosine of change and base",
            ),
            "caption": "All parameters of a layer together.",
        },
    ]  # fmt: skip
    rows = [
        [{"text": path, "small": "", "tone": ""}, *map(_text, _row(leaf))]
        for path, leaf in found["leaves"].items()
    ]
    header = [
        "parameters",
        "size before",
        "size of the change",
        "change",
        "cosine of change and base",
    ]
    return make_section(
        "What moved", [text], legend=list(_GROUPS), plots=plots,
        tables=[{"header": header, "rows": rows, "text_columns": 1}],
    )  # fmt: skip


def _relative_by_layer(leaves: Mapping, prefixes: Sequence[str]) -> list[float]:
    """Returns ||B - A|| / ||A|| in percent, layer by layer, of leaves that begin so."""
    chosen = [leaf["layers"] for path, leaf in leaves.items() if path.startswith(prefixes)]
    shares = []
    for parts in zip(*chosen, strict=True):
        change, before = (
            math.sqrt(sum(part[name] ** 2 for part in parts))
            for name in ("norm_difference", "norm_a")
        )
        shares.append(100 * change / before if before else math.nan)
    return shares


def _row(leaf: Mapping) -> Iterator[str]:
    yield f"{leaf['norm_a']:.4g}"
    yield f"{leaf['norm_difference']:.4g}"
    yield format_share(_or_nan(leaf["relative_change"]))
    cosine = leaf["cosine_of_change_with_a"]
    yield "–" if cosine is None else f"{cosine:+.3f}"


def _revert_section(files: RunFiles) -> dict | None:
    """What each part costs at base, and how far parts go back together."""
    study = (files.moved or {}).get("revert")
    if study is None:
        return None
    paragraphs = [
        "Parts of the adapted model were put back to base: each alone, then one after another from "
        "the cheapest on; a part that cost more than the limits stays adapted. Validation questions "
        "decided.",
        say_reverts(study),
    ]
    tested = study["test"] or {}
    bullets = [
        f"On test questions, {comparison['model']} against {comparison['base']}: "
        + ", ".join(
            f"{HEADLINES[name]} {say_gain(comparison['overall'][name], name)}"
            for name in _MEANS if name in comparison["overall"]
        )
        for comparison in tested.values()
    ]  # fmt: skip
    if study["reverted"]:
        bullets.append(f"To write it: ellama merge ... {' '.join(study['merge'])}")
    costs = [
        Change("", entry["part"], 100 * entry["cost"], None, None, 0, text=f"{100 * entry['cost']:+.1f} %")
        for entry in study["alone"]
    ]  # fmt: skip
    trail = list(_trail_plots(study))
    plots = [{
        "title": "One part back at base: how much of the e-commerce gain is lost",
        "svg": change_chart("e-commerce gain lost with one part at base", costs),
        "caption": "In % of the gain; below 0 the model is better without that part's change.",
    }, *trail]  # fmt: skip
    return make_section(
        "What can go back to base", paragraphs, bullets, plots=plots, tables=[_means_table(study)],
        legend=["e-commerce", "general"] if trail else [],
    )  # fmt: skip


def _trail_plots(study: Mapping) -> Iterator[dict]:
    """The way from the adapted model to the reverted one, over the parts that went back."""
    trail = [study["whole"], *(entry for entry in study["trail"] if entry["kept"])]
    for names, label in (
        (("ecommerce", "general"), "right answers, %"),
        (("bpb_ecommerce", "bpb_general"), "bits per byte"),
    ):
        lines = [
            Line(name, range(len(trail)), [_scaled(entry[name], name) for entry in trail], colour)
            for colour, name in enumerate(names)
            if study["whole"][name] is not None
        ]
        if lines and len(trail) > 1:
            svg = line_chart(label, lines, "number of parts back at base", label)
            yield {
                "title": f"Parts going back one after another: {label}",
                "svg": svg,
                "caption": "",
            }


def _means_table(study: Mapping) -> dict:
    models = {"base": study["base"], "started from": study["whole"], "reverted": study["final"]}
    rows = []
    for name in _MEANS:
        if study["whole"][name] is None:
            continue
        cells = [_text(write_value(model[name], name)) for model in models.values()]
        change = relative_gain(study["final"][name], study["whole"][name])
        cells.append(_text("–" if change is None else f"{100 * change:+.1f} %"))
        rows.append([_text(HEADLINES[name]), *cells])
    header = ["validation questions", *models, "reverted against started from"]
    return {"header": header, "rows": rows, "text_columns": 1}


def _scaled(value: float | None, name: str) -> float:
    return 100 * _or_nan(value) if is_share(name) else _or_nan(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _text(text: str) -> dict:
    return {"text": text, "small": "", "tone": ""}


MOVED_SECTIONS = (_moved_section, _revert_section)
