"""The project's own catalogue: SYNTHETIC listings in five languages from hand-written tables.

Owns how products are drawn from the tables and how a catalogue is split. It does not write
documents: `listings.listing_to_document` does. Brands, series and prices are invented; nothing
here describes a product that can be bought. Real marketplace listings in German, French, Italian
and Spanish are scarce in the open, and a demonstration needs facts that no base model knows.

What there is to learn (all shares are per product, drawn independently):

- a *brand* makes one type of product and belongs to one category leaf (about 9 in 10 products);
- a *brand* has two habits, such as its material and its country of origin (about 9 in 10 each);
- a *series* of a brand fixes one more aspect (about 9 in 10);
- price = the type's base price x the brand's tier x series x size x noise of 6 %, ending in .99,
  .90 or .00 after the tier;
- color and size are drawn freely, and are in the title.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence

from ellama_jax.corpus.catalogue_home_and_trail import HOME_KITCHEN_AND_SPORTS
from ellama_jax.corpus.catalogue_vocabulary import CATALOGUE_LANGUAGES, Brand, ProductType
from ellama_jax.corpus.catalogue_wear_and_sound import CLOTHING_AND_ELECTRONICS

PRODUCT_TYPES: tuple[ProductType, ...] = CLOTHING_AND_ELECTRONICS + HOME_KITCHEN_AND_SPORTS

# How often a product follows the habit of its brand or series; otherwise the value is drawn from
# all of them, so that the share seen is HABIT_FRAC + (1 - HABIT_FRAC) / number of values.
HABIT_FRAC = 0.9
DESCRIPTION_FRAC = 0.15
# A title already names color and size, so the aspect lines repeat each of them only sometimes.
REPEAT_SHOWN_FRAC = 0.4

_EURO_PER_DOLLAR = 0.92


def generate_listings(
    seed: int,
    num_products: int,
    languages: Sequence[str] = CATALOGUE_LANGUAGES,
    product_types: Sequence[str] | None = None,
) -> Iterator[dict]:
    """Draws synthetic products and yields one listing per product and language.

    Brands and series come up equally often. The first products of a larger catalogue are those of
    a smaller one with the same seed.

    Args:
        seed: of every draw; the brands' habits are in the tables and do not depend on it.
        num_products: number of products, at most `max_products(product_types)`.
        languages: which of en, de, fr, it, es to write, in this order.
        product_types: keys of the types to sell, as a shop with a narrow range; None sells all.

    Yields:
        Listing records (title, category, aspects, price, currency, description, language,
        product_id, source). All languages of a product share their product_id and their facts.

    Raises:
        ValueError: if there are not so many different products, or a language or type is unknown.

    >>> listing = next(generate_listings(seed=0, num_products=1, languages=["en"]))
    >>> listing["title"], listing["price"], listing["currency"]
    ('Candrille Galet Lamp, Beige, 60 cm', 19.99, 'USD')
    """
    unknown = [language for language in languages if language not in CATALOGUE_LANGUAGES]
    if unknown:
        raise ValueError(
            f"languages: must be among {', '.join(CATALOGUE_LANGUAGES)}, got {unknown[0]!r}."
        )
    kinds = _pick_types(product_types)
    most = max_products(product_types)
    if not 0 <= num_products <= most:
        raise ValueError(
            f"num_products: must be between 0 and {most} (beyond it titles repeat), "
            f"got {num_products}."
        )
    return _generate(seed, num_products, tuple(languages), kinds)


def _pick_types(keys: Sequence[str] | None) -> tuple[ProductType, ...]:
    known = {kind.key: kind for kind in PRODUCT_TYPES}
    unknown = [key for key in keys or () if key not in known]
    if unknown:
        raise ValueError(f"product_types: must be among {', '.join(known)}, got {unknown[0]!r}.")
    return PRODUCT_TYPES if keys is None else tuple(known[key] for key in keys)


def _generate(
    seed: int, num_products: int, languages: tuple[str, ...], kinds: Sequence[ProductType]
) -> Iterator[dict]:
    """Yields listings after `generate_listings` has checked its arguments."""
    for number, (kind, brand, series, shown) in enumerate(_product_slots(seed, kinds)):
        if number == num_products:
            return
        product = _draw_product(kind, brand, series, shown, seed, number)
        for language in languages:
            yield _write_listing(product, language)


def max_products(product_types: Sequence[str] | None = None) -> int:
    """Returns how many products exist before a series would repeat a color and size."""
    kinds = _pick_types(product_types)
    return min(_num_variants(kind) for kind in kinds) * len(_all_series(kinds))


def _num_variants(kind: ProductType) -> int:
    sizes = [len(shown.values) for shown in kind.shown_aspects]
    return sizes[0] * sizes[1]


def _all_series(kinds: Sequence[ProductType]) -> list[tuple[ProductType, Brand, str]]:
    return [
        (kind, brand, series) for kind in kinds for brand in kind.brands for series in brand.series
    ]


def _product_slots(
    seed: int, kinds: Sequence[ProductType]
) -> Iterator[tuple[ProductType, Brand, str, tuple[int, int]]]:
    """Yields (type, brand, series, (color, size)), never the same twice.

    Every round visits each series once, in a new order, so that brands are equally frequent in
    any stretch; within a series the colors and sizes follow a seeded permutation.
    """
    all_series = _all_series(kinds)
    for round_number in itertools.count():
        order = list(all_series)
        random.Random(f"round {seed} {round_number}").shuffle(order)
        for kind, brand, series in order:
            colors, sizes = (range(len(shown.values)) for shown in kind.shown_aspects)
            variants = list(itertools.product(colors, sizes))
            random.Random(f"variants {seed} {brand.name} {series}").shuffle(variants)
            yield kind, brand, series, variants[round_number % len(variants)]


def _draw_product(
    kind: ProductType, brand: Brand, series: str, shown: tuple[int, int], seed: int, number: int
) -> dict:
    """Draws what is the same in all languages: which values, which price, which title form."""
    rng = random.Random(f"product {seed} {number}")
    usual = (*brand.habits, brand.series[series])
    followed = (*kind.habit_aspects, kind.series_aspect)
    return {
        "product_id": f"catalogue-{seed}-{number:05d}",
        "kind": kind,
        "brand": brand,
        "series": series,
        "shown": shown,
        "leaf": _follow_habit(rng, brand.leaf, len(kind.leaves)),
        "values": tuple(
            _follow_habit(rng, index, len(aspect.values))
            for index, aspect in zip(usual, followed, strict=True)
        ),
        "price": _draw_price(rng, kind, brand, series, shown),
        "repeated": tuple(rng.random() < REPEAT_SHOWN_FRAC for _ in shown),
        "sentence": rng.choice(kind.sentences) if rng.random() < DESCRIPTION_FRAC else None,
        "title_form": rng.randrange(2),
    }


def _follow_habit(rng: random.Random, usual: int, num_values: int) -> int:
    other = rng.randrange(num_values)
    return usual if rng.random() < HABIT_FRAC else other


def _draw_price(
    rng: random.Random, kind: ProductType, brand: Brand, series: str, shown: tuple[int, int]
) -> float:
    """Draws a price in dollars before its ending is set."""
    later_series = list(brand.series).index(series)
    noise = rng.uniform(0.94, 1.06)
    return kind.base_price * brand.tier * (1 + 0.1 * later_series) * (1 + 0.03 * shown[1]) * noise


def _end_price(amount: float, tier: float) -> float:
    """Gives a price the ending of its tier: cheap .99, middling .90, expensive .00.

    >>> _end_price(41.3, 0.5), _end_price(41.3, 1.0), _end_price(141.3, 2.5)
    (40.99, 40.9, 141.0)
    """
    whole = max(round(amount), 1)
    if tier > 1.5:
        return float(whole)
    return round(whole - (0.01 if tier < 0.7 else 0.1), 2)


def _write_listing(product: dict, language: str) -> dict:
    """Puts one product into words."""
    kind, brand = product["kind"], product["brand"]
    column = CATALOGUE_LANGUAGES.index(language)
    shown = [
        (aspect.name[column], aspect.values[index][column])
        for aspect, index in zip(kind.shown_aspects, product["shown"], strict=True)
    ]
    followed = (*kind.habit_aspects, kind.series_aspect)
    aspects = {
        aspect.name[column]: aspect.values[index][column]
        for aspect, index in zip(followed, product["values"], strict=True)
    }
    repeated = zip(shown, product["repeated"], strict=True)
    aspects |= {name: value for (name, value), kept in repeated if kept}
    amount = product["price"] * (1 if language == "en" else _EURO_PER_DOLLAR)
    leaf = kind.leaves[product["leaf"]]
    return {
        "title": _write_title(product, [value for _, value in shown], language),
        "category": [kind.department[column], kind.group[column], leaf[column]],
        "aspects": aspects,
        "price": _end_price(amount, brand.tier),
        "currency": "USD" if language == "en" else "EUR",
        "description": product["sentence"][column] if product["sentence"] else "",
        "language": language,
        "product_id": product["product_id"],
        "source": "catalogue",
    }


def _write_title(product: dict, shown: list[str], language: str) -> str:
    """Writes a title in the language's own order: Germanic noun last, Romance noun first."""
    noun = product["kind"].noun[CATALOGUE_LANGUAGES.index(language)]
    name = f"{product['brand'].name} {product['series']}"
    head = f"{name} {noun}" if language in ("en", "de") else f"{noun} {name}"
    details = shown if product["title_form"] == 0 else shown[::-1]
    return ", ".join([head, *details])


def split_products(
    listings: Sequence[dict], heldout_frac: float, seed: int
) -> tuple[list[dict], list[dict]]:
    """Splits listings by product, so that no product is on both sides in any language.

    Products are ranked by a hash of seed and id, so the split depends neither on the order of the
    listings nor on the Python process.

    Args:
        listings: records with a `product_id`.
        heldout_frac: share of the products held out, between 0 and 1; rounded to whole products.
        seed: which products.

    Returns:
        (train, heldout), each in the order given.

    Raises:
        ValueError: if the share is out of range or a listing has no product_id.
    """
    if not 0 <= heldout_frac <= 1:
        raise ValueError(f"heldout_frac: must be between 0 and 1, got {heldout_frac}.")
    for listing in listings:
        if not listing["product_id"]:
            raise ValueError(
                f"product_id: must be given to split by product, got {listing['product_id']!r} "
                f"for the listing {listing['title']!r}."
            )
    ranked = sorted({listing["product_id"] for listing in listings}, key=_ranker(seed))
    heldout_ids = set(ranked[: round(heldout_frac * len(ranked))])
    train = [listing for listing in listings if listing["product_id"] not in heldout_ids]
    heldout = [listing for listing in listings if listing["product_id"] in heldout_ids]
    return train, heldout


def _ranker(seed: int):
    def rank(product_id: str) -> str:
        return hashlib.sha256(f"{seed} {product_id}".encode()).hexdigest()

    return rank
