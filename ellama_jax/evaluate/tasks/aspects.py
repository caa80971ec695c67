"""Tasks about aspects: a value that is not told, one that is, and which aspects a category has.

aspect_prediction    title, category, other aspects, "Material:" -> the value, against three
                     other values of that aspect in the same category
stated_aspect        title, category, what does it state for "Color"? -> a value that stands
                     there, or "not stated"
common_aspects       category, what is stated most often? -> an aspect's name, or several
"""

import collections
import re

from ellama_jax.corpus.wording import LABELS, line_prompt
from ellama_jax.evaluate.prompts import PROMPTS, ask
from ellama_jax.evaluate.tasks.drafts import (
    NUM_CHOICES,
    Draft,
    Draw,
    Facts,
    Generation,
    Unusable,
    continue_lines,
    fold,
    is_named,
    is_told,
    line_of,
    lines_of,
    overlap,
    shared_levels,
    wrong_values,
)

# A category of fewer products says little about what its listings state.
MIN_PRODUCTS = 5
# An aspect is common if half of a category's products state it; a wrong answer is stated by a third
# as many at most.
COMMON_FRAC, WRONG_FRAC = 1 / 2, 1 / 3
MAX_LISTED = 5


def draft_aspect(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks for one aspect's value, which nothing that is shown tells."""
    names = sorted(record["aspects"])
    draw.rng.shuffle(names)
    if not names:
        raise Unusable("no aspects")
    problems = []
    for name in names:
        try:
            return _draft_one(record, name, facts, draw)
        except Unusable as reason:
            problems.append(str(reason))
    raise Unusable("; ".join(sorted(set(problems))))


def _draft_one(record, name, facts, draw) -> Draft:
    truth = record["aspects"][name]
    rest = {other: value for other, value in record["aspects"].items() if other != name}
    prompt = lines_of({**record, "aspects": rest}, draw.seed, ("title", "category", "aspect"))
    told = "\n".join(prompt)
    if is_told(truth, told):
        raise Unusable("value stands in the prompt")

    def fair(value):
        return not is_told(value, told) and not overlap(value, truth)

    wrong = wrong_values(record, name, fair, facts, draw.rng, NUM_CHOICES - 1)
    asked = ({**record, "aspects": {name: value}} for value in (truth, *wrong))
    return Draft(*continue_lines(prompt, [line_of(one, draw.seed, "aspect") for one in asked]))


def generate_aspect(record: dict, facts: Facts, draw: Draw) -> Generation:
    """Asks for the value that `draft_aspect` asks for, without choices."""
    draft = draft_aspect(record, facts, draw)
    return Generation(draft.context, [draft.choices[0].strip()], "value")


def draft_stated(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks what title and category state for an aspect; one in four times they state nothing."""
    prompt = lines_of(record, draw.seed, ("title", "category"))
    nothing = PROMPTS[record["language"]].not_stated
    name, truth = (_unstated if draw.rank == 0 else _stated)(record, facts, draw)

    def fair(value):
        return not is_told(value, _shown(record)) and not (truth and overlap(value, truth))

    count = NUM_CHOICES - (1 if truth is None else 2)
    wrong = wrong_values(record, name, fair, facts, draw.rng, count)
    if nothing in map(fold, (truth or "", *wrong)):
        raise Unusable('a value reads like "not stated"')
    answers = [nothing, *wrong] if truth is None else [truth, nothing, *wrong]
    question = PROMPTS[record["language"]].stated.format(name)
    return Draft(ask(prompt, question, record["language"]), [f" {text}" for text in answers])


def generate_stated(record: dict, facts: Facts, draw: Draw) -> Generation:
    """Asks what `draft_stated` asks, without choices."""
    draft = draft_stated(record, facts, draw)
    return Generation(draft.context, [draft.choices[0].strip()], "value")


def _shown(record: dict) -> str:
    return "\n".join([record["title"], *record["category"]])


def _stated(record: dict, facts: Facts, draw: Draw) -> tuple[str, str]:
    """Picks an aspect of which one value stands in the title, and no other.

    Best one that the listing's own aspects confirm; else a value that recurs in the category, of an
    aspect that the listing leaves to its title.
    """
    path, own = tuple(record["category"]), record["aspects"]
    confirmed, likely = [], []
    for name, values in sorted(_named_in_title(record, facts).items()):
        truth = max(values, key=len)
        if all(is_named(value, truth) for value in values):
            if own.get(name) == truth:
                confirmed.append((name, truth))
            elif (
                name not in own and facts.values[path, name][truth] > 1 and _is_closed(name, facts)
            ):
                likely.append((name, truth))
    if not confirmed and not likely:
        raise Unusable("title states no aspect for certain")
    return draw.rng.choice(confirmed or likely)


def _named_in_title(record: dict, facts: Facts) -> dict[str, list[str]]:
    """Maps the category's aspects to those of their values that stand in the title."""
    path = tuple(record["category"])
    found = {}
    for name in facts.names.get(path, ()):
        # A bare number or letter in a title may mean anything.
        values = [
            value
            for value in sorted(facts.values[path, name])
            if len(value) > 1 and not value.isdigit() and is_named(value, record["title"])
        ]
        if values:
            found[name] = values
    # Where one word is the value of two aspects, the title does not say whose it is.
    owners = collections.Counter(value for values in found.values() for value in set(values))
    return {
        name: values
        for name, values in found.items()
        if all(owners[value] == 1 for value in values)
    }


def _unstated(record: dict, facts: Facts, draw: Draw) -> tuple[str, None]:
    """Picks a common aspect of the category of which neither its name nor the title says anything."""
    path, shown = tuple(record["category"]), _shown(record)
    counts, total = facts.names.get(path, {}), facts.products[path]
    silent = [
        name
        for name in sorted(counts)
        if counts[name] * 10 >= total
        and _is_closed(name, facts)
        and not any(_may_tell(shown, value) for value in facts.values[(), name])
    ]
    if not silent:
        raise Unusable("title or category may state every common aspect")
    return draw.rng.choice(silent), None


def _is_closed(name: str, facts: Facts) -> bool:
    """Tells whether an aspect's values recur, so that a new one in a title is unlikely.

    Of a brand or a model number nobody could list all that a title may hold.
    """
    stating = sum(names[name] for names in facts.names.values())
    return 2 * len(facts.values[(), name]) <= stating


def _may_tell(title: str, value: str) -> bool:
    """Tells whether a title holds a value, or another number of its unit.

    >>> _may_tell("Power bank, 6500 mAh", "5000 mAh"), _may_tell("Oak bench, 2 m", "5 kg")
    (True, False)
    """
    if is_told(value, title):
        return True
    unit = re.sub(r"[\d.,]+", " ", value.casefold()).split()
    if unit == value.casefold().split():
        return False
    return bool(re.search(r"\d\W?" + r"\W*".join(map(re.escape, unit)), title.casefold()))


def category_aspects(facts: Facts) -> tuple[list[dict], collections.Counter]:
    """Lists (category, common aspect) to ask for, and counts why categories give none."""
    units, dropped = [], collections.Counter()
    for path in sorted(facts.categories):
        total = facts.products[path]
        if total < MIN_PRODUCTS:
            dropped[f"category of fewer than {MIN_PRODUCTS} products"] += 1
            continue
        counts = facts.names.get(path, collections.Counter())
        ranked = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_LISTED]
        common = [name for name in ranked if counts[name] >= COMMON_FRAC * total]
        if not common:
            dropped["no aspect that half of the category's products state"] += 1
        units += [_category_unit(path, facts, name) for name in common]
    return units, dropped


def categories_alone(facts: Facts) -> tuple[list[dict], collections.Counter]:
    """Lists categories whose aspects can be listed, and counts those that are too small."""
    large = [path for path in sorted(facts.categories) if facts.products[path] >= MIN_PRODUCTS]
    small = len(facts.categories) - len(large)
    dropped = {f"category of fewer than {MIN_PRODUCTS} products": small} if small else {}
    return [_category_unit(path, facts) for path in large], collections.Counter(dropped)


def _category_unit(path, facts, name=None) -> dict:
    key = " > ".join(path) if name is None else f"{' > '.join(path)} | {name}"
    return {"key": key.replace("/", "|"), "path": path, "name": name, "language": facts.language}


def _category_line(unit: dict) -> str:
    label = line_prompt(LABELS[unit["language"]]["category"], unit["language"])
    return f"{label} {' > '.join(unit['path'])}"


def draft_common(unit: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks which aspect a category's listings state most often, against those of its relatives."""
    path, truth = unit["path"], unit["name"]
    here = facts.names[path]
    nearness = collections.Counter()
    for other, names in facts.names.items():
        for name, count in names.items():
            nearness[name] += count * 10 ** shared_levels(path, other)
    wrong = sorted(
        (name for name in nearness
         if here[name] <= WRONG_FRAC * here[truth] and not overlap(name, truth)),
        key=lambda name: (-nearness[name], name),
    )[: 2 * (NUM_CHOICES - 1)]  # fmt: skip
    if len(wrong) < NUM_CHOICES - 1:
        raise Unusable("too few aspects that are rare in the category")
    answers = [truth, *draw.rng.sample(wrong, NUM_CHOICES - 1)]
    if len({fold(name) for name in answers}) < NUM_CHOICES:
        raise Unusable("aspects that differ in case only")
    context = ask([_category_line(unit)], PROMPTS[unit["language"]].common, unit["language"])
    return Draft(context, [f" {name}" for name in answers])


def generate_common(unit: dict, facts: Facts, draw: Draw) -> Generation:
    """Asks for the k most common aspects; all that are as common as the k-th are right."""
    counts = facts.names.get(unit["path"], collections.Counter())
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    size = min(MAX_LISTED, len(ranked))
    if size < 2:
        raise Unusable("fewer than two aspects")
    right = [name for name in ranked if counts[name] >= counts[ranked[size - 1]]]
    question = PROMPTS[unit["language"]].common_list.format(size)
    context = ask([_category_line(unit)], question, unit["language"])
    return Generation(context, right, "list", {"k": size})
