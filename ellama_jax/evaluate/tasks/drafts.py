"""What every e-commerce task shares: the draft of an item, facts about a catalogue, and fairness.

Owns what a task's maker is given (`Facts`, `Draw`) and gives back (`Draft`, `Generation`), and when
two answers could both be right. Finishing items, splits and files belong to `ecommerce` and
`benchmark`.
"""

import collections
import dataclasses
import random
from collections.abc import Iterable, Sequence

from ellama_jax.corpus import listings

NUM_CHOICES = 4
# Names of aspects that variants of one product differ in, as `compact` writes them.
_OPTION_NAMES = frozenset(
    ("color", "colour", "farbe", "couleur", "colore", "size", "größe", "grösse", "groesse")
    + ("taille", "pointure", "taglia", "misura", "numero", "talla", "tamaño", "número")
)


class Unusable(Exception):
    """Raised where a record gives no fair question; the text is the reason that is counted."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A multiple-choice question before its answers are shuffled.

    Attributes:
        context: all that stands before an answer.
        choices: each beginning with its space; the right one first, or at `place`.
        place: where the right one is, if the order of the choices is to stay.
        credits: what each choice is worth, if the wrong ones are not equally wrong.
    """

    context: str
    choices: list[str]
    place: int | None = None
    credits: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
    """A question whose answer is generated.

    Attributes:
        context: all that stands before the answer.
        references: answers that are right.
        metric: how `answers.score_answer` judges.
        fields: what else that needs.
    """

    context: str
    references: list[str]
    metric: str
    fields: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Draw:
    """What chance gives one item: a generator, the seed of a listing's lines, and a rank.

    `rank` runs evenly over the numbers below the task's `num_ranks`, so that what depends on it
    (which step the true price is, whether the answer is "not stated") is balanced.
    """

    rng: random.Random
    seed: int
    rank: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a catalogue says in one language.

    Attributes:
        language: which.
        categories: all paths.
        values: {(path or its beginning, aspect): {value: number of listings}}.
        names: {path: {aspect: number of products that state it}}.
        products: {path: number of products}.
        listings: {path or its beginning: listings}, in the order given.
        heldout: the listings held out, of every language, by product id.
        peers: the same by (language, path).
        options: words that name colors and sizes, of every language.
    """

    language: str
    categories: set[tuple[str, ...]]
    values: dict[tuple, collections.Counter]
    names: dict[tuple[str, ...], collections.Counter]
    products: collections.Counter
    listings: dict[tuple[str, ...], list[dict]]
    heldout: dict[str, list[dict]]
    peers: dict[tuple, list[dict]]
    options: set[str]


def collect_facts(
    language: str, train_listings: Sequence[dict], heldout_listings: Sequence[dict]
) -> Facts:
    """Gathers the facts of one language from all listings; a product counts once a category."""
    values = collections.defaultdict(collections.Counter)
    below = collections.defaultdict(list)
    stated, members = collections.defaultdict(set), collections.defaultdict(set)
    heldout, peers = collections.defaultdict(list), collections.defaultdict(list)
    categories, options = set(), set()
    for record in [*train_listings, *heldout_listings]:
        for name, value in record["aspects"].items():
            if compact(name) in _OPTION_NAMES:
                options.update(words_of(value))
    for record in heldout_listings:
        heldout[record["product_id"]].append(record)
        peers[record["language"], tuple(record["category"])].append(record)
    for record in [*train_listings, *heldout_listings]:
        if record["language"] != language:
            continue
        path, product = tuple(record["category"]), record["product_id"]
        for depth in range(len(path) + 1):
            below[path[:depth]].append(record)
            for name, value in record["aspects"].items():
                values[path[:depth], name][value] += 1
        if path:
            categories.add(path)
            members[path].add(product)
            for name in record["aspects"]:
                stated[path, name].add(product)
    names = collections.defaultdict(collections.Counter)
    for (path, name), products in stated.items():
        names[path][name] = len(products)
    counts = collections.Counter({path: len(products) for path, products in members.items()})
    return Facts(language, categories, values, dict(names), counts, below, heldout, peers, options)


def lines_of(record: dict, seed: int, fields: Sequence[str]) -> list[str]:
    """Returns the lines of a listing's document that show `fields`, in the document's order."""
    return [text for field, _, text in listings.document_lines(record, seed) if field in fields]


def line_of(record: dict, seed: int, field: str) -> str:
    """Returns the one line that shows a field."""
    (text,) = lines_of(record, seed, (field,))
    return text


def split_line(line: str) -> tuple[str, str]:
    """Splits a line behind its label.

    >>> split_line("Colour: dark red")
    ('Colour:', ' dark red')
    """
    label, colon, rest = line.partition(":")
    return label + colon, rest


def continue_lines(prompt: Sequence[str], lines: Sequence[str]) -> tuple[str, list[str]]:
    """Makes context and choices of a document's lines and the ways its next line could go on."""
    head = split_line(lines[0])[0]
    return "\n".join([*prompt, head]), [split_line(line)[1] for line in lines]


def shared_levels(path: Sequence[str], other: Sequence[str]) -> int:
    """Counts the levels two category paths have in common from the top."""
    depth = 0
    while depth < min(len(path), len(other)) and path[depth] == other[depth]:
        depth += 1
    return depth


def fold(text: str) -> str:
    """Writes a text as it is compared: without case and further spaces."""
    return " ".join(text.casefold().split())


def compact(text: str) -> str:
    """Writes a text by its letters and digits alone.

    >>> compact("Stainless-Steel"), compact("T shirt")
    ('stainlesssteel', 'tshirt')
    """
    return "".join(sign for sign in text.casefold() if sign.isalnum())


def is_told(value: str, text: str) -> bool:
    """Tells whether a value stands in a text, also written with other hyphens and spaces.

    >>> is_told("stainless steel", "Pan, Stainless-Steel"), is_told("steel", "Wooden pan")
    (True, False)
    """
    return fold(value) in fold(text) or bool(compact(value)) and compact(value) in compact(text)


def words_of(text: str) -> list[str]:
    """Splits a text into words of letters and digits, without case."""
    return "".join(sign if sign.isalnum() else " " for sign in text.casefold()).split()


def is_named(value: str, text: str) -> bool:
    """Tells whether a value stands in a text as whole words.

    >>> is_named("red", "Mug, Red"), is_named("red", "Shredded mug")
    (True, False)
    """
    sought = " ".join(words_of(value))
    return bool(sought) and f" {sought} " in f" {' '.join(words_of(text))} "


def may_be_variant(title: str, other: str, options: set[str]) -> bool:
    """Tells whether two titles differ in colors, sizes and numbers alone.

    Shops that list each color by itself have several products that a buyer calls one.

    >>> may_be_variant("Alder Bench, Red, 1 seat", "Alder Bench, Blue, 2 seats", {"red", "blue"})
    True
    >>> may_be_variant("Alder Bench, Red", "Alder Stool, Red", {"red"})
    False
    """
    words, others = set(words_of(title)), set(words_of(other))
    shared_stems = {word[:4] for word in words} & {word[:4] for word in others}
    return all(
        any(sign.isdigit() for sign in word)
        or word in options
        or len(word) == 1
        or word[:4] in shared_stems  # a plural
        for word in words ^ others
    )


def overlap(value: str, truth: str) -> bool:
    """Tells whether one value contains the other ("wool", "merino wool"): both could be right."""
    return is_told(value, truth) or is_told(truth, value)


def pick_values(values: Iterable[str], count: int, rng: random.Random) -> list[str]:
    """Draws values that differ in more than case; fewer than `count` if there are no more."""
    different = {fold(value): value for value in sorted(values)}
    chosen = sorted(different.values())
    return rng.sample(chosen, min(count, len(chosen)))


def wrong_values(
    record: dict, name: str, fair, facts: Facts, rng: random.Random, count: int
) -> list[str]:
    """Draws other values of an aspect, from the same category, or else from its parent.

    Args:
        record: whose category counts.
        name: the aspect.
        fair: tells whether a value may be a wrong answer.
        facts: of the record's language.
        rng: of the draw.
        count: how many.

    Raises:
        Unusable: if neither has so many.
    """
    category = tuple(record["category"])
    for depth in range(len(category), max(0, len(category) - 2), -1):
        values = facts.values[category[:depth], name]
        chosen = pick_values((value for value in values if fair(value)), count, rng)
        if len(chosen) == count:
            return chosen
    raise Unusable("too few other values of the aspect")
