"""The fields of real catalogues are mapped without code, and a slip of the pen is found."""

import csv
import io
import json
import pickle
from pathlib import Path

import pytest

from ellama_jax.corpus.mapping import map_fields, missing_paths, parse_mapping

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def mapped(fields, **mapping):
    return map_fields(fields, parse_mapping(mapping))


def test_every_shared_file_is_mapped_with_one_mapping():
    if not SHARED_DATA.exists():
        pytest.skip("the shared records are not here")
    listing = parse_mapping({
        "id": "id|idx", "title": "title|premise|question", "category": "category",
        "aspects": "aspects", "price": "price", "currency": "currency",
        "text": "review|description|answer", "rating": "rating", "language": "lang",
    })  # fmt: skip
    expected = {
        "ae-110k_train_en": {"id", "title", "category", "aspects", "language"},
        "dummyjson_listings_en": {"id", "title", "category", "aspects", "price", "currency", "text",
                                  "language"},
        "magento_listings_en": {"id", "title", "category", "aspects", "price", "currency", "text",
                                "language"},
        "magento_reviews_en": {"id", "title", "text", "rating", "language"},
        "mgsm_de": {"title", "text"}, "mgsm_en": {"title", "text"}, "mgsm_es": {"title", "text"},
        "mgsm_fr": {"title", "text"}, "oa-mine_train_en": {"id", "title", "category", "aspects",
                                                          "language"},
        "xcopa_it_val": {"id", "title"},
    }  # fmt: skip
    left = None
    for name, names in expected.items():
        found = set()
        for line in (SHARED_DATA / f"{name}.jsonl").read_text("utf-8").splitlines():
            fields = json.loads(line)
            found |= map_fields(fields, listing).keys()
            left = missing_paths(fields, listing, left)
        assert found == names, name
    assert left == frozenset()


def test_explicit_nulls_inside_an_aspects_mapping_stay():
    fields = {"aspects": {"Material": None, "Size": ["1#"]}}
    assert mapped(fields, aspects="aspects") == fields
    assert mapped(fields, aspects="aspects,brand") == {"aspects": {"Size": ["1#"]}}


def test_a_table_of_variants():
    text = (
        "Handle,Title,Body (HTML),Vendor,Option1 Name,Option1 Value,Option2 Name,Option2 Value,"
        "Variant Price\ncup,Cup,<p>Nice</p>,Acme,Colour,Red,Size,L,9.99\ncup,,,,Colour,Blue,,,9.99\n"
    )
    mapping = parse_mapping({
        "product_id": "Handle", "title": "Title|Handle", "description": "Body (HTML)",
        "price": "Variant Price", "currency": "='EUR'",
        "aspects": "[Option1 Name:Option1 Value],[Option2 Name:Option2 Value],Brand=Vendor",
    })  # fmt: skip
    assert [map_fields(row, mapping) for row in csv.DictReader(io.StringIO(text))] == [
        {"product_id": "cup", "title": "Cup", "description": "<p>Nice</p>", "price": "9.99",
         "currency": "EUR", "aspects": {"Colour": "Red", "Size": "L", "Brand": "Acme"}},
        {"product_id": "cup", "title": "cup", "price": "9.99", "currency": "EUR",
         "aspects": {"Colour": "Blue"}},
    ]  # fmt: skip


def test_reviews_and_web_pages():
    review = {"asin": "B0", "reviewText": "Good.", "overall": 5.0, "summary": "Yes", "vote": None}
    expected = {"product_id": "B0", "title": "Yes", "text": "Good.", "rating": 5.0}
    assert expected == mapped(
        review,
        product_id="asin",
        title="summary",
        text="reviewText",
        rating="overall",
        votes="vote",
    )
    page = {"text": "Hallo", "url": "u", "language": "de", "language_score": 0.9}
    assert mapped(page, text="text", language="language", source="='web'") == {
        "text": "Hallo", "language": "de", "source": "web"
    }  # fmt: skip


PRODUCT = {
    "name": {"en": "Mug", "de": "Becher"},
    "categories": [
        {"name": {"de": "Küche"}, "path": [{"id": 1}, {"id": 2}]},
        {"name": {"en": "Cups"}, "path": [{"id": 3}]},
    ],
    "masterVariant": {
        "prices": [{"value": {"centAmount": 990, "currencyCode": "EUR"}}],
        "images": [],
        "attributes": [
            {"name": "colour", "value": {"key": "r", "label": {"de": "rot"}}},
            {"name": "volume", "value": "1 l"},
            {"name": "material", "value": "Ton"},
            {"name": "material", "value": "Holz"},
            {"name": "empty", "value": ""},
        ],
    },
    "g.brand": "Acme",
}


@pytest.mark.parametrize(
    "source, value",
    [
        ("name.de", "Becher"),
        ("name.fr|name.en", "Mug"),
        ("masterVariant.prices.0.value.centAmount", 990),
        ("masterVariant.prices.-1.value.currencyCode", "EUR"),
        ("categories.*.name.*", ["Küche", "Cups"]),
        ("categories.*.path.*.id", [1, 2, 3]),
        ("categories.1.name.en", "Cups"),
        ("masterVariant.images.0|='none'", "none"),
        ("`g.brand`", "Acme"),
        ("='it''s'", "it's"),
        (("name.fr", "name.it", "name.de"), "Becher"),
        (
            "masterVariant.attributes[name:value.label.de|value]",
            {"colour": "rot", "volume": "1 l", "material": ["Ton", "Holz"]},
        ),
        ("Marke=`g.brand`", {"Marke": "Acme"}),
        ("`g.brand`,Form='rund'", {"g.brand": "Acme", "Form": "rund"}),
        ("name,`g.brand`", {"en": "Mug", "de": "Becher", "g.brand": "Acme"}),
        ("name.de,name.en", {"de": "Becher", "en": "Mug"}),
        ("A=name.de,A=name.en", {"A": ["Becher", "Mug"]}),
    ],
)
def test_nested_and_localised_records(source, value):
    assert mapped(PRODUCT, x=source) == {"x": value}


def test_all_other_columns():
    fields = {"id": 1, "title": "Cup", "brand": "Acme", "size": "", "image": b"\xff", "n": 3}
    mapping = parse_mapping({"title": "title", "id": "id", "aspects": "*"})
    assert map_fields(fields, mapping)["aspects"] == {"brand": "Acme", "n": 3}
    assert mapping.columns is None
    mapping = parse_mapping({"title": "title", "aspects": "Hersteller=brand,*"})
    assert map_fields(fields, mapping)["aspects"] == {"Hersteller": "Acme", "id": 1, "n": 3}


@pytest.mark.parametrize("name", ["a.b", "a,b", "a|b", "a=b", "a[b]", "a`b", "*", "0", "='x'", "["])
def test_any_name_can_be_said_between_backticks(name):
    quoted = "`" + name.replace("`", "``") + "`"
    fields = {name: 1, "x": {name: 2}}
    assert mapped(fields, one=quoted, two=f"x.{quoted}") == {"one": 1, "two": 2}
    assert parse_mapping({"one": quoted}).columns == {name}
    assert mapped({"l": [{name: "k", "v": 1}]}, one=f"l[{quoted}:v]") == {"one": {"k": 1}}


@pytest.mark.parametrize(
    "name", ["Body (HTML)", "g:price", "Women's size", "Größe", "price €", "a-b"]
)
def test_other_names_are_said_as_they_are(name):
    assert mapped({name: 1}, one=f" {name} ") == {"one": 1}


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, float("nan"), float("inf")])
def test_what_is_empty_gives_way_to_the_next(value):
    assert mapped({"a": value, "b": 0}, one="a|b", two="a") == {"one": 0}


def test_bytes_are_no_value():
    with pytest.raises(ValueError, match="title: must be text, got 2 bytes that are no UTF-8"):
        mapped({"t": b"\xff\xd8"}, title="t")
    with pytest.raises(ValueError, match="brand: must be text, got 1 bytes"):
        mapped({"brand": b"\xff"}, aspects="brand,size")


@pytest.mark.parametrize(
    "source, said",
    [
        ("", "title: must have a name between dots, got ''"),
        ("a..b", "have a name between dots"),
        ("a.", "have a name between dots"),
        ("a|", "have a name between dots"),
        ("a,", "have a name between dots"),
        ("=EUR", "have a constant as ='EUR'"),
        ("='EUR", "have a constant as ='EUR'"),
        ("`a", "close every ` and \\[, as at '`a'"),
        ("a[b:c", "close every ` and \\[, as at '\\[b:c'"),
        ("a]", "close every ` and \\["),
        ("a[b]", "have \\[name:value\\] with one colon"),
        ("a[b:c:d]", "have \\[name:value\\] with one colon"),
        ("a[b:c]d", "have names with .* between backticks"),
        ("='x',brand", "name what is gathered, as in Colour='red'"),
        ("brand,0", "name what is gathered"),
        ((), "title: must be a source or several of them"),
        (3, "title: must be a source or several of them"),
        (("a", None), "title: must be a source or several of them"),
    ],
)
def test_slips_in_a_mapping_are_said_before_any_record(source, said):
    with pytest.raises(ValueError, match=said):
        parse_mapping({"title": source})


def test_an_empty_mapping_is_a_slip():
    with pytest.raises(ValueError, match="mapping: must name at least one field, got none"):
        parse_mapping({})


def test_paths_that_no_record_has_are_left_over():
    mapping = parse_mapping({
        "title": "titel|name.de", "aspects": "attributes[nmae:value],brand",
        "ids": "categories.*.id", "price": "prices.0.amount",
    })  # fmt: skip
    assert mapping.paths == {
        "titel", "name.de", "attributes[nmae]", "attributes[value]", "brand", "categories.*.id",
        "prices.0.amount",
    }  # fmt: skip
    assert mapping.columns == {"titel", "name", "attributes", "brand", "categories", "prices"}
    first = {"name": {"de": None}, "attributes": [{"name": "a", "value": 1}], "categories": [{}]}
    left = missing_paths(first, mapping)
    assert left == {"titel", "attributes[nmae]", "brand", "categories.*.id", "prices.0.amount"}
    second = {"brand": "", "categories": [{}, {"id": 1}], "prices": [{"amount": 1}]}
    assert missing_paths(second, mapping, left) == {"titel", "attributes[nmae]"}


def test_a_mapping_pickles_and_keeps_its_order():
    mapping = parse_mapping({"z": "a", "aspects": "*", "b": ("c", "attributes[name:value]")})
    copy = pickle.loads(pickle.dumps(mapping))
    assert copy == mapping and copy.names == ("z", "aspects", "b")
    assert map_fields(PRODUCT, copy) == map_fields(PRODUCT, mapping)
