"""Benchmark items from the synthetic catalogue and from hand-written listings."""

import collections
import json

import pytest

from ellama_jax.corpus import catalogue, listings
from ellama_jax.evaluate import benchmark, ecommerce

LISTINGS = list(catalogue.generate_listings(0, 60))
TRAIN, HELDOUT = catalogue.split_products(LISTINGS, 0.4, 0)


@pytest.fixture(scope="module")
def built():
    return ecommerce.build_benchmark(HELDOUT, seed=0, items_per_task=16, train_listings=TRAIN)


def make_listing(product_id="1", **changes):
    return {
        "title": "Alder Bench", "category": ["Home", "Benches", "Garden benches"],
        "aspects": {"Wood": "Oak"}, "price": 49.99, "currency": "USD", "description": "",
        "language": "en", "product_id": product_id, "source": "hand", **changes,
    }  # fmt: skip


def make_shop(values, **changes):
    return [
        make_listing(str(number), aspects={"Wood": value}, **changes)
        for number, value in enumerate(values)
    ]


def test_every_task_in_every_language(built):
    counts = benchmark._count_items(built.items)
    assert set(counts) == set(ecommerce.DOCUMENT_TASKS)
    for by_language in counts.values():
        assert set(by_language) == set(ecommerce.LANGUAGES)
        assert min(by_language.values()) >= 8


def test_an_item_continues_the_listings_own_document(built):
    by_key = {(r["product_id"], r["language"]): r for r in HELDOUT}
    for item in built.items:
        record = by_key[item["product_id"], item["language"]]
        truth = item["context"].rsplit("\n", 1)[1] + item["choices"][item["answer"]]
        lines = [line.text for line in listings.document_lines(record, 0)]
        assert truth in lines
        assert set(item["context"].split("\n")[:-1]) <= set(lines)


def test_places_of_right_answers_are_balanced(built):
    cells = collections.defaultdict(list)
    for item in built.items:
        cells[item["task"], item["language"]].append(item["answer"])
    for answers in cells.values():
        counts = collections.Counter(answers)
        assert max(counts.values()) - min(counts.get(place, 0) for place in range(4)) <= 1


def test_ranks_of_true_prices_are_balanced(built):
    ranks = collections.Counter()
    for item in built.items:
        if item["task"] == "price_prediction":
            prices = [listings.parse_price(c.strip(), item["language"])[0] for c in item["choices"]]
            ranks[sorted(prices).index(prices[item["answer"]])] += 1
    assert sum(ranks.values()) == 80
    assert set(ranks.values()) == {20}


def test_prices_are_steps_of_a_ratio_with_the_same_cents(built):
    for item in built.items:
        if item["task"] == "price_prediction":
            prices = sorted(
                listings.parse_price(c.strip(), item["language"])[0] for c in item["choices"]
            )
            assert len({round(price % 1, 2) for price in prices}) == 1
            for low, high in zip(prices, prices[1:], strict=False):
                assert high / low == pytest.approx(ecommerce.PRICE_RATIO, rel=0.5)


def test_no_aspect_answer_stands_in_its_prompt(built):
    for item in built.items:
        if item["task"] == "aspect_prediction":
            told = item["context"].rsplit("\n", 1)[0].casefold()
            assert not [c for c in item["choices"] if c.strip().casefold() in told]


def test_wrong_aspect_values_come_from_the_same_aspect(built):
    values = collections.defaultdict(set)
    for record in LISTINGS:
        for name, value in record["aspects"].items():
            values[record["language"], name].add(value)
    for item in built.items:
        if item["task"] == "aspect_prediction":
            name = item["context"].rsplit("\n", 1)[1].rstrip(": ")
            assert {c.strip() for c in item["choices"]} <= values[item["language"], name]


def test_wrong_categories_are_real_and_near(built):
    paths = {" " + " > ".join(r["category"]) for r in LISTINGS}
    for item in built.items:
        if item["task"] == "category_prediction":
            assert set(item["choices"]) <= paths
            assert len(set(item["choices"])) == 4
            assert len({choice.split(" > ")[0] for choice in item["choices"]}) == 1


def test_a_product_gives_one_item_a_task_and_language(built):
    keys = [(i["task"], i["language"], i["product_id"]) for i in built.items]
    assert len(keys) == len(set(keys))
    assert len({item["id"] for item in built.items}) == len(built.items)


def test_items_are_a_function_of_seed_and_listings(built):
    def build(seed):
        return ecommerce.build_items(HELDOUT, seed=seed, items_per_task=16, train_listings=TRAIN)

    assert build(0) == built.items
    assert build(1) != built.items


def test_an_aspect_item_in_full():
    shop = make_shop(["Oak", "Beech", "Pine", "Ash"])
    items = ecommerce.build_items(shop, seed=0, items_per_task=9, languages=["en"])
    item = next(i for i in items if i["id"] == "aspect_prediction/0/en")
    assert item["context"] == (
        "Title: Alder Bench\nCategory: Home > Benches > Garden benches\nWood:"
    )
    assert sorted(item["choices"]) == [" Ash", " Beech", " Oak", " Pine"]
    assert item["choices"][item["answer"]] == " Oak"
    assert (item["domain"], item["metric"], item["product_id"]) == ("ecommerce", "accuracy", "0")


def test_values_told_by_the_title_are_dropped_and_counted():
    shop = make_shop(["Oak", "Beech", "Pine", "Ash"], title="Oak Bench")
    built = ecommerce.build_benchmark(shop, seed=0, items_per_task=9, languages=["en"])
    aspects = [i for i in built.items if i["task"] == "aspect_prediction"]
    assert aspects == []  # Oak is told; the others have only two fair alternatives left
    assert built.dropped["aspect_prediction"] == {
        "too few other values of the aspect": 3,
        "value stands in the prompt": 1,
    }


def test_values_that_contain_each_other_are_no_alternatives():
    shop = make_shop(["Oak", "White oak", "Pine", "Ash"])
    items = ecommerce.build_items(shop, seed=0, items_per_task=9, languages=["en"])
    asked = {i["product_id"] for i in items if i["task"] == "aspect_prediction"}
    assert asked == {"2", "3"}


def test_small_categories_borrow_values_from_their_parent_only():
    near = make_shop(["Beech", "Pine", "Ash"], category=["Home", "Benches", "Hall benches"])
    far = make_shop(["Teak", "Elm", "Fir"], category=["Sport", "Bats", "Cricket bats"])
    alone = make_listing("alone", title="Sycamore Bench")
    items = ecommerce.build_items(
        [alone], seed=0, items_per_task=9, languages=["en"], train_listings=[*near, *far]
    )
    (item,) = (i for i in items if i["task"] == "aspect_prediction")
    assert sorted(item["choices"]) == [" Ash", " Beech", " Oak", " Pine"]


def test_a_held_out_title_seen_in_training_is_dropped():
    built = ecommerce.build_benchmark(
        [make_listing("new")], seed=0, items_per_task=9, languages=["en"],
        train_listings=[make_listing("old", title="ALDER  bench")],
    )  # fmt: skip
    assert built.items == []
    assert built.dropped["price_prediction"] == {"title also in the training listings": 1}


def test_listings_without_price_category_or_aspects_are_counted():
    bare = make_listing(price=None, category=[], aspects={})
    built = ecommerce.build_benchmark([bare], seed=0, items_per_task=9, languages=["en"])
    assert built.dropped == {
        "aspect_prediction": {"no aspects": 1},
        "category_prediction": {"no category": 1},
        "price_prediction": {"no price": 1},
    }


def test_prices_too_small_to_vary_are_dropped():
    built = ecommerce.build_benchmark(
        [make_listing(price=0.5)], seed=3, items_per_task=9, languages=["en"]
    )
    assert built.dropped["price_prediction"] == {"price too small to vary": 1}


def test_splits_go_by_product_over_all_languages(built):
    items = ecommerce.assign_splits(built.items, validation_frac=0.4, seed=0)
    sides = collections.defaultdict(set)
    for item in items:
        sides[item["product_id"]].add(item["split"])
    assert all(len(found) == 1 for found in sides.values())
    share = sum(found == {"validation"} for found in sides.values()) / len(sides)
    assert 0.1 < share < 0.7
    unsplit = ecommerce.assign_splits(items, validation_frac=0, seed=0)
    assert {item["split"] for item in unsplit} == {"test"}
    with pytest.raises(ValueError, match=r"validation_frac: must be in \[0, 1\), got 1"):
        ecommerce.assign_splits(items, validation_frac=1, seed=0)


def write_catalogue(tmp_path, records=LISTINGS):
    path = tmp_path / "catalogue.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return path


def test_the_verb_writes_items_listings_report_and_lm_eval_tasks(tmp_path, capsys):
    dst = tmp_path / "bench"
    arguments = [str(write_catalogue(tmp_path)), str(dst), "--items-per-task", "8"]
    benchmark.main_build_benchmark([*arguments, "--validation-frac", "0.3"])
    said = capsys.readouterr().out
    assert "12 products held out, 48 left for training." in said
    assert "price_prediction: en 8, de 8, fr 8, it 8, es 8" in said
    items = ecommerce.read_items(dst)
    test, validation = (ecommerce.read_items(dst, s) for s in ("test", "validation"))
    assert len(test) + len(validation) == len(items) and test and validation
    train, heldout = (
        {r["product_id"] for r in listings.load_listings(dst / f"{name}.jsonl")}
        for name in ("train", "heldout")
    )
    assert not train & heldout
    assert {item["product_id"] for item in items} <= heldout
    summary = json.loads((dst / "benchmark.json").read_text())
    assert summary["items"]["price_prediction"]["de"] == 8
    assert summary["source"]["listings"] == 300
    assert (dst / "lm_eval" / "ellama_aspect_prediction_fr.yaml").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench", "catalogue.jsonl"]


def test_an_existing_benchmark_is_not_replaced_unasked(tmp_path):
    dst = tmp_path / "bench"
    arguments = [str(write_catalogue(tmp_path)), str(dst), "--items-per-task", "2"]
    benchmark.main_build_benchmark(arguments)
    before = (dst / "items.jsonl").read_text()
    with pytest.raises(ValueError, match="DST: must not exist yet"):
        benchmark.main_build_benchmark([*arguments, "--seed", "5"])
    assert (dst / "items.jsonl").read_text() == before
    benchmark.main_build_benchmark([*arguments, "--seed", "5", "--overwrite"])
    assert (dst / "items.jsonl").read_text() != before


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder, items):
        raise OSError("disk full")

    monkeypatch.setattr(benchmark, "_write_lm_eval_tasks", fail)
    with pytest.raises(OSError, match="disk full"):
        benchmark.main_build_benchmark([str(write_catalogue(tmp_path)), str(tmp_path / "bench")])
    assert [p.name for p in tmp_path.iterdir()] == ["catalogue.jsonl"]


def test_a_catalogue_that_gives_no_item_is_an_error(tmp_path):
    bare = [make_listing(str(n), price=None, category=[], aspects={}) for n in range(5)]
    path = write_catalogue(tmp_path, bare)
    with pytest.raises(ValueError, match="must give at least one item, got none of"):
        benchmark.main_build_benchmark([str(path), str(tmp_path / "bench")])


def test_reading_names_what_is_no_benchmark(tmp_path):
    with pytest.raises(ValueError, match="made by `ellama build-benchmark`"):
        ecommerce.read_items(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"choices": ["a"], "answer": 0}\n{"choices": ["a"]}\n')
    with pytest.raises(ValueError, match="line 2 must be an item, got 'answer'"):
        ecommerce.read_items(tmp_path)
    for item, why in (
        ('{"choices": ["a"], "answer": 1}', "answer 1 of the choices"),
        ('{"choices": ["a", ""], "answer": 0}', "answer 0 of the choices"),
    ):
        (tmp_path / "items.jsonl").write_text(item + "\n")
        with pytest.raises(ValueError, match=f"line 1 must be an item, got {why}"):
            ecommerce.read_items(tmp_path)
    (tmp_path / "generated.jsonl").write_text('{"references": []}\n')
    with pytest.raises(ValueError, match="line 1 must be an item, got no references"):
        ecommerce.read_generated(tmp_path)


@pytest.mark.slow
def test_lm_eval_itself_loads_the_written_tasks(tmp_path, monkeypatch):
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval reads its own task files")
    dst = tmp_path / "bench"
    benchmark.main_build_benchmark(
        [str(write_catalogue(tmp_path)), str(dst), "--items-per-task", "4"]
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(dst / "lm_eval")
    name = "ellama_aspect_prediction_de"
    manager = tasks.TaskManager(include_path=str(dst / "lm_eval"), include_defaults=False)
    loaded = manager.load_task_or_group([name])
    task = loaded[name]
    items = [i for i in ecommerce.read_items(dst) if (i["task"], i["language"]) == (
        "aspect_prediction", "de")]  # fmt: skip
    documents = list(task.test_docs())
    assert [task.doc_to_text(d) for d in documents] == [i["context"] for i in items]
    assert [task.doc_to_choice(d) for d in documents] == [i["choices"] for i in items]
    assert [task.doc_to_target(d) for d in documents] == [i["answer"] for i in items]
