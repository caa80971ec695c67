"""AdamW as continual pretraining wants it: re-warmed, cosine, decayed by rule.

Owns the learning-rate curve, which leaves are decayed, and the dtypes and averages kept beside the
parameters; when an update is applied is step.py's part.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ellama_jax.config import OptimizerConfig, ScheduleConfig
from ellama_jax.core.tree import map_paths
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.train.rounding import AVERAGE, FIRST_MOMENT, PARAMS, SECOND_MOMENT, round_tree

# First match decides, and every leaf must match one: is the leaf decayed?
DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"norm/scale$", False),
    (r"^embed/table$", False),
    (r"^layers/(attn|mlp)/w", True),
    (r"^lm_head/kernel$", True),
)


def peak_learning_rate(schedule: ScheduleConfig, model: LlamaConfig) -> float:
    """Returns the peak: a fraction of the base model's own peak (e-Llama, arXiv 2501.09706).

    Raises:
        ValueError: if the base model's own peak is neither published nor configured.
    """
    base = schedule.base_peak_learning_rate
    if base is None:
        base = model.base_peak_learning_rate
    if base is None:
        raise ValueError(
            f"schedule.base_peak_learning_rate: must be set for {model.name}, whose own peak was not "
            "published, got None."
        )
    return schedule.peak_frac * base


def make_schedule(schedule: ScheduleConfig, model: LlamaConfig, steps: int) -> optax.Schedule:
    """Returns learning rate by update number: linear warm-up, then cosine to `final_frac`.

    The first update already learns (rate peak / (warmup_steps + 1)), since an update with rate 0
    would spend a batch for nothing.
    """
    peak = peak_learning_rate(schedule, model)
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=peak / (schedule.warmup_steps + 1),
        peak_value=peak,
        warmup_steps=schedule.warmup_steps,
        decay_steps=steps,
        end_value=schedule.final_frac * peak,
    )


def decay_mask(params: dict) -> dict:
    """Says by `DECAY_RULES` which leaves are decayed; raises ValueError for a leaf without rule."""

    def decayed(path, _):
        for pattern, decay in DECAY_RULES:
            if re.search(pattern, path):
                return decay
        raise ValueError(f"{path}: must match a rule of DECAY_RULES, got none.")

    return map_paths(decayed, params)


class AverageState(NamedTuple):
    """The moving average of the parameters, a tree like theirs, and the updates in it."""

    count: jax.Array
    average: dict


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns clipping by global norm followed by AdamW with decay by rule.

    All arithmetic is float32, whatever the dtypes of parameters, gradients and state: `update` wants
    float32 gradients and parameters and returns float32 updates, which `add_updates` applies. With
    `ema_decay` the state holds an average of the parameters too.
    """
    adamw = optax.chain(
        _scale_by_adam(config),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    parts = [optax.clip_by_global_norm(config.clip_norm), adamw]
    if config.ema_decay:
        parts.append(_average_params(config))
    return optax.chain(*parts)


def add_updates(params: dict, updates: dict, rounding_seed: int, step: jax.Array) -> dict:
    """Returns parameters plus updates in the parameters' dtypes, bfloat16 rounded stochastically.

    Args:
        params: leaves of float32 or bfloat16.
        updates: the same structure, float32.
        rounding_seed: of the run.
        step: scalar int32; the same bits at the same step, on every mesh.
    """
    added = jax.tree.map(lambda p, u: p.astype(jnp.float32) + u, params, updates)
    return round_tree(added, params, rounding_seed, step, PARAMS)


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Wraps Optax's Adam, which computes in float32; between steps moments have their own dtypes.

    Optax has `mu_dtype`, rounding to nearest, and nothing of the kind for the second moment. There
    nearest is biased: with b2 = 0.95 it holds still while the squared gradient is within 4 to 8 %
    of it, and with 0.999 for good. So both are rounded stochastically.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    streams = {"mu": FIRST_MOMENT, "nu": SECOND_MOMENT}
    dtypes = {"mu": jnp.dtype(config.mu_dtype), "nu": jnp.dtype(config.nu_dtype)}

    def init(params):
        state = adam.init(params)
        moments = {n: optax.tree.zeros_like(params, dtype=dtype) for n, dtype in dtypes.items()}
        return state._replace(**moments)

    def update(gradients, state, params=None):
        full = state._replace(mu=to_float32(state.mu), nu=to_float32(state.nu))
        scaled, new = adam.update(gradients, full, params)
        rounded = {
            name: round_tree(getattr(new, name), getattr(state, name), config.rounding_seed,
                             state.count, stream)
            for name, stream in streams.items()
        }  # fmt: skip
        return scaled, new._replace(**rounded)

    return optax.GradientTransformation(init, update)


def _average_params(config: OptimizerConfig) -> optax.GradientTransformation:
    """Keeps a moving average of the parameters that the updates before it lead to.

    It begins as the parameters: in continual pretraining these are good already.
    """
    dtype = jnp.dtype(config.ema_dtype)

    def init(params):
        # A copy even where nothing is cast: donated buffers must not be shared.
        average = jax.tree.map(lambda p: jnp.array(p, dtype, copy=True), params)
        return AverageState(jnp.zeros((), jnp.int32), average)

    def update(updates, state, params=None):
        new = jax.tree.map(jnp.add, params, updates)
        old = to_float32(state.average)
        average = optax.incremental_update(new, old, 1 - config.ema_decay)
        rounded = round_tree(average, state.average, config.rounding_seed, state.count, AVERAGE)
        return updates, AverageState(optax.safe_increment(state.count), rounded)

    return optax.GradientTransformation(init, update)


def to_float32(tree: dict) -> dict:
    """Casts every leaf to float32; inside a compiled step this is part of what uses it."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def abstract_opt_state(optimizer: optax.GradientTransformation, abstract_params: dict):
    """Returns the optimizer state's shapes, divided over the mesh as the parameters are.

    Args:
        abstract_params: `ShapeDtypeStruct` leaves, with shardings when there is a mesh.
    """
    state = jax.eval_shape(optimizer.init, abstract_params)
    sharded = next(iter(jax.tree.leaves(abstract_params))).sharding
    if sharded is None:
        return state
    replicated = jax.sharding.NamedSharding(sharded.mesh, jax.sharding.PartitionSpec())

    def like_param(leaf, param):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding)

    def whole(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

    return optax.tree_utils.tree_map_params(
        optimizer, like_param, state, abstract_params, transform_non_params=whole
    )


def init_opt_state(optimizer: optax.GradientTransformation, params: dict, abstract):
    """Creates the optimizer state, each array where `abstract` says."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    placed = shardings if jax.tree.leaves(shardings) else None
    return jax.jit(optimizer.init, out_shardings=placed)(params)


def global_norm(tree) -> jax.Array:
    """Returns the Euclidean norm over all leaves, float32."""
    return optax.tree_utils.tree_norm(to_float32(tree))
