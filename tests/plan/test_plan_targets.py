"""Names of targets, and sizes that do not go onto them."""

import pytest

from ellama_jax.config import load_config
from ellama_jax.plan.targets import (
    axis_sizes,
    check_compiler,
    check_sizes,
    compiler_environment,
    parse_targets,
)


def config(*overrides):
    given = [f"--config.{override}" for override in overrides]
    return load_config(["--config", "configs/ellama.py", *given], "plan")[0]


def one(name):
    return parse_targets(name)[0]


def test_names_between_commas_are_targets_with_their_devices():
    targets = parse_targets("v5p-128, v6e-256,2xv6e-256,tpu7x-8,cpu-8")
    assert [target.num_devices for target in targets] == [64, 256, 512, 8, 8]
    assert [target.num_slices for target in targets] == [1, 1, 2, 1, 1]
    assert [target.price_key for target in targets] == ["v5p", "v6e", "v6e", "tpu7x", "cpu"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("", "must name one or more"),
        (" , ", "must name one or more"),
        ("v5p-10", "nearest: v5p-8 and v5p-16"),
        ("v9-8", "generation among v4, v5e, v5p, v6e, tpu7x"),
        ("cpu-0", "named like cpu-8"),
        ("cpu", "named like cpu-8"),
        ("v5p-8,v5p:2x2x1", "got v5p-8 twice"),
    ],
)
def test_what_nobody_makes_is_refused(names, said):
    with pytest.raises(ValueError, match=said):
        parse_targets(names)


@pytest.mark.parametrize(
    ("overrides", "target", "said"),
    [
        (["mesh.fsdp=8"], "v5p-8", r"number of devices \(4\).*; fsdp 4 fits 4 devices.*on v5p-8"),
        (["mesh.fsdp=-1", "mesh.data=-1"], "v5p-8", "At most one axis may be -1"),
        (["data.global_batch_size=6"], "v5p-8", r"\(4\), got 6; 4 or 8 fit \(on v5p-8"),
        (["data.global_batch_size=6", "train.num_microbatches=2"], "v5p-8", "got 6; 8 fits"),
        (
            ["mesh.context=4", "data.seq_len=8190"],
            "v5p-8",
            "mesh.context: must divide data.seq_len",
        ),
        (["mesh.tensor=16"], "v5p-128", r"mesh.tensor: must divide kv_heads \(8\), got 16"),
        (["mesh.fsdp=-1"], "2xv6e-256", "mesh.data=2 fits"),
        (
            ["model.attention.kernel=cudnn", "data.global_batch_size=8"],
            "v5p-8",
            r"cudnn needs a GPU, got tpu; use auto or blockwise \(on v5p-8",
        ),
    ],
)
def test_sizes_that_do_not_fit_say_what_would(overrides, target, said):
    with pytest.raises(ValueError, match=said):
        check_sizes(config(*overrides), one(target))


def test_sizes_that_fit_pass_and_minus_one_is_what_remains():
    rows = config("data.global_batch_size=512", "mesh.data=2")
    check_sizes(rows, one("2xv6e-256"))
    assert axis_sizes(rows, one("2xv6e-256")) == {
        "data": 2, "fsdp": 256, "context": 1, "tensor": 1
    }  # fmt: skip


def test_a_compiling_process_leaves_the_devices_of_this_machine_alone():
    mine = {"PATH": "/bin", "JAX_PLATFORMS": "tpu", "XLA_FLAGS": "--xla_of_a_run"}
    tpu = compiler_environment(one("v5p-8"), mine)
    assert tpu["JAX_PLATFORMS"] == "cpu" and tpu["PATH"] == "/bin"
    fake = compiler_environment(one("cpu-6"), mine)
    assert fake["XLA_FLAGS"] == "--xla_force_host_platform_device_count=6"
    assert "JAX_PLATFORMS" not in compiler_environment(one("gpu"), mine)
    assert mine["JAX_PLATFORMS"] == "tpu"


def test_a_missing_tpu_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu: must be installed.*pip install 'jax\[tpu\]'"):
        check_compiler(parse_targets("cpu-8,v5p-8"))
    check_compiler(parse_targets("cpu-8"))
