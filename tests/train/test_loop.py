"""The loop: a run equals itself however often it was interrupted, and says what is wrong early."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ellama_jax.train.loop import main_train, prepare_run, train
from ellama_jax.train.metrics import read_metrics
from ellama_jax.tree import flatten_paths
from ellama_jax.weights.checkpoint import restore_params
from ellama_jax.weights.layout import find_checkpoint, latest_step

VARYING = ("step_secs", "tokens_per_sec")


def steady(records):
    """Metrics without what depends on the clock."""
    return [{k: v for k, v in record.items() if k not in VARYING} for record in records]


def assert_same_state(root, other):
    """Parameters, optimizer state and data state are the same to the bit."""
    one, two = find_checkpoint(root), find_checkpoint(other)
    assert one.step == two.step
    a, b = (flatten_paths(restore_params(info.path)) for info in (one, two))
    assert list(a) == list(b)
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)
    a, b = (_opt_state(info.path) for info in (one, two))
    assert len(a) == len(b) > len(flatten_paths(restore_params(one.path)))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def _opt_state(step_dir):
    import orbax.checkpoint as ocp

    return jax.tree.leaves(ocp.PyTreeCheckpointer().restore(step_dir / "opt_state"))


def command(arguments, workdir):
    return [sys.executable, "-m", "ellama_jax.cli", "train", *arguments, f"--workdir={workdir}"]


def one_device():
    return {**os.environ, "XLA_FLAGS": ""}


@pytest.fixture(scope="module")
def finished():
    """Where the uninterrupted run of this module lies, made by the first test that needs it."""
    return {}


@pytest.fixture
def whole_run(finished, tiny_arguments, tmp_path_factory):
    if not finished:
        workdir = tmp_path_factory.mktemp("whole") / "run"
        subprocess.run(command(tiny_arguments, workdir), env=one_device(), check=True)
        finished["workdir"] = workdir
    return finished["workdir"]


def test_a_run_leaves_what_it_promises(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    records = read_metrics(whole_run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    last = records[-1]
    assert last["loss"] < records[0]["loss"]
    assert {"learning_rate", "grad_norm", "tokens_per_sec", "batch_fingerprint"} <= set(last)
    assert any(key.startswith("loss/ecommerce/") for key in last)
    assert sum(last["tokens_consumed"].values()) > 0
    meta = find_checkpoint(whole_run / "checkpoints").meta
    assert meta["provenance"]["kind"] == "train" and meta["provenance"]["step"] == 6
    assert meta["config"]["train"]["steps"] == 6
    assert list((whole_run / "tensorboard").iterdir())


def test_a_killed_process_resumes_bit_for_bit(whole_run, tiny_arguments, tmp_path):
    """SIGKILL after the checkpoint of step 2; the same command then ends where the whole run did."""
    workdir = tmp_path / "run"
    process = subprocess.Popen(command(tiny_arguments, workdir), env=one_device())
    deadline = time.monotonic() + 120
    while latest_step(workdir / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_after = latest_step(workdir / "checkpoints")
    assert killed_after is not None
    if killed_after == 6:
        # The machine was quicker than this test: take the later steps away, as if never saved.
        for step in (4, 6):
            shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
    subprocess.run(command(tiny_arguments, workdir), env=one_device(), check=True)
    assert_same_state(workdir / "checkpoints", whole_run / "checkpoints")
    assert steady(read_metrics(workdir)) == steady(read_metrics(whole_run))


def test_sigterm_saves_and_the_same_command_goes_on(whole_run, tiny_arguments, tmp_path):
    workdir = tmp_path / "run"
    # Enough steps that the signal comes in between; no checkpoint is due before it.
    slow = [
        *tiny_arguments,
        "--config.train.steps=5000",
        "--config.checkpoint.save_every_steps=5000",
    ]
    process = subprocess.Popen(
        command(slow, workdir), env=one_device(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(workdir)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "the same command resumes" in error
    step = latest_step(workdir / "checkpoints")
    assert step == read_metrics(workdir)[-1]["step"] >= 3


def test_another_mesh_and_microbatches_see_the_same_batches(whole_run, tiny_config, tmp_path):
    config = tiny_config(mesh__fsdp=4, mesh__tensor=2, train__num_microbatches=2)
    train(prepare_run(config, tmp_path / "run"))
    ours, theirs = read_metrics(tmp_path / "run"), read_metrics(whole_run)
    assert [r["batch_fingerprint"] for r in ours] == [r["batch_fingerprint"] for r in theirs]
    assert ours[-1]["tokens_consumed"] == theirs[-1]["tokens_consumed"]
    np.testing.assert_allclose(
        [r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=1e-4
    )  # fmt: skip


def test_a_run_may_be_resumed_on_another_mesh(whole_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    for step in (4, 6):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    train(prepare_run(tiny_config(mesh__fsdp=8), workdir))
    losses = [r["loss"] for r in read_metrics(workdir)]
    np.testing.assert_allclose(losses, [r["loss"] for r in read_metrics(whole_run)], rtol=1e-4)


def test_a_finished_run_trains_no_further(whole_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    train(prepare_run(tiny_config(mesh__data=8, mesh__fsdp=1), workdir))
    assert read_metrics(workdir) == read_metrics(whole_run)


def test_a_changed_mixture_is_refused_at_resume(whole_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    config = tiny_config(train__steps=8, data__replay_frac=0.4, mesh__fsdp=8)
    with pytest.raises(ValueError, match="must be resumed with the mixture it was trained with"):
        train(prepare_run(config, workdir))


def test_a_changed_key_is_said_at_resume(whole_run, tiny_config, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    train(prepare_run(tiny_config(train__steps=7, mesh__fsdp=8), workdir))
    assert "train.steps: was 6 before, now 7." in capsys.readouterr().err
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 7
    assert read_metrics(workdir)[-1]["step"] == 7


def test_too_many_bad_updates_stop_the_job(tiny_config, tmp_path):
    """A learning rate of 1e30 makes every loss after the first not finite."""
    config = tiny_config(
        schedule__base_peak_learning_rate=1e30, train__max_nonfinite_steps=2, mesh__fsdp=8
    )
    with pytest.raises(ValueError, match=r"step \d+, batch [0-9a-f]{16}: 2 updates in a row"):
        train(prepare_run(config, tmp_path / "run"))
    # A save that was under way when the job stopped is whole.
    assert latest_step(tmp_path / "run" / "checkpoints") == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data__seq_len", 2048, r"^data.seq_len: must not exceed the model's max_seq_len \(1024\)"),
        ("data__seq_len", 24, "24"),
        ("model__remat", "some", "^model.remat: must be one of none, dots, full, got some"),
        ("model__preset", "tinny", "^model.preset: .*did you mean tiny"),
        ("model__preset", "llama3.2-1b", "^schedule.base_peak_learning_rate"),
        ("model__checkpoint", "/no/such/checkpoint", "/no/such/checkpoint"),
        ("data__windows_dir", "/no/such/windows", "/no/such/windows"),
    ],
)
def test_what_does_not_fit_is_said_before_any_device_is_used(
    key, value, message, tiny_config, tmp_path
):
    with pytest.raises(ValueError, match=message):
        prepare_run(tiny_config(**{key: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_made_is_one_clear_error(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^--workdir: must be a directory that can be made"):
        prepare_run(tiny_config(), tmp_path / "file" / "run")


def test_training_imports_neither_tensorflow_nor_torch(tiny_arguments, tmp_path):
    code = (
        "import sys\nfrom ellama_jax.train.loop import main_train\nmain_train(sys.argv[1:])\n"
        "print({'tensorflow', 'torch', 'transformers', 'seqio', 'lm_eval'} & set(sys.modules))"
    )
    argv = [sys.executable, "-c", code, *tiny_arguments, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(argv, env=one_device(), check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_needs_no_configuration(capsys):
    with pytest.raises(SystemExit):
        main_train(["--help"])
    assert "--config.SECTION.KEY" in capsys.readouterr().out
