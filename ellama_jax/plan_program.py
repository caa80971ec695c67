"""One compilation: a run's step for a topology, and what the compiler says of it.

Runs as a process of its own, `python -m ellama_jax.plan_program REQUEST ANSWER`. The flags of a TPU
compiler are read once a process, what it aborts on ends the process, and what it allocates stays
allocated; so each compilation has one, started by plan_compile.py. What the numbers mean for a run
is said elsewhere.
"""

import dataclasses
import json
import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding

from ellama_jax.config import config_from_mapping
from ellama_jax.model.presets import get_preset
from ellama_jax.sharding import make_mesh
from ellama_jax.topology import get_devices, parse_topology
from ellama_jax.train.program import Program, make_program

_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_request(request: Mapping) -> dict:
    """Compiles what a request asks for.

    Args:
        request: `config` (nested values), `topology` (name), `num_sources`, and `text_path`, where
            the compiled program, or the compiler's refusal, is written.

    Returns:
        `outcome` (compiled | no_fit | failed) and what is known of it, sizes in bytes a chip.

    Raises:
        ValueError: for what a user can change: an unknown topology, a mesh that does not fit it.
    """
    config = config_from_mapping(request["config"])
    devices = target_devices(request["topology"])
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
    program = make_program(
        config, get_preset(config.model.preset), mesh, int(request["num_sources"])
    )
    answer = {
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_slices": len({getattr(device, "slice_index", 0) for device in devices}),
        "mesh": dict(mesh.shape),
        "limit_bytes": memory_limit(devices[0]),
        "arguments": argument_bytes(program),
    }
    _say("tracing")
    start = time.monotonic()
    lowered = program.lower()
    answer["lower_secs"] = time.monotonic() - start
    _say("compiling")
    start = time.monotonic()
    text_path = Path(request["text_path"])
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text_path.write_text(str(error))
        return {**answer, **refusal(str(error)), "text_path": str(text_path)}
    answer["compile_secs"] = time.monotonic() - start
    _say("reading")
    text_path.write_text(compiled.as_text())
    return {**answer, "outcome": "compiled", "memory": memory_bytes(compiled)}


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
            f"topology: gpu needs a GPU in this machine and JAX's plugin for it "
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
        return refusal(str(error)).get("limit_bytes")
    return None


def argument_bytes(program: Program) -> dict[str, int]:
    """Returns what a chip holds of the state and of a batch, before any padding of the layout."""
    state = program.state
    return {
        "params_bytes": _chip_bytes(state.params),
        "optimizer_bytes": _chip_bytes(state.opt_state),
        "batch_bytes": _chip_bytes(program.batch),
    }


def _chip_bytes(tree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def memory_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the compiler's own account of a program's memory on one chip.

    `peak_bytes` is the most that is allocated at one time, arguments included; `temporaries_bytes`,
    the sum of all temporaries, is more than what is alive together.
    """
    stats = compiled.memory_analysis()
    return {
        "peak_bytes": stats.peak_memory_in_bytes,
        "arguments_bytes": stats.argument_size_in_bytes,
        "temporaries_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
        "host_bytes": stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
    }


def refusal(text: str) -> dict:
    """Reads why a program was not compiled.

    Args:
        text: the compiler's error.

    Returns:
        `outcome` no_fit with `needed_bytes` and `limit_bytes` of what was asked for, where they
        are said, and the `largest` allocations; or failed. Both with `message`, its first line.

    >>> text = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
    >>> answer = refusal(text + " temporaries (36.00G) exceeds available HBM (15.75G).")
    >>> answer["outcome"], answer["needed_bytes"] / 2**30, answer["limit_bytes"] / 2**30
    ('no_fit', 36.0, 15.75)
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    answer = {"outcome": "failed", "message": lines[0] if lines else "no message"}
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return answer
    answer["outcome"] = "no_fit"
    needed = re.search(r"temporaries \((\S+?)\) exceeds available HBM \((\S+?)\)", text)
    if needed is None:
        needed = re.search(r"Used (\S+) of (\S+) hbm", text)
    if needed is not None:
        answer["needed_bytes"], answer["limit_bytes"] = map(_parse_size, needed.groups())
    answer["temporaries_alone"] = "HLO temporaries" in answer["message"]
    answer["largest"] = _largest_allocations(text)
    return answer


def _largest_allocations(text: str) -> list[dict]:
    """Returns the allocations a refusal lists, largest first, as size, shape and operation."""
    found = []
    for part in re.split(r"\n\s*\d+\.\s+Size:", text)[1:]:
        size = part.split("\n", 1)[0].strip()
        shape = re.search(r"Shape:\s*(\S+)", part)
        operator = re.search(r'op_name="([^"]*)"', part)
        found.append(
            {
                "bytes": _parse_size(size),
                "shape": shape[1] if shape else "",
                "operation": operator[1] if operator else "",
            }
        )
    return found


def _parse_size(text: str) -> int:
    """Reads the compiler's sizes, as 36.23G, 512.0M, 4.0K or 128B."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)(?:i?B)?\.?", text.strip()).groups()
    return int(float(number) * _SIZE_UNITS[unit])


def _say(phase: str) -> None:
    """Tells the parent what is being done."""
    print(phase, flush=True)



def main(argv: list[str]) -> None:
    """Answers one request file; a user's mistake is an answer too."""
    logging.getLogger("jax").setLevel(logging.ERROR)
    request_path, answer_path = map(Path, argv)
    try:
        answer = compile_request(json.loads(request_path.read_text()))
    except ValueError as error:
        answer = {"outcome": "invalid", "message": str(error)}
    answer_path.write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
