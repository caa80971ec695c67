"""`ellama evidence`: the paper's claims tried on this machine, and what they came to.

Owns the order: the demo's whole job with each seed, then the ablations around it, then one page of
Markdown that lays them beside the paper. What is measured, demo.py and experiments/sweep.py say.
"""

import argparse
import json
import shlex
from pathlib import Path

from ellama_jax.config import configs_dir, load_config, load_values, split_arguments
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import write_whole
from ellama_jax.core.verb_process import run_verb
from ellama_jax.experiments.demo import MODELS
from ellama_jax.experiments.evidence_tables import BEGIN, END, describe
from ellama_jax.experiments.sweep_grid import plan_sweep
from ellama_jax.experiments.sweep_results import FILE

PAGE = "evidence.md"


def main_evidence(argv: list[str]) -> None:
    """Runs the verb `evidence`."""
    parser = argparse.ArgumentParser(
        prog="ellama evidence",
        description="Base, adaptation, merge and ablations with several seeds, beside the paper's "
        "figures; the same command goes on where it was broken off.",
        epilog="example:\n  ellama evidence --config configs/evidence.py --workdir evidence",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="as configs/evidence.py; required")
    parser.add_argument("--workdir", default="evidence", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="trials of the ablation at one time")
    parser.add_argument(
        "--offline", action="store_true", help="ask no package client for real text"
    )
    parser.add_argument(
        "--write", metavar="FILE", type=Path,
        help=f"put the page into this Markdown file, between {BEGIN} and {END}",
    )  # fmt: skip
    if "-h" in argv or "--help" in argv:
        parser.parse_args(["--help"])
    values, others = load_values(argv, "evidence")
    args = parser.parse_args(others)
    model = _model(values)
    seeds = [int(seed) for seed in values["seeds"]]
    if args.write is not None:
        _around_page(args.write)  # or hours would be for nothing
    with owned(args.workdir, "ellama evidence"):
        demos = [_run_demo(model, seed, args) for seed in seeds]
        words = _sweep_words(argv, demos[0], args)
        _prepare_held_out(demos[0], args.workdir / "heldout", _window_length(values))
        run_verb(words)
        command = shlex.join(["ellama", "evidence", *argv])
        ablation = _read(args.workdir / "ablation" / FILE)
        page = describe(demos, ablation, command)
        write_whole(args.workdir / PAGE, page)
    print(page)
    if args.write is not None:
        before, after = _around_page(args.write)
        write_whole(args.write, f"{before}{page}{after}")


def _model(values: dict) -> str:
    plan_sweep({**values, "overrides": ()})  # says what is wrong with it, if anything
    file, _, model = values["config"].partition(":")
    if file != "demo.py" or model not in MODELS or not values["seeds"]:
        raise ValueError(
            f"--config: must be a sweep over demo.py:{' or demo.py:'.join(MODELS)} with seeds, got "
            f"{values['config']} with seeds {tuple(values['seeds'])}."
        )
    return model


def _window_length(values: dict) -> int:
    name = f"--config={configs_dir() / values['config']}"
    return load_config([name], "evidence")[0].data.seq_len


def _run_demo(model: str, seed: int, args: argparse.Namespace) -> Path:
    """Runs the demo with one seed, unless it has run before."""
    directory = args.workdir / f"seed-{seed}"
    words = ["demo", "--model", model, "--seed", str(seed), "--workdir", str(directory)]
    words += ["--offline"] if args.offline else []
    if (done := directory / "run.json").exists():
        command = _read(done)["command"]
        if command != shlex.join(["ellama", *words]):
            # Its windows are what the trials were trained on.
            raise ValueError(
                f"--workdir: must be new or of the same command, got {directory} of `{command}`."
            )
        print(f"{directory}: done before")
    else:
        args.workdir.mkdir(parents=True, exist_ok=True)
        run_verb(words)
    return directory


def _prepare_held_out(demo: Path, out: Path, window_length: int) -> None:
    """Makes windows of the text that the demo held out; `prepare` goes on, or says it has ended."""
    run_verb([
        "prepare", "--documents", str(demo / "data" / "heldout_texts.jsonl"),
        "--tokenizer", str(demo / "base" / "tokenizer"),
        "--window-length", str(window_length), "--out", str(out),
    ])  # fmt: skip


def _sweep_words(argv: list[str], demo: Path, args: argparse.Namespace) -> list[str]:
    config, _ = split_arguments(argv)
    return [
        "sweep", *config, "--workdir", str(args.workdir / "ablation"),
        "--jobs", str(args.jobs),
        "--set", f"model.checkpoint={demo / 'base'}", "--set", f"data.windows_dir={demo / 'windows'}",
        "--set", f"evaluate.windows_dir={args.workdir / 'heldout'}",
    ]  # fmt: skip


def _around_page(path: Path) -> tuple[str, str]:
    """Returns what stands before and after the page in a file, with the marks."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"--write: {path} must have the lines {BEGIN} and {END}, got none.")
    return before + begin, end + after


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
