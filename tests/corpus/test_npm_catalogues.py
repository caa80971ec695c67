"""Category trees and product dumps: literal records of hand-made files of the packages' shape."""

import json

from ellama_jax.corpus.listings import listing_to_document, parse_document
from ellama_jax.corpus.npm_catalogues import read_commercetools, read_taxonomy

TAXONOMY = {
    "version": "x",
    "verticals": [
        {
            "name": "Tiere",
            "prefix": "ap",
            "categories": [
                {"id": "ap", "name": "Tiere", "parent_id": None},
                {"id": "ap-1", "name": "Vögel", "parent_id": "ap"},
                {"id": "ap-2", "name": "Katzen", "parent_id": "ap"},
                {"id": "ap-1-1", "name": "Käfige", "parent_id": "ap-1"},
            ],
        }
    ],
}


def localised(text):
    return {f"{lang}-{lang.upper()}": f"{text} {lang}" for lang in ("de", "fr", "it", "es")} | {
        "en-US": f"{text} en"
    }


def make_dump():
    """One product of two variants in a category of two levels."""

    def variant(sku, year):
        attributes = [
            {"name": "model", "value": year},
            {"name": "certified", "value": False},
            {"name": "mobility", "value": {"key": "tracked", "label": "Tracked"}},
            {"name": "color", "value": {"key": "red", "label": localised("red")}},
            {"name": "related", "value": [{"typeId": "product", "key": "other"}]},
        ]
        return {"sku": sku, "attributes": attributes}

    def price(sku, cents, currency, channel="default-channel"):
        return {
            "sku": sku,
            "value": {"centAmount": cents, "currencyCode": currency},
            "channel": {"key": channel},
        }

    names = ("model", "certified", "mobility", "color", "related")
    return {
        "products": [
            {
                "key": "digger",
                "name": localised("Digger"),
                "description": localised("Digs"),
                "categories": [{"key": "large"}],
                "masterVariant": variant("d-1", 2015),
                "variants": [variant("d-2", 2019)],
                "productType": {"key": "machine"},
            }
        ],
        "categories": [
            {"key": "diggers", "name": localised("Diggers")},
            {"key": "large", "name": localised("Large"), "parent": {"key": "diggers"}},
        ],
        "types": [
            {
                "key": "machine",
                "attributes": [{"name": name, "label": localised(name)} for name in names],
            }
        ],
        "prices": [
            price(sku, cents, currency, channel)
            for sku, base in (("d-1", 100000), ("d-2", 200050))
            for currency, cents, channel in (
                ("USD", base, "default-channel"),
                ("EUR", base + 5, "default-channel"),
                ("EUR", 1, "spain"),
            )
        ],
    }


def test_categories_with_children_become_documents(tmp_path):
    path = tmp_path / "de.json"
    path.write_text(json.dumps(TAXONOMY), encoding="utf-8")
    records = read_taxonomy(path, "de")
    assert [record["text"] for record in records] == [
        "Kategorie: Tiere\nUnterkategorien: Vögel, Katzen",
        "Kategorie: Tiere > Vögel\nUnterkategorien: Käfige",
    ]
    assert [record["product_id"] for record in records] == ["taxonomy-ap", "taxonomy-ap-1"]
    assert {(record["domain"], record["language"]) for record in records} == {("ecommerce", "de")}


def test_french_labels_have_their_space(tmp_path):
    path = tmp_path / "fr.json"
    path.write_text(json.dumps(TAXONOMY), encoding="utf-8")
    assert read_taxonomy(path, "fr")[1]["text"].startswith("Catégorie : Tiere > Vögel\nSous-caté")


def test_every_variant_is_a_listing_in_five_languages():
    listings = read_commercetools(make_dump())
    assert [listing["language"] for listing in listings] == ["en", "de", "fr", "it", "es"] * 2
    assert {listing["product_id"] for listing in listings} == {"commercetools-digger"}


def test_german_variant_is_literally_this():
    listings = read_commercetools(make_dump())
    assert listings[6] == {
        "title": "Digger de",
        "category": ["Diggers de", "Large de"],
        "aspects": {"model de": 2019, "certified de": False, "color de": "red de"},
        "price": 2000.55,
        "currency": "EUR",
        "description": "Digs de",
        "language": "de",
        "product_id": "commercetools-digger",
        "source": "commercetools",
    }


def test_english_words_stay_in_english_listings_only():
    english, german = read_commercetools(make_dump())[:2]
    assert english["aspects"]["mobility en"] == "Tracked"
    assert "mobility de" not in german["aspects"]
    assert english["currency"] == "USD" and english["price"] == 1000.0


def test_listings_become_documents_after_reading(tmp_path):
    from ellama_jax.corpus.listings import load_listings

    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in read_commercetools(make_dump())))
    listing = load_listings(path)[7]
    assert listing["aspects"]["certified fr"] == "Non"
    parsed = parse_document(listing_to_document(listing, seed=0), "fr")
    assert parsed["price"] == 2000.55 and parsed["category"] == ["Diggers fr", "Large fr"]
