"""The one estimator: how far apart two models are, and how sure that is.

Answers about one product, or translations of one question, are not independent. So whatever is a sum
over questions is taken by cluster, and a change is a ratio of sums over clusters, linearised
(Cochran 1977, section 6.3), with Student's t for as many degrees of freedom as there are clusters
less one. Two answers are added to a share of right ones, one that only the first model got right and one
that only the second did (Bonett and Price 2012), without which few or easy questions look certain. A relative
change is Fieller's (1954): the ratios at which the difference is not significant.

tests/core/test_estimate.py simulates what the intervals cover, which is where `FEWEST` comes from.
"""

import dataclasses
import math

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST = 4  # clusters, below which there is no interval
_MOST_TOLD = 100_000


@dataclasses.dataclass(frozen=True)
class Pair:
    """The means of two models over the same clusters.

    Attributes:
        means: of the first and the second model, the one measured.
        shifted: the same with the added clusters, the middle of the intervals.
        covariance: [2, 2] of those.
        clusters: how many there are.
    """

    means: tuple[float, float]
    shifted: np.ndarray
    covariance: np.ndarray
    clusters: int

    def difference(self) -> tuple[float, float] | None:
        """Returns the interval of second minus first, None where there are too few clusters."""
        return self._interval(1.0)

    def relative(self) -> tuple[float, float] | None:
        """Returns the interval of second / first - 1.

        None where there are too few clusters, or the first cannot be told from 0: then any ratio may be.
        """
        if self.clusters < FEWEST:
            return None
        t2 = _quantile(self.clusters) ** 2
        (vx, cov), (_, vy) = self.covariance
        x, y = self.shifted
        a, b, c = x * x - t2 * vx, x * y - t2 * cov, y * y - t2 * vy
        if a <= 0:
            return None
        root = math.sqrt(max(b * b - a * c, 0.0))  # below 0 by rounding alone
        low, high = (b - root) / a - 1, (b + root) / a - 1
        found = self.means[1] / self.means[0] - 1 if self.means[0] else low
        return min(low, found), max(high, found)

    def error(self) -> float:
        """Returns the standard error of second minus first."""
        return math.sqrt(self._variance(1.0))

    def _interval(self, ratio: float) -> tuple[float, float] | None:
        if self.clusters < FEWEST:
            return None
        middle = self.shifted[1] - ratio * self.shifted[0]
        half = _quantile(self.clusters) * math.sqrt(self._variance(ratio))
        found = self.means[1] - ratio * self.means[0]
        return min(middle - half, found), max(middle + half, found)

    def _variance(self, ratio: float) -> float:
        weights = np.array([-ratio, 1.0])
        return max(0.0, float(weights @ self.covariance @ weights))


def pair(sums: np.ndarray, sizes: np.ndarray, bounded: np.ndarray) -> Pair:
    """Estimates the plain mean over cells (a task in a language) of ratios of sums.

    Args:
        sums: [2, clusters, cells], what each cluster adds for the first and the second model.
        sizes: [clusters, cells], what that is divided by; 0 where a cluster is not in a cell.
        bounded: [cells], whether a cell is a share of right answers, and not a loss.
    """
    asked = sizes.sum(axis=1) > 0
    sums, sizes = sums[:, asked], sizes[asked]
    count = len(sizes)
    means = (sums.sum(axis=1) / sizes.sum(axis=0)).mean(axis=1)
    one = bounded.astype(float)
    added = np.stack([np.stack([one, 0 * one]), np.stack([0 * one, one])])
    if bounded.any():
        sums, sizes = np.concatenate([sums, added], axis=1), np.concatenate([sizes, added.sum(0)])
    ratios = sums.sum(axis=1) / sizes.sum(axis=0)
    influence = ((sums - ratios[:, None] * sizes) / sizes.sum(axis=0)).mean(axis=2)
    rows = len(sizes)
    covariance = influence @ influence.T * rows / max(rows - 1, 1)
    return Pair((float(means[0]), float(means[1])), ratios.mean(axis=1), covariance, count)


def needed(clusters: int | None, error: float | None, difference: float) -> int | None:
    """Returns about how many clusters tell a difference of that size from none; None if unknown."""
    if not clusters or not error or not difference:
        return None
    half = _quantile(max(clusters, FEWEST)) * error
    return max(FEWEST, math.ceil(clusters * (half / difference) ** 2))


def say_needed(count: int) -> str:
    """Says how many would tell a difference from none; what nobody will ask is not counted out.

    >>> say_needed(1234), say_needed(4348023)
    ('about 1,234 needed', 'more than 100,000 needed')
    """
    return f"about {count:,} needed" if count <= _MOST_TOLD else f"more than {_MOST_TOLD:,} needed"


def _quantile(clusters: int) -> float:
    return float(stats.t.ppf(0.5 + LEVEL / 2, max(clusters - 1, 1)))
