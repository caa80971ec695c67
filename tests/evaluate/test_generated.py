"""Generated e-commerce tasks in a scorecard: against lm-eval's run of the same tasks, and by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from ellama_jax.cli import main
from ellama_jax.corpus import catalogue
from ellama_jax.evaluate import (
    benchmark,
    card_text,
    comparison,
    ecommerce,
    generated,
    generation,
    retention,
    score_table,
    scorecard,
)

LANGUAGES = ("en", "de")
METRICS = {
    "aspect_prediction_generate": {"exact_match", "f1"},
    "category_prediction_generate": {"exact_match", "shared_depth"},
    "price_prediction_generate": {"median_abs_log_error", "answered"},
    "stated_aspect_generate": {"exact_match", "f1"},
    "common_aspects_generate": {"recall_at_k"},
    "title_from_aspects_generate": {"rouge_l"},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    source = folder / "catalogue.jsonl"
    records = catalogue.generate_listings(3, 260)
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    benchmark.main_build_benchmark(
        [str(source), str(folder / "bench"), "--items-per-task", "3", "--heldout-frac", "0.3"]
    )
    for name in ("items.jsonl", "generated.jsonl"):  # two languages are enough, and fewer programs
        path = folder / "bench" / name
        kept = [line for line in path.open() if json.loads(line)["language"] in LANGUAGES]
        path.write_text("".join(kept))
    return folder / "bench"


@pytest.fixture(scope="module")
def cards(bench, checkpoints, tmp_path_factory):
    """Files of two models' scorecards, and what the second command printed."""
    folder = tmp_path_factory.mktemp("scores")
    ask = ["--tasks", "ecommerce_generate,category_prediction", "--benchmark", str(bench),
           "--row-length", "256"]  # fmt: skip
    base, adapted = folder / "base.json", folder / "adapted.json"
    main(["evaluate", "--checkpoint", str(checkpoints["base"]), *ask, "--json", str(base)])
    main(["evaluate", "--checkpoint", str(checkpoints["adapted"]), *ask, "--json", str(adapted),
          "--base", str(base), "--markdown", str(folder / "card.md")])  # fmt: skip
    return folder


def test_the_group_scores_every_task_language_and_metric(cards, bench):
    card = scorecard.read_scorecard(cards / "base.json")
    items = ecommerce.read_generated(bench, "test")
    expected = {
        (item["task"], item["language"], metric)
        for item in items for metric in METRICS[item["task"]]
    } | {
        ("category_prediction", code, metric) for code in LANGUAGES
        for metric in ("accuracy", "accuracy_unnormalised", "credit")
    }  # fmt: skip
    assert {item["task"] for item in items} == set(METRICS)
    assert {(r["task"], r["language"], r["metric"]) for r in card["results"]} == expected
    for row in card["results"]:
        if row["task"] in METRICS:
            asked = [i["id"] for i in items if (i["task"], i["language"]) == (row["task"], row["language"])]  # fmt: skip
            assert row["ids"] == asked and len(row["values"]) == row["n"] == len(asked)
            assert row["chance"] is row["correct"] is None
            assert row["higher_is_better"] == (row["metric"] != "median_abs_log_error")
    assert card["made_with"]["generated_fingerprint"] == scorecard.fingerprint(items)
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_means_of_accuracy_are_those_without_generated_answers(cards):
    base, adapted = (scorecard.read_scorecard(cards / f"{n}.json") for n in ("base", "adapted"))
    chosen = [r for r in base["results"] if r["metric"] == "accuracy"]
    means = comparison.summary(base)
    assert means["ecommerce"] == pytest.approx(np.mean([r["value"] for r in chosen]))
    written = {"exact_match", "recall_at_k", "rouge_l"}
    values = [r["value"] for r in base["results"] if r["metric"] in written]
    assert means["ecommerce_generated"] == pytest.approx(np.mean(values))
    overall = adapted["against_base"]["overall"]
    assert overall["ecommerce"]["n"] == sum(row["n"] for row in chosen)
    assert overall["ecommerce_generated"]["base"] == pytest.approx(np.mean(values))
    kinds = {(cell["task"], cell["metric"]) for cell in adapted["against_base"]["cells"]}
    assert kinds >= {(task, metric) for task, metrics in METRICS.items() for metric in metrics}
    assert ("category_prediction", "credit") in kinds


def test_the_markdown_names_each_metric(cards):
    text = (cards / "card.md").read_text()
    assert "| e-commerce, generated answers |" in text
    assert "| ecommerce | median abs log error | de |" in text
    for line in ("category_prediction_generate, shared depth", "category_prediction, credit"):
        assert f"\n{line}" in text


@pytest.mark.slow
def test_values_are_those_of_lm_eval(cards, bench, checkpoints, tmp_path, monkeypatch):
    """lm-eval runs the tasks that lie beside the benchmark, and counts what the answers come to."""
    pytest.importorskip("lm_eval", reason="it runs the same tasks")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    from ellama_jax.evaluate.lm_eval_model import EllamaLM

    names = [f"ellama_{task}_{'en' if 'price' in task else 'de'}" for task in METRICS]
    found = lm_eval.simple_evaluate(
        EllamaLM(str(checkpoints["base"]), add_bos_token=True, dtype="float32"), tasks=names,
        task_manager=TaskManager(include_path=str(bench), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    card = scorecard.read_scorecard(cards / "base.json")
    told = 0
    for row in card["results"]:
        if (name := f"ellama_{row['task']}_{row['language']}") in names:
            metric = row["metric"].removeprefix("median_")
            assert row["value"] == pytest.approx(found["results"][name][f"{metric},none"])
            told += row["value"] not in (0, 1)
    assert told > 1  # not all answers are worth nothing


def make_item(number, metric, references, **fields):
    return {
        "id": f"t/{number}/en", "task": f"t_{metric}", "domain": "ecommerce", "language": "en",
        "context": "Color:", "references": references, "metric": metric, **fields,
    }  # fmt: skip


def test_cells_are_means_and_medians_of_answers():
    price = {"price": 10.0, "marks": ["$"]}
    items = [
        make_item(0, "value", ["red"]), make_item(1, "value", ["dark blue"]),
        *(make_item(n, "price", ["10.00"], **price) for n in range(3)),
    ]  # fmt: skip
    texts = [" Red", " blue", " $20.00", " no idea", " 10"]
    cells = {c["metric"]: c for c in generated.answer_results(items, texts)}
    assert cells["exact_match"]["values"] == [1.0, 0.0]
    assert (cells["exact_match"]["value"], cells["exact_match"]["stderr"]) == (0.5, 0.5)
    assert cells["f1"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert cells["answered"]["value"] == pytest.approx(2 / 3)
    error = cells["median_abs_log_error"]
    assert error["values"] == pytest.approx([math.log(2), math.log(1000), 0])
    assert error["value"] == pytest.approx(math.log(2)) and error["n"] == 3
    assert error["ids"] == ["t/0/en", "t/1/en", "t/2/en"]
    alone = generated.answer_results(items[2:3], texts[2:3])
    assert {cell["stderr"] for cell in alone} == {None}


def test_the_error_of_a_median_is_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=61)
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=1000, method="percentile", vectorized=True,
        random_state=np.random.default_rng(0),
    ).standard_error  # fmt: skip
    assert generated.median_of_items(values)["stderr"] == pytest.approx(expected, rel=1e-9)


def price_card(model, values, language="en"):
    row = {
        "task": "price_prediction_generate", "domain": "ecommerce", "language": language,
        "metric": "median_abs_log_error", "chance": None, "higher_is_better": False,
        "correct": None, "values": list(values), **generated.median_of_items(values),
        "ids": [f"price_prediction_generate/{n:03}/{language}" for n in range(len(values))],
    }  # fmt: skip
    return {"model": model, "checkpoint": None, "made_with": {}, "results": [row]}


@pytest.mark.parametrize("count", [40, 41])
def test_a_change_of_medians_has_no_interval(count):
    rng = np.random.default_rng(1)
    before, after = rng.exponential(2, count), rng.exponential(1, count).round(1)
    compared = retention.compare(price_card("base", before), price_card("other", after))
    (cell,) = compared["cells"]
    assert cell["change"] == pytest.approx(np.median(after) / np.median(before) - 1)
    assert cell["low"] is cell["high"] is None
    assert cell["value"] == pytest.approx(np.median(after))
    assert not compared["overall"]  # an error is no part of a mean of which more is better
    table = score_table.format_table([price_card("base", before), price_card("other", after)])
    assert f"{np.median(before):.3f} ±" in table and "median abs log error: lower" in table
    assert card_text.write_value(0.6931, "median_abs_log_error") == "0.693"


def test_answers_end_at_the_line_and_follow_bos(checkpoints, bench, monkeypatch):
    """What reaches the generation: one prompt an item, greedy, 64 tokens, until a line break."""
    params, config, tokenizer, _ = scorecard.load_model(checkpoints["base"])
    items, seen = ecommerce.read_generated(bench, "test")[:2], []

    def write(_, __, prompts, **options):
        seen.append((prompts, options))
        return [generation.Written([1], " red", "stop", number) for number in range(len(prompts))]

    monkeypatch.setattr(generation, "generate", write)
    answers = generated.write_answers(
        params, config, tokenizer, checkpoints["base"], items, batch_tokens=512
    )
    assert answers == ([" red", " red"], 1)
    prompts, options = seen[0]
    for prompt, item in zip(prompts, items, strict=True):
        assert prompt.ids == [tokenizer.bos_id, *tokenizer.encode(item["context"])]
        assert (prompt.max_new_tokens, prompt.stops, prompt.temperature) == (64, ("\n",), 0.0)
    assert tokenizer.eos_id in options["end_ids"] and options["batch_tokens"] == 512


def test_a_benchmark_without_generated_items_is_one_line(tmp_path, bench, capsys, checkpoints):
    old = tmp_path / "old"
    old.mkdir()
    (old / "items.jsonl").write_text("")
    ask = ["evaluate", "--checkpoint", str(checkpoints["base"]), "--tasks", "ecommerce_generate"]
    for directory, split, message in (
        (None, "test", "--benchmark: must name the built benchmark for ecommerce_generate, got"),
        (old, "test", f"--benchmark: must hold generated.jsonl for ecommerce_generate, got {old}"),
        (bench, "validation", "must have items of ecommerce_generate in the split validation"),
    ):
        options = [] if directory is None else ["--benchmark", str(directory)]
        with pytest.raises(SystemExit) as left:
            main([*ask, "--split", split, *options])
        said = capsys.readouterr().err
        assert left.value.code == 2 and message in said and said.count("\n") == 1


def test_single_tasks_are_chosen_by_name_and_slips_named(bench):
    found = generated.gather_items(["title_from_aspects_generate", "mmlu"], str(bench), "test")
    assert {item["task"] for item in found} == {"title_from_aspects_generate"}
    assert generated.gather_items(["ecommerce", "mmlu"], None, "test") == []
    with pytest.raises(ValueError, match="did you mean ecommerce_generate?"):
        scorecard.check_tasks("ecommerce_generat", known=scorecard.ALL_TASKS)
    with pytest.raises(ValueError, match="evaluate.tasks: must be tasks with choices, got ecomm"):
        scorecard.check_tasks("ecommerce_generate", "evaluate.tasks")
