"""The content of weights in 64 hexadecimal digits, whatever they lie in; and where elements lie.

Owns the hash and the check that every number is finite, both made of what is read anyway. Names and
layouts of tensors are tensors.py's.

What is hashed: each tensor as a Hugging Face file has it, as the sum over its elements of
bits x row key x column key, modulo 2**64, where the keys are fixed odd numbers by position; then, with
SHA-256, the lines `name dtype shape sum`, sorted. A sum does not depend on the order or the boxes in
which it is read, and by its positions it is the same in our layout and in Hugging Face's. It tells
models apart that differ by chance or by training; it is no proof against forgery.
"""

import dataclasses
import functools
import hashlib
import math
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ellama_jax.core.distributed import exchange
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.weights.lazy import Box, LazyArray, as_bits
from ellama_jax.weights.tensors import TENSORS, tensor_names

# Elements that are multiplied at a time: what that makes stays in a core's cache.
_BLOCK = 2**16


@dataclasses.dataclass(frozen=True)
class Array:
    """Where the elements of an array lie in the tensors of a Hugging Face file.

    Attributes:
        path: of the leaf, as `layers/attn/wq`.
        names: of the tensors; several where the array is a leaf of ours with layers.
        unit: the shape of one tensor in the array's own layout.
        inputs: how many leading dims of `unit` are inputs, which come last at Hugging Face; 0 where
            the layout is theirs.
        stacked: whether the first dim of the array is that of layers.
        layer: of the one tensor, where the array is a layer's alone.
    """

    path: str
    names: tuple[str, ...]
    unit: tuple[int, ...]
    inputs: int
    stacked: bool
    layer: int | None = None

    @property
    def layers(self) -> Sequence[int | None]:
        """The layers of the array, None alone where its first dim is none."""
        return range(len(self.names)) if self.stacked else (None,)

    @property
    def vocab_dim(self) -> int:
        """The dim of the vocabulary, of the arrays that have it."""
        return self.inputs

    def tensor(self, layer: int | None) -> str:
        """The name of a layer's tensor."""
        return self.names[layer or 0]

    def where(self, layer: int | None) -> str:
        """Says which tensor, for messages."""
        at = layer if layer is not None else self.layer
        return f"{self.tensor(layer)} (layer {at})" if at is not None else self.tensor(layer)

    def places(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows and columns, in the Hugging Face tensor, of a box as a matrix.

        Args:
            box: of one tensor, in the array's own layout. Its matrix has the leading `inputs` dims
                as the first (at least one dim, none of a vector) and the others as the second.

        Returns:
            numbers [n] and [m]: of columns and rows where `inputs` is above 0, else rows and columns.
        """
        split = self.inputs or len(self.unit) - 1
        return _flat(box[:split], self.unit[:split]), _flat(box[split:], self.unit[split:])

    def positions(self, places: tuple, start: int, stop: int) -> np.ndarray:
        """Returns where a range of a box's elements lies in the flattened Hugging Face tensor.

        Args:
            places: of the box, from `places`.
            start, stop: of the flattened box.

        Returns:
            [stop - start] uint32.
        """
        first, second = places
        i, j = np.divmod(np.arange(start, stop), len(second))
        split = self.inputs or len(self.unit) - 1
        if self.inputs:
            found = second[j] * math.prod(self.unit[:split]) + first[i]
        else:
            found = first[i] * math.prod(self.unit[split:]) + second[j]
        return found.astype(np.uint32)


def leaf_arrays(config: LlamaConfig, leaves: Mapping[str, LazyArray]) -> dict[str, Array]:
    """Says where the elements of leaves of ours lie."""
    found = {}
    for path, names in tensor_names(config).items():
        stacked = path.startswith("layers/")
        shape = leaves[path].shape[1:] if stacked else leaves[path].shape
        found[path] = Array(path, tuple(names), shape, TENSORS[path][1], stacked)
    return found


def tensor_arrays(config: LlamaConfig, tensors: Mapping[str, LazyArray]) -> dict[str, Array]:
    """Says where the elements of Hugging Face tensors lie: where they are."""
    found = {}
    for path, names in tensor_names(config).items():
        for layer, name in enumerate(names):
            at = layer if path.startswith("layers/") else None
            found[name] = Array(path, (name,), tensors[name].shape, 0, False, at)
    return found


class Ledger:
    """What has been read of one model, and whether all of it was finite.

    Args:
        title: of the model, for messages.
        hint: what to look for where a number is not finite.
    """

    def __init__(self, title: str, hint: str = "is this step from before a failed run?"):
        self._title, self._hint = title, hint
        self._seen: set[tuple] = set()
        self._lock = threading.Lock()
        self._sums: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._wanted: dict[str, tuple[str, tuple[int, ...], int]] = {}

    def follow(self, leaf: LazyArray, array: Array, *, hashed: bool = True) -> LazyArray:
        """Returns the array, reads of which are checked, and counted if `hashed`.

        Raises:
            ValueError: from reading, where a number is NaN or infinite.
        """
        if hashed:
            shape = array.unit if not array.inputs else (
                math.prod(array.unit[array.inputs :]), math.prod(array.unit[: array.inputs])
            )  # fmt: skip
            for name in array.names:
                self._wanted[name] = (leaf.dtype.name, shape, math.prod(array.unit))

        def read(box: Box) -> np.ndarray:
            piece = leaf.read(box)
            pairs = zip(range(box[0].start, box[0].stop), piece, strict=True) if array.stacked \
                else ((None, piece),)  # fmt: skip
            inner = box[1:] if array.stacked else box
            for layer, part in pairs:
                self._take(array, layer, inner, part, hashed)
            return piece

        return dataclasses.replace(leaf, read=read)

    def _take(self, array: Array, layer: int | None, box: Box, part: np.ndarray, hashed: bool):
        if hashed:
            # Devices that hold the same read the same.
            key = (array.tensor(layer), *((side.start, side.stop) for side in box))
            with self._lock:
                hashed = key not in self._seen
                self._seen.add(key)
        first, second = array.places(box)
        matrix = as_bits(np.ascontiguousarray(part)).reshape(len(first), len(second))
        rows, columns = (_keys("in")[first], _keys("out")[second]) if array.inputs else \
            (_keys("out")[first], _keys("in")[second])  # fmt: skip
        total = 0
        limit, magnitude = _limits(part.dtype)
        step = max(1, _BLOCK // max(1, len(second)))
        # Memory that is asked for anew for each block costs more than what is computed in it.
        sizes = np.empty((step, len(second)), matrix.dtype)
        products = np.empty((step, len(second)), np.uint64)
        for start in range(0, len(first), step):
            block = matrix[start : start + step]
            here = slice(0, len(block))
            if np.bitwise_and(block, magnitude, out=sizes[here]).max(initial=0) >= limit:
                self._refuse(array, layer, part)
            if hashed:
                np.copyto(products[here], block)
                products[here] *= columns
                sums = products[here].sum(axis=1)
                total += int((sums * rows[start : start + step]).sum())
        if hashed:
            name = array.tensor(layer)
            with self._lock:
                self._sums[name] = (self._sums.get(name, 0) + total) % 2**64
                self._read[name] = self._read.get(name, 0) + part.size

    def _refuse(self, array: Array, layer: int | None, part: np.ndarray) -> None:
        kind = "NaN" if np.isnan(part.astype(np.float32)).any() else "infinite"
        raise ValueError(
            f"{self._title}: every number must be finite, got one that is {kind} in "
            f"{array.where(layer)}; {self._hint}"
        )

    def join(self) -> None:
        """Adds what other processes of the job have read; all of them must call this."""
        names = sorted(self._wanted)
        mine = [(self._sums.get(name, 0), self._read.get(name, 0)) for name in names]
        found = exchange(np.array(mine, np.uint64).tobytes())()  # of one length in all
        everyone = np.stack([np.frombuffer(one, np.uint64).reshape(-1, 2) for one in found], axis=1)
        for name, parts in zip(names, everyone.tolist(), strict=True):
            size = self._wanted[name][2]
            # What is replicated each of them has read whole; of what is divided each has read a part.
            whole = [total for total, read in parts if read == size]
            total = whole[0] if whole else sum(total for total, _ in parts) % 2**64
            self._sums[name], self._read[name] = total, size if whole else sum(n for _, n in parts)

    def is_complete(self) -> bool:
        """Says whether every element that was to be hashed has been read."""
        return all(self._read.get(name, 0) == size for name, (_, _, size) in self._wanted.items())

    def content(self) -> dict:
        """Returns what tells these weights from others, for meta: the hash, and the sum of each tensor."""
        sums = {name: f"{self._sums[name]:016x}" for name in sorted(self._wanted)}
        return {"hash": self.digest(), "tensors": sums}

    def digest(self) -> str:
        """Returns the hash, once every element was read exactly once."""
        for name, (_, _, size) in self._wanted.items():
            assert self._read.get(name, 0) == size, f"{name}: read {self._read.get(name)} of {size}"
        lines = [
            f"{name} {dtype} {'x'.join(map(str, shape))} {self._sums[name]:016x}\n"
            for name, (dtype, shape, _) in sorted(self._wanted.items())
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def with_hashes(meta: dict, ledgers: Sequence[Ledger]) -> dict:
    """Returns a meta whose provenance names the hash of each source, in order."""
    made = meta["provenance"]
    sources = [
        {**source, "weights_hash": ledger.digest()}
        for source, ledger in zip(made["sources"], ledgers, strict=True)
    ]
    return {**meta, "provenance": {**made, "sources": sources}}


def _flat(box: Box, shape: Sequence[int]) -> np.ndarray:
    """Returns the places of a box in flattened dims, in order.

    >>> _flat((slice(1, 3), slice(0, 2)), (3, 4)).tolist()
    [4, 5, 8, 9]
    """
    found = np.zeros(1, np.int64)
    for part, size in zip(box, shape, strict=True):
        found = (found[:, None] * size + np.arange(part.start, part.stop)).reshape(-1)
    return found


def _limits(dtype: np.dtype) -> tuple[int, np.integer]:
    """Returns the bits of infinity and those of all magnitudes; what is larger is NaN."""
    infinity = as_bits(np.array([np.inf]).astype(dtype))[0]
    return int(infinity), np.dtype(f"u{dtype.itemsize}").type(2 ** (8 * dtype.itemsize - 1) - 1)


@functools.cache
def _keys(kind: str) -> np.ndarray:
    """Returns the odd keys of positions: splitmix64 (Steele et al. 2014) of the position."""
    with np.errstate(over="ignore"):
        x = np.arange(2**20, dtype=np.uint64) + np.uint64({"in": 1 << 32, "out": 2 << 32}[kind])
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) | np.uint64(1)
