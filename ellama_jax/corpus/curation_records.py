"""From one raw record to a clean listing, review or document: `curate`, record by record.

Owns the order of the steps for each kind of source, and the words for what is left out. It knows no
Beam: corpus/curation.py runs this in its workers, and tests run it alone.
"""

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ellama_jax.corpus.classifier import load_classifier
from ellama_jax.corpus.language import identify_language, keep_language
from ellama_jax.corpus.listings import SELLER_FIELDS, clean_listing, normalise_listing
from ellama_jax.corpus.mapping import map_fields, missing_paths, parse_mapping
from ellama_jax.corpus.privacy import mask_private, mask_raw, public_id
from ellama_jax.corpus.quality import judge_quality, page_text
from ellama_jax.corpus.readers import Part, read_part
from ellama_jax.corpus.recipe import DOMAINS, Recipe
from ellama_jax.corpus.records import BadRecord, Record
from ellama_jax.corpus.reviews import REVIEWER_FIELDS, normalise_review
from ellama_jax.corpus.splits import identifiers
from ellama_jax.corpus.variants import product_of

UNKNOWN_LANGUAGE = "und"
_PAGES_PER_BATCH = 256  # that the classifier scores at one time
_RAW_CHARS = 2000
_EXAMPLE_CHARS = 300


def place_id(place: str) -> str:
    """Returns a short name of a place that tells no path."""
    return hashlib.blake2b(place.encode(), digest_size=8).hexdigest()


class Dropped(NamedTuple):
    """A readable record that is left out: `reason` names the rule, `text` begins like it."""

    place: str
    language: str
    reason: str
    text: str


class Item(NamedTuple):
    """A record on its way to a document.

    Attributes:
        place: where it was read, the same in every run.
        language: code.
        product: shop and product, or "" for text about none.
        identifiers: what else names the product, in any shop and language.
        fields: a listing, a review, or text and domain of a document.
        changes: what was masked or left out of it, and how often.
    """

    place: str
    language: str
    product: str
    identifiers: tuple[str, ...]
    fields: dict
    changes: dict[str, int]


class SourceReader:
    """Reads parts of one source as items; made once per worker.

    Args:
        name: of the source.
        recipe: what is to be done.
        root: how the paths of all its files begin. Places of items begin after it, so that moving
            the files changes no document.

    Raises:
        ValueError: if the mapping of the fields cannot be understood, or there is no classifier
            where the recipe names one.
    """

    def __init__(self, name: str, recipe: Recipe, root: str = ""):
        self.name, self.recipe, self.source = name, recipe, recipe.sources[name]
        self._space, self._root = recipe.product_space(name), root
        self._mapping = parse_mapping(self.source.fields) if self.source.fields else None
        handlers = {"listings": self._listing, "reviews": self._review, "pages": self._page,
                    "documents": self._document}  # fmt: skip
        self._handle = handlers[self.source.kind]
        scored = self.source.kind == "pages" and not self.source.domain
        self._classifier = load_classifier(recipe.pages.classifier) if scored else None

    def read(self, part: Part) -> Iterator[Item | Dropped | BadRecord]:
        """Yields what became of each record, in the order of the part."""
        columns = self._mapping.columns if self._mapping else None
        outcomes = (self._outcome(record) for record in read_part(part, columns))
        if self.source.kind != "pages":
            return outcomes
        outcomes = self._classify(outcomes) if self._classifier else outcomes
        return map(self._judge, outcomes) if self.recipe.pages.quality else outcomes

    def missing_paths(self, parts: Iterable[Part], most: int) -> list[str]:
        """Returns the paths of the mapping that none of the first records has."""
        if self._mapping is None:
            return []
        records = itertools.chain.from_iterable(map(read_part, parts))
        missing = self._mapping.paths
        for record in itertools.islice(records, most):
            if isinstance(record, Record):
                missing = missing_paths(record.fields, self._mapping, missing)
        return sorted(missing)

    def _outcome(self, record: Record | BadRecord) -> Item | Dropped | BadRecord:
        if isinstance(record, BadRecord):
            return record
        try:
            fields = map_fields(record.fields, self._mapping) if self._mapping else record.fields
            return self._handle(record.place.removeprefix(self._root), fields)
        except (ValueError, RecursionError) as error:
            raw = json.dumps(record.fields, ensure_ascii=False, default=str)[: 4 * _RAW_CHARS]
            names = [record.fields.get(name) for name in (*SELLER_FIELDS, *REVIEWER_FIELDS)]
            reason, raw = mask_raw(str(error), names), mask_raw(raw, names)
            return BadRecord(record.place, reason, raw[:_RAW_CHARS])

    def _listing(self, place: str, fields: Mapping) -> Item | Dropped:
        language = self._language(fields, ("title", "description"))
        if language not in self.recipe.languages:
            return _foreign(place, language, fields.get("title"))
        fields = {**fields, "language": language, "source": self.name}
        listing, changes = clean_listing(normalise_listing(fields, source=self.name))
        product = self._product(listing) or f"{self._space}/{place_id(place)}"
        names = tuple(identifiers(listing, fields))
        return Item(place, language, product, names, listing, dict(changes))

    def _review(self, place: str, fields: Mapping) -> Item | Dropped:
        language = self._language(fields, ("title", "text"))
        if language not in self.recipe.languages:
            return _foreign(place, language, fields.get("text"))
        fields = {**fields, "language": language, "source": self.name}
        review = normalise_review(fields, source=self.name)
        if not review["text"]:
            return Dropped(place, language, "empty: no text", "")
        return Item(place, language, self._product(review), (), review, {})

    def _page(self, place: str, fields: Mapping) -> Item | Dropped:
        whole = page_text(_text_of(fields))
        if not whole.strip():
            return Dropped(place, UNKNOWN_LANGUAGE, "empty: no text", "")
        language = self._language({"text": whole}, ("text",), detect=True)
        if language not in self.recipe.languages:
            return _foreign(place, language, whole)
        text = keep_language(whole, language)
        item = self._text(place, language, text, self.source.domain)
        other = {} if text == whole else {"paragraphs of another language": 1}
        return item._replace(changes=item.changes | other)

    def _judge(self, outcome: Item | Dropped | BadRecord) -> Item | Dropped | BadRecord:
        """Drops a page of low quality; shops' pages have lists and prices where prose has none."""
        if not isinstance(outcome, Item):
            return outcome
        text = outcome.fields["text"]
        kind = "shop" if outcome.fields["domain"] == "ecommerce" else "prose"
        reason = judge_quality(text, outcome.language, kind)
        if reason is None:
            return outcome
        return Dropped(outcome.place, outcome.language, f"quality: {reason}", text[:_EXAMPLE_CHARS])

    def _document(self, place: str, fields: Mapping) -> Item | Dropped:
        text = _text_of(fields)
        if not text.strip():
            return Dropped(place, UNKNOWN_LANGUAGE, "empty: no text", "")
        language = self._language(fields, ("text",))
        if language not in self.recipe.languages:
            return _foreign(place, language, text)
        domain = self.source.domain or fields.get("domain")
        if domain not in DOMAINS:
            raise ValueError(f"domain: must be one of {', '.join(DOMAINS)}, got {domain!r}.")
        item = self._text(place, language, text, domain)
        product = self._product({"product_id": public_id(str(fields.get("product_id") or ""))})
        return item._replace(product=product)

    def _text(self, place: str, language: str, text: str, domain: str) -> Item:
        changes: Mapping = {}
        if self.recipe.mask_private:
            text, changes = mask_private(text, language)
        return Item(place, language, "", (), {"text": text, "domain": domain}, dict(changes))

    def _product(self, record: Mapping) -> str:
        """Returns shop and product of a record that names one, else ""."""
        if not record["product_id"]:
            return ""
        pattern = self.source.product_pattern or None
        return f"{self._space}/{product_of(record, pattern)}"

    def _language(self, fields: Mapping, names: tuple[str, ...], detect: bool = False) -> str:
        """Returns the language of a record, as its source says that it is to be found."""
        wanted = self.source.language
        if wanted == "detect" or (detect and wanted == "field"):
            text = "\n".join(str(fields[name]) for name in names if fields.get(name))
            code, score = identify_language(text)
            return code if score >= self.recipe.pages.min_language_score else UNKNOWN_LANGUAGE
        code = (fields.get("language") or fields.get("lang")) if wanted == "field" else wanted
        if not isinstance(code, str) or not code.strip():
            raise ValueError(f"language: must be a code such as 'de', got {code!r}.")
        return code.strip().replace("_", "-").split("-")[0].lower()

    def _classify(self, outcomes: Iterable) -> Iterator[Item | Dropped | BadRecord]:
        """Gives pages their domain, some hundred at a time."""
        outcomes = iter(outcomes)
        while batch := list(itertools.islice(outcomes, _PAGES_PER_BATCH)):
            places = [n for n, outcome in enumerate(batch) if isinstance(outcome, Item)]
            texts = [batch[n].fields["text"] for n in places]
            scores = self._classifier.scores(texts) if texts else ()
            for n, score in zip(places, scores, strict=True):
                shop = score >= self._classifier.threshold(batch[n].language)
                domain = "ecommerce" if shop else "general"
                batch[n] = batch[n]._replace(fields={**batch[n].fields, "domain": domain})
            yield from batch


def common_root(parts: Iterable[Part]) -> str:
    """Returns how the paths of all parts begin, up to a slash."""
    paths = sorted({part.path for part in parts})
    common = os.path.commonprefix(paths[:1] + paths[-1:])
    return common[: common.rfind("/") + 1]


def count_outcome(outcome: Item | Dropped | BadRecord) -> Counter:
    """Returns (language, what happened) -> records, as curation.json counts them."""
    if isinstance(outcome, BadRecord):
        return Counter({("", "read"): 1, ("", "bad"): 1})
    if isinstance(outcome, Dropped):
        return Counter({(outcome.language, "read"): 1, (outcome.language, outcome.reason): 1})
    changes = {(outcome.language, f"changed: {name}"): n for name, n in outcome.changes.items()}
    return Counter({(outcome.language, "read"): 1, **changes})


def split_sentences(text: str) -> list[str]:
    """Cuts a description where its sentences and lines end; joined, the pieces are the text.

    >>> split_sentences("Solid oak. Ships in 2.5 days!\\nNo returns")
    ['Solid oak. ', 'Ships in 2.5 days!\\n', 'No returns']
    """
    return re.findall(r".+?(?:[.!?](?=\s)\s+|\n+|$)", text, re.DOTALL)


def sentence_key(source: str, sentence: str) -> bytes:
    """Returns what equal sentences of a source have in common, however they are spaced."""
    words = " ".join(sentence.lower().split())
    return hashlib.blake2b(f"{source}\0{words}".encode(), digest_size=12).digest()


def _foreign(place: str, language: str, text: object) -> Dropped:
    shown, _ = mask_private(str(text)[: 4 * _EXAMPLE_CHARS], language)
    return Dropped(place, language, "language", shown[:_EXAMPLE_CHARS])


def _text_of(fields: Mapping) -> str:
    """Returns a record's text; an empty one where it has none, for that is no damage."""
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text: must be a string, got {text!r:.80}.")
    return text or ""
