"""Owns the words of a sweep: a table of points for a terminal and in Markdown, and one sentence.

It reads what tradeoff.py found.
"""

from collections.abc import Iterator, Mapping, Sequence

from ellama_jax.core.estimate import needed, say_needed
from ellama_jax.evaluate.card_text import markdown_table, say_gain, say_gate, write_value
from ellama_jax.evaluate.comparison import gain_of
from ellama_jax.evaluate.retention import compare
from ellama_jax.merge.loss_line import say_line
from ellama_jax.merge.tradeoff_profiles import PROFILES, UNIFORM
from ellama_jax.merge.tradeoff_rule import standard_error

_COLUMNS = {
    "ecommerce": "e-commerce, %",
    "general": "general, %",
    "bpb_ecommerce": "e-commerce text, bits/byte",
    "bpb_general": "general text, bits/byte",
}
_CHANGES = {"ecommerce": "e-commerce gain", "general": "general gain"}
LANGUAGE_COLUMNS = {
    ("ecommerce", "accuracy"): "e-commerce",
    ("general", "accuracy"): "general",
    ("ecommerce", "bits_per_byte"): "e-commerce text, bits/byte",
    ("general", "bits_per_byte"): "general text, bits/byte",
}


def say_result(found: Mapping) -> str:
    """Says in one sentence what was chosen and what it does, on test questions where there are any.

    The numbers are gains over the base with their 95 % intervals. It says where the difference is noise, and
    where the chosen model breaks the retention gate on test questions.
    """
    changes, rest = _judged(found)
    if not found["chosen"]:
        return say_advice(found)
    if found["test"] is None:
        what = f"{_say_gains(changes)}, on the questions that chose it"
    else:
        beside = f" (adapted model itself: {_say_gains(rest)})" if rest else ""
        what = f"{_say_gains(changes)}, on test questions that chose nothing{beside}"
    return " ".join([f"{_say_what(found)}: {what}.", *_say_doubts(found)])


def say_advice(found: Mapping) -> str:
    """Says what was chosen, and what speaks against it, without the numbers."""
    if not found["chosen"]:
        return (
            "Keep the base: no model between it and the adapted one is better at e-commerce and "
            "as good at general tasks as the rule asks."
        )
    return " ".join([f"{_say_what(found)}.", *_say_doubts(found)])


def _judged(found: Mapping) -> tuple[Mapping, Mapping | None]:
    """Returns the changes of the chosen model, and those of the adapted one where it is another."""
    if found["test"] is None:
        return find_chosen(found)["changes"], None
    changes = found["test"]["changes"]
    rest = changes["adapted"]["overall"] if found["chosen"] != 1.0 else None
    return changes["chosen"]["overall"], rest


def _say_doubts(found: Mapping) -> Iterator[str]:
    yield from _say_noise(_judged(found)[0])
    yield from _say_rival(found)
    if found["test"] is not None:
        yield from _say_verdict(found["test"]["gate"])


def _say_what(found: Mapping) -> str:
    alpha, profile, step = (found[key] for key in ("chosen", "chosen_profile", "chosen_step"))
    where = "" if step is None else f" of step {step}"
    shape = "" if profile == UNIFORM else f" with the profile {profile} ({PROFILES[profile].says})"
    if alpha == 1.0 and profile == UNIFORM:
        return f"Take the adapted model{where} as it is"
    return f"Go {100 * alpha:g} % of the way from the base to the adapted model{where}{shape}"


_SIDES = (
    (("ecommerce", "bpb_ecommerce"), "e-commerce"),
    (("general", "bpb_general"), "general ability"),
)


def _say_gains(changes: Mapping[str, dict]) -> str:
    said = []
    for names, label in _SIDES:
        name = next((n for n in names if n in changes), None)
        if name is not None:
            unit = " of the bits per byte" if name.startswith("bpb") else ""
            said.append(f"{label} {say_gain(changes[name], name)}{unit}")
    return " and ".join(said)


def _say_noise(changes: Mapping[str, dict]) -> Iterator[str]:
    """Says where the gain is no more than noise."""
    name = next((n for n in _SIDES[0][0] if n in changes), None)
    if name is not None and (gain := gain_of(changes[name], name)) and not gain.certain:
        row = changes[name]
        wanted = needed(row.get("clusters"), row.get("error"), row.get("difference") or 0.0)
        few = f": {row['clusters']} products or questions, {say_needed(wanted)}" if wanted else ""
        yield f"The e-commerce gain is within noise{few}."


def _say_rival(found: Mapping) -> Iterator[str]:
    """Says where test questions do not tell the chosen model from the adapted one."""
    if found["test"] is None or found["chosen"] == 1.0:
        return
    cards = found["test"]["scorecards"]
    apart = compare(cards["adapted"], cards["chosen"])["overall"]
    gains = [gain_of(apart[n], n) for names, _ in _SIDES for n in names if n in apart]
    if not any(gain.certain for gain in gains if gain is not None):
        yield "On test questions nothing tells it from the adapted model itself: either will do."


def _say_verdict(gate: Mapping) -> Iterator[str]:
    if gate["passed"] is False:
        yield "It FAILS the retention gate on test questions: do not ship it."
    elif gate["passed"] is None:
        open_ones = [check for check in gate["checks"] if check["passed"] is None]
        worst = max(open_ones, key=lambda check: check["needed"] or 0, default={})
        few = (
            f" ({worst['clusters'] or 0}, {say_needed(worst['needed'])})"
            if worst.get("needed")
            else ""
        )
        yield f"Too few test questions to tell whether it passes the retention gate{few}."
    else:
        yield "It passes the retention gate on test questions."


def say_caution(found: Mapping) -> str | None:
    """Says so where the general questions that chose are too few to see the loss allowed."""
    chosen = find_chosen(found)
    change = (chosen if chosen["alpha"] else found["alphas"][-1])["changes"].get("general")
    limit = -found["rule_settings"]["general_mean"]
    if change is None or change["low"] is None or standard_error(change) <= max(limit, 0.01):
        return None
    return (
        f"Caution: {change['n']} general questions are too few to see a loss of {100 * limit:g} %: "
        f"one standard error of the change is {100 * standard_error(change):.1f} %."
    )


def find_chosen(found: Mapping) -> dict:
    """Returns the point that was chosen."""
    wanted = found["chosen"], found["chosen_profile"], found["chosen_step"]
    return next(p for p in all_points(found) if (p["alpha"], p["profile"], p["step"]) == wanted)


def all_points(found: Mapping) -> list[dict]:
    """Returns every point of a sweep: the curve's, the profiles', those of earlier steps."""
    others = [entry["points"] for entry in found["steps"][:-1]]
    return [p for curve in (found["alphas"], *found["profiles"].values(), *others) for p in curve]


def curve_rows(found: Mapping) -> list[list[str]]:
    """Returns the table of points with a header: values, and changes of e-commerce and general."""
    points = all_points(found)
    names = [name for name in _COLUMNS if any(point[name] is not None for point in points)]
    changed = [name for name in _CHANGES if name in names]
    told = {"profile": bool(found["profiles"]), "step": bool(found["steps"])}
    shown = [key for key, is_told in told.items() if is_told]
    header = ["alpha", "by the rule", *shown, *(_COLUMNS[name] for name in names)]
    rows = [[*header, *(_CHANGES[name] for name in changed)]]
    chosen = find_chosen(found)
    for point in points:
        kept = "chosen" if point is chosen else "allowed" if point["keeps_general"] else "forgets"
        row = [f"{point['alpha']:g}", kept, *(str(point[key]) for key in shown)]
        row += [_write(point, name) for name in names]
        rows.append([*row, *(say_gain(point["changes"].get(name), name) for name in changed)])
    return rows


def language_rows(points: Sequence[Mapping]) -> list[list[str]]:
    """Returns the curve by language with a header: a row a language, a column an alpha."""
    keys = dict.fromkeys(
        (row["domain"], row["metric"], row["language"])
        for point in points
        for row in point["by_language"]
        if (row["domain"], row["metric"]) in LANGUAGE_COLUMNS
    )
    held = [
        {(r["domain"], r["metric"], r["language"]): r for r in p["by_language"]} for p in points
    ]
    rows = [["", *(f"alpha {point['alpha']:g}" for point in points)]]
    for key in keys:
        cells = [write_value(one[key]["value"], key[1]) if key in one else "–" for one in held]
        rows.append([f"{LANGUAGE_COLUMNS[key[:2]]} {key[2]}", *cells])
    return rows


def _write(point: Mapping, name: str) -> str:
    if point[name] is None:
        return "–"
    error = point[f"{name}_stderr"]
    if name.startswith("bpb"):
        return f"{point[name]:.4f}" + ("" if error is None else f" ±{error:.4f}")
    return f"{100 * point[name]:.1f}" + ("" if error is None else f" ±{100 * error:.1f}")


def format_sweep(found: Mapping) -> str:
    """Lays a sweep out for a terminal."""
    rows = curve_rows(found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines += ["", *_closing(found)]
    return "\n".join(lines)


def format_sweep_markdown(found: Mapping) -> str:
    """Writes a sweep as Markdown, for a model card."""
    lines = ["## Trade-off between base and adapted", "", found["sentence"], ""]
    lines += [*markdown_table(curve_rows(found)), "### By language", ""]
    lines += markdown_table(language_rows(found["alphas"]))
    lines += [line for said in _closing(found)[:-1] for line in (said, "")]
    return "\n".join(lines)


def _closing(found: Mapping) -> list[str]:
    said = [found["rule"]]
    if caution := say_caution(found):
        said.append(caution)
    if found["line"]:
        said += say_line(found["line"])
    if found["test"]:
        said.append(f"On test questions the {say_gate(found['test']['gate'])}")
    return [*said, found["sentence"]]
