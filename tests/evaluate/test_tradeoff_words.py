"""Sentence, table and picture of a sweep."""

import pytest
from sweep_records import make_sweep

from ellama_jax.merge.tradeoff_plot import draw_sweep
from ellama_jax.merge.tradeoff_text import (
    curve_rows,
    format_sweep,
    format_sweep_markdown,
    language_rows,
    say_advice,
    say_caution,
    say_result,
)


def test_the_sentence_says_how_far_to_go_and_what_it_brings_on_test_questions():
    said = make_sweep()["sentence"]
    assert said.startswith(
        "Go 50 % of the way from the base to the adapted model: e-commerce +12.5 points ["
    )
    assert "general ability +0.0 points" in said and "on test questions that chose nothing" in said
    assert "adapted model itself: e-commerce +25.0 points" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chosen": 0.0}, "Keep the base: no model between"),
        ({"chosen": 1.0}, "Take the adapted model as it is: e-commerce"),
        ({"chosen": 0.5, "chosen_profile": "early"},
         "with the profile early (most at the first layers, none at the last): "),
        ({"chosen": 0.5, "chosen_step": 40}, "to the adapted model of step 40: "),
    ],
)  # fmt: skip
def test_other_choices_are_said_in_their_own_words(changes, words):
    assert words in say_result({**make_sweep(), **changes})


def test_without_test_questions_the_sentence_admits_who_chose():
    assert make_sweep(test=False)["sentence"].endswith("on the questions that chose it.")


def test_too_few_general_questions_to_see_the_loss_allowed_are_said():
    sweep = make_sweep()
    change = sweep["alphas"][1]["changes"]["general"]
    change.update(low=-0.2, high=0.192)
    said = (
        "Caution: 400 general questions are too few to see a loss of 1 %: one standard error of the "
        "change is 10.0 %."
    )
    assert say_caution(sweep) == said and said in format_sweep(sweep)
    change.update(low=-0.01, high=0.01)
    assert say_caution(sweep) is None


def test_the_table_has_a_row_a_point_and_names_the_choice():
    rows = curve_rows(make_sweep(profiles=("late",), steps=(1, 2)))
    assert rows[0][:4] == ["alpha", "by the rule", "profile", "step"]
    assert len(rows) == 1 + 3 + 2 + 3
    assert [row[1] for row in rows[1:4]] == ["allowed", "chosen", "forgets"]
    assert sum("chosen" in row for row in rows) == 1
    assert rows[2][4] == "42.5 ±0.7"
    plain = curve_rows(make_sweep())
    assert plain[0][2] == "e-commerce, %"


def test_the_curve_by_language_has_a_row_a_domain_and_language():
    rows = language_rows(make_sweep()["alphas"])
    assert rows[0] == ["", "alpha 0", "alpha 0.5", "alpha 1"]
    assert [row[0] for row in rows[1:]] == [
        "e-commerce de", "e-commerce en", "e-commerce text, bits/byte de",
        "e-commerce text, bits/byte en", "general de", "general en", "general text, bits/byte de",
        "general text, bits/byte en",
    ]  # fmt: skip
    assert rows[1][1] == "30.0 %"


def test_terminal_and_markdown_hold_sentence_rule_line_and_gate():
    sweep = make_sweep()
    for text in (format_sweep(sweep), format_sweep_markdown(sweep)):
        assert sweep["sentence"] in text and sweep["rule"] in text
        assert "linearly connected" in text and "On test questions the retention gate" in text
    assert format_sweep(sweep).splitlines()[-1] == sweep["sentence"]
    assert "| 0.5 | chosen | 42.5 ±0.7 |" in format_sweep_markdown(sweep)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written_whole_with_axes_in_plain_words(tmp_path, suffix):
    path = tmp_path / f"sweep.{suffix}"
    draw_sweep(make_sweep(profiles=("late",), steps=(1, 2)), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") or b"<svg" in path.read_bytes()[:1000]


def test_a_sweep_without_general_questions_is_drawn_over_alpha(tmp_path):
    sweep = make_sweep()
    for point in sweep["alphas"]:
        for name in ("general", "bpb_general", "bpb_ecommerce"):
            point[name] = None
            del point["changes"][name]
    draw_sweep(sweep, tmp_path / "sweep.svg")
    assert (tmp_path / "sweep.svg").stat().st_size > 1000


def test_a_base_that_answers_nothing_rightly_is_drawn_as_differences(tmp_path):
    sweep = make_sweep(line=False)
    for point in sweep["alphas"]:
        for change in point["changes"].values():
            change.update(change=None, low=None, high=None)
    draw_sweep(sweep, tmp_path / "sweep.svg")
    assert "+12.5 points" in format_sweep(sweep) and say_result(sweep).startswith("Go 50 %")


def noisy(row):
    row.update(difference=0.01, difference_low=-0.1, difference_high=0.12)


def test_a_gain_within_noise_is_said_with_how_many_questions_would_tell():
    sweep = make_sweep()
    noisy(sweep["test"]["changes"]["chosen"]["overall"]["ecommerce"])
    assert "The e-commerce gain is within noise" in say_result(sweep)
    assert "products or questions, about" in say_advice(sweep)


def test_a_choice_that_nothing_tells_from_the_adapted_model_is_said_to_be_noise():
    sweep = make_sweep()
    assert "either will do" not in say_advice(sweep)
    cards = sweep["test"]["scorecards"]
    # Alike at general tasks alone: e-commerce still tells them apart.
    general = [row for row in cards["chosen"]["results"] if row["domain"] == "general"]
    shop = [row for row in cards["adapted"]["results"] if row["domain"] != "general"]
    cards["adapted"] = {**cards["adapted"], "results": [*shop, *general]}
    assert "either will do" not in say_advice(sweep)
    cards["adapted"] = cards["chosen"]
    assert "either will do" in say_advice(sweep)


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (False, "FAILS the retention gate"),
        (None, "Too few test questions"),
        (True, "It passes the retention gate"),
    ],
)
def test_the_advice_says_what_the_gate_says(passed, words):
    sweep = make_sweep()
    sweep["test"]["gate"]["passed"] = passed
    if passed is None:
        sweep["test"]["gate"]["checks"][0] |= {"passed": None, "clusters": 16, "needed": 400}
    said = say_advice(sweep)
    assert words in said
    assert ("(16, about 400 needed)" in said) == (passed is None)
