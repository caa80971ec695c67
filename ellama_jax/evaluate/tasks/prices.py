"""Tasks about prices, written as the language writes them.

price_prediction    all of a listing but price and description, "Price:" -> the price, against
                    three steps of a factor 2.5, the true one at a random rank
price_bins          the same listing, in which price range? -> one of four neighbouring ranges
"""

import bisect

from ellama_jax.corpus import listings
from ellama_jax.corpus.prices import currency_decimals
from ellama_jax.evaluate.prompts import PROMPTS, ask
from ellama_jax.evaluate.tasks.drafts import (
    NUM_CHOICES,
    Draft,
    Draw,
    Facts,
    Generation,
    Unusable,
    continue_lines,
    line_of,
    lines_of,
    split_line,
)

# Each wrong price is this factor, or a power of it, from the true one: far enough apart to be told
# by what the product is, close enough not to be silly.
PRICE_RATIO = 2.5
# Where price ranges begin and end: 1, 2, 5, 10, ...
_EDGES = [round(head * 10.0**power, 2) for power in range(-2, 12) for head in (1, 2, 5)]


def draft_price(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks for the price."""
    price = _price_of(record)
    steps = (step - draw.rank for step in range(NUM_CHOICES) if step != draw.rank)
    prices = [price, *(price_step(price, step) for step in steps)]
    lines = [line_of({**record, "price": value}, draw.seed, "price") for value in prices]
    if len(set(lines)) < NUM_CHOICES or min(prices) <= 0:
        raise Unusable("price too small to vary")
    return Draft(*continue_lines(_prompt(record, draw), lines))


def generate_price(record: dict, facts: Facts, draw: Draw) -> Generation:
    """Asks for the price without choices."""
    price, currency = _price_of(record), record["currency"]
    prompt = _prompt(record, draw)
    context, (choice,) = continue_lines(prompt, [line_of(record, draw.seed, "price")])
    written = choice.strip()
    marks = sorted({currency, "".join(sign for sign in written if _is_mark(sign)).strip()} - {""})
    return Generation(context, [written], "price", {"price": price, "marks": marks})


def draft_bins(record: dict, facts: Facts, draw: Draw) -> Draft:
    """Asks for the range the price is in; it is each of the four ranges equally often."""
    price, currency, language = _price_of(record), record["currency"], record["language"]
    first = bisect.bisect_right(_EDGES, price) - 1 - draw.rank
    least = 10.0 ** -currency_decimals(currency)
    if first < 0 or first + NUM_CHOICES >= len(_EDGES) or _EDGES[first] < least:
        raise Unusable("price too small to vary")
    edges = _EDGES[first : first + NUM_CHOICES + 1]
    amounts = [listings.format_price(edge, currency, language) for edge in edges]
    pattern = PROMPTS[language].price_range
    ranges = [f" {pattern.format(*amounts[n : n + 2])}" for n in range(NUM_CHOICES)]
    if len(set(ranges)) < NUM_CHOICES:
        raise Unusable("price too small to vary")
    context = ask(_prompt(record, draw), PROMPTS[language].bins, language)
    return Draft(context, [ranges[draw.rank], *(r for r in ranges if r != ranges[draw.rank])])


def price_step(price: float, steps: int) -> float:
    """Moves a price by powers of `PRICE_RATIO`, keeping its cents: an ending must not tell it.

    >>> [price_step(49.99, steps) for steps in (-1, 0, 1)]
    [19.99, 49.99, 124.99]
    """
    cents = round(price * 100) % 100
    return int(price * PRICE_RATIO**steps) + cents / 100


def _price_of(record: dict) -> float:
    if record["price"] is None or record["price"] <= 0:
        raise Unusable("no price")
    return record["price"]


def _prompt(record: dict, draw: Draw) -> list[str]:
    """Returns what is shown of a listing, if its price does not stand there."""
    prompt = lines_of(record, draw.seed, ("title", "category", "aspect"))
    if split_line(line_of(record, draw.seed, "price"))[1].strip() in "\n".join(prompt):
        raise Unusable("price stands in the prompt")
    return prompt


def _is_mark(sign: str) -> bool:
    return not (sign.isdigit() or sign.isspace() or sign in ".,'’")
