"""The loop: a run equals itself however often it was interrupted, and says what is wrong early."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ellama_jax.config import StageConfig
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.loader import batch_fingerprint
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.tokens.windows import PADDING
from ellama_jax.train.loop import main_train, prepare_run, train
from ellama_jax.train.metrics import read_metrics
from ellama_jax.weights import checkpoint, layout
from ellama_jax.weights.checkpoint import restore_params
from ellama_jax.weights.layout import (
    find_checkpoint,
    latest_step,
    make_meta,
    read_json_item,
)

VARYING = ("step_secs", "tokens_per_sec", "tokens_per_sec_per_chip", "time")


def steady(records):
    """Metrics without what depends on the clock."""
    return [
        {k: v for k, v in record.items() if k not in VARYING and not k.startswith("goodput")}
        for record in records
    ]


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
    from etils import epath

    # As NumPy arrays: a checkpoint of two processes names devices that are not here.
    handler, path = ocp.PyTreeCheckpointHandler(), epath.Path(step_dir / "opt_state")
    args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree
    )
    return jax.tree.leaves(handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args)))


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
    written = {"config.json", "goodput.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert names == written
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    whole_run, tiny_arguments, tmp_path, number, status
):
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
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert "the same command resumes" in error and "Traceback" not in error
    step = latest_step(workdir / "checkpoints")
    assert step == read_metrics(workdir)[-1]["step"] >= 3


def test_a_checkpoint_is_compared_by_all_tokens_since_the_last(whole_run):
    """Steps 3 and 4 are what checkpoint 4 is compared by; the mean is over tokens, not steps."""
    records = read_metrics(whole_run)[2:4]
    tokens = [record["loss_tokens"] for record in records]
    expected = np.average([record["loss"] for record in records], weights=tokens)
    stored = layout.read_metrics(whole_run / "checkpoints" / "4")
    assert stored["loss"] == pytest.approx(expected, rel=1e-6)
    assert {"grad_norm", "loss/ecommerce/en", "loss/general/de"} <= set(stored)


def test_a_save_that_is_not_due_changes_no_mean(tiny_config, tmp_path):
    """A run that stops at step 3 and goes on compares step 4 by steps 3 and 4, as a whole one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    overrides = {"mesh__fsdp": 8, "schedule__final_frac": 1.0}
    train(prepare_run(tiny_config(train__steps=4, **overrides), whole))
    train(prepare_run(tiny_config(train__steps=3, **overrides), parts))
    train(prepare_run(tiny_config(train__steps=4, **overrides), parts))
    metrics = [layout.read_metrics(run / "checkpoints" / "4") for run in (whole, parts)]
    assert metrics[0] == metrics[1] and metrics[0]["loss"] > 0


@pytest.mark.slow
def test_another_start_finds_its_programs_compiled_and_a_bad_cache_stops_nothing(
    tiny_config, tmp_path, cached_programs
):
    cache = tmp_path / "programs"

    def losses(name, directory):
        keys = {"mesh__fsdp": 8, "train__steps": 2, "train__compilation_cache": directory}
        train(prepare_run(tiny_config(**keys), tmp_path / name))
        return [record["loss"] for record in read_metrics(tmp_path / name)]

    first = losses("first", cache)
    assert "jit_train_step" not in cached_programs()
    assert losses("again", cache) == first
    assert "jit_train_step" in cached_programs()
    for entry in cache.glob("*train_step*"):
        entry.write_bytes(entry.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert losses("damaged", cache) == first
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        assert losses("unwritable", tmp_path / "first" / "config.json") == first
    assert losses("auto", "auto") == first
    assert not (tmp_path / "auto" / "compilation_cache").exists()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_best_checkpoint_of_a_run_stays(tiny_config, tmp_path):
    """By grad_norm with a high rate, so that it is not the last one that is best."""
    run = tmp_path / "run"
    keys = {"checkpoint__best_metric": "grad_norm", "checkpoint__keep_last": 1, "mesh__fsdp": 8}
    train(prepare_run(tiny_config(**keys), run))
    every = read_metrics(run)
    means = {
        step: np.average(
            [r["grad_norm"] for r in every[step - 2 : step]],
            weights=[r["loss_tokens"] for r in every[step - 2 : step]],
        )
        for step in (2, 4, 6)
    }
    best = min(means, key=means.get)
    assert find_checkpoint(run / "checkpoints" / "best").step == best
    kept = {int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, 6}


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


def test_what_a_resume_refuses_is_refused_before_weights_are_read(
    whole_run, tiny_config, tmp_path, monkeypatch
):
    """Another mixture, another model of the same shapes: neither costs a pod the time of a restore."""
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint, "_read_params", read)
    with pytest.raises(ValueError, match="must be resumed with the mixture it was trained with"):
        train(prepare_run(tiny_config(data__replay_frac=0.4, mesh__fsdp=8), workdir))
    run = prepare_run(tiny_config(mesh__fsdp=8), workdir)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, rope_theta=5e5))
    with pytest.raises(ValueError, match=r"model it was .*: rope_theta was 10000.0, now 500000.0"):
        train(other)


def test_a_checkpoint_keeps_its_own_longest_row(whole_run, tiny_config, windows_dir, tmp_path):
    """`max_seq_len` decides nothing of what is computed: the source's own holds, not the preset's."""
    model = dataclasses.replace(get_preset("tiny"), max_seq_len=40)
    fingerprint = load_tokenizer(windows_dir / "tokenizer").fingerprint
    meta = make_meta(model, tokenizer_fingerprint=fingerprint, provenance={"kind": "import"})
    base = checkpoint.write_checkpoint(
        tmp_path / "base", init_params(model, 0), config=model, meta=meta,
        tokenizer_dir=windows_dir / "tokenizer",
    )  # fmt: skip
    given = {"model__checkpoint": base.path, "train__steps": 2, "mesh__fsdp": 8}
    run = prepare_run(tiny_config(**given), tmp_path / "run", allow_unverified=True)
    assert find_checkpoint(train(run)).config.max_seq_len == 40
    with pytest.raises(ValueError, match=r"^data.seq_len: .* max_seq_len \(40\), got 64"):
        prepare_run(tiny_config(**given, data__seq_len=64), tmp_path / "other")


@pytest.fixture
def staged_config(tiny_config):
    """Returns `make(start_step)`: the tiny run with a switch of shares."""

    def make(start_step):
        config = tiny_config(mesh__fsdp=8)
        stages = {"late": StageConfig(start_step=start_step, replay_frac=0.1)}
        return dataclasses.replace(config, data=dataclasses.replace(config.data, stages=stages))

    return make


@pytest.mark.parametrize("kept", [2, 4])
def test_a_run_with_a_switch_resumes_bit_for_bit(staged_config, tmp_path, kept):
    """The shares switch after step 3; resumed before it and after it."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    train(prepare_run(staged_config(3), whole))
    shutil.copytree(whole, workdir)
    for step in range(kept + 2, 8, 2):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    train(prepare_run(staged_config(3), workdir))
    assert steady(read_metrics(workdir)) == steady(read_metrics(whole))
    assert_same_state(workdir / "checkpoints", whole / "checkpoints")


def test_a_stage_to_come_may_be_added_and_a_past_one_not_changed(
    whole_run, staged_config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    for step in (4, 6):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    message = (
        r"with the mixture it was trained with up to step 2, .*shares_from_step/1/ecommerce-de"
    )
    with pytest.raises(ValueError, match=message):
        train(prepare_run(staged_config(1), workdir))
    train(prepare_run(staged_config(2), workdir))  # what was read so far is the same
    ours, theirs = read_metrics(workdir), read_metrics(whole_run)
    assert [r["batch_fingerprint"] for r in ours[:2]] == [
        r["batch_fingerprint"] for r in theirs[:2]
    ]
    assert ours[2]["batch_fingerprint"] != theirs[2]["batch_fingerprint"]


def test_a_run_is_not_resumed_with_another_order(whole_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    with pytest.raises(
        ValueError, match="up to step 6, got another: order/seed was 0, now 1. Start"
    ):
        train(prepare_run(tiny_config(train__steps=7, mesh__fsdp=8, data__seed=1), workdir))


def test_the_log_has_epochs_and_the_checkpoint_the_ledger(whole_run):
    records = read_metrics(whole_run)
    rows = {name: 0.0 for name in records[0]["epochs"]}
    for record in records:
        assert all(record["epochs"][name] >= before for name, before in rows.items())
        rows = record["epochs"]
    assert set(rows) == set(records[-1]["tokens_consumed"]) and min(rows.values()) > 0
    data = read_json_item(whole_run / "checkpoints" / "6", "data")
    assert data["ledger"] == records[-1]["tokens_consumed"]
    assert data["mixture"]["shares_from_step"]["0"]["general-en"] == pytest.approx(0.35)


def test_repetition_is_refused_before_any_device_is_used(tiny_config, tmp_path):
    message = r"^data.max_epochs: no set may be read more often in 6 steps, got ecommerce-de 0.23"
    with pytest.raises(ValueError, match=message):
        prepare_run(tiny_config(data__max_epochs=0.1), tmp_path / "run")
    prepare_run(tiny_config(data__max_epochs=0.1, data__on_repetition="warn"), tmp_path / "run")


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
    message = r"step 3, batch ([0-9a-f]{16}): 2 updates in a row .* of ecommerce-de, ecommerce-en, "
    with pytest.raises(ValueError, match=message) as stopped:
        train(prepare_run(config, tmp_path / "run"))
    fingerprint = re.search(message, str(stopped.value)).group(1)
    found = json.loads((tmp_path / "run" / "nonfinite-3.json").read_text())
    assert [batch["step"] for batch in found["batches"]] == [2, 3]
    assert found["batches"][-1]["batch_fingerprint"] == fingerprint
    # What the file says is enough to see the batch again.
    loader = prepare_run(config, tmp_path / "other").loader
    batch = loader.batch(2)
    assert batch_fingerprint(batch) == fingerprint
    for place, tokens in zip(found["batches"][-1]["rows"], batch["inputs"], strict=True):
        source = next(s for s in loader.sources if s.name == place["source"])
        start = place["part"] * 32
        stored = source.windows[place["window"]][start : start + 32]
        np.testing.assert_array_equal(np.where(stored == PADDING, 0, stored)[:-1], tokens[:-1])
    # Only the first of the three updates was made: the second and the third had the same rate.
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run")]
    peak = config.schedule.peak_frac * 1e30
    np.testing.assert_allclose(rates, [peak / 2, peak, peak], rtol=1e-6)
    # A save that was under way when the job stopped is whole.
    assert latest_step(tmp_path / "run" / "checkpoints") == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data__seq_len", 2048, r"^data.seq_len: must not exceed the model's max_seq_len \(1024\)"),
        ("data__seq_len", 24, "24"),
        ("model__remat", "some", "^model.remat: must be one of none, dots, .* auto, got some"),
        ("model__preset", "tinny", "^model.preset: .*did you mean tiny"),
        ("model__preset", "llama3.2-1b", "^schedule.base_peak_learning_rate"),
        ("model__checkpoint", "/no/such/checkpoint", "/no/such/checkpoint"),
        ("data__windows_dir", "/no/such/windows", "/no/such/windows"),
        (
            "checkpoint__best_metric",
            "loss/general/fr",
            "^checkpoint.best_metric: must be one of loss, grad_norm, loss/ecommerce/de, "
            "loss/ecommerce/en, loss/general/de, loss/general/en, or empty, got loss/general/fr",
        ),
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


@pytest.mark.slow
def test_a_run_killed_over_and_over_ends_as_a_whole_one(whole_run, tiny_arguments, tmp_path):
    """SIGKILL four times, each as soon as another save is under way or just done."""
    workdir = tmp_path / "run"
    arguments = [*tiny_arguments, "--config.checkpoint.save_every_steps=1"]
    root = workdir / "checkpoints"
    for _ in range(4):
        before = latest_step(root) or 0
        process = subprocess.Popen(command(arguments, workdir), env=one_device())
        wait_until(lambda: names_above(root, before) or process.poll() is not None)  # noqa: B023
        process.kill()
        process.wait()
    subprocess.run(command(tiny_arguments, workdir), env=one_device(), check=True)
    assert_same_state(root, whole_run / "checkpoints")
    assert steady(read_metrics(workdir)) == steady(read_metrics(whole_run))


def test_sigterm_during_a_save_lets_it_end_and_saves_the_step_it_stops_at(tiny_arguments, tmp_path):
    workdir = tmp_path / "run"
    arguments = [*tiny_arguments, "--config.train.steps=5000"]
    process = subprocess.Popen(command(arguments, workdir), env=one_device())
    root = workdir / "checkpoints"
    wait_until(lambda: latest_step(root) and list(root.glob("*.orbax-checkpoint-tmp")))
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=60) == 143
    assert time.monotonic() - began < 20  # schedulers give 30 s
    assert latest_step(root) == read_metrics(workdir)[-1]["step"]
    assert not list(root.glob("*.orbax-checkpoint-tmp"))


def names_above(root, step):
    """Steps later than `step`, saved or being saved."""
    found = root.glob("[0-9]*") if root.is_dir() else []
    return [path.name for path in found if int(path.name.split(".")[0]) > step]


def wait_until(holds, secs=120):
    deadline = time.monotonic() + secs
    while not holds():
        assert time.monotonic() < deadline, f"nothing happened in {secs} s"
        time.sleep(0.002)


@pytest.mark.parametrize("after", [0.3, 1.5, 4.0])
def test_ctrl_c_before_the_first_step_is_no_traceback(tiny_arguments, tmp_path, after):
    """While modules are imported, the run is prepared, or a step is compiled."""
    process = subprocess.Popen(
        command(tiny_arguments, tmp_path / "run"),
        env=one_device(),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert "Traceback" not in error, error
    assert process.returncode == 130 or (after > 2 and process.returncode == 0)
