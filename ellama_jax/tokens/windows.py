"""Token windows: documents packed into rows of one length, on disk and back.

Owns the directories of shards with their manifests, on a disk or in a bucket. A shard is a `.npy` file
of `record_type`, so `numpy.load` opens it, and a window is one range of it with its checksum. Which documents share a window is
tokens/packing.py's, what a window's tokens mean for training is tokens/features.py's, and mixing and
batching is tokens/loader.py's.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ellama_jax
from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import (
    as_path,
    file_sizes,
    is_remote,
    name_inside,
    open_whole,
    read_if_there,
    read_range,
    read_ranges,
    remove_left_over,
    remove_tree,
    replace_directory,
    write_whole,
)
from ellama_jax.tokens.features import segments as segments
from ellama_jax.tokens.features import shift_within_documents as shift_within_documents
from ellama_jax.tokens.features import to_features as to_features
from ellama_jax.tokens.packing import PADDING as PADDING
from ellama_jax.tokens.packing import fill_windows, plan_windows
from ellama_jax.tokens.tokenizer import Tokenizer

MANIFEST_FILE = "manifest.json"

_MAX_SHARD_BYTES = 2**28
_SHARD_NAME = re.compile(r"windows-\d{5,}-of-\d{5,}\.npy")
_CRC_BYTES = 4


@dataclass(frozen=True)
class Manifest:
    """What a window set holds; manifest.json beside the shards, written last.

    Attributes:
        name: `<domain>-<language>` or `<domain>-<language>-<source>`.
        domain, language, source: what the name is made of; source may be None.
        tokenizer_fingerprint, vocab_size, bos_id, eos_id: of the tokenizer that made the ids.
        window_length: tokens in a window, padding included.
        num_windows, num_documents: documents count once, also where they were split.
        num_tokens: all that is not padding, BOS and EOS included.
        num_padding: num_windows * window_length - num_tokens.
        num_split_documents: documents longer than a window.
        seed: of the shuffles.
        content_sha256: over the shards' sha256 in order; the identity of the set.
        sources: [{name, sha256, documents}], the files the documents came from.
        shards: [{name, records, bytes, sha256}]; sha256 is over the bytes of the windows.
        command, version: what wrote the set.
        num_bytes, num_words: of the documents' text, in UTF-8 and between white space; None where
            only tokens were known.
        by_source: document source -> {documents, tokens, bytes, words}; BOS and EOS counted.
        run: {sha256, sets}: over everything that decides the bytes, and the names of all sets that
            the run of `ellama prepare` wrote.
    """

    name: str
    domain: str
    language: str
    source: str | None
    tokenizer_fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    window_length: int
    num_windows: int
    num_documents: int
    num_tokens: int
    num_padding: int
    num_split_documents: int
    seed: int
    content_sha256: str
    sources: list[dict]
    shards: list[dict]
    command: str
    version: str
    num_bytes: int | None = None
    num_words: int | None = None
    by_source: dict | None = None
    run: dict | None = None


class WindowSet:
    """Random access to the windows of a finished set.

        windows = WindowSet("data/ecommerce-de")
        windows.manifest.num_tokens, len(windows), windows[0]    # [window_length] uint32

    Safe to read from several threads.
    """

    def __init__(self, windows_dir: str | os.PathLike, tokenizer_fingerprint: str | None = None):
        """Opens the set and checks it against its manifest.

        Args:
            windows_dir: as `write_windows` made it.
            tokenizer_fingerprint: the set must have been made by this tokenizer; None accepts any.

        Raises:
            ValueError: if the manifest is missing or broken, a shard is missing or has another
                size, the counts contradict each other, or the tokenizer is another one.
        """
        self.path = as_path(windows_dir)
        self.manifest = read_manifest(self.path)
        if tokenizer_fingerprint not in (None, self.manifest.tokenizer_fingerprint):
            raise ValueError(
                f"windows {self.path}: tokenizer_fingerprint must be that of the model, "
                f"{tokenizer_fingerprint[:12]}, got {self.manifest.tokenizer_fingerprint[:12]}; "
                "prepare the windows again with the tokenizer beside the checkpoint."
            )
        _check_shards(self.path, self.manifest)
        shards = self.manifest.shards
        # All that is held of a set: a trillion tokens are some 30,000 shards.
        self._ends = np.cumsum([shard["records"] for shard in shards])
        self._record_bytes = record_type(self.manifest.window_length).itemsize

    def __len__(self) -> int:
        return self.manifest.num_windows

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns window `index`, [window_length] uint32, read-only."""
        if not 0 <= index < len(self):
            raise IndexError(f"windows {self.path}: no window {index}, it has {len(self)}.")
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns windows as `read_windows` does."""
        return read_windows([(self, index) for index in indices])

    def locate(self, index: int) -> tuple[str, int, int]:
        """Says where the record of window `index` lies: its shard, first byte and the one after."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard, after = self.manifest.shards[number], int(self._ends[number]) - int(index)
        start = shard["bytes"] - after * self._record_bytes
        return shard["name"], start, start + self._record_bytes


def read_windows(places: Sequence[tuple[WindowSet, int]]) -> list[np.ndarray]:
    """Reads windows of any sets, those in a bucket all at once.

    Args:
        places: a set and the number of a window in it, each.

    Returns:
        The windows, [window_length] uint32 each, read-only.

    Raises:
        ValueError: naming set, window and shard, if its checksum is not that of the tokens.
        OSError: if a shard cannot be read.
    """
    ranges = []
    for windows, index in places:
        name, start, stop = windows.locate(index)
        ranges.append((f"{windows.path}/{name}", start, stop))
    records = read_ranges(ranges)
    # What was damaged on its way here is whole the second time.
    damaged = [number for number, record in enumerate(records) if not _is_sound(record)]
    again = read_ranges([ranges[number] for number in damaged])
    for number, record in zip(damaged, again, strict=True):
        if not _is_sound(record):
            windows, index = places[number]
            raise ValueError(
                f"windows {windows.path}: window {index} is damaged: in {windows.locate(index)[0]} "
                "it must have the checksum beside it, got another one; copy the shard again or "
                "prepare the set again."
            )
        records[number] = record
    return [np.frombuffer(r, "<u4", len(r) // 4 - 1) for r in records]


def read_rows(places: Sequence[tuple[WindowSet, int]], seq_len: int) -> dict[str, np.ndarray]:
    """Reads rows of any sets as a batch, those in a bucket all at once.

    Args:
        places: a set and the number of a row in it, each; a window has window_length / seq_len rows.
        seq_len: tokens in a row.

    Returns:
        What `to_features` makes of them, [len(places), seq_len] each.

    Raises:
        ValueError, OSError: as `read_windows`.
    """
    parts = [divmod(row, windows.manifest.window_length // seq_len) for windows, row in places]
    found = read_windows([(s, window) for (s, _), (window, _) in zip(places, parts, strict=True)])
    rows = []
    for tokens, (windows, _), (_, part) in zip(found, places, parts, strict=True):
        ends = {"eos_id": windows.manifest.eos_id, "bos_id": windows.manifest.bos_id}
        rows.append(to_features(tokens[part * seq_len : (part + 1) * seq_len], **ends))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _is_sound(record: bytes) -> bool:
    tokens, crc = memoryview(record)[:-_CRC_BYTES], record[-_CRC_BYTES:]
    return zlib.crc32(tokens) == int.from_bytes(crc, "little")


def record_type(window_length: int) -> np.dtype:
    """Returns the type of a shard's elements: a window and its CRC-32, in little-endian.

    >>> record_type(8192)
    dtype([('tokens', '<u4', (8192,)), ('crc32', '<u4')])
    """
    return np.dtype([("tokens", "<u4", (window_length,)), ("crc32", "<u4")])


def write_windows(
    dst: str | os.PathLike,
    documents: Iterable[Sequence[int]],
    *,
    tokenizer: Tokenizer,
    window_length: int,
    domain: str,
    language: str,
    source: str | None = None,
    seed: int,
    sources: Sequence[dict],
    command: str,
    overwrite: bool = False,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> Manifest:
    """Packs tokenised documents and writes them as a window set.

    Documents and then windows are shuffled over the whole set. Nothing exists under `dst` until
    the set is complete; an interrupted write leaves at most a hidden sibling, in a bucket shards
    without a manifest, which the next one removes.

    Args:
        dst: directory of the set, on a disk or in a bucket.
        documents: ids of each document, without BOS and EOS; held in memory, 4 bytes a token.
        tokenizer: what made the ids.
        window_length: tokens in a window.
        domain, language, source: of every document in the set.
        seed: of the shuffles; equal arguments give equal bytes.
        sources: [{name, sha256, documents}] for the manifest.
        command: for the manifest.
        overwrite: replace a finished set at `dst`.
        max_shard_bytes: size at which a new shard begins, checksums not counted.

    Returns:
        The manifest.

    Raises:
        ValueError: if `dst` exists, there is no document, or a document is empty or holds ids
            that are not ordinary tokens of the tokenizer.
    """
    dst = as_path(dst)
    check_absent(dst, overwrite)
    window_set_name(domain, language, source)
    tokens, lengths = frame_documents(list(documents), tokenizer)
    plan = plan_windows(lengths, window_length, seed)
    partial = dst if is_remote(dst) else dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    remove_set(partial)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        windows_per_shard = max(1, max_shard_bytes // (4 * window_length))
        windows = fill_windows(tokens, plan)
        shards = _write_shards(partial, windows, plan.num_windows, windows_per_shard)
        manifest = make_manifest(
            tokenizer, shards, window_length=window_length, domain=domain, language=language,
            source=source, num_documents=len(lengths), num_tokens=len(tokens),
            num_split_documents=int(np.sum(lengths > window_length)), seed=seed,
            sources=list(sources), command=command,
        )  # fmt: skip
        finish_set(partial, manifest)
        move_into_place(partial, dst)
    finally:
        if partial != dst:
            remove_tree(partial)
    return manifest


def frame_documents(
    documents: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Puts BOS and EOS around documents and lays them end to end.

    Args:
        documents: ids of each document, without BOS and EOS.
        tokenizer: what made the ids.

    Returns:
        `tokens` [N] uint32 and `lengths` [documents] int64, BOS and EOS counted.

    Raises:
        ValueError: if there is no document, or one is empty or holds ids that are not ordinary
            tokens of the tokenizer.
    """
    if not documents:
        raise ValueError("documents: must be at least one, got none.")
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    ids = np.fromiter(itertools.chain.from_iterable(documents), dtype=np.int64, count=lengths.sum())
    _check_ids(ids, lengths, tokenizer)
    bos = 0 if tokenizer.bos_id is None else 1
    lengths += bos + 1
    ends = np.cumsum(lengths)
    ordinary = np.ones(ends[-1], dtype=bool)
    tokens = np.empty(ends[-1], dtype=np.uint32)
    for places, token in ((ends - 1, tokenizer.eos_id), (ends - lengths, tokenizer.bos_id))[
        : 1 + bos
    ]:
        ordinary[places] = False
        tokens[places] = token
    tokens[ordinary] = ids
    return tokens, lengths


def write_shard(path: str | os.PathLike, windows: Iterable[np.ndarray]) -> dict:
    """Writes windows, [window_length] uint32 each and at least one, as a shard, whole or not at all.

    Args:
        path: of the file, on a disk or in a bucket.
        windows: read once, one at a time.

    Returns:
        {name, records, bytes, sha256} for the manifest.

    Raises:
        OSError: if the file cannot be written.
    """
    path, digest, length, records = as_path(path), hashlib.sha256(), 0, 0
    with open_whole(path) as file:
        for window in windows:
            if not records:
                length = len(window)
                file.write(_shard_header(length, 0))
            tokens = window.astype("<u4").tobytes()
            digest.update(tokens)
            file.write(tokens + zlib.crc32(tokens).to_bytes(_CRC_BYTES, "little"))
            records += 1
        assert records, f"{path}: a shard must hold a window"
        size = file.tell()
        file.seek(0)
        header = _shard_header(length, records)
        file.write(header)
        assert size == len(header) + records * record_type(length).itemsize, path
    return {"name": path.name, "records": records, "bytes": size, "sha256": digest.hexdigest()}


def _shard_header(window_length: int, records: int) -> bytes:
    # NumPy leaves room for the first axis to grow, so its length does not depend on `records`.
    header = io.BytesIO()
    described = np.lib.format.dtype_to_descr(record_type(window_length))
    np.lib.format.write_array_header_1_0(
        header, {"descr": described, "fortran_order": False, "shape": (records,)}
    )
    return header.getvalue()


def make_manifest(
    tokenizer: Tokenizer, shards: list[dict], *, window_length: int, num_tokens: int, **fields
) -> Manifest:
    """Returns the manifest of shards that `write_shard` wrote; `fields` are further ones of it."""
    num_windows = sum(shard["records"] for shard in shards)
    digests = "".join(shard["sha256"] for shard in shards)
    return Manifest(
        name=window_set_name(fields["domain"], fields["language"], fields["source"]),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        window_length=window_length,
        num_windows=num_windows,
        num_tokens=num_tokens,
        num_padding=num_windows * window_length - num_tokens,
        content_sha256=hashlib.sha256(digests.encode()).hexdigest(),
        shards=shards,
        version=ellama_jax.__version__,
        **fields,
    )


def finish_set(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest beside the shards, which makes them a set.

    Raises:
        ValueError: if the shards are not those of the manifest.
    """
    directory = as_path(directory)
    _check_counts(directory / MANIFEST_FILE, manifest)
    _check_shards(directory, manifest)
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    write_whole(directory / MANIFEST_FILE, text + "\n")


def check_absent(dst: str | os.PathLike, overwrite: bool) -> None:
    """Refuses a destination that exists, except a finished set with `overwrite`.

    Raises:
        ValueError: if it would have to be overwritten. What is not a window set is never removed.
    """
    dst = as_path(dst)
    is_set = (dst / MANIFEST_FILE).is_file()
    if is_set and not overwrite:
        raise ValueError(
            f"windows {dst}: must not exist yet, got a finished set; pass --overwrite to replace "
            "it."
        )
    if not is_set and _holds_other_files(dst):
        raise ValueError(
            f"windows {dst}: must be a new directory or a window set, got other files."
        )


def _holds_other_files(dst: Path) -> bool:
    if not dst.exists():
        return False
    # In a bucket an interrupted write leaves its shards.
    return not dst.is_dir() or not all(
        is_remote(dst) and _SHARD_NAME.fullmatch(path.name) for path in dst.iterdir()
    )


def remove_set(directory: str | os.PathLike) -> None:
    """Removes a set as far as it is there, its manifest first: at no time is it a part of itself."""
    directory = as_path(directory)
    (directory / MANIFEST_FILE).unlink(missing_ok=True)
    remove_tree(directory)


def window_set_name(domain: str, language: str, source: str | None = None) -> str:
    """Returns the name of the set of a domain, a language and, where given, one source.

    Raises:
        ValueError: if a part could not stand in a directory's name.

    >>> window_set_name("ecommerce", "de"), window_set_name("general", "en", "debian")
    ('ecommerce-de', 'general-en-debian')
    """
    parts = {"domain": domain, "language": language, "source": source}
    for part, text in parts.items():
        optional = part == "source" and text is None
        if not optional and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(text)):
            raise ValueError(f"{part}: must be letters, digits and ._- only, got {text!r}.")
    return "-".join(text for text in parts.values() if text is not None)


def find_sets(windows_dir: str | os.PathLike, name: str) -> list[Path]:
    """Returns the finished sets directly below a directory, on a disk or in a bucket, sorted.

    Args:
        windows_dir: the directory.
        name: what it was given for, for the error.

    Raises:
        ValueError: if it is no directory.
    """
    directory = as_path(windows_dir)
    if not directory.is_dir():
        raise ValueError(f"{name}: must be a directory, got {directory}.")
    # Hidden directories are sets that are being written.
    places = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    return [path for path in places if read_if_there(path / MANIFEST_FILE) is not None]


def read_manifest(windows_dir: str | os.PathLike) -> Manifest:
    """Reads the manifest of a window set.

    Raises:
        ValueError: if there is none (an unfinished set), it is not ours, or its counts do not fit.
    """
    directory = as_path(windows_dir)
    path = directory / MANIFEST_FILE
    content = read_if_there(path)
    if content is None:
        raise ValueError(
            f"windows {directory}: must hold {MANIFEST_FILE}, got none; a set without it was never "
            "finished: prepare it again."
        )
    try:
        manifest = Manifest(**parse_json(content))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: must be a window set's manifest, got {error}.") from error
    _check_counts(path, manifest)
    for shard in manifest.shards:
        name_inside(directory, shard["name"], MANIFEST_FILE)
    return manifest


def _check_counts(path: Path, manifest: Manifest) -> None:
    places = manifest.num_windows * manifest.window_length
    records = sum(shard["records"] for shard in manifest.shards)
    fits = places == manifest.num_tokens + manifest.num_padding and places > 0
    if not fits or records != manifest.num_windows:
        raise ValueError(
            f"{path}: counts must fit together, got {manifest.num_windows} windows of "
            f"{manifest.window_length}, {records} records, {manifest.num_tokens} tokens and "
            f"{manifest.num_padding} padding; prepare the set again."
        )


def _check_shards(directory: Path, manifest: Manifest) -> None:
    sizes = file_sizes(directory)
    for shard in manifest.shards:
        size = sizes.get(shard["name"])
        if size != shard["bytes"]:
            found = "no such file" if size is None else f"{size}"
            raise ValueError(
                f"windows {directory}: {shard['name']} must have {shard['bytes']} bytes, "
                f"got {found}; was it copied completely?"
            )
    # One read says whether they can be read at all, before a run does anything else.
    first = manifest.shards[0]
    header = _shard_header(manifest.window_length, first["records"])
    if read_range(f"{directory}/{first['name']}", 0, len(header)) != header:
        raise ValueError(
            f"windows {directory}: {first['name']} must be a .npy file of {first['records']} "
            f"windows of {manifest.window_length} tokens, got something else; prepare the set "
            "again."
        )


def _check_ids(ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer) -> None:
    """Names the first document whose ids are no text's; `ids` holds all of them end to end."""
    if not lengths.all():
        raise ValueError(f"document {np.argmin(lengths)}: must hold tokens, got none.")
    outside = (ids < 0) | (ids >= tokenizer.vocab_size)
    wrong = outside | (ids == tokenizer.eos_id)
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    number = int(np.searchsorted(np.cumsum(lengths), first, side="right"))
    if outside[first]:
        raise ValueError(
            f"document {number}: ids must be in [0, {tokenizer.vocab_size}), got {ids[first]}; was "
            "it made by another tokenizer?"
        )
    raise ValueError(
        f"document {number}: must not hold EOS ({tokenizer.eos_id}), which ends documents in a "
        "window; encode texts with tokens/tokenizer.py."
    )


def _write_shards(
    directory: Path, windows: Iterator[np.ndarray], num_windows: int, windows_per_shard: int
) -> list[dict]:
    num_shards = -(-num_windows // windows_per_shard)
    return [
        write_shard(
            directory / shard_name(number, num_shards), itertools.islice(windows, windows_per_shard)
        )
        for number in range(num_shards)
    ]


def shard_name(number: int, num_shards: int) -> str:
    """Returns the file name of a shard."""
    return f"windows-{number:05d}-of-{num_shards:05d}.npy"


def move_into_place(partial: Path, dst: Path) -> None:
    """Renames a finished set to `dst`, in place of one that is there, unless that is done.

    In a bucket nothing can be renamed: a set is written at `dst` itself, and nothing is left to do.
    """
    if is_remote(dst):
        assert partial == dst, f"{partial} cannot be renamed to {dst}"
        return
    if partial.exists():
        replace_directory(partial, dst)
    remove_left_over(dst)
