"""One compilation: a run's step for a target, and what is read from it.

Runs as a process of its own, `python -m ellama_jax.plan.program REQUEST ANSWER`, started by
plan/compile.py, which says why. What is in the compiled program is read by plan/hlo.py; what it means
for a run is said elsewhere.
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from ellama_jax.config import RunConfig, batch_sizes, config_from_mapping
from ellama_jax.core.limits import parse_json
from ellama_jax.core.sharding import make_mesh, rows_by_process
from ellama_jax.core.topology import get_devices, hardware_of, parse_topology
from ellama_jax.model.attention import resolve_attention
from ellama_jax.model.flops import model_flops
from ellama_jax.model.presets import get_preset
from ellama_jax.model.remat import REMAT_POLICIES
from ellama_jax.plan.hlo import analyze_step, summarize_collectives
from ellama_jax.plan.hlo_memory import (
    device_bytes,
    parse_out_of_memory,
    split_memory,
    whole_bytes,
)
from ellama_jax.plan.hlo_module import serialize
from ellama_jax.plan.roofline import roofline
from ellama_jax.train.program import compile_program, make_program, with_remat
from ellama_jax.weights.layout import installed_version

_MOST_ALLOCATIONS = 8  # in an answer
TOKEN_BYTES = 4  # of a window on disk, uint32


def compile_request(request: Mapping, devices: list) -> dict:
    """Compiles what a request asks for.

    Args:
        request: `config` (nested values), `num_sources`, and `text_path`, where the compiled
            program, or the compiler's refusal, is written.
        devices: for which; they need not be in this machine.

    Returns:
        `outcome` (compiled | no_fit | failed) and what is known of it; bytes are a device's.

    Raises:
        ValueError: for what a user can change: a mesh that does not fit, a kernel that is not there.
    """
    config = config_from_mapping(request["config"])
    model, num_sources = get_preset(config.model.preset), request["num_sources"]
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
    # The state is the same whatever is recomputed.
    program = make_program(with_remat(config, REMAT_POLICIES[-1]), model, mesh, num_sources)
    attention = resolve_attention(
        config.model.attention, devices[0].platform, config.data.seq_len, mesh.shape["context"]
    )
    answer = {
        "mesh": dict(program.mesh.shape),
        "attention_kernel": attention.kernel,
        "hosts": count_hosts(config, mesh),
        "model_flops": _model_flops(config),
        "state": {
            "params_bytes": device_bytes(program.state.params),
            "optimizer_bytes": device_bytes(program.state.opt_state),
            "batch_bytes": device_bytes(program.batch),
        },
        "checkpoint_bytes": whole_bytes((program.state.params, program.state.opt_state)),
    }
    text_path = Path(request["text_path"])
    start = time.monotonic()
    tried = []

    def note(remat):
        tried.append(remat)
        _say(f"compiling:{remat}")

    try:
        config, program = compile_program(config, model, mesh, num_sources, note)
    except jax.errors.JaxRuntimeError as error:
        text_path.write_text(str(error))
        secs = time.monotonic() - start
        return {**answer, **refusal(str(error)), "remat": tried[-1], "compile_secs": secs}
    answer |= {"remat": config.model.remat, "compile_secs": time.monotonic() - start}
    compiled = program.compiled
    _say("reading")
    text_path.write_text(compiled.as_text())
    memory = dataclasses.asdict(split_memory(compiled.memory_analysis(), program))
    is_tpu = devices[0].platform == "tpu"
    wrap = parse_topology(request["target"]).wrap if is_tpu else ()
    costs = _costs(compiled, program.mesh, config, wrap)
    return {**answer, "outcome": "compiled", "memory": memory, **costs}


def count_hosts(config: RunConfig, mesh: Mesh) -> dict:
    """Returns how many processes feed the mesh, and the rows and bytes of windows each reads a step.

    Those of the largest batch; that every batch of a ramp reaches its devices is checked.
    """
    for _, rows in batch_sizes(config.data):
        fed = rows_by_process(mesh, rows)
    rows = max(len(mine) for mine in fed.values())
    return {"count": len(fed), "rows": rows, "bytes": rows * config.data.seq_len * TOKEN_BYTES}


def describe_devices(devices: list) -> dict:
    """Returns what is known of a target's devices without compiling a step."""
    return {
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "limit_bytes": memory_limit(devices[0]),
        "versions": versions(devices[0]),
    }


def target_devices(name: str) -> list:
    """Returns the devices of a target; those of a TPU slice need not be in this machine."""
    if name.startswith("cpu-"):
        return jax.devices("cpu")
    if name != "gpu":
        return get_devices(parse_topology(name))
    try:
        return jax.devices("gpu")
    except RuntimeError as error:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            "topology: gpu needs a GPU in this machine and JAX's plugin for it "
            f"(pip install 'jax[cuda13]'), got devices of {found} only."
        ) from error


def memory_limit(device) -> int | None:
    """Returns how much of a device's memory programs may use, None where nobody says.

    A TPU compiler tells when it is asked for too much, which takes it 20 ms.
    """
    if device.platform == "cpu":
        return None
    if device.platform == "gpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    too_much = jax.ShapeDtypeStruct((2**12, 2**30), "int8", sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(too_much).compile()
    except jax.errors.JaxRuntimeError as error:
        found = parse_out_of_memory(str(error))
        return found.available_bytes if found else None
    return None


def versions(device) -> dict[str, str | None]:
    """Returns the versions that decide what is compiled."""
    found = {"jax": installed_version("jax"), "jaxlib": installed_version("jaxlib")}
    if device.platform == "tpu":
        found["libtpu"] = installed_version("libtpu")
    return found


def refusal(text: str) -> dict:
    """Reads why a program was not compiled.

    Returns:
        `outcome` no_fit with `out_of_memory`, or failed; both with `message`, the first line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    answer = {"outcome": "failed", "message": lines[0] if lines else "no message"}
    found = parse_out_of_memory(text)
    # Too much for a kernel in the chip's own memory (vmem, smem) is no matter of what fits a device.
    if found is not None and found.space not in ("vmem", "smem"):
        answer["outcome"] = "no_fit"
        answer["out_of_memory"] = dataclasses.asdict(found)
        answer["out_of_memory"]["largest"] = answer["out_of_memory"]["largest"][:_MOST_ALLOCATIONS]
    return answer


def _model_flops(config: RunConfig) -> dict:
    flops = model_flops(get_preset(config.model.preset), config.data.seq_len)
    return {**dataclasses.asdict(flops), "total_per_token": flops.total_per_token}


def _costs(compiled, mesh: Mesh, config: RunConfig, wrap: tuple[bool, ...]) -> dict:
    """Returns what the compiled program says; where it cannot be read, why.

    Args:
        wrap: which axes of a TPU slice are rings.
    """
    try:
        costs = analyze_step(serialize(compiled), mesh)
    except ValueError as error:
        return {"unread": str(error)}
    found = {
        "flops": {**dataclasses.asdict(costs.flops), "total": costs.flops.total},
        "traffic": dataclasses.asdict(costs.traffic),
        "peak_parts": costs.peak_bytes,
        "largest": [dataclasses.asdict(item) for item in costs.largest[:_MOST_ALLOCATIONS]],
    }
    hardware = hardware_of(mesh.devices.flat[0].device_kind)
    hidden = None
    if hardware is not None:
        flops = model_flops(get_preset(config.model.preset), config.data.seq_len)
        tokens = config.data.global_batch_size * config.data.seq_len
        bounds = roofline(costs, flops, tokens, mesh, hardware, wrap)
        found["roofline"] = dataclasses.asdict(bounds)
        hidden = found["roofline"].pop("hidden")
    sums = summarize_collectives(costs.collectives, hidden)
    found["collectives"] = [dataclasses.asdict(item) for item in sums]
    return found


def _say(phase: str) -> None:
    """Tells the parent what is being done."""
    print(phase, flush=True)


def main(argv: list[str]) -> None:
    """Answers one request file; a user's mistake is an answer too.

    A request names a `target`; without a `config` its devices are described, nothing is compiled.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    request_path, answer_path = map(Path, argv)
    try:
        request = parse_json(request_path.read_text())
        devices = target_devices(request["target"])
        answer = {"outcome": "described", **describe_devices(devices)}
        if "config" in request:
            answer.update(compile_request(request, devices))
    except ValueError as error:
        answer = {"outcome": "invalid", "message": str(error)}
    answer_path.write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
