"""Parts of the pipeline alone: which of two copies stays, and how far labels travel."""

import dataclasses

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as Pipeline
from apache_beam.testing.util import assert_that, equal_to

from configs.data import base
from ellama_jax.corpus import curation
from ellama_jax.corpus.curation_records import Item
from ellama_jax.corpus.recipe import recipe_from_mapping

TEXT = "The old lighthouse stood on the cliff and its keeper lit the lamp every evening at dusk. "


@pytest.fixture(scope="module")
def recipe():
    config = base.get_config()
    config.sources.web = base.source(paths=("a.jsonl",), domain="general")
    return recipe_from_mapping(config.to_dict())


def document(name, text, split):
    return {"id": name, "text": text, "split": split, "source": "web", "language": "en"}


def test_a_held_out_document_outlives_its_exact_copies():
    documents = [document("b", TEXT, "train"), document("z", TEXT.upper(), "heldout"),
                 document("a", TEXT, "train")]  # fmt: skip
    with Pipeline(runner="FnApiRunner") as pipeline:
        left, dropped = curation._drop_exact(pipeline | beam.Create(documents))
        assert_that(left | "ids" >> beam.Map(lambda d: d["id"]), equal_to(["z"]), "kept")
        reasons = dropped | "reasons" >> beam.Map(lambda found: found[1].place)
        assert_that(reasons, equal_to(["a", "b"]), "dropped")


def test_a_held_out_document_outlives_its_near_copies(recipe):
    long = " ".join(f"{TEXT}It was night number {n}." for n in range(20))
    documents = [document("a", long + " The end.", "train"), document("z", long, "heldout"),
                 document("b", "Once. " + long, "train")]  # fmt: skip
    with Pipeline(runner="FnApiRunner") as pipeline:
        found = curation._find_near(pipeline | beam.Create(documents), recipe)
        names = found | "dropped" >> beam.MapTuple(lambda key, _: key) | beam.Distinct()
        assert_that(names, equal_to(["a", "b"]))


def test_products_that_share_identifiers_in_a_chain_have_one_label(recipe):
    chain = [("d", ("1",)), ("c", ("1", "2")), ("b", ("2", "3")), ("a", ("3",)), ("lone", ("4",))]
    products = [("web", Item(p, "en", p, names, {}, {})) for p, names in chain]
    with Pipeline(runner="FnApiRunner") as pipeline:
        labels = curation._label_products(pipeline | beam.Create(products), recipe)
        assert_that(labels, equal_to([("a", "a"), ("b", "a"), ("c", "a"), ("d", "a")]))


def test_an_identifier_of_too_many_products_links_none(recipe):
    few = dataclasses.replace(recipe.split, max_products_per_identifier=50)
    products = [("web", Item(f"p{n}", "en", f"p{n}", ("n/a",), {}, {})) for n in range(60)]
    with Pipeline(runner="FnApiRunner") as pipeline:
        labels = curation._label_products(
            pipeline | beam.Create(products), dataclasses.replace(recipe, split=few)
        )
        assert_that(labels, equal_to([]))
