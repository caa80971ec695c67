"""The recipe of `ellama curate`: what is refused, and in which words."""

import pytest

from configs.data import base
from ellama_jax.corpus.recipe import recipe_from_mapping


def values(**source):
    config = base.get_config()
    config.sources.shop = base.source(kind="listings", paths=("a.jsonl",), **source)
    return config.to_dict()


def test_defaults_make_a_recipe():
    recipe = recipe_from_mapping(values(products="one", fields={"title": "name"}))
    assert recipe.languages == ("en", "de", "fr", "it", "es")
    assert recipe.sources["shop"].fields == {"title": "name"}
    assert recipe.product_space("shop") == "one"
    assert recipe_from_mapping(values()).product_space("shop") == "shop"


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("sources",), {}, "sources: must name at least one source, got none."),
        (("languages",), (), "languages: must name at least one language, got none."),
        (("sources", "shop", "kind"), "listing",
         "sources.shop.kind: must be one of listings, reviews, pages, documents, got 'listing'."),
        (("sources", "shop", "paths"), (), "sources.shop.paths: must name at least one path, got none."),
        (("sources", "shop", "domain"), "general",
         "sources.shop.domain: must be ecommerce for listings, got 'general'."),
        (("sources", "shop", "product_pattern"), "(a", "sources.shop.product_pattern: must be a regular"),
        (("sources", "shop", "product_pattern"), "a", "must have one group, the product's id, got a."),
        (("sources", "shop", "max_bad_frac"), 2.0, "sources.shop.max_bad_frac: must lie in [0, 1], got 2.0."),
        (("split", "heldout_frac"), 1.0, "split.heldout_frac: must lie in [0, 1), got 1.0."),
        (("duplicates", "threshold"), 1.0, "duplicates.threshold: must lie between 0 and 1, got 1.0."),
        (("duplicates", "num_perm"), 0, "duplicates.num_perm: must be at least 1, got 0."),
        (("decontamination", "min_overlap"), 0.0, "decontamination.min_overlap: must lie in (0, 1], got 0.0."),
        (("listings", "boilerplate_products"), 1, "must be 0 or above 1, got 1."),
        (("output", "shard_byte"), 1, "output.shard_byte: is no configuration key; did you mean output.shard_bytes?"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(path, value, message):
    config = values()
    section = config
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    with pytest.raises(ValueError) as error:
        recipe_from_mapping(config)
    assert message in str(error.value)


def test_pages_need_a_domain_or_a_classifier():
    config = base.get_config()
    config.sources.web = base.source(kind="pages", paths=("a.parquet",))
    with pytest.raises(ValueError, match="where pages.classifier is not given"):
        recipe_from_mapping(config.to_dict())
    config.pages.classifier = "classifier"
    assert recipe_from_mapping(config.to_dict()).sources["web"].domain == ""


def test_a_source_with_an_unknown_key_is_named():
    with pytest.raises(ValueError, match="source: path is no key; known: .*paths"):
        base.source(path=("a",))
