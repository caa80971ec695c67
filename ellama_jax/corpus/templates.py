"""Listings as text: several forms of a document, and the way back from each.

Owns the text forms and their readers. A document is written in one of `TEMPLATES`; `parse_document`
tells from the text alone which one it is. Values may hold anything, also a form's own marks: a
listing that its form could not give back is written as "lines" instead. Words come from `wording`,
amounts from `prices`; records are made and cleaned by `listings`.

"lines", the form of training data before the others and of all evaluation, is one line per field:
title, category, aspects (in an order seeded by the product), price, description.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from ellama_jax.corpus.prices import format_price, parse_price
from ellama_jax.corpus.wording import (
    LABELS,
    QUESTIONS,
    SENTENCES,
    check_language,
    line_prompt,
    one_line,
)

CATEGORY_SEPARATOR = " > "
# In these forms the lines of a description stay lines; in the others they are joined.
KEEP_DESCRIPTION_LINES = ("page", "title_last")


class DocumentLine(NamedTuple):
    """One line of a document: `field` is title, category, aspect, price or description."""

    field: str
    name: str
    text: str


class _Content(NamedTuple):
    """A listing's values as text, "" where there is none; aspects in their seeded order."""

    title: str
    category: str
    aspects: list[tuple[str, str]]
    price: str
    description: str


def document_lines(listing: dict, seed: int) -> list[DocumentLine]:
    """Writes a listing line by line.

    Fields that are empty or None have no line. The order of the aspects depends on `seed` and the
    product (or the title, where there is no product_id) only, so that it is the same in every
    process, and differs between products: no aspect can be told by its place.

    Args:
        listing: a record as `read_listings` and `catalogue.generate_listings` give it.
        seed: of the aspects' order.

    Returns:
        Lines as (field, name, text), where text is `line_prompt(name) + " " + value`.
    """
    language = check_language(listing["language"])
    return _lines_of(_content(listing, seed), language)


def listing_prefix(listing: dict, *, seed: int, upto: str, name: str | None = None) -> str:
    """Writes a document up to, and including, the prompt of one of its lines.

    What a model continues after the prefix is a space and the value: `"...\\nMaterial:"`.

    Args:
        listing: the record.
        seed: as for `listing_to_document`.
        upto: the field asked for (title, category, aspect, price, description).
        name: which aspect, when `upto` is "aspect".

    Raises:
        ValueError: if the listing has no such line.
    """
    lines = document_lines(listing, seed)
    for number, line in enumerate(lines):
        if line.field == upto and name in (None, line.name):
            before = [earlier.text for earlier in lines[:number]]
            return "\n".join([*before, line_prompt(line.name, listing["language"])])
    raise ValueError(f"upto: must be a field of the listing, got {upto!r} (name {name!r}).")


def _lines_of(content: _Content, language: str) -> list[DocumentLine]:
    labels = LABELS[language]
    fields = [("title", labels["title"], content.title)]
    fields.append(("category", labels["category"], content.category))
    fields += [("aspect", name, value) for name, value in content.aspects]
    fields.append(("price", labels["price"], content.price))
    fields.append(("description", labels["description"], one_line(content.description)))
    return [
        DocumentLine(field, name, f"{line_prompt(name, language)} {value}")
        for field, name, value in fields
        if value
    ]


def _content(listing: dict, seed: int) -> _Content:
    price = ""
    if listing["price"] is not None:
        price = format_price(listing["price"], listing["currency"], listing["language"])
    return _Content(
        one_line(listing["title"]),
        one_line(CATEGORY_SEPARATOR.join(listing["category"])),
        _ordered_aspects(listing, seed),
        price,
        text_lines(listing["description"] or ""),
    )


def _ordered_aspects(listing: dict, seed: int) -> list[tuple[str, str]]:
    aspects = sorted((aspect_name(name), value) for name, value in listing["aspects"].items())
    random.Random(f"{seed} {_product(listing)}").shuffle(aspects)
    return [(name, one_line(value)) for name, value in aspects if value and one_line(value)]


def _product(listing: dict) -> str:
    return listing["product_id"] or listing["title"]


def aspect_name(name: str) -> str:
    """Makes an aspect's name one line without colon, for the first colon ends a label."""
    return one_line(name.replace(":", " "))


def text_lines(text: str) -> str:
    """Tidies the spaces of a text line by line; empty lines go."""
    if "\n" not in text and "\r" not in text:
        return one_line(text)
    return "\n".join(line for line in map(one_line, re.split(r"[\r\n]+", text)) if line)


def choose_template(listing: dict, seed: int, names: Sequence[str] | None = None) -> str:
    """Draws the text form of a listing, the same in every process and for a product's variants.

    Args:
        listing: the record; product, language and `seed` decide.
        seed: of the draw.
        names: of the forms to draw from, each as likely; all that the language has by default.

    >>> listing = {"title": "Mug", "language": "de", "product_id": "7"}
    >>> choose_template(listing, seed=0, names=["page", "table"])
    'table'
    """
    language = check_language(listing["language"])
    names = templates_of(language) if names is None else [_check_template(name) for name in names]
    return random.Random(f"template {seed} {language} {_product(listing)}").choice(names)


@cache
def templates_of(language: str) -> tuple[str, ...]:
    """Returns the forms that a language has words for."""
    missing = {"sentences"} if language not in SENTENCES else set()
    missing |= {"questions"} if language not in QUESTIONS else set()
    return tuple(name for name in TEMPLATES if name not in missing)


def _check_template(name: str) -> str:
    if name not in TEMPLATES:
        raise ValueError(f"template: must be one of {', '.join(TEMPLATES)}, got {name!r}.")
    return name


def listing_to_document(listing: dict, *, seed: int, template: str = "lines") -> str:
    """Writes a listing as one text document.

    Args:
        listing: the record.
        seed: of the aspects' order, and of the words where a form has several.
        template: one of `TEMPLATES`. A listing whose values would not come back from this form (a
            "·" inside a value of "compact", say), and a form that the language has no words for,
            are written as "lines".

    >>> lamp = {
    ...     "title": "Tischlampe Nyx, Rot", "category": ["Wohnen", "Lampen"],
    ...     "aspects": {"Fassung": "E27"}, "price": 49.99, "currency": "EUR",
    ...     "description": "", "language": "de", "product_id": "7", "source": "example"}
    >>> print(listing_to_document(lamp, seed=0))
    Titel: Tischlampe Nyx, Rot
    Kategorie: Wohnen > Lampen
    Fassung: E27
    Preis: 49,99 €
    >>> print(listing_to_document(lamp, seed=0, template="compact"))
    Tischlampe Nyx, Rot
    Kategorie: Wohnen > Lampen · Fassung: E27 · 49,99 €
    """
    language = check_language(listing["language"])
    content = _content(listing, seed)
    if _check_template(template) != "lines" and template in templates_of(language):
        text = _WRITERS[template](content, language, f"{seed} {_product(listing)}")
        if _comes_back(text, content, listing, template):
            return text
    return "\n".join(line.text for line in _lines_of(content, language))


def _comes_back(text: str, content: _Content, listing: dict, template: str) -> bool:
    """Says whether reading a document gives exactly what was written."""
    try:
        parsed = parse_document(text, listing["language"])
    except ValueError:
        return False
    keep = template in KEEP_DESCRIPTION_LINES
    written = content.price and parse_price(content.price, listing["language"])
    return (
        parsed["title"] == content.title
        and CATEGORY_SEPARATOR.join(parsed["category"]) == content.category
        and list(parsed["aspects"].items()) == content.aspects
        and (parsed["price"], parsed["currency"]) == (written or (None, None))
        and parsed["description"]
        == (content.description if keep else one_line(content.description))
    )


def parse_document(text: str, language: str) -> dict:
    """Finds the fields of a document that `listing_to_document` wrote, in whichever form.

    In "lines", title and category are looked for at the start and price and description at the
    end, so that an aspect may be called "Price" too. Only where the listing has no such field, and
    the aspect comes last (or first, for the category), is it taken for the field.

    Returns:
        dict with title (str), category (list), aspects (dict), price (float or None), currency
        (str or None) and description (str).

    Raises:
        ValueError: if the text has none of the forms.
    """
    language = check_language(language)
    lines = text.split("\n")
    for read in _READERS:
        fields = read(lines, language)
        if fields is not None:
            return fields
    label = LABELS[language]["title"]
    raise ValueError(
        f"document: must begin with {label!r} or be of another form, got {text[:40]!r}."
    )


def _fields(
    title: str, category: str, aspects: list[tuple[str, str]], price: str, description: str,
    language: str,
) -> dict:  # fmt: skip
    amount, currency = parse_price(price, language) if price else (None, None)
    return {
        "title": title,
        "category": category.split(CATEGORY_SEPARATOR) if category else [],
        "aspects": dict(aspects),
        "price": amount,
        "currency": currency,
        "description": description,
    }


def _fields_of_pairs(title: str, pairs: list[tuple[str, str]], labels: dict, language: str) -> dict:
    """Sorts labelled values into fields: category first, price and description last."""
    category = description = price = ""
    if pairs and pairs[0][0] == labels["category"]:
        category, pairs = pairs[0][1], pairs[1:]
    if pairs and pairs[-1][0] == labels["description"]:
        description, pairs = pairs[-1][1], pairs[:-1]
    if pairs and pairs[-1][0] == labels["price"]:
        price, pairs = pairs[-1][1], pairs[:-1]
    return _fields(title, category, pairs, price, description, language)


def _is_price(text: str, language: str) -> bool:
    if len(text) > 40 or not any(sign.isdigit() for sign in text):
        return False
    try:
        return parse_price(text, language)[1] is not None
    except ValueError:
        return False


def _pair(text: str, mark: str) -> tuple[str, str] | None:
    name, found, value = text.partition(mark)
    return (name, value) if found and name else None


def _mark(language: str) -> str:
    return " : " if language == "fr" else ": "


# Each form is a writer (content, language, key of its random choices) -> text and a reader
# (lines, language) -> fields, or None where the text has another form.


def _read_lines(lines: list[str], language: str) -> dict | None:
    mark, labels = _mark(language), LABELS[language]
    if not lines[0].startswith(labels["title"] + mark):
        return None
    pairs = []
    for line in lines:
        pair = _pair(line, mark)
        if pair is None:
            raise ValueError(f"document: each line must be 'label{mark}value', got {line[:60]!r}.")
        pairs.append(pair)
    return _fields_of_pairs(pairs[0][1], pairs[1:], labels, language)


def _write_compact(content: _Content, language: str, key: str) -> str:
    """Title; category, aspects and price in one line; description."""
    lines = [line for line in _lines_of(content, language) if line.field in ("category", "aspect")]
    facts = [line.text for line in lines] + [content.price] * bool(content.price)
    parts = [content.title, " · ".join(facts), one_line(content.description)]
    return "\n".join(part for part in parts if part)


def _read_compact(lines: list[str], language: str) -> dict | None:
    if len(lines) not in (2, 3):
        return None
    facts = lines[1].split(" · ")
    price = facts.pop() if _is_price(facts[-1], language) else ""
    pairs = [_pair(fact, _mark(language)) for fact in facts]
    if None in pairs:
        return None
    category = ""
    if pairs and pairs[0][0] == LABELS[language]["category"]:
        category = pairs.pop(0)[1]
    return _fields(lines[0], category, pairs, price, "".join(lines[2:]), language)


_CRUMB = " › "


def _write_page(content: _Content, language: str, key: str) -> str:
    """Title, description, bullets, price and breadcrumb, an empty line between them."""
    bullets = [f"• {line_prompt(name, language)} {value}" for name, value in content.aspects]
    trail = _CRUMB.join([LABELS[language]["home"], *content.category.split(CATEGORY_SEPARATOR)])
    blocks = [content.title, content.description, "\n".join(bullets), content.price]
    blocks.append(trail if content.category else "")
    return "\n\n".join(block for block in blocks if block)


def _read_page(lines: list[str], language: str) -> dict | None:
    if len(lines) < 3 or lines[1]:
        return None
    title, *blocks = "\n".join(lines).split("\n\n")
    home, mark, category, price = LABELS[language]["home"] + _CRUMB, _mark(language), "", ""
    if blocks[-1].startswith(home):
        category = blocks.pop().removeprefix(home).replace(_CRUMB, CATEGORY_SEPARATOR)
    if blocks and _is_price(blocks[-1], language):
        price = blocks.pop()
    aspects = _bullets(blocks[-1].split("\n"), "• ", mark) if blocks else []
    if aspects:
        blocks.pop()
    if len(blocks) > 1:
        return None
    return _fields(title, category, aspects, price, "".join(blocks), language)


def _bullets(lines: list[str], bullet: str, mark: str) -> list[tuple[str, str]]:
    """Reads lines that are all bulleted pairs; [] where one is not."""
    pairs = [line.startswith(bullet) and _pair(line.removeprefix(bullet), mark) for line in lines]
    return pairs if all(pairs) else []


def _write_table(content: _Content, language: str, key: str) -> str:
    """Title, and a table of two columns for all else."""
    rows = [(line.name, line.text) for line in _lines_of(content, language)[1:]]
    rows = [
        f"{name} | {text.removeprefix(line_prompt(name, language) + ' ')}" for name, text in rows
    ]
    return "\n".join([content.title, *rows])


def _read_table(lines: list[str], language: str) -> dict | None:
    pairs = [_pair(line, " | ") for line in lines[1:]]
    if not pairs or None in pairs:
        return None
    return _fields_of_pairs(lines[0], pairs, LABELS[language], language)


def _write_title_last(content: _Content, language: str, key: str) -> str:
    """Category, description, dashed aspects, and the title behind its price."""
    parts = [f"{line_prompt(LABELS[language]['category'], language)} {content.category}"]
    parts = parts if content.category else []
    parts += [content.description] if content.description else []
    parts += [f"- {line_prompt(name, language)} {value}" for name, value in content.aspects]
    parts.append(f"{content.price} – {content.title}" if content.price else content.title)
    return "\n".join(parts)


def _read_title_last(lines: list[str], language: str) -> dict | None:
    *body, last = lines
    mark, category = _mark(language), ""
    price, found, title = last.partition(" – ")
    if not found or not _is_price(price, language):
        price, title = "", last
    end = len(body)
    while end and _bullets([body[end - 1]], "- ", mark):
        end -= 1
    aspects = _bullets(body[end:], "- ", mark)
    body = body[:end]
    if body and body[0].startswith(LABELS[language]["category"] + mark):
        category = body.pop(0).partition(mark)[2]
    if not aspects and not category:
        return None
    return _fields(title, category, aspects, price, "\n".join(body), language)


def _write_sentences(content: _Content, language: str, key: str) -> str:
    """One running text: a sentence per field in words drawn from `SENTENCES`, the description."""
    rng = random.Random(f"sentences {key}")
    aspects = _semicolon(language).join(
        f"{line_prompt(name, language)} {value}" for name, value in content.aspects
    )
    values = (content.title, content.category, content.price, aspects)
    said = [
        rng.choice(patterns).replace("{}", value)
        for patterns, value in zip(SENTENCES[language], values, strict=True)
        if value
    ]
    return " ".join([*said, one_line(content.description)]).rstrip()


def _semicolon(language: str) -> str:
    return " ; " if language == "fr" else "; "


@cache
def _sentences_pattern(language: str) -> re.Pattern:
    title, *others = (
        "|".join(re.escape(text).replace(r"\{\}", f"(?P<{field}{number}>.+?)")
                 for number, text in enumerate(patterns))
        for field, patterns in SENTENCES[language]._asdict().items()
    )  # fmt: skip
    rest = "".join(rf"(?:\ (?:{other}))?(?=\ |$)" for other in others)
    return re.compile(rf"(?:{title}){rest}(?:\ (?P<description>.*))?")


def _read_sentences(lines: list[str], language: str) -> dict | None:
    if len(lines) != 1 or language not in SENTENCES:
        return None
    found = _sentences_pattern(language).fullmatch(lines[0])
    if not found:
        return None
    said = {name.rstrip("0123456789"): text for name, text in found.groupdict().items() if text}
    pairs = [
        _pair(part, _mark(language))
        for part in said.get("aspects", "").split(_semicolon(language))
        if part
    ]
    price = said.get("price", "")
    if None in pairs or (price and not _is_price(price, language)):
        return None
    category, description = said.get("category", ""), said.get("description", "")
    return _fields(said["title"], category, pairs, price, description, language)


def _write_questions(content: _Content, language: str, key: str) -> str:
    """Title, then questions and their answers, the description's first."""
    words = QUESTIONS[language]
    asked = [(words.description, one_line(content.description)), (words.category, content.category)]
    asked += [(words.aspect.replace("{}", name), value) for name, value in content.aspects]
    asked.append((words.price, content.price))
    answers = [f"{words.ask}{ask}\n{words.answer}{value}" for ask, value in asked if value]
    return "\n".join([content.title, *answers])


def _read_questions(lines: list[str], language: str) -> dict | None:
    if len(lines) < 3 or len(lines) % 2 == 0 or language not in QUESTIONS:
        return None
    words, asks, answers = QUESTIONS[language], lines[1::2], lines[2::2]
    if not all(ask.startswith(words.ask) for ask in asks):
        return None
    if not all(answer.startswith(words.answer) for answer in answers):
        return None
    pairs = [(ask.removeprefix(words.ask), answer.removeprefix(words.answer))
             for ask, answer in zip(asks, answers, strict=True)]  # fmt: skip
    description = pairs.pop(0)[1] if pairs[0][0] == words.description else ""
    category = pairs.pop(0)[1] if pairs and pairs[0][0] == words.category else ""
    price = pairs.pop()[1] if pairs and pairs[-1][0] == words.price else ""
    before, after = words.aspect.split("{}")
    aspects = [(ask.removeprefix(before).removesuffix(after), value) for ask, value in pairs]
    return _fields(lines[0], category, aspects, price, description, language)


_WRITERS: dict[str, Callable[[_Content, str, str], str]] = {
    "compact": _write_compact,
    "page": _write_page,
    "table": _write_table,
    "title_last": _write_title_last,
    "sentences": _write_sentences,
    "questions": _write_questions,
}
TEMPLATES = ("lines", *_WRITERS)
# "title_last" before "compact": its second line may look like the other's facts.
_READERS = (
    _read_lines, _read_questions, _read_page, _read_table, _read_sentences, _read_title_last,
    _read_compact,
)  # fmt: skip
