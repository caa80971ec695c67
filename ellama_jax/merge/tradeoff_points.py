"""Owns which alpha of a curve is worth scoring next: pure functions of what was found so far.

Two kinds of places are refined by halving the interval there: where the rule's boundary lies (one
end is allowed, the other is not and would be better), and where a quantity bends, so that a
straight line between its neighbours would tell it wrongly. The next alpha depends on the points alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Alphas closer than this are one model to any reader.
NARROWEST = 1 / 64
# An error of the straight line below this share of a quantity's range (or of its noise) is none.
STRAIGHT = 0.02


def next_alpha(
    alphas: Sequence[float],
    quantities: Mapping[str, Sequence[float]],
    boundary: Sequence[tuple[float, float]] = (),
    noise: Mapping[str, float] | None = None,
) -> float | None:
    """Says which alpha to score next.

    Args:
        alphas: scored ones, ascending, at least two.
        quantities: name -> values at `alphas`, what the curve is to show.
        boundary: intervals between neighbours in which the rule's boundary lies, the most wanted
            first.
        noise: name -> size of a difference that means nothing, in the quantity's unit.

    Returns:
        The middle of an interval; None where the curve is straight and the boundary narrow.

    A quantity that is straight up to 0.5 and then falls is refined where it falls:

        >>> next_alpha([0.0, 0.25, 0.5, 0.75, 1.0], {"q": [1.0, 1.0, 1.0, 1.0, 0.0]})
        0.875
        >>> next_alpha([0.0, 0.5, 1.0], {"q": [0.0, 1.0, 2.0]}) is None
        True
        >>> next_alpha([0.0, 0.5, 1.0], {"q": [0.0, 1.0, 2.0]}, [(0.5, 1.0)])
        0.75
    """
    for low, high in boundary:
        if high - low > NARROWEST * (1 + 1e-9):
            return (low + high) / 2
    errors = np.zeros(len(alphas) - 1)
    for name, values in quantities.items():
        errors = np.maximum(errors, line_errors(alphas, values, (noise or {}).get(name, 0.0)))
    widths = np.diff(alphas)
    errors[widths <= NARROWEST * (1 + 1e-9)] = 0.0
    if not errors.size or errors.max() <= STRAIGHT:
        return None
    # Of equals the last: where a model is adapted further, more is at stake.
    worst = len(errors) - 1 - int(np.argmax(errors[::-1] >= errors.max() * (1 - 1e-9)))
    return float((alphas[worst] + alphas[worst + 1]) / 2)


def line_errors(alphas: Sequence[float], values: Sequence[float], noise: float = 0.0) -> np.ndarray:
    """Estimates how wrong a straight line is in every interval, as a share of the range.

    The error of linear interpolation over a width h is at most h^2 / 8 times the second derivative
    (Davis 1975, section 3.1), which divided differences over three neighbours estimate.

    Args:
        alphas: [n], ascending.
        values: [n].
        noise: where the values' range is smaller than this, this is the range.

    Returns:
        [n - 1], 0 where there are not three points.
    """
    x, y = np.asarray(alphas, float), np.asarray(values, float)
    scale = max(float(np.ptp(y)), noise)
    if len(x) < 3 or not scale:
        return np.zeros(len(x) - 1)
    slopes = np.diff(y) / np.diff(x)
    second = np.abs(2 * np.diff(slopes) / (x[2:] - x[:-2]))  # at the inner points
    # An interval takes the sharper bend of its two ends.
    ends = np.concatenate([[0.0], second, [0.0]])
    bend = np.maximum(ends[:-1], ends[1:])
    return bend * np.diff(x) ** 2 / 8 / scale
