"""What reaches a terminal: text that is shown, and never obeyed.

A run's title, a source's name, a token or a quoted value may hold control characters: they move the
cursor, set the window's title, or have a terminal answer as if somebody had typed.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Writes control characters out, those that turn the order of letters too; but for tabs and line ends.

    >>> printable("a\tb\x1b[2Jc\n")
    'a\tb\\x1b[2Jc\n'
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str, most: int | None = None) -> str:
    """Returns a text, cut down to `most` characters, as one line without control characters."""
    line = " ".join(printable(text).split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


class _Shown:
    """A stream of text that writes control characters out."""

    def __init__(self, stream: TextIO, kept: str = "\n"):
        self.obeyed, self._kept = stream, kept

    def write(self, text: str) -> int:
        self.obeyed.write(self._kept.join(map(printable, text.split(self._kept))))
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self.obeyed, name)


@contextlib.contextmanager
def only_shown() -> Iterator[None]:
    """Context in which control characters of what is printed, to stdout and stderr, are written out."""
    with (
        contextlib.redirect_stdout(_Shown(sys.stdout)),
        # Libraries draw bars there, which begin their line anew.
        contextlib.redirect_stderr(_Shown(sys.stderr, "\r")),
    ):
        yield


def obeyed(stream: TextIO) -> TextIO:
    """Returns the stream beneath, for colours and bars: names in what goes there must be `printable`."""
    return getattr(stream, "obeyed", stream)
