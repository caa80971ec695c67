"""Variants of one product become one listing, whatever their order."""

import itertools
import random
from collections import defaultdict
from pathlib import Path

import pytest

from ellama_jax.corpus.listings import load_listings
from ellama_jax.corpus.variants import collapse_variants, product_of, sort_values

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
MAGENTO = r"((?:24-)?[^-]+)"


def variant(title, product_id="p", **fields):
    return {
        "title": title, "category": ["A", "B"], "aspects": {}, "price": None, "currency": None,
        "description": "", "language": "en", "product_id": product_id, "source": "shop",
    } | fields  # fmt: skip


HOODIES = [
    variant("Chaz Kangeroo Hoodie", "MH01", price=52.0, currency="USD", description="Long text.",
            aspects={"material": "Wool"}),
    variant("Chaz Kangeroo Hoodie-XS-Black", "MH01-XS-Black", price=49.0, currency="USD",
            aspects={"size": "XS", "color": "Black"}),
    variant("Chaz Kangeroo Hoodie-XL-Gray", "MH01-XL-Gray", price=52.0, currency="USD",
            aspects={"size": "XL", "color": "Gray"}),
    variant("Chaz Kangeroo Hoodie-M-Black", "MH01-M-Black", price=40.0, currency="EUR",
            aspects={"size": "M", "color": "Black"}, category=["A", "C"]),
]  # fmt: skip


def test_variants_become_literally_this():
    assert collapse_variants(HOODIES) == {
        "title": "Chaz Kangeroo Hoodie",
        "category": ["A", "B"],
        "aspects": {"material": "Wool", "size": "XS, M, XL", "color": "Black, Gray"},
        "price": 49.0,  # the lowest in the currency that most have
        "currency": "USD",
        "description": "Long text.",
        "language": "en",
        "product_id": "MH01",
        "source": "shop",
    }


def test_order_of_the_variants_does_not_matter():
    wanted = collapse_variants(HOODIES)
    for order in itertools.permutations(HOODIES):
        got = collapse_variants(order)
        assert got == wanted and list(got["aspects"]) == list(wanted["aspects"])


@pytest.mark.parametrize(
    "titles, common",
    [
        (["Red Mug 330 ml", "Blue Mug 330 ml"], "Mug 330 ml"),
        (["Mug Red 330 ml", "Mug Blue 330 ml"], "Mug 330 ml"),
        (["Tee (S, Black)", "Tee (M, Black)"], "Tee Black"),
        (["Tee (S)", "Tee (M)"], "Tee"),
        (["Lampe Nyx, Rot", "Lampe Nyx, Blau"], "Lampe Nyx"),
        (["Hoodie", "Hoodie-XS"], "Hoodie"),
        (["Shirt Small", "Shirt Smart"], "Shirt"),
        (["Alpha", "Beta"], "Beta"),
        (["Same", "Same"], "Same"),
        (["Tee - S - Red", "Tee - M - Red"], "Tee Red"),
        (["مصباح أحمر", "مصباح أزرق"], "مصباح"),
    ],
)
def test_title_is_what_all_share(titles, common):
    listings = [variant(title, f"p-{number}") for number, title in enumerate(titles)]
    assert collapse_variants(listings)["title"] == common


@pytest.mark.parametrize(
    "values, ordered",
    [
        (["XL", "S", "XXS", "2XL", "M"], ["XXS", "S", "M", "XL", "2XL"]),
        (["100 ml", "50 ml", "7,5 ml"], ["7,5 ml", "50 ml", "100 ml"]),
        (["EU 44", "EU 38", "EU 38.5"], ["EU 38", "EU 38.5", "EU 44"]),
        (["33", "28", "9"], ["9", "28", "33"]),
        (["S", "One size"], ["S", "One size"]),
        (["Red", "Blue", "Red"], ["Red", "Blue"]),
    ],
)
def test_values_are_in_a_shops_order(values, ordered):
    assert sort_values(values) == ordered


def test_a_parents_list_and_its_variants_values_are_one_list():
    listings = [variant("Tee", "p", aspects={"Color": "Red, Blue"}),
                variant("Tee", "p-1", aspects={"Color": "Blue"})]  # fmt: skip
    assert collapse_variants(listings)["aspects"] == {"Color": "Red, Blue"}


def test_one_listing_comes_back_as_it_is():
    assert collapse_variants(HOODIES[1:2]) == HOODIES[1]


def test_a_seller_is_kept_where_all_have_the_same():
    both = [variant("Tee", "p-1", seller="Lamp House"), variant("Tee", "p-2", seller="Lamp House")]
    assert collapse_variants(both)["seller"] == "Lamp House"
    assert "seller" not in collapse_variants([both[0], both[1] | {"seller": "Other"}])


def test_what_is_no_set_of_variants_is_refused():
    with pytest.raises(ValueError, match="listings: must be at least one to collapse, got none"):
        collapse_variants([])
    with pytest.raises(ValueError, match="language: must be one for all variants, got de, en"):
        collapse_variants([variant("a"), variant("b", language="de")])


@pytest.mark.parametrize(
    "identifier, product",
    [("MH01-XS-Black", "MH01"), ("MH01", "MH01"), ("24-MB01", "24-MB01"),
     ("24-WG081-blue", "24-WG081")],
)  # fmt: skip
def test_product_is_what_the_pattern_names(identifier, product):
    assert product_of({"product_id": identifier}, MAGENTO) == product
    assert product_of({"product_id": identifier}) == identifier


def test_an_id_that_the_pattern_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"product_id: must fit the pattern .*got 'x'"):
        product_of({"product_id": "x"}, r"(\d+)-")
    with pytest.raises(ValueError, match="product_id: must be there to find variants, got None"):
        product_of({"product_id": None}, MAGENTO)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
def test_real_variants_collapse_into_their_parents():
    groups = defaultdict(list)
    for listing in load_listings(SHARED_DATA / "magento_listings_en.jsonl"):
        groups[product_of(listing, MAGENTO)].append(listing)
    assert len(groups) == 185  # 147 parents with variants, 38 products without
    with_variants = 0
    for product, listings in groups.items():
        parent = [listing for listing in listings if listing["product_id"] == product]
        random.Random(0).shuffle(listings)
        joined = collapse_variants(listings)
        if len(listings) > 1 and parent:
            with_variants += 1
            assert (joined["title"], joined["product_id"]) == (parent[0]["title"], product)
            assert set(parent[0]["aspects"]) <= set(joined["aspects"])
    assert with_variants == 147
    hoodie = collapse_variants(groups["MH01"])
    assert hoodie["aspects"]["size"] == "XS, S, M, L, XL"
    assert hoodie["aspects"]["color"] == "Black, Gray, Orange"
