"""What a run says of itself: its first lines, one record a step, and what went wrong.

Owns the order in which a finished step is read, counted and written. Names and files of records are
metrics.py's, the account of time goodput.py's.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from ellama_jax.config import batch_sizes, config_to_mapping
from ellama_jax.core.distributed import exchange, leads, process_names
from ellama_jax.core.progress import Progress
from ellama_jax.core.sharding import local_rows, rows_counted_here
from ellama_jax.model.attention import describe_attention
from ellama_jax.model.llama import count_params
from ellama_jax.tokens.loader import batch_fingerprint, combine_fingerprints
from ellama_jax.train.goodput import STEP, Goodput, describe_goodput, goodput_scalars
from ellama_jax.train.kept import RunFiles
from ellama_jax.train.metrics import MetricsLog, step_record
from ellama_jax.train.optimizer import peak_learning_rate
from ellama_jax.train.prefetch import Placed
from ellama_jax.train.run import Run, source_names
from ellama_jax.train.saving import SoFar
from ellama_jax.train.step import Metrics
from ellama_jax.train.throughput import Throughput
from ellama_jax.train.watchdog import TIMES_BYTES, Stragglers, pack_times

_WAITING = (STEP, "data_wait")  # where a loop spends its time while it trains


class Dispatched(NamedTuple):
    """A step that the devices were given; `told` waits for what the processes say of it."""

    step: int
    positions: int
    metrics: Metrics
    told: Callable[[], list[bytes]]


class OwnTime:
    """How long a process does things of its own, neither giving the devices work nor waiting.

    with own.waiting(): jax.device_get(...)
    words = own.take()
    """

    def __init__(self, goodput: Goodput):
        self._goodput, self._waited = goodput, 0.0
        self._taken = self._spent()

    def _spent(self) -> tuple[float, float]:
        return self._goodput.spent(*_WAITING), self._goodput.spent("data_wait")

    def waiting(self, wait: Callable, *args):
        """Returns `wait(*args)`; the time it takes is not the process's own."""
        before = self._goodput.spent(*_WAITING)
        result = wait(*args)
        self._waited += self._goodput.spent(*_WAITING) - before
        return result

    def take(self) -> bytes:
        """Returns own seconds and those of waiting for data since the last call, packed."""
        (before, data_before), self._taken = self._taken, self._spent()
        waited, self._waited = self._waited, 0.0
        return pack_times(max(0.0, self._taken[0] - before - waited), self._taken[1] - data_before)


def tell_others(
    batch: Placed, mesh: Mesh, overdue: bool, times: bytes
) -> Callable[[], list[bytes]]:
    """Begins to share the fingerprint of this process's rows, and times.

    `overdue` is whether it is time to save; who leads is believed.
    """
    num_rows = len(batch.arrays["source_ids"])
    counted = rows_counted_here(mesh, num_rows)  # rows that several processes feed count once
    rows = {name: array[counted] for name, array in batch.rows.items()}
    fingerprint = batch_fingerprint(rows, local_rows(mesh, num_rows)[counted])
    return exchange(times + fingerprint.encode() + (b"s" if overdue else b"."))


class StepReport:
    """Turns finished steps into log lines, and keeps count of what they did.

    `finished` is the last step that is known to be done; `asked_to_save` is True once one is, in
    which it was time to save.
    """

    def __init__(
        self, run: Run, files: RunFiles, mesh: Mesh, so_far: SoFar, goodput: Goodput,
        own: OwnTime, bar: Progress, first: int,
    ):  # fmt: skip
        """Opens the logs for the steps after `first`. All processes must call this.

        Args:
            first: updates done so far.
        """
        self.asked_to_save, self.finished = False, first
        self._run, self._files, self._so_far, self._bar = run, files, so_far, bar
        self._goodput, self._own = goodput, own
        self._sources, self._config = source_names(run.loader), run.config.train
        self._throughput = Throughput(run.model, run.config.data.seq_len, mesh)
        self._stragglers = Stragglers(process_names(), self._config.straggler_ratio)
        self._log = None
        if leads():
            values, project = config_to_mapping(run.config), self._config.wandb_project
            # Before the first step there may be a record 0, of the evaluation of the base.
            self._log = MetricsLog(run.workdir, first + 1 if first else 0, project, values)
        self._bad: list[dict] = []
        self._first = first
        self._clock = goodput.spent(*_WAITING)

    def baseline(self, evaluated: Mapping[str, float]) -> None:
        """Writes what the model is worth before its first update, as step 0."""
        if self._log is not None:
            self._log.write({"step": 0, "time": self._goodput.now(), **evaluated})
            print(f"before the first step: {_say_evaluated(evaluated)}", flush=True)

    def finish(self, done: Dispatched, evaluated: Mapping[str, float] | None = None) -> None:
        """Reads one step's metrics (waiting for the step to end) and logs them.

        Args:
            done: the step.
            evaluated: losses on held-out text after it, if they were taken.

        Raises:
            ValueError: if too many updates in a row were not finite.
        """
        metrics, words = self._own.waiting(lambda: (jax.device_get(done.metrics), done.told()))
        spent = self._goodput.spent(*_WAITING)
        secs, self._clock = max(spent - self._clock, 1e-9), spent
        self.asked_to_save |= words[0].endswith(b"s")
        fingerprint = combine_fingerprints([word[TIMES_BYTES:-1].decode() for word in words])
        ledger, step = self._so_far.ledger, done.step
        for source, tokens in zip(self._run.loader.sources, metrics.source_tokens, strict=True):
            ledger[source.name] += int(tokens)
        self._so_far.means.add(metrics)
        record = step_record(metrics, self._sources, step=step, secs=secs)
        record |= self._throughput.rates(record["loss_tokens"], done.positions, secs)
        record |= {"tokens_consumed": dict(ledger), "batch_fingerprint": fingerprint}
        record |= {"epochs": self._run.loader.epochs(step), "time": self._goodput.now()}
        record |= evaluated or {}
        self.finished = step
        self._goodput.finished(step)
        if step > self._first + 1:  # in the first one the processes wait for each other's compilers
            self._stragglers.add([word[:TIMES_BYTES] for word in words], secs)
        if step % self._config.report_every_steps == 0:
            record |= self._account()
        if self._log is not None:
            self._log.write(record)
            self._goodput.write(self._files)
            if evaluated:
                print(f"after step {step}: {_say_evaluated(evaluated)}", file=sys.stderr)
        rate, speed = record["learning_rate"], int(record["tokens_per_sec"])
        self._bar.note(loss=record["loss"], lr=rate, tok_s=speed)
        self._bar.update(1)
        self._check_finite(step, fingerprint, metrics)

    def _account(self) -> dict[str, float]:
        """Returns the parts of the run's time by category; names a process that is slow."""
        if (said := self._stragglers.report()) and leads():
            print(said, file=sys.stderr, flush=True)
        return goodput_scalars(self._goodput.summary())

    def _check_finite(self, step: int, fingerprint: str, metrics: Metrics) -> None:
        """Names a step whose update was left out; raises after too many in a row."""
        if metrics.skipped_in_a_row == 0:
            self._bad.clear()
            return
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        found = {"step": step, "batch_fingerprint": fingerprint, "loss": loss, "grad_norm": norm}
        self._bad.append(found)
        said = f"step {step}, batch {fingerprint}"
        if metrics.skipped_in_a_row < self._config.max_nonfinite_steps:
            if leads():
                what = f"loss {loss:g}, gradient norm {norm:g}"
                print(f"{said}: not finite ({what}), the update was left out.", file=sys.stderr)
            return
        path = self._run.workdir / f"nonfinite-{step}.json"
        sources = [s.name for s, n in zip(
            self._run.loader.sources, metrics.source_tokens, strict=True) if n]  # fmt: skip
        if leads():
            self._files.write(path.name, json.dumps(self._describe_bad(), indent=1) + "\n")
        raise ValueError(
            f"{said}: {int(metrics.skipped_in_a_row)} updates in a row were not finite; lower "
            f"schedule.peak_frac, or look at those batches. This one is of {', '.join(sources)}; the "
            f"rows of all of them are named in {path}."
        )

    def _describe_bad(self) -> dict:
        """Says all that is needed to see the batches again that were not finite."""
        loader = self._run.loader
        batches = []
        for found in self._bad:
            rows = loader.locate_rows(found["step"] - 1) if hasattr(loader, "locate_rows") else None
            # JSON has no NaN.
            batches.append({**found, "loss": str(found["loss"]),
                            "grad_norm": str(found["grad_norm"]), "rows": rows})  # fmt: skip
        data = self._run.config.data
        keys = {
            n: getattr(data, n) for n in ("windows_dir", "seq_len", "global_batch_size", "seed")
        }
        return {"data": keys, "batches": batches}

    def publish(self) -> None:
        """Sends the logs to the bucket, if the run is in one."""
        if self._log is not None:
            self._log.publish()

    def __enter__(self) -> "StepReport":
        return self

    def __exit__(self, *_) -> None:
        """Closes the logs, after an error too: its last lines are those one wants to see."""
        if self._log is not None:
            self._log.close()


def _say_evaluated(evaluated: Mapping[str, float]) -> str:
    """Says losses and mean scores; those of single tasks are in the records alone."""
    said = {
        name: value
        for name, value in evaluated.items()
        if name.startswith("eval_loss") or (name.startswith("eval_score") and name.count("/") == 1)
    }
    return " ".join(f"{name}={value:.4g}" for name, value in said.items())


def say_goodput(goodput: Goodput) -> None:
    """Says on the leader how much of the run's time trained."""
    if leads():
        print(describe_goodput(goodput.starts()), file=sys.stderr, flush=True)


def say_what_runs(run: Run, mesh: Mesh, done: int) -> None:
    """Prints what is trained, on what, from which step, and how its speed is measured."""
    config, sizes = run.config, ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    peak = peak_learning_rate(config.schedule, run.model)
    print(
        f"model {run.model.name}: {count_params(run.model) / 1e6:.1f}M parameters on mesh {sizes}"
    )
    sizes = [rows * config.data.seq_len for _, rows in batch_sizes(config.data)]
    tokens = " growing to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]])))
    resumed = f", resuming after step {done}" if done else ""
    print(f"{config.train.steps} steps of {tokens} tokens, peak learning rate {peak:g}{resumed}")
    platform, context = mesh.devices.flat[0].platform, mesh.shape["context"]
    print(
        f"{describe_attention(config.model.attention, platform, config.data.seq_len, context)}; "
        f"remat {config.model.remat}"
    )
    for line in run.loader.describe(config.train.steps):
        print(f"  {line}")
    for line in Throughput(run.model, config.data.seq_len, mesh).describe():
        print(f"  {line}")
    if run.held_out is not None:
        print(
            f"  every {config.evaluate.every_steps} steps the loss of {run.held_out.num_rows} "
            f"held-out rows of {', '.join(run.held_out.names)}"
        )
    if run.questions is not None:
        items, texts = run.questions
        print(
            f"  every {config.evaluate.every_steps} steps the scores of {len(items)} questions and "
            f"{len(texts)} texts; retention gate: {config.evaluate.gate.action}"
        )
    sys.stdout.flush()
