"""What `ellama curate` is to do: the frozen form of a file of configs/data/.

Owns types and every check that needs no data. The values and what each key means stand in
configs/data/base.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ellama_jax.core.settings import build_dataclass
from ellama_jax.corpus.templates import TEMPLATES
from ellama_jax.corpus.wording import LABELS

KINDS = ("listings", "reviews", "pages", "documents")
DOMAINS = ("ecommerce", "general")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._]*"


@dataclass(frozen=True)
class SourceConfig:
    kind: str
    paths: tuple[str, ...]
    format: str
    data_dir: str
    fields: dict[str, str]
    domain: str
    language: str
    products: str
    product_pattern: str
    max_bad_frac: float
    licence: str


@dataclass(frozen=True)
class ListingsConfig:
    templates: tuple[str, ...]
    collapse_variants: bool
    boilerplate_products: int


@dataclass(frozen=True)
class PagesConfig:
    min_language_score: float
    quality: bool
    classifier: str


@dataclass(frozen=True)
class DuplicatesConfig:
    near: bool
    threshold: float
    num_perm: int
    max_compared: int


@dataclass(frozen=True)
class DecontaminationConfig:
    sets: tuple[str, ...]
    files: tuple[str, ...]
    ngram: int
    min_overlap: float


@dataclass(frozen=True)
class SplitConfig:
    heldout_frac: float
    heldout_texts_frac: float
    max_products_per_identifier: int


@dataclass(frozen=True)
class OutputConfig:
    shard_bytes: int
    examples: int


@dataclass(frozen=True)
class Recipe:
    """Everything that curated documents are decided by, one frozen section per concern."""

    seed: int
    languages: tuple[str, ...]
    cache_dir: str
    mask_private: bool
    sources: dict[str, SourceConfig]
    listings: ListingsConfig
    pages: PagesConfig
    duplicates: DuplicatesConfig
    decontamination: DecontaminationConfig
    split: SplitConfig
    output: OutputConfig

    def product_space(self, source: str) -> str:
        """Returns what tells the product ids of a source from those of other shops."""
        return self.sources[source].products or source


def recipe_from_mapping(values: Mapping) -> Recipe:
    """Turns nested plain values into a checked `Recipe`.

    Raises:
        ValueError: for unknown or missing keys, wrong types and values that cannot work.
    """
    recipe = build_dataclass(Recipe, values)
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    _require(bool(recipe.sources), "sources", "must name at least one source", "none")
    _require(bool(recipe.languages), "languages", "must name at least one language", "none")
    unknown = [code for code in recipe.languages if code not in LABELS]
    _require(not unknown, "languages", f"must be among {', '.join(LABELS)} (a further one is a row of "
             "corpus/wording.py)", ", ".join(unknown))  # fmt: skip
    known = [name for name in recipe.listings.templates if name not in TEMPLATES]
    _require(not known, "listings.templates", f"must be among {', '.join(TEMPLATES)}",
             ", ".join(known))  # fmt: skip
    for name, source in recipe.sources.items():
        _check_source(name, source, recipe)
    for name in ("heldout_frac", "heldout_texts_frac"):
        value = getattr(recipe.split, name)
        _require(0 <= value < 1, f"split.{name}", "must lie in [0, 1)", value)
    duplicates, decontamination = recipe.duplicates, recipe.decontamination
    _require(0 < duplicates.threshold < 1, "duplicates.threshold", "must lie between 0 and 1",
             duplicates.threshold)  # fmt: skip
    _require(0 < decontamination.min_overlap <= 1, "decontamination.min_overlap",
             "must lie in (0, 1]", decontamination.min_overlap)  # fmt: skip
    most = recipe.listings.boilerplate_products
    _require(most == 0 or most > 1, "listings.boilerplate_products", "must be 0 or above 1", most)
    at_least_one = {
        "duplicates.num_perm": duplicates.num_perm,
        "duplicates.max_compared": duplicates.max_compared,
        "decontamination.ngram": decontamination.ngram,
        "split.max_products_per_identifier": recipe.split.max_products_per_identifier,
        "output.shard_bytes": recipe.output.shard_bytes,
    }
    for name, value in at_least_one.items():
        _require(value >= 1, name, "must be at least 1", value)


def _check_source(name: str, source: SourceConfig, recipe: Recipe) -> None:
    where = f"sources.{name}"
    _require(bool(re.fullmatch(_NAME, name)), where, "must be letters, digits, . and _", name)
    _require(source.kind in KINDS, f"{where}.kind", f"must be one of {', '.join(KINDS)}",
             repr(source.kind))  # fmt: skip
    _require(bool(source.paths), f"{where}.paths", "must name at least one path", "none")
    _require(0 <= source.max_bad_frac <= 1, f"{where}.max_bad_frac", "must lie in [0, 1]",
             source.max_bad_frac)  # fmt: skip
    shop = source.kind in ("listings", "reviews")
    if shop:
        _require(source.domain in ("", "ecommerce"), f"{where}.domain",
                 f"must be ecommerce for {source.kind}", repr(source.domain))  # fmt: skip
    elif source.kind == "documents":
        _require(source.domain in ("", *DOMAINS), f"{where}.domain",
                 "must be ecommerce, general, or '' (a field of each record)",
                 repr(source.domain))  # fmt: skip
    else:
        _require(source.domain in DOMAINS or bool(recipe.pages.classifier), f"{where}.domain",
                 "must be ecommerce or general where pages.classifier is not given",
                 repr(source.domain))  # fmt: skip
    try:
        groups = re.compile(source.product_pattern).groups
    except re.error as error:
        raise ValueError(
            f"{where}.product_pattern: must be a regular expression, got {error}."
        ) from error
    _require(not source.product_pattern or groups == 1, f"{where}.product_pattern",
             "must have one group, the product's id", source.product_pattern)  # fmt: skip


def _require(holds: bool, name: str, rule: str, value) -> None:
    if not holds:
        raise ValueError(f"{name}: {rule}, got {value}.")
