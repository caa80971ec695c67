"""Compilations, each in a process of its own.

Owns the environment such a process needs, waiting for it and what its end means. What it does is
plan_program.py's part.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ellama_jax.config import RunConfig, config_to_mapping, stage_sections
from ellama_jax.data.mixture import language_shares

_POLL_SECS = 0.2


def compile_for(
    config: RunConfig,
    topology: str,
    text_path: Path,
    on_phase: Callable[[str, float], None] = lambda phase, secs: None,
) -> dict:
    """Compiles a run's step for a topology, see `plan_program.compile_request`.

    Args:
        config: the run; its weights and windows need not exist.
        topology: its name.
        text_path: where the compiled program, or the compiler's refusal, is written.
        on_phase: called again and again with what is being done and for how many seconds.

    Returns:
        the answer, with `secs`, its time on the clock.

    Raises:
        ValueError: for what a user can change, before anything is compiled.
    """
    with tempfile.TemporaryDirectory(prefix="ellama-plan-") as folder:
        request, answer, log = (Path(folder) / name for name in ("request", "answer", "log"))
        asked = {
            "config": config_to_mapping(config),
            "topology": topology,
            "num_sources": count_sources(config),
            "text_path": str(text_path),
        }
        request.write_text(json.dumps(asked))
        start = time.monotonic()
        with log.open("w") as stderr:
            code = _run(request, answer, stderr, compiler_environment(topology), on_phase)
        if not answer.exists():
            text_path.write_text(log.read_text())
            return {
                "outcome": "failed",
                "message": _last_words(code, log.read_text()),
                "text_path": str(text_path),
                "secs": time.monotonic() - start,
            }
        found = json.loads(answer.read_text())
    if found["outcome"] == "invalid":
        raise ValueError(found["message"])
    return {**found, "secs": time.monotonic() - start}


def _run(request, answer, stderr, environment, on_phase) -> int:
    command = [sys.executable, "-m", "ellama_jax.plan_program", str(request), str(answer)]
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
    )
    phase, start = "starting", time.monotonic()
    os.set_blocking(child.stdout.fileno(), False)
    try:
        while child.poll() is None:
            said = (child.stdout.read() or b"").decode().split()
            phase = said[-1] if said else phase
            on_phase(phase, time.monotonic() - start)
            time.sleep(_POLL_SECS)
    finally:
        # An interrupted plan leaves no compiler behind.
        if child.poll() is None:
            child.kill()
        child.wait()
        child.stdout.close()
    return child.returncode


def _last_words(code: int, log: str) -> str:
    """Says how a compiling process ended that gave no answer."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        return "the compiler's process was killed (signal 9); has this machine enough memory?"
    said = lines[-1][:300] if lines else "it said nothing"
    if code < 0:
        fatal = [line for line in lines if line.startswith("F") and "]" in line]
        said = fatal[0].split("]", 1)[1].strip()[:300] if fatal else said
        return f"the compiler's process ended by signal {-code}: {said}"
    return said


def compiler_environment(topology: str, environment: Mapping[str, str] = os.environ) -> dict:
    """Returns the environment of a process that compiles for `topology`.

    The devices of this machine are left alone: a TPU compiler needs none, and a plan must not take
    one from a run. For `cpu-N` there are N fake devices; for `gpu` JAX takes those it finds.
    """
    mine = dict(environment)
    if topology == "gpu":
        mine.pop("JAX_PLATFORMS", None)
        # Compiling needs the device's name and size, not most of its memory.
        mine["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        return mine
    mine["JAX_PLATFORMS"] = "cpu"
    if topology.startswith("cpu-"):
        count = topology.removeprefix("cpu-")
        mine["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
        return mine
    mine.update(
        TPU_SKIP_MDS_QUERY="1",  # no metadata server is asked which TPU this is
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # another process here may have it open
        # These three only keep libtpu from warning that there is no TPU.
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        TPU_ACCELERATOR_TYPE="v5p-8",
        TPU_STDERR_LOG_LEVEL="3",
        TPU_MIN_LOG_LEVEL="3",
    )
    return mine


def has_tpu_compiler() -> bool:
    """Tells whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def count_sources(config: RunConfig) -> int:
    """Returns how many pairs of domain and language a run's losses are counted by.

    A window set is a source too where two have the same domain and language; planning needs no
    windows, and a few more sums change nothing that is measured here.
    """
    if config.data.seqio_mixture:
        return 1
    sections = stage_sections(config.data)
    return len({key for path, _, section in sections for key in language_shares(section, path)})
