"""Owns the e-commerce tasks: multiple-choice items made from held-out listings of any catalogue.

Every prompt is a listing's own document (data/listings.py), cut before the line that is asked for,
so a model is asked exactly what continued pretraining taught it to write. Reading listings belongs
to data/, scoring the items to `scorecard`.

    aspect_prediction    title, category, other aspects, "Material:" -> the value, against three
                         other values of that aspect in the same category
    category_prediction  title, "Category:" -> the path, against three of its nearest relatives
    price_prediction     all of it but price and description, "Price:" -> the price, against three
                         steps of a factor 2.5, the true one at a random rank
"""

import collections
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ellama_jax.data import listings

TASKS = ("aspect_prediction", "category_prediction", "price_prediction")
LANGUAGES = ("en", "de", "fr", "it", "es")
NUM_CHOICES = 4
# Each wrong price is this factor, or a power of it, from the true one: far enough apart to be told
# by what the product is, close enough not to be silly.
PRICE_RATIO = 2.5


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Holds items, and how many listings gave none and why: {task: {reason: count}}."""

    items: list[dict]
    dropped: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class _Draft:
    """One question before its answers are shuffled: documents' lines, the right one first."""

    prompt: list[str]
    lines: list[str]


class _Unusable(Exception):
    """Raised where a listing gives no fair question; the text is the reason that is counted."""


def build_items(
    heldout_listings: Sequence[dict],
    *,
    seed: int,
    items_per_task: int,
    languages: Sequence[str] = LANGUAGES,
    train_listings: Sequence[dict] = (),
) -> list[dict]:
    """Builds the items alone; see `build_benchmark`."""
    return build_benchmark(
        heldout_listings,
        seed=seed,
        items_per_task=items_per_task,
        languages=languages,
        train_listings=train_listings,
    ).items


def build_benchmark(
    heldout_listings: Sequence[dict],
    *,
    seed: int,
    items_per_task: int,
    languages: Sequence[str] = LANGUAGES,
    train_listings: Sequence[dict] = (),
) -> Benchmark:
    """Builds at most `items_per_task` items of each task in each language, one a product.

    The right answer stands at each of the four places equally often, and the true price at each of
    the four ranks. The same arguments give the same items.

    Args:
        heldout_listings: records of products that no training text mentions.
        seed: what order, wording and answers depend on.
        items_per_task: items of one task in one language.
        languages: which to build.
        train_listings: records that training sees. They lend wrong answers, and a held-out listing
            with the very title of one of them is dropped.

    Returns:
        Items (dicts of id, task, domain, language, context, choices, answer, metric, product_id)
        and the counts of what was dropped.
    """
    everything = [*train_listings, *heldout_listings]
    seen_titles = {(r["language"], _fold(r["title"])) for r in train_listings}
    items, dropped = [], {task: collections.Counter() for task in TASKS}
    for language in languages:
        facts = _collect_facts([r for r in everything if r["language"] == language])
        for task in TASKS:
            records = [r for r in heldout_listings if r["language"] == language]
            random.Random(f"{seed}/{task}/{language}").shuffle(records)
            drafts = _draft_task(task, records, facts, seed, seen_titles, dropped[task])
            taken = [draft for draft, _ in zip(drafts, range(items_per_task), strict=False)]
            items += _finish_items(task, language, taken, seed)
    counts = {task: dict(sorted(reasons.items())) for task, reasons in dropped.items()}
    return Benchmark(items, counts)


def assign_splits(items: Iterable[dict], *, validation_frac: float, seed: int) -> list[dict]:
    """Adds `split`, "validation" or "test", by product, so that choosing alpha sees no test item.

    Items without a product (general questions) are grouped by their question, over all languages.
    """
    if not 0 <= validation_frac < 1:
        raise ValueError(f"validation_frac: must be in [0, 1), got {validation_frac}.")

    def share(item):
        # The middle of an id is what all languages of one product or question have in common.
        group = item["product_id"] or "/".join(item["id"].split("/")[1:-1])
        digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    return [
        {**item, "split": "validation" if share(item) < validation_frac else "test"}
        for item in items
    ]


def _draft_task(task, records, facts, seed, seen_titles, dropped):
    """Yields (record, draft) of one task, counting in `dropped` the listings that give none."""
    make_draft: Callable = _DRAFTS[task]
    products = set()
    rng = random.Random(f"{seed}/{task}/ranks")
    ranks = collections.deque(_balanced(len(records), rng))
    for record in records:
        if record["product_id"] in products:
            dropped["product already asked"] += 1
            continue
        rng = random.Random(f"{seed}/{task}/{record['language']}/{record['product_id']}")
        try:
            if (record["language"], _fold(record["title"])) in seen_titles:
                raise _Unusable("title also in the training listings")
            draft = make_draft(record, facts, rng, seed, ranks[0])
        except _Unusable as reason:
            dropped[str(reason)] += 1
            continue
        products.add(record["product_id"])
        ranks.popleft()
        yield record, draft


def _draft_aspect(record, facts, rng, seed, rank) -> _Draft:
    names = sorted(record["aspects"])
    rng.shuffle(names)
    if not names:
        raise _Unusable("no aspects")
    problems = []
    for name in names:
        try:
            return _draft_one_aspect(record, name, facts, rng, seed)
        except _Unusable as reason:
            problems.append(str(reason))
    raise _Unusable("; ".join(sorted(set(problems))))


def _draft_one_aspect(record, name, facts, rng, seed) -> _Draft:
    truth = record["aspects"][name]
    rest = {other: value for other, value in record["aspects"].items() if other != name}
    prompt = _lines({**record, "aspects": rest}, seed, ("title", "category", "aspect"))
    told = _fold("\n".join(prompt))
    if _fold(truth) in told:
        raise _Unusable("value stands in the prompt")
    category = tuple(record["category"])
    # The same category first; a small one may borrow from its parent, never from further away.
    for depth in range(len(category), max(0, len(category) - 2), -1):
        values = facts["aspects"][category[:depth], name]
        fair = sorted(v for v in values if _fold(v) not in told and not _overlap(v, truth))
        if len(fair) >= NUM_CHOICES - 1:
            wrong = rng.sample(fair, NUM_CHOICES - 1)
            asked = ({**record, "aspects": {name: value}} for value in (truth, *wrong))
            return _Draft(prompt, [_line(variant, seed, "aspect") for variant in asked])
    raise _Unusable("too few other values of the aspect")


def _draft_category(record, facts, rng, seed, rank) -> _Draft:
    path = tuple(record["category"])
    if not path:
        raise _Unusable("no category")
    others = sorted(facts["categories"] - {path})
    if len(others) < NUM_CHOICES - 1:
        raise _Unusable("too few other categories")
    rng.shuffle(others)
    nearest = sorted(others, key=lambda other: -_shared_depth(path, other))[: NUM_CHOICES - 1]
    lines = [_line({**record, "category": list(p)}, seed, "category") for p in (path, *nearest)]
    return _Draft(_lines(record, seed, ("title",)), lines)


def _draft_price(record, facts, rng, seed, rank) -> _Draft:
    price = record["price"]
    if price is None or price <= 0:
        raise _Unusable("no price")
    steps = (step - rank for step in range(NUM_CHOICES) if step != rank)
    prices = [price, *(_price_step(price, step) for step in steps)]
    lines = [_line({**record, "price": value}, seed, "price") for value in prices]
    if len(set(lines)) < NUM_CHOICES or min(prices) <= 0:
        raise _Unusable("price too small to vary")
    prompt = _lines(record, seed, ("title", "category", "aspect"))
    if _split_line(lines[0])[1].strip() in "\n".join(prompt):
        raise _Unusable("price stands in the prompt")
    return _Draft(prompt, lines)


_DRAFTS = {
    "aspect_prediction": _draft_aspect,
    "category_prediction": _draft_category,
    "price_prediction": _draft_price,
}


def _price_step(price: float, steps: int) -> float:
    """Moves a price by powers of `PRICE_RATIO`, keeping its cents: an ending must not tell it.

    >>> [_price_step(49.99, steps) for steps in (-1, 0, 1)]
    [19.99, 49.99, 124.99]
    """
    cents = round(price * 100) % 100
    return int(price * PRICE_RATIO**steps) + cents / 100


def _collect_facts(records: Iterable[dict]) -> dict:
    """Gathers, for one language, all category paths and each aspect's values below each path."""
    aspects = collections.defaultdict(set)
    categories = set()
    for record in records:
        path = tuple(record["category"])
        if path:
            categories.add(path)
        for name, value in record["aspects"].items():
            for depth in range(len(path) + 1):
                aspects[path[:depth], name].add(value)
    return {"aspects": aspects, "categories": categories}


def _finish_items(task, language, taken, seed) -> list[dict]:
    """Shuffles each draft's answers so that every place is right equally often."""
    places = _balanced(len(taken), random.Random(f"{seed}/{task}/{language}/answers"))
    items = []
    for (record, draft), place in zip(taken, places, strict=True):
        head, truth = _split_line(draft.lines[0])
        choices = [_split_line(line)[1] for line in draft.lines[1:]]
        rng = random.Random(f"{seed}/{task}/{language}/{record['product_id']}/order")
        rng.shuffle(choices)
        choices.insert(place, truth)
        items.append({
            "id": f"{task}/{record['product_id']}/{language}",
            "task": task,
            "domain": "ecommerce",
            "language": language,
            "context": "\n".join([*draft.prompt, head]),
            "choices": choices,
            "answer": place,
            "metric": "accuracy",
            "product_id": record["product_id"],
        })  # fmt: skip
    return items


def _balanced(count: int, rng: random.Random) -> list[int]:
    """Returns `count` numbers below NUM_CHOICES, each as often as the others, shuffled.

    Whole rounds are shuffled one by one, so that any prefix is balanced too.
    """
    numbers = []
    while len(numbers) < count:
        numbers += rng.sample(range(NUM_CHOICES), NUM_CHOICES)
    return numbers[:count]


def _lines(record: dict, seed: int, fields: Sequence[str]) -> list[str]:
    """Returns the lines of a listing's document that show `fields`, in the document's order."""
    lines = listings.document_lines(record, seed)
    return [text for field, _, text in lines if field in fields]


def _line(record: dict, seed: int, field: str) -> str:
    (text,) = _lines(record, seed, (field,))
    return text


def _split_line(line: str) -> tuple[str, str]:
    """Splits a line behind its label: "Colour: dark red" -> ("Colour:", " dark red")."""
    label, colon, rest = line.partition(":")
    return label + colon, rest


def _shared_depth(path: Sequence[str], other: Sequence[str]) -> int:
    """Counts the levels two category paths have in common from the top."""
    depth = 0
    while depth < min(len(path), len(other)) and path[depth] == other[depth]:
        depth += 1
    return depth


def _overlap(value: str, truth: str) -> bool:
    """Tells whether one value contains the other ("wool", "merino wool"): both could be right."""
    value, truth = _fold(value), _fold(truth)
    return value in truth or truth in value


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def read_items(benchmark_dir: str | Path, split: str | None = None) -> list[dict]:
    """Reads a built benchmark's items, all of them or those of one split.

    Raises:
        ValueError: if the directory holds no benchmark, or a line of it is broken.
    """
    path = Path(benchmark_dir) / "items.jsonl"
    if not path.is_file():
        raise ValueError(
            f"benchmark: must be a directory made by `ellama build-benchmark`, got {benchmark_dir}."
        )
    items = []
    with path.open("rb") as lines:  # what is no UTF-8 is then the error of one line
        for number, line in enumerate(lines, start=1):
            try:
                item = json.loads(line)
                item["choices"][item["answer"]]
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"{path}: line {number} must be an item, got {error}.") from error
            items.append(item)
    return [item for item in items if split is None or item["split"] == split]
