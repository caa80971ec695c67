"""Requests a second of our lm-eval model against lm-eval's own `hf`, same weights, alternating.

What: MMLU questions that lm-eval bundles (four answers each), texts made of them, and prompts to
continue, through both models' own methods in float32. Each round asks both for the same requests, so
that a busy machine slows both alike; a ratio is the median over rounds of theirs over ours, and the
first round, which compiles and warms caches, is told apart. Log-likelihoods, choices and texts are
compared too.
Not called evaluate.py: a package of that name, which lm-eval imports, would be hidden by it.
Command: python tools/benchmarks/evaluation.py --questions 200
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

from results import machine_cpu, provenance, report

from ellama_jax.core.verb_process import MALLOC_SETTINGS
from ellama_jax.evaluate import harness
from ellama_jax.experiments.demo import find_smollm2

TITLE = "Requests against lm-eval's own backend, by date"
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
SIDES = ("ours", "theirs")


def make_requests(args: argparse.Namespace) -> dict[str, list[tuple]]:
    """Returns the arguments of every request, by kind."""
    items = harness.load_mmlu(limit=args.questions, seed=0, languages=["en"])
    questions = [item["context"] for item in items]
    texts = ["\n\n".join(questions[i : i + 10]) for i in range(0, len(questions), 10)]
    settings = {"until": ["\n\n"], "max_gen_toks": args.new_tokens, "do_sample": False}
    return {
        "loglikelihood": [(i["context"], choice) for i in items for choice in i["choices"]],
        "loglikelihood_rolling": [(text,) for text in texts],
        "generate_until": [(question, settings) for question in questions[: args.prompts]],
    }


def make_model(side: str, root: Path, hf_dir: Path, args: argparse.Namespace):
    """Loads one side's model."""
    if side == "ours":
        from ellama_jax.evaluate.lm_eval_model import EllamaLM

        return EllamaLM(str(root), dtype="float32", batch_tokens=args.batch_tokens)
    import torch
    from lm_eval.models.huggingface import HFLM

    if args.threads:
        torch.set_num_threads(args.threads)
    return HFLM(
        pretrained=str(hf_dir), device="cpu", dtype="float32", batch_size=args.batch_size
    )  # fmt: skip


def serve(pipe, side: str, root: Path, hf_dir: Path, args: argparse.Namespace) -> None:
    """Answers kinds of requests with seconds and answers until it is sent None."""
    model = make_model(side, root, hf_dir, args)
    requests = {
        kind: [types.SimpleNamespace(args=arguments) for arguments in all_of_kind]
        for kind, all_of_kind in make_requests(args).items()
    }
    pipe.send(None)
    while (kind := pipe.recv()) is not None:
        started = time.perf_counter()
        answers = getattr(model, kind)(requests[kind], disable_tqdm=True)
        pipe.send((time.perf_counter() - started, answers))


def compare(kind: str, ours: list, theirs: list) -> str:
    """Says in words how much the answers differ."""
    if kind == "generate_until":
        return (
            f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} texts equal"
        )
    if kind == "loglikelihood_rolling":
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        return f"largest difference {worst:.1e} nats"
    worst = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    flags = sum(a == b for (_, a), (_, b) in zip(ours, theirs, strict=True))

    def choices(answers):
        return [max(range(4), key=lambda i: answers[q + i][0]) for q in range(0, len(answers), 4)]

    same = sum(a == b for a, b in zip(choices(ours), choices(theirs), strict=True))
    return (
        f"largest difference {worst:.1e} nats, {flags} of {len(ours)} greedy flags and {same} of "
        f"{len(ours) // 4} choices equal"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="a root; default: SmolLM2-135M")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=32, help="questions to continue")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="after the first")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="ours")
    parser.add_argument("--batch-size", type=int, default=8, help="theirs")
    parser.add_argument("--threads", type=int, default=0, help="cores of each side; 0: all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--append", type=Path, metavar="FILE", help="docs/RESULTS.md")
    args = parser.parse_args()

    # Freed memory kept, as `ellama demo` has it, for both sides alike; read at a process's start.
    if sys.platform == "linux":
        os.environ.update(MALLOC_SETTINGS)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        root, hf_dir = make_checkpoints(args.checkpoint, Path(folder))
        rows = measure(args, root, hf_dir)
    report(TITLE, rows, args.append)


def make_checkpoints(checkpoint: Path | None, folder: Path) -> tuple[Path, Path]:
    """Returns an Orbax root and the same weights as a Hugging Face directory."""
    from ellama_jax.weights.export import export_checkpoint
    from ellama_jax.weights.importer import import_weights

    root = checkpoint
    if root is None:
        root = folder / "orbax"
        import_weights(find_smollm2(), root)
    export_checkpoint(root, folder / "hf", dtype="float32", allow_unverified=True)
    return root, folder / "hf"


def measure(args: argparse.Namespace, root: Path, hf_dir: Path) -> list[dict[str, str]]:
    """Runs the rounds; returns a row of the table a kind."""
    # A process each: in one, the thread pools of both sides stay in each other's way.
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for side in SIDES:
        pipes[side], end = context.Pipe()
        arguments = (end, side, root, hf_dir, args)
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
        end.close()
        pipes[side].recv()
    counts = {kind: len(requests) for kind, requests in make_requests(args).items()}
    rows = []
    for kind in args.kinds:
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(args.rounds + 1):
            answers = {}
            for side in SIDES:
                pipes[side].send(kind)
                secs, answers[side] = pipes[side].recv()
                times[side].append(secs)
            said = "  ".join(f"{side} {times[side][-1]:.2f} s" for side in SIDES)
            print(f"{kind}, round {number}: {said}", flush=True)
        ratios = [theirs / ours for ours, theirs in zip(*times.values(), strict=True)]
        warm = {side: counts[kind] / statistics.median(times[side][1:]) for side in SIDES}
        rows.append(
            {
                "model": args.checkpoint.name if args.checkpoint else "SmolLM2-135M",
                "requests": f"{counts[kind]} {kind}",
                "ours/s": f"{warm['ours']:.2f}",
                "hf/s": f"{warm['theirs']:.2f}",
                "ratio": f"{statistics.median(ratios[1:]):.2f} x",
                "first round": f"{ratios[0]:.2f} x",
                "answers": compare(kind, answers["ours"], answers["theirs"]),
                "machine": machine_cpu(),
                **provenance(),
            }
        )
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return rows


if __name__ == "__main__":
    main()
