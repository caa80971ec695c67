"""The verb `prepare`: documents of any number to token windows, restartable at any moment.

Owns its phases. Each writes whole files into a hidden directory beside the sets; whoever starts
again goes on with what is there. (1) Parts of the input are tokenised once and lie as sorted runs
(tokens/shuffle.py). (2) Chunks, equal ranges of the shuffled documents of a set, are packed
(tokens/packing.py) and become a shard each (tokens/windows.py). (3) All sets are renamed into place.
Memory holds one part's run or one chunk for each worker, whatever the input's size.
"""

import argparse
import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ellama_jax.core.paths import as_path, file_bytes, local_path, write_whole
from ellama_jax.core.progress import mebibytes, progress
from ellama_jax.corpus.documents import (
    DOMAINS,
    file_sha256,
    find_files,
    read_part,
    short_names,
)
from ellama_jax.tokens.packing import fill_windows, plan_windows
from ellama_jax.tokens.shuffle import read_chunk
from ellama_jax.tokens.tasks import Corpus
from ellama_jax.tokens.tokenising import (
    COUNTS,
    PART_BYTES,
    RUN_TOKENS,
    Input,
    Part,
    Settings,
    cut_parts,
    is_tokenised,
    read_tallies,
    same_name,
    set_key,
    tokenise_part,
)
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.tokens.windows import (
    MANIFEST_FILE,
    Manifest,
    check_absent,
    finish_set,
    make_manifest,
    move_into_place,
    read_manifest,
    shard_name,
    window_set_name,
    write_shard,
)
from ellama_jax.tokens.workdir import WorkDir
from ellama_jax.tokens.workers import Workers

# Raise it when the same input gives other windows: unfinished work is then begun again.
_FORMAT = 1
CHUNK_TOKENS = 2**25  # of a shard, about; what a worker that packs holds


def prepare(
    *,
    documents: Sequence[str | os.PathLike] = (),
    listings: Sequence[str | os.PathLike] = (),
    corpora: Sequence[Corpus] = (),
    tokenizer_dir: str | os.PathLike,
    window_length: int,
    out: str | os.PathLike,
    seed: int,
    by_source: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    command: str,
) -> list[Manifest]:
    """Writes documents as window sets, one for each domain and language.

    All input is read and checked before a set appears. The same call again goes on where one was
    interrupted, and ends with the same bytes; so do other numbers of workers and orders of files.

    Args:
        documents: files, globs or directories of documents JSONL, see `find_files`.
        listings: the same of listing records.
        corpora: SeqIO tasks and TFDS datasets.
        tokenizer_dir: of the model to be trained.
        window_length: tokens in a window.
        out: directory of the sets; each is `<domain>-<language>` or, with `by_source`,
            `<domain>-<language>-<source>`.
        seed: of aspect order and shuffles, 0 or above.
        by_source: one set for each source.
        overwrite: replace finished sets of the same names.
        workers: processes; by default one for each core.
        command: for the manifests.

    Returns:
        The manifests, by name.

    Raises:
        ValueError: for a broken line, no input, an unfit tokenizer, or a set that exists.
        OSError: if something cannot be read or written; what is done is kept for the next call.
    """
    if not documents and not listings and not corpora:
        raise ValueError("--documents or --listings: must name at least one file, got none.")
    _check_numbers(window_length, seed, workers)
    workers = workers or os.cpu_count() or 1
    tokenizer = load_tokenizer(tokenizer_dir)
    out = local_path(out, "--out")
    files = find_files(documents, "--documents")
    listing_files = find_files(listings, "--listings")
    settings = Settings(
        os.fspath(tokenizer_dir), tokenizer.fingerprint, window_length, seed, by_source
    )
    with _saying_where_room_is_missing(out), WorkDir.parent(out), _spool(corpora, out) as spooled:
        inputs = _describe_inputs([*files, *spooled], listing_files, workers)
        key = _run_key(settings, inputs)
        if not overwrite and (finished := _find_finished(out, key)):
            return finished
        _check_targets(inputs, settings, out, overwrite)
        with WorkDir(out, key) as work:
            return _run_phases(work, inputs, settings, tokenizer, overwrite, workers, command)


def _run_phases(
    work: WorkDir,
    inputs: list[Input],
    settings: Settings,
    tokenizer: Tokenizer,
    overwrite: bool,
    workers: int,
    command: str,
) -> list[Manifest]:
    parts = cut_parts(inputs)
    with Workers(workers, len(parts)) as pool:
        sets = _tokenise_all(pool, work, parts, settings)
        if not work.is_complete():
            for name in sets:
                check_absent(work.out / name, overwrite)
            chunks = _pack_all(pool, work, sets, settings)
            run = {"sha256": work.key, "sets": sorted(sets)}
            for name, tally in sorted(sets.items()):
                directory = work.directory("sets") / name
                manifest = _manifest(tally, chunks[name], inputs, settings, tokenizer, command, run)
                finish_set(directory, manifest)
            work.mark_complete()
    for name in sorted(sets):
        move_into_place(work.directory("sets") / name, work.out / name)
    return [read_manifest(work.out / name) for name in sorted(sets)]


@contextlib.contextmanager
def _saying_where_room_is_missing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a write that failed does not name its file
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"--out {out}: must be on a disk with room, got no space left on device; make room and "
            "start again, what is done is kept."
        ) from error


# --- the input -----------------------------------------------------------------------------------


def _check_numbers(window_length: int, seed: int, workers: int | None) -> None:
    if window_length < 2:
        raise ValueError(f"--window-length: must be at least 2, got {window_length}.")
    if seed < 0:
        raise ValueError(f"--seed: must be 0 or above, got {seed}.")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers: must be at least 1, got {workers}.")


@contextlib.contextmanager
def _spool(corpora: Sequence[Corpus], out: Path) -> Iterator[list[str]]:
    """Writes the texts of SeqIO tasks and TFDS datasets as documents JSONL; yields the files."""
    if not corpora:
        yield []
        return
    from ellama_jax.tokens import tasks

    identity = json.dumps([[*corpus, tasks.corpus_identity(corpus)] for corpus in corpora])
    with WorkDir(out, hashlib.sha256(identity.encode()).hexdigest(), ".spool-") as work:
        try:
            files = [path for corpus in corpora for path in _spool_corpus(tasks, corpus, work)]
        except ValueError:
            work.discard()  # what was asked for is to blame, and will be another next time
            raise
        yield files


def _spool_corpus(tasks, corpus: Corpus, work: WorkDir) -> list[str]:
    fields = {"domain": corpus.domain, "language": corpus.language, "source": corpus.source}
    files, left_out = [], 0
    shards = tasks.text_shards(corpus)
    with progress(f"reading {corpus.name}", total=len(shards), unit="shards") as bar:
        for name, texts in shards:
            path = work.directory("documents") / f"{name}.jsonl"
            files.append(os.fspath(path))
            if not path.exists():
                left_out += _write_documents(path, texts(), fields)
            bar.update(1)
    if left_out:
        print(f"{corpus.name}: left out {left_out:,} examples without text")
    return [path for path in files if os.path.getsize(path)]


def _write_documents(path: Path, texts: Iterable[str], fields: dict) -> int:
    partial, blank = path.with_name(f".{path.name}-{os.getpid()}"), 0
    with partial.open("w", encoding="utf-8") as file:
        for text in texts:
            if text.strip():
                line = {"text": text, **fields, "product_id": None}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                blank += 1
    os.replace(partial, path)
    return blank


def _describe_inputs(files: list[str], listing_files: list[str], workers: int) -> list[Input]:
    """Hashes all files, in an order that depends on their content only."""
    from concurrent.futures import ThreadPoolExecutor

    paths = [*files, *listing_files]
    sizes = [file_bytes(as_path(path)) for path in paths]
    with (
        ThreadPoolExecutor(workers) as threads,
        progress("reading input", total=mebibytes(sum(sizes)), unit="MiB") as bar,
    ):
        digests = []
        for size, digest in zip(sizes, threads.map(file_sha256, paths), strict=True):
            digests.append(digest)
            bar.count_bytes(size)
    is_listings = [False] * len(files) + [True] * len(listing_files)
    rows = zip(paths, short_names(paths), is_listings, digests, sizes, strict=True)
    return sorted((Input(*row) for row in rows), key=lambda item: (item.sha256, item.name))


def _run_key(settings: Settings, inputs: Sequence[Input]) -> str:
    import ellama_jax

    decides = [_FORMAT, ellama_jax.__version__, settings[1:], PART_BYTES, RUN_TOKENS, CHUNK_TOKENS]
    files = [[item.name, item.is_listings, item.sha256] for item in inputs]
    return hashlib.sha256(json.dumps([decides, files]).encode()).hexdigest()


def _find_finished(out: Path, key: str) -> list[Manifest]:
    """Returns the manifests of a run that ended, if all its sets are still there."""
    found = {}
    for path in sorted(out.glob(f"*/{MANIFEST_FILE}")):
        with contextlib.suppress(ValueError):
            manifest = read_manifest(path.parent)
            if manifest.run and manifest.run["sha256"] == key:
                found[path.parent.name] = manifest
    complete = found and sorted(found) == next(iter(found.values())).run["sets"]
    return list(found.values()) if complete and not WorkDir.exists(out, key) else []


def _check_targets(inputs: Iterable[Input], settings: Settings, out: Path, overwrite: bool) -> None:
    """Refuses early, by the first documents, what would be refused when all is tokenised."""
    if WorkDir.exists(out, _run_key(settings, inputs)):
        return
    for item in inputs:
        if item.is_listings:
            continue
        with contextlib.suppress(StopIteration):
            _, document = next(read_part(item.path))
            check_absent(out / window_set_name(*set_key(document, settings)), overwrite)


# --- phase 1: tokenise ---------------------------------------------------------------------------


def _tokenise_all(
    pool: Workers, work: WorkDir, parts: list[Part], settings: Settings
) -> dict[str, dict]:
    """Tokenises what is not yet; returns the tally of each set."""
    sets: dict[str, dict] = {}
    directory = work.directory("parts")
    done, left = [], []
    for part in parts:
        (done if is_tokenised(part, directory) else left).append(part)
    tallies = pool.map(tokenise_part, [(part, settings, os.fspath(directory)) for part in left])
    total = mebibytes(sum(part.num_bytes for part in parts))
    with progress("tokenising", total=total, unit="MiB") as bar:
        try:
            found = itertools.chain((read_tallies(part, directory) for part in done), tallies)
            for part, of_sets in zip([*done, *left], found, strict=True):
                for tally in of_sets:
                    _merge(sets, tally, directory)
                bar.count_bytes(part.num_bytes)
            if not sets:
                names = sorted({item.path for part in parts for item, _, _ in part.ranges})
                raise ValueError(f"documents: must be at least one, got none in {names}.")
        except ValueError:
            work.discard()  # the input is to blame, and will be another one next time
            raise
    return sets


def _merge(sets: dict[str, dict], tally: dict, directory: Path) -> None:
    runs = sorted(os.fspath(directory / name) for name in tally["runs"])
    mine = sets.setdefault(tally["name"], {"key": tally["key"], "files": Counter(), "runs": []})
    if mine["key"] != tally["key"]:
        raise ValueError(same_name(tally["name"], mine["key"], tally["key"]))
    mine["runs"] += runs
    mine["files"].update(tally["files"])
    for source, counts in tally["by_source"].items():
        mine.setdefault("by_source", {}).setdefault(source, Counter()).update(counts)


# --- phase 2: pack -------------------------------------------------------------------------------


def _pack_all(
    pool: Workers, work: WorkDir, sets: dict[str, dict], settings: Settings
) -> dict[str, list[dict]]:
    """Packs the chunks that are not yet; returns what is known of those of each set."""
    jobs = []
    for name, tally in sorted(sets.items()):
        (work.directory("sets") / name).mkdir(exist_ok=True)
        num_tokens = sum(counts["tokens"] for counts in tally["by_source"].values())
        num_chunks = -(-num_tokens // CHUNK_TOKENS)
        runs, directory = tuple(tally["runs"]), os.fspath(work.path)
        jobs += [(name, c, num_chunks, runs, settings, directory) for c in range(num_chunks)]
    work.directory("chunks")
    chunks: dict[str, list[dict]] = {}
    with progress("packing", total=len(jobs), unit="shards") as bar:
        for job, chunk in zip(jobs, pool.map(_pack_chunk, jobs), strict=True):
            chunks.setdefault(job[0], []).append(chunk)
            bar.update(1)
    return chunks


def _pack_chunk(job: tuple[str, int, int, tuple[str, ...], Settings, str]) -> dict:
    """Writes one shard, unless it is there; returns {shard, num_split_documents}."""
    name, chunk, num_chunks, runs, settings, directory = job
    note = Path(directory) / "chunks" / f"{name}-{chunk:05d}.json"
    if note.is_file():
        return json.loads(note.read_text(encoding="utf-8"))
    packed = read_chunk(runs, chunk, num_chunks)
    plan = plan_windows(
        packed.lengths, settings.window_length, (settings.seed, chunk), packed.offsets
    )
    final = Path(directory) / "sets" / name / shard_name(chunk, num_chunks)
    partial = Path(directory) / "chunks" / f".{name}-{chunk:05d}-{os.getpid()}"
    shard = write_shard(partial, fill_windows(packed.tokens, plan))
    os.replace(partial, final)
    split = int(np.sum(packed.lengths > settings.window_length))
    done = {"shard": shard | {"name": final.name}, "num_split_documents": split}
    write_whole(note, json.dumps(done))
    return done


def _manifest(
    tally: dict,
    chunks: list[dict],
    inputs: Iterable[Input],
    settings: Settings,
    tokenizer: Tokenizer,
    command: str,
    run: dict,
) -> Manifest:
    domain, language, source = tally["key"]
    by_source = {name: dict(counts) for name, counts in sorted(tally["by_source"].items())}
    total = {name: sum(counts[name] for counts in by_source.values()) for name in COUNTS}
    sources = [
        {"name": item.name, "sha256": item.sha256, "documents": tally["files"][item.name]}
        for item in sorted(inputs, key=lambda item: item.name)
        if item.name in tally["files"]
    ]
    return make_manifest(
        tokenizer, [chunk["shard"] for chunk in chunks], window_length=settings.window_length,
        domain=domain, language=language, source=source, num_documents=total["documents"],
        num_tokens=total["tokens"], num_bytes=total["bytes"], num_words=total["words"],
        num_split_documents=sum(chunk["num_split_documents"] for chunk in chunks),
        by_source=by_source, seed=settings.seed, sources=sources, command=command, run=run,
    )  # fmt: skip


# --- the verb ------------------------------------------------------------------------------------


def main_prepare(argv: list[str]) -> None:
    """Runs `ellama prepare`."""
    args = _parse(argv)
    manifests = prepare(
        documents=args.documents,
        listings=args.listings,
        corpora=_corpora(args),
        tokenizer_dir=args.tokenizer,
        window_length=args.window_length,
        out=args.out,
        seed=args.seed,
        by_source=args.by_source,
        overwrite=args.overwrite,
        workers=args.workers,
        command=shlex.join(["ellama", "prepare", *argv]),
    )
    for manifest in manifests:
        print(_describe(manifest))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama prepare",
        description="Write documents as token windows, one set for each domain and language. "
        "Started again, it goes on where it was interrupted.",
        epilog="example: ellama prepare --documents curated 'web/*.jsonl.zst' --listings shop.jsonl"
        "\n           --tokenizer checkpoints/base/tokenizer --window-length 8192 --out windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--documents",
        nargs="+",
        default=[],
        metavar="PATH",
        help="documents JSONL (.gz, .zst), globs, or directories as `ellama curate` writes them",
    )
    add("--listings", nargs="+", default=[], metavar="FILE", help="listing records JSONL")
    add("--task", nargs="+", default=[], metavar="NAME", help="SeqIO tasks or mixtures")
    add("--task-module", nargs="+", default=[], metavar="MODULE", help="what registers them")
    add("--tfds", nargs="+", default=[], metavar="NAME[:VERSION]", help="TFDS datasets")
    add(
        "--data-dir",
        metavar="DIR",
        help="where these were prepared (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    add("--split", default="train", help="of tasks and datasets (default train)")
    add(
        "--text-field",
        help="their feature with the text (default: targets of --task, text of --tfds)",
    )
    add("--domain", choices=DOMAINS, help="of the documents of --task and --tfds")
    add("--language", help="of the same")
    add("--source", help="of the same (default: their names)")
    add("--tokenizer", required=True, metavar="DIR", help="holds tokenizer.json of the model")
    add("--window-length", type=int, default=8192, help="tokens in a window (default 8192)")
    add("--out", required=True, metavar="DIR", help="where the sets are written")
    add("--seed", type=int, default=0, help="of aspect order and shuffles (default 0)")
    add("--by-source", action="store_true", help="one set for each source")
    add("--overwrite", action="store_true", help="replace finished sets of the same names")
    add("--workers", type=int, help="processes (default: one for each core)")
    return parser.parse_args(argv)  # fmt: skip


def _corpora(args: argparse.Namespace) -> list[Corpus]:
    named = [(name, False) for name in args.task] + [(name, True) for name in args.tfds]
    if named and not (args.domain and args.language):
        raise ValueError("--domain and --language: must be given with --task or --tfds, got none.")
    return [
        Corpus(
            name, is_tfds, args.split, args.text_field, tuple(args.task_module), args.domain,
            args.language, args.source or re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_"),
            args.data_dir,
        )
        for name, is_tfds in named
    ]  # fmt: skip


def _describe(manifest: Manifest) -> str:
    full = manifest.num_tokens / (manifest.num_tokens + manifest.num_padding)
    return (
        f"{manifest.name}: {manifest.num_documents:,} documents, {manifest.num_tokens:,} tokens in "
        f"{manifest.num_windows:,} windows of {manifest.window_length:,} "
        f"({full:.2%} full, {manifest.num_split_documents:,} documents split)"
    )
