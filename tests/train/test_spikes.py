"""The spike guard: OLMo-core's rule against NumPy, its warm-up, its limit and its state."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ellama_jax.config import load_config
from ellama_jax.train.spikes import guard_from_data, guard_to_data, init_guard, judge, make_guard

WINDOW = 8
TRAIN = dataclasses.replace(
    load_config(["--config", "configs/demo.py:tiny"], "train")[0].train,
    spike_factor=6.0, spike_window=WINDOW, max_spikes=3,
)  # fmt: skip


@jax.jit
def judge_once(guard, loss, norm):
    return judge(guard, loss, norm, factor=TRAIN.spike_factor, max_spikes=TRAIN.max_spikes)


def run(losses, norms=None, guard=None):
    """Returns which updates were spikes, and the guard after them."""
    guard = make_guard(WINDOW) if guard is None else guard
    norms = np.ones(len(losses)) if norms is None else norms
    spiked = []
    for loss, norm in zip(losses, norms, strict=True):
        verdict, guard = judge_once(guard, jnp.float32(loss), jnp.float32(norm))
        spiked.append(bool(verdict))
    return spiked, guard


def noise(number, mean=2.0, std=0.1, seed=0):
    return np.random.default_rng(seed).normal(mean, std, number)


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_the_limit_is_six_standard_deviations_of_the_last_window(which):
    steady = noise(20)
    known = np.float32(steady[-WINDOW:])
    limit = known.mean() + 6 * known.std(ddof=1)
    for value, expected in ((limit * 0.999, False), (limit * 1.001, True)):
        series = [*steady, value]
        other = noise(21, seed=1)
        pair = (series, other) if which == "loss" else (other, series)
        spiked, guard = run(*pair)
        assert spiked == [False] * 20 + [expected]
        assert int(guard.spikes) == int(expected)


def test_nothing_is_judged_before_half_a_window_is_known():
    calm = noise(3)
    assert not any(run([*calm, 100.0])[0])
    assert run([*noise(4), 100.0])[0][-1]


def test_falling_values_are_no_spikes():
    assert not any(run([*noise(20), 0.0])[0])


def test_a_spike_left_out_does_not_widen_the_limit_for_the_next():
    spiked, guard = run([*noise(12), 50.0, 50.0, *noise(1, seed=2)])
    assert spiked == [False] * 12 + [True, True, False]
    assert (int(guard.spikes), int(guard.spikes_in_a_row), int(guard.count)) == (2, 0, 13)


def test_after_some_in_a_row_a_new_level_is_accepted_and_becomes_the_normal_one():
    spiked, guard = run([*noise(12), *noise(12, mean=9.0, seed=3)])
    assert spiked == [False] * 12 + [True] * 3 + [False] * 9
    assert int(guard.spikes) == 3
    # All of the window is the new level: what was normal once would be far below, and 20 far above.
    assert run([20.0], guard=guard)[0] == [True]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_the_guard_s_and_leaves_it_as_it_was(bad):
    _, before = run(noise(12))
    spiked, after = run([bad], guard=before)
    assert spiked == [False]
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_factor_of_0_is_no_guard():
    guard = init_guard(dataclasses.replace(TRAIN, spike_factor=0.0))
    assert guard.losses.shape == (0,)
    for value in (1.0, 1.0, 1e9):
        spiked, guard = judge(guard, jnp.float32(value), jnp.float32(1), factor=0.0, max_spikes=3)
        assert not spiked


@pytest.mark.parametrize("number", [0, 3, WINDOW, 13])
def test_a_saved_guard_goes_on_bit_for_bit(number):
    """Through JSON, as checkpoints have it; the place in the ring too, for sums depend on it."""
    _, guard = run([*noise(number), *([50.0] if number > 4 else [])])
    restored = guard_from_data(json.loads(json.dumps(guard_to_data(guard))), TRAIN)
    jax.tree.map(np.testing.assert_array_equal, restored, guard)
    assert jax.tree.map(jnp.dtype, restored) == jax.tree.map(jnp.dtype, guard)


@pytest.mark.parametrize("window", [4, 16])
def test_another_window_keeps_the_newest(window):
    import dataclasses

    losses = noise(13)
    _, guard = run(losses)
    other = guard_from_data(guard_to_data(guard), dataclasses.replace(TRAIN, spike_window=window))
    kept = guard_to_data(other)["losses"]
    np.testing.assert_array_equal(kept, np.float32(losses[-min(window, WINDOW) :]))
    assert guard_to_data(other)["count"] == (13 if window == 4 else 8)
