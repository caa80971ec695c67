"""Records out of bytes: lines of JSON, an array of JSON, CSV, and the values of other libraries.

Owns what a record is and what makes bytes none. It opens no files: corpus/readers.py finds, cuts and
decompresses them and gives them here as open files of bytes.
"""

import codecs
import contextlib
import csv
import decimal
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ellama_jax.core.limits import CELL_CHARACTERS, RECORD_BYTES
from ellama_jax.corpus.privacy import mask_raw

_RAW_CHARACTERS = 2_000
_BLOCK_BYTES = 2**16
_SEPARATORS = re.compile(r"[\s,]*")


class Record(NamedTuple):
    """A record as it was read: where it lies, and its fields as plain values."""

    place: str
    fields: dict[str, Any]


class BadRecord(NamedTuple):
    """What could not be read: where it lies, why, and how it begins (2,000 characters at most),
    without private data."""

    place: str
    reason: str
    raw: str


class Damaged(Exception):
    """The rest of a file cannot be read; the text says why. Who reads files for users makes a ValueError of it."""


def bad_record(place: str, reason: object, raw: bytes) -> BadRecord:
    # A character has up to four bytes; what is no UTF-8 is shown as \xff.
    text = raw[: 4 * _RAW_CHARACTERS].decode("utf-8", "backslashreplace")
    # Masked before it is cut: half an address is one, too.
    return BadRecord(place, mask_raw(str(reason)), mask_raw(text)[:_RAW_CHARACTERS])


def plain_value(value: Any) -> Any:
    """Returns a value of Arrow, NumPy or TensorFlow as one of JSON.

    Dates become ISO strings, decimals floats, NaN None, Arrow's maps dicts, and bytes strings where
    they are UTF-8; other bytes, as those of a picture, stay.

    >>> plain_value({"price": decimal.Decimal("9.90"), "name": b"Tasse", "size": float("nan")})
    {'price': 9.9, 'name': 'Tasse', 'size': None}
    """
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, dict):
        return {name: plain_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(part, tuple) and len(part) == 2 for part in value):
            return {str(name): plain_value(part) for name, part in value}
        return [plain_value(part) for part in value]
    if isinstance(value, float | decimal.Decimal):
        return None if value != value else float(value)
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode("utf-8")
        return value
    for method in ("isoformat", "tolist", "to_list"):
        if hasattr(value, method):
            return plain_value(getattr(value, method)())
    return str(value)


def refuse_wide(file: io.BufferedReader) -> None:
    """Raises Damaged if a file, open at its beginning, is UTF-16 or UTF-32."""
    kind = json.detect_encoding(file.peek(4)[:4])
    if kind.startswith(("utf-16", "utf-32")):
        raise Damaged(f"must be UTF-8, got {kind[:6].upper()} (convert it with iconv)")


# --- JSON ----------------------------------------------------------------------------------------


def read_json_lines(
    file: io.BufferedReader, path: str, start: int = 0, stop: int | None = None
) -> Iterator[Record | BadRecord]:
    """Yields the records of the lines that begin in the bytes `start` to `stop` of a file.

    Args:
        file: at its beginning; it must be seekable if `start` is not 0.
        path: of the file, for places.

    Raises:
        Damaged: for UTF-16 and UTF-32 where `start` is 0; elsewhere each of its lines is bad.
    """
    constants: list[str] = []
    decode = json.JSONDecoder(parse_constant=constants.append).decode
    for at, line in _lines(file, start, stop):
        place = f"{path}@byte {at}"
        try:
            if len(line) >= RECORD_BYTES:
                raise ValueError(f"must be shorter than {RECORD_BYTES:,} bytes")
            fields = decode(line.decode("utf-8"))
            _check_fields(fields, line, constants)
        except (ValueError, RecursionError) as error:
            constants.clear()
            wide = b"\0" in line
            reason = "must be UTF-8, got zero bytes as of UTF-16" if wide else reason_of(error)
            yield bad_record(place, reason, line)
        else:
            yield Record(place, fields)


def _lines(file: io.BufferedReader, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Yields where each line begins, and the line; leaves out empty ones and the rest of long ones.

    A line belongs to the range in which it begins, so every line is in one of several ranges.
    """
    if start == 0:
        refuse_wide(file)
    at = _skip_to(file, start, stop)
    while stop is None or at < stop:
        line = file.readline(RECORD_BYTES)
        if not line:
            return
        if not line.isspace():
            yield at, line if at else line.removeprefix(codecs.BOM_UTF8)
        at += len(line)
        if len(line) == RECORD_BYTES and not line.endswith(b"\n"):
            at += _skip_line(file)


def _skip_to(file: io.BufferedReader, start: int, stop: int | None) -> int:
    """Moves to the first line that begins at `start` or later, as far as one does before `stop`."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + _skip_line(file, None if stop is None else stop - start + 1)


def _skip_line(file: io.BufferedReader, at_most: int | None = None) -> int:
    """Passes over the rest of a line, or over enough of it; returns how many bytes that were."""
    count = 0
    while at_most is None or count < at_most:
        piece = file.readline(_BLOCK_BYTES)
        count += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return count


def _check_fields(fields: Any, raw: bytes, constants: list[str]) -> None:
    """Raises a ValueError if what was decoded is no record; `constants` holds NaN and its like."""
    if constants:
        raise ValueError(f"must have numbers that JSON knows, got {constants[0]}")
    if type(fields) is not dict:
        raise ValueError(f"must be a JSON object, got {type(fields).__name__}")
    if b"\\u" in raw and (b"\\ud" in raw or b"\\uD" in raw):
        # Half a surrogate pair is valid JSON, but no text.
        json.dumps(fields, ensure_ascii=False).encode("utf-8")


def reason_of(error: Exception) -> str:
    """Words what decoding raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"must be JSON, got: {error.msg}, at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"must be UTF-8, got byte 0x{byte:02x} at byte {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return "must be text, got half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "must be nested less deeply"
    return str(error)


def read_json_array(file: io.BufferedReader, path: str) -> Iterator[Record | BadRecord]:
    """Yields the elements of a file that is one array, holding little more than one of them.

    Raises:
        Damaged: where an element's end cannot be found, or the array's.
    """
    refuse_wide(file)
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    constants: list[str] = []
    for number, (fields, source) in enumerate(_elements(text.read, constants), 1):
        raw = source.encode("utf-8", "surrogateescape")
        try:
            raw.decode("utf-8")
            _check_fields(fields, raw, constants)
        except ValueError as error:
            yield bad_record(f"{path}:{number}", reason_of(error), raw)
        else:
            yield Record(f"{path}:{number}", fields)


def _elements(read: Callable[[int], str], constants: list[str]) -> Iterator[tuple[Any, str]]:
    """Yields each element and its source; `constants` then holds its NaN and the like."""
    decode = json.JSONDecoder(parse_constant=constants.append).raw_decode
    text, at = read(_BLOCK_BYTES).lstrip(), 1
    while True:
        at = _SEPARATORS.match(text, at).end()
        if at == len(text):
            text, at = read(_BLOCK_BYTES), 0
            if not text:
                raise Damaged("must end in ], got an array that ends early")
        elif text[at] == "]":
            if text[at + 1 :].strip() or read(_BLOCK_BYTES).strip():
                raise Damaged("must be one array, got more after it")
            return
        else:
            # A number could go on in what was not read yet; an object could not.
            constants.clear()
            fields, end, flaw = _try(decode, text, at)
            if flaw and not _is_cut_off(flaw, text):
                raise Damaged(_place_flaw(flaw, text))
            whole = not flaw and end < len(text)
            more = "" if whole else read(max(_BLOCK_BYTES, len(text) - at))
            if not more and flaw:
                raise Damaged(_place_flaw(flaw, text))
            if not more:
                yield fields, text[at:end]
                at = end
                continue
            if len(text) - at > RECORD_BYTES:
                raise Damaged(f"must have elements shorter than {RECORD_BYTES:,} characters")
            text, at = text[at:] + more, 0


def _try(decode: Callable, text: str, at: int) -> tuple[Any, int, Exception | None]:
    try:
        return *decode(text, at), None
    except (ValueError, RecursionError) as error:
        return None, at, error


def _place_flaw(error: Exception, text: str) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return reason_of(error)
    around = text[max(0, error.pos - 20) : error.pos + 20].encode("utf-8", "replace").decode()
    return f"must be JSON, got: {error.msg} in {around!r}"


def _is_cut_off(error: Exception, text: str) -> bool:
    """Tells whether JSON may only be broken because there is more of it."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(text) - 16


# --- CSV -----------------------------------------------------------------------------------------


def read_csv(
    file: io.BufferedReader, path: str, delimiter: str | None = None
) -> Iterator[Record | BadRecord]:
    """Yields the rows of a table, by the names in its first row; cells are strings.

    Args:
        delimiter: or None: which of , ; tab | stands most often in the first line.

    Raises:
        Damaged: if the first row is no header.
    """
    csv.field_size_limit(max(csv.field_size_limit(), CELL_CHARACTERS))
    refuse_wide(file)
    lines = _CsvLines(file)
    rows = _csv_rows(lines, delimiter or lines.guess_delimiter())
    header, to_fields = _read_header(rows)
    for number, row, flaw in rows:
        if not flaw and len(row) != len(header):
            flaw = f"must have {len(header)} cells as the header has, got {len(row)}"
        if flaw:
            yield bad_record(f"{path}:{number}", flaw, b"".join(lines.taken))
        else:
            yield Record(f"{path}:{number}", to_fields(header, row))


def _read_header(rows: Iterator[tuple[int, list[str], str]]) -> tuple[list[str], Callable]:
    """Returns the names of the columns and what makes fields of names and cells."""
    _, row, flaw = next(rows, (0, [], ""))
    if flaw:
        raise Damaged(f"must begin with a header, but the first row {flaw}")
    header = [name.strip() for name in row]
    return header, _dict_of if len(set(header)) == len(header) else _gather_cells


def _dict_of(header: list[str], row: list[str]) -> dict[str, str]:
    return dict(zip(header, row, strict=True))


class _CsvLines:
    """The lines of a file for csv.reader; what it took for a row can be given back.

    Attributes:
        number: of the last line taken, from 1.
        taken: lines since this was last emptied.
        flaw: why one of them is no text, if so.
    """

    def __init__(self, file: io.BufferedReader):
        self._file, self._back = file, deque()
        self.number, self.taken, self.flaw = 0, [], ""

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else self._file.readline(RECORD_BYTES)
        if not line:
            raise StopIteration
        if self.number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        self.number += 1
        self.taken.append(line)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.flaw = reason_of(error)
            return line.decode("utf-8", "replace")

    def give_back(self) -> None:
        """Gives back all taken lines but the first."""
        self._back.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]

    def guess_delimiter(self) -> str:
        """Returns which of , ; tab | stands most often in the first line; it must be the first call."""
        line = self._file.readline(RECORD_BYTES)
        self._back.append(line)
        return max(",;\t|", key=lambda mark: line.count(mark.encode()))


def _csv_rows(lines: _CsvLines, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """Yields of each row that is not empty its first line, its cells and its flaw, if any."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = lines.number + 1
        lines.taken.clear()
        lines.flaw = ""
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed takes all that follows; only its own line is bad.
            lines.give_back()
            yield first, [], f"must be CSV, got: {error}"
            continue
        if row or lines.flaw:
            yield first, row, lines.flaw


def _gather_cells(header: list[str], row: list[str]) -> dict[str, str | list[str]]:
    """Makes a record of a row; columns of the same name become the list of their cells."""
    cells: dict[str, list[str]] = {}
    for name, cell in zip(header, row, strict=True):
        cells.setdefault(name, []).append(cell)
    return {name: found if len(found) > 1 else found[0] for name, found in cells.items()}
