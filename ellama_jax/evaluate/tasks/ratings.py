"""review_rating: a review, "Rating:" -> its stars, one to five, in their order.

The review is written as training text has it where the rating comes last (corpus/reviews.py).
"""

import collections
import random

from ellama_jax.corpus.reviews import review_to_document
from ellama_jax.corpus.wording import REVIEW_WORDS, line_prompt, one_line
from ellama_jax.evaluate.tasks.drafts import Draft, Draw, Facts, Unusable, is_named

SCALE = 5
MIN_WORDS = 3


def interleave_ratings(reviews: list[dict], rng: random.Random) -> list[dict]:
    """Orders reviews so that the ratings take turns, for most reviews praise.

    Once the rarest rating has run out the others go on, and their share grows.
    """
    shelves = collections.defaultdict(list)
    for review in sorted(reviews, key=lambda r: review_to_document(r, seed=0)):
        shelves[review["rating"]].append(review)
    for shelf in shelves.values():
        rng.shuffle(shelf)
    ordered = []
    while any(shelves.values()):
        turn = [key for key, shelf in sorted(shelves.items(), key=lambda s: str(s[0])) if shelf]
        ordered += [shelves[key].pop() for key in turn]
    return ordered


def draft_rating(review: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks for the stars; they stay in order, so the answer's place is the rating."""
    rating, words = review["rating"], REVIEW_WORDS[review["language"]]
    if rating is None:
        raise Unusable("no rating")
    if review["scale"] != SCALE or rating not in range(1, SCALE + 1):
        raise Unusable(f"rating that is not one of 1 to {SCALE}")
    text = one_line(review["text"])
    if len(text.split()) < MIN_WORDS:
        raise Unusable(f"fewer than {MIN_WORDS} words")
    stars = [words.stars.format(n, SCALE) for n in range(1, SCALE + 1)]
    shown = f"{review['title']} {text}"
    if "★" in shown or any(is_named(one, shown) for one in stars):
        raise Unusable("rating stands in the review")
    lines = [review["title"], text]
    if review["product_title"]:
        lines.append(f"{line_prompt(words.product, review['language'])} {review['product_title']}")
    lines.append(line_prompt(words.rating, review["language"]))
    place = int(rating) - 1
    credits = [1 - abs(n - place) / (SCALE - 1) for n in range(SCALE)]
    context = "\n".join(line for line in lines if line)
    return Draft(context, [f" {one}" for one in stars], place=place, credits=credits)
