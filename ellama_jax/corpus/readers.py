"""Raw records of any shop or corpus, from files of many kinds, in parts that can be read at once.

Owns finding the files, cutting them into parts, and reading a part as records that are plain Python
values; what cannot be read comes as a `BadRecord` with its place and the reason, and never ends the
reading. What the fields of a record mean is said by corpus/mapping.py.

| format | files | a part | place of a record |
|---|---|---|---|
| jsonl | .jsonl .ndjson, .json unless it is one array | a range of bytes | `f.jsonl@byte 120` |
| json | .json that is one array | the file | `f.json:3`, from 1 |
| csv, tsv | .csv .tsv | the file | `f.csv:7`, its line |
| parquet | .parquet | row groups | `f.parquet:3`, its row from 1 |
| tfrecord | .tfrecord, of tf.train.Example | the file | `f.tfrecord:3`, from 1 |
| tfds | `name/config:1.0.0[split]` | a shard | `name/config:1.0.0[split]:3`, from 1 |

All files but Parquet may be compressed (.gz .bz2 .xz .zst .zlib); bytes are then counted in what
was compressed, and the file is one part. A record's place does not depend on how its file was cut.
"""

import bz2
import codecs
import contextlib
import glob
import io
import json
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ellama_jax.core.limits import EXPANDED_BLOCK_BYTES, EXPANDED_BYTES, EXPANDED_TIMES
from ellama_jax.core.paths import as_path, file_bytes, is_remote
from ellama_jax.corpus.records import (
    BadRecord,
    Damaged,
    Record,
    bad_record,
    plain_value,
    read_csv,
    read_json_array,
    read_json_lines,
    reason_of,
)

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "tfrecord", "tfds")
PART_BYTES = 2**26
_BATCH_BYTES = 2**23
_BLOCK_BYTES = 2**16
# zstd says at once what it has expanded, 128 KiB of as little as 4 bytes.
_PACKED_BYTES = {"zstd": 2**11}
_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".tfrecord": "tfrecord", ".tfrecords": "tfrecord",
}  # fmt: skip
_COMPRESSIONS = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zlib": "zlib"}
_SHARD = re.compile(r"-\d+-of-\d+")
_TFDS_NAME = re.compile(r"([^\[\]]+)\[(.+)\]")


@dataclass(frozen=True)
class Part:
    """A piece of the input that one worker reads.

    Attributes:
        path: a file, or the name of a TFDS dataset with its split in brackets.
        format: one of `FORMATS`, but "json" only for a file that is one array.
        compression: "none", "gz", "bz2", "xz", "zstd" or "zlib".
        start, stop: bytes (jsonl), row groups (parquet) or examples (tfds); `stop` None is the end.
        data_dir: of a TFDS dataset.
    """

    path: str
    format: str
    compression: str = "none"
    start: int = 0
    stop: int | None = None
    data_dir: str | None = None


def find_parts(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    format: str = "auto",
    *,
    compression: str = "auto",
    part_bytes: int = PART_BYTES,
    data_dir: str | None = None,
) -> list[Part]:
    """Finds the files of an input and cuts them into parts; reads no records.

    Args:
        paths: files or globs (`*`, `?`, `[a-z]`, `**` for any folders), local or in a bucket; for
            "tfds", names of datasets.
        format: one of `FORMATS`, or "auto": by suffix, which may stand before `-00000-of-00005`.
        compression: "none", "gz", "bz2", "xz", "zstd", "zlib", or "auto": by suffix.
        part_bytes: about how long a part is to be where a file can be cut.
        data_dir: where TFDS datasets were prepared; TFDS's own place by default.

    Returns:
        The parts, by path and position; each file once, even where globs overlap.

    Raises:
        ValueError: for a glob without a match, a missing file, a directory, an unknown suffix,
            format, compression or dataset.

    >>> find_parts("no/such/place/*.jsonl")
    Traceback (most recent call last):
        ...
    ValueError: no/such/place/*.jsonl: must match a file, got none.
    """
    _check_choice("format", format, ("auto", *FORMATS))
    _check_choice("compression", compression, ("auto", "none", *_COMPRESSIONS.values()))
    if part_bytes < 1:
        raise ValueError(f"part_bytes: must be at least 1, got {part_bytes}.")
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ValueError("paths: must name at least one file, got none.")
    if format == "tfds":
        return [part for name in dict.fromkeys(given) for part in _tfds_parts(str(name), data_dir)]
    found: dict[str, Path] = {}
    for path in (path for one in given for path in _expand(os.fspath(one))):
        found.setdefault(str(path) if is_remote(path) else os.path.abspath(path), path)
    # Every name is looked at before the first file is opened, so that a slip shows at once.
    files = [(path, *_kind(str(path), format, compression)) for _, path in sorted(found.items())]
    return [part for file in files for part in _cut(*file, part_bytes)]


def read_part(part: Part, columns: Collection[str] | None = None) -> Iterator[Record | BadRecord]:
    """Yields the records of a part in order, and what is no record where it lies.

    Memory is that of a batch or of the longest record, not of the file. Damage from which there is
    no going on, such as a compressed file that was cut off, is the last thing yielded.

    Args:
        part: from `find_parts`.
        columns: of Parquet files: read these only, as far as they are there.

    Raises:
        OSError: if the file cannot be reached (any more).
    """
    try:
        if part.format == "parquet":
            yield from _read_parquet(part, columns)
        elif part.format == "tfrecord":
            yield from _read_tfrecord(part)
        elif part.format == "tfds":
            yield from _read_tfds(part)
        else:
            with _open(part) as file:
                yield from _read_text(part, file)
    except Damaged as error:
        yield bad_record(f"{part.path}@end", f"{error}; the rest of the file was not read", b"")


def bad_to_json(bad: BadRecord) -> str:
    r"""Returns a bad record as one line of a dead-letter file, without the line's end.

    >>> bad_to_json(BadRecord("a.jsonl@byte 0", "must be JSON", "{'é"))
    '{"place": "a.jsonl@byte 0", "reason": "must be JSON", "raw": "{\'é"}'
    """
    return json.dumps(bad._asdict(), ensure_ascii=False)


# --- finding and cutting -------------------------------------------------------------------------


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: must be one of {', '.join(choices)}, got {value!r}.")


def _expand(pattern: str) -> list[Path]:
    """Returns the files that a path or glob names."""
    path = as_path(pattern)
    if path.is_file():  # whatever its name looks like
        return [path]
    if path.is_dir():
        raise ValueError(f"{pattern}: must be a file, got a directory; name its files, as in "
                         f"{pattern.rstrip('/')}/*.jsonl.")  # fmt: skip
    if not glob.has_magic(pattern):
        raise ValueError(f"{pattern}: must be a file, got nothing there.")
    if is_remote(path):
        found = _glob_remote(path)
    else:
        found = (Path(name) for name in glob.iglob(pattern, recursive=True))
    files = [file for file in found if not file.name.startswith(".") and file.is_file()]
    if not files:
        raise ValueError(f"{pattern}: must match a file, got none.")
    return files


def _glob_remote(pattern: Path) -> Iterator[Path]:
    base, rest = pattern, []
    while glob.has_magic(str(base)):
        base, rest = base.parent, [base.name, *rest]
    yield from _glob_below(base, rest)


def _glob_below(base: Path, steps: list[str]) -> Iterator[Path]:
    if "**" not in steps:
        yield from base.glob("/".join(steps))
        return
    at = steps.index("**")
    roots = base.glob("/".join(steps[:at])) if at else [base]
    for root in roots:
        for folder, _, _ in root.walk():
            # etils gives the folders of a bucket without their scheme.
            place = as_path(f"gs://{os.fspath(folder).removeprefix('gs://')}")
            yield from _glob_below(place, steps[at + 1 :] or ["*"])


def _kind(name: str, format: str, compression: str) -> tuple[str, str]:
    """Returns the format and compression of a file; "json" is not yet told from "jsonl"."""
    stem, last = os.path.splitext(_SHARD.sub("", os.path.basename(name)))
    packed = _COMPRESSIONS.get(last.lower(), "none")
    compression = packed if compression == "auto" else compression
    if format == "auto":
        suffix = os.path.splitext(stem)[1] if packed != "none" else last
        format = _SUFFIXES.get(suffix.lower())
        if format is None:
            raise ValueError(f"{name}: must end in one of {' '.join(_SUFFIXES)} (and then perhaps "
                             f"{' '.join(_COMPRESSIONS)}), got {suffix or 'no suffix'}; or name "
                             "the format.")  # fmt: skip
    if format == "parquet":
        _check_choice(f"compression of {name}, outside it", compression, ("none",))
    return format, compression


def _cut(path: Path, format: str, compression: str, part_bytes: int) -> Iterator[Part]:
    """Yields the parts of one file."""
    name = str(path)
    if format == "json":
        format = _array_or_lines(Part(name, format, compression))
    if format == "jsonl" and compression == "none":
        size = file_bytes(path)
        for start in range(0, max(size, 1), part_bytes):
            yield Part(name, format, compression, start, min(start + part_bytes, size))
    elif format == "parquet" and file_bytes(path) > part_bytes:
        for start, stop in _row_group_ranges(name, part_bytes):
            yield Part(name, format, compression, start, stop)
    else:
        yield Part(name, format, compression)


def _array_or_lines(part: Part) -> str:
    with contextlib.suppress(Damaged), _open(part) as file:
        head = file.read(_BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
        return "json" if head.startswith(b"[") else "jsonl"
    return "jsonl"


def _row_group_ranges(name: str, part_bytes: int) -> Iterator[tuple[int, int | None]]:
    import pyarrow.parquet as pq

    try:
        with as_path(name).open("rb") as file:
            metadata = pq.read_metadata(file)
    except ValueError:  # of Arrow; said when the file is read
        yield 0, None
        return
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= part_bytes or group + 1 == metadata.num_row_groups:
            yield start, group + 1
            start, size = group + 1, 0


def _tfds_parts(name: str, data_dir: str | None) -> Iterator[Part]:
    from ellama_jax.corpus.tensorflow_records import tfds_parts

    match = _TFDS_NAME.fullmatch(name)
    if not match:
        raise ValueError(f"{name}: must be a dataset with its split, as in name:1.0.0[train].")
    dataset, split = match.groups()
    for whole, start, stop in tfds_parts(dataset, split, data_dir):
        yield Part(f"{dataset}[{whole}]", "tfds", "none", start, stop, data_dir)


# --- bytes ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open(part: Part) -> Iterator[io.BufferedReader]:
    """Opens a file to be read as what was compressed; only what is read is fetched."""
    with as_path(part.path).open("rb") as file:
        if part.compression != "none":
            yield io.BufferedReader(Decompressed(file, part.compression), 2**20)
        else:
            yield io.BufferedReader(file, 2**20) if is_remote(part.path) else file


class Decompressed(io.RawIOBase):
    """The bytes that were compressed, of one or several streams laid end to end.

    Python's own readers differ in what they make of a file that ends early: one of them ends too.
    A file that expands to more than people's do is damaged (core/limits.py).
    """

    def __init__(self, file: io.BufferedIOBase, compression: str):
        self._file, self._make = file, _decompressor(compression)
        self._name, self._stream = compression, None
        self._most = () if compression == "zstd" else (EXPANDED_BLOCK_BYTES,)
        self._rest, self._ready = b"", memoryview(b"")
        self._packed, self._expanded = 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        while not self._ready:
            held = self._holds_back()
            block = b"" if held else self._rest or self._read()
            self._ready = memoryview(self._decompress(block))
            self._check_growth()
            if not (block or held or self._ready):
                if self._stream is not None:
                    raise Damaged(f"must be whole, got a {self._name} stream that ends early")
                return 0
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _read(self) -> bytes:
        block = self._file.read(_PACKED_BYTES.get(self._name, 2**14))
        self._packed += len(block)
        return block

    def _holds_back(self) -> bool:
        """Says whether the stream has more to give of what it was given."""
        return self._stream is not None and not getattr(self._stream, "needs_input", True)

    def _check_growth(self) -> None:
        self._expanded += len(self._ready)
        if self._expanded > max(EXPANDED_BYTES, EXPANDED_TIMES * self._packed):
            raise Damaged(
                f"must expand to at most {EXPANDED_TIMES} times its size, got {self._expanded:,} bytes "
                f"of {self._packed:,} packed ones"
            )

    def _decompress(self, block: bytes) -> bytes:
        self._rest = b""
        if self._stream is None:
            block = block.lstrip(b"\0")  # some programs fill the end of a file
            if not block:
                return b""
            self._stream = self._make()
        try:
            data = self._stream.decompress(block, *self._most)
        except Exception as error:  # each library has its own
            raise Damaged(f"must be {self._name}, got damage: {error}") from error
        if self._stream.eof:
            self._rest, self._stream = self._stream.unused_data, None
        elif hasattr(self._stream, "unconsumed_tail"):
            self._rest = self._stream.unconsumed_tail  # zlib's way of holding back
        return data


def _decompressor(compression: str) -> Callable[[], Any]:
    if compression == "zstd":
        import zstandard

        # zstd --long=31, as large dumps are made with.
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
    makers = {"bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}
    makers |= {"gz": lambda: zlib.decompressobj(31), "zlib": zlib.decompressobj}
    return makers[compression]


# --- one part ---------------------------------------------------------------------


def _read_text(part: Part, file: io.BufferedReader) -> Iterator[Record | BadRecord]:
    if part.format == "jsonl":
        return read_json_lines(file, part.path, part.start, part.stop)
    if part.format == "json":
        return read_json_array(file, part.path)
    return read_csv(file, part.path, "\t" if part.format == "tsv" else None)


def _read_parquet(part: Part, columns: Collection[str] | None) -> Iterator[Record | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(part) as file:
        try:
            # Arrow reads a local file itself, and does not wait for Python then.
            source = file if is_remote(part.path) else part.path
            with pq.ParquetFile(source, pre_buffer=False, buffer_size=2**20) as table:
                for first, batch in _batches(table, part, columns):
                    yield from _batch_records(part.path, first, batch)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise Damaged(f"must be Parquet, got: {_first_line(error)}") from error


def _batches(table: Any, part: Part, columns: Collection[str] | None) -> Iterator[tuple[int, Any]]:
    """Yields batches of about `_BATCH_BYTES` and the number of their first row, from 1."""
    meta = table.metadata
    stop = meta.num_row_groups if part.stop is None else part.stop
    groups = [meta.row_group(number) for number in range(part.start, stop)]
    rows = sum(group.num_rows for group in groups)
    size = sum(group.total_byte_size for group in groups)
    wanted = None if columns is None else [n for n in table.schema_arrow.names if n in columns]
    first = 1 + sum(meta.row_group(number).num_rows for number in range(part.start))
    for batch in table.iter_batches(
        batch_size=max(1, min(1024, rows * _BATCH_BYTES // max(size, 1))),
        row_groups=list(range(part.start, stop)),
        columns=wanted or None,
    ):
        yield first, batch
        first += batch.num_rows


def _batch_records(path: str, first: int, batch: Any) -> Iterator[Record | BadRecord]:
    names = batch.schema.names
    try:
        rows = list(zip(*(_column_values(column) for column in batch.columns), strict=True))
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield bad_record(f"{path}:{first}", reason_of(error), error.object)
            return
        for row in range(batch.num_rows):
            yield from _batch_records(path, first + row, batch.slice(row, 1))
        return
    for number, row in enumerate(rows, first):
        yield Record(f"{path}:{number}", dict(zip(names, row, strict=True)))


def _column_values(column: Any) -> list:
    """Returns the values of an Arrow array; `to_pylist` does the same at a third of the speed."""
    import pyarrow.types as kinds
    from pyarrow import ArrowException

    kind = column.type
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        with contextlib.suppress(ArrowException):  # to_pylist says what is no UTF-8
            return column.to_numpy(zero_copy_only=False).tolist()
    elif kinds.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False).tolist()
        return [None if value != value else value for value in values]
    elif kinds.is_integer(kind) and not column.null_count:
        return column.to_numpy().tolist()
    elif kinds.is_struct(kind):
        names = [field.name for field in kind]
        rows = zip(*map(_column_values, column.flatten()), strict=True)
        return _with_nulls(column, [dict(zip(names, row, strict=True)) for row in rows])
    elif kinds.is_list(kind) or kinds.is_large_list(kind):
        return _with_nulls(column, _list_values(column))
    return [plain_value(value) for value in column.to_pylist()]


def _list_values(column: Any) -> list[list]:
    ends = column.offsets.to_numpy().tolist()
    first = ends[0]  # not 0 in a slice
    values = _column_values(column.values.slice(first, ends[-1] - first))
    return [values[ends[n] - first : ends[n + 1] - first] for n in range(len(column))]


def _with_nulls(column: Any, values: list) -> list:
    if not column.null_count:
        return values
    there = column.is_valid().to_pylist()
    return [value if valid else None for value, valid in zip(values, there, strict=True)]


def _read_tfrecord(part: Part) -> Iterator[Record | BadRecord]:
    from ellama_jax.corpus.tensorflow_records import read_tfrecord_examples

    with _unpacked(part) as (path, damage):
        try:
            for number, fields in enumerate(read_tfrecord_examples(path), 1):
                place = f"{part.path}:{number}"
                if isinstance(fields, bytes):
                    yield bad_record(place, "must be a tf.train.Example, got other bytes", fields)
                else:
                    yield Record(place, fields)
        except ValueError as error:
            damage = damage or Damaged(f"must be TFRecord, got: {_first_line(error)}")
        if damage:
            raise damage


@contextlib.contextmanager
def _unpacked(part: Part) -> Iterator[tuple[str, Damaged | None]]:
    """Gives a plain file on a local disk, a copy if need be, and why it is not all of it, if so.

    TensorFlow has its own ways to buckets and to what is compressed, but is silent where a
    compressed file ends early.
    """
    if part.compression == "none" and not is_remote(part.path):
        yield part.path, None
        return
    with tempfile.TemporaryDirectory() as folder:
        path, damage = os.path.join(folder, "copy"), None
        with _open(part) as source, open(path, "wb") as target:
            try:
                while block := source.read1(2**20):
                    target.write(block)
            except Damaged as error:
                damage = error
        yield path, damage


def _read_tfds(part: Part) -> Iterator[Record | BadRecord]:
    from ellama_jax.corpus.tensorflow_records import read_tfds

    dataset, split = _TFDS_NAME.fullmatch(part.path).groups()
    examples = read_tfds(dataset, split, part.data_dir, part.start, part.stop)
    for number, fields in enumerate(examples, part.start + 1):
        yield Record(f"{part.path}:{number}", fields)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
