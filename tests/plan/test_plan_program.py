"""What is read from a compiler that refuses."""

import pytest

from ellama_jax.plan.program import refusal

TOO_MUCH = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space {0}. "
    "Used 40.00G of 31.25G {0}. Exceeded {0} capacity by 8.75G.\n\nTotal usage"
)


def test_a_program_too_large_for_a_device_does_not_fit():
    answer = refusal(TOO_MUCH.format("hbm"))
    assert answer["outcome"] == "no_fit"
    assert answer["out_of_memory"]["missing_bytes"] == 8.75 * 2**30


@pytest.mark.parametrize(
    "text", [TOO_MUCH.format("vmem"), "INTERNAL: Mosaic failed to compile TPU kernel\nat x.py"]
)
def test_a_kernel_that_is_refused_says_nothing_of_what_fits_a_device(text):
    answer = refusal(text)
    assert answer == {"outcome": "failed", "message": text.splitlines()[0]}
