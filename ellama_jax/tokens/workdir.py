"""The hidden directory of a run that may be killed: one for each input and settings, one user.

Owns its name, its lock and its end. What lies in it is the business of whoever works there; the
rule is that a file without a leading dot is whole, for it was renamed into place. In a bucket files
are whole as they are; there are no locks, and what other runs left there stays.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ellama_jax.core.paths import is_remote, remove_tree

_PREFIX = ".prepare-"
_LOCK, _COMPLETE, _TRASH = "lock", "complete", ".ended"


class WorkDir:
    """The work directory of a run, found again by its key; a context that removes it at its end.

    An exception leaves it for the next run, unless it was discarded.

        with WorkDir(out, key) as work:
            work.directory("parts")
    """

    def __init__(self, out: Path, key: str, prefix: str = _PREFIX):
        """Names the directory of the run `key` in `out`."""
        self.out, self.key, self.path = out, key, _path(out, key, prefix)
        self._prefix, self._discarded, self._lock = prefix, False, None

    @staticmethod
    def exists(out: Path, key: str) -> bool:
        """Tells whether a run was begun and has not ended."""
        path = _path(out, key, _PREFIX)
        return path.exists() and not (is_remote(path) and (path / _COMPLETE).exists())

    @staticmethod
    @contextlib.contextmanager
    def parent(out: Path) -> Iterator[None]:
        """Makes `out`, and removes it again if nothing came to be in it."""
        if is_remote(out):
            yield
            return
        existed = out.exists()
        out.mkdir(parents=True, exist_ok=True)
        for trash in out.glob(f".*{_TRASH}"):  # of a run that was killed as it removed its own
            shutil.rmtree(trash, ignore_errors=True)
        try:
            yield
        finally:
            if not existed and not any(out.iterdir()):
                out.rmdir()

    def __enter__(self) -> "WorkDir":
        if is_remote(self.path):
            return self
        if self.path.is_symlink():
            raise ValueError(
                f"{self.path}: must be a directory of this run, got a link; remove it."
            )
        self.path.mkdir(exist_ok=True)
        self._lock = _try_lock(self.path)
        if self._lock is None:
            raise OSError(
                f"--out {self.out}: must be used by one run of these arguments at a time, got one "
                "that is still at work."
            )
        self._remove_strangers()
        for leftover in self.path.rglob(".*"):
            _remove(leftover)
        return self

    def __exit__(self, kind, *_) -> None:
        if is_remote(self.path):
            if kind is None or self._discarded:
                self._remove_objects()
            return
        try:
            if kind is None or self._discarded:
                # Renamed first: what is half removed must not be taken for work to go on with.
                trash = self.path.with_name(self.path.name + _TRASH)
                shutil.rmtree(trash, ignore_errors=True)
                os.replace(self.path, trash)
                shutil.rmtree(trash, ignore_errors=True)
        finally:
            os.close(self._lock)

    def directory(self, name: str) -> Path:
        """Returns a directory in it, made if absent."""
        path = self.path / name
        if not is_remote(path):
            path.mkdir(exist_ok=True)
        return path

    def mark_complete(self) -> None:
        """Notes that only renames into place are left to do."""
        (self.path / _COMPLETE).write_text("")

    def is_complete(self) -> bool:
        """Tells whether only renames into place are left to do."""
        return (self.path / _COMPLETE).exists()

    def discard(self) -> None:
        """Lets the directory go at the end, also after an exception."""
        self._discarded = True

    def _remove_objects(self) -> None:
        # In an order that leaves, wherever it is broken off, what can be gone on with: notes go
        # before what they tell of, and last what says that all is done.
        entries = list(self.path.iterdir()) if self.path.exists() else []
        rank = {"runs": 1, _COMPLETE: 2}
        for entry in sorted(entries, key=lambda e: (rank.get(e.name.split("-")[0], 0), e.name)):
            _remove(entry)

    def _remove_strangers(self) -> None:
        for path in sorted(self.out.glob(f"{self._prefix}*")):
            if path == self.path or path.is_symlink() or not (path / _LOCK).is_file():
                continue
            lock = _try_lock(path)
            if lock is None:
                continue  # another run, with other arguments, at this very moment
            print(
                f"{path}: removed, it was left by an interrupted run with other arguments or other "
                "input.",
                file=sys.stderr,
            )
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _path(out: Path, key: str, prefix: str) -> Path:
    return out / f"{prefix}{key[:16]}"


def _try_lock(directory: Path) -> int | None:
    """Returns the open lock, which the system lets go when its process ends; None if it is held."""
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
