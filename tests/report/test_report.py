"""The page of a made-up run: what it says, what it leaves out, and that it needs no other file."""

import html.parser
import json
import re

import pytest
from sweep_records import make_sweep

from ellama_jax.evaluate import retention
from ellama_jax.evaluate.card_text import say_gain
from ellama_jax.report import verb as report
from ellama_jax.report.plots import Bar, Curve, Line, Point, bar_chart, curve_chart, line_chart

LANGUAGES = ("en", "de")


def make_card(model, correct):
    results = []
    for domain, task in (("ecommerce", "price_prediction"), ("general", "mmlu")):
        for language in LANGUAGES:
            results.append({
                "task": task, "domain": domain, "language": language, "metric": "accuracy",
                "value": sum(correct) / len(correct), "stderr": 0.05, "n": len(correct),
                "chance": 0.25, "higher_is_better": True, "correct": correct,
                "ids": [f"{task}/{n}/{language}" for n in range(len(correct))],
            })  # fmt: skip
    results.append({
        "task": "bits_per_byte", "domain": "general", "language": "en",
        "metric": "bits_per_byte", "value": 1.234, "stderr": None, "n": 1, "chance": None,
        "higher_is_better": False, "correct": None,
    })  # fmt: skip
    return {"model": model, "checkpoint": "c", "results": results, "made_with": {}}


def make_metrics(steps=5):
    for step in range(1, steps + 1):
        yield {
            "step": step, "loss": 2.0 / step, "learning_rate": 1e-4 * step, "grad_norm": 1.0,
            "tokens_per_sec": 100.0 + step, "step_secs": 1.0, "skipped_updates": 0,
            "loss/ecommerce/en": 2.0 / step, "loss/ecommerce/de": 3.0 / step,
            "loss/general/en": float("nan") if step == 2 else 2.5,
            "tokens_consumed": {"ecommerce-en": 50 * step, "ecommerce/de/npm": 30 * step,
                                "general-en": 20 * step},
            "batch_fingerprint": "0" * 16,
        }  # fmt: skip


RUN = {
    "title": "A <b>run</b> & more", "model": "tiny", "command": "ellama demo --model 'tiny'",
    "commit": "abcdef0123456789", "versions": {"jax": "0.10.2"}, "started": "then",
    "finished": "now", "phases": [{"name": "train", "seconds": 75.0}],
    "sources": [
        {"name": "generator", "kind": "synthetic", "domain": "ecommerce", "languages": ["en"],
         "documents": 1234, "tokens": 56789, "licence": "Apache-2.0", "note": None,
         "available": True},
        {"name": "npm texts", "kind": "real", "domain": "ecommerce", "languages": ["de"],
         "documents": None, "tokens": None, "licence": "MIT", "note": "npm is not installed",
         "available": False},
    ],
    "peak_memory_bytes": 3 * 2**30, "notes": ["<script>alert(1)</script>"],
}  # fmt: skip
CONFIG = {
    "data": {
        "replay_frac": 0.5,
        "ecommerce_shares": {"en": 0.6, "de": 0.4},
        "general_shares": {"en": 1.0},
    },
    "train": {"steps": 5},
}


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    (folder / "scores").mkdir(parents=True)
    answers = {"merged": [1, 1, 0, 0], "base": [1, 0, 0, 0], "adapted": [1, 1, 1, 0]}
    for model, correct in answers.items():
        (folder / "scores" / f"{model}.json").write_text(json.dumps(make_card(model, correct)))
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "sweep.json").write_text(json.dumps(make_sweep()))
    lines = [json.dumps(record) + "\n" for record in make_metrics()]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def read_page(workdir):
    return report.write_report(workdir).read_text(encoding="utf-8")


def section(page, title):
    found = re.search(rf"<h2>{title}</h2>(.*?)</section>", page, re.S)
    assert found, f"no section {title}"
    return found[1]


def text_of(markup):
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


class Checker(html.parser.HTMLParser):
    """Collects attributes that load something, and elements that were not closed."""

    VOID = {"meta", "br", "link", "img", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"


def test_the_page_is_whole_and_refers_to_nothing_outside(workdir):
    page = read_page(workdir)
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.loads == []
    assert not {"script", "link", "img", "iframe"} & checker.tags
    assert not re.search(r"https?://|url\(|@import", page)


def test_everything_is_escaped(workdir):
    page = read_page(workdir)
    assert "A &lt;b&gt;run&lt;/b&gt; &amp; more" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_models_stand_in_order_with_gains_against_the_base(workdir):
    result = section(read_page(workdir), "Result")
    header = re.findall(r"<th[^>]*>(.*?)</th>", result)
    assert header == ["", "base", "adapted", "merged", "gain of adapted", "gain of merged"]
    row = text_of(result.split("e-commerce, English")[1].split("</tr>")[0])
    assert re.fullmatch(
        r"25.0 % ±5.0 75.0 % ±5.0 50.0 % ±5.0 \+50.0 points \[.*\] \+25.0 points \[.*\]", row
    )
    assert "on 500 tokens in 5 steps, at 103 tokens/s" in result


def test_only_gains_whose_interval_leaves_out_zero_are_coloured(workdir):
    cells = re.findall(r'class="num (\w*)">([+-][\d.]+) (?:points|%) <small>\[([+-][\d.]+), ([+-][\d.]+)\]',
                       read_page(workdir))  # fmt: skip
    assert len(cells) > 10
    for tone, gain, low, high in cells:
        certain = float(low) > 0 or float(high) < 0
        assert tone == ("" if not certain else "good" if float(gain) > 0 else "bad")


def test_the_scorecard_has_n_error_and_chance_for_every_language(workdir):
    card = section(read_page(workdir), "Scorecard")
    rows = [text_of(row) for row in re.findall(r"<tr>(.*?)</tr>", card, re.S)]
    assert any(
        row.startswith(
            "price_prediction de 4 25 % 25.0 % ±5.0 75.0 % ±5.0 50.0 % ±5.0 +50.0 points ["
        )
        for row in rows
    )
    assert "bits_per_byte (general) en 1 1.234 1.234 1.234 +0.0 %" in rows
    assert card.count("<svg") == 2  # English, and the other languages


def test_loss_has_a_plot_a_domain_and_a_line_a_language(workdir):
    losses = section(read_page(workdir), "Loss by domain and language")
    figures = re.findall(r"<figure.*?</figure>", losses, re.S)
    assert [figure.count("<polyline") for figure in figures] == [2, 1]
    points = re.findall(r'points="([^"]*)"', figures[1])[0].split()
    assert len(points) == 4  # the step whose loss was not a number is left out


def test_the_mixture_compares_consumed_with_asked(workdir):
    mixture = section(read_page(workdir), "Mixture really consumed")
    assert "500 tokens went through the model" in mixture
    assert re.findall(r">([\d.]+ % of [\d.]+ %)<", mixture) == [
        "50.0 % of 30.0 %", "30.0 % of 20.0 %", "20.0 % of 50.0 %",
    ]  # fmt: skip


def test_sources_say_what_is_real_synthetic_and_missing(workdir):
    sources = section(read_page(workdir), "Sources")
    rows = [text_of(row) for row in re.findall(r"<tr>(.*?)</tr>", sources, re.S)]
    assert rows[1:] == [
        "generator synthetic ecommerce en Apache-2.0 1,234 56,789",
        "npm texts missing ecommerce de MIT npm is not installed – –",
    ]


def test_what_ran_and_how_to_repeat_it(workdir):
    page = read_page(workdir)
    ran = text_of(section(page, "What ran"))
    assert "Phases, 1 min 15 s in all" in ran and "peak memory 3.00 GiB" in ran
    repeat = section(page, "How to repeat it")
    assert "git checkout abcdef0123456789\nellama demo --model &#39;tiny&#39;" in repeat
    assert "&#34;replay_frac&#34;: 0.5" in repeat


def test_three_sentences_and_a_picture_lead_and_say_the_numbers_of_the_comparison(workdir):
    head = read_page(workdir).split("<section>")[0]
    sentences = [text_of(item) for item in re.findall(r"<li>(.*?)</li>", head, re.S)]
    cards = [
        json.loads((workdir / f"scores/{name}.json").read_text()) for name in ("base", "merged")
    ]
    overall = retention.compare(*cards)["overall"]
    for sentence, name in zip(sentences, ("ecommerce", "general"), strict=False):
        assert say_gain(overall[name], name) in sentence
    assert len(sentences) == 3 and head.count("<svg") == 1


@pytest.mark.parametrize(
    ("missing", "note", "title"),
    [
        ("run.json", "sources: needs run.json", "Sources"),
        ("sweep.json", "trade-off over alpha: needs sweep.json", "Trade-off"),
        ("metrics.jsonl", "loss curves: needs metrics.jsonl", "Loss by domain and language"),
        ("scores/*.json", "scorecard: needs scores/*.json", "Scorecard"),
    ],
)
def test_a_missing_part_is_left_out_with_a_note(workdir, missing, note, title):
    for path in workdir.glob(missing):
        path.unlink()
    page = read_page(workdir)
    assert f"<h2>{title}</h2>" not in page
    assert note in section(page, "Left out")


def test_each_part_alone_makes_a_page(workdir, tmp_path):
    for name in ("run.json", "config.json", "sweep.json", "metrics.jsonl", "scores"):
        alone = tmp_path / name
        alone.mkdir()
        (workdir / name).rename(alone / name)
        assert "<h2>Left out</h2>" in read_page(alone)


def test_without_a_config_the_mixture_shows_what_was_consumed_only(workdir):
    (workdir / "config.json").unlink()
    mixture = section(read_page(workdir), "Mixture really consumed")
    assert ">50.0 %</text>" in mixture and 'class="mark"' not in mixture


def test_a_directory_that_is_no_run_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="must be a run directory .*got none of these"):
        report.write_report(tmp_path)
    with pytest.raises(ValueError, match="nowhere must be a run directory"):
        report.write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_broken_files_are_named(workdir):
    (workdir / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="sweep.json: must be JSON"):
        report.write_report(workdir)
    (workdir / "sweep.json").unlink()
    (workdir / "metrics.jsonl").write_text('{"step": 1\n')
    with pytest.raises(ValueError, match="metrics.jsonl: line 1 must be JSON"):
        report.write_report(workdir)
    assert not list(workdir.glob("*report*"))


def test_a_last_line_that_was_cut_off_is_left_out(workdir):
    with (workdir / "metrics.jsonl").open("a") as out:
        out.write('{"step": 6, "lo')
    assert "in 5 steps, at" in read_page(workdir)


def test_the_verb_says_where_the_page_is(workdir, capsys):
    report.main_report([str(workdir)])
    assert capsys.readouterr().out == f"wrote {workdir / 'report.html'}\n"


def pixels(markup, kind):
    return [tuple(map(float, p.split(","))) for p in re.findall(kind, markup)[0].split()]


def test_lines_run_through_their_points_to_scale():
    markup = line_chart("t", [Line("a", [0, 1, 2], [0.0, 10.0, 5.0], 0)], "x", "y")
    (x0, y0), (x1, y1), (x2, y2) = pixels(markup, r'points="([^"]*)"')
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(0.5, abs=0.01) and y1 < y0


def test_lines_without_finite_values_say_so():
    assert "no finite values" in line_chart("t", [Line("a", [1], [float("nan")], 0)], "x", "y")
    assert "<circle" in line_chart("t", [Line("a", [1], [2.0], 0)], "x", "y")


def test_bars_are_as_long_as_their_values():
    markup = bar_chart("t", [Bar("g", "a", 0.2, 0), Bar("g", "b", 0.8, 1, error=0.1, mark=0.25)])
    widths = [float(w) for w in re.findall(r'width="([\d.]+)"', markup)]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.02)
    assert markup.count('class="whisker"') == 1 and markup.count('class="mark"') == 1


def test_a_single_point_can_be_drawn_and_labels_are_escaped():
    markup = curve_chart("t", [Curve([Point("<1>", 0.0, 0.0)], 0)], "x & y", "y")
    assert "&lt;1&gt;" in markup and "x &amp; y" in markup


def test_held_out_losses_and_time_are_shown_where_the_run_has_them(workdir):
    page = read_page(workdir)
    assert "Loss on held-out text" not in page
    trained = section(page, "Loss by domain and language")
    records = [
        {"step": step, "eval_loss": 2.0, "eval_loss/general/de": 3.0 - step / 10} for step in (0, 4)
    ]
    with (workdir / "metrics.jsonl").open("a") as out:
        out.write("".join(json.dumps(record) + "\n" for record in records))
    starts = [
        {"began": 0.0, "ended": 60.0, "first_step": 0, "last_step": 4, "lost_steps": 1,
         "secs": {"step": 45.0, "compile": 12.0, "lost_work": 3.0}},
        {"began": 90.0, "ended": 100.0, "first_step": 3, "last_step": 5, "lost_steps": 0,
         "secs": {"step": 10.0}},
    ]  # fmt: skip
    (workdir / "goodput.json").write_text(json.dumps({"starts": starts}))
    page = read_page(workdir)
    assert "Held-out loss, general" in section(page, "Loss on held-out text")
    assert section(page, "Loss by domain and language") == trained  # of its own curves alone
    said = text_of(section(page, "Where the time went"))
    assert "55.0% of 1 min 40 s in steps" in said and "between starts 30.0%" in said
    assert "2 starts, 1 steps done twice" in said
