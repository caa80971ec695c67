"""One stored leaf of a checkpoint, read box by box through TensorStore; and what damage looks like.

Knows the files that Orbax writes for an array (Zarr in an OCDBT store). What a checkpoint is made
of stands in layout.py, how it is written in checkpoint.py.
"""

import base64
import contextlib
import errno
import functools
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts

from ellama_jax.core.paths import absolute, is_remote
from ellama_jax.weights.lazy import Box, LazyArray


def open_stored(directory: Path, leaf_path: str) -> LazyArray:
    """Opens one leaf of an item.

    Args:
        directory: of the item, as `ROOT/<step>/params`.
        leaf_path: as in `layers/attn/wq`.

    Returns:
        The leaf as stored; reading raises a ValueError where files are damaged.
    """
    place = f"{absolute(directory)}/"
    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": place if is_remote(directory) else {"driver": "file", "path": place},
            "path": f"{leaf_path.replace('/', '.')}/",
        },
        # What is missing is damage; by default it would read as zeros.
        "fill_missing_data_reads": False,
    }
    with damage_as_value_error(directory.parent):
        store = ts.open(spec, read=True, context=_tensorstore_context()).result()

    def read(box: Box) -> np.ndarray:
        with damage_as_value_error(directory.parent):
            return store[box].read().result()

    grid = tuple(store.chunk_layout.read_chunk.shape)
    return LazyArray(tuple(store.shape), np.dtype(store.dtype.numpy_dtype), read, grid)


def stored_shardings(directory: Path) -> dict[str, jax.NamedSharding]:
    """Returns how the leaves of an item were divided when it was saved; no device is needed.

    Args:
        directory: of the item, as `ROOT/<step>/params`.

    Returns:
        path -> sharding on an abstract mesh, of the leaves that a mesh held.
    """
    file = directory / "_sharding"
    if not file.is_file():
        return {}
    found = {}
    with damage_as_value_error(directory.parent):
        for key, text in json.loads(file.read_text()).items():
            saved = json.loads(text)
            if saved["sharding_type"] == "NamedSharding":
                path = base64.b64decode(key).decode().replace(".", "/")
                mesh = jax.sharding.AbstractMesh(tuple(saved["shape"]), tuple(saved["axis_names"]))
                spec = [tuple(a) if isinstance(a, list) else a for a in saved["partition_spec"]]
                found[path] = jax.NamedSharding(mesh, jax.P(*spec))
    return found


@functools.cache
def _tensorstore_context() -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": 2**26}})


class DamagedCheckpoint(ValueError):
    """A step whose files cannot be read; `what` says which and why, without what to do."""

    def __init__(self, what: str, to_do: str = "use another step or make it again"):
        super().__init__(f"{what}; {to_do}.")
        self.what = what


@contextlib.contextmanager
def damage_as_value_error(step_dir: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into a `DamagedCheckpoint` that names the step."""
    # Orbax and TensorStore raise anything from KeyError to bare Exception for a damaged file.
    drop_late_reports()
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # of memory, or of another process that is gone
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.partition(" See full TensorStore")[0][:160].rstrip(".")
        raise DamagedCheckpoint(
            f"restore {step_dir}: the checkpoint is damaged or truncated ({reason})"
        ) from error


@functools.cache
def drop_late_reports() -> None:
    """Silences what the libraries say of the same failure from other threads, in tracebacks.

    After the first one the other reads or writes of a leaf still end, and report to the event loop
    that it closed; Orbax and asyncio log what was raised already.
    """
    otherwise = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            otherwise(unraisable)

    def is_new(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else ""
        return os.strerror(errno.ENOSPC) not in f"{record.getMessage()} {error}"

    sys.unraisablehook = hook
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_new)
