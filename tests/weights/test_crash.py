"""A process killed at any moment of a save leaves what it saved before, whole and to the bit."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_writer import abstract_state, open_run, same_bits, state_at

from ellama_jax.weights.checkpoint import restore_training
from ellama_jax.weights.layout import latest_step

KILLS = 36
LIMIT_SECS = 60
WRITER = Path(__file__).with_name("crash_writer.py")


class Writer:
    """A process of crash_writer.py; it gets ready while its predecessor is still at work."""

    def __init__(self, root, tokenizer_dir, log):
        argv = [sys.executable, str(WRITER), str(root), str(tokenizer_dir)]
        env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self.process = subprocess.Popen(argv, env=env, text=True, **pipes)

    def begin(self) -> int:
        """Lets it restore and save; returns the step it goes on from."""
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said.startswith("from "), f"the writer died, exit {self.process.wait()}"
        return int(said.split()[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def saves_under_way(root):
    return [path.name for path in root.glob("*.orbax-checkpoint-tmp")]


def wait_for_save(root, after_step):
    """Waits until a step later than `after_step` is being written."""
    deadline = time.monotonic() + LIMIT_SECS
    while time.monotonic() < deadline:
        if any(int(name.split(".")[0]) > after_step for name in saves_under_way(root)):
            return
        time.sleep(0.001)
    raise AssertionError(f"no save of a step after {after_step} began in {LIMIT_SECS} s")


def check_newest(root, tokenizer_dir) -> int:
    """Restores the newest complete step and compares every bit; returns it."""
    newest = latest_step(root)
    if newest is not None:
        with open_run(root, tokenizer_dir) as manager:
            step, *state, data, _ = restore_training(manager, *abstract_state())
        assert (step, data) == (newest, {"step": newest})
        assert same_bits(state, state_at(step)), f"step {step} is not what was saved"
    return newest or 0


@pytest.mark.slow
def test_kill_9_at_any_moment_of_a_save_loses_only_that_save(tmp_path, tokenizer_dir, caplog):
    """SIGKILL at 36 random moments, from the first file of a save into the one that follows.

    The moments spread over 1.2 times the duration of a save, so some come about its commit, while
    older steps are being deleted. Every restore is checked to the bit: by the next process before it
    goes on, and in every third round here first, which then also clears the broken save away.
    """
    root, log_path, chance = tmp_path / "run", tmp_path / "log", random.Random(0)
    inside, newest, save_secs = 0, 0, 0.0
    with log_path.open("w") as log:
        waiting = Writer(root, tokenizer_dir, log)
        for kill in range(KILLS):
            writer, waiting = waiting, Writer(root, tokenizer_dir, log)
            assert writer.begin() == newest
            after = newest + chance.randrange(2)
            wait_for_save(root, after)
            if kill == 0:
                began = time.monotonic()
                wait_for_save(root, after + 1)
                save_secs = time.monotonic() - began
            time.sleep(chance.uniform(0, 1.2 * save_secs))
            writer.kill()
            interrupted = saves_under_way(root)
            inside += bool(interrupted)
            caplog.clear()
            found = latest_step(root)
            assert (found or 0) >= after, f"kill {kill}: step {after} was complete, now {found}"
            assert all(f"{name}: ignored, it is incomplete" in caplog.text for name in interrupted)
            newest = check_newest(root, tokenizer_dir) if kill % 3 == 2 else found or 0
        assert waiting.begin() == newest
        wait_for_save(root, newest + 2)
        waiting.kill()
    assert check_newest(root, tokenizer_dir) >= newest + 2
    said = log_path.read_text()
    assert "Traceback" not in said, said
    assert inside >= KILLS * 0.6, f"{inside} of {KILLS} kills landed inside a save; {newest} steps"
    print(f"{inside} of {KILLS} kills landed inside a save; the run came to step {newest}")
