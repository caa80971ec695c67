"""The pipeline of `ellama curate`, in Apache Beam: raw records to clean, split, deduplicated documents.

Owns the graph: what is grouped by what, and in which order. What happens to one record stands in
corpus/curation_records.py, what is a duplicate or a leak in duplicates.py, contamination.py and
splits.py, and the bytes on disk in curation_output.py. The graph is the same on a laptop and on a
cluster; Beam's own options choose the runner.

It asks of a runner only what all of them do: elements with a tag and filters instead of tagged
outputs, joins instead of side inputs, nothing at a bundle's end, and one last step that all writing
leads to, for some run nothing else.

    records -> items -> variants of a product as one listing -> split by product -> documents
            -> without evaluation text -> without exact, then near duplicates -> sorted shards
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import apache_beam as beam
import numpy as np

from ellama_jax.core.beam_runner import run_graph
from ellama_jax.corpus.contamination import load_index
from ellama_jax.corpus.curation_records import (
    Dropped,
    Item,
    SourceReader,
    common_root,
    count_outcome,
    place_id,
    sentence_key,
    split_sentences,
)
from ellama_jax.corpus.curation_sinks import (
    bad_record,
    count_kept,
    count_late,
    document_record,
    of_kind,
    write_counts,
    write_examples,
    write_shards,
    write_single,
)
from ellama_jax.corpus.duplicates import (
    Member,
    Signer,
    choose_bands,
    drop_in_bucket,
    exact_key,
)
from ellama_jax.corpus.readers import Part
from ellama_jax.corpus.recipe import Recipe
from ellama_jax.corpus.records import BadRecord
from ellama_jax.corpus.reviews import review_to_document
from ellama_jax.corpus.splits import max_products_of, propagate, split_of
from ellama_jax.corpus.templates import choose_template, listing_to_document, templates_of
from ellama_jax.corpus.variants import collapse_variants

TRAIN, HELDOUT = "train", "heldout"
# Parts that the workers of this process have read, for a progress bar.
PARTS_READ: Counter = Counter()
# Rounds of label propagation: products that share an identifier within so many steps are one.
_ROUNDS = 3


def run_pipeline(
    recipe: Recipe, parts: Sequence[tuple[str, Part]], out: str, index_path: str, options: list[str]
) -> None:
    """Runs the pipeline to its end.

    Args:
        recipe: what is to be done.
        parts: (source, part of a file) of everything to be read.
        out: directory of what is written: documents/, listings/, dead_letters/ and tallies/ with the
            counts, the files, examples of what was dropped, and evaluation text that was found.
        index_path: n-grams of the evaluation sets, or "".
        options: Beam's own, as --runner=DataflowRunner.

    Raises:
        Exception: whatever the runner raises.
    """
    run_graph(lambda pipeline: build_pipeline(pipeline, recipe, parts, out, index_path), options)


def build_pipeline(
    pipeline: beam.Pipeline, recipe: Recipe, parts: Sequence, out: str, index_path: str
) -> None:
    """Adds the graph to a pipeline, see `run_pipeline`."""
    roots = {
        source: common_root(part for of, part in parts if of == source) for source in recipe.sources
    }
    read = (
        pipeline
        | "parts" >> beam.Create(list(parts))
        | "spread" >> beam.Reshuffle()
        | "read" >> beam.ParDo(_Read(recipe, roots))
    )
    products = (
        of_kind(read, "listing")
        | "by product" >> beam.Map(_product_key, recipe.listings.collapse_variants)
        | "variants" >> beam.GroupByKey()
        | "one listing" >> beam.MapTuple(_collapse)
    )
    variants = products | "count variants" >> beam.FlatMap(_count_variants)
    written = _write_documents(products, of_kind(read, "text"), of_kind(read, "loose text"), recipe)
    counts, dropped = [of_kind(read, "count"), variants, written.counts], [of_kind(read, "drop")]

    documents, matches = written.documents, []
    if index_path:
        clean = documents | "evaluation text" >> beam.ParDo(
            _Decontaminate(index_path, recipe.decontamination.min_overlap)
        )
        documents = of_kind(clean, "clean")
        dropped.append(of_kind(clean, "leak"))
        matches.append(write_single(of_kind(clean, "match"), out, "matches"))
    documents, repeated = _drop_exact(documents)
    dropped.append(repeated)
    drops = _find_near(documents, recipe) if recipe.duplicates.near else None

    records = (
        documents | "document record" >> beam.Map(document_record),
        of_kind(read, "bad") | "bad record" >> beam.Map(bad_record),
    ) | "all records" >> beam.Flatten()
    files, near = write_shards(records, drops, out, recipe.output.shard_bytes, max(1, len(parts)))
    dropped.append(near)
    left_out = dropped | "all dropped" >> beam.Flatten()
    counts.append(left_out | "count dropped" >> beam.FlatMap(count_late))
    counts.append(files | "count kept" >> beam.FlatMap(count_kept))
    _ = (
        *matches,
        write_single(files | "description" >> beam.Map(lambda file: file[0]), out, "files"),
        write_counts(counts, out),
        write_examples(left_out, out, recipe.output.examples),
    ) | "everything is written" >> beam.Flatten()


class _Read(beam.DoFn):
    """Parts to (kind, value): listings, texts, what is bad or dropped, and counts."""

    def __init__(self, recipe: Recipe, roots: Mapping[str, str]):
        self._recipe, self._roots = recipe, roots
        self._readers: dict[str, SourceReader] = {}

    def process(self, element: tuple[str, Part]) -> Iterator:
        source, part = element
        if source not in self._readers:
            self._readers[source] = SourceReader(source, self._recipe, self._roots[source])
        counts: dict = {}
        for outcome in self._readers[source].read(part):
            for key, count in count_outcome(outcome).items():
                counts[key] = counts.get(key, 0) + count
            if isinstance(outcome, BadRecord):
                yield "bad", (source, outcome)
            elif isinstance(outcome, Dropped):
                # Counted here already; only for the examples.
                yield "drop", (source, outcome, 0)
            elif not outcome.product:
                yield "loose text", (source, outcome)
            else:
                yield "listing" if "aspects" in outcome.fields else "text", (source, outcome)
        PARTS_READ[source] += 1
        for (language, what), count in sorted(counts.items()):
            yield "count", ((source, language, what), part.path, count)

    def teardown(self) -> None:
        self._readers.clear()

    def __getstate__(self) -> dict:
        return {"_recipe": self._recipe, "_roots": self._roots, "_readers": {}}


def _product_key(element: tuple[str, Item], collapse: bool) -> tuple[tuple, Item]:
    source, item = element
    return (source, item.product, item.language, "" if collapse else item.place), item


def _collapse(key: tuple, items: Iterable[Item]) -> tuple[str, Item]:
    """Makes one listing of the variants of a product, whatever their order."""
    source, product, language, _ = key
    ordered = sorted(items, key=lambda item: item.place)
    listing = collapse_variants([item.fields for item in ordered])
    names = tuple(sorted({name for item in ordered for name in item.identifiers}))
    return source, Item(
        ordered[0].place, language, product, names, listing, {"variants": len(ordered)}
    )


def _find_boilerplate(products: beam.PCollection, most: int) -> beam.PCollection:
    """Returns (product, sentence) of sentences that very many products of a source share."""
    return (
        products
        | "sentences" >> beam.FlatMap(_sentence_keys)
        | "by sentence" >> beam.GroupByKey()
        | "boilerplate" >> beam.FlatMap(_shared_sentence, most)
    )


def _sentence_keys(element: tuple[str, Item]) -> Iterator[tuple[bytes, str]]:
    source, item = element
    for sentence in split_sentences(item.fields["description"]):
        if sentence.strip():
            yield sentence_key(source, sentence), item.product


def _shared_sentence(
    element: tuple[bytes, Iterable[str]], most: int
) -> Iterator[tuple[str, bytes]]:
    sentence, products = element
    different: set[str] = set()
    for product in products:
        different.add(product)
        if len(different) == most:
            break
    else:
        return
    # Read again instead of held: a sentence may stand in every listing of a shop.
    yield from ((product, sentence) for product in products)


def _without_sentences(source: str, item: Item, common: Set[bytes]) -> tuple[Item, int]:
    """Returns a listing without the sentences, and how many these were."""
    sentences = split_sentences(item.fields["description"]) if common else []
    kept = [text for text in sentences if sentence_key(source, text) not in common]
    if len(kept) == len(sentences):
        return item, 0
    fields = {**item.fields, "description": "".join(kept).strip()}
    return item._replace(fields=fields), len(sentences) - len(kept)


def _count_variants(element: tuple[str, Item]) -> list[tuple[tuple, str, int]]:
    source, item = element
    joined = item.changes["variants"] - 1
    key = source, item.language, "variant: joined with another"
    return [(key, item.place, joined)] if joined else []


def _label_products(products: beam.PCollection, recipe: Recipe) -> beam.PCollection:
    """Returns (product, label) of the products that share an identifier with another.

    Products that are one and the same, sold by others or described in another language, come to
    one label: the smallest product within a few steps. An identifier of very many products, as
    "does not apply", links none.
    """
    most = recipe.split.max_products_per_identifier
    links = (
        products
        | "identifiers"
        >> beam.FlatMap(lambda p: [(name, p[1].product) for name in p[1].identifiers])
        | "distinct links" >> beam.Distinct()
        | "by identifier" >> beam.GroupByKey()
        | "links" >> beam.FlatMap(_links, most)
    )  # (product, identifier)
    labels = (
        links
        | "own label" >> beam.MapTuple(lambda product, _: (product, product))
        | "distinct products" >> beam.Distinct()
    )
    for number in range(_ROUNDS):
        labels = (
            {"labels": labels, "links": links}
            | f"spread labels {number}" >> beam.CoGroupByKey()
            | f"to identifiers {number}" >> beam.FlatMapTuple(_to_identifiers)
            | f"smallest {number}" >> beam.GroupByKey()
            | f"to products {number}"
            >> beam.FlatMapTuple(lambda _, members: propagate(members, sys.maxsize))
            | f"label {number}" >> beam.CombinePerKey(min)
        )
    return labels


def _links(element: tuple[str, Iterable[str]], most: int) -> list[tuple[str, str]]:
    """Returns (product, identifier) where it is shared, but not by too many to mean anything."""
    name, members = element
    most = max(most, max_products_of(name))
    products = list(itertools.islice(members, most + 1))
    return [(product, name) for product in products] if 1 < len(products) <= most else []


def _to_identifiers(product: str, groups: Mapping) -> Iterator[tuple[str, tuple[str, str]]]:
    label = min(groups["labels"])
    for name in groups["links"]:
        yield name, (product, label)


class _Written(NamedTuple):
    documents: beam.PCollection
    counts: beam.PCollection


def _write_documents(products, texts, loose, recipe: Recipe) -> _Written:
    """Gives every listing and review its split and writes everything as documents."""
    about_products = {
        "listings": products | "listing of" >> beam.Map(lambda p: (p[1].product, p)),
        "texts": texts | "text of" >> beam.Map(lambda r: (r[1].product, r)),
        "labels": _label_products(products, recipe),
    }
    if recipe.listings.boilerplate_products:
        most = recipe.listings.boilerplate_products
        about_products["boilerplate"] = _find_boilerplate(products, most)
    shop = (
        about_products
        | "with label" >> beam.CoGroupByKey()
        | "shop documents" >> beam.FlatMap(_shop_documents, recipe)
    )
    texts = loose | "documents" >> beam.Map(_loose_document, recipe)
    documents = (of_kind(shop, "document"), texts) | "all documents" >> beam.Flatten()
    return _Written(documents, of_kind(shop, "boilerplate"))


def _shop_documents(element: tuple[str, Mapping], recipe: Recipe) -> Iterator[tuple[str, object]]:
    product, groups = element
    label = min(groups["labels"], default=product)
    split = split_of(label, recipe.split.heldout_frac, recipe.seed)
    common = set(groups.get("boilerplate", ()))
    for source, found in groups["listings"]:
        item, left_out = _without_sentences(source, found, common)
        if left_out:
            key = source, item.language, "changed: boilerplate sentence"
            yield "boilerplate", (key, item.place, left_out)
        listing = {**item.fields, "product_id": label}
        template = choose_template(listing, recipe.seed, _templates(item.language, recipe))
        text = listing_to_document(listing, seed=recipe.seed, template=template)
        document = _document(source, item, text, "ecommerce", label, split)
        yield "document", document | {"listing": listing}
    for source, item in groups["texts"]:
        text, domain = _write_text(item, recipe.seed)
        yield "document", _document(source, item, text, domain, label, split)


def _templates(language: str, recipe: Recipe) -> list[str] | None:
    """Returns the text forms that a recipe wants and a language has words for; None: all of these."""
    known = templates_of(language)
    return [name for name in recipe.listings.templates if name in known] or None


def _loose_document(element: tuple[str, Item], recipe: Recipe) -> dict:
    """Writes text about no product; it is held out by what it says."""
    source, item = element
    text, domain = _write_text(item, recipe.seed)
    split = split_of(exact_key(text).hex(), recipe.split.heldout_texts_frac, recipe.seed)
    return _document(source, item, text, domain, None, split)


def _write_text(item: Item, seed: int) -> tuple[str, str]:
    """Returns text and domain of a review or a document."""
    if "rating" in item.fields:
        return review_to_document(item.fields, seed=seed), "ecommerce"
    return item.fields["text"], item.fields["domain"]


def _document(source, item: Item, text: str, domain: str, product: str | None, split: str) -> dict:
    return {
        "id": f"{source}-{place_id(item.place)}",
        "text": text,
        "domain": domain,
        "language": item.language,
        "source": source,
        "product_id": product,
        "split": split,
    }


class _Decontaminate(beam.DoFn):
    """Leaves out training documents that hold text of an evaluation set."""

    def __init__(self, index_path: str, min_overlap: float):
        self._index_path, self._min_overlap = index_path, min_overlap
        self._index = None

    def setup(self) -> None:
        self._index = load_index(self._index_path)

    def process(self, document: dict) -> Iterator:
        train = document["split"] == TRAIN
        found = self._index.match(document["text"], self._min_overlap) if train else []
        if not found:
            yield "clean", document
            return
        names = sorted({match.set_name for match in found})
        yield "leak", _drop(document, f"evaluation: {', '.join(names)}")
        for match in found:
            match_of = {
                "id": document["id"],
                "source": document["source"],
                "language": document["language"],
            }
            yield "match", match_of | match._asdict()


def _drop(document: dict, reason: str) -> tuple[str, Dropped, int]:
    dropped = Dropped(document["id"], document["language"], reason, document["text"][:300])
    return document["source"], dropped, 1


def _rank(document: dict) -> tuple[int, str]:
    """Orders duplicates: what is held out stays, so that its copy is not trained on."""
    return (0 if document["split"] == HELDOUT else 1), document["id"]


def _drop_exact(documents: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
    found = (
        documents
        | "exact key" >> beam.Map(lambda d: (exact_key(d["text"]), d))
        | "by exact key" >> beam.GroupByKey()
        | "first of its kind" >> beam.FlatMap(_first)
    )
    return of_kind(found, "first"), of_kind(found, "copy")


def _first(element: tuple[bytes, Iterable[dict]]) -> Iterator[tuple[str, object]]:
    """Keeps the first of equal documents."""
    first, *others = sorted(element[1], key=_rank)
    yield "first", first
    for other in others:
        yield "copy", _drop(other, "duplicate: exact")


def _find_near(documents: beam.PCollection, recipe: Recipe) -> beam.PCollection:
    """Returns (id, id of an earlier document that it resembles)."""
    settings = recipe.duplicates
    signer = Signer(
        num_perm=settings.num_perm,
        num_bands=choose_bands(settings.num_perm, settings.threshold),
        threshold=settings.threshold,
    )
    return (
        documents
        | "signature" >> beam.FlatMap(_band_members, signer)
        | "by band" >> beam.GroupByKey()
        | "near ones"
        >> beam.FlatMap(_near_ones, settings.num_perm, settings.threshold, settings.max_compared)
    )


def _band_members(document: dict, signer: Signer) -> Iterator[tuple[bytes, bytes]]:
    signature = signer.sign(document["text"])
    rank, key = _rank(document)
    # As bytes, which runners pass on fastest: every document goes into many buckets.
    member = bytes([rank]) + signature.astype("<u4").tobytes() + key.encode()
    for band in signer.band_keys(signature):
        yield band, member


class _Members:
    """The members of a bucket, which may be read again and need not fit into memory."""

    def __init__(self, elements: Iterable[bytes], num_perm: int):
        self._elements, self._num_perm = elements, num_perm

    def __iter__(self) -> Iterator[Member]:
        for member in self._elements:
            signature = np.frombuffer(member, "<u4", self._num_perm, offset=1)
            yield Member(member[0], member[1 + signature.nbytes :].decode(), signature)


def _near_ones(
    element: tuple[bytes, Iterable[bytes]], num_perm: int, threshold: float, max_compared: int
) -> list[tuple[str, str]]:
    _, members = element
    if len(list(itertools.islice(members, 2))) < 2:
        return []  # most buckets hold one document
    found = drop_in_bucket(_Members(members, num_perm), threshold, max_compared)
    return [(duplicate.dropped, duplicate.kept) for duplicate in found]
