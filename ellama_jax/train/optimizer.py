"""AdamW as continual pretraining wants it: re-warmed, cosine, decayed by rule.

Owns the learning-rate curve and which leaves are decayed; when it is applied is step.py's part.
"""

import re

import jax
import jax.numpy as jnp
import optax

from ellama_jax.config import OptimizerConfig, ScheduleConfig
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tree import map_paths

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


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns clipping by global norm followed by AdamW with decay by rule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


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
    return optax.tree_utils.tree_norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
