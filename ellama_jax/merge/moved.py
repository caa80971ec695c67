"""`ellama moved`: where training moved the weights, and which of them may as well go back.

Owns the verb, WORKDIR/moved.json and its words. Sums over weights are weights/difference.py's, scores
of models between two blend.py's, the study revert.py's.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path
from ellama_jax.evaluate.card_text import say_comparison
from ellama_jax.evaluate.retention import compare as compare_cards
from ellama_jax.evaluate.scorecard import (
    DEFAULT_SCORING,
    Scoring,
    write_json,
)
from ellama_jax.merge.blend import check_fit, find_source, load_pair, score_blend
from ellama_jax.merge.revert import (
    DEFAULT_LIMITS,
    MAX_ACCURACY_LOSS,
    MAX_GAIN_LOSS,
    Limits,
    parts_of,
    revert,
    say_reverts,
    study_reverts,
)
from ellama_jax.merge.tradeoff_store import PointStore, point_key
from ellama_jax.merge.tradeoff_verb import (
    Questions,
    add_question_arguments,
    gather_splits,
    mesh_of,
)
from ellama_jax.weights.alphas import Alphas
from ellama_jax.weights.difference import compare
from ellama_jax.weights.difference_text import describe_difference, difference_to_data
from ellama_jax.weights.layout import check_writable
from ellama_jax.weights.verdict import check_verified

FILE = "moved.json"


def study_models(
    base: str | Path,
    adapted: str | Path,
    questions: Questions,
    workdir: str | Path,
    *,
    test: Questions | None = None,
    alpha: float = 1.0,
    layers_a_part: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    extrapolate: bool = False,
    scoring: Scoring = DEFAULT_SCORING,
    allow_unverified: bool = False,
) -> dict:
    """Finds what of an adaptation can go back to base, on validation questions; see `revert`.

    Both models are loaded once. Scorecards are kept in the workdir as a sweep's are, so a study that
    was broken off goes on.

    Args:
        base, adapted: checkpoints or Hugging Face directories of one architecture and tokenizer.
        questions: validation (items, texts), which choose.
        workdir: where scorecards are kept.
        test: (items, texts) that report once on base, the model studied and what is left of it.
        alpha: of the model studied; 1 is adapted.
        layers_a_part: how many neighbouring layers go back together.
        limits: what may be lost of e-commerce in all.
        extrapolate: whether alpha may lie outside [0, 1].
        scoring: how to run the models, and the mesh they lie on.
        allow_unverified: take checkpoints that failed the conversion gate all the same.

    Returns:
        What `study_reverts` returns, with "merge" (the options of `ellama merge` that write the
        result), and "test": comparisons on test questions {"whole", "reverted"} with base.

    Raises:
        ValueError: if the models do not fit each other or there is nothing to judge by.
    """
    ours, theirs = find_source(base), find_source(adapted)
    check_fit(ours, theirs, "moved")
    Alphas((alpha,)).check(ours.config.num_layers, extrapolate=extrapolate)
    if alpha == 0:
        raise ValueError("--alpha: must be above 0, got 0, which is the base itself.")
    parts = parts_of(
        ours.config.num_layers, tied=ours.config.tied_embeddings, layers_a_part=layers_a_part
    )
    for source in (ours, theirs):
        if source.info is not None:
            check_verified(source.info, allow_unverified=allow_unverified)
    pair, store = load_pair(ours, theirs, mesh=scoring.mesh), PointStore(as_path(workdir))

    def score(alphas: Alphas, asked: Questions = questions, model: str | None = None) -> dict:
        key = point_key(ours, theirs, alphas, *asked, scoring)
        card = store.get(key)
        if card is None:
            card = score_blend(
                *pair, alphas, ours.config, ours.tokenizer, *asked,
                model=model or f"alpha {alphas}", scoring=scoring,
            )  # fmt: skip
            store.put(key, card)
        return {**card, "model": model or card["model"]}

    study = study_reverts(score, parts, alpha=alpha, limits=limits)
    reverted = revert(alpha, study["reverted"])
    options = [f"--alpha={alpha:g}", *(f"--alpha-of={part}=0" for part in study["reverted"])]
    study |= {"merge": options, "test": None}
    if test is not None and study["reverted"]:
        cards = [
            score(alphas, test, name)
            for name, alphas in (
                ("base", Alphas((0.0,))),
                ("adapted" if alpha == 1 else f"alpha {alpha:g}", Alphas((alpha,))),
                ("reverted", reverted),
            )
        ]
        study["test"] = {
            "whole": compare_cards(cards[0], cards[1]),
            "reverted": compare_cards(cards[0], cards[2]),
            "against_whole": compare_cards(cards[1], cards[2]),
        }
    return study


def say_study(study: Mapping, base: str, adapted: str) -> str:
    """Says what the study found, on validation and test questions, and how to write the model."""
    lines = [say_reverts(study)]
    if study["test"] is not None:
        tested = study["test"]
        lines += ["", "on test questions, which chose nothing:"]
        lines += [say_comparison(tested[name]) for name in ("whole", "reverted", "against_whole")]
    if study["reverted"]:
        options = " ".join(study["merge"])
        command = shlex.join(["--base", base, "--adapted", adapted])
        lines += ["", f"to write it: ellama merge {command} {options} --out OUT"]
    return "\n".join(lines)


def main_moved(argv: list[str]) -> None:
    """Runs `ellama moved`."""
    args = _parse_arguments(argv)
    workdir = as_path(args.workdir)
    check_writable(workdir / FILE)
    limits = Limits(args.max_gain_loss, args.max_accuracy_loss)
    questions = gather_splits(args) if args.tasks else None
    with owned(workdir, "ellama moved"):
        found = compare(args.base, args.adapted)
        content = {
            "command": shlex.join(["ellama", "moved", *argv]),
            "difference": difference_to_data(found),
            "revert": None,
        }
        print(describe_difference(found, by_layer=True))
        if questions is not None:
            content["revert"] = study_models(
                args.base, args.adapted, questions[0], workdir, test=questions[1], alpha=args.alpha,
                layers_a_part=args.layers_a_part, limits=limits, extrapolate=args.extrapolate,
                scoring=Scoring(
                    row_length=args.row_length, rows_per_batch=args.rows_per_batch, window=args.window,
                    compute_dtype=args.compute_dtype, mesh=mesh_of(args.mesh),
                ),
                allow_unverified=args.allow_unverified,
            )  # fmt: skip
            print(f"\n{say_study(content['revert'], args.base, args.adapted)}")
        write_json(workdir / FILE, content)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama moved",
        description="Say where training moved the weights, layer by layer and, with --tasks, which "
        "layers can go back to base at no cost to e-commerce: each alone, then one after another\n"
        "from the cheapest on, judged by validation questions. Takes two scorecards a layer.",
        epilog=(
            "example: ellama moved --base runs/base --adapted runs/a/checkpoints --workdir runs/a\n"
            "         ellama moved --base runs/base --adapted runs/a/checkpoints --workdir runs/a "
            "--tasks ecommerce,bits_per_byte --benchmark runs/benchmark --texts heldout.jsonl"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", required=True, help="checkpoint before training")
    add("--adapted", required=True, help="checkpoint after training")
    add("--workdir", required=True, help=f"where {FILE} goes")
    add("--alpha", type=float, default=1.0, help="start from this merge (default 1: adapted)")
    add("--extrapolate", action="store_true", help="allow an alpha outside [0, 1]")
    add("--layers-a-part", type=int, default=1, help="neighbouring layers that go back together")
    add("--max-accuracy-loss", type=float, default=MAX_ACCURACY_LOSS,
        help="of e-commerce accuracy, or a standard error (default %(default)g)")  # fmt: skip
    add("--max-gain-loss", type=float, default=MAX_GAIN_LOSS,
        help="share of the e-commerce gain, in bits per byte (default %(default)g)")  # fmt: skip
    add("--allow-unverified", action="store_true", help="take models that failed `ellama verify`")
    add_question_arguments(parser, tasks=None)
    return parser.parse_args(argv)
