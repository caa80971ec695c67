"""What a run compiles: its step, with the shapes and places of state and batch.

Owns the way from a configuration and a mesh to one jitted step. The loop feeds it, and the planner
compiles the same for devices that are not here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.config import ModelConfig, RunConfig, batch_sizes
from ellama_jax.model.attention import check_attention, resolve_attention
from ellama_jax.model.llama import abstract_params, dim_sizes
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.sharding import batch_sharding, check_batch, check_dims
from ellama_jax.train.optimizer import abstract_opt_state, make_optimizer, make_schedule
from ellama_jax.train.spikes import init_guard
from ellama_jax.train.step import TrainState, make_loss_sums, make_train_step
from ellama_jax.xla_flags import flags_for_device

# Features of a batch [B, T] and their dtypes; `source_ids` is [B].
_ROWS = {
    "inputs": jnp.int32, "targets": jnp.int32, "positions": jnp.int32, "segment_ids": jnp.int32,
    "loss_weights": jnp.float32,
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One run's step and what it works on.

    `step_fn(state, batch) -> (state, metrics)` is jitted and donates the state; `state` and `batch`
    are the abstract values, with shardings, that it is compiled for.
    """

    mesh: Mesh
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    step_fn: jax.stages.Wrapped
    state: TrainState
    batch: dict

    def lower(self) -> jax.stages.Lowered:
        """Traces the step; `.compile()` of what it returns needs a compiler, not the devices."""
        with jax.set_mesh(self.mesh):
            return self.step_fn.lower(self.state, self.batch)


def make_program(config: RunConfig, model: LlamaConfig, mesh: Mesh, num_sources: int) -> Program:
    """Builds the step of a run for `mesh`, whose devices need not exist here.

    Raises:
        ValueError: if a parameter or the batch cannot be divided as the mesh asks.
    """
    check_dims(dim_sizes(model), mesh.shape)
    check_batch(
        config.data.global_batch_size,
        config.data.seq_len,
        mesh.shape,
        config.train.num_microbatches,
    )
    schedule = make_schedule(config.schedule, model, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    device = mesh.devices.flat[0]
    step = make_train_step(
        make_losses(config, model, mesh, num_sources),
        optimizer,
        config.train.num_microbatches,
        compute_dtype(config.model, device.platform),
        rounding_seed=config.optimizer.rounding_seed,
        spike_factor=config.train.spike_factor,
        max_spikes=config.train.max_spikes,
    )
    params = abstract_params(model, jnp.dtype(config.model.param_dtype), mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    guard = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        jax.eval_shape(lambda: init_guard(config.train)),
    )
    opt_state = abstract_opt_state(optimizer, params)
    state = TrainState(scalar, params, opt_state, scalar, scalar, guard)
    for _, rows in batch_sizes(config.data):
        batch = _abstract_batch(config, mesh, rows)  # the last size is compiled ahead
    options = flags_for_device(device.device_kind, config.train.xla_flags)
    step_fn = jax.jit(step, donate_argnums=0, compiler_options=options or None)
    return Program(mesh, schedule, optimizer, step_fn, state, batch)


def make_losses(config: RunConfig, model: LlamaConfig, mesh: Mesh, num_sources: int) -> Callable:
    """Returns the run's `loss_sums(params, batch)` of step.py, as it is trained and evaluated."""
    platform = mesh.devices.flat[0].platform
    attention, length = config.model.attention, config.data.seq_len
    dtype = compute_dtype(config.model, platform)
    check_attention(attention, platform, model, length, mesh.shape, dtype)
    return make_loss_sums(
        model,
        num_sources=num_sources,
        compute_dtype=dtype,
        remat=config.model.remat,
        chunk_tokens=config.model.loss_chunk_tokens,
        attention=resolve_attention(attention, platform, length, mesh.shape["context"]),
    )


def compute_dtype(config: ModelConfig, platform: str):
    """Returns the dtype of activations; `auto` is bfloat16 on accelerators, float32 on CPU."""
    if config.compute_dtype == "auto":
        return jnp.float32 if platform == "cpu" else jnp.bfloat16
    return jnp.dtype(config.compute_dtype)


def _abstract_batch(config: RunConfig, mesh: Mesh, rows: int) -> dict:
    shape = (rows, config.data.seq_len)
    features = {name: (shape, dtype) for name, dtype in _ROWS.items()}
    features["source_ids"] = (shape[:1], jnp.int32)

    def abstract(name, shape, dtype):
        sharding = batch_sharding(mesh, shape, name)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return {name: abstract(name, *feature) for name, feature in features.items()}
