"""The answers of a checkpoint, one layer at a time, so that a model of any size can be asked.

Owns the order in which weights are read for one pass of a few rows, in float32. How a layer works is
model/llama.py's, what is asked and what is to be answered is verify.py's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.core.progress import progress
from ellama_jax.core.tree import unflatten_paths
from ellama_jax.model.llama import normalize_final, run_layer
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.weights.checkpoint import open_leaves
from ellama_jax.weights.layout import CheckpointInfo
from ellama_jax.weights.lazy import PIECE_BYTES, LazyArray, whole


@dataclass(frozen=True)
class Answer:
    """What a model says to R rows with P positions that are no padding.

    Attributes:
        logits: [P, V] float32, row by row.
        residual_rms: [2 L + 1, R] float32, root mean square of the residual stream at the last
            position of each row: the embeddings, then after each attention and each MLP.
    """

    logits: np.ndarray
    residual_rms: np.ndarray


@dataclass(frozen=True)
class LayerStep:
    """One layer at work: its parameters, and the residual stream before, inside and after it."""

    layer: int
    params: dict
    before: jax.Array
    between: jax.Array
    after: jax.Array


def ask(info: CheckpointInfo, rows: Mapping[str, np.ndarray]) -> Answer:
    """Runs rows through a checkpoint in float32, one layer in memory at a time.

    Args:
        info: the checkpoint.
        rows: `tokens` and `positions` [R, T] int32, padded at the end, and `lengths` [R].

    Returns:
        Its logits and what is needed to find the layer at fault, if there is one.
    """
    leaves, lengths = open_leaves(info.path), rows["lengths"]
    last = np.arange(len(lengths)), lengths - 1
    rms = []
    with progress(f"running {info.path}", total=info.config.num_layers, unit="layers") as bar:
        for step in run_layers(leaves, info.config, rows):
            streams = (step.before, step.between, step.after)
            rms += [_rms(stream[last]) for stream in streams[bool(step.layer) :]]
            bar.update(1)
    params = {"scale": leaves["final_norm/scale"].load()}
    valid = np.arange(rows["tokens"].shape[1]) < lengths[:, None]
    hidden = normalize_final(params, info.config, step.after)[np.nonzero(valid)]
    return Answer(_project(leaves, info.config, hidden), np.array(rms, np.float32))


def run_layers(
    leaves: Mapping[str, LazyArray], config: LlamaConfig, rows: Mapping[str, np.ndarray]
) -> Iterator[LayerStep]:
    """Runs layer after layer; only the one given out is in memory."""
    x = jnp.asarray(_embed(leaves["embed/table"], rows["tokens"]))
    for layer in range(config.num_layers):
        params = _read_layer(leaves, layer)
        between, after = apply_layer(params, config, x, rows["positions"])
        yield LayerStep(layer, params, x, between, after)
        x = after


def apply_layer(params: dict, config: LlamaConfig, x, positions) -> tuple[jax.Array, jax.Array]:
    """Runs one layer over [R, T, D] float32; see `model.llama.run_layer`."""
    # Rows are padded at the end, where a causal model does not look: one segment will do.
    return _jitted_layer(params, config, x, positions, np.ones_like(positions))


_jitted_layer = jax.jit(run_layer, static_argnums=1)


def _read_layer(leaves: Mapping[str, LazyArray], layer: int) -> dict:
    stacked = {path: leaf for path, leaf in leaves.items() if path.startswith("layers/")}
    box = slice(layer, layer + 1)
    layers = {p: leaf.read((box, *whole(leaf.shape)[1:]))[0] for p, leaf in stacked.items()}
    return unflatten_paths(layers)["layers"]


def _embed(table: LazyArray, tokens: np.ndarray) -> np.ndarray:
    embedded = np.zeros((*tokens.shape, table.shape[1]), np.float32)
    for part in vocabulary_parts(table, 0):
        here = (tokens >= part.start) & (tokens < part.stop)
        rows = table.read((part, slice(0, table.shape[1])))
        embedded[here] = rows[tokens[here] - part.start]
    return embedded


def _project(leaves, config: LlamaConfig, hidden: jax.Array) -> np.ndarray:
    tied = config.tied_embeddings
    kernel = leaves["embed/table" if tied else "lm_head/kernel"]
    logits = np.empty((len(hidden), config.vocab_size), np.float32)
    for part in vocabulary_parts(kernel, 0 if tied else 1):
        width = slice(0, config.embed_dim)
        piece = kernel.read((part, width) if tied else (width, part))
        logits[:, part] = _product(hidden, piece.T if tied else piece)
    return logits


@jax.jit
def _product(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(hidden, kernel.astype(hidden.dtype), precision="highest")


def vocabulary_parts(leaf: LazyArray, dim: int) -> Iterator[slice]:
    """Cuts the dim `vocab` of a matrix into parts of about `PIECE_BYTES` that no stored block cuts."""
    size, block = leaf.shape[dim], leaf.grid[dim] if leaf.grid else 1
    count = max(1, PIECE_BYTES * size // (leaf.nbytes * block)) * block
    for start in range(0, size, count):
        yield slice(start, min(start + count, size))


def _rms(x: jax.Array) -> np.ndarray:
    return np.asarray(jnp.sqrt(jnp.mean(x * x, axis=-1)))
