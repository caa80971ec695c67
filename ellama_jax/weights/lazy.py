"""Arrays at rest, read box by box: what lets weights of any size pass through little memory.

Owns the one interface between where weights lie (files of any format, checkpoints, the sum of two
others) and where they go (a checkpoint, a file, a mesh). It knows no format.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

Box = tuple[slice, ...]  # one slice a dim, with start and stop, step 1

# What passes through memory at one time. Some pieces are under way together, each in a few copies.
PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LazyArray:
    """An array that is read when asked for, as a whole or in boxes.

    Attributes:
        shape: in elements.
        dtype: of what `read` returns.
        read: reads one box; returns a NumPy array of the box's shape.
        grid: sizes of the blocks that reading fetches whole; None where any box costs what it holds.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Box], np.ndarray]
    grid: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * self.dtype.itemsize

    def load(self) -> np.ndarray:
        """Reads all of it."""
        return self.read(whole(self.shape))


def whole(shape: Sequence[int]) -> Box:
    """Returns the box that is all of an array."""
    return tuple(slice(0, size) for size in shape)


def as_box(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """Returns `index` with every start and stop filled in.

    >>> as_box((slice(None), slice(2, None)), (4, 6))
    (slice(0, 4, None), slice(2, 6, None))
    """
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def from_array(array) -> LazyArray:
    """Wraps an array that is in memory already (NumPy, or JAX on this process's devices)."""
    array = np.asarray(array)
    return LazyArray(array.shape, array.dtype, lambda box: array[box])


def place(leaf: LazyArray, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads an array onto devices, cast to the dtype wanted; each process reads its boxes only.

    Args:
        leaf: what to read.
        abstract: shape, dtype and, for more than one device, sharding.
    """
    sharding = abstract.sharding or SingleDeviceSharding(jax.local_devices()[0])
    places = sharding.addressable_devices_indices_map(leaf.shape)
    boxes = {device: as_box(index, leaf.shape) for device, index in places.items()}

    def read(box: Box) -> np.ndarray:
        return leaf.read(box).astype(abstract.dtype, copy=False)

    with ThreadPoolExecutor(4) as pool:
        # What several devices hold is read once.
        reads = {repr(box): pool.submit(read, box) for box in boxes.values()}
        arrays = [
            jax.device_put(
                reads[repr(box)].result(),
                SingleDeviceSharding(device, memory_kind=sharding.memory_kind),
            )
            for device, box in boxes.items()
        ]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def same_bits(a: LazyArray, b: LazyArray) -> bool:
    """Tells whether two arrays are the same in shape, dtype and every bit."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    boxes = split(a.shape, a.dtype.itemsize)
    return all(np.array_equal(as_bits(a.read(box)), as_bits(b.read(box))) for box in boxes)


def as_bits(array: np.ndarray) -> np.ndarray:
    """Views numbers as integers of their size.

    NumPy moves and compares numbers of a foreign dtype (bfloat16) one by one, and NaNs are not
    equal to themselves.
    """
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def split(
    shape: Sequence[int],
    itemsize: int,
    grid: Sequence[int] | None = None,
    piece_bytes: int | None = None,
) -> Iterator[Box]:
    """Cuts an array into boxes of at most `piece_bytes`, in row-major order.

    Args:
        shape: of the array.
        itemsize: bytes an element.
        grid: blocks that no box cuts; a single block may be larger than `piece_bytes`.
        piece_bytes: the most bytes of one box, by default `PIECE_BYTES`.

    Boxes grow from the last dim on:

        >>> [tuple((s.start, s.stop) for s in box) for box in split((4, 6), 1, (1, 3), 12)]
        [((0, 2), (0, 6)), ((2, 4), (0, 6))]
    """
    piece_bytes = piece_bytes or PIECE_BYTES
    sizes = [min(g, s) for g, s in zip(grid or [1] * len(shape), shape, strict=True)]
    for dim in reversed(range(len(shape))):
        room = piece_bytes // (math.prod(sizes) * itemsize)
        blocks = math.ceil(shape[dim] / sizes[dim])
        sizes[dim] = min(shape[dim], sizes[dim] * max(1, min(room, blocks)))
        if room < blocks:
            break
    counts = [math.ceil(s / size) for s, size in zip(shape, sizes, strict=True)]
    for corner in np.ndindex(*counts):
        yield tuple(
            slice(i * size, min((i + 1) * size, s))
            for i, size, s in zip(corner, sizes, shape, strict=True)
        )


def read_ahead(
    arrays: Mapping[str, LazyArray], workers: int = 3
) -> Iterator[tuple[str, Box, np.ndarray]]:
    """Yields all boxes of arrays with their values, in order, the next ones being read meanwhile.

    Boxes are those of `split`. An array smaller than one does not hold up the reading of the next.
    """
    jobs = (
        (name, box)
        for name, array in arrays.items()
        for box in split(array.shape, array.dtype.itemsize, array.grid)
    )
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[str, Box, Future]] = deque()
        for name, box in jobs:
            waiting.append((name, box, pool.submit(arrays[name].read, box)))
            if len(waiting) > workers:
                done, at, piece = waiting.popleft()
                yield done, at, piece.result()
        for done, at, piece in waiting:
            yield done, at, piece.result()


def transpose(matrix: np.ndarray) -> np.ndarray:
    """Returns `matrix.T` laid out anew, [m, n] -> [n, m].

    NumPy moves one element at a time, 0.2 GB/s of bfloat16; XLA's transposition, which JAX runs
    when it takes in an array with foreign strides, moves ten times as much.
    """
    cpu = _cpu_device()
    if cpu is None or matrix.dtype.itemsize > 4:  # JAX knows no 64 bits by default
        return np.ascontiguousarray(matrix.T)
    # Bits, not numbers: a conversion on the way could quieten NaNs.
    return np.asarray(jax.device_put(as_bits(matrix).T, cpu)).view(matrix.dtype)


@functools.cache
def _cpu_device():
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a JAX told to know accelerators only
        return None
