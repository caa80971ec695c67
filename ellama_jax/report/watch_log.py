"""What a run's files say while they grow: only what is new is read, and little of it is kept.

Owns how the metrics log is followed and the curves that stay in memory. How it looks is
report/watch_screen.py's.
"""

import collections
import math
import re
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ellama_jax.config import DataConfig, stage_sections
from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import file_bytes, is_remote, read_range
from ellama_jax.core.settings import build_dataclass
from ellama_jax.tokens.mixture import language_shares
from ellama_jax.train.goodput import goodput_scalars, read_goodput, summarize
from ellama_jax.train.metrics import METRICS_FILE, scalars
from ellama_jax.weights.layout import StepEntry, list_steps

_BLOCK_BYTES = 2**22
_MOST_POINTS = 256  # of one curve; twice as many are halved
_RECENT = 100  # records by which speed is judged
MEAN_OF = 20  # records of one name whose mean is shown
_SILENT_SECS, _SILENT_SECS_BUCKET = 60.0, 180.0  # no run is called silent before


class Tail:
    """Gives the records that a file of JSON lines got since it was last asked.

    A last line without its end waits for it. A file that was replaced or cut, as a resumed run does
    it, is told by the last line read, which is not in its place any more.
    """

    def __init__(self, path: Path):
        self._path, self._at, self._mark = path, 0, b""
        self.broken = 0

    def restarted(self) -> bool:
        """Tells whether what was read is no longer there; the file is then read from its start."""
        start = self._at - len(self._mark)
        if self._mark == _read(self._path, start, self._at):
            return False
        self._at, self._mark, self.broken = 0, b"", 0
        return True

    def records(self) -> Iterator[dict]:
        """Yields what is new; lines that are no JSON object are counted in `broken`."""
        rest, place = b"", self._at
        while block := _read(self._path, place, place + _BLOCK_BYTES):
            place += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._at += len(line) + 1
                self._mark = (line + b"\n")[-_BLOCK_BYTES:]
                if (record := _parse(line)) is not None:
                    yield record
                else:
                    self.broken += 1


def _read(path: Path, start: int, stop: int) -> bytes:
    """Reads bytes of a file as far as it has them, wherever it lies."""
    try:
        stop = min(stop, file_bytes(path))
        return read_range(path, start, stop) if start < stop else b""
    except FileNotFoundError:
        return b""


def _parse(line: bytes) -> dict | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class Curve:
    """The values of one metric: the last ones as they are, all of them as means of neighbours."""

    def __init__(self):
        self._points: list[float] = []
        self._width, self._sum, self._count = 1, 0.0, 0
        self._recent = collections.deque(maxlen=MEAN_OF)
        self.last, self.step = math.nan, 0

    def add(self, step: int, value: float) -> None:
        """Adds a value; one that is not finite is only the last one."""
        self.last, self.step = value, step
        if not math.isfinite(value):
            return
        self._recent.append(value)
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count == self._width:
            self._points.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self._points) == 2 * _MOST_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points, self._width = [(a + b) / 2 for a, b in pairs], 2 * self._width

    @property
    def mean(self) -> float:
        """The mean of the last `MEAN_OF` values; NaN if there is none."""
        return statistics.fmean(self._recent) if self._recent else math.nan

    def points(self, count: int) -> list[float]:
        """Returns at most `count` means over equal parts of the curve, in order."""
        points = [*self._points, self._sum / self._count] if self._count else self._points
        count = min(count, len(points))
        ends = [len(points) * index // count for index in range(count + 1)] if count else []
        return [statistics.fmean(points[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


class Watched:
    """What is known of a run directory; `update` brings it up to date.

    `config` and `run` are its files, `curves` hold every scalar by the name that TensorBoard has,
    `tokens` the tokens consumed by source, `saved` the newest complete checkpoint.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._tail = Tail(workdir / METRICS_FILE)
        self._clear()
        self.update()

    def _clear(self) -> None:
        self.step, self.tokens = None, {}
        self.curves: dict[str, Curve] = collections.defaultdict(Curve)
        self._times = collections.deque(maxlen=_RECENT)  # (step, UNIX time)

    def update(self) -> None:
        """Reads what is new."""
        self.config = _read_json(self.workdir / "config.json")
        self.run = _read_json(self.workdir / "run.json") or {}
        self.starts = read_goodput(self.workdir)
        if self._tail.restarted():
            self._clear()
        for record in self._tail.records():
            self._add(record)
        self.saved = _newest(self.workdir / "checkpoints")
        self.now = time.time()

    def _add(self, record: Mapping) -> None:
        self.step = record["step"]
        self.tokens = record.get("tokens_consumed", self.tokens)
        self._times.append((self.step, record.get("time", 0.0)))
        for name, value in scalars(record).items():
            self.curves[name].add(self.step, value)

    @property
    def broken(self) -> int:
        """How many lines of the log could not be read."""
        return self._tail.broken

    @property
    def steps(self) -> int | None:
        """How many steps the run is to have; None if it does not say."""
        return ((self.config or {}).get("train") or {}).get("steps")

    @property
    def goodput(self) -> dict[str, float]:
        """The parts of the run's wall time, by the names of the metrics."""
        return goodput_scalars(summarize(self.starts)) if self.starts else {}

    def age(self) -> float | None:
        """Returns the seconds since the last sign of life; None if there was none."""
        signs = [start["ended"] for start in self.starts] + [at for _, at in self._times if at]
        return max(0.0, self.now - max(signs)) if signs else None

    def _intervals(self) -> list[float]:
        """Returns the seconds a step between the records of this start."""
        began = self.starts[-1]["began"] if self.starts else 0.0
        times = [(step, at) for step, at in self._times if at > began]
        pairs = zip(times, times[1:], strict=False)
        return [(b - a) / max(1, after - before) for (before, a), (after, b) in pairs]

    def secs_per_step(self) -> float | None:
        """Returns the recent seconds a step, evaluations and checkpoints included; None: unknown."""
        intervals = self._intervals()
        return statistics.fmean(intervals) if intervals else None

    def silent(self) -> float | None:
        """Returns for how long nothing was heard, if that is longer than usual; else None.

        Usual is five times the median time between records, or twice the longest of them: an
        evaluation stands between two records.
        """
        age, intervals = self.age(), self._intervals()
        floor = _SILENT_SECS_BUCKET if is_remote(self.workdir) else _SILENT_SECS
        usual = [5 * statistics.median(intervals), 2 * max(intervals)] if intervals else []
        return age if age is not None and age > max(floor, *usual, 0) else None

    def secs_left(self) -> float | None:
        """Returns the seconds to the last step at the recent speed; None if nobody can tell."""
        each = self.secs_per_step()
        if self.steps is None or self.step is None or each is None:
            return None
        return max(0, self.steps - self.step) * each

    def gate(self) -> bool | None:
        """Returns the verdict of the retention gate; None if there is none."""
        return bool(self.curves["eval_gate"].last) if "eval_gate" in self.curves else None

    def ended(self) -> str | None:
        """Says how the run ended; None while it has not."""
        saved = self.saved is not None and self.saved.step == self.step
        if not saved:
            return None
        if self.step == self.steps:
            return f"finished: all {self.steps} steps are done and saved."
        gate = self.config["evaluate"]["gate"]["action"] if self.config else "off"
        if gate == "stop" and self.gate() is False and self.curves["eval_gate"].step == self.step:
            return f"stopped by the retention gate after step {self.step}; it is saved."
        return None

    def wanted_shares(self) -> dict[tuple[str, str], float]:
        """Returns what the configuration asks of each domain and language at the step reached."""
        try:
            data = build_dataclass(DataConfig, (self.config or {}).get("data") or {}, "data.")
        except ValueError:  # of another version
            return {}
        if data.seqio_mixture:
            return {}
        sections = [s for _, start, s in stage_sections(data) if start <= (self.step or 0)]
        return language_shares(sections[-1])


def domain_of(source: str) -> tuple[str, str]:
    """Returns the domain and language of a source's name.

    >>> domain_of("ecommerce-de"), domain_of("general-en-web")
    (('ecommerce', 'de'), ('general', 'en'))
    """
    return tuple([*re.split("[-/]", source), ""][:2])


def _read_json(path: Path) -> dict | None:
    try:
        return parse_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON, got {error}.") from error


def _newest(root: Path) -> StepEntry | None:
    """Returns the newest complete step; None if there is none, or it goes away just now."""
    try:
        complete = [entry for entry in list_steps(root) if entry.problem is None]
    except FileNotFoundError:
        return None
    return complete[-1] if complete else None
