"""The loader: token-true shares, and batches that are a pure function of the step."""

import collections
import dataclasses
import logging
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ellama_jax.config import DataConfig
from ellama_jax.tokens.loader import (
    Loader,
    batch_fingerprint,
    combine_fingerprints,
    open_sources,
)
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.windows import to_features, write_windows

BOS, EOS = 98, 99
TOKENIZER = SimpleNamespace(bos_id=BOS, eos_id=EOS, vocab_size=100, fingerprint="f" * 64)

# Tokens of a document, framed, by set: in windows of 16 they fill 9/16, 16/16, 10/16 and 15/16.
DOCUMENT_LENGTHS = {
    ("ecommerce", "de", None): 9,
    ("ecommerce", "en", None): 4,
    ("general", "de", None): 10,
    ("general", "en", None): 5,
}
NUM_WINDOWS = 40

PINNED_SOURCE_IDS = [0, 3, 0, 1, 0, 2, 0, 3]
PINNED_TOKENS = [9, 31, 54, 38, 89, 70, 32, 45]


def write_set(windows_dir, domain, language, source=None, *, length, count, **changes):
    """Writes a set whose documents all have `length` tokens, each with ids of its own."""
    rng = np.random.default_rng([length, *f"{domain}{language}{source}".encode()])
    documents = rng.integers(0, 98, (count, length - 2)).tolist()
    name = "-".join(part for part in (domain, language, source) if part)
    arguments = {"tokenizer": TOKENIZER, "window_length": 16, "seed": 0, "sources": []}
    write_windows(
        windows_dir / name,
        documents,
        domain=domain,
        language=language,
        source=source,
        command="test",
        **(arguments | changes),
    )


@pytest.fixture(scope="module")
def windows_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows")
    for (domain, language, source), length in DOCUMENT_LENGTHS.items():
        write_set(path, domain, language, source, length=length, count=NUM_WINDOWS * (16 // length))
    return path


def make_config(windows_dir, **changes):
    arguments = {
        "windows_dir": str(windows_dir),
        "seqio_mixture": "",
        "seqio_module": "",
        "source_weights": {},
        "stages": {},
        "max_epochs": 4.0,
        "max_epochs_by_source": {},
        "on_repetition": "error",
        "replay_frac": 0.5,
        "ecommerce_shares": {"de": 0.75, "en": 0.25},
        "general_shares": {"de": 0.1, "en": 0.9},
        "seq_len": 16,
        "global_batch_size": 8,
        "seed": 1,
        "num_read_threads": 3,
    }
    return DataConfig(**(arguments | changes))


def make_loader(windows_dir, **changes):
    config = make_config(windows_dir, **changes)
    return Loader(open_sources(config, TOKENIZER.fingerprint), config)


def host_rows(host, num_hosts):
    """Returns the rows of one host by the size of the batch; they lie among the others'."""
    return lambda size: range(size)[host::num_hosts]


def join_hosts(parts, rows_of):
    """Puts the hosts' rows of one batch where they belong."""
    size = sum(len(part["source_ids"]) for part in parts)
    order = np.argsort(np.concatenate([rows(size) for rows in rows_of]))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def assert_batches_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_consumed_tokens_have_the_configured_shares(windows_dir):
    loader = make_loader(windows_dir)
    consumed = collections.Counter()
    for step in range(400):
        consumed.update(loader.count_tokens(loader.batch(step)))
    total = sum(consumed.values())
    shares = {name: tokens / total for name, tokens in consumed.items()}
    expected = {
        "ecommerce-de": 0.375,
        "ecommerce-en": 0.125,
        "general-de": 0.05,
        "general-en": 0.45,
    }
    assert shares == pytest.approx(expected, rel=0.02)


def test_shares_by_rows_would_have_been_wrong(windows_dir):
    # The sets differ in padding by nearly a half: rows are not tokens.
    loader = make_loader(windows_dir)
    shares = {source.name: source.token_share for source in loader.sources}
    rows = dict(zip(shares, loader.row_weights, strict=True))
    assert rows["ecommerce-de"] / shares["ecommerce-de"] > 1.3
    assert rows["general-en"] / shares["general-en"] < 0.9
    assert sum(rows.values()) == pytest.approx(1)


@pytest.mark.parametrize("replay_frac", [0.5, 0.01, 0.37])
def test_every_stretch_of_rows_holds_each_source_by_its_weight(windows_dir, replay_frac):
    loader = make_loader(windows_dir, replay_frac=replay_frac)
    ids = np.concatenate([loader.batch(step)["source_ids"] for step in range(100)])
    for source, weight in enumerate(loader.row_weights):
        counts = np.cumsum(ids == source)
        assert np.all(np.abs(counts - weight * np.arange(1, len(ids) + 1)) < len(loader.sources))


def test_batch_has_the_shapes_and_types_of_the_contract(windows_dir):
    batch = make_loader(windows_dir).batch(3)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "inputs": ((8, 16), "int32"),
        "targets": ((8, 16), "int32"),
        "loss_weights": ((8, 16), "float32"),
        "segment_ids": ((8, 16), "int32"),
        "positions": ((8, 16), "int32"),
        "source_ids": ((8,), "int32"),
    }


def test_rows_are_windows_of_the_source_they_name(windows_dir):
    loader = make_loader(windows_dir)
    rows = {
        (source_id, to_features(source.windows[index], eos_id=EOS)["inputs"].tobytes())
        for source_id, source in enumerate(loader.sources)
        for index in range(len(source.windows))
    }
    for step in range(20):
        batch = loader.batch(step)
        for source_id, row in zip(batch["source_ids"], batch["inputs"], strict=True):
            assert (source_id, row.tobytes()) in rows


def test_rows_are_located_where_they_lie(windows_dir):
    """Over several epochs, and with rows shorter than a window."""
    loader = make_loader(windows_dir, seq_len=8)
    for step in (0, 3, 40):
        batch, places = loader.batch(step), loader.locate_rows(step)
        assert [p["source"] for p in places] == [
            loader.sources[number].name for number in batch["source_ids"]
        ]
        for row, place in enumerate(places):
            source = loader.sources[batch["source_ids"][row]]
            start = 8 * place["part"]
            stored = source.windows[place["window"]][start : start + 8]
            real = batch["segment_ids"][row] != 0
            np.testing.assert_array_equal(batch["inputs"][row][real], stored[real])
            assert (stored[~real] == 0xFFFFFFFF).all()
    assert {p["part"] for p in places} == {0, 1}


def test_a_batch_depends_on_its_step_alone(windows_dir):
    loader = make_loader(windows_dir)
    forward = [loader.batch(step) for step in range(5)]
    fresh = make_loader(windows_dir)
    for step in (4, 0, 2):
        assert_batches_equal(fresh.batch(step), forward[step])
    assert batch_fingerprint(forward[0]) != batch_fingerprint(forward[1])


def test_the_order_is_pinned(windows_dir):
    # Stored runs resume in this order: a new Grain or a new formula must not change it.
    batch = make_loader(windows_dir).batch(11)
    assert batch["source_ids"].tolist() == PINNED_SOURCE_IDS
    assert batch["inputs"][:, 1].tolist() == PINNED_TOKENS


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_find_the_fingerprint_of_the_global_batch(windows_dir, num_hosts):
    loader = make_loader(windows_dir)
    parts = [host_rows(host, num_hosts)(8) for host in range(num_hosts)]
    told = [batch_fingerprint(loader.host_batch(5, rows), rows) for rows in parts]
    assert combine_fingerprints(told[::-1]) == batch_fingerprint(loader.batch(5))


@pytest.mark.parametrize("name", ["inputs", "targets", "loss_weights", "positions", "source_ids"])
def test_fingerprint_sees_every_array_and_the_order_of_rows(windows_dir, name):
    batch = make_loader(windows_dir).batch(0)
    fingerprint = batch_fingerprint(batch)
    assert len(fingerprint) == 16 and int(fingerprint, 16) >= 0
    changed = batch | {name: batch[name] + np.eye(1, batch[name].size).reshape(batch[name].shape)}
    changed[name] = changed[name].astype(batch[name].dtype)
    assert batch_fingerprint(changed) != fingerprint
    swapped = {key: array[[1, 0, *range(2, 8)]] for key, array in batch.items()}
    assert batch_fingerprint(swapped) != fingerprint


@pytest.mark.parametrize("num_read_threads", [1, 4])
def test_reading_ahead_from_the_middle_gives_the_same_batches(windows_dir, num_read_threads):
    loader = make_loader(windows_dir, num_read_threads=num_read_threads)
    steps = list(range(5, 25))
    read = list(loader.iterate(5, 25, lambda size: [1, 6, size - 1]))
    for step, batch in zip(steps, read, strict=True):
        whole = loader.batch(step)
        assert_batches_equal(batch, {name: array[[1, 6, 7]] for name, array in whole.items()})
    assert list(loader.iterate(7, 7)) == []


def rows_of_one_source(windows_dir, num_rows):
    loader = make_loader(
        windows_dir, replay_frac=0.0, ecommerce_shares={"de": 1.0}, global_batch_size=num_rows
    )
    return [row.tobytes() for row in loader.batch(0)["inputs"]]


def test_no_window_repeats_inside_an_epoch_and_none_is_left_out(windows_dir):
    rows = rows_of_one_source(windows_dir, 3 * NUM_WINDOWS)
    epochs = [rows[start : start + NUM_WINDOWS] for start in range(0, 3 * NUM_WINDOWS, NUM_WINDOWS)]
    assert len(set(epochs[0])) == NUM_WINDOWS
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])


def test_every_epoch_has_an_order_of_its_own(windows_dir):
    rows = rows_of_one_source(windows_dir, 3 * NUM_WINDOWS)
    epochs = [rows[start : start + NUM_WINDOWS] for start in range(0, 3 * NUM_WINDOWS, NUM_WINDOWS)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_seed_changes_the_order_and_the_fingerprint_of_the_mixture(windows_dir):
    first, second = make_loader(windows_dir), make_loader(windows_dir, seed=2)
    assert batch_fingerprint(first.batch(0)) != batch_fingerprint(second.batch(0))
    assert first.mixture_fingerprint != second.mixture_fingerprint
    assert first.mixture_fingerprint == make_loader(windows_dir).mixture_fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"replay_frac": 0.4}, {"seq_len": 8}, {"global_batch_size": 4}, {"general_shares": {"en": 1}}],
)
def test_mixture_fingerprint_covers_what_batches_depend_on(windows_dir, changes):
    changed = make_loader(windows_dir, **changes)
    assert changed.mixture_fingerprint != make_loader(windows_dir).mixture_fingerprint


def test_mixture_fingerprint_ignores_how_batches_are_read(windows_dir):
    changed = make_loader(windows_dir, num_read_threads=1)
    assert changed.mixture_fingerprint == make_loader(windows_dir).mixture_fingerprint


def test_another_source_leaves_the_order_of_the_first_as_it_was(windows_dir):
    def first_rows(**changes):
        loader = make_loader(windows_dir, **changes)
        (place,) = [i for i, s in enumerate(loader.sources) if s.name == "ecommerce-de"]
        batches = [loader.batch(step) for step in range(6)]
        return [b["inputs"][i] for b in batches for i in np.flatnonzero(b["source_ids"] == place)]

    alone, mixed = first_rows(replay_frac=0.0), first_rows(replay_frac=0.5)
    assert 10 < len(mixed) < len(alone)
    np.testing.assert_array_equal(mixed, alone[: len(mixed)])


def test_shorter_rows_are_the_parts_of_the_windows(windows_dir):
    loader = make_loader(
        windows_dir, seq_len=4, replay_frac=1.0, general_shares={"de": 1.0}, global_batch_size=160
    )
    batch, (source,) = loader.batch(0), loader.sources
    parts = np.concatenate([source.windows[i].reshape(4, 4) for i in range(NUM_WINDOWS)])
    expected = sorted(map(tuple, np.where(parts == PADDING, 0, parts).tolist()))
    assert sorted(map(tuple, batch["inputs"].tolist())) == expected
    assert loader.count_tokens(batch) == {"general-de": 10 * NUM_WINDOWS}


def test_shares_hold_for_shorter_rows_with_much_padding(windows_dir):
    loader = make_loader(windows_dir, seq_len=4)
    consumed = collections.Counter()
    for step in range(400):
        consumed.update(loader.count_tokens(loader.batch(step)))
    general = consumed["general-en"] + consumed["general-de"]
    assert general / sum(consumed.values()) == pytest.approx(0.5, rel=0.02)


def test_sets_of_one_domain_and_language_share_by_their_tokens(tmp_path):
    write_set(tmp_path, "ecommerce", "de", "shop", length=8, count=30)
    write_set(tmp_path, "ecommerce", "de", "reviews", length=4, count=20)
    config = make_config(tmp_path, replay_frac=0.0, ecommerce_shares={"de": 1.0})
    shares = {source.name: source.token_share for source in open_sources(config, None)}
    expected = {"ecommerce-de-reviews": 80 / 320, "ecommerce-de-shop": 240 / 320}
    assert shares == pytest.approx(expected)


def test_domain_without_share_needs_no_windows_and_is_not_opened(windows_dir, caplog):
    config = make_config(
        windows_dir, replay_frac=1.0, ecommerce_shares={}, general_shares={"en": 1}
    )
    with caplog.at_level(logging.WARNING):
        sources = open_sources(config, None)
    assert [(s.name, s.domain, s.language) for s in sources] == [("general-en", "general", "en")]
    assert "['ecommerce-de', 'ecommerce-en', 'general-de'] not used" in caplog.text


def test_a_share_without_windows_is_refused(windows_dir):
    config = make_config(windows_dir, general_shares={"en": 0.8, "fr": 0.2})
    with pytest.raises(ValueError, match=r"fr has 10.0% of the tokens.* general-fr, got ecommerce"):
        open_sources(config, None)


@pytest.mark.parametrize("shares", [{"de": 0.5, "en": 0.4}, {"de": 1.5, "en": -0.5}, {}])
def test_shares_must_sum_to_one(windows_dir, shares):
    with pytest.raises(ValueError, match="data.general_shares: must be 0 or more and sum to 1"):
        open_sources(make_config(windows_dir, general_shares=shares), None)


def test_sequence_length_must_divide_the_windows(windows_dir):
    with pytest.raises(ValueError, match=r"data.seq_len: must .* divide the window_length 16 .* 6"):
        open_sources(make_config(windows_dir, seq_len=6), None)


def test_windows_of_another_tokenizer_are_refused(windows_dir, tmp_path):
    with pytest.raises(ValueError, match="tokenizer_fingerprint must be that of the model"):
        open_sources(make_config(windows_dir), "e" * 64)
    other = SimpleNamespace(bos_id=BOS, eos_id=EOS, vocab_size=100, fingerprint="e" * 64)
    write_set(tmp_path, "ecommerce", "de", length=8, count=4)
    write_set(tmp_path, "general", "en", length=8, count=4, tokenizer=other)
    config = make_config(tmp_path, ecommerce_shares={"de": 1.0}, general_shares={"en": 1.0})
    with pytest.raises(ValueError, match="sources: must come from one tokenizer"):
        open_sources(config, None)


def test_unfinished_sets_are_not_seen(windows_dir, tmp_path):
    write_set(tmp_path, "ecommerce", "de", length=8, count=4)
    (tmp_path / "ecommerce-de").rename(tmp_path / ".ecommerce-de.partial")
    config = make_config(tmp_path, replay_frac=0.0, ecommerce_shares={"de": 1.0})
    with pytest.raises(ValueError, match="window set ecommerce-de, got no set; prepare it"):
        open_sources(config, None)
    with pytest.raises(ValueError, match="data.windows_dir: must be a directory"):
        open_sources(dataclasses.replace(config, windows_dir=str(tmp_path / "absent")), None)


def test_there_must_be_a_thread_that_reads(windows_dir):
    with pytest.raises(ValueError, match="num_read_threads: must be at least 1, got 0"):
        make_loader(windows_dir, num_read_threads=0)


def test_damage_found_by_a_reading_thread_reaches_the_caller(tmp_path):
    write_set(tmp_path, "ecommerce", "de", length=500, count=60, window_length=512)
    (shard,) = (tmp_path / "ecommerce-de").glob("*.npy")
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    loader = make_loader(
        tmp_path, seq_len=512, replay_frac=0.0, ecommerce_shares={"de": 1.0}, global_batch_size=4
    )
    with pytest.raises(ValueError, match="is damaged"):
        list(loader.iterate(0, 15))


def test_a_host_that_trains_does_not_import_tensorflow_or_seqio():
    code = (
        "import sys, ellama_jax.tokens.loader\n"
        "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'torch', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)), 'grain' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
