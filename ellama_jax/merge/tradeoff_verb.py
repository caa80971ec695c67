"""`ellama merge-sweep`: its options, which questions choose and which report, and what is written.

Owns no scoring: tradeoff.py does the work.
"""

import argparse
import dataclasses
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from ellama_jax.config import BEST_BY, GateConfig, SweepConfig, check_sweep, load_config
from ellama_jax.core.distributed import leads
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path, is_remote, write_whole
from ellama_jax.core.sharding import make_mesh
from ellama_jax.evaluate.scorecard import (
    Scoring,
    add_scoring_arguments,
    check_tasks,
    gather_questions,
    limit_each,
    read_texts,
)
from ellama_jax.merge.tradeoff import (
    BEYOND,
    DEFAULT_ALPHAS,
    MERGED,
    Questions,
    SweepPlan,
    sweep,
)
from ellama_jax.merge.tradeoff_plot import draw_sweep
from ellama_jax.merge.tradeoff_profiles import PROFILES, check_profiles
from ellama_jax.merge.tradeoff_text import format_sweep, format_sweep_markdown
from ellama_jax.weights.layout import find_checkpoint, list_steps

# Share of --texts that chooses, where no --test-texts are given.
_TEXTS_VALIDATION_FRAC = 1 / 2
_RULE_OPTIONS = ("best_by", "general_mean", "bits_per_byte", "standard_errors")


def main_merge_sweep(argv: list[str]) -> None:
    """Runs `ellama merge-sweep`."""
    given, defaults, scoring, gate = list(argv), SweepPlan(), {}, GateConfig()
    if any(word.split("=")[0] in ("--config", "-config") for word in argv):
        config, argv = load_config(argv, "merge-sweep")
        evaluate = config.evaluate
        gate = evaluate.gate
        defaults = SweepPlan(alphas=tuple(evaluate.alphas), rule=evaluate.sweep)
        scoring = {"row_length": evaluate.row_length, "rows_per_batch": evaluate.rows_per_batch,
                   "window": evaluate.window}  # fmt: skip
    args = _parse_arguments(argv, scoring)
    plan = _plan_of(args, defaults)
    adapted = _find_steps(args)
    questions, test = gather_splits(args)
    with owned(args.workdir, "ellama merge-sweep"):
        found = sweep(
            args.base,
            adapted,
            questions,
            args.workdir,
            plan,
            test=test,
            scoring=Scoring(
                row_length=args.row_length,
                rows_per_batch=args.rows_per_batch,
                window=args.window,
                compute_dtype=args.compute_dtype,
                mesh=mesh_of(args.mesh),
            ),
            gate=gate,
            command=shlex.join(["ellama", "merge-sweep", *given]),
            write_merged=not args.no_checkpoint,
            overwrite=args.overwrite,
            allow_unverified=args.allow_unverified,
        )
    if not leads():
        return
    write_words_and_plot(found, as_path(args.workdir))
    print(format_sweep(found))
    if found["checkpoint"]:
        print(f"chosen model: {found['checkpoint']}")


def write_words_and_plot(found: dict, workdir: Path) -> None:
    """Writes WORKDIR/sweep.md, and sweep.svg and sweep.png where the workdir is on a disk."""
    write_whole(workdir / "sweep.md", format_sweep_markdown(found) + "\n")
    if not is_remote(workdir):
        for suffix in ("svg", "png"):
            draw_sweep(found, workdir / f"sweep.{suffix}")


def _plan_of(args: argparse.Namespace, defaults: SweepPlan) -> SweepPlan:
    """Returns what is to be scored; what is not given is the configuration's, or the default."""
    if args.alphas is not None and args.max_points is not None:
        raise ValueError(
            f"--max-points: must not stand beside --alphas, which says every point, got "
            f"{args.max_points}."
        )
    changes = {
        key: getattr(args, key)
        for key in ("max_points", *_RULE_OPTIONS)
        if getattr(args, key) is not None
    }
    rule = dataclasses.replace(defaults.rule, **changes)
    check_sweep(rule, "--")
    alphas = defaults.alphas if args.alphas is None else tuple(parse_alphas(args.alphas))
    if args.extrapolate and args.alphas is None:
        alphas = (*alphas, *BEYOND)
    if args.alphas is None:
        alphas = _thin(sorted({0.0, *alphas}), rule.max_points)
    names = args.profiles.split(",") if args.profiles else []
    return SweepPlan(
        alphas=alphas,
        adaptive=args.alphas is None,
        rule=rule,
        profiles=tuple(check_profiles([name.strip() for name in names])),
        line=args.line,
        extrapolate=args.extrapolate,
    )


def _thin(alphas: list[float], most: int) -> tuple[float, ...]:
    """Returns at most so many of ascending alphas, evenly, the ends among them.

    >>> _thin([0.0, 0.25, 0.5, 0.75, 1.0], 3)
    (0.0, 0.5, 1.0)
    """
    count = min(most, len(alphas))
    return tuple(alphas[round(n * (len(alphas) - 1) / (count - 1))] for n in range(count))


def _find_steps(args: argparse.Namespace) -> list[str | Path]:
    """Returns the adapted models: those given, or steps of the one root."""
    if not args.steps:
        if len(set(args.adapted)) < len(args.adapted):
            raise ValueError(f"--adapted: must differ, got {' '.join(args.adapted)}.")
        if len(args.adapted) > 1:
            infos = [find_checkpoint(path) for path in args.adapted]
            if len({info.step for info in infos}) < len(infos):
                raise ValueError(
                    "--adapted: must be different steps of a run, got steps "
                    f"{', '.join(str(info.step) for info in infos)}."
                )
            return [info.path for info in sorted(infos, key=lambda info: info.step)]
        return list(args.adapted)
    if len(args.adapted) > 1:
        raise ValueError(
            f"--steps: must stand beside one --adapted, got {len(args.adapted)} of them."
        )
    root = find_checkpoint(args.adapted[0]).root
    complete = [entry.step for entry in list_steps(root) if entry.problem is None]
    steps = complete
    if args.steps != "all":
        try:
            steps = sorted({int(part) for part in args.steps.split(",")})
        except ValueError:
            raise ValueError(
                f"--steps: must be all or numbers and commas, got {args.steps}."
            ) from None
    if missing := [step for step in steps if step not in complete]:
        raise ValueError(
            f"--steps: must be complete steps of {root} ({', '.join(map(str, complete))}), got "
            f"{', '.join(map(str, missing))}."
        )
    return [root / str(step) for step in steps]


def gather_splits(args: argparse.Namespace) -> tuple[Questions, Questions | None]:
    """Returns the questions that choose and those that report."""
    tasks = check_tasks(args.tasks)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit: must be at least 1, got {args.limit}.")
    if args.test_texts and args.no_test:
        raise ValueError(f"--test-texts: must not stand beside --no-test, got {args.test_texts}.")
    splits = ["validation"] if args.no_test else ["validation", "test"]
    texts = _gather_texts(args) if "bits_per_byte" in tasks else {split: [] for split in splits}
    asked = [task for task in tasks if task != "bits_per_byte"]
    found = []
    for split in splits:
        items, _ = gather_questions(
            asked, benchmark_dir=args.benchmark, texts_path=None, split=split, limit=args.limit,
            mmlu_style=args.mmlu_style, seed=args.seed,
        )  # fmt: skip
        if args.benchmark and not any(item["domain"] == "ecommerce" for item in items):
            hint = (
                "build it with a --validation-frac above 0" if split == "validation" else
                "build it with a smaller --validation-frac, or pass --no-test"
            )  # fmt: skip
            if any(task != "mmlu" for task in asked):
                raise ValueError(
                    f"--benchmark: must hold {split} items, got none in {args.benchmark}; {hint}."
                )
        found.append((items, texts[split]))
    return found[0], None if args.no_test else found[1]


def _gather_texts(args: argparse.Namespace) -> dict[str, list[dict]]:
    if args.texts is None:
        raise ValueError("--texts: must name held-out texts for bits_per_byte, got none.")
    if args.test_texts is not None:
        parts = {"validation": read_texts(args.texts), "test": read_texts(args.test_texts)}
    elif args.no_test:
        parts = {"validation": read_texts(args.texts)}
    else:
        parts = split_texts(read_texts(args.texts))
    return {k: limit_each(v, args.limit, ("domain", "language")) for k, v in parts.items()}


def split_texts(texts: Sequence[dict]) -> dict[str, list[dict]]:
    """Splits documents into those that choose and those that report, by a hash of their text.

    So a document is on one side whatever else is given with it, and so are its copies.
    """
    parts = {"validation": [], "test": []}
    for text in texts:
        digest = hashlib.sha256(text["text"].encode()).digest()
        chooses = int.from_bytes(digest[:8], "big") / 2**64 < _TEXTS_VALIDATION_FRAC
        parts["validation" if chooses else "test"].append(text)
    return parts


def parse_alphas(text: str) -> list[float]:
    """Reads "0,0.5,1".

    >>> parse_alphas("0, 0.25,1")
    [0.0, 0.25, 1.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--alphas: must be numbers and commas, got {text}.") from None


def mesh_of(text: str | None):
    """Reads "fsdp=4,tensor=2"; None is one device."""
    if text is None:
        return None
    sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in sizes or not size.strip().isdigit():
            raise ValueError(f"--mesh: must be axes as fsdp=4,tensor=2, got {text}.")
        sizes[name.strip()] = int(size)
    return make_mesh(sizes)


def _parse_arguments(argv: list[str], scoring: dict) -> argparse.Namespace:
    rule = SweepConfig()
    parser = argparse.ArgumentParser(
        prog="ellama merge-sweep",
        description="Score the models between two checkpoints, choose one by a rule and write it.\n"
        "Validation questions choose; test questions then report once.\n"
        "--config FILE[:ARGUMENT] takes evaluate.alphas, .sweep and .gate from a configuration.",
        epilog=(
            "example: ellama merge-sweep --base runs/base --adapted runs/a/checkpoints "
            "--workdir runs/a --tasks ecommerce,mmlu --benchmark runs/benchmark"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", required=True, help="checkpoint at alpha 0")
    add(
        "--adapted", required=True, nargs="+", help="checkpoint at alpha 1; several: steps of a run"
    )
    add("--steps", help="of one --adapted: all, or numbers and commas; makes a heat map")
    add("--workdir", required=True, help="where sweep.json, the plot and `merged` go")
    first = ",".join(f"{alpha:g}" for alpha in DEFAULT_ALPHAS)
    add("--alphas", help=f"exactly these; by default {first} and more where the curve bends")
    add("--max-points", type=int, help=f"of the curve, at most (default {rule.max_points})")
    add("--extrapolate", action="store_true", help="allow alphas outside [0, 1]; try some above 1")
    add("--profiles", help=f"shapes over depth or parts: all, or some of {', '.join(PROFILES)}")
    add("--line", type=int, default=0, metavar="N",
        help="score text at N evenly spaced alphas: are the models linearly connected?")  # fmt: skip
    add("--best-by", choices=BEST_BY, help=f"what is best (default {rule.best_by})")
    add("--general-mean", type=float,
        help=f"relative change of general accuracy allowed (default {rule.general_mean:g})")  # fmt: skip
    add("--standard-errors", type=float,
        help=f"or so many standard errors, if more (default {rule.standard_errors:g})")  # fmt: skip
    add("--bits-per-byte", type=float,
        help=f"relative rise of general bits per byte allowed (default {rule.bits_per_byte:g})")  # fmt: skip
    add("--no-checkpoint", action="store_true", help="do not write the chosen model")
    add("--overwrite", action="store_true", help=f"replace WORKDIR/{MERGED}")
    add("--allow-unverified", action="store_true", help="take models that failed `ellama verify`")
    add_question_arguments(parser, tasks="ecommerce,mmlu")
    parser.set_defaults(**scoring)
    return parser.parse_args(argv)


def add_question_arguments(parser: argparse.ArgumentParser, tasks: str | None) -> None:
    """Adds the options of what chooses and what reports, and of how models are run.

    Args:
        parser: of a verb that scores models between two.
        tasks: asked where none are named.
    """
    add = parser.add_argument
    default = f" (default {tasks})" if tasks else ""
    add("--tasks", default=tasks, help=f"comma-separated{default}")
    add("--test-texts", help="documents that report; by default half of --texts do")
    add("--no-test", action="store_true", help="ask no test question")
    add("--mesh", help="devices to divide the models over, as fsdp=4,tensor=2")
    add_scoring_arguments(parser)
