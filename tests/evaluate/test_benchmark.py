"""`ellama build-benchmark` on files and real records, and lm-eval running what it writes."""

import collections
import json
import os
from pathlib import Path

import pytest
import yaml

from ellama_jax.corpus import catalogue, listings
from ellama_jax.evaluate import answers, benchmark, ecommerce

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WOODS = ["Alder", "Beech", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple", "Oak", "Pine", "Teak",
         "Willow"]  # fmt: skip
LISTINGS = list(catalogue.generate_listings(0, 240))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return str(path)


def build(tmp_path, records, *options):
    dst = tmp_path / "bench"
    path = write_jsonl(tmp_path / "shop.jsonl", records)
    benchmark.main_build_benchmark([path, str(dst), "--overwrite", *options])
    return dst, json.loads((dst / "benchmark.json").read_text())


def make_variant(number, size, **changes):
    return {
        "title": f"{WOODS[number]} Bench, {size}", "category": ["Home", "Benches"],
        "aspects": {"Size": size}, "price": 49.99, "currency": "USD", "description": "",
        "language": "en", "product_id": f"B{number}-{size}", **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("built")
    reviews = [
        {"rating": n % 5 + 1, "review": f"I like how it looks at home, number {n}.", "lang": "en",
         "id": LISTINGS[5 * n]["product_id"]}
        for n in range(90)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "reviews.jsonl", reviews)
    options = ("--items-per-task", "6", "--heldout-frac", "0.4", "--validation-frac", "0.3")
    return build(tmp_path, LISTINGS, *options, "--reviews", path)


def test_choices_and_generated_items_have_files_of_their_own(bench):
    dst, summary = bench
    chosen, generated = ecommerce.read_items(dst), ecommerce.read_generated(dst)
    assert {i["task"] for i in chosen} == set(ecommerce.CHOICE_TASKS)
    assert {i["task"] for i in generated} == set(ecommerce.GENERATED_TASKS)
    counts = collections.Counter(i["task"] for i in (*chosen, *generated))
    assert {task: sum(n.values()) for task, n in summary["items"].items()} == counts
    assert summary["missing"] == {}
    for item in generated:
        perfect = answers.score_answer(item, ", ".join(item["references"]))
        assert all(value == (name != "abs_log_error") for name, value in perfect.items()), item


def test_the_summary_tells_chance_and_what_can_be_seen(bench):
    told = bench[1]["tells"]
    assert told["price_bins"]["de"]["chance"] == 0.25
    assert told["product_matching"]["de"]["chance"] == 0.5
    assert told["review_rating"]["en"]["chance"] == 0.2
    # Of stars 1 to 5 in turn: 1 - the mean distance of two numbers drawn from them, over 4.
    items = [
        {"task": "t", "language": "en", "choices": list("abcde"), "answer": n,
         "credits": [1 - abs(n - m) / 4 for m in range(5)]}
        for n in range(5)
    ]  # fmt: skip
    assert ecommerce.summarise_items(items)["t"]["en"]["chance_credit"] == 0.6
    assert "chance" not in told["price_prediction_generate"]["de"]
    tests = [i for i in ecommerce.read_items(bench[0], "test") if i["task"] == "price_bins"]
    count = sum(item["language"] == "de" for item in tests)
    seen = told["price_bins"]["de"]
    assert seen["n"] == count
    assert seen["visible_difference"] == pytest.approx(1.96 * (0.2 / count) ** 0.5, abs=5e-4)


def test_reviews_are_held_out_with_their_products(bench):
    dst, summary = bench
    sides = {}
    for side in ("train", "heldout"):
        ids = {r["product_id"] for r in listings.load_listings(dst / f"{side}.jsonl")}
        lines = (dst / f"{side}_reviews.jsonl").read_text().splitlines()
        reviewed = {json.loads(line)["product_id"] for line in lines}
        assert reviewed and reviewed <= ids
        sides[side] = reviewed
    assert not sides["train"] & sides["heldout"]
    assert summary["source"]["reviews"] == 90


def test_every_task_file_names_its_data_and_tells_chance(bench):
    folder = bench[0] / "lm_eval"

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    tasks = [yaml.load(p.read_text(), Loader) for p in sorted(folder.glob("ellama_*.yaml"))]
    assert len(tasks) == 5 * len(ecommerce.TASKS + ecommerce.GENERATED_TASKS) - 4  # English reviews
    for task in tasks:
        assert (folder / task["dataset_kwargs"]["file"]).is_file()
        assert (folder / task["include"]).is_file()
        assert "ellama_ecommerce" in task["tag"]
        assert task["metadata"]["n"] > 0
        assert ("chance" in task["metadata"]) == ("generate" not in task["task"])
    assert not any("/" in text for text in map(str, tasks))  # no place on this machine


def test_variants_are_one_product_by_pattern(tmp_path):
    shop = [make_variant(n, size) for n in range(12) for size in ("S", "M", "L")]
    dst, summary = build(tmp_path, shop, "--product-pattern", r"([^-]+)", "--heldout-frac", "0.5")
    assert summary["products"] == {"train": 6, "heldout": 6}
    held = {r["product_id"] for r in listings.load_listings(dst / "heldout.jsonl")}
    assert len(held) == 6 and all("-" not in one for one in held)
    matching = [i for i in ecommerce.read_items(dst) if i["task"] == "product_matching"]
    assert len(matching) == 6
    assert sorted(item["answer"] for item in matching) == [0, 0, 0, 1, 1, 1]


def test_listings_that_share_a_gtin_are_one_product(tmp_path):
    same = {"aspects": {"EAN": "4006381333931"}}
    shop = [make_variant(n, "S", **(same if n < 2 else {})) for n in range(10)]
    joined = benchmark._join_products(
        [listings.normalise_listing(r, source="s") for r in shop], None
    )
    assert [r["product_id"] for r in joined[:3]] == ["B0-S", "B0-S", "B2-S"]


def test_a_catalogue_without_prices_and_reviews_says_what_is_missing(tmp_path, capsys):
    bare = [record | {"price": None, "currency": None} for record in LISTINGS]
    _, summary = build(tmp_path, bare, "--items-per-task", "4")
    said = capsys.readouterr().out
    heldout = 48 * 5
    assert f"price_prediction: no items: no price ({heldout})" in said
    assert "review_rating: no items: no reviews held out" in said
    assert set(summary["missing"]) == {
        "price_prediction", "price_bins", "price_prediction_generate", "review_rating",
    }  # fmt: skip
    assert "category_prediction: en 4, de 4, fr 4, it 4, es 4" in said
    assert "too few items to show a difference of 3 points" in said


def test_a_file_of_broken_reviews_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "reviews.jsonl", [{"rating": "many", "lang": "en", "text": "x"}])
    with pytest.raises(ValueError, match=r"--reviews: at most 1% .* got 1 of 1 .* line 1: rating"):
        build(tmp_path, LISTINGS, "--reviews", path)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--heldout-frac", "0"), ("--heldout-frac", "nan"), ("--validation-frac", "1"),
     ("--items-per-task", "0"), ("--product-pattern", "(")],
)  # fmt: skip
def test_what_cannot_hold_is_refused_by_its_option(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"^{option}: must"):
        build(tmp_path, LISTINGS, option, value)
    assert not (tmp_path / "bench").exists()


def test_only_an_earlier_benchmark_is_replaced(tmp_path):
    (tmp_path / "bench").mkdir()
    build(tmp_path, LISTINGS[:100], "--items-per-task", "2")  # an empty directory, and then itself
    build(tmp_path, LISTINGS[:100], "--items-per-task", "2")
    (tmp_path / "bench" / "benchmark.json").unlink()
    with pytest.raises(ValueError, match=r"must be a built benchmark to be replaced, got .*bench"):
        build(tmp_path, LISTINGS[:100], "--items-per-task", "2")
    assert (tmp_path / "bench" / "items.jsonl").is_file()


def test_a_catalogue_that_gives_nothing_says_why_in_words(tmp_path):
    bare = [{"title": "Oak", "language": "en", "product_id": "1"}]
    with pytest.raises(ValueError, match=r"got none of 1 products held out: .*no price \(\d\)"):
        build(tmp_path, bare, "--heldout-frac", "1")


def test_markup_is_cleaned_out_of_a_file(tmp_path):
    shop = [record | {"title": f"<b>{record['title']}</b> &amp; more"} for record in LISTINGS]
    dst, _ = build(tmp_path, shop, "--items-per-task", "2")
    assert "<b>" not in (dst / "items.jsonl").read_text()
    assert "& more" in (dst / "items.jsonl").read_text()


def test_real_variants_and_reviews_give_every_task(tmp_path):
    path = SHARED / "magento_listings_en.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data is not here")
    dst = tmp_path / "bench"
    benchmark.main_build_benchmark([
        str(path), str(dst), "--reviews", str(SHARED / "magento_reviews_en.jsonl"),
        "--product-pattern", r"((?:24-)?[^-]+)", "--heldout-frac", "0.4",
    ])  # fmt: skip
    summary = json.loads((dst / "benchmark.json").read_text())
    assert summary["missing"] == {}
    assert summary["items"]["review_rating"]["en"] > 100
    items = ecommerce.read_items(dst)
    assert len({item["id"] for item in items}) == len(items)
    for item in items:
        if item["task"] == "aspect_prediction":
            shown = item["context"].rsplit("\n", 1)[0].casefold()
            assert not [c for c in item["choices"] if c.strip().casefold() in shown]


def load_lm_eval(tmp_path, monkeypatch):
    """Imports lm-eval without network, its caches in the test's folder."""
    pytest.importorskip("lm_eval", reason="lm-eval runs the written tasks")
    pytest.importorskip("torch", reason="lm-eval's own backend needs torch")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DISABLE_MULTIPROC"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval.models.huggingface
    import lm_eval.tasks

    return lm_eval


def make_hf_model(lm_eval, tokenizer_dir):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    model = transformers.LlamaForCausalLM(config).eval()
    return lm_eval.models.huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu"
    )


@pytest.mark.slow
def test_lm_eval_runs_every_kind_of_task_from_anywhere(bench, tmp_path, tokenizer_dir, monkeypatch):
    lm_eval = load_lm_eval(tmp_path, monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    dst, summary = bench
    names = [
        "ellama_aspect_prediction_de", "ellama_category_prediction_fr", "ellama_review_rating_en",
        "ellama_product_matching_es", "ellama_stated_aspect_generate_it",
        "ellama_category_prediction_generate_es", "ellama_price_prediction_generate_de",
        "ellama_common_aspects_generate_fr", "ellama_title_from_aspects_generate_en",
    ]  # fmt: skip
    manager = lm_eval.tasks.TaskManager(include_path=str(dst), include_defaults=False)
    results = lm_eval.simple_evaluate(
        make_hf_model(lm_eval, tokenizer_dir), tasks=names, task_manager=manager,
        bootstrap_iters=20, gen_kwargs={"max_gen_toks": 12},
    )  # fmt: skip
    metrics = {
        name: {key.split(",")[0] for key in row if key.endswith(",none") and "stderr" not in key}
        for name, row in results["results"].items()
    }
    assert metrics == {
        "ellama_aspect_prediction_de": {"acc", "acc_norm"},
        "ellama_category_prediction_fr": {"acc", "acc_norm", "credit"},
        "ellama_review_rating_en": {"acc", "acc_norm", "credit"},
        "ellama_product_matching_es": {"acc", "acc_norm"},
        "ellama_stated_aspect_generate_it": {"exact_match", "f1"},
        "ellama_category_prediction_generate_es": {"exact_match", "shared_depth"},
        "ellama_price_prediction_generate_de": {"abs_log_error", "answered"},
        "ellama_common_aspects_generate_fr": {"recall_at_k"},
        "ellama_title_from_aspects_generate_en": {"rouge_l"},
    }
    for name, row in results["results"].items():
        task, language = name.removeprefix("ellama_").rsplit("_", 1)
        assert results["n-samples"][name]["effective"] == summary["tells"][task][language]["n"]
        assert {f"{m}_stderr,none" for m in metrics[name]} <= set(row)
        assert all(isinstance(row[f"{m}_stderr,none"], float) for m in metrics[name])
    # Accuracy of graded tasks is lm-eval's own: here from the log-likelihoods that it returns.
    for sample in results["samples"]["ellama_category_prediction_fr"]:
        scores = [float(answer[0]) for answer in sample["filtered_resps"]]
        choices = sample["doc"]["choices"]
        normed = [s / len(c) for s, c in zip(scores, choices, strict=True)]
        assert sample["acc"] == (scores.index(max(scores)) == sample["doc"]["answer"])
        assert sample["credit"] == sample["doc"]["credits"][normed.index(max(normed))]
    for sample in results["samples"]["ellama_title_from_aspects_generate_en"]:
        assert sample["doc"]["split"] == "test"
        assert sample["arguments"][0][0] == sample["doc"]["context"]


@pytest.mark.slow
def test_few_shot_examples_are_validation_items(bench, tmp_path, monkeypatch):
    lm_eval = load_lm_eval(tmp_path, monkeypatch)
    manager = lm_eval.tasks.TaskManager(include_path=str(bench[0]), include_defaults=False)
    names = ["ellama_aspect_prediction_de", "ellama_common_aspects_generate_de"]
    for name, task in manager.load_task_or_group(names).items():
        assert task.get_config("num_fewshot") is None  # 0 would make lm-eval ignore --num_fewshot
        task.set_config(key="num_fewshot", value=1)
        task.set_fewshot_seed(0)
        shown = [task.fewshot_context(doc, 1) for doc in task.test_docs()]
        items = [*ecommerce.read_items(bench[0]), *ecommerce.read_generated(bench[0])]
        items = [i for i in items if f"ellama_{i['task']}_{i['language']}" == name]
        examples = [
            f"{i['context']}{i['choices'][i['answer']]}" if "choices" in i
            else f"{i['context']} {', '.join(i['references'][: i['k']])}"
            for i in items if i["split"] == "validation"
        ]  # fmt: skip
        assert all(any(text.startswith(one) for one in examples) for text in shown)
        assert os.linesep not in examples[0].rsplit(":", 1)[1]
