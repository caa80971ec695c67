"""A run's records in Weights & Biases, where it is asked for.

Owns the run's id there, so that a restart goes on with the same curves. `wandb` is an extra and
imported only here, only when `train.wandb_project` names a project.
"""

import importlib.util
import math
import secrets
from collections.abc import Mapping
from pathlib import Path

from ellama_jax.core.paths import write_whole

ID_FILE = "wandb_id.txt"


def check_wandb() -> None:
    """Raises a ValueError if the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "train.wandb_project: needs the package wandb, got none; `pip install wandb`, or leave "
            "the key empty."
        )


class WandbRun:
    """One run of a project; WANDB_MODE=offline keeps it on disk until `wandb sync`."""

    def __init__(self, project: str, workdir: Path, folder: Path, config: Mapping):
        """Begins the run, or goes on with the one that WORKDIR/wandb_id.txt names.

        Args:
            project: its name.
            workdir: of the run, local or in a bucket.
            folder: local directory for wandb's own files.
            config: shown beside the curves.

        Raises:
            ValueError: if wandb cannot begin the run, with its reason.
        """
        import wandb

        path = workdir / ID_FILE
        known = path.read_text().strip() if path.exists() else None
        run_id = known or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=project, id=run_id, resume="allow", name=workdir.name, dir=str(folder),
                config=dict(config),
            )  # fmt: skip
        except (wandb.errors.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"train.wandb_project: must be a project that can be written, got {project}: "
                f"{reason}; log in with `wandb login`, or set WANDB_MODE=offline."
            ) from error
        if known is None:
            write_whole(path, run_id + "\n")
        # Steps that are done again after a crash would be refused as wandb's own step, which
        # never goes back; as an axis they are drawn twice.
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping) -> None:
        """Logs the numbers of a record."""
        self._run.log({name: value for name, value in record.items() if _is_number(value)})

    def close(self) -> None:
        """Ends the run; what is logged has arrived, or is on disk."""
        self._run.finish()


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not (isinstance(value, float) and math.isinf(value))
