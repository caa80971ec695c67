"""The files of a curation: the same bytes for the same records, and found again or refused."""

import json

import pytest

from ellama_jax.corpus.curation_output import (
    REPORT_FILE,
    curated_files,
    is_curated,
    read_shard,
    shard_of,
    sort_key,
    to_line,
    write_shard,
)


def lines(records):
    return [(sort_key(record["id"]), to_line(record)) for record in records]


RECORDS = [{"id": f"s-{n}", "text": f"שלום {n} 🎈"} for n in range(20)]


def test_the_order_of_arrival_does_not_change_a_shard(tmp_path):
    first = write_shard(str(tmp_path / "a" / "x.jsonl.gz"), lines(RECORDS))
    second = write_shard(str(tmp_path / "b" / "x.jsonl.gz"), lines(RECORDS[::-1]))
    assert first == second
    assert (tmp_path / "a/x.jsonl.gz").read_bytes() == (tmp_path / "b/x.jsonl.gz").read_bytes()
    assert first["records"] == 20
    assert sorted(r["id"] for r in read_shard(tmp_path / "a/x.jsonl.gz")) == sorted(
        r["id"] for r in RECORDS
    )


def test_records_are_shuffled_by_their_key():
    order = [record["id"] for record in sorted(RECORDS, key=lambda r: sort_key(r["id"]))]
    assert order != [record["id"] for record in RECORDS]


def test_shards_are_about_equal():
    counts = [0] * 4
    for n in range(4000):
        counts[shard_of(f"key {n}", 4)] += 1
    assert min(counts) > 900 and max(counts) < 1100


def make_curation(root):
    name = "documents/train/general-en-web-00000-of-00001.jsonl.gz"
    files = [{"name": name} | write_shard(str(root / name), lines(RECORDS))]
    (root / REPORT_FILE).write_text(json.dumps({"files": files}))
    return root / name


def test_a_finished_curation_gives_its_files(tmp_path):
    path = make_curation(tmp_path)
    assert is_curated(tmp_path)
    assert curated_files(tmp_path, "documents", "train") == [path]
    assert curated_files(tmp_path, "documents", "heldout") == []
    assert curated_files(tmp_path, "listings", "train") == []


def test_an_unfinished_or_damaged_curation_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold curation\.json, got none; .* curate again"):
        curated_files(tmp_path, "documents", "train")
    path = make_curation(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="was it copied completely"):
        curated_files(tmp_path, "documents", "train")
    path.unlink()
    with pytest.raises(ValueError, match="got no such file"):
        curated_files(tmp_path, "documents", "train")
