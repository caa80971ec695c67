"""One training step of ours against transformers + torch, on the same batch, alternating.

What: a whole update (forward, backward, clipping, AdamW), ours against torch in float32 and bfloat16,
both with random weights of the preset. Each round times every contender once, so that a busy machine
slows all alike; a contender's ratio is the median over rounds of torch's seconds over its own.
Wall seconds need a quiet machine: torch's threads wait for each other by spinning and lose far more
than ours to a busy one. `--threads 1` binds each side to one core and compares CPU seconds, which
hardly depend on what else runs.
Command: python tools/benchmarks/train_step.py --preset smollm2-135m --rows 4 --length 256
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
from random_run import first_state, load_run_config, parse_with_config, random_batch
from results import machine_cpu, provenance, report

from ellama_jax.core.sharding import make_mesh, place_batch
from ellama_jax.core.verb_process import MALLOC_SETTINGS
from ellama_jax.model.presets import PRESETS, LlamaConfig, get_preset
from ellama_jax.model.remat import REMAT_POLICIES
from ellama_jax.train.program import make_program

CONTENDERS = ["ours float32", "torch float32", "torch bfloat16", "ours bfloat16"]
TITLE = "Training step against transformers + torch, by date"


class Timing(NamedTuple):
    """One update: seconds by the clock, and seconds of all cores in that process."""

    wall: float
    cpu: float


def make_ours(model: LlamaConfig, args: argparse.Namespace, dtype: str):
    """Returns a function that runs one update of ours and gives its loss."""
    values = {
        "model.preset": args.preset, "model.remat": args.remat, "model.compute_dtype": dtype,
        "model.loss_chunk_tokens": args.chunk_tokens, "data.seq_len": args.length,
        "data.global_batch_size": args.rows,
    }  # fmt: skip
    config = load_run_config(values, args.config)
    mesh = make_mesh(vars(config.mesh), jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_program(config, model, mesh, num_sources=1)
        batch = place_batch(random_batch(model, args.rows, args.length, 0), mesh)
        holder = [first_state(program, model, config.model.param_dtype, mesh)]

    def update() -> float:
        with jax.set_mesh(mesh):
            holder[0], metrics = program.step_fn(holder[0], batch)
        jax.block_until_ready(holder[0])
        return float(metrics.loss)

    return update


def make_torch(model: LlamaConfig, args: argparse.Namespace, dtype_name: str):
    """Returns a function that runs one update of transformers + torch and gives its loss."""
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        TheirConfig(
            vocab_size=model.vocab_size, hidden_size=model.embed_dim,
            intermediate_size=model.mlp_dim, num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads, num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_dim, max_position_embeddings=model.max_seq_len,
            rms_norm_eps=model.norm_eps, tie_word_embeddings=model.tied_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        )
    ).to(getattr(torch, dtype_name))  # fmt: skip
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.tensor(random_batch(model, args.rows, args.length, 0)["inputs"]).long()

    def update() -> float:
        loss = theirs(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return update


def serve(pipe, contender: str, args: argparse.Namespace) -> None:
    """Runs one contender in a process of its own: an update and its seconds for every request."""
    if args.threads:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: args.threads])
    model = get_preset(args.preset)
    side, dtype = contender.split()
    update = (make_ours if side == "ours" else make_torch)(model, args, dtype)
    while pipe.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        loss = update()
        pipe.send((Timing(time.perf_counter() - wall, time.process_time() - cpu), loss))


def summarise(timings: dict[str, list[Timing]], tokens: int, by_cpu: bool) -> dict[str, str]:
    """Returns one cell a contender: tokens/s, and its speed as a multiple of torch's float32.

    >>> rounds = {"ours float32": [Timing(2.0, 4.0)], "torch float32": [Timing(3.0, 5.0)]}
    >>> summarise(rounds, 60, by_cpu=False)["ours float32"]
    '30.0 (1.50 x)'
    """

    def seconds(times):
        return [time.cpu if by_cpu else time.wall for time in times]

    cells = dict.fromkeys(CONTENDERS, "-")
    for name, times in timings.items():
        cells[name] = f"{tokens / statistics.median(seconds(times)):.1f}"
        if "torch float32" in timings:
            pairs = zip(seconds(times), seconds(timings["torch float32"]), strict=True)
            cells[name] += f" ({statistics.median(theirs / mine for mine, theirs in pairs):.2f} x)"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="smollm2-135m", choices=PRESETS)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="cores of each side; 0: all")
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--remat", default="dots", choices=REMAT_POLICIES)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS[:3])
    parser.add_argument("--append", type=Path, metavar="FILE", help="docs/RESULTS.md")
    args, args.config = parse_with_config(parser)
    by_cpu = args.threads == 1

    # Freed memory kept, as `ellama demo` has it, for both sides alike; read at a process's start.
    if sys.platform == "linux":
        os.environ.update(MALLOC_SETTINGS)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # A process each: in one, the thread pools of both sides stay in each other's way.
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in args.contenders:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, args), daemon=True).start()
        theirs.close()

    def run(name: str) -> tuple[Timing, float]:
        pipes[name].send(True)
        return pipes[name].recv()

    first = {name: round(run(name)[1], 3) for name in pipes}  # compiles, and warms caches
    print("loss of the first update:", first, flush=True)
    timings = {name: [] for name in pipes}
    for number in range(args.rounds):
        for name in pipes:
            timings[name].append(run(name)[0])
        seconds = "  ".join(f"{n} {t[-1].wall:.2f} ({t[-1].cpu:.2f})" for n, t in timings.items())
        print(f"round {number + 1}: s (CPU s): {seconds}", flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    about = provenance()
    cells = summarise(timings, args.rows * args.length, by_cpu)
    row = {
        "batch": f"{args.preset}, {args.rows} x {args.length}, remat {args.remat}",
        "tokens/s by": "CPU s, 1 core" if by_cpu else f"wall s, {args.threads or 'all'} cores",
        **cells,
        "machine": machine_cpu(),
        **about,
    }
    report(TITLE, [row], args.append)


if __name__ == "__main__":
    main()
