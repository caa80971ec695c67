"""Worker processes that leave with their parent, however that ends.

Owns starting and ending them. What they do is the caller's: functions of a module, and plain data.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection


class Workers:
    """A pool of processes, or this process where one is enough; a context.

    with Workers(2, num_jobs=64) as pool:
        for result in pool.map(function, jobs): ...    # in the order of the jobs
    """

    def __init__(self, workers: int, num_jobs: int):
        """Takes `workers` processes at most, and no more than there are jobs.

        The cores that so few jobs leave over are for threads of the tokenizer.
        """
        self._processes = max(1, min(workers, num_jobs))
        self._threads = max(1, workers // self._processes)
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable, jobs: Iterable) -> Iterator:
        """Yields the results of jobs in their order.

        Raises:
            OSError: if a process was killed from outside.
        """
        jobs = list(jobs)
        if self._processes == 1 or len(jobs) <= 1 and self._pool is None:
            yield from map(function, jobs)
            return
        if self._pool is None:
            # Not forked: this process may have threads, of TensorFlow or JAX.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._processes, context, initializer=_start, initargs=(self._threads,)
            )
        try:
            yield from self._pool.map(function, jobs)
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was ended from outside, perhaps for want of memory; start again "
                "with fewer --workers, what is done is kept."
            ) from error


def _start(threads: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
