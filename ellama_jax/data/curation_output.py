"""What `ellama curate` leaves on disk: sorted, compressed shards that are the same in every run.

Owns the names and bytes of files and the words of the closing table. It knows no Beam.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ellama_jax.paths import as_path, is_remote

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
    if is_remote(path):
        file.write_bytes(content)  # an object appears once all of it was sent
    else:
        partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, file)
    digest = hashlib.sha256(content).hexdigest()
    return {"records": len(ordered), "bytes": len(content), "sha256": digest}


def read_shard(path: Path) -> list[dict]:
    """Returns the records of a file that `write_shard` wrote."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
