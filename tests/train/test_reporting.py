"""What a run says of itself before its first step, and of what was refused."""

import dataclasses

import jax
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.train import loop
from ellama_jax.train.loop import main_train, prepare_run
from ellama_jax.train.reporting import say_what_runs


@pytest.fixture
def said(tiny_config, tmp_path, capsys):
    """Returns `say(ramp, **overrides)`: the lines that a run begins with."""

    def say(ramp=None, **overrides):
        config = tiny_config(**overrides)
        data = dataclasses.replace(config.data, batch_ramp=ramp or {})
        run = prepare_run(dataclasses.replace(config, data=data), tmp_path / "run")
        say_what_runs(run, make_mesh(dataclasses.asdict(config.mesh)), 0)
        return capsys.readouterr().out.splitlines()

    return say


def test_a_run_says_its_mesh_its_tokens_and_how_attention_is_computed(said):
    lines = said(mesh__fsdp=4, mesh__tensor=2)
    assert lines[0].startswith("model tiny: 0.1M parameters on mesh data 1, fsdp 4, context 1,")
    assert lines[1] == "6 steps of 256 tokens, peak learning rate 0.003"
    assert lines[2] == "attention: dense; remat none"


def test_a_ramp_is_said_with_its_first_and_its_last_batch(said):
    lines = said({"1": 2, "3": 4})
    assert lines[1].startswith("6 steps of 64 growing to 256 tokens, ")


def test_a_flag_that_the_compiler_does_not_know_is_one_line(tiny_arguments, tmp_path):
    wrong = "--config.train.xla_flags={'xla_no_such_flag': 'true'}"
    with pytest.raises(ValueError, match="^train.xla_flags: must be flags of .*xla_no_such_flag"):
        main_train([*tiny_arguments, wrong, f"--workdir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40G of 31G hbm.\nLong.",
         "^the step needs more memory than a device has: .*Used 40G of 31G hbm. Take model.remat=auto"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem.",
         "^model.attention.block_q, block_kv: must fit the chip's own memory, got: "),
    ],
    ids=["hbm", "vmem"],
)  # fmt: skip
def test_too_much_memory_is_one_line_that_says_what_needs_less(
    refused, said, tiny_arguments, tmp_path, monkeypatch
):
    def train(run):
        raise jax.errors.JaxRuntimeError(refused)

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(ValueError, match=said) as raised:
        main_train([*tiny_arguments, f"--workdir={tmp_path / 'run'}"])
    assert "\n" not in str(raised.value)
