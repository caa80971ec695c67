"""Owns the e-commerce tasks: items made from held-out listings and reviews of any catalogue.

The tasks themselves are in `tasks/`, their wording in `prompts`. Three are a listing's own document
(corpus/listings.py), cut before the line that is asked for, so a model is asked exactly what
continued pretraining taught it to write; the others ask a question in the listing's language. This
module draws which records are asked, balances and finishes the items, and splits them by product.
Reading listings belongs to data/, scoring to `scorecard` and `answers`.

A multiple-choice item is a dict of id, task, domain, language, context, choices, answer, metric,
product_id, and, where some wrong answers are better than others, `credits`. A generated one has
`references`, and what its metric needs, in the place of choices and answer.
"""

import collections
import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ellama_jax.core.limits import parse_json
from ellama_jax.evaluate.tasks import aspects, categories, matching, prices, ratings, titles
from ellama_jax.evaluate.tasks.drafts import (
    NUM_CHOICES,
    Draft,
    Draw,
    Facts,
    Generation,
    Unusable,
    collect_facts,
    fold,
)
from ellama_jax.evaluate.tasks.prices import PRICE_RATIO

__all__ = [
    "CHOICE_TASKS", "DOCUMENT_TASKS", "GENERATED_TASKS", "LANGUAGES", "NUM_CHOICES", "PRICE_RATIO",
    "TASKS", "Benchmark", "assign_splits", "build_benchmark", "build_items", "read_generated",
    "read_items", "summarise_items", "visible_difference",
]  # fmt: skip

LANGUAGES = ("en", "de", "fr", "it", "es")
# How often two models that are compared answer an item differently, where nothing better is known.
DISCORDANT_FRAC = 0.2


@dataclasses.dataclass(frozen=True)
class _Task:
    """How one task is made: of which records, by which maker, balanced over how many ranks."""

    make: Callable[..., Draft | Generation]
    records: str = "listings"
    num_ranks: int = NUM_CHOICES


_TASKS = {
    "aspect_prediction": _Task(aspects.draft_aspect),
    "category_prediction": _Task(categories.draft_category),
    "price_prediction": _Task(prices.draft_price),
    "price_bins": _Task(prices.draft_bins),
    "stated_aspect": _Task(aspects.draft_stated),
    "common_aspects": _Task(aspects.draft_common, "category aspects"),
    "title_from_aspects": _Task(titles.draft_title),
    "product_matching": _Task(matching.draft_match, num_ranks=2),
    "review_rating": _Task(ratings.draft_rating, "reviews"),
    "aspect_prediction_generate": _Task(aspects.generate_aspect),
    "category_prediction_generate": _Task(categories.generate_category),
    "price_prediction_generate": _Task(prices.generate_price),
    "stated_aspect_generate": _Task(aspects.generate_stated),
    "common_aspects_generate": _Task(aspects.generate_common, "categories"),
    "title_from_aspects_generate": _Task(titles.generate_title),
}
GENERATED_TASKS = tuple(name for name in _TASKS if name.endswith("_generate"))
CHOICE_TASKS = TASKS = tuple(name for name in _TASKS if name not in GENERATED_TASKS)
DOCUMENT_TASKS = ("aspect_prediction", "category_prediction", "price_prediction")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Holds items, and how many records gave none and why: {task: {reason: count}}."""

    items: list[dict]
    dropped: dict[str, dict[str, int]]


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
    heldout_reviews: Sequence[dict] = (),
    tasks: Sequence[str] = DOCUMENT_TASKS,
) -> Benchmark:
    """Builds at most `items_per_task` items of each task in each language, one a product.

    The right answer stands at each place equally often (stars and yes and no keep their order), and
    the true price at each of the four ranks. The same arguments give the same items.

    Args:
        heldout_listings: records of products that no training text mentions.
        seed: what order, wording and answers depend on.
        items_per_task: items of one task in one language.
        languages: which to build.
        train_listings: records that training sees. They lend wrong answers, and a held-out listing
            with the very title of one of them is dropped.
        heldout_reviews: records of corpus/reviews.py that no training text holds.
        tasks: names out of `TASKS` and `GENERATED_TASKS`.

    Returns:
        The items and the counts of what was dropped.

    Raises:
        ValueError: for a name that is no task.
    """
    if unknown := sorted(set(tasks) - set(_TASKS)):
        raise ValueError(f"tasks: must be among {', '.join(_TASKS)}, got {unknown[0]}.")
    seen_titles = {(r["language"], fold(r["title"])) for r in train_listings}
    items, dropped = [], {name: collections.Counter() for name in tasks}
    for language in languages:
        facts = collect_facts(language, train_listings, heldout_listings)
        for name in tasks:
            rng = random.Random(f"{seed}/{name}/{language}")
            records = _records_of(
                _TASKS[name].records, facts, heldout_listings, heldout_reviews, rng, dropped[name]
            )
            drafts = _draft_task(name, records, facts, seed, seen_titles, dropped[name])
            taken = [draft for draft, _ in zip(drafts, range(items_per_task), strict=False)]
            items += _finish_items(name, language, taken, seed)
    return Benchmark(items, {name: dict(sorted(why.items())) for name, why in dropped.items()})


def _records_of(kind, facts: Facts, heldout_listings, heldout_reviews, rng, dropped) -> list[dict]:
    """Returns what a task may ask about, in a drawn order, and counts what is none from the start."""
    if kind in ("category aspects", "categories"):
        list_units = aspects.category_aspects if kind != "categories" else aspects.categories_alone
        records, reasons = list_units(facts)
        dropped.update(reasons)
        rng.shuffle(records)
        return records
    if kind == "reviews":
        reviews = [r for r in heldout_reviews if r["language"] == facts.language]
        return ratings.interleave_ratings(reviews, rng)
    records = [r for r in heldout_listings if r["language"] == facts.language]
    rng.shuffle(records)
    return records


def _draft_task(name, records, facts, seed, seen_titles, dropped):
    """Yields (record, draft) of one task, counting in `dropped` the records that give none.

    A record that gives no item at the rank whose turn it is may give one at another: it is tried
    again, twice at most.
    """
    task = _TASKS[name]
    ranks = collections.deque(
        _balanced(len(records), task.num_ranks, random.Random(f"{seed}/{name}/ranks"))
    )
    asked = set()
    for last in (False, False, True):
        later = []
        for record in records:
            key = _key_of(record)
            if key in asked:
                dropped["product already asked"] += 1
                continue
            rng = random.Random(f"{seed}/{name}/{record['language']}/{key}")
            try:
                if (record["language"], fold(record.get("title", ""))) in seen_titles:
                    raise Unusable("title also in the training listings")
                draft = task.make(record, facts, Draw(rng, seed, ranks[0]))
            except Unusable as reason:
                later.append(record)
                if last:
                    dropped[str(reason)] += 1
                continue
            asked.add(key)
            ranks.popleft()
            yield record, draft
        records = later


def _key_of(record: dict) -> str:
    """Returns what at most one item is asked about: a product, a category's aspect, or a review."""
    if "key" in record:
        return record["key"]
    if "rating" in record:
        digest = hashlib.sha256(f"{record['title']}\n{record['text']}".encode()).hexdigest()[:12]
        return f"{record['product_id'] or 'review'}-{digest}"
    return record["product_id"]


def _finish_items(task, language, taken, seed) -> list[dict]:
    """Shuffles each draft's answers so that every place is right equally often."""
    rng = random.Random(f"{seed}/{task}/{language}/answers")
    places = _balanced(len(taken), NUM_CHOICES, rng)
    items = []
    for (record, draft), place in zip(taken, places, strict=True):
        key = _key_of(record)
        item = {
            "id": f"{task}/{key}/{language}",
            "task": task,
            "domain": "ecommerce",
            "language": language,
            "context": draft.context,
        }
        if isinstance(draft, Generation):
            item |= {"references": draft.references, "metric": draft.metric, **draft.fields}
        else:
            rng = random.Random(f"{seed}/{task}/{language}/{key}/order")
            item |= _finish_choices(draft, place, rng) | {"metric": "accuracy"}
        item["product_id"] = record.get("product_id")
        if "path" in record:
            item["group"] = " > ".join(record["path"])
        items.append(item)
    return items


def _finish_choices(draft: Draft, place: int, rng: random.Random) -> dict:
    order = list(range(len(draft.choices)))
    if draft.place is None:
        order = order[1:]
        rng.shuffle(order)
        order.insert(place, 0)
    finished = {
        "choices": [draft.choices[n] for n in order],
        "answer": place if draft.place is None else draft.place,
    }
    assert len(set(finished["choices"])) == len(order), f"a choice stands twice: {finished}"
    if draft.credits is not None:
        finished["credits"] = [draft.credits[n] for n in order]
    return finished


def _balanced(count: int, size: int, rng: random.Random) -> list[int]:
    """Returns `count` numbers below `size`, each as often as the others, shuffled.

    Whole rounds are shuffled one by one, so that any prefix is balanced too.
    """
    numbers = []
    while len(numbers) < count:
        numbers += rng.sample(range(size), size)
    return numbers[:count]


def assign_splits(items: Iterable[dict], *, validation_frac: float, seed: int) -> list[dict]:
    """Adds `split`, "validation" or "test", by product, so that choosing alpha sees no test item.

    Items without a product are grouped by their category, and general questions by themselves, over
    all languages.
    """
    if not 0 <= validation_frac < 1:
        raise ValueError(f"validation_frac: must be in [0, 1), got {validation_frac}.")

    def share(item):
        # The middle of an id is what all languages of one product or question have in common.
        middle = "/".join(item["id"].split("/")[1:-1])
        group = item["product_id"] or item.get("group") or middle
        digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    return [
        {**item, "split": "validation" if share(item) < validation_frac else "test"}
        for item in items
    ]


def visible_difference(count: int, discordant_frac: float = DISCORDANT_FRAC) -> float:
    """Returns the difference between two models' accuracies that so many shared items can show.

    That is 1.96 standard errors of the paired difference, whose variance is at most the share of
    items that just one of the two answers rightly, over the number of items.

    >>> round(visible_difference(854), 3), round(visible_difference(60), 3)
    (0.03, 0.113)
    """
    return 1.96 * math.sqrt(discordant_frac / count)


def summarise_items(items: Iterable[dict]) -> dict[str, dict[str, dict]]:
    """Says for each task and language what its items can tell.

    Returns:
        {task: {language: {n}}}, and for multiple choice `visible_difference`, `chance`, the share
        that guessing gets, `commonest`, the share that always naming the same place gets, and where
        wrong answers differ in worth `chance_credit`, the credit that guessing gets.
    """
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for item in items:
        groups[item["task"]][item["language"]].append(item)
    return {
        task: {language: _summarise(members) for language, members in by_language.items()}
        for task, by_language in groups.items()
    }


def _summarise(items: Sequence[dict]) -> dict:
    told = {"n": len(items)}
    if "choices" not in items[0]:
        return told
    told["visible_difference"] = round(visible_difference(len(items)), 3)
    places = collections.Counter(item["answer"] for item in items)
    chance = sum(1 / len(item["choices"]) for item in items) / len(items)
    commonest = max(places.values()) / len(items)
    told |= {"chance": round(chance, 4), "commonest": round(commonest, 4)}
    if "credits" in items[0]:
        credit = sum(sum(item["credits"]) / len(item["credits"]) for item in items) / len(items)
        told["chance_credit"] = round(credit, 4)
    return told


def read_items(benchmark_dir: str | Path, split: str | None = None) -> list[dict]:
    """Reads a built benchmark's multiple-choice items, all of them or those of one split.

    Raises:
        ValueError: if the directory holds no benchmark, or a line of it is broken.
    """
    return _read(benchmark_dir, "items.jsonl", split, _check_choices)


def read_generated(benchmark_dir: str | Path, split: str | None = None) -> list[dict]:
    """Reads a built benchmark's items to generate an answer to; `answers.score_answer` judges it.

    Raises:
        ValueError: if the directory holds none, or a line of it is broken.
    """
    return _read(benchmark_dir, "generated.jsonl", split, _check_references)


def _check_choices(item: dict) -> None:
    if not all(item["choices"]) or not 0 <= item["answer"] < len(item["choices"]):
        raise ValueError(f"answer {item['answer']} of the choices {item['choices']}")


def _check_references(item: dict) -> None:
    if not item["references"]:
        raise ValueError("no references")


def _read(benchmark_dir, name: str, split: str | None, check: Callable) -> list[dict]:
    path = Path(benchmark_dir) / name
    if not path.is_file():
        raise ValueError(
            f"benchmark: must be a directory made by `ellama build-benchmark`, got {benchmark_dir}."
        )
    items = []
    with path.open("rb") as lines:  # what is no UTF-8 is then the error of one line
        for number, line in enumerate(lines, start=1):
            try:
                item = parse_json(line)
                check(item)
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"{path}: line {number} must be an item, got {error}.") from error
            items.append(item)
    return [item for item in items if split is None or item["split"] == split]
