"""What a run's step is made for: checked by arithmetic, before anything is compiled."""

import dataclasses

import pytest

from ellama_jax.config import load_config
from ellama_jax.core.sharding import make_mesh
from ellama_jax.model.presets import get_preset
from ellama_jax.train.program import check_model, check_sizes, make_program

ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


def config(*overrides, ramp=None):
    given = [f"--config.{override}" for override in overrides]
    found, _ = load_config(["--config", "configs/ellama.py", *given], "train")
    data = dataclasses.replace(found.data, batch_ramp=ramp or {})
    return dataclasses.replace(found, data=data)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.preset=llama3.1-9b"], "did you mean llama3.1-8b"),
        (["data.seq_len=262144"], r"max_seq_len \(131072\), got 262144"),
        (["model.remat=some"], "model.remat: must be one of"),
        (["model.preset=llama3.2-1b"], "base_peak_learning_rate: must be set"),
    ],
)
def test_what_no_mesh_helps_is_refused(overrides, said):
    rows = config(*overrides)
    with pytest.raises(ValueError, match=said):
        check_model(rows, get_preset(rows.model.preset))


@pytest.mark.parametrize(
    ("overrides", "sizes", "platform", "said"),
    [
        ([], {"fsdp": 64}, "tpu", r"data.global_batch_size: .* \(64\), got 1440; 1408 or 1472 fit"),
        ([], {"tensor": 16}, "tpu", r"mesh.tensor: must divide kv_heads \(8\), got 16"),
        (["model.attention.kernel=splash"], {}, "cpu", "splash needs a TPU, got cpu; use auto or"),
        (["model.attention.kernel=triton"], {"context": 2}, "gpu", "triton works on whole rows"),
        (["model.attention.block_q=100"], {}, "tpu", "model.attention.block_q: must be a multiple"),
        (["data.seq_len=8000"], {"context": 8}, "tpu", "must be a multiple of 2048 for kernel spl"),
        (["evaluate.tasks=mmlu", "evaluate.row_length=66"], {"context": 2}, "tpu",
         r"^evaluate.row_length: must be .* mesh.context \(4\)"),
    ],
)  # fmt: skip
def test_what_a_mesh_or_a_platform_cannot_do_is_told_what_fits(overrides, sizes, platform, said):
    rows = config(*overrides)
    with pytest.raises(ValueError, match=said):
        check_sizes(rows, get_preset(rows.model.preset), ONE | sizes, platform)


def test_every_size_of_a_ramp_is_divided_over_the_mesh():
    model, mesh = get_preset("llama3.1-8b"), ONE | {"data": 15, "fsdp": 8}
    check_sizes(config(ramp={"2000": 360, "300": 240}), model, mesh, "tpu")
    with pytest.raises(ValueError, match=r"^data.batch_ramp.300: .* \(120\), got 180; 120 or 240"):
        check_sizes(config(ramp={"2000": 360, "300": 180}), model, mesh, "tpu")


def test_a_ramp_is_compiled_ahead_for_its_largest_batch():
    rows = config(
        "model.preset=tiny", "data.seq_len=64", "data.global_batch_size=16", ramp={"5": 8}
    )
    mesh = make_mesh(dataclasses.asdict(rows.mesh))
    program = make_program(rows, get_preset("tiny"), mesh, 2)
    assert program.batch["inputs"].shape == (16, 64)
    assert program.batch["source_ids"].shape == (16,)


def test_a_mesh_that_cannot_hold_a_run_is_refused_before_it_is_traced():
    rows = config("model.preset=tiny", "data.seq_len=64", "data.global_batch_size=12")
    mesh = make_mesh(dataclasses.asdict(rows.mesh))
    with pytest.raises(ValueError, match=r"data.global_batch_size: .* \(8\), got 12; 8 or 16 fit"):
        make_program(rows, get_preset("tiny"), mesh, 2)
