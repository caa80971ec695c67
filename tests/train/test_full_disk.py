"""A disk that becomes full while a checkpoint is written: one line, and the run can go on."""

import subprocess
import sys

import pytest
from test_loop import assert_same_state, command, one_device, steady

from ellama_jax.train.metrics import read_metrics
from ellama_jax.weights.layout import latest_step

pytestmark = pytest.mark.slow
# Others take the room that there was when it was asked for.
FILLED_MEANWHILE = """
import sys
from ellama_jax import cli
from ellama_jax.train import saving
from ellama_jax.weights import checkpoint
saving.check_disk_space = checkpoint.check_disk_space = lambda *_: None
cli.main(["train", *sys.argv[1:]])
"""


def test_a_disk_that_fills_during_a_save_is_one_line_and_the_run_goes_on(
    small_disk, tiny_arguments, tmp_path
):
    # Room for one checkpoint and not for two.
    disk = small_disk(2400)
    workdir, whole = disk / "run", tmp_path / "whole"
    argv = [sys.executable, "-c", FILLED_MEANWHILE, *tiny_arguments, f"--workdir={workdir}"]
    failed = subprocess.run(argv, env=one_device(), capture_output=True, text=True)
    # Small files wait for room, and say so in a line of their own; they end nothing.
    others = ("training: ", f"{workdir}/goodput.json: ", f"{workdir}/metrics.jsonl: ")
    lines = [x for x in failed.stderr.splitlines() if not x.startswith(others)]
    assert failed.returncode == 2
    assert lines == [
        f"ellama train: error: train {workdir}: the disk must have room for what a run writes, got "
        "full while writing; make room, and the same command goes on from the newest checkpoint."
    ]
    assert latest_step(workdir / "checkpoints") == 2
    subprocess.run(["mount", "-o", "remount,size=99m", str(disk)], check=True)
    for place in (workdir, whole):
        subprocess.run(command(tiny_arguments, place), env=one_device(), check=True)
    assert_same_state(workdir / "checkpoints", whole / "checkpoints")
    assert steady(read_metrics(workdir)) == steady(read_metrics(whole))
    assert not list((workdir / "checkpoints").glob("*tmp"))
