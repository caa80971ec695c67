"""The page of a run: what it says at every stage of one, and that it reads only what is new."""

import io
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from ellama_jax import cli
from ellama_jax.config import config_to_mapping, configs_dir, load_config
from ellama_jax.report import watch_log
from ellama_jax.report.watch_log import Curve, Watched
from ellama_jax.report.watch_screen import page
from ellama_jax.train import metrics as metrics_module
from ellama_jax.train.goodput import goodput_scalars
from ellama_jax.train.metrics import MetricsLog, scalars

NOW = 1_800_000_000.0


def record(step, loss=2.0, at=None, **more):
    """A record as StepReport writes it, ten seconds a step up to NOW at step 40."""
    tokens = {"ecommerce-de": 300 * step, "general-en": 700 * step}
    return {
        "step": step, "loss": loss, "loss/ecommerce/de": loss + 1, "loss/general/en": loss / 2,
        "learning_rate": 3e-5, "grad_norm": 0.5, "loss_tokens": 1000, "step_secs": 9.0,
        "tokens_per_sec": 12345.0, "tokens_per_sec_per_chip": 1543.0, "skipped_updates": 0,
        "spikes": 0, "tokens_consumed": tokens, "epochs": {"ecommerce-de": 0.1},
        "batch_fingerprint": "ab", "time": NOW + 10.0 * (step - 40) if at is None else at, **more,
    }  # fmt: skip


def add(workdir, *records):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)


def save_step(workdir, step, at=NOW - 90):
    """Lays out a step as Orbax leaves a complete one, without its arrays."""
    folder = workdir / "checkpoints" / str(step)
    for name in ("params/_METADATA", "meta/metadata"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    committed = json.dumps({"commit_timestamp_nsecs": int(at * 1e9)})
    (folder / "_CHECKPOINT_METADATA").write_text(committed)


def goodput(workdir, ended=NOW):
    secs = {"step": 300.0, "data_wait": 40.0, "init": 60.0}
    start = {"began": NOW - 400, "ended": ended, "first_step": 0, "last_step": 40, "secs": secs}
    (workdir / "goodput.json").write_text(json.dumps({"starts": [start]}))


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run of 100 steps that has not made one yet; the clock stands at NOW."""
    monkeypatch.setattr(watch_log.time, "time", lambda: NOW)
    argv = ["--config", f"{configs_dir()}/demo.py:tiny", "--config.train.steps=100",
            "--config.data.windows_dir=w", "--config.data.replay_frac=0.6"]  # fmt: skip
    config, _ = load_config(argv, "train")
    run = tmp_path / "run-7"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config_to_mapping(config)))
    return run


def set_config(workdir, section, **values):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config[section] |= values
    path.write_text(json.dumps(config))


def show(run, width=100):
    """Returns the page's lines as they stand on a terminal of `width` columns, without colour."""
    run = Watched(run) if not isinstance(run, Watched) else run
    console = Console(record=True, width=width, file=io.StringIO(), color_system=None)
    console.print(page(run, console))
    return [line.rstrip() for line in console.export_text().splitlines()]


def row(lines, name):
    (found,) = [line.split() for line in lines if line.split()[:1] == [name]]
    return found[1:]


# --- what stands on the page ---------------------------------------------------------------------


def test_a_run_before_its_first_step_says_so(workdir):
    assert show(workdir)[0] == "run-7, tiny"
    assert show(workdir)[1].startswith("step 0 of 100 ")
    assert show(workdir)[2:] == [
        "no step yet: it starts, compiles, or waits for its data", "ETA unknown",
        "last checkpoint: none yet",
    ]  # fmt: skip


def test_a_run_under_way_says_how_it_goes(workdir):
    add(workdir, *[record(step, loss=4.0 - step / 20) for step in range(1, 41)])
    goodput(workdir)
    save_step(workdir, 30)
    lines = show(workdir)
    assert lines[1].startswith("step 40 of 100 ") and lines[1].endswith(" 40%")
    assert lines[2] == "last heard of 0 s ago"
    assert lines[3] == "ETA 10 min, at 2027-01-15 08:10 UTC (10 s a step)"  # 60 steps of 10 s
    assert lines[4] == "last checkpoint: step 30, 1 min 30 s ago"
    assert row(lines, "loss")[:2] == ["2.0000", "2.4750"]  # the mean of steps 21 to 40
    assert row(lines, "loss/ecommerce/de")[:2] == ["3.0000", "3.4750"]
    trend = row(lines, "loss")[2]
    assert trend[0] == "█" and trend[-1] == "▁" and list(trend) == sorted(trend, reverse=True)
    assert row(lines, "tokens_per_sec")[0] == "12,345"
    assert row(lines, "tokens_per_sec_per_chip")[0] == "1,543"
    assert row(lines, "goodput")[0] == "75.0%" and row(lines, "goodput/data_wait")[0] == "10.0%"
    assert row(lines, "skipped_updates") == ["0"] and row(lines, "spikes") == ["0"]


def test_mfu_is_shown_or_why_it_is_not(workdir):
    add(workdir, record(1))
    assert row(show(workdir), "mfu") == ["-", "no", "known", "peak"]
    add(workdir, record(2, mfu=0.412))
    assert row(show(workdir), "mfu")[0] == "41.2%"


def test_tokens_stand_beside_the_share_that_was_asked_for(workdir):
    """Of 60 % general text 40 % is English, of 40 % e-commerce a fifth German."""
    add(workdir, record(40))
    lines = show(workdir)
    assert row(lines, "tokens_consumed/general-en") == ["28,000", "70.0%", "24.0%"]
    assert row(lines, "tokens_consumed/ecommerce-de") == ["12,000", "30.0%", "8.0%"]


def test_the_share_asked_for_is_that_of_the_stage_reached(workdir):
    stage = {"start_step": 20, "replay_frac": 0.1, "ecommerce_shares": None, "general_shares": None}
    set_config(workdir, "data", stages={"late": stage})
    add(workdir, record(19))
    assert row(show(workdir), "tokens_consumed/ecommerce-de")[-1] == "8.0%"
    add(workdir, record(20))
    assert row(show(workdir), "tokens_consumed/ecommerce-de")[-1] == "18.0%"


def test_sources_of_one_language_share_what_was_asked_for(workdir):
    tokens = {"ecommerce-de": 10, "ecommerce-de-shops": 30, "seqio-task": 60}
    add(workdir, record(1, tokens_consumed=tokens))
    lines = show(workdir)
    assert row(lines, "tokens_consumed/ecommerce-de-shops") == ["30", "30.0%", "8.0%", "together"]
    assert row(lines, "tokens_consumed/seqio-task") == ["60", "60.0%", "-"]


def test_held_out_losses_scores_and_the_gate_say_of_which_step_they_are(workdir):
    evaluated = {"eval_loss": 3.5, "eval_loss/general/de": 3.25, "eval_score/general": 0.5,
                 "eval_score/mmlu/de": 0.4, "eval_gate": 0.0}  # fmt: skip
    add(workdir, record(39), record(40, **evaluated), record(41))
    lines = show(workdir)
    assert row(lines, "eval_loss")[:3] == ["3.5000", "step", "40"]
    assert row(lines, "eval_score/general")[:1] == ["0.5000"]
    assert not [line for line in lines if "eval_score/mmlu" in line]
    assert "retention gate: failed at step 40" in lines


def test_a_run_that_is_silent_is_called_so(workdir, monkeypatch):
    add(workdir, *[record(step) for step in range(1, 41)])
    monkeypatch.setattr(watch_log.time, "time", lambda: NOW + 59)
    assert "last heard of 59 s ago" in show(workdir)
    monkeypatch.setattr(watch_log.time, "time", lambda: NOW + 300)
    lines = show(workdir)
    assert "silent for 5 min: is it still running?" in lines and "ETA unknown" in lines


def test_a_run_with_long_steps_is_not_called_silent_in_one(workdir, monkeypatch):
    add(workdir, *[record(step, at=NOW + 100 * (step - 40)) for step in range(1, 41)])
    monkeypatch.setattr(watch_log.time, "time", lambda: NOW + 400)
    assert "last heard of 6 min 40 s ago" in show(workdir)


def test_the_time_between_two_starts_is_not_in_the_eta(workdir):
    """Steps 1 to 30 were made a day before the start that made the others."""
    add(workdir, *[record(step, at=NOW - 90_000 + step) for step in range(1, 31)])
    add(workdir, *[record(step) for step in range(31, 41)])
    goodput(workdir)
    assert "ETA 10 min, at 2027-01-15 08:10 UTC (10 s a step)" in show(workdir)


def test_a_finished_run_says_so_once_its_last_step_is_saved(workdir):
    add(workdir, *[record(step, at=NOW) for step in range(1, 101)])
    assert "all steps are done; the last checkpoint is not there yet" in show(workdir)
    save_step(workdir, 100)
    lines = show(workdir)
    assert "finished: all 100 steps are done and saved." in lines
    assert not [line for line in lines if line.startswith("ETA")]


@pytest.mark.parametrize(("action", "ended"), [("stop", True), ("warn", False)])
def test_what_the_gate_stopped_has_ended_and_what_it_warned_of_has_not(workdir, action, ended):
    config = json.loads((workdir / "config.json").read_text())
    set_config(workdir, "evaluate", gate={**config["evaluate"]["gate"], "action": action})
    add(workdir, record(40, eval_gate=0.0))
    save_step(workdir, 40)
    said = "stopped by the retention gate after step 40; it is saved."
    assert (said in show(workdir)) == ended


@pytest.mark.parametrize("width", [40, 60, 80, 130])
def test_nothing_is_cut_off_on_a_narrow_terminal(workdir, width):
    add(workdir, record(40, eval_loss=2.0, **{"eval_score/bpb_ecommerce": 1.5}))
    goodput(workdir)
    lines = show(workdir, width)
    assert max(map(len, lines)) <= width and not [line for line in lines if "…" in line]
    words = ("eval_score/bpb_ecommerce", "28,000", "12,345", "tokens_consumed/general-en")
    assert width < 60 or all(word in "\n".join(lines) for word in words)


def test_a_page_without_unicode_is_ascii(workdir):
    add(workdir, *[record(step) for step in range(1, 41)])
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "60"}
    command = [sys.executable, "-m", "ellama_jax.cli", "watch", str(workdir)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"step 40 of 100" in done.stdout and done.stdout.isascii() and b"\x1b" not in done.stdout


# --- names ---------------------------------------------------------------------------------------


def test_the_page_the_metrics_file_tensorboard_and_wandb_have_the_same_names(workdir, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sent = []
    run = SimpleNamespace(write=sent.append, close=lambda: None)
    monkeypatch.setattr(metrics_module, "WandbRun", lambda *_: run)
    parts = goodput_scalars({"step": 300.0, "data_wait": 40.0})
    log = MetricsLog(workdir, 1, "project")
    log.write(record(40, mfu=0.4, eval_loss=3.0, **{"eval_loss/general/en": 3.0}, **parts))
    log.close()
    goodput(workdir)
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    (line,) = (workdir / "metrics.jsonl").read_text().splitlines()
    assert tags == set(scalars(json.loads(line)))
    (record_sent,) = sent
    assert tags == set(record_sent) - {"step"}
    shown = {line.split()[0] for line in show(workdir) if re.match(r"\w+(/\S+)?  +[\d-]", line)}
    assert shown >= {"loss", "eval_loss/general/en", "mfu", "goodput/data_wait",
                     "tokens_consumed/general-en", "spikes"}  # fmt: skip
    assert shown - tags == set()


# --- how the log is read -------------------------------------------------------------------------


def test_only_what_is_new_is_read(workdir, monkeypatch):
    add(workdir, *[record(step) for step in range(1, 501)])
    run, sizes = Watched(workdir), []
    add(workdir, record(501))
    read = watch_log._read

    def count(path, start, stop):
        sizes.append(len(found := read(path, start, stop)))
        return found

    monkeypatch.setattr(watch_log, "_read", count)
    run.update()
    line = len(json.dumps(record(501))) + 1
    assert run.step == 501 and sum(sizes) < 3 * line < (workdir / "metrics.jsonl").stat().st_size


def test_half_a_line_waits_for_its_end(workdir):
    whole = json.dumps(record(2)) + "\n"
    add(workdir, record(1))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(whole[:50])
    run = Watched(workdir)
    assert (run.step, run.broken) == (1, 0)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(whole[50:])
    run.update()
    assert (run.step, run.broken) == (2, 0)


def test_lines_over_several_blocks_are_read_whole(workdir, monkeypatch):
    monkeypatch.setattr(watch_log, "_BLOCK_BYTES", 100)
    add(workdir, record(1), record(2))
    run = Watched(workdir)
    add(workdir, record(3))
    run.update()
    assert (run.step, run.broken) == (3, 0) and run.curves["loss"].points(9) == [2.0] * 3


def test_a_resumed_run_is_read_anew_with_its_steps_once(workdir):
    for first, steps in ((1, 41), (31, 36)):  # crashed at step 40, resumed from 30
        log = MetricsLog(workdir, first)
        for step in range(first, steps):
            log.write(record(step, loss=float(step)))
        log.close()
        if first == 1:
            run = Watched(workdir)
    run.update()
    assert run.step == 35 and run.curves["loss"].points(100) == list(map(float, range(1, 36)))


def test_a_cut_log_is_read_anew(workdir):
    add(workdir, *[record(step) for step in range(1, 41)])
    run, path = Watched(workdir), workdir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
    run.update()
    assert run.step == 10 and len(run.curves["loss"].points(100)) == 10
    path.write_text("")
    run.update()
    assert run.step is None


def test_what_is_no_record_is_left_out_and_counted(workdir):
    add(workdir, record(1))
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(b"{\n\xff\xfe\n[]\n")
    add(workdir, record(2))
    lines = show(workdir)
    assert "left out of the log: 3 lines that hold no record" in lines
    assert lines[1].startswith("step 2 of 100 ")


def test_a_loss_that_is_not_finite_is_shown_and_left_out_of_the_mean(workdir):
    add(workdir, record(1), record(2, loss=math.nan, skipped_updates=1))
    assert row(show(workdir), "loss")[:2] == ["-", "2.0000"]
    assert row(show(workdir), "skipped_updates") == ["1"]


def test_a_long_curve_takes_little_memory_and_keeps_its_shape():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, float(step))
    assert len(curve._points) < 512
    assert curve.points(4) == pytest.approx([12_500, 37_500, 62_500, 87_500], rel=0.02)


@pytest.mark.parametrize("config", ["{", '{"train": {"steps": '])
def test_a_broken_config_is_named(workdir, config, capsys):
    (workdir / "config.json").write_text(config)
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", str(workdir)])
    assert stop.value.code == 2 and "config.json: must be JSON, got" in capsys.readouterr().err


def test_a_run_of_another_version_is_shown_without_what_is_not_understood(workdir):
    (workdir / "config.json").write_text('{"train": {"steps": 50}, "data": {"new": 1}}')
    add(workdir, record(40))
    lines = show(workdir)
    assert lines[1].startswith("step 40 of 50 ")
    assert row(lines, "tokens_consumed/general-en")[-1] == "-"
    (workdir / "config.json").unlink()
    assert show(workdir)[1] == "step 40; config.json does not say of how many"


def test_a_run_in_a_bucket_is_watched(workdir, bucket):
    from ellama_jax.core.paths import as_path, copy_tree

    add(workdir, record(39))
    there = as_path(f"{bucket}/runs/watched")
    copy_tree(workdir, there)
    run = Watched(there)
    assert run.step == 39
    add(workdir, record(40))
    copy_tree(workdir, there)
    run.update()
    assert run.step == 40 and "step 40 of 100" in "\n".join(show(run))


# --- the verb on a terminal ----------------------------------------------------------------------


def start_on_terminal(*argv):
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "LINES": "60", "TERM": "xterm"}
    command = [sys.executable, "-m", "ellama_jax.cli", "watch", *map(str, argv)]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower,
                               env=environment, start_new_session=True)  # fmt: skip
    os.close(follower)
    return process, leader


def read_until(leader, word, secs=60):
    found, deadline = "", time.monotonic() + secs
    while word not in found:
        assert time.monotonic() < deadline, found[-2000:]
        try:
            found += os.read(leader, 65536).decode()
        except OSError:  # the other side has closed it
            assert word in found, found[-2000:]
    return found


@pytest.mark.slow
def test_a_terminal_is_redrawn_until_the_run_is_finished(workdir):
    add(workdir, *[record(step) for step in range(1, 41)])
    process, leader = start_on_terminal(workdir, "--every", "0.2")
    read_until(leader, "step 40 of 100")
    add(workdir, *[record(step) for step in range(41, 100)])
    read_until(leader, "step 99 of 100")
    add(workdir, record(100))
    save_step(workdir, 100)
    read_until(leader, "finished: all 100 steps")
    assert process.wait(30) == 0


@pytest.mark.slow
def test_ctrl_c_ends_it_without_an_error(workdir):
    add(workdir, record(40))
    process, leader = start_on_terminal(workdir, "--every", "30")
    read_until(leader, "step 40 of 100")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


@pytest.mark.slow
def test_once_prints_one_page_on_a_terminal_too(workdir):
    add(workdir, record(40))
    process, leader = start_on_terminal(workdir, "--once")
    read_until(leader, "step 40 of 100")
    assert process.wait(30) == 0
