"""HTML and junk characters out of shop text.

Owns what is markup and what is text. What the text says (private data, boilerplate) is not its
business.
"""

import html
import re

_BLOCKS = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset|"
    "figcaption|figure|footer|form|h[1-6]|head|header|hr|html|li|main|nav|ol|option|p|pre|section|"
    "summary|table|tbody|td|tfoot|th|thead|title|tr|ul"
)
_INLINE = (
    "a|abbr|acronym|b|big|button|cite|code|col|colgroup|data|del|dfn|em|embed|font|i|iframe|img|"
    "input|ins|kbd|label|link|mark|meta|object|param|picture|q|s|samp|select|small|source|span|"
    "strike|strong|sub|sup|svg|textarea|time|tt|u|var|video|wbr|[a-z]{1,10}:[a-z]{1,20}"
)
# Possessive repeats: a text of a million "<b" costs no more than its length.
_ATTRIBUTES = r"""(?:[\s/](?:[^<>"']|"[^"<]{0,2000}"|'[^'<]{0,2000}')*+)?+"""
_TAG = re.compile(rf"<(/?)({_BLOCKS}|{_INLINE})({_ATTRIBUTES})>", re.IGNORECASE)
_HAS_BLOCK = re.compile(rf"</?(?:{_BLOCKS})[\s/>]", re.IGNORECASE)
# The tag that a cut text ends in.
_CUT_TAG = re.compile(rf"<(?:/|(?:{_BLOCKS}|{_INLINE})\s+[a-z-]+=)[^<>]*$", re.IGNORECASE)
_UNSEEN = re.compile(
    r"<(script|style|noscript|template)\b[^<>]*+>.*?(?:</\1\s*>|$)|<!--.*?(?:-->|$)|"
    r"<!\[CDATA\[|\]\]>|<!doctype[^<>]*+>|<\?xml[^<>]*+>",
    re.IGNORECASE | re.DOTALL,
)
# Only entities with their semicolon: "?a=1&copy=2" and "AT&T" are no entities.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ue000-\uf8ff\ud800-\udfff]"
)
# A joiner counts inside emoji and in scripts that join letters, which all lie beyond Cyrillic.
_JOINER = re.compile("(?<![\u0590-\U0010ffff])\u200d|\u200d(?![\u0590-\U0010ffff])|(?<!\\w)\u200c|\u200c(?!\\w)")  # fmt: skip
_JUNK = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200d\u2060\ufeff\ufff9-\uffff\ue000-\uf8ff\ud800-\udfff]")  # fmt: skip
_BULLET_ALONE = re.compile(r"^[•|\s]*$")


def strip_markup(text: str) -> str:
    """Returns the text that a reader of the page sees, in plain lines.

    Tags and entities go, also escaped ones; list items become bullets, cells are set apart by
    " | ", blocks begin lines. Scripts, styles, comments, control and zero-width characters and
    lone surrogates go. Emoji, joiners that shape a script, right-to-left text and signs that
    merely look like markup stay.

    >>> strip_markup("<p>Soft &amp;amp; <b>warm</b></p><ul><li>wool<li>90&nbsp;cm</ul>")
    'Soft & warm\\n• wool\\n• 90 cm'
    >>> strip_markup("a < b, 5 > 3, I <3 it, AT&T")
    'a < b, 5 > 3, I <3 it, AT&T'
    """
    if "&" in text:
        text = _unescape(text)
    if "<" in text:
        text = _without_tags(text)
    if not text.isascii() or not text.isprintable():
        text = _without_junk(text)
    return text


def _unescape(text: str) -> str:
    """Resolves entities, also those escaped more than once, as feeds of feeds do."""
    for _ in range(4):
        plain = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
        if plain == text:
            break
        text = plain
    return text


def _without_tags(text: str) -> str:
    text = _UNSEEN.sub(" ", text)
    if _HAS_BLOCK.search(text):
        # In a page the source's own line breaks mean nothing.
        text = re.sub(r"\s+", " ", text)
    text = _TAG.sub(_seen_as, _CUT_TAG.sub("", text))
    if "\n" not in text:
        return text.strip()
    lines = (" ".join(line.split()).removesuffix(" |") for line in text.split("\n"))
    return "\n".join(line for line in lines if not _BULLET_ALONE.match(line))


def _seen_as(tag: re.Match) -> str:
    """Says what a reader sees of a tag."""
    closing, name, attributes = tag[1], tag[2].lower(), tag[3]
    if len(name) == 1 and name != "p" and attributes.strip(" /") and "=" not in attributes:
        return tag[0]  # "a<b and c>d" is a comparison
    if name == "li":
        return "\n" if closing else "\n• "
    if name in ("td", "th"):
        return " | " if closing else ""
    if name == "dd":
        return "\n" if closing else ": "
    if name == "wbr" or not re.fullmatch(_BLOCKS, name):
        return ""
    return "" if name == "dt" and closing else "\n"


def _without_junk(text: str) -> str:
    if not _JUNK.search(text):
        return text.replace("\xa0", " ")
    # C1's "next line" and the like are line breaks; \x85 is one as well.
    text = _CONTROLS.sub("", text.replace("\x85", "\n"))
    return _JOINER.sub("", text).replace("\xa0", " ")
