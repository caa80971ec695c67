"""Beam's verbs on processes that share no memory: Dask's scheduler and three workers on loopback.

In each run one of the workers is killed in the middle; the bytes are those of a run on this machine
all the same.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from raw_sources import RECIPE, write_raw
from small_corpus import make_tokenizer
from test_curate import digest

from ellama_jax.tokens import prepare
from ellama_jax.tokens.windows import read_manifest

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


def _documents(path, count):
    chance = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            words = chance.choices(
                ["lamp", "lampe", "jacke", "veste", "giacca", "zapato", "rot", "grün", "été"], k=99
            )
            fields = {"domain": "ecommerce", "language": chance.choice(["de", "en"]), "source": "x"}
            file.write(json.dumps({"text": f"{number} {' '.join(words)}", **fields}) + "\n")


@pytest.mark.slow
def test_prepare_on_a_cluster_that_loses_a_worker_writes_the_bytes_of_this_machine(
    cluster, tmp_path
):
    documents, tokenizer, out = tmp_path / "d.jsonl", tmp_path / "tokenizer", tmp_path / "out"
    _documents(documents, 20_000)
    make_tokenizer(tokenizer)
    argv = ["--documents", documents, "--tokenizer", tokenizer, "--window-length", "256", "--out"]
    cluster.run("prepare", *argv, out, killed_when=lambda: any(out.glob(".prepare-*/parts/*.json")))
    # By Beam's own runner in this process, and by processes of this machine.
    prepare.main_prepare([*map(str, [*argv, tmp_path / "beam"]), "--runner=FnApiRunner"])
    prepare.main_prepare([*map(str, [*argv, tmp_path / "here"])])
    found = [digest(place) for place in (out, tmp_path / "beam", tmp_path / "here")]
    shards = [{k: v for k, v in f.items() if not k.endswith("manifest.json")} for f in found]
    assert shards[0] == shards[1] == shards[2] and len(shards[0]) == 2
    for name in ("ecommerce-de", "ecommerce-en"):
        manifests = [read_manifest(tmp_path / place / name) for place in ("out", "beam", "here")]
        first, *others = (dataclasses.replace(manifest, command="") for manifest in manifests)
        assert others == [first, first]
