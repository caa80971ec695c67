"""An external shuffle: tokenised documents in the order of random keys, more than memory holds.

Owns the keys and the sorted runs on disk. A document's key depends on the seed, its file's content
and its place in it, and on nothing else: so neither the number of workers nor how files are cut
into parts nor their order changes which document comes where. What the order is for is
tokens/prepare.py's business.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

_KEYS = 2**64
_KEY, _TOKEN = np.dtype("<u8"), np.dtype("<u4")


class Documents(NamedTuple):
    """Documents in the order of their keys; document i is `tokens[offsets[i]:][:lengths[i]]`."""

    tokens: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


@dataclass
class Run:
    """Documents in memory, on their way to one sorted file."""

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

    def write(self, path: Path) -> None:
        """Writes the documents by ascending keys: how many, keys, ends [n] uint64, then tokens."""
        keys, lengths = np.concatenate(self.keys), np.concatenate(self.lengths)
        tokens = np.concatenate(self.tokens)
        order, ends = np.argsort(keys, kind="stable"), np.cumsum(lengths)
        starts = ends - lengths
        with path.open("wb") as file:
            file.write(np.array([len(keys)], _KEY).data)
            file.write(keys[order].astype(_KEY).data)
            file.write(np.cumsum(lengths[order]).astype(_KEY).data)
            for first in range(0, len(order), 4096):
                some = order[first : first + 4096]
                pieces = [tokens[starts[i] : ends[i]] for i in some]
                file.write(np.concatenate(pieces).astype(_TOKEN, copy=False).data)


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


def read_chunk(paths: Iterable[str | os.PathLike], chunk: int, num_chunks: int) -> Documents:
    """Reads one of `num_chunks` equal ranges of the keys from all runs; no other is touched."""
    low, high = chunk * _KEYS // num_chunks, (chunk + 1) * _KEYS // num_chunks - 1
    read = [_read_run(Path(path), low, high) for path in paths]
    keys = np.concatenate([keys for keys, _, _ in read])
    lengths = np.concatenate([lengths for _, lengths, _ in read])
    tokens = np.concatenate([tokens for _, _, tokens in read])
    # Equal keys are equal documents of files with equal content: their order does not matter.
    order = np.argsort(keys, kind="stable")
    offsets = np.cumsum(lengths) - lengths
    return Documents(tokens, offsets[order], lengths[order])


def _read_run(path: Path, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    content = np.memmap(path, dtype=np.uint8, mode="r")
    count = int(content[:8].view(_KEY)[0])
    keys = content[8 : 8 + 8 * count].view(_KEY)
    ends = content[8 + 8 * count : 8 + 16 * count].view(_KEY)
    tokens = content[8 + 16 * count :].view(_TOKEN)
    first = int(np.searchsorted(keys, np.uint64(low)))
    last = int(np.searchsorted(keys, np.uint64(high), side="right"))
    begin = int(ends[first - 1]) if first else 0
    stops = ends[first:last].astype(np.int64)
    lengths = np.diff(stops, prepend=begin)
    end = int(stops[-1]) if len(stops) else begin
    return np.array(keys[first:last]), lengths, np.array(tokens[begin:end])
