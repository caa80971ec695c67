"""The account of a run's time adds up, over crashes and restarts."""

import json

import pytest

from ellama_jax.train.goodput import Goodput, describe_goodput, read_goodput, summarize
from ellama_jax.train.kept import RunFiles


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def spend(goodput, clock, category, secs):
    with goodput.span(category):
        clock.now += secs


def first_start(workdir, clock):
    """100 s: 10 of start, 20 of compiling, 60 of six steps, 4 of checkpoint, 6 waiting for data."""
    goodput = Goodput(clock.now, clock=clock)
    clock.now += 10
    spend(goodput, clock, "compile", 20)
    goodput.enter("step")
    for step in range(1, 7):
        clock.now += 10
        spend(goodput, clock, "data_wait", 1)
        goodput.finished(step)
    spend(goodput, clock, "checkpoint", 4)
    goodput.write(RunFiles(workdir), force=True)
    return goodput


def test_categories_sum_to_the_wall_time(tmp_path):
    clock = Clock()
    goodput = first_start(tmp_path, clock)
    assert goodput.summary() == {
        "step": 60.0, "init": 10.0, "compile": 20.0, "data_wait": 6.0, "checkpoint": 4.0,
    }  # fmt: skip
    assert goodput.spent("step", "data_wait") == 66.0
    line = describe_goodput(goodput.starts())
    assert line == (
        "goodput: 60.0% of 1 min 40 s in steps; compiling 20.0%, starting 10.0%, waiting for data "
        "6.0%, checkpoints 4.0%."
    )


def test_a_span_within_a_span_is_not_counted_twice():
    clock = Clock()
    goodput = Goodput(clock.now, clock=clock)
    with goodput.span("checkpoint"):
        clock.now += 1
        spend(goodput, clock, "data_wait", 2)
        clock.now += 4
    assert goodput.summary() == {"checkpoint": 5.0, "data_wait": 2.0}


def test_steps_done_again_and_the_time_between_starts_are_lost(tmp_path):
    """Killed 5 s after the account was written, in which step 7 was done; resumed after step 4."""
    clock = Clock()
    first_start(tmp_path, clock)
    clock.now = 1105.0 + 30.0
    goodput = Goodput(clock.now, read_goodput(tmp_path), clock)
    lost = [{"step": s, "step_secs": 10.0, "time": 1060.0} for s in (5, 6)]
    lost.append({"step": 7, "step_secs": 5.0, "time": 1105.0})
    goodput.resume_after(4, lost)
    clock.now += 3
    spend(goodput, clock, "restore", 2)
    goodput.enter("step")
    clock.now += 40
    secs = goodput.summary()
    assert sum(secs.values()) == pytest.approx(clock.now - 1000.0)
    assert secs["lost_work"] == 25.0 and secs["gap"] == 30.0
    assert secs["step"] == 60.0 + 5.0 - 25.0 + 40.0
    assert "2 starts, 3 steps done twice." in describe_goodput(goodput.starts())
    goodput.write(RunFiles(tmp_path), force=True)
    assert summarize(read_goodput(tmp_path)) == secs


def test_lost_work_never_exceeds_what_was_worked(tmp_path):
    clock = Clock()
    first_start(tmp_path, clock)
    goodput = Goodput(clock.now, read_goodput(tmp_path), clock)
    goodput.resume_after(0, [{"step": 1, "step_secs": 1e6, "time": 0.0}])
    secs = goodput.summary()
    assert secs["step"] == 0.0 if "step" in secs else True
    assert secs["lost_work"] == 60.0 and sum(secs.values()) == 100.0


def test_the_file_is_not_written_at_every_step(tmp_path):
    clock = Clock()
    goodput = Goodput(clock.now, clock=clock)
    goodput.write(RunFiles(tmp_path))
    assert read_goodput(tmp_path) == []
    clock.now += 10.0
    goodput.write(RunFiles(tmp_path))
    assert json.loads((tmp_path / "goodput.json").read_text())["starts"][0]["ended"] == 1010.0
