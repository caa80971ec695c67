"""What the trials of a sweep came to: changes against the base, intervals over seeds, the choice.

Owns the arithmetic and the sentence. Which trials there are is experiments/sweep_grid.py's, how a page shows them
report/sweep.py's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ellama_jax.core.estimate import say_needed
from ellama_jax.experiments.sweep_grid import Rule, Sweep
from ellama_jax.train.metrics import read_metrics

FILE = "trials.json"
_LESS_IS_BETTER = ("eval_loss", "eval_bits_per_byte")
_CONFIDENCE = 0.95


def read_changes(directory: Path, steps: int) -> dict[str, float] | None:
    """Returns what a finished run changed of the base: metric -> relative change.

    Args:
        directory: of the run.
        steps: at its end.

    Returns:
        of every `eval_...` metric that step 0 and the last step both have, (after - before) /
        before; None while the run has not ended.
    """
    records = {record["step"]: record for record in read_metrics(directory)}
    before, after = records.get(0), records.get(steps)
    if not before or not after:
        return None
    names = [name for name in before if name.startswith("eval_") and name in after]
    found = {name: after[name] / before[name] - 1 for name in names if before[name]}
    return found or None


def mean_change(changes: Mapping[str, float], name: str) -> float | None:
    """Returns a metric's change, or the mean over its parts, as `eval_loss/general` has languages.

    >>> mean_change({"eval_loss/general/de": 0.02, "eval_loss/general/en": 0.04}, "eval_loss/general")
    0.03
    """
    if name in changes:
        return changes[name]
    parts = [change for key, change in changes.items() if key.startswith(f"{name}/")]
    return sum(parts) / len(parts) if parts else None


def improvement(change: float | None, name: str) -> float | None:
    """Returns a change so that more is better: losses and bits per byte should fall."""
    if change is None:
        return None
    return -change if name.split("/")[0] in _LESS_IS_BETTER else change


def judge(sweep: Sweep, changes: Mapping[str, Mapping[str, float]]) -> dict:
    """Summarises settings over their seeds and chooses one by the sweep's rule.

    Args:
        sweep: what was tried.
        changes: trial name -> metric -> relative change, of the trials that are done.

    Returns:
        `settings`, best first, each with `labels`, `seeds` (how many are done), `gain` and `keep`
        ({mean, half, values}; improvements as parts of the base's value, `half` of a 95 %
        interval, None where no setting has two seeds), `keeps` (within the rule's limit); `chosen`
        (labels, or None); `sentence`.
    """
    rule = sweep.rule
    rows = []
    for setting in sweep.settings:
        done = [changes[name] for name in setting.trials if name in changes]
        sides = {
            side: [improvement(mean_change(found, name), name) for found in done]
            for side, name in (("gain", rule.gain), ("keep", rule.keep))
        }
        if done and None not in (*sides["gain"], *sides["keep"]):
            rows.append({"labels": dict(setting.labels), "seeds": len(done), **sides})
    unlike = _once_each(rows)
    for side in ("gain", "keep"):
        spread = pooled_spread([row[side] for row in unlike])
        for row in rows:
            row[side] = _describe(row[side], spread)
    for row in rows:
        row["keeps"] = row["keep"]["mean"] >= -rule.limit
    rows.sort(key=_rank)
    chosen, second = [*alone_rows(rows), None, None][:2]
    return {
        "settings": rows,
        "chosen": chosen and chosen["labels"],
        "sentence": " ".join(
            [
                say_choice(chosen, rule, sum(not row["keeps"] for row in unlike), len(unlike)),
                *_say_noise(chosen, second),
            ]
        ),
    }


def _once_each(rows: list[dict]) -> list[dict]:
    """Leaves out settings that share their trials with another: they would count twice."""
    return list({(tuple(row["gain"]), tuple(row["keep"])): row for row in rows}.values())


def alone_rows(rows: Sequence[Mapping]) -> list[dict]:
    """Leaves one row of those that are the same trials, as the default of several axes is, with all labels.

    >>> row = {"gain": {"values": [1]}, "keep": {"values": [2]}}
    >>> [r["says"] for r in alone_rows([row | {"labels": {"a": "1"}}, row | {"labels": {"b": "2"}}])]
    ['a 1 = b 2']
    """
    found: dict[tuple, list] = {}
    for row in rows:
        key = tuple(row["gain"]["values"]), tuple(row["keep"]["values"])
        found.setdefault(key, []).append(row)
    return [
        {**same[0], "says": " = ".join(say_labels(row["labels"]) for row in same)}
        for same in found.values()
    ]


def _say_noise(chosen: Mapping | None, second: Mapping | None) -> Iterator[str]:
    """Says whether the best setting's lead could be the seeds'."""
    if second is None or chosen["keeps"] != second["keeps"]:
        return
    side = "gain" if chosen["keeps"] else "keep"
    ours, theirs = chosen[side], second[side]
    if ours["half"] is None:
        yield f"With one seed a setting nothing tells its lead over {second['says']} from noise."
    elif (lead := ours["mean"] - theirs["mean"]) < (
        noise := math.hypot(ours["half"], theirs["half"])
    ):
        seeds = chosen["seeds"]
        few = f": {seeds}, {say_needed(math.ceil(seeds * (noise / lead) ** 2))}" if lead else ""
        yield f"Its lead over {second['says']} is within the noise of the seeds{few}."


def _rank(row: Mapping):
    return (0, -row["gain"]["mean"]) if row["keeps"] else (1, -row["keep"]["mean"])


def pooled_spread(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Returns the standard deviation within groups and its degrees of freedom; None without any.

    Few seeds say little about their own spread; pooled over all settings they say more. It takes
    for granted that seeds matter alike in each.

    >>> pooled_spread([[1.0, 3.0], [5.0, 5.0], [7.0]])
    (1.0, 2)
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 1:
        return None
    means = [sum(group) / len(group) for group in groups]
    squares = sum((x - mean) ** 2 for group, mean in zip(groups, means, strict=True) for x in group)
    return math.sqrt(squares / freedom), freedom


def _describe(values: Sequence[float], spread: tuple[float, int] | None) -> dict:
    half = None
    if spread is not None:
        from scipy.stats import t

        deviation, freedom = spread
        half = float(t.ppf(0.5 + _CONFIDENCE / 2, freedom)) * deviation / math.sqrt(len(values))
    return {"mean": sum(values) / len(values), "half": half, "values": list(values)}


def say_choice(chosen: Mapping | None, rule: Rule, losing: int, of: int) -> str:
    """Says in one sentence which setting is best, what it brings and what it costs."""
    if chosen is None:
        return "No trial is done yet."
    where, most = chosen.get("says") or say_labels(chosen["labels"]), f"{100 * rule.limit:g} %"
    gain, keep = say_part(chosen["gain"]), say_part(chosen["keep"])
    what = f"{rule.gain} better by {gain}, {rule.keep} by {keep}"
    if chosen["keeps"]:
        lose = "none loses" if not losing else f"{losing} of them lose"
        return f"Best of {of}: {where} ({what}); {lose} more of {rule.keep} than {most}."
    return f"All {of} lose more of {rule.keep} than {most}; {where} loses least ({what})."


def say_part(part: Mapping) -> str:
    """Writes an improvement and its interval in %.

    >>> say_part({"mean": 0.123, "half": 0.01, "values": [0.123]})
    '+12.3 % [+11.3, +13.3]'
    """
    mean, half = 100 * part["mean"], part["half"]
    if half is None:
        return f"{mean:+.1f} %"
    return f"{mean:+.1f} % [{mean - 100 * half:+.1f}, {mean + 100 * half:+.1f}]"


def say_labels(labels: Mapping[str, str]) -> str:
    """Writes a setting as `schedule.peak_frac 0.1, data.replay_frac 0.5`."""
    return (
        ", ".join(f"{key} {label}" for key, label in labels.items()) or "the configuration itself"
    )


def axis_rows(found: Mapping, key: str) -> list[dict]:
    """Returns the rows of one axis, in its order: those of `judge` by label, pooled over other axes.

    Args:
        found: what `judge` returned, with `axes` (key -> labels).
        key: of the axis.

    Returns:
        rows {label, gain, keep}; where several settings have a label, all their trials count alike
        and the interval is as wide as the widest of theirs.
    """
    rows = []
    for label in found["axes"][key]:
        mine = [row for row in found["settings"] if row["labels"].get(key) == label]
        if mine:
            rows.append({"label": label, **{side: _pool(mine, side) for side in ("gain", "keep")}})
    return rows


def _pool(rows: Sequence[Mapping], side: str) -> dict:
    values = [value for row in rows for value in row[side]["values"]]
    halves = [row[side]["half"] for row in rows]
    half = None if None in halves else max(halves)
    return {"mean": sum(values) / len(values), "half": half, "values": values}
