"""Weights & Biases: one run over restarts, and a clear word where the package is missing."""

import json
import struct
import time
from pathlib import Path

import pytest

from ellama_jax.train.metrics import MetricsLog

wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install wandb")


def read_log(path):
    """Yields the records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    data, at, parts = Path(path).read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # the end of a block is too small for another header
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield b"".join(parts)
            parts = []


def read_offline(folder):
    """The ids and history rows of an offline run, in wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline, records = time.monotonic() + 30, []
    while not any(record.HasField("exit") for record in records):  # its service writes the file
        assert time.monotonic() < deadline, "the run was not ended in 30 s"
        records = [Record.FromString(data) for data in read_log(path)]
        time.sleep(0.1)
    run_ids, rows = set(), []
    for record in records:
        if record.WhichOneof("record_type") == "run":
            run_ids.add(record.run.run_id)
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items()})
    return run_ids, rows


@pytest.mark.slow
def test_an_offline_run_holds_the_scalars_and_goes_on_under_its_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_ids = []
    for number, steps in enumerate(((1, 2, 3), (3, 4))):
        log = MetricsLog(tmp_path, steps[0], "ellama-test", {"train": {"steps": 4}})
        for step in steps:
            log.write({"step": step, "loss": 1.0 / step, "loss/a/de": 2.0, "fingerprint": "ab"})
        log.close()
        folder = tmp_path / "wandb_files"
        ids, rows = read_offline(folder)
        assert [row["step"] for row in rows] == list(steps)
        assert rows[0]["loss"] == 1.0 / steps[0] and "fingerprint" not in rows[0]
        run_ids.append(ids)
        folder.rename(tmp_path / f"files_{number}")
    assert run_ids[0] == run_ids[1] == {(tmp_path / "wandb_id.txt").read_text().strip()}
