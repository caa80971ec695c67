"""Owns what the report says of adaptation and forgetting, of long contexts, and of scores on the way.

Changes and their intervals are evaluate/retention.py's.
"""

import math
from collections.abc import Sequence

from ellama_jax.config import GateConfig
from ellama_jax.evaluate.card_text import HEADLINES, say_gain, say_gate, write_value
from ellama_jax.evaluate.comparison import gain_of, is_share, task_label
from ellama_jax.evaluate.long_context import needle_means, position_means
from ellama_jax.evaluate.retention import check_gate, compare
from ellama_jax.report.plots import Change, Line, change_chart, line_chart
from ellama_jax.report.sections import RunFiles, gate_of, language_order, make_section, smooth_line


def _retention_section(files: RunFiles) -> dict | None:
    """What every model gained and lost against the first, with intervals, and the gate."""
    cards = [card for card in files.scorecards if card["results"]]
    comparisons = _compare_all(cards)
    if not comparisons:
        return None
    gate = gate_of(files)
    first = comparisons[0]
    paragraphs = [
        f"Gain over {first['base']}, with the {100 * first['level']:.0f} % interval over products and "
        "questions; up and right is better, a hollow point is no more than noise. Means weigh every task and "
        "language alike. Dashed: what the retention gate allows to be lost."
    ]
    bullets = []
    for comparison in comparisons:
        said = say_gate(check_gate(comparison, gate)).removeprefix("retention gate: ")
        bullets.append(f"{comparison['model']}, retention gate: {said}")
    plots = [
        _gain_plot("Over all, points", comparisons, _overall_rows(gate, True)),
        _gain_plot("Over all, % of the bits per byte", comparisons, _overall_rows(gate, False)),
        *(_language_plot(comparisons, gate, *kind) for kind in _kinds(comparisons)),
    ]
    return make_section(
        "Adaptation and forgetting", paragraphs, bullets,
        legend=[comparison["model"] for comparison in comparisons],
        plots=[plot for plot in plots if plot],
        tables=[_overall_table(comparisons), _cell_table(comparisons)],
    )  # fmt: skip


def _compare_all(cards: Sequence[dict]) -> list[dict]:
    comparisons = []
    for card in cards[1:]:
        try:
            comparisons.append(compare(cards[0], card))
        except ValueError:  # no question in common: there is nothing to compare
            continue
    return comparisons


def _overall_rows(gate: GateConfig, shares: bool) -> list[tuple[str, str, float | None]]:
    limits = {"general": gate.general_mean, "bpb_general": gate.bits_per_byte}
    return [
        (label, name, limits.get(name))
        for name, label in HEADLINES.items()
        if is_share(name) == shares
    ]


def _gain_plot(title: str, comparisons, rows) -> dict | None:
    changes = []
    for label, name, limit in rows:
        for colour, comparison in enumerate(comparisons):
            row = comparison["overall"].get(name)
            if gain_of(row, name) is not None:
                changes.append(_change(label, comparison["model"], row, name, colour, limit))
    return _plot(title, changes)


def _language_plot(comparisons, gate: GateConfig, domain: str, metric: str) -> dict | None:
    limit = None
    if domain == "general":
        limit = gate.language if metric == "accuracy" else gate.bits_per_byte
    rows = [
        (row, comparison["model"], colour)
        for colour, comparison in enumerate(comparisons)
        for row in comparison["by_language"]
        if (row["domain"], row["metric"]) == (domain, metric) and gain_of(row, metric) is not None
    ]
    rows.sort(key=lambda found: (language_order(found[0]["language"]), found[2]))
    changes = [
        _change(row["language"], model, row, metric, colour, limit) for row, model, colour in rows
    ]
    return _plot(f"{metric.replace('_', ' ').capitalize()} by language, {domain}", changes)


def _kinds(comparisons) -> list[tuple[str, str]]:
    return sorted({(r["domain"], r["metric"]) for c in comparisons for r in c["by_language"]})


def _change(
    group: str, label: str, row: dict, name: str, colour: int, limit: float | None
) -> Change:
    gain = gain_of(row, name)
    if limit is not None:  # of what the base has; of bits per byte a rise
        limit = 100 * (limit * row["base"] if is_share(name) else -limit)
    return Change(
        group, label, gain.value, gain.low, gain.high, colour % 5, limit, str(gain), gain.certain
    )


def _plot(title: str, changes: Sequence[Change]) -> dict | None:
    if not changes:
        return None
    return {"title": title, "svg": change_chart(title, changes), "caption": ""}


def _overall_table(comparisons) -> dict:
    rows = []
    for name, label in HEADLINES.items():
        found = [comparison["overall"].get(name) for comparison in comparisons]
        known = [row for row in found if row is not None]
        if known:
            base = write_value(known[0]["base"], name)
            rows.append([label, str(known[0]["n"]), base, *(_say(row, name) for row in found)])
    names = [comparison["model"] for comparison in comparisons]
    return _table(["", "questions", comparisons[0]["base"], *names], rows, 1)


def _cell_table(comparisons) -> dict:
    """Every task and language: adaptation where it is e-commerce, forgetting where it is general."""
    keys = dict.fromkeys(
        (row["domain"], row["task"], row["metric"], row["language"])
        for comparison in comparisons
        for row in comparison["cells"]
    )
    rows = []
    for key in sorted(keys, key=lambda key: (*key[:3], language_order(key[3]))):
        found = [
            next((r for r in c["cells"] if _key(r) == key), None)  # a model may lack a task
            for c in comparisons
        ]
        known = next(row for row in found if row is not None)
        base = write_value(known["base"], key[2])
        says = [_say(row, key[2]) for row in found]
        rows.append([task_label(*key[1:3]), key[0], key[3], str(known["n"]), base, *says])
    names = [comparison["model"] for comparison in comparisons]
    header = ["task", "domain", "language", "questions", comparisons[0]["base"], *names]
    return _table(header, rows, 3)


def _key(row: dict) -> tuple[str, str, str, str]:
    return row["domain"], row["task"], row["metric"], row["language"]


def _say(row: dict | None, name: str) -> str:
    return "–" if row is None else f"{write_value(row['value'], name)}, {say_gain(row, name)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> dict:
    cells = [[{"text": text, "small": "", "tone": ""} for text in row] for row in rows]
    return {"header": header, "rows": cells, "text_columns": text_columns}


def _long_context_section(files: RunFiles) -> dict | None:
    """Perplexity by position and needles found, one line a model."""
    cards = [card for card in files.scorecards if card.get("long_context")]
    if not cards:
        return None
    names = [card["model"] for card in cards]
    results = [card["long_context"] for card in cards]
    means = [position_means(result) for result in results]
    lines = [
        Line(name, [math.log2(end) for _, end in found], list(found.values()), colour % 5)
        for colour, (name, found) in enumerate(zip(names, means, strict=True))
    ]
    title = "Loss by position"
    svg = line_chart(title, lines, "log2 of the last position", "nats per token")
    plots = [{"title": title, "svg": svg, "caption": "Lower is better; each point is an interval."}]
    for key, label, scale in (("length", "log2 of tokens", math.log2), ("depth", "depth", float)):
        lines = []
        for colour, (name, result) in enumerate(zip(names, results, strict=True)):
            found = needle_means(result, key)
            xs, ys = [scale(x) for x in found], [100 * value for value in found.values()]
            lines.append(Line(name, xs, ys, colour % 5))
        svg = line_chart(f"needles found by {key}", lines, label, "found, %")
        plots.append({"title": f"Needles found, by {key}", "svg": svg, "caption": ""})
    intervals = dict.fromkeys(interval for found in means for interval in found)
    rows = [
        [f"perplexity, {start} to {end}",
         *(f"{math.exp(m[start, end]):.3f}" if (start, end) in m else "–" for m in means)]
        for start, end in intervals
    ]  # fmt: skip
    for key in ("length", "language"):
        found = [needle_means(result, key) for result in results]
        for value in dict.fromkeys(value for one in found for value in one):
            cells = [f"{100 * one[value]:.1f} %" if value in one else "–" for one in found]
            rows.append([f"needles found, {key} {value}", *cells])
    longest = " and ".join(f"{length:,}" for length in sorted({r["max_length"] for r in results}))
    text = (
        f"Long held-out texts up to {longest} tokens; a needle is a sentence in general text, told "
        "from seven other answers by its log-probability per byte (chance: 12.5 %)."
    )
    tables = [_table(["", *names], rows, 1)]
    return make_section("Long contexts", [text], legend=names, plots=plots, tables=tables)


def _scores_section(files: RunFiles) -> dict | None:
    """How mean scores went during the run; step 0 is the base."""
    plots = []
    for kind, names, label in (
        ("accuracy", ("ecommerce_en", "ecommerce_other", "general"), "%"),
        ("bits per byte", ("bpb_ecommerce", "bpb_general"), "bits"),
    ):
        lines = []
        for colour, name in enumerate(names):
            points = [
                (record["step"], (100 if label == "%" else 1) * record[f"eval_score/{name}"])
                for record in files.metrics
                if f"eval_score/{name}" in record
            ]
            if points:
                lines.append(smooth_line(HEADLINES[name], points, colour, smooth=False))
        if lines:
            title = f"{kind.capitalize()} during the run"
            caption = ", ".join(
                f"{('blue', 'orange', 'green')[line.colour]}: {line.label}" for line in lines
            )
            svg = line_chart(title, lines, "step", label)
            plots.append({"title": title, "svg": svg, "caption": caption})
    if not plots:
        return None
    gates = [(r["step"], r["eval_gate"]) for r in files.metrics if "eval_gate" in r]
    failed = [str(step) for step, passed in gates if not passed]
    said = f"The retention gate was broken after steps {', '.join(failed)}." if failed else (
        "The retention gate was passed each time." if gates else "There was no retention gate.")  # fmt: skip
    text = f"The same questions each time; step 0 is the base. {said}"
    return make_section("Scores during the run", [text], plots=plots)


EVALUATION_SECTIONS = (_retention_section, _long_context_section, _scores_section)
