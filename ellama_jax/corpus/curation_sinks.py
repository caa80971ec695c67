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
from ellama_jax.corpus.readers import bad_to_json
from ellama_jax.corpus.records import BadRecord


def of_kind(elements: beam.PCollection, kind: str) -> beam.PCollection:
    """Returns the values of those of (kind, value) that are of one kind."""
    return elements | f"those of kind {kind}" >> beam.FlatMap(_of_kind, kind)


def _of_kind(element: tuple[str, object], kind: str) -> tuple:
    return (element[1],) if element[0] == kind else ()


def document_record(document: dict) -> tuple:
    """Returns what `write_shards` takes of a document: also the listing that it was made of."""
    listing, split = document.get("listing"), document["split"]
    kept = {key: value for key, value in document.items() if key not in ("listing", "split")}
    source, language, text = (document[name] for name in ("source", "language", "text"))
    name = f"documents/{split}/{document['domain']}-{language}-{source}"
    lines = [(name, to_line(kept), len(text.encode()))]
    if listing is not None:
        lines.append((f"listings/{split}/{language}-{source}", to_line(listing), 0))
    return document["id"], source, language, text[:300], lines


def bad_record(element: tuple[str, BadRecord]) -> tuple:
    """Returns what `write_shards` takes of an unreadable record."""
    source, bad = element
    line = bad_to_json(bad).encode() + b"\n"
    return bad.place, source, "", "", [(f"dead_letters/{source}", line, 0)]


def write_shards(
    records: beam.PCollection,
    drops: beam.PCollection | None,
    out: str,
    shard_bytes: int,
    pieces: int,
) -> tuple[beam.PCollection, beam.PCollection]:
    """Writes the lines of records, set by set, as files of about `shard_bytes`.

    How many files a set has follows from its size, which is known when all of it is there: the
    records are cut into `pieces` by their keys, which learn of it by a join; the same one leaves
    out near duplicates, which therefore count in the size.

    Args:
        records: (key, source, language, beginning, lines); lines are (set, line, bytes of its text).
        drops: (key, what it resembles) of the records to be left out, or None.
        out: directory of the curation.
        shard_bytes: of a file, before it is compressed.
        pieces: as many as one worker can hold one of.

    Returns:
        (description, what `count_kept` counts) of each file; and what was left out.
    """
    by_piece = records | "piece" >> beam.Map(lambda record: (shard_of(record[0], pieces), record))
    joined = {
        "records": by_piece,
        "num_shards": by_piece
        | "sizes" >> beam.FlatMap(_sizes)
        | "size of a piece" >> beam.CombinePerKey(sum)
        | "pieces of a set" >> beam.MapTuple(lambda key, size: (key[0], (key[1], size)))
        | "by set" >> beam.GroupByKey()
        | "number of shards" >> beam.FlatMap(_count_shards, shard_bytes),
    }
    if drops is not None:
        joined["drops"] = drops | "piece of a drop" >> beam.MapTuple(
            lambda key, _: (shard_of(key, pieces), key)
        )
    placed = joined | "with shards" >> beam.CoGroupByKey() | "shard" >> beam.FlatMap(_to_shards)
    files = (
        of_kind(placed, "line")
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write_one, out)
    )
    return files, of_kind(placed, "near copy")


def _sizes(element: tuple[int, tuple]) -> list[tuple[tuple[str, int], int]]:
    piece, record = element
    return [((name, piece), len(line)) for name, line, _ in record[4]]


def _count_shards(
    element: tuple[str, Iterable[tuple[int, int]]], shard_bytes: int
) -> Iterator[tuple[int, tuple[str, int]]]:
    name, sizes = element[0], list(element[1])
    num_shards = -(-sum(size for _, size in sizes) // shard_bytes)
    yield from ((piece, (name, num_shards)) for piece, _ in sizes)


def _to_shards(element: tuple[int, Mapping]) -> Iterator[tuple[str, tuple]]:
    _, groups = element
    num_shards, drops = dict(groups["num_shards"]), set(groups.get("drops", ()))
    for key, source, language, beginning, lines in groups["records"]:
        if key in drops:
            dropped = Dropped(key, language, "duplicate: near", beginning)
            yield "near copy", (source, dropped, 1)
            continue
        for name, line, text_bytes in lines:
            number = num_shards[name]
            shard = f"{name}-{shard_of(key, number):05d}-of-{number:05d}.jsonl.gz"
            yield "line", (shard, (sort_key(key), line, text_bytes))


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
