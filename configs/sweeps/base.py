"""Every key of a sweep; the files beside this one change what differs.

What: the common ground of sweeps, none by itself (it names no configuration).
Command: ellama sweep --config configs/sweeps/learning_rate.py --workdir runs/learning_rate
"""

import importlib

from ml_collections import ConfigDict

SMALL = "demo.py:smollm2-135m"


def sweep_of(name: str) -> tuple[ConfigDict, ConfigDict]:
    """Returns a sweep over a configuration of configs/, FILE.py:ARGUMENT, and that configuration."""
    file, _, argument = name.partition(":")
    if not file.endswith(".py") or not argument:
        raise ValueError(f"a sweep's argument must be FILE.py:ARGUMENT, as {SMALL}, got {name}.")
    sweep = get_config()
    sweep.config = name
    return sweep, importlib.import_module(f"configs.{file[:-3]}").get_config(argument)


def get_config() -> ConfigDict:
    """Returns a sweep without axes."""
    sweep = ConfigDict()
    sweep.title = ""  # of its table and page
    # FILE[:ARGUMENT] of the configuration that the trials change, in configs/ or anywhere.
    sweep.config = ""
    sweep.overrides = ()  # (key, value) pairs set in every trial, as ("model.checkpoint", "base")
    # An axis is (key, values), or (key, {label: value}) where values are long. Every combination
    # of the axes of `product` is tried.
    sweep.product = ()
    sweep.zipped = ()  # groups of axes that advance together: ((axis, axis), (axis, axis))
    sweep.one_at_a_time = ()  # axes tried by themselves, the others as in `config`
    sweep.seeds = (0, 1)  # each setting is run with each; () for the configuration's own seed
    sweep.seed_keys = ("data.seed",)  # keys that take the seed
    # Functions of a trial's values, looked up by key; all must be True. For example
    # (lambda v: v["schedule.warmup_steps"] < v["train.steps"],).
    sweep.constraints = ()
    rule = sweep.rule = ConfigDict()  # what is best
    rule.gain = "eval_loss/ecommerce"  # improves most ...
    rule.keep = "eval_loss/general"  # ... while this gets worse than the base's ...
    rule.limit = 0.01  # ... by at most this part of it
    # Of a trial that is done; its metrics stay. A checkpoint is 12 bytes a parameter, and more.
    sweep.remove_checkpoints = False
    return sweep
