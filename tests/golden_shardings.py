"""Where a shipped configuration's state and batch lie on its slice, as text.

Rewrite the goldens after a change that is meant, and read the difference:

    python tests/golden_shardings.py
"""

import dataclasses
import os
import sys
from pathlib import Path

import jax
import numpy as np

from ellama_jax.config import configs_dir, load_config
from ellama_jax.core.sharding import describe, make_mesh
from ellama_jax.core.topology import HARDWARE, Topology, parse_topology
from ellama_jax.model.llama import param_dims
from ellama_jax.model.presets import get_preset
from ellama_jax.train.program import make_program

GOLDENS = Path(__file__).resolve().parent / "goldens" / "shardings"
# Configuration, slices (None: this machine) and what the command line adds to it.
RUNS = (
    ("ellama.py:8b", "v5p-32", ()),
    ("ellama.py:8b", "2xv5p-32", ("mesh.data=2",)),
    ("ellama.py:70b", "v5p-128", ("mesh.fsdp=32", "mesh.tensor=2")),
    ("ellama.py:8b_v5p-256", "v5p-256", ()),
    ("ellama.py:8b_v6e-128", "v6e-128", ()),
    ("ellama.py:70b_v5p-512", "v5p-512", ()),
    ("ellama.py:70b_2xv6e-256", "2xv6e-256", ()),
    ("demo.py:smollm2-135m", None, ()),
    ("demo.py:tiny", None, ()),
)


@dataclasses.dataclass(frozen=True)
class AbsentDevice:
    """What a mesh and a sharding ask of a TPU's device, without libtpu."""

    id: int
    slice_index: int
    coords: tuple[int, ...]
    core_on_chip: int
    process_index: int
    device_kind: str = "absent"
    platform: str = "tpu"


def absent_devices(topology: Topology) -> list[AbsentDevice]:
    """Returns one stand-in a device of the slices, in the order of libtpu's ids."""
    cores = HARDWARE[topology.generation].devices_per_chip
    found = []
    for index in range(topology.num_slices):
        for place in np.ndindex(*reversed(topology.shape)):  # the first axis runs fastest
            coords = (*reversed(place), 0)[:3]
            host = (index, *(c // bound for c, bound in zip(coords, (2, 2, 1), strict=True)))
            for core in range(cores):
                found.append(AbsentDevice(len(found), index, coords, core, hash(host)))
    return found


def golden_name(config: str, topology: str | None) -> str:
    return f"{config.replace('.py:', '-')}_{topology or 'cpu'}.txt"


def render(config_name: str, topology: str | None, overrides) -> str:
    """Returns the golden's text: the mesh, then every leaf of state and batch, one a line."""
    file = configs_dir() / config_name
    arguments = [f"--config={file}", *(f"--config.{item}" for item in overrides)]
    config, _ = load_config(arguments, "train")
    model = get_preset(config.model.preset)
    if topology is None:
        devices = jax.devices("cpu")[:1]
    else:
        devices = absent_devices(parse_topology(topology))
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
    program = make_program(config, model, mesh, num_sources=10)
    size = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines = [f"{config_name} on {topology or 'this machine'}: {size}"]
    dims = param_dims(model)
    batch = {"source_ids": ("batch",)}
    for path, leaf in flatten(program.state):
        lines.append(describe(path, leaf, dims_of_leaf(path, leaf, dims)))
    for name, leaf in sorted(program.batch.items()):
        lines.append(describe(f"batch/{name}", leaf, batch.get(name, ("batch", "length"))))
    return "\n".join(lines) + "\n"


def flatten(tree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def dims_of_leaf(path: str, leaf, dims) -> tuple[str, ...]:
    """Returns the dims of the parameter that the path ends with; what is no parameter has `-`."""
    for name, of_param in dims.items():
        if path.endswith(f"/{name}") and len(of_param) == leaf.ndim:
            return of_param
    return ("-",) * leaf.ndim


def main() -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    wanted = {golden_name(name, topology): (name, topology, o) for name, topology, o in RUNS}
    for old in GOLDENS.glob("*.txt"):
        if old.name not in wanted:
            old.unlink()
    for file, run in wanted.items():
        (GOLDENS / file).write_text(render(*run))
        print(GOLDENS / file)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
