"""A sweep as commands for other machines: a script of one line a trial, and env files for TPU slices.

Owns what is written; tpu_scripts/ reads the env files.
"""

import re
import shlex
from pathlib import Path

from ellama_jax.core.paths import write_whole
from ellama_jax.core.terminal import one_line
from ellama_jax.experiments.sweep_grid import Sweep, Trial

_SET_BY_TRIAL = ("NAME", "WORKDIR", "CONFIG")


def write_commands(
    sweep: Sweep, workdir: str, path: Path, *, launcher: str = "", env: Path | None = None
) -> None:
    """Writes a shell script that runs every trial, one after the other; it can be cut into pieces.

    Args:
        sweep: the trials.
        workdir: where their directories will be, local or gs://.
        path: of the script.
        launcher: words before each `ellama train`; `{name}` in it is the trial's name.
        env: an env file of tpu_scripts/. Then each trial gets one of its own, in `path` with `.d`
            behind it, and the script runs each on slices of its own and gives them back.

    Raises:
        ValueError: for an env file without the names that a trial sets.
    """
    lines = [
        "#!/usr/bin/env bash",
        f"# {one_line(sweep.title)}: {len(sweep.trials)} trials. Judge what is done with:",
        f"#   ellama sweep --config ... --workdir {shlex.quote(workdir)} --collect",
        "set -euo pipefail",
    ]
    base = None if env is None else _read_env(env)
    folder = path.with_name(f"{path.name}.d")
    for trial in sweep.trials:
        if base is None:
            before = launcher.replace("{name}", trial.name)
            words = shlex.join(
                ["ellama", "train", *trial.arguments, f"--workdir={workdir}/{trial.name}"]
            )
            lines.append(f"{before} {words}".lstrip())
        else:
            file = folder / f"{trial.name}.env"
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, _trial_env(base, trial, workdir))
            script = f"tpu_scripts/queued.sh {{}} {shlex.quote(str(file))}"
            # A trial that failed must not go on costing, nor keep the next from its chips.
            lines.append(f"{script.format('watch')} || echo {shlex.quote(trial.name)} failed >&2")
            lines.append(f"{script.format('delete')} --yes")
    write_whole(path, "\n".join(lines) + "\n")


def _read_env(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"--env: must be a file like tpu_scripts/env.example, got {path}.")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = {line.partition("=")[0] for line in lines}
    if missing := [name for name in _SET_BY_TRIAL if name not in names]:
        raise ValueError(
            f"--env: {path} must have {', '.join(missing)}, as tpu_scripts/env.example."
        )
    return lines


def _trial_env(base: list[str], trial: Trial, workdir: str) -> str:
    """Returns the lines of `base` with the trial's name, directory, configuration and arguments."""
    config, *arguments = trial.arguments
    if broken := [word for word in trial.arguments if len(word.splitlines()) > 1]:
        raise ValueError(f"{trial.name}: an env file takes values of one line, got {broken[0]!r}.")
    name = next(line for line in base if line.startswith("NAME=")).partition("=")[2]
    values = {
        "NAME": f"{re.sub('[^a-z0-9-]', '-', name.lower())[:24].rstrip('-')}-{trial.identity[:8]}",
        "WORKDIR": f"{workdir}/{trial.name}",
        "CONFIG": config.removeprefix("--config="),
    }
    lines = [
        f"{key}={values[key]}" if (key := line.partition("=")[0]) in values else line
        for line in base
    ]
    return "\n".join([*lines, *(f"TRAIN_ARG={argument}" for argument in arguments)]) + "\n"
