"""What lies beside checkpoints ends no run: it waits, in order and whole, for a place to be written."""

import os
import subprocess
from types import SimpleNamespace

import jax
import pytest

from ellama_jax.core.paths import as_path
from ellama_jax.train import metrics as metrics_module
from ellama_jax.train.kept import Kept, RunFiles
from ellama_jax.train.metrics import MetricsLog, read_metrics
from ellama_jax.train.profiling import Profiler


def test_records_wait_in_order_and_a_failure_is_said_once(capsys):
    clock, fails, written = SimpleNamespace(now=0.0), [True], []

    def write(record):
        if fails:
            raise OSError(28, "No space left on device")
        written.append(record)

    log = Kept("log", write, clock=lambda: clock.now)
    for number in range(5):
        log.add(number)
        clock.now += 10
    assert written == []
    fails.clear()
    log.add(5)  # it is not tried at every record: the wait has grown
    clock.now += 60
    log.add(6)
    assert written == list(range(7))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "No space left on device" in said[0] and "log: " in said[1]


def test_of_a_file_that_is_written_whole_the_newest_waits(tmp_path):
    blocked = tmp_path / "evaluations"
    blocked.write_text("a file where a directory must be")
    files = RunFiles(tmp_path)
    for text in ("1", "2"):
        files.write("evaluations/5.json", text)
    blocked.unlink()
    files.close()
    assert (blocked / "5.json").read_text() == "2"


def test_a_full_disk_tears_no_record_and_loses_none(small_disk, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    disk = small_disk(64)
    assert os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize == 64 * 1024
    log = MetricsLog(disk, 1)
    records = [{"step": step, "loss": 1.0 / step, "text": "x" * 999} for step in range(1, 101)]
    for record in records[:80]:
        log.write(record)
    assert 0 < len(read_metrics(disk)) < 80  # and no last line that is half a record:
    assert (disk / "metrics.jsonl").read_bytes().endswith(b"}\n")
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    for record in records[80:]:
        log.write(record)
    log.close()
    assert read_metrics(disk) == records
    events = EventAccumulator(str(disk / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 101))


def test_a_bucket_that_does_not_answer_gets_the_records_later(bucket, monkeypatch):
    copy, calls = metrics_module.copy_tree, []

    def broken(*args):
        calls.append(args)
        raise ConnectionError("broken pipe")

    workdir = as_path(f"{bucket}/kept")
    log = MetricsLog(workdir, 1)
    monkeypatch.setattr(metrics_module, "copy_tree", broken)
    log.write({"step": 1, "loss": 1.0})
    log.publish()
    assert calls and read_metrics(workdir) == []
    monkeypatch.setattr(metrics_module, "copy_tree", copy)
    log.write({"step": 2, "loss": 0.5})
    log.close()
    assert [record["step"] for record in read_metrics(workdir)] == [1, 2]


def test_a_run_that_goes_on_waits_for_no_tracking_service(tmp_path, monkeypatch):
    sent, answers = [], []

    def begin(*_):
        if not answers:
            raise ValueError("train.wandb_project: must be a project that can be written")
        return SimpleNamespace(write=sent.append, close=lambda: None)

    monkeypatch.setattr(metrics_module, "WandbRun", begin)
    with pytest.raises(ValueError, match="^train.wandb_project"):
        MetricsLog(tmp_path, 1, "project")  # a mistake, before anything was trained
    log = MetricsLog(tmp_path, 7, "project")
    for step in (7, 8):
        log.write({"step": step, "loss": 1.0})
    assert sent == []
    answers.append(True)
    log.close()
    assert [values["step"] for values in sent] == [7, 8]


def test_a_profile_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, "start_trace", lambda *_: None)
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
        monkeypatch.setattr(jax.profiler, name, full)
        with Profiler(tmp_path, 1, 1) as profiler:
            profiler.before(1)
            assert profiler.running == (name == "stop_trace")
            if profiler.due(1):
                profiler.finish(1)
            assert not profiler.running
    assert capsys.readouterr().err.count("No space left on device") == 2
