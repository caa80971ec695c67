"""`ellama sweep`: what is run, skipped, resumed and written. The trials' process is a small stand-in."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ellama_jax.core import verb_process
from ellama_jax.core.ownership import owned
from ellama_jax.experiments import sweep
from ellama_jax.experiments.sweep_show import last_record
from ellama_jax.report.verb import write_report

# Takes the words of `ellama train` and writes what a run would; `broken` stands in for a bad value,
# and `slow` waits for SIGTERM.
TRIAL = """
import json, pathlib, signal, sys, time
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
workdir = pathlib.Path(words["workdir"])
rate, seed = float(words["config.schedule.peak_frac"]), int(words["config.data.seed"])
with open(workdir.parent / "begun.txt", "a") as file:
    file.write(workdir.name + "\\n")
behaviour = pathlib.Path("behaviour.json")
does = json.loads(behaviour.read_text()) if behaviour.exists() else {}
if does.get("broken") in (rate, "all"):
    sys.exit("ellama train: error: model.checkpoint: must exist, got nothing.")
if does.get("slow") == rate:
    signal.signal(signal.SIGTERM, lambda *_: ((workdir / "saved").touch(), sys.exit(143)))
    time.sleep(60)
records = [{"step": 0}, {"step": 60, "loss": 2.0}]
for domain, sign in (("ecommerce", -1), ("general", 1)):
    records[0][f"eval_loss/{domain}/en"] = 4.0
    records[1][f"eval_loss/{domain}/en"] = 4.0 * (1 + sign * rate / 10 + seed / 1000)
(workdir / "checkpoints").mkdir()
(workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in records))
"""
SWEEP = """
from configs.sweeps import base
def get_config():
    sweep, _ = base.sweep_of("demo.py:tiny")
    sweep.title = "Rates"
    sweep.product = (("schedule.peak_frac", (0.05, 0.1, 1.0)),)
    return sweep
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a sweep's file, in which trials are run by the stand-in."""
    (tmp_path / "trial.py").write_text(TRIAL)
    (tmp_path / "rates.py").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb_process, "_PROGRAM", [sys.executable, str(tmp_path / "trial.py")])
    monkeypatch.setattr(sweep, "_SECS_BETWEEN_LOOKS", 0.02)
    return tmp_path


def run(*more, workdir="out"):
    sweep.main_sweep([
        "--config=rates.py", f"--workdir={workdir}", "--set", "evaluate.windows_dir=held", *more
    ])  # fmt: skip


def begun(place):
    return (place / "out" / "begun.txt").read_text().split()


def read(place):
    return json.loads((place / "out" / "trials.json").read_text())


def behave(place, **does):
    (place / "behaviour.json").write_text(json.dumps(does))


def test_every_trial_is_run_once_and_the_best_is_said(place, capsys):
    run()
    said = capsys.readouterr().out
    assert len(begun(place)) == 6 and "Rates: 6 trials\n" in said
    assert re.search(r"done     peak_frac-1_seed-0_\w+  eval_loss/ecommerce \+10.0 %", said)
    # 0.1 loses 1.05 % of general on the mean of its seeds, more than 1 %.
    assert read(place)["chosen"] == {"schedule.peak_frac": "0.05"}
    assert "Best of 3: schedule.peak_frac 0.05" in said
    names = {path.name for path in (place / "out").iterdir()}
    assert names >= {"trials.json", "report.html", "axis-schedule.peak_frac.png"}
    assert (place / "out" / "axis-schedule.peak_frac.png").read_bytes().startswith(b"\x89PNG")
    run()
    assert len(begun(place)) == 6, "what was done is not done again"
    assert "6 trials, 6 of them done before" in capsys.readouterr().out


def test_other_settings_of_the_run_are_other_trials_and_another_rule_is_not(place):
    run()
    run("--config.rule.limit=0.5")
    assert len(begun(place)) == 6 and read(place)["chosen"] == {"schedule.peak_frac": "1"}
    run("--set", "optimizer.b2=0.9")
    assert len(begun(place)) == 12


def test_a_trial_that_fails_is_named_and_tried_again_by_the_same_command(place, capsys):
    behave(place, broken=0.1)
    with pytest.raises(
        ValueError, match="peak_frac-0.1_seed-0_.*model.checkpoint: must exist"
    ) as e:
        run()
    assert "2 of 6 trials failed, 0 were not begun" in str(e.value)
    assert [t["status"] for t in read(place)["trials"]] == ["done"] * 2 + ["failed"] * 2 + [
        "done"
    ] * 2
    behave(place)
    run()
    assert len(begun(place)) == 8
    assert {t["status"] for t in read(place)["trials"]} == {"done"}


def test_where_the_first_ones_fail_the_others_are_not_begun(place):
    behave(place, broken="all")
    with pytest.raises(ValueError, match="2 of 6 trials failed, 4 were not begun"):
        run()
    assert len(begun(place)) == 2


def test_no_more_trials_run_at_one_time_than_asked(place, monkeypatch):
    most, alive = [], []
    start = sweep.start_verb

    def counted(*args):
        alive.append(start(*args))
        most.append(sum(process.poll() is None for process in alive))
        return alive[-1]

    monkeypatch.setattr(sweep, "start_verb", counted)
    run("--jobs", "3")
    assert max(most) in (2, 3) and len(most) == 6
    most.clear()
    run("--set", "optimizer.b2=0.9")
    assert max(most) == 1


def test_checkpoints_go_only_if_the_file_says_so(place):
    run()
    assert len(list((place / "out").glob("*/checkpoints"))) == 6
    run("--config.remove_checkpoints=True", workdir="again")
    assert not list((place / "again").glob("*/checkpoints"))
    assert len(list((place / "again").glob("*/metrics.jsonl"))) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_lets_its_trials_save_and_goes_on_later(place, number):
    behave(place, slow=0.1)
    program = (
        "import sys; from ellama_jax import cli; from ellama_jax.core import verb_process\n"
        f"verb_process._PROGRAM = [sys.executable, {str(place / 'trial.py')!r}]\n"
        "cli.main(sys.argv[1:])"
    )
    words = ["sweep", "--config=rates.py", "--workdir=out", "--set", "evaluate.windows_dir=held"]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(begun(place) if (place / "out" / "begun.txt").exists() else ()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # its handler is set
    os.kill(process.pid, number)
    error = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130 and "ellama sweep: error: interrupted" in error
    assert len(list((place / "out").glob("*/saved"))) == 1
    behave(place)
    run()
    assert len(begun(place)) == 7


def test_two_sweeps_do_not_share_a_directory(place, monkeypatch):
    with owned(place, "ellama sweep"):
        monkeypatch.delenv("ELLAMA_OWNED")  # as in a process that the owner did not start
        with pytest.raises(ValueError, match="one writer at a time, got `ellama sweep`"):
            run(workdir=place)
    run()


def test_commands_are_written_one_a_trial_and_make_the_same_trials(place, capsys):
    run("--write-commands", "go.sh", "--launcher", "slices/start {name}", workdir="gs://bucket/x y")
    lines = (place / "go.sh").read_text().splitlines()
    commands = [line for line in lines if line.startswith("slices/start ")]
    assert len(commands) == 6 and not (place / "out").exists()
    words = shlex.split(commands[0])
    name = words[1]
    assert words[2:4] == ["ellama", "train"] and words[-1] == f"--workdir=gs://bucket/x y/{name}"
    assert "--config.evaluate.windows_dir=held" in words
    run()
    assert {command.split()[1] for command in commands} == set(begun(place))
    assert subprocess.run(["bash", "-n", "go.sh"], check=False).returncode == 0


def test_for_tpu_slices_every_trial_gets_an_env_file_that_the_launch_scripts_take(place):
    root = Path(sweep.__file__).parents[2]
    env = (root / "tpu_scripts" / "env.example").read_text()
    # The batch of the example is the trials' no more; nothing of theirs goes onto 64 chips.
    env = re.sub(r"TRAIN_ARG=--config\.(data|train|schedule).*\n", "", env)
    for name, value in {
        "PROJECT": "shop-1",
        "ACCELERATOR": "v6e-1",
        "INSTALL": "git+https://a.b/c@d",
    }.items():
        env = re.sub(rf"^{name}=.*", f"{name}={value}", env, flags=re.M)
    (place / "env").write_text(env)
    more = ("--set", "evaluate.windows_dir=gs://bucket/held")
    run("--write-commands", "go.sh", "--env", "env", *more, workdir="gs://bucket/lr")
    lines = [line for line in (place / "go.sh").read_text().splitlines() if "queued.sh" in line]
    assert len(lines) == 12
    words, after = map(shlex.split, lines[:2])
    assert words[:2] == ["tpu_scripts/queued.sh", "watch"] and words[3] == "||"
    file = place / words[2]
    assert after == ["tpu_scripts/queued.sh", "delete", words[2], "--yes"]
    assert file.stem.startswith("peak_frac-0.05_seed-0_")
    found = file.read_text().splitlines()
    assert f"WORKDIR=gs://bucket/lr/{file.stem}" in found and "PROJECT=shop-1" in found
    assert "CONFIG=demo.py:tiny" in found
    assert "TRAIN_ARG=--config.schedule.peak_frac=0.05" in found
    names = {path.read_text().split("\nNAME=")[1].split("\n")[0] for path in file.parent.iterdir()}
    assert len(names) == 6 and all(re.fullmatch("ellama-8b-[0-9a-f]{8}", name) for name in names)
    printed = subprocess.run(
        [root / "tpu_scripts/queued.sh", "resume", file], check=False, capture_output=True, text=True,
        env={**os.environ, "DRY_RUN": "1", "PYTHON": sys.executable}, cwd=root,
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    assert "--config.schedule.peak_frac=0.05" in printed.stderr


def test_collecting_judges_what_is_there_and_runs_nothing(place, capsys):
    behave(place, broken=1.0)
    with pytest.raises(ValueError, match="2 of 6 trials failed"):
        run()
    before = begun(place)
    run("--collect", "--results", "page")
    assert begun(place) == before
    found = json.loads((place / "page" / "trials.json").read_text())
    assert [trial["status"] for trial in found["trials"]] == ["done"] * 4 + ["waiting"] * 2
    assert (place / "page" / "report.html").is_file()


def test_the_page_has_the_choice_a_plot_an_axis_and_every_setting(place):
    run()
    page = write_report(place / "out").read_text()
    assert "<h1>Rates</h1>" in page and "Best of 3" in page
    assert page.count("<figure") == 1 and "By schedule.peak_frac" in page
    rows = re.findall(r"schedule\.peak_frac [\d.]+</td>", page)
    assert len(rows) == 3 and "Left out" not in page


def test_the_last_whole_record_is_shown(tmp_path):
    assert last_record(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_record(tmp_path) == {"step": 2}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--jobs", "0"], "--jobs: must be at least 1, got 0"),
        (["--set", "train.steps"], "--set: must be KEY=VALUE"),
        (["--set", "train.stepz=3"], "train.stepz: is no configuration key"),
        (["--set", "evaluate.windows_dir="], "evaluate.windows_dir: must hold held-out windows"),
        (["--config.rule.gain=eval_score/ecommerce"], "evaluate.tasks: must name tasks"),
        (["--config.rule.gain=loss"], "rule: metrics must be eval_loss"),
        (["--launcher", "x"], "--launcher: must stand beside --write-commands"),
        (["--env", "x"], "--env: must stand beside --write-commands"),
        (["--env", "x", "--launcher", "x", "--write-commands", "x"], "one at a time, got both"),
        (["--env", "nowhere", "--write-commands", "x"], "--env: must be a file like tpu_scripts"),
        (["--env", "rates.py", "--write-commands", "x"], "must have NAME, WORKDIR, CONFIG"),
        (["--collect", "--write-commands", "x"], "given one at a time, got both"),
        (["--workdir", "gs://bucket/x"], "--workdir: must be on a local disk to run trials here"),
        (["--workdir", "rates.py"], "--workdir: must be a directory, got the file rates.py"),
        (["--collect"], "--workdir: must be the directory of a sweep, got out"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_named_before_anything_is_made(place, more, said):
    with pytest.raises(ValueError, match=said):
        run(*more)
    assert not (place / "out").exists()


def test_a_configuration_that_is_no_sweep_is_named(place):
    with pytest.raises(ValueError, match="--config: must be a sweep, as configs/sweeps/base.py"):
        sweep.main_sweep(["--config=" + str(sweep.__file__).replace("ellama_jax/experiments/sweep.py", "configs/demo.py"),
                          "--workdir=out"])  # fmt: skip
