"""The training loop: from a configuration to a trained checkpoint, resumable at any step.

Owns the order of things in a run. The arithmetic is step.py's, the batches are data/loader.py's.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.config import RunConfig, config_to_mapping, load_config
from ellama_jax.data.loader import (
    Loader,
    batch_fingerprint,
    combine_fingerprints,
    open_sources,
)
from ellama_jax.data.mixture import mixture_differences
from ellama_jax.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from ellama_jax.distributed import exchange, leads, on_leader, start_processes
from ellama_jax.model.llama import REMAT_POLICIES, abstract_params, count_params, init_params
from ellama_jax.model.presets import LlamaConfig, config_to_dict, get_preset
from ellama_jax.paths import as_path, is_remote, local_path, write_whole
from ellama_jax.progress import progress
from ellama_jax.sharding import make_mesh, place_batch, row_parts
from ellama_jax.train.metrics import IntervalMeans, MetricsLog, known_metrics, step_record
from ellama_jax.train.optimizer import (
    abstract_opt_state,
    init_opt_state,
    make_optimizer,
    make_schedule,
    peak_learning_rate,
)
from ellama_jax.train.step import TrainState, init_state, make_loss_sums, make_train_step
from ellama_jax.tree import flatten_paths
from ellama_jax.weights import checkpoint as checkpoints
from ellama_jax.weights.layout import (
    CheckpointInfo,
    check_disk_space,
    check_writable,
    find_checkpoint,
    make_meta,
)
from ellama_jax.weights.verdict import check_verified, inherit_verification

if TYPE_CHECKING:
    from ellama_jax.data.streaming import Stream

EXIT_TERMINATED = 143  # 128 + SIGTERM, what a scheduler expects of a job it ended


@dataclasses.dataclass(frozen=True)
class Run:
    """A configuration with everything it names, found and checked before any device is used."""

    config: RunConfig
    workdir: Path
    model: LlamaConfig
    base: CheckpointInfo | None
    tokenizer: Tokenizer
    tokenizer_dir: Path
    loader: "Loader | Stream"


def main_train(argv: list[str]) -> None:
    """Runs the verb `train`."""
    parser = argparse.ArgumentParser(
        prog="ellama train",
        description="Continue the pretraining of a checkpoint; the same command resumes a run.",
        epilog="example:\n  ellama train --config configs/ellama.py:8b --workdir runs/8b \\\n"
        "      --config.model.checkpoint=llama3.1-8b --config.data.windows_dir=windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="configuration file; required")
    parser.add_argument("--config.SECTION.KEY", metavar="VALUE", help="overrides one key")
    parser.add_argument("--workdir", required=True, help="directory of the run, local or gs://")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="train from a checkpoint that failed `ellama verify`",
    )
    if "-h" in argv or "--help" in argv:
        parser.parse_args(["--help"])
    config, others = load_config(argv, "train")
    args = parser.parse_args(others)
    start_processes()
    train(prepare_run(config, args.workdir, allow_unverified=args.allow_unverified))


def prepare_run(
    config: RunConfig, workdir: str | os.PathLike, *, allow_unverified: bool = False
) -> Run:
    """Finds and checks everything that needs no device.

    Args:
        config: what to train.
        workdir: where, on a disk or in a bucket; made if it is not there.
        allow_unverified: start from a checkpoint that failed the conversion gate all the same.

    Raises:
        ValueError: naming the key and what must hold.
    """
    workdir = as_path(workdir)
    model = get_preset(config.model.preset)
    if config.data.seq_len > model.max_seq_len:
        raise ValueError(
            f"data.seq_len: must not exceed the model's max_seq_len ({model.max_seq_len}), "
            f"got {config.data.seq_len}."
        )
    if config.model.remat not in REMAT_POLICIES:
        raise ValueError(
            f"model.remat: must be one of {', '.join(REMAT_POLICIES)}, got {config.model.remat}."
        )
    peak_learning_rate(config.schedule, model)
    base, tokenizer_dir = _find_base(config, model)
    tokenizer = load_tokenizer(tokenizer_dir)
    check_fits(tokenizer, model.vocab_size)
    loader = _make_loader(config, tokenizer)
    _check_best_metric(config, loader)
    if base is not None:
        check_verified(base, allow_unverified=allow_unverified)
    _make_workdir(workdir)
    return Run(config, workdir, model, base, tokenizer, tokenizer_dir, loader)


def _make_loader(config: RunConfig, tokenizer: Tokenizer) -> "Loader | Stream":
    if config.data.seqio_mixture:
        # Imports TensorFlow, which no other training needs.
        from ellama_jax.data.streaming import Stream

        return Stream(config.data, tokenizer)
    loader = Loader(open_sources(config.data, tokenizer.fingerprint), config.data)
    loader.check_repetition(config.train.steps)
    return loader


def _find_base(config: RunConfig, model: LlamaConfig):
    """Returns the base checkpoint (None for random weights) and where its tokenizer lies."""
    if not config.model.checkpoint:
        # The tokenizer then comes with the windows: random weights have none of their own.
        return None, local_path(config.data.windows_dir, "data.windows_dir") / "tokenizer"
    base = find_checkpoint(config.model.checkpoint)
    stored, wanted = config_to_dict(base.config), config_to_dict(model)
    differ = [
        f"{key} {stored[key]}" for key in wanted if key != "name" and stored[key] != wanted[key]
    ]
    if differ:
        raise ValueError(
            f"model.preset: {model.name} does not fit the checkpoint {base.path}, "
            f"which has {', '.join(differ)}."
        )
    return base, base.tokenizer_dir


def _check_best_metric(config: RunConfig, loader: "Loader | Stream") -> None:
    known = known_metrics(_source_names(loader))
    if config.checkpoint.best_metric not in ("", *known):
        raise ValueError(
            f"checkpoint.best_metric: must be one of {', '.join(known)}, or empty, "
            f"got {config.checkpoint.best_metric}."
        )


def _source_names(loader: "Loader | Stream") -> list[str]:
    """Returns `<domain>/<language>` by source id; several sets of one language share a name."""
    return [f"{source.domain}/{source.language}" for source in loader.sources]


def _make_workdir(workdir: Path) -> None:
    if is_remote(workdir):
        check_writable(workdir)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--workdir: must be a directory that can be made, got {workdir}: {error.strerror}."
        ) from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"--workdir: must be writable, got {workdir}.")


def train(run: Run) -> Path:
    """Trains up to the configured number of steps and returns the checkpoint root.

    A run directory that holds a checkpoint is continued from it.

    Raises:
        ValueError: if the checkpoint found does not fit the configuration.
        RuntimeError: after too many updates in a row that were not finite.
    """
    config = run.config
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    schedule = make_schedule(config.schedule, run.model, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    root = run.workdir / "checkpoints"
    on_leader(lambda: _check_room(run, optimizer))
    manager = checkpoints.open_manager(
        root, tokenizer_dir=run.tokenizer_dir, **dataclasses.asdict(config.checkpoint)
    )
    # Leaving the manager, by an error too, waits until a save under way is whole.
    with jax.set_mesh(mesh), manager, _sigterm_flag() as terminated:
        state, progress_so_far = _start_or_resume(run, mesh, optimizer, manager)
        on_leader(lambda: _write_config(run))
        if leads():
            _say_what_runs(run, mesh, int(state.step))
        step_fn = jax.jit(_make_step(run, optimizer), donate_argnums=0)
        stopped = _steps(run, mesh, step_fn, schedule, manager, state, progress_so_far, terminated)
    if stopped:
        if leads():
            said = "stopped by SIGTERM after a checkpoint; the same command resumes."
            print(said, file=sys.stderr)
        sys.exit(EXIT_TERMINATED)
    return root


def _check_room(run: Run, optimizer) -> None:
    """Refuses a disk that cannot hold one checkpoint, before the first step is spent."""
    params = abstract_params(run.model, jnp.dtype(run.config.model.param_dtype))
    size = checkpoints.tree_bytes((params, abstract_opt_state(optimizer, params)))
    check_disk_space(f"train {run.workdir}", run.workdir, size)


def _make_step(run: Run, optimizer) -> Callable:
    loss_sums = make_loss_sums(
        run.model,
        num_sources=len(run.loader.sources),
        compute_dtype=compute_dtype(run.config.model.compute_dtype),
        remat=run.config.model.remat,
        chunk_tokens=run.config.model.loss_chunk_tokens,
    )
    return make_train_step(loss_sums, optimizer, run.config.train.num_microbatches)


def compute_dtype(name: str):
    """Returns the dtype of activations; `auto` is bfloat16 on accelerators, float32 on CPU."""
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def _start_or_resume(run: Run, mesh: Mesh, optimizer, manager) -> tuple[TrainState, "_SoFar"]:
    """Returns the state to continue from and what was counted on the way to it."""
    abstract = abstract_params(run.model, jnp.dtype(run.config.model.param_dtype), mesh)
    abstract_state = abstract_opt_state(optimizer, abstract)
    if manager.latest_step() is None:
        params = _base_params(run, abstract, mesh)
        opt_state = init_opt_state(optimizer, params, abstract_state)
        state = init_state(params, opt_state)
        ledger, sums = {}, {}
    else:
        step, params, opt_state, data, _ = checkpoints.restore_training(
            manager, abstract, abstract_state
        )
        _check_same_mixture(run, step, data)
        counts = {name: jnp.int32(data[name]) for name in ("skipped", "skipped_in_a_row")}
        state = TrainState(jnp.int32(step), params, opt_state, **counts)
        # Checkpoints from before there were means have no sums of them.
        ledger, sums = data["ledger"], data.get("interval_sums", {})
    scalars = NamedSharding(mesh, PartitionSpec())
    placed = {n: jax.device_put(np.asarray(getattr(state, n)), scalars) for n in _COUNTERS}
    # A stage to come may have brought sources that this checkpoint does not know.
    ledger = {source.name: 0 for source in run.loader.sources} | ledger
    return state._replace(**placed), _SoFar(ledger, IntervalMeans(_source_names(run.loader), sums))


def _check_same_mixture(run: Run, step: int, data: dict) -> None:
    """Refuses to resume if the batches so far would have been others; later stages may change."""
    wanted, got = data["mixture_fingerprint"], run.loader.fingerprint_until(step)
    if wanted == got:
        return
    # Checkpoints from before there were stages say no more than the fingerprint.
    differ = []
    if "mixture" in data:
        differ = mixture_differences(data["mixture"], run.loader.mixture_until(step))
    said = "; ".join(differ[:4]) or f"{got[:16]}, not {wanted[:16]}"
    raise ValueError(
        f"{run.workdir}: must be resumed with the mixture it was trained with up to step {step}, "
        f"got another: {said}. Start a new workdir, or restore data.* and the windows; stages that "
        f"start at step {step} or later may be changed."
    )


class _SoFar(NamedTuple):
    """What is counted over the steps, on the host.

    `ledger` is the tokens consumed per source; `means` the metrics since the last due checkpoint.
    """

    ledger: dict[str, int]
    means: IntervalMeans


_COUNTERS = ("step", "skipped", "skipped_in_a_row")


def _base_params(run: Run, abstract: dict, mesh: Mesh) -> dict:
    dtype = jnp.dtype(run.config.model.param_dtype)
    if run.base is None:
        return init_params(run.model, run.config.model.init_seed, dtype, mesh)
    return checkpoints.restore_params(run.base.path, dtype=dtype, mesh=mesh)


def _steps(run, mesh, step_fn, schedule, manager, state, so_far, terminated) -> bool:
    """Runs the remaining steps; a step's metrics are read once the next one is under way.

    Returns:
        whether SIGTERM ended them early, the same on every process.
    """
    first, last = int(state.step), run.config.train.steps
    parts, alone = row_parts(mesh), jax.process_count() == 1
    mine = parts[jax.process_index()], max(parts) + 1
    pending = None
    with progress("training", total=last, unit="steps", shown=leads()) as bar:
        bar.update(first)
        report = _StepReport(run, schedule, so_far, bar, first)
        for step, rows in enumerate(run.loader.iterate(first, last, *mine), start=first + 1):
            state, metrics = step_fn(state, place_batch(rows, mesh))
            if pending is not None:
                report.finish(*pending)
            signalled = terminated()
            pending = (step, metrics, _tell_others(rows, parts, signalled))
            # Other processes are heard one step later, by all of them at the same one.
            stopping = step == last or report.asked_to_stop or (alone and signalled)
            due = step % run.config.checkpoint.save_every_steps == 0
            if stopping or due:
                report.finish(*pending)
                pending = None
                report.publish()
                _save(run, manager, state, so_far, due=due)
            if stopping or (due and report.asked_to_stop):
                break
        report.close()
    return report.asked_to_stop


def _tell_others(rows: dict, parts: tuple[int, ...], signalled: bool) -> Callable[[], list[bytes]]:
    """Begins to share the fingerprint of this process's rows, and whether SIGTERM came here."""
    process = jax.process_index()
    fingerprint = f"{0:016x}"
    if parts.index(parts[process]) == process:  # rows that several processes feed count once
        fingerprint = batch_fingerprint(rows, parts[process] * len(rows["source_ids"]))
    return exchange(fingerprint.encode() + (b"!" if signalled else b"."))


class _StepReport:
    """Turns finished steps into log lines, and keeps count of what they did.

    `asked_to_stop` is True once a finished step is known in which SIGTERM came to any process.
    """

    def __init__(self, run: Run, schedule, so_far: _SoFar, bar, done_steps: int):
        self.asked_to_stop = False
        self._run, self._schedule, self._so_far, self._bar = run, schedule, so_far, bar
        self._sources = _source_names(run.loader)
        self._log = MetricsLog(run.workdir, done_steps + 1) if leads() else None
        self._clock = time.monotonic()

    def finish(self, step: int, metrics, told: Callable[[], list[bytes]]) -> None:
        """Reads one step's metrics (waiting for the step to end) and logs them."""
        metrics = jax.device_get(metrics)
        words = told()
        self.asked_to_stop |= any(word.endswith(b"!") for word in words)
        fingerprint = combine_fingerprints([word[:-1].decode() for word in words])
        secs, self._clock = time.monotonic() - self._clock, time.monotonic()
        ledger = self._so_far.ledger
        for source, tokens in zip(self._run.loader.sources, metrics.source_tokens, strict=True):
            ledger[source.name] += int(tokens)
        self._so_far.means.add(metrics)
        rate = float(self._schedule(step - 1))
        record = step_record(metrics, self._sources, step=step, learning_rate=rate, secs=secs)
        record |= {"tokens_consumed": dict(ledger), "batch_fingerprint": fingerprint}
        record["epochs"] = self._run.loader.epochs(step)
        if self._log is not None:
            self._log.write(record)
        self._bar.note(loss=record["loss"], lr=rate, tok_s=int(record["tokens_per_sec"]))
        self._bar.update(1)
        if metrics.skipped_in_a_row >= self._run.config.train.max_nonfinite_steps:
            raise ValueError(
                f"step {step}, batch {fingerprint}: {int(metrics.skipped_in_a_row)} updates in a row "
                "were not finite; lower schedule.peak_frac, or look at that batch."
            )

    def publish(self) -> None:
        if self._log is not None:
            self._log.publish()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _save(run: Run, manager, state: TrainState, so_far: _SoFar, *, due: bool) -> None:
    step, means = int(state.step), so_far.means.means()
    if due:
        # Kept at a save that is not due, so that a resumed run has the means of a whole one.
        so_far.means.sums.clear()
    data = {
        "step": step,
        "ledger": dict(so_far.ledger),
        "interval_sums": dict(so_far.means.sums),
        "mixture_fingerprint": run.loader.fingerprint_until(step),
        "mixture": run.loader.mixture_until(step),
        "skipped": int(state.skipped),
        "skipped_in_a_row": int(state.skipped_in_a_row),
    }
    checkpoints.save_training(
        manager, step, state.params, state.opt_state, data, _meta(run, step),
        metrics=means, force=not due,
    )  # fmt: skip


def _meta(run: Run, step: int) -> dict:
    """Says in a checkpoint what it is and where it comes from."""
    base = run.base
    provenance = {
        "kind": "train",
        "step": step,
        "base": str(base.path) if base else "random weights",
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


def _write_config(run: Run) -> None:
    """Writes config.json; for a resumed run whose configuration changed, names the keys."""
    path = run.workdir / "config.json"
    now = json.loads(json.dumps(config_to_mapping(run.config)))
    if path.exists():
        before, after = flatten_paths(json.loads(path.read_text())), flatten_paths(now)
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                name = key.replace("/", ".")
                print(
                    f"{name}: was {before.get(key)} before, now {after.get(key)}.", file=sys.stderr
                )
    write_whole(path, json.dumps(now, indent=2) + "\n")


def _say_what_runs(run: Run, mesh: Mesh, done: int) -> None:
    config, sizes = run.config, ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    peak = peak_learning_rate(config.schedule, run.model)
    print(
        f"model {run.model.name}: {count_params(run.model) / 1e6:.1f}M parameters on mesh {sizes}"
    )
    tokens = config.data.global_batch_size * config.data.seq_len
    resumed = f", resuming after step {done}" if done else ""
    print(f"{config.train.steps} steps of {tokens} tokens, peak learning rate {peak:g}{resumed}")
    for line in run.loader.describe(config.train.steps):
        print(f"  {line}")
    sys.stdout.flush()


class _sigterm_flag:
    """Context in which SIGTERM only raises a flag, read by calling what `with` returns."""

    def __enter__(self):
        self._raised = False
        self._previous = signal.signal(signal.SIGTERM, self._raise_flag)
        return lambda: self._raised

    def _raise_flag(self, *_):
        self._raised = True

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._previous)
