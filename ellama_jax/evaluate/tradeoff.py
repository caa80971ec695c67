"""Owns the trade-off curve: many alphas between base and adapted, all scored, one chosen by rule.

Merging is weights/merge.py's and scoring `scorecard`'s; the plot is the report's.
"""

import argparse
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from ellama_jax.evaluate.comparison import paired_difference, print_table, summary
from ellama_jax.evaluate.scorecard import (
    DEFAULT_SCORING,
    Scoring,
    add_scoring_arguments,
    check_tasks,
    evaluate_params,
    fingerprint,
    gather_questions,
    load_model,
    write_json,
)
from ellama_jax.paths import as_path
from ellama_jax.weights.layout import check_writable, find_checkpoint
from ellama_jax.weights.merge import check_alpha, merge_checkpoints, merge_linear
from ellama_jax.weights.verdict import check_verified

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What an alpha may cost: a point of general accuracy (two are the whole project's aim), and so
# little general bits per byte that no reader would notice.
MAX_ACCURACY_LOSS = 0.01
MAX_BPB_RISE_FRAC = 0.01
RULE = (
    "Of the alphas that keep general ability, the one with the best e-commerce accuracy (plain mean"
    " over tasks and languages) on validation items; the smaller of two equals. General ability is"
    f" kept where general accuracy is at most {100 * MAX_ACCURACY_LOSS:g} point, or one standard"
    " error of the paired difference if that is more, below alpha 0, and general bits per byte at"
    f" most {100 * MAX_BPB_RISE_FRAC:g} % above it."
)

_NO_ITEMS = "merge-sweep: needs e-commerce items to choose by, got none."


def sweep_alphas(
    base: str | Path,
    adapted: str | Path,
    alphas: Sequence[float],
    items: Sequence[dict],
    texts: Sequence[dict],
    workdir: str | Path,
    *,
    known: Mapping[float, dict] | None = None,
    keep: bool = False,
    scoring: Scoring = DEFAULT_SCORING,
    command: str = "",
    allow_unverified: bool = False,
) -> dict:
    """Scores (1 - alpha) base + alpha adapted for every alpha and writes WORKDIR/sweep.json.

    Args:
        base, adapted: checkpoints of one architecture and tokenizer.
        alphas: what to try; 0 is added where it is missing, for the rule compares with it.
        items: validation items; test items must not choose.
        texts: validation documents for bits per byte.
        workdir: where sweep.json goes, and merged checkpoints as merged-<alpha>.
        known: scorecards of some alphas (0 and 1, usually) on the very same items and texts.
        keep: also write every merged checkpoint.
        scoring: how to run the model.
        command: recorded in the file.
        allow_unverified: take checkpoints that failed the conversion gate all the same.

    Returns:
        The content of sweep.json: `alphas` (a scorecard and its summary each), `chosen`, `rule`.

    Raises:
        ValueError: if the models do not fit each other or a known scorecard other questions, if
            there is nothing to choose by, or the workdir cannot be written.
    """
    alphas = sorted({0.0, *map(float, alphas)})
    for alpha in alphas:
        check_alpha(alpha)
    if not any(item["domain"] == "ecommerce" for item in items):
        raise ValueError(_NO_ITEMS)
    workdir = as_path(workdir)
    check_writable(workdir / "sweep.json")
    known = dict(known or {})
    for alpha, card in known.items():
        _check_same_questions(alpha, card, items, texts)
    base_params, config, tokenizer, _ = load_model(base)
    adapted_params, adapted_config, adapted_tokenizer, _ = load_model(adapted)
    _check_fit(config, tokenizer, adapted_config, adapted_tokenizer)
    for path in (base, adapted):
        if not (as_path(path) / "config.json").is_file():  # a Hugging Face directory needs no gate
            check_verified(find_checkpoint(path), allow_unverified=allow_unverified)
    cards = {}
    for alpha in alphas:
        if alpha in known:
            cards[alpha] = known[alpha]
        else:
            merged = merge_linear(base_params, adapted_params, alpha)
            merged = jax.tree.map(jnp.asarray, merged)
            cards[alpha] = evaluate_params(
                merged, config, tokenizer, items, texts, model=f"alpha {alpha:g}", scoring=scoring
            )
        if keep:
            out = workdir / f"merged-{alpha:g}"
            merge_checkpoints(
                base, adapted, alpha, out, overwrite=True, allow_unverified=allow_unverified
            )
    sweep = {**choose_alpha(cards), "base": str(base), "adapted": str(adapted), "command": command}
    write_json(workdir / "sweep.json", sweep)
    return sweep


def choose_alpha(cards: Mapping[float, dict]) -> dict:
    """Applies `RULE` to the scorecards of several alphas, 0 among them.

    Returns:
        {"alphas": [{"alpha", "scorecard", "keeps_general", and what `summary` gives}, ...],
        "chosen": alpha, "rule": RULE}.
    """
    points = []
    for alpha, card in sorted(cards.items()):
        kept = keeps_general(cards[0.0], card)
        points.append({"alpha": alpha, "scorecard": card, "keeps_general": kept, **summary(card)})
    if all(point["ecommerce"] is None for point in points):
        raise ValueError(_NO_ITEMS)
    eligible = [point for point in points if point["keeps_general"]]
    best = max(eligible, key=lambda point: (point["ecommerce"], -point["alpha"]))
    return {"alphas": points, "chosen": best["alpha"], "rule": RULE}


def keeps_general(base: dict, card: dict) -> bool:
    """Tells whether a model is as good at general tasks as `RULE` asks; alpha 0 itself is."""
    before, after = summary(base), summary(card)
    if before["general"] is not None:
        _, stderr, _ = paired_difference(base, card, domain="general")
        allowed = max(MAX_ACCURACY_LOSS, stderr or 0.0)
        if before["general"] - after["general"] > allowed + 1e-12:
            return False
    if before["bpb_general"] is not None:
        limit = before["bpb_general"] * (1 + MAX_BPB_RISE_FRAC)
        return after["bpb_general"] <= limit or math.isclose(after["bpb_general"], limit)
    return True


def _check_same_questions(alpha: float, card: dict, items, texts) -> None:
    """Refuses a scorecard of other items: its point would not lie on the same curve."""
    asked = {"items": fingerprint(items), "texts": fingerprint(texts)}
    for kind, expected in asked.items():
        found = card["made_with"][f"{kind}_fingerprint"]
        if found != expected:
            raise ValueError(
                f"scorecard of alpha {alpha:g}: must answer the same {kind} ({expected}), got"
                f" {found}; leave it out to score that alpha again."
            )


def _check_fit(config, tokenizer, adapted_config, adapted_tokenizer) -> None:
    if tokenizer.fingerprint != adapted_tokenizer.fingerprint:
        raise ValueError(
            f"merge-sweep: base and adapted must share a tokenizer, got fingerprints"
            f" {tokenizer.fingerprint[:16]} and {adapted_tokenizer.fingerprint[:16]}."
        )
    sizes = ("vocab_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads")
    for name in sizes:
        ours, theirs = getattr(config, name), getattr(adapted_config, name)
        if ours != theirs:
            raise ValueError(f"merge-sweep: {name} must be equal, got {ours} and {theirs}.")


def main_merge_sweep(argv: list[str]) -> None:
    """Runs `ellama merge-sweep`."""
    args = _parse_arguments(argv)
    alphas = parse_alphas(args.alphas)
    items, texts = gather_questions(
        check_tasks(args.tasks),
        benchmark_dir=args.benchmark,
        texts_path=args.texts,
        split=None if args.split == "all" else args.split,
        limit=args.limit,
        mmlu_style=args.mmlu_style,
        seed=args.seed,
    )
    sweep = sweep_alphas(
        args.base,
        args.adapted,
        alphas,
        items,
        texts,
        args.workdir,
        keep=args.keep,
        scoring=Scoring(
            row_length=args.row_length,
            rows_per_batch=args.rows_per_batch,
            window=args.window,
            compute_dtype=args.compute_dtype,
        ),
        command=shlex.join(["ellama", "merge-sweep", *argv]),
        allow_unverified=args.allow_unverified,
    )
    print_table([point["scorecard"] for point in sweep["alphas"]])
    print(f"\nchosen: alpha {sweep['chosen']:g}. {sweep['rule']}")


def parse_alphas(text: str) -> list[float]:
    """Reads "0,0.5,1".

    >>> parse_alphas("0, 0.25,1")
    [0.0, 0.25, 1.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--alphas: must be numbers and commas, got {text}.") from None


def _parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama merge-sweep",
        description=textwrap.fill(f"Score merges of two checkpoints and choose one. {RULE}", 90),
        epilog=(
            "example: ellama merge-sweep --base runs/base --adapted runs/a/checkpoints "
            "--workdir runs/a --tasks ecommerce,mmlu --benchmark runs/benchmark"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", required=True, help="checkpoint at alpha 0")
    parser.add_argument("--adapted", required=True, help="checkpoint at alpha 1")
    parser.add_argument("--workdir", required=True, help="where sweep.json goes")
    parser.add_argument("--tasks", default="ecommerce,mmlu", help="comma-separated")
    parser.add_argument("--alphas", default=",".join(f"{alpha:g}" for alpha in DEFAULT_ALPHAS))
    parser.add_argument("--split", choices=("validation", "test", "all"), default="validation")
    parser.add_argument("--keep", action="store_true", help="write every merged checkpoint too")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="take models that failed `ellama verify`"
    )
    add_scoring_arguments(parser)
    return parser.parse_args(argv)
