"""Owns the scoring of models between two: both loaded once, each blend made where it is used.

A blend is no third model: its parameters are `model.llama.Blend` leaves, and another alpha compiles
nothing. Which alphas are worth scoring is tradeoff.py's; writing one of them, merge/verb.py's.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from ellama_jax.core.paths import as_path, file_bytes
from ellama_jax.core.tree import flatten_paths, map_paths
from ellama_jax.evaluate.scorecard import DEFAULT_SCORING, Scoring, evaluate_params, load_model
from ellama_jax.model.llama import Blend
from ellama_jax.model.presets import LlamaConfig, fields_that_differ
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.weights import huggingface
from ellama_jax.weights.alphas import Alphas
from ellama_jax.weights.checkpoint import CheckpointInfo, find_checkpoint, list_leaves
from ellama_jax.weights.layout import weights_identity


@dataclasses.dataclass(frozen=True)
class Source:
    """One model on disk, known without its weights.

    Attributes:
        path: a Hugging Face directory or `ROOT/<step>`.
        config, tokenizer: what it is.
        identity: 16 hex digits that change with the weights.
        info: the checkpoint; None of a Hugging Face directory, which needs no conversion gate.
    """

    path: Path
    config: LlamaConfig
    tokenizer: Tokenizer
    identity: str
    info: CheckpointInfo | None = None

    @property
    def step(self) -> int | None:
        """The step of a run; None of a Hugging Face directory."""
        return None if self.info is None else self.info.step


def find_source(path: str | Path) -> Source:
    """Describes the model at `path` without reading a weight.

    Raises:
        ValueError: if there is none.
    """
    path = as_path(path)
    if (path / "config.json").is_file():
        files = huggingface.weight_files(path)
        sizes = [(file.name, file_bytes(file), _written_at(file)) for file in files]
        config, tokenizer = huggingface.read_config(path), load_tokenizer(path)
        said = [sizes, (path / "config.json").read_text(encoding="utf-8")]
        return Source(path, config, tokenizer, _digest(said))
    info = find_checkpoint(path)
    tokenizer = load_tokenizer(info.tokenizer_dir)
    return Source(info.path, info.config, tokenizer, weights_identity(info.path), info)


def _written_at(file: Path) -> int:
    stat = file.stat()
    return getattr(stat, "st_mtime_ns", None) or int(stat.mtime)


def _digest(said) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def stored_bytes(source: Source) -> int:
    """Returns how many bytes a model's parameters take as they are stored."""
    if source.info is None:
        return sum(file_bytes(file) for file in huggingface.weight_files(source.path))
    leaves = list_leaves(source.path).values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in leaves)


def check_fit(base: Source, adapted: Source, title: str = "merge-sweep") -> None:
    """Refuses two models of other tokenizers, sizes or constants; reads no weight.

    Raises:
        ValueError: naming what differs.
    """
    if base.tokenizer.fingerprint != adapted.tokenizer.fingerprint:
        raise ValueError(
            f"{title}: base and adapted must share a tokenizer, got fingerprints"
            f" {base.tokenizer.fingerprint[:16]} and {adapted.tokenizer.fingerprint[:16]}."
        )
    for name, ours, theirs in fields_that_differ(base.config, adapted.config):
        raise ValueError(
            f"{title}: {name} must be equal, got {ours} and {theirs}; were both made from one base?"
        )


def load_pair(base: Source, adapted: Source, *, mesh=None) -> tuple[dict, dict]:
    """Loads the parameters of two models, each leaf in the wider dtype of its two.

    So a blend is what `merge_checkpoints` writes. `replace_adapted` loads another beside the same
    base.

    Returns:
        Nested dicts of arrays (DESIGN section 3).

    Raises:
        ValueError: if one holds a number that is not finite.
    """
    base_params = _load_finite(base, mesh)
    return replace_adapted(base_params, adapted, mesh=mesh)


def replace_adapted(base_params: Mapping, adapted: Source, *, mesh=None) -> tuple[dict, dict]:
    """Loads an adapted model beside a base that is loaded already; see `load_pair`."""
    adapted_params = _load_finite(adapted, mesh)
    ours, theirs = flatten_paths(base_params), flatten_paths(adapted_params)

    def widen(path, leaf):
        return leaf.astype(_wider(ours[path].dtype, theirs[path].dtype))

    return map_paths(widen, base_params), map_paths(widen, adapted_params)


def _load_finite(source: Source, mesh) -> dict:
    # A NaN would make every blend's choices look like the first answer of each question.
    params = load_model(source.path, mesh=mesh)[0]
    for path, leaf in flatten_paths(params).items():
        if not _is_finite(leaf):
            raise ValueError(
                f"{source.path}: every parameter must be finite, got NaN or infinity in {path}; was "
                "its training stable?"
            )
    return params


@jax.jit
def _is_finite(leaf):
    return jnp.isfinite(leaf).all()


def _wider(a, b):
    # bfloat16 and float16 hold different numbers; only float32 holds both.
    return a if a == b else jnp.dtype(jnp.float32)


def blend_params(
    base_params: Mapping, adapted_params: Mapping, alphas: Alphas, config: LlamaConfig
) -> dict:
    """Returns the model between two, as parameters that `score` and `hidden_states` take.

    Args:
        base_params, adapted_params: nested dicts of arrays of one shape and dtype.
        alphas: how far each parameter goes from base to adapted.
        config: the sizes of both.
    """
    theirs = flatten_paths(adapted_params)

    def blend(path, leaf):
        alpha = jnp.asarray(alphas.of(path, config.num_layers), jnp.float32)
        return Blend(leaf, theirs[path], alpha)

    return map_paths(blend, base_params)


def score_blend(
    base_params: Mapping,
    adapted_params: Mapping,
    alphas: Alphas,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    items: Sequence[dict],
    texts: Sequence[dict],
    *,
    model: str,
    scoring: Scoring = DEFAULT_SCORING,
    beat: Callable[[], None] = lambda: None,
) -> dict:
    """Scores the model between two without making it.

    Args:
        base_params, adapted_params: as `load_pair` gives them, on `scoring.mesh` if there is one.
        alphas: how far each parameter goes from base to adapted.
        config, tokenizer: of both models.
        items, texts: questions and documents, as of `scorecard.evaluate_params`.
        model: what the scorecard calls it.
        scoring: how to run it.
        beat: called after each batch.

    Returns:
        The scorecard, with `made_with.alphas`.
    """
    params = blend_params(base_params, adapted_params, alphas, config)
    card = evaluate_params(
        params, config, tokenizer, items, texts, model=model, scoring=scoring, beat=beat
    )
    card["made_with"]["alphas"] = alphas.to_dict()
    return card
