"""An external shuffle: tokenised documents in the order of random keys, more than memory holds.

Owns the keys, the sorted runs on a disk or in a bucket, and their merging. A document's key depends
on the seed, its file's content and its place in it, and on nothing else: so neither the number of
workers nor how files are cut into parts nor their order changes which document comes where. What
the order is for is tokens/prepare.py's business.

A run holds documents of several sets, those of each by ascending keys. A `Column` is runs that
divide the keys among them in equal ranges, at first one alone. A reader of a range of keys reads its
piece of every column, so their number must not grow with the input: `FAN_IN` columns at a time are
merged into one of as many runs as their size asks for. Each document is then moved once for every
factor of 512 in the input's size, and never more than 512 files are read for one range.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ellama_jax.core.paths import is_remote, open_whole, read_range

FAN_IN = 512
_KEYS = 2**64
_KEY, _TOKEN = np.dtype("<u8"), np.dtype("<u4")
_INDEX = np.dtype([("key", _KEY), ("end", _KEY)])  # end: of the tokens, within the set
_READERS = 16  # reads at a time where each waits for a bucket


class Documents(NamedTuple):
    """Documents in the order of their keys; document i is `tokens[offsets[i]:][:lengths[i]]`."""

    tokens: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


class Run(NamedTuple):
    """A sorted file: for each set its first byte, its documents and its tokens."""

    path: str
    sections: dict[str, Sequence[int]]


Column = Sequence[Run]


@dataclass
class Unsorted:
    """Documents of a set in memory, on their way to a run."""

    keys: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, keys: np.ndarray, lengths: np.ndarray, tokens: np.ndarray) -> None:
        """Takes documents laid end to end in `tokens`."""
        self.keys.append(keys)
        self.lengths.append(lengths)
        self.tokens.append(tokens)
        self.num_tokens += len(tokens)

    def sort(self) -> tuple[np.ndarray, Documents]:
        """Returns the keys, ascending, and the documents in their order."""
        keys, lengths = _join(self.keys, _KEY), _join(self.lengths, np.dtype(np.int64))
        tokens = _join(self.tokens, _TOKEN)
        offsets = np.cumsum(lengths) - lengths
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        _order_equal_keys(keys, order, lambda i: tokens[offsets[i] :][: lengths[i]].tobytes())
        return keys, Documents(tokens, offsets[order], lengths[order])


def _join(arrays: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


def _order_equal_keys(keys: np.ndarray, order: np.ndarray, content) -> None:
    """Orders documents whose keys happen to be equal by what they are, not by who came first.

    Among ten billion documents a few pairs share one of 2**64 keys.
    """
    equal = np.flatnonzero(keys[1:] == keys[:-1])
    for first in equal[np.diff(equal, prepend=-2) > 1]:
        last = np.searchsorted(keys, keys[first], side="right")
        order[first:last] = sorted(order[first:last], key=content)


def order_keys(seed: int, sha256: str, places: Iterable[int]) -> np.ndarray:
    """Returns the random keys of documents, [n] uint64 (splitmix64 from a start of each file).

    Args:
        seed: of the shuffle.
        sha256: of the file's content.
        places: of the documents in it.

    >>> order_keys(0, "ab", [0, 7]).tolist() == order_keys(0, "ab", [7, 0]).tolist()[::-1]
    True
    """
    start = hashlib.sha256(f"{seed}:{sha256}".encode()).digest()[:8]
    mixed = np.fromiter(places, dtype=np.uint64) + np.uint64(1)
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.frombuffer(start, _KEY)[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def write_run(path: Path, sets: dict[str, Unsorted]) -> Run:
    """Writes the documents of each set by ascending keys: index [n] of keys and ends, tokens."""
    sections = {}
    with open_whole(path) as file:
        for name, unsorted in sorted(sets.items()):
            keys, documents = unsorted.sort()
            sections[name] = (file.tell(), len(keys), len(documents.tokens))
            index = np.empty(len(keys), _INDEX)
            index["key"], index["end"] = keys, np.cumsum(documents.lengths)
            file.write(index.data)
            for first in range(0, len(keys), 4096):
                some = slice(first, first + 4096)
                places = zip(documents.offsets[some], documents.lengths[some], strict=True)
                pieces = [documents.tokens[start : start + length] for start, length in places]
                file.write(np.concatenate(pieces).astype(_TOKEN, copy=False).data)
    return Run(os.fspath(path), sections)


def key_range(number: int, parts: int) -> tuple[int, int]:
    """Returns the first and the last key of one of so many equal parts of all keys."""
    return number * _KEYS // parts, (number + 1) * _KEYS // parts - 1


def read_range_of_keys(columns: Sequence[Column], name: str, low: int, high: int) -> Unsorted:
    """Reads the documents of a set whose keys lie in [low, high]; no others are touched."""
    read, runs = Unsorted(), list(_runs_in_range(columns, name, low, high))
    if runs and is_remote(runs[0][0].path):
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_READERS) as threads:
            found = list(threads.map(lambda job: _read_run(*job, name, low, high), runs))
    else:
        found = [_read_run(*job, name, low, high) for job in runs]
    for piece in found:
        read.add(*piece)
    return read


def _runs_in_range(
    columns: Sequence[Column], name: str, low: int, high: int
) -> Iterator[tuple[Run, int, int]]:
    """Yields the runs that may hold such keys, each with the first and the last that it may hold."""
    for column in columns:
        first, last = (key * len(column) // _KEYS for key in (low, high))
        for number in range(max(0, first - 1), min(len(column), last + 2)):
            begin, end = key_range(number, len(column))
            if begin <= high and low <= end and name in column[number].sections:
                yield column[number], begin, end


def _read_run(
    run: Run, begin: int, end: int, name: str, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    offset, count, _ = run.sections[name]
    index, first_row = _read_index(run.path, offset, count, (begin, end), low, high)
    first = int(np.searchsorted(index["key"], np.uint64(low)))
    last = int(np.searchsorted(index["key"], np.uint64(high), side="right"))
    # The row before is there, unless the first of all is the one.
    start = int(index["end"][first - 1]) if first + first_row else 0
    ends = index["end"][first:last].astype(np.int64)
    stop = int(ends[-1]) if len(ends) else start
    tokens = offset + count * _INDEX.itemsize
    content = read_range(run.path, tokens + 4 * start, tokens + 4 * stop) if stop > start else b""
    return (
        index["key"][first:last].astype(_KEY),
        np.diff(ends, prepend=start),
        np.frombuffer(content, _TOKEN),
    )


def _read_index(
    path: str, offset: int, count: int, all_keys: tuple[int, int], low: int, high: int
) -> tuple[np.ndarray, int]:
    """Reads the rows of an index around a range of keys by one read, for keys are random.

    Returns:
        The rows, with at least one more on either side if there is one, and the first one's number.
    """
    begin, end = all_keys
    margin = 64 + 6 * int(count**0.5)  # six times what the middle of so many random keys strays
    while True:
        rows = [count * (key - begin) // (end - begin + 1) for key in (low, high)]
        first = min(max(0, rows[0] - margin), count)
        last = max(min(count, rows[1] + margin), first)
        size = _INDEX.itemsize
        content = read_range(path, offset + first * size, offset + last * size)
        index = np.frombuffer(content, _INDEX)
        if (first == 0 or (len(index) and index["key"][0] < low)) and (
            last == count or (len(index) and index["key"][-1] > high)
        ):
            return index, first
        margin *= 8


def merge(
    columns: Sequence[Column], names: Iterable[str], number: int, parts: int, path: Path
) -> Run:
    """Writes one of `parts` equal ranges of the keys of all columns as one run."""
    low, high = key_range(number, parts)
    sets = {name: read_range_of_keys(columns, name, low, high) for name in names}
    return write_run(path, {name: found for name, found in sets.items() if found.num_tokens})
