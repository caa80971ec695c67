"""From a window's tokens to a training row: segments, positions, targets and loss weights.

Owns what follows from the tokens alone. How windows are kept is tokens/windows.py's.
"""

import numpy as np

from ellama_jax.tokens.packing import PADDING


def segments(
    tokens: np.ndarray, *, eos_id: int, bos_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Derives which document each token of a window, or of a part of it, belongs to.

    A document ends at EOS; no text produces EOS (tokens/tokenizer.py). Where one token is both BOS
    and EOS, it begins a document if text follows it.

    Args:
        tokens: [..., T] uint32, `PADDING` where unused.
        eos_id: the id that ends a document.
        bos_id: the id that begins one; matters only where it equals `eos_id`.

    Returns:
        `segment_ids` [..., T] int32 from 1, 0 at padding, and `positions` [..., T] int32 from 0 in
        each segment.

    >>> window = np.array([1, 11, 12, 2, 1, 21, 2, PADDING], dtype=np.uint32)
    >>> segment_ids, positions = segments(window, eos_id=2)
    >>> segment_ids.tolist(), positions.tolist()
    ([1, 1, 1, 1, 2, 2, 2, 0], [0, 1, 2, 3, 0, 1, 2, 0])
    """
    tokens = np.asarray(tokens, dtype=np.uint32)
    padding = tokens == PADDING
    ends = tokens == eos_id
    if bos_id == eos_id:
        before_text = ~(ends | padding)[..., 1:]
        ends[..., :-1] &= ~before_text
    # A token's segment is 1 + the number of ends before it.
    segment_ids = np.where(padding, 0, 1 + np.cumsum(ends, axis=-1) - ends)
    index = np.arange(tokens.shape[-1])
    starts = np.zeros_like(segment_ids)
    starts[..., 1:] = np.where(ends[..., :-1], index[1:], 0)
    positions = np.where(padding, 0, index - np.maximum.accumulate(starts, axis=-1))
    return segment_ids.astype(np.int32), positions.astype(np.int32)


def shift_within_documents(
    tokens: np.ndarray, segment_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Builds next-token targets for one packed window.

    A position's target is the next token of the *same* document, so no document is trained to
    predict its neighbour's first token. Positions without such a target weigh 0.

    Args:
        tokens: [..., T] int32, documents laid end to end.
        segment_ids: [..., T] int32, document number in the window from 1; 0 is padding.

    Returns:
        `targets` [..., T] int32 and `loss_weights` [..., T] float32 (1.0 where the target counts).

    Raises:
        ValueError: if the two arrays differ in shape.

    Documents [11 12 2] and [21 2], then padding:

        >>> targets, weights = shift_within_documents([11, 12, 2, 21, 2, 0], [1, 1, 1, 2, 2, 0])
        >>> targets.tolist()
        [12, 2, 0, 2, 0, 0]
        >>> weights.tolist()
        [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    """
    tokens, segment_ids = np.asarray(tokens, np.int32), np.asarray(segment_ids, np.int32)
    if tokens.shape != segment_ids.shape:
        raise ValueError(
            f"segment_ids: must have the shape of tokens {tokens.shape}, got {segment_ids.shape}."
        )
    here, following = segment_ids[..., :-1], segment_ids[..., 1:]
    counts = np.zeros(tokens.shape, dtype=bool)
    counts[..., :-1] = (here == following) & (here != 0)
    targets = np.zeros_like(tokens)
    targets[..., :-1] = np.where(counts[..., :-1], tokens[..., 1:], 0)
    return targets, counts.astype(np.float32)


def to_features(
    tokens: np.ndarray, *, eos_id: int, bos_id: int | None = None
) -> dict[str, np.ndarray]:
    """Turns a window, or a part of it, into the arrays of a training row.

    Args:
        tokens: [..., T] uint32, `PADDING` where unused.
        eos_id, bos_id: as in the manifest.

    Returns:
        `inputs targets segment_ids positions` [..., T] int32 and `loss_weights` [..., T] float32.
        Padding has input 0, segment 0 and weight 0; id 0 inside a document is a token like others.

    >>> row = to_features(np.array([1, 0, 2, PADDING], dtype=np.uint32), eos_id=2)
    >>> {name: row[name].tolist() for name in ("inputs", "targets", "loss_weights")}
    {'inputs': [1, 0, 2, 0], 'targets': [0, 2, 0, 0], 'loss_weights': [1.0, 1.0, 0.0, 0.0]}
    """
    segment_ids, positions = segments(tokens, eos_id=eos_id, bos_id=bos_id)
    inputs = np.where(segment_ids == 0, 0, tokens).astype(np.int32)
    targets, loss_weights = shift_within_documents(inputs, segment_ids)
    return {
        "inputs": inputs,
        "targets": targets,
        "loss_weights": loss_weights,
        "segment_ids": segment_ids,
        "positions": positions,
    }
