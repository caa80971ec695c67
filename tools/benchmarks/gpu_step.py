"""The training step on one GPU: ms a step, tokens/s, MFU, memory and where the time goes.

What: the step that `ellama train` runs, on random weights and random packed rows of 8,192 tokens:
Llama 3.2 1B and 3B whole, Llama 3.1 8B with fewer layers (`CASES`), bfloat16 products, float32
parameters and AdamW state unless asked otherwise. A case runs in a process of its own, so that its
peak of memory is its own and one that does not fit ends nothing else. The devices are waited for only
at both ends of `--steps` steps; the median of `--repeats` such groups counts.
`--profile` adds a run under JAX's profiler: time by phase (forward, recomputation, backward, update)
and by kernel. There CUDA graphs are off, since inside one no kernel says what it computes.
`--sweep` tries attention kernels and their blocks, remat, rows, chunks of the loss and the parameters'
dtype, one after the other, and keeps the best of each: about 20 compilations a model.
Hardware: one GPU of 80 GB; 51 GB of it are the state and gradients of 3B.
Command: python tools/benchmarks/gpu_step.py, after pip install -e '.[cuda]'
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from profile_table import phases_and_kernels
from random_run import first_state, load_run_config, parse_with_config, random_batch
from results import markdown_table, provenance, report

from ellama_jax.config import RunConfig
from ellama_jax.core.sharding import make_mesh, place_batch
from ellama_jax.core.topology import hardware_of
from ellama_jax.model.flops import FORMULA, model_flops
from ellama_jax.model.llama import count_params
from ellama_jax.model.presets import PRESETS, LlamaConfig, get_preset
from ellama_jax.model.remat import REMAT_POLICIES
from ellama_jax.train.program import make_program

TITLE = "Training step on one GPU, by date"
# preset, layers (0: all), rows, remat. Sizes by arithmetic for 80 GB: 16 bytes a parameter of state
# and gradient, and what a policy saves; which is fastest is `--sweep`'s question.
CASES = (
    ("llama3.2-1b", 0, 4, "full"),
    ("llama3.2-3b", 0, 1, "full"),
    ("llama3.1-8b", 10, 1, "full"),
)
# What `--sweep` tries, in this order, each given the best of those before: name -> keys, values.
SWEEP = {
    "kernel": (
        ("model.attention.kernel",),
        ("auto", "cudnn", "triton", "mosaic", "blockwise"),
    ),
    "blocks": (
        ("model.attention.block_q", "model.attention.block_kv"),
        (256, 512, 1024, 2048),
    ),
    "remat": (("model.remat",), REMAT_POLICIES),
    "rows": (("data.global_batch_size",), (1, 2, 4, 8)),
    "chunk": (("model.loss_chunk_tokens",), (1024, 2048, 4096, 8192)),
    "dtype": (("model.param_dtype",), ("float32", "bfloat16")),
}
NO_CUDA_GRAPHS = "--xla_gpu_enable_command_buffer="


class NoGpu(Exception):
    """There is no device to measure on."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model with the values that differ from configs/base.py."""

    preset: str
    layers: int
    values: dict
    changes: tuple[str, ...]  # --config. arguments

    def model(self) -> LlamaConfig:
        whole = get_preset(self.preset)
        return dataclasses.replace(whole, num_layers=self.layers) if self.layers else whole

    def config(self) -> RunConfig:
        return load_run_config(self.values, list(self.changes))

    def with_values(self, keys: tuple[str, ...], value) -> "Case":
        return dataclasses.replace(self, values=self.values | dict.fromkeys(keys, value))


def measure(case: Case, args: argparse.Namespace) -> dict:
    """Compiles and times one case on this process's first device.

    Returns:
        JSON-able figures; with `args.profile` also `phases` and `kernels`.

    Raises:
        NoGpu: if there is none and the CPU is not allowed.
        ValueError: for values that do not fit each other.
    """
    device = _device(args.allow_cpu)
    model, config = case.model(), case.config()
    mesh = make_mesh(dict.fromkeys(vars(config.mesh), 1), [device])
    rows, length = config.data.global_batch_size, config.data.seq_len
    with jax.set_mesh(mesh):
        program = make_program(config, model, mesh, num_sources=1)
        start = time.perf_counter()
        step = program.lower().compile()
        compile_secs = time.perf_counter() - start
        # Two batches in turn: no step's data is that of the one before.
        batches = [
            place_batch(random_batch(model, rows, length, args.document, seed), mesh)
            for seed in range(2)
        ]
        state = first_state(program, model, config.model.param_dtype, mesh)

    def run(count):
        nonlocal state
        metrics = None
        for number in range(count):
            state, metrics = step(state, batches[number % 2])
        jax.block_until_ready(state)
        return metrics

    first_loss = float(run(1).loss)
    run(args.warmup)
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        loss = run(args.steps).loss
        times.append((time.perf_counter() - start) / args.steps)
    result = {
        "device_kind": device.device_kind,
        "runtime": " ".join(device.client.platform_version.split()),
        "params": count_params(model), "rows": rows, "length": length,
        "secs": statistics.median(times), "spread": max(times) / min(times) - 1,
        "compile_secs": compile_secs, "losses": [first_loss, float(loss)],
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "remat": config.model.remat, "param_dtype": config.model.param_dtype,
        "attention": dataclasses.asdict(config.model.attention),
        "chunk": config.model.loss_chunk_tokens,
        "flops_per_token": model_flops(model, length).total_per_token,
    }  # fmt: skip
    if args.profile:
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                run(args.profile_steps)
            result |= phases_and_kernels(directory, step.as_text(), args.profile_steps)
    return result


def _device(allow_cpu: bool):
    device = jax.devices()[0]
    if device.platform == "gpu" or allow_cpu:
        return device
    raise NoGpu(
        f"gpu_step: needs a GPU that JAX sees, got {device.platform}; install ellama_jax[cuda] on a machine "
        "with one, or try the script with --allow-cpu --preset tiny --length 64."
    )


def _serve(pipe, case: Case, args: argparse.Namespace) -> None:
    try:
        pipe.send(measure(case, args))
    except NoGpu as error:
        pipe.send({"error": str(error), "fatal": True})
    except (ValueError, RuntimeError) as error:  # bad values; what the compiler or memory refuses
        lines = [line for line in str(error).splitlines() if line.strip()]
        pipe.send({"error": lines[0][:300] if lines else type(error).__name__})


def run_case(case: Case, args: argparse.Namespace) -> dict:
    """Measures a case in a new process; a failure is `error`, one line."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    flags = os.environ.get("XLA_FLAGS", "")
    if args.profile:
        # In a variable, since the child's XLA reads it before any of the child's own code.
        os.environ["XLA_FLAGS"] = f"{flags} {NO_CUDA_GRAPHS}".strip()
    process = context.Process(target=_serve, args=(theirs, case, args))
    process.start()
    os.environ["XLA_FLAGS"] = flags
    theirs.close()
    try:
        result = mine.recv()
    except EOFError:
        result = None
    process.join()
    if result and result.get("fatal"):
        sys.exit(result["error"])
    return result or {"error": f"the process ended with exit status {process.exitcode}"}


def mfu(result: dict, peak_tflops: float) -> float | None:
    """Returns model FLOP/s over the peak; None where no peak is known or given."""
    hardware = hardware_of(result["device_kind"])
    peak = peak_tflops * 1e12 or (hardware.flops_per_sec if hardware else 0)
    if not peak:
        return None
    tokens_per_sec = result["rows"] * result["length"] / result["secs"]
    return tokens_per_sec * result["flops_per_token"] / peak


def describe(case: Case, result: dict, peak_tflops: float) -> dict[str, str]:
    """Returns a measured case as one row of the table."""
    fraction, peak_bytes = mfu(result, peak_tflops), result["peak_bytes"]
    attention, layers = result["attention"], case.model().num_layers
    blocks = f"{attention['block_q']} x {attention['block_kv']}"
    return {
        "GPU": result["device_kind"],
        "model": f"{case.preset}, {layers} of {get_preset(case.preset).num_layers} layers",
        "parameters": f"{result['params'] / 1e9:.2f}B {result['param_dtype']}",
        "rows x tokens": f"{result['rows']} x {result['length']}",
        "attention (blocks)": f"{attention['kernel']} ({blocks})",
        "remat": result["remat"],
        "loss chunk": str(result["chunk"]),
        "ms a step": f"{1e3 * result['secs']:.1f} (spread {100 * result['spread']:.0f} %)",
        "tokens/s": f"{result['rows'] * result['length'] / result['secs']:,.0f}",
        "MFU": "-" if fraction is None else f"{100 * fraction:.1f} %",
        "peak GiB": "-" if peak_bytes is None else f"{peak_bytes / 2**30:.1f}",
    }


def sweep(case: Case, args: argparse.Namespace) -> list[tuple[Case, dict]]:
    """Tries `SWEEP` one key after the other, keeping the fastest a token; returns all measured."""
    best, best_result = case, run_case(case, args)
    _say(case.preset, "as configured", best_result, args)
    measured = [(best, best_result)]
    for name in args.sweep or SWEEP:
        keys, choices = SWEEP[name]
        if name == "blocks" and best.values.get("model.attention.kernel") != "blockwise":
            continue  # the other kernels of a GPU have blocks of their own
        base = best
        for choice in choices:
            tried = base.with_values(keys, choice)
            if tried.config() == base.config():
                continue
            result = run_case(tried, args)
            _say(case.preset, f"{name} {choice}", result, args)
            measured.append((tried, result))
            if _secs_per_token(result) < _secs_per_token(best_result):
                best, best_result = tried, result
    print(f"{case.preset}: best: {best.values}", flush=True)
    return [(tried, result) for tried, result in measured if "error" not in result]


def _secs_per_token(result: dict) -> float:
    if "error" in result:
        return float("inf")
    return result["secs"] / (result["rows"] * result["length"])


def _say(preset: str, what: str, result: dict, args: argparse.Namespace) -> None:
    if "error" in result:
        print(f"{preset}: {what}: not measured: {result['error']}", flush=True)
        return
    fraction = mfu(result, args.peak_tflops)
    shown = "" if fraction is None else f", MFU {100 * fraction:.1f} %"
    print(
        f"{preset}: {what}: {1e3 * result['secs']:.1f} ms, "
        f"{1 / _secs_per_token(result):,.0f} tokens/s{shown}, compiled in "
        f"{result['compile_secs']:.0f} s, loss {result['losses'][0]:.3f} -> "
        f"{result['losses'][1]:.3f}",
        flush=True,
    )


def print_profile(result: dict) -> None:
    """Prints time by phase and the most expensive kernels, or that there was nothing to read."""
    if not result["kernels"]:
        print("profile: no event of the compiled step could be read", flush=True)
        return
    print(
        f"\n{markdown_table(result['phases'])}\n\n{markdown_table(result['kernels'])}\n", flush=True
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, help="one model in place of the three")
    parser.add_argument("--layers", type=int, default=0, help="of --preset; 0: all")
    parser.add_argument("--rows", type=int, default=0, help="a step; 0: the case's own")
    parser.add_argument("--length", type=int, default=8192, help="tokens a row")
    parser.add_argument("--document", type=int, default=1500, help="mean tokens of a document")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="between two waits for the device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="time by phase and kernel as well")
    parser.add_argument("--profile-steps", type=int, default=3)
    parser.add_argument("--sweep", nargs="*", choices=SWEEP, help="which of them; none named: all")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="dense bf16; 0: the table's")
    parser.add_argument(
        "--allow-cpu", action="store_true", help="to try the script, not to measure"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, for later")
    parser.add_argument("--append", type=Path, metavar="FILE", help="docs/RESULTS.md")
    args, args.changes = parse_with_config(parser, argv)
    for name in ("warmup", "steps", "repeats", "length", "document", "profile_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: must be at least 1.")
    return args


def make_cases(args: argparse.Namespace) -> list[Case]:
    """Returns `CASES`, or the one that the arguments name."""
    cases = CASES if args.preset is None else ((args.preset, args.layers, 1, "full"),)
    return [
        Case(
            preset, layers,
            {
                "model.preset": preset, "model.remat": remat, "model.compute_dtype": "bfloat16",
                "data.seq_len": args.length, "data.global_batch_size": args.rows or rows,
            },
            tuple(args.changes),
        )
        for preset, layers, rows, remat in cases
    ]  # fmt: skip


def main() -> None:
    args = parse_arguments()
    # JAX takes three quarters of the memory by default; the sizes above are for nearly all of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")
    if args.allow_cpu:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    timing = argparse.Namespace(**{**vars(args), "profile": False})
    measured, failed = [], []
    for case in make_cases(args):
        if args.sweep is not None:
            results = sweep(case, timing)
        else:
            result = run_case(case, timing)
            _say(case.preset, "as configured", result, args)
            results = [] if "error" in result else [(case, result)]
        measured += results
        if not results:
            failed.append(case.preset)
            continue
        if args.profile:
            best = min(results, key=lambda pair: _secs_per_token(pair[1]))[0]
            print(f"{case.preset}: profile, without CUDA graphs:", flush=True)
            result = run_case(best, args)
            print(f"not profiled: {result['error']}") if "error" in result else print_profile(
                result
            )
    if measured:
        result = measured[0][1]
        print(f"MFU = tokens/s x model FLOPs a token / peak; model FLOPs a token = {FORMULA}.")
        hardware = hardware_of(result["device_kind"])
        peak = args.peak_tflops or (hardware.flops_per_sec / 1e12 if hardware else 0)
        print(
            f"Peak: {peak:g} TFLOP/s, dense bfloat16."
            if peak
            else f"No peak is known for {result['device_kind']}; name one with --peak-tflops."
        )
        print(f"Runtime: {result['runtime']}")
        about = provenance()
        rows = [describe(*pair, args.peak_tflops) | about for pair in measured]
        report(TITLE, rows, args.append)
    if args.json:
        cases = [{"case": dataclasses.asdict(c), "result": r} for c, r in measured]
        args.json.write_text(json.dumps(cases, indent=1) + "\n")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
