"""Scorecards of a tiny model, its metrics on numbers worked out by hand, and the verb."""

import json
import math

import numpy as np
import pytest

from ellama_jax.corpus import catalogue, listings
from ellama_jax.evaluate import benchmark, ecommerce, harness, scorecard, scorer

RECORDS = list(catalogue.generate_listings(0, 60))


def make_item(number, choices, answer, language="en", task="t", context="Colour:"):
    return {
        "id": f"{task}/{number}/{language}", "task": task, "domain": "ecommerce",
        "language": language, "context": context, "choices": choices, "answer": answer,
        "metric": "accuracy", "product_id": str(number),
    }  # fmt: skip


@pytest.fixture(scope="module")
def items():
    return ecommerce.build_items(RECORDS, seed=0, items_per_task=3, languages=["en", "de"])


@pytest.fixture(scope="module")
def texts():
    return [listings.listing_to_text_record(record, seed=0) for record in RECORDS[:12]]


@pytest.fixture(scope="module")
def card(checkpoints, items, texts):
    return scorecard.evaluate_checkpoint(checkpoints["base"], items, texts, model="base")


def test_context_and_choice_are_split_where_the_context_ends(tiny_tokenizer):
    item = make_item(0, [" red", " blue green"], 0)
    (request,) = scorecard.encode_items(tiny_tokenizer, [item], tiny_tokenizer.bos_id)
    assert request.context_ids[0] == tiny_tokenizer.bos_id
    assert tiny_tokenizer.decode(request.context_ids[1:]) == "Colour:"
    assert [tiny_tokenizer.decode(ids) for ids in request.continuations] == item["choices"]


def test_a_choice_that_would_melt_into_its_context_is_encoded_alone(tiny_tokenizer):
    word = next(
        word for word in ("Title", "Category", "Price")
        if len(tiny_tokenizer.encode(word)) < len(tiny_tokenizer.encode(word[:2]))
        + len(tiny_tokenizer.encode(word[2:]))
    )  # fmt: skip
    item = make_item(0, [word[2:], " x"], 0, context=word[:2])
    (request,) = scorecard.encode_items(tiny_tokenizer, [item], tiny_tokenizer.bos_id)
    assert list(request.context_ids[1:]) == tiny_tokenizer.encode(word[:2])
    assert request.continuations[0] == tiny_tokenizer.encode(word[2:])


def test_bits_per_byte_and_its_error_by_hand():
    found = scorecard.bits_per_byte(np.array([4.0, 9.0, 5.0]), np.array([2.0, 4.0, 3.0]))
    # Ratio 18/9; residuals 0, 1, -1; error sqrt(2 / 2 / 3) / 3.
    assert found["value"] == 2.0
    assert found["stderr"] == pytest.approx(math.sqrt(1 / 3) / 3)
    assert scorecard.bits_per_byte(np.array([4.0]), np.array([2.0]))["stderr"] is None


def test_a_scorecard_has_every_task_language_and_metric(card, items, texts):
    cells = {(r["task"], r["language"], r["metric"]) for r in card["results"]}
    expected = {
        (task, language, metric)
        for task in ecommerce.DOCUMENT_TASKS
        for language in ("en", "de")
        for metric in ("accuracy", "accuracy_unnormalised")
    }
    expected |= {("category_prediction", language, "credit") for language in ("en", "de")}
    texts_in = {("bits_per_byte", text["language"], "bits_per_byte") for text in texts}
    assert cells == expected | texts_in
    for row in card["results"]:
        assert row["n"] == 3 if row["metric"] != "bits_per_byte" else row["chance"] is None
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_values_follow_from_scores_and_answers(card, items, checkpoints):
    params, config, tokenizer, _ = scorecard.load_model(checkpoints["base"])
    requests = scorecard.encode_items(tokenizer, items, tokenizer.bos_id)
    scores = scorer.score(params, config, requests, row_length=256)
    for row in card["results"]:
        if row["metric"] == "accuracy":
            by_id = {i["id"]: (i, score) for i, score in zip(items, scores, strict=True)}
            correct = []
            for key in row["ids"]:
                item, score = by_id[key]
                sizes = [len(c.strip().encode()) for c in item["choices"]]
                correct.append(int(np.argmax(score.log_probs / sizes) == item["answer"]))
            assert row["correct"] == correct
            assert row["value"] == pytest.approx(np.mean(correct))
            assert row["chance"] == 0.25
            expected = np.std(correct, ddof=1) / math.sqrt(len(correct))
            assert row["stderr"] == pytest.approx(expected)


def test_bits_per_byte_is_that_of_the_rolling_scores(card, texts, checkpoints):
    params, config, tokenizer, _ = scorecard.load_model(checkpoints["base"])
    chosen = [text["text"] for text in texts if text["language"] == "fr"]
    ids = [tokenizer.encode(text) for text in chosen]
    nats = scorer.score_rolling(params, config, ids, prefix_id=tokenizer.bos_id, window=1024)
    expected = nats.sum() / math.log(2) / sum(len(text.encode()) for text in chosen)
    (row,) = (r for r in card["results"] if r["task"] == "bits_per_byte" and r["language"] == "fr")
    assert row["value"] == pytest.approx(expected, rel=1e-5)
    assert row["n"] == len(chosen)


def test_a_scorecard_says_what_made_it(card, checkpoints, items, tiny_tokenizer):
    assert card["model"] == "base"
    assert card["checkpoint"] == str(checkpoints["base"])
    made_with = card["made_with"]
    assert made_with["step"] == 0
    assert made_with["tokenizer_fingerprint"] == tiny_tokenizer.fingerprint
    assert made_with["items_fingerprint"] == scorecard.fingerprint(items)
    assert {"jax", "ellama_jax"} <= set(made_with["versions"])


def test_fingerprints_ignore_order_and_see_every_change(items):
    assert scorecard.fingerprint(items[::-1]) == scorecard.fingerprint(items)
    changed = [{**items[0], "answer": 3 - items[0]["answer"]}, *items[1:]]
    assert scorecard.fingerprint(changed) != scorecard.fingerprint(items)


def test_nothing_to_score_is_an_error(checkpoints):
    with pytest.raises(ValueError, match="must have at least one item or text"):
        scorecard.evaluate_checkpoint(checkpoints["base"], [], [])


def test_limits_count_each_group():
    records = [{"language": code, "n": n} for n in range(3) for code in ("en", "de")]
    kept = scorecard.limit_each(records, 2, ("language",))
    assert [(r["language"], r["n"]) for r in kept] == [("en", 0), ("de", 0), ("en", 1), ("de", 1)]
    assert scorecard.limit_each(records, None, ("language",)) == records


def test_texts_name_their_broken_line(tmp_path):
    path = tmp_path / "texts.jsonl"
    good = {"text": "a", "domain": "general", "language": "en", "source": "x"}
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "text": " "}) + "\n")
    assert scorecard.read_texts(path) == [{"text": "a", "domain": "general", "language": "en"}]
    path.write_text(json.dumps(good) + "\n{}\n")
    with pytest.raises(ValueError, match="texts.jsonl: line 2 must have text, domain and language"):
        scorecard.read_texts(path)
    path.write_text(json.dumps({**good, "text": " "}) + "\n")
    with pytest.raises(ValueError, match="texts.jsonl: must hold a document with text, got none"):
        scorecard.read_texts(path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "card.json"
    scorecard.write_json(path, {"model": "a", "results": [], "made_with": {}})
    before = path.read_text()
    with pytest.raises(ValueError):
        scorecard.write_json(path, {"value": float("nan")})
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["card.json"]
    assert scorecard.read_scorecard(path)["model"] == "a"
    path.write_text("{}")
    with pytest.raises(ValueError, match="card.json: must be a scorecard"):
        scorecard.read_scorecard(path)


def test_unknown_tasks_are_refused_with_the_nearest_name():
    assert scorecard.check_tasks("mmlu, ecommerce") == ["mmlu", "ecommerce"]
    with pytest.raises(ValueError, match="got mmul; did you mean mmlu?"):
        scorecard.check_tasks("ecommerce,mmul")
    with pytest.raises(ValueError, match="must name at least one"):
        scorecard.check_tasks(" ,")


def gather(tasks, **changes):
    options = {"benchmark_dir": None, "texts_path": None, "split": None, "limit": None, **changes}
    return scorecard.gather_questions(tasks, **options)


def test_general_questions_that_choose_are_never_reported():
    splits = {
        split: {item["id"] for item in gather(["mmlu"], split=split)[0]}
        for split in ("test", "validation", None)
    }
    assert splits["test"] and splits["validation"]
    assert not splits["test"] & splits["validation"]
    assert splits["test"] | splits["validation"] == splits[None]
    assert len(splits[None]) == len(harness.load_mmlu(limit=None, seed=0))


def test_tasks_say_which_file_they_need():
    with pytest.raises(ValueError, match="--benchmark: must name the built benchmark"):
        gather(["price_prediction"])
    with pytest.raises(ValueError, match="--texts: must name held-out texts"):
        gather(["bits_per_byte"])


def test_the_verb_scores_prints_and_writes(tmp_path, checkpoints, capsys):
    source = tmp_path / "catalogue.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    benchmark.main_build_benchmark(
        [str(source), str(tmp_path / "bench"), "--items-per-task", "2", "--heldout-frac", "0.2"]
    )
    capsys.readouterr()
    out = tmp_path / "scores" / "base.json"
    scorecard.main_evaluate([
        "--checkpoint", str(checkpoints["base"]), "--tasks", "price_prediction,mmlu",
        "--benchmark", str(tmp_path / "bench"), "--limit", "1", "--json", str(out),
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "price_prediction" in said and "mmlu" in said and "aspect" not in said
    with pytest.raises(
        ValueError, match="^--tasks: must have items in .* got review_rating, which"
    ):
        gather(["review_rating", "mmlu"], benchmark_dir=str(tmp_path / "bench"), split="test")
    card = scorecard.read_scorecard(out)
    assert {row["task"] for row in card["results"]} == {"price_prediction", "mmlu"}
    assert {row["n"] for row in card["results"]} == {1}
    assert card["made_with"]["command"].startswith("ellama evaluate --checkpoint")


def test_a_missing_checkpoint_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="nowhere: must be a directory, got nothing"):
        scorecard.main_evaluate(["--checkpoint", str(tmp_path / "nowhere"), "--tasks", "mmlu"])
