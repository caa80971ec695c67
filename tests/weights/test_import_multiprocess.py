"""Two processes do what one does, each with its own parts: import, merge onto a mesh, score, write.

Their devices lie on the mesh in a random order, as those of a pod's hosts may.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from merged_on_mesh import merge_score_write

from ellama_jax.core.tree import flatten_paths
from ellama_jax.weights.checkpoint import restore_params
from ellama_jax.weights.export import export_checkpoint
from ellama_jax.weights.importer import import_weights
from ellama_jax.weights.layout import find_checkpoint

pytestmark = pytest.mark.slow
SHUFFLED = Path(__file__).parents[1] / "train" / "shuffled_process.py"
MERGED = Path(__file__).with_name("merged_on_mesh.py")


def run_two(argv, program=("-m", "ellama_jax.cli")):
    """Runs a program in two processes of two devices; returns (status, stdout, stderr) of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(SHUFFLED.parent)]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *program, *argv], text=True,
            env={**shared, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return [(p.returncode, *end) for p, end in zip(processes, ends, strict=True)]


def test_two_processes_import_what_one_does(tmp_path, untied, make_checkpoint):
    params = make_checkpoint(tmp_path / "c", untied, dtype=ml_dtypes.bfloat16)
    export_checkpoint(tmp_path / "c", tmp_path / "hf", shard_bytes=100_000)
    program = (str(SHUFFLED), "3")
    ends = run_two(["import", str(tmp_path / "hf"), str(tmp_path / "base")], program)
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert [out.count("Imported") for _, out, _ in ends] == [1, 0]
    for path, leaf in flatten_paths(restore_params(tmp_path / "base")).items():
        assert np.asarray(leaf).tobytes() == flatten_paths(params)[path].tobytes(), path
    meta = find_checkpoint(tmp_path / "base").meta
    assert all(len(source["sha256"]) == 64 for source in meta["provenance"]["sources"])
    # Written by both: each has a store of its own, merged into one.
    stores = [p.name for p in (tmp_path / "base" / "0" / "params").glob("ocdbt.process_*")]
    assert sorted(stores) == ["ocdbt.process_0", "ocdbt.process_1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "c", "hf"]
    # Cut otherwise, and the same model.
    import_weights(tmp_path / "hf", tmp_path / "alone")
    assert meta["weights"] == find_checkpoint(tmp_path / "alone").meta["weights"]


def test_a_refused_import_ends_in_both_processes_and_writes_nothing(
    tmp_path, untied, make_checkpoint
):
    make_checkpoint(tmp_path / "c", untied)
    export_checkpoint(tmp_path / "c", tmp_path / "hf")
    ends = run_two(["import", str(tmp_path / "hf"), str(tmp_path / "c")])
    assert [status for status, _, _ in ends] == [2, 2]
    for _, _, error in ends:
        assert "must not exist yet; pass --overwrite to replace it." in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "hf"]


def test_two_processes_merge_score_and_write_as_one_device_does(tmp_path, untied, make_checkpoint):
    base, adapted = tmp_path / "base", tmp_path / "adapted"
    for seed, place in enumerate((base, adapted)):
        make_checkpoint(place, untied, seed)
    alone = merge_score_write(base, adapted)
    ends = run_two(["3", str(base), str(adapted)], (str(MERGED),))
    assert [status for status, _, _ in ends] == [0, 0], ends
    for _, out, _ in ends:
        found = json.loads(out.splitlines()[-1])
        assert found["weights"] == alone["weights"]
        for ours, theirs in zip(found["log_probs"], alone["log_probs"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert found["texts"] == alone["texts"]
