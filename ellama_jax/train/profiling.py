"""Profiles of a few steps, asked for by the configuration or by SIGUSR1.

Owns when a profile begins and ends and where it is written. What is in it is jax.profiler's.
"""

import signal
import sys
import tempfile
from pathlib import Path

import jax

from ellama_jax.core.paths import copy_tree, is_remote, remove_tree
from ellama_jax.train.kept import may_fail

PROFILE_DIR = "profile"


class Profiler:
    """Takes profiles of whole steps into WORKDIR/profile.

        with Profiler(workdir, start_step=0, num_steps=3) as profiler:
            for step in ...:
                profiler.before(step)
                with profiler.annotate(step): ...
                if profiler.due(step): ...; profiler.finish(step)    # once it is done

    The configured one is taken by process 0 (`leads`), one by SIGUSR1 by the process that got it.
    """

    def __init__(self, workdir: Path, start_step: int, num_steps: int, *, leads: bool = True):
        """Prepares; `with` listens to SIGUSR1.

        Args:
            workdir: of the run; a bucket gets the files when a profile ends.
            start_step: first step of the configured profile, 0 for none.
            num_steps: steps in any profile.
            leads: whether this process takes the configured one.
        """
        self._workdir, self._num_steps = workdir, num_steps
        self._start_step = start_step if leads else 0
        self._asked, self._first, self._folder = False, 0, None

    @property
    def running(self) -> bool:
        """Whether a profile is being taken."""
        return self._first > 0

    def before(self, step: int) -> None:
        """Begins a profile if one is due; call it before the step is handed to the devices."""
        if self.running or not (self._asked or step == self._start_step):
            return
        self._asked = False
        with may_fail(f"profile from step {step}"):
            if is_remote(self._workdir):
                self._folder = Path(tempfile.mkdtemp(prefix="ellama-profile-"))
            jax.profiler.start_trace(str(self._directory()))
            self._first = step

    def annotate(self, step: int):
        """Returns a context that gives the enclosed work the step's number in a profile."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def due(self, step: int, last: bool = False) -> bool:
        """Says whether the profile under way ends with this step, as it does with the last one."""
        return self.running and (last or step - self._first + 1 >= self._num_steps)

    def finish(self, step: int) -> None:
        """Ends the profile with `step`, which the devices have finished; says where it is."""
        name = f"profile of steps {self._first} to {step}"
        with may_fail(name if self._folder is None else f"{name}, in {self._folder}"):
            jax.profiler.stop_trace()
            if self._folder is not None:
                copy_tree(self._folder, self._workdir / PROFILE_DIR)
                remove_tree(self._folder)
            print(
                f"{name}: {self._workdir / PROFILE_DIR}; look at it with "
                f"`xprof --logdir {self._workdir / PROFILE_DIR}` (pip install xprof).",
                file=sys.stderr,
            )  # fmt: skip
        self._first, self._folder = 0, None

    def _directory(self) -> Path:
        return self._folder or self._workdir / PROFILE_DIR

    def _ask(self, *_) -> None:
        self._asked = True

    def __enter__(self) -> "Profiler":
        self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self.running:  # an error on the way: what there is of it helps nobody
            jax.profiler.stop_trace()
            self._first = 0
        signal.signal(signal.SIGUSR1, self._previous)
