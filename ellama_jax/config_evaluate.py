"""The section `evaluate` of the configuration: its keys, and what must hold of its words.

Sizes are checked in config.py with all others. What a rule of the gate means and when it is broken
is evaluate/retention.py's.
"""

from dataclasses import dataclass, field

EXIT_GATE = 3  # exit status of what the retention gate ended: to start it again would not help
GATE_ACTIONS = ("off", "warn", "stop")
SPLITS = ("validation", "test")
GATE_FAILS_WHEN = ("certain", "likely", "possible")
BEST_BY = ("accuracy", "bits_per_byte")
_LOSS = "must lie in (-1, 0], as -0.01 for a loss of 1 %"
_RISE = "must not be negative, as 0.03 for 3 % more"


@dataclass(frozen=True)
class GateConfig:
    """What a model must keep of its base's general ability, as relative changes."""

    action: str = "warn"
    general_mean: float = -0.01
    language: float = -0.03
    bits_per_byte: float = 0.03
    fails_when: str = "certain"


@dataclass(frozen=True)
class SweepConfig:
    """How many alphas a sweep scores, and the rule that chooses one of them."""

    max_points: int = 9
    best_by: str = "accuracy"
    general_mean: float = -0.01
    bits_per_byte: float = 0.01
    standard_errors: float = 1.0


@dataclass(frozen=True)
class EvaluateConfig:
    windows_dir: str
    every_steps: int
    batches: int
    items_per_task: int
    mmlu_per_language: int
    texts_per_source: int
    row_length: int
    rows_per_batch: int
    alphas: tuple[float, ...]
    tasks: str = ""
    benchmark_dir: str = ""
    texts_path: str = ""
    split: str = "validation"
    window: int = 1024
    gate: GateConfig = field(default_factory=GateConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)


def check_evaluate(evaluate: EvaluateConfig) -> None:
    """Raises ValueError for words and rules of the section that cannot hold."""
    if evaluate.split not in SPLITS:
        raise ValueError(
            f"evaluate.split: must be one of {', '.join(SPLITS)}, got {evaluate.split}."
        )
    check_gate(evaluate.gate)
    check_sweep(evaluate.sweep)
    tasks = evaluate.tasks.split(",") if evaluate.tasks else []
    general = {"mmlu", "bits_per_byte"} & {task.strip() for task in tasks}
    if evaluate.gate.action == "stop" and not general:
        raise ValueError(
            "evaluate.gate.action: stop must have mmlu or bits_per_byte among evaluate.tasks to "
            f"judge by, got {evaluate.tasks or 'none'}."
        )


def check_gate(gate: GateConfig, prefix: str = "evaluate.gate.") -> None:
    """Raises ValueError for rules that cannot hold; `prefix` stands before a key in the message.

    A key is written as an option where the prefix is one's.
    """
    rules = (
        ("action", gate.action in GATE_ACTIONS, f"must be one of {', '.join(GATE_ACTIONS)}"),
        ("general_mean", -1 < gate.general_mean <= 0, _LOSS),
        ("language", -1 < gate.language <= 0, _LOSS),
        ("bits_per_byte", gate.bits_per_byte >= 0, _RISE),
        (
            "fails_when",
            gate.fails_when in GATE_FAILS_WHEN,
            f"must be one of {', '.join(GATE_FAILS_WHEN)}",
        ),
    )
    _require(rules, gate, prefix)


def check_sweep(sweep: SweepConfig, prefix: str = "evaluate.sweep.") -> None:
    """Raises ValueError for a sweep that cannot choose; `prefix` as of `check_gate`."""
    rules = (
        ("max_points", sweep.max_points >= 2, "must be at least 2, base and another"),
        ("best_by", sweep.best_by in BEST_BY, f"must be one of {', '.join(BEST_BY)}"),
        ("general_mean", -1 < sweep.general_mean <= 0, _LOSS),
        ("bits_per_byte", sweep.bits_per_byte >= 0, _RISE),
        ("standard_errors", sweep.standard_errors >= 0, "must not be negative, as 1 or 0"),
    )
    _require(rules, sweep, prefix)


def _require(rules, section: GateConfig | SweepConfig, prefix: str) -> None:
    for key, holds, rule in rules:
        if not holds:
            name = key.replace("_", "-") if prefix.startswith("--") else key
            raise ValueError(f"{prefix}{name}: {rule}, got {getattr(section, key)}.")
