"""What a run writes down: one JSON line a step, and the same for TensorBoard.

Owns names and files of metrics; their values come from step.py.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ellama_jax.core.paths import copy_file, copy_tree, is_remote
from ellama_jax.train.step import Metrics
from ellama_jax.train.tracking import WandbRun

METRICS_FILE = "metrics.jsonl"
# Scalars of `Metrics` that a record has under names of its own, or not at all.
_NAMED = ("loss", "grad_norm", "learning_rate", "weight_sum", "skipped", "skipped_in_a_row")


def step_record(metrics: Metrics, source_names: list[str], *, step: int, secs: float) -> dict:
    """Turns a step's device metrics into one flat record.

    Args:
        metrics: from the train step, on the device; reading them waits for the step to end.
        source_names: `<domain>/<language>` by source id; equal names are one curve.
        step: number of the update, from 1.
        secs: wall time of the step, seconds.

    Returns:
        a JSON-able dict; `loss` and `loss/<domain>/<language>` in nats a token. A source without
        tokens in this batch has no entry. A loss that is not finite stays NaN. Scalars of `Metrics`
        that have no name here appear under their own.
    """
    values = {name: np.asarray(value) for name, value in metrics._asdict().items()}
    record = {
        "step": step,
        "loss": float(values["loss"]),
        "learning_rate": float(values["learning_rate"]),
        "grad_norm": float(values["grad_norm"]),
        "loss_tokens": int(values["weight_sum"]),
        "step_secs": secs,
        "tokens_per_sec": float(values["weight_sum"]) / secs,
        "skipped_updates": int(values["skipped"]),
        "spikes": int(values["spikes"]),
    }
    for name, value in values.items():
        if value.ndim == 0 and name not in _NAMED:
            # Counters and flags as whole numbers, which JSON and TensorBoard know alike.
            whole = np.issubdtype(value.dtype, np.integer) or value.dtype == bool
            record[name] = int(value) if whole else float(value)
    sums: dict[str, np.ndarray] = {}
    for index, name in enumerate(source_names):
        pair = np.array([values["source_loss_sums"][index], values["source_weight_sums"][index]])
        sums[name] = sums.get(name, 0) + pair
    for name, (loss, weight) in sorted(sums.items()):
        if weight > 0:
            record[f"loss/{name}"] = float(loss / weight)
    return record


def known_metrics(source_names: Sequence[str], held_out_names: Sequence[str] = ()) -> list[str]:
    """Returns the metrics that checkpoints can be compared by; the lowest is the best.

    Args:
        source_names: `<domain>/<language>` of what is trained on; held_out_names: of what the run
            is evaluated on, empty for none.
    """
    known = ["loss", "grad_norm", *sorted({f"loss/{name}" for name in source_names})]
    if held_out_names:
        known += ["eval_loss", *sorted({f"eval_loss/{name}" for name in held_out_names})]
    return known


def scalars(record: Mapping) -> dict[str, float]:
    """Returns the curves of a record by name: the same for TensorBoard, W&B and `ellama watch`.

    What is counted by source, as the tokens consumed, is a curve a source.

    >>> scalars({"step": 7, "loss": 2.0, "tokens_consumed": {"general-en": 5}})
    {'loss': 2.0, 'tokens_consumed/general-en': 5}
    """
    found = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{part}": number for part, number in value.items()}
        elif isinstance(value, (int, float)) and name != "step":
            found[name] = value
    return found


class IntervalMeans:
    """Means of the metrics since the last due checkpoint, each step weighted by its tokens.

    One step's loss says more about its batch than about the model. A source's loss is weighted by
    the tokens of that source, so the mean is that of all its tokens in between. Steps whose update
    was skipped because loss or gradient was not finite count in neither.
    """

    def __init__(self, source_names: Sequence[str], sums: Mapping[str, Sequence[float]]):
        """Goes on from `sums`, metric -> (sum of values, sum of weights), as `sums` gives them."""
        self._names = [f"loss/{name}" for name in source_names]
        self.sums = {name: list(pair) for name, pair in sums.items()}

    def add(self, metrics: Metrics) -> None:
        """Counts one step, whose metrics are on the host."""
        tokens = float(metrics.weight_sum)
        values = {"loss": metrics.loss * tokens, "grad_norm": metrics.grad_norm * tokens}
        if not all(math.isfinite(value) for value in values.values()):
            return
        for name, value in values.items():
            self._add(name, value, tokens)
        sources = zip(
            self._names, metrics.source_loss_sums, metrics.source_weight_sums, strict=True
        )
        for name, value, weight in sources:
            self._add(name, value, weight)

    def means(self) -> dict[str, float]:
        """Returns each metric's mean; a source without tokens since the last save has none."""
        return {name: value / weight for name, (value, weight) in self.sums.items() if weight > 0}

    def _add(self, name: str, value: float, weight: float) -> None:
        pair = self.sums.setdefault(name, [0.0, 0.0])
        pair[0] += float(value)
        pair[1] += float(weight)


class MetricsLog:
    """Appends step records to `metrics.jsonl`, TensorBoard files and W&B, for one run directory.

    Nothing is appended to an object in a bucket. There the files grow in a temporary directory and
    are sent by `publish`; after a crash the lines since then are missing, those of steps that are
    in no checkpoint.
    """

    def __init__(
        self, workdir: Path, first_step: int, wandb_project: str = "", config: Mapping | None = None
    ):
        """Opens the log for steps from `first_step`; lines of later steps are dropped.

        `config` is shown in the W&B project, if one is named.

        A run that died after its last checkpoint has logged steps it will repeat; keeping both
        would show them twice.
        """
        self._workdir, self._folder = workdir, None
        if is_remote(workdir):
            self._folder = tempfile.TemporaryDirectory(prefix="ellama-metrics-")
        self._local = Path(self._folder.name) if self._folder else workdir
        path = self._local / METRICS_FILE
        if self._folder and (workdir / METRICS_FILE).exists():
            copy_file(workdir / METRICS_FILE, path)
        _drop_from(path, first_step)
        self._file = path.open("a")
        board = str(self._local / "tensorboard")
        self._board = _import_summary_writer()(board, purge_step=first_step)
        self._wandb = None
        if wandb_project:
            folder = self._local / "wandb_files"
            folder.mkdir(exist_ok=True)
            self._wandb = WandbRun(wandb_project, workdir, folder, config or {})

    def write(self, record: dict) -> None:
        """Writes one record; the line is on disk when this returns."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in (values := scalars(record)).items():
            self._board.add_scalar(name, value, record["step"])
        if self._wandb is not None:
            self._wandb.write({"step": record["step"], **values})

    def publish(self) -> None:
        """Sends the files to the bucket, if the run is in one."""
        if self._folder is not None:
            self._board.flush()
            copy_tree(self._local, self._workdir)

    def close(self) -> None:
        """Closes the files, and sends them for the last time."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.close()
        if self._folder is not None:
            copy_tree(self._local, self._workdir)
            self._folder.cleanup()


def read_metrics(workdir: Path) -> list[dict]:
    """Returns the records of a run, in order; a half-written last line is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _import_summary_writer():
    """Imports tensorboardX without torch, which it would import where it finds it.

    It wants torch for histograms of torch's tensors; a host that trains has none, nor the seconds
    and the memory to spare.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


def _drop_from(path: Path, first_step: int) -> None:
    kept = [record for record in read_metrics(path.parent) if record["step"] < first_step]
    if path.exists():
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, path)
