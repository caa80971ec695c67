"""What a run compiles: its step, with the shapes and places of state and batch.

Owns the way from a configuration and a mesh to one jitted step. The loop feeds it, and the planner
compiles the same for devices that are not here.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.config import ModelConfig, RunConfig, batch_sizes
from ellama_jax.core.distributed import exchange
from ellama_jax.core.paths import as_path, is_remote
from ellama_jax.core.sharding import batch_sharding, check_batch, check_dims
from ellama_jax.core.xla_flags import flags_for_device
from ellama_jax.model.attention import check_attention, resolve_attention
from ellama_jax.model.llama import abstract_params, dim_sizes
from ellama_jax.model.presets import LlamaConfig, fields_that_differ, get_preset
from ellama_jax.model.remat import REMAT_POLICIES, check_remat
from ellama_jax.train.optimizer import (
    abstract_opt_state,
    make_optimizer,
    make_schedule,
    peak_learning_rate,
)
from ellama_jax.train.spikes import init_guard
from ellama_jax.train.step import TrainState, make_loss_sums, make_train_step
from ellama_jax.weights.layout import CheckpointInfo, find_checkpoint

# Features of a batch [B, T] and their dtypes; `source_ids` is [B].
_ROWS = {
    "inputs": jnp.int32, "targets": jnp.int32, "positions": jnp.int32, "segment_ids": jnp.int32,
    "loss_weights": jnp.float32,
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One run's step and what it works on.

    `step_fn(state, batch) -> (state, metrics)` is jitted and donates the state; `state` and `batch`
    are the abstract values, with shardings, that it is compiled for. `compiled` is that, where it
    was compiled ahead.
    """

    mesh: Mesh
    optimizer: optax.GradientTransformation
    step_fn: jax.stages.Wrapped
    state: TrainState
    batch: dict
    compiled: jax.stages.Compiled | None = None

    def run(self, state: TrainState, batch: dict):
        """Runs a step; a batch of another size than `batch` is compiled for when it first comes."""
        ahead = self.compiled is not None and batch["inputs"].shape == self.batch["inputs"].shape
        return (self.compiled if ahead else self.step_fn)(state, batch)

    def lower(self) -> jax.stages.Lowered:
        """Traces the step; `.compile()` of what it returns needs a compiler, not the devices."""
        with jax.set_mesh(self.mesh):
            return self.step_fn.lower(self.state, self.batch)


def make_program(config: RunConfig, model: LlamaConfig, mesh: Mesh, num_sources: int) -> Program:
    """Builds the step of a run for `mesh`, whose devices need not exist here.

    Raises:
        ValueError: for what `check_sizes` refuses.
    """
    check_sizes(config, model, mesh.shape, mesh.devices.flat[0].platform)
    schedule = make_schedule(config.schedule, model, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    device = mesh.devices.flat[0]
    step = make_train_step(
        make_losses(config, model, mesh, num_sources),
        optimizer,
        schedule,
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
    # The last size of a ramp is the largest, and what is compiled ahead.
    batch = _abstract_batch(config, mesh, config.data.global_batch_size)
    options = flags_for_device(device.device_kind, config.train.xla_flags)
    step_fn = jax.jit(step, donate_argnums=0, compiler_options=options or None)
    return Program(mesh, optimizer, step_fn, state, batch)


def compile_program(
    config: RunConfig,
    model: LlamaConfig,
    mesh: Mesh,
    num_sources: int,
    on_try: Callable[[str], None] = lambda remat: None,
) -> tuple[RunConfig, Program]:
    """Compiles a run's step; `model.remat=auto` becomes the first policy that fits the devices.

    A TPU compiler refuses what does not fit. On a GPU the program's peak is held against the memory
    that JAX may use; on a CPU everything fits.

    Args:
        on_try: called with a policy before it is compiled.

    Returns:
        the configuration with the policy taken, and its program with `compiled`.

    Raises:
        ValueError: as `make_program`.
        jax.errors.JaxRuntimeError: what the compiler says of the last policy.
    """
    policies = REMAT_POLICIES if config.model.remat == "auto" else (config.model.remat,)
    for remat in policies:
        chosen = with_remat(config, remat)
        program = make_program(chosen, model, mesh, num_sources)
        on_try(remat)
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if remat == policies[-1] or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        # Processes whose memory is not the same must still compile the same program.
        told = exchange(b"1" if _fits(compiled, mesh.local_devices[:1]) else b"0")()
        if remat == policies[-1] or all(word == b"1" for word in told):
            break
    return chosen, dataclasses.replace(program, compiled=compiled)


@contextlib.contextmanager
def compiled_once(setting: str, workdir: Path, platform: str) -> Iterator[None]:
    """Keeps what the block compiles, so that another start of the run need not compile it again.

    Process 0 writes and all read, by a key of program, flags, devices and versions. What cannot be
    read or written is a warning of JAX's, and compiled as ever. A directory that the environment
    names (`JAX_COMPILATION_CACHE_DIR`) is left in use.

    Args:
        setting: `train.compilation_cache`.
        workdir: of the run, on a disk or in a bucket.
        platform: of the devices. A program for a CPU has that very machine's instructions, and to
            compile one is quick: `auto` keeps none.
    """
    directory = workdir / "compilation_cache" if setting == "auto" else setting
    unwanted = not setting or (setting == "auto" and platform == "cpu")
    if unwanted or jax.config.jax_compilation_cache_dir:
        yield
        return
    # JAX opens a cache once, unless it is told to forget the last.
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


def with_remat(config: RunConfig, remat: str) -> RunConfig:
    """Returns the configuration with another `model.remat`."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def _fits(compiled: jax.stages.Compiled, devices: list) -> bool:
    """Tells whether a program's peak is within what is known of a device that is here."""
    stats = devices[0].memory_stats() if devices and devices[0].platform == "gpu" else None
    limit = (stats or {}).get("bytes_limit")
    return limit is None or compiled.memory_analysis().peak_memory_in_bytes <= limit


def find_model(
    config: RunConfig, *, needs_checkpoint: bool = True
) -> tuple[LlamaConfig, CheckpointInfo | None]:
    """Returns the model of a run, and the checkpoint it starts from; None: random weights.

    It is the preset, with the checkpoint's own `max_seq_len`, which decides nothing of what a model
    computes. Also checks what holds for every mesh: the longest row, the policy, the peak learning
    rate.

    Args:
        needs_checkpoint: refuse a checkpoint that is not there; else the preset stands for it, as
            where a run is planned on a machine that has no weights.

    Raises:
        ValueError: naming the key and what must hold.
    """
    model, base = get_preset(config.model.preset), None
    path = config.model.checkpoint
    if path and (needs_checkpoint or (not is_remote(path) and as_path(path).exists())):
        base = find_checkpoint(path)
        if differ := fields_that_differ(base.config, model):
            said = ", ".join(f"{name} {stored}" for name, stored, _ in differ)
            raise ValueError(
                f"model.preset: {model.name} does not fit the checkpoint {base.path}, which has {said}."
            )
        model = dataclasses.replace(model, max_seq_len=base.config.max_seq_len)
    check_model(config, model)
    return model, base


def check_model(config: RunConfig, model: LlamaConfig) -> None:
    """Checks what holds for every mesh: the longest row, the policy, the peak learning rate.

    Raises:
        ValueError: naming the key and what must hold.
    """
    if config.data.seq_len > model.max_seq_len:
        raise ValueError(
            f"data.seq_len: must not exceed the model's max_seq_len ({model.max_seq_len}), "
            f"got {config.data.seq_len}."
        )
    check_remat(config.model.remat, "auto")
    peak_learning_rate(config.schedule, model)


def check_sizes(
    config: RunConfig, model: LlamaConfig, axis_sizes: Mapping[str, int], platform: str
) -> None:
    """Checks by arithmetic that a run can be divided over a mesh, with no device.

    Args:
        axis_sizes: mesh axis -> size.
        platform: of the devices: cpu, gpu or tpu.

    Raises:
        ValueError: if parameters, a size of the batch, or attention do not go; says what would.
    """
    data, parts = config.data, config.train.num_microbatches
    check_dims(dim_sizes(model), axis_sizes)
    starts = [*sorted(data.batch_ramp, key=int), None]
    for start, (_, rows) in zip(starts, batch_sizes(data), strict=True):
        key = "data.global_batch_size" if start is None else f"data.batch_ramp.{start}"
        check_batch(rows, data.seq_len, axis_sizes, parts, key)
    check_attention(
        config.model.attention, platform, model, data.seq_len, axis_sizes,
        compute_dtype(config.model, platform),
    )  # fmt: skip
    context, row_length = axis_sizes["context"], config.evaluate.row_length
    # Each device of the context axis has two equal parts of a row.
    if config.evaluate.tasks and context > 1 and row_length % (2 * context):
        raise ValueError(
            f"evaluate.row_length: must be divisible by 2 x mesh.context ({2 * context}), got "
            f"{row_length}."
        )


def make_losses(config: RunConfig, model: LlamaConfig, mesh: Mesh, num_sources: int) -> Callable:
    """Returns the run's `loss_sums(params, batch)` of step.py, as it is trained and evaluated."""
    platform = mesh.devices.flat[0].platform
    context, length = mesh.shape["context"], config.data.seq_len
    return make_loss_sums(
        model,
        num_sources=num_sources,
        compute_dtype=compute_dtype(config.model, platform),
        remat=config.model.remat,
        chunk_tokens=config.model.loss_chunk_tokens,
        attention=resolve_attention(config.model.attention, platform, length, context),
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
