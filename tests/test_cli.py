"""The command line: help at once, one clear line for a mistake."""

import importlib
import subprocess
import sys
import time

import pytest

from ellama_jax import cli


def run(*argv):
    return subprocess.run(
        [sys.executable, "-m", "ellama_jax.cli", *argv], capture_output=True, text=True, check=False
    )


def test_every_verb_of_the_table_has_its_function():
    for verb, (module, _) in cli.VERBS.items():
        assert callable(getattr(importlib.import_module(module), f"main_{verb.replace('-', '_')}"))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "example" in text and f"ellama {verb}" in text


def test_help_lists_the_verbs_and_imports_nothing_heavy():
    code = (
        "import sys; from ellama_jax.cli import main; main(['--help']); print(sorted(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"\n  {verb} " in out for verb in cli.VERBS)
    for heavy in ("'jax'", "'numpy'", "'tensorflow'", "'torch'", "'flax'"):
        assert heavy not in out.splitlines()[-1]


def test_help_is_quick():
    """Of three tries the best stands for the program; a busy machine only adds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run("--help")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_an_unknown_verb_names_the_nearest():
    done = run("trian")
    assert done.returncode == 2
    assert done.stderr == "ellama: error: trian is no verb; did you mean train?\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["inspect", "/no/such/place"], "/no/such/place"),
        (["train", "--workdir", "w"], "--config: must name a configuration file"),
        (["import", "/no/such/model", "dst"], "/no/such/model"),
        (["merge", "--base", "a", "--adapted", "b", "--alpha", "0.5", "--out", "c"], "a"),
        (["report", "/no/such/run"], "/no/such/run"),
    ],
)
def test_a_user_s_mistake_is_one_line_without_traceback(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"ellama {argv[0]}: error: ") and words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("ELLAMA_TRACEBACK", "1")
    with pytest.raises(ValueError):
        cli.main(["inspect", "/no/such/place"])


def test_a_ctrl_c_that_python_drops_is_heard_again():
    """In a `__del__`, or a callback of the garbage collector as JAX has one, errors go nowhere."""
    program = """
import signal, sys, time, types
from ellama_jax import cli

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def main_inspect(argv):
    Dropped()
    time.sleep(60)

sys.modules["verb"] = types.SimpleNamespace(main_inspect=main_inspect)
cli.VERBS["inspect"] = ("verb", "")
cli.main(["inspect"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 130
    assert len(done.stderr.splitlines()) == 1 and "interrupted" in done.stderr
