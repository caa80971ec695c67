"""Where the pipeline of `ellama curate` ends: PCollections to shards, counts and examples.

Owns how records are divided into files, so that these are the same in every run; the bytes of one
file are curation_output.py's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam

from ellama_jax.corpus.curation_output import shard_of, sort_key, to_line, write_shard
from ellama_jax.corpus.curation_records import Dropped


def of_kind(elements: beam.PCollection, kind: str) -> beam.PCollection:
    """Returns the values of those of (kind, value) that are of one kind."""
    return elements | f"those of kind {kind}" >> beam.FlatMap(_of_kind, kind)


def _of_kind(element: tuple[str, object], kind: str) -> tuple:
    return (element[1],) if element[0] == kind else ()


def write_sets(
    documents: beam.PCollection, out: str, shard_bytes: int, pieces: int
) -> beam.PCollection:
    """Writes documents, and the listings that some were made of, set by set."""
    lines = documents | "lines" >> beam.FlatMap(_document_lines)
    return write_shards(lines, out, shard_bytes, pieces, "documents")


def _document_lines(document: dict) -> Iterator[tuple[str, str, bytes, int]]:
    listing, split = document.get("listing"), document["split"]
    kept = {key: value for key, value in document.items() if key not in ("listing", "split")}
    name = f"{document['domain']}-{document['language']}-{document['source']}"
    text_bytes = len(document["text"].encode())
    yield f"documents/{split}/{name}", document["id"], to_line(kept), text_bytes
    if listing is not None:
        yield (
            f"listings/{split}/{document['language']}-{document['source']}",
            document["id"],
            to_line(listing),
            0,
        )


def write_shards(lines: beam.PCollection, out: str, shard_bytes: int, pieces: int, title: str):
    """Writes (set, key, line, bytes of its text) as files of about `shard_bytes`.

    How many files a set has follows from its size, which is known when all of it is there: each
    set is cut into `pieces` by its keys, which learn of it by a join.

    Returns:
        (description, what `count_kept` counts) of each file.
    """
    by_piece = lines | f"{title}: piece" >> beam.Map(_to_piece, pieces)
    shards = (
        by_piece
        | f"{title}: sizes" >> beam.MapTuple(lambda piece, line: (piece, len(line[1])))
        | f"{title}: size of a piece" >> beam.CombinePerKey(sum)
        | f"{title}: of a set" >> beam.MapTuple(lambda piece, size: (piece[0], (piece[1], size)))
        | f"{title}: by set" >> beam.GroupByKey()
        | f"{title}: shards" >> beam.FlatMap(_count_shards, shard_bytes)
    )
    return (
        {"lines": by_piece, "num_shards": shards}
        | f"{title}: with shards" >> beam.CoGroupByKey()
        | f"{title}: shard" >> beam.FlatMap(_to_shards)
        | f"{title}: by shard" >> beam.GroupByKey()
        | f"{title}: write" >> beam.Map(_write_one, out)
    )


def _to_piece(line: tuple[str, str, bytes, int], pieces: int) -> tuple[tuple[str, int], tuple]:
    name, key, content, text_bytes = line
    return (name, shard_of(key, pieces)), (key, content, text_bytes)


def _count_shards(
    element: tuple[str, Iterable[tuple[int, int]]], shard_bytes: int
) -> Iterator[tuple[tuple[str, int], int]]:
    name, sizes = element[0], list(element[1])
    num_shards = -(-sum(size for _, size in sizes) // shard_bytes)
    yield from (((name, piece), num_shards) for piece, _ in sizes)


def _to_shards(element: tuple[tuple[str, int], Mapping]) -> Iterator[tuple[str, tuple]]:
    (set_name, _), groups = element
    (num_shards,) = groups["num_shards"]
    for key, content, text_bytes in groups["lines"]:
        shard = shard_of(key, num_shards)
        name = f"{set_name}-{shard:05d}-of-{num_shards:05d}.jsonl.gz"
        yield name, (sort_key(key), content, text_bytes)


def _write_one(element: tuple[str, Iterable[tuple]], out: str) -> tuple[dict, list]:
    name, lines = element[0], list(element[1])
    described = {"name": name} | write_shard(f"{out}/{name}", [line[:2] for line in lines])
    counts = []
    if name.startswith("documents/"):
        first = json.loads(lines[0][1])
        kept = f"kept: {first['domain']}, {name.split('/')[1]}"
        key = first["source"], first["language"]
        counts = [
            ((*key, kept), len(lines)),
            ((*key, f"{kept}, bytes"), sum(line[2] for line in lines)),
        ]
    return described, counts


def write_single(records: beam.PCollection, out: str, name: str) -> beam.PCollection:
    """Writes few records as the one file tallies/NAME.jsonl.gz, which is there even if it is empty."""
    lines = records | f"{name}: line" >> beam.Map(lambda record: (name, to_line(record)))
    start = records.pipeline | f"{name}: start" >> beam.Create([(name, b"")])
    return (
        (lines, start)
        | f"{name}: all" >> beam.Flatten()
        | f"{name}: together" >> beam.GroupByKey()
        | f"{name}: write" >> beam.MapTuple(
            lambda key, lines: write_shard(f"{out}/tallies/{key}.jsonl.gz", [(line, line) for line in lines]))
    )  # fmt: skip


def count_late(element: tuple[str, Dropped, int]) -> list[tuple[tuple, str, int]]:
    source, dropped, count = element
    return [((source, dropped.language, dropped.reason), dropped.place, count)] if count else []


def count_kept(file: tuple[dict, list]) -> list[tuple[tuple, str, int]]:
    description, counts = file
    return [(key, description["name"], count) for key, count in counts]


def write_counts(counts: Sequence[beam.PCollection], out: str) -> beam.PCollection:
    """Writes the sums of (key, place, count)."""
    # In two steps, by place and then at all: a runner may hold all values of a key in memory.
    total = (
        counts
        | "all counts" >> beam.Flatten()
        | "counts by place" >> beam.Map(lambda found: ((found[0], _spread(found[1])), found[2]))
        | "count in places" >> beam.CombinePerKey(sum)
        | "counts of places" >> beam.MapTuple(lambda key, count: (key[0], count))
        | "count" >> beam.CombinePerKey(sum)
    )
    return write_single(total | "count record" >> beam.Map(list), out, "counts")


def write_examples(left_out: beam.PCollection, out: str, number: int) -> beam.PCollection:
    few = max(number, 1)
    examples = (
        left_out
        | "examples by reason" >> beam.Map(
            lambda d: (((d[0], d[1].language, d[1].reason), _spread(d[1].place)), d[1]))
        | "few of each place" >> beam.combiners.Top.PerKey(few, key=_example_rank)
        | "examples of places" >> beam.FlatMapTuple(lambda key, some: [(key[0], d) for d in some])
        | "few of each" >> beam.combiners.Top.PerKey(few, key=_example_rank)
        | "one by one" >> beam.FlatMapTuple(lambda key, few: [d._asdict() | {"source": key[0]} for d in few])
    )  # fmt: skip
    return write_single(examples, out, "examples")


def _spread(place: str) -> int:
    return shard_of(place, 64)


def _example_rank(dropped: Dropped) -> str:
    return hashlib.sha256(dropped.place.encode()).hexdigest()
