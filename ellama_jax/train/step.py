"""One training step: a pure function from state and batch to state and metrics.

Owns the arithmetic of an update. Where batches come from and when to save is loop.py's part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ellama_jax.config import AttentionConfig
from ellama_jax.core.precision import float32_as_it_says
from ellama_jax.model.attention import AUTO
from ellama_jax.model.attention_context import batch_to_zigzag
from ellama_jax.model.llama import Tracked, hidden_states, make_tracers, output_kernel
from ellama_jax.model.loss import token_losses
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.train.optimizer import add_updates, global_norm, to_float32
from ellama_jax.train.spikes import SpikeGuard, judge, make_guard


class TrainState(NamedTuple):
    """All that an update changes.

    `skipped` counts updates left out because loss or gradient was not finite; `skipped_in_a_row`
    since the last good one. `guard` knows what is a spike.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    guard: SpikeGuard


class Metrics(NamedTuple):
    """What one step reports; losses in nats a token.

    `source_loss_sums` and `source_weight_sums` are [sources] float32: a source's loss is their ratio;
    `source_tokens` [sources] int32 counts all its tokens, predicted or not, padding left out.
    `spikes` counts the updates that the guard left out, `spiked` says if this is one of them.
    `learning_rate` is that of this update, also where it was left out.
    """

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    weight_sum: jax.Array
    source_loss_sums: jax.Array
    source_weight_sums: jax.Array
    source_tokens: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    spikes: jax.Array
    spiked: jax.Array


class Sums(NamedTuple):
    """Sums over tokens, which add up over micro-batches and hosts; means never do."""

    loss: jax.Array
    weight: jax.Array
    source_losses: jax.Array
    source_weights: jax.Array
    source_tokens: jax.Array


def make_loss_sums(
    config: LlamaConfig,
    *,
    num_sources: int,
    compute_dtype,
    remat: str,
    chunk_tokens: int,
    attention: AttentionConfig = AUTO,
) -> Callable:
    """Returns `loss_sums(params, batch) -> (sum of weighted losses, Sums)`."""

    def loss_sums(params, batch):
        batch = batch_to_zigzag(batch)  # sums do not ask for the order
        hidden = hidden_states(
            params, config, batch["inputs"], batch["positions"], batch["segment_ids"],
            compute_dtype=compute_dtype, remat=remat, attention=attention, zigzag=True,
        )  # fmt: skip
        weights = batch["loss_weights"]
        kernel, dims = output_kernel(params, config)
        total, losses = token_losses(
            hidden, kernel, batch["targets"], weights, chunk_tokens, kernel_dims=dims
        )

        def by_source(rows):
            return jax.ops.segment_sum(rows.sum(axis=1), batch["source_ids"], num_sources)

        tokens = by_source((batch["segment_ids"] != 0).astype(jnp.int32))
        by_token = by_source(losses * weights), by_source(weights), tokens
        sums = Sums(total, weights.sum(), *by_token)
        return total, sums

    return loss_sums


def make_train_step(
    loss_sums: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_microbatches: int,
    compute_dtype=jnp.float32,
    *,
    rounding_seed: int = 0,
    spike_factor: float = 0.0,
    max_spikes: int = 10,
) -> Callable[[TrainState, dict], tuple[TrainState, Metrics]]:
    """Returns the pure step; jit it once, donating the state.

    The loss is the sum of token losses over all micro-batches and hosts divided once by the sum of
    their weights. An update whose loss or gradient is not finite is skipped and counted, and so is
    a spike. Gradients and parameters may be float32 or bfloat16: the update is computed in float32.

    Args:
        loss_sums: from `make_loss_sums`.
        optimizer: any optax transformation.
        schedule: learning rate by number of updates made, what `optimizer` goes by.
        num_microbatches: parts of a batch whose gradients are summed one after the other, in
            float32.
        compute_dtype: dtype in which `loss_sums` computes, and so that of a matrix's gradient.
        rounding_seed: of the random bits by which bfloat16 parameters are rounded.
        spike_factor, max_spikes: see `spikes.judge`.
    """

    def summed_gradients(params, batch):
        def tracked_sums(tracers, part):
            return loss_sums(jax.tree.map(Tracked, params, tracers), part)

        gradients_of = jax.grad(tracked_sums, has_aux=True)
        tracers = make_tracers(params, compute_dtype)
        if num_microbatches == 1:
            return gradients_of(tracers, batch)

        def add_part(carry, part):
            gradients, sums = gradients_of(tracers, part)
            return jax.tree.map(jnp.add, carry, (to_float32(gradients), sums)), None

        parts = split_batch(batch, num_microbatches)
        first, rest = (jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts))
        gradients, sums = gradients_of(tracers, first)
        return jax.lax.scan(add_part, (to_float32(gradients), sums), rest)[0]

    def train_step(state, batch):
        # The kernels' own backward passes are traced outside of the model's own context.
        with float32_as_it_says(compute_dtype):
            gradients, sums = summed_gradients(state.params, batch)
        # A batch of padding alone has weight 0; its gradient is 0 too, and nothing is divided by 0.
        divisor = jnp.maximum(sums.weight, 1.0)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / divisor, gradients)
        norm = global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, to_float32(state.params))
        params = add_updates(state.params, updates, rounding_seed, state.step)

        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
        spiked, guard = judge(
            state.guard, sums.loss / divisor, norm, factor=spike_factor, max_spikes=max_spikes
        )
        accepted = finite & ~spiked
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (params, opt_state), (state.params, state.opt_state),
        )  # fmt: skip
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        # An update that is left out leaves the optimizer's count as it was.
        updates_made = state.step - state.skipped - state.guard.spikes
        metrics = Metrics(
            sums.loss / divisor, norm, schedule(updates_made), sums.weight, sums.source_losses, sums.source_weights,
            sums.source_tokens, skipped, in_a_row, guard.spikes, spiked,
        )  # fmt: skip
        return TrainState(state.step + 1, params, opt_state, skipped, in_a_row, guard), metrics

    return train_step


def split_batch(batch: dict, num_parts: int) -> dict:
    """Cuts a batch into parts along a new leading dim: [B, ...] -> [num_parts, B / num_parts, ...].

    Part p takes rows p, p + num_parts, ...: so each device's rows stay on that device.

    >>> split_batch({"x": jnp.arange(4)}, 2)["x"].tolist()
    [[0, 2], [1, 3]]
    """

    def split(x):
        return x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1)

    return {name: split(x) for name, x in batch.items()}


def init_state(
    params: dict, opt_state: optax.OptState, guard: SpikeGuard | None = None
) -> TrainState:
    """Returns the state before the first step; None is a guard without a window."""

    # One array each: donated buffers must not be shared.
    def zero():
        return jnp.zeros((), jnp.int32)

    guard = make_guard(0) if guard is None else guard
    return TrainState(zero(), params, opt_state, zero(), zero(), guard)
