"""Every record of every kind of file is read once, and what is none is named."""

import bz2
import gzip
import json
import lzma
import pickle
import random
import struct
import zlib
from pathlib import Path

import pytest

from ellama_jax.corpus.readers import BadRecord, Part, Record, bad_to_json, find_parts, read_part
from ellama_jax.corpus.records import plain_value

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = {
    "ae-110k_train_en": 1568, "dummyjson_listings_en": 194, "magento_listings_en": 2038,
    "magento_reviews_en": 500, "mgsm_de": 250, "mgsm_en": 250, "mgsm_es": 250, "mgsm_fr": 250,
    "oa-mine_train_en": 1452, "xcopa_it_val": 100,
}  # fmt: skip
LISTINGS = [
    {"id": 1, "title": "Tasse «Käthe» ☕", "price": 9.5},
    {"id": 2, "title": "كوب", "aspects": {"Farbe": ["rot", None]}},
    {"id": 3, "title": "", "note": 'a "quoted" word,\nand a line'},
]
LINES = "".join(json.dumps(listing, ensure_ascii=False) + "\n" for listing in LISTINGS).encode()


def zstd(data):
    import zstandard

    # As the zstd program does: without a checksum nobody can tell damage from data.
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


# bzip2 gives nothing of a block that is cut off: small blocks.
PACKERS = {
    ".gz": gzip.compress,
    ".bz2": lambda data: bz2.compress(data, 1),
    ".xz": lzma.compress,
    ".zst": zstd,
}


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(path, format="auto", **options):
    return [one for part in find_parts(path, format, **options) for one in read_part(part)]


def fields(found):
    assert all(isinstance(one, Record) for one in found), found
    return [one.fields for one in found]


def only_bad(found):
    return [one for one in found if isinstance(one, BadRecord)]


# --- JSON lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_real_files_are_read_whole_however_they_are_cut(name):
    path = SHARED_DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("the shared records are not here")
    expected = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(expected) == ROWS[name]
    for size in (2**26, 40_001):
        assert fields(read(path, part_bytes=size)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_gives_every_line_once_and_at_the_same_place(tmp_path, seed):
    chance = random.Random(seed)
    ends = ["\n", "\r\n", "\n\n", "\r\n\r\n", "\n  \n"]
    text = "".join(
        json.dumps({"n": n, "t": "ä€" * chance.randrange(9)}, ensure_ascii=False)
        + chance.choice(ends)
        for n in range(40)
    )
    path = write(tmp_path / "f.jsonl", text if seed % 2 else text.rstrip())
    whole = read(path)
    assert [one.fields["n"] for one in whole] == list(range(40))
    data = path.read_bytes()
    for one in whole:
        at = int(one.place.removeprefix(f"{path}@byte "))
        assert json.loads(data[at:].splitlines()[0]) == one.fields
    for size in (1, 2, 7, chance.randrange(8, 200)):
        parts = find_parts(path, part_bytes=size)
        chance.shuffle(parts)
        found = [one for part in parts for one in read_part(part)]
        assert sorted(found, key=lambda one: one.fields["n"]) == whole


def test_what_is_no_record_is_named_and_the_rest_is_read(tmp_path):
    lines = [
        b'{"n": 0}',
        b'{"n": 1',
        b'{"n": "\xff\xfe"}',
        b'{"n": NaN}',
        b'{"n": 4}',
        b"[1, 2]",
        b'{"n": NaN, oops}',
        b'{"n": 7}',
        b'{"n": "\\ud83d"}',
        b'{"n": "\\ud83d\\ude00"}',
        b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"n": "\xed\xa0\x80"}',
        b'{"n": 13}',
    ]
    path = write(tmp_path / "f.jsonl", b"\n".join(lines))
    found = read(path)
    assert [one.fields["n"] for one in found if isinstance(one, Record)] == [0, 4, 7, "😀", 13]
    assert [bad.reason.split(" (")[0] for bad in only_bad(found)] == [
        "must be JSON, got: Expecting ',' delimiter, at character 8",
        "must be UTF-8, got byte 0xff at byte 7",
        "must have numbers that JSON knows, got NaN",
        "must be a JSON object, got list",
        "must be JSON, got: Expecting property name enclosed in double quotes, at character 11",
        "must be text, got half of a surrogate pair",
        "must be nested less deeply",
        "Exceeds the limit",
        "must be UTF-8, got byte 0xed at byte 7",
    ]
    bad = only_bad(found)
    assert bad[0] == (f"{path}@byte 9", bad[0].reason, '{"n": 1\n')
    assert bad[1].raw == '{"n": "\\xff\\xfe"}\n' and len(bad[6].raw) == 2000
    assert json.loads(bad_to_json(bad[1])) == bad[1]._asdict()
    assert "\n" not in bad_to_json(bad[1])


def test_a_byte_order_mark_is_passed_over_and_utf16_is_refused(tmp_path):
    assert fields(read(write(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + LINES))) == LISTINGS
    for encoding, name in (("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")):
        for end in ("jsonl", "csv"):
            path = write(tmp_path / f"wide.{end}", '{"a": 1}\n{"a": 2}\n'.encode(encoding))
            assert read(path) == [
                (f"{path}@end", f"must be UTF-8, got {name} (convert it with iconv); the rest of "
                 "the file was not read", "")
            ]  # fmt: skip
    path = write(tmp_path / "wide.jsonl", ('{"a": 1}\n' * 99).encode("utf-16"))
    reasons = {bad.reason for bad in only_bad(read(path, part_bytes=400))[1:]}
    assert reasons == {"must be UTF-8, got zero bytes as of UTF-16"}


def test_long_lines_are_fine_until_they_are_no_records(tmp_path, monkeypatch):
    long = {"text": "é" * 2_000_000}
    path = write(tmp_path / "f.jsonl", json.dumps(long, ensure_ascii=False) + '\n{"a": 1}')
    assert fields(read(path, part_bytes=100_000)) == [long, {"a": 1}]
    monkeypatch.setattr("ellama_jax.corpus.records.RECORD_BYTES", 1000)
    for size in (2**26, 50_000):
        bad, good = read(path, part_bytes=size)
        assert bad.reason == "must be shorter than 1,000 bytes" and good.fields == {"a": 1}
        assert good.place == f"{path}@byte 4000013"


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_lines_come_in_one_part_with_the_places_of_the_plain_file(tmp_path, suffix):
    plain = write(tmp_path / "f.jsonl", LINES)
    packed = write(tmp_path / f"f.jsonl{suffix}", PACKERS[suffix](LINES))
    assert len(find_parts(packed, part_bytes=1)) == 1
    places = [one.place.replace(suffix, "") for one in read(packed)]
    assert fields(read(packed)) == LISTINGS and places == [one.place for one in read(plain)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_streams_laid_end_to_end_are_one_file(tmp_path, suffix):
    first, second = LINES[:50], LINES[50:]
    packed = PACKERS[suffix](first) + PACKERS[suffix](second)
    assert fields(read(write(tmp_path / f"f.jsonl{suffix}", packed))) == LISTINGS
    assert fields(read(write(tmp_path / f"f.jsonl{suffix}", packed + bytes(100)))) == LISTINGS
    assert read(write(tmp_path / f"f.jsonl{suffix}", b"")) == []


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_cut_off_keeps_what_came_before(tmp_path, suffix):
    lines = [
        json.dumps({"n": n, "text": random.Random(n).randbytes(90).hex()}) for n in range(4000)
    ]
    whole = PACKERS[suffix]("\n".join(lines).encode())
    path = write(tmp_path / f"f.jsonl{suffix}", whole[: len(whole) * 2 // 3])
    *found, last = read(path)
    assert len(found) > 400 and fields(found) == [json.loads(x) for x in lines[: len(found)]]
    assert last.place == f"{path}@end" and "stream that ends early; the rest" in last.reason
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 50] = b"\xff" * 50
    *found, last = read(write(path, bytes(broken)))
    assert isinstance(last, BadRecord) and 0 <= len([f for f in found if type(f) is Record]) < 4000


def test_a_wrong_checksum_at_the_end_of_gz_is_said(tmp_path):
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 1
    *found, last = read(write(tmp_path / "f.jsonl.gz", bytes(packed)))
    assert "got damage: Error -3" in last.reason


def test_what_is_not_compressed_as_its_name_says_is_said(tmp_path):
    (only,) = read(write(tmp_path / "f.jsonl.gz", LINES))
    assert only.reason.startswith("must be gz, got damage")
    assert fields(read(write(tmp_path / "g.gz", LINES), "jsonl", compression="none")) == LISTINGS


# --- a JSON array --------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_json_that_is_one_array_is_read_by_its_elements(tmp_path, indent):
    many = LISTINGS * 3000
    path = write(tmp_path / "f.json", "\n " + json.dumps(many, indent=indent, ensure_ascii=False))
    found = read(path)
    assert fields(found) == many and found[8999].place == f"{path}:9000"
    assert fields(read(write(tmp_path / "g.json", LINES))) == LISTINGS
    assert fields(read(write(tmp_path / "h.json.gz", gzip.compress(path.read_bytes())))) == many


@pytest.mark.parametrize("length", range(65_500, 65_560, 3))
def test_elements_may_lie_across_what_is_read_at_once(tmp_path, length):
    listing = {"t": "x" * length, "u": '\\"é\n', "v": [1.5, True, None], "w": "y" * 70_000}
    assert fields(read(write(tmp_path / "f.json", json.dumps([listing] * 3)))) == [listing] * 3


def test_elements_that_are_no_records_are_named(tmp_path):
    text = b'[{"a": 1}, 2, {"a": NaN}, {"a": "\xff"}, {"a": 5}, {"a" 6}, {"a": 7}]'
    path = write(tmp_path / "f.json", text)
    found = read(path)
    assert [type(one).__name__[0] for one in found] == ["R", "B", "B", "B", "R", "B"]
    assert found[1] == (f"{path}:2", "must be a JSON object, got int", "2")
    assert found[-1].place == f"{path}@end" and "Expecting ':' delimiter" in found[-1].reason
    for text in ('[{"a": 1}', '[{"a": 1}, {"a": "', '[{"a": 1}] {}'):
        first, last = read(write(path, text))
        assert first.fields == {"a": 1} and last.place == f"{path}@end"
    assert read(write(path, "[]")) == []


# --- CSV -----------------------------------------------------------------------------------------


def test_csv_cells_hold_commas_lines_quotes_and_a_megabyte(tmp_path):
    long = "x\n" * 500_000 + "ü"
    path = write(
        tmp_path / "f.csv",
        f'\ufeffHandle, Body (HTML) ,Price\r\na,"<p>x, ""y""\r\nz</p>",1\r\n\r\nb,"{long}",2\r\nc,,\r\n',
    )
    found = read(path)
    assert fields(found) == [
        {"Handle": "a", "Body (HTML)": '<p>x, "y"\r\nz</p>', "Price": "1"},
        {"Handle": "b", "Body (HTML)": long, "Price": "2"},
        {"Handle": "c", "Body (HTML)": "", "Price": ""},
    ]
    assert [one.place for one in found] == [f"{path}:{line}" for line in (2, 5, 500_006)]


def test_rows_that_do_not_fit_are_named_and_an_open_quote_takes_its_own_line_only(tmp_path):
    rows = [
        b"id,title",
        b"1,Cup",
        b"2",
        b"3,a,b",
        b"4,\xff",
        b'5,"open',
        b"6,Mug",
        b'7,"a"b',
        b"8,",
    ]
    path = write(tmp_path / "f.csv", b"\n".join(rows))
    found = read(path)
    assert [one.fields["id"] for one in found if isinstance(one, Record)] == ["1", "6", "8"]
    assert [(bad.place.removeprefix(f"{path}:"), bad.reason, bad.raw) for bad in only_bad(found)] == [
        ("3", "must have 2 cells as the header has, got 1", "2\n"),
        ("4", "must have 2 cells as the header has, got 3", "3,a,b\n"),
        ("5", "must be UTF-8, got byte 0xff at byte 2", "4,\\xff\n"),
        ("6", "must be CSV, got: ',' expected after '\"'", '5,"open\n'),
        ("8", "must be CSV, got: ',' expected after '\"'", '7,"a"b\n'),
    ]  # fmt: skip
    path = write(tmp_path / "g.csv", 'id,title\n1,"open\n2,b\n3,c\n')
    bad, *found = read(path)
    assert bad.reason == "must be CSV, got: unexpected end of data"
    assert fields(found) == [{"id": "2", "title": "b"}, {"id": "3", "title": "c"}]


def test_the_delimiter_is_the_one_of_the_header(tmp_path):
    expected = [{"sku": "1", "preis": "1,99"}]
    assert fields(read(write(tmp_path / "a.csv", "sku;preis\n1;1,99\n"))) == expected
    assert fields(read(write(tmp_path / "b.tsv", "sku\tpreis\n1\t1,99\n"))) == expected
    packed = write(tmp_path / "c.csv.zst", zstd(b'sku,preis\n1,"1,99"\n'))
    assert fields(read(packed)) == expected
    assert fields(read(write(tmp_path / "d.csv", "sku\n1\n"))) == [{"sku": "1"}]


def test_columns_of_one_name_become_a_list(tmp_path):
    path = write(tmp_path / "f.csv", "id,image,image\n1,a.jpg,b.jpg\n")
    assert fields(read(path)) == [{"id": "1", "image": ["a.jpg", "b.jpg"]}]


def test_a_table_without_rows_or_with_a_broken_header(tmp_path):
    assert (
        read(write(tmp_path / "a.csv", "")) == [] == read(write(tmp_path / "b.csv", "id,title\n"))
    )
    (only,) = read(write(tmp_path / "c.csv", b"id,\xff\n1,2\n"))
    assert only.reason.startswith("must begin with a header, but the first row must be UTF-8")


# --- Parquet -------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import datetime
    import decimal

    import pyarrow.parquet as pq

    path = tmp_path / "f.parquet"
    table = pa.table({
        "text": pa.array([f"Wörter {n}" if n % 3 else None for n in range(1000)]),
        "score": pa.array([float(n) if n else float("nan") for n in range(1000)]),
        "n": pa.array(range(1000), pa.int32()),
        "price": pa.array([decimal.Decimal(n).scaleb(-2) for n in range(1000)], pa.decimal128(9, 2)),
        "day": pa.array([datetime.date(2024, 2, 29)] * 1000),
        "raw": pa.array([b"caf\xc3\xa9", b"\xff\xd8"] * 500),
        "tags": pa.array([["a", None]] * 1000),
        "aspects": pa.array([[("Farbe", "rot")]] * 1000, pa.map_(pa.string(), pa.string())),
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=100, compression="zstd")
    return path


def test_parquet_gives_plain_values_in_parts_of_row_groups(parquet):
    whole = read(parquet)
    assert [one.fields["n"] for one in whole] == list(range(1000))
    assert whole[1].fields == {
        "text": "Wörter 1", "score": 1.0, "n": 1, "price": 0.01, "day": "2024-02-29",
        "raw": b"\xff\xd8", "tags": ["a", None], "aspects": {"Farbe": "rot"},
    }  # fmt: skip
    first = whole[0].fields
    assert (first["text"], first["score"], first["raw"]) == (None, None, "café")
    parts = find_parts(parquet, part_bytes=1000)
    assert [(part.start, part.stop) for part in parts] == [(n, n + 1) for n in range(10)]
    assert [one for part in parts for one in read_part(part)] == whole
    assert whole[999].place == f"{parquet}:1000"
    (part,) = find_parts(parquet)
    assert next(read_part(part, columns=("n", "absent"))).fields == {"n": 0}


def test_nested_parquet_is_what_arrow_says(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    chance = random.Random(0)

    def pick(value):
        return chance.choice([None, value])

    rows = [
        {
            "attributes": pick([pick({"name": f"n{n}", "value": pick({"de": "ä"})})] * (n % 4)),
            "price": pick({"amount": pick(n / 2), "units": pick(n)}),
            "deep": [[1, None], None, []] if n % 2 else [],
            "flag": pick(True),
        }
        for n in range(5000)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet", row_group_size=700)
    assert (
        fields(read(tmp_path / "f.parquet"))
        == rows
        == fields(read(tmp_path / "f.parquet", part_bytes=1))
    )


def test_a_row_that_is_no_text_is_the_only_one_lost(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"text": texts, "tags": [[{"x": 1}], [{"x": 2}], [{"x": 3}, {"x": 4}]]})
    pq.write_table(table, tmp_path / "f.parquet")
    first, bad, last = read(tmp_path / "f.parquet")
    assert first.fields == {"text": "a", "tags": [{"x": 1}]}
    assert last.fields == {"text": "c", "tags": [{"x": 3}, {"x": 4}]}
    assert bad == (f"{tmp_path}/f.parquet:2", "must be UTF-8, got byte 0xff at byte 0", "\\xff")


def test_damaged_parquet_is_named(parquet):
    data = parquet.read_bytes()
    for damaged in (data[:-100], b"no parquet", b""):
        for size in (2**26, 10):
            (only,) = read(write(parquet, damaged), part_bytes=size)
            assert only.place == f"{parquet}@end" and only.reason.startswith("must be Parquet")
    broken = bytearray(data)
    broken[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    *found, last = read(write(parquet, bytes(broken)))
    assert isinstance(last, BadRecord) and last.place == f"{parquet}@end" and len(found) < 1000


# --- TFRecord and TFDS ---------------------------------------------------------------------------


def examples(tf):
    def feature(values):
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
        return tf.train.Feature(**{kind: {"value": values}})

    for n in range(5):
        given = {"title": ["Käse".encode()], "n": [n], "price": [1.5], "tags": [b"a", b"\xff"]}
        message = {name: feature(values) for name, values in given.items()}
        message["none"] = tf.train.Feature()
        yield tf.train.Example(features={"feature": message}).SerializeToString()


@pytest.fixture(scope="module")
def tfrecords(tmp_path_factory):
    tf = pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("tf")
    for name, kind in (("f.tfrecord", ""), ("f.tfrecord.gz", "GZIP"), ("f.tfrecord.zlib", "ZLIB"),
                       ("f.tfrecord-00000-of-00001", "")):  # fmt: skip
        with tf.io.TFRecordWriter(str(folder / name), kind) as file:
            for example in examples(tf):
                file.write(example)
    return folder


def test_tfrecord_examples_are_read_compressed_or_not(tfrecords):
    for path in sorted(tfrecords.iterdir()):
        found = read(path)
        assert [one.fields.pop("n") for one in found] == [0, 1, 2, 3, 4]
        expected = {"title": "Käse", "price": 1.5, "tags": ["a", b"\xff"], "none": None}
        assert fields(found) == [expected] * 5 and found[4].place == f"{path}:5"


def test_a_wrong_checksum_of_tfrecord_ends_the_file_and_is_said(tfrecords, tmp_path):
    data = bytearray((tfrecords / "f.tfrecord").read_bytes())
    length = struct.unpack("<Q", data[:8])[0] + 16
    data[3 * length + 20] ^= 1
    for damaged in (data, data[: 4 * length - 10], data[: 3 * length + 5]):
        path = write(tmp_path / "f.tfrecord", bytes(damaged))
        *found, last = read(path)
        assert [one.fields["n"] for one in found] == [0, 1, 2]
        assert last.place == f"{path}@end" and "must be TFRecord, got:" in last.reason


@pytest.mark.parametrize("suffix", PACKERS)
def test_tfrecord_compressed_and_cut_off_is_said(tfrecords, tmp_path, suffix):
    # TensorFlow alone takes the first and the last of these for whole files.
    packed = PACKERS[suffix]((tfrecords / "f.tfrecord").read_bytes())
    for cut, kept in ((len(packed) - 2, None), (len(packed) // 2, None), (12, 0)):
        path = write(tmp_path / f"f.tfrecord{suffix}", packed[:cut])
        *found, last = read(path)
        assert "stream that ends early" in last.reason and last.place == f"{path}@end"
        assert kept is None or len(found) == kept
    assert len(fields(read(write(path, packed)))) == 5


def test_records_that_are_no_examples_are_named(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "f.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in (b"\xff\xff\xff", next(examples(tf))):
            file.write(record)
    bad, good = read(path)
    assert bad.reason == "must be a tf.train.Example, got other bytes" and good.fields["n"] == 0


@pytest.fixture(scope="module", params=["tfrecord", "array_record", "parquet"])
def tfds_dir(request, tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    import numpy as np

    folder = tmp_path_factory.mktemp("tfds")

    class MyDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "my_dataset"

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["bad", "good"]),
                "tags": tfds.features.Sequence(tfds.features.Text()),
                "n": np.int64,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for n in range(count):
                row = {"text": f"Stück {n}", "label": n % 2, "tags": ["x"] * (n % 3), "n": n}
                yield n, row

    builder = MyDataset(data_dir=str(folder), file_format=request.param)
    config = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return str(folder)


def test_tfds_datasets_are_read_by_shards(tfds_dir):
    parts = find_parts("my_dataset:1.0.0[train]", "tfds", data_dir=tfds_dir)
    assert len(parts) == 3 and [parts[0].start, parts[-1].stop] == [0, 20]
    found = [one for part in parts for one in read_part(part)]
    assert sorted(one.fields["n"] for one in found) == list(range(20))
    for one in found:
        n = one.fields["n"]
        label = ["bad", "good"][n % 2]
        assert one.fields == {"text": f"Stück {n}", "label": label, "tags": ["x"] * (n % 3), "n": n}
    assert [one.place for one in found] == [f"my_dataset:1.0.0[train]:{n + 1}" for n in range(20)]


def test_a_slice_of_tfds_is_that_slice(tfds_dir):
    whole = read("my_dataset:1.0.0[train]", "tfds", data_dir=tfds_dir)
    assert read("my_dataset:1.0.0[train[5:15]]", "tfds", data_dir=tfds_dir) == whole[5:15]
    both = read("my_dataset[test+train[:10%]]", "tfds", data_dir=tfds_dir)
    assert fields(both[3:]) == fields(whole[:2])


@pytest.mark.parametrize(
    "name, said",
    [
        (
            "my_dataset",
            r"my_dataset: must be a dataset with its split, as in name:1\.0\.0\[train\]",
        ),
        (
            "my_dataset:1.0.0[dev]",
            r"my_dataset:1\.0\.0: must have the split dev, got test, train\.",
        ),
        ("other[train]", "other: must be a dataset of"),
        ("my_dataset:9.9.9[train]", "my_dataset:9.9.9: must be a dataset of"),
    ],
)
def test_a_tfds_dataset_that_is_not_there_is_said(tfds_dir, name, said):
    with pytest.raises(ValueError, match=said):
        find_parts(name, "tfds", data_dir=tfds_dir)


# --- finding -------------------------------------------------------------------------------------


def test_globs_give_each_file_once_in_order(tmp_path):
    for name in (
        "b.jsonl",
        "a.jsonl",
        "deep/er/c.ndjson",
        ".hidden.jsonl",
        "note.txt",
        "x[1].jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "{}\n")
    globs = [
        f"{tmp_path}/*.jsonl",
        tmp_path / "a.jsonl",
        f"{tmp_path}/**/*.*json*",
        f"{tmp_path}/./b.jsonl",
    ]
    found = [part.path.removeprefix(f"{tmp_path}/") for part in find_parts(globs)]
    assert found == ["a.jsonl", "b.jsonl", "deep/er/c.ndjson", "x[1].jsonl"]
    assert find_parts(list(reversed(globs))) == find_parts(globs)
    assert len(find_parts(tmp_path / "x[1].jsonl")) == 1


@pytest.mark.parametrize(
    "path, options, said",
    [
        ("*.csv", {}, r"\*\.csv: must match a file, got none"),
        ("none.csv", {}, r"none\.csv: must be a file, got nothing there"),
        ("", {}, r"must be a file, got a directory; name its files, as in .*/\*\.jsonl"),
        (
            "note.txt",
            {},
            r"note\.txt: must end in one of \.jsonl .*, got \.txt; or name the format",
        ),
        ("note.gz", {}, "got no suffix; or name the format"),
        (
            "note.parquet.gz",
            {},
            r"compression of .*note.parquet.gz, outside it: must be one of none, got 'gz'",
        ),
        ("note.txt", {"format": "xml"}, "format: must be one of auto, jsonl, .* got 'xml'"),
        ("note.txt", {"compression": "rar"}, "compression: must be one of auto, none, gz"),
        ("note.txt", {"format": "jsonl", "part_bytes": 0}, "part_bytes: must be at least 1, got 0"),
    ],
)
def test_slips_are_said_before_any_work(tmp_path, path, options, said):
    for name in ("note.txt", "note.gz", "note.parquet.gz", "fine.jsonl"):
        write(tmp_path / name, "{}")
    with pytest.raises(ValueError, match=said):
        find_parts([tmp_path / "fine.jsonl", f"{tmp_path}/{path}"], **options)


def test_no_paths_are_a_slip():
    with pytest.raises(ValueError, match="paths: must name at least one file, got none"):
        find_parts([])
    with pytest.raises(ValueError, match="s3://a/b.csv: must be a local path or begin with gs://"):
        find_parts("s3://a/b.csv")


def test_parts_pickle_and_name_what_they_are(tmp_path):
    path = write(tmp_path / "out-00003-of-00007.jsonl", LINES)
    parts = find_parts(path, part_bytes=100)
    assert parts == pickle.loads(pickle.dumps(parts))
    assert parts[0] == Part(str(path), "jsonl", "none", 0, 100, None)
    assert fields([one for part in parts for one in read_part(part)]) == LISTINGS


def test_memory_does_not_grow_with_the_file(tmp_path):
    import tracemalloc

    text = random.Random(0).randbytes(5_000).hex()
    line = (json.dumps({"text": text}) + "\n").encode() * 100
    plain, packed = tmp_path / "f.jsonl", tmp_path / "f.jsonl.gz"
    with open(plain, "wb") as one, gzip.open(packed, "wb", 1) as two:
        for _ in range(20):
            one.write(line)
            two.write(line)
    for path in (plain, packed):
        tracemalloc.start()
        count = sum(1 for _ in read_part(find_parts(path)[0]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 2000 and peak < 2**22, peak


def test_values_of_other_libraries_become_plain():
    np = pytest.importorskip("numpy")
    given = {"a": np.float32(1.5), "b": np.arange(2), "c": np.array([b"x"], object), "d": np.nan}
    assert plain_value(given) == {"a": 1.5, "b": [0, 1], "c": ["x"], "d": None}
    assert type(plain_value(np.int64(3))) is int and plain_value(True) is True


# --- in a bucket ---------------------------------------------------------------------------------


def test_files_in_a_bucket_are_found_and_read_as_local_ones(bucket, tmp_path, parquet):
    from ellama_jax.core.paths import as_path

    files = {
        "a.jsonl": LINES * 40, "deep/b.jsonl.gz": gzip.compress(LINES), "deep/er/c.jsonl": LINES,
        "t.csv": b"id,title\n1,Cup\n", "p.parquet": parquet.read_bytes(),
    }  # fmt: skip
    for name, data in files.items():
        as_path(f"{bucket}/raw/{name}").write_bytes(data)
    names = [
        part.path.removeprefix(f"{bucket}/raw/") for part in find_parts(f"{bucket}/raw/**/*.jsonl*")
    ]
    assert names == ["a.jsonl", "deep/b.jsonl.gz", "deep/er/c.jsonl"]
    assert fields(read(f"{bucket}/raw/a.jsonl", part_bytes=1000)) == LISTINGS * 40
    assert fields(read(f"{bucket}/raw/d*/*.jsonl.gz")) == LISTINGS
    assert fields(read(f"{bucket}/raw/*.csv")) == [{"id": "1", "title": "Cup"}]
    found = read(f"{bucket}/raw/p.parquet", part_bytes=1000)
    assert fields(found) == fields(read(parquet))
    for path, said in (
        ("raw/*.xml", "must match a file"),
        ("raw/x.csv", "got nothing"),
        ("raw", "a directory"),
    ):
        with pytest.raises(ValueError, match=said):
            find_parts(f"{bucket}/{path}")


def test_a_tfrecord_in_a_bucket_is_read(bucket, tfrecords):
    from ellama_jax.core.paths import as_path

    as_path(f"{bucket}/tf/f.tfrecord").write_bytes((tfrecords / "f.tfrecord").read_bytes())
    assert [one.fields["n"] for one in read(f"{bucket}/tf/f.tfrecord")] == [0, 1, 2, 3, 4]


def test_zlib_streams_are_read_by_name(tmp_path):
    path = write(tmp_path / "f.jsonl.zlib", zlib.compress(LINES))
    assert fields(read(path)) == LISTINGS
