"""Owns the words of scorecards side by side: lines for a terminal, Markdown for a model card.

The numbers are those of `retention` and `comparison`.
"""

from collections.abc import Mapping, Sequence

from ellama_jax.core.estimate import say_needed
from ellama_jax.evaluate.comparison import gain_of, is_share
from ellama_jax.evaluate.long_context import format_long_context
from ellama_jax.evaluate.score_table import format_table

HEADLINES = {
    "ecommerce_en": "e-commerce, English",
    "ecommerce_other": "e-commerce, other languages",
    "ecommerce": "e-commerce, all languages",
    "ecommerce_generated": "e-commerce, generated answers",
    "general": "general questions, all languages",
    "bpb_ecommerce": "bits per byte, e-commerce text",
    "bpb_general": "bits per byte, general text",
}
_RULES = {
    "general_mean": "general mean",
    "language": "general",
    "bits_per_byte": "bits per byte",
}
_TOLD_AS_FACTOR = 10.0  # relative changes from here on
_EVIDENCE = {
    "certain": "fails where the whole interval is beyond the limit",
    "likely": "fails where the change itself is beyond the limit",
    "possible": "fails where any of the interval is beyond the limit",
}


def say_comparison(comparison: Mapping) -> str:
    """Says the overall changes of a model in lines.

    >>> change = {"base": 0.4, "value": 0.5, "n": 80, "difference": 0.1, "difference_low": 0.04,
    ...           "difference_high": 0.16}
    >>> print(say_comparison({"base": "base", "model": "a", "level": 0.95, "overall": {"general": change}}))
    a against base, gain with its 95 % interval (up is better):
      general questions, all languages  40.0 % -> 50.0 %  +10.0 points [+4.0, +16.0]  (80)
    """
    overall = comparison["overall"]
    width = max(len(HEADLINES[name]) for name in overall)
    lines = [
        f"{comparison['model']} against {comparison['base']}, gain with its "
        f"{100 * comparison['level']:.0f} % interval (up is better):"
    ]
    for name, row in overall.items():
        went = f"{write_value(row['base'], name)} -> {write_value(row['value'], name)}"
        lines.append(f"  {HEADLINES[name]:<{width}}  {went}  {say_gain(row, name)}  ({row['n']})")
    return "\n".join(lines)


def say_gain(row: Mapping | None, name: str) -> str:
    """Writes a gain with its interval, or a dash."""
    gain = gain_of(row, name)
    return "–" if gain is None else str(gain)


def say_change(row: Mapping) -> str:
    """Writes a relative change with its interval.

    >>> say_change({"change": -0.012, "low": -0.03, "high": 0.004})
    '-1.2 % [-3.0, +0.4]'
    >>> say_change({"change": None, "low": None, "high": None})
    '–'

    What began near nothing is told as a factor:

    >>> say_change({"change": 94.4, "low": 38.4, "high": 701.8})
    'x 95.4 [39.4, 703]'
    """
    if row["change"] is None:
        return "–"
    if row["change"] >= _TOLD_AS_FACTOR:
        ends = [] if row["low"] is None else [f"{1 + row[end]:.3g}" for end in ("low", "high")]
        return f"x {1 + row['change']:.3g}" + (f" [{', '.join(ends)}]" if ends else "")
    interval = ""
    if row["low"] is not None:
        interval = f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"{100 * row['change']:+.1f} %{interval}"


def say_gate(gate: Mapping) -> str:
    """Says in one line whether the gate was passed, naming every rule that was broken.

    >>> broken = {"rule": "language", "language": "de", "limit": -0.03, "change": -0.1,
    ...           "low": -0.15, "high": -0.05, "passed": False}
    >>> say_gate({"passed": False, "fails_when": "certain", "checks": [broken]})
    'retention gate: FAILED: general de -10.0 % [-15.0, -5.0], limit -3.0 %.'
    """
    if not gate["checks"]:
        return "retention gate: nothing general was scored, so nothing was checked."
    if gate["passed"] is None:
        open_ones = [check for check in gate["checks"] if check["passed"] is None]
        return f"retention gate: CANNOT TELL: {'; '.join(map(_say_too_few, open_ones))}."
    if gate["passed"]:
        closest = min(gate["checks"], key=_margin)
        return (
            f"retention gate: passed, {len(gate['checks'])} rules; closest: {_say_check(closest)}."
        )
    broken = [_say_check(check) for check in gate["checks"] if check["passed"] is False]
    return f"retention gate: FAILED: {'; '.join(broken)}."


def _say_too_few(check: Mapping) -> str:
    found = f"{check['clusters'] or 0} products or questions"
    wanted = f", {say_needed(check['needed'])}" if check["needed"] else ""
    return f"{_say_check(check)}: too few to decide ({found}{wanted})"


def _margin(check: Mapping) -> float:
    sign = -1 if check["rule"] == "bits_per_byte" else 1
    return sign * (check["change"] - check["limit"])


def _say_check(check: Mapping) -> str:
    language = f" {check['language']}" if check["language"] else ""
    limit = f"limit {100 * check['limit']:+.1f} %"
    return f"{_RULES[check['rule']]}{language} {say_change(check)}, {limit}"


def format_markdown(
    cards: Sequence[dict], comparisons: Sequence[Mapping], gates: Sequence[Mapping]
) -> str:
    """Writes scorecards side by side as Markdown, for a model card.

    Args:
        cards: the base first.
        comparisons, gates: of each other card, as `retention` gives them.
    """
    names = [card["model"] for card in cards]
    parts = ["## Adaptation and forgetting", ""]
    if comparisons:
        level = f"{100 * comparisons[0]['level']:.0f} %"
        parts += [
            f"Gain over `{names[0]}`, with its {level} interval by product or question: points of the share "
            "of right answers, and of bits per byte the part that went. Up is better. Means weigh every "
            "task and language alike.",
            "",
        ]
        parts += _overall_table(names, comparisons)
        parts += _language_table(comparisons)
        parts += ["### Retention gate", ""]
        for comparison, gate in zip(comparisons, gates, strict=True):
            said = say_gate(gate).removeprefix("retention gate: ")
            parts.append(f"- `{comparison['model']}`: {said} ({_EVIDENCE[gate['fails_when']]})")
        parts.append("")
    if any(card["results"] for card in cards):
        parts += ["### All tasks", "", "```", format_table(cards), "```", ""]
    if any(card.get("long_context") for card in cards):
        parts += ["### Long contexts", "", "```", format_long_context(cards), "```", ""]
    return "\n".join(parts)


def _overall_table(names: Sequence[str], comparisons: Sequence[Mapping]) -> list[str]:
    rows = [["", f"{names[0]}", *(c["model"] for c in comparisons)]]
    for name, label in HEADLINES.items():
        found = [comparison["overall"].get(name) for comparison in comparisons]
        if known := [row for row in found if row is not None]:
            cells = [_say_value(row, name) if row else "–" for row in found]
            rows.append([label, write_value(known[0]["base"], name), *cells])
    return markdown_table(rows)


def _language_table(comparisons: Sequence[Mapping]) -> list[str]:
    keys = dict.fromkeys(
        (row["domain"], row["metric"], row["language"])
        for comparison in comparisons
        for row in comparison["by_language"]
    )
    rows = [["domain", "metric", "language", *(c["model"] for c in comparisons)]]
    for domain, metric, language in keys:
        cells = []
        for comparison in comparisons:
            found = [r for r in comparison["by_language"]
                     if (r["domain"], r["metric"], r["language"]) == (domain, metric, language)]  # fmt: skip
            cells.append(say_gain(found[0], metric) if found else "–")
        rows.append([domain, metric.replace("_", " "), language, *cells])
    return markdown_table(rows)


def _say_value(row: Mapping, name: str) -> str:
    return f"{write_value(row['value'], name)}, {say_gain(row, name)}"


def write_value(value: float, name: str) -> str:
    """Writes an accuracy in percent, bits per byte and log errors with three digits."""
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.3f}"


def markdown_table(rows: Sequence[Sequence]) -> list[str]:
    """Returns the lines of a table, the first row its header, and an empty one after it."""
    lines = [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return [*lines, ""]
