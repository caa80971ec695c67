"""What stands still and who is slow: hangs of this process, and processes that others wait for.

Owns the thread that watches the loop, and the comparison of processes. It measures what a host can
see; a chip that is slow inside a step holds all others up alike, and takes a profile to find.
"""

import faulthandler
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from ellama_jax.core.ending import end_all
from ellama_jax.core.exits import EXIT_AGAIN

_TIMES = struct.Struct("<ff")
TIMES_BYTES = _TIMES.size


class Watchdog:
    """Prints every thread's stack when the loop shows no sign of life for too long.

        with Watchdog(hang_secs=600, where=lambda: "step 7") as watchdog:
            ...; watchdog.beat()

    It speaks up after `hang_secs`, and again each time the silence has doubled.
    """

    def __init__(
        self,
        hang_secs: float,
        where: Callable[[], str],
        *,
        abort: bool = False,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        file: IO | None = None,
        leave: Callable[[int, str], object] = end_all,
    ):
        """Prepares; `with` starts to watch.

        Args:
            hang_secs: silence that is too long; 0 watches nothing.
            where: says where the loop is.
            abort: end the job after the first report, with status `EXIT_AGAIN`. Nothing else ends a
                thread that waits inside a device's runtime.
            name: of this process, for the message.
            clock, file, leave: for tests; `file` is where to print, by default stderr.
        """
        self._hang_secs, self._where, self._abort, self._name = hang_secs, where, abort, name
        self._clock, self._file, self._leave = clock, file, leave
        self._last, self._limit = clock(), hang_secs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Something was finished: counts from here."""
        self._last, self._limit = self._clock(), self._hang_secs

    def check(self) -> bool:
        """Reports if the silence is too long; says whether it did."""
        silent = self._clock() - self._last
        if not self._hang_secs or silent < self._limit:
            return False
        self._limit = 2 * silent
        file = self._file or sys.stderr
        print(
            f"{self._name}nothing finished for {silent:.0f} s (train.hang_secs "
            f"{self._hang_secs:g}), at: {self._where()}. All Python stacks:", file=file, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(file=file, all_threads=True)
        if self._abort:
            self._leave(
                EXIT_AGAIN,
                f"{self._name}nothing finished for {silent:.0f} s: ends with status {EXIT_AGAIN} "
                "(train.abort_on_hang); the same command resumes from the newest checkpoint.",
            )
        return True

    def _watch(self) -> None:
        while not self._stop.wait(min(max(self._hang_secs / 10, 0.05), 10.0)):
            self.check()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._hang_secs:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()


def pack_times(own_secs: float, data_secs: float) -> bytes:
    """Returns what a process tells others of a step: `TIMES_BYTES` bytes."""
    return _TIMES.pack(own_secs, data_secs)


class Stragglers:
    """Who makes the others wait, over the steps since the last report.

    A process's own time in a step is what it spends neither handing work to the devices nor waiting
    for them: reading data that is not there yet, above all. Devices wait for each other in every
    step, so what one process takes for itself all lose, and the step time is the same for all.
    """

    def __init__(self, names: Sequence[str], ratio: float):
        """Args: names of the processes by index; ratio from which one is reported."""
        self._names, self._ratio = names, ratio
        self._clear()

    def _clear(self) -> None:
        self._own = [0.0] * len(self._names)
        self._data = [0.0] * len(self._names)
        self._secs, self._steps = 0.0, 0

    def add(self, words: Sequence[bytes], step_secs: float) -> None:
        """Counts one step: what each process told by `pack_times`, and how long the step took."""
        for process, word in enumerate(words):
            own, data = _TIMES.unpack(word)
            self._own[process] += own
            self._data[process] += data
        self._secs += step_secs
        self._steps += 1

    def report(self) -> str | None:
        """Returns a line about the slowest process, None if nobody stands out; begins anew.

        The ratio is that of the step time to what it would be if that process took as long for
        itself as the median one.
        """
        own, data, secs, steps = self._own, self._data, self._secs, self._steps
        self._clear()
        if len(own) < 2 or not steps:
            return None
        slowest = max(range(len(own)), key=own.__getitem__)
        median = statistics.median_low(own)
        excess = min(own[slowest] - median, secs)
        ratio = secs / (secs - excess) if excess < secs else float("inf")
        if ratio < self._ratio:
            return None
        return (
            f"process {slowest} ({self._names[slowest]}) holds the others up: steps take {ratio:.1f} "
            f"times as long as without it. Of {secs / steps:.2f} s a step {own[slowest] / steps:.2f} "
            f"s are its own ({data[slowest] / steps:.2f} s waiting for data), {median / steps:.2f} s "
            "those of the median process."
        )
