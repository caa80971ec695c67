"""Listings: number formats, the document form and its way back, real files with their traps."""

import json
import logging
import random
from pathlib import Path

import pytest

from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.listings import (
    LABELS,
    NUMBER_STYLES,
    BadLine,
    document_lines,
    format_price,
    line_prompt,
    listing_prefix,
    listing_to_document,
    listing_to_text_record,
    load_listings,
    parse_document,
    parse_price,
    read_listings,
)

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"

LISTING = {
    "title": "Lampe Lumevik Nyx, Rouge",
    "category": ["Maison et déco", "Lampes"],
    "aspects": {"Culot": "E27", "Style": "Moderne", "Hauteur": "60 cm"},
    "price": 1234.5,
    "currency": "EUR",
    "description": "Diffuse une lumière douce : parfaite le soir.",
    "language": "fr",
    "product_id": "p1",
    "source": "test",
}


def write_lines(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_one(tmp_path, **fields):
    """Reads one record that differs from a minimal one in `fields`."""
    record = {"title": "Red mug", "language": "en", "id": 7} | fields
    listings, bad = read_listings(write_lines(tmp_path / "one.jsonl", record))
    return listings[0] if listings else bad[0].reason


@pytest.mark.parametrize(
    "language, currency, written",
    [
        ("en", "USD", "$49.99"),
        ("en", "GBP", "£49.99"),
        ("en", "CHF", "CHF 49.99"),
        ("de", "EUR", "49,99 €"),
        ("de", "CHF", "49,99 CHF"),
        ("fr", "EUR", "49,99 €"),
        ("it", "EUR", "49,99 €"),
        ("es", "EUR", "49,99 €"),
        ("es", "USD", "49,99 $"),
    ],
)
def test_price_as_the_locale_writes_it(language, currency, written):
    assert format_price(49.99, currency, language) == written


@pytest.mark.parametrize(
    "language, written",
    [
        ("en", "€1,234,567.80"),
        ("de", "1.234.567,80 €"),
        ("fr", "1 234 567,80 €"),
        ("it", "1.234.567,80 €"),
        ("es", "1.234.567,80 €"),
    ],
)
def test_thousands_as_the_locale_writes_them(language, written):
    assert format_price(1234567.8, "EUR", language) == written


def test_price_spaces_are_ordinary_ones():
    written = format_price(1234.5, "EUR", "fr")
    assert [c for c in written if c.isspace()] == [" ", " "]


@pytest.mark.parametrize(
    "price, currency, written",
    [
        (1980, "JPY", "¥1,980"),
        (1.5, "KWD", "KWD 1.500"),
        (2.675, "USD", "$2.68"),
        (0, "USD", "$0.00"),
    ],
)
def test_minor_units_and_rounding(price, currency, written):
    assert format_price(price, currency, "en") == written


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_impossible_price_is_refused(price):
    with pytest.raises(ValueError, match="price: must be a number that is not negative"):
        format_price(price, "EUR", "de")


def test_price_comes_back_for_every_language_and_currency():
    rng = random.Random(0)
    for language in LABELS:
        for currency in ("USD", "EUR", "GBP", "JPY", "CHF", "KWD", "SEK"):
            price = float(rng.randrange(10**7)) if currency == "JPY" else rng.randrange(10**9) / 100
            written = format_price(price, currency, language)
            assert parse_price(written, language) == (price, currency), written


@pytest.mark.parametrize(
    "text", ["", "free", "12,34.56", "1.2.3", "12 dollars", "$", "1,23,456.00"]
)
def test_what_is_no_english_price_is_refused(text):
    with pytest.raises(ValueError, match="price: must be an amount as en writes it"):
        parse_price(text, "en")


def test_no_break_spaces_in_a_price_are_read():
    assert parse_price("1\u202f234,50\u00a0€", "fr") == (1234.5, "EUR")


def test_document_is_literally_this():
    assert listing_to_document(LISTING, seed=0).split("\n") == [
        "Titre : Lampe Lumevik Nyx, Rouge",
        "Catégorie : Maison et déco > Lampes",
        *[line.text for line in document_lines(LISTING, 0) if line.field == "aspect"],
        "Prix : 1 234,50 €",
        "Description : Diffuse une lumière douce : parfaite le soir.",
    ]
    aspects = {line.text for line in document_lines(LISTING, 0) if line.field == "aspect"}
    assert aspects == {"Culot : E27", "Style : Moderne", "Hauteur : 60 cm"}


def test_every_language_has_labels_and_a_number_style():
    assert set(LABELS) == set(NUMBER_STYLES) == {"en", "de", "fr", "it", "es"}
    assert [LABELS[language]["title"] for language in ("en", "de", "fr", "it", "es")] == [
        "Title", "Titel", "Titre", "Titolo", "Título",
    ]  # fmt: skip
    assert len({tuple(sorted(row)) for row in LABELS.values()}) == 1


def test_lines_name_their_fields_in_order():
    lines = document_lines(LISTING, seed=3)
    assert [line.field for line in lines] == ["title", "category", *["aspect"] * 3, "price",
                                              "description"]  # fmt: skip
    for field, name, text in lines:
        assert text.startswith(line_prompt(name, "fr") + " "), field


def test_empty_fields_have_no_line():
    bare = LISTING | {"category": [], "aspects": {}, "price": None, "description": ""}
    assert listing_to_document(bare, seed=0) == "Titre : Lampe Lumevik Nyx, Rouge"


def test_aspect_order_depends_on_seed_and_product_only():
    def order(listing, seed):
        return [line.name for line in document_lines(listing, seed) if line.field == "aspect"]

    turned = LISTING | {"aspects": dict(reversed(LISTING["aspects"].items()))}
    assert order(LISTING, 0) == order(turned, 0)
    assert len({tuple(order(LISTING, seed)) for seed in range(50)}) == 6
    by_product = {tuple(order(LISTING | {"product_id": f"p{i}"}, 0)) for i in range(50)}
    assert len(by_product) == 6


def test_line_breaks_inside_a_field_do_not_make_lines():
    broken = LISTING | {"title": "Lampe\nPrix : 1 €", "description": "a\r\n\tb"}
    parsed = parse_document(listing_to_document(broken, seed=0), "fr")
    assert parsed["title"] == "Lampe Prix : 1 €"
    assert (parsed["price"], parsed["description"]) == (1234.5, "a b")


def test_catalogue_documents_come_back_in_every_language():
    for listing in generate_listings(seed=0, num_products=150):
        parsed = parse_document(listing_to_document(listing, seed=1), listing["language"])
        assert parsed == {key: listing[key] for key in parsed}


def test_an_aspect_may_be_called_like_a_field():
    odd = LISTING | {"aspects": {"Prix": "gagné en 2019", "Titre": "aucun"}}
    assert parse_document(listing_to_document(odd, seed=0), "fr")["aspects"] == odd["aspects"]


@pytest.mark.parametrize("text", ["Titel: a\nno label", "Kategorie: a", ""])
def test_what_is_no_document_is_refused(text):
    with pytest.raises(ValueError, match="document: "):
        parse_document(text, "de")


def test_prefix_and_value_make_the_line():
    document = listing_to_document(LISTING, seed=0)
    for field, name, text in document_lines(LISTING, seed=0):
        prefix = listing_prefix(LISTING, seed=0, upto=field, name=name)
        value = text.removeprefix(line_prompt(name, "fr"))
        assert document.startswith(prefix + value) and value.startswith(" ")
        assert prefix.endswith(f"{name} :")


def test_prefix_of_a_missing_line_is_refused():
    with pytest.raises(ValueError, match="upto: must be a field of the listing, got 'aspect'"):
        listing_prefix(LISTING, seed=0, upto="aspect", name="Poids")


def test_text_record_carries_what_a_corpus_needs():
    record = listing_to_text_record(LISTING, seed=2)
    assert record.pop("text") == listing_to_document(LISTING, seed=2)
    assert record == {"domain": "ecommerce", "language": "fr", "source": "test", "product_id": "p1"}


@pytest.mark.parametrize(
    "category, path",
    [
        ("A > B", ["A", "B"]),
        ("A/B", ["A", "B"]),
        ("Home & Living > TV/Audio", ["Home & Living", "TV/Audio"]),
        (["A", "B/C"], ["A", "B/C"]),
        (["Men > Tops", "Collections > Eco"], ["Men", "Tops"]),
        (["beauty"], ["beauty"]),
        (None, []),
        ("", []),
    ],
)
def test_category_forms(tmp_path, category, path):
    assert read_one(tmp_path, category=category)["category"] == path


def test_aspect_forms(tmp_path):
    aspects = {"Size": "M", "Weight": 4, "Ratio": 1.5, "Colors": ["red", "blue", None],
               "Material": None, "New": True, "Scale 1:9": "x", "Empty": ""}  # fmt: skip
    assert read_one(tmp_path, aspects=aspects)["aspects"] == {
        "Size": "M", "Weight": "4", "Ratio": "1.5", "Colors": "red, blue", "New": "Yes",
        "Scale 1 9": "x",
    }  # fmt: skip
    named = [{"name": "Size", "value": "M"}, {"name": "Fit", "value": ["slim"]}]
    assert read_one(tmp_path, aspects=named)["aspects"] == {"Size": "M", "Fit": "slim"}


@pytest.mark.parametrize("fields", [{"language": "de-DE"}, {"language": None, "lang": "de"}])
def test_language_forms(tmp_path, fields):
    assert read_one(tmp_path, **fields)["language"] == "de"


@pytest.mark.parametrize(
    "fields, price, currency",
    [
        ({"price": 5, "currency": "usd"}, 5.0, "USD"),
        ({"price": "$1,234.50"}, 1234.5, "USD"),
        ({"price": "80.00", "currency": "EUR"}, 80.0, "EUR"),
        ({"price": None, "currency": "USD"}, None, None),
        ({"price": ""}, None, None),
    ],
)
def test_price_forms(tmp_path, fields, price, currency):
    listing = read_one(tmp_path, **fields)
    assert (listing["price"], listing["currency"]) == (price, currency)


def test_defaults_name_the_file_and_keep_the_id_as_text(tmp_path):
    listing = read_one(tmp_path)
    assert (listing["product_id"], listing["source"]) == ("7", "one")
    assert read_one(tmp_path, parent_id="P")["product_id"] == "P"
    assert read_one(tmp_path, id=None)["product_id"] is None


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"title": ""}, "title: must be a text that is not empty, got ''."),
        ({"title": 5}, "title: must be a text, got 5."),
        ({"language": "tlh"}, "language: must be one of en, de, fr, it, es, got 'tlh'."),
        ({"language": None}, "language: must be one of en, de, fr, it, es, got None."),
        ({"price": 5}, "currency: must be a three-letter code, got None."),
        ({"price": True, "currency": "EUR"}, "price: must be a number, got True."),
        ({"price": -5, "currency": "EUR"}, "price: must be a number that is not negative, got -5."),
        ({"price": "cheap"}, "price: must be an amount as en writes it, got 'cheap'."),
        ({"category": 4}, "category: must be a text or a list of texts, got 4."),
        ({"aspects": "red"}, "aspects: must map names to values, got 'red'."),
        ({"aspects": {"a": {"b": 1}}},
         "aspects: 'a' must be a text, a number or a list, got {'b': 1}."),
    ],
)  # fmt: skip
def test_reason_names_the_field_that_is_wrong(tmp_path, fields, reason):
    assert read_one(tmp_path, **fields) == reason


def test_broken_lines_are_collected_with_their_numbers(tmp_path):
    good = {"title": "Mug", "language": "en"}
    path = write_lines(tmp_path / "a.jsonl", good, "", '{"title": "cut', "[1]", good)
    path.write_bytes(path.read_bytes() + b'{"title": "\xff"}\n')
    listings, bad = read_listings(path)
    assert len(listings) == 2
    assert [line for line, _ in bad] == [3, 4, 6]
    assert bad[1] == BadLine(4, "line: must be a JSON object, got list.")


def test_too_many_broken_lines_are_an_error_naming_file_line_and_reason(tmp_path):
    good = {"title": "Mug", "language": "en"}
    path = write_lines(tmp_path / "shop.jsonl", *[good] * 8, {"language": "en"}, "{")
    with pytest.raises(ValueError, match=r"shop\.jsonl: at most 1\.0% .* 2 of 10; the first is "
                                         r"line 9: title: must be a text"):  # fmt: skip
        load_listings(path)


def test_few_broken_lines_are_left_out_and_logged(tmp_path, caplog):
    good = {"title": "Mug", "language": "en"}
    path = write_lines(tmp_path / "shop.jsonl", *[good] * 8, "{", good)
    with caplog.at_level(logging.WARNING):
        assert len(load_listings(path, max_bad_frac=0.1)) == 9
    assert "left out 1 of 10 lines; the first is line 9" in caplog.text


def test_a_file_without_listings_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must hold at least one listing, got an empty file"):
        load_listings(write_lines(tmp_path / "empty.jsonl", ""))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(OSError, match="absent.jsonl"):
        load_listings(tmp_path / "absent.jsonl")


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
@pytest.mark.parametrize(
    "name, count",
    [
        ("magento_listings_en", 2038),
        ("ae-110k_train_en", 1568),
        ("oa-mine_train_en", 1452),
        ("dummyjson_listings_en", 194),
    ],
)
def test_real_files_are_read_whole_and_come_back(name, count):
    listings = load_listings(SHARED_DATA / f"{name}.jsonl")
    assert len(listings) == count
    for listing in listings:
        if "Description" in listing["aspects"] and not listing["description"]:
            continue  # documented: cannot be told from the field
        parsed = parse_document(listing_to_document(listing, seed=0), "en")
        assert parsed == {key: listing[key] for key in parsed}


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
def test_first_of_several_real_category_paths_counts():
    listing = load_listings(SHARED_DATA / "magento_listings_en.jsonl")[0]
    assert listing["category"] == ["Men", "Tops", "Hoodies & Sweatshirts"]
    assert (listing["price"], listing["currency"]) == (52.0, "USD")
