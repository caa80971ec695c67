"""What dividing a step over devices costs where it can gain nothing: fake devices on one CPU.

What: the same step (same rows, same arithmetic) on 1 device and on meshes of 2 and 8 fake CPU devices.
The cores are the same for all, so seconds over the one-device step's are the price of partitioning:
collectives that copy through memory, smaller matrix products, more programs to start. A real
accelerator has cores of its own for each device; there this is no bound. What it can show is a mesh
whose program does the same work more than once.
Each round times every mesh once, one after the other; a mesh's ratio is the median over rounds.
Command: python tools/benchmarks/mesh_overhead.py
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections import Counter
from pathlib import Path

import jax
from random_run import first_state, load_run_config, parse_with_config, random_batch
from results import machine_cpu, provenance, report

from ellama_jax.config import RunConfig
from ellama_jax.core.sharding import MESH_AXES, make_mesh, place_batch
from ellama_jax.model.presets import LlamaConfig, get_preset
from ellama_jax.train.program import make_program

MESHES = (
    "data=1", "data=2", "fsdp=2", "context=2", "tensor=2", "data=8", "fsdp=8", "context=8",
    "tensor=8", "data=2,fsdp=2,tensor=2", "fsdp=4,context=2",
)  # fmt: skip
TITLE = "Partitioning overhead on fake devices, by date"
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# As many heads as the largest mesh has devices, and matrices large enough that a step computes.
SMALL = dataclasses.replace(
    get_preset("tiny"), name="small", vocab_size=4096, embed_dim=512, mlp_dim=1536, num_layers=4,
    num_heads=8, num_kv_heads=8, head_dim=64,
)  # fmt: skip


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the size of every axis.

    >>> parse_mesh("fsdp=4,tensor=2")
    {'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 2}
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdecimal() or int(size) < 1:
            raise argparse.ArgumentTypeError(
                f"must be AXIS=SIZE with commas between, axes {', '.join(MESH_AXES)}, got {text}"
            )
        sizes[axis] = int(size)
    return sizes


def count_collectives(hlo: str) -> str:
    """Says how many collectives of each kind a compiled program's text has, those in loops once."""
    found = Counter()
    for line in hlo.splitlines():
        for kind in COLLECTIVES:
            if f" {kind}(" in line or f" {kind}-start(" in line:
                found[kind] += 1
    return ", ".join(f"{count} {kind}" for kind, count in found.items()) or "none"


class MeshRun:
    """One mesh's compiled step and its state."""

    def __init__(self, name: str, config: RunConfig, model: LlamaConfig):
        self.name = name
        sizes = vars(config.mesh)
        devices = jax.devices()[: math.prod(sizes.values())]
        self.mesh = make_mesh(sizes, devices)
        rows, length = config.data.global_batch_size, config.data.seq_len
        start = time.perf_counter()
        with jax.set_mesh(self.mesh):
            program = make_program(config, model, self.mesh, num_sources=1)
            self.step = program.lower().compile()
            self.compile_secs = time.perf_counter() - start
            self.batch = place_batch(random_batch(model, rows, length, length // 3), self.mesh)
            self.state = first_state(program, model, config.model.param_dtype, self.mesh)
        self.collectives = count_collectives(self.step.as_text())
        self.secs: list[float] = []

    def run(self, steps: int) -> float:
        """Runs `steps` updates and returns the last one's loss; the time of each goes to `secs`."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        self.secs.append((time.perf_counter() - start) / steps)
        return float(metrics.loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="in one timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--meshes", nargs="+", default=MESHES, metavar="AXIS=SIZE,...")
    parser.add_argument("--append", type=Path, metavar="FILE", help="docs/RESULTS.md")
    args, changes = parse_with_config(parser)
    try:
        wanted = {name: parse_mesh(name) for name in ("data=1", *args.meshes)}
    except argparse.ArgumentTypeError as error:
        parser.error(f"--meshes: {error}.")

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(math.prod(s.values()) for s in wanted.values()))
    values = {
        "model.preset": "tiny", "model.compute_dtype": "float32", "model.remat": "dots",
        "data.seq_len": args.length, "data.global_batch_size": args.rows,
    }  # fmt: skip
    runs = []
    for name, sizes in wanted.items():
        mesh_values = {f"mesh.{axis}": size for axis, size in sizes.items()}
        try:
            runs.append(MeshRun(name, load_run_config(values | mesh_values, changes), SMALL))
        except ValueError as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        loss = runs[-1].run(1)  # warms caches
        print(f"{name}: compiled in {runs[-1].compile_secs:.1f} s, loss {loss:.5f}", flush=True)
        runs[-1].secs.clear()
    for _ in range(args.rounds):
        for run in runs:
            run.run(args.steps)

    about, machine = provenance(), machine_cpu()
    rows = []
    for run in runs:
        ratios = [mine / alone for mine, alone in zip(run.secs, runs[0].secs, strict=True)]
        rows.append(
            {
                "mesh": run.name,
                "of one device's time": f"{statistics.median(ratios):.2f}",
                "ms a step": f"{1e3 * statistics.median(run.secs):.0f}",
                "compile s": f"{run.compile_secs:.0f}",
                "collectives in the text": run.collectives,
                "batch": f"small, {args.rows} x {args.length}",
                "machine": machine,
                **about,
            }  # fmt: skip
        )
    report(TITLE, rows, args.append)


if __name__ == "__main__":
    main()
