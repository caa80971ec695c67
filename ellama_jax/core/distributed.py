"""Several processes as one job: how they find each other, and what they tell each other.

Owns the start of jax.distributed and messages between processes. Where arrays lie is core/sharding.py's
part. With one process everything here does nothing and costs nothing.
"""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

log = logging.getLogger(__name__)

_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_MAX_ERROR_BYTES, _NAME_BYTES = 2048, 64
# JAX's own 100 s are long for a pod that is paid by the second.
_HEARTBEAT_SECS = 30
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: worth another try
_AGAIN = (
    f"another process of the job died or cannot be reached; this one ends with status {EXIT_AGAIN}. Start "
    "the same command again, on as many processes as there are: a run resumes from its newest checkpoint."
)


def start_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the processes of this job, if there are several; call it before any device is used.

    They are found by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, or without these by what JAX detects itself: a TPU pod, SLURM, Open MPI. On a
    machine alone, or with `JAX_NUM_PROCESSES=1`, nothing is started.

    Raises:
        ValueError: if only some of the three are set, or they do not fit each other.
    """
    given = {name: environment[name] for name in (_ADDRESS, _COUNT, _ID) if environment.get(name)}
    if given.get(_COUNT) == "1" or jax.distributed.is_initialized():
        return
    # JAX's own answer to SIGTERM would take the signal away from the loop, which agrees on the
    # step to save by itself, see `exchange`.
    jax.config.update("jax_enable_preemption_service", False)
    if given:
        count, index = _read_numbers(given)
        jax.distributed.initialize(
            given[_ADDRESS], count, index, cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_SECS,
        )  # fmt: skip
    else:
        _start_detected()
    if jax.distributed.is_initialized():
        _say_last_words()
    if jax.distributed.is_initialized() and not leads():
        # What is true for all is said once.
        logging.getLogger("ellama_jax").setLevel(logging.ERROR)


def _read_numbers(given: Mapping[str, str]) -> tuple[int, int]:
    if missing := [name for name in (_ADDRESS, _COUNT, _ID) if name not in given]:
        raise ValueError(
            f"{', '.join(missing)}: must be set beside {', '.join(given)}, got nothing."
        )
    for name in (_COUNT, _ID):
        if not given[name].isdecimal():
            raise ValueError(f"{name}: must be a whole number, got {given[name]}.")
    count, index = int(given[_COUNT]), int(given[_ID])
    if not index < count:
        raise ValueError(f"{_ID}: must be smaller than {_COUNT} ({count}), got {index}.")
    if ":" not in given[_ADDRESS]:
        raise ValueError(f"{_ADDRESS}: must be HOST:PORT, got {given[_ADDRESS]}.")
    return count, index


def _start_detected() -> None:
    """Starts jax.distributed where JAX detects a cluster, and not elsewhere."""
    with warnings.catch_warnings():
        # A pod of Kubernetes that is no job is warned of a package it does not need.
        warnings.simplefilter("ignore")
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECS)
        except ValueError as error:
            # How JAX says that it detected nothing; there is no question to ask it first.
            if "coordinator_address should be defined" not in str(error):
                raise
        except RuntimeError:
            # JAX asks for it before its first computation: a notebook that has computed already.
            log.info("JAX was in use before this job: it runs in this process alone")
        except Exception as error:
            # A pod that has no service account is no job; only where the package kubernetes is
            # installed does JAX come so far as to find out.
            kind = type(error)
            if (kind.__module__.split(".")[0], kind.__name__) != ("kubernetes", "ConfigException"):
                raise


def _say_last_words() -> None:
    """Has the runtime's abort, which is how JAX ends who lost the others, end in a clear line."""
    # A defect of the runtime aborts too; its own words stand before ours.
    words = f"process {jax.process_index()}: aborted, most likely for {_AGAIN}\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def leave(_number):
        os.write(2, words)
        os._exit(EXIT_AGAIN)

    # Python's own handlers wait for the main thread, which may wait for the dead. Kept for good.
    _say_last_words.handler = leave
    ctypes.CDLL(None).signal(signal.SIGABRT, leave)


@contextlib.contextmanager
def ends_with_the_others(known: Callable[[str], object] = lambda text: None) -> Iterator[None]:
    """Ends this process at once where what all processes do together failed in the enclosed block.

    To leave in order would be to wait for them, as a save under way does; what it has not finished is
    never restored. A process alone raises as ever.

    Args:
        known: says whether an error's text is one that every process meets by itself.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or known(str(error)):
            raise
        reason = str(error).partition("\n")[0][:300]
        print(f"process {jax.process_index()}: {reason}: {_AGAIN}", file=sys.stderr, flush=True)
        os._exit(EXIT_AGAIN)


def leads() -> bool:
    """Says whether this process writes what is written once: logs, configuration, messages."""
    return jax.process_index() == 0


def on_leader(action: Callable[[], object]) -> None:
    """Runs `action` on process 0 alone; every process goes on once it is done.

    Raises:
        ValueError: on every process, if the action failed; what it said is said by all.
    """
    if jax.process_count() == 1:
        action()
        return
    failure = None
    if leads():
        try:
            action()
        except Exception as error:
            failure = error
    text = np.zeros(_MAX_ERROR_BYTES, np.uint8)
    said = b"" if failure is None else (str(failure) or repr(failure)).encode()[:_MAX_ERROR_BYTES]
    text[: len(said)] = np.frombuffer(said, np.uint8)
    heard = bytes(multihost_utils.broadcast_one_to_all(text)).rstrip(b"\0")
    if failure is not None:
        raise failure
    if heard:
        raise ValueError(heard.decode(errors="replace"))


def process_names() -> list[str]:
    """Returns the host name of every process, by process index. All processes must call this."""
    mine = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    return [word.rstrip(b"\0").decode(errors="replace") for word in exchange(mine)()]


def exchange(words: bytes) -> Callable[[], list[bytes]]:
    """Begins to tell every process `words`, and returns without waiting.

    All processes must call this at the same places with words of one length. The exchange queues
    behind what the devices are doing, so a step under way is not waited for.

    Returns:
        a function that waits and gives the words of all processes, by process index.
    """
    if jax.process_count() == 1:
        return lambda: [words]
    mesh, spread = _process_mesh()
    # Bytes, for 64-bit integers are off in JAX by default.
    mine = np.frombuffer(words, np.uint8)[None]
    shape = (jax.process_count(), len(words))
    # Put there by name: the loop's transfer guard refuses what goes to devices unasked.
    pieces = [jax.device_put(mine, device) for device in mesh.local_devices]
    spread_out = NamedSharding(mesh, PartitionSpec("processes"))
    with jax.set_mesh(mesh):
        told = spread(jax.make_array_from_single_device_arrays(shape, spread_out, pieces))
    return lambda: [bytes(row) for row in jax.device_get(told.addressable_data(0))]


@functools.cache
def _process_mesh() -> tuple[Mesh, Callable]:
    by_process = [
        [device for device in jax.devices() if device.process_index == process]
        for process in range(jax.process_count())
    ]
    mesh = Mesh(np.array(by_process), ("processes", "local"))
    return mesh, jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
