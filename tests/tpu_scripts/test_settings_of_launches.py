"""What an env file may hold: one line and exit status 2 for everything else, and nothing is called."""

import shutil

import pytest
from launch_cases import SCRIPTS, script, write_env

from ellama_jax.config import config_to_mapping, load_config

HOSTILE = ["two words", "a;touch pwned", "$(touch pwned)", "`touch pwned`", "a'b", 'a"b', "a|b",
           "a&b", "a>b", "-x", "a\\b", "a*", "../x", "ö", ""]  # fmt: skip
NAMES = ["PROJECT", "ZONE", "NAME", "ACCELERATOR", "SLICES", "SPOT", "WORKDIR", "WINDOWS", "CONFIG",
         "INSTALL"]  # fmt: skip
XPK_NAMES = ["CLUSTER", "IMAGE"]


@pytest.fixture
def refused(tmp_path):
    """Returns a function that runs a verb and checks that it is refused in one line."""
    recorder = tmp_path / "bin"
    recorder.mkdir()
    for tool in ("gcloud", "xpk", "docker", "kubectl"):
        (recorder / tool).write_text(f"#!/bin/bash\ntouch {tmp_path}/called\n")
        (recorder / tool).chmod(0o755)

    def check(program, *arguments, **environment):
        ended = script(program, *arguments, path=recorder, **environment)
        assert ended.returncode == 2, ended
        assert ended.stdout == "" and ended.stderr.count("\n") == 1, ended
        assert not (tmp_path / "called").exists()
        return ended.stderr

    return check


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_refused(refused, tmp_path, name):
    for value in HOSTILE:
        said = refused("queued.sh", "create", write_env(tmp_path, **{name: value}))
        assert f"{name}: must be" in said, (value, said)


@pytest.mark.parametrize("name", XPK_NAMES)
def test_a_hostile_name_is_refused_for_xpk(refused, tmp_path, name):
    for value in HOSTILE:
        said = refused("xpk.sh", "launch", write_env(tmp_path, **{name: value}))
        assert f"{name}: must be" in said, (value, said)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_name_is_refused(refused, tmp_path, name):
    said = refused("queued.sh", "delete", write_env(tmp_path, **{name: None}))
    assert f"{name}: must be" in said and "got nothing" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ACCELERATOR": "v6e-65"}, "must be a size of v6e that is made, got v6e-65; nearest"),
        ({"ACCELERATOR": "v9-8"}, "must be of a generation among"),
        ({"ACCELERATOR": "tpu7x-64"}, "tpu7x goes by xpk.sh"),
        ({"WORKDIR": "runs/8b"}, "WORKDIR: must be a gs:// path"),
        ({"WORKDIR": "s3://bucket/run"}, "WORKDIR: must be a gs:// path"),
        ({"NAME": "a" * 38}, "NAME: must be at most 37"),
        ({"SLICES": "0"}, "SLICES: must be a number"),
        ({"RUNTIME_VERSION": "a b"}, "RUNTIME_VERSION: must be"),
        ({"SPOT": "1\nSPOT=0"}, "SPOT must stand once"),
        ({"SPOT": "1\nCOLOUR=red"}, "a name must be one of"),
        ({"SPOT": "1\nnonsense"}, "a line must be NAME=value, got nonsense"),
        ({"SPOT": "1\nTRAIN_ARG=--workdir=gs://other/x"}, "must be --config.KEY=VALUE"),
        ({"SPOT": "1\nTRAIN_ARG=--config.a=b\x07"}, "must hold no control characters"),
        ({"RESERVED": "1"}, "RESERVED: must be 0 where SPOT is 1"),
        ({"NETWORK": "a b"}, "NETWORK: must be"),
        ({"SERVICE_ACCOUNT": "me"}, "SERVICE_ACCOUNT: must be the e-mail address"),
        ({"LABELS": "Team"}, "LABELS: must be name=value"),
        ({"CREATE_ARG": "spot"}, "CREATE_ARG: must be --flag"),
        ({"CREATE_ARG": "--zone=other"}, "CREATE_ARG: must be no flag that has a name of its own, got --zone"),
        ({"SSH_ARG": "--command=reboot"}, "SSH_ARG: must be no flag that has a name"),
        ({"JOB_ENV": "A B=c"}, "JOB_ENV: must be NAME=value"),
        ({"JOB_ENV": "LIBTPU_INIT_ARGS=-x"}, "must leave LIBTPU_INIT_ARGS alone"),
        ({"CONFIG": "configs/../../evil.py"}, "CONFIG: must lead out of no directory"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(refused, tmp_path, changes, message):
    assert message in refused("queued.sh", "create", write_env(tmp_path, **changes))


@pytest.mark.parametrize(
    "line", ["WANDB_API_KEY=k3y", "JOB_ENV=WANDB_API_KEY=k3y", "JOB_SECRET=A=not a name k3y",
             "JOB_SECRET=k3y"],
)  # fmt: skip
def test_a_secret_in_the_wrong_place_is_refused_without_being_said(refused, tmp_path, line):
    name, _, value = line.partition("=")
    said = refused("queued.sh", "create", write_env(tmp_path, **{name: value}))
    assert "k3y" not in said


@pytest.mark.parametrize("dry", ["0", "1"])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"SPOT": "1\nTRAIN_ARG=--config.mesh.fspd=3"}, "mesh.fspd"),
        ({"CONFIG": "my_rum.py"}, "my_rum.py"),
        ({"INSTALL": "dist/none.whl"}, "INSTALL: must exist"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_asked_for(
    refused, tmp_path, change, name, dry
):
    """The keys themselves: tests/plan/test_launch.py. What to end and to look at needs none right."""
    env = write_env(tmp_path, **change)
    for program, verb in (
        (("queued.sh", "watch"), ("xpk.sh", "cluster"))
        if dry == "1"
        else (("queued.sh", "create"),)
    ):
        assert name in refused(program, verb, env, checked=True, DRY_RUN=dry)
    ended = script("queued.sh", "delete", env, "--yes", DRY_RUN="1")
    assert ended.returncode == 0, ended


@pytest.mark.parametrize("program", ["queued.sh", "xpk.sh"])
def test_a_wrong_command_line_is_one_line(refused, tmp_path, program):
    env = write_env(tmp_path)
    assert "verb: must be one of" in refused(program, "fly", env)
    assert "verb: must be one of" in refused(program)
    assert "env file: must exist" in refused(program, "delete", tmp_path / "none.env")
    assert "arguments: must be VERB" in refused(program, "delete", env, "more")


@pytest.mark.parametrize("program", ["queued.sh", "xpk.sh"])
def test_a_tool_that_is_not_installed_is_one_line(tmp_path, program):
    for tool in ("bash", "dirname", "basename"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    ended = script(program, "delete", write_env(tmp_path), PATH=str(tmp_path))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "must be installed, got none" in ended.stderr


def test_a_wheel_that_is_not_there_is_refused_before_a_host_is_asked(refused, tmp_path):
    env = write_env(tmp_path, INSTALL=f"{tmp_path}/none.whl")
    assert "INSTALL: must exist" in refused("queued.sh", "setup", env)


def test_the_example_is_complete_and_its_run_fits_its_slice(tmp_path):
    example = SCRIPTS / "env.example"
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/ellama_jax-0.1.0-py3-none-any.whl").touch()
    for program, verb in (("queued.sh", "create"), ("xpk.sh", "launch")):
        ended = script(program, verb, example, DRY_RUN="1", cwd=tmp_path, checked=True)
        assert ended.returncode == 0 and "ellama-8b" in ended.stdout, ended
    names = {line.partition("=")[0] for line in example.read_text().splitlines() if "=" in line}
    optional = {"RUNTIME_VERSION", "RESERVED", "NETWORK", "SUBNETWORK", "SERVICE_ACCOUNT", "LABELS"}
    lists = {"CREATE_ARG", "SSH_ARG", "TRAIN_ARG", "JOB_ENV", "JOB_SECRET"}
    assert {*NAMES, *XPK_NAMES, *optional, *lists} <= {name.removeprefix("# ") for name in names}


def test_the_example_is_the_run_that_the_guide_plans(tmp_path):
    guide = (SCRIPTS.parent / "docs/GUIDE.md").read_text()
    code = next(text for text in guide.split("```") if text.startswith("python\n# my_run.py"))
    (tmp_path / "my_run.py").write_text(code.removeprefix("python\n"))
    lines = (SCRIPTS / "env.example").read_text().splitlines()
    config = next(line for line in lines if line.startswith("CONFIG=")).partition("=")[2]
    arguments = [line.partition("=")[2] for line in lines if line.startswith("TRAIN_ARG=")]
    example, _ = load_config([f"--config={config}", *arguments], "train")
    planned, _ = load_config([f"--config={tmp_path / 'my_run.py'}"], "train")
    example, planned = config_to_mapping(example), config_to_mapping(planned)
    for section, key in (
        ("model", "checkpoint"), ("evaluate", "windows_dir"), ("checkpoint", "save_every_secs")
    ):  # fmt: skip
        assert example[section].pop(key) != planned[section].pop(key), "a place, or for spot alone"
    assert example == planned
