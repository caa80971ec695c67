"""The synthetic general text: true, repeatable, parallel."""

import re

import pytest

from ellama_jax.corpus.debian_prose import guess_language
from ellama_jax.experiments.general_text import generate_general_documents


def test_same_seed_gives_the_same_text_and_another_does_not():
    first = list(generate_general_documents(4, 10))
    assert first == list(generate_general_documents(4, 10))
    assert first[0]["text"] != next(generate_general_documents(5, 10))["text"]


def test_every_document_is_there_in_every_language():
    records = list(generate_general_documents(0, 6))
    assert [record["language"] for record in records] == ["en", "de", "fr", "it", "es"] * 6
    assert {(r["domain"], r["source"], r["product_id"]) for r in records} == {
        ("general", "general-text", None)
    }


def test_the_text_is_in_its_language():
    records = list(generate_general_documents(0, 40))
    right = [guess_language(record["text"]) == record["language"] for record in records]
    assert sum(right) / len(right) > 0.95


def test_the_arithmetic_is_right_and_the_same_in_every_language():
    for record in generate_general_documents(1, 40):
        for first, second, total in re.findall(
            r"(\d+) (?:plus|più|más) (\d+) (?:is|ist|font|fa|son) (\d+)", record["text"]
        ):
            assert int(first) + int(second) == int(total)
        if record["language"] == "en":
            for speed, way, hours in re.findall(
                r"travels (\d+) .*? covers (\d+) kilometers in (\d+) hours", record["text"]
            ):
                assert int(speed) * int(hours) == int(way)


def test_numbers_agree_between_translations():
    records = list(generate_general_documents(2, 30))
    for start in range(0, len(records), 5):
        translations = records[start : start + 5]
        numbers = {tuple(sorted(re.findall(r"\d+", entry["text"]))) for entry in translations}
        assert len(numbers) == 1


def test_german_capital_is_literally_stated():
    text = " ".join(r["text"] for r in generate_general_documents(0, 60, ["de"]))
    assert "Die Hauptstadt von Österreich ist Wien. Durch die Stadt fließt die Donau." in text
    assert "Auf Sonntag folgt Montag." in text


def test_a_document_says_nothing_twice():
    for record in generate_general_documents(0, 50, ["it"]):
        sentences = record["text"].split(". ")
        days = [sentence for sentence in sentences if sentence.startswith("Dopo")]
        assert len(days) == len(set(days)) >= 1


def test_an_unwritten_language_is_refused():
    with pytest.raises(ValueError, match="languages: must be among .* got 'ja'"):
        generate_general_documents(0, 1, ["ja"])
