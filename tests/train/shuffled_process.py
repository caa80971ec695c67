"""An `ellama` verb whose mesh lies over the devices of all processes in a random order.

Fake CPU devices lie in a row, process by process; those of a pod do not. `train` also writes what
each device got, `devices-<process>.json` beside the run: a digest a place on the mesh, batch by batch.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from ellama_jax.core import sharding


def shuffle_meshes(seed: int) -> None:
    """Makes `make_mesh` put devices where they come to lie by chance; call before it is imported."""
    assert "ellama_jax.train" not in sys.modules and "ellama_jax.weights" not in sys.modules
    ordered = sharding.make_mesh

    def shuffled(sizes, devices=None):
        mesh = ordered(sizes, devices)
        places = np.random.default_rng(seed).permutation(mesh.size)
        grid = mesh.devices.ravel()[places].reshape(mesh.devices.shape)
        return Mesh(grid, mesh.axis_names, axis_types=mesh.axis_types)

    sharding.make_mesh = shuffled


def digest(arrays) -> str:
    """Returns what tells the arrays {name: NumPy array} of one device from others."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()[:16]


def record_devices(path: Path) -> None:
    """Writes after each batch what every device of this process has got so far."""
    from ellama_jax.train import loop

    place, seen = loop.place_batch, []

    def recorded(batch, mesh):
        placed = place(batch, mesh)
        pieces = {}
        for name, array in placed.items():
            for shard in array.addressable_shards:
                pieces.setdefault(shard.device, {})[name] = np.asarray(shard.data)
        places = {device: str(number) for number, device in enumerate(mesh.devices.flat)}
        seen.append({places[device]: digest(arrays) for device, arrays in pieces.items()})
        path.write_text(json.dumps(seen))
        return placed

    loop.place_batch = recorded


def main(seed: str, verb: str, argv: list[str]) -> None:
    from ellama_jax.cli import main as run_verb
    from ellama_jax.core.distributed import one_job

    with one_job():
        shuffle_meshes(int(seed))
        if verb == "train":
            workdir = Path(argv[-1].removeprefix("--workdir="))
            record_devices(workdir.parent / f"devices-{jax.process_index()}.json")
        run_verb([verb, *argv])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
