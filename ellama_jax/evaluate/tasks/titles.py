"""title_from_aspects: category and aspects -> the title, against titles of the same category.

A wrong title is that of a listing that says something else for at least half of the aspects that
both have, and differs from the right one in more than color, size and numbers: nothing could tell
it from the right one otherwise.
"""

import collections

from ellama_jax.evaluate.prompts import PROMPTS, ask
from ellama_jax.evaluate.tasks.drafts import (
    NUM_CHOICES,
    Draft,
    Draw,
    Facts,
    Generation,
    Unusable,
    compact,
    lines_of,
    may_be_variant,
    overlap,
)

MIN_ASPECTS = 2
# Of a large category so many titles are compared with the right one.
MAX_COMPARED = 500


def draft_title(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks for the title; other products' titles that share most words with it are wrong."""
    context = _context(record, draw)
    path, truth = tuple(record["category"]), record["title"]
    for depth in range(len(path), max(-1, len(path) - 2), -1):
        titles = _wrong_titles(record, facts.listings[path[:depth]], facts.options)
        if len(titles) >= NUM_CHOICES - 1:
            titles = draw.rng.sample(titles, min(len(titles), MAX_COMPARED))
            titles.sort(key=lambda title: -_likeness(title, truth))
            near = draw.rng.sample(titles[: 2 * NUM_CHOICES], NUM_CHOICES - 1)
            return Draft(context, [f" {title}" for title in (truth, *near)])
    raise Unusable("too few other titles in the category")


def generate_title(record: dict, facts: Facts, draw: Draw) -> Generation:
    """Asks for the title without choices."""
    return Generation(_context(record, draw), [record["title"]], "title")


def _context(record: dict, draw: Draw) -> str:
    if len(record["aspects"]) < MIN_ASPECTS:
        raise Unusable(f"fewer than {MIN_ASPECTS} aspects")
    lines = lines_of(record, draw.seed, ("category", "aspect"))
    if compact(record["title"]) in compact("\n".join(lines)):
        raise Unusable("title stands in the prompt")
    return ask(lines, PROMPTS[record["language"]].title, record["language"])


def _wrong_titles(record: dict, others: list[dict], options: set[str]) -> list[str]:
    """Returns titles that no listing has whose aspects could be the record's."""
    owners = collections.defaultdict(list)
    for other in others:
        owners[compact(other["title"])].append(other)
    return sorted(
        listings[0]["title"]
        for listings in owners.values()
        if not overlap(listings[0]["title"], record["title"])
        and not may_be_variant(listings[0]["title"], record["title"], options)
        and all(_contradicts(other, record) for other in listings)
    )


def _contradicts(other: dict, record: dict) -> bool:
    """Tells whether two listings of different products say different things for most aspects."""
    shared = other["aspects"].keys() & record["aspects"].keys()
    differ = sum(not overlap(other["aspects"][n], record["aspects"][n]) for n in shared)
    return (
        other["product_id"] != record["product_id"] and bool(shared) and 2 * differ >= len(shared)
    )


def _likeness(title: str, truth: str) -> float:
    """Returns the share of words that two titles have in common (Jaccard)."""
    words, others = (set(text.casefold().split()) for text in (title, truth))
    return len(words & others) / len(words | others)
