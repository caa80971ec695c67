"""How long a start takes to its first step: with programs kept from an earlier start, and without.

Each start is a process of its own and is timed from its beginning, imports and random weights
included. The step is the one `ellama train` runs, on one CPU device; the second and third of the
three starts find what the first compiled.

    python tools/benchmarks/restart.py --model smollm2-135m
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", metavar="PRESET")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="pairs of starts")
    parser.add_argument("--once", metavar="DIR", help=argparse.SUPPRESS)
    args, others = parser.parse_known_args()
    if args.once is not None:
        print(json.dumps(start_once(args.model, args.once, others)))
        return
    with tempfile.TemporaryDirectory() as folder:
        cold = [start(args.model, "", others) for _ in range(args.repeats)]
        start(args.model, folder, others)  # fills the directory
        warm = [start(args.model, folder, others) for _ in range(args.repeats)]
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    for name in ("compile", "total"):
        best = [min(run[name] for run in runs) for runs in (cold, warm)]
        print(
            f"{name:8} without {best[0]:6.2f} s, with {best[1]:6.2f} s: {best[0] / best[1]:.2f} x"
        )
    print(f"{size / 2**20:.1f} MiB of programs kept; the best of {args.repeats} starts each")


def start(model: str, folder: str, others: list[str]) -> dict[str, float]:
    """Runs one start; `total` is by this process's clock."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--model", model, "--once", folder, *others]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "total": time.monotonic() - began}


def start_once(model: str, folder: str, others: list[str]) -> dict[str, float]:
    """Makes the first step; `compile` is the time of making it ready, tracing included."""
    import jax
    from random_run import first_state, load_run_config, random_batch

    from ellama_jax.core.sharding import make_mesh, place_batch
    from ellama_jax.model.presets import get_preset
    from ellama_jax.train.program import compiled_once, make_program

    values = {
        "model.preset": model, "data.seq_len": 256, "data.global_batch_size": 1,
        "train.steps": 2, "schedule.warmup_steps": 1,
    }  # fmt: skip
    config, preset = load_run_config(values, others), get_preset(model)
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    with compiled_once(folder, Path(folder), "cpu"), jax.set_mesh(mesh):
        program = make_program(config, preset, mesh, 1)
        state = first_state(program, preset, config.model.param_dtype, mesh)
        batch = place_batch(random_batch(preset, 1, 256, 64), mesh)
        began = time.monotonic()
        compiled = program.lower().compile()
        secs = time.monotonic() - began
        jax.block_until_ready(compiled(state, batch))
    return {"compile": secs}


if __name__ == "__main__":
    main()
