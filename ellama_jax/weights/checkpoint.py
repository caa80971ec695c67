"""Checkpoints: saving and restoring parameters, optimizer state and data position with Orbax.

Owns the use of orbax, beside lazy_writer.py. Where checkpoints lie and what their meta says is in layout.py; foreign
formats are in huggingface.py and gguf.py.
"""

import contextlib
import errno
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from ellama_jax.core.distributed import exchange, leads, on_leader
from ellama_jax.core.paths import (
    absolute,
    as_path,
    copy_tree,
    is_remote,
    remove_tree,
    replace_directory,
)
from ellama_jax.core.progress import mebibytes, progress
from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import LlamaConfig, config_to_dict
from ellama_jax.weights.content_hash import Ledger, leaf_arrays
from ellama_jax.weights.layout import (
    TOKENIZER_DIR,
    CheckpointInfo,
    check_destination,
    check_disk_space,
    check_fingerprint,
    check_meta,
    complete_steps,
    find_checkpoint,
    latest_step,
    make_meta,
    metric_value,
    prepare_root,
    read_json_item,
    set_aside_damaged,
    write_json_item,
)
from ellama_jax.weights.lazy import PIECE_BYTES, LazyArray, from_array, place, read_ahead
from ellama_jax.weights.lazy_writer import (
    CheckedHandler,
    CheckedSave,
    LazyArrayHandler,
    params_handler,
)
from ellama_jax.weights.preflight import check_same_leaves
from ellama_jax.weights.stored import (
    DamagedCheckpoint,
    damage_as_value_error,
    damaged_chunks,
    drop_late_reports,
    open_item,
    seal,
)

__all__ = [
    "CheckpointInfo",
    "check_saves",
    "find_damage",
    "find_checkpoint",
    "full_disk_as_value_error",
    "latest_step",
    "list_leaves",
    "make_meta",
    "open_average",
    "open_leaves",
    "open_manager",
    "restore_leaf",
    "restore_params",
    "restore_training",
    "save_training",
    "tree_bytes",
    "write_checkpoint",
]

log = logging.getLogger(__name__)

# --- reading -------------------------------------------------------------------------------------


def list_leaves(path: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of every stored parameter by its path; no weight is read."""
    return _list_item(find_checkpoint(path).path / "params")


def open_leaves(path: str | os.PathLike) -> dict[str, LazyArray]:
    """Opens the parameters of a checkpoint, as stored; a box of one is read without the rest.

    Args:
        path: a root or `ROOT/<step>`.

    Returns:
        path -> leaf. Reading raises a ValueError where the files are damaged.
    """
    directory = find_checkpoint(path).path / "params"
    return open_item(directory, _list_item(directory))


def open_average(path: str | os.PathLike) -> dict[str, LazyArray]:
    """Opens the moving average of the parameters that a run kept, by the parameters' paths.

    Args:
        path: a root or `ROOT/<step>` of a run with `optimizer.ema_decay`.

    Raises:
        ValueError: if the step keeps none.
    """
    directory = find_checkpoint(path).path / "opt_state"
    found = _list_item(directory) if (directory / "_METADATA").is_file() else {}
    names = {n.partition("/average/")[2]: n for n in found if "/average/" in n}
    if not names:
        raise ValueError(
            f"checkpoint {path}: must keep a moving average of its parameters, got none; train with "
            "optimizer.ema_decay above 0."
        )
    leaves = open_item(directory, names.values())
    return {name: leaves[stored] for name, stored in sorted(names.items())}


def restore_leaf(path: str | os.PathLike, leaf_path: str) -> np.ndarray:
    """Reads one parameter alone, as stored.

    Args:
        path: a root or `ROOT/<step>`.
        leaf_path: as in `layers/attn/wq`.

    Raises:
        ValueError: if there is no such parameter or it is damaged.
    """
    leaves = open_leaves(path)
    if leaf_path not in leaves:
        raise ValueError(f"{path}: must hold the parameter {leaf_path}, got {', '.join(leaves)}.")
    return leaves[leaf_path].load()


def restore_params(path: str | os.PathLike, *, dtype=None, mesh: Mesh | None = None) -> dict:
    """Restores the parameters of a checkpoint, whatever mesh and dtype they were saved with.

    Args:
        path: a root or `ROOT/<step>`.
        dtype: what to cast to; None keeps each leaf's stored dtype.
        mesh: where to place them, sharded as model/llama.py says; None is one device.

    Returns:
        The nested dict of jax arrays (DESIGN section 3).

    Raises:
        ValueError: if leaves are missing, extra, of another shape, or damaged.
    """
    info = find_checkpoint(path)
    stored = _list_item(info.path / "params")
    wanted = flatten_paths(abstract_params(info.config, dtype or np.float32, mesh))
    check_same_leaves(f"restore {path}", stored, wanted, info.config)
    if dtype is None:
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, stored[name][1], sharding=leaf.sharding)
            for name, leaf in wanted.items()
        }
    return _read_params(info.path, unflatten_paths(wanted))


def _read_params(step_dir: Path, abstract: Mapping) -> dict:
    flat = flatten_paths(abstract)
    return unflatten_paths(dict(zip(flat, _place_all(step_dir / "params", flat), strict=True)))


def _place_all(directory: Path, flat: Mapping[str, Any]) -> list[jax.Array]:
    # Layers are stacked, so there are few and large leaves: the host never holds more than two of
    # them beside what is on the devices, one being read while the other is placed.
    leaves = open_item(directory, flat)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda name: place(leaves[name], flat[name]), flat))


def _read_tree(directory: Path, abstract) -> Any:
    placed = _place_all(directory, _flatten_any(abstract))
    return jax.tree.unflatten(jax.tree.structure(abstract), placed)


def _list_item(directory: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    with damage_as_value_error(directory.parent):
        tree = _handler().metadata(epath.Path(absolute(directory))).tree
        leaves = _flatten_any(tree)
        return {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in leaves.items()}


def _flatten_any(tree) -> dict[str, Any]:
    # Optimizer states nest tuples and named tuples, which flatten_paths does not know. Orbax stores
    # them as lists and dicts; the joined names are the same.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in leaves}


@functools.cache
def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler()


def find_damage(path: str | os.PathLike) -> list[str]:
    """Reads all that one step stores, and says what of it is not as it was written.

    Args:
        path: a root or `ROOT/<step>`.

    Returns:
        A line for each damaged chunk or item; none if all is whole.

    Raises:
        ValueError: if there is no complete step.
    """
    info = find_checkpoint(path)
    found = []
    if (info.path / "data").is_dir():
        try:
            read_json_item(info.path, "data")
        except DamagedCheckpoint as error:
            found.append(error.what)
    try:
        check_fingerprint(info.tokenizer_dir, info.meta["tokenizer_fingerprint"])
    except ValueError as error:
        found.append(str(error))
    items = [d for d in (info.path / "params", info.path / "opt_state") if d.is_dir()]
    total = 0
    leaves = {}
    for directory in items:
        try:
            leaves[directory] = _list_item(directory)
        except DamagedCheckpoint as error:
            found.append(error.what)
    for stored in leaves.values():
        total += sum(math.prod(shape) * dtype.itemsize for shape, dtype in stored.values())
    with progress(f"reading {info.path}", mebibytes(total), "MiB") as bar:
        for directory, stored in leaves.items():
            found += damaged_chunks(directory, stored, bar.count_bytes)
    return found or _find_other_content(info)


def _find_other_content(info: CheckpointInfo) -> list[str]:
    """Compares what an import, a merge or an average holds with the sums that its meta names."""
    if not (said := info.meta.get("weights")):
        return []
    leaves = open_leaves(info.path)
    ledger, arrays = Ledger(f"{info.path}"), leaf_arrays(info.config, leaves)
    for _ in read_ahead({path: ledger.follow(leaf, arrays[path]) for path, leaf in leaves.items()}):
        pass
    sums = ledger.content()["tensors"]
    return [
        f"{name}: holds other weights than those that were written"
        for name, total in said["tensors"].items()
        if sums.get(name) != total
    ]


# --- writing one step ----------------------------------------------------------------------------


def write_checkpoint(
    dst: str | os.PathLike,
    params: Mapping,
    *,
    config: LlamaConfig,
    meta: dict,
    tokenizer_dir: str | os.PathLike,
    overwrite: bool = False,
    finish_meta: Callable[[dict], dict] | None = None,
) -> CheckpointInfo:
    """Writes a root with the single step 0, whole or not at all. All processes must call this.

    In a bucket it is written in place: what is replaced is deleted first, and a step that was not
    finished is never restored.

    Args:
        dst: the root to make.
        params: nested dict of `LazyArray`s (which pass through in pieces, so that memory does not
            grow with the model; process 0 writes them), or of jax arrays (of which each process
            writes its part) or NumPy arrays; each leaf keeps its dtype.
        config: the model; its shapes must be those of `params`.
        meta: from `make_meta`.
        tokenizer_dir: copied to `dst/tokenizer`; must have the fingerprint that meta names.
        overwrite: replace an existing checkpoint root; anything else is never replaced.
        finish_meta: called with `meta` once the leaves are written; what it returns is kept. For
            what is found out meanwhile.

    Raises:
        ValueError: if leaves, tokenizer, place or disk space do not fit; nothing is written then.
    """
    dst = as_path(dst)
    flat = flatten_paths(params)
    stored = {name: (tuple(leaf.shape),) for name, leaf in flat.items()}
    wanted = flatten_paths(abstract_params(config))
    check_same_leaves(f"write {dst}", stored, wanted, config)
    meta = {**meta, "model": config_to_dict(config)}
    check_meta(meta)
    check_fingerprint(tokenizer_dir, meta["tokenizer_fingerprint"])
    size = tree_bytes(list(flat.values()))
    on_leader(lambda: check_destination(dst, size, overwrite=overwrite))
    ledger = None
    if all(isinstance(leaf, LazyArray) for leaf in flat.values()):  # which process 0 reads, once
        ledger, arrays = (
            Ledger(f"write {dst}", "mend or fetch the source again."),
            leaf_arrays(config, flat),
        )
        flat = {path: ledger.follow(leaf, arrays[path]) for path, leaf in flat.items()}
    # One name in all processes: that of process 0.
    name = f".{dst.name}.partial-{exchange(b'%09d' % os.getpid())()[0].decode()}"
    partial = dst if is_remote(dst) else dst.with_name(name)
    try:
        on_leader(lambda: _begin_root(partial, as_path(tokenizer_dir)))
        _write_step_0(partial, flat, meta)
        on_leader(lambda: _finish_root(partial, dst, meta, finish_meta, ledger))
    except BaseException:
        if leads():
            _remove_unfinished(partial)
        raise
    return find_checkpoint(dst)


def _remove_unfinished(partial: Path) -> None:
    # TensorStore's threads may still be writing what they were given when one of them failed.
    ends = time.monotonic() + 5.0
    remove_tree(partial)
    while partial.exists() and time.monotonic() < ends:
        time.sleep(0.1)
        remove_tree(partial)


def _begin_root(partial: Path, tokenizer_dir: Path) -> None:
    remove_tree(partial)
    copy_tree(tokenizer_dir, partial / TOKENIZER_DIR)


def _finish_root(
    partial: Path, dst: Path, meta: dict, finish_meta: Callable | None, ledger: Ledger | None
) -> None:
    found = meta if ledger is None else {**meta, "weights": ledger.content()}
    found = found if finish_meta is None else finish_meta(found)
    if found is not meta:
        write_json_item(partial / "0", "meta", found)
    if partial != dst:
        replace_directory(partial, dst)


def _write_step_0(root: Path, flat: Mapping, meta: dict) -> None:
    arrays = (LazyArray, jax.Array)
    leaves = {n: a if isinstance(a, arrays) else from_array(a) for n, a in flat.items()}
    title = f"writing {root.name.removeprefix('.').partition('.partial')[0]}"
    total = sum(leaf.nbytes for leaf in leaves.values())
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with progress(title, mebibytes(total), "MiB") as bar:
        lazy = LazyArrayHandler(bar, raises=is_remote(root))
        handlers = {"params": params_handler(lazy), "meta": ocp.JsonCheckpointHandler()}
        tree = unflatten_paths(leaves)
        args = ocp.args.Composite(
            params=CheckedSave(tree, save_args=_chunks(tree)),
            meta=ocp.args.JsonSave(seal(meta)),
        )
        rule = f"{root.parent}: the disk must have room for the whole checkpoint"
        to_do = "nothing was kept; make room or choose another disk"
        with full_disk_as_value_error(rule, to_do), lazy.own_failure():
            manager = ocp.CheckpointManager(absolute(root), options=options, item_handlers=handlers)
            with manager:
                manager.save(0, args=args)


@contextlib.contextmanager
def full_disk_as_value_error(rule: str, to_do: str) -> Iterator[None]:
    """Says in one line that the disk became full; TensorStore says it in words only."""
    drop_late_reports()
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise ValueError(f"{rule}, got full while writing; {to_do}.") from error


def tree_bytes(tree) -> int:
    """Returns how many bytes the arrays (or shapes) of a tree take."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)


# --- training ------------------------------------------------------------------------------------


def open_manager(
    root: str | os.PathLike,
    *,
    tokenizer_dir: str | os.PathLike,
    save_every_steps: int,
    keep_last: int | None,
    keep_every_steps: int = 0,
    best_metric: str = "",
    keep_best: int = 1,
    asynchronous: bool = True,
    on_failure: Callable[[BaseException], object] = lambda error: None,
) -> ocp.CheckpointManager:
    """Opens the root of a training run, made if it is not there. Close it, or use `with`.

    Steps that were not finished are set aside, never restored and never in the way. The newest step
    stays, and each that one of the three `keep_*` wants; the others go once a newer one is whole.
    So a step that is not due, saved by time or at a stop, makes room for the next one. All
    processes of a job must call this.

    Args:
        root: the run's checkpoints directory.
        tokenizer_dir: copied to `root/tokenizer` once; a run cannot change its tokenizer.
        save_every_steps: `save_training` saves steps divisible by this and passes over the others.
        keep_last: how many newest of the due steps stay; None keeps all steps.
        keep_every_steps: steps divisible by this stay for ever; 0 is none.
        best_metric: the metric, lowest is best, by which best steps stay; "" is none.
        keep_best: how many best steps stay.
        asynchronous: write in the background; the arrays are copied before a save returns.
        on_failure: called, in a thread of Orbax, with the error of a save in the background.

    Raises:
        ValueError: if a number is below 1, the place cannot be written or the tokenizer changed.
    """
    root = as_path(root)
    for name, value in (("save_every_steps", save_every_steps), ("keep_last", keep_last)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}.")
    on_leader(lambda: prepare_root(root, as_path(tokenizer_dir)))
    _hear_failures(on_failure)

    def value_of(metrics) -> float:
        return metric_value(metrics, best_metric)

    keep = [policies.LatestN(keep_last and 1)]
    keep.append(policies.EveryNSteps(save_every_steps, max_to_keep=keep_last))
    if keep_every_steps:
        keep.append(policies.EveryNSteps(keep_every_steps))
    if best_metric:
        keep.append(
            policies.BestN(
                get_metric_fn=value_of,
                reverse=True,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    options = ocp.CheckpointManagerOptions(
        should_save_fn=lambda step, latest: step % save_every_steps == 0,
        preservation_policy=policies.AnyPreservationPolicy(keep),
        # Orbax stores metrics only where it is told how to compare them.
        best_fn=value_of,
        best_mode="min",
        enable_async_checkpointing=asynchronous,
    )
    handlers = {"params": CheckedHandler(), "opt_state": CheckedHandler()}
    handlers |= {"data": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(absolute(root), options=options, item_handlers=handlers)


def save_training(
    manager: ocp.CheckpointManager,
    step: int,
    params: Mapping,
    opt_state: Any,
    data: dict,
    meta: dict,
    *,
    metrics: Mapping[str, float] | None = None,
    force: bool = False,
) -> bool:
    """Saves a training step if it is due, in the background. All processes must call this.

    Args:
        manager: from `open_manager`.
        step: updates done so far.
        params: nested dict of arrays.
        opt_state: any pytree of arrays.
        data: JSON-able: data step, ledger of consumed tokens, mixture fingerprint.
        meta: from `make_meta`.
        metrics: what the step can be compared by with others, lowest is best; finite.
        force: save although the step is not due (the last step, a SIGTERM).

    Returns:
        True if it is being saved, False if it was not due or is there already.

    Raises:
        ValueError: if the disk has too little room; earlier steps stay as they are.
    """
    if step in manager.all_steps() or not (force or manager.should_save(step)):
        return False
    check_meta(meta)
    directory, size = as_path(manager.directory), tree_bytes((params, opt_state))
    on_leader(lambda: check_disk_space(f"save {directory / str(step)}", directory, size))
    args = ocp.args.Composite(
        params=CheckedSave(params, save_args=_chunks(params)),
        opt_state=CheckedSave(opt_state, save_args=_chunks(opt_state)),
        data=ocp.args.JsonSave(seal(data)),
        meta=ocp.args.JsonSave(seal(meta)),
    )
    return manager.save(step, args=args, metrics=seal(dict(metrics or {})), force=force)


_failures: list[BaseException] = []
_SAVING_THREADS = ("async_save", "save_finalize")


def check_saves() -> None:
    """Raises the error of a save in the background as soon as it is known, which takes no time."""
    if _failures:
        raise _failures.pop()


def _hear_failures(on_failure: Callable[[BaseException], object]) -> None:
    """Hears of saves that fail from now on.

    Orbax raises their errors when the next save begins, and of several processes only once a barrier
    has timed out to which the others do not come; but it logs them at once.
    """

    def hear(record: logging.LogRecord) -> bool:
        if record.threadName in _SAVING_THREADS and record.exc_info and record.exc_info[1]:
            _failures.append(record.exc_info[1])
            on_failure(record.exc_info[1])
        return True

    _failures.clear()
    filters = logging.getLogger("absl").filters
    filters[:] = [hear, *(f for f in filters if getattr(f, "__name__", "") != "hear")]


def _chunks(tree) -> Any:
    """Says how leaves are cut on disk: stacked ones by layer, all in pieces of bounded size.

    So one layer is read alone, and another mesh reads little more than what it holds.
    """

    def cut(path, _):
        stacked = "layers" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return ocp.SaveArgs(chunk_byte_size=PIECE_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(cut, tree)


def restore_training(
    manager: ocp.CheckpointManager,
    abstract_params: Mapping,
    abstract_opt_state: Any,
    step: int | None = None,
    *,
    check: Callable[[CheckpointInfo, dict], None] = lambda info, data: None,
) -> tuple[int, dict, Any, dict, dict]:
    """Restores what `save_training` saved, bit for bit. All processes must call this.

    Where no step is named and the newest is damaged, in any process's part, the newest whole one is
    restored instead; those passed over are set aside and named on the log.

    Args:
        manager: from `open_manager`.
        abstract_params: shapes, dtypes and shardings to restore to (`jax.ShapeDtypeStruct`).
        abstract_opt_state: the same of the optimizer state.
        step: which one; None takes the newest complete step.
        check: called with the step found and its `data` before any array is read, to refuse it.

    Returns:
        (step, params, opt_state, data, meta).

    Raises:
        ValueError: if there is no such step, leaves differ from what is expected (dtypes too:
            a run does not change its own on the way), or every step is damaged.
    """
    manager.wait_until_finished()
    root = as_path(manager.directory)
    steps = [step] if step is not None else sorted(complete_steps(root), reverse=True)
    if not steps:
        find_checkpoint(root)  # says what is there instead
    damaged: dict[int, DamagedCheckpoint] = {}
    for candidate in steps:
        found = None
        try:
            info = find_checkpoint(root / str(candidate))
            found = _read_training(info, abstract_params, abstract_opt_state, check)
        except DamagedCheckpoint as error:
            # Without the error's frames, which hold what was restored so far.
            damaged[candidate] = DamagedCheckpoint(error.what)
            log.warning("%s.", error.what)
        # Each process reads its own part of a step: whole is what is whole in all of them.
        if all(word == b"+" for word in exchange(b"+" if found else b"-")()):
            on_leader(lambda: [set_aside_damaged(root / str(other)) for other in damaged])
            if damaged:
                manager.reload()
            return found
        damaged.setdefault(candidate, DamagedCheckpoint(f"restore {root / str(candidate)}: another "
                                                        "process found it damaged"))  # fmt: skip
    whole = "no other step is whole" if step is None else "use another step"
    to_do = f"{whole}; move the damaged ones out of {root}, and the same command begins anew"
    raise DamagedCheckpoint(damaged[steps[0]].what, to_do)


def _read_training(
    info: CheckpointInfo,
    abstract_params: Mapping,
    abstract_opt_state: Any,
    check: Callable[[CheckpointInfo, dict], None],
) -> tuple:
    if not (info.path / "opt_state" / "_METADATA").is_file():
        raise ValueError(f"restore {info.path}: must hold an optimizer state, got parameters only.")
    title = f"restore {info.path}"
    wanted = flatten_paths(abstract_params)
    stored = _list_item(info.path / "params")
    check_same_leaves(title, stored, wanted, info.config, same_dtypes=True)
    wanted = _flatten_any(abstract_opt_state)
    stored = _list_item(info.path / "opt_state")
    check_same_leaves(f"{title} opt_state", stored, wanted, same_dtypes=True)
    data = read_json_item(info.path, "data")
    check(info, data)
    params = _read_params(info.path, abstract_params)
    opt_state = _read_tree(info.path / "opt_state", abstract_opt_state)
    return info.step, params, opt_state, data, info.meta
