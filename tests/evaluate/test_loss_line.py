"""The barrier between two models on made-up losses."""

import numpy as np
import pytest

from ellama_jax.merge.loss_line import line_alphas, measure_line, say_line


def card(bits, language="en", domain="general", sizes=None):
    """A scorecard of documents with these bits."""
    sizes = [100] * len(bits) if sizes is None else sizes
    return {"results": [{
        "task": "bits_per_byte", "metric": "bits_per_byte", "domain": domain,
        "language": language, "bits": list(bits), "bytes": list(sizes),
    }]}  # fmt: skip


def documents(loss, spread=0.3, count=40, seed=0):
    """Bits of documents of 100 bytes about `loss` bits a byte, the same ones hard every time."""
    noise = np.random.default_rng(seed).normal(0, spread, count)
    return 100 * (loss + noise - noise.mean())


def measure(losses, **options):
    return measure_line({alpha: card(documents(loss, **options)) for alpha, loss in losses.items()})


def test_alphas_are_evenly_spaced_with_one_beyond_either_end():
    assert line_alphas(5) == [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert 0.3 in line_alphas(11)


def test_the_barrier_is_the_largest_rise_above_the_straight_line():
    losses = {-0.25: 9.0, 0.0: 1.0, 0.25: 1.15, 0.5: 1.3, 0.75: 1.4, 1.0: 1.2, 1.25: 9.0}
    found = measure(losses)["domains"]["general"]
    assert found["barrier"] == pytest.approx(1.4 - 1.15) and found["at"] == 0.75
    assert found["relative"] == pytest.approx(0.25 / 1.1)
    assert found["values"] == pytest.approx(list(losses.values()))
    # The same documents at every alpha: what is hard for all of them is no uncertainty.
    assert found["low"] == pytest.approx(0.25, abs=1e-6) == found["high"]
    assert not found["connected"]
    spread = found["highs"][1] - found["lows"][1]
    assert spread == pytest.approx(2 * 1.96 * 0.3 / 40**0.5, rel=0.3)


def test_losses_below_the_straight_line_are_connected_and_the_barrier_is_negative():
    found = measure({0.0: 1.0, 0.5: 0.8, 1.0: 1.2})
    assert found["domains"]["general"]["barrier"] == pytest.approx(-0.3)
    assert found["domains"]["general"]["connected"]
    assert "for the loss between the models lies below the straight line" in say_line(found)[0]


def test_a_rise_that_some_documents_make_and_some_do_not_is_within_the_interval():
    rises = np.where(np.arange(40) % 2, 30.0, -29.0)
    cards = {
        0.0: card(documents(1.0)),
        0.5: card(documents(1.0) + rises),
        1.0: card(documents(1.0)),
    }
    found = measure_line(cards)
    assert found["domains"]["general"]["barrier"] == pytest.approx(0.005)
    assert found["domains"]["general"]["low"] < 0 < found["domains"]["general"]["high"]
    assert "linearly connected as far as the interval tells" in say_line(found)[0]


def test_a_barrier_is_said_with_its_place_and_size():
    said = say_line(measure({0.0: 1.0, 0.5: 1.5, 1.0: 1.0}))[0]
    assert said == (
        "General text: not linearly connected, for there is a barrier; it is highest above the "
        "straight line at alpha 0.5: +0.5000 bits per byte [+0.5000, +0.5000], +50.00 % of the "
        "ends' mean."
    )


def test_languages_weigh_alike_and_long_documents_more():
    def both(english, german):
        parts = card(english), card(german, "de", sizes=[300, 100])
        return {"results": [row for part in parts for row in part["results"]]}

    cards = {
        0.0: both([100.0], [300.0, 300.0]),
        0.5: both([200.0], [0.0, 0.0]),
        1.0: both([100.0], [0.0, 0.0]),
    }
    found = measure_line(cards)["domains"]["general"]
    assert found["languages"] == {"en": [1.0, 2.0, 1.0], "de": [1.5, 0.0, 0.0]}
    assert found["values"] == [1.25, 1.0, 0.5]
    assert "ecommerce" not in measure_line(cards)["domains"]


def test_long_and_short_documents_alike_per_byte_leave_no_uncertainty():
    sizes = [10, 20, 400, 1000]
    cards = {alpha: card([loss * size for size in sizes], sizes=sizes)
             for alpha, loss in ((0.0, 1.0), (0.5, 2.0), (1.0, 1.0))}  # fmt: skip
    found = measure_line(cards)["domains"]["general"]
    assert found["lows"] == pytest.approx(found["values"]) == found["highs"]
