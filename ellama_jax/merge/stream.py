"""Merging in bounded memory: which numbers belong to one tensor, read in boxes, summed in blocks.

Owns the statistics that formulas need of whole tensors (a first pass) and the merged arrays, which
are read like any other. Formulas are merge/methods.py's, opening and comparing merge/inputs.py's.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from ellama_jax.core.progress import progress
from ellama_jax.merge import methods
from ellama_jax.weights.alphas import Alphas
from ellama_jax.weights.content_hash import Array
from ellama_jax.weights.lazy import Box, LazyArray, as_bits, split

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Elements that pass through a formula at a time: what it makes of them stays in a core's cache.
_BLOCK = 2**15
# A product of so few elements BLAS does not spread over threads, see difference.py.
_PRODUCT = 2**13
# Boxes of all inputs together that one reader holds: what makes memory independent of their number.
_BUDGET_BYTES = 3 * 2**26
_PIECE_BYTES = 2**24
_READERS = 2


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done with the models.

    Attributes:
        method: of `merge_methods.METHODS`.
        weights: one a model; with a base that is interpolated (linear, slerp) the one alpha.
        density: the share of each task vector that is kept; None where the method keeps all.
        seed: of the masks; None where the method draws none.
    """

    method: str
    weights: tuple[Alphas, ...] = ()
    density: float | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """The arrays of all models that one merged array is made of.

    Attributes:
        array: where its elements lie in the tensors of a Hugging Face file.
        sources: one a model, the base first where there is one.
        shared: how many rows of the vocabulary all have, None where there are none or all have all.
        largest: number of the source that the rows beyond come from.
    """

    array: Array
    sources: tuple[LazyArray, ...]
    shared: int | None = None
    largest: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the merged array."""
        return self.sources[self.largest].shape

    def common(self) -> tuple[int, ...]:
        """The shape of the part that all models have."""
        shape = list(self.shape)
        if self.shared is not None:
            shape[self.array.vocab_dim] = self.shared
        return tuple(shape)


def merged_dtype(sources: Sequence[LazyArray], dtype=None) -> np.dtype:
    """Returns the dtype asked for, or the wider of those of the sources."""
    if dtype is not None:
        return np.dtype(dtype)
    # bfloat16 and float16 hold different numbers; only float32 holds both.
    found = {source.dtype for source in sources}
    return found.pop() if len(found) == 1 else np.dtype(np.float32)


def merge_arrays(
    recipe: Recipe,
    groups: Mapping[str, Group],
    num_layers: int,
    dtype=None,
    measured: Mapping[str, Group] | None = None,
) -> dict[str, LazyArray]:
    """Returns the merged arrays, unread; statistics of whole tensors are gathered first.

    Args:
        recipe: the method and its numbers.
        groups: name -> what the array of this name is made of.
        num_layers: of the model, for weights by depth.
        dtype: of the result, None is `merged_dtype`.
        measured: `groups` again, for the first pass, where reads of `groups` must happen once.

    Raises:
        ValueError: from reading.
    """
    found = _gather(recipe, measured or groups)
    return {
        name: _merged(recipe, group, found.get(name, {}), num_layers, dtype)
        for name, group in groups.items()
    }


# --- what a formula must know of a whole tensor --------------------------------------------------


def _gather(recipe: Recipe, groups: Mapping[str, Group]) -> dict[str, dict]:
    """Returns name -> layer -> the statistic; a layer of None is an array without layers."""
    method = methods.METHODS[recipe.method]
    if not method.statistics or (method.statistics == "thresholds" and recipe.density >= 1):
        return {}
    measure = {"gram": _gram, "thresholds": _thresholds}[method.statistics]
    jobs = [(name, layer) for name, group in groups.items() for layer in group.array.layers]
    total = sum(s.nbytes for group in groups.values() for s in group.sources)
    pool = ThreadPoolExecutor(_READERS)
    try:
        with progress("measuring", total >> 20, "MiB") as bar:
            running = {job: pool.submit(measure, recipe, groups[job[0]], job[1]) for job in jobs}
            found: dict[str, dict] = {name: {} for name in groups}
            for (name, layer), job in running.items():
                found[name][layer] = job.result()
                group = groups[name]
                bar.count_bytes(sum(s.nbytes for s in group.sources) // len(group.array.layers))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _gram(recipe: Recipe, group: Group, layer: int | None) -> np.ndarray:
    """Returns the products of the models' tensors, of their task vectors for model stock."""
    from_base = recipe.method == "model_stock"
    count = len(group.sources) - from_base
    total = np.zeros((count, count))
    for blocks in _blocks_of(group, layer, _PRODUCT):
        rows = np.stack(blocks).astype(np.float64)
        rows = rows[1:] - rows[0] if from_base else rows
        total += rows @ rows.T
    return total


def _thresholds(recipe: Recipe, group: Group, layer: int | None) -> list[float]:
    """Returns, for each task vector, the magnitude of the last element that TIES keeps.

    Exact: float32 magnitudes are ordered as their bit patterns are, so a histogram of the upper 16
    bits finds the bin, a second one, of the lower bits in that bin, the number. All elements of that
    magnitude are kept, so that which ones does not depend on an order.
    """
    unit = group.common()[1:] if layer is not None else group.common()
    wanted = methods.kept_count(recipe.density, math.prod(unit))
    count = len(group.sources) - 1
    upper = np.zeros((count, 2**15), np.int64)
    for bits in _magnitudes(group, layer):
        for row, found in zip(upper, bits, strict=True):
            row += np.bincount(found >> 16, minlength=2**15)
    bins, left = zip(*(_find_bin(row, wanted) for row in upper), strict=True)
    lower = np.zeros((count, 2**16), np.int64)
    for bits in _magnitudes(group, layer):
        for row, found, bin_ in zip(lower, bits, bins, strict=True):
            row += np.bincount(found[found >> 16 == bin_] & 0xFFFF, minlength=2**16)
    ends = [_find_bin(row, rest)[0] for row, rest in zip(lower, left, strict=True)]
    patterns = np.uint32([(b << 16) | e for b, e in zip(bins, ends, strict=True)])
    return patterns.view(np.float32).tolist()


def _magnitudes(group: Group, layer: int | None) -> Iterator[list[np.ndarray]]:
    for base, *models in _blocks_of(group, layer, 2 * _BLOCK):
        yield [(model - base).view(np.uint32) & np.uint32(0x7FFFFFFF) for model in models]


def _find_bin(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Returns the bin that holds the `wanted`-th largest, and the how-many-eth it is in it.

    >>> _find_bin(np.array([5, 1, 2]), 3)
    (1, 1)
    """
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted))
    return len(counts) - 1 - place, int(wanted - (above[place - 1] if place else 0))


def _blocks_of(group: Group, layer: int | None, size: int) -> Iterator[list[np.ndarray]]:
    """Yields blocks of at most `size` numbers of one tensor: [n] float32 of each model."""
    shape = group.common()
    outer = () if layer is None else (slice(layer, layer + 1),)
    for inner in _boxes(group, shape[len(outer) :], len(outer)):
        pieces = [source.read((*outer, *inner)).reshape(-1) for source in group.sources]
        for start in range(0, pieces[0].size, size):
            yield [widen(piece[start : start + size]) for piece in pieces]


def _boxes(group: Group, shape: Sequence[int], skip: int) -> Iterator[Box]:
    """Cuts a shape so that the boxes of all sources together are within the budget."""
    grids = [source.grid[skip:] for source in group.sources if source.grid is not None]
    itemsize = max(source.dtype.itemsize for source in group.sources)
    room = max(1, _BUDGET_BYTES // len(group.sources))
    grid = max(grids, key=math.prod, default=None)
    if grid is not None and math.prod(grid) * itemsize > room:
        grid = None
    return split(shape, itemsize, grid, min(room, 2**26))


# --- the merged array ----------------------------------------------------------------------------


def _merged(recipe: Recipe, group: Group, found: Mapping, num_layers: int, dtype) -> LazyArray:
    into = merged_dtype(group.sources, dtype)
    array = group.array
    combine = {layer: _formula(recipe, array, layer, found.get(layer), num_layers,
                               len(group.sources)) for layer in array.layers}  # fmt: skip

    def read(box: Box) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in box], into)
        for part, common in _cut_vocabulary(group, box):
            if common:
                _fill(out, box, part, group, combine)
            else:
                _copy_rows(out, box, part, group)
        return out

    return LazyArray(group.shape, into, read, group.sources[group.largest].grid)


def _formula(
    recipe: Recipe, array: Array, layer: int | None, found, num_layers: int, count: int
) -> Callable[[list[np.ndarray], Callable[[], np.ndarray]], np.ndarray] | int:
    """Returns what makes one block of one tensor, or the number of the model that it is bit for bit.

    The function takes [n] float32 of each model and a function that returns the positions of these
    elements in the tensor.
    """
    at = layer if layer is not None else array.layer
    given = [_weight(alphas, array.path, at, num_layers) for alphas in recipe.weights]
    if recipe.method in ("linear", "slerp", "model_stock"):
        weights = _sum_weights(recipe, given, found)
        if 1.0 in weights and not any(w for w in weights if w != 1.0) and weights.count(1.0) == 1:
            return weights.index(1.0)
        return lambda blocks, _: methods.weighted_sum(blocks, weights)
    if not any(given):
        return 0
    keys = [methods.mask_key(recipe.seed, i, array.tensor(layer)) for i in range(count - 1)]

    def combine(blocks: list[np.ndarray], positions) -> np.ndarray:
        base = blocks[0]
        deltas = [block - base for block in blocks[1:]]
        if recipe.method == "ties" and found is not None:
            deltas = [methods.trim(d, t) for d, t in zip(deltas, found, strict=True)]
        elif recipe.method.startswith("dare") and recipe.density < 1:
            at = positions()
            masks = [methods.keep_mask(key, at, recipe.density) for key in keys]
            deltas = [
                methods.thin(d, mask, recipe.density) for d, mask in zip(deltas, masks, strict=True)
            ]
        if recipe.method.endswith("ties"):
            return methods.elect_and_add(base, deltas, given, mean=recipe.method == "ties")
        return methods.add_task_vectors(base, deltas, given)

    return combine


def _sum_weights(recipe: Recipe, given: list[float], found) -> list[float]:
    if recipe.method == "model_stock":
        return methods.stock_weights(found)
    if recipe.method == "slerp":
        # At the ends the sines leave no bit to chance.
        ends = {0.0: (1.0, 0.0), 1.0: (0.0, 1.0)}
        return list(ends.get(given[0]) or methods.slerp_weights(found, given[0]))
    if len(given) == 1:
        return [1.0 - given[0], given[0]]
    return methods.normalised(given)


def _weight(alphas: Alphas, path: str, layer: int | None, num_layers: int) -> float:
    value = alphas.of(path, num_layers)
    return float(value if layer is None else value[layer])


def _cut_vocabulary(group: Group, box: Box) -> Iterator[tuple[Box, bool]]:
    """Yields the parts of a box with whether all models have them."""
    if group.shared is None:
        yield box, True
        return
    dim = group.array.vocab_dim
    here = box[dim]
    for start, stop, common in (
        (here.start, min(here.stop, group.shared), True),
        (max(here.start, group.shared), here.stop, False),
    ):
        if start < stop:
            yield (*box[:dim], slice(start, stop), *box[dim + 1 :]), common


def _copy_rows(out: np.ndarray, box: Box, part: Box, group: Group) -> None:
    dim = group.array.vocab_dim
    for number, source in enumerate(group.sources):
        stop = min(part[dim].stop, source.shape[dim])
        if stop > part[dim].start:
            # Read of the others too: whether they are whole, and their hash.
            piece = source.read((*part[:dim], slice(part[dim].start, stop), *part[dim + 1 :]))
            if number == group.largest:
                out[_within(part, box)] = piece.astype(out.dtype)


def _fill(out: np.ndarray, box: Box, part: Box, group: Group, combine: Mapping) -> None:
    sizes = [p.stop - p.start for p in part]
    # Boxes of the writer are those of its files. Where any part can be read alone they are cut into
    # what the allocator hands out again without asking the system, else only for many inputs.
    whole_blocks = any(source.grid is not None for source in group.sources)
    room = max(1, (_BUDGET_BYTES if whole_blocks else _PIECE_BYTES) // len(group.sources))
    itemsize = max(source.dtype.itemsize for source in group.sources)
    for inner in split(sizes, itemsize, None, room):
        now = tuple(
            slice(p.start + i.start, p.start + i.stop) for p, i in zip(part, inner, strict=True)
        )
        pieces = [source.read(now) for source in group.sources]
        place = out[_within(now, box)]
        if not group.array.stacked:
            _combine(place, pieces, combine[None], group.array, now)
            continue
        for row, layer in enumerate(range(now[0].start, now[0].stop)):
            rows = [piece[row] for piece in pieces]
            _combine(place[row], rows, combine[layer], group.array, now[1:])


def _combine(place: np.ndarray, pieces: list[np.ndarray], combine, array: Array, box: Box) -> None:
    """Writes the merge of one tensor's boxes into `place`, block by block."""
    if isinstance(combine, int):
        place[...] = pieces[combine].astype(place.dtype, copy=False)
        return
    contiguous = place.flags.c_contiguous
    result = place.reshape(-1) if contiguous else np.empty(place.size, place.dtype)
    flat = [np.ascontiguousarray(piece).reshape(-1) for piece in pieces]
    places = array.places(box)
    for start in range(0, result.size, _BLOCK):
        stop = min(start + _BLOCK, result.size)
        blocks = [widen(piece[start:stop]) for piece in flat]
        block = combine(blocks, lambda a=start, b=stop: array.positions(places, a, b))
        narrow(block, result[start:stop])
    if not contiguous:
        as_bits(place)[...] = as_bits(result).reshape(place.shape)


def _within(inner: Box, outer: Box) -> Box:
    return tuple(
        slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)
    )


# --- dtypes --------------------------------------------------------------------------------------


def widen(block: np.ndarray) -> np.ndarray:
    """Returns [n] numbers as float32, a new array; bfloat16 by its bits, which is twice as fast."""
    if block.dtype != _BFLOAT16:
        return block.astype(np.float32)
    return np.left_shift(block.view(np.uint16), 16, dtype=np.uint32).view(np.float32)


def narrow(block: np.ndarray, out: np.ndarray) -> None:
    """Writes [n] finite float32 into `out`, rounded to the nearest, to even where in the middle.

    >>> out = np.empty(2, ml_dtypes.bfloat16)
    >>> narrow(np.float32([1.00390625, 1.01171875]), out)
    >>> out.tolist()
    [1.0, 1.015625]
    """
    if out.dtype != _BFLOAT16:
        out[...] = block
        return
    bits = block.view(np.uint32)
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    np.right_shift(rounded, 16, out=out.view(np.uint16), casting="unsafe")
