"""Running text out of HTML documentation, in the language it claims to be.

Owns which parts of a page are prose, how paragraphs join into documents, and a small stop-word
test of the language. It fetches nothing: `sources` does.
"""

import re
from collections.abc import Iterable
from html.parser import HTMLParser

MIN_PARAGRAPH_CHARS = 200
# Documents end at the first paragraph that takes them past this; a paragraph may be long itself.
TARGET_DOCUMENT_CHARS = 1500
MAX_DOCUMENT_CHARS = 3000

# Frequent words. Some stand in two languages; a paragraph has enough of them to tell.
STOP_WORDS = {
    "en": "the and of is to that this with for are you it as be can from not which by or on",
    "de": "der die das und ist nicht mit für ein eine auf den zu von wird werden sie oder im dem",
    "fr": "le les des est une pour dans que vous pas sur avec du et ce qui ou sont par cette",
    "it": "il di che è per un una del della non con sono gli nel alla si può questo dei le",
    "es": "el los las y es una para que con del se por más no en su como este puede son",
}
_STOP_WORD_SETS = {language: frozenset(text.split()) for language, text in STOP_WORDS.items()}

# What stands inside these is code, a table, a menu or a footnote, however long its lines are.
_SKIPPED_TAGS = {"table", "pre", "dl", "script", "style", "head", "nav", "header", "footer"}
_SKIPPED_CLASSES = {"toc", "navheader", "navfooter", "titlepage", "screen", "programlisting"}
_VOID_TAGS = {"br", "hr", "img", "meta", "link", "input", "col", "area", "base", "wbr"}


class _ParagraphParser(HTMLParser):
    """Collects the text of `<p>` elements outside skipped ones."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._open: list[tuple[str, bool]] = []  # (tag, whether it skips its content)
        self._pieces: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID_TAGS:
            return
        classes = {name for key, value in attrs if key == "class" for name in (value or "").split()}
        self._open.append((tag, tag in _SKIPPED_TAGS or bool(classes & _SKIPPED_CLASSES)))
        if tag == "p" and not any(skips for _, skips in self._open):
            self._pieces = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Ignores `<a id="..."/>`: XHTML's empty elements open nothing."""

    def handle_endtag(self, tag: str) -> None:
        # Close up to the matching tag; an end without a start changes nothing.
        matching = [depth for depth, (open_tag, _) in enumerate(self._open) if open_tag == tag]
        if not matching:
            return
        del self._open[matching[-1] :]
        if tag == "p" and self._pieces is not None:
            self.paragraphs.append(" ".join("".join(self._pieces).split()))
            self._pieces = None

    def handle_data(self, data: str) -> None:
        if self._pieces is not None and not any(skips for _, skips in self._open):
            self._pieces.append(data)


def extract_paragraphs(html: str) -> list[str]:
    """Returns the paragraphs of a page, without tables, code and menus, white space joined.

    >>> extract_paragraphs("<p>One <b>two</b>.</p><pre><p>code</p></pre><p>Three &amp; four.</p>")
    ['One two.', 'Three & four.']
    """
    parser = _ParagraphParser()
    parser.feed(html)
    parser.close()
    return [paragraph for paragraph in parser.paragraphs if paragraph]


def guess_language(text: str) -> str | None:
    """Tells the language with the most stop words, or None if there are few, or a tie.

    >>> guess_language("Das Paket ist nicht mit dem System installiert.")
    'de'
    >>> guess_language("x86 GNU/Linux 4.19") is None
    True
    """
    found = re.findall(r"[^\W\d_]+", text.lower())
    counts = {
        language: sum(word in stop_words for word in found)
        for language, stop_words in _STOP_WORD_SETS.items()
    }
    first, second = sorted(counts, key=counts.__getitem__, reverse=True)[:2]
    return first if counts[first] >= 3 and counts[first] > counts[second] else None


def keep_prose(paragraphs: Iterable[str], language: str) -> list[str]:
    """Keeps paragraphs of running text in `language`: at least 200 characters, and not English
    left over in a translation."""
    return [
        paragraph
        for paragraph in paragraphs
        if len(paragraph) >= MIN_PARAGRAPH_CHARS and guess_language(paragraph) == language
    ]


def join_paragraphs(paragraphs: Iterable[str]) -> list[str]:
    """Joins consecutive paragraphs into documents of about 1,500 to 3,000 characters.

    Every paragraph is in exactly one document; the last document of a page may be shorter.
    """
    documents: list[str] = []
    current: list[str] = []
    length = 0
    for paragraph in paragraphs:
        if current and length + len(paragraph) > MAX_DOCUMENT_CHARS:
            documents.append("\n".join(current))
            current, length = [], 0
        current.append(paragraph)
        length += len(paragraph) + 1
        if length >= TARGET_DOCUMENT_CHARS:
            documents.append("\n".join(current))
            current, length = [], 0
    return documents + (["\n".join(current)] if current else [])
