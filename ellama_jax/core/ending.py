"""How a job ends: for one reason, with one status and after one step, in all of its processes.

Owns who is told of an error or of SIGTERM, and how. Processes talk through the key-value store of the
coordination service, which jax.distributed runs in process 0: it reaches a process whose main
thread waits for devices, or for processes that will not come. Alone, a process talks to nobody.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax

from ellama_jax.core.exits import (
    EXIT_AGAIN,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    describe_error,
)

# Keys end in the number of the process that reads them, or that wrote them (heard, begun). The first to
# fail writes `first`.
_FIRST, _END, _HEARD = "ellama/first", "ellama/end/", "ellama/heard/"
_STOP, _BEGUN = "ellama/stop/", "ellama/begun/"
_OVER = "over"
# How long a process that failed may close its files, all may take to hear of it (process 0, which runs
# the service, waits for that) and to agree on a step.
_CLOSING_SECS, _HEARING_SECS, _AGREEING_SECS = 20.0, 10.0, 60.0
# A process that sees another one gone gives the cause so long to arrive.
_CAUSE_SECS = 5.0
_DAY_MS = 24 * 3600 * 1000
# How the runtime says that it lost the others. RESOURCE_EXHAUSTED and INVALID_ARGUMENT are no such
# thing: a batch that does not fit will not fit the next time either.
_LOST = (
    "UNKNOWN: ",
    "INTERNAL: ",
    "UNAVAILABLE: ",
    "ABORTED: ",
    "CANCELLED: ",
    "DEADLINE_EXCEEDED: ",
    "NOT_FOUND: ",
    "FAILED_PRECONDITION: ",
    "DATA_LOSS: ",
)
AGAIN = (
    f"another process of the job died or cannot be reached; this one ends with status {EXIT_AGAIN}. Start "
    "the same command again, on as many processes as there are: a run resumes from its newest checkpoint."
)


class _Job(NamedTuple):
    """The others, by the numbers that jax.distributed gave them, and the way to them."""

    client: Any
    index: int
    count: int


_job: _Job | None = None  # None while this process is alone
_end: dict | None = None  # how the job ends, once this process knows
_telling = threading.Lock()
_steps: "Steps | None" = None  # what SIGTERM stops

# --- errors --------------------------------------------------------------------------------------


def listen(client, index: int, count: int) -> None:
    """Hears from now on how the others end.

    Args:
        client: of the coordination service.
        index: of this process; 0 runs the service.
        count: of processes.
    """
    global _job
    _job = _Job(client, index, count)
    threads = [threading.Thread(target=hear, daemon=True) for hear in (_hear_end, _hear_stop)]
    for thread in threads:
        thread.start()
    # Runs before JAX's own, which waits for the others and then closes the client.
    atexit.register(_leave_listeners, threads)


@contextlib.contextmanager
def ends_as_one() -> Iterator[None]:
    """Ends every process of the job for an error of the enclosed block, with its status and line.

    The others are told at once and end within seconds, wherever they are. The error goes on, so that
    what is open is closed: enclose what must not wait for the others with a block of its own. An error
    that another process's death caused ends this one on the spot with `EXIT_AGAIN`.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _job is not None:
            _end_for(error)
        raise


def end_all(status: int, line: str) -> NoReturn:
    """Ends every process of the job now, this one too; the first reason given counts."""
    print(line, file=sys.stderr, flush=True)
    if _job is not None:
        _tell(status, line)
    _leave(status)


def _end_for(error: BaseException) -> None:
    if _end is not None:
        if _end["process"] == _job.index:
            return  # told already, by an inner block
        threading.Event().wait()  # for what another one told to end this process
    if _is_of_others(error):
        time.sleep(_CAUSE_SECS)  # who failed by itself has said so: that ends this process
        reason = str(error).partition("\n")[0][:300]
        end_all(EXIT_AGAIN, f"process {_job.index}: {reason}: {AGAIN}")
    _tell(*describe_error(error))
    closing = threading.Timer(_CLOSING_SECS, end_here, (error,))
    closing.daemon = True
    closing.start()


def end_here(error: BaseException) -> NoReturn:
    """Ends this process for an error that the others were told of: closing is done, or takes too long."""
    status, line = describe_error(error)
    if status == EXIT_FAILED or os.environ.get("ELLAMA_TRACEBACK"):
        traceback.print_exception(error)
    else:
        print(f"process {_job.index} ({socket.gethostname()}): {line}", file=sys.stderr, flush=True)
    _leave(status)


def _is_of_others(error: BaseException) -> bool:
    """Says whether an error is how the loss of another process shows in this one."""
    # Orbax says by a TimeoutError that the service failed it.
    failed = error.__cause__ if isinstance(error, TimeoutError) else error
    # jaxlib raises some of the runtime's errors as a ValueError: they begin with their status all the same.
    if not isinstance(failed, (jax.errors.JaxRuntimeError, ValueError)):
        return False
    return str(failed).startswith(_LOST)


def _tell(status: int, line: str) -> None:
    """Tells all processes, unless another one did: then waits to be ended by that."""
    global _end
    words = {"status": status, "line": line, "process": _job.index, "host": socket.gethostname()}
    with _telling:
        if _end is not None and _end["process"] == _job.index:
            return
        try:
            _job.client.key_value_set(_FIRST, str(_job.index))
            _end = words
            _write_to_all(_END, json.dumps(words))
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                threading.Event().wait()
        _end = words  # also where the service is gone, and its process with it


def _write_to_all(key: str, value: str) -> None:
    for index in range(_job.count):
        _job.client.key_value_set(f"{key}{index}", value, allow_overwrite=True)


def _hear_end() -> None:
    global _end
    if (said := _wait_for(_END)) == _OVER or (words := json.loads(said))["process"] == _job.index:
        return
    _end = words
    said = f"process {words['process']} ({words['host']}): {words['line']}"
    print(f"process {_job.index}: ended by {said}", file=sys.stderr, flush=True)
    _leave(words["status"])


def _wait_for(key: str) -> str:
    while True:
        try:
            return _job.client.blocking_key_value_get(f"{key}{_job.index}", _DAY_MS)
        except jax.errors.JaxRuntimeError:
            time.sleep(1.0)  # after a day; or the service is gone, and soon this process


def _leave(status: int) -> NoReturn:
    """Ends this process without a look at what its threads wait for."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        if _job is not None:
            _job.client.key_value_set(f"{_HEARD}{_job.index}", "", allow_overwrite=True)
            if _job.index == 0:  # with the service the others would lose the reason
                _wait_for_others()
    os._exit(status)


def _wait_for_others() -> None:
    """Waits until all have heard, and the one that failed has closed its files."""
    first = _end["process"] if _end is not None else 0
    ends = time.monotonic() + _HEARING_SECS
    for index in [*range(1, first), *range(first + 1, _job.count)]:
        left = max(1, int(1000 * (ends - time.monotonic())))
        _job.client.blocking_key_value_get(f"{_HEARD}{index}", left)
    if first != 0:
        _job.client.blocking_key_value_get(f"{_HEARD}{first}", int(1000 * (_CLOSING_SECS + 5)))


def _leave_listeners(threads: list[threading.Thread]) -> None:
    """Ends the process as it told the others, or its listening: Python does not survive the latter."""
    if _end is not None:
        sys.stderr.flush()
        _leave(_end["status"])
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _say_begun(_steps)  # to whoever still asks
        for key in (_END, _STOP):
            _job.client.key_value_set(f"{key}{_job.index}", _OVER, allow_overwrite=True)
    for thread in threads:
        thread.join(_AGREEING_SECS)


def say_last_words(words: str) -> None:
    """Has the runtime's abort, which is how JAX ends who lost the others, end in a clear line.

    Args:
        words: the line; "" leaves an abort as the system has it.
    """
    if not words:
        ctypes.CDLL(None).signal(signal.SIGABRT, None)
        return
    said = (
        f"{words}\n".encode()
    )  # a defect of the runtime aborts too; its own words stand before ours

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def leave(_number):
        if _end is not None:
            os._exit(_end["status"])
        os.write(2, said)
        os._exit(EXIT_AGAIN)

    # Python's own handlers wait for the main thread, which may wait for the dead. Kept for good.
    say_last_words.handler = leave
    ctypes.CDLL(None).signal(signal.SIGABRT, leave)


# --- SIGTERM and Ctrl-C --------------------------------------------------------------------------


class Steps:
    """Which steps may begin: all, until SIGTERM or Ctrl-C comes to any process of the job.

        with sigterm_stops() as steps:
            for step in ...:
                if not steps.may_begin(step): break

    Then every process says how far it has come, a thread of its own speaking for the loop, and the
    furthest is the last step of all. Where none has begun one there is nothing to save: they end.

    Attributes:
        stopped_by: what came, in words.
        status: what the process ends with for it.
    """

    stopped_by, status = "SIGTERM", EXIT_TERMINATED

    def __init__(self):
        self._lock, self._agreed = threading.Lock(), threading.Event()
        self._begun, self._said, self._last = 0, False, 0

    def may_begin(self, step: int, *, compiles: bool = False) -> bool:
        """Says whether `step` may be given to the devices; call it right before.

        Args:
            step: from 1, in order.
            compiles: the first step of this process, which may take minutes to begin and is not
                worth waiting for; `begun` tells when it has.
        """
        with self._lock:
            if not self._said:
                if not compiles:
                    self._begun = step
                return True
        self._agreed.wait()
        return step <= self._last

    def begun(self, step: int) -> None:
        """Says that `step`, which had to be compiled, is with the devices."""
        with self._lock:
            if not self._said:
                self._begun = step

    def over(self, step: int) -> bool:
        """Says, without waiting, whether it is known that `step` will not begin."""
        return self._agreed.is_set() and step > self._last

    def say(self) -> int:
        """Returns the last step begun; none begins from now on until the last is agreed on."""
        with self._lock:
            self._said = True
            return self._begun

    def agree(self, last: int) -> None:
        """Sets the last step; where it is 0 the process ends at once."""
        if last == 0:
            if _job is None or _job.index == 0:
                said = f"stopped by {self.stopped_by} before its first step"
                print(f"{said}; the same command starts again.", file=sys.stderr, flush=True)
            _leave(self.status)
        self._last = last
        self._agreed.set()


@contextlib.contextmanager
def sigterm_stops() -> Iterator[Steps]:
    """Context in which SIGTERM or Ctrl-C, here or in another process of the job, sets a last step.

    A second SIGTERM changes nothing: the save that it would cut short is why there was a first. A
    second Ctrl-C interrupts that too. An inner one of these is the same as the outer one.
    """
    global _steps
    if _steps is not None:
        yield _steps
        return
    _steps = steps = Steps()
    # A handler in Python waits for the main thread, which may be compiling or waiting for devices;
    # the number of the signal is written to a socket at once.
    told, heard = socket.socketpair()
    told.setblocking(False)

    def hear() -> None:
        while numbers := heard.recv(64):
            if signal.SIGINT in numbers and not steps.over(sys.maxsize):
                steps.stopped_by, steps.status = "Ctrl-C", EXIT_INTERRUPTED
                said = "stopping after the step under way; Ctrl-C again does not wait for a save."
                print(said, file=sys.stderr, flush=True)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                _ask_to_stop(steps)
        heard.close()

    def interrupted_once(*_) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    threading.Thread(target=hear, name="sigterm", daemon=True).start()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    before_int = signal.signal(signal.SIGINT, interrupted_once)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        yield steps
    finally:
        signal.set_wakeup_fd(wakeup)
        told.close()
        # One of several may still be asked how far it has come, and is deaf while it leaves with the others.
        if _job is None:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, before_int)
            _steps = None


def _ask_to_stop(steps: Steps) -> None:
    if _job is None:
        steps.agree(steps.say())
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # without a service the end is near
        _write_to_all(_STOP, "")


def _hear_stop() -> None:
    if _wait_for(_STOP) == _OVER:
        return
    while (steps := _steps) is None:
        time.sleep(0.05)  # it begins to listen before it begins to work
    try:
        _say_begun(steps)
        ends, last = time.monotonic() + _AGREEING_SECS, 0
        for index in range(_job.count):
            left = max(1, int(1000 * (ends - time.monotonic())))
            last = max(last, int(_job.client.blocking_key_value_get(f"{_BEGUN}{index}", left)))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0][:300]
        end_all(EXIT_AGAIN, f"process {_job.index}: no agreement on a last step: {reason}: {AGAIN}")
    steps.agree(last)


def _say_begun(steps: Steps) -> None:
    _job.client.key_value_set(f"{_BEGUN}{_job.index}", str(steps.say()), allow_overwrite=True)
