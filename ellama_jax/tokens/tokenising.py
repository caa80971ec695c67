"""The first phase of `prepare`: parts of the input, tokenised once, as sorted runs on disk.

Owns how the input is cut into parts, and the tally of each. A part's directory is whole or absent.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ellama_jax.core.paths import write_whole
from ellama_jax.corpus.documents import is_compressed, listing_documents, read_part
from ellama_jax.tokens.shuffle import Run, order_keys
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.tokens.windows import frame_documents, window_set_name
from ellama_jax.tokens.workdir import replace_directory

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


def is_tokenised(part: Part, directory: Path) -> bool:
    """Tells whether a part's runs are there."""
    return (directory / _part_name(part)).exists()


def read_tallies(part: Part, directory: Path) -> list[dict]:
    """Returns what was counted in a part, one tally a set: {name, key, files, by_source, runs}."""
    return json.loads((directory / _part_name(part) / "tally.json").read_text(encoding="utf-8"))


def tokenise_part(job: tuple[Part, Settings, str]) -> list[dict]:
    """Writes the runs of a part and returns its tallies."""
    part, settings, directory = job
    final = Path(directory) / _part_name(part)
    partial = final.with_name(f".{final.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tokeniser = _Tokeniser(settings, partial)
    for item, start, stop in part.ranges:
        tokeniser.take_file(item, start, stop)
    tokeniser.finish()
    for tally in tokeniser.tallies.values():
        tally["runs"] = [f"{final.name}/{name}" for name in tally["runs"]]
    write_whole(partial / "tally.json", json.dumps(list(tokeniser.tallies.values())))
    replace_directory(partial, final)
    return read_tallies(part, Path(directory))


def _part_name(part: Part) -> str:
    return f"{part.number:06d}"


class _Tokeniser:
    """Turns documents into runs in a directory, and counts."""

    def __init__(self, settings: Settings, directory: Path):
        self.tallies: dict[str, dict] = {}
        self._settings, self._directory = settings, directory
        self._tokenizer = _tokenizer(settings.tokenizer_dir, settings.fingerprint)
        self._runs: dict[str, Run] = {}
        self._num_runs = 0

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
        for name, run in self._runs.items():
            file_name = f"{name}.{self._num_runs}.run"
            run.write(self._directory / file_name)
            self.tallies[name]["runs"].append(file_name)
        self._runs, self._num_runs = {}, self._num_runs + 1

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
            self._runs.setdefault(name, Run()).add(keys, lengths, tokens)
            self._count(name, item, [batch[index][1] for index in indices], lengths)
        if sum(run.num_tokens for run in self._runs.values()) >= RUN_TOKENS:
            self.finish()

    def _set_of(self, document: dict) -> str:
        key = set_key(document, self._settings)
        name = window_set_name(*key)
        if name not in self.tallies:
            tally = {"name": name, "key": list(key), "files": {}, "by_source": {}, "runs": []}
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
