"""Variants of one product made into one listing.

Owns what variants share and how their differences are joined. Which listings are variants of one
product is the caller's to say (`product_of`); near-duplicates of other products are not its task.
"""

import re
from collections import Counter
from collections.abc import Sequence

from ellama_jax.corpus.wording import one_line

# Letter sizes in order; those with two to four X have another name, "XXL" for "2XL".
_SIZES = {
    size: place
    for place, name in enumerate(
        ["5XS", "4XS", "3XS", "2XS", "XS", "S", "M", "L", "XL", "2XL", "3XL", "4XL", "5XL", "6XL"]
    )
    for size in ({name, "X" * int(name[0]) + name[2:]} if name[0] in "234" else {name})
}
_NUMBER = re.compile(r"[^\d]{0,3}(\d+(?:[.,]\d+)?)")


def product_of(listing: dict, pattern: str | None = None) -> str:
    """Returns the product that a listing is a variant of.

    Args:
        listing: the record; its `product_id` is what the catalogue calls it.
        pattern: regular expression whose first group (or whole match), at the start of the id, is
            the product's; without it the id is the product's own.

    Raises:
        ValueError: if there is no id, or the pattern does not fit it: a variant that is counted as
            a product of its own may end up on the other side of a split.

    >>> product_of({"product_id": "MH01-XS-Black"}, r"((?:24-)?[^-]+)")
    'MH01'
    """
    identifier = listing["product_id"]
    if not identifier:
        raise ValueError(f"product_id: must be there to find variants, got {identifier!r}.")
    if pattern is None:
        return identifier
    found = re.match(pattern, identifier)
    product = found and (found[1] if found.re.groups else found[0])
    if not product:
        raise ValueError(f"product_id: must fit the pattern {pattern!r}, got {identifier!r}.")
    return product


def collapse_variants(listings: Sequence[dict]) -> dict:
    """Makes one listing of the variants (and the parent) of one product in one language.

    Title: the words that all begin and end with. Aspects: values that differ are listed, "XS, S, M",
    letter sizes and numbers in their order, others as they first come by id. Price: the lowest, in
    the currency that most have. Description: the longest. Category: the longest path that most
    have. The order of `listings` does not matter, and one listing comes back as it is.

    Raises:
        ValueError: if there is no listing, or they are of several languages.

    >>> base = {"category": ["Hoodies"], "price": 52.0, "currency": "USD", "description": "",
    ...         "language": "en", "source": "shop"}
    >>> hoodie = collapse_variants([
    ...     base | {"title": "Chaz Hoodie-XL-Red", "product_id": "1-XL", "aspects": {"size": "XL"}},
    ...     base | {"title": "Chaz Hoodie-S-Tan", "product_id": "1-S", "aspects": {"size": "S"}}])
    >>> hoodie["title"], hoodie["aspects"], hoodie["product_id"]
    ('Chaz Hoodie', {'size': 'S, XL'}, '1')
    """
    if not listings:
        raise ValueError("listings: must be at least one to collapse, got none.")
    languages = sorted({listing["language"] for listing in listings})
    if len(languages) > 1:
        raise ValueError(f"language: must be one for all variants, got {', '.join(languages)}.")
    if len(listings) == 1:
        return dict(listings[0])
    listings = sorted(listings, key=_canonical)
    price, currency = _lowest_price(listings)
    joined = {
        "title": _common_title([listing["title"] for listing in listings]),
        "category": _usual([tuple(listing["category"]) for listing in listings]),
        "aspects": _join_aspects(listings),
        "price": price,
        "currency": currency,
        "description": max((listing["description"] for listing in listings), key=len),
        "language": languages[0],
        "product_id": _common_id([listing["product_id"] for listing in listings]),
        "source": min(listing["source"] for listing in listings),
    }
    joined["category"] = list(joined["category"])
    sellers = {listing.get("seller") for listing in listings} - {None}
    return joined | {"seller": sellers.pop()} if len(sellers) == 1 else joined


def _canonical(listing: dict) -> tuple:
    """Orders variants whatever their order was: a parent's id begins theirs, so it comes first."""
    identifier = listing["product_id"] or ""
    rest = (listing["description"], str(listing["price"]), sorted(listing["aspects"].items()))
    return identifier, listing["title"], *map(str, rest), listing["source"]


def _lowest_price(listings: list[dict]) -> tuple[float | None, str | None]:
    priced = [
        (entry["currency"], entry["price"]) for entry in listings if entry["price"] is not None
    ]
    if not priced:
        return None, None
    counts = Counter(currency for currency, _ in priced)
    currency = min(counts, key=lambda code: (-counts[code], code))
    return min(price for code, price in priced if code == currency), currency


def _usual(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    counts = Counter(path for path in paths if path) or Counter([()])
    return min(counts, key=lambda path: (-counts[path], -len(path), path))


def _common_id(identifiers: list[str | None]) -> str | None:
    """Returns what all ids begin with, up to a sign between parts; the first where there is none."""
    named = [identifier for identifier in identifiers if identifier]
    if not named or len(set(named)) == 1:
        return named[0] if named else None
    parts = [re.split(r"(?<=[-_/.])|(?=[-_/.])", identifier) for identifier in named]
    return "".join(_common_start(parts)).rstrip("-_/.") or named[0]


def _common_start(rows: list[list[str]]) -> list[str]:
    start = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        start.append(column[0])
    return start


def _common_title(titles: list[str]) -> str:
    """Joins the words that all titles begin with and those that all end with."""
    rows = [re.findall(r"\w+(?:['’.]\w+)*|\s+|[^\w\s]", title) for title in titles]
    start = _common_start(rows)
    longest = min(map(len, rows)) - len(start)
    end = _common_start([row[::-1][:longest] for row in rows])[::-1]
    title = _trim("".join(start)) + " " * bool(start) + _trim("".join(end))
    title = _trim(one_line(title))
    if sum(map(str.isalpha, title)) < 3:
        return min(titles, key=lambda text: (len(text), text))
    return title


def _trim(text: str) -> str:
    """Takes separators off a title's ends, and a bracket whose other half is gone."""
    text = text.strip(" -–—,;:/|·.")
    for opening, closing in ("()", "[]"):
        if text.count(opening) != text.count(closing):
            text = text.replace(opening, " ").replace(closing, " ")
    return one_line(text).strip(" -–—,;:/|·")


def _join_aspects(listings: list[dict]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for listing in listings:
        for name, value in listing["aspects"].items():
            values.setdefault(name, []).append(value)
    return {name: _join_values(found) for name, found in values.items()}


def _join_values(found: list[str]) -> str:
    if len(set(found)) == 1:
        return found[0]
    # A parent may name all values in one: its parts are those of its variants.
    return ", ".join(sort_values(part for value in found for part in value.split(", ")))


def sort_values(values) -> list[str]:
    """Orders distinct values: letter sizes by size, numbers by amount, others as they come.

    >>> sort_values(["XL", "S", "M", "S"]), sort_values(["100 ml", "50 ml"])
    (['S', 'M', 'XL'], ['50 ml', '100 ml'])
    >>> sort_values(["Red", "Black"])
    ['Red', 'Black']
    """
    distinct = list(dict.fromkeys(values))
    if all(value.upper() in _SIZES for value in distinct):
        return sorted(distinct, key=lambda value: (_SIZES[value.upper()], value))
    numbers = [_NUMBER.match(value) for value in distinct]
    if all(numbers):
        amounts = {value: float(number[1].replace(",", "."))
                   for value, number in zip(distinct, numbers, strict=True)}  # fmt: skip
        return sorted(distinct, key=lambda value: (amounts[value], value))
    return distinct
