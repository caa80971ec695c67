"""product_matching: two listings -> whether they show one product, yes or no.

The second listing is a variant or duplicate of the first, or its translation; or, as often, another
product of the same category, brand and wording, whose title differs in more than color, size or
numbers. Both are held out. Numbers that name a product (GTIN, model number) are not shown.
"""

from ellama_jax.corpus.splits import identifiers
from ellama_jax.corpus.wording import LABELS, line_prompt
from ellama_jax.evaluate.prompts import PROMPTS, ask
from ellama_jax.evaluate.tasks.drafts import (
    Draft,
    Draw,
    Facts,
    Unusable,
    compact,
    lines_of,
    may_be_variant,
)


def draft_match(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks whether two listings show one product; rank 0 asks about the same one."""
    twins = [
        other
        for other in facts.heldout[record["product_id"]]
        if compact(other["title"]) != compact(record["title"])
    ]
    if not twins:
        raise Unusable("no other listing of the product")
    # A twin of the same language is what a shop has to match; the least alike is the hardest.
    own = [twin for twin in twins if twin["language"] == record["language"]]
    twin = min(sorted(own or twins, key=_order), key=lambda other: _likeness(record, other))
    other = twin if draw.rank == 0 else _stranger(record, twin, facts)
    language, words = record["language"], PROMPTS[record["language"]]
    blocks = []
    for number, listing in enumerate((record, other), start=1):
        blocks.append(line_prompt(words.listing.format(number), language))
        blocks += lines_of(_without_numbers(listing), draw.seed, ("title", "category", "aspect"))
    answers = [f" {words.yes}", f" {words.no}"]
    return Draft(ask(blocks, words.match, language), answers, place=draw.rank)


def _stranger(record: dict, twin: dict, facts: Facts) -> dict:
    """Returns another product's listing, in the twin's language, that is most like the first's."""
    like = [
        one for one in facts.heldout[record["product_id"]] if one["language"] == twin["language"]
    ]
    model = min(like, key=_order)
    others = [
        other
        for other in facts.peers[twin["language"], tuple(twin["category"])]
        if other["product_id"] != record["product_id"]
        and not any(may_be_variant(other["title"], one["title"], facts.options) for one in like)
    ]
    if not others:
        raise Unusable("no other product of the category held out")
    others.sort(key=_order)
    return max(others, key=lambda o: (_brand(o) == _brand(model), _likeness(model, o)))


def _without_numbers(listing: dict) -> dict:
    """Leaves out aspects that name the product itself, whatever they are called."""
    plain = {
        name: value
        for name, value in listing["aspects"].items()
        if not identifiers({"title": "", "aspects": {"brand": "nyx", name: value}})
    }
    return {**listing, "aspects": plain}


_BRANDS = {"brand", "marke", "marque", "marca", "brandname", "hersteller", "fabricant"}


def _brand(listing: dict) -> str | None:
    """Returns the brand; None equals None, so that shops without brands are no worse off."""
    named = (compact(v) for name, v in listing["aspects"].items() if compact(name) in _BRANDS)
    return next(named, None)


def _likeness(listing: dict, other: dict) -> float:
    words, others = (set(one["title"].casefold().split()) for one in (listing, other))
    return len(words & others) / len(words | others)


def _order(listing: dict) -> tuple:
    return tuple(LABELS).index(listing["language"]), listing["title"], str(listing["price"])
