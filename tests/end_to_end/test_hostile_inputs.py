"""Input made to do harm: each case is one line and an exit status, and nothing is read, written or run.

A case spoils a copy of good input, as somebody would who publishes a model or a catalogue.
"""

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import pytest

from ellama_jax import cli
from ellama_jax.corpus.readers import find_parts, read_part
from ellama_jax.corpus.records import BadRecord
from ellama_jax.weights.layout import find_checkpoint

SECRET = "aws_secret_access_key = not-to-be-published"


def link(place, path, target):
    """Puts a link at `path` to a file that lies outside of what is given to the verb."""
    (place / "credentials").write_text(SECRET)
    (place / path).unlink(missing_ok=True)
    (place / path).symlink_to(target)


def edit(place, path, change):
    content = json.loads((place / path).read_text())
    change(content)
    (place / path).write_text(json.dumps(content))


def name_weights(place, name):
    index = {"weight_map": {"model.norm.weight": name}}
    (place / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))


def curated(place, name):
    """A curation whose report names a file elsewhere."""
    (place / "curation").mkdir()
    report = {"files": [{"name": name, "bytes": 1, "records": 1}]}
    (place / "curation" / "curation.json").write_text(json.dumps(report))


IMPORT = ("import", "hf", "dst")
PREPARE = ("--tokenizer=base/tokenizer", "--out=w", "--window-length=32")
TRAIN = ("train", "--config=run.py", "--workdir=run")
LINKS = [
    # path of the link, where it leads, the verb, what its line names
    ("hf/chat_template.jinja", "../credentials", IMPORT, "hf/chat_template.jinja"),
    ("hf/chat_template.jinja", "{place}/credentials", IMPORT, "hf/chat_template.jinja"),
    ("hf/original", "..", IMPORT, "hf/original"),
    ("hf/config.json", "../elsewhere.json", IMPORT, "hf/config.json"),
    ("hf/notes.md", "../credentials", ("verify", "base", "hf"), "hf/notes.md"),
    ("hf/notes.md", "../credentials", ("verify", "hf", "--write-reference=r.npz"), "hf/notes.md"),
    ("hf/notes.md", "../credentials", ("evaluate", "--checkpoint=hf", "--benchmark=benchmark",
      "--tasks=category_prediction"), "hf/notes.md"),
    ("base/tokenizer/notes.md", "../../credentials", ("export", "base", "dst", "--allow-unverified"),
     "base/tokenizer/notes.md"),
    ("base/tokenizer/notes.md", "../../credentials",
     ("prepare", "--documents=documents.jsonl", *PREPARE), "base/tokenizer/notes.md"),
    ("base/tokenizer/notes.md", "../../credentials",
     ("merge", "--base=base", "--adapted=adapted", "--alpha=0.5", "--out=dst", "--allow-unverified"), "base/tokenizer/notes.md"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "target", "verb", "named"), LINKS)
def test_a_link_out_of_a_model_is_refused(refused, place, path, target, verb, named):
    link(place, path, target.format(place=place))
    line = refused(*verb)
    assert f"{named}: must be no link out of its directory" in line
    assert SECRET not in line


def test_links_of_a_model_to_itself_and_to_the_blobs_of_its_cache_are_followed(place):
    snapshot = place / "models--x--y" / "snapshots" / "0123abcd"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((place / "hf").iterdir())):
        os.replace(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "copy.json").symlink_to("config.json")
    cli.main(["import", str(snapshot), str(place / "dst")])
    assert find_checkpoint(place / "dst").meta["provenance"]["kind"] == "import"


NAMES = [
    # how a name is given, the verb, what the line says of it
    (lambda place: name_weights(place, "../elsewhere/x.safetensors"), IMPORT, "../elsewhere/x"),
    (lambda place: name_weights(place, "/elsewhere/x.safetensors"), IMPORT, "'/elsewhere/x"),
    (lambda place: name_weights(place, 7), IMPORT, "got 7"),
    (lambda place: name_weights(place, "../x.safetensors"), ("verify", "base", "hf"), "../x"),
    (lambda place: curated(place, "documents/train/../../../credentials"),
     ("build-benchmark", "curation", "dst"), "../../../credentials"),
    (lambda place: edit(place, "windows/general-en/manifest.json",
                        lambda manifest: manifest["shards"][0].update(name="../../x.npy")),
     ("inspect", "windows/general-en"), "../../x.npy"),
    (lambda place: edit(place, "windows/general-en/manifest.json",
                        lambda manifest: manifest["shards"][0].update(name="../../x.npy")),
     (*TRAIN, "--config.model.checkpoint=base", "--config.data.windows_dir=windows"), "../../x.npy"),
]  # fmt: skip


@pytest.mark.parametrize(("give", "verb", "named"), NAMES)
def test_a_name_that_leads_out_of_its_directory_is_refused(refused, place, give, verb, named):
    give(place)
    line = refused(*verb)
    assert "must name files inside" in line and named in line


# --- words into shells and terminals -------------------------------------------------------------

ESCAPES = "\x1b]0;title\x07\x1b[2Jname\x9b31m\u202e"


def test_the_escapes_of_an_error_are_written_out(refused):
    line = refused("inspect", f"nowhere{ESCAPES}")
    assert line.isprintable() and r"\x1b]0;title\x07\x1b[2Jname\x9b31m\u202e" in line


def test_the_escapes_of_a_window_set_are_written_out(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    source = {"name": f"shop{ESCAPES}", "kind": "documents", "sha256": "0" * 64, "documents": 1}
    edit(place, "windows/general-en/manifest.json",
         lambda manifest: manifest.update(sources=[source], command=f"prepare {ESCAPES}"))  # fmt: skip
    cli.main(["inspect", "windows/general-en", "--show=1", "--tokenizer=base/tokenizer"])
    cli.main(["inspect", "windows/general-en"])
    said = capfd.readouterr().out
    assert r"shop\x1b]0;title" in said
    assert all(character.isprintable() or character in "\n\t" for character in said)


def test_a_title_of_several_lines_is_no_command(place, monkeypatch):
    from ellama_jax.experiments.sweep_commands import write_commands
    from ellama_jax.experiments.sweep_grid import Rule, Sweep, Trial

    monkeypatch.chdir(place)
    trial = Trial("a", None, ("--config=x.py", "--config.run=a b;touch made"), None, "0" * 16)
    sweep = Sweep("Rates\ntouch made\r$(touch made)", (trial,), (), {}, Rule(), False)
    (place / "bin").mkdir()
    (place / "bin" / "ellama").write_text("#!/bin/sh\n")
    (place / "bin" / "ellama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    write_commands(sweep, "runs; touch made", place / "go.sh")
    subprocess.run(["bash", "go.sh"], check=True)
    assert not (place / "made").exists()
    (place / "slice.env").write_text("NAME=x\nWORKDIR=gs://b/x\nCONFIG=x\n")
    trial = dataclasses.replace(trial, arguments=("--config=x", "--config.run=a\nNAME=other"))
    sweep = dataclasses.replace(sweep, trials=(trial,))
    with pytest.raises(ValueError, match="values of one line"):
        write_commands(sweep, "gs://b/runs", place / "go.sh", env=place / "slice.env")


def test_every_locked_package_is_held_by_its_hashes():
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    pins = re.findall(r"^\S+==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert len(pins) > 200
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    installed = [pin.split("==")[0] for pin in pins if "sys_platform == 'never'" not in pin]
    assert "chardet" not in installed  # LGPL


# --- what is not ours ----------------------------------------------------------------------------

RECIPE = """
from configs.data import base


def get_config():
    config = base.get_config()
    config.sources.shop = base.source(kind="listings", paths=("records*",), language="en", max_bad_frac=1.0)
    config.cache_dir = "cache"
    return config
"""


def curate(place, *more):
    (place / "recipe.py").write_text(RECIPE)
    if not list(place.glob("records*")):
        shutil.copy(place / "listings.jsonl", place / "records.jsonl")
    return ("curate", "--config=recipe.py", "--out=out", *more)


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_directory_of_another_where_curate_would_work_stays_as_it_is(refused, place, more):
    (place / ".out.partial").mkdir()
    (place / ".out.partial" / "thesis.txt").write_text("years of work")
    line = refused(*curate(place, *more), changed=["recipe.py", "records.jsonl", "cache"])
    assert line.startswith(".out.partial: must not exist, or be left over from ellama curate")


def test_a_link_where_curate_would_work_is_not_followed(refused, place):
    (place / "documents").mkdir()
    (place / "documents" / "thesis.txt").write_text("years of work")
    (place / ".out.partial").symlink_to("documents")
    line = refused(*curate(place), changed=["recipe.py", "records.jsonl", "cache"])
    assert line.startswith(".out.partial: must not exist, or be left over from ellama curate")


@pytest.mark.parametrize("file", ["curation.started", "curation.json"])
def test_what_a_killed_curation_left_is_taken_over(place, monkeypatch, file):
    """Killed at work, or after the last file was written and before it was renamed."""
    monkeypatch.chdir(place)
    (place / ".out.partial" / "documents").mkdir(parents=True)
    (place / ".out.partial" / file).write_text("{}")
    cli.main(list(curate(place)))
    assert (place / "out" / "curation.json").is_file() and not (place / ".out.partial").exists()


def test_what_only_has_a_name_like_ours_outlives_a_curation(place, monkeypatch):
    monkeypatch.chdir(place)
    words = list(curate(place))
    cli.main(words)
    kept = [place / ".out.old", place / ".out.old-1", place / "documents"]
    for directory in kept:
        directory.mkdir()
        (directory / "thesis.txt").write_text("years of work")
    (place / ".out.ellama-old-999999999").symlink_to("documents")
    cli.main([*words, "--overwrite"])
    assert [(directory / "thesis.txt").read_text() for directory in kept] == ["years of work"] * 3


# --- private data --------------------------------------------------------------------------------

PRIVATE = ("joe.doe@shop.example", "joe\uff20shop.example", "joe@\u200bshop.example", "212-736-5000",
           "Jo Doe-Smith")  # fmt: skip


def test_nothing_private_is_written_beside_the_documents(place, monkeypatch, capfd):
    """Of bad records, of what was left out, of ids; in the files, on the terminal and in the page."""
    monkeypatch.chdir(place)
    told = f"Write to {', '.join(PRIVATE[:3])} or call {PRIVATE[3]}; {PRIVATE[4]}"
    lamp = {
        "title": "Lamp",
        "description": "A warm lamp of oak.",
        "seller": PRIVATE[4],
        "language": "en",
    }
    records = [
        json.dumps({**lamp, "title": f"Lamp. {told}", "product_id": f"{PRIVATE[0]}/7"}),
        json.dumps({**lamp, "price": f"ask {told}", "id": "3"}),  # no price: a bad record
        json.dumps({**lamp, "title": 7, "note": told}, ensure_ascii=False),
        json.dumps({**lamp, "title": 8, "note": told}, ensure_ascii=True),
        f'{{"title": "cut off", "note": "{told.rpartition(";")[0]}',
        json.dumps({**lamp, "language": "xx", "title": told.rpartition(";")[0]}),
    ]
    (place / "records.jsonl").write_text("\n".join(records) + "\n")
    recipe = RECIPE.replace('language="en", ', "")
    words = curate(place)
    (place / "recipe.py").write_text(recipe)
    cli.main(list(words))
    cli.main(["inspect", "out", "--show=9", "--html=page.html", "--json=page.json"])
    written = [
        gzip.decompress(path.read_bytes()).decode() for path in (place / "out").rglob("*.gz")
    ]
    written += [
        (place / name).read_text() for name in ("out/curation.json", "page.html", "page.json")
    ]
    for text in (*written, *capfd.readouterr()):
        plain = text.encode().decode("unicode_escape", "replace") + text
        found = [private for private in (*PRIVATE, "shop.example") if private in plain]
        assert found == [], text
    assert any("[e-mail]" in text and "[phone number]" in text for text in written)
    dead = list((place / "out" / "dead_letters").iterdir())
    assert dead and {path.stat().st_mode & 0o777 for path in dead} == {0o600}


def test_an_id_is_one_in_any_face():
    from ellama_jax.corpus.listings import normalise_listing
    from ellama_jax.corpus.splits import identifiers

    faces = (
        "B017-X",
        "B017-X",
        "\uff22\uff10\uff11\uff17\uff0d\uff38",
        "B0\u200b17-X",
        " B017\u2060-X ",
    )
    ids = {normalise_listing({"title": "Lamp", "id": face, "language": "en"}, source="s")["product_id"]
           for face in faces}  # fmt: skip
    assert ids == {"B017-X"}
    numbers = ("4006381333931", "\uff14\uff10\uff10\uff16\uff13\uff18\uff11\uff13\uff13\uff13\uff19\uff13\uff11",
               "4006381\u200b333931")  # fmt: skip
    listings = [{"title": "Pen", "aspects": {"EAN": number}} for number in numbers]
    assert {tuple(identifiers(listing)) for listing in listings} == {("gtin:04006381333931",)}


# --- bombs ---------------------------------------------------------------------------------------

MEMORY_BYTES = 256 * 2**20  # what a refusal may take; a line of 64 MiB is held twice
HUGE = 300_000_000


def pack(compression, piece, times):
    """Compresses many times the same bytes, without having them all."""
    import zstandard

    makers = {"bz2": bz2.BZ2Compressor, "xz": lzma.LZMACompressor, "zlib": zlib.compressobj,
              "gz": lambda: zlib.compressobj(wbits=31), "zst": zstandard.ZstdCompressor(19).compressobj}  # fmt: skip
    packer = makers[compression]()
    return b"".join([*(packer.compress(piece) for _ in range(times)), packer.flush()])


@pytest.mark.parametrize(
    ("format", "compression"),
    [*(("jsonl", packed) for packed in ("bz2", "gz", "xz", "zst", "zlib")),
     *((format, "bz2") for format in ("json", "csv", "tfrecord"))],
)  # fmt: skip
def test_a_file_that_expands_without_end_is_one_bad_record(place, format, compression):
    path = place / f"records.{format}.{compression}"
    path.write_bytes(pack(compression, b'{"a": "' + b"0" * 10**6, HUGE // 10**6))
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    (part,) = find_parts([str(path)])
    records = list(read_part(part))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert records and all(isinstance(record, BadRecord) for record in records)
    assert peak < MEMORY_BYTES


def test_documents_that_expand_without_end_are_refused(refused, place):
    (place / "bomb.jsonl.gz").write_bytes(pack("gz", b"0" * 10**6, HUGE // 10**6))
    line = refused("prepare", "--documents=bomb.jsonl.gz", *PREPARE)
    assert "bomb.jsonl.gz: must" in line and len(line) < 300


def gguf(place, pairs, tensors=1):
    """A GGUF file that counts more than it holds."""
    pairs = b"".join(struct.pack("<Q", len(key)) + key + value for key, value in pairs)
    (place / "bomb.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, 1) + pairs)


@pytest.mark.parametrize(
    ("pairs", "tensors"),
    [
        ([(b"a", struct.pack("<IIQ", 9, 0, 2**40))], 1),  # an array of bytes
        ([(b"a", struct.pack("<IIQ", 9, 8, 2**40))], 1),  # of strings
        ([(b"a", struct.pack("<IIQI", 9, 9, 2**40, 9))], 1),  # of arrays
        ([(b"a", struct.pack("<IQ", 8, 2**60))], 1),  # a string
        ([(b"a", struct.pack("<IB", 0, 0))], 2**40),  # tensors
    ],
)
def test_a_gguf_file_that_counts_more_than_it_holds_is_refused(refused, place, pairs, tensors):
    gguf(place, pairs, tensors)
    assert "bomb.gguf: must be a whole GGUF file" in refused("import", "bomb.gguf", "dst")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**8), ("num_hidden_layers", 0), ("vocab_size", 10**12), ("hidden_size", 10**9),
     ("num_key_value_heads", -1), ("intermediate_size", 2**62)],
)  # fmt: skip
def test_a_model_of_sizes_that_no_model_has_is_refused(refused, place, key, value):
    edit(place, "hf/config.json", lambda config: config.update({key: value}))
    line = refused(*IMPORT)
    assert "must be" in line and f"{value:,}" in line


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"]
)
def test_json_of_a_model_that_is_nested_without_end_is_refused(refused, place, file):
    (place / "hf" / file).write_text("[" * 200_000)
    assert file in refused(*IMPORT)
