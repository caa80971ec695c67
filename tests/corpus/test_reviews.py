"""Reviews: many shapes in, one record; several text forms, and the way back from each."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from ellama_jax.corpus import wording
from ellama_jax.corpus.reviews import (
    REVIEW_TEMPLATES,
    normalise_review,
    parse_review,
    review_to_document,
)

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
REVIEW = {
    "rating": 4.0, "scale": 5, "title": "Hält warm", "text": "Seit zwei Jahren im Einsatz.",
    "product_id": "7", "product_title": "Mütze Nyx", "language": "de", "source": "shop",
}  # fmt: skip
WRITTEN = {
    "lines": "Produkt: Mütze Nyx\nBewertung: 4/5\nÜberschrift: Hält warm\n"
    "Rezension: Seit zwei Jahren im Einsatz.",
    "stars": "Mütze Nyx\n★★★★☆ Hält warm\nSeit zwei Jahren im Einsatz.",
    "words": "Gut (4 von 5 Sternen) – Mütze Nyx\nHält warm\nSeit zwei Jahren im Einsatz.",
    "last": "Hält warm\nSeit zwei Jahren im Einsatz.\nProdukt: Mütze Nyx\n"
    "Bewertung: 4 von 5 Sternen",
}


def read(**fields):
    return normalise_review({"review": "It is fine."} | fields, source="shop", language="en")


def fields_of(review):
    return {key: review[key] for key in ("rating", "scale", "title", "text", "product_title")}


def assert_comes_back(review, seed):
    text = review_to_document(review, seed=seed)
    parsed = parse_review(text, review["language"])
    joined = {"text": " ".join(review["text"].split())}
    assert parsed in (fields_of(review), fields_of(review) | joined), text
    return text


def test_each_form_is_literally_this():
    assert set(WRITTEN) == set(REVIEW_TEMPLATES)
    texts = {review_to_document(REVIEW, seed=seed) for seed in range(40)}
    assert texts == set(WRITTEN.values())
    for text in texts:
        assert parse_review(text, "de") == fields_of(REVIEW)


@pytest.mark.parametrize(
    "rating, scale, read_as",
    [
        (4, None, (4.0, 5)), (4.5, None, (4.5, 5)), ("4/5", None, (4.0, 5)), ("8 / 10", None, (8.0, 10)),
        ("4,5 von 5 Sternen", None, (4.5, 5)), ("4.0 out of 5 stars", None, (4.0, 5)),
        ("5 étoiles sur 5", None, (5.0, 5)), ("80 %", None, (80.0, 100)), ("★★★★☆", None, (4.0, 5)),
        ("★★★½☆", None, (3.5, 5)), ("⭐⭐⭐", None, (3.0, 5)), ("3", None, (3.0, 5)),
        ("5 stars", None, (5.0, 5)), (7, 10, (7.0, 10)), (None, None, (None, 5)), ("", None, (None, 5)),
    ],
)  # fmt: skip
def test_rating_forms(rating, scale, read_as):
    review = read(rating=rating, scale=scale)
    assert (review["rating"], review["scale"]) == read_as


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"rating": 6}, "rating: must be from 0 to 5, got 6."),
        ({"rating": -1}, "rating: must be from 0 to 5, got -1."),
        ({"rating": "good"}, "rating: must be a number or like '4/5', got 'good'."),
        ({"rating": True}, "rating: must be a number or like '4/5', got True."),
        ({"rating": float("nan")}, "rating: must be a number or like '4/5', got nan."),
        ({"rating": 4, "scale": 0}, "scale: must be a whole number from 1, got 0."),
        ({"review": None}, "text: must not be empty in a review without rating and title."),
        ({"review": 5}, "text: must be a text, got 5."),
        ({"language": "tlh"}, "language: must be one of en, de, fr, it, es, got 'tlh'."),
    ],
)
def test_reason_names_the_field_that_is_wrong(fields, reason):
    with pytest.raises(ValueError) as refused:
        read(**fields)
    assert str(refused.value) == reason


def test_markup_private_data_and_the_reviewers_name_go():
    review = read(
        review="<p>Great!</p><p>Mail me: jo@mail.example</p> Jo Doe",
        title="Jo doe &amp; the bag", author="Jo Doe", rating=5, id=3,
    )  # fmt: skip
    assert review == {
        "rating": 5.0, "scale": 5, "title": "[user name] & the bag",
        "text": "Great!\nMail me: [e-mail]\n[user name]", "product_id": "3", "product_title": "",
        "language": "en", "source": "shop",
    }  # fmt: skip


@pytest.mark.parametrize("title", ["It is", "it is fine", "It is…", "It is fine."])
def test_a_title_that_begins_the_text_is_left_out(title):
    assert read(title=title)["title"] == ""
    assert read(title="It was")["title"] == "It was"


@pytest.mark.parametrize("language", wording.LABELS)
def test_nasty_reviews_come_back_in_every_language(language):
    rng = random.Random(language)
    words = wording.REVIEW_WORDS[language]
    pieces = [": ", " : ", " – ", "★★★★☆", "★", "½", "\n", "\n\n", "4/5", ".", "x", "Nyx", "😀", "אור",
              *words.grades, words.stars.format(4, 5), f"{words.rating}: ", f"{words.product}: ",
              f"{words.product} : ", f"{words.review} : "]  # fmt: skip

    def nasty(length):
        return "".join(rng.choice(pieces) for _ in range(rng.randrange(length)))

    for seed in range(1500):
        record = {
            "rating": rng.choice([None, 0, 1, 2, 3, 3.5, 4, 4.3, 5, "7/10", "55/100"]),
            "title": nasty(4), "text": nasty(8) + "end", "product_title": nasty(4),
        }  # fmt: skip
        review = normalise_review(record, source="nasty", language=language)
        assert_comes_back(review, seed)


def test_every_language_says_every_grade_differently():
    assert set(wording.REVIEW_WORDS) == set(wording.LABELS)
    for words in wording.REVIEW_WORDS.values():
        assert len(set(words.grades)) == 5 and words.stars.count("{}") == 2


def test_a_further_language_is_written_without_words_of_its_own(monkeypatch):
    monkeypatch.setitem(wording.LABELS, "pl", wording.LABELS["en"])
    polish = REVIEW | {"language": "pl"}
    assert {assert_comes_back(polish, seed).split("\n")[0] for seed in range(20)} == {
        "Mütze Nyx", "Product: Mütze Nyx",
    }  # fmt: skip


def test_what_is_no_review_is_refused():
    for text in ("", "a", "a\nb", "Bewertung: gut"):
        with pytest.raises(ValueError, match="review: must be of a form"):
            parse_review(text, "de")


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
def test_real_reviews_come_back_in_every_form():
    lines = (SHARED_DATA / "magento_reviews_en.jsonl").read_text("utf-8").splitlines()
    reviews = [normalise_review(json.loads(line), source="magento") for line in lines]
    assert len(reviews) == 500
    assert Counter(review["scale"] for review in reviews) == {5: 500}
    texts = [assert_comes_back(review, 0) for review in reviews]
    forms = Counter("★" in text or text.startswith("Rating: ") for text in texts)
    assert forms[True] > 150 and forms[False] > 150
