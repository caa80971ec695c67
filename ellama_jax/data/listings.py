"""Listings as records and as text: read them, write them as documents, find the fields again.

Owns the labels and the number formats of each language, and the one text form that training,
evaluation and curation share. It makes no listings (`catalogue` does) and tokenises nothing.

A document is one line per field, in this order: title, category, aspects (in an order seeded by
the product), price, description. Spaces are ordinary ones everywhere, also before a French colon
and before a currency sign: no-break spaces are lost in most scraped text, and cost extra tokens.
"""

import json
import logging
import math
import random
import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)

# A further language is one more row here and in NUMBER_STYLES.
LABELS: dict[str, dict[str, str]] = {
    "en": {"title": "Title", "category": "Category", "price": "Price",
           "description": "Description", "yes": "Yes", "no": "No"},
    "de": {"title": "Titel", "category": "Kategorie", "price": "Preis",
           "description": "Beschreibung", "yes": "Ja", "no": "Nein"},
    "fr": {"title": "Titre", "category": "Catégorie", "price": "Prix",
           "description": "Description", "yes": "Oui", "no": "Non"},
    "it": {"title": "Titolo", "category": "Categoria", "price": "Prezzo",
           "description": "Descrizione", "yes": "Sì", "no": "No"},
    "es": {"title": "Título", "category": "Categoría", "price": "Precio",
           "description": "Descripción", "yes": "Sí", "no": "No"},
}  # fmt: skip

CATEGORY_SEPARATOR = " > "


class NumberStyle(NamedTuple):
    """How a language writes an amount of money."""

    thousands: str
    decimal: str
    symbol_first: bool


NUMBER_STYLES = {
    "en": NumberStyle(",", ".", True),
    "de": NumberStyle(".", ",", False),
    "fr": NumberStyle(" ", ",", False),
    "it": NumberStyle(".", ",", False),
    "es": NumberStyle(".", ",", False),
}

# Other currencies are written by their ISO code.
CURRENCY_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
# ISO 4217 minor units where they are not two.
CURRENCY_DECIMALS = {
    "JPY": 0, "KRW": 0, "VND": 0, "CLP": 0, "ISK": 0, "KWD": 3, "BHD": 3, "TND": 3, "JOD": 3,
    "OMR": 3,
}  # fmt: skip


class DocumentLine(NamedTuple):
    """One line of a document: `field` is title, category, aspect, price or description."""

    field: str
    name: str
    text: str


class BadLine(NamedTuple):
    """A line of a listings file that holds no listing, counted from 1."""

    line: int
    reason: str


def format_price(price: float, currency: str, language: str) -> str:
    """Writes an amount of money as the language does.

    Args:
        price: the amount in the currency's main unit, not negative; rounded half up.
        currency: ISO 4217 code.
        language: a key of `LABELS`.

    >>> format_price(1234.5, "USD", "en"), format_price(1234.5, "EUR", "de")
    ('$1,234.50', '1.234,50 €')
    >>> format_price(1234.5, "EUR", "fr"), format_price(1234.5, "CHF", "it")
    ('1 234,50 €', '1.234,50 CHF')
    """
    style = NUMBER_STYLES[_check_language(language)]
    if not math.isfinite(price) or price < 0:
        raise ValueError(f"price: must be a number that is not negative, got {price}.")
    decimals = CURRENCY_DECIMALS.get(currency, 2)
    exact = Decimal(str(price)).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)
    # Python groups the American way; the signs are swapped through a placeholder.
    amount = f"{exact:,}".replace(",", "\0").replace(".", style.decimal)
    amount = amount.replace("\0", style.thousands)
    if currency not in CURRENCY_SYMBOLS:
        return f"{currency} {amount}" if style.symbol_first else f"{amount} {currency}"
    symbol = CURRENCY_SYMBOLS[currency]
    return f"{symbol}{amount}" if style.symbol_first else f"{amount} {symbol}"


def parse_price(text: str, language: str) -> tuple[float, str | None]:
    """Reads an amount written as `format_price` writes it; a missing currency gives None.

    >>> parse_price("1.234,50 €", "de"), parse_price("CHF 80.00", "en"), parse_price("12", "fr")
    ((1234.5, 'EUR'), (80.0, 'CHF'), (12.0, None))
    """
    style = NUMBER_STYLES[_check_language(language)]
    number = re.fullmatch(r"([^\d]*?)\s*(\d[\d.,\s]*?)\s*([^\d]*)", text.strip())
    mark = (number[1] or number[3]).strip() if number else ""
    codes = {symbol: code for code, symbol in CURRENCY_SYMBOLS.items()}
    if mark and mark not in codes and not re.fullmatch("[A-Z]{3}", mark):
        number = None
    digits = re.sub(r"\s", " ", number[2]) if number else ""
    thousands, decimal = re.escape(style.thousands), re.escape(style.decimal)
    if not re.fullmatch(rf"(\d+|\d{{1,3}}({thousands}\d{{3}})+)({decimal}\d+)?", digits):
        raise ValueError(f"price: must be an amount as {language} writes it, got {text!r}.")
    amount = float(digits.replace(style.thousands, "").replace(style.decimal, "."))
    return amount, codes.get(mark, mark or None)


def line_prompt(name: str, language: str) -> str:
    """Returns the start of a line, up to its colon; the value follows after one space.

    >>> line_prompt("Material", "de"), line_prompt("Matière", "fr")
    ('Material:', 'Matière :')
    """
    return f"{name} :" if _check_language(language) == "fr" else f"{name}:"


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
    language = _check_language(listing["language"])
    labels = LABELS[language]
    fields = [("title", labels["title"], listing["title"])]
    fields.append(("category", labels["category"], CATEGORY_SEPARATOR.join(listing["category"])))
    fields += [("aspect", name, value) for name, value in _ordered_aspects(listing, seed)]
    if listing["price"] is not None:
        price = format_price(listing["price"], listing["currency"], language)
        fields.append(("price", labels["price"], price))
    fields.append(("description", labels["description"], listing["description"]))
    return [
        DocumentLine(field, name, f"{line_prompt(name, language)} {_one_line(value)}")
        for field, name, value in fields
        if value and _one_line(value)
    ]


def _ordered_aspects(listing: dict, seed: int) -> list[tuple[str, str]]:
    aspects = sorted((_aspect_name(name), value) for name, value in listing["aspects"].items())
    random.Random(f"{seed} {listing['product_id'] or listing['title']}").shuffle(aspects)
    return aspects


def listing_to_document(listing: dict, *, seed: int) -> str:
    """Writes a listing as one text document, lines separated by newlines.

    >>> print(listing_to_document({
    ...     "title": "Tischlampe Nyx, Rot", "category": ["Wohnen", "Lampen"],
    ...     "aspects": {"Fassung": "E27"}, "price": 49.99, "currency": "EUR",
    ...     "description": "", "language": "de", "product_id": "7", "source": "example"}, seed=0))
    Titel: Tischlampe Nyx, Rot
    Kategorie: Wohnen > Lampen
    Fassung: E27
    Preis: 49,99 €
    """
    return "\n".join(line.text for line in document_lines(listing, seed))


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


def listing_to_text_record(listing: dict, *, seed: int) -> dict:
    """Makes a listing's text record (text, domain "ecommerce", language, source, product_id)."""
    return {
        "text": listing_to_document(listing, seed=seed),
        "domain": "ecommerce",
        "language": listing["language"],
        "source": listing["source"],
        "product_id": listing["product_id"],
    }


def parse_document(text: str, language: str) -> dict:
    """Finds the fields of a document that `listing_to_document` wrote.

    Title and category are looked for at the start and price and description at the end, so that
    an aspect may be called "Price" too. Only where the listing has no such field, and the aspect
    comes last, is it taken for the field.

    Returns:
        dict with title (str), category (list), aspects (dict), price (float or None), currency
        (str or None) and description (str).

    Raises:
        ValueError: if a line has no label, or the first is no title.
    """
    labels = LABELS[_check_language(language)]
    pairs = [_split_line(line, language) for line in text.split("\n")]
    if pairs[0][0] != labels["title"]:
        raise ValueError(f"document: must begin with {labels['title']!r}, got {text[:40]!r}.")
    title, pairs = pairs[0][1], pairs[1:]
    category = description = price_text = ""
    if pairs and pairs[0][0] == labels["category"]:
        category, pairs = pairs[0][1], pairs[1:]
    if pairs and pairs[-1][0] == labels["description"]:
        description, pairs = pairs[-1][1], pairs[:-1]
    if pairs and pairs[-1][0] == labels["price"]:
        price_text, pairs = pairs[-1][1], pairs[:-1]
    price, currency = parse_price(price_text, language) if price_text else (None, None)
    return {
        "title": title,
        "category": category.split(CATEGORY_SEPARATOR) if category else [],
        "aspects": dict(pairs),
        "price": price,
        "currency": currency,
        "description": description,
    }


def _split_line(line: str, language: str) -> tuple[str, str]:
    mark = line_prompt("", language) + " "
    name, found, value = line.partition(mark)
    if not found or not name:
        raise ValueError(f"document: each line must be 'label{mark}value', got {line[:60]!r}.")
    return name, value


def read_listings(path: str | Path) -> tuple[list[dict], list[BadLine]]:
    """Reads listings from JSONL as real catalogues write them.

    Copes with `category` as list or string ("A > B", "A/B", or several such paths, of which the
    first counts), aspects as a mapping or a list of name and value, aspect values as string,
    number, truth value or list, `language` or `lang` ("de", "de-DE"), `product_id` or `id`.

    Returns:
        The listings, and the lines that are none, with their reasons. Empty lines are skipped.

    Raises:
        OSError: if the file cannot be read.
    """
    path = Path(path)
    listings, bad = [], []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                listings.append(_normalise(json.loads(raw.decode("utf-8")), path.stem))
            except (ValueError, RecursionError) as error:
                bad.append(BadLine(number, str(error)))
    return listings, bad


def load_listings(path: str | Path, max_bad_frac: float = 0.01) -> list[dict]:
    """Reads listings and refuses a file with too many broken lines.

    Args:
        path: JSONL, one listing a line.
        max_bad_frac: share of the lines that may be broken; fewer are logged and left out.

    Raises:
        ValueError: if more lines are broken, or there is no listing at all.
        OSError: if the file cannot be read.
    """
    listings, bad = read_listings(path)
    total = len(listings) + len(bad)
    if not total:
        raise ValueError(f"{path}: must hold at least one listing, got an empty file.")
    if len(bad) > max_bad_frac * total:
        raise ValueError(
            f"{path}: at most {max_bad_frac:.1%} of the lines may be broken, got {len(bad)} of "
            f"{total}; the first is line {bad[0].line}: {bad[0].reason}"
        )
    if bad:
        _log.warning(
            "%s: left out %d of %d lines; the first is line %d: %s",
            path, len(bad), total, bad[0].line, bad[0].reason,
        )  # fmt: skip
    return listings


def _normalise(record: object, default_source: str) -> dict:
    """Makes a listing of one decoded line; ValueError says which field is wrong."""
    if not isinstance(record, dict):
        raise ValueError(f"line: must be a JSON object, got {type(record).__name__}.")
    language = _check_language(_first_of(record, "language", "lang"))
    price, currency = _normalise_price(record, language)
    product_id = _first_of(record, "product_id", "parent_id", "id")
    return {
        "title": _require_text(record, "title"),
        "category": _normalise_category(_first_of(record, "category")),
        "aspects": _normalise_aspects(_first_of(record, "aspects"), language),
        "price": price,
        "currency": currency,
        "description": _optional_text(record, "description"),
        "language": language,
        "product_id": None if product_id is None else str(product_id),
        "source": _optional_text(record, "source") or default_source,
    }


def _first_of(record: dict, *keys: str) -> object:
    """Returns the first of the keys that is there and not null."""
    return next((record[key] for key in keys if key in record and record[key] is not None), None)


def _check_language(language: object) -> str:
    """Returns the bare language of "de" or "de-DE" if `LABELS` knows it."""
    bare = re.split("[-_]", language)[0].lower() if isinstance(language, str) else language
    if not isinstance(bare, str) or bare not in LABELS:
        raise ValueError(f"language: must be one of {', '.join(LABELS)}, got {language!r}.")
    return bare


def _require_text(record: dict, key: str) -> str:
    text = _optional_text(record, key)
    if not text:
        raise ValueError(f"{key}: must be a text that is not empty, got {text!r}.")
    return text


def _optional_text(record: dict, key: str) -> str:
    value = _first_of(record, key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key}: must be a text, got {value!r}.")
    return _one_line(value or "")


def _normalise_price(record: dict, language: str) -> tuple[float | None, str | None]:
    price, currency = _first_of(record, "price"), _first_of(record, "currency")
    if isinstance(price, str) and price.strip():
        price, marked = parse_price(price, language)
        currency = currency or marked
    elif isinstance(price, str):
        price = None
    if price is None:
        return None, None
    if isinstance(price, bool) or not isinstance(price, int | float):
        raise ValueError(f"price: must be a number, got {price!r}.")
    if not math.isfinite(price) or price < 0:
        raise ValueError(f"price: must be a number that is not negative, got {price}.")
    if not isinstance(currency, str) or not re.fullmatch("[A-Za-z]{3}", currency):
        raise ValueError(f"currency: must be a three-letter code, got {currency!r}.")
    return float(price), currency.upper()


def _normalise_category(category: object) -> list[str]:
    if category is None:
        return []
    levels = category if isinstance(category, list) else [category]
    if not all(isinstance(level, str) for level in levels):
        raise ValueError(f"category: must be a text or a list of texts, got {category!r}.")
    # A list of whole paths ("A > B", "C > D") names the same product twice: the first path counts.
    if levels and ">" in levels[0]:
        levels = levels[0].split(">")
    elif isinstance(category, str):
        levels = category.split("/")
    return [_one_line(level) for level in levels if _one_line(level)]


def _normalise_aspects(aspects: object, language: str) -> dict[str, str]:
    if aspects is None:
        return {}
    pairs: Iterable
    if isinstance(aspects, dict):
        pairs = aspects.items()
    elif isinstance(aspects, list) and all(
        isinstance(entry, dict) and {"name", "value"} <= set(entry) for entry in aspects
    ):
        pairs = [(entry["name"], entry["value"]) for entry in aspects]
    else:
        raise ValueError(f"aspects: must map names to values, got {aspects!r}.")
    written = [
        (_aspect_name(str(name)), _aspect_text(value, name, language)) for name, value in pairs
    ]
    return {name: value for name, value in written if name and value}


def _aspect_name(name: str) -> str:
    # The first colon of a line ends its label, so a name cannot hold one.
    return _one_line(name.replace(":", " "))


def _aspect_text(value: object, name: object, language: str) -> str:
    """Writes an aspect's value; null, which says "not applicable", gives an empty text."""
    if isinstance(value, list):
        texts = [_aspect_text(part, name, language) for part in value]
        return ", ".join(text for text in texts if text)
    if value is None:
        return ""
    if isinstance(value, bool):
        return LABELS[language]["yes" if value else "no"]
    if isinstance(value, str | int | float):
        return _one_line(str(value))
    raise ValueError(f"aspects: {name!r} must be a text, a number or a list, got {value!r}.")


def _one_line(text: str) -> str:
    """Joins a text's words by single ordinary spaces, so that a field is one line."""
    return " ".join(text.split())
