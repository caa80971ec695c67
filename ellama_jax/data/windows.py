"""Token windows: documents packed into rows of one length, on disk and back.

Owns the ArrayRecord directories with their manifests, and how segments, positions and targets
follow from a window's tokens. Which documents share a window is data/packing.py's; mixing and
batching for training is data/loader.py's.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python import array_record_data_source, array_record_module

import ellama_jax
from ellama_jax.data.packing import PADDING, fill_windows, plan_windows
from ellama_jax.data.tokenizer import Tokenizer
from ellama_jax.paths import local_path

MANIFEST_FILE = "manifest.json"

_MAX_SHARD_BYTES = 2**28


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
        content_sha256: over the windows' bytes in order; the identity of the set.
        sources: [{name, sha256, documents}], the files the documents came from.
        shards: [{name, records, bytes}].
        command, version: what wrote the set.
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
        self.path = local_path(windows_dir, "windows")
        self.manifest = read_manifest(self.path)
        if tokenizer_fingerprint not in (None, self.manifest.tokenizer_fingerprint):
            raise ValueError(
                f"windows {self.path}: tokenizer_fingerprint must be that of the model, "
                f"{tokenizer_fingerprint[:12]}, got {self.manifest.tokenizer_fingerprint[:12]}; "
                "prepare the windows again with the tokenizer beside the checkpoint."
            )
        self._check_shards()
        paths = [str(self.path / shard["name"]) for shard in self.manifest.shards]
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(paths)
        except RuntimeError as error:
            raise ValueError(
                f"windows {self.path}: shards must be readable, got {error}."
            ) from error
        if len(self._records) != self.manifest.num_windows:
            raise ValueError(
                f"windows {self.path}: must hold {self.manifest.num_windows} windows as its "
                f"manifest says, got {len(self._records)}; prepare the set again."
            )

    def __len__(self) -> int:
        return self.manifest.num_windows

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns window `index`, [window_length] uint32, read-only."""
        try:
            record = self._records[index]
        except RuntimeError as error:  # ArrayRecord keeps a checksum of every chunk
            raise ValueError(f"windows {self.path}: window {index} is damaged: {error}.") from error
        return np.frombuffer(record, dtype="<u4")

    def _check_shards(self) -> None:
        for shard in self.manifest.shards:
            path = self.path / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "no such file" if size is None else f"{size}"
                raise ValueError(
                    f"windows {self.path}: {shard['name']} must have {shard['bytes']} bytes, "
                    f"got {found}; was it copied completely?"
                )


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
    the set is complete; an interrupted write leaves at most a hidden sibling, which the next one
    removes.

    Args:
        dst: directory of the set.
        documents: ids of each document, without BOS and EOS; held in memory, 4 bytes a token.
        tokenizer: what made the ids.
        window_length: tokens in a window.
        domain, language, source: of every document in the set.
        seed: of the shuffles; equal arguments give equal bytes.
        sources: [{name, sha256, documents}] for the manifest.
        command: for the manifest.
        overwrite: replace a finished set at `dst`.
        max_shard_bytes: size at which a new shard begins, before compression.

    Returns:
        The manifest.

    Raises:
        ValueError: if `dst` exists, there is no document, or a document is empty or holds ids
            that are not ordinary tokens of the tokenizer.
    """
    dst = Path(dst)
    check_absent(dst, overwrite)
    name = window_set_name(domain, language, source)
    tokens, lengths = _frame_documents(documents, tokenizer)
    plan = plan_windows(lengths, window_length, seed)
    partial = dst.with_name(f".{dst.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        windows = fill_windows(tokens, plan)
        windows_per_shard = max(1, max_shard_bytes // (4 * window_length))
        shards, digest = _write_shards(partial, windows, plan.num_windows, windows_per_shard)
        manifest = Manifest(
            name=name,
            domain=domain,
            language=language,
            source=source,
            tokenizer_fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            window_length=window_length,
            num_windows=plan.num_windows,
            num_documents=len(lengths),
            num_tokens=len(tokens),
            num_padding=plan.num_windows * window_length - len(tokens),
            num_split_documents=int(np.sum(lengths > window_length)),
            seed=seed,
            content_sha256=digest,
            sources=list(sources),
            shards=shards,
            command=command,
            version=ellama_jax.__version__,
        )
        text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
        (partial / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        WindowSet(partial)  # what cannot be read back must not take its place
        _move_into_place(partial, dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def check_absent(dst: str | os.PathLike, overwrite: bool) -> None:
    """Refuses a destination that exists, except a finished set with `overwrite`.

    Raises:
        ValueError: if it would have to be overwritten. What is not a window set is never removed.
    """
    dst = local_path(dst, "windows")
    is_set = (dst / MANIFEST_FILE).is_file()
    if is_set and not overwrite:
        raise ValueError(
            f"windows {dst}: must not exist yet, got a finished set; pass --overwrite to replace "
            "it."
        )
    if not is_set and dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(
            f"windows {dst}: must be a new directory or a window set, got other files."
        )


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


def read_manifest(windows_dir: str | os.PathLike) -> Manifest:
    """Reads the manifest of a window set.

    Raises:
        ValueError: if there is none (an unfinished set), it is not ours, or its counts do not fit.
    """
    directory = local_path(windows_dir, "windows")
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(
            f"windows {directory}: must hold {MANIFEST_FILE}, got none; a set without it was never "
            "finished: prepare it again."
        )
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: must be a window set's manifest, got {error}.") from error
    places = manifest.num_windows * manifest.window_length
    records = sum(shard["records"] for shard in manifest.shards)
    if places != manifest.num_tokens + manifest.num_padding or records != manifest.num_windows:
        raise ValueError(
            f"{path}: counts must fit together, got {manifest.num_windows} windows of "
            f"{manifest.window_length}, {records} records, {manifest.num_tokens} tokens and "
            f"{manifest.num_padding} padding; prepare the set again."
        )
    return manifest


def segments(
    tokens: np.ndarray, *, eos_id: int, bos_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Derives which document each token of a window, or of a part of it, belongs to.

    A document ends at EOS; no text produces EOS (data/tokenizer.py). Where one token is both BOS
    and EOS, it begins a document if text follows it.

    Args:
        tokens: [..., T] uint32, `PADDING` where unused.
        eos_id: the id that ends a document.
        bos_id: the id that begins one; matters only where it equals `eos_id`.

    Returns:
        `segment_ids` [..., T] int32 from 1, 0 at padding, and `positions` [..., T] int32 from 0 in
        each segment.

    >>> window = np.array([1, 11, 12, 2, 1, 21, 2, PADDING], dtype=np.uint32)
    >>> segment_ids, positions = segments(window, eos_id=2)
    >>> segment_ids.tolist(), positions.tolist()
    ([1, 1, 1, 1, 2, 2, 2, 0], [0, 1, 2, 3, 0, 1, 2, 0])
    """
    tokens = np.asarray(tokens, dtype=np.uint32)
    padding = tokens == PADDING
    ends = tokens == eos_id
    if bos_id == eos_id:
        before_text = ~(ends | padding)[..., 1:]
        ends[..., :-1] &= ~before_text
    # A token's segment is 1 + the number of ends before it.
    segment_ids = np.where(padding, 0, 1 + np.cumsum(ends, axis=-1) - ends)
    index = np.arange(tokens.shape[-1])
    starts = np.zeros_like(segment_ids)
    starts[..., 1:] = np.where(ends[..., :-1], index[1:], 0)
    positions = np.where(padding, 0, index - np.maximum.accumulate(starts, axis=-1))
    return segment_ids.astype(np.int32), positions.astype(np.int32)


def shift_within_documents(
    tokens: np.ndarray, segment_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Builds next-token targets for one packed window.

    A position's target is the next token of the *same* document, so no document is trained to
    predict its neighbour's first token. Positions without such a target weigh 0.

    Args:
        tokens: [..., T] int32, documents laid end to end.
        segment_ids: [..., T] int32, document number in the window from 1; 0 is padding.

    Returns:
        `targets` [..., T] int32 and `loss_weights` [..., T] float32 (1.0 where the target counts).

    Raises:
        ValueError: if the two arrays differ in shape.

    Documents [11 12 2] and [21 2], then padding:

        >>> targets, weights = shift_within_documents([11, 12, 2, 21, 2, 0], [1, 1, 1, 2, 2, 0])
        >>> targets.tolist()
        [12, 2, 0, 2, 0, 0]
        >>> weights.tolist()
        [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    """
    tokens, segment_ids = np.asarray(tokens, np.int32), np.asarray(segment_ids, np.int32)
    if tokens.shape != segment_ids.shape:
        raise ValueError(
            f"segment_ids: must have the shape of tokens {tokens.shape}, got {segment_ids.shape}."
        )
    here, following = segment_ids[..., :-1], segment_ids[..., 1:]
    counts = np.zeros(tokens.shape, dtype=bool)
    counts[..., :-1] = (here == following) & (here != 0)
    targets = np.zeros_like(tokens)
    targets[..., :-1] = np.where(counts[..., :-1], tokens[..., 1:], 0)
    return targets, counts.astype(np.float32)


def to_features(
    tokens: np.ndarray, *, eos_id: int, bos_id: int | None = None
) -> dict[str, np.ndarray]:
    """Turns a window, or a part of it, into the arrays of a training row.

    Args:
        tokens: [..., T] uint32, `PADDING` where unused.
        eos_id, bos_id: as in the manifest.

    Returns:
        `inputs targets segment_ids positions` [..., T] int32 and `loss_weights` [..., T] float32.
        Padding has input 0, segment 0 and weight 0; id 0 inside a document is a token like others.

    >>> row = to_features(np.array([1, 0, 2, PADDING], dtype=np.uint32), eos_id=2)
    >>> {name: row[name].tolist() for name in ("inputs", "targets", "loss_weights")}
    {'inputs': [1, 0, 2, 0], 'targets': [0, 2, 0, 0], 'loss_weights': [1.0, 1.0, 0.0, 0.0]}
    """
    segment_ids, positions = segments(tokens, eos_id=eos_id, bos_id=bos_id)
    inputs = np.where(segment_ids == 0, 0, tokens).astype(np.int32)
    targets, loss_weights = shift_within_documents(inputs, segment_ids)
    return {
        "inputs": inputs,
        "targets": targets,
        "loss_weights": loss_weights,
        "segment_ids": segment_ids,
        "positions": positions,
    }


def _frame_documents(
    documents: Iterable[Sequence[int]], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    # BOS + ids + EOS of all documents in one flat array: a list of lists would take 10 x the room.
    flat, lengths = array("I"), array("q")
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for number, document in enumerate(documents):
        ids = np.asarray(document, dtype=np.int64)
        _check_document(number, ids, tokenizer)
        flat.extend(bos)
        flat.frombytes(ids.astype(np.uint32).tobytes())
        flat.append(tokenizer.eos_id)
        lengths.append(len(bos) + len(ids) + 1)
    if not lengths:
        raise ValueError("documents: must be at least one, got none.")
    return np.frombuffer(flat, dtype=np.uint32), np.frombuffer(lengths, dtype=np.int64)


def _check_document(number: int, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    if ids.ndim != 1 or ids.size == 0:
        raise ValueError(f"document {number}: must hold tokens, got shape {ids.shape}.")
    if ids.min() < 0 or ids.max() >= tokenizer.vocab_size:
        raise ValueError(
            f"document {number}: ids must be in [0, {tokenizer.vocab_size}), "
            f"got {ids.min()} to {ids.max()}; was it made by another tokenizer?"
        )
    if np.any(ids == tokenizer.eos_id):
        raise ValueError(
            f"document {number}: must not hold EOS ({tokenizer.eos_id}), which ends documents in a "
            "window; encode texts with data/tokenizer.py."
        )


def _write_shards(
    directory: Path, windows: Iterator[np.ndarray], num_windows: int, windows_per_shard: int
) -> tuple[list[dict], str]:
    num_shards = -(-num_windows // windows_per_shard)
    digest, shards = hashlib.sha256(), []
    for number in range(num_shards):
        records = min(windows_per_shard, num_windows - number * windows_per_shard)
        name = f"windows-{number:05d}-of-{num_shards:05d}.array_record"
        # One record a group: Grain reads single records, and a group is decompressed as a whole.
        writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1")
        for _ in range(records):
            record = next(windows).astype("<u4").tobytes()
            digest.update(record)
            writer.write(record)
        writer.close()
        size = (directory / name).stat().st_size
        shards.append({"name": name, "records": records, "bytes": size})
    return shards, digest.hexdigest()


def _move_into_place(partial: Path, dst: Path) -> None:
    if not (dst / MANIFEST_FILE).is_file():
        os.replace(partial, dst)
        return
    # A directory with files cannot be replaced in one step; the old set goes aside first, so at
    # no time does a mixture of both exist.
    old = dst.with_name(f".{dst.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(dst, old)
    os.replace(partial, dst)
    shutil.rmtree(old)
