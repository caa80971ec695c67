"""`ellama sweep`: the runs of a sweep on this machine, or as commands for others, and what they say.

Owns the order of the trials, what is started and skipped, and the files of a sweep: one directory a
trial, `trials.json`, a plot an axis and the page. Which trials there are is experiments/sweep_grid.py's, what
they came to experiments/sweep_results.py's, how it looks experiments/sweep_show.py's.
"""

import argparse
import dataclasses
import json
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ellama_jax.config import RunConfig, load_values
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path, is_remote, remove_tree, write_whole
from ellama_jax.core.verb_process import last_line, start_verb, stop_verbs
from ellama_jax.experiments.sweep_commands import write_commands
from ellama_jax.experiments.sweep_grid import Sweep, Trial, plan_sweep
from ellama_jax.experiments.sweep_results import FILE, judge, read_changes
from ellama_jax.experiments.sweep_show import Board, draw_axes, print_settings

LOG = "sweep-log.txt"
_SECS_BETWEEN_LOOKS = 0.5
_MOST_FAILURES = 2  # at the beginning: what is wrong is then wrong with all of them


@dataclasses.dataclass
class Standing:
    """Where a trial stands: `waiting`, `running`, `done`, `failed` or `stopped`; `secs` of this start."""

    trial: Trial
    status: str = "waiting"
    changes: dict | None = None
    secs: float = 0.0
    said: str = ""


def main_sweep(argv: list[str]) -> None:
    """Runs the verb `sweep`."""
    if "-h" in argv or "--help" in argv:
        _parser().parse_args(["--help"])
    values, others = load_values(argv, "sweep")
    args = _parser().parse_args(others)
    _check_options(args)
    sweep = plan_sweep(values, [_read_setting(text) for text in args.set])
    for trial in sweep.trials:
        _check_measured(trial.config, sweep)
    if args.write_commands:
        script, env = Path(args.write_commands), args.env and Path(args.env)
        write_commands(sweep, args.workdir, script, launcher=args.launcher, env=env or None)
        print(f"wrote {script}: {len(sweep.trials)} commands")
        return
    workdir = as_path(args.workdir)
    states = [Standing(trial) for trial in sweep.trials]
    for state in states:
        _look(state, workdir)
    results = Path(args.results or args.workdir)
    command = shlex.join(["ellama", "sweep", *argv])
    if not args.collect:
        workdir.mkdir(parents=True, exist_ok=True)
        with owned(workdir, "ellama sweep"), Board(sweep, states, workdir) as board:
            _run(sweep, states, workdir, args.jobs, board, command)
    _close(sweep, states, results, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ellama sweep",
        description="Run every trial of a sweep; the same command resumes it and skips what is done.",
        epilog="example:\n  ellama sweep --config configs/sweeps/learning_rate.py --workdir runs/lr \\\n"
        "      --set model.checkpoint=base --set data.windows_dir=windows \\\n"
        "      --set evaluate.windows_dir=heldout",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="file of configs/sweeps; required")
    parser.add_argument("--workdir", required=True, help="directory of the trials")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="a configuration key of every trial; may be given several times",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="trials that run at one time")
    parser.add_argument(
        "--write-commands", metavar="FILE", help="run nothing: write one command a trial"
    )
    parser.add_argument(
        "--launcher", metavar="WORDS", default="",
        help="what --write-commands puts before `ellama train`, as `sbatch --wrap`; {name} in it is "
        "the trial's",
    )  # fmt: skip
    parser.add_argument(
        "--env", metavar="FILE",
        help="env file of tpu_scripts: --write-commands then writes one a trial and runs each on TPU "
        "slices of its own",
    )  # fmt: skip
    parser.add_argument(
        "--collect", action="store_true", help="run nothing: judge the trials that are done"
    )
    parser.add_argument(
        "--results", metavar="DIR", help="for table, plots and page, where --workdir is in a bucket"
    )
    return parser


def _check_options(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise ValueError(f"--jobs: must be at least 1, got {args.jobs}.")
    if args.collect and args.write_commands:
        raise ValueError("--collect, --write-commands: must be given one at a time, got both.")
    for name in ("launcher", "env"):
        if getattr(args, name) and not args.write_commands:
            raise ValueError(f"--{name}: must stand beside --write-commands, got it alone.")
    if args.launcher and args.env:
        raise ValueError("--launcher, --env: must be given one at a time, got both.")
    if is_remote(args.workdir) and not args.write_commands and not (args.collect and args.results):
        raise ValueError(
            f"--workdir: must be on a local disk to run trials here, got {args.workdir}; take "
            "--write-commands, and later --collect with --results DIR."
        )
    if not is_remote(args.workdir) and Path(args.workdir).is_file():
        raise ValueError(f"--workdir: must be a directory, got the file {args.workdir}.")
    if args.collect and not is_remote(args.workdir) and not Path(args.workdir).is_dir():
        raise ValueError(f"--workdir: must be the directory of a sweep, got {args.workdir}.")


def _read_setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"--set: must be KEY=VALUE, as model.checkpoint=base, got {text}.")
    return key, value


def _check_measured(config: RunConfig, sweep: Sweep) -> None:
    """Refuses a trial at whose end there would be nothing to judge it by."""
    for metric in (sweep.rule.gain, sweep.rule.keep):
        kind = metric.split("/")[0]
        if kind in ("eval_loss", "eval_bits_per_byte") and not config.evaluate.windows_dir:
            raise ValueError(
                f"evaluate.windows_dir: must hold held-out windows, for the rule asks for {metric}, "
                "got none; give it with --set evaluate.windows_dir=DIR."
            )
        if kind == "eval_score" and not config.evaluate.tasks:
            raise ValueError(
                f"evaluate.tasks: must name tasks, for the rule asks for {metric}, got none."
            )
        if kind not in ("eval_loss", "eval_bits_per_byte", "eval_score"):
            raise ValueError(
                f"rule: metrics must be eval_loss, eval_bits_per_byte or eval_score, or parts of "
                f"them, got {metric}."
            )


def _train_words(trial: Trial, workdir: str | Path) -> list[str]:
    return ["train", *trial.arguments, f"--workdir={workdir}/{trial.name}"]


def _look(state: Standing, workdir: Path) -> None:
    """Marks a trial as done if its directory says so."""
    directory = workdir / state.trial.name
    changes = read_changes(directory, state.trial.config.train.steps)
    if changes is not None:
        state.status, state.changes = "done", changes


def _run(
    sweep: Sweep, states: list[Standing], workdir: Path, jobs: int, board: Board, command: str
) -> None:
    """Runs what is not done, `jobs` at one time; SIGTERM and Ctrl-C stop them after a save."""
    waiting = [state for state in states if state.status != "done"]
    running: dict[subprocess.Popen, tuple[Standing, float]] = {}
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not _hopeless(states):
                state = waiting.pop(0)
                running[_start(state, workdir)] = state, time.monotonic()
                board.say(state)
            time.sleep(_SECS_BETWEEN_LOOKS)
            for process in [process for process in running if process.poll() is not None]:
                state, started = running.pop(process)
                state.secs = time.monotonic() - started
                _finish(state, process.returncode, workdir, remove=sweep.remove_checkpoints)
                board.say(state)
                _write(sweep, states, workdir, command)
            board.refresh()
            if _hopeless(states) and not running:
                break
    finally:
        signal.signal(signal.SIGTERM, previous)
        stop_verbs(list(running))
        for state, _ in running.values():
            state.status = "stopped"


def _interrupt(*_):
    raise KeyboardInterrupt


def _hopeless(states: Sequence[Standing]) -> bool:
    ended = [state.status for state in states if state.status in ("done", "failed")]
    return len(ended) >= _MOST_FAILURES and "done" not in ended


def _start(state: Standing, workdir: Path) -> subprocess.Popen:
    directory = workdir / state.trial.name
    directory.mkdir(exist_ok=True)
    state.status = "running"
    return start_verb(_train_words(state.trial, workdir), directory / LOG)


def _finish(state: Standing, code: int, workdir: Path, *, remove: bool) -> None:
    directory = workdir / state.trial.name
    _look(state, workdir)
    if code or state.status != "done":
        state.status = "failed"
        state.said = f"exit status {code}: {last_line(directory / LOG)}"
    elif remove:
        remove_tree(directory / "checkpoints")


def _describe(sweep: Sweep, states: Sequence[Standing], command: str) -> dict:
    changes = {state.trial.name: state.changes for state in states if state.status == "done"}
    return {
        "title": sweep.title,
        "command": command,
        "axes": {key: list(labels) for key, labels in sweep.axes.items()},
        "rule": {**dataclasses.asdict(sweep.rule), "says": str(sweep.rule)},
        **judge(sweep, changes),
        "trials": [
            {
                "name": state.trial.name, "seed": state.trial.seed, "status": state.status,
                "said": state.said, "secs": round(state.secs, 1), "steps": state.trial.config.train.steps,
                "command": shlex.join(["ellama", "train", *state.trial.arguments]),
                "changes": state.changes,
            }
            for state in states
        ],
    }  # fmt: skip


def _write(sweep: Sweep, states: Sequence[Standing], workdir: Path, command: str) -> dict:
    found = _describe(sweep, states, command)
    write_whole(workdir / FILE, json.dumps(found, indent=1) + "\n")
    return found


def _close(sweep: Sweep, states: Sequence[Standing], results: Path, command: str) -> None:
    """Writes and prints the table, the plots and the page; raises if trials failed."""
    from ellama_jax.report.verb import write_report

    results.mkdir(parents=True, exist_ok=True)
    found = _write(sweep, states, results, command)
    print_settings(found)
    plots = draw_axes(found, results)
    print(f"report: {write_report(results)}; plots: {', '.join(map(str, plots)) or 'none yet'}")
    left = [state for state in states if state.status != "done"]
    if failed := [state for state in left if state.status == "failed"]:
        raise ValueError(
            f"{failed[0].trial.name}: must succeed, got {failed[0].said} ({len(failed)} of "
            f"{len(states)} trials failed, {len(left) - len(failed)} were not begun; the same "
            "command tries them again)."
        )
