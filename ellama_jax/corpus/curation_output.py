"""What `ellama curate` leaves on disk: sorted, compressed shards that are the same in every run.

Owns the names and bytes of files and the words of the closing table. It knows no Beam.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import as_path, file_bytes, name_inside, open_whole

REPORT_FILE = "curation.json"  # written last: a directory without it was never finished


def shard_of(key: str, num_shards: int) -> int:
    """Returns the shard of a record, which depends on its key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % num_shards


def sort_key(key: str) -> bytes:
    """Returns what orders the records of a shard: at random, but always the same."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"order").digest()


def to_line(record: Mapping) -> bytes:
    """Returns a record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def write_shard(path: str, lines: Iterable[tuple[bytes, bytes]]) -> dict:
    """Writes lines, sorted, as one gzip file; whole, or not at all.

    Args:
        path: local or in a bucket.
        lines: (order, line) in any order.

    Returns:
        What the report says of the file: name, records, bytes, sha256.
    """
    ordered = sorted(lines)
    content = gzip.compress(b"".join(line for _, line in ordered), compresslevel=6, mtime=0)
    file = as_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # What is no record may hold anything, masks or not.
    with open_whole(file, private=file.parent.name == "dead_letters") as opened:
        opened.write(content)
    digest = hashlib.sha256(content).hexdigest()
    return {"records": len(ordered), "bytes": len(content), "sha256": digest}


def remove_partial(directory: Path) -> None:
    """Removes what killed workers were writing into a curation on a disk."""
    for path in directory.rglob(".*.partial-*"):
        path.unlink(missing_ok=True)


def read_shard(path: Path) -> list[dict]:
    """Returns the records of a file that `write_shard` wrote."""
    return [parse_json(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def is_curated(directory: Path) -> bool:
    """Tells whether a directory is a finished one of `ellama curate`."""
    return (directory / REPORT_FILE).is_file()


def read_report(directory: Path) -> dict:
    """Reads curation.json.

    Raises:
        ValueError: if there is none, for then the curation was never finished, or it names files
            outside the directory.
    """
    if not is_curated(directory):
        raise ValueError(
            f"{directory}: must hold {REPORT_FILE}, got none; a curation without it was never "
            "finished: curate again."
        )
    report = parse_json((directory / REPORT_FILE).read_text(encoding="utf-8"))
    for file in report["files"]:
        name_inside(directory, file["name"], REPORT_FILE)
    return report


def curated_files(directory: Path, kind: str, split: str) -> list[Path]:
    """Returns the files of a curation, sorted.

    Args:
        directory: of `ellama curate`.
        kind: documents | listings.
        split: train | heldout.

    Raises:
        ValueError: if the curation was never finished, or a file has another size than it had.
    """
    names = {file["name"]: file["bytes"] for file in read_report(directory)["files"]}
    chosen = sorted(name for name in names if name.startswith(f"{kind}/{split}/"))
    for name in chosen:
        path = directory / name
        size = file_bytes(path) if path.is_file() else None
        if size != names[name]:
            raise ValueError(
                f"{path}: must have {names[name]} bytes, got {size or 'no such file'}; was it "
                "copied completely?"
            )
    return [directory / name for name in chosen]
