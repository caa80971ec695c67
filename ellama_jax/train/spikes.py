"""The guard against loss spikes: an update far from what the run has seen is left out and counted.

Owns the statistics and the rule. Leaving an update out is step.py's part, stopping a job the
loop's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.config import TrainConfig


class SpikeGuard(NamedTuple):
    """Losses and gradient norms of the last accepted updates, and what was left out.

    `losses` and `grad_norms` are rings of [spike_window] float32; `count` is how many updates were
    accepted, so update n lies at n modulo the window. `spikes` counts all updates left out,
    `spikes_in_a_row` those since the last accepted one.
    """

    losses: jax.Array
    grad_norms: jax.Array
    count: jax.Array
    spikes: jax.Array
    spikes_in_a_row: jax.Array


def init_guard(train: TrainConfig) -> SpikeGuard:
    """Returns a guard that has seen nothing; without a window where `spike_factor` is 0."""
    return make_guard(_window(train))


def make_guard(window: int) -> SpikeGuard:
    """Returns a guard of the last `window` updates that has seen nothing; 0 is no guard."""
    rings = jnp.zeros(window, jnp.float32), jnp.zeros(window, jnp.float32)
    return SpikeGuard(*rings, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def judge(
    guard: SpikeGuard, loss: jax.Array, grad_norm: jax.Array, *, factor: float, max_spikes: int
) -> tuple[jax.Array, SpikeGuard]:
    """Says whether an update is a spike, and returns the guard after it.

    The rule is OLMo-core's SkipStepOptimizer: loss or gradient norm above the mean of the window by
    more than `factor` standard deviations, once half a window is known. Unlike there, what
    was left out is not counted in the statistics, where one spike would hide the next; instead an
    update is accepted after `max_spikes` in a row, for then it is the data that changed.

    Args:
        guard: before the update.
        loss, grad_norm: of the update, scalars; one that is not finite is no spike, and not counted.
        factor: 0 is off, no update is a spike.
        max_spikes: left out in a row; the next update is accepted.
    """
    window = len(guard.losses)
    if factor == 0 or window == 0:
        return jnp.zeros((), bool), guard
    known = jnp.arange(window) < guard.count
    far = _is_far(guard.losses, known, loss, factor)
    far |= _is_far(guard.grad_norms, known, grad_norm, factor)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    warm = guard.count >= max(2, window // 2)
    spiked = far & finite & warm & (guard.spikes_in_a_row < max_spikes)
    accepted = finite & ~spiked
    place = guard.count % window

    def record(ring, value):
        return jnp.where(accepted, ring.at[place].set(value), ring)

    in_a_row = jnp.where(accepted, 0, guard.spikes_in_a_row + spiked)
    return spiked, SpikeGuard(
        record(guard.losses, loss), record(guard.grad_norms, grad_norm), guard.count + accepted,
        guard.spikes + spiked, in_a_row,
    )  # fmt: skip


def guard_to_data(guard: SpikeGuard) -> dict:
    """Returns the guard as plain data, oldest update first; `guard_from_data` gives it back."""
    losses, grad_norms, count, spikes, in_a_row = jax.device_get(guard)
    window = len(losses)
    order = [n % window for n in range(max(0, int(count) - window), int(count))]
    return {
        "losses": [float(losses[n]) for n in order],
        "grad_norms": [float(grad_norms[n]) for n in order],
        "count": int(count),
        "spikes": int(spikes),
        "spikes_in_a_row": int(in_a_row),
    }


def guard_from_data(data: Mapping, train: TrainConfig) -> SpikeGuard:
    """Returns the guard that `guard_to_data` saved, bit for bit if the window is the same.

    Args:
        data: from `guard_to_data`.
        train: spike_window; of a longer history the newest updates stay.
    """
    window = _window(train)
    kept = min(window, len(data["losses"]))
    # Updates before those are forgotten, so a longer window counts from where they begin.
    count = data["count"] if kept == window else kept
    rings = np.zeros((2, window), np.float32)
    for ring, name in zip(rings, ("losses", "grad_norms"), strict=True):
        for back in range(1, kept + 1):
            ring[(count - back) % window] = data[name][-back]
    counts = (count if window else 0, data["spikes"], data["spikes_in_a_row"])
    return SpikeGuard(*map(jnp.asarray, rings), *(jnp.asarray(n, jnp.int32) for n in counts))


def _window(train: TrainConfig) -> int:
    return train.spike_window if train.spike_factor else 0


def _is_far(ring: jax.Array, known: jax.Array, value: jax.Array, factor: float) -> jax.Array:
    number = jnp.maximum(known.sum(), 2)
    mean = jnp.where(known, ring, 0.0).sum() / number
    variance = jnp.where(known, jnp.square(ring - mean), 0.0).sum() / (number - 1)
    return value > mean + factor * jnp.sqrt(variance)
