"""The verb `prepare`: documents of any number to token windows, restartable at any moment.

Owns its phases. Each is jobs that know nothing of each other and write whole files, last a note that
a job is done, into a hidden directory beside the sets; whoever starts again does the jobs that have
no note. (1) Parts of the input are tokenised once and lie as sorted runs (tokens/shuffle.py). (2)
Where they are very many, runs are merged. (3) Chunks, equal ranges of the shuffled documents of a
set, are packed (tokens/packing.py) and become a shard each (tokens/windows.py). (4) All sets are
renamed into place; in a bucket they are written there, and their manifests come last.

Processes of this machine take the jobs, or the workers of any of Beam's runners: the documents pass
from one phase to the next through the hidden directory, never through the runner. Memory holds one
part's run or one chunk for each worker, whatever the input's size.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import (
    absolute,
    as_path,
    file_bytes,
    file_sizes,
    is_remote,
    open_whole,
    remove_tree,
    write_whole,
)
from ellama_jax.core.progress import mebibytes, progress
from ellama_jax.corpus.documents import (
    DOMAINS,
    file_sha256,
    find_files,
    read_part,
    short_names,
)
from ellama_jax.tokens.packing import fill_windows, plan_windows
from ellama_jax.tokens.shuffle import (
    FAN_IN,
    Column,
    Run,
    key_range,
    merge,
    read_range_of_keys,
)
from ellama_jax.tokens.tasks import Corpus
from ellama_jax.tokens.tokenising import (
    COUNTS,
    PART_BYTES,
    RUN_TOKENS,
    Input,
    Part,
    Settings,
    cut_parts,
    same_name,
    set_key,
    tokenise_part,
)
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.tokens.windows import (
    Manifest,
    check_absent,
    finish_set,
    make_manifest,
    move_into_place,
    read_manifest,
    remove_set,
    shard_name,
    window_set_name,
    write_shard,
)
from ellama_jax.tokens.workdir import WorkDir
from ellama_jax.tokens.workers import Workers

# Raise it when the same input gives other windows: unfinished work is then begun again.
_FORMAT = 2
CHUNK_TOKENS = 2**25  # of a shard, about; what a worker that packs or merges holds
_READERS = 32  # notes read at a time

# What does jobs: it yields once for each that is done, in any order.
Runner = Callable[[Callable, Sequence], Iterable]


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
    beam_options: Sequence[str] = (),
    command: str,
) -> list[Manifest]:
    """Writes documents as window sets, one for each domain and language.

    All input is read and checked before a set appears. The same call again goes on where one was
    interrupted, and ends with the same bytes; so do other numbers of workers, orders of files and
    runners of Beam.

    Args:
        documents: files, globs or directories of documents JSONL, see `find_files`.
        listings: the same of listing records.
        corpora: SeqIO tasks and TFDS datasets.
        tokenizer_dir: of the model to be trained.
        window_length: tokens in a window.
        out: directory of the sets, on a disk or in a bucket, which all workers reach; each set is
            `<domain>-<language>` or, with `by_source`, `<domain>-<language>-<source>`.
        seed: of aspect order and shuffles, 0 or above.
        by_source: one set for each source.
        overwrite: replace finished sets of the same names.
        workers: processes of this machine; by default one for each core.
        beam_options: Beam's own, as `check_beam_options` returns them; its runner does the work
            then.
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
    # Workers may be elsewhere, or in another directory.
    out, tokenizer_dir = absolute(as_path(out)), absolute(as_path(tokenizer_dir))
    files = find_files(documents, "--documents")
    listing_files = find_files(listings, "--listings")
    settings = Settings(
        os.fspath(tokenizer_dir), tokenizer.fingerprint, window_length, seed, by_source
    )
    with _saying_where_room_is_missing(out), WorkDir.parent(out), _spool(corpora, out) as spooled:
        on_beam = _runner_of_beam(beam_options) if beam_options else None
        inputs = _describe_inputs([*files, *spooled], listing_files, workers, out, on_beam)
        key = _run_key(settings, inputs)
        if not overwrite and (finished := _find_finished(out, key)):
            return finished
        _check_targets(inputs, settings, out, overwrite)
        parts = cut_parts(inputs)
        with WorkDir(out, key) as work, Workers(workers, len(parts)) as pool:
            runner = on_beam or pool.map
            return _run_phases(work, runner, inputs, parts, settings, tokenizer, overwrite, command)


def _runner_of_beam(options: Sequence[str]) -> Runner:
    from ellama_jax.core.beam_runner import run_jobs

    return functools.partial(run_jobs, options)


def _run_phases(
    work: WorkDir,
    runner: Runner,
    inputs: list[Input],
    parts: list[Part],
    settings: Settings,
    tokenizer: Tokenizer,
    overwrite: bool,
    command: str,
) -> list[Manifest]:
    sets, columns = _tokenise_all(runner, work, parts, settings)
    if not work.is_complete():
        begun = {note.split("@")[0] for note in file_sizes(work.directory("chunks"))}
        for name in sets:
            _clear_target(work, name, overwrite, name in begun)
        index = _merge_all(runner, work, columns)
        chunks = _pack_all(runner, work, sets, index, settings)
        run = {"sha256": work.key, "sets": sorted(sets)}
        for name, tally in sorted(sets.items()):
            manifest = _manifest(tally, chunks[name], inputs, settings, tokenizer, command, run)
            directory = _directory_of(work, name)
            if not is_remote(directory):
                for leftover in directory.glob(".*"):  # of a worker that was killed
                    leftover.unlink()
            finish_set(directory, manifest)
        work.mark_complete()
    for name in sorted(sets):
        move_into_place(_directory_of(work, name), work.out / name)
    return [read_manifest(work.out / name) for name in sorted(sets)]


def _directory_of(work: WorkDir, name: str) -> Path:
    """Returns where the shards of a set are written."""
    if is_remote(work.out):
        return work.out / name
    return work.directory("sets") / name


def _clear_target(work: WorkDir, name: str, overwrite: bool, begun: bool) -> None:
    """Refuses or makes room; `begun` says that shards of this very run are there."""
    directory = _directory_of(work, name)
    if not is_remote(work.out):
        check_absent(work.out / name, overwrite)
        directory.mkdir(exist_ok=True)
    elif not begun:
        check_absent(directory, overwrite)
        remove_set(directory)


def _do(
    runner: Runner, function: Callable, jobs: dict[str, object], notes: Path, bar, sizes: dict
) -> Iterator[dict]:
    """Has the jobs done whose notes are not there; yields the notes of all, in the jobs' order."""
    done = file_sizes(notes)
    left = [name for name in jobs if name not in done]
    for name in jobs:
        if name in done:
            bar.count_bytes(sizes[name]) if sizes else bar.update(1)
    for name, _ in zip(left, runner(function, [jobs[name] for name in left]), strict=True):
        bar.count_bytes(sizes[name]) if sizes else bar.update(1)
    with ThreadPoolExecutor(_READERS) as threads:
        texts = threads.map(lambda name: (notes / name).read_text(encoding="utf-8"), jobs)
        yield from map(json.loads, texts)


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
            files.append(path)
            if not path.exists():
                left_out += _write_documents(path, texts(), fields)
            bar.update(1)
    if left_out:
        print(f"{corpus.name}: left out {left_out:,} examples without text")
    return [os.fspath(path) for path in files if file_bytes(path)]


def _write_documents(path: Path, texts: Iterable[str], fields: dict) -> int:
    blank = 0
    with open_whole(path) as file:
        for text in texts:
            if text.strip():
                line = {"text": text, **fields, "product_id": None}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            else:
                blank += 1
    return blank


def _describe_inputs(
    files: list[str], listing_files: list[str], workers: int, out: Path, on_beam: Runner | None
) -> list[Input]:
    """Hashes all files, in an order that depends on their content only."""
    paths = [os.fspath(absolute(as_path(path))) for path in [*files, *listing_files]]
    sizes = [file_bytes(as_path(path)) for path in paths]
    with progress("reading input", total=mebibytes(sum(sizes)), unit="MiB") as bar:
        if on_beam:
            digests = _hash_on_beam(on_beam, paths, sizes, out, bar)
        else:
            digests = []
            with ThreadPoolExecutor(workers) as threads:
                for size, digest in zip(sizes, threads.map(file_sha256, paths), strict=True):
                    digests.append(digest)
                    bar.count_bytes(size)
    is_listings = [False] * len(files) + [True] * len(listing_files)
    rows = zip(paths, short_names(paths), is_listings, digests, sizes, strict=True)
    return sorted((Input(*row) for row in rows), key=lambda item: (item.sha256, item.name))


def _hash_on_beam(runner: Runner, paths: list[str], sizes: list[int], out: Path, bar) -> list[str]:
    # Under another name where a file has changed: notes of an earlier run do not hold then.
    stats = [as_path(path).stat() for path in paths]
    times = [s.mtime if is_remote(p) else s.st_mtime for p, s in zip(paths, stats, strict=True)]
    key = hashlib.sha256(json.dumps([paths, sizes, times], default=str).encode()).hexdigest()
    with WorkDir(out, key, ".hashes-") as work:
        notes = work.directory("hashes")
        names = [f"{number:06d}.json" for number in range(len(paths))]
        jobs = {n: (path, os.fspath(notes / n)) for n, path in zip(names, paths, strict=True)}
        found = _do(runner, _note_hash, jobs, notes, bar, dict(zip(names, sizes, strict=True)))
        return [note["sha256"] for note in found]


def _note_hash(job: tuple[str, str]) -> None:
    path, note = job
    write_whole(as_path(note), json.dumps({"sha256": file_sha256(path)}))


def _run_key(settings: Settings, inputs: Sequence[Input]) -> str:
    import ellama_jax

    decides = [
        _FORMAT,
        ellama_jax.__version__,
        settings[1:],
        PART_BYTES,
        RUN_TOKENS,
        CHUNK_TOKENS,
        FAN_IN,
    ]
    files = [[item.name, item.is_listings, item.sha256] for item in inputs]
    return hashlib.sha256(json.dumps([decides, files]).encode()).hexdigest()


def _find_finished(out: Path, key: str) -> list[Manifest]:
    """Returns the manifests of a run that ended, if all its sets are still there."""
    found = {}
    for directory in sorted(out.iterdir()) if out.exists() else ():
        with contextlib.suppress(ValueError):
            manifest = read_manifest(directory)
            if manifest.run and manifest.run["sha256"] == key:
                found[directory.name] = manifest
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
    runner: Runner, work: WorkDir, parts: list[Part], settings: Settings
) -> tuple[dict[str, dict], list[Column]]:
    """Tokenises what is not yet; returns the tally of each set, and the runs."""
    sets: dict[str, dict] = {}
    columns: list[Column] = []
    notes, runs = work.directory("parts"), work.directory("runs-0")
    jobs, sizes = {}, {}
    for part in parts:
        name = f"{part.number:06d}.json"
        jobs[name] = (part, settings, f"{runs}/{part.number:06d}", os.fspath(notes / name))
        sizes[name] = part.num_bytes
    total = mebibytes(sum(part.num_bytes for part in parts))
    with progress("tokenising", total=total, unit="MiB") as bar:
        try:
            for note in _do(runner, tokenise_part, jobs, notes, bar, sizes):
                for tally in note["tallies"]:
                    _add_tally(sets, tally)
                columns += [[Run(Path(path).name, found)] for path, found in note["runs"]]
            if not sets:
                names = sorted({item.path for part in parts for item, _, _ in part.ranges})
                raise ValueError(f"documents: must be at least one, got none in {names}.")
        except ValueError:
            work.discard()  # the input is to blame, and will be another one next time
            raise
    return sets, columns


def _add_tally(sets: dict[str, dict], tally: dict) -> None:
    mine = sets.setdefault(tally["name"], {"key": tally["key"], "files": Counter()})
    if mine["key"] != tally["key"]:
        raise ValueError(same_name(tally["name"], mine["key"], tally["key"]))
    mine["files"].update(tally["files"])
    for source, counts in tally["by_source"].items():
        mine.setdefault("by_source", {}).setdefault(source, Counter()).update(counts)


# --- phase 2: merge ------------------------------------------------------------------------------


def _merge_all(runner: Runner, work: WorkDir, columns: list[Column]) -> str:
    """Merges runs until there are few columns; returns the path of the file that lists these."""
    level, index = 0, work.path / "columns-0.json"
    write_whole(index, json.dumps(columns))
    while len(columns) > FAN_IN:
        level, merged = level + 1, work.path / f"columns-{level + 1}.json"
        if not merged.exists():
            found = _merge_level(runner, work, level, os.fspath(index), columns)
            write_whole(merged, json.dumps(found))
        columns, index = json.loads(merged.read_text(encoding="utf-8")), merged
        remove_tree(work.path / f"runs-{level - 1}")
    return os.fspath(index)


def _merge_level(
    runner: Runner, work: WorkDir, level: int, index: str, columns: list[Column]
) -> list[Column]:
    notes, runs = work.directory(f"merged-{level}"), work.directory(f"runs-{level}")
    jobs, groups = {}, []
    for first in range(0, len(columns), FAN_IN):
        group = slice(first, first + FAN_IN)
        sections = (found for column in columns[group] for _, found in column)
        tokens = sum(tokens for found in sections for _, _, tokens in found.values())
        parts = max(1, -(-tokens // CHUNK_TOKENS))
        for number in range(parts):
            name = f"{first // FAN_IN:06d}-{number:05d}"
            note = f"{name}.json"
            paths = f"{runs}/{name}.run", os.fspath(notes / note)
            jobs[note] = (index, group.start, group.stop, number, parts, *paths)
        groups.append(parts)
    with progress("merging", total=len(jobs), unit="runs") as bar:
        found = _do(runner, _merge_runs, jobs, notes, bar, {})
        return [[next(found) for _ in range(parts)] for parts in groups]


def _merge_runs(job: tuple[str, int, int, int, int, str, str]) -> None:
    index, start, stop, number, parts, path, note = job
    columns = _read_columns(index)[start:stop]
    names = {name for column in columns for run in column for name in run.sections}
    run = merge(columns, names, number, parts, as_path(path))
    write_whole(as_path(note), json.dumps([Path(path).name, run.sections]))


@functools.lru_cache(maxsize=1)
def _read_columns(index: str) -> list[Column]:
    directory, _, name = index.rpartition("/")
    runs = f"{directory}/{name.removesuffix('.json').replace('columns', 'runs')}"
    columns = json.loads(as_path(index).read_text(encoding="utf-8"))
    return [[Run(f"{runs}/{path}", found) for path, found in column] for column in columns]


# --- phase 3: pack -------------------------------------------------------------------------------


def _pack_all(
    runner: Runner, work: WorkDir, sets: dict[str, dict], index: str, settings: Settings
) -> dict[str, list[dict]]:
    """Packs the chunks that are not yet; returns what is known of those of each set."""
    notes, jobs, owners = work.directory("chunks"), {}, []
    for name, tally in sorted(sets.items()):
        directory = os.fspath(_directory_of(work, name))
        num_tokens = sum(counts["tokens"] for counts in tally["by_source"].values())
        num_chunks = -(-num_tokens // CHUNK_TOKENS)
        for chunk in range(num_chunks):
            note = f"{name}@{chunk:05d}.json"
            paths = directory, os.fspath(notes / note)
            jobs[note] = (index, name, chunk, num_chunks, settings, *paths)
            owners.append(name)
    chunks: dict[str, list[dict]] = {}
    with progress("packing", total=len(jobs), unit="shards") as bar:
        found = _do(runner, _pack_chunk, jobs, notes, bar, {})
        for name, chunk in zip(owners, found, strict=True):
            chunks.setdefault(name, []).append(chunk)
    return chunks


def _pack_chunk(job: tuple[str, str, int, int, Settings, str, str]) -> None:
    """Writes one shard and its note: {shard, num_split_documents}."""
    index, name, chunk, num_chunks, settings, directory, note = job
    low, high = key_range(chunk, num_chunks)
    _, packed = read_range_of_keys(_read_columns(index), name, low, high).sort()
    shard = None  # a chunk may be empty where a few documents are very long
    if len(packed.lengths):
        plan = plan_windows(
            packed.lengths, settings.window_length, (settings.seed, chunk), packed.offsets
        )
        path = as_path(f"{directory}/{shard_name(chunk, num_chunks)}")
        shard = write_shard(path, fill_windows(packed.tokens, plan))
    split = int(np.sum(packed.lengths > settings.window_length))
    write_whole(as_path(note), json.dumps({"shard": shard, "num_split_documents": split}))


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
        tokenizer, [chunk["shard"] for chunk in chunks if chunk["shard"]], window_length=settings.window_length,
        domain=domain, language=language, source=source, num_documents=total["documents"],
        num_tokens=total["tokens"], num_bytes=total["bytes"], num_words=total["words"],
        num_split_documents=sum(chunk["num_split_documents"] for chunk in chunks),
        by_source=by_source, seed=settings.seed, sources=sources, command=command, run=run,
    )  # fmt: skip


# --- the verb ------------------------------------------------------------------------------------


def main_prepare(argv: list[str]) -> None:
    """Runs `ellama prepare`."""
    parser = _parser()
    args, others = parser.parse_known_args(argv)
    if others:
        from ellama_jax.core.beam_runner import check_beam_options

        if args.workers:
            raise ValueError("--workers: must be absent where Beam's runner has its own, got both.")
        others = check_beam_options(others, parser._option_string_actions)
    # On a disk each run of other arguments has a lock of its own, see workdir.py.
    alone = owned(args.out, "ellama prepare") if is_remote(args.out) else contextlib.nullcontext()
    with alone:
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
            beam_options=others,
            command=shlex.join(["ellama", "prepare", *argv]),
        )
    for manifest in manifests:
        print(_describe(manifest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ellama prepare",
        description="Write documents as token windows, one set for each domain and language. "
        "Started again, it goes on where it was interrupted. Other options than these go to Beam, whose "
        "workers do the work then.",
        epilog="example:\n  ellama prepare --documents curated 'web/*.jsonl.zst' --listings shop.jsonl "
        "\\\n      --tokenizer checkpoints/base/tokenizer --window-length 8192 --out windows\n"
        "  ellama prepare --documents gs://BUCKET/curated --tokenizer gs://BUCKET/base/tokenizer \\\n"
        "      --out gs://BUCKET/windows --runner=DaskRunner --dask_client_address=tcp://HOST:8786",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
    add("--out", required=True, metavar="DIR", help="of the sets, local or gs://")
    add("--seed", type=int, default=0, help="of aspect order and shuffles (default 0)")
    add("--by-source", action="store_true", help="one set for each source")
    add("--overwrite", action="store_true", help="replace finished sets of the same names")
    add("--workers", type=int, help="processes of this machine (default: one a core)")
    return parser


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
