"""Queued resources against a gcloud that records, keeps state and fails where it is told to.

A host of the fake is a directory, in which the real on_host.sh starts a small script in place of
`ellama`; how that ends, by host and start, a test says in bash.
"""

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_bucket import fake_bucket
from launch_cases import SCRIPTS, script, write_env

from ellama_jax.config import load_config

# Runs until it is told to end, unless `ends` says something else for this host and start. Two at
# once on one host would be noted.
HOST_ELLAMA = """#!/bin/bash
printf '%s\\0' "$@" >arguments
printf '%s' "$LIBTPU_INIT_ARGS" >flags
printf '%s|%s' "${PLAIN:-}" "${WANDB_API_KEY:-}" >seen_by_the_job
root=$HOME/../..
host=$(basename "$(dirname "$HOME")")/$(basename "$HOME")
start=$(grep -cx "$host" "$root/starts")
echo "$host" >>"$root/starts"
exec 7>"$HOME/only"
flock --nonblock 7 || echo "$host" >>"$root/doubled"
trap 'exit 143' TERM
checkpoint() { mkdir -p "$root/bucket/8b/checkpoints/$1" && touch "$root/bucket/8b/checkpoints/$1/commit_success.txt"; }
[[ ! -f $root/ends ]] || source "$root/ends"
for _ in {1..600}; do sleep 0.1; done
"""
PROGRAMS = {
    "ellama": HOST_ELLAMA,
    "python": "#!/bin/bash\necho .\n",
    "uv": '#!/bin/bash\necho "$@" >>uv_calls\n',
    "gcloud": '#!/bin/bash\necho "$@" >>secret_calls\n[[ ! -f $HOME/../../no_secret ]] || exit 1\necho k3y-of-mine\n',
    "hostname": '#!/bin/bash\necho "$(basename "$(dirname "$HOME")")-w-$(basename "$HOME")"\n',
}


OWN_RUN = """
from configs import demo
def get_config(length):
    config = demo.get_config("tiny")
    config.data.seq_len, config.data.global_batch_size = int(length), 8
    config.evaluate.tasks = "ecommerce,bits_per_byte"
    return config
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
        for name, text in PROGRAMS.items():
            self._program(directory / "host_bin" / name, text)
        (directory / "starts").touch()

    def _program(self, file, text):
        file.write_text(text)
        file.chmod(0o755)

    def run(self, verb, env, path="", **options):
        path = f"{path}:{self.bin}" if path else self.bin
        words = (verb, env, *["--yes"] * (verb == "delete"))
        return script("queued.sh", *words, path=path, FAKE_DIR=str(self.home), **options)

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

    def let_fail(self, *faults):
        (self.home / "faults.json").write_text(json.dumps(faults))

    def let_end(self, plan):
        """Says in bash how each host's jobs end, one start after the other; the last for all later."""
        lines = [
            f"{host}-{number if number < len(actions) - 1 else '*'}) {action} ;;"
            for host, actions in plan.items() for number, action in enumerate(actions)
        ]  # fmt: skip
        (self.home / "ends").write_text("\n".join(["case $host-$start in", *lines, "esac"]))

    def starts(self):
        """How often each host has started a job."""
        lines = (self.home / "starts").read_text().splitlines()
        return {host: lines.count(host) for host in sorted(set(lines))}

    def created(self):
        return sum(call[2:4] == ["queued-resources", "create"] for call in self.calls())

    def forget_calls(self):
        (self.home / "calls.json").unlink(missing_ok=True)

    def hosts(self):
        return sorted(p.parent for p in self.home.glob("run-1*/*/ellama"))


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for host in cloud.hosts():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.killpg(pids_of(host)[1], signal.SIGKILL)


def pids_of(host):
    """The job's process and its parent, which leads the group of both."""
    return [int(word) for word in (host / "ellama/train.pid").read_text().split()]


def is_alive(pid):
    """Says whether a process is there and no zombie, which waits for its parent alone."""
    try:
        return ") Z " not in open(f"/proc/{pid}/stat").read()
    except FileNotFoundError:
        return False


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
    assert os.getsid(0) not in {os.getsid(pids_of(host)[0]) for host in cloud.hosts()}
    names = ["run-1"] if slices == 1 else ["run-1-0", "run-1-1"]
    assert sorted(cloud.state()["nodes"]) == names
    assert len(cloud.hosts()) == 2 * slices and all(map(is_running, cloud.hosts()))
    for host in cloud.hosts():
        given = (host / "ellama/arguments").read_bytes().decode().split("\0")[:-1]
        assert given == [
            "train", "--config=configs/ellama.py:8b", "--workdir=gs://bucket/runs/8b",
            "--config.data.windows_dir=gs://bucket/windows", *arguments,
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
                # A connection that fails once is tried again: setup and launch are nothing else.
                fails = reached and verb not in ("setup", "launch")
                assert (ended.returncode != 0) == fails, (verb, how, number, ended)
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


def test_network_account_labels_and_further_flags_reach_the_request_and_every_connection(cloud):
    env = write_env(
        cloud.home, SPOT=0, RESERVED=1, NETWORK="projects/host/global/networks/n", SUBNETWORK="s",
        SERVICE_ACCOUNT="job@my-project.iam.gserviceaccount.com", LABELS="team=search,cost=42",
        CREATE_ARG="--internal-ips\nCREATE_ARG=--data-disk=source=projects/p/zones/z/disks/d,mode=read-only",
        SSH_ARG="--tunnel-through-iap",
    )  # fmt: skip
    for verb in ("create", "setup", "launch", "status", "logs-all", "stop"):
        assert cloud.run(verb, env).returncode == 0
    options = cloud.state()["requests"]["run-1"]["options"]
    wanted = {"network": "projects/host/global/networks/n", "subnetwork": "s", "labels": "team=search,cost=42",
              "service-account": "job@my-project.iam.gserviceaccount.com", "reserved": "", "internal-ips": "",
              "data-disk": "source=projects/p/zones/z/disks/d,mode=read-only"}  # fmt: skip
    assert {name: options[name] for name in wanted} == wanted and "spot" not in options
    connections = [call for call in cloud.calls() if call[3] in ("ssh", "scp")]
    assert connections and all("--tunnel-through-iap" in call for call in connections)


def test_a_job_has_its_environment_and_its_secret_and_nothing_else_has_the_secret(cloud):
    env = write_env(
        cloud.home, JOB_ENV="PLAIN=two words; $(touch pwned)", JOB_SECRET="WANDB_API_KEY=wandb-key"
    )
    (cloud.home / "no_secret").touch()
    for verb in ("create", "setup"):
        assert cloud.run(verb, env).returncode == 0
    refused = cloud.run("launch", env)
    assert refused.returncode == 1 and "wandb-key could not be read" in refused.stderr
    assert cloud.starts() == {}
    (cloud.home / "no_secret").unlink()
    said = [cloud.run(verb, env) for verb in ("launch", "status", "logs-all")]
    assert [ended.returncode for ended in said] == [0, 0, 0]
    for host in cloud.hosts():
        seen = (host / "ellama/seen_by_the_job").read_text()
        assert seen == "two words; $(touch pwned)|k3y-of-mine"
        asked = (host / "ellama/secret_calls").read_text().splitlines()[-1]
        assert asked == "secrets versions access latest --secret=wandb-key --project=my-project"
        holders = [f for f in host.rglob("*") if f.is_file() and b"k3y-of-mine" in f.read_bytes()]
        assert [file.name for file in holders] == ["seen_by_the_job"]
    assert "k3y-of-mine" not in "".join(ended.stdout + ended.stderr for ended in said)
    assert not list(cloud.home.rglob("pwned"))


def test_what_a_run_needs_reaches_the_hosts_and_what_it_reads_is_there_before_chips_are_asked_for(
    cloud, monkeypatch
):
    """A configuration of one's own, questions, texts; checked by the code that trains, DRY_RUN too."""
    monkeypatch.chdir(cloud.home)
    (cloud.home / "my_run.py").write_text(OWN_RUN)
    (cloud.home / "data/benchmark").mkdir(parents=True)
    (cloud.home / "data/benchmark/items.jsonl").write_text("{}")
    (cloud.home / "data/texts.jsonl").write_text("{}")
    arguments = ["--config.evaluate.benchmark_dir=data/benchmark",
                 "--config.evaluate.texts_path=data/texts.jsonl",
                 "--config.model.checkpoint=gs://bucket/base"]  # fmt: skip
    env = write_env(cloud.home, arguments, CONFIG="my_run.py:64", ACCELERATOR="v6e-4")
    absent = cloud.run("watch", env, checked=True)
    assert absent.returncode == 2 and "model.checkpoint: must be there before" in absent.stderr
    for name in ("base", "windows"):
        (cloud.home / "bucket" / name).mkdir(parents=True)
    cloud.let_end(dict.fromkeys(HOSTS[1], ["exit 0"]))
    assert cloud.run("watch", env, checked=True).returncode == 0
    assert len(cloud.hosts()) == 2 and cloud.created() == 1
    for host in cloud.hosts():
        given = (host / "ellama/arguments").read_bytes().decode().split("\0")[1:-1]
        monkeypatch.chdir(host / "ellama")
        config, others = load_config(given, "train")
        assert others == ["--workdir=gs://bucket/runs/8b"] and config.data.seq_len == 64
        assert os.path.isfile(f"{config.evaluate.benchmark_dir}/items.jsonl")
        assert os.path.isfile(config.evaluate.texts_path)


def test_a_connection_that_fails_once_is_tried_again_and_one_that_fails_for_good_says_what_to_do(
    cloud,
):
    env = write_env(cloud.home)
    assert cloud.run("create", env).returncode == 0
    steps = ("mkdir", " scp ", "on_host.sh install", "on_host.sh start")
    cloud.let_fail(*({"on": on, "how": "before", "host": "run-1/1"} for on in steps))
    assert cloud.run("setup", env).returncode == 0 and cloud.run("launch", env).returncode == 0
    assert all(map(is_running, cloud.hosts())) and len(cloud.starts()) == 2
    cloud.let_fail(*[{"on": "ssh", "how": "before", "host": "run-1/1"}] * 9)
    for verb in ("setup", "status"):
        ended = cloud.run(verb, env)
        assert ended.returncode == 1 and "SSH_ARG=--tunnel-through-iap" in ended.stderr, ended


@pytest.mark.parametrize(("answer", "status"), [("run-1", 0), ("yes", 1), ("", 1), (None, 2)])
def test_delete_names_what_it_deletes_and_does_it_only_if_told(cloud, answer, status):
    env = write_env(cloud.home)
    assert cloud.run("create", env).returncode == 0
    mine, theirs = pty.openpty() if answer is not None else (None, subprocess.DEVNULL)
    if answer is not None:
        os.write(mine, f"{answer}\n".encode())
    told = {"FAKE_DIR": str(cloud.home), "path": cloud.bin, "stdin": theirs}
    ended = script("queued.sh", "delete", env, **told)
    assert ended.returncode == status, ended
    assert (
        "the queued resource run-1 and its nodes run-1 in us-east5-b of my-project" in ended.stderr
    )
    assert (cloud.state()["requests"] == {}) == (status == 0)


def test_costs_lists_all_that_is_billed_and_says_what_it_could_not_see(cloud):
    env = write_env(cloud.home)
    ended = cloud.run("costs", env)
    assert ended.returncode == 0
    kinds = [" ".join(call[: call.index("list")]) for call in cloud.calls()]
    assert {"compute tpus tpu-vm", "compute tpus queued-resources", "compute disks", "storage buckets",
            "secrets", "container clusters"} <= set(kinds)  # fmt: skip
    assert all("--zone=-" in call for call in cloud.calls() if "tpus" in call)
    off = "ERROR: Kubernetes Engine API has not been used in project 1 before or it is disabled."
    cloud.let_fail({"on": "container clusters", "how": "before", "say": off})
    assert cloud.run("costs", env).returncode == 0
    cloud.let_fail({"on": "compute disks", "how": "before", "say": "ERROR: PERMISSION_DENIED"})
    ended = cloud.run("costs", env)
    assert ended.returncode == 1 and "could not be listed: ERROR: PERMISSION_DENIED" in ended.stderr


def test_a_project_that_is_not_found_says_nothing_of_its_slices(cloud):
    env = write_env(cloud.home)
    cloud.let_fail(
        {"on": "describe", "how": "before", "say": "ERROR: NOT_FOUND: Project my-project"}
    )
    ended = cloud.run("delete", env)
    assert ended.returncode == 1 and "could not describe run-1: ERROR: NOT_FOUND" in ended.stderr


def test_a_node_whose_request_is_gone_is_deleted_too(cloud):
    env = write_env(cloud.home)
    assert cloud.run("create", env).returncode == 0
    state = cloud.state()
    del state["requests"]["run-1"]
    (cloud.home / "state.json").write_text(json.dumps(state))
    assert cloud.run("delete", env).returncode == 0
    assert cloud.state() == {"requests": {}, "nodes": {}}


@pytest.mark.parametrize(
    "how", ["SUSPENDED", "FAILED", "PREEMPTED", "a node", "absent", "never set up"]
)
def test_resume_brings_back_what_was_taken_away(cloud, how):
    env = write_env(cloud.home)
    for verb in ("create", "setup", "launch") if how != "never set up" else ("create",):
        assert cloud.run(verb, env).returncode == 0
    if how in ("SUSPENDED", "FAILED"):
        cloud.set_state("requests", "run-1", how)
    elif how == "PREEMPTED":
        cloud.set_state("nodes", "run-1", how)
    elif how == "a node":
        state = cloud.state()
        del state["nodes"]["run-1"]
        (cloud.home / "state.json").write_text(json.dumps(state))
    elif how == "absent":
        assert cloud.run("delete", env).returncode == 0
    cloud.forget_calls()
    ended = cloud.run("resume", env)
    assert ended.returncode == 0, ended
    assert all(map(is_running, cloud.hosts())) and len(cloud.hosts()) == 2
    assert cloud.created() == (how != "never set up")
    cloud.forget_calls()
    again = cloud.run("resume", env)
    assert again.returncode == 0 and "run-1: running" in again.stderr
    assert not [call for call in cloud.calls() if call[3] in ("create", "delete", "scp")]


def test_resume_starts_all_hosts_together(cloud):
    """The leading host's job was killed; the other's still waits for it, and begins anew."""
    env = write_env(cloud.home)
    for verb in ("create", "setup", "launch"):
        assert cloud.run(verb, env).returncode == 0
    before = [pids_of(host)[0] for host in cloud.hosts()]
    os.kill(before[0], signal.SIGKILL)
    ended = cloud.run("resume", env)
    assert ended.returncode == 0 and "run-1: partly" in ended.stderr, ended
    after = [pids_of(host)[0] for host in cloud.hosts()]
    assert all(map(is_running, cloud.hosts())) and not set(before) & set(after)


def test_waiting_ends_where_the_request_will_not_be_met(cloud):
    env = write_env(cloud.home)
    absent = cloud.run("wait", env)
    assert absent.returncode == 1 and "must be requested first" in absent.stderr
    assert cloud.run("create", env).returncode == 0
    cloud.set_state("requests", "run-1", "FAILED")
    ended = cloud.run("wait", env)
    assert ended.returncode == 75 and "got FAILED; queued.sh resume" in ended.stderr


NODES = {1: ["run-1"], 2: ["run-1-0", "run-1-1"]}
HOSTS = {slices: [f"{node}/{w}" for node in NODES[slices] for w in (0, 1)] for slices in NODES}
BROKEN = "echo ellama train: error: broken on $host"


def watch_to_its_end(cloud, slices=1, path="", **environment):
    """Watches, and checks what holds of every end; then deletes all."""
    env = write_env(cloud.home, SLICES=slices)
    ended = cloud.run("watch", env, path, POLL_SECS="0.02", **environment)
    assert not (cloud.home / "doubled").exists(), "two jobs on one host at once"
    groups = [pids_of(host)[1] for host in cloud.hosts() if (host / "ellama/train.pid").exists()]
    deleted = cloud.run("delete", env)
    assert deleted.returncode == 0 and cloud.state() == {"requests": {}, "nodes": {}}, deleted
    assert not any(map(is_alive, groups))
    return ended


def name_of(host):
    return host.replace("/", "-w-")


@pytest.mark.slow
@pytest.mark.parametrize(("slices", "host"), [(s, host) for s in HOSTS for host in HOSTS[s]])
def test_a_host_that_fails_once_at_each_step_costs_tries_and_no_run(cloud, slices, host):
    """From nothing to the end of the run: each step of a start, then each end that is restartable."""
    steps = [("mkdir", "before"), (" scp ", "before"), ("on_host.sh install", "after"),
             ("on_host.sh start", "after"), ("on_host.sh start", "before")]  # fmt: skip
    cloud.let_fail(*({"on": on, "how": how, "host": host} for on, how in steps))
    ends = ["exit 75", "exit 143", "kill -KILL $$", "kill -KILL 0"]
    mine = [f"checkpoint {n}; {BROKEN}; {end}" for n, end in enumerate(ends, 1)]
    # The others are already there when its start is tried again; else they end as those do that lost
    # a process.
    others = ["exit 75", "", *["exit 75"] * (len(ends) - 2), "exit 0"]
    cloud.let_end({h: [*mine, "exit 0"] if h == host else others for h in HOSTS[slices]})
    ended = watch_to_its_end(cloud, slices)
    assert ended.returncode == 0 and "the run has ended" in ended.stderr, ended
    wanted = {h: len(mine) + 1 if h == host else len(others) for h in HOSTS[slices]}
    assert cloud.starts() == wanted and cloud.created() == 1, ended
    said = re.findall(
        f"{name_of(host)}: exited (.*): ellama train: error: broken on {host}", ended.stderr
    )
    assert said == ["137", "unknown"], (
        ended.stderr
    )  # 75 within the launch, 143 while the others ran


FINAL = [(2, s, host) for s in HOSTS for host in HOSTS[s]] + [
    (1, 1, "run-1/1"),
    (3, 2, "run-1-1/0"),
]


@pytest.mark.parametrize(("status", "slices", "host"), FINAL)
def test_an_error_that_another_try_cannot_mend_ends_the_watch(cloud, status, slices, host):
    """Wherever it was, its line reaches whoever watches, though the others know of a loss alone."""
    plan = {h: [f"{BROKEN}; exit {status}" if h == host else "exit 75"] for h in HOSTS[slices]}
    cloud.let_end(plan)
    ended = watch_to_its_end(cloud, slices)
    assert ended.returncode == 1 and cloud.starts() == dict.fromkeys(HOSTS[slices], 1), ended
    line = f"{name_of(host)}: exited {status}: ellama train: error: broken on {host}"
    others = len(HOSTS[slices]) - 1
    assert re.search(
        rf"{f' and {others - 1} more' if others > 1 else ''}: exited 75$", ended.stderr, re.M
    )
    assert line in ended.stderr.splitlines() and "cannot mend" in ended.stderr, ended.stderr


UNLISTED = {"on": "storage ls", "how": "before", "say": "ERROR: 503"}


@pytest.mark.parametrize(
    ("saves", "end", "unlisted", "starts"),
    [
        (0, "exit 75", 0, 4),
        (3, "exit 143", 0, 6),
        # Not known for a while is waited for; not known for good is no newer checkpoint.
        (3, "kill -KILL 0", 4, 6),
        (3, "exit 137", 500, 4),
    ],
)
def test_a_job_that_saves_nothing_newer_is_restarted_three_times(
    cloud, saves, end, unlisted, starts
):
    cloud.let_fail(*[{"on": "storage ls", "how": "before", "say": "ERROR: 503"}] * unlisted)
    ends = [*(f"checkpoint {n}; {end}" for n in range(1, saves + 1)), end]
    cloud.let_end(dict.fromkeys(HOSTS[1], ends))
    ended = watch_to_its_end(cloud, PATIENCE="5" if unlisted < 100 else "2")
    newest = 0 if unlisted > 100 else saves
    assert ended.returncode == 1 and f"newer than step {newest} after 3 restarts" in ended.stderr
    assert cloud.starts() == dict.fromkeys(HOSTS[1], starts), ended
    assert ("could not be listed: ERROR: 503" in ended.stderr) == (unlisted > 100)


def test_a_job_of_which_a_part_runs_on_is_started_anew(cloud):
    """The first host, which is asked most often, does not notice that the other has ended."""
    cloud.let_end({"run-1/0": [":", "exit 0"], "run-1/1": ["sleep 1; exit 75", "exit 0"]})
    ended = watch_to_its_end(cloud, PATIENCE="3")
    assert ended.returncode == 0 and "run-1: partly" in ended.stderr, ended
    assert cloud.starts() == dict.fromkeys(HOSTS[1], 2)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("step", ["on_host.sh install", "on_host.sh status"])
def test_a_slice_taken_away_during_set_up_or_training_is_asked_for_again(cloud, slices, step):
    cloud.let_fail({"on": step, "how": "preempt", "host": HOSTS[slices][-1]})
    began = step == "on_host.sh status"
    cloud.let_end(dict.fromkeys(HOSTS[slices], [*[":"] * began, "exit 0"]))
    ended = watch_to_its_end(cloud, slices)
    assert ended.returncode == 0 and f"{NODES[slices][-1]}: PREEMPTED" in ended.stderr, ended
    assert cloud.created() == 2
    assert cloud.starts() == dict.fromkeys(HOSTS[slices], 1 + began), ended


def test_a_request_that_has_no_room_is_repeated_and_one_that_is_wrong_is_not(cloud):
    fault = {"on": "queued-resources create", "how": "before"}
    cloud.let_fail(*[{**fault, "say": "ERROR: RESOURCE_EXHAUSTED: Quota limit reached"}] * 6)
    cloud.let_end(dict.fromkeys(HOSTS[1], ["exit 0"]))
    assert watch_to_its_end(cloud).returncode == 0
    assert cloud.created() == 7 and cloud.starts() == dict.fromkeys(HOSTS[1], 1)
    cloud.forget_calls()
    cloud.let_fail(*[{**fault, "say": "ERROR: PERMISSION_DENIED: no right"}] * 50)
    ended = watch_to_its_end(cloud)
    assert ended.returncode == 1 and "PERMISSION_DENIED: no right" in ended.stderr
    assert cloud.created() == 4


def test_a_host_that_stays_away_ends_the_watch(cloud):
    """Without its word that its job has ended, nothing is started anew."""
    fault = {"on": "on_host.sh stop", "how": "before", "host": "run-1-1/0"}
    cloud.let_fail(*[fault] * 50)
    cloud.let_end(dict.fromkeys(HOSTS[2], ["exit 75"]))
    ended = watch_to_its_end(cloud, 2)
    assert ended.returncode == 1 and "a host did not say that its job has ended" in ended.stderr
    assert cloud.starts() == dict.fromkeys(HOSTS[2], 1)


@pytest.mark.slow
def test_a_connection_that_hangs_does_not_hang_the_watch(cloud, tmp_path):
    """A `timeout` put before the system's shortens the minutes that a call may take."""
    short = tmp_path / "short"
    short.mkdir()
    cloud._program(
        short / "timeout", f'#!/bin/bash\nexec {shutil.which("timeout")} -k 1 6 "${{@:3}}"\n'
    )
    cloud.let_fail({"on": "on_host.sh status", "how": "hang", "host": "run-1/1"})
    cloud.let_end(dict.fromkeys(HOSTS[1], ["checkpoint 1; exit 75", "exit 0"]))
    ended = watch_to_its_end(cloud, path=short)
    assert ended.returncode == 0 and cloud.starts() == dict.fromkeys(HOSTS[1], 2), ended


def test_what_a_person_stops_the_watch_does_not_start_again(cloud):
    env = write_env(cloud.home)
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(cloud.run, "watch", env, POLL_SECS="0.1")
        deadline = time.monotonic() + 60
        while len(cloud.starts()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        stopped = cloud.run("stop", env)
        assert stopped.returncode == 0 and stopped.stdout.count("stopped: exited 143") == 2
        ended = watching.result()
    assert ended.returncode == 1 and "somebody stopped the job" in ended.stderr, ended
    assert cloud.starts() == dict.fromkeys(HOSTS[1], 1)
    cloud.let_end(dict.fromkeys(HOSTS[1], ["exit 0"]))
    assert watch_to_its_end(cloud).returncode == 0
    assert cloud.starts() == dict.fromkeys(HOSTS[1], 2)


def test_a_host_that_saves_for_longer_than_others_after_a_stop_is_waited_for(cloud):
    stopped = "touch stopped; exit 143"
    cloud.let_end({"run-1/0": [stopped], "run-1/1": [f"sleep 2; {stopped}"]})
    ended = watch_to_its_end(cloud, PATIENCE="2")
    assert ended.returncode == 1 and "somebody stopped the job" in ended.stderr, ended
    assert cloud.starts() == dict.fromkeys(HOSTS[1], 1)


def test_stop_ends_what_does_not_end_by_itself(cloud):
    """A job that hangs would keep the chips from the next."""
    env = write_env(cloud.home)
    cloud.let_end({"run-1/0": ["trap '' TERM"], "run-1/1": [":"]})
    for verb in ("create", "setup", "launch"):
        assert cloud.run(verb, env).returncode == 0
    pids = [pid for host in cloud.hosts() for pid in pids_of(host)]
    ended = cloud.run("stop", env, STOP_SECS="1")
    assert ended.returncode == 0 and "run-1-w-0: did not end in 1 s and was killed" in ended.stdout
    assert not any(map(is_alive, pids))


def test_after_a_reboot_the_number_of_another_process_is_no_job(cloud):
    env = write_env(cloud.home)
    for verb in ("create", "setup", "launch"):
        assert cloud.run(verb, env).returncode == 0
    host = cloud.hosts()[0]
    os.killpg(pids_of(host)[1], signal.SIGKILL)
    (host / "ellama/train.pid").write_text(f"{os.getpid()} {os.getpid()}\n")
    said = cloud.run("status", env).stdout
    assert "run-1-w-0: exited unknown" in said and "run-1-w-1: running" in said
    os.truncate(host / "ellama/train.log", 65 << 20)
    said = cloud.run("launch", env).stdout
    assert "run-1-w-0: started" in said and "run-1-w-1: already running" in said
    assert (host / "ellama/train.log").stat().st_size < 1000, "a long log makes room for another"


def test_nothing_is_installed_under_a_job_that_runs_nor_started_without(cloud):
    env = write_env(cloud.home)
    assert cloud.run("create", env).returncode == 0
    cloud.let_fail(*[{"on": "on_host.sh install", "how": "before", "host": "run-1/1"}] * 3)
    assert cloud.run("setup", env).returncode == 1
    half = cloud.run("launch", env)
    assert half.returncode == 1 and "run-1-w-1: error: the job must be set up first" in half.stderr
    assert cloud.run("resume", env).returncode == 0 and len(cloud.starts()) == 2
    env = write_env(cloud.home, INSTALL="git+https://example.org/r.git@other")
    refused = cloud.run("setup", env)
    assert refused.returncode == 1 and "must have ended before" in refused.stderr
    assert all(map(is_running, cloud.hosts()))
    for verb in ("stop", "setup", "launch"):
        assert cloud.run(verb, env).returncode == 0


VERBS = ["create", "wait", "setup", "launch", "status", "logs", "logs-all", "stop", "delete"]


@pytest.mark.parametrize("slices", [1, 3])
def test_dry_run_prints_every_command_and_calls_nothing(cloud, slices):
    """What it prints is what the real verb calls."""
    env = write_env(cloud.home, SLICES=slices)
    for verb in [*VERBS, "resume", "watch", "costs"]:
        ended = cloud.run(verb, env, DRY_RUN="1")
        assert ended.returncode == 0 and cloud.calls() == [], ended
        lines = [shlex.split(line) for line in ended.stdout.splitlines()]
        known = [["gcloud", "compute", "tpus"], ["gcloud", "storage", "ls"]]
        if verb == "costs":
            known = [words[:3] for words in lines if words[0] == "gcloud" and "list" in words]
        assert lines and all(line[:3] in known for line in lines), verb
    # From nothing to nothing, one command after the other.
    told = [cloud.run(verb, env, DRY_RUN="1").stdout for verb in ("watch", "delete")]
    steps = [words[4] if words[3] == "queued-resources" else words[-1].partition("=")[2]
             for words in map(shlex.split, "".join(told).splitlines()) if words[1] == "compute"]  # fmt: skip
    steps = [step.removeprefix("test ! -f ellama/on_host.sh || ") for step in steps]
    each = [step for step, before in zip(steps, ["", *steps], strict=False) if step != before]
    on_host = [f"bash ellama/on_host.sh {verb}" for verb in ("install", "start", "status")]
    assert [step for step in each if step not in ("describe", "all", "")] == [
        "create", "mkdir -p ellama && rm -rf ellama/inputs && mkdir ellama/inputs", on_host[0], on_host[1], on_host[2], "delete"
    ]  # fmt: skip
    assert sum(step == on_host[1] for step in steps) == slices
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
        for verb in [*VERBS, "watch"]:
            printed += cloud.run(verb, env, DRY_RUN="1").stdout.splitlines()
    every = {"SPOT": 0, "RESERVED": 1, "NETWORK": "n", "SUBNETWORK": "s", "LABELS": "a=b,c=d",
             "SERVICE_ACCOUNT": "a@b.iam.gserviceaccount.com", "SSH_ARG": "--tunnel-through-iap",
             "CREATE_ARG": "--data-disk=source=d,mode=read-only\nCREATE_ARG=--internal-ips",
             "CONFIG": str(tmp_path / "my_run.py")}  # fmt: skip
    (tmp_path / "my_run.py").touch()
    env = write_env(tmp_path, **every)
    for verb in (*VERBS, "costs"):
        printed += cloud.run(verb, env, DRY_RUN="1").stdout.splitlines()
    printed.append("gcloud secrets versions access latest --secret=s --project=p")
    page = (SCRIPTS.parent / "docs/TPU.md").read_text()
    told = [
        line.partition(" #")[0].strip() for line in re.findall(r"^ +\$ (gcloud .*)", page, re.M)
    ]
    assert len(told) > 15
    printed += told
    printed.append("gcloud storage ls gs://bucket/windows")
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_itself_lists_the_steps_of_a_bucket(cloud):
    """The real one beside the fake: which step is the newest whole one, and that there is none."""
    fake = cloud.bin / "gcloud"
    fake.rename(cloud.bin / "fake")
    real = shutil.which("gcloud")
    cloud._program(
        fake, f'#!/bin/bash\n[[ $1 != storage ]] || exec {real} "$@"\nexec {cloud.bin}/fake "$@"\n'
    )
    with fake_bucket() as environment:
        address = environment["STORAGE_EMULATOR_HOST"]
        told = {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{address}/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "1",
            "CLOUDSDK_CONFIG": str(cloud.home / "sdk"),
        }
        save = f"""{sys.executable} - <<'PYTHON'
import urllib.request
for name in ("9/commit_success.txt", "10/commit_success.txt", "20/params/part"):
    place = "{address}/upload/storage/v1/b/bucket/o?uploadType=media&name=runs/8b/checkpoints/" + name
    urllib.request.urlopen(place, data=b"x").close()
PYTHON
exit 75"""
        cloud.let_end(dict.fromkeys(HOSTS[1], ["exit 75", save, "exit 75"]))
        ended = watch_to_its_end(cloud, **told)
    assert "newer than step 10 after 3 restarts" in ended.stderr, ended
    assert "could not be listed" not in ended.stderr
    assert cloud.starts() == dict.fromkeys(HOSTS[1], 5)
