"""`ellama train` in which one process fails in a way of its own: `faulty_process.py HOW ARGUMENTS`.

Process 1 fails, but in `crash`, where it is process 0, which runs the coordination service.
"""

import errno
import itertools
import os
import signal
import sys
import time
from pathlib import Path

import jax

from ellama_jax import cli
from ellama_jax.core import distributed, ending
from ellama_jax.tokens.loader import Loader
from ellama_jax.train import loop, saving


def change(owner, name, make):
    """Replaces `owner.name` by `make` of what was there."""
    setattr(owner, name, make(getattr(owner, name)))


def at_batch(number, do, process=1):
    """Has a process do something before it reads batch `number`."""

    def make(iterate):
        def reading(self, *args):
            for count, batch in enumerate(iterate(self, *args), 1):
                if jax.process_index() == process and count >= number:
                    do()
                yield batch

        return reading

    change(Loader, "iterate", make)


def in_process_1(fail):
    """Returns what runs `fail` in process 1 instead."""
    return lambda real: (
        lambda *args, **more: fail() if jax.process_index() == 1 else real(*args, **more)
    )


def error(kind, *args):
    def fail():
        raise kind(*args)

    return fail


def full_in_a_thread():
    """The second save of process 1 finds the disk full while it is written in the background."""
    from orbax.checkpoint._src.checkpointers import async_checkpointer

    saves = itertools.count(1)

    def make(wait):
        def waiting(*args, **more):
            if jax.process_index() == 1 and next(saves) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return wait(*args, **more)

        return waiting

    change(async_checkpointer, "_background_wait_for_commit_futures", make)


def say_when_asked():
    """Each process writes down how far it had come when it was asked to stop; 1 gets two signals."""
    workdir = Path(sys.argv[-1].removeprefix("--workdir="))

    def make(say):
        def saying(self):
            first = not self._said
            begun = say(self)
            if first:
                (workdir.parent / f"begun-{jax.process_index()}").write_text(str(begun))
            return begun

        return saying

    change(ending.Steps, "say", make)

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    at_batch(8, twice)


def compile_slowly():
    def make(run):
        def slowly(*args):
            Path(sys.argv[-1].removeprefix("--workdir="), "compiling").touch()
            time.sleep(600)

        return slowly

    change(loop.Program, "run", make)


FAULTS = {
    "slow": lambda: at_batch(4, lambda: time.sleep(1.0)),
    "hang": lambda: at_batch(4, lambda: time.sleep(3600)),
    "data": lambda: at_batch(4, error(ValueError, "windows X: window 7 is damaged.")),
    "crash": lambda: at_batch(4, error(ZeroDivisionError, "a defect"), process=0),
    "prepare": lambda: change(
        loop,
        "prepare_run",
        in_process_1(error(FileNotFoundError, 2, "No such file", "/w/manifest")),
    ),
    "restore": lambda: change(
        saving.checkpoints,
        "restore_training",
        in_process_1(error(ValueError, "restore r/2: the checkpoint is damaged.")),
    ),
    "save": full_in_a_thread,
    "stop": say_when_asked,
    "compile": compile_slowly,
    "alone": lambda: setattr(distributed, "_JOINING_SECS", 4),
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    cli.main(["train", *sys.argv[2:]])
