"""What is watched beside training: evaluation, profiles, transfers, time; none of it changes a bit."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import assert_same_state, steady

from ellama_jax.train import loop as loop_module
from ellama_jax.train.goodput import read_goodput, summarize
from ellama_jax.train.loop import prepare_run, train
from ellama_jax.train.metrics import MetricsLog, read_metrics
from ellama_jax.weights import layout


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every run here is the same program: one compilation for all."""
    from jax.experimental.compilation_cache import compilation_cache

    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {}


@pytest.fixture
def plain_run(plain, tiny_config, tmp_path_factory):
    """Six steps with nothing watched."""
    if not plain:
        plain["workdir"] = tmp_path_factory.mktemp("plain") / "run"
        train(prepare_run(tiny_config(mesh__fsdp=8), plain["workdir"]))
    return plain["workdir"]


def without_evaluation(records):
    return [
        {name: value for name, value in record.items() if not name.startswith("eval_")}
        for record in steady(records)
        if record["step"] > 0
    ]


def test_evaluation_and_profiles_change_nothing(plain_run, tiny_config, held_out, tmp_path, capsys):
    """Parameters, optimizer, batches and metrics are equal to the bit; the best is by eval_loss."""
    config = tiny_config(
        mesh__fsdp=8, evaluate__windows_dir=held_out, evaluate__every_steps=2, evaluate__batches=2,
        checkpoint__best_metric="eval_loss/general/en", train__prefetch_batches=1,
        train__profile_start_step=3, train__profile_steps=2, train__report_every_steps=3,
    )  # fmt: skip
    run = tmp_path / "run"
    train(prepare_run(config, run))
    assert_same_state(run / "checkpoints", plain_run / "checkpoints")
    records = read_metrics(run)
    assert without_evaluation(records) == steady(read_metrics(plain_run))
    evaluated = {r["step"]: r["eval_loss/general/en"] for r in records if "eval_loss" in r}
    assert list(evaluated) == [0, 2, 4, 6] and evaluated[6] < evaluated[0]
    assert {"eval_loss/ecommerce/de", "eval_loss"} <= set(records[0])
    for step in (2, 4, 6):
        stored = layout.read_metrics(run / "checkpoints" / str(step))
        assert stored["eval_loss/general/en"] == evaluated[step]
    assert [r["step"] for r in records if "goodput" in r] == [3, 6]
    assert list((run / "profile").rglob("*.xplane.pb"))
    said = capsys.readouterr()
    assert "every 2 steps the loss of 16 held-out rows of ecommerce/de, general/en" in said.out
    assert "no MFU: the peak of a device of kind cpu is not known" in said.out
    assert "profile of steps 3 to 4:" in said.err and "goodput: " in said.err


def test_a_signal_takes_a_profile_of_the_next_steps(
    plain_run, tiny_config, tmp_path, capsys, monkeypatch
):
    write = MetricsLog.write

    def write_and_ask(self, record):
        write(self, record)
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(MetricsLog, "write", write_and_ask)
    run = tmp_path / "run"
    train(prepare_run(tiny_config(mesh__fsdp=8, train__profile_steps=2), run))
    assert "profile of steps 3 to 4:" in capsys.readouterr().err
    assert len(list((run / "profile").rglob("*.xplane.pb"))) == 1
    assert_same_state(run / "checkpoints", plain_run / "checkpoints")


def test_a_transfer_that_nobody_asked_for_is_refused(tiny_config, tmp_path, monkeypatch):
    """A NumPy argument of the step, and a scalar made for the log: each stops the second step."""
    make = loop_module.make_program

    def with_host_scalar(*args):
        program = make(*args)

        @jax.jit
        def step(state, batch, scale):
            state, metrics = program.step_fn(state, batch)
            return state, metrics._replace(loss=metrics.loss * scale)

        return dataclasses.replace(
            program, step_fn=lambda state, batch: step(state, batch, np.float32(1))
        )

    monkeypatch.setattr(loop_module, "make_program", with_host_scalar)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(prepare_run(tiny_config(mesh__fsdp=8), tmp_path / "argument"))
    monkeypatch.setattr(loop_module, "make_program", make)
    write = MetricsLog.write
    monkeypatch.setattr(
        MetricsLog, "write", lambda self, r: write(self, r | {"x": float(jnp.ones(()))})
    )
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(prepare_run(tiny_config(mesh__fsdp=8), tmp_path / "log"))
    assert len(read_metrics(tmp_path / "log")) <= 1


def test_time_adds_up_over_a_crash_and_a_restart(tiny_config, tmp_path, monkeypatch):
    """The log fails at step 4; the run goes on from step 2 and does step 3 again."""
    run, write = tmp_path / "run", MetricsLog.write

    def fail_at_4(self, record):
        if record["step"] == 4:
            raise OSError("no space")
        write(self, record)

    monkeypatch.setattr(MetricsLog, "write", fail_at_4)
    with pytest.raises(OSError, match="no space"):
        train(prepare_run(tiny_config(mesh__fsdp=8), run))
    monkeypatch.setattr(MetricsLog, "write", write)
    train(prepare_run(tiny_config(mesh__fsdp=8), run))
    starts = read_goodput(run)
    secs = summarize(starts)
    wall = starts[-1]["ended"] - starts[0]["began"]
    assert sum(secs.values()) == pytest.approx(wall)
    assert [start["first_step"] for start in starts] == [0, 2] and starts[0]["lost_steps"] == 1
    assert secs["lost_work"] > 0 and secs["gap"] > 0 and secs["compile"] > 0
    assert starts[1]["last_step"] == 6
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_a_run_saves_by_time_and_goes_on_from_there_bit_for_bit(tiny_config, tmp_path, monkeypatch):
    """The log fails at step 5; the run goes on from step 4, which no `save_every_steps` asked for.

    What its last step is compared by is the mean over all six steps, as without saves by time.
    """
    whole, run, write = tmp_path / "whole", tmp_path / "run", MetricsLog.write
    keys = {"mesh__fsdp": 8, "checkpoint__save_every_steps": 6}
    train(prepare_run(tiny_config(**keys), whole))
    config = tiny_config(**keys, checkpoint__save_every_secs=1e-6)

    def fail_at_5(self, record):
        if record["step"] == 5:
            raise OSError("no space")
        write(self, record)

    monkeypatch.setattr(MetricsLog, "write", fail_at_5)
    with pytest.raises(OSError, match="no space"):
        train(prepare_run(config, run))
    assert layout.complete_steps(run / "checkpoints") == [4]
    assert layout.read_metrics(run / "checkpoints" / "4") == {}
    monkeypatch.setattr(MetricsLog, "write", write)
    train(prepare_run(config, run))
    assert_same_state(run / "checkpoints", whole / "checkpoints")
    assert steady(read_metrics(run)) == steady(read_metrics(whole))
    compared = [layout.read_metrics(path / "checkpoints" / "6") for path in (run, whole)]
    assert compared[0] == compared[1] and compared[0]["loss"] > 0
    starts = read_goodput(run)
    assert [start["first_step"] for start in starts] == [0, 4]
    assert starts[0]["secs"]["checkpoint"] > 0


def test_a_reader_that_fails_says_what_it_says(tiny_config, tmp_path):
    run = prepare_run(tiny_config(mesh__fsdp=8), tmp_path / "run")
    iterate = run.loader.iterate

    def broken(*args):
        yield from list(iterate(*args))[:3]
        raise ValueError("windows /w: window 7 is damaged.")

    run.loader.iterate = broken
    with pytest.raises(ValueError, match="^windows /w: window 7 is damaged"):
        train(run)
    assert json.loads((tmp_path / "run" / "goodput.json").read_text())["starts"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"evaluate__windows_dir": "/no/such"}, "^evaluate.windows_dir: must be a directory"),
        ({"train__wandb_project": "p"}, "^train.wandb_project: needs the package wandb, got none"),
        (
            {"checkpoint__best_metric": "eval_loss"},
            r"^evaluate.windows_dir: must be given for checkpoint.best_metric \(eval_loss\)",
        ),
        (
            {"checkpoint__best_metric": "eval_loss", "evaluate__windows_dir": "/w"},
            "^checkpoint.save_every_steps: must be a multiple of evaluate.every_steps",
        ),
        ({"train__straggler_ratio": 1.0}, "^train.straggler_ratio: must be above 1, got 1.0"),
        (
            {"train__abort_on_hang": True, "train__hang_secs": 0},
            "^train.hang_secs: must be above 0",
        ),
        ({"train__profile_start_step": 9}, "^train.profile_start_step: must be 0"),
        ({"train__prefetch_batches": 0}, "^train.prefetch_batches: must be at least 1"),
    ],
)
def test_what_cannot_work_is_said_before_any_device_is_used(
    keys, message, tiny_config, tmp_path, monkeypatch
):
    find = "ellama_jax.train.tracking.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    with pytest.raises(ValueError, match=message):
        prepare_run(tiny_config(**keys), tmp_path / "run")


def test_training_text_is_no_held_out_text(tiny_config, windows_dir, tmp_path):
    with pytest.raises(ValueError, match="must hold text that is not trained on"):
        prepare_run(tiny_config(evaluate__windows_dir=windows_dir), tmp_path / "run")
