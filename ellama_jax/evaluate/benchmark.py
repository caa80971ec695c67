"""`ellama build-benchmark`: the e-commerce items of a catalogue on disk, and as lm-eval tasks.

Owns the split of a catalogue and its reviews by product, or the one that `ellama curate` made, and
the directory that is written. The items themselves are made in `ecommerce`, the YAML is in `tasks/`.
"""

import argparse
import collections
import hashlib
import importlib.resources
import json
import logging
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ellama_jax import __version__
from ellama_jax.core.limits import parse_json
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path, replace_directory
from ellama_jax.corpus import catalogue, listings
from ellama_jax.corpus.curation_output import curated_files, is_curated, read_shard
from ellama_jax.corpus.reviews import normalise_review, parse_review
from ellama_jax.corpus.splits import group_products, identifiers, split_of
from ellama_jax.corpus.variants import product_of
from ellama_jax.evaluate.ecommerce import (
    CHOICE_TASKS,
    GENERATED_TASKS,
    LANGUAGES,
    assign_splits,
    build_benchmark,
    summarise_items,
)

_log = logging.getLogger(__name__)

DEFAULT_HELDOUT_FRAC = 0.2
# So many items show such a difference between two models (`ecommerce.visible_difference`).
DEFAULT_ITEMS, SOUGHT_DIFFERENCE = 900, 0.03
MAX_BAD_REVIEWS_FRAC = 0.01
_SUMMARY = "benchmark.json"


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
    train_reviews: Sequence[dict] = (),
    heldout_reviews: Sequence[dict] = (),
) -> dict:
    """Makes items of held-out listings and reviews and writes them; all of it or nothing.

    DST holds items.jsonl (multiple choice) and generated.jsonl, train.jsonl and heldout.jsonl
    (listings), the same of reviews where there are any, benchmark.json (what was made of what, and
    what was dropped and why) and lm_eval/ (the same items as lm-eval tasks).

    Returns:
        The content of benchmark.json.
    """
    dst = Path(dst)
    _check_replaceable(dst, overwrite)
    train_ids, heldout_ids = ({r["product_id"] for r in part} for part in (train, heldout))
    assert not train_ids & heldout_ids, f"products on both sides: {sorted(train_ids & heldout_ids)}"
    present = {record["language"] for record in (*heldout, *heldout_reviews)}
    built = build_benchmark(
        heldout,
        seed=seed,
        items_per_task=items_per_task,
        languages=[code for code in LANGUAGES if code in present],
        train_listings=train,
        heldout_reviews=heldout_reviews,
        tasks=(*CHOICE_TASKS, *GENERATED_TASKS),
    )
    if not built.items:
        raise ValueError(
            f"CATALOGUE: must give at least one item, got none of {len(heldout_ids)} products held "
            f"out: {_join_reasons(built.dropped.values())}; give more listings, or a larger "
            "--heldout-frac."
        )
    items = assign_splits(built.items, validation_frac=validation_frac, seed=seed)
    summary = {
        "items": _count_items(items),
        "tells": summarise_items(item for item in items if item["split"] == "test"),
        "missing": _explain_missing(built, bool(heldout_reviews)),
        "dropped": built.dropped,
        "products": {"train": len(train_ids), "heldout": len(heldout_ids)},
        "seed": seed,
        "validation_frac": validation_frac,
        "source": source,
        "command": command,
        "version": __version__,
    }
    parts = {"train": train, "heldout": heldout}
    if train_reviews or heldout_reviews:
        parts |= {"train_reviews": train_reviews, "heldout_reviews": heldout_reviews}
    _write_directory(dst, items, parts, summary)
    return summary


def _check_replaceable(dst: Path, overwrite: bool) -> None:
    """Refuses a place that is taken; only an earlier benchmark is ever replaced."""
    if not dst.exists():
        return
    if not overwrite:
        raise ValueError(f"DST: must not exist yet, got {dst}; pass --overwrite to replace it.")
    if not dst.is_dir() or (any(dst.iterdir()) and not (dst / _SUMMARY).is_file()):
        raise ValueError(
            f"DST: must be a built benchmark to be replaced, got {dst}, which holds no {_SUMMARY}; "
            "name another directory."
        )


def _explain_missing(built, has_reviews: bool) -> dict[str, str]:
    """Says of each task without items what the catalogue lacks for it."""
    made = {item["task"] for item in built.items}
    missing = {}
    for task, reasons in built.dropped.items():
        if task in made:
            continue
        if task == "review_rating" and not has_reviews:
            missing[task] = "no reviews held out"
        else:
            missing[task] = _join_reasons([reasons])
    return missing


def _join_reasons(dropped: Iterable[dict[str, int]]) -> str:
    """Says why records gave no item, the most frequent reason first."""
    total = sum((collections.Counter(reasons) for reasons in dropped), collections.Counter())
    ranked = sorted(total.items(), key=lambda reason: (-reason[1], reason[0]))
    return "; ".join(f"{why} ({count})" for why, count in ranked) or "no records"


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
        _write_jsonl(partial / "items.jsonl", [item for item in items if "choices" in item])
        generated = [item for item in items if "references" in item]
        _write_jsonl(partial / "generated.jsonl", generated)
        for name, records in parts.items():
            _write_jsonl(partial / f"{name}.jsonl", records)
        _write_lm_eval_tasks(partial / "lm_eval", items)
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (partial / _SUMMARY).write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o755)
        replace_directory(partial, dst)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_jsonl(path: Path, records: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_lm_eval_tasks(folder: Path, items: Iterable[dict]) -> None:
    """Writes the test items as lm-eval tasks: `lm_eval --include_path DST`.

    One task a (task, language), its items beside it, with those of the validation split for
    few-shot examples. answers.py is copied, so that the folder works where this package is not.
    """
    folder.mkdir()
    package = importlib.resources.files("ellama_jax.evaluate")
    templates = [file for file in (package / "tasks").iterdir() if file.name.endswith(".yaml")]
    for file in (*templates, package / "answers.py"):
        (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    groups = collections.defaultdict(list)
    for item in items:
        groups[item["task"], item["language"]].append(item)
    for (task, language), members in groups.items():
        tests = [item for item in members if item["split"] == "test"]
        if tests:
            name = f"ellama_{task}_{language}"
            _write_jsonl(folder / f"{name}.jsonl", members)
            told = summarise_items(tests)[task][language]
            (folder / f"{name}.yaml").write_text(
                _task_yaml(name, task, language, members, told), encoding="utf-8"
            )


def _task_yaml(name: str, task: str, language: str, members: Sequence[dict], told: dict) -> str:
    """Writes one task; `metadata` tells n, chance level and the difference that can be seen."""
    if "references" in members[0]:
        template = f"_generated_{members[0]['metric']}.yaml"
    else:
        template = "_graded_choice.yaml" if "credits" in members[0] else "_multiple_choice.yaml"
    lines = [
        f"include: {template}",
        f"task: {name}",
        f"tag: [ellama_ecommerce, ellama_ecommerce_{language}, ellama_{task}]",
        f"dataset_kwargs: {{file: {name}.jsonl}}",
    ]
    if any(item["split"] == "validation" for item in members):
        lines.append("fewshot_split: validation")
    lines.append(f"metadata: {json.dumps({'version': 1.0, **told})}")
    return "\n".join(lines) + "\n"


def main_build_benchmark(argv: list[str]) -> None:
    """Runs `ellama build-benchmark`."""
    args = _parse_arguments(argv)
    _check_arguments(args)
    with owned(args.dst, "ellama build-benchmark"):
        train, heldout, digest = _split_catalogue(args)
        train_reviews, heldout_reviews = _split_reviews(args, train, heldout)
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
                "reviews": len(train_reviews) + len(heldout_reviews),
            },
            command=shlex.join(["ellama", "build-benchmark", *argv]),
            overwrite=args.overwrite,
            train_reviews=train_reviews,
            heldout_reviews=heldout_reviews,
        )
    _print_summary(summary)


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuses what cannot hold before anything is read."""
    frac = args.heldout_frac
    if frac is not None and not 0 < frac <= 1:
        raise ValueError(f"--heldout-frac: must be above 0 and at most 1, got {frac}.")
    if not 0 <= args.validation_frac < 1:
        raise ValueError(f"--validation-frac: must be in [0, 1), got {args.validation_frac}.")
    if args.items_per_task < 1:
        raise ValueError(f"--items-per-task: must be at least 1, got {args.items_per_task}.")
    try:
        re.compile(args.product_pattern or "")
    except re.error as error:
        raise ValueError(
            f"--product-pattern: must be a regular expression, got {args.product_pattern!r}: {error}."
        ) from error
    _check_replaceable(Path(args.dst), args.overwrite)


def _print_summary(summary: dict) -> None:
    products = summary["products"]
    print(f"{products['heldout']} products held out, {products['train']} left for training.")
    for task in (*CHOICE_TASKS, *GENERATED_TASKS):
        by_language = summary["items"].get(task) or {}
        counts = ", ".join(f"{language} {count}" for language, count in by_language.items())
        print(f"{task}: {counts or 'no items: ' + summary['missing'][task]}")
        for reason, count in summary["dropped"][task].items() if counts else ():
            print(f"  dropped {count}: {reason}")
    blurred = [
        told["visible_difference"]
        for task in CHOICE_TASKS
        for told in summary["tells"].get(task, {}).values()
        if told["visible_difference"] > SOUGHT_DIFFERENCE
    ]
    if blurred:
        print(
            f"{len(blurred)} multiple-choice tests have too few items to show a difference of 3 "
            f"points between two models; the smallest shows {100 * max(blurred):.0f}."
        )


def _split_catalogue(args: argparse.Namespace) -> tuple[list[dict], list[dict], str]:
    """Returns listings to train on, those held out, and a hash of where they came from."""
    path = as_path(args.catalogue)
    if not path.is_dir():
        records = _join_products(_clean(listings.load_listings(path)), args.product_pattern)
        frac = DEFAULT_HELDOUT_FRAC if args.heldout_frac is None else args.heldout_frac
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return *catalogue.split_products(records, frac, args.seed), digest
    if not is_curated(path):
        raise ValueError(f"CATALOGUE: must be a file, or a directory of ellama curate, got {path}.")
    for option in ("heldout_frac", "product_pattern", "reviews"):
        if (value := getattr(args, option)) is not None:
            raise ValueError(
                f"--{option.replace('_', '-')}: must be left out, for {path} is split already, got "
                f"{value}; its recipe decided."
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


def _clean(records: Sequence[dict]) -> list[dict]:
    """Cleans listings as `curate` does; one whose title was markup only is left out."""
    cleaned = []
    for record in records:
        try:
            cleaned.append(listings.clean_listing(record)[0])
        except ValueError as error:
            _log.warning("left out %r: %s", record["title"][:60], error)
    return cleaned


def _join_products(records: Sequence[dict], pattern: str | None) -> list[dict]:
    """Gives variants, and listings that share a GTIN or model number, the same product id."""
    if pattern is not None:
        records = [record | {"product_id": product_of(record, pattern)} for record in records]
    pairs = [(r["product_id"], name) for r in records if r["product_id"] for name in identifiers(r)]
    labels = group_products(pairs)
    return [
        record | {"product_id": labels.get(record["product_id"], record["product_id"])}
        for record in records
    ]


def _split_reviews(args: argparse.Namespace, train, heldout) -> tuple[list[dict], list[dict]]:
    """Returns reviews to train on and those held out: a review is where its product is."""
    path = as_path(args.catalogue)
    if path.is_dir():
        texts = [r for f in curated_files(path, "documents", "heldout") for r in read_shard(f)]
        found = [_review_of(record) for record in texts if record["domain"] == "ecommerce"]
        return [], [review for review in found if review is not None]
    if args.reviews is None:
        return [], []
    sides = {r["product_id"]: False for r in train} | {r["product_id"]: True for r in heldout}
    frac = DEFAULT_HELDOUT_FRAC if args.heldout_frac is None else args.heldout_frac
    parts = {True: [], False: []}
    for review in _load_reviews(as_path(args.reviews)):
        if review["product_id"] and args.product_pattern is not None:
            review["product_id"] = product_of(review, args.product_pattern)
        held = sides.get(review["product_id"])
        if held is None:  # of a product that the catalogue does not have
            group = review["product_id"] or f"{review['title']} {review['text']}"
            held = split_of(group, frac, args.seed) == "heldout"
        parts[held].append(review)
    return parts[False], parts[True]


def _review_of(record: dict) -> dict | None:
    """Reads a review back from its document; None if the document is something else."""
    try:
        fields = parse_review(record["text"], record["language"])
    except ValueError:
        return None
    if fields["rating"] is None or not fields["text"]:
        return None
    return fields | {key: record[key] for key in ("product_id", "language", "source")}


def _load_reviews(path: Path) -> list[dict]:
    """Reads reviews as corpus/reviews.py describes them, one JSON object a line."""
    reviews, bad = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                reviews.append(normalise_review(parse_json(line), source=path.stem))
            except ValueError as error:
                bad.append(f"line {number}: {error}")
    if len(bad) > MAX_BAD_REVIEWS_FRAC * (len(reviews) + len(bad)):
        raise ValueError(
            f"--reviews: at most {MAX_BAD_REVIEWS_FRAC:.0%} of the lines may be broken, got "
            f"{len(bad)} of {len(reviews) + len(bad)} in {path}; the first is {bad[0]}"
        )
    return reviews


def _parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama build-benchmark",
        description="Make the e-commerce tasks from a catalogue of listings, split by product.",
        epilog="example: ellama build-benchmark listings.jsonl runs/benchmark --items-per-task 60",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "catalogue",
        help="listings, JSONL (corpus/listings.py says which fields), or a directory of ellama curate",
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
    parser.add_argument(
        "--items-per-task",
        type=int,
        default=DEFAULT_ITEMS,
        help=f"items a task and language, at most (default {DEFAULT_ITEMS}: shows 3 points)",
    )
    parser.add_argument("--reviews", help="reviews of a file's products, JSONL (corpus/reviews.py)")
    parser.add_argument(
        "--product-pattern",
        help="regular expression; its first group is what of a variant's id is the product's",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    return parser.parse_args(argv)
