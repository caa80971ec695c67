"""Faults on purpose: whatever happens to a run, the same command ends it as if nothing had.

Of the 50 kills that the whole of prepare, curate, merge and train has to survive, those of prepare
are in test_prepare_restart.py (24), of curate in test_curate.py (6), of merge in
test_merge_killed.py (12), and these (8) come on top of those of single saves (test_crash.py).
"""

import json
import random
import shutil
import signal
import time

import pytest
from test_loop import assert_same_state, steady
from test_multiprocess import finish, run, start
from verb_driver import Driver, kill_until_it_ends

from ellama_jax.core.exits import EXIT_AGAIN
from ellama_jax.train.goodput import read_goodput, summarize
from ellama_jax.train.metrics import read_metrics
from ellama_jax.weights.layout import latest_step

pytestmark = pytest.mark.slow
KILLS = 8
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
LONG = ("--config.train.steps=24", "--config.checkpoint.save_every_steps=3")


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def long_run(finished, tiny_arguments, tmp_path_factory):
    """A run of 24 steps in peace, how long it worked, and its arguments."""
    arguments = [*tiny_arguments, *LONG]
    if not finished:
        workdir = tmp_path_factory.mktemp("peace") / "run"
        driver = train(arguments, workdir)
        driver.begin()
        started = time.monotonic()
        driver.succeed()
        finished.update(workdir=workdir, secs=time.monotonic() - started)
    return finished["workdir"], finished["secs"], arguments


def train(arguments, workdir, shape="as-it-is"):
    argv = [*arguments, f"--workdir={workdir}"]
    return Driver("ellama_jax.train.loop", "main_train", argv, shape, env=ONE_DEVICE)


def assert_same_run(workdir, other):
    assert steady(read_metrics(workdir)) == steady(read_metrics(other))
    assert_same_state(workdir / "checkpoints", other / "checkpoints")


def test_a_run_killed_at_random_moments_ends_bit_for_bit(long_run, tmp_path):
    whole, secs, arguments = long_run
    workdir, steps = tmp_path / "run", []

    def check(ended):
        # The newest step that counts never goes back, and is one that was due.
        steps.append(latest_step(workdir / "checkpoints") or 0)
        assert steps == sorted(steps) and steps[-1] % 3 == 0
        if ended:
            assert_same_run(workdir, whole)
            shutil.rmtree(workdir)
            steps.clear()

    killed = kill_until_it_ends(
        lambda: train(arguments, workdir), KILLS, secs, random.Random(0), check
    )
    assert killed == KILLS


def test_where_one_of_two_processes_dies_the_other_says_so_and_one_goes_on(
    long_run, tiny_arguments, tmp_path
):
    """The survivor ends within a minute, whichever dies; one process then ends the run."""
    for dies in (1, 0):
        workdir = tmp_path / f"run-{dies}"
        endless = ["--config.train.steps=100000", "--config.checkpoint.save_every_steps=3"]
        started = start([*tiny_arguments, *endless, "--config.checkpoint.keep_every_steps=3"],
                        workdir, processes=2)  # fmt: skip
        wait_for(lambda: (latest_step(workdir / "checkpoints") or 0) >= 3)  # noqa: B023
        started[dies].send_signal(signal.SIGKILL)
        died = time.monotonic()
        ends = finish(started)
        assert time.monotonic() - died < 60
        status, _, said = ends[1 - dies]
        assert status == EXIT_AGAIN, said
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"process {1 - dies}: ") and last.endswith(
            "another process of the job died or cannot be reached; this one ends with status 75. Start "
            "the same command again, on as many processes as there are: a run resumes from its newest "
            "checkpoint."
        )
        assert "Traceback" not in said


def test_a_run_that_lost_a_process_is_ended_by_one_bit_for_bit(tiny_arguments, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    arguments = [*tiny_arguments, "--config.train.steps=60"]
    run(arguments, whole, devices=2)
    started = start(arguments, workdir, processes=2)
    wait_for(lambda: (latest_step(workdir / "checkpoints") or 0) >= 2)
    started[1].send_signal(signal.SIGKILL)
    finish(started)
    left = latest_step(workdir / "checkpoints")
    assert left < 60, "it was over before the fault"
    [(_, printed, _)] = run(arguments, workdir, devices=2)
    assert f"resuming after step {left}" in printed or left == 60
    assert_same_run(workdir, whole)


def wait_for(holds):
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_clock_that_jumps_by_hours_changes_nothing_but_dates(long_run, tmp_path):
    whole, _, arguments = long_run
    workdir = tmp_path / "run"
    driver = train(
        [*arguments, "--config.train.hang_secs=60"], workdir, "clock:7200,-14400,86400,-3600"
    )
    driver.begin()
    _, errors = driver.succeed()
    assert "nothing finished for" not in errors
    assert_same_run(workdir, whole)
    records = [record for record in read_metrics(workdir) if record["step"]]
    assert all(0 < record["step_secs"] < 60 for record in records)
    times = [record["time"] for record in records]
    assert times == sorted(times) and times[-1] - times[0] < 60
    assert all(secs >= 0 for secs in summarize(read_goodput(workdir)).values())


def test_a_run_resumed_by_a_clock_that_is_hours_behind_has_no_negative_times(long_run, tmp_path):
    whole, _, arguments = long_run
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for step in (21, 24):
        shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
    starts = json.loads((workdir / "goodput.json").read_text())["starts"]
    for start_ in starts:
        start_["began"] += 10_000
        start_["ended"] += 10_000
    (workdir / "goodput.json").write_text(json.dumps({"starts": starts}))
    driver = train(arguments, workdir)
    driver.begin()
    driver.succeed()
    secs = summarize(read_goodput(workdir))
    assert all(value >= 0 for value in secs.values()) and sum(secs.values()) < 600
    assert_same_run(workdir, whole)


def test_a_slow_disk_makes_a_run_slow_and_nothing_else(long_run, tmp_path):
    whole, _, arguments = long_run
    workdir = tmp_path / "run"
    driver = train(arguments, workdir, "slow-disk")
    driver.begin()
    driver.succeed()
    assert_same_run(workdir, whole)


def test_a_newest_checkpoint_that_is_damaged_is_named_and_the_run_goes_on_from_the_one_before(
    long_run, tmp_path
):
    whole, _, arguments = long_run
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    root = workdir / "checkpoints"
    shutil.rmtree(root / "24")
    newest = latest_step(root)
    largest = max((root / str(newest) / "params").rglob("*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        file.write(b"another")
    driver = train(arguments, workdir)
    driver.begin()
    _, said = driver.succeed()
    assert f"{root}/{newest}: damaged, set aside as {newest}.damaged" in said
    assert_same_run(workdir, whole)
