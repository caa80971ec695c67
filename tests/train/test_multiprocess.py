"""Several processes are one job: same batches, same losses, same checkpoints, one exit."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from shuffled_process import digest
from test_loop import assert_same_state, steady

from ellama_jax.core.exits import EXIT_AGAIN
from ellama_jax.core.sharding import MESH_AXES, batch_sharding
from ellama_jax.tokens.loader import Loader, open_sources
from ellama_jax.train.metrics import read_metrics
from ellama_jax.weights.layout import latest_step

pytestmark = pytest.mark.slow
LIMIT_SECS = 240
START_SECS = 120  # of imports and a compiler, on a busy machine
FAULTY = Path(__file__).with_name("faulty_process.py")


def environment(devices=1, **more):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, **more}


def start(arguments, workdir, processes, devices=1, program=("-m", "ellama_jax.cli", "train")):
    """Starts `ellama train` in several processes on a free port of this machine."""
    argv = [sys.executable, *program, *arguments, f"--workdir={workdir}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index in range(processes):
        more = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        env = environment(devices, **(more if processes > 1 else {}))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(argv, env=env, text=True, **pipes))
    return started


def finish(started):
    """Returns (exit status, stdout, stderr) of each; what does not end in time is ended."""
    deadline = time.monotonic() + LIMIT_SECS
    try:
        ends = [p.communicate(timeout=max(1, deadline - time.monotonic())) for p in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    return [(p.returncode, *end) for p, end in zip(started, ends, strict=True)]


def run(arguments, workdir, processes=1, devices=1):
    ends = finish(start(arguments, workdir, processes, devices))
    assert [status for status, _, _ in ends] == [0] * processes, ends
    return ends


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def whole_run(finished, tiny_arguments, tmp_path_factory):
    """An uninterrupted run of one process on two devices."""
    if "workdir" not in finished:
        finished["workdir"] = tmp_path_factory.mktemp("whole") / "run"
        run(tiny_arguments, finished["workdir"], devices=2)
    return finished["workdir"]


def test_two_processes_train_as_one_does(whole_run, tiny_arguments, tmp_path):
    """The same mesh over one process or two: every logged number and every stored bit is equal."""
    workdir = tmp_path / "run"
    leader, follower = run(tiny_arguments, workdir, processes=2)
    assert steady(read_metrics(workdir)) == steady(read_metrics(whole_run))
    assert_same_state(workdir / "checkpoints", whole_run / "checkpoints")
    assert "6 steps of 256 tokens" in leader[1] and "training: 6/6 steps" in leader[2]
    said = [line for line in follower[1].splitlines() if not line.startswith("[Gloo]")]
    assert said == [] and follower[2] == ""


def test_a_run_moves_from_one_process_to_two_and_back(whole_run, tiny_arguments, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    forget(workdir, 4, 6)
    leader, _ = run([*tiny_arguments, "--config.checkpoint.keep_last=9"], workdir, processes=2)
    assert "resuming after step 2" in leader[1]
    forget(workdir, 6)
    run(tiny_arguments, workdir, devices=2)
    assert steady(read_metrics(workdir)) == steady(read_metrics(whole_run))
    assert_same_state(workdir / "checkpoints", whole_run / "checkpoints")


def forget(workdir, *steps):
    for step in steps:
        shutil.rmtree(workdir / "checkpoints" / str(step))


SHUFFLED = Path(__file__).with_name("shuffled_process.py")
SHAPE = (1, 2, 2, 2)  # of the mesh below: two processes of four devices share its rows and columns
ANY_ORDER = [f"--config.mesh.{axis}={size}" for axis, size in zip(MESH_AXES, SHAPE, strict=True)]


@pytest.fixture
def shuffled_run(finished, tiny_arguments, held_out, tmp_path_factory):
    """An uninterrupted run of two processes whose devices lie on the mesh in a random order."""
    if "shuffled" not in finished:
        finished["shuffled"] = tmp_path_factory.mktemp("shuffled") / "run"
        run_shuffled(3, 2, 4, tiny_arguments, finished["shuffled"], held_out)
    return finished["shuffled"]


def run_shuffled(seed, processes, devices, arguments, workdir, held_out):
    evaluated = [f"--config.evaluate.windows_dir={held_out}", "--config.evaluate.every_steps=3"]
    argv = [*arguments, *ANY_ORDER, *evaluated]
    program = (SHUFFLED, str(seed), "train")
    ends = finish(start(argv, workdir, processes, devices, program))
    assert [status for status, _, _ in ends] == [0] * processes, ends


def test_rows_reach_their_devices_in_any_order_of_devices(shuffled_run, whole_run, tiny_config):
    """Rows, fingerprints and ledger do not depend on which process has which device."""
    assert_same_training(shuffled_run, whole_run)
    config = tiny_config()
    loader = Loader(open_sources(config.data, None), config.data)
    mesh = Mesh(np.array(jax.devices()).reshape(SHAPE), MESH_AXES)
    found = [json.loads((shuffled_run.parent / f"devices-{i}.json").read_text()) for i in (0, 1)]
    for step, parts in enumerate(zip(*found, strict=True)):
        batch = loader.batch(step)
        wanted = {}
        for name, array in batch.items():
            indices = batch_sharding(mesh, array.shape, name).devices_indices_map(array.shape)
            for place, device in enumerate(mesh.devices.flat):
                wanted.setdefault(str(place), {})[name] = array[indices[device]]
        assert parts[0] | parts[1] == {place: digest(piece) for place, piece in wanted.items()}
        assert len(parts[0]) == len(parts[1]) == 4
    assert step == 5


def test_a_run_goes_on_bit_for_bit_where_it_was_and_nearly_elsewhere(
    shuffled_run, tiny_arguments, held_out, tmp_path
):
    """On the same devices every bit is the same; on others sums differ in their last bits."""
    kept = [*tiny_arguments, "--config.checkpoint.keep_last=9"]
    for name, seed, processes in (("same", 3, 2), ("other", 5, 4)):
        workdir = tmp_path / name / "run"
        shutil.copytree(shuffled_run, workdir)
        forget(workdir, 4, 6)
        run_shuffled(seed, processes, 8 // processes, kept, workdir, held_out)
        if name == "same":
            assert steady(read_metrics(workdir)) == steady(read_metrics(shuffled_run))
            assert_same_state(workdir / "checkpoints", shuffled_run / "checkpoints")
        else:
            assert_same_training(workdir, shuffled_run)


SAVES_BY_TIME = """
import os, sys
from ellama_jax.cli import main
from ellama_jax.train import loop

def say_and_save(run, manager, state, *others, due, last):
    print("saves", int(state.step), due, flush=True)
    save(run, manager, state, *others, due=due, last=last)

save, loop.save = loop.save, say_and_save
secs = 0.000001 if os.environ["JAX_PROCESS_ID"] == "0" else 0.0
main(["train", *sys.argv[1:], f"--config.checkpoint.save_every_secs={secs}"])
"""


def test_all_processes_save_by_the_leader_s_clock(whole_run, tiny_arguments, tmp_path):
    """Process 1 would never save by time, process 0 always: both save every second step."""
    arguments = [*tiny_arguments, "--config.checkpoint.save_every_steps=6"]
    ends = finish(start(arguments, tmp_path / "run", 2, program=("-c", SAVES_BY_TIME)))
    for status, said, error in ends:
        assert status == 0, error
        saved = [line for line in said.splitlines() if line.startswith("saves")]
        assert saved == ["saves 2 False", "saves 4 False", "saves 6 True"]
    assert_same_state(tmp_path / "run" / "checkpoints", whole_run / "checkpoints")


def assert_same_training(workdir, other):
    """Batches are the same to the bit, losses but for the order of sums."""
    ours, theirs = (
        [record for record in read_metrics(place) if record["step"]] for place in (workdir, other)
    )
    for key in ("batch_fingerprint", "tokens_consumed", "loss_tokens"):
        assert [record[key] for record in ours] == [record[key] for record in theirs], key
    for key in ("loss", "eval_loss"):
        pairs = [
            (a[key], b[key]) for a, b in zip(ours, theirs, strict=True) if key in a and key in b
        ]
        np.testing.assert_allclose(*zip(*pairs or [((), ())], strict=True), rtol=1e-5, err_msg=key)


def test_two_processes_score_as_one_does(tiny_arguments, tmp_path):
    """Scores, changes and the gate are those of one process; a stop ends both at the same step."""
    texts = tmp_path / "texts.jsonl"
    records = [{"text": f"QXZ {n} VW", "domain": "general", "language": "en"} for n in range(4)]
    texts.write_text("".join(json.dumps(record) + "\n" for record in records))
    keys = {
        "tasks": "bits_per_byte", "texts_path": texts, "row_length": 64, "every_steps": 2,
        "gate.action": "stop", "gate.bits_per_byte": 0.0, "gate.fails_when": "likely",
        "texts_per_source": 4,
    }  # fmt: skip
    arguments = [f"--config.evaluate.{key}={value}" for key, value in keys.items()]
    workdirs = tmp_path / "one", tmp_path / "two"
    for workdir, processes in zip(workdirs, (1, 2), strict=True):
        ends = finish(start([*tiny_arguments, *arguments], workdir, processes, 2 // processes))
        assert [status for status, _, _ in ends] == [3] * processes, ends
        assert "by the retention gate: FAILED" in ends[0][2]
        assert processes == 1 or ends[1][2] == ""
    assert steady(read_metrics(workdirs[0])) == steady(read_metrics(workdirs[1]))
    for path in (workdirs[0] / "evaluations").iterdir():
        ours, theirs = (
            json.loads((w / "evaluations" / path.name).read_text())["results"] for w in workdirs
        )
        assert ours == theirs


def test_sigterm_to_one_process_stops_all_after_the_furthest_step_begun(tiny_arguments, tmp_path):
    """Not one step more is begun, and a second signal does not cut the save short."""
    workdir = tmp_path / "run"
    long = ["--config.train.steps=5000", "--config.checkpoint.save_every_steps=5000"]
    ends = finish(start([*tiny_arguments, *long], workdir, 2, program=(FAULTY, "stop")))
    assert [status for status, _, _ in ends] == [143, 143], ends
    assert "the same command resumes" in ends[0][2] and ends[1][2] == ""
    begun = [int((tmp_path / f"begun-{process}").read_text()) for process in range(2)]
    step = latest_step(workdir / "checkpoints")
    assert step == read_metrics(workdir)[-1]["step"] == max(begun) >= 5


def test_sigterm_before_the_first_step_ends_all_at_once(tiny_arguments, tmp_path):
    """A step that is being compiled is not waited for: there is nothing to save."""
    workdir = tmp_path / "run"
    started = start(tiny_arguments, workdir, 2, program=(FAULTY, "compile"))
    deadline = time.monotonic() + LIMIT_SECS
    while not (workdir / "compiling").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    ends = finish(started)
    assert [status for status, _, _ in ends] == [143, 143], ends
    assert time.monotonic() - signalled < 60
    assert latest_step(workdir / "checkpoints") is None


@pytest.mark.parametrize(
    ("how", "status", "said", "fails"),
    [
        ("data", 2, "windows X: window 7 is damaged.", 1),
        ("prepare", 2, "/w/manifest: must exist, got no such file.", 1),
        ("restore", 2, "restore r/2: the checkpoint is damaged.", 1),
        ("save", 2, "the disk must have room for what a run writes, got full while writing", 1),
        ("crash", 1, "ZeroDivisionError: a defect", 0),
    ],
)
def test_what_one_process_fails_of_ends_all_with_its_status_and_its_line(
    how, status, said, fails, whole_run, tiny_arguments, tmp_path
):
    workdir = tmp_path / "run"
    if how == "restore":
        shutil.copytree(whole_run, workdir)
    endless = ["--config.train.steps=100000"]
    began = time.monotonic()
    ends = finish(start([*tiny_arguments, *endless], workdir, 2, program=(FAULTY, how)))
    assert time.monotonic() - began < 60 + START_SECS
    assert [end for end, _, _ in ends] == [status, status], ends
    own, other = ends[fails][2], ends[1 - fails][2]
    assert said in own.splitlines()[-1]
    assert f"process {fails} ({socket.gethostname()}): " in other and said in other
    assert ("Traceback" in own) == (how == "crash") and "Traceback" not in other
    if how == "save":  # the one before is whole, and what failed does not count
        assert latest_step(workdir / "checkpoints") == 2


def test_a_process_that_never_comes_is_missed(tiny_arguments, tmp_path):
    """Whichever it is: the others end with the status of another try, in the time that is set."""
    for missing in (1, 0):
        started = start(tiny_arguments, tmp_path / "run", 2, program=(FAULTY, "alone"))
        started.pop(missing).kill()
        [(status, _, said)] = finish(started)
        assert status == EXIT_AGAIN, said
        assert "not all processes of the job came up" in said.splitlines()[-1]


def test_what_one_process_refuses_all_refuse(whole_run, tiny_arguments, tmp_path):
    """The leader finds that the tokenizer changed; the other says the same and does not hang."""
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    config = workdir / "checkpoints" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "bos_token": None}))
    ends = finish(start(tiny_arguments, workdir, processes=2))
    assert [status for status, _, _ in ends] == [2, 2]
    for _, _, said in ends:
        assert "was the tokenizer changed?" in said and "Traceback" not in said


def test_the_process_that_reads_slowly_is_named(tiny_arguments, tmp_path):
    keys = ["--config.train.steps=12", "--config.train.report_every_steps=12"]
    started = start([*tiny_arguments, *keys], tmp_path / "run", 2, program=(FAULTY, "slow"))
    (leader, _, said), (follower, _, silence) = finish(started)
    assert (leader, follower) == (0, 0)
    found = re.search(r"process 1 \((.+)\) holds the others up: steps take ([\d.]+) times", said)
    assert found.group(1) == socket.gethostname() and float(found.group(2)) > 1.2
    assert silence == ""


def test_a_process_that_hangs_shows_where_and_ends_the_job(tiny_arguments, tmp_path):
    keys = ["--config.train.hang_secs=45", "--config.train.abort_on_hang=True"]
    started = start([*tiny_arguments, *keys], tmp_path / "run", 2, program=(FAULTY, "hang"))
    (leader, _, first), (follower, _, said) = finish(started)
    assert EXIT_AGAIN in (leader, follower) and leader != 0 and follower != 0
    if "ended by process 0" in said:  # the leader's patience ended first
        assert "process 0: nothing finished for" in first
    else:
        assert "process 1: nothing finished for" in said and "in reading" in said
        assert "waiting for data" in said and "faulty_process.py" in said


def test_alone_nothing_is_started():
    code = """
import jax
from ellama_jax.core.distributed import one_job
with one_job():
    print(jax.distributed.is_initialized(), jax.process_count())
"""
    alone = environment(KUBERNETES_SERVICE_HOST="10.0.0.1")  # a pod that is no job
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False 1\n", "")
