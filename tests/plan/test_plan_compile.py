"""Processes that compile: how they end, and what they are asked."""

import dataclasses
import os
import signal
import sys

import pytest

from ellama_jax.config import StageConfig, load_config
from ellama_jax.plan import compile as plan_compile
from ellama_jax.plan.compile import compile_for, count_sources, last_words
from ellama_jax.plan.targets import parse_targets


def config():
    return load_config(["--config", "configs/ellama.py"], "plan")[0]


def test_a_process_that_was_killed_may_have_had_too_little_memory():
    assert "has this machine enough memory?" in last_words(-signal.SIGKILL, "whatever\n")


def test_a_process_that_aborted_says_why_it_did():
    log = "W0000 a.cc:1] a warning\nF0000 b.cc:2] Check failed: x == y (1 vs. 2)\n*** stack ***\n @ 0x1"
    assert last_words(-signal.SIGABRT, log).endswith("signal 6: Check failed: x == y (1 vs. 2)")
    assert last_words(1, "Traceback\n  File\nImportError: no such thing\n") == (
        "ImportError: no such thing"
    )
    assert last_words(-signal.SIGSEGV, "").endswith("it said nothing")


def test_sources_are_pairs_of_domain_and_language_of_any_stage():
    assert count_sources(config()) == 10
    data = dataclasses.replace(
        config().data, general_shares={"en": 1.0}, ecommerce_shares={"en": 0.5, "de": 0.5}
    )
    two = dataclasses.replace(config(), data=data)
    assert count_sources(two) == 3
    late = {"late": StageConfig(start_step=10, general_shares={"fr": 1.0})}
    staged = dataclasses.replace(two, data=dataclasses.replace(data, stages=late))
    assert count_sources(staged) == 4
    streamed = dataclasses.replace(two, data=dataclasses.replace(data, seqio_mixture="a"))
    assert count_sources(streamed) == 1


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Returns a function that plans with a child that runs some Python instead."""

    def run(code, on_phase=lambda phase, secs: None):
        script = tmp_path / "child.py"
        script.write_text(f"import json, os, sys, time\nrequest, answer = sys.argv[-2:]\n{code}\n")
        monkeypatch.setattr(plan_compile, "_COMMAND", (sys.executable, str(script)))
        return compile_for(config(), parse_targets("cpu-2")[0], tmp_path / "text", on_phase)

    return run


def test_a_child_that_aborts_is_a_failure_with_its_text_kept(child, tmp_path):
    answer = child("sys.stderr.write('F00 x.cc:1] Check failed: oh\\n'); os.abort()")
    assert answer["outcome"] == "failed" and "signal 6: Check failed: oh" in answer["message"]
    assert (tmp_path / "text").read_text() == "F00 x.cc:1] Check failed: oh\n"


def test_a_childs_refusal_is_the_users_mistake(child):
    with pytest.raises(ValueError, match="^mesh: oh no$"):
        child("json.dump({'outcome': 'invalid', 'message': 'mesh: oh no'}, open(answer, 'w'))")


def test_what_a_child_does_is_told_while_it_does_it(child):
    phases = []
    code = "print('compiling', flush=True); time.sleep(0.7)\n"
    code += "json.dump({'outcome': 'compiled'}, open(answer, 'w'))"
    answer = child(code, lambda phase, secs: phases.append(phase))
    assert answer["outcome"] == "compiled" and answer["secs"] >= 0.7
    assert "compiling" in phases


def test_an_interrupted_plan_leaves_no_child(child, tmp_path):
    pid_file = tmp_path / "pid"
    code = f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); print('on', flush=True)\n"

    def interrupt(phase, secs):
        if phase == "on":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child(code + "time.sleep(60)", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
