"""The first phase of `prepare`: parts of the input, tokenised once, as sorted runs on disk.

Owns how the input is cut into parts, and the note of each: what was counted in it, and its runs.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ellama_jax.core.paths import as_path, write_whole
from ellama_jax.corpus.documents import is_compressed, listing_documents, read_part
from ellama_jax.tokens.shuffle import Run, Unsorted, order_keys, write_run
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.tokens.windows import frame_documents, window_set_name

# What a worker holds: the text of a part is as long as its lines allow, a run is cut off.
PART_BYTES = (2**20, 2**26)  # of input: the least and the most; in between 1/64 of all
RUN_TOKENS = 2**24
COUNTS = ("documents", "tokens", "bytes", "words")
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1024, 2**19


class Input(NamedTuple):
    """One file of the input."""

    path: str
    name: str
    is_listings: bool
    sha256: str
    num_bytes: int


class Part(NamedTuple):
    """What is tokenised at once: ranges of bytes of files, (input, start, stop)."""

    number: int
    ranges: tuple[tuple[Input, int, int | None], ...]
    num_bytes: int


class Settings(NamedTuple):
    """What decides, with the input, every byte of the sets."""

    tokenizer_dir: str
    fingerprint: str
    window_length: int
    seed: int
    by_source: bool


def cut_parts(inputs: Iterable[Input]) -> list[Part]:
    """Cuts the input into parts: pieces of large files, several small ones together."""
    inputs = list(inputs)
    least, most = PART_BYTES
    size = min(most, max(least, sum(item.num_bytes for item in inputs) // 64))
    parts: list[Part] = []
    ranges: list[tuple[Input, int, int | None]] = []
    room = size
    for item in inputs:
        for start, stop in _ranges(item, size):
            ranges.append((item, start, stop))
            room -= (item.num_bytes if stop is None else stop) - start
            if room <= 0:
                parts.append(Part(len(parts), tuple(ranges), size - room))
                ranges, room = [], size
    if ranges:
        parts.append(Part(len(parts), tuple(ranges), size - room))
    return parts


def _ranges(item: Input, size: int) -> list[tuple[int, int | None]]:
    if item.is_listings or is_compressed(item.path) or item.num_bytes <= size:
        return [(0, None)]
    starts = range(0, item.num_bytes, size)
    return [(start, min(start + size, item.num_bytes)) for start in starts]


@functools.cache
def _tokenizer(directory: str, fingerprint: str) -> Tokenizer:
    tokenizer = load_tokenizer(directory)
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(f"tokenizer {directory}: must not change meanwhile, got another one.")
    return tokenizer


def tokenise_part(job: tuple[Part, Settings, str, str]) -> None:
    """Writes the runs of a part and its note: {runs, tallies}.

    Args:
        job: the part, the settings, how its runs' paths begin, and the note's path.
    """
    part, settings, runs, note = job
    tokeniser = _Tokeniser(settings, runs)
    for item, start, stop in part.ranges:
        tokeniser.take_file(item, start, stop)
    tokeniser.finish()
    tallies = list(tokeniser.tallies.values())
    write_whole(as_path(note), json.dumps({"runs": tokeniser.runs, "tallies": tallies}))


class _Tokeniser:
    """Turns documents into runs whose paths begin like `prefix`, and counts."""

    def __init__(self, settings: Settings, prefix: str):
        self.tallies: dict[str, dict] = {}
        self.runs: list[Run] = []
        self._settings, self._prefix = settings, prefix
        self._tokenizer = _tokenizer(settings.tokenizer_dir, settings.fingerprint)
        self._unsorted: dict[str, Unsorted] = {}

    def take_file(self, item: Input, start: int, stop: int | None) -> None:
        """Takes the documents of a range of a file."""
        batch, characters = [], 0
        for place, document in _read(item, start, stop, self._settings.seed):
            batch.append((place, document))
            characters += len(document["text"])
            if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                self._take(item, batch)
                batch, characters = [], 0
        self._take(item, batch)

    def finish(self) -> None:
        """Writes what is still in memory."""
        if self._unsorted:
            path = as_path(f"{self._prefix}-{len(self.runs)}.run")
            self.runs.append(write_run(path, self._unsorted))
        self._unsorted = {}

    def _take(self, item: Input, batch: list[tuple[int, dict]]) -> None:
        all_ids = self._tokenizer.encode_batch([document["text"] for _, document in batch])
        members: dict[str, list[int]] = {}
        for index, (_, document) in enumerate(batch):
            members.setdefault(self._set_of(document), []).append(index)
        for name, indices in members.items():
            try:
                ids = [all_ids[index] for index in indices]
                tokens, lengths = frame_documents(ids, self._tokenizer)
            except ValueError as error:
                raise ValueError(f"{item.path}: {error}") from error
            places = [batch[index][0] for index in indices]
            keys = order_keys(self._settings.seed, item.sha256, places)
            self._unsorted.setdefault(name, Unsorted()).add(keys, lengths, tokens)
            self._count(name, item, [batch[index][1] for index in indices], lengths)
        if sum(found.num_tokens for found in self._unsorted.values()) >= RUN_TOKENS:
            self.finish()

    def _set_of(self, document: dict) -> str:
        key = set_key(document, self._settings)
        name = window_set_name(*key)
        if name not in self.tallies:
            tally = {"name": name, "key": list(key), "files": {}, "by_source": {}}
            self.tallies[name] = tally
        elif self.tallies[name]["key"] != list(key):
            raise ValueError(same_name(name, self.tallies[name]["key"], key))
        return name

    def _count(
        self, name: str, item: Input, documents: Sequence[dict], lengths: np.ndarray
    ) -> None:
        tally = self.tallies[name]
        tally["files"][item.name] = tally["files"].get(item.name, 0) + len(documents)
        for document, length in zip(documents, lengths.tolist(), strict=True):
            text = document["text"]
            counts = tally["by_source"].setdefault(document["source"], dict.fromkeys(COUNTS, 0))
            counts["documents"] += 1
            counts["tokens"] += length
            counts["bytes"] += len(text.encode("utf-8"))
            counts["words"] += len(text.split())


def _read(item: Input, start: int, stop: int | None, seed: int) -> Iterable[tuple[int, dict]]:
    if item.is_listings:
        return enumerate(listing_documents(item.path, seed))
    return read_part(item.path, start, stop)


def set_key(document: dict, settings: Settings) -> tuple[str, str, str | None]:
    source = document["source"] if settings.by_source else None
    return document["domain"], document["language"], source


def same_name(name: str, first: Sequence, second: Sequence) -> str:
    return (
        f"documents: set names must differ, got {name} for both {tuple(first)} and "
        f"{tuple(second)}; rename the source."
    )
