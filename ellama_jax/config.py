"""Configuration: an ml_collections ConfigDict at the edge, frozen dataclasses inside.

Owns names, types and every check that needs neither a model nor a device. The values and what each
key means stand in configs/base.py.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ellama_jax.core.settings import build_dataclass

DTYPES = ("float32", "bfloat16")
ON_REPETITION = ("error", "warn")
ATTENTION_KERNELS = ("auto", "splash", "cudnn", "triton", "mosaic", "blockwise", "dense")
ATTENTION_CONTEXTS = ("all_gather", "ring")
GATE_ACTIONS = ("off", "warn", "stop")
SPLITS = ("validation", "test")
GATE_FAILS_WHEN = ("certain", "likely", "possible")
BEST_BY = ("accuracy", "bits_per_byte")
_LOSS = "must lie in (-1, 0], as -0.01 for a loss of 1 %"
_RISE = "must not be negative, as 0.03 for 3 % more"


@dataclass(frozen=True)
class AttentionConfig:
    """How attention is computed; the same result by every kernel."""

    kernel: str = "auto"
    block_q: int = 1024
    block_kv: int = 1024
    context: str = "all_gather"
    fused_backward: bool = False


@dataclass(frozen=True)
class ModelConfig:
    preset: str
    checkpoint: str
    init_seed: int
    remat: str
    compute_dtype: str
    param_dtype: str
    loss_chunk_tokens: int
    attention: AttentionConfig


@dataclass(frozen=True)
class MeshConfig:
    data: int
    fsdp: int
    context: int
    tensor: int


@dataclass(frozen=True)
class StageConfig:
    """Shares from a step on; what is None is as in the data section."""

    start_step: int
    replay_frac: float | None = None
    ecommerce_shares: dict[str, float] | None = None
    general_shares: dict[str, float] | None = None
    source_weights: dict[str, float] | None = None


@dataclass(frozen=True)
class DataConfig:
    windows_dir: str
    seqio_mixture: str
    seqio_module: str
    replay_frac: float
    ecommerce_shares: dict[str, float]
    general_shares: dict[str, float]
    source_weights: dict[str, float]
    stages: dict[str, StageConfig]
    max_epochs: float
    max_epochs_by_source: dict[str, float]
    on_repetition: str
    seq_len: int
    global_batch_size: int
    seed: int
    num_read_threads: int
    batch_ramp: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    mu_dtype: str = "float32"
    nu_dtype: str = "float32"
    ema_decay: float = 0.0
    ema_dtype: str = "float32"
    rounding_seed: int = 0


@dataclass(frozen=True)
class ScheduleConfig:
    peak_frac: float
    base_peak_learning_rate: float | None
    warmup_steps: int
    final_frac: float


@dataclass(frozen=True)
class TrainConfig:
    steps: int
    num_microbatches: int
    max_nonfinite_steps: int
    xla_flags: dict[str, str]
    compilation_cache: str
    prefetch_batches: int
    report_every_steps: int
    straggler_ratio: float
    hang_secs: float
    abort_on_hang: bool
    profile_start_step: int
    profile_steps: int
    wandb_project: str
    spike_factor: float = 0.0
    spike_window: int = 128
    max_spikes: int = 10


@dataclass(frozen=True)
class CheckpointConfig:
    save_every_steps: int
    save_every_secs: float
    keep_last: int
    keep_every_steps: int
    best_metric: str
    keep_best: int


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


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is decided by, one frozen section per concern."""

    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    evaluate: EvaluateConfig


def config_from_mapping(values: Mapping) -> RunConfig:
    """Turns nested plain values into a checked `RunConfig`.

    Args:
        values: section -> key -> value, as `ConfigDict.to_dict` gives it.

    Raises:
        ValueError: for unknown or missing keys, wrong types and sizes that do not fit each other.
    """
    config = build_dataclass(RunConfig, values)
    _check(config)
    return config


def config_to_mapping(config: RunConfig) -> dict:
    """Returns `config` as plain JSON-able data."""
    return dataclasses.asdict(config)


def load_config(argv: list[str], verb: str) -> tuple[RunConfig, list[str]]:
    """Reads `--config FILE[:ARGUMENT]` and `--config.section.key=value` overrides.

    Args:
        argv: the verb's arguments.
        verb: named in the message when `--config` is missing.

    Returns:
        the configuration, and the arguments that are not about it.

    Raises:
        ValueError: for a missing file, an unknown key or a value of the wrong type.
    """
    loaded, others = load_values(argv, verb)
    return config_from_mapping(loaded), others


def load_values(argv: list[str], verb: str) -> tuple[dict, list[str]]:
    """Reads a configuration file and its overrides as nested plain values, see `load_config`."""
    from absl import flags
    from ml_collections import config_flags

    _make_configs_importable()
    mine, others = split_arguments(argv)
    for at, word in enumerate(mine):
        flag, equals, name = word.partition("=")
        if flag in ("--config", "-config") and equals:
            mine[at] = f"{flag}={find_config(name)}"
    if not mine:
        raise ValueError(
            f"--config: must name a configuration file, got none; see ellama {verb} --help."
        )
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file(
            "config", lock_config=True, flag_values=values, sys_argv=[verb, *mine]
        )
        values([verb, *mine])
        found = values["config"].value
        to_dict = getattr(found, "to_dict", None)  # a file that was not found raises here
    except OSError as error:
        file = mine[0].partition("=")[2] or "nothing"
        raise ValueError(
            f"--config: must be a file that can be loaded, got {file}: {str(error).splitlines()[-1]}"
        ) from error
    except Exception as error:  # the file is a program of the user's: anything may go wrong in it
        raise ValueError(_say_what_is_wrong(error, mine)) from error
    if to_dict is None:
        raise ValueError(f"--config: get_config must return a ConfigDict, got {found!r}.")
    return to_dict(), others


def _say_what_is_wrong(error: Exception, given: list[str]) -> str:
    """Says in one line what ml_collections, or the configuration file, raised."""
    inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    text = str(inner.args[0]) if isinstance(inner, KeyError) else str(error)
    if isinstance(inner, KeyError) or text.startswith("Could not parse"):
        # Says a part of the key, quoted, and perhaps a guess.
        quoted = re.search("'(.*?)'", text)
        part = quoted[1] if quoted else text
        names = [argument.split("=")[0] for argument in given]
        name = next((name for name in names if part in name), part)
        near = re.search('Did you mean "(.*?)"', text)
        hint = (
            f"did you mean {near[1]}?" if near else "configs/base.py has them all; a mapping is given "
            "whole, as --config.train.xla_flags=\"{'xla_name': 'true'}\"."
        )  # fmt: skip
        return f"{name}: is no configuration key; {hint}"
    if "Traceback (most recent call last)" in text:
        # What get_config raised, with all that led there; its last line says it.
        text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    elif type(error).__module__ == "builtins" and not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    return f"--config: {' '.join(text.split())}"


def find_config(name: str) -> str:
    """Returns `FILE[:ARGUMENT]` with FILE as it is here, else the shipped one of that name.

    >>> find_config("ellama:8b") == f"{configs_dir()}/ellama.py:8b"
    True
    """
    file, colon, argument = name.partition(":")
    shipped = Path(file.removeprefix("configs/")).with_suffix(".py") if file else Path("/")
    if Path(file).is_file() or shipped.is_absolute() or ".." in shipped.parts:
        return name
    found = configs_dir() / shipped
    return f"{found}{colon}{argument}" if found.is_file() else name


def configs_dir() -> Path:
    """Returns the directory of the shipped configuration files."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "base.py").is_file():
            return candidate
    raise ValueError(f"configs: must be installed beside {package}; reinstall ellama_jax.")


def _make_configs_importable() -> None:
    """Lets configuration files say `from configs import base` wherever they lie."""
    root = str(configs_dir().parent)
    if root not in sys.path:
        sys.path.append(root)


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config...` arguments, each as one word with its value, from all others."""
    mine, others, rest = [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        if argument.split("=")[0].split(".")[0] not in ("--config", "-config"):
            others.append(argument)
            continue
        alone = "=" not in argument and rest
        mine.append(f"{argument}={rest.pop(0)}" if alone else argument)
    return mine, others


def _check(config: RunConfig) -> None:
    """Raises for values that cannot work, alone or together."""
    model, data, train = config.model, config.data, config.train
    attention = model.attention
    at_least_one = {
        "model.attention.block_q": attention.block_q,
        "model.attention.block_kv": attention.block_kv,
        "model.loss_chunk_tokens": model.loss_chunk_tokens,
        "data.seq_len": data.seq_len,
        "data.global_batch_size": data.global_batch_size,
        "data.num_read_threads": data.num_read_threads,
        "train.steps": train.steps,
        "train.num_microbatches": train.num_microbatches,
        "train.max_nonfinite_steps": train.max_nonfinite_steps,
        "train.max_spikes": train.max_spikes,
        "train.prefetch_batches": train.prefetch_batches,
        "train.report_every_steps": train.report_every_steps,
        "train.profile_steps": train.profile_steps,
        "checkpoint.save_every_steps": config.checkpoint.save_every_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "evaluate.every_steps": config.evaluate.every_steps,
        "evaluate.batches": config.evaluate.batches,
        "evaluate.items_per_task": config.evaluate.items_per_task,
        "evaluate.mmlu_per_language": config.evaluate.mmlu_per_language,
        "evaluate.texts_per_source": config.evaluate.texts_per_source,
        "evaluate.row_length": config.evaluate.row_length,
        "evaluate.rows_per_batch": config.evaluate.rows_per_batch,
        "evaluate.window": config.evaluate.window,
    }
    for name, value in at_least_one.items():
        _require(value >= 1, name, "must be at least 1", value)
    seeds = {
        "model.init_seed": model.init_seed,
        "optimizer.rounding_seed": config.optimizer.rounding_seed,
    }
    for name, seed in seeds.items():
        _require(0 <= seed < 2**31, name, "must lie in [0, 2^31)", seed)
    for axis, size in dataclasses.asdict(config.mesh).items():
        _require(size >= 1 or size == -1, f"mesh.{axis}", "must be at least 1, or -1", size)
    for key, allowed in (("kernel", ATTENTION_KERNELS), ("context", ATTENTION_CONTEXTS)):
        value, rule = getattr(attention, key), f"must be one of {', '.join(allowed)}"
        _require(value in allowed, f"model.attention.{key}", rule, value)
    for name in ("compute_dtype", "param_dtype"):
        allowed = DTYPES + (("auto",) if name == "compute_dtype" else ())
        value = getattr(model, name)
        _require(value in allowed, f"model.{name}", f"must be one of {', '.join(allowed)}", value)
    _check_batch_sizes(data, train)
    _check_mixture(data, train.steps)
    _check_repetition(data)
    _check_learning(config)
    for name in train.xla_flags:
        rule = "must be a flag's name without dashes, like xla_tpu_scoped_vmem_limit_kib"
        _require(name.startswith("xla_"), "train.xla_flags", rule, name)
    _check_checkpoint(config.checkpoint)
    _check_watching(config)
    check_evaluate(config.evaluate)


def batch_sizes(data: DataConfig) -> list[tuple[int, int]]:
    """Returns (first step, rows a step from there on), ascending, the first from step 0.

    `batch_ramp` says how many rows the steps *before* a step have; from its last step on they have
    `global_batch_size`.
    """
    ramp = sorted((int(step), rows) for step, rows in data.batch_ramp.items())
    starts = [0] + [step for step, _ in ramp]
    return list(zip(starts, [rows for _, rows in ramp] + [data.global_batch_size], strict=True))


def rows_at(data: DataConfig, step: int) -> int:
    """Returns the rows of the global batch of one step, counted from 0."""
    return [rows for start, rows in batch_sizes(data) if start <= step][-1]


def count_rows(data: DataConfig, steps: int) -> int:
    """Returns the rows of the first `steps` steps together."""
    sizes = batch_sizes(data)
    ends = [start for start, _ in sizes[1:]] + [max(steps, sizes[-1][0])]
    spans = zip(sizes, ends, strict=True)
    return sum(rows * max(0, min(end, steps) - start) for (start, rows), end in spans)


def _check_batch_sizes(data: DataConfig, train: TrainConfig) -> None:
    for step, rows in data.batch_ramp.items():
        name = f"data.batch_ramp.{step}"
        _require(step.isdecimal() and 1 <= int(step) < train.steps, name,
                 f"must be a step from 1 to below train.steps ({train.steps})", step)  # fmt: skip
        _require(rows >= 1, name, "must be at least 1 row", rows)
    steps = [int(step) for step in data.batch_ramp]
    _require(len(set(steps)) == len(steps), "data.batch_ramp", "must name a step once",
             ", ".join(data.batch_ramp))  # fmt: skip
    _require(not (data.batch_ramp and data.seqio_mixture), "data.batch_ramp",
             "must be empty with data.seqio_mixture, whose batches have one size",
             ", ".join(data.batch_ramp))  # fmt: skip
    sizes = [rows for _, rows in batch_sizes(data)]
    _require(sizes == sorted(sizes), "data.batch_ramp",
             "must grow up to data.global_batch_size", ", ".join(map(str, sizes)))  # fmt: skip
    parts = train.num_microbatches
    sizes = {f"data.batch_ramp.{step}": rows for step, rows in data.batch_ramp.items()}
    for name, rows in {**sizes, "data.global_batch_size": data.global_batch_size}.items():
        rule = f"must be divisible by train.num_microbatches ({parts})"
        fit = " or ".join(str(n) for n in (rows // parts * parts, (rows // parts + 1) * parts) if n)
        _require(rows % parts == 0, name, rule, f"{rows}; take {fit}")


def _check_checkpoint(checkpoint: CheckpointConfig) -> None:
    every = checkpoint.save_every_steps
    kept = checkpoint.keep_every_steps
    _require(kept >= 0 and kept % every == 0, "checkpoint.keep_every_steps",
             f"must be 0 or a multiple of checkpoint.save_every_steps ({every})", kept)  # fmt: skip
    _require(checkpoint.save_every_secs >= 0, "checkpoint.save_every_secs",
             "must be 0 (never) or more", checkpoint.save_every_secs)  # fmt: skip


def _check_watching(config: RunConfig) -> None:
    train, metric = config.train, config.checkpoint.best_metric
    _require(train.straggler_ratio > 1, "train.straggler_ratio", "must be above 1",
             train.straggler_ratio)  # fmt: skip
    _require(train.hang_secs >= 0, "train.hang_secs", "must be 0 (off) or more", train.hang_secs)
    _require(not train.abort_on_hang or train.hang_secs > 0, "train.hang_secs",
             "must be above 0 with train.abort_on_hang", train.hang_secs)  # fmt: skip
    _require(0 <= train.profile_start_step <= train.steps, "train.profile_start_step",
             f"must be 0 (none) or a step up to train.steps ({train.steps})",
             train.profile_start_step)  # fmt: skip
    if metric.startswith("eval_"):
        every = config.evaluate.every_steps
        _require(bool(config.evaluate.windows_dir), "evaluate.windows_dir",
                 f"must be given for checkpoint.best_metric ({metric})", "none")  # fmt: skip
        _require(config.checkpoint.save_every_steps % every == 0, "checkpoint.save_every_steps",
                 f"must be a multiple of evaluate.every_steps ({every}) for checkpoint.best_metric "
                 f"({metric})", config.checkpoint.save_every_steps)  # fmt: skip


def stage_sections(data: DataConfig) -> list[tuple[str, int, DataConfig]]:
    """Returns the data section as each stage has it, in the order of the stages.

    Returns:
        (path of the section in the configuration, first step, section with the stage's shares); the
        first is the section itself, `data`, from step 0.
    """
    sections = [("data", 0, data)]
    for name, stage in sorted(data.stages.items(), key=lambda item: item[1].start_step):
        given = {key: value for key, value in vars(stage).items() if value is not None}
        start_step = given.pop("start_step")
        section = dataclasses.replace(data, **given)
        sections.append((f"data.stages.{name}", start_step, section))
    return sections


def _check_mixture(data: DataConfig, steps: int) -> None:
    if data.seqio_mixture:
        _require(not data.stages, "data.stages",
                 "must be empty with data.seqio_mixture, whose rates are one for the whole run",
                 ", ".join(data.stages))  # fmt: skip
    elif data.seqio_module:
        _require(False, "data.seqio_module", "must be empty without data.seqio_mixture",
                 data.seqio_module)  # fmt: skip
    starts: dict[int, str] = {}
    for path, start, section in stage_sections(data):
        if path != "data":
            rule = f"must be from 1 to below train.steps ({steps}), or the stage is never reached"
            _require(1 <= start < steps, f"{path}.start_step", rule, start)
            other = starts.setdefault(start, path)
            _require(other == path, f"{path}.start_step", f"must differ from {other}'s", start)
        frac = section.replay_frac
        _require(0 <= frac <= 1, f"{path}.replay_frac", "must lie in [0, 1]", frac)
        _check_shares(f"{path}.ecommerce_shares", section.ecommerce_shares, frac < 1)
        _check_shares(f"{path}.general_shares", section.general_shares, frac > 0)
        for name, weight in section.source_weights.items():
            _require(weight >= 0, f"{path}.source_weights.{name}", "must not be negative", weight)


def _check_repetition(data: DataConfig) -> None:
    caps = {f"data.max_epochs_by_source.{k}": v for k, v in data.max_epochs_by_source.items()}
    for name, cap in {"data.max_epochs": data.max_epochs, **caps}.items():
        _require(cap > 0, name, "must be positive", cap)
    _require(data.on_repetition in ON_REPETITION, "data.on_repetition",
             f"must be one of {', '.join(ON_REPETITION)}", data.on_repetition)  # fmt: skip


def _check_shares(name: str, shares: dict[str, float], used: bool) -> None:
    for language, share in shares.items():
        _require(share >= 0, f"{name}.{language}", "must not be negative", share)
    total = sum(shares.values())
    _require(not used or abs(total - 1) < 1e-6, name, "must sum to 1", f"{total:g}")


def _check_learning(config: RunConfig) -> None:
    schedule, optimizer, steps = config.schedule, config.optimizer, config.train.steps
    _require(0 <= schedule.warmup_steps < steps, "schedule.warmup_steps",
             f"must be smaller than train.steps ({steps})", schedule.warmup_steps)  # fmt: skip
    _require(schedule.peak_frac > 0, "schedule.peak_frac", "must be positive", schedule.peak_frac)
    _require(0 <= schedule.final_frac <= 1, "schedule.final_frac", "must lie in [0, 1]",
             schedule.final_frac)  # fmt: skip
    base = schedule.base_peak_learning_rate
    _require(base is None or base > 0, "schedule.base_peak_learning_rate", "must be positive", base)
    for name in ("b1", "b2"):
        value = getattr(optimizer, name)
        _require(0 <= value < 1, f"optimizer.{name}", "must lie in [0, 1)", value)
    _require(optimizer.eps > 0, "optimizer.eps", "must be positive", optimizer.eps)
    _require(optimizer.clip_norm > 0, "optimizer.clip_norm", "must be positive",
             optimizer.clip_norm)  # fmt: skip
    _require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "must not be negative",
             optimizer.weight_decay)  # fmt: skip
    for name in ("mu_dtype", "nu_dtype", "ema_dtype"):
        value = getattr(optimizer, name)
        _require(value in DTYPES, f"optimizer.{name}", f"must be one of {', '.join(DTYPES)}", value)
    _require(0 <= optimizer.ema_decay < 1, "optimizer.ema_decay", "must lie in [0, 1)",
             optimizer.ema_decay)  # fmt: skip
    train = config.train
    _require(train.spike_factor >= 0, "train.spike_factor", "must not be negative",
             train.spike_factor)  # fmt: skip
    _require(train.spike_window >= 4, "train.spike_window", "must be at least 4",
             train.spike_window)  # fmt: skip


def _require(holds: bool, name: str, rule: str, value) -> None:
    if not holds:
        raise ValueError(f"{name}: {rule}, got {value}.")


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
    _require_rules(rules, gate, prefix)


def check_sweep(sweep: SweepConfig, prefix: str = "evaluate.sweep.") -> None:
    """Raises ValueError for a sweep that cannot choose; `prefix` as of `check_gate`."""
    rules = (
        ("max_points", sweep.max_points >= 2, "must be at least 2, base and another"),
        ("best_by", sweep.best_by in BEST_BY, f"must be one of {', '.join(BEST_BY)}"),
        ("general_mean", -1 < sweep.general_mean <= 0, _LOSS),
        ("bits_per_byte", sweep.bits_per_byte >= 0, _RISE),
        ("standard_errors", sweep.standard_errors >= 0, "must not be negative, as 1 or 0"),
    )
    _require_rules(rules, sweep, prefix)


def _require_rules(rules, section: GateConfig | SweepConfig, prefix: str) -> None:
    for key, holds, rule in rules:
        if not holds:
            name = key.replace("_", "-") if prefix.startswith("--") else key
            raise ValueError(f"{prefix}{name}: {rule}, got {getattr(section, key)}.")
