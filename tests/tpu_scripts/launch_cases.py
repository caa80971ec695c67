"""Env files, and the scripts run as a user runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"
SETTINGS = {
    "PROJECT": "my-project", "ZONE": "us-east5-b", "NAME": "run-1", "ACCELERATOR": "v6e-64",
    "SLICES": "1", "SPOT": "1", "RUNTIME_VERSION": "", "WORKDIR": "gs://bucket/runs/8b",
    "WINDOWS": "gs://bucket/windows", "CONFIG": "configs/ellama.py:8b",
    "INSTALL": "git+https://example.org/r.git@abc", "CLUSTER": "pods", "IMAGE": "example.org/a/b:1",
}  # fmt: skip


def write_env(directory, arguments=(), **changes):
    """Writes an env file; a change to None leaves that name out."""
    settings = {**SETTINGS, **changes}
    lines = [f"{name}={value}" for name, value in settings.items() if value is not None]
    file = directory / "run.env"
    file.write_text("\n".join([*lines, *(f"TRAIN_ARG={word}" for word in arguments)]) + "\n")
    return file


def script(
    name,
    *arguments,
    path="",
    scripts=SCRIPTS,
    cwd=None,
    stdin=subprocess.DEVNULL,
    checked=False,
    **environment,
):
    """Runs a script of tpu_scripts/; `path` is put before PATH.

    Without `checked` no run is looked at before the launch, which takes seconds each time.
    """
    env = {
        **os.environ,
        "PYTHON": sys.executable
        if checked
        else str(Path(__file__).with_name("unchecked_python.sh")),
        "REAL_PYTHON": sys.executable,
        "POLL_SECS": "0",
        "CLOUDSDK_CONFIG": "/none",
        **environment,
    }
    if path:
        env["PATH"] = f"{path}:{env['PATH']}"
    argv = [shutil.which("bash"), str(scripts / name), *map(str, arguments)]
    return subprocess.run(
        argv, env=env, cwd=cwd, stdin=stdin, capture_output=True, text=True, timeout=240
    )
