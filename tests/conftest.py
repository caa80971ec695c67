"""Eight fake CPU devices for every test, set before JAX starts."""

import os
import subprocess

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


@pytest.fixture
def small_disk(tmp_path):
    """Returns `mount(kibibytes)`, which makes a disk of that size and gives its directory."""
    disk = tmp_path / "disk"
    mounted = []

    def mount(kibibytes):
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a small disk")
        mounted.append(disk)
        return disk

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)
