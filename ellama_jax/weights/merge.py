"""Merging a base and an adapted model into a third: (1 - alpha) base + alpha adapted.

Owns the formula and the record of what was merged. It chooses no alpha; the sweep over alphas,
which scores each merge, belongs to evaluation.
"""

import argparse
import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping

import numpy as np

from ellama_jax.model.presets import config_to_dict
from ellama_jax.progress import progress
from ellama_jax.tree import flatten_paths, unflatten_paths
from ellama_jax.weights.checkpoint import (
    CheckpointInfo,
    find_checkpoint,
    list_leaves,
    make_meta,
    restore_leaf,
    write_checkpoint,
)
from ellama_jax.weights.layout import (
    check_destination,
    check_fingerprint,
)
from ellama_jax.weights.verdict import check_verified, inherit_verification

log = logging.getLogger(__name__)

# What may differ between two models that can be merged.
_NOT_COMPARED = ("name", "base_peak_learning_rate", "max_seq_len")


def merge_linear(base: Mapping, adapted: Mapping, alpha: float, *, dtype=None) -> dict:
    """Interpolates two trees of parameters, computed in float32.

    Model soups (arXiv 2203.05482) and e-Llama (arXiv 2501.09706): (1 - alpha) base + alpha adapted.
    At 0 and 1 the result is bitwise the base and the adapted model.

    Args:
        base: nested dict of arrays, the model that was adapted.
        adapted: the same structure and shapes.
        alpha: 0 is base, 1 is adapted; other finite values extrapolate.
        dtype: of the result; None takes the wider dtype of each two leaves.

    Returns:
        Nested dict of NumPy arrays.

    Raises:
        ValueError: if alpha is not finite, or leaves or shapes differ.

    A quarter of the way from 1 to 3:

        >>> merge_linear({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, 0.25)["w"].tolist()
        [1.5]
    """
    check_alpha(alpha)
    ours, theirs = flatten_paths(base), flatten_paths(adapted)
    shapes = [{name: tuple(leaf.shape) for name, leaf in side.items()} for side in (ours, theirs)]
    _check_same_shapes("merge", *shapes)
    merged = {
        n: interpolate(np.asarray(ours[n]), np.asarray(theirs[n]), alpha, dtype) for n in ours
    }
    return unflatten_paths(merged)


def interpolate(base: np.ndarray, adapted: np.ndarray, alpha: float, dtype=None) -> np.ndarray:
    """Returns (1 - alpha) base + alpha adapted for one leaf; see `merge_linear`."""
    dtype = np.dtype(dtype) if dtype is not None else _wider(base.dtype, adapted.dtype)
    # 0 * inf and -0.0 + 0.0 would change bits where nothing is to change.
    if alpha in (0.0, 1.0):
        return (adapted if alpha else base).astype(dtype)
    result = base.astype(np.float32)
    result *= np.float32(1.0 - alpha)
    result += adapted.astype(np.float32) * np.float32(alpha)
    return result.astype(dtype, copy=False)


# name -> function of one leaf: (base, adapted, alpha, dtype) -> merged.
METHODS: dict[str, Callable] = {"linear": interpolate}


def check_alpha(alpha: float) -> None:
    """Refuses an alpha that is no number; warns where it extrapolates."""
    if not math.isfinite(alpha):
        raise ValueError(f"alpha: must be a finite number, got {alpha}.")
    if not 0.0 <= alpha <= 1.0:
        log.warning("alpha: %g is outside [0, 1], so the merge extrapolates", alpha)


def merge_checkpoints(
    base: str | os.PathLike,
    adapted: str | os.PathLike,
    alpha: float,
    out: str | os.PathLike,
    method: str = "linear",
    *,
    dtype=None,
    overwrite: bool = False,
    allow_unverified: bool = False,
) -> CheckpointInfo:
    """Merges two checkpoints into a third, leaf by leaf.

    Args:
        base: a root or `ROOT/<step>`.
        adapted: the same, of a model with the same sizes and the same tokenizer.
        alpha: 0 is base, 1 is adapted.
        out: the root to make.
        method: one of `METHODS`.
        dtype: of the result; None takes the wider dtype of each two leaves.
        overwrite: replace an existing checkpoint root at `out`.
        allow_unverified: take inputs that failed the conversion gate all the same.

    Returns:
        The new checkpoint; `meta["provenance"]` names both inputs by step and content hash.

    Raises:
        ValueError: if the models, tokenizers or the place do not fit; nothing is written then.
    """
    check_alpha(alpha)
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method}.")
    inputs = {"base": find_checkpoint(base), "adapted": find_checkpoint(adapted)}
    check_mergeable(inputs["base"], inputs["adapted"])
    leaves = {role: list_leaves(info.path) for role, info in inputs.items()}
    size = sum(_merged_bytes(leaves, name, dtype) for name in leaves["base"])
    check_destination(out, size, overwrite=overwrite)
    for info in inputs.values():
        check_verified(info, allow_unverified=allow_unverified)
    params, hashes = _merge_leaves(inputs, leaves["base"], METHODS[method], alpha, dtype)
    meta = make_meta(
        inputs["base"].config,
        tokenizer_fingerprint=inputs["base"].meta["tokenizer_fingerprint"],
        provenance={
            "kind": "merge",
            "method": method,
            "alpha": alpha,
            "sources": [_describe_input(r, info, hashes[r]) for r, info in inputs.items()],
        },
        verification=inherit_verification(*inputs.values()),
    )
    return write_checkpoint(
        out,
        params,
        config=inputs["base"].config,
        meta=meta,
        tokenizer_dir=inputs["base"].tokenizer_dir,
        overwrite=overwrite,
    )


def _merge_leaves(inputs, names, combine, alpha, dtype) -> tuple[dict, dict[str, str]]:
    # Both inputs pass by here once, so their content hashes cost no further reading.
    digests = {role: hashlib.sha256() for role in inputs}
    merged = {}
    with progress("merging", total=len(names), unit="parameters") as bar:
        for name in sorted(names):
            pair = {role: restore_leaf(info.path, name) for role, info in inputs.items()}
            for role, leaf in pair.items():
                digests[role].update(f"{name} {leaf.dtype.name} {leaf.shape}".encode())
                digests[role].update(np.ascontiguousarray(leaf).view(np.uint8).data)
            merged[name] = combine(pair["base"], pair["adapted"], alpha, dtype)
            bar.update(1)
    return unflatten_paths(merged), {role: d.hexdigest() for role, d in digests.items()}


def check_mergeable(base: CheckpointInfo, adapted: CheckpointInfo) -> None:
    """Refuses two checkpoints of different tokenizers, shapes or constants; reads no weight."""
    prints = [info.meta["tokenizer_fingerprint"] for info in (base, adapted)]
    if prints[0] != prints[1]:
        raise ValueError(
            f"merge: both models must have one tokenizer, got fingerprint {prints[0][:12]} in "
            f"{base.path} and {prints[1][:12]} in {adapted.path}."
        )
    # The tokenizer that will be copied must still be the one that both were made with.
    check_fingerprint(base.tokenizer_dir, prints[0])
    shapes = [
        {name: shape for name, (shape, _) in list_leaves(info.path).items()}
        for info in (base, adapted)
    ]
    _check_same_shapes(f"merge {base.path} with {adapted.path}", *shapes)
    ours, theirs = config_to_dict(base.config), config_to_dict(adapted.config)
    differ = [key for key in ours if key not in _NOT_COMPARED and ours[key] != theirs[key]]
    if differ:
        pairs = "; ".join(f"{key} is {ours[key]} and {theirs[key]}" for key in differ)
        raise ValueError(f"merge: both models must have the same constants, but {pairs}.")


def _check_same_shapes(title: str, ours: Mapping, theirs: Mapping) -> None:
    differences = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            where = "base" if name not in ours else "adapted"
            differences.append(f"{name} is missing in {where}")
        elif ours[name] != theirs[name]:
            sizes = f"{list(ours[name])} in base, {list(theirs[name])} in adapted"
            differences.append(f"{name} is {sizes}")
    if differences:
        verb = "leaf differs" if len(differences) == 1 else "leaves differ"
        raise ValueError(f"{title}: {len(differences)} {verb}: {'; '.join(differences)}.")


def _wider(a: np.dtype, b: np.dtype) -> np.dtype:
    # bfloat16 and float16 hold different numbers; only float32 holds both.
    return a if a == b else np.dtype(np.float32)


def _merged_bytes(leaves: dict, name: str, dtype) -> int:
    shape, ours = leaves["base"][name]
    stored = np.dtype(dtype) if dtype is not None else _wider(ours, leaves["adapted"][name][1])
    return math.prod(shape) * stored.itemsize


def _describe_input(role: str, info: CheckpointInfo, params_sha256: str) -> dict:
    return {
        "role": role,
        "name": info.root.name,
        "step": info.step,
        "params_sha256": params_sha256,
        "commit": info.meta["commit"],
        "provenance": info.meta["provenance"],
    }


# --- the verb ------------------------------------------------------------------------------------


def main_merge(argv: list[str]) -> None:
    """Runs `ellama merge --base A --adapted B --alpha 0.3 --out C`."""
    parser = argparse.ArgumentParser(
        prog="ellama merge",
        description="Merge two checkpoints into a third: (1 - alpha) base + alpha adapted.",
        epilog="example: ellama merge --base runs/base --adapted runs/a/checkpoints --alpha 0.3 "
        "--out runs/merged",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", required=True, help="checkpoint before training")
    parser.add_argument("--adapted", required=True, help="checkpoint after training")
    parser.add_argument("--alpha", required=True, type=float, help="0 is base, 1 is adapted")
    parser.add_argument("--out", required=True, help="checkpoint root to make")
    parser.add_argument("--method", default="linear", choices=sorted(METHODS))
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint at OUT")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="take inputs that failed `ellama verify`"
    )
    args = parser.parse_args(argv)
    info = merge_checkpoints(
        args.base,
        args.adapted,
        args.alpha,
        args.out,
        args.method,
        overwrite=args.overwrite,
        allow_unverified=args.allow_unverified,
    )
    base, adapted = info.meta["provenance"]["sources"]
    print(
        f"Merged {1 - args.alpha:g} x {args.base} (step {base['step']}) + {args.alpha:g} x "
        f"{args.adapted} (step {adapted['step']}) into {info.path}"
    )
