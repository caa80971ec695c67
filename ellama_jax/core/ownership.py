"""One owner per directory: two writers of one place would leave a mixture of both.

On a disk the owner holds a lock that the system lets go when it dies, and so do the processes that it
started; in a bucket it holds a lease, an object that it writes anew. Reading needs neither.
"""

import contextlib
import datetime
import fcntl
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ellama_jax.core.exits import EXIT_AGAIN
from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import (
    as_path,
    delete_if,
    is_remote,
    read_version,
    remove_tree,
    write_if,
)

# A lease that nobody has renewed for so long is of somebody who is gone.
LEASE_SECS = 60.0
_SECS_BETWEEN_LOOKS = 1.0
# What this project names what it has not finished by: the number of a process, or 32 random digits.
_LEFT_OVER, _LEFT_OVER_SECS = re.compile(r"\.partial-(\d+|[0-9a-f]{32})$"), 600.0
# What this process and those that started it own, for the processes it starts.
_OWNED = "ELLAMA_OWNED"
_locks: list[int] = []


@contextlib.contextmanager
def owned(directory: str | os.PathLike, command: str) -> Iterator[None]:
    """Context in which this job alone writes a directory; what it starts may write there too.

    Of several processes the first owns for all. What dead owners left half written beside the
    directory is removed.

    Args:
        directory: to be written, there or not, local or in a bucket.
        command: of the owner, for others to read: `ellama train`.

    Raises:
        ValueError: if somebody else is writing there; it says who, and since when.
    """
    directory = as_path(directory)
    directory = directory if is_remote(directory) else directory.resolve()
    mine = parse_json(os.environ.get(_OWNED, "[]"))
    if not _leads() or os.fspath(directory) in mine:
        yield
        return
    with (_leased if is_remote(directory) else _locked)(directory, _describe(command)):
        os.environ[_OWNED] = json.dumps([*mine, os.fspath(directory)])
        try:
            yield
        finally:
            os.environ[_OWNED] = json.dumps(mine)


def _leads() -> bool:
    # As core/distributed.py says it, without JAX, which not every verb needs.
    joined = sys.modules.get("jax._src.distributed")
    return joined is None or joined.global_state.process_id == 0


def held_locks() -> tuple[int, ...]:
    """Returns the descriptors of the locks held, for processes that go on where this one dies."""
    return tuple(_locks)


def _describe(command: str) -> bytes:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    owner = {"command": command, "process": os.getpid(), "host": socket.gethostname()}
    return json.dumps({**owner, "since": since}).encode()


def _refusal(directory: Path, found: bytes) -> ValueError:
    try:
        owner = parse_json(found)
        who = "`{command}` (process {process} on {host}) since {since}".format_map(owner)
    except (ValueError, KeyError, TypeError):
        who = "another one"
    return ValueError(
        f"{directory}: must have one writer at a time, got {who}; wait until it has ended, or name "
        "another directory."
    )


# --- on a disk -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(directory: Path, owner: bytes) -> Iterator[None]:
    # Beside the directory, which may be replaced as a whole.
    path = directory.with_name(f".{directory.name}.lock")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _open_locked(path, directory)
    except OSError:  # nothing can be written there, which the verb says better
        yield
        return
    _locks.append(lock)
    try:
        os.truncate(lock, 0)
        os.pwrite(lock, owner, 0)
        _remove_left_overs(directory)
        yield
    finally:
        path.unlink(missing_ok=True)
        for parent in made:  # a verb that was refused leaves nothing
            with contextlib.suppress(OSError):
                parent.rmdir()
        _locks.remove(lock)
        os.close(lock)


def _open_locked(path: Path, directory: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have let go of it, and removed it, since it was opened.
            if path.exists() and os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError as error:
            found = os.pread(lock, 4096, 0)
            os.close(lock)
            raise _refusal(directory, found) from error
        os.close(lock)


def _remove_left_overs(directory: Path) -> None:
    places = [directory.parent.glob(f".{directory.name}.partial-*")]
    places += [directory.glob(".*.partial-*")]
    for path in (path for found in places for path in found if _LEFT_OVER.search(path.name)):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime < _LEFT_OVER_SECS:
                continue
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()


# --- in a bucket ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _leased(directory: Path, owner: bytes) -> Iterator[None]:
    path = directory.parent / f".{directory.name}.lease"
    version = [_take(path, directory, owner)]
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, owner, version, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(Exception):  # it ends by itself
            delete_if(path, version[0])


def _take(path: Path, directory: Path, owner: bytes) -> str:
    """Returns the version of the lease taken; one whose owner may be gone is watched for a while."""
    _, seen = read_version(path)
    renewed, ends = 0, time.monotonic() + LEASE_SECS
    while seen is not None and time.monotonic() < ends:
        time.sleep(_SECS_BETWEEN_LOOKS)
        content, now = read_version(path)
        if now not in (seen, None):
            renewed, ends = renewed + 1, time.monotonic() + LEASE_SECS
            if renewed > 1:  # what the dead had sent may arrive once
                raise _refusal(directory, content)
        seen = now
    taken = write_if(path, owner, seen)
    if taken is None:
        raise _refusal(directory, read_version(path)[0])
    return taken


def _renew(path: Path, owner: bytes, version: list[str], over: threading.Event) -> None:
    from ellama_jax.core.ending import end_all

    renewed = time.monotonic()
    while not over.wait(LEASE_SECS / 4):
        lost = False
        with contextlib.suppress(Exception):  # a bucket that does not answer is asked again
            taken = write_if(path, owner, version[0])
            lost = taken is None
            if taken is not None:
                version[0], renewed = taken, time.monotonic()
        # Before another one may take it, this one has ended.
        if lost or time.monotonic() - renewed > LEASE_SECS * 0.8:
            why = "was taken by another writer" if lost else "could not be renewed"
            end_all(EXIT_AGAIN, f"{path}: the lease {why}; start the same command again.")
