"""`ellama curate`: a marketplace's raw records to clean documents, on this machine or on a cluster.

Owns the verb: what is checked before any work, the run, and what is written and said at its end. The
pipeline itself is corpus/curation.py.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ellama_jax
from ellama_jax.config import load_values
from ellama_jax.core.beam_runner import LOCAL_RUNNER, check_beam_options
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import (
    as_path,
    is_remote,
    remove_left_over,
    remove_tree,
    replace_directory,
    write_whole,
)
from ellama_jax.core.progress import progress
from ellama_jax.corpus.curation_audit import measure_curation
from ellama_jax.corpus.curation_output import REPORT_FILE, read_shard, remove_partial
from ellama_jax.corpus.origins import resolve_origin
from ellama_jax.corpus.readers import Part, find_parts
from ellama_jax.corpus.recipe import Recipe, recipe_from_mapping
from ellama_jax.corpus.records import BadRecord
from ellama_jax.evaluate.harness import load_mmlu
from ellama_jax.report.curation_text import describe_curation

EVALUATION_SETS = {"mmlu": lambda: load_mmlu(limit=None, seed=0, max_chars=10**9)}
_RECORDS_TRIED = 1000  # of each source, before the pipeline is started
_STARTED_FILE = "curation.started"  # what lies beside it is ours and may be removed


def main_curate(argv: list[str]) -> None:
    """Runs the verb `curate`."""
    parser = argparse.ArgumentParser(
        prog="ellama curate",
        description="Raw listings, reviews and pages -> clean, deduplicated, decontaminated "
        "documents, split by product. Other options than these go to Beam.",
        epilog="example:\n  ellama curate --config configs/data/catalogue.py --out curated\n"
        "  ellama curate --config shop.py --out gs://BUCKET/curated --runner=DataflowRunner \\\n"
        "      --project=P --region=R --temp_location=gs://BUCKET/tmp",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="what to do, see configs/data/")
    parser.add_argument("--config.KEY", metavar="VALUE", help="overrides one key")
    parser.add_argument("--out", required=True, metavar="DIR", help="local or gs://")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished DIR")
    if "-h" in argv or "--help" in argv:
        parser.parse_args(["--help"])
    values, others = load_values(argv, "curate")
    args, beam_options = parser.parse_known_args(others)
    with owned(args.out, "ellama curate"):
        report = curate(
            recipe_from_mapping(values),
            args.out,
            overwrite=args.overwrite,
            command=shlex.join(["ellama", "curate", *argv]),
            beam_options=beam_options,
        )
    print(describe_curation(measure_curation(report)))


def curate(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    command: str,
    beam_options: list[str] | None = None,
) -> dict:
    """Reads every source of a recipe and writes its documents.

    Equal recipes, inputs and versions give equal bytes, whatever was interrupted before. Nothing is
    at `out` before all of it is (in a bucket: before its curation.json is).

    Args:
        recipe: what is to be done.
        out: directory to make: documents/{train,heldout}/, listings/{train,heldout}/ and
            dead_letters/ of gzipped JSONL, and curation.json.
        overwrite: replace what an earlier run left there.
        command: for curation.json.
        beam_options: Beam's own; its in-process runner by default.

    Returns:
        The content of curation.json.

    Raises:
        ValueError: before any work for what can be known then; else if a source holds too many bad
            records.
    """
    options = check_beam_options(beam_options or [], ("--config", "--out", "--overwrite"))
    out = as_path(out)
    remove_left_over(out)
    _check_absent(out, overwrite)
    cache_dir = Path(recipe.cache_dir) if recipe.cache_dir else _default_cache(out)
    recipe, notes = _resolve_origins(recipe, cache_dir)
    parts = _find_all_parts(recipe)
    if LOCAL_RUNNER not in options:
        _check_shared_paths([os.fspath(out.parent), *(part.path for _, part in parts)])
    _try_first_records(recipe, parts)
    texts = _read_evaluation_texts(recipe)
    stage = out if is_remote(out) else out.with_name(f".{out.name}.partial")
    _start(stage, command)
    with _removed_if_interrupted(stage):
        index_path = _write_index(recipe, texts, stage / "tallies")
        _run(recipe, parts, stage, index_path, options)
        report = _report(recipe, parts, stage, notes, command)
    _check_bad_share(recipe, report, stage)
    remove_tree(stage / "tallies")
    write_whole(stage / REPORT_FILE, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (stage / _STARTED_FILE).unlink()
    _publish(stage, out)
    return report


def _check_shared_paths(paths: list[str]) -> None:
    """Refuses what a worker in another directory would look for in vain."""
    for path in paths:
        if not is_remote(path) and not os.path.isabs(path) and os.path.exists(path):
            raise ValueError(
                f"{path}: must be absolute or in a bucket where workers of a cluster run, got a "
                "relative path."
            )


def _check_absent(out: Path, overwrite: bool) -> None:
    if (out / REPORT_FILE).exists():
        if not overwrite:
            raise ValueError(f"{out}: must not exist yet, got a finished curation; --overwrite it.")
    elif (out / _STARTED_FILE).exists():
        return
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: must be new or empty, got something that is no curation of ours.")


def _start(stage: Path, command: str) -> None:
    """Makes an empty directory that is known for ours, at every moment, until it is finished."""
    if not is_remote(stage):
        _check_left_over(stage)
    stage.mkdir(parents=True, exist_ok=True)
    write_whole(stage / _STARTED_FILE, command + "\n")
    (stage / REPORT_FILE).unlink(missing_ok=True)
    for entry in stage.iterdir():
        if entry.is_dir():
            remove_tree(entry)
        elif entry.name != _STARTED_FILE:
            entry.unlink()


def _check_left_over(stage: Path) -> None:
    """Refuses a place of work that another one made, or that leads to another one's."""
    # A finished one has no mark any more, until it is renamed.
    marked = any((stage / name).is_file() for name in (_STARTED_FILE, REPORT_FILE))
    if stage.is_symlink() or (stage.exists() and not marked and list(stage.iterdir())):
        raise ValueError(
            f"{stage}: must not exist, or be left over from ellama curate, got something else; move it "
            "away."
        )


@contextlib.contextmanager
def _removed_if_interrupted(stage: Path) -> Iterator[None]:
    """Leaves nothing of what ended too early: the next run begins anew anyhow."""
    try:
        yield
    except BaseException:
        remove_tree(stage)
        raise


def _default_cache(out: Path) -> Path:
    if is_remote(out):
        return Path.home() / ".cache" / "ellama_jax"
    return out.with_name(f"{out.name}-sources")


def _resolve_origins(recipe: Recipe, cache_dir: Path) -> tuple[Recipe, list[str]]:
    """Makes files of the sources that are none yet."""
    sources, notes = {}, []
    for name, source in recipe.sources.items():
        resolved = [resolve_origin(path, cache_dir) for path in source.paths]
        sources[name] = dataclasses.replace(source, paths=tuple(path for path, _ in resolved))
        notes += [note for _, note in resolved if note]
    return dataclasses.replace(recipe, sources=sources), notes


def _find_all_parts(recipe: Recipe) -> list[tuple[str, Part]]:
    parts = []
    for name, source in recipe.sources.items():
        try:
            found = find_parts(source.paths, source.format, data_dir=source.data_dir or None)
        except ValueError as error:
            raise ValueError(f"sources.{name}.paths: {error}") from error
        parts += [(name, part) for part in found]
    return parts


def _try_first_records(recipe: Recipe, parts: list[tuple[str, Part]]) -> None:
    """Refuses a source whose first records are bad, before hours are spent on all of them."""
    from ellama_jax.corpus.curation_records import SourceReader

    for name, source in recipe.sources.items():
        mine = [part for of, part in parts if of == name]
        try:
            reader = SourceReader(name, recipe)
        except ValueError as error:
            raise ValueError(f"sources.{name}: {error}") from error
        outcomes = itertools.chain.from_iterable(map(reader.read, mine))
        tried = list(itertools.islice(outcomes, _RECORDS_TRIED))
        if not tried:
            raise ValueError(f"sources.{name}: must hold at least one record, got none.")
        missing = reader.missing_paths(mine, _RECORDS_TRIED)
        bad = [outcome for outcome in tried if isinstance(outcome, BadRecord)]
        if len(bad) > source.max_bad_frac * len(tried):
            hint = f" (no record has {', '.join(missing)})" if missing else ""
            raise ValueError(
                f"sources.{name}: at most {source.max_bad_frac:.1%} of the records may be bad, got "
                f"{len(bad)} of the first {len(tried)}; {bad[0].place}: {bad[0].reason}{hint}"
            )
        if missing:
            print(
                f"sources.{name}.fields: none of the first {len(tried)} records has "
                f"{', '.join(missing)}.",
                file=sys.stderr,
            )


def _read_evaluation_texts(recipe: Recipe) -> list:
    from ellama_jax.corpus.contamination import items_to_eval_texts, read_eval_texts
    from ellama_jax.corpus.documents import find_files

    texts = []
    for name in recipe.decontamination.sets:
        if name not in EVALUATION_SETS:
            known = ", ".join(EVALUATION_SETS)
            raise ValueError(f"decontamination.sets: must be among {known}, got {name!r}.")
        texts += items_to_eval_texts(EVALUATION_SETS[name](), name)
    for path in find_files(recipe.decontamination.files, "decontamination.files"):
        texts += read_eval_texts(path)
    return texts


def _write_index(recipe: Recipe, texts: list, work: Path) -> str:
    """Writes the n-grams of all evaluation texts; returns their path, or "" if there are none."""
    from ellama_jax.corpus.contamination import build_index, save_index

    if not texts:
        return ""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "evaluation.npz"
    save_index(build_index(texts, n=recipe.decontamination.ngram), path)
    return os.fspath(path)


def _run(recipe: Recipe, parts: list, stage: Path, index_path: str, options: list[str]) -> None:
    from ellama_jax.corpus import curation

    with _progress_of_parts(len(parts), LOCAL_RUNNER in options):
        curation.run_pipeline(recipe, parts, os.fspath(stage), index_path, options)


@contextlib.contextmanager
def _progress_of_parts(total: int, shown: bool) -> Iterator[None]:
    """Shows how many parts this process has read; another runner's workers it cannot see."""
    from ellama_jax.corpus import curation

    curation.PARTS_READ.clear()
    done = threading.Event()
    with progress("reading", total=total, unit="parts", shown=shown) as bar:
        seen = 0

        def watch() -> None:
            nonlocal seen
            while not done.wait(0.5):
                now = curation.PARTS_READ.total()
                bar.update(now - seen)
                seen = now

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            bar.update(curation.PARTS_READ.total() - seen)


def _report(recipe: Recipe, parts: list, stage: Path, notes: list[str], command: str) -> dict:
    work = {
        name: read_shard(stage / "tallies" / f"{name}.jsonl.gz")
        for name in ("counts", "files", "examples")
    }
    matches = stage / "tallies" / "matches.jsonl.gz"
    counts: dict[str, dict] = {name: {} for name in recipe.sources}
    for (source, language, what), number in sorted(work["counts"]):
        counts[source].setdefault(language, {})[what] = number
    inputs = sorted({(name, str(part.path)) for name, part in parts})
    return {
        "version": ellama_jax.__version__,
        "command": command,
        "recipe": dataclasses.asdict(recipe),
        "notes": notes,
        "inputs": [{"source": name, "path": path} for name, path in inputs],
        "counts": counts,
        "evaluation_text": read_shard(matches) if matches.exists() else [],
        "examples": sorted(work["examples"], key=lambda e: (e["source"], e["reason"], e["place"])),
        "files": sorted(work["files"], key=lambda file: file["name"]),
    }


def _check_bad_share(recipe: Recipe, report: dict, stage: Path) -> None:
    for name, source in recipe.sources.items():
        by_language = report["counts"][name].values()
        bad, read = (sum(counts.get(what, 0) for counts in by_language) for what in ("bad", "read"))
        if bad > source.max_bad_frac * read:
            raise ValueError(
                f"sources.{name}: at most {source.max_bad_frac:.1%} of the records may be bad, got "
                f"{bad:,} of {read:,}; {stage / 'dead_letters'} names each with its reason."
            )


def _publish(stage: Path, out: Path) -> None:
    """Puts a finished directory in its place; what was there is gone only when it is."""
    if stage == out:
        return
    remove_partial(stage)
    replace_directory(stage, out)
