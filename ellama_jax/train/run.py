"""A run before it runs: its configuration with everything it names, found and checked.

Owns every check that needs no device. What happens then is loop.py's part.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ellama_jax.config import RunConfig, config_to_mapping
from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import as_path, copy_file, is_remote
from ellama_jax.core.tree import flatten_paths
from ellama_jax.evaluate.scorecard import check_tasks, gather_questions, limit_each
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.held_out import HeldOut
from ellama_jax.tokens.loader import Loader, open_sources
from ellama_jax.tokens.tokenizer import Tokenizer, check_fits, load_tokenizer
from ellama_jax.train.goodput import GOODPUT_FILE, read_goodput
from ellama_jax.train.kept import RunFiles
from ellama_jax.train.metrics import METRICS_FILE, known_metrics, read_metrics
from ellama_jax.train.program import find_model
from ellama_jax.train.tracking import check_wandb
from ellama_jax.weights.layout import CheckpointInfo, check_writable, weights_identity
from ellama_jax.weights.verdict import check_verified

if TYPE_CHECKING:
    from ellama_jax.tokens.streaming import Stream


@dataclasses.dataclass(frozen=True)
class Run:
    """A configuration with everything it names, found and checked before any device is used.

    `held_out` is what is evaluated during the run, `questions` the items and texts that are scored,
    `began` when the run started (UNIX time).
    """

    config: RunConfig
    workdir: Path
    model: LlamaConfig
    base: CheckpointInfo | None
    tokenizer: Tokenizer
    tokenizer_dir: Path
    loader: "Loader | Stream"
    held_out: HeldOut | None
    began: float
    questions: tuple[list[dict], list[dict]] | None = None

    @functools.cached_property
    def base_identity(self) -> str | None:
        """The content of the weights it begins from; None where they are random."""
        return weights_identity(self.base.path) if self.base else None


def prepare_run(
    config: RunConfig,
    workdir: str | os.PathLike,
    *,
    allow_unverified: bool = False,
    began: float | None = None,
) -> Run:
    """Finds and checks everything that needs no device.

    Args:
        config: what to train.
        workdir: where, on a disk or in a bucket; made if it is not there.
        allow_unverified: start from a checkpoint that failed the conversion gate all the same.
        began: when this start of the run began, UNIX time; None: now.

    Raises:
        ValueError: naming the key and what must hold.
    """
    began = time.time() if began is None else began
    workdir = as_path(workdir)
    model, base = find_model(config)
    if base is None:
        # The tokenizer then comes with the windows: random weights have none of their own.
        tokenizer_dir = as_path(config.data.windows_dir) / "tokenizer"
    else:
        tokenizer_dir = base.tokenizer_dir
    tokenizer = load_tokenizer(tokenizer_dir)
    check_fits(tokenizer, model.vocab_size)
    loader = _make_loader(config, tokenizer)
    held_out = _find_held_out(config, loader, tokenizer)
    questions = _find_questions(config)
    _check_best_metric(config, loader, held_out)
    if config.train.wandb_project:
        check_wandb()
    if base is not None:
        check_verified(base, allow_unverified=allow_unverified)
    _make_workdir(workdir)
    return Run(
        config, workdir, model, base, tokenizer, tokenizer_dir, loader, held_out, began, questions
    )


def _make_loader(config: RunConfig, tokenizer: Tokenizer) -> "Loader | Stream":
    if config.data.seqio_mixture:
        # Imports TensorFlow, which no other training needs.
        from ellama_jax.tokens.streaming import Stream

        return Stream(config.data, tokenizer)
    loader = Loader(open_sources(config.data, tokenizer.fingerprint), config.data)
    loader.check_repetition(config.train.steps)
    return loader


def _find_held_out(config: RunConfig, loader, tokenizer: Tokenizer) -> HeldOut | None:
    if not config.evaluate.windows_dir:
        return None
    rows = config.evaluate.batches * config.data.global_batch_size
    directory, seq_len = config.evaluate.windows_dir, config.data.seq_len
    held_out = HeldOut(directory, seq_len, rows, tokenizer.fingerprint)
    held_out.check_apart(source.windows for source in loader.sources if hasattr(source, "windows"))
    return held_out


def _find_questions(config: RunConfig) -> tuple[list[dict], list[dict]] | None:
    """Returns the items and texts to score during the run, no more than asked for; None if none."""
    evaluate = config.evaluate
    if not evaluate.tasks:
        return None
    tasks = check_tasks(evaluate.tasks, "evaluate.tasks")
    needs = (
        ("benchmark_dir", set(tasks) - {"mmlu", "bits_per_byte"}, "e-commerce tasks"),
        ("texts_path", "bits_per_byte" in tasks, "bits_per_byte"),
    )
    for key, needed, what in needs:
        if needed and not getattr(evaluate, key):
            raise ValueError(f"evaluate.{key}: must be given for {what}, got none.")
    items, texts = gather_questions(
        tasks, benchmark_dir=evaluate.benchmark_dir, texts_path=evaluate.texts_path,
        split=evaluate.split, limit=None,
    )  # fmt: skip
    items = [item for item in items if "choices" in item]  # others are answered by generating
    general = [item for item in items if item["task"] == "mmlu"]
    items = [item for item in items if item["task"] != "mmlu"]
    if not items and set(tasks) - {"mmlu", "bits_per_byte"}:
        raise ValueError(
            f"evaluate.split: must be a split that {evaluate.benchmark_dir} has items of, got "
            f"{evaluate.split}; build it with --validation-frac, or take evaluate.split=test."
        )
    items = limit_each(items, evaluate.items_per_task, ("task", "language"))
    items += limit_each(general, evaluate.mmlu_per_language, ("language",))
    if not items and not texts:
        raise ValueError(f"evaluate.tasks: must give a question, got none for {evaluate.tasks}.")
    return items, limit_each(texts, evaluate.texts_per_source, ("domain", "language"))


def _check_best_metric(config: RunConfig, loader, held_out: HeldOut | None) -> None:
    known = known_metrics(source_names(loader), held_out.names if held_out else ())
    if config.checkpoint.best_metric not in ("", *known):
        raise ValueError(
            f"checkpoint.best_metric: must be one of {', '.join(known)}, or empty, "
            f"got {config.checkpoint.best_metric}."
        )


def source_names(loader: "Loader | Stream") -> list[str]:
    """Returns `<domain>/<language>` by source id; several sets of one language share a name."""
    return [f"{source.domain}/{source.language}" for source in loader.sources]


def _make_workdir(workdir: Path) -> None:
    if is_remote(workdir):
        check_writable(workdir)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--workdir: must be a directory that can be made, got {workdir}: {error.strerror}."
        ) from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"--workdir: must be writable, got {workdir}.")


def set_aside_unreadable(workdir: Path) -> None:
    """Moves files beside the checkpoints that cannot be read out of the way; for one process of a job.

    The run needs none of them: it says so, and begins them again. `NAME` becomes `NAME.damaged`.
    """
    readers = {
        METRICS_FILE: lambda: read_metrics(workdir),
        GOODPUT_FILE: lambda: read_goodput(workdir),
        "config.json": lambda: flatten_paths(parse_json((workdir / "config.json").read_text())),
    }
    for name, read in readers.items():
        path = workdir / name
        if not path.exists():
            continue
        try:
            read()
        except (ValueError, AttributeError) as error:
            aside = path.with_name(f"{name}.damaged")
            copy_file(path, aside)
            path.unlink()
            said = f"{path}: cannot be read ({str(error).partition(chr(10))[0][:160]}); "
            print(f"{said}set aside as {aside.name}, and begun again.", file=sys.stderr)


def write_config(run: Run, files: RunFiles) -> None:
    """Writes config.json; for a resumed run whose configuration changed, names the keys."""
    path = run.workdir / "config.json"
    now = parse_json(json.dumps(config_to_mapping(run.config)))
    if path.exists():
        before, after = flatten_paths(parse_json(path.read_text())), flatten_paths(now)
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                name = key.replace("/", ".")
                print(
                    f"{name}: was {before.get(key)} before, now {after.get(key)}.", file=sys.stderr
                )
    files.write(path.name, json.dumps(now, indent=2) + "\n")
