"""What the page says of a sweep, and what it draws."""

import json
import re

import pytest
from sweep_records import make_sweep

from ellama_jax.report import verb as report
from ellama_jax.report.plots import (
    Band,
    Curve,
    Line,
    Point,
    Square,
    curve_chart,
    heat_map,
    line_chart,
)


def page_of(sweep, folder):
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return report.write_report(folder).read_text(encoding="utf-8")


def section(page, title):
    found = re.search(rf"<h2>{title}</h2>(.*?)</section>", page, re.S)
    assert found, f"no section {title}"
    return found[1]


def text_of(markup):
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def figures(markup):
    return re.findall(r"<figure.*?</figure>", markup, re.S)


def test_the_curve_labels_every_alpha_marks_the_chosen_and_what_the_rule_allows(tmp_path):
    found = section(page_of(make_sweep(), tmp_path), "Trade-off")
    drawn = figures(found)
    assert len(drawn) == 2  # against questions, and against text
    for figure in drawn:
        assert all(f">{alpha}</text>" in figure for alpha in ("0", "0.5", "1"))
        assert figure.count('r="6"') == 1 and figure.count('class="mark"') == 1
        assert figure.count('class="error"') == 2  # both ways, of the chosen point
    assert "gain on general questions, points" in drawn[0]
    assert "0.5 chosen 42.5" in text_of(found) and "1 forgets 55.0" in text_of(found)


def test_points_that_coincide_share_one_label():
    points = [
        Point("0", 0, 0),
        Point("0.5", 5, 5),
        Point("0.75", 9.9, 10),
        Point("1", 10, 10, chosen=True),
    ]
    labels = re.findall(r">([^<]+)</text>", curve_chart("c", [Curve(points, 0)], "", ""))
    assert "0.75, 1" in labels and "0.75" not in labels and "0.5" in labels


def test_the_sentence_stands_first_and_the_test_result_in_a_table(tmp_path):
    sweep = make_sweep()
    found = section(page_of(sweep, tmp_path), "Trade-off")
    text = text_of(found)
    assert text.startswith(sweep["sentence"])
    row = text_of(found.split("e-commerce, all languages")[1].split("</tr>")[0])
    assert row.startswith("400 30.0 % 42.5 %, +12.5 points [")
    assert "On test questions the retention gate: passed" in text


def test_without_test_questions_there_is_no_test_table(tmp_path):
    text = text_of(section(page_of(make_sweep(test=False), tmp_path), "Trade-off"))
    assert "on test questions" not in text and "on the questions that chose it" in text


def test_profiles_are_curves_with_their_names(tmp_path):
    sweep = make_sweep(profiles=("early", "base-norms"))
    found = section(page_of(sweep, tmp_path), "Trade-off")
    drawn = figures(found)
    assert len(drawn) == 3 and drawn[2].count('class="path"') == 3
    assert ">early</text>" in found and ">base-norms</text>" in found
    assert "early: most at the first layers, none at the last." in text_of(found)


def test_steps_and_alphas_make_a_heat_map_each_for_e_commerce_and_general(tmp_path):
    found = section(page_of(make_sweep(steps=(100, 200, 1000)), tmp_path), "Trade-off")
    maps = [figure for figure in figures(found) if "by step and alpha" in figure]
    assert len(maps) == 2
    for figure in maps:
        assert figure.count('class="bar ') == 9 and figure.count('class="outline"') == 1
        assert all(f">{step}</text>" in figure for step in ("100", "200", "1,000"))
    assert ">(+25.0)</text>" in maps[0]  # forgets more than the rule allows


def test_fewer_bits_per_byte_are_coloured_as_better(tmp_path):
    sweep = make_sweep(steps=(100, 200))
    by_step = [point for entry in sweep["steps"] for point in entry["points"]]
    for point in (*sweep["alphas"], *by_step):
        for name in ("ecommerce", "general"):
            point["changes"].pop(name, None)
            point[name] = None
    found = section(page_of({**sweep, "test": None}, tmp_path), "Trade-off")
    maps = [figure for figure in figures(found) if "by step and alpha" in figure]
    assert len(maps) == 2 and "bits per byte, e-commerce text" in maps[0]
    assert ">+" in maps[0] and 'class="bar c3"' not in maps[0]


def test_every_language_is_a_line_and_the_chosen_alpha_marked(tmp_path):
    found = section(page_of(make_sweep(), tmp_path), "Trade-off by language")
    drawn = figures(found)
    assert len(drawn) == 4
    assert all(figure.count("<polyline") == 2 for figure in drawn)
    assert all(figure.count('class="mark"') == 1 for figure in drawn)
    assert "0.5 30.0" not in found and "42.5 %" in found


def test_the_line_has_its_interval_and_says_whether_the_models_are_connected(tmp_path):
    found = section(page_of(make_sweep(), tmp_path), "Loss along the line")
    assert found.count('class="band ') == 2 and found.count('class="path"') == 2
    assert "General text: linearly connected" in text_of(found)
    page = page_of(make_sweep(line=False), tmp_path / "other")
    assert "Loss along the line" not in page


def test_a_sweep_of_an_earlier_version_is_said_to_be_one(tmp_path):
    old = {"alphas": [{"alpha": 0.0, "scorecard": {}}], "chosen": 0.0, "rule": "r"}
    found = text_of(section(page_of(old, tmp_path), "Trade-off"))
    assert found == "sweep.json is of an earlier version; run `ellama merge-sweep` again to see it."


def test_a_heat_map_is_strongest_at_the_largest_change_and_frames_the_chosen():
    squares = [[Square(0.0, "0"), Square(0.5, "a")], [Square(-1.0, "b", True), Square(None, "–")]]
    markup = heat_map("t", squares, ["1", "2"], ["0", "1"], "x", "y")
    shades = re.findall(r'class="bar (c\d)" fill-opacity="([\d.]+)"', markup)
    assert [(colour, float(share)) for colour, share in shades] == [
        ("c2", 0.08), ("c2", 0.39), ("c3", 0.7), ("c2", 0.08),
    ]  # fmt: skip
    boxes = re.findall(
        r'class="(?:bar c\d" fill-opacity="[\d.]+|outline)" x="([\d.]+)" y="(\d+)"', markup
    )
    assert boxes[4] == boxes[2]


def test_a_band_lies_between_its_curves():
    band = Band([0, 1], [0.0, 0.0], [1.0, 2.0], 0)
    markup = line_chart("t", [Line("a", [0, 1], [0.5, 1.0], 0)], "x", "y", bands=[band])
    pairs = [
        tuple(map(float, p.split(",")))
        for p in re.search(r'polygon class="band c0" points="([^"]*)"', markup)[1].split()
    ]
    assert len(pairs) == 4 and pairs[0][0] == pairs[3][0]
    assert (pairs[3][1] - pairs[0][1]) * 2 == pytest.approx(pairs[2][1] - pairs[1][1], abs=0.3)
