"""Silence is reported with stacks, and slow processes by name."""

import time

import pytest

from ellama_jax.core.exits import EXIT_AGAIN
from ellama_jax.train.watchdog import Stragglers, Watchdog, pack_times


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_silence_is_reported_once_and_again_when_it_doubled(clock, tmp_path):
    with (tmp_path / "said").open("w+") as file:
        watchdog = Watchdog(10, lambda: "step 7, waiting for data", clock=clock, file=file)
        reports = []
        for clock.now in range(0, 61, 5):
            reports.append((clock.now, watchdog.check()))
        assert [now for now, said in reports if said] == [10, 20, 40]
        watchdog.beat()
        clock.now += 9
        assert not watchdog.check()
        clock.now += 1
        assert watchdog.check()
        file.seek(0)
        said = file.read()
    assert "nothing finished for 10 s (train.hang_secs 10), at: step 7, waiting for data" in said
    assert "test_silence_is_reported_once" in said  # the stack of this thread
    assert "ends with status" not in said


def test_abort_leaves_with_the_status_of_another_try(clock, tmp_path):
    left = []
    with (tmp_path / "said").open("w") as file:
        watchdog = Watchdog(
            3, lambda: "", abort=True, name="process 4: ", clock=clock, file=file,
            leave=lambda *end: left.append(end),
        )  # fmt: skip
        clock.now = 3.0
        watchdog.check()
    [(status, line)] = left
    assert status == EXIT_AGAIN == 75
    assert line.startswith("process 4: nothing finished") and "train.abort_on_hang" in line
    assert (tmp_path / "said").read_text().startswith("process 4: nothing finished")


def test_the_thread_watches_by_itself_and_zero_watches_nothing(tmp_path):
    with (tmp_path / "said").open("w") as file:
        with Watchdog(0.1, lambda: "here", file=file):
            deadline = time.monotonic() + 10
            while not (tmp_path / "said").read_text() and time.monotonic() < deadline:
                time.sleep(0.02)
        assert "at: here" in (tmp_path / "said").read_text()
        with Watchdog(0, lambda: "here", file=file) as off:
            assert not off.check()


def words(*times):
    return [pack_times(*pair) for pair in times]


def test_the_process_that_others_wait_for_is_named_with_its_ratio():
    """Of 4 s a step process 2 takes 3 for itself, the others 1: without it steps take 2 s less."""
    slow = Stragglers(["a", "b", "host-c", "d"], ratio=1.5)
    for _ in range(3):
        slow.add(words((1, 0), (1, 0), (3, 2.5), (0.5, 0)), 4.0)
    said = slow.report()
    assert said.startswith("process 2 (host-c) holds the others up: steps take 2.0 times as long")
    assert "Of 4.00 s a step 3.00 s are its own (2.50 s waiting for data), 1.00 s" in said


def test_nobody_is_named_below_the_ratio_alone_or_twice():
    slow = Stragglers(["a", "b"], ratio=1.5)
    slow.add(words((0.1, 0), (0.9, 0)), 3.0)
    assert slow.report() is None  # 3 / 2.2
    slow.add(words((0.1, 0), (2.9, 0)), 3.0)
    assert "process 1 (b)" in slow.report()
    assert slow.report() is None  # nothing since
    alone = Stragglers(["a"], ratio=1.5)
    alone.add(words((2.9, 2.9)), 3.0)
    assert alone.report() is None
