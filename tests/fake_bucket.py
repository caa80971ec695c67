"""A fake bucket for tests: an emulator of Google Cloud Storage in a process of its own."""

import collections
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

BUCKET = "bucket"
WHY = "a fake bucket needs the packages of tools/bucket-tests.txt"


@contextlib.contextmanager
def fake_bucket():
    """Starts the emulator and points gcsfs, TensorStore and Google's client at it.

    Yields:
        the environment, for processes that are to see the bucket too.
    """
    changed = {
        # Credentials and the kind of the bucket are asked of Google, which is not there.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changed.items():
            patch.setenv(name, value)
        for module in ("gcsfs", "gcp_storage_emulator"):
            pytest.importorskip(module, reason=WHY)
        port = _free_port()
        address = f"http://localhost:{port}"
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, address)
        script = Path(__file__).with_name("bucket_server.py")
        command = [sys.executable, str(script), str(port), BUCKET]
        with open(os.devnull, "w") as nowhere:
            server = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            _wait(address, server)
            yield dict(os.environ)
        finally:
            server.terminate()
            server.wait()


def inject(*faults):
    """Has reads of objects go wrong as `bucket_server.py` says; none: no longer.

    Returns:
        how many requests and reads there were since the last call, and, by kind, went wrong.
    """
    return collections.Counter(_tell("faults", faults))


def pretend(directory, sizes, head):
    """Lists objects, name -> bytes, in a directory as if they were there; all begin with `head`."""
    prefix = f"{directory}/".removeprefix(f"gs://{BUCKET}/")
    items = [{"name": prefix + name, "size": str(sizes[name])} for name in sorted(sizes)]
    _tell("pretended", {"prefix": prefix, "items": items, "head": head.hex()})


def _tell(what, body):
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/{what}"
    request = urllib.request.Request(url, json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@functools.cache
def _free_port() -> int:
    # One for the whole process: TensorStore does not ask again where a bucket is.
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _wait(address: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/storage/v1/b/{BUCKET}").close()
            return
        time.sleep(0.05)
    raise RuntimeError("the emulator of a bucket did not start")
