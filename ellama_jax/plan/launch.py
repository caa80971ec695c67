"""What a launch is checked for where it is started, before a chip is rented.

tpu_scripts/ asks by `python -m ellama_jax.plan.launch`. What is checked is what `train` and `plan`
check, by their own code. Also the lines of an env file that a plan decides.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ellama_jax.core.paths import is_remote

# Where a run reads while it trains, and what its hosts can be sent, for that is small.
_READ_IN_PLACE = ("model.checkpoint", "data.windows_dir", "evaluate.windows_dir")
_SENT = ("evaluate.benchmark_dir", "evaluate.texts_path")
_MOST_SENT_BYTES = 2**30


def check_launch(slices: str, argv: Sequence[str]) -> list[str]:
    """Checks a run for slices that are not here: file, keys, mesh, batch, and every path.

    Args:
        slices: `v6e-64`, `2xv5p-128`.
        argv: those of `ellama train` on every host.

    Returns:
        lines of three words between tabs: `bucket KEY PATH` what must be in a bucket, `send KEY PATH`
        what the hosts must be sent, `package NAME -` what they must install beside.

    Raises:
        ValueError: naming what must hold.
    """
    from ellama_jax.config import load_config
    from ellama_jax.plan.targets import check_sizes, parse_targets
    from ellama_jax.train.program import find_model

    config, _ = load_config(list(argv), "train")
    (target,) = parse_targets(slices)
    find_model(config, needs_checkpoint=False)
    check_sizes(config, target)
    lines = ["package\twandb\t-"] if config.train.wandb_project else []
    for key in (*_READ_IN_PLACE, *_SENT):
        section, name = key.split(".")
        path = getattr(getattr(config, section), name)
        if not path:
            continue
        if re.search(r"[^\w./:@=+,*?\[\] -]", path):
            raise ValueError(f"{key}: must be a path of plain characters, got {path!r}.")
        if is_remote(path):
            lines.append(f"bucket\t{key}\t{path}")
        elif key in _SENT:
            _check_sent(key, path)
            lines.append(f"send\t{key}\t{path}")
        elif not Path(path).is_absolute():  # that is a disk which every host has
            raise ValueError(
                f"{key}: must be a gs:// path, which every host can read, got {path}; "
                f"gcloud storage cp -r {path} gs://BUCKET/, or /mnt/... on a data disk."
            )
    sent = [Path(line.split("\t")[2]).name for line in lines if line.startswith("send")]
    if len(set(sent)) < len(sent):
        raise ValueError(f"{', '.join(_SENT)}: must have names of their own, got {sent[0]} twice.")
    return lines


def _check_sent(key: str, path: str) -> None:
    place = Path(path)
    if not place.exists():
        raise ValueError(f"{key}: must exist here or be a gs:// path, got {path}.")
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    if (size := sum(file.stat().st_size for file in files)) > _MOST_SENT_BYTES:
        raise ValueError(
            f"{key}: must be at most {_MOST_SENT_BYTES / 2**30:g} GiB to be sent to every host, got "
            f"{size / 2**30:.1f} GiB; gcloud storage cp -r {path} gs://BUCKET/ and name that."
        )


def env_lines(
    lines: Sequence[str], values: Mapping[str, str], arguments: Sequence[str]
) -> list[str]:
    """Returns an env file's lines with other values, and with the TRAIN_ARGs of another run.

    Args:
        lines: of a file like tpu_scripts/env.example.
        values: name -> value, in place of what the file has, or behind it.
        arguments: the run's `--config.KEY=VALUE`. Of the file's own TRAIN_ARGs those that name a
            place in a bucket stay, if these have none for their key: the rest was another run's.
    """
    keys = {argument.partition("=")[0] for argument in arguments}
    kept = []
    for line in lines:
        name, _, value = line.partition("=")
        key, _, place = value.partition("=")
        if name != "TRAIN_ARG" or (is_remote(place) and key not in keys):
            kept.append(f"{name}={values[name]}" if name in values else line)
    names = {line.partition("=")[0] for line in kept}
    more = [f"{name}={value}" for name, value in values.items() if name not in names]
    return [*kept, *more, *(f"TRAIN_ARG={argument}" for argument in arguments)]


def main(argv: list[str]) -> None:
    """Prints what `check_launch` finds; a mistake is one line and exit status 2."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # it only looks at shapes
    try:
        print("\n".join(check_launch(argv[0], argv[1:])))
    except ModuleNotFoundError as error:
        sys.exit(_fail(f"PYTHON: must be one that has this project's packages, got {sys.executable} "
                       f"without {error.name}; make .venv/installed, or export PYTHON=..."))  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
    print(f"launch: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main(sys.argv[1:])
