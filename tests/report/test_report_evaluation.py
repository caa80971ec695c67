"""What the report says of adaptation, forgetting, long contexts and scores on the way."""

import json
import re

import pytest
from test_report import CONFIG, make_card, make_metrics, section, text_of

from ellama_jax.evaluate import retention
from ellama_jax.evaluate.card_text import say_gain
from ellama_jax.report import verb as report
from ellama_jax.report.plots import Change, change_chart


def make_long_context(nats):
    return {
        "max_length": 512,
        "positions": [
            {"domain": "general", "language": "en", "start": start, "end": end, "n": 2,
             "nats": [nats * (end - start), (nats + 1) * (end - start)], "ids": [0, 1],
             "nats_per_token": nats + 0.5, "stderr": 0.1, "perplexity": 0}
            for start, end in ((0, 128), (128, 256), (256, 512))
        ],
        "needles": [
            {"language": "en", "length": length, "depth": depth, "value": value, "n": 2,
             "stderr": None, "chance": 0.125, "correct": [1, 0], "ids": ["a", "b"]}
            for length, value in ((256, 1.0), (512, 0.5))
            for depth in (0.0, 1.0)
        ],
    }  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    (folder / "scores").mkdir(parents=True)
    answers = {"base": [1, 0, 0, 0, 1, 1], "adapted": [1, 1, 1, 0, 1, 1]}
    for index, (model, correct) in enumerate(answers.items()):
        card = make_card(model, correct) | {"long_context": make_long_context(2.0 - index)}
        (folder / "scores" / f"{model}.json").write_text(json.dumps(card))
    config = CONFIG | {"evaluate": {"gate": {
        "action": "stop", "general_mean": -0.01, "language": -0.03, "bits_per_byte": 0.03,
        "fails_when": "certain"}}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    records = list(make_metrics())
    for record in records[::2]:
        record |= {"eval_score/ecommerce_en": 0.1 * record["step"], "eval_score/bpb_general": 1.5,
                   "eval_gate": float(record["step"] < 5)}  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def read_page(workdir):
    return report.write_report(workdir).read_text(encoding="utf-8")


def test_changes_stand_with_their_intervals_and_the_gate(workdir):
    found = section(read_page(workdir), "Adaptation and forgetting")
    said = text_of(found)
    cards = [json.loads((workdir / f"scores/{n}.json").read_text()) for n in ("base", "adapted")]
    row = retention.compare(*cards)["overall"]["ecommerce_en"]
    assert f"83.3 %, {say_gain(row, 'ecommerce_en')}" in said and "+33.3 points [" in said
    assert "adapted, retention gate: passed, 4 rules; closest: general mean +66.7 %" not in said
    assert "adapted, retention gate: CANNOT TELL: bits per byte en +0.0 %" in said
    figures = re.findall(r"<figure.*?</figure>", found, re.S)
    # Bits per byte over all; e-commerce, general, and bits per byte of general text by language. The first
    # one leads the page.
    assert len(figures) == 4
    assert "price_prediction ecommerce de 6 50.0 % 83.3 %, +33.3 points" in said


def test_a_language_whose_base_is_0_is_shown(workdir):
    for name, right in (("base", [0, 0, 0, 0, 0, 0]), ("adapted", [1, 0, 1, 0, 1, 1])):
        path = workdir / f"scores/{name}.json"
        card = json.loads(path.read_text())
        (row,) = [
            r for r in card["results"] if (r["task"], r["language"]) == ("price_prediction", "de")
        ]
        row |= {"correct": right, "value": sum(right) / 6}
        path.write_text(json.dumps(card))
    found = section(read_page(workdir), "Adaptation and forgetting")
    figure = next(
        f for f in re.findall(r"<figure.*?</figure>", found, re.S) if "by language, ecommerce" in f
    )
    assert ">de</text>" in figure and "+66.7 points" in figure


def test_long_contexts_are_plotted_and_tabled(workdir):
    found = section(read_page(workdir), "Long contexts")
    assert found.count("<polyline") == 6
    said = text_of(found)
    assert "perplexity, 128 to 256 12.182 4.482" in said  # e to 2.5 and to 1.5
    assert "needles found, length 512 50.0 % 50.0 %" in said and "chance: 12.5 %" in said


def test_scores_of_a_run_say_when_the_gate_was_broken(workdir):
    said = text_of(section(read_page(workdir), "Scores during the run"))
    assert "The retention gate was broken after steps 5." in said
    assert "blue: e-commerce, English" in said and "Bits per byte during the run" in said


def test_one_model_alone_is_not_compared(workdir):
    (workdir / "scores" / "adapted.json").unlink()
    page = read_page(workdir)
    assert "<h2>Adaptation and forgetting" not in page and "<h2>Long contexts" in page


def test_long_contexts_alone_are_a_report(workdir):
    for path in (workdir / "scores").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"results": []}))
    page = read_page(workdir)
    assert "up to 512 tokens" in text_of(section(page, "Long contexts"))
    assert "<h2>Result" not in page and "<h2>Scorecard" not in page


def test_generated_answers_and_credit_stand_beside_accuracies(workdir):
    """Every metric by name, errors without a percent sign, and a fall of an error is a gain."""
    for number, path in enumerate(sorted((workdir / "scores").iterdir())):  # adapted, base
        card = json.loads(path.read_text())
        for task, metric, values in (
            ("review_rating", "credit", [0.5, 0.75]),
            ("title_from_aspects_generate", "rouge_l", [0.25, 0.5 - 0.25 * number]),
            ("price_prediction_generate", "median_abs_log_error", [0.5, 1.5 + number]),
        ):
            card["results"].append({
                "task": task, "domain": "ecommerce", "language": "en", "metric": metric,
                "value": sum(values) / 2, "stderr": 0.125, "n": 2, "chance": None,
                "higher_is_better": metric[0] != "m", "correct": None, "values": values,
                "ids": [f"{task}/{n}/en" for n in range(2)],
            })  # fmt: skip
        path.write_text(json.dumps(card))
    page = read_page(workdir)
    assert "e-commerce, generated answers 25.0 % ±12.5 37.5 % ±12.5 +12.5 points" in text_of(
        section(page, "Result")
    )
    scores = section(page, "Scorecard")
    row = "price_prediction_generate, median abs log error en 2 1.500 ±0.125 1.000 ±0.125 +33.3 %"
    assert row in text_of(scores)
    assert "review_rating, credit en 2 62.5 % ±12.5 62.5 % ±12.5 +0.0 points" in text_of(scores)
    changes = text_of(section(page, "Adaptation and forgetting"))
    assert (
        "title_from_aspects_generate, rouge l ecommerce en 2 25.0 % 37.5 %, +12.5 points" in changes
    )
    assert "e-commerce, generated answers 2 25.0 % 37.5 %, +12.5 points" in changes
    assert "e-commerce, English 6 50.0 % 83.3 %" in changes  # accuracies alone, as before


def test_a_change_is_drawn_to_scale_about_zero():
    markup = change_chart("t", [
        Change("g", "a", -0.1, -0.2, 0.0, 0, mark=-0.05), Change("g", "b", 0.1, None, None, 1),
    ])  # fmt: skip
    (zero,) = re.findall(r'class="axis" x1="([\d.]+)"', markup)
    at = [float(x) for x in re.findall(r'cx="([\d.]+)"', markup)]
    assert float(zero) - at[0] == pytest.approx(at[1] - float(zero), abs=0.3)
    (whisker,) = re.findall(r'class="whisker" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', markup)
    assert float(whisker[1]) == float(zero)
    assert float(zero) - float(whisker[0]) == pytest.approx(2 * (at[1] - float(zero)), abs=0.3)
    assert markup.count('class="mark"') == 1
