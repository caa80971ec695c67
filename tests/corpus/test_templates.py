"""Text forms of listings: literal examples, the way back from each, also for nasty values."""

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ellama_jax.corpus import templates, wording
from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.listings import clean_listing, load_listings, normalise_listing
from ellama_jax.corpus.templates import (
    KEEP_DESCRIPTION_LINES,
    TEMPLATES,
    choose_template,
    document_lines,
    listing_to_document,
    parse_document,
    templates_of,
)
from ellama_jax.corpus.wording import LABELS, one_line

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
LISTING = {
    "title": "Lampe Lumevik Nyx, Rouge",
    "category": ["Maison et déco", "Lampes"],
    "aspects": {"Culot": "E27"},
    "price": 1234.5,
    "currency": "EUR",
    "description": "Diffuse une lumière douce : parfaite le soir.\n• Deux ampoules",
    "language": "fr",
    "product_id": "p1",
    "source": "test",
}
WRITTEN = {
    "lines": """Titre : Lampe Lumevik Nyx, Rouge
Catégorie : Maison et déco > Lampes
Culot : E27
Prix : 1 234,50 €
Description : Diffuse une lumière douce : parfaite le soir. • Deux ampoules""",
    "compact": """Lampe Lumevik Nyx, Rouge
Catégorie : Maison et déco > Lampes · Culot : E27 · 1 234,50 €
Diffuse une lumière douce : parfaite le soir. • Deux ampoules""",
    "page": """Lampe Lumevik Nyx, Rouge

Diffuse une lumière douce : parfaite le soir.
• Deux ampoules

• Culot : E27

1 234,50 €

Accueil › Maison et déco › Lampes""",
    "table": """Lampe Lumevik Nyx, Rouge
Catégorie | Maison et déco > Lampes
Culot | E27
Prix | 1 234,50 €
Description | Diffuse une lumière douce : parfaite le soir. • Deux ampoules""",
    "title_last": """Catégorie : Maison et déco > Lampes
Diffuse une lumière douce : parfaite le soir.
• Deux ampoules
- Culot : E27
1 234,50 € – Lampe Lumevik Nyx, Rouge""",
    "questions": """Lampe Lumevik Nyx, Rouge
Q : Comment l'article est-il décrit ?
R : Diffuse une lumière douce : parfaite le soir. • Deux ampoules
Q : Dans quelle catégorie est l'article ?
R : Maison et déco > Lampes
Q : Culot ?
R : E27
Q : Combien coûte l'article ?
R : 1 234,50 €""",
    "sentences": "Nous vous proposons « Lampe Lumevik Nyx, Rouge ». L'article est classé dans "
    "Maison et déco > Lampes. L'article coûte 1 234,50 €. En bref – Culot : E27. Diffuse une lumière douce : "
    "parfaite le soir. • Deux ampoules",
}  # fmt: skip


def fields_of(listing, template):
    keys = ("title", "category", "aspects", "price", "currency", "description")
    fields = {key: listing[key] for key in keys}
    if template in KEEP_DESCRIPTION_LINES:
        return fields
    return fields | {"description": one_line(listing["description"])}


def assert_comes_back(listing, template, seed=0):
    """Reads a document back; in the "lines" that took its place, a description is one line."""
    text = listing_to_document(listing, seed=seed, template=template)
    as_lines = text == listing_to_document(listing, seed=seed)
    parsed = parse_document(text, listing["language"])
    assert parsed == fields_of(listing, "lines" if as_lines else template), text
    return as_lines


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_form_is_literally_this(template):
    assert listing_to_document(LISTING, seed=0, template=template) == WRITTEN[template]
    assert parse_document(WRITTEN[template], "fr") == fields_of(LISTING, template)


def test_there_is_an_example_of_every_form():
    assert set(WRITTEN) == set(TEMPLATES)


def test_running_text_says_a_field_in_several_ways():
    texts = {listing_to_document(LISTING, seed=seed, template="sentences") for seed in range(60)}
    assert len({text.split("«")[0] for text in texts}) == 3
    for text in texts:
        assert parse_document(text, "fr") == fields_of(LISTING, "sentences")


@pytest.mark.parametrize("language", LABELS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_language_has_every_form_and_comes_back(language, template):
    assert templates_of(language) == TEMPLATES
    for listing in generate_listings(seed=2, num_products=40, languages=[language]):
        assert not assert_comes_back(listing, template, seed=1) or template == "lines"


@pytest.mark.parametrize("template", TEMPLATES)
def test_any_fields_may_be_missing(template):
    for category, aspects, price, description in itertools.product([False, True], repeat=4):
        bare = LISTING | {
            "category": LISTING["category"] if category else [],
            "aspects": LISTING["aspects"] if aspects else {},
            "price": 5.0 if price else None,
            "currency": "EUR" if price else None,
            "description": LISTING["description"] if description else "",
        }
        assert_comes_back(bare, template)


# Pieces that are marks of one form or another, words of the languages, and hard Unicode.
PIECES = [
    ": ", ":", " : ", " · ", "·", " > ", ">", " › ", "› ", "• ", "- ", " – ", " | ", "|", "; ", " ; ",
    ". ", ".", "”.", "“", "„", "“.", " ».", "« ", "»", "\n", "\r\n", "\n\n", "\u2028", "\x85", "\t",
    "12,50 €", "$5.00", "1 234,50 €", "99", "{}", "\\", '"', "'", "<b>", "&amp;", "😀", "👩\u200d👧",
    "مصباح", "אור", "漢字", "e\u0301", "Title: ", "Titel: ", "Titre : ", "Price: $1", "Preis",
    "Q: ", "A: ", "F: ", "R : ", "It costs ", "Details – ", "Der Preis beträgt ", "Home › ",
    "Startseite › ", "Price", "Category", "Kategorie", "Description", "red", "Nyx", "E27", "60 cm",
]  # fmt: skip


def nasty_text(rng, length):
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, length)))


def nasty_listing(rng, language):
    words = [*LABELS[language].values(), nasty_text(rng, 4), nasty_text(rng, 4), "Form", "Farbe"]
    priced = rng.random() < 0.6
    record = {
        "title": "x" + nasty_text(rng, 6) if rng.random() < 0.8 else rng.choice(words) + ": x",
        "category": [nasty_text(rng, 4) for _ in range(rng.randrange(4))],
        "aspects": {rng.choice(words): nasty_text(rng, 5) for _ in range(rng.randrange(5))},
        "price": rng.randrange(1, 10**6) / 100 if priced else None,
        "currency": rng.choice(["EUR", "USD", "CHF", "PLN"]) if priced else None,
        "description": nasty_text(rng, 12) if rng.random() < 0.7 else "",
    }
    return normalise_listing(record, source="nasty", language=language)


def is_ambiguous(listing):
    """Says whether an aspect is called like a field that the listing lacks (clean_listing ends it)."""
    labels = LABELS[listing["language"]]
    return any(
        labels[field] in listing["aspects"] and not listing[field]
        for field in ("category", "price", "description")
    )


@pytest.mark.parametrize("language", LABELS)
def test_nasty_values_come_back_from_every_form(language):
    rng, as_lines, total = random.Random(language), Counter(), 0
    for number in range(500):
        listing = nasty_listing(rng, language)
        if is_ambiguous(listing):
            continue
        total += 1
        for template in TEMPLATES:
            as_lines[template] += assert_comes_back(listing, template, seed=number)
    # Most are written in the form asked for: the test is about these.
    assert total > 300
    for template in ("page", "table", "questions"):
        assert as_lines[template] < 0.6 * total, as_lines


def test_a_value_that_breaks_a_form_is_written_as_lines():
    dotted = LISTING | {"aspects": {"Culot": "E27 · E14"}}
    text = listing_to_document(dotted, seed=0, template="compact")
    assert text == listing_to_document(dotted, seed=0)
    assert listing_to_document(dotted, seed=0, template="table") != text


def test_a_description_that_looks_like_lines_does_not_make_lines():
    fake = LISTING | {"description": "Titre : Autre\nPrix : 1,00 €", "category": []}
    for template in TEMPLATES:
        assert_comes_back(fake, template)


def test_choice_is_the_same_in_every_process_and_spread_evenly():
    listings = [LISTING | {"product_id": f"p{number}"} for number in range(1400)]
    drawn = Counter(choose_template(listing, 0) for listing in listings)
    assert set(drawn) == set(TEMPLATES) and min(drawn.values()) > 150
    code = (
        "import json, sys; from ellama_jax.corpus.templates import choose_template;"
        "print(json.dumps([choose_template(entry, 0) for entry in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(listings[:50]), capture_output=True,
        text=True, check=True, env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert json.loads(done.stdout) == [choose_template(listing, 0) for listing in listings[:50]]


def test_choice_keeps_to_the_names_and_differs_by_seed():
    listings = [LISTING | {"product_id": f"p{number}"} for number in range(60)]
    first, second = ([choose_template(entry, seed, ["page", "table"]) for entry in listings]
                     for seed in (0, 1))  # fmt: skip
    assert set(first) == {"page", "table"} and first != second


@pytest.mark.parametrize("call", [
    lambda: listing_to_document(LISTING, seed=0, template="csv"),
    lambda: choose_template(LISTING, 0, ["lines", "csv"]),
])  # fmt: skip
def test_an_unknown_form_is_refused(call):
    with pytest.raises(ValueError, match="template: must be one of lines, compact, .*got 'csv'"):
        call()


def test_aspects_have_one_order_in_every_form():
    many = LISTING | {"aspects": {f"A{number}": str(number) for number in range(6)}}
    orders = {
        tuple(parse_document(listing_to_document(many, seed=4, template=name), "fr")["aspects"])
        for name in TEMPLATES
    }
    assert orders == {
        tuple(line.name for line in document_lines(many, 4) if line.field == "aspect")
    }


def test_a_further_language_is_one_row(monkeypatch):
    row = {"title": "Tytuł", "category": "Kategoria", "price": "Cena", "description": "Opis",
           "yes": "Tak", "no": "Nie", "home": "Strona główna"}  # fmt: skip
    monkeypatch.setitem(wording.LABELS, "pl", row)
    lamp = LISTING | {"language": "pl", "currency": "PLN", "description": ""}
    for template in TEMPLATES:
        as_lines = assert_comes_back(lamp, template)
        assert as_lines == (template in ("lines", "sentences", "questions"))
    assert listing_to_document(lamp, seed=0, template="compact").endswith("1 234,50 zł")
    assert choose_template(lamp, 0) in ("lines", "compact", "page", "table", "title_last")
    cleaned, done = clean_listing(lamp)
    assert cleaned == lamp and not done
    templates.templates_of.cache_clear()


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
@pytest.mark.parametrize("name", ["magento_listings_en", "ae-110k_train_en", "oa-mine_train_en",
                                  "dummyjson_listings_en"])  # fmt: skip
def test_real_records_come_back_from_every_form(name):
    # Every third, so that the test stays short; magento's variants are alike anyway.
    records = load_listings(SHARED_DATA / f"{name}.jsonl")[::3]
    listings = [clean_listing(entry)[0] for entry in records]
    for template in TEMPLATES[1:]:
        as_lines = sum(assert_comes_back(listing, template) for listing in listings)
        # "Brand: Dr. Martens" ends a sentence too early for the way back.
        assert as_lines < 0.03 * len(listings), template
