"""Why a checkpoint does not say what its source says: the layer at fault, and the usual mistakes.

Owns the search; whether something is wrong at all is verify.py's to say. Each finding is something
that was tried and then fitted the source, or something that can be seen in the weights.
"""

from collections.abc import Iterator

import numpy as np

from ellama_jax.weights.checkpoint import open_leaves
from ellama_jax.weights.forward import (
    Answer,
    LayerStep,
    apply_layer,
    run_layers,
    vocabulary_parts,
)
from ellama_jax.weights.layout import CheckpointInfo

# Relative; rounding over a hundred layers stays far below, a wrong weight far above.
TOLERANCE = 1e-4


def find_faults(info: CheckpointInfo, answer: Answer, reference: dict) -> list[str]:
    """Says what is wrong with a checkpoint whose logits differ from the source's.

    Args:
        info: the checkpoint.
        answer: what it said.
        reference: the arrays of the stored reference: `tokens`, `positions`, `lengths` and
            `residual_rms`.

    Returns:
        Sentences without a full stop, the place first.
    """
    ours, theirs = answer.residual_rms, reference["residual_rms"]
    wrong = ~_fits(ours, theirs)  # [2 L + 1, R]
    if not wrong.any():
        return _look_at_the_head(info)
    stage = int(np.argmax(wrong.any(axis=1)))
    if stage == 0:
        return ["the embeddings differ from the source's"]
    layer, is_mlp = divmod(stage - 1, 2)
    rows = np.flatnonzero(wrong[stage])
    part = f"layer {layer} of {info.config.num_layers}, {'MLP' if is_mlp else 'attention'}"
    place = f"the first part that differs is {part}, in {len(rows)} of {wrong.shape[1]} rows"
    tries = _try_mlp if is_mlp else _try_attention
    step = _step_of(info, reference, layer)
    return [place, *(f"{part}: {what}" for what in tries(info, step, reference, theirs[stage]))]


def _fits(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.abs(ours - theirs) <= TOLERANCE * np.abs(theirs)


def _look_at_the_head(info: CheckpointInfo) -> list[str]:
    findings = ["every layer agrees with the source: the final norm or the head differs"]
    leaves = open_leaves(info.path)
    if _is_constant(leaves["final_norm/scale"].load()):
        findings.append("the final norm's scale is the same number everywhere")
    if not info.config.tied_embeddings:
        table, kernel = leaves["embed/table"], leaves["lm_head/kernel"]
        part, width = next(vocabulary_parts(kernel, 1)), slice(0, info.config.embed_dim)
        if np.array_equal(table.read((part, width)), kernel.read((width, part)).T):
            findings.append("the head is a copy of the embedding")
    return findings


def _step_of(info: CheckpointInfo, reference: dict, layer: int) -> LayerStep:
    steps = run_layers(open_leaves(info.path), info.config, reference)
    return next(step for step in steps if step.layer == layer)


def _try_attention(info, step: LayerStep, reference: dict, wanted: np.ndarray) -> Iterator[str]:
    """Yields what would make the residual stream after attention fit the source."""
    last = np.arange(len(reference["lengths"])), reference["lengths"] - 1
    attn, norm = step.params["attn"], step.params["attn_norm"]
    if _is_constant(norm["scale"]):
        yield "the scale of the norm before it is the same number everywhere"
    changes = {"the two norms' scales are exchanged": {"attn_norm": step.params["mlp_norm"]}}
    orders = {
        "are not permuted, but in Meta's order of rows": _from_meta_order,
        "are permuted once too often": _to_meta_order,
    }
    names = {"queries and keys": ("wq", "wk"), "queries": ("wq",), "keys": ("wk",)}
    for order, reorder in orders.items():
        for who, chosen in names.items():
            changed = {name: reorder(attn[name]) for name in chosen}
            changes[f"{who} {order}"] = {"attn": {**attn, **changed}}
    for what, change in changes.items():
        params = {**step.params, **change}
        between, _ = apply_layer(params, info.config, step.before, reference["positions"])
        if _fits(_rms(between[last]), wanted).all():
            yield what


def _try_mlp(info, step: LayerStep, reference: dict, wanted: np.ndarray) -> Iterator[str]:
    """Yields what would make the residual stream after the MLP fit the source."""
    last = np.arange(len(reference["lengths"])), reference["lengths"] - 1
    mlp, norm = step.params["mlp"], step.params["mlp_norm"]
    if _is_constant(norm["scale"]):
        yield "the scale of the norm before it is the same number everywhere"
    swapped = {**mlp, "w_gate": mlp["w_up"], "w_up": mlp["w_gate"]}
    changes = {
        "gate and up are exchanged": {"mlp": swapped},
        "the two norms' scales are exchanged": {"mlp_norm": step.params["attn_norm"]},
    }
    for what, change in changes.items():
        params = {**step.params, **change}
        # Attention fitted: it must stay as it is while the MLP's own parts change.
        params = {**params, "attn_norm": step.params["attn_norm"]}
        _, after = apply_layer(params, info.config, step.before, reference["positions"])
        if _fits(_rms(after[last]), wanted).all():
            yield what


def _from_meta_order(weight: np.ndarray) -> np.ndarray:
    """Takes rotary pairs apart: [D, N, H] with pairs side by side -> pairs H / 2 apart."""
    pairs = weight.reshape(*weight.shape[:-1], -1, 2)
    return pairs.swapaxes(-1, -2).reshape(weight.shape)


def _to_meta_order(weight: np.ndarray) -> np.ndarray:
    """Puts rotary pairs side by side; the inverse of `_from_meta_order`."""
    halves = weight.reshape(*weight.shape[:-1], 2, -1)
    return halves.swapaxes(-1, -2).reshape(weight.shape)


def _is_constant(scale: np.ndarray) -> bool:
    return bool(np.all(scale == scale.flat[0]))


def _rms(x) -> np.ndarray:
    x = np.asarray(x)
    return np.sqrt(np.mean(x * x, axis=-1))
