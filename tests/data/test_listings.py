"""Listings: number formats, the document form and its way back, real files with their traps."""

import json
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from ellama_jax.data.catalogue import generate_listings
from ellama_jax.data.listings import (
    LABELS,
    NUMBER_STYLES,
    BadLine,
    clean_listing,
    document_lines,
    format_price,
    line_prompt,
    listing_prefix,
    listing_to_document,
    listing_to_text_record,
    load_listings,
    normalise_listing,
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


def normalise(**fields):
    record = {"title": "Red mug", "language": "en", "id": 7} | fields
    return normalise_listing(record, source="shop")


def clean(**fields):
    """Cleans one record that differs from a minimal one in `fields`."""
    return clean_listing(normalise(**fields))


def test_a_record_of_a_known_source_and_language_is_normalised():
    listing = normalise_listing({"title": " Rote  Tasse "}, source="shop", language="de-AT")
    assert listing == {
        "title": "Rote Tasse", "category": [], "aspects": {}, "price": None, "currency": None,
        "description": "", "language": "de", "product_id": None, "source": "shop",
    }  # fmt: skip
    assert normalise_listing({"title": "a", "lang": "fr", "source": "own"}, source="shop",
                             language="de")["language"] == "fr"  # fmt: skip


def test_lines_of_a_description_and_the_seller_are_kept_for_cleaning():
    listing = normalise(description=" a \r\n\n  b\tc ", seller="Lamp  House")
    assert (listing["description"], listing["seller"]) == ("a\nb c", "Lamp House")
    assert normalise(shop_name="X")["seller"] == "X"


def test_listings_from_a_file_name_no_seller(tmp_path):
    assert "seller" not in read_one(tmp_path, seller="Lamp House")


def test_levels_never_hold_the_sign_between_them():
    assert normalise(category=["A", "B > C", "> D >"])["category"] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, ""])
def test_an_aspect_without_value_has_no_line(value):
    assert normalise(aspects={"Weight": value})["aspects"] == {}


def test_numbers_of_aspects_are_written_as_the_language_does():
    aspects = normalise(language="de", aspects={"Gewicht": 1.5, "Jahr": 2018.0})["aspects"]
    assert aspects == {"Gewicht": "1,5", "Jahr": "2018"}


def test_cleaning_is_literally_this():
    listing, done = clean(
        title="<b>Mug</b> &amp;amp; saucer",
        category=["kitchen-ware", "n/a", "Mugs"],
        aspects={"main_color": "Red", "Capacity": "0,33 l", "Brand": "Does not apply",
                 "Style": "n/a, Retro", "Category": "x", "Sold by": "Mugs & More"},
        price=5, currency="EUR",
        description="<p>Holds tea.</p><ul><li>Mail me@mugs.example</ul>Free shipping worldwide! "
                    "If you have any questions, contact us.",
    )  # fmt: skip
    assert listing == {
        "title": "Mug & saucer", "category": ["Kitchen ware", "Mugs"],
        "aspects": {"Main color": "Red", "Capacity": "0.33 l", "Style": "Retro", "Category": "x",
                    "Sold by": "Mugs & More"},
        "price": 5.0, "currency": "EUR", "description": "Holds tea.\n• Mail [e-mail]",
        "language": "en", "product_id": "7", "source": "shop",
    }  # fmt: skip
    assert done == {"markup": 2, "empty_value": 3, "units": 1, "email": 1, "boilerplate": 2}
    assert clean_listing(listing) == (listing, {})


@pytest.mark.parametrize(
    "seller, fields, cleaned",
    [
        ("Lamp House", {"title": "Lamp by LAMP HOUSE"}, {"title": "Lamp by [seller]"}),
        ("Lamp House", {"description": "From Lamp House."}, {"description": "From [seller]."}),
        ("Nyx", {"title": "Nyx lamp", "aspects": {"Brand": "NYX"}}, {"title": "Nyx lamp"}),
        ("AB", {"title": "AB lamp"}, {"title": "AB lamp"}),
    ],
)
def test_the_sellers_name_goes_unless_it_is_the_brand(seller, fields, cleaned):
    listing, _ = clean(seller=seller, **fields)
    assert {key: listing[key] for key in cleaned} == cleaned and "seller" not in listing


@pytest.mark.parametrize(
    "language, sentence",
    [
        ("en", "Free shipping on all orders!"), ("en", "We ship within 24 hours."),
        ("en", "Please contact us before leaving feedback."), ("en", "Thank you for shopping!"),
        ("en", "30-day returns accepted."), ("de", "Versandkostenfrei ab 50 €."),
        ("de", "Kostenloser Versand!"), ("de", "Bei Fragen schreiben Sie uns."),
        ("de", "Vielen Dank für Ihren Besuch."), ("de", "Privatverkauf, keine Rücknahme."),
        ("fr", "Livraison gratuite dès 50 €."), ("fr", "N'hésitez pas à nous contacter."),
        ("fr", "Satisfait ou remboursé."), ("it", "Spedizione gratuita in Italia."),
        ("it", "Non esitate a contattarci."), ("es", "Envío gratis."),
        ("es", "Si tiene alguna pregunta, escríbanos."), ("es", "Gracias por su visita."),
    ],
)  # fmt: skip
def test_sentences_about_the_shop_are_left_out(language, sentence):
    listing, done = clean(language=language, description=f"Nyx 2000. {sentence} Nyx.")
    assert listing["description"] == "Nyx 2000. Nyx." and done == {"boilerplate": 1}


@pytest.mark.parametrize(
    "language, sentence",
    [
        ("en", "Free of perfumes and dyes."), ("en", "Returns the ball by itself."),
        ("en", "Contact lenses for a month."), ("en", "Ships in a bottle are its theme."),
        ("de", "Versandtasche aus Papier."), ("de", "Frei stehend, mit Rückgabeschlitz."),
        ("fr", "Livraison avec deux ampoules."), ("it", "Reso impermeabile dalla cera."),
        ("es", "Entrega una luz suave."), ("es", "Gracias a su peso es ligera."),
    ],
)  # fmt: skip
def test_sentences_about_the_product_stay(language, sentence):
    listing, done = clean(language=language, description=f"{sentence} Nyx.")
    assert listing["description"] == f"{sentence} Nyx." and not done


@pytest.mark.parametrize("description", ["Red mug", "RED MUG!", " <p>Red mug.</p>", "n/a", "--"])
def test_a_description_that_says_nothing_new_is_left_out(description):
    assert clean(description=description)[0]["description"] == ""


@pytest.mark.parametrize(
    "language, value",
    [("en", "N/A"), ("en", "Does not apply"), ("de", "Nicht zutreffend"), ("de", "k. A."),
     ("de", "ohne Angabe"), ("fr", "Non renseigné"), ("it", "N.D."), ("es", "No aplica"),
     ("it", "-"), ("en", "…")],
)  # fmt: skip
def test_values_that_say_nothing_are_left_out(language, value):
    assert clean(language=language, aspects={"A": value, "B": "x"})[0]["aspects"] == {"B": "x"}


@pytest.mark.parametrize(
    "value", ["None", "Unbranded", "No name", "NA-20", "0", "Ohne", "Unknown Brand"]
)
def test_values_that_say_something_stay(value):
    assert clean(aspects={"A": value})[0]["aspects"] == {"A": value}


def test_an_aspect_called_like_an_empty_field_becomes_it():
    aspects = {"Price": "$5.00", "Category": "Home > Mugs", "Description": "Holds tea.", "B": "x"}
    listing, done = clean(aspects=aspects)
    assert (listing["price"], listing["currency"]) == (5.0, "USD")
    assert listing["category"] == ["Home", "Mugs"] and listing["description"] == "Holds tea."
    assert listing["aspects"] == {"B": "x"} and done == {"field_name": 3}
    assert parse_document(listing_to_document(listing, seed=0), "en")["price"] == 5.0


def test_an_aspect_of_nothing_but_private_data_is_left_out():
    aspects = {"Contact": "a@b.example", "Sold by": "lamp house", "Note": "ask a@b.example"}
    listing, _ = clean(aspects=aspects, seller="Lamp Houses")
    assert listing["aspects"] == {"Sold by": "lamp house", "Note": "ask [e-mail]"}


def test_a_title_of_nothing_but_markup_is_refused():
    with pytest.raises(ValueError, match="title: must hold text beside markup, got '<br>'"):
        clean(title="<br>")


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
@pytest.mark.parametrize(
    "name, counts",
    [
        ("magento_listings_en", {"markup": 285}),
        ("ae-110k_train_en", {"markup": 213, "empty_value": 20, "field_name": 8}),
        ("oa-mine_train_en", {}),
        ("dummyjson_listings_en", {}),
    ],
)
def test_real_listings_are_cleaned_of_what_they_hold_and_no_more(name, counts):
    total = Counter()
    for listing in load_listings(SHARED_DATA / f"{name}.jsonl"):
        cleaned, done = clean_listing(listing)
        total += done
        assert clean_listing(cleaned) == (cleaned, Counter())
    assert total == counts
