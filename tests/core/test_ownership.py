"""One writer per directory, on a disk and in a bucket, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_bucket import BUCKET, fake_bucket

from ellama_jax.core import ownership
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path, delete_if, read_version, write_if

HOLD = """
import sys, time
from ellama_jax.core import ownership
ownership.LEASE_SECS = float(sys.argv[2])
with ownership.owned(sys.argv[1], "ellama test"):
    print("owns", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(request):
    """Returns `other(directory, environment)`: another process that owns a directory, started and ready."""
    started = []

    def start(directory, environment=None, lease=60):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory), str(lease)],
            env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "owns\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def bucket():
    with fake_bucket() as environment:
        yield environment


def refuses(directory):
    who = r"one writer at a time, got `ellama test` \(process"
    with pytest.raises(ValueError, match=who), owned(directory, "ellama other"):
        raise AssertionError("two owners")
    return True


def test_a_second_owner_is_refused_with_who_and_since_when_until_the_first_dies(other, tmp_path):
    directory = tmp_path / "new" / "run"
    first = other(directory)
    assert refuses(directory)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert refuses(tmp_path / "link" / "run")  # the same place by another name
    (tmp_path / "alias").symlink_to(directory)
    assert refuses(tmp_path / "alias")
    with owned(tmp_path / "new" / "other", "ellama other"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with owned(directory, "ellama other"):
        directory.mkdir()  # replaced as a whole, as verbs do
        with owned(directory, "ellama inner"):  # by what it calls
            pass
        assert (tmp_path / "new" / ".run.lock").exists()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["run"]


def test_a_refused_verb_leaves_no_directory(tmp_path):
    run = tmp_path / "a" / "b" / "run"
    with pytest.raises(ValueError, match="no"), owned(run, "ellama test"):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())


def test_an_owner_removes_what_dead_ones_left_half_written(tmp_path):
    run = tmp_path / "run"
    (tmp_path / ".run.partial-123" / "0").mkdir(parents=True)
    run.mkdir()
    old, new = (run / f".{name}.json.partial-{'0f' * 16}" for name in "ab")
    foreign = run / ".notes.partial-draft"  # of whoever made the directory
    for path in (old, new, foreign, tmp_path / ".run.partial-123"):
        path.touch()
    for path in (old, foreign, tmp_path / ".run.partial-123"):
        os.utime(path, (0, 0))
    with owned(run, "ellama test"):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".run.lock", "run"]
        assert set(run.iterdir()) == {new, foreign}  # the new one perhaps at work at this moment


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent died")
def test_a_started_verb_ends_with_its_parent_and_owns_until_then(tmp_path):
    script = """
import sys, time
from pathlib import Path
from ellama_jax.core.ownership import owned
from ellama_jax.core import verb_process
child = "from ellama_jax.core.verb_process import end_with_parent as e; import time; e(); time.sleep(600)"
verb_process._PROGRAM = [sys.executable, "-c", child]
with owned(sys.argv[1], "ellama test"):
    child = verb_process.start_verb([], Path(sys.argv[1], "log"))
    print(child.pid, flush=True)
    time.sleep(600)
"""
    (tmp_path / "run").mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    time.sleep(3)  # until it has asked the system
    assert _lives(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _lives(child)


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_of_two_writers_of_an_object_one_wins(bucket):
    path = as_path(f"gs://{BUCKET}/objects/lease")
    first = write_if(path, b"one", None)
    assert first and write_if(path, b"two", None) is None
    assert read_version(path) == (b"one", first)
    second = write_if(path, b"three", first)
    assert second and write_if(path, b"four", first) is None
    delete_if(path, first)
    assert read_version(path) == (b"three", second)
    delete_if(path, second)
    assert read_version(path) == (b"", None)


@pytest.mark.slow
def test_a_lease_is_refused_while_it_is_renewed_and_taken_once_its_owner_is_gone(
    bucket, other, monkeypatch
):
    monkeypatch.setattr(ownership, "LEASE_SECS", 60.0)
    directory = f"gs://{BUCKET}/runs/one"
    first = other(directory, bucket, lease=20)
    assert refuses(directory)  # the living renew it every five seconds here
    first.kill()
    first.wait()
    monkeypatch.setattr(ownership, "LEASE_SECS", 8.0)
    began = time.monotonic()
    with owned(directory, "ellama other"):
        assert time.monotonic() - began >= 8.0
        content, version = read_version(as_path(f"gs://{BUCKET}/runs/.one.lease"))
        assert json.loads(content)["command"] == "ellama other"
        time.sleep(6)
        assert read_version(as_path(f"gs://{BUCKET}/runs/.one.lease"))[1] != version
    assert read_version(as_path(f"gs://{BUCKET}/runs/.one.lease"))[1] is None


def test_who_lost_its_lease_ends_with_a_status_worth_another_try(bucket):
    directory = f"gs://{BUCKET}/runs/lost"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, directory, "8"], env=bucket, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "owns\n"
    path = as_path(f"gs://{BUCKET}/runs/.lost.lease")
    while write_if(path, b"{}", read_version(path)[1]) is None:
        pass
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75 and "taken by another writer" in error


def test_verbs_own_what_they_write(other, tmp_path, capfd):
    """A second `ellama train` in a workdir does nothing but say who is there."""
    from ellama_jax import cli

    other(tmp_path / "run")
    for words in (["train", "--config", "demo.py:tiny", "--workdir", tmp_path / "run"],
                  ["export", tmp_path / "nothing", tmp_path / "run"],
                  ["import", tmp_path / "nothing", tmp_path / "run"],
                  ["curate", "--config", "data/catalogue.py", "--out", tmp_path / "run"]):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        line = capfd.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and "one writer at a time, got `ellama test`" in line, words
