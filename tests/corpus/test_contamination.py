"""Evaluation texts inside training documents: found, not found, counted, told."""

import copy
import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ellama_jax.corpus import catalogue
from ellama_jax.corpus.contamination import (
    ContaminationReport,
    EvalText,
    Match,
    build_index,
    items_to_eval_texts,
    read_eval_texts,
    report_words,
)
from ellama_jax.corpus.listings import listing_to_document, load_listings

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")

QUESTION = (
    "A baker sells 3 trays of 24 rolls each morning and keeps 5 rolls for her own family. "
    "How many rolls does she sell in a week of six days?"
)
FILLER = "The harbour was quiet, and nobody had come to fetch the crates since Tuesday. "


def index_of(*texts, set_name="quiz", **settings):
    numbered = enumerate(texts)
    return build_index([EvalText(set_name, str(n), text) for n, text in numbered], **settings)


def ids(matches):
    return [match.item_id for match in matches]


@pytest.mark.parametrize(
    "write",
    [
        str,
        str.upper,
        lambda text: re.sub(r"[^\w\s]", "", text),
        lambda text: re.sub(r"[^\w\s]", " ", text),
        lambda text: text.replace(" ", "\n\n"),
        lambda text: text.replace("A baker", "Ａ  ba\u00adker"),
        lambda text: text.replace("A baker", "One baker"),
    ],
)
def test_a_question_is_found_however_it_is_written(write):
    index = index_of(QUESTION, "Another question that nobody asks about anything at all, ever?")
    assert ids(index.match(FILLER * 20 + write(QUESTION) + " " + FILLER)) == ["0"]


def test_texts_with_apostrophes_and_decimals_are_found_without_them():
    text = "L'œuf de l'oie pèse 3.50 livres et l'œuf de la poule 0,12; combien d'oies faut-il ?"
    for copied in (text, re.sub(r"[^\w\s]", "", text), re.sub(r"[^\w\s]", " ", text)):
        assert index_of(text).match(copied)[0].overlap_frac == 1.0


def test_the_share_found_decides():
    words = [f"word{number}" for number in range(40)]
    index = index_of(" ".join(words))  # 28 n-grams of 13 words
    half = " ".join(words[:26])  # 14 of them
    assert index.match(half) == [Match("quiz", "0", " ".join(words[:13]), 0.5)]
    assert index.match(" ".join(words[:25])) == []
    assert index.match(" ".join(words[:25]), min_overlap_frac=0.4)[0].overlap_frac == 13 / 28
    assert index.match(half, min_overlap_frac=0.7) == []


def test_a_repeated_n_gram_counts_once():
    words = [f"word{number}" for number in range(40)]
    assert index_of(" ".join(words)).match(" ".join(words[:14] * 20)) == []


def test_short_texts_are_found_whole_and_very_short_ones_not_at_all():
    index = index_of("Color: black", "Which of these two kettles boils a litre first?")
    assert index.lengths == (9,)
    assert index.match("Color: black") == []
    assert ids(index.match("so, which of these two kettles boils a litre first, then")) == ["1"]
    assert index.match("Which of these two kettles boils a litre later?") == []
    assert index.count_items() == {"quiz": (2, 1)}


def test_a_language_without_spaces_is_found_by_characters():
    text = "鶏は毎日十六個の卵を産みます。彼女は毎朝三個を食べます。"
    assert ids(index_of(text).match(f"昔々、{text}残りを売ります。")) == ["0"]
    assert index_of(text).match("鶏は毎日卵を産みます。彼女は残りを市場で売ります。") == []


def test_a_template_of_many_items_does_not_count():
    template = (
        "Answer the following question by choosing exactly one of the four letters given below"
    )
    texts = [
        f"{template}: is city {n} in region {n * 7} larger than it was {n} years ago"
        for n in range(12)
    ]
    index = index_of(*texts)
    assert index.match(template + FILLER) == []
    assert ids(index.match(FILLER + texts[7])) == ["7"]
    few = index_of(*texts[:10])  # shared by no more than ten
    assert len(few.match(template, min_overlap_frac=0.05)) == 10


def test_an_item_made_of_a_template_alone_cannot_be_found():
    index = index_of(*[QUESTION] * 11)
    assert index.count_items() == {"quiz": (11, 0)}
    assert index.match(QUESTION) == []


def test_common_n_grams_are_counted_by_item_and_by_set():
    texts = [EvalText("a", "1", QUESTION)] * 20 + [
        EvalText("b", str(n), QUESTION) for n in range(3)
    ]
    found = build_index(texts).match(QUESTION)
    assert [(match.set_name, match.item_id) for match in found] == [
        ("a", "1"), ("b", "0"), ("b", "1"), ("b", "2"),
    ]  # fmt: skip


def test_matches_do_not_depend_on_the_order_of_the_texts():
    texts = [EvalText("quiz", str(n), f"{QUESTION} Explain step {n} to {n + 3}.") for n in range(6)]
    expected = build_index(texts).match(QUESTION)
    assert len(expected) == 6
    random.Random(0).shuffle(texts)
    assert build_index(texts).match(QUESTION) == expected


def test_an_index_without_texts_finds_nothing():
    assert build_index([]).match(QUESTION) == []
    assert index_of("too short").match(QUESTION) == []
    assert index_of(QUESTION).match("") == []


def test_min_words_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"min_words: must be between 1 and n \(5\), got 8"):
        index_of(QUESTION, n=5)


def test_a_pickled_index_finds_the_same_in_another_process(tmp_path):
    index = index_of(QUESTION)
    index.match(QUESTION)
    (tmp_path / "index").write_bytes(pickle.dumps(index))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).match(sys.argv[2]))"
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "index"), QUESTION.upper()],
        capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONHASHSEED": "5"},
    ).stdout  # fmt: skip
    assert printed.strip() == str(index.match(QUESTION))


def test_a_question_is_found_in_a_megabyte():
    rng = random.Random(1)
    words = [f"w{rng.randrange(5000)}" for _ in range(180_000)]
    words.insert(100_000, QUESTION)
    text = " ".join(words)
    assert len(text) > 1_000_000
    assert ids(index_of(QUESTION).match(text)) == ["0"]


def test_items_of_a_benchmark_are_found_by_their_context_and_not_by_an_answer():
    items = [
        {
            "id": "price/1/en",
            "context": "Title: Nyx road grader with ripper\nCategory: Graders > Road graders\nPrice:",
            "choices": [" $100.00", " Machines and graders for the building of roads and runways"],
        }
    ]
    index = build_index(items_to_eval_texts(items, "shop"))
    assert ids(
        index.match(
            "Title: Nyx road grader with ripper\nCategory: Graders > Road graders\nPrice: $1,200.00"
        )
    ) == ["price/1/en"]
    assert index.match("Category: machines and graders for the building of roads and runways") == []


FILES = {
    "a.jsonl": json.dumps({"premise": QUESTION, "idx": 7, "label": 1}) + "\n\n",
    "b.json": json.dumps({"data": [{"qid": "x", "q": {"text": QUESTION}, "choices": ["a", "b"]}]}),
    "c.json": json.dumps([QUESTION]),
    "d.csv": f'question,A,B\n"{QUESTION}",one,two\n',
    "e.tsv": f"{QUESTION}\tone\ttwo\n",
    "f.txt": f"First paragraph,\nof two lines.\n\n{QUESTION}\n",
    "g.txt": f"a line\n{QUESTION}\n",
}


@pytest.mark.parametrize(
    "name, item_id",
    zip(FILES, ["7", "x", "1", "2", "1", "2", "2"], strict=True),
)
def test_any_file_of_texts_is_read(tmp_path, name, item_id):
    (tmp_path / name).write_text("\ufeff" + FILES[name], encoding="utf-8")
    texts = read_eval_texts(tmp_path / name)
    assert {text.set_name for text in texts} == {name[0]}
    assert ids(build_index(texts).match(FILLER + QUESTION)) == [item_id]
    assert read_eval_texts(tmp_path / name, name="mine")[0].set_name == "mine"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.parquet", "", "must end in one of .jsonl, .json, .csv, .tsv, .txt"),
        ("a.jsonl", "{broken", "must hold JSON"),
        ("a.jsonl", '{"answer": 18}\n{"text": "too short"}', "at least 8 words, got none"),
        ("a.txt", "", "at least 8 words, got none"),
    ],
)
def test_files_without_usable_texts_are_errors(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"evaluation file: .*{message}"):
        read_eval_texts(tmp_path / name)


def test_missing_files_and_broken_utf8_are_errors(tmp_path):
    with pytest.raises(ValueError, match="evaluation file: must be readable UTF-8"):
        read_eval_texts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1") * 20)
    with pytest.raises(ValueError, match="evaluation file: must be readable UTF-8"):
        read_eval_texts(tmp_path / "latin.txt")


def make_report(documents):
    report = ContaminationReport(max_examples=2)
    for key, source, matches in documents:
        report.add(key, source, "en", matches)
    return report


def test_a_report_tells_what_was_found_and_where():
    index = index_of(QUESTION, "Which of these two kettles boils a litre first?", "black")
    report = make_report([
        ("page-2", "web", index.match(QUESTION)),
        ("page-1", "web", index.match(FILLER)),
        ("page-3", "shop", index.match(QUESTION)),
    ])  # fmt: skip
    assert report_words(report, index) == "\n".join([
        "evaluation set    items findable   found   dropped",
        "quiz                  3        2       1         2",
        "quiz: 1 documents dropped from shop, en",
        "quiz: 1 documents dropped from web, en",
        'quiz: page-2 (web, en) holds 100% of item 0: "a baker sells 3 trays of 24 rolls each '
        'morning and keeps 5"',
        'quiz: page-3 (shop, en) holds 100% of item 0: "a baker sells 3 trays of 24 rolls each '
        'morning and keeps 5"',
    ])  # fmt: skip


def test_merged_reports_do_not_depend_on_parts_or_order():
    match = Match("quiz", "0", "words", 1.0)
    documents = [
        (f"page-{number}", "web", [match._replace(item_id=str(number % 3))] * (number % 2))
        for number in range(20)
    ]
    whole = make_report(documents)
    assert whole.dropped == {("quiz", "web", "en"): 10}
    assert whole.items_found == {"quiz": {"0", "1", "2"}}
    assert [one.document for one in whole.examples["quiz"]] == ["page-1", "page-11"]
    parts = [make_report(documents[at : at + 6]) for at in range(0, 20, 6)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = ContaminationReport(max_examples=2)
        for number in order:
            merged.merge(copy.deepcopy(parts[number]))
        assert merged == whole


@needs_shared
@pytest.mark.parametrize("name", ["mgsm_en", "mgsm_de", "mgsm_es", "mgsm_fr", "xcopa_it_val"])
def test_every_real_question_is_found_where_it_was_planted(name):
    texts = read_eval_texts(SHARED / f"{name}.jsonl")
    index = build_index(texts)
    for write in (str, str.upper, lambda text: re.sub(r"[^\w\s]", "", text)):
        whole = {text.item_id: text.text for text in reversed(texts)}
        missed = [
            item_id
            for item_id, text in whole.items()
            if item_id not in ids(index.match(f"{FILLER}{write(text)} {FILLER}"))
        ]
        assert missed == []


@needs_shared
def test_translations_and_real_listings_hold_no_question():
    index = build_index(read_eval_texts(SHARED / "mgsm_en.jsonl"))
    for language in ("de", "es", "fr"):
        for text in read_eval_texts(SHARED / f"mgsm_{language}.jsonl"):
            assert index.match(text.text) == []
    for name in ("ae-110k_train_en", "dummyjson_listings_en"):
        for listing in load_listings(SHARED / f"{name}.jsonl"):
            assert index.match(listing_to_document(listing, seed=0)) == []


def test_held_out_products_are_found_and_training_ones_are_not():
    from ellama_jax.evaluate.ecommerce import build_items

    listings = list(catalogue.generate_listings(seed=0, num_products=120, languages=["en", "de"]))
    train, heldout = catalogue.split_products(listings, 0.3, seed=0)
    items = build_items(heldout, seed=0, items_per_task=50, train_listings=train)
    index = build_index(items_to_eval_texts(items, "ecommerce"))
    asked = {item["product_id"] for item in items if item["task"] == "price_prediction"}

    def held_by(listings):
        return {
            one["product_id"]
            for one in listings
            if index.match(listing_to_document(one, seed=0), min_overlap_frac=0.9)
        }

    assert asked and held_by(heldout) >= asked
    assert held_by(train) == set()
