"""Which runs a sweep is made of: axes and seeds into trials, each with a checked configuration.

Owns what a file of configs/sweeps/ means and the names of trials. It runs nothing; that is experiments/sweep.py.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from ellama_jax.config import RunConfig, config_to_mapping, configs_dir, load_config, load_values
from ellama_jax.core.settings import build_dataclass

_NAME_CHARS = 60


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the best setting is chosen.

    Of the settings whose `keep` got worse than the base by at most `limit` (relative, mean over
    seeds), the one whose `gain` got better most; if none is, the one whose `keep` got worse least.
    Both name metrics of a run's records: `eval_loss/ecommerce` is the mean over its languages.
    """

    gain: str = "eval_loss/ecommerce"
    keep: str = "eval_loss/general"
    limit: float = 0.01

    def __str__(self) -> str:
        return (
            f"Of the settings that worsen {self.keep} by at most {100 * self.limit:g} % of the "
            f"base's, the one that improves {self.gain} most; if none does, the one that worsens "
            f"{self.keep} least. Means over seeds."
        )


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its directory, from its values and `identity`.
        seed: None where the sweep has no seeds.
        arguments: `--config...` words that `ellama train` makes it of.
        config: those, checked.
        identity: hash of the whole configuration; another one is another run.
    """

    name: str
    seed: int | None
    arguments: tuple[str, ...]
    config: RunConfig
    identity: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """One choice of the axes' values, key -> label, and the names of its trials, one a seed."""

    labels: Mapping[str, str]
    trials: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials of a file, in order, and how they are judged.

    Two settings may share trials: the value that an axis has in the base is the base itself.
    """

    title: str
    trials: tuple[Trial, ...]
    settings: tuple[Setting, ...]
    axes: Mapping[str, tuple[str, ...]]  # key -> labels, in the order of the file
    rule: Rule
    remove_checkpoints: bool


def plan_sweep(values: Mapping, more: Sequence[tuple[str, object]] = ()) -> Sweep:
    """Makes the trials of a sweep.

    Args:
        values: the keys that configs/sweeps/base.py explains, as `load_values` reads them.
        more: (key, value) pairs set in every trial, over those of the file.

    Raises:
        ValueError: for what is no sweep, and for a trial whose configuration cannot work.
    """
    known = load_values([f"--config={configs_dir() / 'sweeps' / 'base.py'}"], "sweep")[0]
    if unknown := sorted(set(values) - set(known)) or sorted(set(known) - set(values)):
        raise ValueError(
            f"--config: must be a sweep, as configs/sweeps/base.py defines it, got a configuration "
            f"{'with' if set(values) - set(known) else 'without'} {', '.join(unknown)}."
        )
    if not values["config"]:
        raise ValueError("config: must name the configuration that the trials change, got none.")
    groups = [
        *([_axis(axis, "product")] for axis in values["product"]),
        *([_axis(axis, "zipped") for axis in group] for group in values["zipped"]),
    ]
    alone = [_axis(axis, "one_at_a_time") for axis in values["one_at_a_time"]]
    axes: dict[str, tuple[str, ...]] = {}
    for key, choices in itertools.chain(*groups, alone):
        if key in axes or key in values["seed_keys"]:
            raise ValueError(f"{key}: must be set by one axis, got two.")
        axes[key] = tuple(label for label, _ in choices)
    found = list(_trials(values, more, groups, alone))
    if not found:
        raise ValueError("constraints: must leave at least one trial, got none.")
    trials: dict[str, Trial] = {}
    for trial in itertools.chain.from_iterable(members for _, members in found):
        trials.setdefault(trial.identity, trial)
    settings = [
        Setting(labels, tuple(trials[trial.identity].name for trial in members))
        for labels, members in found
    ]
    return Sweep(
        values["title"] or "Sweep", tuple(trials.values()), tuple(settings), axes,
        _rule(values["rule"]), bool(values["remove_checkpoints"]),
    )  # fmt: skip


def _axis(axis, where: str) -> tuple[str, list[tuple[str, object]]]:
    """Returns an axis's key and its choices (label, value)."""
    try:
        key, choices = axis
        named = isinstance(choices, Mapping)
        pairs = list(choices.items()) if named else [(_label(value), value) for value in choices]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: must hold axes (key, values), as ('schedule.peak_frac', (0.1, 0.3)), got "
            f"{axis!r}."
        ) from error
    if not isinstance(key, str) or not pairs:
        raise ValueError(f"{where}: an axis must have a key and at least one value, got {axis!r}.")
    if len({label for label, _ in pairs}) < len(pairs):
        raise ValueError(f"{key}: values of an axis must differ, got {tuple(choices)!r}.")
    return key, [(str(label), value) for label, value in pairs]


def _label(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trials(
    values: Mapping, more: Sequence, groups: list, alone: list
) -> Iterator[tuple[dict, list[Trial]]]:
    """Yields every setting, key -> label, with its trials, one a seed."""
    base = _base(values, more)
    defaults = config_to_mapping(load_config(base, "sweep")[0])
    seeds = list(values["seeds"]) or [None]
    for chosen in _settings(groups, alone):
        plain = {key: value for key, (_, value) in chosen.items()}
        if not all(_holds(allows, defaults, plain) for allows in values["constraints"]):
            continue
        labels = {key: label for key, (label, _) in chosen.items()}
        yield labels, [_trial(base, chosen, seed, values["seed_keys"]) for seed in seeds]


def _settings(groups: list, alone: list) -> Iterator[dict]:
    """Yields key -> (label, value): the product of the groups, each with one lone axis at a time."""
    rows = []
    for group in groups:
        lengths = {len(choices) for _, choices in group}
        if len(lengths) > 1:
            names = ", ".join(f"{key} {len(choices)}" for key, choices in group)
            raise ValueError(f"zipped: axes must have the same number of values, got {names}.")
        rows.append([
            {key: choices[i] for key, choices in group} for i in range(lengths.pop())
        ])  # fmt: skip
    for combined in itertools.product(*rows):
        setting = {key: pair for row in combined for key, pair in row.items()}
        if not alone:
            yield setting
        for key, choices in alone:
            for pair in choices:
                yield {**setting, key: pair}


def _holds(allows: Callable[[Mapping], bool], defaults: Mapping, chosen: Mapping) -> bool:
    """Asks a constraint about key -> value of the axes; other keys are those of the base."""

    class Values(dict):
        def __missing__(self, key):
            return _look_up(defaults, key)

    return bool(allows(Values(chosen)))


def _look_up(values: Mapping, key: str):
    found = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"constraints: {key} is no configuration key.")
        found = found[part]
    return found


def _base(values: Mapping, more: Sequence) -> list[str]:
    """Returns the words that every trial's configuration begins with."""
    pairs = (*_pairs(values["overrides"], "overrides"), *more)
    fixed = [f"--config.{key}={_write(value)}" for key, value in pairs]
    return [f"--config={values['config']}", *fixed]


def _pairs(pairs, where: str) -> list[tuple[str, object]]:
    try:
        return [(key, value) for key, value in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: must hold pairs (key, value), got {pairs!r}.") from error


def _trial(base: list[str], chosen: Mapping, seed: int | None, seed_keys: Sequence[str]) -> Trial:
    words = [f"--config.{key}={_write(value)}" for key, (_, value) in chosen.items()]
    if seed is not None:
        words += [f"--config.{key}={seed}" for key in seed_keys]
    arguments = [*base, *words]
    config = load_config(arguments, "sweep")[0]
    whole = json.dumps(config_to_mapping(config), sort_keys=True)
    identity = hashlib.sha256(whole.encode()).hexdigest()[:16]
    labels = {key: label for key, (label, _) in chosen.items()}
    return Trial(_name(labels, seed, identity), seed, tuple(arguments), config, identity)


def _name(labels: Mapping[str, str], seed: int | None, identity: str) -> str:
    """Names a trial so that a shell, a file system and a bucket take it as it is.

    >>> _name({"schedule.peak_frac": "0.1"}, 0, "0123456789abcdef")
    'peak_frac-0.1_seed-0_01234567'
    """
    parts = [f"{key.rsplit('.', 1)[-1]}-{label}" for key, label in labels.items()]
    text = "_".join(parts + ([f"seed-{seed}"] if seed is not None else []))
    text = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)[:_NAME_CHARS].strip("-_.")
    return f"{text}_{identity[:8]}" if text else identity[:8]


def _write(value) -> str:
    """Writes a value as the command line takes it.

    >>> _write(0.1), _write({"late": {"start_step": 3}}), _write("runs/a b")
    ('0.1', "{'late': {'start_step': 3}}", 'runs/a b')
    """
    return value if isinstance(value, str) else repr(value)


def _rule(values: Mapping) -> Rule:
    rule = build_dataclass(Rule, values, "rule.")
    if rule.limit < 0:
        raise ValueError(f"rule.limit: must be at least 0, got {rule.limit:g}.")
    return rule
