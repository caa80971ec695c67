"""Windows in a bucket: what a disk gives, whatever the bucket does meanwhile."""

import json
import time

import numpy as np
import pytest
from fake_bucket import inject
from test_loader import TOKENIZER, make_config, write_set

from ellama_jax.cli import main
from ellama_jax.core import paths
from ellama_jax.tokens.held_out import HeldOut
from ellama_jax.tokens.loader import Loader, batch_fingerprint, open_sources
from ellama_jax.tokens.windows import WindowSet, read_manifest, read_windows, write_windows

SHARES = {"ecommerce_shares": {"de": 0.7, "en": 0.3}, "general_shares": {"en": 1.0}}
SETS = {("ecommerce", "de"): 9, ("ecommerce", "en"): 4, ("general", "en"): 5}
FAULTS = [
    {"kind": 429, "share": 0.2},
    {"kind": 503, "share": 0.2},
    {"kind": "broken", "share": 0.2},
    {"kind": "cut", "share": 0.2},
    {"kind": "flipped", "share": 1.0, "most": 1, "match": "windows-00003-of"},
    {"kind": "slow", "share": 0.05, "secs": 2.0},
]


@pytest.fixture(scope="module")
def places(bucket, tmp_path_factory):
    """The same three sets on a disk and in a bucket."""
    local, remote = tmp_path_factory.mktemp("windows"), paths.as_path(f"{bucket}/windows")
    for root in (local, remote):
        for (domain, language), length in SETS.items():
            write_set(root, domain, language, length=length, count=200, max_shard_bytes=7 * 64)
    return local, remote


@pytest.fixture(autouse=True)
def no_faults_afterwards():
    yield
    inject()


def read_batches(windows_dir, steps=12, **changes):
    config = make_config(windows_dir, **SHARES, **changes)
    loader = Loader(open_sources(config, TOKENIZER.fingerprint), config)
    return [batch_fingerprint(batch) for batch in loader.iterate(0, steps)]


def test_shards_are_the_same_bytes_in_a_bucket(places):
    local, remote = (place / "general-en" for place in places)
    names = sorted(path.name for path in local.iterdir())
    assert names == sorted(path.name for path in remote.iterdir()) and len(names) > 3
    for name in names:
        assert (remote / name).read_bytes() == (local / name).read_bytes()


@pytest.mark.parametrize("seq_len", [16, 8])
def test_batches_are_those_of_a_disk(places, seq_len):
    local, remote = places
    assert read_batches(remote, seq_len=seq_len) == read_batches(local, seq_len=seq_len)
    wanted, found = (list(HeldOut(p, seq_len, 50, None).batches(8)) for p in places)
    for one, other in zip(wanted, found, strict=True):
        assert batch_fingerprint(one) == batch_fingerprint(other)


def test_inspect_says_of_sets_in_a_bucket_what_it_says_of_those_on_a_disk(places, capsys, tmp_path):
    said = []
    for place in places:
        main(["inspect", str(place), "--json", str(tmp_path / "audit.json")])
        audit = json.loads((tmp_path / "audit.json").read_text())
        assert [s.pop("path") for s in audit["sets"].values()] == [
            f"{place}/{domain}-{language}" for domain, language in SETS
        ]
        said.append(audit)
    capsys.readouterr()
    assert said[0] == said[1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault["kind"]))
def test_what_goes_wrong_in_a_bucket_changes_no_batch(places, fault):
    local, remote = places
    wanted = read_batches(local)
    inject({"match": ".npy"} | fault)
    assert read_batches(remote) == wanted
    assert inject()[str(fault["kind"])] > 0


def test_opening_reads_no_more_of_a_set_with_many_shards(places):
    inject()
    windows = WindowSet(places[1] / "general-en")
    assert len(windows.manifest.shards) > 5
    counts = inject()
    assert (counts["requests"], counts["reads"]) == (3, 2)  # manifest, list and one header


def test_a_slow_answer_is_not_waited_for(places):
    windows = WindowSet(places[1] / "general-en")
    inject({"match": "windows-00001-of", "share": 1.0, "most": 3, "kind": "slow", "secs": 90.0})
    began = time.monotonic()
    read_windows([(windows, 8)] * 4)
    assert time.monotonic() - began < 40


def test_a_window_that_is_damaged_where_it_lies_is_named(places):
    windows = WindowSet(places[1] / "general-en")
    inject({"match": "windows-00001-of", "share": 1.0, "kind": "flipped"})
    assert len(windows[6]) == 16
    with pytest.raises(ValueError, match=r"general-en: window 8 is damaged: in windows-00001-of-"):
        windows[8]
    assert inject()["flipped"] == 2  # read again once
    with pytest.raises(ValueError, match="window 8 is damaged"):
        inject({"match": "windows-00001-of", "share": 1.0, "kind": "flipped"})
        read_windows([(windows, 0), (windows, 8), (windows, 1)])


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (
            503,
            ConnectionError,
            "windows-00001-of-.*: must be readable, got no good answer for [1-9]",
        ),
        ("broken", ConnectionError, "windows-00001-of-.*: must be readable, got no good answer"),
        (403, OSError, "windows-00001-of-.*: must be readable, got: Forbidden"),
        (404, FileNotFoundError, "No such file"),
    ],
)
def test_a_bucket_that_stays_away_is_an_error_in_the_end(places, monkeypatch, kind, error, said):
    windows = WindowSet(places[1] / "general-en")
    monkeypatch.setattr(paths, "_PATIENCE_SECS", 1.0)
    inject({"match": ".npy", "share": 1.0, "kind": kind})
    with pytest.raises(error, match=said) as raised:
        windows[8]
    assert isinstance(raised.value, ConnectionError) == (kind in (503, "broken"))
    assert raised.value.filename is None or raised.value.filename.startswith("gs://")


def test_a_set_in_a_bucket_begins_to_exist_with_its_manifest(bucket):
    place = paths.as_path(f"{bucket}/new/general-en")
    write_set(place.parent, "general", "en", length=8, count=60, max_shard_bytes=7 * 64)
    manifest = read_manifest(place)
    (place / "manifest.json").unlink()
    with pytest.raises(ValueError, match="must hold manifest.json, got none"):
        WindowSet(place)
    # What an interrupted write left is replaced; so is a finished set, if asked for.
    write_set(place.parent, "general", "en", length=8, count=20)
    assert read_manifest(place).num_windows == 10
    assert len(list(place.iterdir())) == 2
    with pytest.raises(ValueError, match="pass --overwrite"):
        write_set(place.parent, "general", "en", length=8, count=60)
    arguments = {"length": 8, "count": 60, "max_shard_bytes": 7 * 64, "overwrite": True}
    write_set(place.parent, "general", "en", **arguments)
    assert read_manifest(place) == manifest
    assert len(list(WindowSet(place))) == 30


def test_other_files_in_a_bucket_are_never_replaced(bucket):
    place = paths.as_path(f"{bucket}/others/general-en")
    (place / "thesis.tex").write_text("written for years")
    with pytest.raises(ValueError, match="must be a new directory or a window set"):
        write_windows(
            place, [[1]], tokenizer=TOKENIZER, window_length=16, domain="general", language="en",
            seed=0, sources=[], command="", overwrite=True,
        )  # fmt: skip
    assert (place / "thesis.tex").exists()


def test_missing_and_cut_shards_in_a_bucket_are_refused(places, bucket):
    place = paths.as_path(f"{bucket}/damaged")
    paths.copy_tree(places[0] / "general-en", place)
    manifest = json.loads((place / "manifest.json").read_text())
    shard = place / manifest["shards"][2]["name"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(
        ValueError, match=f"must have {len(content)} bytes, got {len(content) - 10}"
    ):
        WindowSet(place)
    shard.unlink()
    with pytest.raises(ValueError, match="got no such file"):
        WindowSet(place)


def test_numpy_reads_a_shard_that_came_from_a_bucket(places, tmp_path):
    local, remote = places
    windows = WindowSet(remote / "general-en")
    shard = windows.manifest.shards[-1]
    (tmp_path / "shard.npy").write_bytes((remote / "general-en" / shard["name"]).read_bytes())
    tokens = np.load(tmp_path / "shard.npy")["tokens"]
    np.testing.assert_array_equal(tokens, list(windows)[-shard["records"] :])
