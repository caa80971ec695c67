"""Merging models into one more: `ellama merge`, and the same onto a mesh.

Owns what a method may be given, the order of the work and the record of what was merged. Formulas are
merge/methods.py's, memory is merge/stream.py's, what fits is merge/inputs.py's. It chooses no alpha;
the sweep over alphas belongs to evaluation.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path, is_remote
from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.merge import inputs
from ellama_jax.merge.inputs import Model, Vocabulary, check_mergeable
from ellama_jax.merge.methods import METHODS, find_method
from ellama_jax.merge.options import DTYPES, parse_arguments
from ellama_jax.merge.stream import Recipe, merge_arrays, merged_dtype
from ellama_jax.model.llama import abstract_params
from ellama_jax.weights.alphas import Alphas
from ellama_jax.weights.checkpoint import CheckpointInfo, make_meta, write_checkpoint
from ellama_jax.weights.content_hash import with_hashes
from ellama_jax.weights.export import is_export, write_directory
from ellama_jax.weights.layout import check_destination, check_fingerprint
from ellama_jax.weights.lazy import place
from ellama_jax.weights.verdict import inherit_verification

__all__ = [
    "METHODS",
    "check_alpha",
    "check_mergeable",
    "interpolate",
    "load_merged",
    "main_merge",
    "merge_checkpoints",
    "merge_linear",
    "merge_models",
]

log = logging.getLogger(__name__)

FORMATS = ("orbax", "huggingface")


# --- trees in memory -----------------------------------------------------------------------------


def merge_linear(base: Mapping, adapted: Mapping, alpha: float | Alphas, *, dtype=None) -> dict:
    """Interpolates two trees of parameters, computed in float32.

    Model soups (arXiv 2203.05482) and e-Llama (arXiv 2501.09706): (1 - alpha) base + alpha adapted.
    At 0 and 1 the result is bitwise the base and the adapted model.

    Args:
        base: nested dict of arrays, the model that was adapted.
        adapted: the same structure and shapes.
        alpha: 0 is base, 1 is adapted; other finite values extrapolate. `Alphas` by depth and part.
        dtype: of the result; None takes the wider dtype of each two leaves.

    Returns:
        Nested dict of NumPy arrays.

    Raises:
        ValueError: if alpha is not finite, or leaves or shapes differ.

    A quarter of the way from 1 to 3:

        >>> merge_linear({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, 0.25)["w"].tolist()
        [1.5]
    """
    if not isinstance(alpha, Alphas):
        check_alpha(alpha)
    ours, theirs = flatten_paths(base), flatten_paths(adapted)
    shapes = [{name: tuple(leaf.shape) for name, leaf in side.items()} for side in (ours, theirs)]
    inputs.check_same_shapes("merge", *shapes)
    stacked = (shape[0] for name, shape in shapes[0].items() if name.startswith("layers/"))
    num_layers = next(stacked, 1)
    merged = {}
    for name, leaf in ours.items():
        here = alpha.of(name, num_layers) if isinstance(alpha, Alphas) else alpha
        merged[name] = interpolate(np.asarray(leaf), np.asarray(theirs[name]), here, dtype)
    return unflatten_paths(merged)


def interpolate(
    base: np.ndarray, adapted: np.ndarray, alpha: float | np.ndarray, dtype=None
) -> np.ndarray:
    """Returns (1 - alpha) base + alpha adapted for one leaf; see `merge_linear`.

    An array of alphas has one for each of the first dim.
    """
    if dtype is None:
        # bfloat16 and float16 hold different numbers; only float32 holds both.
        dtype = base.dtype if base.dtype == adapted.dtype else np.float32
    if isinstance(alpha, np.ndarray):
        rows = [interpolate(*row, dtype) for row in zip(base, adapted, alpha.tolist(), strict=True)]
        return np.stack(rows)
    # 0 * inf and -0.0 + 0.0 would change bits where nothing is to change.
    if alpha in (0.0, 1.0):
        return (adapted if alpha else base).astype(dtype)
    result = base.astype(np.float32)
    result *= np.float32(1.0 - alpha)
    result += adapted.astype(np.float32) * np.float32(alpha)
    return result.astype(dtype, copy=False)


def check_alpha(alpha: float) -> None:
    """Refuses an alpha that is no number; warns where it extrapolates."""
    if not math.isfinite(alpha):
        raise ValueError(f"alpha: must be a finite number, got {alpha}.")
    if not 0.0 <= alpha <= 1.0:
        log.warning("alpha: %g is outside [0, 1], so the merge extrapolates", alpha)


# --- models at rest ------------------------------------------------------------------------------


def merge_checkpoints(
    base: str | os.PathLike,
    adapted: str | os.PathLike,
    alpha: float | Alphas,
    out: str | os.PathLike,
    method: str = "linear",
    *,
    dtype=None,
    overwrite: bool = False,
    allow_unverified: bool = False,
    **more,
) -> CheckpointInfo:
    """Merges two models into a third; see `merge_models`, which takes any number of them.

    Args:
        base: a checkpoint root or step, or a Hugging Face directory.
        adapted: the same, of a model with the same sizes and the same tokenizer.
        alpha: 0 is base, 1 is adapted; beyond it extrapolates, with a warning.
        out: the root to make.
        method: one of `METHODS`.
        dtype: of the result; None takes the wider dtype of each two leaves.
        overwrite: replace an existing checkpoint root at `out`.
        allow_unverified: take inputs that failed the conversion gate all the same.
        **more: `density`, `seed`, and what else `merge_models` takes.
    """
    if not isinstance(alpha, Alphas):
        check_alpha(alpha)
        alpha = Alphas((float(alpha),))
    weights = (alpha,) if find_method(method).weights else ()
    recipe = Recipe(method, weights, more.pop("density", None), more.pop("seed", None))
    return merge_models(
        recipe,
        [adapted],
        out,
        base=base,
        dtype=dtype,
        overwrite=overwrite,
        allow_unverified=allow_unverified,
        **{"extrapolate": True, **more},
    )


def merge_models(
    recipe: Recipe,
    models: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    dtype=None,
    format: str = "orbax",
    overwrite: bool = False,
    allow_unverified: bool = False,
    extrapolate: bool = False,
) -> CheckpointInfo:
    """Merges models into one more, in pieces: memory grows neither with them nor with their number.

    Args:
        recipe: the method, a weight a model, density and seed.
        models: each a checkpoint root or step, or anything that `ellama import` reads, mixed freely;
            of the same sizes and constants, and of tokenizers that are the same or nest.
        out: what to make.
        base: what the others started from, where the method asks for it.
        dtype: of the result; None takes the widest of each tensor's.
        format: "orbax", or "huggingface" for a directory that transformers and vLLM load.
        overwrite: replace an earlier result at `out`.
        allow_unverified: take inputs that failed the conversion gate all the same.
        extrapolate: take weights outside [0, 1].

    Returns:
        The new checkpoint; of a Hugging Face directory `path` is `out`. `meta["provenance"]` names
        the method, its numbers, and every input with the hash of its weights.

    Raises:
        ValueError: if the models, numbers or the place do not fit, or a number in an input is not
            finite; nothing is kept then.
    """
    if format not in FORMATS:
        raise ValueError(f"format: must be one of {', '.join(FORMATS)}, got {format}.")
    recipe = _check_recipe(recipe, len(models), base is not None)
    foreign = format == "huggingface"
    with inputs.open_models(_roles(base, models)) as opened:
        vocabulary = inputs.check_models(opened)
        _check_weights(recipe, opened, extrapolate)
        out = as_path(out)
        _check_place(out, opened)
        replaceable = is_export if foreign else None
        check_destination(out, 0, overwrite=overwrite, is_replaceable=replaceable)
        inputs.check_gates(opened, allow_unverified=allow_unverified)
        groups, measured, ledgers = inputs.make_groups(opened, vocabulary, foreign=foreign)
        size = _size(groups, dtype)
        check_destination(out, size, overwrite=overwrite, is_replaceable=replaceable)
        config = inputs.merged_config(opened, vocabulary)
        arrays = merge_arrays(recipe, groups, config.num_layers, dtype, measured)
        largest = opened[vocabulary.largest]
        meta = make_meta(
            config,
            tokenizer_fingerprint=largest.tokenizer.fingerprint,
            provenance=_provenance(recipe, opened, vocabulary, dtype),
            verification=_verification(opened),
        )
        if not foreign:
            return write_checkpoint(
                out,
                unflatten_paths(arrays),
                config=config,
                meta=meta,
                tokenizer_dir=largest.tokenizer_dir,
                overwrite=overwrite,
                finish_meta=lambda facts: with_hashes(facts, ledgers),
            )
        check_fingerprint(largest.tokenizer_dir, largest.tokenizer.fingerprint)

        def describe() -> CheckpointInfo:
            return CheckpointInfo(
                out, 0, out, with_hashes(meta, ledgers), config, largest.tokenizer_dir
            )

        return write_directory(out, arrays, largest.tokenizer, describe)


def load_merged(
    recipe: Recipe,
    models: Sequence[str | os.PathLike],
    *,
    base: str | os.PathLike | None = None,
    dtype=None,
    mesh: Mesh | None = None,
    extrapolate: bool = False,
) -> dict:
    """Merges models onto devices, without a file: bitwise what `merge_models` writes.

    Args:
        recipe, models, base, dtype, extrapolate: as of `merge_models`.
        mesh: where to place the result, sharded as model/llama.py says; None is one device. Each
            process reads only what its devices hold.

    Returns:
        The nested dict of jax arrays (DESIGN section 3).
    """
    recipe = _check_recipe(recipe, len(models), base is not None)
    with inputs.open_models(_roles(base, models)) as opened:
        vocabulary = inputs.check_models(opened)
        _check_weights(recipe, opened, extrapolate)
        _, groups, _ = inputs.make_groups(opened, vocabulary, foreign=False)
        config = inputs.merged_config(opened, vocabulary)
        arrays = merge_arrays(recipe, groups, config.num_layers, dtype)
        wanted = flatten_paths(abstract_params(config, mesh=mesh))
        return unflatten_paths({
            path: place(array, wanted[path].update(dtype=array.dtype))
            for path, array in arrays.items()
        })  # fmt: skip


def _roles(base, models: Sequence) -> dict[str, str | os.PathLike]:
    if base is not None and len(models) == 1:
        return {"base": base, "adapted": models[0]}
    numbered = {f"model {number}": model for number, model in enumerate(models, start=1)}
    return {"base": base, **numbered} if base is not None else numbered


def _size(groups: Mapping, dtype) -> int:
    return sum(
        math.prod(group.shape) * merged_dtype(group.sources, dtype).itemsize
        for group in groups.values()
    )


def _check_place(out: Path, models: Sequence[Model]) -> None:
    # In a bucket what is replaced is deleted first, and inputs are read while the result is written.
    if is_remote(out) and any(out in (m.path, m.path.parent) for m in models):
        raise ValueError(f"{out}: must not be one of the models to merge in a bucket, got one.")


# --- what a method may be given ------------------------------------------------------------------


def _check_recipe(recipe: Recipe, count: int, has_base: bool) -> Recipe:
    """Refuses what the method does not take and asks for what it lacks; fills in the seed."""
    name, method = recipe.method, find_method(recipe.method)
    if method.base and not has_base:
        raise ValueError(f"{name}: must be given a base, got none; name it with --base.")
    least = 1 if has_base and method.weights else 2
    # With a base, linear and slerp go from it to one other.
    most = 1 if has_base and (not method.several or not method.base) else count
    if not least <= count <= most:
        amount = f"{'exactly' if most < count else 'at least'} {least}"
        what = ("model" if least == 1 else "models") + (" beside the base" if has_base else "")
        raise ValueError(f"{name}: must be given {amount} {what}, got {count}.")
    expected = count if method.weights else 0
    if len(recipe.weights) != expected:
        raise ValueError(
            f"{name}: must be given {expected} weights, got {len(recipe.weights)}; one a --model."
        )
    return _check_numbers(recipe)


def _check_numbers(recipe: Recipe) -> Recipe:
    name, method = recipe.method, METHODS[recipe.method]
    if method.density and recipe.density is None:
        raise ValueError(
            f"{name}: must be given a density, the share of changes kept (as 0.2), got none."
        )
    for option, takes in (("density", method.density), ("seed", method.seed)):
        if getattr(recipe, option) is not None and not takes:
            takers = ", ".join(n for n, m in METHODS.items() if getattr(m, option))
            raise ValueError(f"{option}: must be left out with {name}, only {takers} take it.")
    if recipe.density is not None and not 0.0 < recipe.density <= 1.0:
        raise ValueError(f"density: must be above 0 and at most 1, got {recipe.density:g}.")
    seed = 0 if method.seed and recipe.seed is None else recipe.seed
    return Recipe(name, recipe.weights, recipe.density, seed)


def _check_weights(recipe: Recipe, models: Sequence[Model], extrapolate: bool) -> None:
    layers = models[0].config.num_layers
    mean = recipe.method == "linear" and len(recipe.weights) > 1
    for number, alphas in enumerate(recipe.weights, start=1):
        # The weights of a mean are divided by their sum, so that 1 and 2 are as good as 1/3 and 2/3.
        alphas.check(layers, extrapolate=extrapolate or mean)
        values = [v for _, given in (("", alphas.depth), *alphas.parts) for v in given]
        if mean and not extrapolate and min(values) < 0:
            raise ValueError(
                f"weight of model {number}: must be at least 0, got {min(values):g}; pass "
                "--extrapolate to go against a model."
            )
    if not mean:
        return
    for path in models[0].leaves:
        sums = sum(np.asarray(alphas.of(path, layers)) for alphas in recipe.weights)
        if np.any(np.abs(sums) < 1e-8):
            raise ValueError(f"weights: must not sum to 0, got 0 for {path}; raise one of them.")


# --- the record ----------------------------------------------------------------------------------


def _provenance(recipe: Recipe, models: Sequence[Model], vocabulary: Vocabulary, dtype) -> dict:
    facts: dict = {"kind": "merge", "method": recipe.method}
    weights = list(recipe.weights)
    sources = [model.describe() for model in models]
    if len(weights) == 1:
        facts["alpha"] = _plain(weights[0])
    elif weights:
        for source, alphas in zip(sources[-len(weights) :], weights, strict=True):
            source["weight"] = _plain(alphas)
    facts |= {
        key: value for key in ("density", "seed") if (value := getattr(recipe, key)) is not None
    }
    if vocabulary.shared is not None:
        rows = models[vocabulary.largest].config.vocab_size
        facts["vocabulary"] = {"shared_rows": vocabulary.shared, "rows": rows,
                               "from": models[vocabulary.largest].role}  # fmt: skip
    facts["dtype"] = np.dtype(dtype).name if dtype is not None else "the widest of the inputs"
    return {**facts, "sources": sources}


def _plain(alphas: Alphas) -> float | dict:
    return alphas.uniform if alphas.uniform is not None else alphas.to_dict()


def _verification(models: Sequence[Model]) -> dict | None:
    infos = [model.info for model in models]
    # Of what was read from a foreign model directly, nobody compared the logits with its source.
    return inherit_verification(*infos) if all(infos) else None


# --- the verb ------------------------------------------------------------------------------------


def main_merge(argv: list[str]) -> None:
    """Runs `ellama merge --base A --adapted B --alpha 0.3 --out C`, or with any number of models."""
    recipe, models, args = parse_arguments(argv)
    with owned(args.out, "ellama merge"):
        info = merge_models(
            recipe,
            models,
            args.out,
            base=args.base,
            dtype=DTYPES.get(args.dtype),
            format=args.format,
            overwrite=args.overwrite,
            allow_unverified=args.allow_unverified,
            extrapolate=args.extrapolate,
        )
    print(_sentence(info, [*([args.base] if args.base else []), *models]))


def _sentence(info: CheckpointInfo, paths: Sequence) -> str:
    made = info.meta["provenance"]
    names = [
        f"{path} (step {source['step']})" if "step" in source else str(path)
        for path, source in zip(paths, made["sources"], strict=True)
    ]
    alpha = made.get("alpha")
    if made["method"] == "linear" and isinstance(alpha, float):
        return f"Merged {1 - alpha:g} x {names[0]} + {alpha:g} x {names[1]} into {info.path}"
    return f"Merged {', '.join(names)} by {made['method']} into {info.path}"
