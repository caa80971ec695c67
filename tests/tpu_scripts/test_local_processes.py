"""The job as a host starts it, as processes of this machine: they are one job and train."""

import os
import socket
import subprocess
import sys
import time

import pytest
from launch_cases import SCRIPTS

from ellama_jax.train.metrics import read_metrics

LIMIT_SECS = 240


def make_host(directory, arguments):
    """Lays out a host as `queued.sh setup` does; its packages are those of this Python."""
    directory.mkdir(parents=True)
    (directory / "on_host.sh").write_text((SCRIPTS / "on_host.sh").read_text())
    (directory / "job.env").write_text("LIBTPU_INIT_ARGS=\n")
    (directory / "job.args").write_text("".join(f"{word}\n" for word in arguments))
    for name in ("job.install", "job.packages", "requirements.lock"):
        (directory / name).touch()
    on_host(directory, "install")
    return directory


def on_host(host, verb, **environment):
    """Runs a verb there, with an `ellama` and `python` that are those of this test.

    Returns:
        what the verb said, without the host's name.
    """
    tools = host / "venv/bin"
    tools.mkdir(parents=True, exist_ok=True)
    for name, text in (("ellama", "-m ellama_jax.cli"), ("python", ""), ("uv", "-c 0")):
        (tools / name).write_text(f'#!/bin/bash\nexec {sys.executable} {text} "$@"\n')
        (tools / name).chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), **environment}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    argv = ["bash", str(host / "on_host.sh"), verb]
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=LIMIT_SECS)
    assert ended.returncode == 0, ended
    return ended.stdout.strip().partition(": ")[2]


def start(tmp_path, arguments, count, more=None):
    """Starts `count` hosts as one job; `more` has further arguments of some."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [
        make_host(tmp_path / f"host{index}", [*arguments, *(more or {}).get(index, ())])
        for index in range(count)
    ]
    for index, host in enumerate(hosts):
        told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        assert on_host(host, "start", JAX_PROCESS_ID=str(index), **told) == "started"
    return hosts


def wait_for(hosts, end=lambda said: not said.startswith("running")):
    deadline = time.monotonic() + LIMIT_SECS
    while time.monotonic() < deadline:
        said = [on_host(host, "status") for host in hosts]
        if all(map(end, said)):
            return said
        time.sleep(1)
    raise AssertionError([(host / "train.log").read_text() for host in hosts])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_a_launch_starts_are_one_job(tmp_path, tiny_run, count):
    workdir = tmp_path / "run"
    hosts = start(tmp_path, [*tiny_run, f"--workdir={workdir}", "--config.train.steps=2"], count)
    said = wait_for(hosts)
    assert said == ["exited 0"] * count, [(host / "train.log").read_text() for host in hosts]
    assert [row["step"] for row in read_metrics(workdir) if "loss" in row] == [1, 2]
    log = (hosts[0] / "train.log").read_text()
    assert f"mesh data 1, fsdp {count}," in log, log  # one device a process
    assert "2/2 steps" not in "".join((host / "train.log").read_text() for host in hosts[1:])
    assert (workdir / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_stop_saves_and_a_second_start_goes_on(tmp_path, tiny_run):
    workdir = tmp_path / "run"
    arguments = [*tiny_run, f"--workdir={workdir}", "--config.train.steps=100000"]
    hosts = start(tmp_path, arguments, 2)
    deadline = time.monotonic() + LIMIT_SECS
    while not list(workdir.glob("checkpoints/2")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert on_host(hosts[0], "start") == "already running"
    said = [on_host(hosts[0], "stop"), *wait_for(hosts)]
    assert [words.partition(":")[0] for words in said] == ["exited 143"] * 3
    log = (hosts[0] / "train.log").read_text()
    assert "stopped by SIGTERM after a checkpoint" in log, log


@pytest.mark.slow
def test_each_host_says_the_error_that_one_of_them_had(tmp_path, tiny_run):
    """`status` has its line and its exit status, wherever it was: a job that another try cannot mend."""
    arguments = [*tiny_run, f"--workdir={tmp_path / 'run'}", "--config.train.steps=4"]
    hosts = start(tmp_path, arguments, 2, {1: ["--config.data.seq_len=-3"]})
    ends = wait_for(hosts)
    assert all(said.startswith("exited 2: ") for said in ends), ends
    assert all("data.seq_len: must be at least 1, got -3." in said for said in ends), ends
