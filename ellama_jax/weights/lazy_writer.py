"""How Orbax writes arrays here: with checksums; a `LazyArray` in pieces, with what stops it said once.

What a checkpoint is made of stands in checkpoint.py.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from ellama_jax.core.paths import as_path
from ellama_jax.core.progress import Progress
from ellama_jax.weights.lazy import Box, LazyArray, split
from ellama_jax.weights.stored import join_checksums, write_checksums


def params_handler(lazy: ocp.type_handlers.NumpyHandler) -> ocp.PyTreeCheckpointHandler:
    """Returns what writes a tree of arrays, those that are lazy by `lazy`."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyArray, lazy), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    return CheckedHandler(lambda: lazy.failed is not None, type_handler_registry=registry)


class CheckedHandler(ocp.PyTreeCheckpointHandler):
    """Writes a tree and, before the step is committed, the checksums of what was stored.

    Args:
        failed: tells whether the writing failed, which whoever saves will raise: nothing is read then.
        options: of Orbax's handler.
    """

    def __init__(self, failed: Callable[[], bool] = lambda: False, **options):
        self._failed = failed
        # Compression costs twice the processor time and saves 22 % of bfloat16 (docs/LOG.md).
        super().__init__(use_compression=False, **options)

    async def async_save(self, directory, *args, **kwargs):
        """Returns one future: that all is written, and then read once for its checksums."""
        writes = await super().async_save(directory, *args, **kwargs)
        return [_ThenChecksums(writes or [], directory, self._failed)]

    def finalize(self, directory) -> None:
        """Joins what the processes wrote; Orbax calls this in one of them."""
        super().finalize(directory)
        if not self._failed():
            join_checksums(as_path(str(directory)))


@ocp.args.register_with_handler(CheckedHandler, for_save=True)
@dataclasses.dataclass
class CheckedSave(ocp.args.PyTreeSave):
    """What a `CheckedHandler` saves."""


@ocp.args.register_with_handler(CheckedHandler, for_restore=True)
@dataclasses.dataclass
class _CheckedRestore(ocp.args.PyTreeRestore):
    """Orbax takes a handler that has both arguments; what is read, stored.py reads."""


class _ThenChecksums:
    """A future of Orbax."""

    def __init__(self, writes: list, directory, failed: Callable[[], bool]):
        self._writes, self._directory, self._failed = writes, directory, failed

    def result(self, timeout: float | None = None) -> None:
        for write in self._writes:
            write.result(timeout)
        if not self._failed():
            write_checksums(as_path(str(self._directory)), jax.process_index())

    def cancel(self) -> None:
        for write in self._writes:
            write.cancel()


class LazyArrayHandler(ocp.type_handlers.NumpyHandler):
    """Lets Orbax write a `LazyArray` in pieces; on disk it is an array like any other.

    Whatever is raised within a save, Orbax prints as tracebacks of many threads. So what stopped
    reading or writing is `failed`, for the caller to raise, and raised within only where Orbax must not commit.
    """

    def __init__(self, bar: Progress, raises: bool):
        super().__init__(deepcopy_host_arrays=False)
        self.failed: Exception | None = None
        self._bar, self._raises = bar, raises
        # Orbax writes all leaves at once; these bound what is in memory of them. A piece waits long
        # for the disk to have it, so there are more under way than being read.
        self._readers = asyncio.Semaphore(2)
        self._pieces = asyncio.Semaphore(6)

    @contextlib.contextmanager
    def own_failure(self) -> Iterator[None]:
        """Raises what stopped the save, in place of what Orbax makes of it, or of nothing."""
        try:
            yield
        except Exception:
            if self.failed is None:
                raise
        if self.failed is not None:
            raise self.failed

    async def _open_and_write(self, value: LazyArray, tspec: dict, ts_context: ts.Context) -> None:
        store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        grid = store.chunk_layout.write_chunk.shape
        writes = []
        for box in split(value.shape, value.dtype.itemsize, grid):
            await self._pieces.acquire()
            async with self._readers:
                piece = None if self.failed else await asyncio.to_thread(self._read, value, box)
            if piece is None:
                self._pieces.release()
                break
            writes.append(asyncio.ensure_future(self._write(store[box], piece)))
        await asyncio.gather(*writes)
        if self.failed and self._raises:
            raise self.failed

    def _read(self, value: LazyArray, box: Box) -> np.ndarray | None:
        try:
            return value.read(box)
        except Exception as error:
            self.failed = self.failed or error
            return None

    async def _write(self, place: ts.TensorStore, piece: np.ndarray) -> None:
        try:
            await place.write(piece, can_reference_source_data_indefinitely=True)
        except Exception as error:
            self.failed = self.failed or error
        finally:
            self._pieces.release()
        self._bar.count_bytes(piece.nbytes)
