"""Every e-commerce task, as properties over seeds of a synthetic shop and over real records."""

import collections
import json
import random
import re
from pathlib import Path

import pytest

from ellama_jax.corpus import catalogue, listings, reviews
from ellama_jax.evaluate import ecommerce
from ellama_jax.evaluate.prompts import PROMPTS
from ellama_jax.evaluate.tasks import aspects, matching, prices, ratings, titles
from ellama_jax.evaluate.tasks.drafts import (
    Draw,
    Unusable,
    collect_facts,
    compact,
    fold,
    is_told,
    shared_levels,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ALL_TASKS = (*ecommerce.CHOICE_TASKS, *ecommerce.GENERATED_TASKS)
LISTINGS = list(catalogue.generate_listings(3, 260))
TRAIN, HELDOUT = catalogue.split_products(LISTINGS, 0.3, 3)
PRAISE = {
    "en": "Warm and light, I wear it every day.", "de": "Warm und leicht, ich trage es täglich.",
    "fr": "Chaud et léger, je le porte tous les jours.", "it": "Caldo e leggero, lo uso sempre.",
    "es": "Cálido y ligero, lo uso todos los días.",
}  # fmt: skip


def make_review(language, rating, number, **changes):
    return {
        "rating": float(rating), "scale": 5, "title": "", "text": f"{PRAISE[language]} ({number})",
        "product_id": str(number), "product_title": "", "language": language, "source": "hand",
        **changes,
    }  # fmt: skip


REVIEWS = [make_review(code, n % 5 + 1, n) for code in PRAISE for n in range(15)]


def build(seed, heldout=HELDOUT, train=TRAIN, **changes):
    arguments = {"items_per_task": 40, "tasks": ALL_TASKS, "heldout_reviews": REVIEWS} | changes
    return ecommerce.build_benchmark(heldout, seed=seed, train_listings=train, **arguments)


@pytest.fixture(scope="module", params=[0, 1, 2])
def built(request):
    return build(request.param)


@pytest.fixture(scope="module")
def facts():
    return {code: collect_facts(code, TRAIN, HELDOUT) for code in ecommerce.LANGUAGES}


def of_task(built, *names):
    return [item for item in built.items if item["task"] in names]


def right(item):
    return item["choices"][item["answer"]].strip()


def wrong(item):
    return [c.strip() for n, c in enumerate(item["choices"]) if n != item["answer"]]


def test_every_task_has_items_in_every_language(built):
    cells = collections.Counter((item["task"], item["language"]) for item in built.items)
    assert set(cells) == {(task, code) for task in ALL_TASKS for code in ecommerce.LANGUAGES}
    assert min(cells.values()) >= 15


def test_no_choice_stands_twice_and_each_begins_with_its_space(built):
    for item in built.items:
        if "choices" in item:
            assert len({fold(choice) for choice in item["choices"]}) == len(item["choices"])
            assert all(re.match(r" \S", choice) for choice in item["choices"])
            assert not item["context"].endswith(" ")


def test_the_right_answer_is_at_each_place_equally_often(built):
    cells = collections.defaultdict(collections.Counter)
    for item in built.items:
        if "choices" in item:
            cells[item["task"], item["language"]][item["answer"]] += 1
    for (task, _), places in cells.items():
        size = {"product_matching": 2, "review_rating": 5}.get(task, 4)
        counts = [places[place] for place in range(size)]
        assert max(counts) - min(counts) <= 1, (task, counts)


def test_ids_are_unique_and_a_product_is_asked_once(built):
    assert len({item["id"] for item in built.items}) == len(built.items)
    asked = [
        (i["task"], i["language"], i["product_id"])
        for i in built.items
        if i["product_id"] and i["task"] != "review_rating"
    ]
    assert len(set(asked)) == len(asked)


def test_an_unseen_value_stands_nowhere_in_its_prompt(built):
    for item in of_task(built, "aspect_prediction", "aspect_prediction_generate"):
        shown = compact(item["context"].rsplit("\n", 1)[0])
        answers = item["references"] if "references" in item else item["choices"]
        assert not [answer for answer in answers if compact(answer) in shown]


def test_what_is_not_stated_is_right_a_quarter_of_the_time(built):
    for language, words in PROMPTS.items():
        items = [i for i in of_task(built, "stated_aspect") if i["language"] == language]
        assert all(f" {words.not_stated}" in item["choices"] for item in items)
        silent = sum(right(item) == words.not_stated for item in items)
        assert abs(silent - len(items) / 4) < 1


def test_stated_answers_are_in_the_title_and_others_are_not(built, facts):
    for item in of_task(built, "stated_aspect"):
        title = item["context"].split("\n")[0]
        nothing = PROMPTS[item["language"]].not_stated
        told = [c.strip() for c in item["choices"] if is_told(c.strip(), title)]
        assert told == ([] if right(item) == nothing else [right(item)])
        if right(item) == nothing:
            # Not a value of any category either.
            name = re.search("[“„«] ?(.+?) ?[”“»]", item["context"].split("\n")[-2])[1]
            values = facts[item["language"]].values[(), name]
            assert values and not [value for value in values if is_told(value, title)]


def test_the_common_aspect_is_stated_three_times_as_often_as_the_others(built):
    for item in of_task(built, "common_aspects"):
        path = item["context"].split("\n")[0].split(":", 1)[1].strip().split(" > ")
        stating = collections.Counter(
            name
            for record in LISTINGS
            if record["category"] == path and record["language"] == item["language"]
            for name in record["aspects"]
        )
        assert stating[right(item)] >= 3 * max(stating[name] for name in wrong(item))


def test_siblings_come_before_other_categories(built):
    paths = {lang: {tuple(r["category"]) for r in LISTINGS if r["language"] == lang}
             for lang in ecommerce.LANGUAGES}  # fmt: skip
    for item in of_task(built, "category_prediction"):
        path = tuple(right(item).split(" > "))
        depths = sorted(shared_levels(path, tuple(one.split(" > "))) for one in wrong(item))
        others = paths[item["language"]] - {path}
        assert depths == sorted(shared_levels(path, one) for one in others)[:-4:-1][::-1]
        credits = dict(zip(item["choices"], item["credits"], strict=True))
        assert credits.pop(item["choices"][item["answer"]]) == 1.0
        assert sorted(credits.values()) == [depth / len(path) for depth in depths]


def test_price_ranges_are_neighbours_and_hold_the_price(built):
    by_key = {(r["product_id"], r["language"]): r for r in HELDOUT}
    for item in of_task(built, "price_bins"):
        language = item["language"]
        record = by_key[item["product_id"], language]
        low_high = re.escape(PROMPTS[language].price_range).replace(r"\{\}", "(.+?)")
        ranges = {}
        for choice in item["choices"]:
            amounts = re.fullmatch(low_high, choice.strip()).groups()
            ranges[choice] = [listings.parse_price(amount, language)[0] for amount in amounts]
        low, high = ranges[item["choices"][item["answer"]]]
        assert low <= record["price"] < high
        in_order = sorted(ranges.values())
        assert all(a[1] == b[0] for a, b in zip(in_order, in_order[1:], strict=False))


def test_price_ranges_favour_no_rank(built):
    ranks = collections.Counter()
    for item in of_task(built, "price_bins"):
        lows = [listings.parse_price(re.search(r"[\d.,]+(?: \d{3}[\d.,]*)*", c)[0], item["language"])[0]
                for c in item["choices"]]  # fmt: skip
        ranks[sorted(lows).index(lows[item["answer"]])] += 1
    assert max(ranks.values()) - min(ranks.values()) <= len(ecommerce.LANGUAGES)


def test_a_wrong_title_belongs_to_listings_that_contradict_what_is_shown(built):
    by_key = {(r["product_id"], r["language"]): r for r in HELDOUT}
    owners = collections.defaultdict(list)
    for record in LISTINGS:
        owners[record["title"], record["language"]].append(record["aspects"])
    for item in of_task(built, "title_from_aspects"):
        mine = by_key[item["product_id"], item["language"]]["aspects"]
        for title in wrong(item):
            assert title.split(",")[0] != right(item).split(",")[0]
            for other in owners[title, item["language"]]:
                shared = other.keys() & mine.keys()
                assert sum(other[name] != mine[name] for name in shared) >= len(shared) / 2 > 0


def test_listings_match_where_they_are_of_one_product(built):
    owners = {(r["title"], r["language"]): r for r in LISTINGS}
    owners_of = {(r["product_id"], r["language"]): r for r in LISTINGS}
    labels = {code: listings.line_prompt(listings.LABELS[code]["title"], code) for code in PROMPTS}
    answers = collections.Counter()
    for item in of_task(built, "product_matching"):
        shown = []
        for line in item["context"].split("\n"):
            shown += [
                record
                for (title, code), record in owners.items()
                if line == f"{labels[code]} {title}"
            ][:1]
        first, second = shown
        assert first["product_id"] == item["product_id"]
        assert (second["product_id"] == item["product_id"]) == (item["answer"] == 0)
        assert first["language"] == item["language"]
        if item["answer"] == 1:  # another series or brand, not another color or size
            model = owners_of[item["product_id"], second["language"]]
            assert model["title"].split(",")[0] != second["title"].split(",")[0]
        answers[item["answer"], second["language"] == first["language"]] += 1
    # Neither the language nor anything else about the second listing's kind gives the answer away.
    assert {same for _, same in answers} == {False}


def test_stars_keep_their_order_and_are_the_place(built):
    rated = {reviews.review_to_document(r, seed=0): r for r in REVIEWS}
    assert len(rated) == len(REVIEWS)
    for item in of_task(built, "review_rating"):
        stars = [int(re.search(r"\d", choice)[0]) for choice in item["choices"]]
        assert stars == [1, 2, 3, 4, 5]
        text = item["context"].split("\n")[0]
        assert [r["rating"] for r in REVIEWS if r["text"] == text] == [item["answer"] + 1]
        assert item["credits"][item["answer"]] == 1.0


def test_validation_and_test_share_no_product_in_any_task(built):
    items = ecommerce.assign_splits(built.items, validation_frac=0.4, seed=7)
    sides = collections.defaultdict(set)
    for item in items:
        sides[item["product_id"] or item["group"]].add(item["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert {item["split"] for item in items} == {"validation", "test"}


def test_the_same_arguments_give_the_same_items():
    assert build(4, items_per_task=5) == build(4, items_per_task=5)
    assert build(4, items_per_task=5).items != build(5, items_per_task=5).items


def test_a_task_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="tasks: must be among .*, got colour_prediction"):
        build(0, tasks=["colour_prediction"])


def make_listing(product_id, **changes):
    return {
        "title": f"Alder Bench {product_id}", "category": ["Home", "Benches"],
        "aspects": {"Wood": "Oak"}, "price": 49.99, "currency": "USD", "description": "",
        "language": "en", "product_id": product_id, "source": "hand", **changes,
    }  # fmt: skip


def draw(rank=0, seed=0):
    return Draw(random.Random(seed), 0, rank)


def test_without_prices_the_price_tasks_say_so_and_the_rest_is_built():
    bare = [record | {"price": None, "currency": None} for record in HELDOUT]
    built = build(0, heldout=bare, items_per_task=4)
    tasks = {item["task"] for item in built.items}
    lacking = {"price_prediction", "price_bins", "price_prediction_generate"}
    assert tasks == set(ALL_TASKS) - lacking
    for task in lacking:
        assert built.dropped[task] == {"no price": len(bare)}


def test_equally_common_aspects_all_count_as_right():
    names = ["A1", "B2", "C3", "D4", "E5", "F6", "G7"]
    shop = [
        make_listing(str(n), aspects=dict.fromkeys(names[: 6 + (n == 0)], "x")) for n in range(6)
    ]
    (unit,) = aspects.categories_alone(collect_facts("en", [], shop))[0]
    made = aspects.generate_common(unit, collect_facts("en", [], shop), draw())
    assert made.fields == {"k": 5}
    assert made.references == names[:6]  # five are asked for, six are as common
    assert "Which 5 details" in made.context


def test_variants_count_once_in_what_is_common():
    shop = [make_listing("one", title=f"Bench {n}", aspects={"Rare": "x"}) for n in range(20)]
    shop += [make_listing(str(n)) for n in range(4)]
    facts = collect_facts("en", [], shop)
    assert facts.products["Home", "Benches"] == 5
    assert facts.names["Home", "Benches"] == {"Rare": 1, "Wood": 4}


def test_a_number_of_the_same_unit_may_state_an_aspect():
    # 6500 mAh is nowhere a value, but a title with it states the capacity.
    shop = [make_listing(str(n), aspects={"Capacity": "5000 mAh"}) for n in range(9)]
    told = make_listing("x", title="Power bank, 6500 mAh", aspects={})
    with pytest.raises(Unusable, match="title or category may state every common aspect"):
        aspects.draft_stated(told, collect_facts("en", shop, [told]), draw(rank=0))


def test_a_category_may_state_an_aspect():
    shop = [
        make_listing(str(n), aspects={"Gender": who}, category=["Shoes", "Girls"])
        for n, who in enumerate(["Girls", "Boys", "Women", "Men"] * 3)
    ]
    plain = make_listing("x", title="Canvas shoes", aspects={}, category=["Shoes", "Girls"])
    with pytest.raises(Unusable, match="title or category may state every common aspect"):
        aspects.draft_stated(plain, collect_facts("en", shop, [plain]), draw(rank=0))


def test_a_value_that_the_listing_contradicts_is_not_asked_for():
    shop = [make_listing(str(n), aspects={"Wood": w}) for n, w in enumerate(["Oak", "Pine"] * 4)]
    told = make_listing("x", title="Pine bench", aspects={"Wood": "Oak"})
    with pytest.raises(Unusable, match="title states no aspect for certain"):
        aspects.draft_stated(told, collect_facts("en", shop, [told]), draw(rank=1))


def test_titles_that_nothing_tells_apart_are_no_wrong_answers():
    twins = [make_listing(str(n), title=f"Bench number {n}", aspects={"Wood": "Oak", "Legs": "4"})
             for n in range(8)]  # fmt: skip
    with pytest.raises(Unusable, match="too few other titles"):
        titles.draft_title(twins[0], collect_facts("en", [], twins), draw())


def test_numbers_that_name_a_product_are_not_shown():
    plain = {"Brand": "Nyx", "Color": "Red"}
    pair = [
        make_listing("1", title=title, aspects=plain | {"EAN": "4006381333931", "Model": "XB700-2"})
        for title in ("Lamp Nyx red", "Nyx lamp, large")
    ]
    made = matching.draft_match(pair[0], collect_facts("en", [], pair), draw(rank=0))
    assert "4006381333931" not in made.context and "XB700-2" not in made.context
    assert made.context.count("Color: Red") == 2


def test_another_color_or_size_is_no_other_product():
    pair = [make_listing("1", title=f"Alder Bench, Red, {n} m") for n in (1, 2)]
    shop = [
        make_listing("2", title="Alder Bench, Blue, 2 m"),
        make_listing("3", title="Oak Stool", aspects={"Color": "Blue"}),
    ]
    train = [make_listing("4", aspects={"Color": "Red"})]
    facts = collect_facts("en", train, pair + shop)
    made = matching.draft_match(pair[0], facts, draw(rank=1))
    assert "Title: Oak Stool" in made.context
    with pytest.raises(Unusable, match="no other product of the category held out"):
        matching.draft_match(pair[0], collect_facts("en", [*train, shop[1]], pair + shop[:1]),
                             draw(rank=1))  # fmt: skip


def test_the_hardest_stranger_shares_brand_and_words():
    pair = [
        make_listing("1", title=t, aspects={"Brand": "Nyx"}) for t in ("Nyx lamp", "Lamp by Nyx")
    ]
    others = [
        make_listing("2", title="Nyx lamp stand", aspects={"Brand": "Nyx"}),
        make_listing("3", title="Nyx lamp oak", aspects={"Brand": "Sol"}),
        make_listing("4", title="Nyx desk", aspects={"Brand": "Nyx"}),
    ]
    made = matching.draft_match(pair[0], collect_facts("en", [], pair + others), draw(rank=1))
    assert made.place == 1 and "Title: Nyx lamp stand" in made.context


def test_a_products_own_other_listing_is_no_stranger():
    pair = [make_listing("1", title=title) for title in ("Nyx lamp", "Reading light")]
    with pytest.raises(Unusable, match="no other product of the category held out"):
        matching.draft_match(pair[0], collect_facts("en", [], pair), draw(rank=1))


def test_a_record_that_fits_another_rank_is_tried_again():
    # Every title states its wood, and a quarter of the answers has to be "not stated": whatever the
    # order, the two plain titles are asked for what they do not state, and the others wait.
    woods = ["Oak", "Pine", "Ash", "Elm"]
    shop = [
        make_listing(f"{n}{wood}", title=f"{wood} bench {'abcdef'[n]}", aspects={"Wood": wood})
        for n in range(6)
        for wood in woods
    ]
    plain = [make_listing(str(n), title=f"Bench {n}", aspects={"Wood": "Oak"}) for n in range(2)]
    for seed in range(5):
        built = build(seed, heldout=[*shop, *plain], train=(), tasks=["stated_aspect"])
        silent = [item for item in built.items if right(item) == "not stated"]
        assert {item["product_id"] for item in silent} == {"0", "1"}
        assert len(built.items) >= 6


def test_ratings_take_turns_until_the_rarest_runs_out():
    many = [make_review("en", 5, n) for n in range(9)] + [make_review("en", 1, n) for n in (20, 21)]
    ordered = ratings.interleave_ratings(many, random.Random(0))
    assert [r["rating"] for r in ordered[:4]] == [1.0, 5.0, 1.0, 5.0]
    assert len(ordered) == 11


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rating": None}, "no rating"),
        ({"rating": 4.5}, "rating that is not one of 1 to 5"),
        ({"scale": 10}, "rating that is not one of 1 to 5"),
        ({"text": "Nice."}, "fewer than 3 words"),
        ({"text": "I gave it 4 out of 5 stars, really."}, "rating stands in the review"),
    ],
)
def test_reviews_that_cannot_be_asked_say_why(changes, reason):
    review = make_review("en", 4, 1) | changes
    with pytest.raises(Unusable, match=reason):
        ratings.draft_rating(review, None, draw())


@pytest.mark.parametrize(
    ("price", "currency", "language", "ranges"),
    [
        (1234.5, "EUR", "de", "1.000,00 € bis 2.000,00 €"),
        (1234.5, "EUR", "fr", "de 1 000,00 € à 2 000,00 €"),
        (20.0, "USD", "en", "$20.00 to $50.00"),  # an edge belongs to the range that it begins
        (15000, "JPY", "es", "de 10.000 ¥ a 20.000 ¥"),
    ],
)
def test_price_ranges_are_written_as_the_language_does(price, currency, language, ranges):
    record = make_listing("1", price=price, currency=currency, language=language)
    made = prices.draft_bins(record, None, draw(rank=2))
    assert made.choices[0] == f" {ranges}"


def load(name, **changes):
    if not (SHARED / name).is_file():
        pytest.skip("../shared/data is not here")
    records = [listings.clean_listing(r)[0] for r in listings.load_listings(SHARED / name)]
    return [record | changes for record in records]


def test_marketplace_titles_give_stated_aspects_that_their_labels_confirm():
    records = load("oa-mine_train_en.jsonl")
    built = build(0, heldout=records, train=(), items_per_task=400, tasks=["stated_aspect"])
    assert len(built.items) == 400
    by_key = {r["product_id"]: r for r in records}
    for item in built.items:
        stated = by_key[item["product_id"]]["aspects"]
        name = re.search("“(.+?)”", item["context"].split("\n")[-2])[1]
        if right(item) == "not stated":
            assert not is_told(stated.get(name, "\0"), item["context"].split("\n")[0])
        else:
            # People labelled these titles; a value that none of them gave is a guess.
            assert right(item) == stated.get(name, right(item))


def test_real_reviews_are_asked_once_each():
    path = SHARED / "magento_reviews_en.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data is not here")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [reviews.normalise_review(json.loads(line), source="magento") for line in lines]
    built = build(0, heldout_reviews=found, tasks=["review_rating"], languages=["en"],
                  items_per_task=900)  # fmt: skip
    assert len(built.items) > 450
    first = collections.Counter(item["answer"] for item in built.items[:50])
    assert set(first.values()) == {10}  # the stars take turns while they last
