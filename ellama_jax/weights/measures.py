"""How far the logits of two models are apart.

Owns the measures and their bounds; what is compared, and what follows, is verify.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Both sides compute in float32, so what remains is the order of sums.
BOUNDS = {"max_difference": 1e-4, "kl_mean": 1e-6, "kl_max": 1e-5, "argmax_agreement": 1.0}
_PIECE = 64  # positions compared at a time; a row of logits is wide


@dataclass(frozen=True)
class Measure:
    """How far two models are apart on some positions.

    Attributes:
        positions: how many were compared.
        first, last: the smallest and the largest position.
        kl_mean, kl_max: KL(source || checkpoint) in nats.
        max_difference: of logits, relative to the source's largest.
        argmax_agreement: share of positions with the same likeliest token, ties left out.
    """

    positions: int
    first: int
    last: int
    kl_mean: float
    kl_max: float
    max_difference: float
    argmax_agreement: float

    def excess(self) -> list[str]:
        """Says which bounds are not kept; NaN keeps none."""
        over = [
            n for n in ("max_difference", "kl_mean", "kl_max") if not getattr(self, n) <= BOUNDS[n]
        ]
        said = [f"{n} {getattr(self, n):.2g}, bound {BOUNDS[n]:g}" for n in over]
        if not self.argmax_agreement >= BOUNDS["argmax_agreement"]:
            said.append(f"argmax_agreement {self.argmax_agreement:.1%}, bound 100%")
        return said


def measure_groups(
    logits: np.ndarray, arrays: Mapping[str, np.ndarray], groups: Sequence[str]
) -> dict[str, Measure]:
    """Measures how far a checkpoint's logits are from the source's, group by group.

    Args:
        logits: [P, V] float32, the checkpoint's.
        arrays: of the stored reference, see `reference.write_reference`.
        groups: of each row, `short` or `far`.
    """
    lengths = arrays["lengths"]
    valid = np.arange(arrays["tokens"].shape[1]) < lengths[:, None]
    positions, of_each = arrays["positions"][valid], np.repeat(groups, lengths)
    return {
        group: _measure(logits, arrays, np.flatnonzero(of_each == group), positions)
        for group in dict.fromkeys(groups)
    }


def _measure(logits, arrays, chosen: np.ndarray, positions: np.ndarray) -> Measure:
    pieces = [chosen[i : i + _PIECE] for i in range(0, len(chosen), _PIECE)]
    pairs = [_pair(logits, arrays, piece) for piece in pieces]
    largest = max(float(np.abs(theirs).max()) for theirs, *_ in pairs)
    difference = max(float(np.abs(theirs - ours).max()) for theirs, ours, *_ in pairs)
    kl = np.concatenate([_kl(*pair) for pair in pairs])
    room = 2 * BOUNDS["max_difference"] * largest
    same = np.concatenate(
        [
            _same_argmax(theirs, ours, logits[piece], arrays, piece, room)
            for (theirs, ours, *_), piece in zip(pairs, pieces, strict=True)
        ]
    )
    return Measure(
        positions=len(chosen),
        first=int(positions[chosen].min()),
        last=int(positions[chosen].max()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        max_difference=difference / largest,
        argmax_agreement=float(same.mean()),
    )


def _pair(logits, arrays, piece: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns theirs, ours [n, K] and the log-sum-exp of the tokens not among them, [n] or None."""
    if "logits" in arrays:
        return (
            arrays["logits"][piece].astype(np.float64),
            logits[piece].astype(np.float64),
            None,
            None,
        )
    ids = arrays["top_ids"][piece].astype(np.int64)
    others = logits[piece].astype(np.float64)
    ours = np.take_along_axis(others, ids, axis=-1)
    np.put_along_axis(others, ids, -np.inf, axis=-1)
    theirs, rest = arrays["top_logits"][piece], arrays["rest"][piece]
    return theirs.astype(np.float64), ours, rest.astype(np.float64), _logsumexp(others)


def _kl(theirs, ours, their_rest, our_rest) -> np.ndarray:
    """Returns KL(theirs || ours) in nats; the tokens that are not stored count as one."""
    if their_rest is not None:
        theirs = np.concatenate([theirs, their_rest[:, None]], axis=-1)
        ours = np.concatenate([ours, our_rest[:, None]], axis=-1)
    log_p = theirs - _logsumexp(theirs)[:, None]
    log_q = ours - _logsumexp(ours)[:, None]
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def _logsumexp(x: np.ndarray) -> np.ndarray:
    largest = x.max(axis=-1)
    return largest + np.log(np.exp(x - largest[:, None]).sum(axis=-1))


def _same_argmax(theirs, ours, logits, arrays, piece, room: float) -> np.ndarray:
    """Says where the likeliest token is the same; one that is `room` from the best may stand in."""
    best = logits.argmax(axis=-1)
    if "logits" in arrays:
        return theirs.max(axis=-1) - np.take_along_axis(theirs, best[:, None], -1)[:, 0] <= room
    at = arrays["top_ids"][piece] == best[:, None]
    return np.where(at, theirs.max(axis=-1)[:, None] - theirs <= room, False).any(axis=-1)
