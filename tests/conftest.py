"""Eight fake CPU devices for every test, set before JAX starts."""

import os

import pytest
from fake_bucket import BUCKET, fake_bucket

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices on two busy cores may wait longer for each other than the 40 s after which XLA aborts.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="module")
def bucket():
    """A bucket that is not there: `gs://bucket`, empty for each test module; returns its URL."""
    with fake_bucket():
        yield f"gs://{BUCKET}"
