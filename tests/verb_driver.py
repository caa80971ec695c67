"""A process that runs a verb when it is told to, so that a test can kill it at any moment of the work.

It gets ready, imports and all, while its predecessor is still at work. `python tests/verb_driver.py
MODULE FUNCTION SHAPE ARGUMENTS` begins at a line on stdin. SHAPE changes its world: `as-it-is`;
`clock:SECS,...` sets the wall clock forward or back by so many seconds at every tenth look;
`slow-disk` has every fsync and rename wait.
"""

import importlib
import itertools
import os
import subprocess
import sys
import time


class Driver:
    """Such a process."""

    def __init__(self, module, function, argv, shape="as-it-is", env=None, **options):
        command = [sys.executable, __file__, module, function, shape, *map(str, argv)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=env, text=True, **pipes, **options)

    def begin(self):
        """Lets it work, once it is ready."""
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill_after(self, secs):
        """Lets it work so long, kills it, and says whether it had not ended by then."""
        try:
            self.process.wait(secs)
        except subprocess.TimeoutExpired:
            self.process.kill()
        _, errors = self.end()
        assert self.process.returncode in (0, -9), errors
        return self.process.returncode == -9

    def end(self):
        """Waits for its end and returns what it wrote."""
        return self.process.communicate()

    def succeed(self):
        """Waits for its end, which must be a good one, and returns what it wrote."""
        out, errors = self.end()
        assert self.process.returncode == 0, errors
        return out, errors


def kill_until_it_ends(make, kills, work_secs, chance, check):
    """Kills processes at random moments of their work, `kills` of them, then lets one end.

    Args:
        make: gives a Driver, always of the same command.
        kills: how many have to die.
        work_secs: about how long the work takes in peace.
        check: called with `ended` after every death and every end.
    """
    killed, waiting = 0, make()
    while killed < kills:
        driver, waiting = waiting, make()
        driver.begin()
        died = driver.kill_after(chance.uniform(0, 1.0) * work_secs)
        killed += died
        check(ended=not died)
    waiting.begin()
    waiting.succeed()
    check(ended=True)
    return killed


def _jump(jumps):
    real, looks, shift = time.time, itertools.count(1), [0.0]
    remaining = list(jumps)

    def jumping():
        if next(looks) % 10 == 0 and remaining:
            shift[0] += remaining.pop(0)
        return real() + shift[0]

    time.time = jumping


def _slow_disk():
    for name in ("fsync", "rename", "replace"):
        real = getattr(os, name)

        def slow(*args, real=real, **more):
            time.sleep(0.3)
            return real(*args, **more)

        setattr(os, name, slow)


def main(module, function, shape, *argv):
    run = getattr(importlib.import_module(module), function)
    print("ready", flush=True)
    sys.stdin.readline()
    if shape.startswith("clock:"):
        _jump(float(jump) for jump in shape.removeprefix("clock:").split(","))
    elif shape == "slow-disk":
        _slow_disk()
    run(list(argv))


if __name__ == "__main__":
    main(*sys.argv[1:])
