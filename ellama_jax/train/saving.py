"""What a run's checkpoint holds beside its arrays, and how a run begins from one.

Owns the counts that go with the state: the ledger of tokens, the means, the mixture. Files are
weights/checkpoint.py's.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.config import ScheduleConfig, config_to_mapping
from ellama_jax.core.distributed import leads
from ellama_jax.core.ending import ends_as_one
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import fields_that_differ
from ellama_jax.tokens.mixture import mixture_differences
from ellama_jax.train.metrics import IntervalMeans
from ellama_jax.train.optimizer import init_opt_state, make_schedule
from ellama_jax.train.program import Program
from ellama_jax.train.run import Run, source_names
from ellama_jax.train.spikes import guard_from_data, guard_to_data, init_guard
from ellama_jax.train.step import TrainState, init_state
from ellama_jax.weights import checkpoint as checkpoints
from ellama_jax.weights.layout import check_disk_space, make_meta
from ellama_jax.weights.verdict import inherit_verification


class SoFar(NamedTuple):
    """What is counted over the steps, on the host.

    `ledger` is the tokens consumed per source; `means` the metrics since the last due checkpoint.
    """

    ledger: dict[str, int]
    means: IntervalMeans


_COUNTERS = ("step", "skipped", "skipped_in_a_row", "guard")


@contextlib.contextmanager
def open_manager(run: Run) -> Iterator:
    """Opens the run's checkpoints; leaving waits until a save under way is whole.

    After an error one of several processes does not wait for it: the others would have to come too.
    """

    def failed(error: BaseException) -> None:
        # Orbax raises it only after a barrier to which the others do not come.
        with contextlib.suppress(Exception), ends_as_one(), full_disk_in_one_line(run):
            raise error

    keys = dataclasses.asdict(run.config.checkpoint)
    del keys["save_every_secs"]  # the loop's part
    with full_disk_in_one_line(run):
        manager = checkpoints.open_manager(
            run.workdir / "checkpoints", tokenizer_dir=run.tokenizer_dir, on_failure=failed, **keys
        )
        try:
            yield manager
        except BaseException as error:
            if jax.process_count() == 1 or isinstance(error, SystemExit):
                manager.close()
            raise
        manager.close()
        checkpoints.check_saves()


def full_disk_in_one_line(run: Run):
    """Returns a context in which a disk that becomes full is one line."""
    return checkpoints.full_disk_as_value_error(
        f"train {run.workdir}: the disk must have room for what a run writes",
        "make room, and the same command goes on from the newest checkpoint",
    )


def check_room(run: Run, program: Program) -> None:
    """Refuses a disk that cannot hold one checkpoint, before the first step is spent."""
    size = checkpoints.tree_bytes((program.state.params, program.state.opt_state))
    check_disk_space(f"train {run.workdir}", run.workdir, size)


def start_or_resume(run: Run, program: Program, manager) -> tuple[TrainState, SoFar]:
    """Returns the state to continue from and what was counted on the way to it."""
    abstract, mesh = program.state, program.mesh
    if manager.latest_step() is None:
        params = _base_params(run, mesh)
        opt_state = init_opt_state(program.optimizer, params, abstract.opt_state)
        state = init_state(params, opt_state, init_guard(run.config.train))
        ledger, sums = {}, {}
    else:
        step, params, opt_state, data, meta = checkpoints.restore_training(
            manager,
            abstract.params,
            abstract.opt_state,
            check=functools.partial(_check_same_run, run),
        )
        if leads():
            _say_other_rate(run, step, meta["config"])
        counts = {name: jnp.int32(data[name]) for name in ("skipped", "skipped_in_a_row")}
        guard = guard_from_data(data["guard"], run.config.train)
        state = TrainState(jnp.int32(step), params, opt_state, **counts, guard=guard)
        ledger, sums = data["ledger"], data["interval_sums"]
    scalars = NamedSharding(mesh, PartitionSpec())
    placed = {
        name: jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), scalars), value)
        for name, value in state._asdict().items()
        if name in _COUNTERS
    }
    # A stage to come may have brought sources that this checkpoint does not know.
    ledger = {source.name: 0 for source in run.loader.sources} | ledger
    return state._replace(**placed), SoFar(ledger, IntervalMeans(source_names(run.loader), sums))


def _say_other_rate(run: Run, step: int, before: Mapping) -> None:
    """Says where a changed schedule makes the learning rate jump, as a finished cosine extended does."""
    schedule, steps = run.config.schedule, run.config.train.steps
    old = make_schedule(ScheduleConfig(**before["schedule"]), run.model, before["train"]["steps"])
    was, now = (float(rate(step)) for rate in (old, make_schedule(schedule, run.model, steps)))
    if step >= steps or abs(now - was) <= 0.05 * max(was, now):
        return
    kept = (
        f"schedule.peak_frac={schedule.peak_frac * was / now:.3g} goes on at {was:.3g}; "
        if was
        else ""
    )
    print(
        f"warning: learning rate: step {step + 1} has {now:.3g}, where the schedule so far had {was:.3g}: a "
        f"cosine is drawn over all steps, which were {before['train']['steps']} and are {steps}. {kept}a new "
        f"workdir with model.checkpoint={run.workdir / 'checkpoints'} warms up anew.",
        file=sys.stderr,
    )


def _check_same_run(run: Run, info: checkpoints.CheckpointInfo, data: dict) -> None:
    """Refuses to resume another model, from another base, or if the batches so far would have been others.

    Later stages may change, and a base may have moved: its weights count.
    """
    step, origin = info.step, info.meta["provenance"]
    if differ := fields_that_differ(info.config, run.model):
        said = "; ".join(f"{name} was {before}, now {now}" for name, before, now in differ)
        raise ValueError(f"{run.workdir}: must be resumed with the model it was trained with, got "
                         f"another: {said}. Start a new workdir, or restore model.*.")  # fmt: skip
    if origin["base_identity"] != run.base_identity:
        now = str(run.base.path) if run.base else "random weights"
        raise ValueError(
            f"model.checkpoint: must be the base that {run.workdir} began from, {origin['base']} with "
            f"weights {origin['base_identity'] or 'at random'}, got {now} with weights "
            f"{run.base_identity or 'at random'}; start a new workdir, or restore model.checkpoint."
        )
    wanted, got = data["mixture_fingerprint"], run.loader.fingerprint_until(step)
    if wanted == got:
        return
    differ = mixture_differences(data["mixture"], run.loader.mixture_until(step))
    said = "; ".join(differ[:4]) or f"{got[:16]}, not {wanted[:16]}"
    raise ValueError(
        f"{run.workdir}: must be resumed with the mixture it was trained with up to step {step}, "
        f"got another: {said}. Start a new workdir, or restore data.* and the windows; stages that "
        f"start at step {step} or later may be changed."
    )


def _base_params(run: Run, mesh: Mesh) -> dict:
    dtype = jnp.dtype(run.config.model.param_dtype)
    if run.base is None:
        return init_params(run.model, run.config.model.init_seed, dtype, mesh)
    return checkpoints.restore_params(run.base.path, dtype=dtype, mesh=mesh)


def save(
    run: Run,
    manager,
    state: TrainState,
    so_far: SoFar,
    evaluated: Mapping,
    *,
    due: bool,
    last: bool,
) -> None:
    """Saves the state, in the background. All processes must call this.

    Args:
        evaluated: losses on held-out text at this step, if they were taken: what steps can be
            compared by, with the means since the last due save.
        due: whether `save_every_steps` asked for this save; one by time or at a stop keeps the
            means, and has no metrics, for they would be those of a part of the interval.
        last: whether the run ends here, and so is compared by what there is.
    """
    counts = jax.device_get({name: getattr(state, name) for name in _COUNTERS})
    step, means = int(counts["step"]), so_far.means.means()
    if due:
        # Kept at a save that is not due, so that a resumed run has the means of a whole one.
        so_far.means.sums.clear()
    data = {
        "step": step,
        "ledger": dict(so_far.ledger),
        "interval_sums": dict(so_far.means.sums),
        "mixture_fingerprint": run.loader.fingerprint_until(step),
        "mixture": run.loader.mixture_until(step),
        "skipped": int(counts["skipped"]),
        "skipped_in_a_row": int(counts["skipped_in_a_row"]),
        "guard": guard_to_data(counts["guard"]),
    }
    checkpoints.save_training(
        manager, step, state.params, state.opt_state, data, _meta(run, step),
        metrics={**means, **evaluated} if due or last else {}, force=not due,
    )  # fmt: skip


def _meta(run: Run, step: int) -> dict:
    """Says in a checkpoint what it is and where it comes from."""
    base = run.base
    provenance = {
        "kind": "train",
        "step": step,
        "base": str(base.path) if base else "random weights",
        "base_identity": run.base_identity,
        "base_provenance": base.meta["provenance"] if base else None,
        "mixture_fingerprint": run.loader.fingerprint_until(step),
        "data": [source.describe() for source in run.loader.sources],
    }
    return make_meta(
        run.model,
        tokenizer_fingerprint=run.tokenizer.fingerprint,
        provenance=provenance,
        verification=inherit_verification(base) if base else inherit_verification(),
        config=config_to_mapping(run.config),
    )
