"""What a classifier is worth: figures by language, of sources unseen and seen, and their page.

Owns the figures and their drawing, as one HTML page that refers to nothing outside itself.
Training and files are in `classifier`.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ellama_jax.corpus.classifier import Classifier, OutOfSource
    from ellama_jax.corpus.classifier_seeds import Seed

_BINS = 10
_SIDE, _EDGE = 300, 40  # of a plot in pixels, and its margin


def report_of(
    model: "Classifier", splits: "dict[str, list[Seed]]", unseen: "OutOfSource | None" = None
) -> dict:
    """Returns a model's figures.

    Returns:
        `documents` (split -> count), `default_threshold`, and twice the same: `out_of_source` of
        documents whose sources had no say in anything they were judged by (None if the seeds do not
        allow it), `same_source` of the test split. Each has `languages` (a row each: counts, the
        model's threshold, precision, recall, F1, `even_precision` at even classes,
        false_positive_rate, AUC, average precision; None where a label is missing), `overall` (the
        same over all), `calibration` (bins of the score: mean score, share of e-commerce, count; and
        the expected calibration error) and `curve` (recall, precision).
    """
    test = splits["test"]
    scores = model.scores([one.text for one in test])
    limits = np.array([model.threshold(one.language) for one in test])
    return {
        "documents": {name: len(part) for name, part in splits.items()},
        "default_threshold": model.default_threshold,
        "out_of_source": unseen and _part(model, unseen.seeds, unseen.scores, unseen.chosen),
        "same_source": _part(model, test, scores, scores >= limits),
    }


def _part(
    model: "Classifier", seeds: "Sequence[Seed]", scores: np.ndarray, chosen: np.ndarray
) -> dict:
    scores = scores.astype(float)
    labels = np.array([one.label == "ecommerce" for one in seeds])
    languages = np.array([one.language for one in seeds])
    rows = []
    for language in sorted(set(languages.tolist())):
        own = languages == language
        figures = _figures(scores[own], labels[own], chosen[own])
        rows.append({"language": language, "threshold": model.threshold(language), **figures})
    return {
        "languages": rows,
        "overall": _figures(scores, labels, chosen),
        "calibration": _calibration(scores, labels),
        "curve": _curve(scores, labels),
    }


def _figures(scores: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> dict:
    """Returns the figures of some documents; None for what needs the label that none of them has."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    both = bool(labels.any() and not labels.all())
    recall = float(chosen[labels].mean()) if labels.any() else None
    false_rate = float(chosen[~labels].mean()) if not labels.all() else None
    precision = float((chosen & labels).sum() / chosen.sum()) if chosen.any() else 0.0
    return {
        "ecommerce": int(labels.sum()),
        "other": int((~labels).sum()),
        "precision": precision,
        "even_precision": recall / max(recall + false_rate, 1e-12) if both else None,
        "recall": recall,
        "f1": 2 * precision * recall / max(precision + recall, 1e-12) if both else None,
        "false_positive_rate": false_rate,
        "auc": float(roc_auc_score(labels, scores)) if both else None,
        "average_precision": float(average_precision_score(labels, scores)) if both else None,
    }


def _calibration(scores: np.ndarray, labels: np.ndarray) -> dict:
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    rows = [
        {
            "mean_score": float(scores[bins == number].mean()),
            "ecommerce_frac": float(labels[bins == number].mean()),
            "documents": int((bins == number).sum()),
        }
        for number in range(_BINS)
        if (bins == number).any()
    ]
    error = sum(abs(r["mean_score"] - r["ecommerce_frac"]) * r["documents"] for r in rows)
    return {"bins": rows, "expected_error": error / len(scores)}


def _curve(scores: np.ndarray, labels: np.ndarray) -> dict:
    """Returns the precision-recall curve at up to about 200 thresholds, evenly spread over recall."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(recall) - 1, 200).round().astype(int))
    return {"recall": recall[kept].tolist(), "precision": precision[kept].tolist()}


# --- the page ------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 1000px; padding: 0 1rem; } table { border-collapse: collapse; font-size: .9rem; }
td, th { padding: 4px 10px; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; } figure { display: inline-block; margin: 1rem 2rem 1rem 0; }
svg { max-width: 100%; } .frame, .even { fill: none; stroke: #8888; } .even { stroke-dasharray: 4 4; }
.line { fill: none; stroke: #2f6bde; stroke-width: 2; } .dot { fill: #2f6bde; }
text { fill: currentColor; font-size: 11px; } pre { overflow-x: auto; }
"""
_COLUMNS = (
    ("language", "language"), ("e-commerce", "ecommerce"), ("other", "other"),
    ("threshold", "threshold"), ("precision", "precision"), ("at even classes", "even_precision"),
    ("recall", "recall"), ("F1", "f1"), ("false positives", "false_positive_rate"), ("AUC", "auc"),
    ("average precision", "average_precision"),
)  # fmt: skip


def render_report(report: dict) -> str:
    """Writes a report as one HTML page: tables by language, calibration and precision-recall."""
    unseen = report["out_of_source"]
    counts = ", ".join(f"{count} {name}" for name, count in report["documents"].items())
    chosen_on = "documents of sources that the judging model never saw" if unseen else (
        "the validation split, whose sources the model saw: seeds with two sources or more of each "
        "label (field source) would tell how it does on others"
    )  # fmt: skip
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>E-commerce classifier</title>
<style>{_STYLE}</style></head><body>
<h1>E-commerce classifier</h1>
<p>Documents: {escape(counts)}. Calibration and thresholds are from {chosen_on}, for a precision of
{report["target_precision"]:g} at even classes. Where only a share p of the text is e-commerce,
precision is p R / (p R + (1 - p) F), R the recall, F the false positives. Default threshold of other
languages: {report["default_threshold"]:.3f}.</p>
{_section("Sources never seen (the honest figures; cross-fitted)", unseen) if unseen else ""}
{_section("Held-out documents of the same sources (flattering)", report["same_source"])}
<pre>{escape(report["command"])}</pre>
</body></html>
"""


def _section(title: str, part: dict) -> str:
    rows = [*part["languages"], {"language": "all", "threshold": "", **part["overall"]}]
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in _COLUMNS)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{_write(row[key])}</td>" for _, key in _COLUMNS) + "</tr>"
        for row in rows
    )
    bins, curve = part["calibration"]["bins"], part["curve"]
    reliability = _plot(
        [row["mean_score"] for row in bins], [row["ecommerce_frac"] for row in bins],
        "score", "share of e-commerce", dots=True,
    )  # fmt: skip
    recall = _plot(curve["recall"], curve["precision"], "recall", "precision")
    return f"""<h2>{escape(title)}</h2>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<figure>{reliability}<figcaption>Calibration; expected error
{part["calibration"]["expected_error"]:.4f}</figcaption></figure>
<figure>{recall}<figcaption>Precision and recall over all thresholds</figcaption></figure>"""


def _write(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def _plot(
    xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, *, dots: bool = False
) -> str:
    """Draws a curve in the unit square; with the diagonal if its points are `dots`."""
    size = _SIDE + 2 * _EDGE
    places = [
        (round(_EDGE + x * _SIDE, 1), round(_EDGE + (1 - y) * _SIDE, 1))
        for x, y in zip(xs, ys, strict=True)
    ]
    points = " ".join(f"{x},{y}" for x, y in places)
    far, low = _EDGE + _SIDE, _EDGE + _SIDE + 14
    parts = [
        f'<rect class="frame" x="{_EDGE}" y="{_EDGE}" width="{_SIDE}" height="{_SIDE}"/>',
        f'<polyline class="line" points="{points}"/>',
        *(f'<text x="{_EDGE + t * _SIDE / 5 - 6:g}" y="{low}">{t / 5:g}</text>' for t in range(6)),
        *(f'<text x="14" y="{far - t * _SIDE / 5 + 4:g}">{t / 5:g}</text>' for t in range(6)),
        f'<text x="{size / 2}" y="{low + 16}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="{_EDGE}" y="{_EDGE - 10}">{escape(y_label)}</text>',
    ]
    if dots:
        parts.append(f'<line class="even" x1="{_EDGE}" y1="{far}" x2="{far}" y2="{_EDGE}"/>')
        parts += [f'<circle class="dot" cx="{x}" cy="{y}" r="4"/>' for x, y in places]
    title = escape(f"{y_label} over {x_label}", quote=True)
    return f'<svg viewBox="0 0 {size} {size}" width="{size}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
