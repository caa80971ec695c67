"""Compilations, each in a process of its own.

The flags of a TPU compiler are read once a process, what it aborts on ends the process, what it
allocates stays allocated, and fake devices are counted when JAX starts. So each compilation has a
process, at the price of importing JAX again (3 s of a minute). Owns starting it, waiting for it and
what its end means; what it does is plan/program.py's part.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ellama_jax.config import RunConfig, config_to_mapping, stage_sections
from ellama_jax.plan.targets import Target, compiler_environment
from ellama_jax.tokens.mixture import language_shares

_POLL_SECS = 0.2
_COMMAND = (sys.executable, "-m", "ellama_jax.plan.program")


def compile_for(
    config: RunConfig,
    target: Target,
    text_path: Path,
    on_phase: Callable[[str, float], None] = lambda phase, secs: None,
) -> dict:
    """Compiles a run's step for a target, see `plan_program.compile_request`.

    Args:
        config: the run; its weights and windows need not exist.
        target: for what.
        text_path: where the compiled program, or why there is none, is written.
        on_phase: called again and again with what is being done and for how many seconds.

    Returns:
        the answer, with `secs`, its time on the clock.

    Raises:
        ValueError: for what a user can change, before anything is compiled.
    """
    request = {
        "target": target.name,
        "config": config_to_mapping(config),
        "num_sources": count_sources(config),
        "text_path": str(text_path),
    }
    start = time.monotonic()
    answer, said = _ask(request, target, on_phase)
    if answer["outcome"] == "failed" and said is not None:
        text_path.write_text(said)
    return {**answer, "secs": time.monotonic() - start}


def describe(target: Target) -> dict:
    """Returns `device_kind`, `num_devices`, `limit_bytes` (None if unknown) and `versions`.

    Raises:
        ValueError: if there are none.
    """
    answer, _ = _ask({"target": target.name}, target, lambda phase, secs: None)
    if answer["outcome"] == "failed":
        raise ValueError(
            f"{target.name}: must be devices that JAX can use, got: {answer['message']}."
        )
    return answer


def _ask(request: dict, target: Target, on_phase) -> tuple[dict, str | None]:
    """Returns a process's answer to a request, or how it ended without one and what it wrote."""
    with tempfile.TemporaryDirectory(prefix="ellama-plan-") as folder:
        asked, answer, log = (Path(folder) / name for name in ("request", "answer", "log"))
        asked.write_text(json.dumps(request))
        code = _run([str(asked), str(answer)], log, compiler_environment(target), on_phase)
        if not answer.exists():
            said = log.read_text(errors="replace")
            return {"outcome": "failed", "message": last_words(code, said)}, said
        found = json.loads(answer.read_text())
    if found["outcome"] == "invalid":
        raise ValueError(found["message"])
    return found, None


def _run(arguments: list[str], log: Path, environment: dict, on_phase) -> int:
    """Runs the process to its end and returns its exit status."""
    phase, start = "starting", time.monotonic()
    with contextlib.ExitStack() as stack:
        stderr = stack.enter_context(log.open("wb"))
        child = stack.enter_context(
            subprocess.Popen(
                [*_COMMAND, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=stderr,
            )
        )  # fmt: skip
        # An interrupted plan leaves no compiler behind.
        stack.callback(child.kill)
        os.set_blocking(child.stdout.fileno(), False)
        while child.poll() is None:
            said = (child.stdout.read() or b"").decode(errors="replace").split()
            phase = said[-1] if said else phase
            on_phase(phase, time.monotonic() - start)
            time.sleep(_POLL_SECS)
    return child.returncode


def last_words(code: int, log: str) -> str:
    """Says in one line how a process ended that gave no answer.

    Args:
        code: its exit status, negative for a signal.
        log: what it wrote to stderr.

    >>> last_words(-6, "I0000 x.cc:1] begins\\nF0000 00:00 y.cc:2] Check failed: a == b\\n*** stack")
    "the compiler's process was ended by signal 6: Check failed: a == b"
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        return "the compiler's process was killed (signal 9); has this machine enough memory?"
    fatal = [line.split("] ", 1)[1] for line in lines if line.startswith("F") and "] " in line]
    said = (fatal or lines[-1:] or ["it said nothing"])[0][:300]
    if code < 0:
        return f"the compiler's process was ended by signal {-code}: {said}"
    return said


def count_sources(config: RunConfig) -> int:
    """Returns how many pairs of domain and language a run's losses are counted by.

    Two window sets of one domain and language are two sources. Planning needs no windows, and a few
    sums more change nothing that is measured here.
    """
    if config.data.seqio_mixture:
        return 1
    sections = stage_sections(config.data)
    return len({key for path, _, section in sections for key in language_shares(section, path)})
