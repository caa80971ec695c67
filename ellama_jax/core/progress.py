"""Progress of long work: a bar on a terminal, plain lines everywhere else.

Owns how progress looks; what is counted is the caller's business.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ellama_jax.core.terminal import obeyed, printable

SECS_BETWEEN_LINES = 10.0


class Progress:
    """A running count of `unit`s, shown as it grows, or not at all where `shown` is False."""

    def __init__(self, title: str, total: int, unit: str, shown: bool = True):
        self._title, self._total, self._unit = title, total, unit
        self._done, self._bytes, self._notes, self._printed = 0, 0, "", None
        self._started = self._last_line = time.monotonic()
        self._shown = shown
        terminal = shown and sys.stderr.isatty()
        self._bar = None
        if terminal:
            self._bar = tqdm(
                total=total, desc=printable(title), unit=f" {unit}", file=obeyed(sys.stderr)
            )

    def update(self, count: int = 1) -> None:
        """Counts `count` more units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= SECS_BETWEEN_LINES:
            self._print_line()

    def count_bytes(self, num_bytes: int) -> None:
        """Counts bytes where the unit is MiB; one that has begun counts as one (see `mebibytes`)."""
        before, self._bytes = self._bytes, self._bytes + num_bytes
        self.update(mebibytes(self._bytes) - mebibytes(before))

    def note(self, **values) -> None:
        """Shows `values` beside the count; floats with four significant digits."""
        shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in values.items()}
        self._notes = " ".join(f"{k}={v}" for k, v in shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._notes)

    def close(self) -> None:
        """Ends the count; without a terminal, prints the last line."""
        if self._bar is not None:
            self._bar.close()
        elif (self._done, self._notes) != self._printed:
            self._print_line()

    def _print_line(self) -> None:
        if not self._shown:
            return
        now = time.monotonic()
        line = f"{self._title}: {self._done}/{self._total} {self._unit}"
        text = f"{line}, {now - self._started:.0f} s {self._notes}".rstrip()
        print(text, file=sys.stderr, flush=True)
        self._last_line, self._printed = now, (self._done, self._notes)


def duration(secs: float) -> str:
    """Writes seconds as people do, in two units at most.

    >>> duration(4.2), duration(300), duration(754), duration(7000), duration(200000)
    ('4.2 s', '5 min', '12 min 34 s', '1 h 56 min', '2 d 7 h')
    """
    if secs < 60:
        return f"{secs:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if secs >= size)
    (large, size), (small, part) = units[first : first + 2]
    count, rest = divmod(int(secs), size)
    return f"{count} {large} {rest // part} {small}" if rest // part else f"{count} {large}"


def mebibytes(num_bytes: int) -> int:
    """Returns a number of bytes in MiB, rounded up.

    >>> mebibytes(0), mebibytes(1), mebibytes(2**21)
    (0, 1, 2)
    """
    return -(-num_bytes // 2**20)


@contextmanager
def progress(title: str, total: int, unit: str, shown: bool = True) -> Iterator[Progress]:
    """Shows the progress of the enclosed work; `shown` is False for all processes but one.

    with progress("tokenising", total=1234, unit="docs") as bar:
        bar.update(1)
        bar.note(loss=1.2)
    """
    count = Progress(title, total, unit, shown)
    try:
        yield count
    finally:
        count.close()
