"""Documents as text: which files hold them, and reading these line by line.

Owns what a document is, finding input files, and reading them whole or in parts. It tokenises
nothing; SeqIO's view of the same files is tokens/tasks.py's.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from ellama_jax.core.limits import RECORD_BYTES
from ellama_jax.core.paths import as_path, is_remote
from ellama_jax.corpus.curation_output import curated_files
from ellama_jax.corpus.listings import listing_to_document, load_listings
from ellama_jax.corpus.readers import Decompressed
from ellama_jax.corpus.records import Damaged
from ellama_jax.tokens.windows import window_set_name

DOMAINS = ("ecommerce", "general")

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_BLOCK_BYTES = 2**20
# What gzip, zlib and pyarrow raise where compressed bytes are damaged or end too early.
_COMPRESSIONS = {".gz": "gz", ".zst": "zstd"}


def find_files(patterns: Iterable[str | os.PathLike], option: str) -> list[str]:
    """Returns the files that paths, globs and directories name, sorted.

    Args:
        patterns: files; globs as `web/*.jsonl.gz`; or directories: those of `ellama curate`, of
            which the documents to train on count, and others that hold JSONL files. Local or
            gs://.
        option: what the user gave them for.

    Raises:
        ValueError: if a glob or a directory holds none, or a file is named twice.
        OSError: if a file does not exist.
    """
    found = [path for pattern in patterns for path in _expand(os.fspath(pattern), option)]
    places = Counter(path if is_remote(path) else os.path.realpath(path) for path in found)
    place, times = places.most_common(1)[0] if places else ("", 0)
    if times > 1:
        raise ValueError(f"{option}: each file must be named once, got {place} {times} times.")
    for path in found:
        as_path(path).stat()
    return sorted(found)


def is_compressed(path: str) -> bool:
    """Tells whether a file can only be read from its beginning.

    >>> is_compressed("web.jsonl.gz"), is_compressed("web.jsonl")
    (True, False)
    """
    return path.endswith((".gz", ".zst"))


def read_documents(path: str | os.PathLike) -> Iterator[dict]:
    """Yields the documents of a JSONL file, each checked.

    Args:
        path: one object a line: text, domain, language, source, and product_id or nothing. Empty
            lines are left out. `.gz` and `.zst` are decompressed.

    Raises:
        ValueError: names the file and the line where one is no document.
        OSError: if the file cannot be read.
    """
    for _, document in read_part(path):
        yield document


def read_part(
    path: str | os.PathLike, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, dict]]:
    """Yields the documents whose lines begin in a range of bytes, each with that byte.

    Args:
        path: as in `read_documents`; what is compressed has no parts but the whole.
        start, stop: bytes; None is the end.
    """
    path = os.fspath(path)
    for offset, line in _read_lines(path, start, stop):
        if not line.strip():
            continue
        try:
            document = json.loads(line.decode("utf-8"))
            check_document(document)
        except (ValueError, RecursionError) as error:
            number = _line_number(path, offset)
            raise ValueError(f"{path}:{number}: must be a document, got {error}") from error
        yield offset, document


def listing_documents(path: str | os.PathLike, seed: int) -> Iterator[dict]:
    """Yields the listings of a JSONL file as documents of the e-commerce domain.

    Args:
        path: listing records, see corpus/listings.py; held in memory.
        seed: of the order of aspects in the text.
    """
    for listing in load_listings(path):
        yield {
            "text": listing_to_document(listing, seed=seed),
            "domain": "ecommerce",
            "language": listing["language"],
            "source": listing["source"],
            "product_id": listing["product_id"],
        }


def check_document(document: object) -> None:
    """Refuses what is no document.

    Raises:
        ValueError: says which field is wrong.
    """
    if not isinstance(document, dict):
        raise ValueError(f"a JSON {type(document).__name__} instead of an object.")
    for name in ("text", "domain", "language", "source"):
        if not isinstance(document.get(name), str) or not document[name].strip():
            raise ValueError(f"{name}: must be a string that is not empty; it is missing or not.")
    if document["domain"] not in DOMAINS:
        raise ValueError(f"domain: must be ecommerce or general, got {document['domain']!r}.")
    window_set_name(document["domain"], document["language"])
    document["text"].encode("utf-8")  # half a surrogate pair is valid JSON, but no text


def file_sha256(path: str) -> str:
    """Returns the SHA-256 of a file's bytes, compressed where it is."""
    digest = hashlib.sha256()
    with as_path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns the shortest ends of paths that tell them apart.

    >>> short_names(["data/de/web.jsonl", "data/fr/web.jsonl", "data/shop.jsonl"])
    ['de/web.jsonl', 'fr/web.jsonl', 'shop.jsonl']
    """
    parts = [path.split("/") for path in paths]
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(p[-length:] == mine[-length:] for p in parts) > 1:
            length += 1
        names.append("/".join(mine[-length:]))
    return names


def _expand(pattern: str, option: str) -> list[str]:
    path = as_path(pattern)
    if path.is_dir():
        curated = (path / "documents").is_dir()  # refused if curate did not finish it
        found = curated_files(path, "documents", "train") if curated else _files_of(path)
        found = [os.fspath(file) for file in found]
        expected = f"hold {', '.join(_SUFFIXES)} files, in itself or in documents/train"
    elif any(map(_is_glob, path.parts)) and not path.exists():
        found, expected = _glob(path), "match a file"
    else:
        return [pattern]
    if not found:
        raise ValueError(f"{option}: {pattern} must {expected}, got none.")
    return found


def _is_glob(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _glob(path: Path) -> list[str]:
    base = path
    while _is_glob(os.fspath(base)):
        base = base.parent
    pattern = os.fspath(path)[len(os.fspath(base)) :] if base != Path(".") else os.fspath(path)
    return sorted(os.fspath(p) for p in base.glob(pattern.lstrip("/")) if p.is_file())


def _files_of(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(os.fspath(p) for p in directory.iterdir() if p.name.endswith(_SUFFIXES))


def _read_lines(path: str, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    with as_path(path).open("rb") as raw:
        try:
            lines = _decompressed(path, raw)
            offset = start
            if start:
                lines.seek(start - 1)
                offset += len(lines.readline()) - 1  # a line that began before is another part's
            while stop is None or offset < stop:
                line = lines.readline(RECORD_BYTES)
                if not line:
                    return
                if len(line) == RECORD_BYTES:
                    raise Damaged(f"must have lines shorter than {RECORD_BYTES:,} bytes")
                yield offset, line
                offset += len(line)
        except Damaged as error:
            raise ValueError(f"{path}: {error}.") from error


def _decompressed(path: str, raw: IO[bytes]) -> IO[bytes]:
    for suffix, compression in _COMPRESSIONS.items():
        if path.endswith(suffix):
            return io.BufferedReader(Decompressed(raw, compression), _BLOCK_BYTES)
    return raw


def _line_number(path: str, offset: int) -> int:
    with as_path(path).open("rb") as raw:
        lines, number = _decompressed(path, raw), 1
        while offset > 0:
            block = lines.read(min(offset, _BLOCK_BYTES))
            number += block.count(b"\n")
            offset -= len(block)
    return number
