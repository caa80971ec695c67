"""Splits by product: which listings show the same product, and on which side it falls.

Owns what identifies a product across languages and sellers, how listings that share an identifier
become one group, and the side of a group. It reads no listings and knows nothing of texts that are
merely alike: `duplicates` does.

Listing -> `identifiers` -> `group_products` in memory, or `propagate` in rounds on a cluster ->
label of the group -> `split_of`. A label is the smallest product id of the group, so a group of one
product is labelled by it.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from ellama_jax.corpus.privacy import plain_signs

# An identifier of more products is no identifier: a placeholder, a brand's catch-all number.
MAX_PRODUCTS_PER_IDENTIFIER = 50
# A parent is named on purpose, and a shirt may have hundreds of sizes and colors.
MAX_PRODUCTS_PER_PARENT = 5000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names of fields and aspects, as `_compact` writes them; a further language is further words.
_GTIN_NAMES = _words(
    "gtin gtin8 gtin12 gtin13 gtin14 ean ean8 ean13 eancode upc upca upccode jan isbn isbn13 "
    "barcode strichcode codebarres codiceabarre codigodebarras"
)
_NUMBER_NAMES = _words(
    "mpn manufacturerpartnumber partnumber model modelnumber modelno manufacturermodelnumber "
    "herstellernummer herstellerartikelnummer modell modellnummer teilenummer "
    "modele numerodemodele referencefabricant numerodepiecefabricant referencefabricante "
    "modello numeromodello numerodimodello codiceproduttore "
    "modelo numerodemodelo numerodepieza numerodepiezadelfabricante"
)
_BRAND_NAMES = _words(
    "brand brandname manufacturer marke hersteller marque fabricant "
    "marca produttore fabbricante fabricante"
)
_SELLER_ID_NAMES = _words("asin epid catalogid")
_PARENT_NAMES = _words("parentid parentsku parentasin itemgroupid variantof vaterartikel")
_PLACEHOLDERS = _words(
    "na nan none null nil unknown notapplicable doesnotapply notavailable tbd generic unbranded "
    "various other default test nichtzutreffend unbekannt keine keineangabe ohne "
    "nonapplicable aucun inconnu sansmarque nonapplicabile nondisponibile nessuno "
    "sconosciuto noaplica noaplicable ninguno desconocido sinmarca"
)
# A size, not a model: numbers with units ("256GB", "12X3CM"), or with a word ("500-COUNT").
_UNITS = (
    "mm|cm|dm|m|km|in|ft|yd|g|kg|mg|lb|lbs|oz|ml|cl|dl|l|qt|kb|mb|gb|tb|v|kv|a|ma|mah|ah|w|kw|wh|"
    "kwh|hz|khz|mhz|ghz|k|p|i|mp|lm|nm|c|f|pc|pcs|pk|st|x|er|th|nd|rd|yr|y|yo|iu|mcg|d|h|t|ct|s|eu|us|uk"
)
_MEASURE = re.compile(rf"(?:x?\d+(?:{_UNITS})?)+|\d+[a-z]{{3,}}")
_CODE = re.compile(r"(?<![^\W_])[A-Z0-9]+(?:-[A-Z0-9]+)*(?![^\W_])")
# What looks like a code and names a property of thousands of products.
_STANDARD = re.compile(
    r"(?:usb|uv|spf|upf|ip|ipx|din|en|iso|iec|rj|ddr|cat|cr|lr|win|wifi|hdmi|pcie|rtx|gtx|pa|size|"
    r"type|vol|no|pack|model)\d{1,5}(?:pa|[a-z])?"
)
_MIN_CODE_CHARS = 5


def split_of(group: str, heldout_frac: float, seed: int) -> str:
    """Returns the side of a group of products: "train" or "heldout".

    A hash of seed and label decides, so the side depends on nothing else: not on the order, the
    process, or which other products there are. The share held out is met on average;
    `catalogue.split_products` ranks by the same hash to meet it exactly.

    Args:
        group: label from `group_products` or `propagate`.
        heldout_frac: share of the groups held out, between 0 and 1.
        seed: which groups.

    Raises:
        ValueError: if the share is out of range or the label is empty.

    >>> [split_of(f"product-{number}", 0.25, seed=0) for number in range(4)]
    ['train', 'train', 'heldout', 'train']
    """
    if not 0 <= heldout_frac <= 1:
        raise ValueError(f"heldout_frac: must be between 0 and 1, got {heldout_frac}.")
    if not group:
        raise ValueError(f"product_id: must be given to split by product, got {group!r}.")
    digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") / 2**64 < heldout_frac else "train"


def identifiers(listing: Mapping, record: Mapping | None = None) -> list[str]:
    """Returns what tells that two listings show one product, whatever language and seller.

    - `gtin:` any GTIN, EAN, UPC or ISBN-13 with a right check digit, written with 14 digits;
    - `mpn:` brand and manufacturer's number or model, letters and digits only;
    - `code:` brand and a model code of the title ("WH-1000XM4"): capitals and digits mixed, and
      neither a size ("256GB") nor a standard ("UV400");
    - `seller:` ids that a marketplace gives a product (ASIN);
    - `id:` and `parent:` its product_id, and what variants have in common, within one source.

    Args:
        listing: with `title` and `aspects`, as listings.py reads it.
        record: the raw record, whose fields may hold more; nested ones are not looked into.

    Returns:
        Sorted identifiers, none twice. Placeholders ("N/A", "0000000000000") give none.

    >>> identifiers({"title": "Sony WH-1000XM4 Headphones, 30 h, 2021 Black",
    ...              "aspects": {"Marke": "Sony", "EAN": "4548736112001"}})
    ['code:sony:wh1000xm4', 'gtin:04548736112001']
    """
    pairs = _named_values(listing, record)
    brands = [brand for brand in (_compact(v) for n, v in pairs if n in _BRAND_NAMES) if brand]
    source, product_id = listing.get("source") or "", listing.get("product_id")
    found = {f"id:{source}:{product_id}"} if product_id else set()
    for name, value in pairs:
        if name in _GTIN_NAMES and (gtin := normalise_gtin(value)):
            found.add(f"gtin:{gtin}")
        elif name in _SELLER_ID_NAMES and (number := _compact(value)):
            found.add(f"seller:{name}:{number}")
        elif name in _PARENT_NAMES and (number := _compact(value)):
            found.add(f"parent:{source}:{number}")
        elif name in _NUMBER_NAMES and brands and (number := _part_number(value)):
            found.add(f"mpn:{brands[0]}:{number}")
    if brands:
        found.update(f"code:{brands[0]}:{code}" for code in title_codes(listing.get("title", "")))
    return sorted(found)


def _named_values(listing: Mapping, record: Mapping | None) -> list[tuple[str, str]]:
    """Lists (folded name, text) of the aspects and of the raw record's plain fields."""
    raw = [*(listing.get("aspects") or {}).items(), *(record or {}).items()]
    flat = [(name, part) for name, v in raw for part in (v if isinstance(v, list) else [v])]
    return [
        (_compact(str(name)), str(value).strip())
        for name, value in flat
        if isinstance(value, str | int) and not isinstance(value, bool)
    ]


def _compact(text: str) -> str:
    """Keeps letters and digits, without case and accents; "" for placeholders and repeats."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(character for character in plain if character.isalnum())
    return "" if kept in _PLACEHOLDERS or len(set(kept)) < 2 else kept


def _part_number(value: str) -> str:
    """Returns a manufacturer's number, or "" where it is too plain to tell products apart."""
    number = _compact(value)
    return number if len(number) >= 4 and any(c.isdigit() for c in number) else ""


def normalise_gtin(text: str) -> str | None:
    """Writes a GTIN-8, -12 (UPC), -13 (EAN, ISBN-13) or -14 with 14 digits; None if it is none.

    The check digit must be right (GS1 General Specifications, section 7.9).

    >>> normalise_gtin("0 36000-29145 2"), normalise_gtin("4006381333931")
    ('00036000291452', '04006381333931')
    >>> normalise_gtin("4006381333932"), normalise_gtin("0000000000000")
    (None, None)
    """
    digits = re.sub(r"[\s-]", "", plain_signs(text))
    if not (digits.isascii() and digits.isdigit() and len(digits) in (8, 12, 13, 14)):
        return None
    if len(set(digits)) == 1:
        return None
    padded = digits.zfill(14)
    # Every shop gives out numbers of these ranges for itself: they are no product's name elsewhere.
    if len(digits) != 8 and (padded[1] == "2" or padded[1:3] in ("02", "04")):
        return None
    total = sum(int(digit) * (3, 1)[place % 2] for place, digit in enumerate(padded))
    return padded if total % 10 == 0 else None


def title_codes(title: str) -> list[str]:
    """Finds model codes in a title: capitals and digits mixed, at least five of them.

    >>> title_codes("Samsung Galaxy SM-G991B/DS 256GB 5G, 1080p, 40X60CM, 16-Ounce, UV400, 2021")
    ['smg991b']
    """
    codes = []
    for match in _CODE.finditer(title):
        code = _compact(match.group())
        mixed = not code.isdigit() and not code.isalpha()
        plain = _MEASURE.fullmatch(code) or _STANDARD.fullmatch(code)
        if len(code) >= _MIN_CODE_CHARS and mixed and not plain:
            codes.append(code)
    return codes


def max_products_of(identifier: str) -> int:
    """Returns how many products may share this identifier before it joins none.

    >>> max_products_of("mpn:nyx:hu7185x"), max_products_of("parent:shop:mh01")
    (50, 5000)
    """
    given = identifier.startswith(("parent:", "id:"))
    return MAX_PRODUCTS_PER_PARENT if given else MAX_PRODUCTS_PER_IDENTIFIER


def group_products(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Joins products that share an identifier, also through others (A-B, B-C).

    Args:
        pairs: (product id, identifier); a product without identifiers comes with its own id.
            An identifier of more than `max_products_of` it joins none.

    Returns:
        Product id -> label, the smallest product id of its group.

    >>> group_products([("b", "gtin:1"), ("a", "gtin:1"), ("b", "mpn:2"), ("c", "mpn:2"),
    ...                 ("d", "d")])
    {'b': 'a', 'a': 'a', 'c': 'a', 'd': 'd'}
    """
    parents: dict[str, str] = {}
    products_of = defaultdict(set)
    for product, identifier in pairs:
        parents.setdefault(product, product)
        products_of[identifier].add(product)
    for identifier, products in products_of.items():
        if len(products) <= max_products_of(identifier):
            roots = sorted({_find_root(parents, product) for product in products})
            parents.update(dict.fromkeys(roots, roots[0]))
    return {product: _find_root(parents, product) for product in parents}


def _find_root(parents: dict[str, str], product: str) -> str:
    """Follows parents to the root, halving the path; a parent is smaller than its child."""
    while parents[product] != product:
        parents[product] = parents[parents[product]]
        product = parents[product]
    return product


def propagate(
    products: Iterable[tuple[str, str]], max_products: int = MAX_PRODUCTS_PER_IDENTIFIER
) -> Iterator[tuple[str, str]]:
    """Gives each product of one identifier the smallest label among them: one round on a cluster.

    A round: group (product, label) by identifier, call this, then take the smallest label of each
    product (`min`). Start with each product's own id as its label. Labels reach `group_products`'
    after as many rounds as identifiers lie between a product and the smallest of its group; a round
    that changes no label was the last one needed.

    Args:
        products: (product, label) of all products with this identifier; read twice.
        max_products: `max_products_of` the identifier; one of more products changes nothing.

    Yields:
        (product, label).

    >>> list(propagate([("b", "b"), ("c", "a")]))
    [('b', 'a'), ('c', 'a')]
    """
    shared_by_too_many = _has_more_products(products, max_products)
    smallest = min((label for _, label in products), default=None)
    for product, label in products:
        yield product, label if shared_by_too_many else smallest


def _has_more_products(products: Iterable[tuple[str, str]], count: int) -> bool:
    """Tells whether there are more than `count` different products, holding no more of them."""
    seen = set()
    for product, _ in products:
        seen.add(product)
        if len(seen) > count:
            return True
    return False
