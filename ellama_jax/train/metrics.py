"""What a run writes down: one JSON line a step, and the same for TensorBoard.

Owns names and files of metrics; their values come from step.py.
"""

import functools
import json
import math
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import copy_file, copy_tree, is_remote, remove_tree
from ellama_jax.train.kept import Kept, append_whole, may_fail
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

    What cannot be written now is written later, see kept.py. Nothing is appended to an object in a
    bucket. There the files grow in a temporary directory and are sent by `publish`; after a crash
    the lines since then are missing, those of steps that are in no checkpoint.
    """

    def __init__(
        self, workdir: Path, first_step: int, wandb_project: str = "", config: Mapping | None = None
    ):
        """Opens the log for steps from `first_step`; lines of later steps are dropped.

        `config` is shown in the W&B project, if one is named. A run that goes on waits for no W&B.

        A run that died after its last checkpoint has logged steps it will repeat; keeping both
        would show them twice.
        """
        remote = is_remote(workdir)
        local = Path(tempfile.mkdtemp(prefix="ellama-metrics-")) if remote else workdir
        path = local / METRICS_FILE
        if remote and (workdir / METRICS_FILE).exists():
            copy_file(workdir / METRICS_FILE, path)
        _drop_from(path, first_step)
        self._folder = local if remote else None
        self._lines = Kept(str(workdir / METRICS_FILE), functools.partial(append_whole, path))
        self._board = _open_board(workdir, local, first_step)
        self._sent = Kept(str(workdir), lambda _: copy_tree(local, workdir), newest=True)
        self._wandb, self._to_wandb = None, None
        if wandb_project:

            def begin() -> None:
                folder = local / "wandb_files"
                folder.mkdir(exist_ok=True)
                self._wandb = WandbRun(wandb_project, workdir, folder, config or {})

            def send(values: Mapping) -> None:
                if self._wandb is None:
                    begin()
                self._wandb.write(values)

            if first_step <= 1:  # a project that cannot be written is a mistake
                begin()
            # To find out that its service does not answer takes wandb a minute and more.
            self._to_wandb = Kept("Weights & Biases", send, wait_secs=(300.0, 3600.0))

    def write(self, record: dict) -> None:
        """Writes one record; if it can be written, the line is on disk when this returns."""
        values = scalars(record)
        self._lines.add((json.dumps(record) + "\n").encode())
        self._board.add(_board_event(record["step"], values))
        if self._to_wandb is not None:
            self._to_wandb.add({"step": record["step"], **values})
        self._sent.retry()

    def publish(self) -> None:
        """Sends the files to the bucket, if the run is in one."""
        if self._folder is not None:
            self._sent.add()

    def close(self) -> None:
        """Writes what is late, and sends the files for the last time."""
        self._lines.close()
        self._board.close()
        if self._to_wandb is not None:
            self._to_wandb.close()
        if self._wandb is not None:
            with may_fail("Weights & Biases"):
                self._wandb.close()
        if self._folder is not None:
            self._sent.add()
            if self._sent.close():
                remove_tree(self._folder)
            else:
                print(f"{self._folder}: holds what could not be sent.", file=sys.stderr)


def read_metrics(workdir: Path) -> list[dict]:
    """Returns the records of a run, in order; a half-written last line is left out.

    Raises:
        ValueError: if a line is no record.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    records = [parse_json(line) for line in path.read_text().split("\n")[:-1]]
    if not all(isinstance(record, dict) and "step" in record for record in records):
        raise ValueError(f"{path}: every line must be the record of a step.")
    return records


def _open_board(workdir: Path, local: Path, first_step: int) -> Kept:
    """Returns what appends framed events to one more file of TensorBoard."""
    events, _ = _import_tensorboard()
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    path = local / "tensorboard" / name
    board = Kept(str(workdir / "tensorboard"), functools.partial(append_whole, path))
    board.add(_framed(events.Event(wall_time=time.time(), file_version="brain.Event:2")))
    # Steps from here on are drawn anew.
    begin = events.SessionLog(status=events.SessionLog.START)
    board.add(_framed(events.Event(wall_time=time.time(), step=first_step, session_log=begin)))
    return board


def _board_event(step: int, values: Mapping[str, float]) -> bytes:
    events, _ = _import_tensorboard()
    event = events.Event(wall_time=time.time(), step=step)
    for name, value in values.items():
        event.summary.value.add(tag=name, simple_value=value)
    return _framed(event)


def _framed(event) -> bytes:
    """Returns a record of TFRecord: length and content, each with its masked checksum."""
    _, checksum = _import_tensorboard()
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", checksum(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


@functools.cache
def _import_tensorboard():
    """Imports tensorboardX without torch, which it would import where it finds it.

    It wants torch for histograms of torch's tensors; a host that trains has none, nor the seconds
    and the memory to spare. Its writer is not used: after a failure its thread is gone, and the run
    would wait for that thread for ever.

    Returns:
        the module of events, and the checksum of their records.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_pb2, masked_crc32c


def _drop_from(path: Path, first_step: int) -> None:
    kept = [record for record in read_metrics(path.parent) if record["step"] < first_step]
    if path.exists():
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, path)
