"""What a launch refuses on the machine that starts it, and the env file that a plan writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plan_records import record

from ellama_jax.plan import verb
from ellama_jax.plan.launch import check_launch, env_lines

ROOT = Path(__file__).resolve().parents[2]

RUN = [
    "--config=ellama:8b", "--workdir=gs://b/run", "--config.data.windows_dir=gs://b/windows",
    "--config.data.global_batch_size=256", "--config.train.num_microbatches=4",
]  # fmt: skip


def found(*more, slices="1xv6e-64", run=RUN):
    return check_launch(slices, [*run, *(f"--config.{word}" for word in more)])


def test_what_must_be_in_a_bucket_what_is_sent_and_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").touch()
    lines = found("model.checkpoint=gs://b/base", "evaluate.texts_path=texts.jsonl",
                  "evaluate.benchmark_dir=gs://b/questions", "evaluate.windows_dir=/mnt/disk/held",
                  "train.wandb_project=w")  # fmt: skip
    assert [line.split("\t") for line in lines] == [
        ["package", "wandb", "-"],
        ["bucket", "model.checkpoint", "gs://b/base"],
        ["bucket", "data.windows_dir", "gs://b/windows"],
        ["bucket", "evaluate.benchmark_dir", "gs://b/questions"],
        ["send", "evaluate.texts_path", "texts.jsonl"],
    ]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["mesh.fspd=3"], "mesh.fspd"),
        (["mesh.fsdp=48"], "mesh"),
        (["data.global_batch_size=100"], "data.global_batch_size"),
        (["train.num_microbatches=3"], "train.num_microbatches"),
        (["model.checkpoint=base"], "model.checkpoint"),
        (["evaluate.windows_dir=held"], "evaluate.windows_dir"),
        (["evaluate.benchmark_dir=nowhere"], "evaluate.benchmark_dir"),
        (["evaluate.texts_path=a\tb"], "evaluate.texts_path"),
        (["model.preset=llama9"], "llama9"),
        (["model.remat=some"], "model.remat"),
    ],
)
def test_what_would_fail_on_the_slice_is_refused_here(more, name):
    with pytest.raises(ValueError, match=name):
        found(*more)
    with pytest.raises(ValueError, match="--config: .*nowhere.py"):
        found(run=["--config=nowhere.py"])


def test_two_slices_are_two_slices():
    with pytest.raises(ValueError, match="mesh.data"):
        found("mesh.data=1", slices="2xv6e-64")
    assert found("mesh.data=2", "data.global_batch_size=512", slices="2xv6e-64")


def test_a_python_without_the_packages_is_one_line(tmp_path):
    argv = [sys.executable, "-S", "-m", "ellama_jax.plan.launch", "1xv6e-64", *RUN]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("launch: error: PYTHON: must be")
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""


def test_an_env_file_takes_a_plan_and_keeps_places_and_what_is_not_the_plan_s():
    lines = [
        "# mine", "PROJECT=p", "CONFIG=ellama.py:8b", "ACCELERATOR=v4-8",
        "TRAIN_ARG=--config.model.checkpoint=gs://b/base", "TRAIN_ARG=--config.model.remat=dots",
        "TRAIN_ARG=--config.evaluate.windows_dir=gs://b/held", "JOB_ENV=A=b",
    ]  # fmt: skip
    values = {"CONFIG": "my_run.py", "ACCELERATOR": "v6e-64", "SLICES": "2"}
    arguments = ["--config.mesh.data=2", "--config.evaluate.windows_dir=gs://b/other"]
    assert env_lines(lines, values, arguments) == [
        "# mine", "PROJECT=p", "CONFIG=my_run.py", "ACCELERATOR=v6e-64",
        "TRAIN_ARG=--config.model.checkpoint=gs://b/base", "JOB_ENV=A=b", "SLICES=2",
        *(f"TRAIN_ARG={word}" for word in arguments),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("topology", "slices", "slice_name"), [("v6e-64", 1, "v6e-64"), ("2xv6e-16", 2, "v6e-16")]
)
def test_plan_writes_what_it_found_into_an_env_file(
    tmp_path, monkeypatch, topology, slices, slice_name
):
    """The compiler's answer is a record of the tests: the way from it into the file is what is ours."""
    env = tmp_path / "env"
    env.write_text("PROJECT=p\nSLICES=7\nTRAIN_ARG=--config.model.remat=full\n")
    answer = record(overrides=["--config.model.remat=dots"])
    monkeypatch.setattr(verb, "check_compiler", lambda targets: None)
    monkeypatch.setattr(verb, "search_targets", lambda *_: ([answer], [], ""))
    argv = [
        "--config",
        "ellama:8b",
        "--config.data.global_batch_size",
        "256",
        "--topology",
        topology,
    ]
    verb.main_plan([*argv, "--search", "--write-env", str(env)])
    assert env.read_text().splitlines() == [
        "PROJECT=p", f"SLICES={slices}", f"ACCELERATOR={slice_name}",
        "CONFIG=ellama:8b", "TRAIN_ARG=--config.data.global_batch_size=256",
        "TRAIN_ARG=--config.model.remat=dots",
    ]  # fmt: skip
    before = env.read_text()
    answer["outcome"] = "no_fit"
    with pytest.raises(ValueError, match="--write-env: .* does not fit"):
        verb.main_plan([*argv, "--search", "--write-env", str(env)])
    for words in (["--topology", "cpu-2"], ["--topology", "v6e-8,v6e-16"], ["--topology", "gpu"]):
        with pytest.raises(ValueError, match="--write-env: must be used with one"):
            verb.main_plan([*argv[:4], *words, "--write-env", str(env)])
    with pytest.raises(ValueError, match="--write-env: must exist"):
        verb.main_plan([*argv, "--write-env", str(tmp_path / "none")])
    assert env.read_text() == before
