"""How two sets of weights differ: leaf by leaf, and layer by layer within a stacked leaf.

Owns the sums and what follows from them. It reads both sides in pieces and keeps neither; how a
difference is put into words and pictures is in weights/difference_text.py and heat_map.py.
"""

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ellama_jax.core.paths import as_path
from ellama_jax.core.progress import progress
from ellama_jax.model.presets import LlamaConfig, config_to_dict
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights.checkpoint import open_leaves
from ellama_jax.weights.importer import detect_format, open_source
from ellama_jax.weights.layout import find_checkpoint
from ellama_jax.weights.lazy import PIECE_BYTES, Box, LazyArray, split
from ellama_jax.weights.preflight import check_same_leaves

# What is converted to float64 at a time. It fits a core's cache, and a product of so few elements
# BLAS does not spread over threads, which costs ten times what it computes.
_BLOCK = 2**13
# Blocks that fit the chunks of both sides may be this much larger than a piece.
_MOST_PIECES = 2


@dataclass(frozen=True)
class Weights:
    """One side of a comparison, opened and not yet read.

    `leaves` maps paths to arrays; `fingerprint` is the tokenizer's.
    """

    title: str
    config: LlamaConfig
    leaves: Mapping[str, LazyArray]
    fingerprint: str


@dataclass(frozen=True)
class Difference:
    """Sums over the elements a and b of two arrays A and B; they add up over parts.

    Elements that are NaN or infinite on either side are counted and left out of the sums.

    Attributes:
        size: number of elements.
        aa, bb, ab, dd: sums of a*a, b*b, a*b and (b-a)*(b-a), in float64.
        max_abs: the largest |b - a|.
        changed: number of elements whose value differs.
        nonfinite_a, nonfinite_b: numbers of NaN and infinite elements.

    >>> found = difference(np.float32([3.0, 4.0]), np.float32([3.0, 4.5]))
    >>> found.norm_a, found.norm_difference, found.relative, found.changed_frac
    (5.0, 0.5, 0.1, 0.5)
    """

    size: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    max_abs: float = 0.0
    changed: int = 0
    nonfinite_a: int = 0
    nonfinite_b: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        mine, theirs = vars(self), vars(other)
        sums = {name: mine[name] + theirs[name] for name in mine}
        return Difference(**{**sums, "max_abs": max(self.max_abs, other.max_abs)})

    @property
    def norm_a(self) -> float:
        """||A||, the Euclidean norm."""
        return math.sqrt(self.aa)

    @property
    def norm_b(self) -> float:
        """||B||."""
        return math.sqrt(self.bb)

    @property
    def norm_difference(self) -> float:
        """||B - A||."""
        return math.sqrt(self.dd)

    @property
    def relative(self) -> float:
        """||B - A|| / ||A||; infinite where A is zero and B is not."""
        if self.dd == 0:
            return 0.0
        return self.norm_difference / self.norm_a if self.aa else math.inf

    @property
    def cosine(self) -> float:
        """The cosine of the angle between A and B; NaN where one of them is zero."""
        if not (self.aa and self.bb):
            return math.nan
        return max(-1.0, min(1.0, self.ab / (self.norm_a * self.norm_b)))

    @property
    def cosine_with_a(self) -> float:
        """The cosine of the angle between B - A and A; NaN where one of them is zero.

        Below 0 the change shrinks A, above 0 it makes A longer, near 0 it is something new.
        """
        if not (self.aa and self.dd):
            return math.nan
        cosine = (self.ab - self.aa) / (self.norm_a * self.norm_difference)
        return max(-1.0, min(1.0, cosine))

    @property
    def changed_frac(self) -> float:
        """The share of elements whose value differs."""
        return self.changed / self.size if self.size else 0.0


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Attributes:
        a, b: the two sides.
        parts: path -> the difference of each layer, or one alone for what is not stacked.
    """

    a: Weights
    b: Weights
    parts: Mapping[str, Sequence[Difference]]

    @functools.cached_property
    def leaves(self) -> dict[str, Difference]:
        """The difference of each leaf."""
        return {path: sum(parts, Difference()) for path, parts in self.parts.items()}

    @property
    def total(self) -> Difference:
        """The difference of all parameters together."""
        return sum(self.leaves.values(), Difference())

    @property
    def layers(self) -> list[Difference]:
        """The difference of each layer, all its parameters together."""
        layers = zip(*self.stacked.values(), strict=True)
        return [sum(parts, Difference()) for parts in layers]

    @property
    def stacked(self) -> dict[str, Sequence[Difference]]:
        """The differences of each layer, of the leaves that have layers."""
        return {path: parts for path, parts in self.parts.items() if _is_stacked(path)}


def compare(a: str | os.PathLike, b: str | os.PathLike) -> Comparison:
    """Compares two models in bounded memory.

    Args:
        a: a checkpoint root or step, or anything that `ellama import` reads: what is before.
        b: the same: what is after.

    Raises:
        ValueError: if either cannot be read, or leaves are missing, extra or of another shape.
    """
    with open_weights(a) as before, open_weights(b) as after:
        shapes = {path: (leaf.shape,) for path, leaf in after.leaves.items()}
        title = f"compare {after.title} with {before.title}"
        check_same_leaves(title, shapes, before.leaves, before.config)
        parts = compare_leaves(before.leaves, after.leaves)
    return Comparison(before, after, parts)


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
    """Opens a checkpoint, or anything that `ellama import` reads, for the time of the context."""
    path = as_path(path)
    if is_foreign(path):
        with open_source(path) as model:
            fingerprint = load_tokenizer(model.tokenizer_dir).fingerprint
            yield Weights(str(path), model.config, model.leaves, fingerprint)
    else:
        info = find_checkpoint(path)
        fingerprint = info.meta["tokenizer_fingerprint"]
        yield Weights(str(info.path), info.config, open_leaves(info.path), fingerprint)


def is_foreign(path: Path) -> bool:
    """Tells whether a path is something that `ellama import` reads, and no checkpoint of ours."""
    try:
        detect_format(path)
    except ValueError:
        # A file of no known format is no checkpoint either, and the importer says why.
        return path.is_file()
    return True


def compare_leaves(
    a: Mapping[str, LazyArray], b: Mapping[str, LazyArray], workers: int | None = None
) -> dict[str, list[Difference]]:
    """Compares leaves of the same paths and shapes; several pieces are read at once.

    Args:
        a, b: path -> leaf.
        workers: how many pieces of both sides are in memory together; None is one a core.

    Returns:
        path -> the difference of each layer, in order; of one alone for what is not stacked.
    """
    workers = workers or max(2, min(4, os.cpu_count() or 1))
    parts = {path: [Difference()] * (leaf.shape[0] if _is_stacked(path) else 1)
             for path, leaf in a.items()}  # fmt: skip
    total = sum(leaf.nbytes + b[path].nbytes for path, leaf in a.items())
    pool = ThreadPoolExecutor(workers)
    try:
        with progress("comparing", total >> 20, "MiB") as bar:
            jobs = {
                pool.submit(_compare_box, a[path], b[path], box, _is_stacked(path)): (path, box)
                for path in a
                for box in _boxes(a[path], b[path])
            }
            # In order of submission, so that sums do not depend on which thread was faster.
            for job in as_completed(jobs):
                path, box = jobs[job]
                job.result()
                bar.count_bytes(_bytes_read(a[path], b[path], box))
            for job, (path, box) in jobs.items():
                first = box[0].start if _is_stacked(path) else 0
                for layer, found in enumerate(job.result(), start=first):
                    parts[path][layer] += found
    finally:
        pool.shutdown(cancel_futures=True)
    return parts


def _is_stacked(path: str) -> bool:
    return path.startswith("layers/")


def _boxes(a: LazyArray, b: LazyArray) -> Iterator[Box]:
    """Cuts a leaf so that neither side reads a chunk twice, where memory allows that."""
    ones = (1,) * len(a.shape)
    grids = [side.grid or ones for side in (a, b)]
    both = tuple(map(max, *grids))
    itemsize = max(a.dtype.itemsize, b.dtype.itemsize)
    if math.prod(both) * itemsize > _MOST_PIECES * PIECE_BYTES:
        both = max(grids, key=math.prod)
    return split(a.shape, itemsize, both, PIECE_BYTES)


def _bytes_read(a: LazyArray, b: LazyArray, box: Box) -> int:
    size = math.prod(part.stop - part.start for part in box)
    return size * (a.dtype.itemsize + b.dtype.itemsize)


def _compare_box(a: LazyArray, b: LazyArray, box: Box, stacked: bool) -> list[Difference]:
    """Reads one box of both sides; returns a difference a layer, or one for all of it."""
    left, right = a.read(box), b.read(box)
    if not stacked:
        return [difference(left, right)]
    return [difference(x, y) for x, y in zip(left, right, strict=True)]


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Returns the difference of two arrays of one shape, whatever their dtypes."""
    a, b = a.reshape(-1), b.reshape(-1)
    found = Difference()
    for start in range(0, a.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        found += _difference_of_block(a[block].astype(np.float64), b[block].astype(np.float64))
    return found


def _difference_of_block(a: np.ndarray, b: np.ndarray) -> Difference:
    size, changed = a.size, a != b
    with np.errstate(invalid="ignore"):  # inf - inf; counted below
        delta = b - a
    bad_a = bad_b = num_changed = 0
    # A sum is finite only if all it sums is: one look instead of two masks for what is usual.
    if not math.isfinite(float(delta.sum())):
        fine_a, fine_b = np.isfinite(a), np.isfinite(b)
        bad_a, bad_b = int(size - fine_a.sum()), int(size - fine_b.sum())
        changed &= ~(np.isnan(a) & np.isnan(b))  # NaN equals no NaN, but nothing changed
        fine = fine_a & fine_b
        num_changed = int(changed[~fine].sum())
        a, b, delta, changed = a[fine], b[fine], delta[fine], changed[fine]
    return Difference(
        size=size,
        aa=float(a @ a),
        bb=float(b @ b),
        ab=float(a @ b),
        dd=float(delta @ delta),
        max_abs=float(np.abs(delta).max(initial=0.0)),
        changed=int(np.count_nonzero(changed)) + num_changed,
        nonfinite_a=bad_a,
        nonfinite_b=bad_b,
    )


def constants_that_differ(a: LlamaConfig, b: LlamaConfig) -> list[str]:
    """Names what two models of the same shapes do differently, as RoPE's base frequency.

    Returns:
        phrases as `rope_theta is 10000.0 and 500000.0`.
    """
    ignored = ("name", "base_peak_learning_rate")
    ours, theirs = config_to_dict(a), config_to_dict(b)
    return [
        f"{key} is {ours[key]} and {theirs[key]}"
        for key in ours
        if key not in ignored and ours[key] != theirs[key]
    ]
