"""Beam's verbs on processes that share no memory: Dask's scheduler and three workers on loopback.

In each run one of the workers is killed in the middle; the bytes are those of a run on this machine
all the same.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from raw_sources import RECIPE, write_raw
from test_curate import digest

pytest.importorskip("distributed", reason="needs Dask: tools/dask-tests.txt")


class Cluster:
    """A scheduler and workers of one thread each, as a person would start them on machines."""

    def __init__(self, directory):
        self.scheduler_file, self._directory = directory / "scheduler.json", directory
        host = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file"]
        self._scheduler = self._start("dask_scheduler", *host, self.scheduler_file, "--port", "0")
        self.workers = [
            self._start("dask_worker", *host, self.scheduler_file, "--nthreads", "1", "--no-nanny",
                        "--memory-limit", "0", "--local-directory", directory / str(number))
            for number in range(3)
        ]  # fmt: skip

    def _start(self, program, *options):
        command = [sys.executable, "-m", f"distributed.cli.{program}", *map(str, options)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (self._directory / f"{program}.log").open("ab") as log:
            return subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def run(self, verb, *argv, killed_when):
        """Runs a verb on the cluster and kills a worker as soon as `killed_when()` holds."""
        command = [sys.executable, "-m", "ellama_jax.cli", verb, *map(str, argv),
                   "--runner=DaskRunner", f"--dask_scheduler_file={self.scheduler_file}",
                   "--dask_npartitions=2"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not killed_when() and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        victim = self.workers.pop()
        assert victim.poll() is None
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-3000:]

    def end(self):
        for process in [self._scheduler, *self.workers]:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    yield cluster
    cluster.end()


@pytest.mark.slow
def test_curate_on_a_cluster_that_loses_a_worker_writes_the_bytes_of_this_machine(
    cluster, tmp_path
):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_raw(raw)
    (tmp_path / "recipe.py").write_text(RECIPE)
    argv = [f"--config={tmp_path}/recipe.py:{raw}", "--out"]
    subprocess.run(
        [sys.executable, "-m", "ellama_jax.cli", "curate", *argv, tmp_path / "here"], check=True
    )
    partial = tmp_path / ".out.partial"
    cluster.run(
        "curate", *argv, out, killed_when=lambda: any(partial.glob("documents/*/*.jsonl.gz"))
    )
    assert len(digest(out)) > 10
    assert digest(out) == digest(tmp_path / "here")
