"""A verb as a process of its own: how it fails, how it is asked to stop, what it said last."""

import signal
import subprocess
import sys
import time

import pytest

from ellama_jax.core import verb_process


def test_a_verb_that_fails_is_named_with_its_status(capfd):
    with pytest.raises(
        ValueError, match=r"^ellama report nowhere: must succeed, got exit status 2"
    ):
        verb_process.run_verb(["report", "nowhere"])
    assert "ellama report: error: report: nowhere must be" in capfd.readouterr().err


def test_its_output_is_appended_to_the_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("earlier\n")
    assert verb_process.start_verb(["report", "nowhere"], log).wait() == 2
    assert log.read_text().startswith("earlier\nellama report: error:")
    assert verb_process.last_line(log).startswith("ellama report: error: report: nowhere must be")
    (tmp_path / "empty").touch()
    assert verb_process.last_line(tmp_path / "empty") == "it said nothing"


def test_what_does_not_stop_in_time_is_killed(monkeypatch):
    monkeypatch.setattr(verb_process, "_SECS_TO_SAVE", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
    soon = "import time; print(flush=True); time.sleep(60)"
    running = [
        subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE)
        for code in (deaf, soon)
    ]
    for process in running:
        process.stdout.readline()
    started = time.monotonic()
    verb_process.stop_verbs(running)
    assert [process.returncode for process in running] == [-signal.SIGKILL, -signal.SIGTERM]
    assert time.monotonic() - started < 30
