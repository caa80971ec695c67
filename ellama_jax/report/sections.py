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

from ellama_jax.core.progress import duration
from ellama_jax.evaluate.comparison import (
    is_share,
    mean_of_cells,
    paired_difference,
    relative_gain,
    summary,
    table_groups,
    task_label,
)
from ellama_jax.report.plots import Bar, Line, bar_chart, line_chart

_LANGUAGES = ("en", "de", "fr", "it", "es")
_MOST_POINTS = 600  # of one curve; more would only make the page heavy
_HEADLINES = (
    ("ecommerce_en", "e-commerce, English"),
    ("ecommerce_other", "e-commerce, other languages"),
    ("ecommerce", "e-commerce, all languages"),
    ("general", "general questions, all languages"),
    ("bpb_ecommerce", "bits per byte, e-commerce text"),
    ("bpb_general", "bits per byte, general text"),
)
_GENERATED = ("ecommerce_generated", "e-commerce, generated answers")  # no part of a sweep


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


def make_tiles(files: RunFiles) -> list[dict]:
    """Puts the run's main numbers on top: the last model against the first, and its training."""
    tiles = []
    if len(files.scorecards) > 1:
        before, after = summary(files.scorecards[0]), summary(files.scorecards[-1])
        names = f"{files.scorecards[0]['model']} → {files.scorecards[-1]['model']}"
        for key, name in _HEADLINES[:2]:
            gain = relative_gain(after[key], before[key])
            if gain is not None:
                note = f"{_percent(before[key])} → {_percent(after[key])} ({names})"
                tiles.append(_tile(name, f"{100 * gain:+.0f} %", note, _tone(gain)))
        if after["general"] is not None and before["general"] is not None:
            change = after["general"] - before["general"]
            note = f"{_percent(before['general'])} → {_percent(after['general'])}"
            tiles.append(_tile("general questions", f"{100 * change:+.1f} points", note, ""))
    # Record 0 holds the base model's held-out loss alone.
    if trained := [record for record in files.metrics if "tokens_consumed" in record]:
        last = trained[-1]
        tokens = sum(last["tokens_consumed"].values())
        rates = sorted(record["tokens_per_sec"] for record in trained)
        note = f"{last['step']:,} steps, median {rates[len(rates) // 2]:,.0f} tokens/s"
        tiles.append(_tile("tokens trained on", f"{tokens:,}", note, ""))
    return tiles


def _tile(name: str, value: str, note: str, tone: str) -> dict:
    return {"name": name, "value": value, "note": note, "tone": tone}


def _headline_section(files: RunFiles) -> dict | None:
    """One row a summary, one column a model."""
    if not any(card["results"] for card in files.scorecards):
        return None
    means = [summary(card) for card in files.scorecards]
    names = [card["model"] for card in files.scorecards]
    rows = []
    for key, label in (*_HEADLINES[:3], _GENERATED, *_HEADLINES[3:]):
        if all(mean[key] is None for mean in means):
            continue
        cells = [_value_cell(mean[key], mean[f"{key}_stderr"], key) for mean in means]
        gains = [_gain_cell(mean[key], means[0][key], key) for mean in means[1:]]
        rows.append([_cell(label), *cells, *gains])
    header = ["", *names, *(f"{name} vs {names[0]}" for name in names[1:])]
    paragraphs = [
        "Plain means over tasks and languages, with standard error. Accuracies compare answers by"
        " log-probability per byte; gains are relative. Bits per byte: lower is better."
    ]
    paired = _paired_sentences(files.scorecards)
    return make_section("Result", paragraphs, paired, tables=[_table(header, rows, 1)])


def _paired_sentences(cards: Sequence[dict]) -> list[str]:
    sentences = []
    for card in cards[1:]:
        for domain, name in (("ecommerce", "e-commerce"), ("general", "general")):
            try:
                mean, stderr, count = paired_difference(cards[0], card, domain=domain)
            except ValueError:  # no shared questions of this domain: nothing to say
                continue
            error = "" if stderr is None else f" ± {100 * stderr:.1f}"
            sentences.append(
                f"{card['model']} against {cards[0]['model']} on the same {count} {name} questions:"
                f" {100 * mean:+.1f}{error} points."
            )
    return sentences


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
    for (task, domain, metric), languages in table_groups(first).items():
        for language in sorted(languages, key=language_order):
            key = (task, domain, metric, language)
            cells = [_find_result(card, key) for card in files.scorecards]
            rows.append(_scorecard_row(key, cells))
    header = ["task", "language", "n", "chance", *names]
    if len(names) > 1:
        header.append(f"{names[1]} vs {names[0]}")
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
    row = [_cell(name), _cell(language), _cell(str(known["n"])), _cell(chance), *values]
    if len(cells) > 1:
        base, other = (None if cell is None else cell["value"] for cell in cells[:2])
        row.append(_gain_cell(other, base, metric))
    return row


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


def _gain_cell(value: float | None, base: float | None, name: str) -> dict:
    gain = relative_gain(value, base)
    if gain is None:
        return _cell("–")
    return _cell(f"{100 * gain:+.1f} %", tone=_tone(gain if is_share(name) else -gain))


def _tone(gain: float) -> str:
    return "" if abs(gain) < 0.005 else "good" if gain > 0 else "bad"


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
