"""The page of `ellama evidence`: what was measured, beside the paper's figures.

Owns tables and verdicts; the numbers are those of scorecards, sweeps and retention.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ellama_jax.evaluate.card_text import HEADLINES, markdown_table, say_change
from ellama_jax.evaluate.retention import compare
from ellama_jax.experiments.sweep_results import axis_rows, say_part

BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
# arXiv 2501.09706: relative gains on e-commerce tasks, and general NLU (the 70B model).
PAPER = {"ecommerce_en": 0.25, "ecommerce_other": 0.30, "general": -0.01}
_BESIDE = ("bpb_ecommerce", "bpb_general")
# An interval wider than this says nothing about a change of some percent.
_WIDEST = 0.10
_MODELS = ("adapted", "merged")


def describe(demos: Sequence[Path], ablation: Mapping, command: str) -> str:
    """Returns the page as Markdown.

    Args:
        demos: directories of `ellama demo`, one a seed.
        ablation: `trials.json` of the sweep around them.
        command: that makes all of it.
    """
    cards = {
        name: pool([_read(demo / "scores" / f"{name}.json") for demo in demos])
        for name in ("base", *_MODELS)
    }
    changes = {name: compare(cards["base"], cards[name])["overall"] for name in _MODELS}
    run = _read(demos[0] / "run.json")
    parts = [
        _heading(run, len(demos), command),
        _claims(changes),
        _curves(demos),
        *(_axis(ablation, key) for key in ablation["axes"]),
        _limits(ablation),
    ]
    return "\n".join(parts)


def pool(cards: Sequence[Mapping]) -> dict:
    """Returns the scorecards of several seeds as one; a question of another seed is another one.

    Args:
        cards: of one model trained with several seeds, or of their bases.

    Returns:
        a scorecard whose results have every seed's answers, and only what all of them have.
    """
    keyed = [{_key(row): row for row in card["results"]} for card in cards]
    shared = [key for key in keyed[0] if all(key in rows for rows in keyed)]
    return {**cards[0], "results": [_pool_rows([rows[key] for rows in keyed]) for key in shared]}


def _key(row: Mapping) -> tuple:
    return row["task"], row["domain"], row["language"], row["metric"]


def _pool_rows(rows: Sequence[Mapping]) -> dict:
    first = dict(rows[0])
    weights = [row["n"] for row in rows]
    total = sum(weights)
    found = {**first, "n": total, "stderr": None}
    found["value"] = sum(row["value"] * n for row, n in zip(rows, weights, strict=True)) / total
    for key, value in first.items():
        if isinstance(value, list):
            found[key] = [item for row in rows for item in row[key]]
    # `retention` takes a product's questions for one draw: those of another seed are another one.
    found["ids"] = [
        name.replace("/", f"/seed{seed}-", 1) if "/" in name else f"seed{seed}-{name}"
        for seed, row in enumerate(rows)
        for name in row["ids"]
    ]
    return found


def _heading(run: Mapping, seeds: int, command: str) -> str:
    kinds: dict[str, list[str]] = {}
    for source in run["sources"]:
        kinds.setdefault(source["kind"] if source["available"] else "missing", []).append(
            source["name"]
        )
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items()))
    return (
        f"`{command}`, commit {run['commit'][:12]}, {run['model']}, {seeds} seeds (each with its own "
        f"catalogue, questions and order of the data). Text: {said}.\n"
    )


def _claims(changes: Mapping[str, Mapping]) -> str:
    """The central table: the paper's figures, and ours with intervals over questions."""
    rows = [["relative change against the base", "paper", "adapted", "merged", "n", "verdict"]]
    for name in (*PAPER, *_BESIDE):
        adapted, merged = (changes[model].get(name) for model in _MODELS)
        if adapted is None:
            continue
        paper = PAPER.get(name)
        rows.append([
            HEADLINES[name], "" if paper is None else f"{100 * paper:+.0f} %", say_change(adapted),
            say_change(merged), str(adapted["n"]), "" if paper is None else verdict(adapted, paper),
        ])  # fmt: skip
    words = (
        "Intervals are 95 %, a bootstrap over products and questions of all seeds; bits per byte: "
        "less is better."
    )
    return "\n".join([*markdown_table(rows), words]) + "\n"


def verdict(change: Mapping, paper: float) -> str:
    """Says whether a change agrees with the paper's figure, or cannot tell.

    >>> verdict({"change": 0.9, "low": 0.6, "high": 1.2}, 0.25)
    'same direction, more than the paper'
    >>> verdict({"change": -0.02, "low": -0.2, "high": 0.2}, -0.01)
    'cannot tell: the interval spans 40 points'
    >>> verdict({"change": -0.02, "low": -0.03, "high": -0.005}, -0.01)
    'agrees'
    """
    low, high = change["low"], change["high"]
    if low is None:
        return "cannot tell: no interval"
    inside = low <= paper <= high
    if (inside or low <= 0 <= high) and high - low > _WIDEST:
        return f"cannot tell: the interval spans {100 * (high - low):.0f} points"
    if inside:
        return "agrees"
    if low <= 0 <= high or (change["change"] > 0) != (paper > 0):
        return "does not agree"
    size = "more" if abs(change["change"]) > abs(paper) else "less"
    return f"same direction, {size} than the paper"


def _curves(demos: Sequence[Path]) -> str:
    """The merge curve of each seed on validation questions, and the alpha that was chosen."""
    rows = [["seed", "alpha", "e-commerce questions", "general questions",
             "bits per byte, e-commerce", "bits per byte, general", ""]]  # fmt: skip
    for demo in demos:
        found = _read(demo / "sweep.json")
        for point in found["alphas"]:
            cells = [
                _change_cell(point["changes"].get(name))
                for name in ("ecommerce", "general", "bpb_ecommerce", "bpb_general")
            ]
            chosen = point["alpha"] == found["chosen"] and found["chosen_profile"] == "uniform"
            rows.append([demo.name, f"{point['alpha']:g}", *cells, "**chosen**" if chosen else ""])
    sentences = "\n".join(
        f"- {demo.name}: {_read(demo / 'sweep.json')['sentence']}" for demo in demos
    )
    title = "The merge, (1 - alpha) base + alpha adapted, on validation questions:"
    return "\n".join([title, "", *markdown_table(rows), "On test questions:", "", sentences]) + "\n"


def _change_cell(change: Mapping | None) -> str:
    if change is None or change["change"] is None:
        return "–"
    return f"{100 * change['change']:+.1f} %"


def _axis(ablation: Mapping, key: str) -> str:
    rule = ablation["rule"]
    rows = [[key, rule["gain"], rule["keep"]]]
    rows += [
        [row["label"], say_part(row["gain"]), say_part(row["keep"])]
        for row in axis_rows(ablation, key)
    ]
    title = (
        f"Ablation of `{key}`, improvement over the base on held-out text (less loss is better):"
    )
    return "\n".join([title, "", *markdown_table(rows)])


def _limits(ablation: Mapping) -> str:
    trials = ablation["trials"]
    done = sum(trial["status"] == "done" for trial in trials)
    return (
        f"{done} of {len(trials)} trials of {trials[0]['steps']} steps; intervals are 95 %, from the "
        f"spread over seeds pooled over settings. {ablation['rule']['says']} {ablation['sentence']}\n"
    )


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
