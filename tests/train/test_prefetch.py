"""Batches ahead of the step: bounded, in order, and honest about what went wrong."""

import threading

import pytest

from ellama_jax.train.prefetch import Prefetched


def count_up(seen, stop=100):
    for number in range(stop):
        seen.append(number)
        yield number


def wait_for(holds):
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.005)
    raise AssertionError("nothing happened in 5 s")


def test_batches_come_in_order_and_no_more_than_the_depth_lies_ahead():
    read, placed = [], []

    def place(number):
        placed.append(number)
        return {"number": number}

    with Prefetched(count_up(read), place, depth=2) as batches:
        wait_for(lambda: len(placed) == 2)
        assert batches.get() == (0, {"number": 0})
        wait_for(lambda: len(placed) == 3)
        assert [batches.get().rows for _ in range(4)] == [1, 2, 3, 4]
        wait_for(lambda: len(placed) == 7)
        threading.Event().wait(0.05)
        assert placed == read == list(range(7))


def test_what_reading_raises_comes_after_the_batches_before_it():
    def rows():
        yield 1
        raise ValueError("windows /w: window 7 is damaged.")

    with Prefetched(rows(), dict.fromkeys, depth=2) as batches, pytest.raises(TypeError):
        batches.get()  # dict.fromkeys(1): placing may fail too
    with Prefetched(rows(), lambda x: {"x": x}, depth=2) as batches:
        assert batches.get().rows == 1
        for _ in range(2):
            with pytest.raises(ValueError, match="^windows /w: window 7 is damaged.$"):
                batches.get()


def test_a_wait_ends_in_time_and_leaving_ends_the_thread():
    gate = threading.Event()

    def rows():
        gate.wait()
        yield 1

    before = threading.active_count()
    with Prefetched(rows(), lambda x: x, depth=1) as batches:
        assert batches.get(timeout=0.01) is None
        gate.set()
        assert batches.get().rows == 1
    wait_for(lambda: threading.active_count() == before)
