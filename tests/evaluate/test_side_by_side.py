"""The verb laying scorecards side by side: base, adapted and merged, and the gate's exit status."""

import json

import pytest
from test_retention_gate import ADAPTED, BASE, make_card, make_result

from ellama_jax.cli import main
from ellama_jax.evaluate import retention, scorecard


@pytest.fixture
def cards(tmp_path):
    """Files of three models; the adapted one forgot so much that no interval hides it."""
    questions = 200
    merged = make_card("merged", *BASE["results"])
    forgot = make_card(
        "forgot",
        make_result("mmlu", "en", [n % 10 == 0 for n in range(questions)]),
        make_result("price", "en", [1] * questions, "ecommerce"),
    )
    knew = make_card(
        "knew",
        make_result("mmlu", "en", [n % 2 == 0 for n in range(questions)]),
        make_result("price", "en", [n % 2 for n in range(questions)], "ecommerce"),
    )
    paths = {}
    for card in (BASE, ADAPTED, merged, forgot, knew):
        paths[card["model"]] = tmp_path / f"{card['model']}.json"
        scorecard.write_json(paths[card["model"]], card)
    return {name: str(path) for name, path in paths.items()}


def test_three_models_are_compared_in_text_json_and_markdown(cards, tmp_path, capsys):
    out, page = tmp_path / "all.json", tmp_path / "card.md"
    main(["evaluate", "--scorecards", cards["base"], cards["adapted"], cards["merged"],
          "--json", str(out), "--markdown", str(page)])  # fmt: skip
    said = capsys.readouterr().out
    assert "adapted against base, gain with its 95 % interval (up is better):" in said
    assert "merged against base" in said and said.count("retention gate: ") == 2
    found = json.loads(out.read_text())
    assert found["comparisons"][0] == retention.compare(BASE, ADAPTED)
    assert [gate["passed"] for gate in found["gates"]][1] is True
    text = page.read_text()
    assert "| domain | metric | language | adapted | merged |" in text
    assert "| e-commerce, English | 37.5 % | 62.5 %, +25.0 points [" in text


def test_a_gate_that_stops_is_an_exit_status_after_everything_is_written(cards, tmp_path, capsys):
    out = tmp_path / "all.json"
    arguments = ["evaluate", "--scorecards", cards["knew"], cards["forgot"], "--json", str(out)]
    main(arguments)  # warns
    assert "retention gate: FAILED: general mean -80.0 %" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--gate", "stop"])
    assert left.value.code == 3 and out.is_file()
    assert capsys.readouterr().err == "ellama evaluate: stopped by the retention gate.\n"
    main([*arguments, "--gate", "off"])
    assert "retention gate" not in capsys.readouterr().out
    wide = ["--gate-general-mean=-0.95", "--gate-language=-0.95"]
    main([*arguments, "--gate", "stop", *wide])
    assert "retention gate: passed, 2 rules" in capsys.readouterr().out


def test_a_checkpoint_is_compared_with_the_base_while_it_is_scored(checkpoints, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    records = [
        {"text": f"Lamp {n} of oak", "domain": "general", "language": "en"} for n in range(5)
    ]
    texts.write_text("".join(json.dumps(record) + "\n" for record in records))
    base, out = tmp_path / "base.json", tmp_path / "adapted.json"
    ask = ["--tasks", "bits_per_byte", "--texts", str(texts), "--row-length", "64"]
    main(["evaluate", "--checkpoint", str(checkpoints["base"]), *ask, "--json", str(base)])
    main(["evaluate", "--checkpoint", str(checkpoints["adapted"]), *ask, "--json", str(out),
          "--base", str(base), "--markdown", str(tmp_path / "card.md")])  # fmt: skip
    card = scorecard.read_scorecard(out)
    expected = retention.compare(scorecard.read_scorecard(base), card)
    assert card["against_base"] == json.loads(json.dumps(expected))
    assert card["gate"]["checks"][0]["rule"] == "bits_per_byte"
    assert "adapted against base" in capsys.readouterr().out
    assert "## Adaptation and forgetting" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint: must be given, or --scorecards to compare some, got neither."),
        (["--checkpoint", "a", "--scorecards", "b"], "got both."),
        (["--checkpoint", "a"], "--tasks: must name at least one of ecommerce"),
        (["--scorecards", "/no/such.json"], "/no/such.json: must exist"),
        (["--scorecards", "a", "--gate-language", "0.03"], "--gate-language: must lie in (-1, 0]"),
        (
            ["--checkpoint", "a", "--tasks", "mmlu", "--base", "/no/base.json"],
            "/no/base.json: must",
        ),
        (
            ["--checkpoint", "a", "--tasks", "mmlu", "--gate", "stop"],
            "--gate: stop needs a base to compare with, got none",
        ),
        (["--scorecards", "a", "--tasks", "mmlu"], "--tasks: must not stand beside --scorecards"),
        (["--scorecards", "a", "--base", "b"], "--base: must not stand beside --scorecards"),
        (["--checkpoint", "a", "--tasks", "mmlu", "--limit", "0"], "--limit: must be at least 1"),
        (
            ["--checkpoint", "a", "--tasks", "mmlu", "--max-length", "512"],
            "--max-length: must stand beside --long-context, got 512 alone.",
        ),
        (["--checkpoint", "a", "--tasks", "mmlu", "--json", "."], "--json: must be a file"),
        (["--checkpoint", "a", "--tasks", "mmlu", "--markdown", "."], "--markdown: must be a file"),
        (["--scorecards", "pyproject.toml"], "pyproject.toml: must be a scorecard, as `ellama"),
        (["--checkpoint", "a", "--long-context", "/no/long.jsonl"], "/no/long.jsonl: must exist"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *arguments])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_gate_that_could_check_nothing_is_no_pass(tmp_path, capsys):
    paths = []
    for name, answers in (("base", [0, 1] * 20), ("adapted", [1, 1] * 20)):
        card = make_card(name, make_result("price", "en", answers, "ecommerce"))
        paths.append(str(tmp_path / f"{name}.json"))
        scorecard.write_json(paths[-1], card)
    main(["evaluate", "--scorecards", *paths])
    assert "nothing general was scored" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--scorecards", *paths, "--gate", "stop"])
    assert left.value.code == 2
    assert "--gate: stop must have general questions or texts" in capsys.readouterr().err


def test_what_only_one_was_asked_is_said_and_what_shares_nothing_prints_no_table(tmp_path, capsys):
    mine = make_result("price", "en", [0, 1] * 20, "ecommerce")
    only = make_result("mmlu", "en", [1, 0] * 20)
    files = {"base": [mine], "more": [mine, only], "other": [only]}
    paths = {}
    for name, results in files.items():
        paths[name] = str(tmp_path / f"{name}.json")
        scorecard.write_json(paths[name], make_card(name, *results))
    main(["evaluate", "--scorecards", paths["base"], paths["more"]])
    assert "1 results stand on one side only and are not compared" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["evaluate", "--scorecards", paths["base"], paths["other"]])
    said = capsys.readouterr()
    assert said.out == "" and "must share a question" in said.err
