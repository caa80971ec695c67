"""Queued resources against a gcloud that records, keeps state and fails at every call in turn."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from launch_cases import SCRIPTS, script, write_env

# On a host of the fake: packages and windows are there, and `ellama` sleeps until it is told to end.
HOST_ELLAMA = """#!/bin/bash
printf '%s\\0' "$@" >arguments
printf '%s' "$LIBTPU_INIT_ARGS" >flags
trap 'exit 143' TERM
if [[ -f finish ]]; then exit "$(<finish)"; fi
for _ in {1..600}; do sleep 0.1; done
"""


class Cloud:
    """The fake's directory and what it holds."""

    def __init__(self, directory):
        self.home = directory
        self.bin = directory / "bin"
        for name in ("bin", "host_bin"):
            (directory / name).mkdir()
        gcloud = (SCRIPTS.parent / "tests/tpu_scripts/fake_gcloud.py").read_text()
        self._program(self.bin / "gcloud", f"#!{sys.executable}\n" + gcloud)
        self._program(directory / "host_bin/ellama", HOST_ELLAMA)
        self._program(directory / "host_bin/python", "#!/bin/bash\nmkdir -p windows.part; echo .\n")
        self._program(directory / "host_bin/uv", '#!/bin/bash\necho "$@" >>uv_calls\n')

    def _program(self, file, text):
        file.write_text(text)
        file.chmod(0o755)

    def run(self, verb, env, **environment):
        return script("queued.sh", verb, env, path=self.bin, FAKE_DIR=str(self.home), **environment)

    def calls(self):
        file = self.home / "calls.json"
        return json.loads(file.read_text()) if file.exists() else []

    def state(self):
        file = self.home / "state.json"
        return json.loads(file.read_text()) if file.exists() else {"requests": {}, "nodes": {}}

    def set_state(self, kind, name, value):
        state = self.state()
        state[kind][name]["state"] = value
        (self.home / "state.json").write_text(json.dumps(state))

    def forget_calls(self):
        (self.home / "calls.json").unlink(missing_ok=True)

    def hosts(self):
        return sorted(p.parent for p in self.home.glob("run-1*/*/ellama"))


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for host in cloud.hosts():
        pid = host / "ellama/train.pid"
        if pid.exists() and os.path.exists(f"/proc/{pid.read_text()}"):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def is_running(host):
    return (host / "ellama/train.pid").exists() and not (host / "ellama/train.status").exists()


@pytest.mark.parametrize("slices", [1, 2])
def test_a_run_from_its_request_to_its_end(cloud, slices):
    arguments = ["--config.a=two words", "--config.b=$(touch pwned); 'x' \"y\" `z` & \\ * ö"]
    env = write_env(cloud.home, arguments, SLICES=slices)
    pids = []
    for verb in ("create", "wait", "setup", "launch", "launch", "status", "logs-all"):
        ended = cloud.run(verb, env)
        assert ended.returncode == 0, (verb, ended)
        pids.append([file.read_text() for file in sorted(cloud.home.rglob("train.pid"))])
    assert len(pids[3]) == 2 * slices and pids[3] == pids[4] == pids[-1]
    # In a session of its own, so that the end of a connection does not reach it.
    assert os.getsid(0) not in {os.getsid(int(pid)) for pid in pids[-1]}
    names = ["run-1"] if slices == 1 else ["run-1-0", "run-1-1"]
    assert sorted(cloud.state()["nodes"]) == names
    assert len(cloud.hosts()) == 2 * slices and all(map(is_running, cloud.hosts()))
    for host in cloud.hosts():
        given = (host / "ellama/arguments").read_bytes().decode().split("\0")[:-1]
        assert given == [
            "train", "--config=configs/ellama.py:8b", "--workdir=gs://bucket/runs/8b",
            "--config.data.windows_dir=windows", *arguments,
        ]  # fmt: skip
        assert (
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true"
            in (host / "ellama/flags").read_text()
        )
    assert not list(cloud.home.rglob("pwned"))
    stopped = cloud.run("stop", env)
    assert stopped.returncode == 0 and stopped.stdout.count("exited 143") == 2 * slices
    assert cloud.run("delete", env).returncode == 0
    assert cloud.state() == {"requests": {}, "nodes": {}}
    assert cloud.run("delete", env).returncode == 0


def test_spot_image_and_slices_reach_the_request(cloud):
    env = write_env(cloud.home, SLICES=2, ACCELERATOR="v5e-16")
    assert cloud.run("create", env).returncode == 0
    options = cloud.state()["requests"]["run-1"]["options"]
    assert options["accelerator-type"] == "v5litepod-16" and "spot" in options
    assert options["runtime-version"] == "v2-alpha-tpuv5-lite"
    again = cloud.run("create", env)
    assert again.returncode == 0 and "run-1 is there already: ACTIVE" in again.stderr
    assert cloud.run("delete", env).returncode == 0
    env = write_env(cloud.home, SPOT=0, RUNTIME_VERSION="other-1")
    assert cloud.run("create", env).returncode == 0
    options = cloud.state()["requests"]["run-1"]["options"]
    assert "spot" not in options and options["runtime-version"] == "other-1"


@pytest.mark.slow
def test_each_verb_fails_at_every_call_and_a_second_run_makes_good(cloud):
    """Not a call is left out: the failing one moves on until the verbs come to their end."""
    env = write_env(cloud.home, SLICES=2)
    failures = 0
    for verb in ("create", "wait", "setup", "launch", "stop", "delete"):
        for how in ("before", "after"):
            for number in range(50):
                cloud.forget_calls()
                ended = cloud.run(verb, env, FAKE_FAIL_AT=str(number), FAKE_FAIL=how)
                reached = len(cloud.calls()) > number
                assert (ended.returncode != 0) == reached, (verb, how, number, ended)
                failures += reached
                assert cloud.run(verb, env).returncode == 0
                if not reached:
                    break
                if verb == "delete":
                    assert cloud.state() == {"requests": {}, "nodes": {}}
                    for earlier in ("create", "setup"):
                        assert cloud.run(earlier, env).returncode == 0
            else:
                raise AssertionError(f"{verb} makes over 50 calls")
        wanted = {"launch": 4}.get(verb)
        assert wanted is None or sum(map(is_running, cloud.hosts())) == wanted
    assert failures > 20


def test_a_node_whose_request_is_gone_is_deleted_too(cloud):
    env = write_env(cloud.home)
    assert cloud.run("create", env).returncode == 0
    state = cloud.state()
    del state["requests"]["run-1"]
    (cloud.home / "state.json").write_text(json.dumps(state))
    assert cloud.run("delete", env).returncode == 0
    assert cloud.state() == {"requests": {}, "nodes": {}}


@pytest.mark.parametrize("how", ["SUSPENDED", "FAILED", "PREEMPTED", "absent", "never set up"])
def test_resume_brings_back_what_was_taken_away(cloud, how):
    env = write_env(cloud.home)
    for verb in ("create", "setup", "launch") if how != "never set up" else ("create",):
        assert cloud.run(verb, env).returncode == 0
    if how in ("SUSPENDED", "FAILED"):
        cloud.set_state("requests", "run-1", how)
    elif how == "PREEMPTED":
        cloud.set_state("nodes", "run-1", how)
    elif how == "absent":
        assert cloud.run("delete", env).returncode == 0
    cloud.forget_calls()
    ended = cloud.run("resume", env)
    assert ended.returncode == 0, ended
    assert all(map(is_running, cloud.hosts())) and len(cloud.hosts()) == 2
    created = [call for call in cloud.calls() if call[2:4] == ["queued-resources", "create"]]
    assert len(created) == (how != "never set up")
    cloud.forget_calls()
    again = cloud.run("resume", env)
    assert again.returncode == 0 and "run-1: running" in again.stderr
    assert not [call for call in cloud.calls() if call[3] in ("create", "delete", "scp")]


def test_resume_starts_all_hosts_together(cloud):
    """The leading host's job was killed; the other's still waits for it, and begins anew."""
    env = write_env(cloud.home)
    for verb in ("create", "setup", "launch"):
        assert cloud.run(verb, env).returncode == 0
    before = [int((host / "ellama/train.pid").read_text()) for host in cloud.hosts()]
    os.kill(before[0], signal.SIGKILL)
    ended = cloud.run("resume", env)
    assert ended.returncode == 0 and "run-1: exited 137" in ended.stderr, ended
    after = [int((host / "ellama/train.pid").read_text()) for host in cloud.hosts()]
    assert all(map(is_running, cloud.hosts())) and not set(before) & set(after)


def test_waiting_ends_where_the_request_will_not_be_met(cloud):
    env = write_env(cloud.home)
    absent = cloud.run("wait", env)
    assert absent.returncode == 1 and "must be requested first" in absent.stderr
    assert cloud.run("create", env).returncode == 0
    cloud.set_state("requests", "run-1", "FAILED")
    ended = cloud.run("wait", env)
    assert ended.returncode == 1 and "got FAILED; queued.sh resume" in ended.stderr


@pytest.mark.parametrize(("status", "code"), [("0", 0), ("1", 1)])
def test_watching_ends_with_the_run(cloud, status, code):
    env = write_env(cloud.home)
    for verb in ("create", "setup"):
        assert cloud.run(verb, env).returncode == 0
    for host in cloud.hosts():
        (host / "ellama/finish").write_text(status)
    ended = cloud.run("watch", env, POLL_SECS="0.2")
    assert ended.returncode == code, ended
    assert ("the run has ended" if code == 0 else "ended with an error (exited 1)") in ended.stderr


def test_watching_starts_a_job_that_lost_a_process_again_but_not_for_ever(cloud):
    env = write_env(cloud.home)
    for verb in ("create", "setup"):
        assert cloud.run(verb, env).returncode == 0
    for host in cloud.hosts():
        (host / "ellama/finish").write_text("75")
    ended = cloud.run("watch", env, POLL_SECS="0.2")
    assert ended.returncode == 1 and "a process was lost 4 times in a row" in ended.stderr, ended


def test_watching_brings_a_preempted_run_to_its_end(cloud):
    """The slice is taken away while it is watched; on the new one the job ends by itself."""
    env = write_env(cloud.home)
    for verb in ("create", "setup", "launch"):
        assert cloud.run(verb, env).returncode == 0
    cloud.set_state("nodes", "run-1", "PREEMPTED")
    ellama = cloud.home / "host_bin/ellama"
    ellama.write_text("#!/bin/bash\nexit 0\n")
    ended = cloud.run("watch", env, POLL_SECS="0.2")
    assert ended.returncode == 0 and "run-1: lost" in ended.stderr, ended
    assert "the run has ended" in ended.stderr
    created = [call for call in cloud.calls() if call[2:4] == ["queued-resources", "create"]]
    assert len(created) == 2


VERBS = ["create", "wait", "setup", "launch", "status", "logs", "logs-all", "stop", "delete"]


@pytest.mark.parametrize("slices", [1, 3])
def test_dry_run_prints_every_command_and_calls_nothing(cloud, slices):
    """What it prints is what the real verb calls."""
    env = write_env(cloud.home, SLICES=slices)
    for verb in [*VERBS, "resume", "watch"]:
        ended = cloud.run(verb, env, DRY_RUN="1")
        assert ended.returncode == 0 and cloud.calls() == [], ended
        lines = [shlex.split(line) for line in ended.stdout.splitlines()]
        assert lines and all(line[:3] == ["gcloud", "compute", "tpus"] for line in lines), verb
    for verb in ["create", "wait", "launch", "stop"]:
        if verb == "launch":
            assert cloud.run("setup", env).returncode == 0
        printed = cloud.run(verb, env, DRY_RUN="1").stdout.splitlines()
        cloud.forget_calls()
        cloud.run(verb, env)
        assert sorted(cloud.calls()) == sorted(shlex.split(line)[1:] for line in printed), verb


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_itself_takes_every_command(cloud, tmp_path):
    """Its linter of command lines, which asks no service and needs no account."""
    printed = []
    for slices in (1, 2):
        env = write_env(tmp_path, SLICES=slices)
        for verb in [*VERBS, "resume"]:
            printed += cloud.run(verb, env, DRY_RUN="1").stdout.splitlines()
    printed += script("xpk.sh", "logs", env, DRY_RUN="1").stdout.splitlines()[:1]
    lines = sorted({shlex.join(shlex.split(line)) for line in printed})
    for extra, good in ((lines, True), ([f"{lines[0]} --no-such-flag=1"], False)):
        (tmp_path / "lines.json").write_text(
            json.dumps([{"command_string": line} for line in extra])
        )
        argv = ["gcloud", "meta", "lint-gcloud-commands"]
        argv.append(f"--commands-file={tmp_path / 'lines.json'}")
        environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "empty")}
        ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
        verdicts = json.loads(ended.stdout)
        assert len(verdicts) == len(extra), ended
        assert [v for v in verdicts if v["success"] != good] == []
