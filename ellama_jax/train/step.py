"""One training step: a pure function from state and batch to state and metrics.

Owns the arithmetic of an update. Where batches come from and when to save is loop.py's part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ellama_jax.model.llama import hidden_states, output_kernel
from ellama_jax.model.loss import token_losses
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.train.optimizer import global_norm


class TrainState(NamedTuple):
    """All that an update changes.

    `skipped` counts updates left out because loss or gradient was not finite; `skipped_in_a_row`
    since the last good one.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class Metrics(NamedTuple):
    """What one step reports; losses in nats a token.

    `source_loss_sums` and `source_weight_sums` are [sources] float32: a source's loss is their ratio;
    `source_tokens` [sources] int32 counts all its tokens, predicted or not, padding left out.
    """

    loss: jax.Array
    grad_norm: jax.Array
    weight_sum: jax.Array
    source_loss_sums: jax.Array
    source_weight_sums: jax.Array
    source_tokens: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class Sums(NamedTuple):
    """Sums over tokens, which add up over micro-batches and hosts; means never do."""

    loss: jax.Array
    weight: jax.Array
    source_losses: jax.Array
    source_weights: jax.Array
    source_tokens: jax.Array


def make_loss_sums(
    config: LlamaConfig, *, num_sources: int, compute_dtype, remat: str, chunk_tokens: int
) -> Callable:
    """Returns `loss_sums(params, batch) -> (sum of weighted losses, Sums)`."""

    def loss_sums(params, batch):
        hidden = hidden_states(
            params, config, batch["inputs"], batch["positions"], batch["segment_ids"],
            compute_dtype=compute_dtype, remat=remat,
        )  # fmt: skip
        weights = batch["loss_weights"]
        kernel = output_kernel(params, config)
        total, losses = token_losses(hidden, kernel, batch["targets"], weights, chunk_tokens)

        def by_source(rows):
            return jax.ops.segment_sum(rows.sum(axis=1), batch["source_ids"], num_sources)

        tokens = by_source((batch["segment_ids"] != 0).astype(jnp.int32))
        by_token = by_source(losses * weights), by_source(weights), tokens
        sums = Sums(total, weights.sum(), *by_token)
        return total, sums

    return loss_sums


def make_train_step(
    loss_sums: Callable, optimizer: optax.GradientTransformation, num_microbatches: int
) -> Callable[[TrainState, dict], tuple[TrainState, Metrics]]:
    """Returns the pure step; jit it once, donating the state.

    The loss is the sum of token losses over all micro-batches and hosts divided once by the sum of
    their weights. An update whose loss or gradient is not finite is skipped and counted.

    Args:
        loss_sums: from `make_loss_sums`.
        optimizer: any optax transformation.
        num_microbatches: parts of a batch whose gradients are summed one after the other.
    """

    def summed_gradients(params, batch):
        gradients_of = jax.grad(loss_sums, has_aux=True)
        if num_microbatches == 1:
            return gradients_of(params, batch)

        def add_part(carry, part):
            return jax.tree.map(jnp.add, carry, gradients_of(params, part)), None

        parts = split_batch(batch, num_microbatches)
        first, rest = (jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts))
        return jax.lax.scan(add_part, gradients_of(params, first), rest)[0]

    def train_step(state, batch):
        gradients, sums = summed_gradients(state.params, batch)
        # A batch of padding alone has weight 0; its gradient is 0 too, and nothing is divided by 0.
        divisor = jnp.maximum(sums.weight, 1.0)
        gradients = jax.tree.map(lambda g: (g / divisor).astype(g.dtype), gradients)
        norm = global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state), (state.params, state.opt_state),
        )  # fmt: skip
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        metrics = Metrics(
            sums.loss / divisor, norm, sums.weight, sums.source_losses, sums.source_weights,
            sums.source_tokens, skipped, in_a_row,
        )  # fmt: skip
        return TrainState(state.step + 1, params, opt_state, skipped, in_a_row), metrics

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


def init_state(params: dict, opt_state: optax.OptState) -> TrainState:
    """Returns the state before the first step."""

    # One array each: donated buffers must not be shared.
    def zero():
        return jnp.zeros((), jnp.int32)

    return TrainState(zero(), params, opt_state, zero(), zero())
