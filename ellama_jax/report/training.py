"""Owns what the report says of a run's training beside its curves: held-out losses, and its time."""

from ellama_jax.report.plots import Bar, bar_chart
from ellama_jax.report.sections import RunFiles, loss_plots, make_section
from ellama_jax.train.goodput import CATEGORIES, describe_goodput, summarize


def _evaluation_section(files: RunFiles) -> dict | None:
    languages, plots = loss_plots(files.metrics, "eval_loss", "held-out loss", smooth=False)
    if not plots:
        return None
    text = "Loss during training on the same held-out text each time; step 0 is the base model."
    return make_section("Loss on held-out text", [text], legend=languages, plots=plots)


def _goodput_section(files: RunFiles) -> dict | None:
    """What part of the time trained, and where the rest went."""
    starts = (files.goodput or {}).get("starts")
    if not starts:
        return None
    secs = summarize(starts)
    total = sum(secs.values()) or 1.0
    bars = [
        Bar("", CATEGORIES.get(category, category), value / total, 0, text=f"{value / total:.1%}")
        for category, value in sorted(secs.items(), key=lambda item: -item[1])
    ]
    svg = bar_chart("part of the time", bars, high=1.0)
    plot = {"title": "Part of the wall time, all starts together", "svg": svg, "caption": ""}
    said = describe_goodput(starts).removeprefix("goodput: ")
    return make_section("Where the time went", [f"Goodput: {said}"], plots=[plot])


TRAINING_SECTIONS = (_evaluation_section, _goodput_section)
