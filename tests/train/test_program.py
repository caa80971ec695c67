"""What a run compiles: `auto` recomputes as little as fits."""

import dataclasses

import jax
import pytest

from ellama_jax.config import load_config
from ellama_jax.core.sharding import make_mesh
from ellama_jax.model.presets import get_preset
from ellama_jax.train import loop as loop_module
from ellama_jax.train import program as program_module
from ellama_jax.train.loop import train
from ellama_jax.train.metrics import read_metrics
from ellama_jax.train.program import Program, compile_program
from ellama_jax.train.run import prepare_run
from ellama_jax.train.validation import Validation

FULL_MEMORY = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40G of 31G hbm."


@pytest.fixture
def compiler(monkeypatch):
    """Returns `set_refusals({policy: message})` and the policies that were then compiled."""
    asked, refusals = [], {}

    def lower(self):
        class Lowered:
            def compile(self):
                if asked[-1] in refusals:
                    raise jax.errors.JaxRuntimeError(refusals[asked[-1]])
                return f"compiled with {asked[-1]}"

        return Lowered()

    monkeypatch.setattr(Program, "lower", lower)
    return refusals.update, asked


def compile_with(remat, on_try):
    arguments = [
        "--config", "configs/ellama.py:8b", "--config.model.preset=tiny",
        f"--config.model.remat={remat}", "--config.data.seq_len=64",
        "--config.data.global_batch_size=8",
    ]  # fmt: skip
    config, _ = load_config(arguments, "train")
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    return compile_program(config, get_preset("tiny"), mesh, 3, on_try)


def test_auto_takes_the_first_policy_that_fits(compiler):
    set_refusals, asked = compiler
    set_refusals({"none": FULL_MEMORY, "dots": FULL_MEMORY})
    config, program = compile_with("auto", asked.append)
    assert asked == ["none", "dots", "attention"]
    assert config.model.remat == "attention" and program.compiled == "compiled with attention"


def test_where_nothing_fits_the_last_refusal_is_told(compiler):
    set_refusals, asked = compiler
    set_refusals(dict.fromkeys(["none", "dots", "attention", "full"], FULL_MEMORY))
    set_refusals({"offload": "RESOURCE_EXHAUSTED: the last of five"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="the last of five"):
        compile_with("auto", asked.append)


def test_a_failure_that_is_not_about_memory_ends_the_search(compiler):
    set_refusals, asked = compiler
    set_refusals({"none": "INTERNAL: Mosaic failed"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic failed"):
        compile_with("auto", asked.append)
    assert asked == ["none"]


def test_a_named_policy_is_compiled_alone(compiler):
    set_refusals, asked = compiler
    set_refusals({"full": FULL_MEMORY})
    with pytest.raises(jax.errors.JaxRuntimeError, match="Used 40G"):
        compile_with("full", asked.append)
    assert asked == ["full"]


def test_where_a_compiler_refuses_nothing_the_peak_decides(compiler, monkeypatch):
    _, asked = compiler
    monkeypatch.setattr(program_module, "_fits", lambda compiled, devices: "dots" in compiled)
    assert compile_with("auto", asked.append)[0].model.remat == "dots"


def test_what_one_process_has_no_room_for_no_process_takes(compiler, monkeypatch):
    _, asked = compiler
    others = {"none": b"0", "dots": b"1"}  # the process with less memory
    monkeypatch.setattr(program_module, "exchange", lambda word: lambda: [word, others[asked[-1]]])
    assert compile_with("auto", asked.append)[0].model.remat == "dots"


def test_a_run_with_auto_is_the_run_of_the_policy_it_takes(
    tiny_config, held_out, tmp_path, monkeypatch, capsys
):
    """On a CPU everything fits. The program compiled ahead is the one that runs."""
    given, make = [], Validation.__init__

    def note(self, config, *rest):
        given.append(config.model.remat)
        make(self, config, *rest)

    def compile_once(*args):
        config, program = compile_program(*args)

        def compiled_again(state, batch):
            raise AssertionError("the step was compiled a second time")

        return config, dataclasses.replace(program, step_fn=compiled_again)

    monkeypatch.setattr(Validation, "__init__", note)
    monkeypatch.setattr(loop_module, "compile_program", compile_once)
    losses = {}
    for remat in ("auto", "none"):
        run = tmp_path / remat
        config = tiny_config(mesh__fsdp=8, model__remat=remat, evaluate__windows_dir=held_out)
        train(prepare_run(config, run))
        losses[remat] = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert losses["auto"] == losses["none"]
    assert "model.remat=auto: compiling with none" in capsys.readouterr().err
    assert '"remat": "auto"' in (tmp_path / "auto" / "config.json").read_text()
    assert given == ["none", "none"]


def test_a_batch_of_another_size_is_compiled_when_it_comes(tiny_config, tmp_path):
    """A batch that grows: the size compiled ahead is the last one."""
    config = tiny_config(train__steps=4, model__remat="auto", mesh__fsdp=4, mesh__data=-1)
    ramp = dataclasses.replace(config.data, batch_ramp={"2": 8}, global_batch_size=16)
    train(prepare_run(dataclasses.replace(config, data=ramp), tmp_path))
    assert len(read_metrics(tmp_path)) == 4
