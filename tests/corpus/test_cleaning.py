"""Listings of one known form, and cleaned of what is not about their product."""

from collections import Counter
from pathlib import Path

import pytest

from ellama_jax.corpus.listings import (
    clean_listing,
    listing_to_document,
    load_listings,
    normalise_listing,
    parse_document,
    read_listings,
)

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


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
    path = tmp_path / "shop.jsonl"
    path.write_text('{"title": "Mug", "language": "en", "seller": "Lamp House"}\n')
    assert "seller" not in read_listings(path)[0][0]


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
