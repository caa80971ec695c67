"""The stored leaves of a checkpoint, read and written chunk by chunk with their checksums; and damage.

Knows the files that Orbax writes for an array (Zarr in an OCDBT store). What a checkpoint is made
of stands in layout.py, how it is written in checkpoint.py.

Neither Zarr nor OCDBT says when the bytes of a chunk have changed (Orbax's Zarr 3 has a checksum for
the index of a shard alone). So each process reads the chunks that it wrote once more before the step
is committed, and `checksums.json` in the item keeps the XXH3 of each; whatever reads a chunk compares.
"""

import base64
import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
import xxhash

from ellama_jax.core.paths import absolute, is_remote, write_whole
from ellama_jax.weights.lazy import Box, LazyArray, as_bits

CHECKSUMS = "checksums.json"
# Chunks that are asked for at one time; each is at most lazy.PIECE_BYTES.
_UNDER_WAY = 4


def open_item(directory: Path, names: Iterable[str]) -> dict[str, LazyArray]:
    """Opens leaves of an item.

    Args:
        directory: of the item, as `ROOT/<step>/params`.
        names: of its leaves, as `layers/attn/wq`.

    Returns:
        The leaves as stored. Reading raises a `DamagedCheckpoint` where files are damaged or a chunk
        is not what was written.
    """
    with damage_as_value_error(directory.parent):
        sums = unseal(json.loads((directory / CHECKSUMS).read_text()))
        context = _context()
        return {
            name: _leaf(directory, name, _open_zarr(directory, name, context), sums)
            for name in names
        }


def _leaf(directory: Path, name: str, store: ts.TensorStore, sums: Mapping) -> LazyArray:
    sums = sums.get(_key(name), {})
    grid = _grid(store)

    def read(box: Box) -> np.ndarray:
        with damage_as_value_error(directory.parent):
            return _read_box(store, grid, box, sums, name)

    return LazyArray(tuple(store.shape), np.dtype(store.dtype.numpy_dtype), read, grid)


def _read_box(store: ts.TensorStore, grid, box: Box, sums: Mapping[str, int], name: str):
    """Reads the chunks that a box touches, compares each and returns the box."""
    found = np.empty([part.stop - part.start for part in box], store.dtype.numpy_dtype)

    def read(index) -> ts.Future:
        at = _chunk_box(store, grid, index)
        inside = all(b.start <= a.start and a.stop <= b.stop for a, b in zip(at, box, strict=True))
        # A chunk that lies within the box is read into its place.
        whole = found[*_relative(at, box), ...] if inside else None
        target = np.empty([p.stop - p.start for p in at], found.dtype) if whole is None else whole
        write = ts.array(target, copy=False, write=True).write(store[at])
        return _Read(at, target, inside, write)

    ranges = (
        range(part.start // size, -(-part.stop // size)) if part.stop > part.start else ()
        for part, size in zip(box, grid, strict=True)
    )
    for index, (at, piece, placed) in _ahead(itertools.product(*ranges), read):
        chunk = ".".join(map(str, index)) or "0"
        if not _is_whole(piece, sums.get(chunk)):
            raise ValueError(f"chunk {chunk} of {name} differs from its checksum")
        if not placed:
            pairs = list(zip(at, box, strict=True))
            both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs]
            as_bits(found)[_relative(both, box)] = as_bits(piece)[_relative(both, at)]
    return found


@dataclasses.dataclass(frozen=True)
class _Read:
    at: Box
    target: np.ndarray
    placed: bool
    write: Any

    def result(self) -> tuple[Box, np.ndarray, bool]:
        self.write.result()
        return self.at, self.target, self.placed


def _chunk_box(store: ts.TensorStore, grid, index) -> Box:
    dims = zip(index, grid, store.shape, strict=True)
    return tuple(slice(i * size, min((i + 1) * size, whole)) for i, size, whole in dims)


def _relative(part: Iterable[slice], box: Box) -> Box:
    """Returns a part of a box counted from where the box begins."""
    pairs = zip(part, box, strict=True)
    return tuple(slice(p.start - b.start, p.stop - b.start) for p, b in pairs)


def _ahead(keys: Iterable, read: Callable[[Any], ts.Future]) -> Iterator[tuple]:
    """Yields (key, value) in order, the next values being read meanwhile."""
    waiting: deque = deque()
    for key in keys:
        waiting.append((key, read(key)))
        if len(waiting) > _UNDER_WAY:
            done, value = waiting.popleft()
            yield done, value.result()
    for done, value in waiting:
        yield done, value.result()


def _is_whole(piece: np.ndarray, expected: int | None) -> bool:
    """Compares the XXH3 (64 bits) of an array's bytes in row-major order."""
    content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
    return xxhash.xxh3_64_intdigest(content) == expected


def write_checksums(directory: Path, process: int) -> None:
    """Writes the checksums of all chunks of an item that a process wrote, once they are stored.

    Args:
        directory: of the item, not committed yet; each process has its own store in it.
        process: the number of this process.
    """
    sums: dict[str, dict[str, int]] = {}
    # Orbax's two names: the second is that of leaves of which every process has a copy.
    for own in (directory / f"ocdbt.process_{kind}{process}" for kind in ("", "replica_")):
        if not own.is_dir():
            continue
        values = ts.KvStore.open(_key_value_spec(own), context=_context()).result()
        keys = [key for key in values.list().result() if not key.endswith(b"/.zarray")]
        # A chunk is stored as it is: it is not compressed, and no chunk reaches over an edge.
        for key, read in _ahead(keys, values.read):
            name, _, chunk = key.decode().rpartition("/")
            sums.setdefault(name, {})[chunk] = xxhash.xxh3_64_intdigest(read.value)
    write_whole(directory / f"{CHECKSUMS}.{process}", json.dumps(seal(sums)))


def join_checksums(directory: Path) -> None:
    """Makes one file of those of all processes; for the one that commits the step."""
    sums: dict[str, dict[str, int]] = {}
    parts = list(directory.glob(f"{CHECKSUMS}.*"))
    for part in parts:
        for name, found in unseal(json.loads(part.read_text())).items():
            sums.setdefault(name, {}).update(found)
    write_whole(directory / CHECKSUMS, json.dumps(seal(sums)))
    for part in parts:
        part.unlink()


def damaged_chunks(directory: Path, names: Iterable[str], count=lambda size: None) -> Iterator[str]:
    """Reads all of an item and says what of it is not as it was written.

    Args:
        directory: of the item, as `ROOT/<step>/params`.
        names: of all its leaves.
        count: called with the bytes of each chunk once it is read.
    """
    try:
        leaves = open_item(directory, names)
    except DamagedCheckpoint as error:
        yield error.what
        return
    for name, leaf in leaves.items():
        counts = [-(-whole // size) for whole, size in zip(leaf.shape, leaf.grid, strict=True)]
        for index in np.ndindex(*counts):
            box = tuple(
                slice(i * size, min((i + 1) * size, whole))
                for i, size, whole in zip(index, leaf.grid, leaf.shape, strict=True)
            )
            try:
                leaf.read(box)
            except DamagedCheckpoint as error:
                yield f"{name} chunk {'.'.join(map(str, index)) or 0}: {error.what}"
            count(math.prod(part.stop - part.start for part in box) * leaf.dtype.itemsize)


def seal(content: dict) -> dict:
    """Returns a JSON object with its own checksum in it, so that `unseal` sees any change."""
    return {**content, "checksum": _seal_of(content)}


def unseal(content) -> dict:
    """Returns what was sealed.

    Raises:
        ValueError: if it is not as it was.
    """
    if not isinstance(content, dict):
        raise ValueError(f"must be a JSON object, got {content!r:.60}")
    inner = {key: value for key, value in content.items() if key != "checksum"}
    if content.get("checksum") != _seal_of(inner):
        raise ValueError("differs from its checksum")
    return inner


def _seal_of(content: dict) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def _key(name: str) -> str:
    return name.replace("/", ".")


def _key_value_spec(directory: Path) -> dict:
    place = f"{absolute(directory)}/"
    base = place if is_remote(directory) else {"driver": "file", "path": place}
    return {"driver": "ocdbt", "base": base}


def _context() -> ts.Context:
    # One for each opening: a context remembers what lay at a path, and it may have been replaced.
    return ts.Context({"cache_pool": {"total_bytes_limit": 2**26}})


def _open_zarr(directory: Path, name: str, context: ts.Context) -> ts.TensorStore:
    spec = {
        "driver": "zarr",
        "kvstore": {**_key_value_spec(directory), "path": f"{_key(name)}/"},
        # What is missing is damage; by default it would read as zeros.
        "fill_missing_data_reads": False,
    }
    return ts.open(spec, read=True, context=context).result()


def _grid(store: ts.TensorStore) -> tuple[int, ...]:
    return tuple(store.chunk_layout.read_chunk.shape or ())  # a scalar has none


def stored_shardings(directory: Path) -> dict[str, jax.NamedSharding]:
    """Returns how the leaves of an item were divided when it was saved; no device is needed.

    Args:
        directory: of the item, as `ROOT/<step>/params`.

    Returns:
        path -> sharding on an abstract mesh, of the leaves that a mesh held.
    """
    file = directory / "_sharding"
    if not file.is_file():
        return {}
    found = {}
    with damage_as_value_error(directory.parent):
        for key, text in json.loads(file.read_text()).items():
            saved = json.loads(text)
            if saved["sharding_type"] == "NamedSharding":
                path = base64.b64decode(key).decode().replace(".", "/")
                mesh = jax.sharding.AbstractMesh(tuple(saved["shape"]), tuple(saved["axis_names"]))
                spec = [tuple(a) if isinstance(a, list) else a for a in saved["partition_spec"]]
                found[path] = jax.NamedSharding(mesh, jax.P(*spec))
    return found


class DamagedCheckpoint(ValueError):
    """A step whose files cannot be read; `what` says which and why, without what to do."""

    def __init__(self, what: str, to_do: str = "use another step or make it again"):
        super().__init__(f"{what}; {to_do}.")
        self.what = what


@contextlib.contextmanager
def damage_as_value_error(step_dir: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into a `DamagedCheckpoint` that names the step."""
    # Orbax and TensorStore raise anything from KeyError to bare Exception for a damaged file.
    drop_late_reports()
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # of memory, or of another process that is gone
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.partition(" See full TensorStore")[0][:160].rstrip(".")
        raise DamagedCheckpoint(
            f"restore {step_dir}: the checkpoint is damaged or truncated ({reason})"
        ) from error


@functools.cache
def drop_late_reports() -> None:
    """Silences what the libraries say of the same failure from other threads, in tracebacks.

    After the first one the other reads or writes of a leaf still end, and report to the event loop
    that it closed; Orbax and asyncio log what was raised already.
    """
    otherwise = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            otherwise(unraisable)

    def is_new(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else ""
        return os.strerror(errno.ENOSPC) not in f"{record.getMessage()} {error}"

    sys.unraisablehook = hook
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_new)
