"""Batches that lie on the devices before they are needed.

Owns the thread that reads and places ahead, and its bound. Which batches there are is the loader's
business, where they lie core/sharding.py's.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Placed(NamedTuple):
    """A batch, as this process's rows on the host and as arrays on the devices."""

    rows: Mapping[str, np.ndarray]
    arrays: Mapping


class Prefetched:
    """An iterator's batches, the next few of them placed while the devices work.

        with Prefetched(loader.iterate(...), place, depth=2) as batches:
            for _ in range(steps): rows, arrays = batches.get()

    At most `depth` placed batches wait, beside the one in use. What is read ahead and not used is
    thrown away: nothing counts a batch before it was trained on, so resuming is exact.
    """

    def __init__(self, rows: Iterator, place: Callable[[Mapping], Mapping], depth: int):
        """Starts to read.

        Args:
            rows: yields this process's rows of each batch.
            place: puts them onto the devices; it must not wait for other processes.
            depth: batches that may wait.
        """
        self._rows, self._place = rows, place
        self._free = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)
        self._thread.start()

    def get(self, timeout: float | None = None) -> Placed | None:
        """Returns the next batch, waiting for it if need be; None if it is not there in time.

        Args:
            timeout: seconds to wait; None waits until there is one.

        Raises:
            Exception: what reading or placing raised, as it was raised; StopIteration at the end.
        """
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            self._ready.put(item)  # the same answer to whoever asks again
            raise item
        self._free.release()
        return item

    def close(self) -> None:
        """Ends the thread, which may be in the middle of a read that nobody needs any more."""
        self._closed = True
        self._free.release()
        self._thread.join(timeout=10.0)

    def _read(self) -> None:
        try:
            while True:
                self._free.acquire()
                if self._closed:
                    return
                rows = next(self._rows)
                self._ready.put(Placed(rows, self._place(rows)))
        except BaseException as error:  # told to whoever waits, who knows what it means
            self._ready.put(error)

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *_) -> None:
        self.close()
