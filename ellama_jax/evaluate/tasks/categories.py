"""category_prediction: title, "Category:" -> the path, against three of its nearest relatives.

A wrong path that begins like the right one is worth the share of levels they have in common.
"""

from ellama_jax.evaluate.tasks.drafts import (
    NUM_CHOICES,
    Draft,
    Draw,
    Facts,
    Generation,
    Unusable,
    continue_lines,
    fold,
    line_of,
    lines_of,
    shared_levels,
)


def draft_category(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks for the category; siblings come first as wrong answers, ties are drawn."""
    path = tuple(record["category"])
    if not path:
        raise Unusable("no category")
    others = sorted(other for other in facts.categories if _written(other) != _written(path))
    draw.rng.shuffle(others)
    different = {_written(other): other for other in others}
    if len(different) < NUM_CHOICES - 1:
        raise Unusable("too few other categories")
    # An ancestor is right too, if not in full: it comes last.
    nearest = sorted(
        different.values(),
        key=lambda other: (path[: len(other)] == other, -shared_levels(path, other)),
    )[: NUM_CHOICES - 1]
    paths = [path, *nearest]
    lines = [line_of({**record, "category": list(p)}, draw.seed, "category") for p in paths]
    context, choices = continue_lines(lines_of(record, draw.seed, ("title",)), lines)
    return Draft(context, choices, credits=[shared_levels(path, p) / len(path) for p in paths])


def generate_category(record: dict, facts: Facts, draw: Draw) -> Generation:
    """Asks for the path without choices."""
    if not record["category"]:
        raise Unusable("no category")
    line = line_of(record, draw.seed, "category")
    context, (choice,) = continue_lines(lines_of(record, draw.seed, ("title",)), [line])
    return Generation(context, [choice.strip()], "category")


def _written(path: tuple[str, ...]) -> str:
    return fold(" > ".join(path))
