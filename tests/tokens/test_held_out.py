"""Held-out rows: the same every time, all of them where they are few, and none that are trained on."""

import dataclasses
import json

import numpy as np
import pytest
from test_loader import TOKENIZER, write_set

from ellama_jax.tokens.held_out import HeldOut
from ellama_jax.tokens.windows import WindowSet


@pytest.fixture(scope="module")
def held_dir(tmp_path_factory):
    """Ten windows each of two sets of one language, three of another; 8 tokens a document."""
    root = tmp_path_factory.mktemp("held")
    for domain, language, source, windows in (
        ("general", "en", "a", 10), ("general", "en", "b", 10), ("ecommerce", "de", None, 3),
    ):  # fmt: skip
        write_set(root, domain, language, source, length=8, count=2 * windows)
    return root


def all_rows(held_out, batch_size=4):
    return [row for batch in held_out.batches(batch_size) for row in batch["inputs"]]


def test_each_set_gives_its_part_or_all_it_has(held_dir):
    held_out = HeldOut(held_dir, 16, 15, TOKENIZER.fingerprint)
    assert held_out.names == ["ecommerce/de", "general/en"]
    assert held_out.num_rows == 3 + 5 + 5
    batches = list(held_out.batches(4))
    ids = np.concatenate([batch["source_ids"] for batch in batches])
    real = np.concatenate([batch["loss_weights"].sum(axis=1) > 0 for batch in batches])
    assert real.tolist() == [True] * 13 + [False] * 3  # the last batch is filled up
    assert np.bincount(ids[real]).tolist() == [3, 10]
    windows = WindowSet(held_dir / "ecommerce-de")
    np.testing.assert_array_equal(all_rows(held_out)[:3], [windows[i] for i in range(3)])
    windows = WindowSet(held_dir / "general-en-a")  # every second one of its ten
    np.testing.assert_array_equal(all_rows(held_out)[3:8], [windows[i] for i in range(0, 10, 2)])


def test_rows_are_the_same_again_in_other_batches_and_over_hosts(held_dir):
    held_out, again = (HeldOut(held_dir, 8, 100, None) for _ in range(2))
    assert held_out.num_rows == 2 * 23  # two rows a window
    whole = all_rows(held_out)[: held_out.num_rows]
    np.testing.assert_array_equal(whole, all_rows(again, 2)[: held_out.num_rows])
    for batch, part in zip(
        held_out.batches(6), held_out.batches(6, lambda size: [0, 3, size - 1]), strict=True
    ):
        for name in batch:
            np.testing.assert_array_equal(batch[name][[0, 3, 5]], part[name])


def test_bytes_of_a_token_are_known_where_all_sets_say_them(held_dir, tmp_path):
    held_out = HeldOut(held_dir, 16, 15, None)
    assert held_out.bytes_per_token() == {}
    for windows in held_out._sets[1:]:  # 20 documents of BOS, 6 tokens, EOS in 280 bytes
        windows.manifest = dataclasses.replace(windows.manifest, num_bytes=280)
    assert held_out.bytes_per_token() == {"general/en": 280 / (20 * 7)}


def test_what_is_trained_on_is_refused(held_dir, tmp_path):
    held_out = HeldOut(held_dir, 16, 15, None)
    write_set(tmp_path, "general", "en", length=8, count=6)
    held_out.check_apart([WindowSet(tmp_path / "general-en")])
    with pytest.raises(ValueError, match="^evaluate.windows_dir: must hold text that is not train"):
        held_out.check_apart([WindowSet(held_dir / "general-en-b")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows_dir": "/no/such"}, "^evaluate.windows_dir: must be a directory, got /no/such"),
        ({"windows_dir": "empty"}, "^evaluate.windows_dir: must hold window sets, got none in"),
        ({"seq_len": 5}, "^data.seq_len: must divide the window_length 16 of .*, got 5"),
        ({"tokenizer_fingerprint": "0" * 64}, "tokenizer_fingerprint must be that of the model"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(held_dir, tmp_path, change, message):
    (tmp_path / "empty").mkdir()
    if change.get("windows_dir") == "empty":
        change = {"windows_dir": tmp_path / "empty"}
    given = {"windows_dir": held_dir, "seq_len": 16, "num_rows": 4, "tokenizer_fingerprint": None}
    with pytest.raises(ValueError, match=message):
        HeldOut(**(given | change))


def test_a_set_that_is_not_finished_is_not_seen(held_dir, tmp_path):
    write_set(tmp_path, "general", "en", length=8, count=6)
    (tmp_path / ".general-de.partial").mkdir()
    (tmp_path / ".general-de.partial" / "manifest.json").write_text(json.dumps({}))
    assert HeldOut(tmp_path, 16, 4, None).names == ["general/en"]
