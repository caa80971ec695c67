"""Where the time of a run goes, over all its starts: how much of it trained.

Owns the account of wall time and its file, goodput.json. It needs no service: every start of a run
adds to the file what it did, and the time between two starts counts too. The categories are those
of the field (ml-goodput-measurement, which logs to Google Cloud).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ellama_jax.core.paths import is_remote
from ellama_jax.core.progress import duration
from ellama_jax.train.kept import RunFiles

GOODPUT_FILE = "goodput.json"
STEP = "step"
# What a start can be doing, and what it is called.
CATEGORIES: Mapping[str, str] = {
    STEP: "steps",
    "init": "starting",
    "restore": "making or restoring the state",
    "compile": "compiling",
    "data_wait": "waiting for data",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
    "profile": "profiles",
    "lost_work": "steps done again",
    "gap": "between starts",
}
_SECS_BETWEEN_WRITES, _SECS_BETWEEN_UPLOADS = 10.0, 60.0


class Goodput:
    """The account of one start, after those of the starts before it.

        goodput = Goodput(time.time(), read_goodput(workdir))
        with goodput.span("restore"): ...

    The clock is always in exactly one category, `category`, so the seconds add up to the time since
    `began`; outside of any span it is the one set last.
    """

    def __init__(
        self,
        began: float,
        earlier: Sequence[Mapping] = (),
        clock: Callable[[], float] | None = None,
    ):
        """Starts the clock in `init`.

        Args:
            began: when this start began, UNIX time; at most now.
            earlier: what `read_goodput` gives of the starts before.
            clock: gives UNIX time and never goes back.
        """
        self._clock = clock or _steady_clock()
        self._earlier = [{**start, "secs": dict(start["secs"])} for start in earlier]
        self._began, self._first_step, self._last_step = began, 0, 0
        self.complete = False  # whether all steps asked for are done
        self._secs = {"init": 0.0}
        self.category, self._since = "init", began
        self._written = self._clock()

    def enter(self, category: str) -> None:
        """What follows is spent in `category`."""
        now = self._clock()
        self._secs[self.category] = self._secs.get(self.category, 0.0) + now - self._since
        self.category, self._since = category, now

    @contextmanager
    def span(self, category: str) -> Iterator[None]:
        """The enclosed time is spent in `category`; then it goes on as before."""
        before = self.category
        self.enter(category)
        try:
            yield
        finally:
            self.enter(before)

    @property
    def doing(self) -> str:
        """What the clock is in, in words."""
        return CATEGORIES[self.category]

    def now(self) -> float:
        """Returns the UNIX time of the account's clock."""
        return self._clock()

    def spent(self, *categories: str) -> float:
        """Returns the seconds of this start in `categories`."""
        self.enter(self.category)
        return sum(self._secs.get(category, 0.0) for category in categories)

    def resume_after(self, step: int, lost: Sequence[Mapping]) -> None:
        """Says which step this start goes on from, and what the last one did beyond it.

        Args:
            step: updates done so far.
            lost: metrics records of steps that will be done again.
        """
        self._first_step = self._last_step = step
        for start in self._earlier[-1:]:
            # The account may be some seconds older than the last step that was logged.
            ended = max((record.get("time", 0.0) for record in lost), default=0.0)
            late = min(ended, self._began) - start["ended"]
            if late > 0:
                start["ended"] += late
                start["secs"][STEP] = start["secs"].get(STEP, 0.0) + late
            start["last_step"] = max([start["last_step"], *(record["step"] for record in lost)])
        left, again = sum(record.get("step_secs", 0.0) for record in lost), len(lost)
        for start in reversed(self._earlier):
            moved = min(left, start["secs"].get(STEP, 0.0))
            if moved <= 0:
                break
            start["secs"][STEP] -= moved
            start["secs"]["lost_work"] = start["secs"].get("lost_work", 0.0) + moved
            start["lost_steps"], again = start.get("lost_steps", 0) + again, 0
            left -= moved

    def finished(self, step: int) -> None:
        """Counts a step as done."""
        self._last_step = step

    def starts(self) -> list[dict]:
        """Returns the account as JSON-able data: one entry a start, this one last."""
        self.enter(self.category)
        mine = {
            "began": self._began, "ended": self._since, "first_step": self._first_step,
            "last_step": self._last_step, "lost_steps": 0, "secs": dict(self._secs),
            "complete": self.complete,
        }  # fmt: skip
        return [*self._earlier, mine]

    def summary(self) -> dict[str, float]:
        """Returns the seconds of the whole run by category, see `summarize`."""
        return summarize(self.starts())

    def write(self, files: RunFiles, *, force: bool = False) -> None:
        """Writes the file, every ten seconds at most (a minute in a bucket) unless forced."""
        now = self._clock()
        every = _SECS_BETWEEN_UPLOADS if is_remote(files.workdir) else _SECS_BETWEEN_WRITES
        if force or now - self._written >= every:
            files.write(GOODPUT_FILE, json.dumps({"starts": self.starts()}, indent=1))
            self._written = now


def summarize(starts: Sequence[Mapping]) -> dict[str, float]:
    """Adds up an account: seconds by category, which sum to last `ended` less first `began`.

    The time between a start's last word and the next start is `gap`: what a crashed start did after
    its last step, the scheduler, and the machine that had to be found. After a start that was
    complete nothing was waited for.

    >>> summarize([{"began": 0, "ended": 5, "secs": {"step": 5}},
    ...            {"began": 9, "ended": 10, "secs": {"init": 1}}])
    {'step': 5.0, 'init': 1.0, 'gap': 4.0}
    """
    total = dict.fromkeys(CATEGORIES, 0.0)
    for start in starts:
        for category, secs in start["secs"].items():
            total[category] = total.get(category, 0.0) + secs
    for before, after in zip(starts, starts[1:], strict=False):
        # The clock of another machine, or one that was set back, may be behind.
        if not before.get("complete"):
            total["gap"] += max(0.0, after["began"] - before["ended"])
    return {category: secs for category, secs in total.items() if secs}


def goodput_scalars(secs: Mapping[str, float]) -> dict[str, float]:
    """Returns the parts of a run's time by the names of the metrics, from what `summarize` gives.

    >>> goodput_scalars({"step": 3.0, "init": 1.0})
    {'goodput': 0.75, 'goodput/step': 0.75, 'goodput/init': 0.25}
    """
    total = sum(secs.values()) or 1.0
    parts = {f"goodput/{category}": value / total for category, value in secs.items()}
    return {"goodput": parts.get(f"goodput/{STEP}", 0.0), **parts}


def describe_goodput(starts: Sequence[Mapping]) -> str:
    """Says in one line what part of the time trained, and where the rest went."""
    secs = summarize(starts)
    total = sum(secs.values()) or 1.0
    rest = sorted(((s, c) for c, s in secs.items() if c != STEP), reverse=True)
    words = [f"{CATEGORIES.get(c, c)} {s / total:.1%}" for s, c in rest if s / total >= 0.0005]
    lost = sum(start.get("lost_steps", 0) for start in starts)
    said = f"goodput: {secs.get(STEP, 0.0) / total:.1%} of {duration(total)} in steps"
    if words:
        said += f"; {', '.join(words)}"
    if len(starts) > 1:
        said += f"; {len(starts)} starts" + (f", {lost} steps done twice" if lost else "")
    return f"{said}."


def read_goodput(workdir: Path) -> list[dict]:
    """Returns the account of a run's starts so far, oldest first; empty if there is none.

    Raises:
        ValueError: if the file is no such account.
    """
    path = workdir / GOODPUT_FILE
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    starts = found.get("starts") if isinstance(found, dict) else None
    known = ("began", "ended", "first_step", "last_step", "secs")
    if not isinstance(starts, list) or not all(
        isinstance(start, dict) and all(key in start for key in known) for start in starts
    ):
        raise ValueError(f"{path}: must be the account of a run's starts.")
    return starts


def _steady_clock() -> Callable[[], float]:
    """Returns a clock that begins with UNIX time and is not moved when the machine's is set."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()
