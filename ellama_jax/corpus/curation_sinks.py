"""Where the pipeline of `ellama curate` ends: PCollections to shards, counts and examples.

Owns how records are divided into files, so that these are the same in every run; the bytes of one
file are curation_output.py's.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam

from ellama_jax.corpus.curation_output import shard_of, sort_key, to_line, write_shard
from ellama_jax.corpus.curation_records import Dropped


def write_sets(documents: beam.PCollection, out: str, shard_bytes: int) -> beam.PCollection:
    """Writes documents, and the listings that some were made of, set by set."""
    lines = documents | "lines" >> beam.FlatMap(_document_lines)
    return write_shards(lines, out, shard_bytes, "documents")


def _document_lines(document: dict) -> Iterator[tuple[str, str, bytes]]:
    listing, split = document.get("listing"), document["split"]
    kept = {key: value for key, value in document.items() if key not in ("listing", "split")}
    name = f"{document['domain']}-{document['language']}-{document['source']}"
    yield f"documents/{split}/{name}", document["id"], to_line(kept)
    if listing is not None:
        yield (
            f"listings/{split}/{document['language']}-{document['source']}",
            document["id"],
            to_line(listing),
        )


def write_shards(lines: beam.PCollection, out: str, shard_bytes: int, title: str):
    """Writes (set, key, line) as files of about `shard_bytes`; returns their descriptions."""
    sizes = (
        lines
        | f"{title}: sizes" >> beam.Map(lambda line: (line[0], len(line[2])))
        | f"{title}: size of a set" >> beam.CombinePerKey(sum)
    )
    return (
        lines
        | f"{title}: shard" >> beam.Map(_to_shard, beam.pvalue.AsDict(sizes), shard_bytes)
        | f"{title}: by shard" >> beam.GroupByKey()
        | f"{title}: write" >> beam.Map(_write_one, out)
    )


def _to_shard(
    line: tuple[str, str, bytes], sizes: Mapping[str, int], shard_bytes: int
) -> tuple[str, tuple[bytes, bytes]]:
    name, key, content = line
    num_shards = -(-sizes[name] // shard_bytes)
    shard = shard_of(key, num_shards)
    return f"{name}-{shard:05d}-of-{num_shards:05d}.jsonl.gz", (sort_key(key), content)


def _write_one(element: tuple[str, Iterable[tuple[bytes, bytes]]], out: str) -> dict:
    name, lines = element
    return {"name": name} | write_shard(f"{out}/{name}", lines)


def write_single(records: beam.PCollection, out: str, name: str) -> None:
    """Writes few records as the one file tallies/NAME.jsonl.gz, which is there even if it is empty."""
    lines = records | f"{name}: line" >> beam.Map(lambda record: (name, to_line(record)))
    start = records.pipeline | f"{name}: start" >> beam.Create([(name, b"")])
    _ = (
        (lines, start)
        | f"{name}: all" >> beam.Flatten()
        | f"{name}: together" >> beam.GroupByKey()
        | f"{name}: write" >> beam.MapTuple(
            lambda key, lines: write_shard(f"{out}/tallies/{key}.jsonl.gz", [(line, line) for line in lines]))
    )  # fmt: skip


def count_late(element: tuple[str, Dropped, int]) -> list[tuple[tuple, int]]:
    source, dropped, count = element
    return [((source, dropped.language, dropped.reason), count)] if count else []


def count_kept(document: dict) -> list[tuple[tuple, int]]:
    key = document["source"], document["language"]
    kept = f"kept: {document['domain']}, {document['split']}"
    return [((*key, kept), 1), ((*key, f"{kept}, bytes"), len(document["text"].encode()))]


def write_counts(counts: Sequence[beam.PCollection], out: str) -> None:
    total = counts | "all counts" >> beam.Flatten() | "count" >> beam.CombinePerKey(sum)
    write_single(total | "count record" >> beam.Map(list), out, "counts")


def write_examples(left_out: beam.PCollection, out: str, number: int) -> None:
    examples = (
        left_out
        | "examples by reason" >> beam.Map(lambda d: ((d[0], d[1].language, d[1].reason), d[1]))
        | "few of each" >> beam.combiners.Top.PerKey(max(number, 1), key=_example_rank)
        | "one by one" >> beam.FlatMapTuple(lambda key, few: [d._asdict() | {"source": key[0]} for d in few])
    )  # fmt: skip
    write_single(examples, out, "examples")


def _example_rank(dropped: Dropped) -> str:
    return hashlib.sha256(dropped.place.encode()).hexdigest()
