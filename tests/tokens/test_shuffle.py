"""The external shuffle: merged runs give the documents of unmerged ones, and few are read."""

import numpy as np
import pytest

from ellama_jax.tokens import shuffle
from ellama_jax.tokens.shuffle import Unsorted, key_range, merge, read_range_of_keys, write_run


def make_runs(directory, count, documents, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        sets = {}
        for name in ("a", "b"):
            lengths = rng.integers(1, 9, documents)
            keys = rng.integers(0, 2**64, documents, dtype=np.uint64)
            sets[name] = Unsorted([keys], [lengths], [rng.integers(0, 99, lengths.sum())])
        yield [write_run(directory / f"{number}.run", sets)]


def read_all(columns, name, parts):
    found = []
    for number in range(parts):
        keys, documents = read_range_of_keys(columns, name, *key_range(number, parts)).sort()
        for key, offset, length in zip(keys, documents.offsets, documents.lengths, strict=True):
            found.append((int(key), documents.tokens[offset:][:length].tolist()))
    return found


@pytest.mark.parametrize("parts", [1, 7, 64])
def test_merged_runs_hold_what_they_were_made_of(tmp_path, parts):
    columns = list(make_runs(tmp_path, 5, 200))
    merged = [
        [merge(columns[first:last], ["a", "b"], n, size, tmp_path / f"{first}-{n}.run")
         for n in range(size)]
        for first, last, size in ((0, 3, 5), (3, 5, 2))
    ]  # fmt: skip
    for name in ("a", "b"):
        found = read_all(columns, name, parts)
        assert len(found) == 1000 and found == sorted(found)
        assert read_all(merged, name, parts) == found


def test_documents_of_one_key_come_in_an_order_of_their_own(tmp_path):
    keys = np.array([7, 5, 7, 7], np.uint64)
    texts = [[3, 1], [9], [2], [3]]
    found = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        tokens = np.concatenate([texts[i] for i in order]).astype(np.uint32)
        lengths = np.array([len(texts[i]) for i in order])
        run = write_run(tmp_path / "x.run", {"a": Unsorted([keys[order]], [lengths], [tokens])})
        found.append(read_all([[run]], "a", 1))
    assert found[0] == found[1] == found[2]
    assert sorted(text for _, text in found[0]) == sorted(texts)


def test_keys_that_are_not_spread_evenly_are_all_found(tmp_path):
    keys = np.concatenate([np.arange(5000), np.arange(10)]).astype(np.uint64)
    keys[5000:] += np.uint64(2**63)
    run = write_run(tmp_path / "x.run", {"a": Unsorted([keys], [np.ones(5010, int)],
                                                       [np.arange(5010, dtype=np.uint32)])})  # fmt: skip
    assert len(read_all([[run]], "a", 3)) == 5010
    assert read_range_of_keys([[run]], "a", 2000, 2001).sort()[0].tolist() == [2000, 2001]


def test_a_range_reads_its_bytes_and_little_more(tmp_path, monkeypatch):
    columns = list(make_runs(tmp_path, 1, 50_000))
    read, sizes = shuffle.read_range, []

    def counting(path, start, stop):
        sizes.append(stop - start)
        return read(path, start, stop)

    monkeypatch.setattr(shuffle, "read_range", counting)
    read_range_of_keys(columns, "b", *key_range(100, 500))
    assert len(sizes) == 2 and sum(sizes) < 60_000  # of 1.7 million
