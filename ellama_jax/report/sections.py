"""Owns what each section of the report says: from the files of a run to tables, plots, sentences.

Reading the files is report/verb.py's, looks are report/page.py's, drawings report/plots.py's. Nothing is
computed anew here but averages and differences of numbers that the run wrote down.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ellama_jax.config import GateConfig
from ellama_jax.core.progress import duration
from ellama_jax.evaluate.card_text import HEADLINES, say_gate, write_value
from ellama_jax.evaluate.comparison import (
    gain_of,
    is_share,
    mean_of_cells,
    summary,
    table_groups,
    task_label,
)
from ellama_jax.evaluate.retention import changes_between, check_gate, compare
from ellama_jax.merge.tradeoff_text import say_advice
from ellama_jax.report.plots import Bar, Line, bar_chart, line_chart

_LANGUAGES = ("en", "de", "fr", "it", "es")
_MOST_POINTS = 600  # of one curve; more would only make the page heavy


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds; None or empty where a part is missing."""

    workdir: Path
    run: dict | None
    config: dict | None
    metrics: list[dict]
    scorecards: list[dict]
    sweep: dict | None
    goodput: dict | None = None
    moved: dict | None = None
    trials: dict | None = None


def make_section(
    title, paragraphs=(), bullets=(), legend=(), plots=(), tables=(), blocks=()
) -> dict:
    """Returns one section of the page; what is not given stays empty."""
    return {
        "title": title, "paragraphs": paragraphs, "bullets": bullets, "legend": legend,
        "plots": plots, "tables": tables, "blocks": blocks,
    }  # fmt: skip


def make_lead(files: RunFiles) -> list[str]:
    """Says in three sentences what somebody who decides would repeat: gain, loss, and what to do.

    Of the last model against the first, on the questions that both were asked.
    """
    cards = [card for card in files.scorecards if card["results"]]
    if len(cards) < 2:
        return []
    try:
        changes = compare(cards[0], cards[-1])
    except ValueError:  # no question in common
        return []
    names = cards[0]["model"], cards[-1]["model"]
    lead = []
    for title, kinds in _LEAD_SIDES.items():
        name = next((name for name in kinds if name in changes["overall"]), None)
        if name is not None:
            lead.append(f"{title}: {_say_side(changes['overall'][name], name, *names)}")
    if files.sweep:
        lead.append(say_advice(files.sweep))
    else:
        said = say_gate(check_gate(changes, gate_of(files)))
        lead.append(f"{said[0].upper()}{said[1:]}")
    return lead


_LEAD_SIDES = {
    "E-commerce": ("ecommerce", "bpb_ecommerce"),
    "General ability": ("general", "bpb_general"),
}


def _say_side(row: Mapping, name: str, base: str, model: str) -> str:
    gain = gain_of(row, name)
    if gain is None:
        return f"{model} and {base} cannot be compared."
    verdict = "no more than noise" if not gain.certain else "better" if gain.value > 0 else "worse"
    ends = (write_value(row[key], name) for key in ("base", "value"))
    if is_share(name):
        what = f"{row['n']:,} questions, {base} {{}} right and {model} {{}}"
    else:
        what = f"{row['n']:,} texts, {base} {{}} bits per byte and {model} {{}}"
    return f"on {what.format(*ends)}: {gain}, {verdict}."


def gate_of(files: RunFiles) -> GateConfig:
    """Returns the run's own rules; those of runs from before there were any are the defaults."""
    evaluate = (files.config or {}).get("evaluate", {})
    return GateConfig(**evaluate["gate"]) if "gate" in evaluate else GateConfig()


def _headline_section(files: RunFiles) -> dict | None:
    """One row a summary, one column a model."""
    if not any(card["results"] for card in files.scorecards):
        return None
    cards = files.scorecards
    means, names = [summary(card) for card in cards], [card["model"] for card in cards]
    overall = [_overall(cards[0], card) for card in cards[1:]]
    rows = []
    for key, label in HEADLINES.items():
        if any(mean[key] is not None for mean in means):
            cells = [_value_cell(mean[key], mean[f"{key}_stderr"], key) for mean in means]
            rows.append([_cell(label), *cells, *(_gain_cell(o.get(key), key) for o in overall)])
    header = ["", *names, *(f"gain of {name}" for name in names[1:])]
    paragraphs = [
        "Plain means over tasks and languages, with standard error. Accuracies compare answers by log-probability per "
        "byte. Gains have their 95 % interval, on the questions that both were asked: points of accuracy, or the part "
        "of the bits per byte that went. Up is better; coloured where the interval leaves out 0."
    ]
    if trained := [record for record in files.metrics if "tokens_consumed" in record]:
        last = trained[-1]  # record 0 holds the base model's held-out loss alone
        tokens = sum(last["tokens_consumed"].values())
        rates = sorted(record["tokens_per_sec"] for record in trained)
        paragraphs.append(
            f"Trained on {tokens:,} tokens in {last['step']:,} steps, at {rates[len(rates) // 2]:,.0f} tokens/s (median)."
        )
    return make_section("Result", paragraphs, tables=[_table(header, rows, 1)])


def _overall(base: dict, card: dict) -> dict[str, dict]:
    try:
        return compare(base, card)["overall"]
    except ValueError:  # no question in common
        return {}


def _run_section(files: RunFiles) -> dict | None:
    """Model, phases with their seconds, memory, notes."""
    run = files.run
    if run is None:
        return None
    facts = [("model", run.get("model")), ("command", run.get("command"))]
    facts += [("commit", run.get("commit")), ("versions", _join(run.get("versions") or {}))]
    if run.get("peak_memory_bytes"):
        facts.append(("peak memory", f"{run['peak_memory_bytes'] / 2**30:.2f} GiB"))
    rows = [[_cell(name), _cell(str(value))] for name, value in facts if value]
    phases = run.get("phases") or []
    plots = []
    if phases:
        bars = [
            Bar("", phase["name"], phase["seconds"], 0, text=duration(phase["seconds"]))
            for phase in phases
        ]
        total = duration(sum(phase["seconds"] for phase in phases))
        svg = bar_chart("seconds a phase", bars)
        plots.append({"title": f"Phases, {total} in all", "svg": svg, "caption": ""})
    tables = [_table(["", ""], rows, 2)]
    return make_section("What ran", (), run.get("notes") or (), plots=plots, tables=tables)


def _scorecard_section(files: RunFiles) -> dict | None:
    """Every task and language with n, standard error and chance."""
    if not any(card["results"] for card in files.scorecards):
        return None
    names = [card["model"] for card in files.scorecards]
    rows, first = [], files.scorecards[0]
    change = changes_between(first, files.scorecards[1]) if len(names) > 1 else None
    for (task, domain, metric), languages in table_groups(first).items():
        for language in sorted(languages, key=language_order):
            key = (task, domain, metric, language)
            cells = [_find_result(card, key) for card in files.scorecards]
            row = _scorecard_row(key, cells)
            if change is not None:
                row.append(_gain_cell(change(domain, metric, task, {language}), metric))
            rows.append(row)
    header = ["task", "language", "n", "chance", *names]
    if len(names) > 1:
        header.append(f"gain of {names[1]}")
    return make_section(
        "Scorecard",
        ["Bars: mean over the tasks of English and of the other languages; dashed: chance."],
        legend=names,
        plots=_score_plots(files.scorecards),
        tables=[_table(header, rows, 2)],
    )


def _scorecard_row(key: tuple, cells: Sequence[dict | None]) -> list[dict]:
    task, domain, metric, language = key
    known = next(cell for cell in cells if cell is not None)
    name = f"{task} ({domain})" if metric == "bits_per_byte" else task_label(task, metric)
    chance = "" if known["chance"] is None else _percent(known["chance"], 0)
    values = [
        _cell("–") if cell is None else _value_cell(cell["value"], cell["stderr"], metric)
        for cell in cells
    ]
    return [_cell(name), _cell(language), _cell(str(known["n"])), _cell(chance), *values]


def _score_plots(cards: Sequence[dict]) -> list[dict]:
    plots = []
    for title, wanted in (("English", ["en"]), ("Other languages", _LANGUAGES[1:])):
        bars = []
        for task, domain, metric in table_groups(cards[0]):
            if metric != "accuracy":
                continue
            for colour, card in enumerate(cards):
                found = [_find_result(card, (task, domain, metric, code)) for code in wanted]
                found = [cell for cell in found if cell is not None]
                value, error = mean_of_cells(found)
                if value is not None:
                    chance = sum(cell["chance"] for cell in found) / len(found)
                    text = _percent(value) + ("" if error is None else f" ±{100 * error:.1f}")
                    bars.append(Bar(task, card["model"], value, colour % 5, error, chance, text))
        if bars:
            svg = bar_chart(f"accuracy by task, {title}", bars, high=1.0)
            plots.append({"title": title, "svg": svg, "caption": ""})
    return plots


def _loss_section(files: RunFiles) -> dict | None:
    languages, plots = loss_plots(files.metrics, "loss", "training loss", smooth=True)
    if not plots:
        return None
    text = "Loss on each training batch, in nats per token, smoothed over a fiftieth of the run."
    return make_section("Loss by domain and language", [text], legend=languages, plots=plots)


def loss_plots(
    metrics: Sequence[Mapping], prefix: str, what: str, *, smooth: bool
) -> tuple[list[str], list[dict]]:
    """Draws `<prefix>/<domain>/<language>` of a run's metrics: a plot a domain, a line a language.

    Returns:
        The languages, in the order of the lines' colours, and the plots, titled `what`.
    """
    curves: dict[str, dict[str, list]] = {}
    for record in metrics:
        for name, value in record.items():
            found = re.fullmatch(rf"{prefix}/(\w+)/(\w+)", name)
            if found:
                domain, language = found.groups()
                points = curves.setdefault(domain, {}).setdefault(language, [])
                points.append((record["step"], value))
    languages = sorted({code for lines in curves.values() for code in lines}, key=language_order)
    plots = []
    for domain in sorted(curves):
        lines = [
            smooth_line(code, curves[domain][code], languages.index(code) % 5, smooth=smooth)
            for code in languages
            if code in curves[domain]
        ]
        svg = line_chart(f"{what}, {domain}", lines, "step", "nats per token")
        plots.append({"title": f"{what.capitalize()}, {domain}", "svg": svg, "caption": ""})
    return languages, plots


def smooth_line(
    label: str, points: Sequence[tuple[int, float]], colour: int, *, smooth: bool = True
) -> Line:
    """Averages neighbouring steps, so that curves of small batches can be told apart."""
    points = [(step, value) for step, value in points if value is not None and math.isfinite(value)]
    reach = len(points) // 100 if smooth else 0
    xs, ys = [], []
    for index in range(0, len(points), max(1, len(points) // _MOST_POINTS)):
        near = [value for _, value in points[max(0, index - reach) : index + reach + 1]]
        xs.append(points[index][0])
        ys.append(sum(near) / len(near))
    return Line(label, xs, ys, colour)


def _mixture_section(files: RunFiles) -> dict | None:
    """Tokens really consumed against the shares the configuration asked for."""
    if not files.metrics or not files.metrics[-1].get("tokens_consumed"):
        return None
    consumed: dict[tuple[str, str], int] = {}
    for name, count in files.metrics[-1]["tokens_consumed"].items():
        domain, language = re.split("[-/]", name)[:2]
        consumed[domain, language] = consumed.get((domain, language), 0) + count
    total = sum(consumed.values()) or 1
    asked = _asked_shares(files.config)
    keys = sorted({*consumed, *asked}, key=lambda key: (key[0], language_order(key[1])))
    bars = []
    for domain, language in keys:
        share = consumed.get((domain, language), 0) / total
        wanted = asked.get((domain, language))
        text = _percent(share) + ("" if wanted is None else f" of {_percent(wanted)}")
        bars.append(Bar(domain, language, share, 0, mark=wanted, text=text))
    svg = bar_chart("share of tokens", bars)
    caption = "Bar: consumed. Dashed: asked for." if asked else "Consumed."
    rows = [[*map(_cell, key), _cell(f"{consumed[key]:,}")] for key in keys if key in consumed]
    return make_section(
        "Mixture really consumed",
        [f"{total:,} tokens went through the model, padding not counted."],
        plots=[{"title": "Share of tokens", "svg": svg, "caption": caption}],
        tables=[_table(["domain", "language", "tokens"], rows, 2)],
    )


def _asked_shares(config: dict | None) -> dict[tuple[str, str], float]:
    if config is None:
        return {}
    data = config["data"]
    domains = (
        ("ecommerce", 1 - data["replay_frac"], data["ecommerce_shares"]),
        ("general", data["replay_frac"], data["general_shares"]),
    )
    return {
        (domain, language): part * share
        for domain, part, shares in domains
        for language, share in shares.items()
        if part * share > 0
    }


def _schedule_section(files: RunFiles) -> dict | None:
    """What the optimizer was told, and how fast it went."""
    if not files.metrics:
        return None
    plots = []
    for key, title in (
        ("learning_rate", "Learning rate"),
        ("grad_norm", "Gradient norm"),
        ("tokens_per_sec", "Tokens per second"),
    ):
        points = [(record["step"], record[key]) for record in files.metrics if key in record]
        if points:
            line = smooth_line(title, points, 0, smooth=key != "learning_rate")
            svg = line_chart(title, [line], "step", title.lower())
            plots.append({"title": title, "svg": svg, "caption": ""})
    skipped = sum(record.get("skipped_updates") or 0 for record in files.metrics[-1:])
    text = f"Updates skipped because a loss or gradient was not finite: {skipped}."
    return make_section("Learning rate and speed", [text], plots=plots)


def _sources_section(files: RunFiles) -> dict | None:
    """What text there was, real or synthetic, and what the run went without."""
    sources = (files.run or {}).get("sources")
    if not sources:
        return None
    rows = []
    for source in sources:
        kind = source["kind"] if source["available"] else "missing"
        counts = [f"{source[key]:,}" if source.get(key) else "–" for key in ("documents", "tokens")]
        languages = " ".join(source["languages"])
        texts = [source["name"], kind, source["domain"], languages, source.get("licence") or ""]
        tone = "" if source["available"] else "bad"
        row = [_cell(text) for text in [*texts, source.get("note") or "", *counts]]
        rows.append([row[0], {**row[1], "tone": tone}, *row[2:]])
    header = ["source", "kind", "domain", "languages", "licence", "note", "documents", "tokens"]
    return make_section("Sources", tables=[_table(header, rows, 6)])


def _repeat_section(files: RunFiles) -> dict | None:
    """Command, commit, versions and the whole configuration."""
    run, blocks = files.run or {}, []
    if run.get("command"):
        checkout = [f"git checkout {run['commit']}"] if run.get("commit") else []
        text = "\n".join([*checkout, run["command"]])
        blocks.append({"title": "", "text": text, "folded": False})
    if files.config is not None:
        text = json.dumps(files.config, indent=2, ensure_ascii=False)
        blocks.append({"title": "Resolved configuration", "text": text, "folded": True})
    if not blocks:
        return None
    return make_section("How to repeat it", [_join(run.get("versions") or {})], blocks=blocks)


def _find_result(card: dict, key: tuple) -> dict | None:
    for row in card["results"]:
        if (row["task"], row["domain"], row["metric"], row["language"]) == key:
            return row
    return None


def _table(header: Sequence[str], rows: Sequence, text_columns: int) -> dict:
    return {"header": header, "rows": rows, "text_columns": text_columns}


def _cell(text: str, small: str = "", tone: str = "") -> dict:
    return {"text": text, "small": small, "tone": tone}


def _value_cell(value: float | None, stderr: float | None, name: str) -> dict:
    if value is None:
        return _cell("–")
    if not is_share(name):
        return _cell(f"{value:.3f}", "" if stderr is None else f"±{stderr:.3f}")
    return _cell(_percent(value), "" if stderr is None else f"±{100 * stderr:.1f}")


def _gain_cell(change: Mapping | None, name: str) -> dict:
    gain = gain_of(change, name)
    if gain is None:
        return _cell("–")
    value, _, interval = str(gain).partition(" [")
    tone = "" if not gain.certain else "good" if gain.value > 0 else "bad"
    return _cell(value, f"[{interval}" if interval else "", tone)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _join(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value)


def language_order(language: str) -> tuple[int, str]:
    return (_LANGUAGES.index(language) if language in _LANGUAGES else len(_LANGUAGES), language)


# What a section needs, its title in the list of what is left out, and its function.
SECTIONS = (
    ("scores/*.json (ellama evaluate)", "result", _headline_section),
    ("run.json", "what ran", _run_section),
    ("scores/*.json (ellama evaluate)", "scorecard", _scorecard_section),
    ("metrics.jsonl (ellama train)", "loss curves", _loss_section),
    ("metrics.jsonl (ellama train)", "mixture consumed", _mixture_section),
    ("metrics.jsonl (ellama train)", "learning rate and speed", _schedule_section),
    ("run.json", "sources", _sources_section),
    ("run.json or config.json", "how to repeat it", _repeat_section),
)
