"""The audit of window sets: figures that can be counted by hand, and every damage named."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from ellama_jax.report.audit_html import render_audit
from ellama_jax.report.audit_text import describe_set
from ellama_jax.tokens.audit import (
    audit_set,
    audit_sets,
    choose_windows,
    cut_window,
    measure_mixture,
)
from ellama_jax.tokens.audit_problems import OTHER_TOKENIZER, find_mixture_problems
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.tokens.windows import WindowSet, read_manifest, write_windows

WORDS = [
    "lamp",
    "table",
    "chair",
    "sofa",
    "shelf",
    "mirror",
    "carpet",
    "pillow",
    "curtain",
    "basket",
    "candle",
    "vase",
]
TEXTS = [
    f"{a} {b} {c} {number}"
    for number, (a, b, c) in enumerate(zip(WORDS, WORDS[1:], WORDS[2:], strict=False))
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


def make_tokenizer(directory, **config):
    bpe = train_byte_bpe(TEXTS, 320)
    save_tokenizer(directory, bpe, bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return load_tokenizer(directory)


def write(place, tokenizer, texts, window_length=64, **more):
    settings = {"domain": "ecommerce", "language": "en", "seed": 0} | more
    write_windows(
        place, tokenizer.encode_batch(texts), tokenizer=tokenizer, window_length=window_length,
        sources=[{"name": "a.jsonl", "sha256": "0" * 64, "documents": len(texts)}],
        command="made so", **settings,
    )  # fmt: skip
    return WindowSet(place)


SOURCES = {"shop": {"documents": 10, "tokens": 50, "words": 1000, "bytes": 5000}}


class Fake:
    """A window set whose windows and manifest are given; what a broken writer could have left."""

    def __init__(self, windows, rows, **changes):
        self.path = windows.path
        self.rows = [np.asarray(row, np.uint32) for row in rows]
        counts = {"num_windows": len(self.rows), "window_length": len(self.rows[0])}
        self.manifest = dataclasses.replace(windows.manifest, **counts, **changes)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def read(self, indices):
        return [self.rows[index] for index in indices]


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tokenizer):
    return write(tmp_path_factory.mktemp("sound") / "ecommerce-en", tokenizer, TEXTS)


def test_a_sound_set_has_figures_and_no_problem(sound, tokenizer):
    audit = audit_set(sound, tokenizer)
    assert audit["problems"] == []
    assert audit["sample"]["documents"] == len(TEXTS) == audit["lengths"]["documents"]
    assert audit["sample"]["whole_set"] and audit["sample"]["cut_documents"] == 0
    text = audit["text"]
    ids = tokenizer.encode_batch(TEXTS)
    assert text["tokens"] == sum(map(len, ids))
    assert text["words"] == 4 * len(TEXTS)
    assert text["bytes"] == sum(len(t.encode()) for t in TEXTS)
    assert audit["fertility"]["tokens_per_word"] == pytest.approx(text["tokens"] / (4 * len(TEXTS)))
    assert audit["fertility"]["bytes_per_token"] == pytest.approx(text["bytes"] / text["tokens"])
    assert audit["lengths"]["longest"] == max(map(len, ids)) + 2
    json.dumps(audit, allow_nan=False)


def test_the_audit_is_plain_data_and_the_same_every_time(sound, tokenizer):
    assert json.dumps(audit_set(sound, tokenizer, 2)) == json.dumps(audit_set(sound, tokenizer, 2))


def test_a_window_is_cut_into_documents_and_parts_of_documents(sound):
    bos, eos = sound.manifest.bos_id, sound.manifest.eos_id
    window = [5, 6, eos, bos, 7, eos, bos, 8, 9, eos, PADDING, PADDING]
    pieces = cut_window(np.array(window, np.uint32), sound.manifest, 3)
    assert [p.tokens.tolist() for p in pieces] == [[5, 6, eos], [bos, 7, eos], [bos, 8, 9, eos]]
    assert [p.body.tolist() for p in pieces] == [[5, 6], [7], [8, 9]]
    assert [(p.begins, p.ends) for p in pieces] == [(False, True), (True, True), (True, True)]
    assert [(p.window, p.number) for p in pieces] == [(3, 1), (3, 2), (3, 3)]
    (piece,) = cut_window(np.full(4, 5, np.uint32), sound.manifest)
    assert (piece.begins, piece.ends) == (False, False)
    assert cut_window(np.full(4, PADDING, np.uint32), sound.manifest) == []


def test_one_token_for_bos_and_eos_still_cuts_documents(sound):
    manifest = dataclasses.replace(sound.manifest, bos_id=2, eos_id=2)
    window = np.array([2, 7, 8, 2, 2, 9, 2, PADDING], np.uint32)
    pieces = cut_window(window, manifest)
    assert [p.body.tolist() for p in pieces] == [[7, 8], [9]]
    assert all(p.begins and p.ends for p in pieces)


def test_a_split_document_is_counted_as_cut_and_is_no_problem(tmp_path, tokenizer):
    long = " ".join(f"{WORDS[n % 12]} {n}" for n in range(120))
    audit = audit_set(write(tmp_path / "ecommerce-en", tokenizer, [*TEXTS, long]), tokenizer)
    assert audit["problems"] == []
    assert audit["sample"]["cut_documents"] == 1 == audit["manifest"]["num_split_documents"]
    assert audit["marks"]["continuations"] > 1
    assert audit["lengths"]["documents"] == len(TEXTS)


def test_windows_are_chosen_over_the_whole_set():
    assert choose_windows(100, 4, 8).tolist() == [12, 37, 62, 87]
    assert choose_windows(5, None, 8192).tolist() == [0, 1, 2, 3, 4]
    assert len(choose_windows(10**9, None, 8192)) == 128
    with pytest.raises(ValueError, match="sample: must be at least 1, got 0"):
        choose_windows(5, 0, 8)


def test_a_sample_leaves_the_counts_of_the_manifest_alone(sound, tokenizer):
    audit = audit_set(sound, tokenizer, 1)
    assert audit["problems"] == [] and not audit["sample"]["whole_set"]
    assert audit["manifest"]["num_documents"] == len(TEXTS) > audit["sample"]["documents"]


def test_words_and_bytes_of_a_manifest_that_has_them_are_taken(sound, tokenizer):
    class Counted:
        def __getattr__(self, name):
            stated = {"num_words": 1000, "num_bytes": 5000, "by_source": SOURCES}
            return stated[name] if name in stated else getattr(sound.manifest, name)

    windows = Fake(sound, [sound[i] for i in range(len(sound))])
    windows.manifest = Counted()
    text = audit_set(windows, None)["fertility"]
    assert (text["from"], text["words"], text["bytes"]) == ("manifest", 1000, 5000)
    assert text["tokens"] == sound.manifest.num_tokens - 2 * len(TEXTS)
    said = audit_sets([windows], tokenizer) | {"vocabulary": None}
    assert "    shop: 10 documents, 50 tokens (" in describe_set(said["sets"]["ecommerce-en"])
    assert "of its set" in render_audit("Audit", said, [windows], tokenizer)


def damaged(sound, tokenizer, change):
    rows = [sound[i].copy() for i in range(len(sound))]
    return audit_set(Fake(sound, [change(row) for row in rows]), tokenizer)["problems"]


def test_a_lost_bos_is_a_problem(sound, tokenizer):
    bos = sound.manifest.bos_id
    problems = damaged(sound, tokenizer, lambda row: np.where(row == bos, 5, row))
    assert any("10 documents do not begin with BOS" in p for p in problems), problems


def test_an_eos_inside_a_document_is_a_problem(sound, tokenizer):
    eos = sound.manifest.eos_id

    def change(row):
        row[3] = eos
        return row

    problems = damaged(sound, tokenizer, change)
    assert any("or an EOS stands inside a document" in p for p in problems)
    assert any("the manifest says 10 documents, the windows hold" in p for p in problems)


def test_a_lost_eos_and_a_second_bos_are_problems(sound, tokenizer):
    eos, bos = sound.manifest.eos_id, sound.manifest.bos_id
    problems = damaged(sound, tokenizer, lambda row: np.where(row == eos, 5, row))
    assert any("documents do not end with EOS" in p for p in problems)
    rows = [[bos, bos, 5, eos]]
    problems = audit_set(Fake(sound, rows), tokenizer)["problems"]
    assert f"the special token {BEGIN_OF_TEXT} stands 1 times inside documents" in problems


def test_empty_documents_unknown_ids_and_padding_inside_are_problems(sound, tokenizer):
    eos, bos = sound.manifest.eos_id, sound.manifest.bos_id
    rows = [[bos, eos, bos, 999, eos, PADDING], [bos, PADDING, 5, eos, PADDING, PADDING]]
    problems = audit_set(Fake(sound, rows), None)["problems"]
    assert "1 documents are empty between BOS and EOS" in problems
    assert "1 ids are outside the vocabulary of 320" in problems
    assert "1 windows hold padding before their last token" in problems


def test_windows_that_are_not_those_that_were_written_are_a_problem(sound, tokenizer):
    problems = damaged(sound, tokenizer, lambda row: np.where(row == row[1], 84, row))
    assert problems[:1] == ["the windows are not those that the manifest's content_sha256 names"]


def test_hashes_of_single_shards_are_checked_where_a_manifest_has_them(sound, tokenizer):
    rows = [sound[i] for i in range(len(sound))]
    half = len(rows) // 2

    def shard(rows):
        data = b"".join(row.tobytes() for row in rows)
        return {"records": len(rows), "sha256": hashlib.sha256(data).hexdigest()}

    shards = [shard(rows[:half]), shard(rows[half:])]
    good = Fake(sound, rows, shards=shards, content_sha256="another kind")
    assert half > 0 and audit_set(good, tokenizer)["problems"] == []
    bad = Fake(sound, rows, shards=[shards[0], {**shards[1], "sha256": "0" * 64}])
    assert "content_sha256" in audit_set(bad, tokenizer)["problems"][0]


def test_much_padding_is_a_problem_but_one_window_s_is_not(sound, tokenizer):
    bos, eos = sound.manifest.bos_id, sound.manifest.eos_id
    rows = [[bos, 5 + n, eos, *[PADDING] * 5] for n in range(4)]
    problems = audit_set(Fake(sound, rows, num_padding=20), tokenizer)["problems"]
    assert any("of all places are padding" in p for p in problems)
    assert not any("padding" in p for p in audit_set(sound, tokenizer)["problems"])


def test_a_set_made_without_bos_is_a_problem_where_the_vocabulary_has_one(tmp_path):
    without = make_tokenizer(tmp_path / "t", bos_token=None)
    assert without.bos_id is None
    audit = audit_set(write(tmp_path / "ecommerce-en", without, TEXTS), without)
    (problem,) = audit["problems"]
    assert problem.startswith(f"made without BOS, though the tokenizer has {BEGIN_OF_TEXT}")


def test_duplicates_are_counted_and_shown(tmp_path, tokenizer):
    texts = [*TEXTS, *[TEXTS[0]] * 3, "oak bed 90 x 200 cm, made by hand in Ulm, size S, natural wood",
             "oak bed 90 x 200 cm, made by hand in Ulm, size M, natural wood"]  # fmt: skip
    audit = audit_set(write(tmp_path / "ecommerce-en", tokenizer, texts), tokenizer)
    found = audit["duplicates"]
    assert (found["exact_documents"], found["near_documents"]) == (3, 1)
    assert found["most_repeated"][0]["times"] == 4
    assert found["most_repeated"][0]["text"] == TEXTS[0]
    (example,) = found["near_examples"]
    assert {example["first"], example["second"]} == set(texts[-2:])
    exact, near = audit["problems"]
    assert exact == "3 of 15 documents read (20.0%) repeat another, but for case and white space"
    assert near.startswith("1 of 15 documents read (6.7%) are near-duplicates")


def test_broken_text_and_html_are_problems_of_listings(tmp_path, tokenizer):
    texts = ["a \ufffd\ufffd lamp", "a <b>red</b> lamp &amp; shade", "a < b and c > d & e", *TEXTS]
    shop = audit_set(write(tmp_path / "ecommerce-en", tokenizer, texts), tokenizer)
    assert shop["problems"] == [
        "1 of 13 documents read hold U+FFFD, the mark of bytes that were no UTF-8",
        "1 of 13 documents read hold tags or character references of HTML",
    ]
    general = write(tmp_path / "general-en", tokenizer, texts[1:], domain="general")
    assert audit_set(general, tokenizer)["problems"] == []


def test_a_special_token_s_name_in_text_is_counted_and_no_problem(tmp_path, tokenizer):
    windows = write(tmp_path / "ecommerce-en", tokenizer, [*TEXTS, f"a {END_OF_TEXT} lamp"])
    audit = audit_set(windows, tokenizer)
    assert audit["problems"] == [] and audit["text"]["documents_naming_special_tokens"] == 1


def test_sets_are_summed_by_language_and_compared(tmp_path, tokenizer, sound):
    texts = ["sieben rote Lampen", "ein Tisch aus Holz"]
    german = write(tmp_path / "ecommerce-de", tokenizer, texts, language="de")
    again = write(tmp_path / "ecommerce-de-b", tokenizer, texts, language="de", source="b")
    audit = audit_sets([sound, german, again], tokenizer)
    rows = {(r["domain"], r["language"]): r for r in audit["languages"]}
    assert rows["ecommerce", "de"]["words"] == 2 * 7
    assert rows["ecommerce", "en"]["words"] == 4 * len(TEXTS)
    assert audit["problems"] == [
        {"set": "all sets", "text": "ecommerce-de and ecommerce-de-b hold the same windows"}
    ]


def test_sets_of_another_tokenizer_are_named_and_not_decoded(tmp_path, tokenizer, sound):
    other = make_tokenizer(tmp_path / "t", bos_token=None)
    windows = write(tmp_path / "general-en", other, TEXTS, domain="general")
    audit = audit_sets([sound, windows], tokenizer)
    assert audit["sets"]["general-en"]["text"] is None
    assert [(p["set"], p["text"]) for p in audit["problems"]] == [
        ("general-en", OTHER_TOKENIZER),
        ("all sets", "made by 2 different tokenizers; a mixture needs one"),
    ]


@dataclasses.dataclass(frozen=True)
class Data:
    windows_dir: str
    replay_frac: float = 0.25
    ecommerce_shares: dict = dataclasses.field(default_factory=lambda: {"en": 1.0})
    general_shares: dict = dataclasses.field(default_factory=lambda: {"en": 1.0})
    seq_len: int = 32
    global_batch_size: int = 4
    batch_ramp: dict = dataclasses.field(default_factory=dict)
    seed: int = 0
    num_read_threads: int = 1
    stages: dict = dataclasses.field(default_factory=dict)
    source_weights: dict = dataclasses.field(default_factory=dict)
    max_epochs: float = 4.0
    max_epochs_by_source: dict = dataclasses.field(default_factory=dict)
    on_repetition: str = "error"


def test_a_mixture_s_realised_shares_are_those_of_its_batches(tmp_path, tokenizer):
    from ellama_jax.tokens.loader import Loader, open_sources

    write(tmp_path / "ecommerce-en", tokenizer, TEXTS)
    write(tmp_path / "general-en", tokenizer, TEXTS, domain="general")
    data = Data(str(tmp_path))
    loader = Loader(open_sources(data, None), data)
    mixture = measure_mixture(loader, data, 40)
    assert mixture["tokens"] == 40 * 4 * 32
    shop, general = mixture["sources"]
    assert (shop["asked"], general["asked"]) == ([0.75], [0.25])
    counts = [loader.count_tokens(loader.batch(step)) for step in range(40)]
    given = {name: sum(c[name] for c in counts) for name in counts[0]}
    assert shop["realised"] == [given["ecommerce-en"] / sum(given.values())]
    assert shop["realised"][0] == pytest.approx(0.75, abs=0.02)
    tokens = read_manifest(tmp_path / "general-en").num_tokens
    assert general["epochs"] == pytest.approx(0.25 * 5120 / tokens, rel=0.5)
    assert general["epochs"] == loader.epochs(40)["general-en"] and general["max_epochs"] == 4
    assert find_mixture_problems(mixture)[1].startswith("general-en is read ")
