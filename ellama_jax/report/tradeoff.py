"""Owns what the report says of a sweep between base and adapted: the curve, the choice, the line.

What was found and what was chosen is merge/tradeoff.py's; drawings are report/plots.py's.
"""

from collections.abc import Mapping, Sequence

from ellama_jax.evaluate.card_text import HEADLINES, say_gain, say_gate, write_value
from ellama_jax.evaluate.comparison import gain_of, is_share
from ellama_jax.merge.loss_line import say_line
from ellama_jax.merge.tradeoff_plot import AXES, limit_of
from ellama_jax.merge.tradeoff_profiles import PROFILES, UNIFORM
from ellama_jax.merge.tradeoff_text import curve_rows, find_chosen, language_rows, say_caution
from ellama_jax.report.plots import (
    Band,
    Curve,
    Line,
    Point,
    Square,
    curve_chart,
    heat_map,
    line_chart,
)
from ellama_jax.report.sections import RunFiles, language_order, make_section

# Quantities along x and y of a plot, with their axes in plain words.
_PAIRS = (("general", "ecommerce"), ("bpb_general", "ecommerce"), ("bpb_general", "bpb_ecommerce"))
_ALPHA = "share of the way from base (0) to adapted (1)"
_MOST_PAIRS = 2


def tradeoff_section(files: RunFiles) -> dict | None:
    """The sentence, the curves with intervals, the test result and every point."""
    found = files.sweep
    if found is None:
        return None
    if "changes" not in found["alphas"][0]:
        words = ["sweep.json is of an earlier version; run `ellama merge-sweep` again to see it."]
        return make_section("Trade-off", words)
    paragraphs = [
        found["sentence"],
        f"Alpha is the share of the way from the base to the adapted model. {found['rule']}",
    ]
    bullets = []
    if found["profiles"]:
        bullets += [f"{name}: {PROFILES[name].says}." for name in (UNIFORM, *found["profiles"])]
    if caution := say_caution(found):
        bullets.append(caution)
    if found["test"]:
        bullets.append(f"On test questions the {say_gate(found['test']['gate'])}")
    pairs = [pair for pair in _PAIRS if all(_known(found, name) for name in pair)][:_MOST_PAIRS]
    plots = [_pair_plot(found, *pair) for pair in pairs]
    plots += [*(_profile_plots(found, pairs) if pairs else ()), *_heat_maps(found)]
    tables = [_test_table(found["test"])] if found["test"] else []
    return make_section(
        "Trade-off", paragraphs, bullets, plots=plots,
        tables=[*tables, _table(curve_rows(found), 2)],
    )  # fmt: skip


def _known(found: Mapping, name: str) -> bool:
    return gain_of(found["alphas"][0]["changes"].get(name), name) is not None


def _pair_plot(found: Mapping, x: str, y: str) -> dict:
    chosen = find_chosen(found)
    curve = Curve([_point(p, x, y, chosen) for p in found["alphas"]], 0)
    title = f"{'E-commerce' if y == 'ecommerce' else 'E-commerce text'} against general "
    title += "ability" if x == "general" else "text"
    svg = curve_chart(
        title, [curve], AXES[x], AXES[y].replace("\n", " "), x_limit=limit_of(found, x)
    )
    elsewhere = "" if chosen in found["alphas"] else " (it lies on another curve)"
    caption = (
        "Gains on validation questions; up and right is better. Numbers are alphas, from 0, the base, to 1, the "
        f"adapted model. The large orange point was chosen{elsewhere}; bars are the 95 % intervals of the "
        "chosen point (of alpha 1, where the base was chosen). Right of the dashed line is what the rule allows without looking at noise."
    )
    return {"title": title, "svg": svg, "caption": caption}


def _profile_plots(found: Mapping, pairs: Sequence[tuple[str, str]]) -> list[dict]:
    """The curves of other profiles beside the uniform one; intervals would hide them."""
    if not found["profiles"]:
        return []
    chosen, (x, y) = find_chosen(found), pairs[0]
    curves = [Curve([_point(p, x, y, chosen, bare=True) for p in found["alphas"]], 0, UNIFORM)]
    for number, (name, points) in enumerate(found["profiles"].items(), start=1):
        drawn = [_point(p, x, y, chosen, bare=True) for p in (found["alphas"][0], *points)]
        curves.append(Curve(drawn, _other_colour(number), name))
    title = "Profiles over depth and parts"
    svg = curve_chart(
        title, curves, AXES[x], AXES[y].replace("\n", " "), x_limit=limit_of(found, x)
    )
    caption = "Each curve goes from the base to alpha 1; names stand at the largest alpha."
    return [{"title": title, "svg": svg, "caption": caption}]


def _other_colour(number: int) -> int:
    # The chosen point alone has the second colour.
    return (0, 2, 3, 4)[number % 4]


def _point(point: Mapping, x: str, y: str, chosen: Mapping, *, bare: bool = False) -> Point:
    """A point of a plot with its label; with intervals if it was chosen, or is the adapted model beside a chosen base.

    A bare one has neither.
    """
    mine = all(point[key] == chosen[key] for key in ("alpha", "profile", "step"))
    barred = mine if chosen["alpha"] else point["alpha"] == 1
    places, ends = [], []
    for name in (x, y):
        gain = gain_of(point["changes"][name], name)
        places.append(gain.value)
        known = gain.low is not None and not bare and barred
        ends.append((gain.low, gain.high) if known else None)
    label = "" if bare else f"{point['alpha']:g}"
    return Point(label, *places, *ends, chosen=mine)


def _heat_maps(found: Mapping) -> list[dict]:
    """Run steps x alpha: how e-commerce and general ability changed."""
    if len(found["steps"]) < 2:
        return []
    chosen = find_chosen(found)
    plots = []
    names = [name for name in ("ecommerce", "general", "bpb_ecommerce", "bpb_general")
             if _known(found, name)]  # fmt: skip
    for name in names[:2] if "ecommerce" in names else names:
        squares = [
            [_square(point, name, chosen) for point in entry["points"]] for entry in found["steps"]
        ]
        rows = [f"{entry['step']:,}" for entry in found["steps"]]
        columns = [f"{point['alpha']:g}" for point in found["steps"][0]["points"]]
        unit = "points" if is_share(name) else "%"
        title = f"Gain in {unit} by step and alpha: {HEADLINES[name].split(', all')[0]}"
        svg = heat_map(title, squares, rows, columns, _ALPHA, "step of the run")
        caption = "Framed: chosen. In brackets: loses more general ability than the rule allows."
        plots.append({"title": title, "svg": svg, "caption": caption})
    return plots


def _square(point: Mapping, name: str, chosen: Mapping) -> Square:
    gain = gain_of(point["changes"][name], name)
    text = "–" if gain is None else f"{gain.value:+.1f}"
    if not point["keeps_general"]:
        text = f"({text})"
    mine = all(point[key] == chosen[key] for key in ("alpha", "profile", "step"))
    return Square(gain and gain.value / 100, text, mine)


def _test_table(test: Mapping) -> dict:
    """What test questions, which chose nothing, say of the chosen and the adapted model."""
    overall = {name: test["changes"][name]["overall"] for name in ("chosen", "adapted")}
    rows = [["on test questions", "questions", "base", "chosen", "adapted"]]
    for name, label in HEADLINES.items():
        if (change := overall["chosen"].get(name)) is None:
            continue
        cells = [
            f"{write_value(o[name]['value'], name)}, {say_gain(o[name], name)}"
            for o in overall.values()
        ]
        rows.append([label, str(change["n"]), write_value(change["base"], name), *cells])
    return _table(rows, 1)


def _language_section(files: RunFiles) -> dict | None:
    """The curve by language: e-commerce and general, against alpha."""
    if files.sweep is None or "changes" not in files.sweep["alphas"][0]:
        return None
    points = files.sweep["alphas"]
    keys = {
        (r["domain"], r["metric"], r["language"]) for r in points[-1]["by_language"]
        if gain_of(r, r["metric"]) is not None
    }  # fmt: skip
    languages = sorted({language for _, _, language in keys}, key=language_order)
    plots = []
    for domain, metric, what in (
        ("ecommerce", "accuracy", "e-commerce questions right"),
        ("general", "accuracy", "general questions right"),
        ("ecommerce", "bits_per_byte", "bits per byte of e-commerce text"),
        ("general", "bits_per_byte", "bits per byte of general text"),
    ):
        lines = [
            _language_line(points, (domain, metric, language), number)
            for number, language in enumerate(languages)
            if (domain, metric, language) in keys
        ]
        if lines:
            marks = [files.sweep["chosen"]] if files.sweep["chosen_profile"] == UNIFORM else []
            title = f"{what[0].upper()}{what[1:]}, by language"
            label = "gain, points" if metric == "accuracy" else "gain, % of its bits per byte"
            svg = line_chart(title, lines, _ALPHA, label, marks=marks)
            caption = "Dashed: the chosen alpha." if marks else ""
            plots.append({"title": title, "svg": svg, "caption": caption})
    if not plots:
        return None
    return make_section(
        "Trade-off by language", legend=languages, plots=plots,
        tables=[_table(language_rows(points), 1)],
    )  # fmt: skip


def _language_line(points, key: tuple[str, str, str], number: int) -> Line:
    rows = [
        (point["alpha"], row)
        for point in points
        for row in point["by_language"]
        if (row["domain"], row["metric"], row["language"]) == key
    ]
    return Line(
        key[2], [a for a, _ in rows], [gain_of(row, key[1]).value for _, row in rows], number % 5
    )


def _line_section(files: RunFiles) -> dict | None:
    """Loss along the straight line between the two models, and the barrier."""
    line = files.sweep and files.sweep.get("line")
    if not line:
        return None
    plots = []
    for domain, found in line["domains"].items():
        alphas, values = found["alphas"], found["values"]
        ends = [values[alphas.index(end)] for end in (0.0, 1.0)]
        title = f"{'E-commerce' if domain == 'ecommerce' else 'General'} text along the line"
        svg = line_chart(
            title, [Line(domain, alphas, values, 0)], _ALPHA, "bits per byte",
            bands=[Band(alphas, found["lows"], found["highs"], 0)],
            dashed=[Line("straight", [0.0, 1.0], ends, 0)],
        )  # fmt: skip
        caption = "Lower is better. Dashed: the straight line between the two models' losses."
        plots.append({"title": title, "svg": svg, "caption": caption})
    words = (
        "Loss of models on the straight line between base and adapted, and a little beyond, on "
        f"held-out validation text, with the {100 * line['level']:.0f} % interval over documents. "
        "The barrier is how far the loss rises above the straight line between the two ends."
    )
    return make_section("Loss along the line", [words], say_line(line), plots=plots)


def _table(rows: Sequence[Sequence[str]], text_columns: int) -> dict:
    """A table of rows of text, the first its header."""
    cells = [[{"text": text, "small": "", "tone": ""} for text in row] for row in rows[1:]]
    return {"header": rows[0], "rows": cells, "text_columns": text_columns}


TRADEOFF_SECTIONS = (_language_section, _line_section)
