"""Where checkpoints lie on disk and what they say about themselves.

Owns the names in a root (`ROOT/<step>/{params,meta[,opt_state,data,metrics]}`, `ROOT/tokenizer`),
the meta, which step is the best, and the checks before anything is written. It reads and writes no
weights; checkpoint.py does. A root may lie in a bucket, see core/paths.py.

Words: a *root* holds steps; a step is *complete* once Orbax has committed it and its `params` and
`meta` can be found. Only complete steps are ever restored.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import (
    as_path,
    copy_tree,
    is_remote,
    move_tree,
    remove_left_over,
    remove_tree,
    write_whole,
)
from ellama_jax.model.presets import LlamaConfig, config_from_dict, config_to_dict
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights.stored import CHECKSUMS, DamagedCheckpoint, seal, unseal

log = logging.getLogger(__name__)

TOKENIZER_DIR = "tokenizer"
BEST = "best"  # ROOT/best means the best complete step; there is no such directory
META_KEYS = ("model", "tokenizer_fingerprint", "versions", "commit", "provenance", "verification")

# Orbax's own word for a step that is still being written, and ours for those that were set aside.
_TEMPORARY = ".orbax-checkpoint-tmp"
_INCOMPLETE = ".incomplete"
_DAMAGED = ".damaged"
_NEEDED = ("params/_METADATA", "meta/metadata")
_VERSIONS_OF = ("ellama_jax", "jax", "flax", "orbax-checkpoint", "numpy")
# Room for metadata and for file systems that count in blocks.
_SPARE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class CheckpointInfo:
    """One complete step: where it is and what its meta says.

    `path` is `root/<step>`; `config` is the model that `meta["model"]` describes.
    """

    root: Path
    step: int
    path: Path
    meta: dict
    config: LlamaConfig
    tokenizer_dir: Path


def find_checkpoint(path: str | os.PathLike) -> CheckpointInfo:
    """Finds the checkpoint meant by `path`, without reading any weight.

    Args:
        path: a root (its newest complete step is taken), one `ROOT/<step>`, or `ROOT/best`: the
            step with the lowest value of the `checkpoint.best_metric` of its run.

    Returns:
        Where it is and what it says about itself.

    Raises:
        ValueError: if nothing is there, no step is complete or the meta cannot be read.
    """
    given = as_path(path)
    if given.name == BEST and not given.exists() and given.parent.is_dir():
        return _describe_step(given.parent, best_step(given.parent))
    if not given.is_dir():
        kind = "a file" if given.exists() else "nothing"
        hint = "; `ellama import` makes checkpoints of GGUF files" if kind == "a file" else ""
        raise ValueError(f"checkpoint {path}: must be a directory, got {kind}{hint}.")
    if given.name.isdigit() and ((given / "params").exists() or (given / "meta").exists()):
        root, step = given.parent, int(given.name)
        if problem := _find_problem(given):
            raise ValueError(f"checkpoint {path}: must be complete, got a step {problem}.")
    else:
        root, step = given, latest_step(given)
        if step is None:
            raise ValueError(f"checkpoint {path}: {_describe_empty(given)}")
    return _describe_step(root, step)


def latest_step(root: str | os.PathLike) -> int | None:
    """Returns the newest complete step of `root`, None if it has none.

    What is incomplete is named on the log and passed over.
    """
    return max(complete_steps(root), default=None)


def complete_steps(root: str | os.PathLike) -> list[int]:
    """Returns the complete steps of `root`; the others are named on the log."""
    complete = []
    for step, directory in _step_dirs(as_path(root)):
        problem = _find_problem(directory)
        if problem is None:
            complete.append(step)
        else:
            log.warning("checkpoint %s: ignored, it is %s", directory, problem)
    return complete


def best_step(root: str | os.PathLike) -> int:
    """Returns the complete step with the lowest `best_metric` of the run, the newest of equals.

    Which metric that is, the newest step says; each step has the values of all of them.

    Raises:
        ValueError: if the run names no metric, or no step has a value of it.
    """
    newest = find_checkpoint(root)
    name = newest.meta.get("config", {}).get("checkpoint", {}).get("best_metric", "")
    title = f"checkpoint {newest.root / BEST}"
    if not name:
        raise ValueError(
            f"{title}: must be of a run with a checkpoint.best_metric, got none; name a step."
        )
    steps = [step for step, directory in _step_dirs(newest.root) if not _find_problem(directory)]
    metrics = {step: read_metrics(newest.root / str(step)) for step in steps}
    values = {step: metric_value(held, name) for step, held in metrics.items()}
    if not values or min(values.values()) == math.inf:
        known = sorted({key for held in metrics.values() for key in held})
        raise ValueError(
            f"{title}: a step must have the metric {name}, got {', '.join(known) or 'no metrics'}."
        )
    return min(values, key=lambda step: (values[step], -step))


def read_metrics(step_dir: Path) -> dict[str, float]:
    """Returns the metrics a step was saved with, empty if it was saved without."""
    return _stored_metrics(step_dir) or {}


def _stored_metrics(step_dir: Path) -> dict[str, float] | None:
    try:
        return unseal(parse_json((step_dir / "metrics" / "metrics").read_text()))
    except (OSError, ValueError):
        return None


def metric_value(metrics: Mapping[str, float] | None, name: str) -> float:
    """Returns one metric as steps are compared by it: what is missing is worse than anything."""
    value = (metrics or {}).get(name, math.inf)
    return value if math.isfinite(value) else math.inf


def set_aside_incomplete(root: Path) -> None:
    """Clears incomplete steps out of the way, so that their numbers can be saved again.

    Orbax takes every directory named by a number for a step, and refuses to save lower ones. Such
    a one is not deleted: `7` becomes `7.incomplete`. What Orbax had not renamed to a number yet is
    the rest of an interrupted save, and removed. In a bucket, where nothing can be renamed, such a
    rest bears the number itself, and is removed too.
    """
    for step, directory in _step_dirs(root):
        problem = _find_problem(directory)
        if (directory / "metrics").is_dir() and _stored_metrics(directory) is None:
            # Orbax reads them of every step it finds; it takes a step without.
            aside = _set_aside(directory / "metrics", _DAMAGED)
            log.warning("checkpoint %s: metrics damaged, set aside as %s", directory, aside.name)
        if directory.name.endswith(_TEMPORARY) or (problem and is_remote(directory)):
            remove_tree(directory)
            log.warning("checkpoint %s: %s, removed", directory, problem)
        elif directory.name == str(step) and problem:
            aside = _set_aside(directory, _INCOMPLETE)
            log.warning("checkpoint %s: incomplete, set aside as %s", directory, aside.name)


def set_aside_damaged(step_dir: Path) -> None:
    """Moves a complete step that cannot be read out of the way: `7` becomes `7.damaged`."""
    aside = _set_aside(step_dir, _DAMAGED)
    log.warning("checkpoint %s: damaged, set aside as %s", step_dir, aside.name)


def _set_aside(directory: Path, ending: str) -> Path:
    aside = directory.with_name(directory.name + ending)
    remove_tree(aside)
    move_tree(directory, aside)
    return aside


def _bare(name: str) -> str:
    """Returns the number in the name of a step's directory, whatever became of it."""
    for ending in (_TEMPORARY, _INCOMPLETE, _DAMAGED):
        name = name.removesuffix(ending)
    return name


def prepare_root(root: Path, tokenizer_dir: Path) -> None:
    """Makes a root that can be saved to; for one process of a job."""
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    (check_writable if is_remote(root) else _make_writable)(root)
    kept = root / TOKENIZER_DIR
    if is_remote(root):
        # What an interrupted copy left is no tokenizer, and no run has begun with it.
        if latest_step(root) is None:
            copy_tree(tokenizer_dir, kept)
    elif not kept.exists():
        partial = root / f".{TOKENIZER_DIR}.partial-{os.getpid()}"
        remove_tree(partial)
        copy_tree(tokenizer_dir, partial)
        os.replace(partial, kept)
    check_fingerprint(kept, fingerprint)
    set_aside_incomplete(root)


def _make_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{root}: must be a writable directory, got {error.strerror}.") from error


def _step_dirs(root: Path) -> list[tuple[int, Path]]:
    # Half-written steps count as found, so that they are named and not silently passed over.
    found = []
    for entry in sorted(root.iterdir()) if root.is_dir() else []:
        name = entry.name.removesuffix(_TEMPORARY)
        if entry.is_dir() and name.isdigit():
            found.append((int(name), entry))
    return found


def _find_problem(directory: Path) -> str | None:
    """Returns why a step may not be restored, None if it may."""
    if directory.name.endswith(_TEMPORARY):
        return "incomplete (being written, or interrupted)"
    try:
        committed = parse_json((directory / "_CHECKPOINT_METADATA").read_text())
    except (OSError, ValueError):
        return "incomplete (not committed)"
    if not isinstance(committed, dict) or not committed.get("commit_timestamp_nsecs"):
        return "incomplete (not committed)"
    # Orbax commits a step in a bucket by this file, for want of a rename.
    needed = [*_NEEDED, "commit_success.txt"] if is_remote(directory) else _NEEDED
    missing = [name for name in needed if not (directory / name).is_file()]
    return f"incomplete ({' and '.join(missing)} missing)" if missing else None


def _describe_empty(directory: Path) -> str:
    if (directory / "config.json").is_file():
        return (
            "must hold Orbax steps, got a Hugging Face directory; make a checkpoint of it with "
            "`ellama import`."
        )
    names = [entry.name for _, entry in _step_dirs(directory)]
    found = f"only incomplete ones ({', '.join(names)})" if names else "none"
    return f"must hold a complete step, got {found}."


def _describe_step(root: Path, step: int) -> CheckpointInfo:
    path = root / str(step)
    meta = read_json_item(path, "meta")
    if missing := [key for key in META_KEYS if key not in meta]:
        raise ValueError(f"checkpoint {path}: meta must hold {', '.join(missing)}, got none.")
    try:
        config = config_from_dict(meta["model"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"checkpoint {path}: meta must describe a model; {error}") from error
    return CheckpointInfo(root, step, path, meta, config, root / TOKENIZER_DIR)


@dataclass(frozen=True)
class StepEntry:
    """One step directory of a root: complete where `problem` is None, ignored otherwise.

    `saved_at` is when Orbax committed it, None where it did not.
    """

    step: int
    path: Path
    problem: str | None
    saved_at: datetime.datetime | None


def list_steps(root: str | os.PathLike) -> list[StepEntry]:
    """Returns every step directory of a root by its number, those set aside too."""
    entries = []
    for entry in as_path(root).iterdir():
        name = _bare(entry.name)
        if entry.is_dir() and name.isdigit():
            aside = entry.suffix in (_INCOMPLETE, _DAMAGED)
            problem = (
                f"{entry.suffix[1:]} (set aside as {entry.name})" if aside else _find_problem(entry)
            )
            entries.append(StepEntry(int(name), entry, problem, _commit_time(entry)))
    return sorted(entries, key=lambda e: (e.step, e.path.name))


def _commit_time(directory: Path) -> datetime.datetime | None:
    try:
        committed = parse_json((directory / "_CHECKPOINT_METADATA").read_text())
        nanoseconds = committed["commit_timestamp_nsecs"]
        return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def weights_identity(step_dir: Path) -> str:
    """Returns the content of a step's weights in 16 hexadecimal digits.

    Of an import, a merge or an average it is the hash of the elements (content_hash.py), whatever they
    lie in; of a step of training, its stored checksums. `verify --integrity` makes both anew.

    Raises:
        DamagedCheckpoint: if the checksums cannot be read.
    """
    if content := read_json_item(step_dir, "meta").get("weights"):
        return content["hash"][:16]
    file = step_dir / "params" / CHECKSUMS
    try:
        sums = unseal(parse_json(file.read_text()))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"checkpoint {step_dir}: {file.name} {error}") from error
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def read_json_item(path: Path, item: str) -> dict:
    """Reads the JSON item (`meta` or `data`) of one step.

    Raises:
        DamagedCheckpoint: if it is missing or not as it was written.
    """
    try:
        return unseal(parse_json((path / item / "metadata").read_text()))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(
            f"checkpoint {path}: {item} must be readable, got {error}"
        ) from error


def write_json_item(path: Path, item: str, content: dict) -> None:
    """Replaces the JSON item (`meta`) of one step, whole or not at all."""
    write_whole(path / item / "metadata", json.dumps(seal(content)))


def make_meta(
    model: LlamaConfig,
    *,
    tokenizer_fingerprint: str,
    provenance: dict,
    verification: dict | None = None,
    **more,
) -> dict:
    """Returns the meta of a checkpoint: what it is, and what made it.

    Args:
        model: its sizes.
        tokenizer_fingerprint: of the tokenizer beside the weights.
        provenance: `kind` (import, train, merge or average) and what it came from.
        verification: result of the conversion gate, None if it was not run.
        **more: further JSON-able keys, as the resolved config of a run.
    """
    return {
        "model": config_to_dict(model),
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "versions": {name: installed_version(name) for name in _VERSIONS_OF},
        "commit": source_commit(),
        "provenance": provenance,
        "verification": verification,
        **more,
    }


def write_meta(info: CheckpointInfo, meta: dict) -> CheckpointInfo:
    """Replaces the meta of one step, whole or not at all; the weights are not touched.

    Raises:
        OSError: if it cannot be written; the old one stays then.
    """
    check_meta(meta)
    write_json_item(info.path, "meta", meta)
    return _describe_step(info.root, info.step)


def check_destination(
    dst: str | os.PathLike,
    needed_bytes: int,
    *,
    overwrite: bool,
    is_replaceable: Callable[[Path], bool] | None = None,
) -> None:
    """Refuses a place where a result cannot be written, before any work is done for it.

    What a killed process left beside it is removed (see `remove_left_over`).

    Args:
        dst: the directory to make.
        needed_bytes: what its disk must have room for.
        overwrite: whether what is there may be replaced.
        is_replaceable: tells what may be; by default a checkpoint root.

    Raises:
        ValueError: if `dst` is occupied, cannot be written, or its disk has too little room.
    """
    dst = as_path(dst)
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        if not overwrite:
            raise ValueError(f"{dst}: must not exist yet; pass --overwrite to replace it.")
        if not dst.is_dir() or not (is_replaceable or _is_root)(dst):
            kind = "a checkpoint root" if is_replaceable is None else "an earlier export"
            raise ValueError(f"{dst}: only {kind} is replaced, got something else.")
    remove_left_over(dst)  # or there would be no room for a second try
    check_disk_space(dst, check_writable(dst), needed_bytes)


def check_writable(dst: str | os.PathLike) -> Path:
    """Returns the nearest directory above `dst` that exists, if something can be written there.

    Raises:
        ValueError: if not; so long work is refused before it is done.
    """
    if is_remote(dst):
        return _check_bucket_writable(as_path(dst))
    parent = as_path(dst).absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        # Tried, not asked for: root passes every check of permissions, on read-only disks too.
        with tempfile.TemporaryFile(dir=parent):
            return parent
    except OSError as error:
        raise ValueError(
            f"{dst}: must be in a writable directory, but {parent} is not one ({error.strerror})."
        ) from error


def check_file(dst: str | os.PathLike, name: str) -> None:
    """Raises a ValueError if no file can be written at `dst`, given as option `name`."""
    if not is_remote(dst) and as_path(dst).is_dir():
        raise ValueError(f"{name}: must be a file, got the directory {dst}.")
    check_writable(dst)


def _check_bucket_writable(dst: Path) -> Path:
    probe = dst.with_name(f".{dst.name}.writable-{os.getpid()}")
    try:
        probe.write_text("")
        probe.unlink(missing_ok=True)
    except Exception as error:  # gcsfs has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
        raise ValueError(
            f"{dst}: must be in a bucket where objects can be made and deleted, got: {reason}."
        ) from error
    return dst.parent


def check_disk_space(name: str | Path, existing_dir: Path, needed_bytes: int) -> None:
    """Raises a ValueError if the disk under `existing_dir` has no room for `needed_bytes`.

    A bucket has room for anything.
    """
    if is_remote(existing_dir):
        return
    free = shutil.disk_usage(existing_dir).free
    if free < needed_bytes + _SPARE_BYTES:
        raise ValueError(
            f"{name}: the disk must have {(needed_bytes + _SPARE_BYTES) / 2**20:,.0f} MiB free, "
            f"got {free / 2**20:,.0f} MiB; make room or choose another disk."
        )


def _is_root(directory: Path) -> bool:
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    steps = [name for name in names if _bare(name).isdigit()]
    return bool(steps) and set(names) <= {*steps, TOKENIZER_DIR}


def check_meta(meta: dict) -> None:
    """Asserts that `meta` holds what every checkpoint says about itself."""
    missing = [key for key in META_KEYS if key not in meta]
    assert not missing, f"meta: must come from make_meta, but lacks {missing}."


def check_fingerprint(tokenizer_dir: str | os.PathLike, expected: str) -> None:
    """Raises a ValueError if the tokenizer is not the one with the fingerprint `expected`."""
    found = load_tokenizer(tokenizer_dir).fingerprint
    if found != expected:
        raise ValueError(
            f"tokenizer {tokenizer_dir}: must have the fingerprint {expected[:12]}, "
            f"got {found[:12]}; was the tokenizer changed?"
        )


def installed_version(distribution: str) -> str | None:
    """Returns the version of an installed package, None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def source_commit() -> str | None:
    """Returns the commit this package runs from, None where it is not its own checkout."""
    # Known only where the package runs from its own checkout.
    house = Path(__file__).resolve().parents[2]
    if not (house / ".git").exists():
        return None
    command = ["git", "-C", str(house), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
