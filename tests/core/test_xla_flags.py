"""Compiler flags: one table, the same at compile and at launch."""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ellama_jax.config import configs_dir, load_config
from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.topology import GENERATIONS, get_devices, parse_topology
from ellama_jax.core.xla_flags import FLAGS, flags_for, flags_for_device, launch_environment, main
from ellama_jax.model.presets import get_preset
from ellama_jax.plan.hlo_collectives import collectives_in
from ellama_jax.plan.hlo_module import read_module, serialize
from ellama_jax.train import program

SMALLEST = {"v4": "v4-8", "v5e": "v5e-4", "v5p": "v5p-8", "v6e": "v6e-4", "tpu7x": "tpu7x-8"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_compiler_accepts_every_flag(generation):
    """libtpu's own compiler, for chips that are not here; it refuses a flag it does not know."""
    pytest.importorskip("libtpu")
    device = get_devices(parse_topology(SMALLEST[generation]))[0]
    place = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((128, 128), "bfloat16", sharding=place)
    lowered = jax.jit(lambda x: x @ x).lower(x)
    assert lowered.compile(flags_for(generation)) is not None
    with pytest.raises(Exception, match="No such compile option: 'xla_tpu_no_such_flag'"):
        lowered.compile({"xla_tpu_no_such_flag": "true"})


def test_a_launched_process_takes_the_same_flags_and_refuses_others():
    pytest.importorskip("libtpu")
    code = (
        "from ellama_jax.core.topology import get_devices, parse_topology; "
        "print(len(get_devices(parse_topology('v6e-4'))))"
    )

    def launch(flags):
        env = {**os.environ, **flags}
        argv = [sys.executable, "-c", code]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)

    flags = launch_environment("v6e")
    assert launch(flags).stdout == "4\n"
    wrong = {name: f"{text} --xla_tpu_no_such_flag=true" for name, text in flags.items()}
    assert launch(wrong).returncode != 0


def test_every_flag_has_a_reason_and_a_generation():
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names))
    for flag in FLAGS:
        assert len(flag.reason) > 20
        assert flag.generations and set(flag.generations) <= set(GENERATIONS)


def test_libtpu_s_own_flags_are_set_at_launch_and_are_no_compile_options():
    compile_options = flags_for("v6e")
    at_launch = launch_environment("v6e")["LIBTPU_INIT_ARGS"].split()
    assert {f"--{name}={value}" for name, value in compile_options.items()} < set(at_launch)
    own = [flag for flag in FLAGS if not flag.name.startswith("xla_")]
    assert own and not {flag.name for flag in own} & set(compile_options)
    assert {f"--{flag.name}={flag.value}" for flag in own} <= set(at_launch)


@pytest.mark.parametrize("name", ["v6e-16", "v5p-128"])
def test_gathers_and_scattered_sums_run_on_the_sparse_cores(name):
    """Over the whole slice, where the compiler's defaults wait and make the sum an all-reduce."""
    pytest.importorskip("libtpu")
    devices = get_devices(parse_topology(name))
    mesh = make_mesh({"data": 1, "fsdp": len(devices), "context": 1, "tensor": 1}, devices)

    def run(weights, gradients):
        gathered = jax.lax.all_gather(weights, "fsdp", axis=0, tiled=True)
        return gathered, jax.lax.psum_scatter(gradients * 2, "fsdp", tiled=True)

    parts, whole = PartitionSpec("fsdp"), PartitionSpec()
    function = jax.shard_map(
        run, mesh=mesh, in_specs=(parts, whole), out_specs=(whole, parts), check_vma=False
    )
    arrays = [
        jax.ShapeDtypeStruct((4096, 14336), "bfloat16", sharding=NamedSharding(mesh, spec))
        for spec in (parts, whole)
    ]

    def found(flags):
        compiled = jax.jit(function, compiler_options=flags).lower(*arrays).compile()
        module = read_module(serialize(compiled))
        entry = module.computations[module.entry]
        return {
            (collective.kind, instruction.proto.async_execution_thread)
            for instruction in entry.instructions
            for collective in collectives_in(module, entry, instruction, 1, mesh)
        }

    generation = name.split("-")[0]
    assert found(flags_for(generation)) == {
        ("all-gather", "sparsecore"), ("reduce-scatter", "sparsecore"),
    }  # fmt: skip
    assert found(None) == {("all-gather", ""), ("all-reduce", "")}


def test_changes_add_replace_and_take_away():
    table = flags_for("v5p")
    first = next(iter(table))
    assert flags_for("v5p", {"xla_a": "1", first: "other"}) == {
        **table,
        first: "other",
        "xla_a": "1",
    }
    assert first not in flags_for("v5p", {first: ""})
    assert flags_for_device("TPU v5") == table
    assert flags_for_device("cpu") == flags_for_device("NVIDIA H100 80GB HBM3") == {}


def config_with(**flags):
    config, _ = load_config([f"--config={configs_dir() / 'demo.py'}:tiny"], "train")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, xla_flags=flags))


def test_the_step_is_compiled_with_the_flags_of_its_devices(monkeypatch):
    """On a CPU none, and what the configuration adds reaches the compiler, which knows it not."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    made = program.make_program(config_with(xla_no_such="1"), get_preset("tiny"), mesh, 3)
    with pytest.raises(Exception, match="No such compile option: 'xla_no_such'"):
        made.lower().compile()
    asked = []
    monkeypatch.setattr(program, "flags_for_device", lambda kind, _: asked.append(kind) or {})
    program.make_program(config_with(), get_preset("tiny"), mesh, 3)
    assert asked == ["cpu"]


def test_a_flag_written_with_dashes_is_refused(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(
        "from configs import demo\ndef get_config():\n    config = demo.get_config('tiny')\n"
        "    config.train.xla_flags['--xla_a'] = '1'\n    return config\n"
    )
    with pytest.raises(ValueError, match=r"^train.xla_flags: must be a flag's name without dashes"):
        load_config([f"--config={file}"], "train")


def test_a_launch_reads_the_table_as_lines_of_a_shell(capsys):
    main(["2xv6e-64"])
    printed = capsys.readouterr().out
    argv = ["bash", "-c", f'{printed}printf %s "$LIBTPU_INIT_ARGS"']
    seen = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert {"LIBTPU_INIT_ARGS": seen} == launch_environment("v6e")


@pytest.mark.parametrize("argv", [[], ["v6e-65"], ["v6e-64", "xla_a"], ["v9-8"]])
def test_a_launch_of_no_known_slice_gets_one_line(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert printed.err.startswith("xla_flags: error: ") and printed.err.count("\n") == 1
