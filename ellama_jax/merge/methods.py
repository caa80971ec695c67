"""The formulas of merging, on blocks of numbers; and what a method takes.

Owns the arithmetic: all of it in float32, on NumPy blocks of one tensor that are small enough for a
core's cache, so that nothing here grows with the model. Which blocks those are, and the statistics
that some formulas need of a whole tensor, is merge/stream.py's.

A *tensor* is one layer's tensor as a Hugging Face file has it: what mergekit merges at a time.
"""

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Sequence

import numpy as np

# As mergekit: above this cosine the angle of slerp is too small to divide by its sine.
_PARALLEL = 0.9995
# Shorter vectors have no direction.
_NO_NORM = 1e-8
_NO_PRODUCT = 1e-6


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method takes.

    Attributes:
        what: in a few words, with its source.
        base: whether it starts from a base that others are compared with.
        weights: whether each model has a weight.
        several: whether it takes more models than an adapted one.
        density: whether it keeps a share of each task vector only.
        seed: whether it draws.
        statistics: what it must know of a whole tensor first: "gram", "thresholds" or "".
    """

    what: str
    base: bool = True
    weights: bool = True
    several: bool = True
    density: bool = False
    seed: bool = False
    statistics: str = ""


METHODS: dict[str, Method] = {
    "linear": Method("(1 - alpha) base + alpha adapted, or a weighted mean of models (2203.05482)",
                     base=False),
    "slerp": Method("along the arc between two models (Shoemake 1985)", several=False,
                    statistics="gram"),
    "task_arithmetic": Method("base + sum of weight x (model - base) (2212.04089)"),
    "ties": Method("task vectors trimmed, signs elected, disjoint mean (2306.01708)", density=True,
                   statistics="thresholds"),
    "dare": Method("task vectors thinned at random and rescaled (2311.03099)", density=True,
                   seed=True),
    "dare_ties": Method("task vectors thinned at random, signs elected (2311.03099, 2306.01708)",
                        density=True, seed=True),
    "model_stock": Method("between base and the mean of models, by their angle (2403.19522)",
                          weights=False, statistics="gram"),
}  # fmt: skip


def find_method(name: str) -> Method:
    """Returns a method by its name; a ValueError names the nearest."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {name}{hint}")
    return METHODS[name]


# --- sums ----------------------------------------------------------------------------------------


def weighted_sum(blocks: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the sum of weight x block, in float32; model soups (arXiv 2203.05482).

    Slerp and model stock are such sums too, see `slerp_weights` and `stock_weights`. The blocks are
    overwritten: memory asked for anew costs as much as the sum.

    >>> weighted_sum([np.float32([1.0]), np.float32([3.0])], [0.75, 0.25]).tolist()
    [1.5]
    """
    total, *others = blocks
    total *= np.float32(weights[0])
    for block, weight in zip(others, weights[1:], strict=True):
        block *= np.float32(weight)
        total += block
    return total


def normalised(weights: Sequence[float]) -> list[float]:
    """Returns weights that sum to 1, as a mean has them.

    >>> normalised([1, 3])
    [0.25, 0.75]
    """
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def slerp_weights(gram: np.ndarray, alpha: float) -> tuple[float, float]:
    """Returns the weights of base and adapted on the arc between them.

    Shoemake 1985: sin((1 - t) theta) / sin(theta) and sin(t theta) / sin(theta), where theta is the
    angle between the two tensors taken as vectors. Where they are (nearly) parallel or opposed the
    interpolation is linear, as in mergekit; so it is where one is zero and there is no angle.

    Args:
        gram: [2, 2] float64, the products of the two.
        alpha: t, 0 is base.

    At right angles both ends count the same halfway:

        >>> [round(w, 4) for w in slerp_weights(np.eye(2), 0.5)]
        [0.7071, 0.7071]
    """
    norms = np.sqrt(np.diag(gram))
    if norms.min() <= _NO_NORM:
        return 1.0 - alpha, alpha
    cosine = float(np.clip(gram[0, 1] / (norms[0] * norms[1]), -1.0, 1.0))
    if abs(cosine) > _PARALLEL:
        return 1.0 - alpha, alpha
    theta = math.acos(cosine)
    return (
        math.sin((1.0 - alpha) * theta) / math.sin(theta),
        math.sin(alpha * theta) / math.sin(theta),
    )


def stock_weights(gram: np.ndarray) -> list[float]:
    """Returns the weights of base and of each model that model stock gives them.

    arXiv 2403.19522, equation 4: t = N cos / (1 + (N - 1) cos) of the models' mean and 1 - t of the
    base, where cos is the mean cosine between two task vectors. A task vector of zero has none and
    counts as 0; at the singularity of the ratio the base stays, both as in mergekit.

    Args:
        gram: [N, N] float64, the products of the task vectors.

    Task vectors that agree give their mean, at right angles the base:

        >>> stock_weights(np.ones((2, 2))), stock_weights(np.eye(2))
        ([0.0, 0.5, 0.5], [1.0, 0.0, 0.0])
    """
    count, norms = len(gram), np.sqrt(np.diag(gram))
    cosines = [
        float(np.clip(gram[i, j] / max(norms[i] * norms[j], _NO_PRODUCT), -1.0, 1.0))
        for i in range(count)
        for j in range(i)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    below = 1.0 + (count - 1) * cosine
    share = count * cosine / below if abs(below) >= _NO_PRODUCT else 0.0
    return [1.0 - share, *([share / count] * count)]


# --- task vectors --------------------------------------------------------------------------------


def add_task_vectors(
    base: np.ndarray, deltas: Sequence[np.ndarray], weights: Sequence[float]
) -> np.ndarray:
    """Returns base + sum of weight x delta; task arithmetic (arXiv 2212.04089, section 2).

    Args:
        base: float32.
        deltas: task vectors, model - base; DARE's are thinned.
        weights: one a delta.
    """
    total = deltas[0] * np.float32(weights[0])
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total += delta * np.float32(weight)
    total += base
    return total


def elect_and_add(
    base: np.ndarray,
    deltas: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    mean: bool,
) -> np.ndarray:
    """Returns base + what the weighted task vectors agree on; TIES (arXiv 2306.01708, section 3.2).

    The elected sign is that of the sum (positive where it is zero); only elements of that sign
    count. Their sum is divided by the weights that counted where `mean` is true, as TIES has it.

    Args:
        base: float32.
        deltas: task vectors, trimmed or thinned already; zero where nothing is left.
        weights: one a delta.
        mean: the disjoint mean of TIES; DARE with signs elected adds, as in mergekit.

    The second loses the vote and does not count:

        >>> deltas = [np.float32([3.0]), np.float32([-1.0]), np.float32([1.0])]
        >>> elect_and_add(np.float32([10.0]), deltas, [1, 1, 1], mean=True).tolist()
        [12.0]
    """
    weighted = [delta * np.float32(w) for delta, w in zip(deltas, weights, strict=True)]
    votes = weighted[0].copy()
    for delta in weighted[1:]:
        votes += delta
    elected = np.where(votes >= 0, np.float32(1), np.float32(-1))
    total, counted = np.zeros_like(base), np.zeros_like(base)
    for delta, weight in zip(weighted, weights, strict=True):
        agrees = np.sign(delta) == elected
        total += np.where(agrees, delta, np.float32(0))
        counted += agrees * np.float32(weight)
    if mean:
        total /= np.where(counted == 0, np.float32(1), counted)
    total += base
    return total


def trim(delta: np.ndarray, threshold: float) -> np.ndarray:
    """Returns a task vector with what is smaller than `threshold` in magnitude set to zero."""
    return np.where(np.abs(delta) >= np.float32(threshold), delta, np.float32(0))


def thin(delta: np.ndarray, kept: np.ndarray, density: float) -> np.ndarray:
    """Returns a task vector, thinned and rescaled by 1 / density; DARE (arXiv 2311.03099, eq. 3)."""
    return np.where(kept, delta * np.float32(1.0 / density), np.float32(0))


def kept_count(density: float, size: int) -> int:
    """Returns how many elements of a tensor TIES keeps: at least one, as in mergekit.

    >>> kept_count(0.2, 17), kept_count(0.01, 17)
    (3, 1)
    """
    return max(1, int(density * size))


def mask_key(seed: int, model: int, tensor: str) -> int:
    """Returns the 32 bits that make one tensor's mask of one model."""
    text = f"{seed} {model} {tensor}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


def keep_mask(key: int, positions: np.ndarray, density: float) -> np.ndarray:
    """Says which elements DARE keeps, each with probability `density`.

    A function of key and position alone: whatever order and pieces a tensor is read in, the mask is
    the same. The mixing is the 32-bit finaliser with the least bias of those that Wellons' search
    found (lowbias32, nullprogram.com/blog/2018/07/31), applied twice around the key.

    Args:
        key: from `mask_key`.
        positions: uint32, of the elements in the flattened Hugging Face tensor.
        density: the share kept.
    """
    mixed = _mix(_mix(positions) ^ np.uint32(key))
    return mixed < np.uint64(round(density * 2**32))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x
