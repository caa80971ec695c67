"""Averaging: the mean of several steps of a run, or the moving average that a run kept itself.

Owns the mean and the record of what went into it. The moving average is made by train/optimizer.py
and lies in a checkpoint beside the optimizer state.
"""

import argparse
import os
from collections.abc import Sequence

import numpy as np

from ellama_jax.core.ownership import owned
from ellama_jax.core.tree import unflatten_paths
from ellama_jax.merge.inputs import check_mergeable
from ellama_jax.weights.checkpoint import (
    CheckpointInfo,
    find_checkpoint,
    make_meta,
    open_average,
    open_leaves,
    write_checkpoint,
)
from ellama_jax.weights.content_hash import Ledger, leaf_arrays, with_hashes
from ellama_jax.weights.layout import check_destination
from ellama_jax.weights.lazy import Box, LazyArray
from ellama_jax.weights.verdict import check_verified, inherit_verification

# What of a step is averaged, and how its leaves are opened.
WEIGHTS = {"params": open_leaves, "ema": open_average}


def mean_of(leaves: Sequence[LazyArray]) -> LazyArray:
    """Returns the mean of arrays of one shape, read box by box, summed in float64.

    The mean of one is that one, bit for bit. Of different dtypes it is float32.

    >>> from ellama_jax.weights.lazy import from_array
    >>> mean_of([from_array(np.float32([1, 2])), from_array(np.float32([2, 4]))]).load().tolist()
    [1.5, 3.0]
    """
    first = leaves[0]
    dtypes = {leaf.dtype for leaf in leaves}
    dtype = first.dtype if len(dtypes) == 1 else np.dtype(np.float32)

    def read(box: Box) -> np.ndarray:
        if len(leaves) == 1:
            return first.read(box)
        total = first.read(box).astype(np.float64)
        for leaf in leaves[1:]:
            total += leaf.read(box)
        return (total / len(leaves)).astype(dtype)

    return LazyArray(first.shape, dtype, read, first.grid)


def average_checkpoints(
    steps: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    weights: str = "params",
    *,
    overwrite: bool = False,
    allow_unverified: bool = False,
) -> CheckpointInfo:
    """Writes the mean of some checkpoints as one more; LiLiuM (arXiv 2406.12023) ends so.

    Args:
        steps: each a root or `ROOT/<step>`, of one model and tokenizer.
        out: the root to make.
        weights: `params`, the weights being trained, or `ema`, their moving average that a run with
            `optimizer.ema_decay` keeps; of one step, `ema` is that average alone.
        overwrite: replace an existing checkpoint root at `out`.
        allow_unverified: take inputs that failed the conversion gate all the same.

    Returns:
        The new checkpoint; `meta["provenance"]` names the inputs.

    Raises:
        ValueError: if the models or the place do not fit, a step keeps no moving average or a number is
            not finite; nothing is kept then.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights: must be one of {', '.join(WEIGHTS)}, got {weights}.")
    infos = [find_checkpoint(step) for step in steps]
    if not infos:
        raise ValueError("average: must be given at least one checkpoint, got none.")
    if len({info.path.resolve() for info in infos}) < len(infos):
        paths = ", ".join(str(info.path) for info in infos)
        raise ValueError(f"average: must be given different checkpoints, got {paths}.")
    for info in infos[1:]:
        check_mergeable(infos[0], info)
    for info in infos:
        check_verified(info, allow_unverified=allow_unverified)
    opened = [WEIGHTS[weights](info.path) for info in infos]
    arrays = leaf_arrays(infos[0].config, opened[0])
    ledgers = [Ledger(f"{info.path} ({weights})") for info in infos]
    params = {
        name: mean_of(
            [
                ledger.follow(leaves[name], arrays[name])
                for ledger, leaves in zip(ledgers, opened, strict=True)
            ]
        )
        for name in opened[0]
    }
    check_destination(out, sum(leaf.nbytes for leaf in params.values()), overwrite=overwrite)
    meta = make_meta(
        infos[0].config,
        tokenizer_fingerprint=infos[0].meta["tokenizer_fingerprint"],
        provenance={
            "kind": "average",
            "weights": weights,
            "sources": [
                {"name": info.root.name, "step": info.step, "commit": info.meta["commit"],
                 "provenance": info.meta["provenance"]}
                for info in infos
            ],
        },
        verification=inherit_verification(*infos),
    )  # fmt: skip
    return write_checkpoint(
        out,
        unflatten_paths(params),
        config=infos[0].config,
        meta=meta,
        tokenizer_dir=infos[0].tokenizer_dir,
        overwrite=overwrite,
        finish_meta=lambda facts: with_hashes(facts, ledgers),
    )


# --- the verb ------------------------------------------------------------------------------------


def main_average(argv: list[str]) -> None:
    """Runs `ellama average STEP [STEP ...] --out C`."""
    parser = argparse.ArgumentParser(
        prog="ellama average",
        description="Average the weights of steps of a run, or take out its moving average.",
        epilog="examples:\n"
        "  ellama average runs/a/checkpoints/800 runs/a/checkpoints/900 --out runs/mean\n"
        "  ellama average runs/a/checkpoints --weights ema --out runs/ema",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="+", metavar="STEP", help="a root, or ROOT/<step>")
    parser.add_argument("--out", required=True, help="checkpoint root to make")
    parser.add_argument(
        "--weights",
        default="params",
        choices=sorted(WEIGHTS),
        help="params: those being trained (default); ema: their moving average",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint at OUT")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="take inputs that failed `ellama verify`"
    )
    args = parser.parse_args(argv)
    with owned(args.out, "ellama average"):
        info = average_checkpoints(
            args.steps,
            args.out,
            args.weights,
            overwrite=args.overwrite,
            allow_unverified=args.allow_unverified,
        )
    steps = ", ".join(str(source["step"]) for source in info.meta["provenance"]["sources"])
    print(f"Averaged {args.weights} of step {steps} into {info.path}")
