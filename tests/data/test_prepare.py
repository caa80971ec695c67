"""`ellama prepare` writes what its input says, all of it in order of nothing but the seed, or nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ellama_jax.data.packing import PADDING
from ellama_jax.data.prepare import main_prepare
from ellama_jax.data.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.data.windows import WindowSet, read_manifest, segments

TEXTS = {
    ("ecommerce", "de"): [
        "Titel: Jacke, grün\nPreis: 129,95 €",
        "! Sehr gut ! Passt !",
        "Zu klein",
    ],
    ("ecommerce", "fr"): ["Veste imperméable à capuche"],
    ("general", "de"): ["Die Donau ist ein Fluss. " * 12, "Ende <|end_of_text|> oder nicht?"],
}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    trained = train_byte_bpe([text for texts in TEXTS.values() for text in texts], 320)
    save_tokenizer(path, trained, trained.get_vocab_size() - 2, trained.get_vocab_size() - 1)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


def document(text, domain="ecommerce", language="de", source="shop", **changes):
    fields = {"text": text, "domain": domain, "language": language, "source": source}
    return fields | {"product_id": None} | changes


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


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
        "import sys\nfrom ellama_jax.data.prepare import main_prepare\n"
        "try: main_prepare(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'tensorflow', 'seqio', 'grain'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example: ellama prepare --documents" in done.stdout
