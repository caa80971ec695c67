"""The wheel alone, in a folder of its own and far from the repository, does the whole job."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = """
from configs import demo
def get_config():
    config = demo.get_config("tiny")
    config.mesh.fspd = 3
    return config
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Installs a wheel of this tree into an empty folder; returns a function that runs a verb of it."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("ellama_jax", "configs"):
        shutil.copytree(ROOT / name, root / "tree" / name)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    argv = [*pip, "--no-deps", "--no-build-isolation", "--target", root / "site", root / "tree"]
    subprocess.run(argv, check=True, timeout=300)
    shutil.rmtree(root / "tree")

    def ellama(words, place):
        environment = {**os.environ, "PYTHONPATH": str(root / "site"), "XLA_FLAGS": ""}
        argv = [sys.executable, "-m", "ellama_jax.cli", *words.split()]
        return subprocess.run(
            argv, cwd=place, env=environment, capture_output=True, text=True, timeout=600
        )

    where = [sys.executable, "-c", "import ellama_jax; print(ellama_jax.__file__)"]
    found = subprocess.run(
        where, env={**os.environ, "PYTHONPATH": str(root / "site")}, cwd=root,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(root / "site")
    return ellama


@pytest.mark.slow
def test_a_wheel_demonstrates_plans_and_takes_shipped_and_own_configurations(installed, tmp_path):
    made = installed("demo --model tiny --offline --workdir demo", tmp_path)
    assert made.returncode == 0 and (tmp_path / "demo/report.html").is_file(), made.stderr
    again = installed(
        "train --config demo:tiny --workdir run --config.model.checkpoint=demo/base "
        "--config.data.windows_dir=demo/windows --config.train.steps=2 --config.schedule.warmup_steps=1",
        tmp_path,
    )
    assert again.returncode == 0 and (tmp_path / "run/checkpoints/2").is_dir(), again.stderr
    planned = installed("plan --config configs/demo.py:tiny --topology cpu-2", tmp_path)
    assert planned.returncode == 0 and "cpu-2" in planned.stdout, planned.stderr
    (tmp_path / "my_run.py").write_text(OWN)
    refused = installed("train --config my_run.py --workdir other", tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "fspd" in refused.stderr and not (tmp_path / "other").exists()
