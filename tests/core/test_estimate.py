"""Intervals cover what they say they do, with few clusters and unequal ones; and know when to say nothing."""

import numpy as np
import pytest

from ellama_jax.core.estimate import FEWEST, needed, pair

RUNS = 1200


def answers(rng, clusters, p, q, languages):
    """Right answers of two models to one question in up to `languages` languages, alike within it."""
    sums, sizes = np.zeros((2, clusters, 1)), np.zeros((clusters, 1))
    for number in range(clusters):
        asked = rng.integers(1, languages + 1)
        first = np.where(rng.random(asked) < 0.7, rng.random(), rng.random(asked))
        second = np.where(rng.random(asked) < 0.6, first, rng.random(asked))
        sizes[number, 0] = asked
        sums[:, number, 0] = (first < p).sum(), (second < q).sum()
    return sums, sizes


@pytest.mark.parametrize("clusters", [4, 12, 100])
@pytest.mark.parametrize(
    ("p", "q"), [(0.05, 0.05), (0.05, 0.1), (0.5, 0.5), (0.5, 0.4), (0.9, 0.8), (0.95, 0.95)]
)
def test_at_least_93_of_100_intervals_of_95_cover_shares(clusters, p, q):
    rng = np.random.default_rng(round(1000 * p) + clusters)
    covered = np.zeros(2)
    for _ in range(RUNS // (4 if clusters == 100 else 1)):
        found = pair(*answers(rng, clusters, p, q, 5), np.array([True]))
        low, high = found.difference()
        relative = found.relative()
        covered[0] += low <= q - p <= high
        covered[1] += relative is None or relative[0] <= q / p - 1 <= relative[1]
    share = covered / (RUNS // (4 if clusters == 100 else 1))
    error = 3 * (0.95 * 0.05 / (RUNS // 4)) ** 0.5 if clusters == 100 else 0.0
    assert share.min() >= 0.93 - error


@pytest.mark.parametrize("clusters", [4, 12, 100])
def test_at_least_93_of_100_intervals_of_95_cover_bits_per_byte(clusters):
    """Documents of unequal length, whose bits per byte vary, and two domains weighed alike."""
    rng = np.random.default_rng(clusters)
    covered = 0
    for _ in range(RUNS):
        sizes = rng.integers(200, 3000, (clusters, 2)).astype(float)
        rates = rng.normal(1.0, 0.15, (clusters, 2)).clip(0.3)
        sums = np.stack([sizes * rates, sizes * rates * rng.normal(0.97, 0.03, (clusters, 2))])
        low, high = pair(sums, sizes, np.array([False, False])).relative()
        covered += low <= -0.03 <= high
    assert covered / RUNS >= 0.93 - (0.005 if clusters < 100 else 0)


def test_one_question_lost_of_four_is_not_certain():
    """The base had 1 of 4 right, the model none: that was told as -100 % for sure."""
    sums, sizes = np.array([[[1.0], [0], [0], [0]], np.zeros((4, 1))]), np.ones((4, 1))
    found = pair(sums, sizes, np.array([True]))
    assert found.relative() is None
    low, high = found.difference()
    assert low <= -0.25 and high > 0


def test_too_few_clusters_have_no_interval_and_equal_answers_are_not_certain():
    few = FEWEST - 1
    right = np.ones((2, few, 1))
    assert pair(right, np.ones((few, 1)), np.array([True])).difference() is None
    low, high = pair(np.ones((2, 8, 1)), np.ones((8, 1)), np.array([True])).difference()
    assert low < 0 < high


def test_translations_of_a_question_are_no_further_evidence():
    """The same ten questions in five languages: the interval stays what it was."""
    rng = np.random.default_rng(0)
    sums, sizes = answers(rng, 40, 0.6, 0.5, 1)
    one = pair(sums, sizes, np.array([True]))
    five = pair(np.repeat(sums, 5, 2), np.repeat(sizes, 5, 1), np.full(5, True))
    assert five.means == pytest.approx(one.means) and five.clusters == one.clusters
    assert five.difference() == pytest.approx(one.difference())


def test_how_many_are_needed_grows_as_the_square_of_what_is_looked_for():
    assert needed(100, 0.05, 0.1) == pytest.approx(99, abs=3)
    assert needed(100, 0.05, 0.05) == pytest.approx(394, abs=4)
    assert needed(None, 0.05, 0.1) is needed(100, 0.0, 0.1) is needed(100, 0.05, 0.0) is None
