"""`ellama plan`: does a run fit, how fast can it be at most, what does it cost at least.

Owns the verb, its checks before anything is compiled, and the form of its JSON. The step is compiled
by plan/program.py in a process of its own, for devices that need not be here; wording is
plan/table.py's, the search for a better configuration plan/search.py's.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ellama_jax.config import RunConfig, config_to_mapping, load_config, split_arguments
from ellama_jax.core.paths import as_path, is_remote, write_whole
from ellama_jax.core.progress import progress
from ellama_jax.plan.compile import compile_for, describe
from ellama_jax.plan.cost import (
    check_prices,
    parse_mfu,
    parse_prices,
    parse_write_rate,
    run_cost,
    run_tokens,
    save_cost,
    tokens_per_step,
)
from ellama_jax.plan.launch import env_lines
from ellama_jax.plan.table import PROMISE, block, summary, wrapped
from ellama_jax.plan.targets import (
    Target,
    axis_sizes,
    check_compiler,
    check_sizes,
    parse_targets,
)

FORMAT = 1  # of the JSON; a key changes its meaning only with this number


@dataclass(frozen=True)
class Options:
    """What a user asks beside the configuration.

    Attributes:
        prices: US dollars a chip and hour by `Target.price_key`.
        mfu: what days are told for beside the bound, or None.
        write_rate: GB a second that a host writes of a checkpoint.
        text_dir: where compiled programs are kept, or None.
        max_compiles: after so many a search of one target ends.
        best: how many of a search are shown.
    """

    prices: Mapping[str, float]
    mfu: float | None
    write_rate: float
    text_dir: Path | None
    max_compiles: int
    best: int


def main_plan(argv: list[str]) -> None:
    """Runs the verb `plan`."""
    parser = _parser()
    if "-h" in argv or "--help" in argv:
        parser.parse_args(["--help"])
    config, others = load_config(argv, "plan")
    args = parser.parse_args(others)
    targets = parse_targets(args.topology)
    options = Options(
        prices=parse_prices(args.price),
        mfu=parse_mfu(args.mfu),
        write_rate=parse_write_rate(args.write_rate),
        text_dir=None if args.text_dir is None else _existing_dir(args.text_dir, "--text-dir"),
        max_compiles=_at_least_one(args.max_compiles, "--max-compiles"),
        best=_at_least_one(args.best, "--best"),
    )
    check_prices(options.prices, args.price, [target.price_key for target in targets])
    check_json_path(args.json)
    env = None if args.write_env is None else _read_env(args.write_env, targets)
    check_compiler(targets)
    # This process uses no device: each compilation has its own, and may hide those of this machine.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _check_model(config)
    targets = [_counted(target) for target in targets]
    if args.search:
        records, searches, text = search_targets(config, targets, options)
    else:
        for target in targets:
            check_sizes(config, target)
        records, searches = make_plans(config, targets, options), []
        text = "\n\n".join(block(record) for record in records)
        if len(records) > 1:
            text += f"\n\n{summary(records)}"
    print(f"{text}\n\n{wrapped(PROMISE)}")
    if args.json:
        write_json(as_path(args.json), config, records, searches, argv)
    if env is not None:
        _write_env(Path(args.write_env), env, argv, targets[0], records[0])
    for record in records:
        if record["outcome"] == "failed":
            raise ValueError(
                f"{record['target']}: the compiler failed: {record['message']} "
                f"(full text: {record['text_path']})"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ellama plan",
        description="Compile a run's step for chips that need not be here, and say whether it fits, "
        "how fast it can be at most and what it costs at least.",
        epilog="example:\n  ellama plan --config configs/ellama.py:8b_v5p-256 --topology v5p-256 "
        "\\\n      --price v5p=4.2,v6e=2.7 --json plan.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="configuration file; required")
    parser.add_argument("--config.SECTION.KEY", metavar="VALUE", help="overrides one key")
    parser.add_argument(
        "--topology",
        metavar="NAMES",
        default="",
        help="v5p-128, 2xv6e-256, ..., several between commas; gpu: those of this machine; "
        "cpu-8: fake devices, to try things out",
    )
    parser.add_argument("--price", metavar="USD", help="a chip and hour, or v5p=4.2,v6e=2.7")
    parser.add_argument("--mfu", metavar="FRAC", help="tell days and cost for this MFU too, as 0.4")
    parser.add_argument(
        "--write-rate",
        default="1",
        metavar="GB/S",
        help="what a host writes of a checkpoint; 1 is an assumption, not a measurement",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, micro-batches, remat policies and dtypes of the state, and rank what fits",
    )
    parser.add_argument(
        "--max-compiles", type=int, default=12, metavar="N", help="of a search (12)"
    )
    parser.add_argument("--best", type=int, default=5, metavar="N", help="shown of a search (5)")
    parser.add_argument("--json", metavar="FILE", help="write the plans there too")
    parser.add_argument(
        "--write-env",
        metavar="FILE",
        help="put what is planned (of a search the best) into this env file of tpu_scripts/",
    )
    parser.add_argument("--text-dir", metavar="DIR", help="keep the compiled programs' text there")
    return parser


def make_plans(config: RunConfig, targets: Sequence[Target], options: Options) -> list[dict]:
    """Compiles a run's step for each target.

    Returns:
        a record each, see `plan_record`.
    """
    records = []
    with progress("plan", len(targets), "compiles") as bar:
        for target in targets:
            records.append(make_plan(config, target, options, _noter(bar, target.name)))
            bar.update()
    return records


def search_targets(
    config: RunConfig, targets: Sequence[Target], options: Options
) -> tuple[list[dict], list[dict], str]:
    """Searches for each target.

    Returns:
        the records of all that was compiled, the best of each target first, with the `overrides`
        that lead to them; what was counted; and the text for the user.
    """
    from ellama_jax.plan.search import overrides, search, search_block

    records, searches, blocks = [], [], []
    with progress("plan", len(targets) * options.max_compiles, "compiles") as bar:
        for target in targets:

            def compile_candidate(candidate, changed, target=target):
                record = make_plan(changed, target, options, _noter(bar, target.name))
                bar.update()
                return {**record, "overrides": overrides(config, candidate)}

            facts = describe(target)
            found = search(config, target, facts, options.max_compiles, compile_candidate)
            blocks.append(search_block(found, options.max_compiles, options.best))
            records += found.records
            searches.append({"target": target.name, **found.counts})
    return records, searches, "\n\n".join(blocks)


def _check_model(config: RunConfig) -> None:
    # JAX is imported here and not before the cheaper checks.
    from ellama_jax.train.program import find_model

    find_model(config, needs_checkpoint=False)


def _counted(target: Target) -> Target:
    """Returns a target that knows its devices; those of this machine are counted now."""
    if target.num_devices:
        return target
    return dataclasses.replace(target, num_devices=describe(target)["num_devices"])


def _noter(bar, name: str):
    return lambda phase, secs: bar.note(now=f"{name}: {phase}", secs=f"{secs:.0f}")


def make_plan(config: RunConfig, target: Target, options: Options, on_phase) -> dict:
    """Compiles a run's step for one target and returns its record."""
    with _text_path(target, options.text_dir) as path:
        answer = compile_for(config, target, path, on_phase)
        if answer["outcome"] != "compiled" or options.text_dir is not None:
            answer["text_path"] = str(path)
    return plan_record(config, target, options, answer)


@contextlib.contextmanager
def _text_path(target: Target, folder: Path | None) -> Iterator[Path]:
    """Gives the path of a program's text; what was not asked for stays only where it explains."""
    handle, name = tempfile.mkstemp(
        prefix=f"ellama-plan-{target.name.replace(':', '-')}-", suffix=".txt", dir=folder
    )
    os.close(handle)
    path = Path(name)
    kept = False
    try:
        yield path
        kept = folder is not None or path.read_text()[:9] != "HloModule"
    finally:
        if not kept:
            path.unlink(missing_ok=True)


def plan_record(config: RunConfig, target: Target, options: Options, answer: Mapping) -> dict:
    """Returns one plan as JSON-able data: what was compiled, what it takes, what the run costs.

    Figures are one device's and one step's unless named otherwise; what is not known is None.

    Args:
        answer: of `compile_for`.

    Returns:
        `target`, `hardware`, `shape` (chips along each axis), `num_chips`, `num_devices`,
        `num_slices`, `device_kind`, `versions`; `model`, `num_params`, `step` (what is compiled);
        `outcome` (compiled | no_fit | failed), `message`, `text_path`; `limit_bytes`, `state` (by
        arithmetic), `checkpoint` (`save_cost`), `memory` (`MemorySplit`), `peak_parts` and `largest` (`StepCosts`),
        `out_of_memory` (`OutOfMemory`); `model_flops` (a token: `ModelFlops`), `flops`, `traffic`,
        `collectives` (`CollectiveSum`), `unread` (why these are None), `roofline` (`Roofline`);
        `run` (steps, tokens, days, chip-hours and cost, of the bound and of an assumed MFU);
        `overrides` (of a search), `compile_secs`, `secs`.
    """
    from ellama_jax.model.llama import count_params
    from ellama_jax.model.presets import get_preset

    topology = target.topology
    mesh = axis_sizes(config, target)
    num_chips = target.num_devices // target.devices_per_chip
    step = {
        "global_batch_size": config.data.global_batch_size,
        "seq_len": config.data.seq_len,
        "tokens": tokens_per_step(config),
        "rows_per_device": config.data.global_batch_size / (mesh["data"] * mesh["fsdp"]),
        "num_microbatches": config.train.num_microbatches,
        "mesh": mesh,
        "attention_kernel": answer.get("attention_kernel") or config.model.attention.kernel,
        "remat": answer.get("remat") or config.model.remat,
        "param_dtype": config.model.param_dtype,
        "compute_dtype": config.model.compute_dtype,
        "hosts": answer.get("hosts"),
    }
    keys = ("state", "memory", "out_of_memory", "limit_bytes", "model_flops", "flops", "traffic", "roofline",
            "collectives", "peak_parts", "largest", "unread", "message", "text_path", "device_kind", "versions",
            "compile_secs")  # fmt: skip
    checkpoint = None
    if hosts := answer.get("hosts"):
        checkpoint = save_cost(answer["checkpoint_bytes"], hosts["count"], options.write_rate)
    record = {
        "target": target.name,
        "hardware": topology.generation if topology else None,
        "shape": list(topology.shape) if topology else None,
        "num_chips": num_chips,
        "num_devices": target.num_devices,
        "num_slices": target.num_slices,
        "model": config.model.preset,
        "num_params": count_params(get_preset(config.model.preset)),
        "step": step,
        "outcome": answer["outcome"],
        **{key: answer.get(key) for key in keys},
        "checkpoint": checkpoint,
        "secs": answer["secs"],
        "overrides": [],
    }
    return {**record, "run": _run_record(config, options, target, record)}


def _run_record(config: RunConfig, options: Options, target: Target, record: Mapping) -> dict:
    price, chips = options.prices.get(target.price_key), record["num_chips"]
    bound = assumed = None
    if record["roofline"] is not None:
        roofline = record["roofline"]
        bound = run_cost(config, chips, roofline["step_secs"], price)
        if options.mfu is not None:
            # The same model FLOPs a step, at another share of the peak.
            step_secs = roofline["step_secs"] * roofline["mfu"] / options.mfu
            assumed = run_cost(config, chips, step_secs, price)
    return {
        "steps": config.train.steps,
        "tokens": run_tokens(config),
        "price_usd_per_chip_hour": price,
        "bound": bound,
        "assumed_mfu": options.mfu,
        "assumed": assumed,
    }


def write_json(
    path: Path,
    config: RunConfig,
    records: Sequence[Mapping],
    searches: Sequence[Mapping],
    argv: list[str],
) -> None:
    """Writes plans whole or not at all."""
    from ellama_jax.weights.layout import installed_version, source_commit

    now = datetime.datetime.now(datetime.UTC)
    data = {
        "format": FORMAT,
        "created": now.isoformat(timespec="seconds"),
        "command": shlex.join(["ellama", "plan", *argv]),
        "commit": source_commit(),
        "versions": {name: installed_version(name) for name in ("ellama_jax", "jax", "libtpu")},
        "config": config_to_mapping(config),
        "plans": list(records),
        "searches": list(searches),
    }
    write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def check_json_path(name: str | None) -> None:
    """Raises a ValueError if a JSON file cannot be written there, so before minutes of compiling."""
    if name is None or is_remote(name):
        return
    path = as_path(name)
    if path.is_dir():
        raise ValueError(f"--json: must be a file, got the directory {name}.")
    folder = _existing_dir(path.parent, "--json")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"--json: must be writable, got {name}.")


def _read_env(name: str, targets: Sequence[Target]) -> list[str]:
    if len(targets) > 1 or targets[0].topology is None:
        raise ValueError("--write-env: must be used with one --topology of TPUs.")
    if not Path(name).is_file():
        raise ValueError(f"--write-env: must exist, got {name}; cp tpu_scripts/env.example {name}")
    return Path(name).read_text(encoding="utf-8").splitlines()


def _write_env(
    path: Path, lines: list[str], argv: list[str], target: Target, record: Mapping
) -> None:
    """Puts a plan's slices, configuration and keys into the lines of an env file."""
    if record["outcome"] != "compiled":
        raise ValueError(f"--write-env: {target.name} does not fit; {path} stays as it was.")
    words, _ = split_arguments(argv)
    config = [word for word in words if word.partition("=")[0] in ("--config", "-config")]
    arguments = [word for word in words if word not in config] + record["overrides"]
    values = {
        "ACCELERATOR": re.sub(r"^\d+x", "", target.name),
        "SLICES": str(target.num_slices),
        "CONFIG": config[-1].partition("=")[2],
    }
    write_whole(path, "\n".join(env_lines(lines, values, arguments)) + "\n")
    print(f"wrote {path}: {', '.join(f'{name}={value}' for name, value in values.items())}")


def _existing_dir(path: str | Path, name: str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{name}: must lie in a directory that exists, got {path}; make it first.")
    return path


def _at_least_one(number: int, name: str) -> int:
    if number < 1:
        raise ValueError(f"{name}: must be at least 1, got {number}.")
    return number
