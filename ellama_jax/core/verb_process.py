"""A verb as a process of its own: its memory leaves with it, and it can be stopped and started.

Owns how such a process is started, how it is asked to stop and what it said last.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ellama_jax.core.ownership import held_locks

# glibc by default gives large blocks back to the system at every step and gets them again page by
# page. Kept, and in huge pages, a training step on a CPU takes a fifth less time (docs/LOG.md).
MALLOC_SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**34),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
_SECS_TO_SAVE = 120.0
_PARENT, _PR_SET_PDEATHSIG = "ELLAMA_PARENT", 1


def keep_freed_memory(argv: Sequence[str]) -> None:
    """Starts this process again with `MALLOC_SETTINGS`, which are read only at its start.

    Args:
        argv: verb and arguments of this process.
    """
    if sys.platform == "linux" and not set(MALLOC_SETTINGS) & set(os.environ):
        os.environ.update(MALLOC_SETTINGS)
        os.execv(sys.executable, [*_PROGRAM, *argv])


_PROGRAM = [sys.executable, "-m", "ellama_jax.cli"]


def run_verb(words: Sequence[str]) -> None:
    """Runs `ellama WORDS` to its end, its output where ours goes.

    Raises:
        ValueError: if it did not succeed.
    """
    done = subprocess.run(
        [*_PROGRAM, *words], check=False, env=_environment(), pass_fds=held_locks()
    )
    if done.returncode:
        command = shlex.join(["ellama", *words])
        raise ValueError(f"{command}: must succeed, got exit status {done.returncode}.")


def start_verb(words: Sequence[str], log: Path) -> subprocess.Popen:
    """Starts `ellama WORDS` with its output appended to a file.

    It gets no signal from the terminal: `stop_verbs` asks it, so that it can save what it has.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            [*_PROGRAM, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=_environment(), start_new_session=True, pass_fds=held_locks(),
        )  # fmt: skip


def _environment() -> dict[str, str]:
    settings = {} if set(MALLOC_SETTINGS) & set(os.environ) else MALLOC_SETTINGS
    return {**os.environ, **settings, _PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Has the system end this process when the verb that started it dies, by SIGKILL too.

    It gets SIGTERM, on which a run saves. On Linux alone; elsewhere a verb outlives its parent.
    """
    parent = os.environ.pop(_PARENT, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before
            os.kill(os.getpid(), signal.SIGTERM)


def stop_verbs(running: Sequence[subprocess.Popen]) -> None:
    """Sends SIGTERM, on which a run saves, and waits; who takes too long is killed."""
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(_SECS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """Returns what a verb said last, where it says what went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "it said nothing")
