"""`ellama build-benchmark`: the e-commerce items of a catalogue on disk, and as lm-eval tasks.

Owns the split of a catalogue by product, or the one that `ellama curate` made, and the directory that
is written. The items themselves are made in `ecommerce`.
"""

import argparse
import collections
import hashlib
import importlib.resources
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ellama_jax import __version__
from ellama_jax.data import catalogue, listings
from ellama_jax.data.curation_output import curated_files, is_curated, read_shard
from ellama_jax.evaluate.ecommerce import LANGUAGES, TASKS, assign_splits, build_benchmark
from ellama_jax.paths import as_path

DEFAULT_HELDOUT_FRAC = 0.2


def write_benchmark(
    dst: str | Path,
    train: Sequence[dict],
    heldout: Sequence[dict],
    *,
    validation_frac: float,
    seed: int,
    items_per_task: int,
    source: dict,
    command: str,
    overwrite: bool = False,
) -> dict:
    """Makes items of held-out listings and writes the benchmark; all of it or nothing.

    DST holds items.jsonl, train.jsonl and heldout.jsonl (listings), benchmark.json (what was made
    of what, and what was dropped and why) and lm_eval/ (the same items as lm-eval tasks).

    Returns:
        The content of benchmark.json.
    """
    dst = Path(dst)
    if dst.exists() and not overwrite:
        raise ValueError(f"DST: must not exist yet, got {dst}; pass --overwrite to replace it.")
    train_ids, heldout_ids = ({r["product_id"] for r in part} for part in (train, heldout))
    assert not train_ids & heldout_ids, f"products on both sides: {sorted(train_ids & heldout_ids)}"
    languages = [code for code in LANGUAGES if any(r["language"] == code for r in heldout)]
    built = build_benchmark(
        heldout, seed=seed, items_per_task=items_per_task, languages=languages, train_listings=train
    )
    if not built.items:
        raise ValueError(f"CATALOGUE: must give at least one item, dropped all: {built.dropped}.")
    items = assign_splits(built.items, validation_frac=validation_frac, seed=seed)
    summary = {
        "items": _count_items(items),
        "dropped": built.dropped,
        "products": {"train": len(train_ids), "heldout": len(heldout_ids)},
        "seed": seed,
        "validation_frac": validation_frac,
        "source": source,
        "command": command,
        "version": __version__,
    }
    _write_directory(dst, items, {"train": train, "heldout": heldout}, summary)
    return summary


def _count_items(items: Iterable[dict]) -> dict[str, dict[str, int]]:
    counts = collections.defaultdict(collections.Counter)
    for item in items:
        counts[item["task"]][item["language"]] += 1
    return {task: dict(by_language) for task, by_language in counts.items()}


def _write_directory(dst: Path, items, parts, summary) -> None:
    """Writes everything beside `dst`, then renames: a broken run leaves nothing behind."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=dst.parent, prefix=f".{dst.name}-"))
    try:
        _write_jsonl(partial / "items.jsonl", items)
        for name, records in parts.items():
            _write_jsonl(partial / f"{name}.jsonl", records)
        _write_lm_eval_tasks(partial / "lm_eval", items)
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (partial / "benchmark.json").write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if dst.exists():
            shutil.rmtree(dst)
        os.replace(partial, dst)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_jsonl(path: Path, records: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_lm_eval_tasks(folder: Path, items: Iterable[dict]) -> None:
    """Writes the test items as lm-eval tasks: `lm_eval --include_path DST/lm_eval`.

    One task a (task, language), with its items beside it. lm-eval resolves data_files from where
    it is started, so it is to be started inside that folder.
    """
    folder.mkdir()
    template = importlib.resources.files("ellama_jax.evaluate.tasks") / "_multiple_choice.yaml"
    (folder / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    groups = collections.defaultdict(list)
    for item in items:
        if item["split"] == "test":
            groups[f"ellama_{item['task']}_{item['language']}"].append(item)
    for name, members in groups.items():
        _write_jsonl(folder / f"{name}.jsonl", members)
        (folder / f"{name}.yaml").write_text(
            f"include: {template.name}\ntask: {name}\ntag: ellama_ecommerce\n"
            f"dataset_kwargs:\n  data_files:\n    test: {name}.jsonl\n",
            encoding="utf-8",
        )


def main_build_benchmark(argv: list[str]) -> None:
    """Runs `ellama build-benchmark`."""
    args = _parse_arguments(argv)
    train, heldout, digest = _split_catalogue(args)
    summary = write_benchmark(
        args.dst,
        train,
        heldout,
        validation_frac=args.validation_frac,
        seed=args.seed,
        items_per_task=args.items_per_task,
        source={
            "name": Path(args.catalogue).name,
            "sha256": digest,
            "listings": len(train) + len(heldout),
        },
        command=shlex.join(["ellama", "build-benchmark", *argv]),
        overwrite=args.overwrite,
    )
    products = summary["products"]
    print(f"{products['heldout']} products held out, {products['train']} left for training.")
    for task in TASKS:
        by_language = summary["items"].get(task) or {}
        counts = ", ".join(f"{language} {count}" for language, count in by_language.items())
        print(f"{task}: {counts or 'no items'}")
        for reason, count in summary["dropped"][task].items():
            print(f"  dropped {count}: {reason}")


def _split_catalogue(args: argparse.Namespace) -> tuple[list[dict], list[dict], str]:
    """Returns listings to train on, those held out, and a hash of where they came from."""
    path = as_path(args.catalogue)
    if not path.is_dir():
        records = listings.load_listings(path)
        frac = DEFAULT_HELDOUT_FRAC if args.heldout_frac is None else args.heldout_frac
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return *catalogue.split_products(records, frac, args.seed), digest
    if not is_curated(path):
        raise ValueError(f"CATALOGUE: must be a file, or a directory of ellama curate, got {path}.")
    if args.heldout_frac is not None:
        raise ValueError(
            f"--heldout-frac: must be left out, for {path} is split already, got "
            f"{args.heldout_frac}; its split.heldout_frac decided."
        )
    files = {split: curated_files(path, "listings", split) for split in ("train", "heldout")}
    digest = hashlib.sha256()
    for file in (*files["train"], *files["heldout"]):
        digest.update(file.read_bytes())
    train, heldout = ([r for file in part for r in read_shard(file)] for part in files.values())
    if not heldout:
        raise ValueError(
            f"CATALOGUE: must hold listings held out, got none in {path}; curate more of them, or "
            "with a larger split.heldout_frac."
        )
    return train, heldout, digest.hexdigest()


def _parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama build-benchmark",
        description="Make the e-commerce tasks from a catalogue of listings, split by product.",
        epilog="example: ellama build-benchmark listings.jsonl runs/benchmark --items-per-task 60",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "catalogue",
        help="listings, JSONL (data/listings.py says which fields), or a directory of ellama curate",
    )
    parser.add_argument("dst", help="directory to make; its train.jsonl is what may be trained on")
    parser.add_argument(
        "--heldout-frac",
        type=float,
        help=f"share of products held out of a file (default {DEFAULT_HELDOUT_FRAC})",
    )
    parser.add_argument(
        "--validation-frac",
        type=float,
        default=0.0,
        help="share of the held-out products whose items only choose alpha (merge-sweep)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items-per-task", type=int, default=60, help="items a task and language")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    return parser.parse_args(argv)
