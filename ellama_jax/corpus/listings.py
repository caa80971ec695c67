"""Listings as records: read them, bring them into one form, clean them.

Owns the record (title, category, aspects, price, currency, description, language, product_id,
source). Its text forms are made by `templates`, amounts by `prices`; it makes no listings
(`catalogue` does) and tokenises nothing.
"""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ellama_jax.core.paths import as_path
from ellama_jax.corpus.markup import strip_markup
from ellama_jax.corpus.prices import (
    NUMBER_STYLES,
    format_price,
    localise_units,
    normalise_price,
    number_text,
    parse_price,
)
from ellama_jax.corpus.privacy import mask_name, mask_private, public_id
from ellama_jax.corpus.templates import (
    CATEGORY_SEPARATOR,
    TEMPLATES,
    DocumentLine,
    aspect_name,
    choose_template,
    document_lines,
    listing_prefix,
    listing_to_document,
    parse_document,
    text_lines,
)
from ellama_jax.corpus.wording import (
    LABELS,
    boilerplate_pattern,
    check_language,
    is_empty_value,
    is_mask,
    line_prompt,
    one_line,
)

# What other modules reach through here: a listing's text forms and amounts.
__all__ = [
    "LABELS", "NUMBER_STYLES", "TEMPLATES", "BadLine", "DocumentLine", "choose_template",
    "clean_listing", "document_lines", "format_price", "line_prompt", "listing_prefix",
    "listing_to_document", "listing_to_text_record", "load_listings", "normalise_listing",
    "parse_document", "parse_price", "read_listings",
]  # fmt: skip

_log = logging.getLogger(__name__)

# Fields of a raw record that name who sells; "vendor" and "store" name a brand as often.
SELLER_FIELDS = ("seller", "seller_name", "shop", "shop_name", "merchant", "merchant_name")


class BadLine(NamedTuple):
    """A line of a listings file that holds no listing, counted from 1."""

    line: int
    reason: str


def listing_to_text_record(listing: dict, *, seed: int, template: str = "lines") -> dict:
    """Makes a listing's text record (text, domain "ecommerce", language, source, product_id)."""
    return {
        "text": listing_to_document(listing, seed=seed, template=template),
        "domain": "ecommerce",
        "language": listing["language"],
        "source": listing["source"],
        "product_id": listing["product_id"],
    }


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
    path = as_path(path)
    listings, bad = [], []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                listings.append(_read_line(raw, path.stem))
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


def _read_line(raw: bytes, source: str) -> dict:
    listing = normalise_listing(json.loads(raw.decode("utf-8")), source=source)
    listing.pop("seller", None)
    return listing


def normalise_listing(record: Mapping, *, source: str, language: str | None = None) -> dict:
    """Brings a catalogue's record into the form that all else works on.

    Args:
        record: title (required), category, aspects, price, currency, description, language,
            product_id, source, in any of the shapes that `read_listings` names.
        source: name of the catalogue, where the record has none.
        language: of the record, where it says none ("de", "de-DE").

    Returns:
        A new dict with title, category (list), aspects (dict of texts), price (float or None),
        currency, description (lines kept), language, product_id and source. The name of who sells
        is under `seller` where the record has it: `clean_listing` takes it out of all texts.

    Raises:
        ValueError: naming the field that is wrong.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"line: must be a JSON object, got {type(record).__name__}.")
    language = check_language(_first_of(record, "language", "lang") or language)
    price, currency = normalise_price(
        _first_of(record, "price"), _first_of(record, "currency"), language
    )
    product_id = _first_of(record, "product_id", "parent_id", "id")
    listing = {
        "title": _require_text(record, "title"),
        "category": _normalise_category(_first_of(record, "category")),
        "aspects": _normalise_aspects(_first_of(record, "aspects"), language),
        "price": price,
        "currency": currency,
        "description": text_lines(_optional_text(record, "description")),
        "language": language,
        "product_id": None if product_id is None else public_id(str(product_id)),
        "source": one_line(_optional_text(record, "source")) or source,
    }
    seller = _first_of(record, *SELLER_FIELDS)
    return listing | {"seller": one_line(seller)} if isinstance(seller, str) else listing


def _first_of(record: Mapping, *keys: str) -> object:
    """Returns the first of the keys that is there and not null."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _require_text(record: Mapping, key: str) -> str:
    text = one_line(_optional_text(record, key))
    if not text:
        raise ValueError(f"{key}: must be a text that is not empty, got {text!r}.")
    return text


def _optional_text(record: Mapping, key: str) -> str:
    value = _first_of(record, key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key}: must be a text, got {value!r}.")
    return value or ""


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
    return _category_levels(levels)


def _category_levels(levels: Iterable[str]) -> list[str]:
    """Tidies levels; none holds, begins or ends with the sign that stands between them."""
    parts = (part for level in levels for part in one_line(level).split(CATEGORY_SEPARATOR))
    return [level for part in parts if (level := part.strip(" >"))]


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
        (aspect_name(str(name)), _aspect_text(value, name, language)) for name, value in pairs
    ]
    return {name: value for name, value in written if name and value}


def _aspect_text(value: object, name: object, language: str) -> str:
    """Writes an aspect's value; null, which says "not applicable", gives an empty text."""
    if isinstance(value, list):
        texts = [_aspect_text(part, name, language) for part in value]
        return ", ".join(text for text in texts if text)
    if value is None:
        return ""
    if isinstance(value, bool):
        return LABELS[language]["yes" if value else "no"]
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, int | float):
        return number_text(value, language) if math.isfinite(value) else ""
    raise ValueError(f"aspects: {name!r} must be a text, a number or a list, got {value!r}.")


def clean_listing(listing: dict) -> tuple[dict, Counter]:
    """Takes out of a listing what is not about its product, and says what was.

    In this order: markup, the seller's name (`seller`, which is dropped itself), private data,
    empty values, sentences about shipping and service, a description that only repeats the title.
    Measures get the language's decimal sign, names that databases keep ("eco_collection") are
    written as shops do, bullets begin lines, and an aspect called like an empty field ("Category")
    becomes that field. Cleaning what is clean changes nothing.

    Args:
        listing: as `normalise_listing` gives it.

    Returns:
        A new listing, and how often each thing was done: markup, seller, email, phone, card, iban,
        address, url, handle, ip, empty_value, boilerplate, repeated_title, units, field_name.

    Raises:
        ValueError: if nothing of the title is left.
    """
    done: Counter = Counter()
    language, seller = listing["language"], listing.get("seller") or ""
    if seller.casefold() in {value.casefold() for value in listing["aspects"].values()}:
        seller = ""  # a maker that sells its own goods is their brand

    def tidy(text: str) -> str:
        plain = strip_markup(text)
        if plain is not text:
            plain = text_lines(plain)
            done["markup"] += plain != text
        return _mask(plain, seller, language, done)

    cleaned = {key: value for key, value in listing.items() if key != "seller"}
    cleaned["title"] = one_line(tidy(listing["title"]))
    if not cleaned["title"]:
        raise ValueError(f"title: must hold text beside markup, got {listing['title'][:60]!r}.")
    levels = [level for level in listing["category"] if not _drop_empty(level, language, done)]
    cleaned["category"] = [_unslug(level, "_-") for level in _category_levels(map(tidy, levels))]
    cleaned["aspects"] = _clean_aspects(listing["aspects"], tidy, language, done)
    cleaned["description"] = _clean_description(tidy(listing["description"]), cleaned, done)
    return _fill_fields(cleaned, done), +done


def _mask(text: str, seller: str, language: str, done: Counter) -> str:
    if seller:
        text, count = mask_name(text, seller, "seller", language)
        done["seller"] += count
    text, found = mask_private(text, language)
    if found:
        done.update(found)
    return text


def _drop_empty(text: str, language: str, done: Counter) -> bool:
    empty = is_empty_value(text, language)
    if empty:
        done["empty_value"] += 1
    return empty


def _clean_aspects(aspects: dict, tidy: Callable, language: str, done: Counter) -> dict[str, str]:
    cleaned = {}
    for name, value in aspects.items():
        name, value = _unslug(aspect_name(tidy(name)), "_"), one_line(tidy(value))
        parts = value.split(", ")
        kept = [part for part in parts if not _drop_empty(part, language, done)]
        value = ", ".join(kept) if len(kept) < len(parts) else value
        local = localise_units(value, language)
        if local is not value:
            done["units"] += local != value
        if is_mask(local, language):
            done["empty_value"] += 1
        elif name and local:
            cleaned.setdefault(name, local)
    return cleaned


def _unslug(name: str, separators: str) -> str:
    """Writes a name as a shop does that a database keeps: eco_collection, mens-shirts.

    >>> _unslug("eco_collection", "_"), _unslug("mens-shirts", "_-"), _unslug("t-shirts", "_-")
    ('Eco collection', 'Mens shirts', 'T-shirts')
    """
    if not name.isascii() or not name[:1].islower() or name.lower() != name or " " in name:
        return name
    parts = re.split(f"[{separators}]", name)
    name = " ".join(parts) if all(len(part) > 1 for part in parts) else name
    return name[0].upper() + name[1:]


def _clean_description(text: str, cleaned: dict, done: Counter) -> str:
    if not text or _drop_empty(text, cleaned["language"], done):
        return ""
    text = _without_boilerplate(text, cleaned["language"], done)
    if text.count(" • ") > 1:
        text = text.replace(" • ", "\n• ")
    if _letters(text) == _letters(cleaned["title"]):
        done["repeated_title"] += bool(text)
        return ""
    return text


def _letters(text: str) -> str:
    return "".join(sign for sign in text.casefold() if sign.isalnum())


def _without_boilerplate(text: str, language: str, done: Counter) -> str:
    pattern = boilerplate_pattern(language)
    if pattern is None:
        return text
    kept_lines = []
    for line in text.split("\n"):
        sentences = _SENTENCE_END.split(line)
        kept = [sentence for sentence in sentences if not pattern.match(sentence)]
        done["boilerplate"] += len(sentences) - len(kept)
        kept_lines.append(line if len(kept) == len(sentences) else " ".join(kept))
    return text_lines("\n".join(kept_lines))


_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")


def _fill_fields(listing: dict, done: Counter) -> dict:
    """Moves an aspect that is called like an empty field there, or out of a full field's way."""
    labels = LABELS[listing["language"]]
    for field in ("category", "price", "description"):
        value = listing["aspects"].get(labels[field])
        if value is None or listing[field]:
            continue
        if field == "price":
            filled = _price_or_none(value, listing["language"])
        else:
            filled = {field: _category_levels([value]) if field == "category" else value}
        aspects = {name: text for name, text in listing["aspects"].items() if name != labels[field]}
        listing = listing | filled | {"aspects": aspects}
        done["field_name"] += 1
    return listing


def _price_or_none(value: str, language: str) -> dict:
    try:
        price, currency = normalise_price(value, None, language)
    except ValueError:
        price = currency = None
    return {"price": price, "currency": currency}
