"""The hand-written questions: whole, in their language, with its own signs."""

import re

import pytest

from ellama_jax.corpus.language import identify_language
from ellama_jax.corpus.wording import LABELS
from ellama_jax.evaluate.ecommerce import LANGUAGES
from ellama_jax.evaluate.prompts import PROMPTS, Prompts, ask

QUESTIONS = ("stated", "bins", "common", "common_list", "title", "match")


def test_every_language_of_the_tasks_has_its_words():
    assert set(PROMPTS) == set(LANGUAGES)
    assert all(all(words) for words in PROMPTS.values())


@pytest.mark.parametrize("field", Prompts._fields)
def test_languages_fill_in_the_same_number_of_values(field):
    counts = {getattr(words, field).count("{}") for words in PROMPTS.values()}
    assert len(counts) == 1


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("field", QUESTIONS)
def test_a_question_is_in_its_language(language, field):
    text = getattr(PROMPTS[language], field).replace("{}", "3")
    assert identify_language(text)[0] == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_question_names_the_very_words_of_not_stated(language):
    assert PROMPTS[language].not_stated in PROMPTS[language].stated


@pytest.mark.parametrize("language", LANGUAGES)
def test_signs_are_set_as_the_language_does(language):
    quotes = {"en": "“{}”", "de": "„{}“", "fr": "« {} »", "it": "«{}»", "es": "«{}»"}
    for field in QUESTIONS:
        text = getattr(PROMPTS[language], field)
        assert "  " not in text and text == text.strip()
        assert re.search(r"\s[?]", text) if language == "fr" else not re.search(r"\s[?:]", text)
        assert ("¿" in text) == (language == "es")
    assert quotes[language] in PROMPTS[language].stated


def test_a_question_ends_before_the_space_of_its_answer():
    assert ask(["Titre : X"], "Où ?", "fr") == "Titre : X\nQuestion : Où ?\nRéponse :"
    assert ask([], "Wo?", "de") == "Frage: Wo?\nAntwort:"


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_are_not_those_of_a_listings_lines(language):
    words = PROMPTS[language]
    assert not {words.question, words.answer} & set(LABELS[language].values())
    assert words.yes != words.no
