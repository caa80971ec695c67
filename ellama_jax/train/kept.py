"""What a run writes beside its checkpoints, which must never end it.

Owns waiting: what cannot be written now, to a full disk or a bucket that does not answer, stays in
memory and is written later, in order. What the files hold is the business of those who write.
"""

import contextlib
import functools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from ellama_jax.core.paths import write_whole

_LAST_SECS = 5.0  # what a run that ends gives a place that could not be written


class Kept:
    """Writes records in order, each as soon as it can be written.

        log = Kept("metrics.jsonl", file.append)
        log.add(line)

    A failure is said once and raised never. It is tried again when a record comes, at first after
    a second, in the end every minute.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[object], object],
        *,
        newest: bool = False,
        wait_secs: tuple[float, float] = (1.0, 60.0),
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepares.

        Args:
            name: of what is written, for messages.
            write: writes one record whole, or raises and has written nothing.
            newest: a record takes the place of those that wait.
            wait_secs: first and longest time until it is tried again.
            clock: for tests.
        """
        self._name, self._write, self._clock = name, write, clock
        self._waiting: deque = deque(maxlen=1 if newest else None)
        self._wait_secs, self._wait, self._next, self._failure = wait_secs, 0.0, 0.0, ""

    def add(self, record=None) -> None:
        """Writes a record, or keeps it."""
        self._waiting.append(record)
        self.retry()

    def retry(self) -> None:
        """Writes what waits, if it is time for it."""
        if not self._waiting or self._clock() < self._next:
            return
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        # Whatever gcsfs, aiohttp, google-auth and wandb make of a network.
        except Exception as error:
            self._wait = min(2 * self._wait or self._wait_secs[0], self._wait_secs[1])
            self._next = self._clock() + self._wait
            if not self._failure:
                self._failure = _reason(error)
                said = "its records are kept, and written once it can"
                print(f"{self._name}: cannot be written: {self._failure}; {said}.", file=sys.stderr)
            return
        if self._failure:
            print(f"{self._name}: can be written again; nothing is missing.", file=sys.stderr)
        self._failure, self._wait, self._next = "", 0.0, 0.0

    def close(self) -> bool:
        """Tries for some seconds to write what waits; says, and returns, whether all is written."""
        ends = self._clock() + _LAST_SECS
        self._next = 0.0
        self.retry()
        while self._waiting and self._clock() < ends:
            time.sleep(min(1.0, _LAST_SECS / 5))
            self._next = 0.0
            self.retry()
        if self._waiting:
            count = len(self._waiting)
            print(
                f"{self._name}: the last {count} records are lost: {self._failure}.",
                file=sys.stderr,
            )
        return not self._waiting


class RunFiles:
    """Files of a run's directory that are written whole, each time in place of the one before."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._files: dict[str, Kept] = {}

    def write(self, name: str, text: str) -> None:
        """Writes `WORKDIR/name`, and what is late of the others."""
        if name not in self._files:
            put = functools.partial(self._put, self.workdir / name)
            self._files[name] = Kept(str(self.workdir / name), put, newest=True)
        self._files[name].add(text)
        for file in self._files.values():
            file.retry()

    def close(self) -> None:
        """Writes what is late, as far as it can."""
        for file in self._files.values():
            file.close()

    @staticmethod
    def _put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def append_whole(path: Path, record: bytes) -> None:
    """Appends to a local file all of a record or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            written = file.write(record)
            if written < len(record):  # how a disk becomes full
                file.write(record[written:])
        except OSError:
            file.truncate(size)
            raise


@contextlib.contextmanager
def may_fail(name: str) -> Iterator[None]:
    """Says of the enclosed work that it failed, instead of raising."""
    try:
        yield
    except Exception as error:
        print(f"{name}: {_reason(error)}; the run goes on without it.", file=sys.stderr)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
