"""The synthetic catalogue: what can be learnt from it, and that a split leaks nothing."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from ellama_jax.corpus.catalogue import (
    CATALOGUE_LANGUAGES,
    PRODUCT_TYPES,
    _end_price,
    generate_listings,
    max_products,
    split_products,
)
from ellama_jax.corpus.catalogue_vocabulary import words

SERIES = [
    (kind, brand, series)
    for kind in PRODUCT_TYPES
    for brand in kind.brands
    for series in brand.series
]


def find_brand(title):
    """Returns (type, brand) of a title by the brand's name."""
    return next((kind, brand) for kind, brand, _ in SERIES if brand.name in title.split())


@pytest.fixture(scope="module")
def english():
    return list(generate_listings(seed=0, num_products=1000, languages=["en"]))


def habit_share(listings, usual_of):
    """Share of the listings whose value is the one `usual_of(kind, brand, listing)` names."""
    follow = [usual_of(*find_brand(entry["title"]), entry) for entry in listings]
    return sum(follow) / len(follow)


def all_aspects(kind):
    return (*kind.shown_aspects, *kind.habit_aspects, kind.series_aspect)


def test_same_seed_gives_the_same_catalogue_in_every_process():
    """Another process hashes strings differently; nothing drawn may depend on that."""
    script = (
        "import json; from ellama_jax.corpus.catalogue import generate_listings;"
        "print(json.dumps(list(generate_listings(7, 20))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": "12"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == list(generate_listings(seed=7, num_products=20))


def test_the_first_listing_is_literally_this_one():
    listings = {entry["language"]: entry for entry in generate_listings(0, 1)}
    assert list(listings) == ["en", "de", "fr", "it", "es"]
    assert listings["de"] == {
        "title": "Candrille Galet Lampe, Beige, 60 cm",
        "category": ["Haus & Wohnen", "Lampen", "Kinderlampen"],
        "aspects": {"Lampenschirm": "Papier", "Fassung": "E14", "Stil": "Rustikal"},
        "price": 18.99,
        "currency": "EUR",
        "description": "",
        "language": "de",
        "product_id": "catalogue-0-00000",
        "source": "catalogue",
    }
    assert listings["it"]["title"] == "Lampada Candrille Galet, Beige, 60 cm"
    assert listings["en"]["currency"] == "USD"


def test_another_seed_gives_another_catalogue():
    first = [entry["title"] for entry in generate_listings(0, 50, ["en"])]
    second = [entry["title"] for entry in generate_listings(1, 50, ["en"])]
    assert len(set(first) & set(second)) < 5


def test_a_larger_catalogue_begins_with_the_smaller_one():
    assert list(generate_listings(3, 40))[:50] == list(generate_listings(3, 10))


def test_every_product_has_one_listing_a_language():
    languages = defaultdict(list)
    for entry in generate_listings(0, 30):
        languages[entry["product_id"]].append(entry["language"])
    assert len(languages) == 30
    assert set(map(tuple, languages.values())) == {CATALOGUE_LANGUAGES}


def test_translations_state_the_same_facts():
    columns = {language: i for i, language in enumerate(CATALOGUE_LANGUAGES)}
    by_product = defaultdict(list)
    for entry in generate_listings(0, 200):
        by_product[entry["product_id"]].append(entry)
    for translations in by_product.values():
        kind, _ = find_brand(translations[0]["title"])
        facts = {
            frozenset(read_facts(kind, entry, columns[entry["language"]])) for entry in translations
        }
        assert len(facts) == 1, translations


def read_facts(kind, entry, column):
    """Turns localised aspects and leaf into indices, which must agree between languages."""
    for place, aspect in enumerate(all_aspects(kind)):
        if aspect.name[column] in entry["aspects"]:
            value = entry["aspects"][aspect.name[column]]
            yield place, [v[column] for v in aspect.values].index(value)
    yield "leaf", [leaf[column] for leaf in kind.leaves].index(entry["category"][2])


def test_brands_and_series_are_equally_frequent(english):
    counts = Counter(" ".join(entry["title"].split()[:2]) for entry in english)
    assert len(counts) == len(SERIES) == 84
    assert max(counts.values()) - min(counts.values()) <= 1


def test_titles_never_repeat_so_that_heldout_products_are_new():
    titles = [entry["title"] for entry in generate_listings(0, max_products(), ["en"])]
    sorted_titles = [" ".join(sorted(title.replace(",", "").split())) for title in titles]
    assert len(set(sorted_titles)) == max_products() == 3360


def test_brands_keep_to_their_category_leaf(english):
    share = habit_share(english, lambda k, b, entry: entry["category"][2] == k.leaves[b.leaf][0])
    assert 0.88 <= share <= 0.97


@pytest.mark.parametrize("place", [0, 1])
def test_brands_keep_to_their_habits(english, place):
    def follows(kind, brand, entry):
        aspect = kind.habit_aspects[place]
        return entry["aspects"][aspect.name[0]] == aspect.values[brand.habits[place]][0]

    assert 0.86 <= habit_share(english, follows) <= 0.97


def test_series_keep_to_their_aspect(english):
    def follows(kind, brand, entry):
        series = next(word.strip(",") for word in entry["title"].split() if word in brand.series)
        value = kind.series_aspect.values[brand.series[series]][0]
        return entry["aspects"][kind.series_aspect.name[0]] == value

    assert 0.86 <= habit_share(english, follows) <= 0.97


def test_the_type_alone_does_not_tell_a_habit(english):
    """Without the brand, the best guess is right far less often: that is what is learnt."""
    counts = defaultdict(Counter)
    for entry in english:
        kind, _ = find_brand(entry["title"])
        counts[kind.key][entry["aspects"][kind.habit_aspects[0].name[0]]] += 1
    best = sum(counter.most_common(1)[0][1] for counter in counts.values())
    assert best / len(english) < 0.45


def test_price_follows_type_and_tier(english):
    for entry in english:
        kind, brand = find_brand(entry["title"])
        ratio = entry["price"] / (kind.base_price * brand.tier)
        assert 0.85 < ratio < 1.35, entry


def test_tiers_of_a_type_are_clearly_apart():
    for kind in PRODUCT_TYPES:
        low, middle, high = sorted(brand.tier for brand in kind.brands)
        assert middle / low >= 1.8 and high / middle >= 1.8, kind.key


def test_price_endings_follow_the_tier(english):
    for entry in english:
        _, brand = find_brand(entry["title"])
        ending = f"{entry['price']:.2f}"[-2:]
        assert ending == ("00" if brand.tier > 1.5 else "99" if brand.tier < 0.7 else "90")


def test_end_price_is_literal():
    assert [_end_price(41.3, tier) for tier in (0.4, 1.0, 2.2)] == [40.99, 40.9, 41.0]
    assert _end_price(0.2, 0.4) == 0.99


def test_euro_prices_are_lower_than_dollar_prices_by_the_same_rate():
    pairs = zip(generate_listings(0, 50, ["en"]), generate_listings(0, 50, ["it"]), strict=True)
    for first, second in pairs:
        assert second["price"] == pytest.approx(first["price"] * 0.92, abs=1.1)


def test_titles_show_color_and_size_but_no_habit_of_the_brand(english):
    for entry in english[:300]:
        kind, _ = find_brand(entry["title"])
        details = entry["title"].split(", ")[1:]
        colors, sizes = ([value[0] for value in shown.values] for shown in kind.shown_aspects)
        assert len(details) == 2
        assert set(details) & set(colors) and set(details) & set(sizes)


def test_no_title_gives_a_habit_away_in_any_language():
    for entry in generate_listings(0, 400):
        kind, _ = find_brand(entry["title"])
        column = CATALOGUE_LANGUAGES.index(entry["language"])
        for aspect in (*kind.habit_aspects, kind.series_aspect):
            value = entry["aspects"][aspect.name[column]]
            assert value.lower() not in entry["title"].lower(), entry


def test_most_listings_have_no_description(english):
    share = sum(bool(entry["description"]) for entry in english) / len(english)
    assert 0.10 < share < 0.20


@pytest.mark.parametrize("kind", PRODUCT_TYPES, ids=lambda kind: kind.key)
def test_tables_are_consistent(kind):
    assert len(kind.leaves) == 4 and len(kind.brands) == 3
    assert len({brand.leaf for brand in kind.brands}) == 3
    assert len(kind.shown_aspects) == 2 and len(kind.shown_aspects[1].values) == 4
    for place in (0, 1):
        usual = [brand.habits[place] for brand in kind.brands]
        assert len(set(usual)) == 3, "two brands of a type may not share a habit"
        assert max(usual) < len(kind.habit_aspects[place].values) == 5
    for brand in kind.brands:
        assert len(brand.series) == 2 and len(set(brand.series.values())) == 2
        assert max(brand.series.values()) < len(kind.series_aspect.values) == 4


@pytest.mark.parametrize("column", range(5), ids=CATALOGUE_LANGUAGES)
def test_words_of_one_language_never_collide(column):
    for kind in PRODUCT_TYPES:
        names = [aspect.name[column] for aspect in all_aspects(kind)]
        assert len(set(names)) == len(names), (kind.key, names)
        for aspect in all_aspects(kind):
            values = [value[column] for value in aspect.values]
            assert len(set(values)) == len(values), (kind.key, values)
        leaves = [leaf[column] for leaf in kind.leaves]
        assert len(set(leaves)) == 4 and kind.group[column] not in leaves


def test_brands_and_series_have_names_of_their_own():
    names = [brand.name for kind in PRODUCT_TYPES for brand in kind.brands]
    series = [name for _, _, name in SERIES]
    assert len(set(names)) == len(names) == 42
    assert len(set(series)) == len(series)
    assert len({kind.department for kind in PRODUCT_TYPES}) == 5


def test_sentences_end_with_a_stop_and_begin_with_a_capital():
    for kind in PRODUCT_TYPES:
        for sentence in (text for sentences in kind.sentences for text in sentences):
            assert sentence.endswith(".") and sentence[0].isupper(), sentence


def test_words_needs_five_parts():
    with pytest.raises(AssertionError, match="five parts"):
        words("Wool|Wolle|Laine")


def test_too_many_products_are_refused():
    with pytest.raises(ValueError, match=r"num_products: must be between 0 and 3360 .* got 3361"):
        generate_listings(0, 3361)


def test_an_unwritten_language_is_refused():
    with pytest.raises(ValueError, match="languages: must be among en, de, fr, it, es, got 'ja'"):
        generate_listings(0, 1, ["en", "ja"])


def test_no_product_is_on_both_sides_in_any_language():
    listings = list(generate_listings(0, 100))
    train, heldout = split_products(listings, heldout_frac=0.2, seed=1)
    train_ids = {entry["product_id"] for entry in train}
    heldout_ids = {entry["product_id"] for entry in heldout}
    assert not train_ids & heldout_ids
    assert (len(train_ids), len(heldout_ids)) == (80, 20)
    assert (len(train), len(heldout)) == (400, 100)
    assert not {entry["title"] for entry in train} & {entry["title"] for entry in heldout}


def test_split_depends_on_ids_not_on_order():
    listings = list(generate_listings(0, 40))
    _, heldout = split_products(listings, 0.25, seed=5)
    _, again = split_products(listings[::-1], 0.25, seed=5)
    _, other = split_products(listings, 0.25, seed=6)
    assert again == heldout[::-1]
    assert {e["product_id"] for e in other} != {e["product_id"] for e in heldout}


def test_split_keeps_every_listing_once():
    listings = list(generate_listings(0, 30))
    train, heldout = split_products(listings, 0.5, seed=0)
    key = lambda entry: (entry["product_id"], entry["language"])  # noqa: E731
    assert sorted(map(key, train + heldout)) == sorted(map(key, listings))


@pytest.mark.parametrize("frac", [-0.1, 1.5])
def test_split_refuses_an_impossible_share(frac):
    with pytest.raises(ValueError, match=f"heldout_frac: must be between 0 and 1, got {frac}"):
        split_products([], frac, seed=0)


def test_split_refuses_listings_without_product():
    listing = next(generate_listings(0, 1)) | {"product_id": None}
    with pytest.raises(ValueError, match="product_id: must be given to split by product, got None"):
        split_products([listing], 0.5, seed=0)
