"""Prose out of pages: what is dropped, what language it is, how paragraphs join."""

import pytest

from ellama_jax.corpus.debian_prose import (
    MAX_DOCUMENT_CHARS,
    STOP_WORDS,
    extract_paragraphs,
    guess_language,
    join_paragraphs,
    keep_prose,
)

SENTENCES = {
    "en": "You can install the package with this command, and it is not removed by the system.",
    "de": "Sie können das Paket mit diesem Befehl installieren, und es wird nicht entfernt.",
    "fr": "Vous pouvez installer le paquet avec cette commande, et il est dans les dépôts.",
    "it": "Il pacchetto è installato con questo comando e non può essere rimosso dagli utenti.",
    "es": "El paquete se instala con este comando y no puede ser eliminado por los usuarios.",
}


def test_inline_markup_and_entities_are_joined_to_text():
    html = "<p>Run <code>apt</code>(8)\n  and <b>wait</b> &lt;here&gt;&#8230;</p>"
    assert extract_paragraphs(html) == ["Run apt(8) and wait <here>…"]


@pytest.mark.parametrize(
    "wrapper",
    [
        "<table><tr><td>{}</td></tr></table>",
        "<pre>{}</pre>",
        '<div class="toc">{}</div>',
        '<div class="x navheader">{}</div>',
        "<dl><dd>{}</dd></dl>",
        "<head><title>t</title>{}</head>",
    ],
)
def test_paragraphs_in_tables_code_and_menus_are_dropped(wrapper):
    html = f"<html>{wrapper.format('<p>drop</p>')}<p>keep</p></html>"
    assert extract_paragraphs(html) == ["keep"]


def test_code_inside_a_paragraph_is_cut_out():
    assert extract_paragraphs("<p>before <pre>x = 1</pre> after</p>") == ["before after"]


def test_empty_xhtml_elements_do_not_swallow_the_rest():
    html = '<div><a id="x"/><br><img src="y"><p>one</p><table/><p>two</p></div><p>three</p>'
    assert extract_paragraphs(html) == ["one", "two", "three"]


def test_unbalanced_tags_do_not_stop_the_reading():
    assert extract_paragraphs("</div><p>one</b></p></table><p>two</p>") == ["one", "two"]


@pytest.mark.parametrize("language", STOP_WORDS)
def test_language_of_a_sentence_is_told(language):
    assert guess_language(SENTENCES[language]) == language


@pytest.mark.parametrize("text", ["", "apt-get 2.7", "foo bar baz", "the of and der die das"])
def test_language_of_little_or_mixed_text_is_not_told(text):
    assert guess_language(text) is None


def test_english_left_in_a_translation_is_dropped():
    german, english = SENTENCES["de"] * 3, SENTENCES["en"] * 3
    assert keep_prose([german, english, SENTENCES["de"]], "de") == [german]


def test_short_paragraphs_are_dropped_at_200_characters():
    text = (SENTENCES["en"] * 3)[:200]
    assert keep_prose([text, text[:-1]], "en") == [text]


def test_paragraphs_join_to_documents_of_the_stated_size():
    paragraphs = [f"{number:03d} " + "x" * 400 for number in range(20)]
    documents = join_paragraphs(paragraphs)
    assert "\n".join(documents).split("\n") == paragraphs
    assert [document.count("\n") + 1 for document in documents] == [4, 4, 4, 4, 4]


def test_long_paragraphs_stay_whole_and_alone():
    short, long = "s" * 300, "l" * (MAX_DOCUMENT_CHARS + 1)
    assert join_paragraphs([short, long, short]) == [short, long, short]
    assert join_paragraphs([]) == []
