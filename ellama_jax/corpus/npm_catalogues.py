"""Real multilingual catalogue data, from the files of two families of npm packages.

Owns how a category tree and a product dump become text records and listings. It fetches nothing:
`sources` does.
"""

import json
from collections import defaultdict
from pathlib import Path

TAXONOMY_VERSION = "1.1.1"
TAXONOMY_LANGUAGES = ("en", "de", "fr", "it", "es")
COMMERCETOOLS_VERSION = "10.18.2"
COMMERCETOOLS_PACKAGES = ("product", "category", "product-type", "standalone-price")

_SUBCATEGORIES = {
    "en": ("Category:", "Subcategories:"),
    "de": ("Kategorie:", "Unterkategorien:"),
    "fr": ("Catégorie :", "Sous-catégories :"),
    "it": ("Categoria:", "Sottocategorie:"),
    "es": ("Categoría:", "Subcategorías:"),
}

# The dump writes British, American and Australian English; one of them is enough.
_LOCALES = {"en": "en-US", "de": "de-DE", "fr": "fr-FR", "it": "it-IT", "es": "es-ES"}
_CURRENCIES = {"en": "USD", "de": "EUR", "fr": "EUR", "it": "EUR", "es": "EUR"}

# Builds every sample of the business catalogue and prints it as JSON. The packages are test data
# factories: products exist only once their presets are called.
DUMP_SCRIPT = """\
import { createRequire } from 'module';
const require = createRequire(process.argv[2] + '/package.json');
const load = (name) => require('@commercetools-test-data/' + name);
const build = (presets) => Object.values(presets.sampleDataB2B).map((make) => make().build());
process.stdout.write(JSON.stringify({
  products: build(load('product').ProductDraft.presets),
  categories: build(load('category').CategoryDraft.presets),
  types: build(load('product-type').ProductTypeDraft.presets),
  prices: build(load('standalone-price').StandalonePriceDraft.presets),
}));
"""


def read_taxonomy(path: Path, language: str) -> list[dict]:
    """Makes one text record per category that has subcategories: its path and their names.

    Args:
        path: a taxonomy file, `{"verticals": [{"categories": [{"id", "name", "parent_id"}]}]}`.
        language: of the file.

    Returns:
        Text records; `product_id` is the category's id, the same in every language, so that a
        split keeps translations together.
    """
    tree = json.loads(path.read_text(encoding="utf-8"))
    categories = {
        category["id"]: category
        for vertical in tree["verticals"]
        for category in vertical["categories"]
    }
    children = defaultdict(list)
    for category in categories.values():
        children[category["parent_id"]].append(category["name"])
    category_label, children_label = _SUBCATEGORIES[language]
    return [
        {
            "text": f"{category_label} {' > '.join(_category_path(categories, identifier))}\n"
            f"{children_label} {', '.join(children[identifier])}",
            "domain": "ecommerce",
            "language": language,
            "source": "shopify-taxonomy",
            "product_id": f"taxonomy-{identifier}",
        }
        for identifier in categories
        if identifier in children
    ]


def _category_path(categories: dict[str, dict], identifier: str | None) -> list[str]:
    path: list[str] = []
    while identifier is not None:
        path.insert(0, categories[identifier]["name"])
        identifier = categories[identifier]["parent_id"]
    return path


def read_commercetools(dump: dict) -> list[dict]:
    """Makes listings of a dump that `DUMP_SCRIPT` printed: each variant in five languages.

    All variants and languages of a product share its product_id, since variants share their text.

    Args:
        dump: `products`, `categories`, `types` and `prices` as the packages build them.
    """
    categories = {category["key"]: category for category in dump["categories"]}
    labels = {
        (kind["key"], attribute["name"]): attribute["label"]
        for kind in dump["types"]
        for attribute in kind["attributes"]
    }
    prices = _default_prices(dump["prices"])
    return [
        _write_variant(product, variant, language, categories, labels, prices)
        for product in dump["products"]
        for variant in [product["masterVariant"], *(product.get("variants") or [])]
        for language in _LOCALES
    ]


def _default_prices(prices: list[dict]) -> dict[tuple[str, str], float]:
    """Maps (sku, currency) to the price in the default channel, in main units."""
    return {
        (price["sku"], price["value"]["currencyCode"]): price["value"]["centAmount"] / 100
        for price in prices
        if price["channel"]["key"] == "default-channel"
    }


def _write_variant(
    product: dict, variant: dict, language: str, categories: dict, labels: dict, prices: dict
) -> dict:
    locale, currency = _LOCALES[language], _CURRENCIES[language]
    aspects = {}
    for attribute in variant["attributes"]:
        value = _attribute_value(attribute["value"], locale)
        label = labels[product["productType"]["key"], attribute["name"]][locale]
        if value is not None:
            aspects[label] = value
    path = _localised_path(categories, product["categories"][0]["key"], locale)
    return {
        "title": product["name"][locale],
        "category": path,
        "aspects": aspects,
        "price": prices[variant["sku"], currency],
        "currency": currency,
        "description": product["description"][locale],
        "language": language,
        "product_id": f"commercetools-{product['key']}",
        "source": "commercetools",
    }


def _attribute_value(value: object, locale: str) -> object:
    """Reads an attribute's value in one language.

    Returns None for references to other products, and for words that are there in English only:
    a German listing with English values would teach a mixture of languages.
    """
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict) and "label" in value:
        value = value["label"]
    if isinstance(value, dict):
        return value.get(locale)
    return value if isinstance(value, str) and locale == _LOCALES["en"] else None


def _localised_path(categories: dict, key: str | None, locale: str) -> list[str]:
    path: list[str] = []
    while key is not None:
        category = categories[key]
        path.insert(0, category["name"][locale])
        key = category["parent"]["key"] if category.get("parent") else None
    return path
