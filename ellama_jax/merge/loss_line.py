"""Owns the loss along the straight line between two models: is there a barrier between them?

Two models are linearly connected where the loss at no point between them rises above the straight
line from one's loss to the other's. The barrier is the largest such rise (instability in Frankle et
al. 2020, arXiv 1912.05671, section 2; with the ends interpolated linearly as in Entezari et al. 2021,
arXiv 2110.06296, section 2). Loss is bits per byte of held-out text, plain mean over languages.

It reads scorecards and runs no model.
"""

from collections.abc import Mapping, Sequence

import numpy as np

DRAWS, LEVEL = 2000, 0.95
_DOMAINS = ("general", "ecommerce")


def line_alphas(count: int) -> list[float]:
    """Returns `count` evenly spaced alphas from 0 to 1, and one beyond either end.

    Raises:
        ValueError: for fewer than 3, for then none lies between.

    >>> line_alphas(3)
    [-0.5, 0.0, 0.5, 1.0, 1.5]
    """
    if count < 3:
        raise ValueError(f"--line: must be 0 or at least 3 alphas, got {count}.")
    return [round(number / (count - 1), 10) for number in range(-1, count + 1)]


def measure_line(cards: Mapping[float, dict], *, draws: int = DRAWS, seed: int = 0) -> dict:
    """Measures the loss along the line, and the barrier, from scorecards of the same texts.

    Args:
        cards: alpha -> scorecard with bits per byte; 0 and 1 among them, and one between.
        draws: of a paired bootstrap over documents (Efron and Tibshirani 1993, section 13.3).
        seed: of the draws.

    Returns:
        {"level", "draws", "domains": {domain: {"alphas": [...], "values", "lows", "highs": bits per
        byte, "languages": {language: [bits per byte]}, "barrier": bits per byte (below 0 where the
        loss lies under the straight line throughout), "low", "high", "at": alpha of the barrier,
        "relative": barrier over the mean of the ends, "connected": bool}}}. `connected` holds where
        the barrier's interval reaches down to 0.
    """
    alphas = sorted(cards)
    assert {0.0, 1.0} <= set(alphas) and any(0 < alpha < 1 for alpha in alphas)
    found = {}
    for domain in _DOMAINS:
        cells = _cells([cards[alpha] for alpha in alphas], domain)
        if cells:
            found[domain] = {"alphas": alphas, **_measure(np.array(alphas), cells, draws, seed)}
    return {"level": LEVEL, "draws": draws, "domains": found}


def _cells(cards: Sequence[dict], domain: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns by language [alphas, documents] bits and [documents] bytes."""
    rows = [
        {r["language"]: r for r in c["results"] if "bits" in r and r["domain"] == domain}
        for c in cards
    ]
    return {
        language: (np.array([row[language]["bits"] for row in rows]), np.array(first["bytes"]))
        for language, first in rows[0].items()
    }


def _measure(alphas: np.ndarray, cells: Mapping, draws: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    values = np.mean([bits.sum(1) / sizes.sum() for bits, sizes in cells.values()], axis=0)
    drawn = np.zeros((draws, len(alphas)))
    for bits, sizes in cells.values():
        count = len(sizes)
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        drawn += (times @ bits.T) / (times @ sizes)[:, None] / len(cells)
    inside = np.flatnonzero((alphas > 0) & (alphas < 1))
    rises = excess(alphas, values[None])[0, inside]
    barriers = excess(alphas, drawn)[:, inside].max(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(barriers, (tail, 1 - tail))
    lows, highs = np.quantile(drawn, (tail, 1 - tail), axis=0)
    barrier, at = float(rises.max()), float(alphas[inside[rises.argmax()]])
    ends = float(values[alphas == 0][0] + values[alphas == 1][0]) / 2
    return {
        "values": values.tolist(), "lows": lows.tolist(), "highs": highs.tolist(),
        "languages": {
            language: (bits.sum(1) / sizes.sum()).tolist()
            for language, (bits, sizes) in cells.items()
        },
        "barrier": barrier, "low": float(low), "high": float(high), "at": at,
        "relative": barrier / ends, "connected": bool(low <= 0),
    }  # fmt: skip


def excess(alphas: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Returns how far losses lie above the straight line between those at alpha 0 and 1.

    Args:
        alphas: [n], 0 and 1 among them.
        losses: [draws, n].

    >>> excess(np.array([0.0, 0.5, 1.0]), np.array([[1.0, 2.0, 2.0]])).tolist()
    [[0.0, 0.5, 0.0]]
    """
    start, end = losses[:, alphas == 0.0], losses[:, alphas == 1.0]
    return losses - ((1 - alphas) * start + alphas * end)


def say_line(line: Mapping) -> list[str]:
    """Says of each domain whether the models are linearly connected, and how high a barrier is."""
    names = {"general": "general", "ecommerce": "e-commerce"}
    said = []
    for domain, found in line["domains"].items():
        size = (
            f"{found['barrier']:+.4f} bits per byte [{found['low']:+.4f}, {found['high']:+.4f}], "
            f"{100 * found['relative']:+.2f} % of the ends' mean"
        )
        where = f"at alpha {found['at']:g}: {size}"
        if found["high"] <= 0:
            verdict = (
                "linearly connected, for the loss between the models lies below the straight line; "
                f"it comes nearest to it {where}"
            )
        elif found["connected"]:
            verdict = (
                "linearly connected as far as the interval tells; the loss is highest above the "
                f"straight line {where}"
            )
        else:
            verdict = (
                "not linearly connected, for there is a barrier; it is highest above the straight "
                f"line {where}"
            )
        said.append(f"{names[domain].capitalize()} text: {verdict}.")
    return said
