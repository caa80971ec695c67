"""Windows: nothing is lost in packing, nothing crosses a document, damage is refused."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from ellama_jax.tokens import windows as windows_module
from ellama_jax.tokens.packing import PADDING, pack_documents
from ellama_jax.tokens.windows import (
    WindowSet,
    read_manifest,
    record_type,
    segments,
    shard_name,
    shift_within_documents,
    to_features,
    window_set_name,
    write_windows,
)

BOS, EOS = 98, 99
# Packing needs of a tokenizer only its ids; id 0 is an ordinary token, as in Llama 3.
TOKENIZER = SimpleNamespace(bos_id=BOS, eos_id=EOS, vocab_size=100, fingerprint="f" * 64)


def random_documents(seed, count=60, longest=40):
    """Documents of 1 to `longest` ids in [0, 98), skewed to short ones; id 0 is common."""
    rng = np.random.default_rng(seed)
    lengths = 1 + (longest * rng.random(count) ** 3).astype(int)
    return [np.maximum(0, rng.integers(-20, 98, length)).tolist() for length in lengths]


def write(dst, documents, **changes):
    arguments = {
        "tokenizer": TOKENIZER,
        "window_length": 16,
        "domain": "ecommerce",
        "language": "de",
        "seed": 3,
        "sources": [{"name": "shop.jsonl", "sha256": "0" * 64, "documents": len(documents)}],
        "command": "ellama prepare ...",
    }
    return write_windows(dst, documents, **(arguments | changes))


def pieces_of(window, eos=EOS):
    """Splits a window at EOS by a loop: the reference for the vectorised `segments`."""
    pieces = [[]]
    for token in window.tolist():
        if token == PADDING:
            break
        pieces[-1].append(token)
        if token == eos:
            pieces.append([])
    return [piece for piece in pieces if piece]


def framed(documents):
    return [[BOS, *document, EOS] for document in documents]


def test_segments_and_positions_of_a_worked_window():
    window = np.array([BOS, 0, EOS, BOS, 5, 6, EOS, PADDING], dtype=np.uint32)
    segment_ids, positions = segments(window, eos_id=EOS)
    assert segment_ids.tolist() == [1, 1, 1, 2, 2, 2, 2, 0]
    assert positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert segment_ids.dtype == positions.dtype == np.int32


@pytest.mark.parametrize("seed", range(4))
def test_segments_of_many_windows_equal_those_of_a_loop(seed):
    windows = pack_documents(framed(random_documents(seed)), 16, seed)
    segment_ids, positions = segments(windows, eos_id=EOS)
    for row, window in enumerate(windows):
        pieces = pieces_of(window)
        padding = [0] * (16 - sum(map(len, pieces)))
        numbers = [n for n, piece in enumerate(pieces, 1) for _ in piece]
        assert segment_ids[row].tolist() == numbers + padding
        assert (
            positions[row].tolist() == [p for piece in pieces for p in range(len(piece))] + padding
        )


def test_a_token_that_both_begins_and_ends_documents_is_told_apart():
    both = 99
    window = np.array([both, 5, both, both, 6, 7, both, PADDING], dtype=np.uint32)
    segment_ids, _ = segments(window, eos_id=both, bos_id=both)
    assert segment_ids.tolist() == [1, 1, 1, 2, 2, 2, 2, 0]
    # A window that goes on with a split document, then begins another.
    rest = np.array([5, both, both, 6, both, both, 7, 8], dtype=np.uint32)
    segment_ids, _ = segments(rest, eos_id=both, bos_id=both)
    assert segment_ids.tolist() == [1, 1, 2, 2, 2, 3, 3, 3]


def test_a_row_cut_from_the_middle_of_a_document_starts_at_position_0():
    window = np.array([BOS, 1, 2, 3, 4, 5, EOS, PADDING], dtype=np.uint32)
    row = to_features(window[4:], eos_id=EOS)
    assert row["positions"].tolist() == [0, 1, 2, 0]
    assert row["targets"].tolist() == [5, EOS, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_no_target_crosses_a_document_and_padding_weighs_nothing(seed):
    windows = pack_documents(framed(random_documents(seed)), 16, seed)
    rows = to_features(windows, eos_id=EOS)
    for index, window in enumerate(windows):
        expected = [0.0] * 16
        place = 0
        for piece in pieces_of(window):
            # Every token but a piece's last predicts the next one of its piece.
            for token, following in zip(piece, piece[1:], strict=False):
                assert rows["inputs"][index, place] == token
                assert rows["targets"][index, place] == following
                expected[place] = 1.0
                place += 1
            place += 1
        assert rows["loss_weights"][index].tolist() == expected


def test_id_0_is_a_token_as_input_and_as_target():
    window = np.array([0, 0, EOS, PADDING], dtype=np.uint32)
    row = to_features(window, eos_id=EOS)
    assert row["inputs"].tolist() == [0, 0, EOS, 0]
    assert row["segment_ids"].tolist() == [1, 1, 1, 0]
    assert row["targets"].tolist() == [0, EOS, 0, 0]
    assert row["loss_weights"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert row["loss_weights"].dtype == np.float32


def test_shift_refuses_arrays_of_different_shapes():
    with pytest.raises(ValueError, match=r"segment_ids: must have the shape of tokens \(3,\)"):
        shift_within_documents([1, 2, 3], [1, 1])


def test_what_is_written_is_what_was_packed(tmp_path):
    documents = random_documents(2)
    manifest = write(tmp_path / "ecommerce-de", documents)
    windows = WindowSet(tmp_path / "ecommerce-de", TOKENIZER.fingerprint)
    expected = pack_documents(framed(documents), 16, seed=3)
    np.testing.assert_array_equal(np.stack([windows[i] for i in range(len(windows))]), expected)
    assert windows.manifest == manifest == read_manifest(tmp_path / "ecommerce-de")


def test_numpy_alone_opens_a_shard(tmp_path):
    manifest = write(tmp_path / "set", random_documents(2), max_shard_bytes=5 * 16 * 4)
    windows, shards = WindowSet(tmp_path / "set"), []
    for shard in manifest.shards:
        records = np.load(tmp_path / "set" / shard["name"], mmap_mode="r")
        assert records.shape == (shard["records"],)
        assert hashlib.sha256(records["tokens"].tobytes()).hexdigest() == shard["sha256"]
        assert [zlib.crc32(row) for row in records["tokens"].copy()] == records["crc32"].tolist()
        shards.append(records["tokens"])
    np.testing.assert_array_equal(np.concatenate(shards), list(windows))


def test_a_set_of_more_shards_than_a_process_may_open_is_read(tmp_path):
    write(tmp_path / "set", [[1, 2, 3]] * 1100, window_length=5, max_shard_bytes=4 * 5)
    code = (
        "import resource, sys\n"
        "from ellama_jax.tokens.windows import WindowSet\n"
        "_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))\n"
        "windows = WindowSet(sys.argv[1])\n"
        "assert len(windows.manifest.shards) == 1100\n"
        "print(sum(int(window.sum()) for window in windows))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == [str(1100 * (1 + 2 + 3 + BOS + EOS))], done.stderr


def test_memory_does_not_grow_with_a_set(tmp_path):
    """12 million windows of 8,192 tokens in 3,000 shards, all of them holes but one window."""
    template = write(tmp_path / "one", [[7] * 8190], window_length=8192)
    shards, each = 3000, 4096
    place, record = tmp_path / "huge" / "general-en", record_type(8192).itemsize
    place.mkdir(parents=True)
    source = (tmp_path / "one" / template.shards[0]["name"]).read_bytes()
    size = len(source) - record + each * record
    described = []
    for number in range(shards):
        name = shard_name(number, shards)
        with open(place / name, "wb") as file:
            file.truncate(size)
            if number == 0:
                header = {"descr": np.lib.format.dtype_to_descr(record_type(8192)),
                          "fortran_order": False, "shape": (each,)}  # fmt: skip
                np.lib.format.write_array_header_1_0(file, header)
            if number == 1234:
                file.seek(size - 2 * record)
                file.write(source[-record:])
        described.append({"name": name, "records": each, "bytes": size, "sha256": "0" * 64})
    count = shards * each
    manifest = dataclasses.replace(
        template, shards=described, num_windows=count, num_tokens=count * 8192, num_padding=0,
        num_documents=count, domain="general", language="en", name="general-en",
    )  # fmt: skip
    (place / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    code = (
        "import resource, sys, tracemalloc\n"
        "from ellama_jax.tokens.windows import WindowSet\n"
        "_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))\n"
        "tracemalloc.start()\n"
        "windows = WindowSet(sys.argv[1])\n"
        "print(len(windows), windows[1235 * 4096 - 2].sum())\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True)
    length, tokens, memory = done.stdout.split()
    assert (int(length), int(tokens)) == (count, 7 * 8190 + BOS + EOS)
    assert int(memory) < 2**23  # a number a window would be 100 MB
    windows = WindowSet(place)
    with pytest.raises(ValueError, match=rf"window 4095 is damaged: in {shard_name(0, shards)}"):
        windows[4095]


def test_manifest_counts_documents_tokens_padding_and_splits(tmp_path):
    documents = [[1] * 30, [2] * 5, [3] * 14, [4] * 15]  # framed: 32, 7, 16 and 17 tokens
    manifest = write(tmp_path / "set", documents)
    assert manifest.num_documents == 4
    assert manifest.num_tokens == 32 + 7 + 16 + 17
    assert manifest.num_split_documents == 2
    assert manifest.num_windows == 5  # two full, one full, 16 of 17, then 1 and 7 together
    assert manifest.num_padding == 8
    assert (manifest.bos_id, manifest.eos_id, manifest.vocab_size) == (BOS, EOS, 100)
    assert manifest.sources == [{"name": "shop.jsonl", "sha256": "0" * 64, "documents": 4}]


def test_shards_hold_all_windows_in_order(tmp_path):
    documents = random_documents(4)
    one = write(tmp_path / "one", documents)
    many = write(tmp_path / "many", documents, max_shard_bytes=3 * 16 * 4)
    records = [shard["records"] for shard in many.shards]
    assert len(one.shards) == 1 and set(records[:-1]) == {3} and sum(records) == one.num_windows
    assert many.shards[0]["name"] == f"windows-00000-of-{len(records):05d}.npy"
    assert many.content_sha256 != one.content_sha256  # shards are part of a set's identity
    first, second = WindowSet(tmp_path / "one"), WindowSet(tmp_path / "many")
    for index in range(len(first)):
        np.testing.assert_array_equal(first[index], second[index])


def test_equal_input_gives_equal_bytes(tmp_path):
    documents = random_documents(0)
    names = ("a", "b")
    for name in names:
        write(tmp_path / name, documents)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in names)
    assert first == second and len(first) == 2
    assert write(tmp_path / "c", documents, seed=4).content_sha256 not in str(first)


def test_tokenizer_without_bos_begins_documents_with_their_text(tmp_path):
    tokenizer = SimpleNamespace(bos_id=None, eos_id=EOS, vocab_size=100, fingerprint="0")
    write(tmp_path / "set", [[5, 6]], tokenizer=tokenizer)
    assert WindowSet(tmp_path / "set")[0][:4].tolist() == [5, 6, EOS, PADDING]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "document 1: must hold tokens"),
        ([5, EOS, 6], r"document 1: must not hold EOS \(99\)"),
        ([5, 100], r"document 1: ids must be in \[0, 100\), got 100"),
        ([-1, 5], r"in \[0, 100\), got -1"),
    ],
)
def test_ids_that_are_no_text_are_refused_and_leave_nothing(tmp_path, document, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", [[1, 2], document])
    assert not any(tmp_path.iterdir())


def test_no_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="documents: must be at least one, got none"):
        write(tmp_path / "set", [])


def test_a_finished_set_is_replaced_only_on_request(tmp_path):
    old = write(tmp_path / "set", [[1, 2, 3]])
    with pytest.raises(
        ValueError, match="must not exist yet, got a finished set; pass --overwrite"
    ):
        write(tmp_path / "set", [[4, 5, 6]])
    assert read_manifest(tmp_path / "set") == old
    new = write(tmp_path / "set", [[4, 5, 6], [7]], overwrite=True)
    assert read_manifest(tmp_path / "set") == new != old
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_directory_of_other_files_is_never_replaced(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("thesis.tex", shard_name(0, 1)):  # a shard without its manifest is no set
        (tmp_path / "set" / name).touch()
        with pytest.raises(ValueError, match="must be a new directory or a window set"):
            write(tmp_path / "set", [[1]], overwrite=True)
        (tmp_path / "set" / name).unlink()


def test_a_write_that_fails_leaves_the_old_set_and_no_traces(tmp_path, monkeypatch):
    old = write(tmp_path / "set", [[1, 2, 3]])

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(windows_module, "_write_shards", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "set", [[4]], overwrite=True)
    assert read_manifest(tmp_path / "set") == old
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_without_manifest_does_not_exist(tmp_path):
    write(tmp_path / "set", [[1, 2, 3]])
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="must hold manifest.json, got none"):
        WindowSet(tmp_path / "set")


def test_another_tokenizer_is_refused(tmp_path):
    write(tmp_path / "set", [[1, 2, 3]])
    with pytest.raises(ValueError, match="tokenizer_fingerprint must be .*eeeeeeeeeeee, got ffff"):
        WindowSet(tmp_path / "set", "e" * 64)


def test_missing_and_truncated_shards_are_refused(tmp_path):
    manifest = write(tmp_path / "set", random_documents(0))
    shard = tmp_path / "set" / manifest.shards[0]["name"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(
        ValueError, match=f"must have {len(content)} bytes, got {len(content) - 10}"
    ):
        WindowSet(tmp_path / "set")
    shard.unlink()
    with pytest.raises(ValueError, match="got no such file; was it copied completely"):
        WindowSet(tmp_path / "set")


def test_a_flipped_bit_is_noticed_when_read(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 98, 1000) for _ in range(100)]
    manifest = write(tmp_path / "set", documents, window_length=1024)
    shard = tmp_path / "set" / manifest.shards[0]["name"]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    windows = WindowSet(tmp_path / "set")
    (number,) = {(len(content) // 2 - (len(content) % 4100)) // 4100}
    with pytest.raises(ValueError, match=rf"set: window {number} is damaged: in {shard.name}"):
        list(windows)
    assert [windows[i].tolist() for i in range(number)]  # the others are read


def test_contradicting_or_foreign_manifests_are_refused(tmp_path):
    manifest = dataclasses.asdict(write(tmp_path / "set", [[1, 2, 3]]))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(manifest | {"num_tokens": 6}))
    with pytest.raises(ValueError, match="counts must fit together, got 1 windows of 16"):
        WindowSet(tmp_path / "set")
    path.write_text('{"name": "other"}')
    with pytest.raises(ValueError, match="must be a window set's manifest"):
        WindowSet(tmp_path / "set")
    path.write_text("{")
    with pytest.raises(ValueError, match="must be a window set's manifest"):
        WindowSet(tmp_path / "set")


def test_names_that_are_no_directory_names_are_refused():
    assert window_set_name("general", "en") == "general-en"
    with pytest.raises(ValueError, match=r"source: must be letters, .*got '\.\./etc'"):
        window_set_name("general", "en", "../etc")
    with pytest.raises(ValueError, match="language: must be letters"):
        window_set_name("general", "")


def test_leftovers_of_a_killed_write_do_not_reach_the_next_set(tmp_path):
    leftover = tmp_path / ".set.partial-999999999"  # of no process that lives
    leftover.mkdir()
    (leftover / "windows-00007-of-00009.npy").write_bytes(b"half a shard")
    write(tmp_path / "set", [[1, 2, 3]])
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list((tmp_path / "set").iterdir())) == 2
