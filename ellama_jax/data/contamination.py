"""Evaluation texts inside training documents: n-gram index, verdict, report.

Owns which texts of an evaluation count, when a document holds one, and the words of the report. It
makes no evaluation items and drops nothing itself: callers bring items, and drop the documents that
`NgramIndex.match` returns matches for. A translated question is not found here; splits by product
(`splits`) keep translations apart.

The rule is PaLM's (arXiv 2204.02311, section 8: 70 % of the 8-grams of the question, the prompt or
the target) with the 13-grams of GPT-3 (arXiv 2005.14165, appendix C) and half of them: one word
changed in a question of 40 words takes 13 of its 28 13-grams away. Llama 3 (arXiv 2407.21783,
section 5.1.4) also judges by the share of 8-grams found, with a threshold per evaluation set.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ellama_jax.data.duplicates import hash_words, run_hashes, split_words

# A text of fewer words is found whole or not at all, and below MIN_WORDS not looked for:
# "Color: black" stands in half of all listings.
NGRAM_WORDS = 13
MIN_WORDS = 8
MIN_OVERLAP_FRAC = 0.5
# An n-gram of more items of one set is its template, its few-shot examples or a licence.
MAX_ITEMS_PER_NGRAM = 10


class EvalText(NamedTuple):
    """A text to look for. An item may have several: its question alone, and all of its fields."""

    set_name: str
    item_id: str
    text: str


class Match(NamedTuple):
    """An evaluation item that a document holds.

    Attributes:
        ngram_text: the first n-gram found, in normalised words.
        overlap_frac: share of the n-grams of the item's text that the document holds; of its
            texts, the one with the greatest share.
    """

    set_name: str
    item_id: str
    ngram_text: str
    overlap_frac: float


@dataclass(frozen=True, eq=False)
class NgramIndex:
    """The n-grams of evaluation texts, hashed; 12 bytes per n-gram and text. Made by `build_index`.

    Attributes:
        lengths: words of the n-grams held, rising: n, and those of shorter texts.
        hashes: [H] uint64, sorted and distinct.
        starts: [H + 1] int64; the texts that hold hashes[i] are texts[starts[i] : starts[i + 1]].
        texts: [P] int32, numbers of texts.
        sizes: [T] int32, distinct n-grams of each text that count; 0 where it cannot be found.
        items: (set_name, item_id) of each text.
    """

    lengths: tuple[int, ...]
    hashes: np.ndarray
    starts: np.ndarray
    texts: np.ndarray
    sizes: np.ndarray
    items: list[tuple[str, str]]

    def match(self, text: str, min_overlap_frac: float = MIN_OVERLAP_FRAC) -> list[Match]:
        """Finds the items that a document holds at least `min_overlap_frac` of.

        Returns:
            Matches sorted by set and item; none if the document may be trained on.
        """
        words = split_words(text)
        word_hashes = hash_words(words)
        first_places: dict[int, tuple[int, int]] = {}
        for length in self.lengths:
            for place, number in self._find(run_hashes(word_hashes, length)):
                first_places.setdefault(number, (place, length))
        best: dict[tuple[str, str], Match] = {}
        for number, overlap, place, length in self._overlaps(first_places):
            item = self.items[number]
            if overlap >= min_overlap_frac and (item not in best or overlap > best[item][3]):
                best[item] = Match(*item, " ".join(words[place : place + length]), overlap)
        return sorted(best.values())

    @cached_property
    def _filter(self) -> np.ndarray:
        """A table of the hashes' low bits: most n-grams of a document are told apart by it."""
        bits = min(max(int(len(self.hashes) * 16).bit_length(), 10), 28)
        table = np.zeros(1 << bits, bool)
        table[self.hashes & np.uint64(len(table) - 1)] = True
        return table

    def _find(self, runs: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yields (place, number in `hashes`) of the runs that the index holds, in order."""
        places = np.flatnonzero(self._filter[runs & np.uint64(len(self._filter) - 1)])
        if not len(places) or not len(self.hashes):
            return
        numbers = np.searchsorted(self.hashes, runs[places])
        numbers = np.minimum(numbers, len(self.hashes) - 1)
        equal = self.hashes[numbers] == runs[places]
        yield from zip(places[equal].tolist(), numbers[equal].tolist(), strict=True)

    def _overlaps(self, first_places: dict) -> Iterator[tuple[int, float, int, int]]:
        """Yields (text, overlap, place, length) of each text with an n-gram in the document."""
        counts, firsts = Counter(), {}
        for number, found_at in first_places.items():
            for text in self.texts[self.starts[number] : self.starts[number + 1]].tolist():
                counts[text] += 1
                firsts[text] = min(firsts.get(text, found_at), found_at)
        for text, count in sorted(counts.items()):
            yield text, count / int(self.sizes[text]), *firsts[text]

    def count_items(self) -> dict[str, tuple[int, int]]:
        """Returns for each set how many items it has, and how many of them can be found."""
        everything, findable = defaultdict(set), defaultdict(set)
        for (set_name, item_id), size in zip(self.items, self.sizes, strict=True):
            everything[set_name].add(item_id)
            if size:
                findable[set_name].add(item_id)
        return {name: (len(ids), len(findable[name])) for name, ids in sorted(everything.items())}


def build_index(
    eval_texts: Iterable[EvalText],
    n: int = NGRAM_WORDS,
    *,
    min_words: int = MIN_WORDS,
    max_items: int = MAX_ITEMS_PER_NGRAM,
) -> NgramIndex:
    """Builds the index of evaluation texts.

    Args:
        eval_texts: what must not be trained on.
        n: words an n-gram; in scripts without spaces, characters.
        min_words: shorter texts are not looked for; those between it and n only as a whole.
        max_items: an n-gram of more items of one set does not count.

    Raises:
        ValueError: if `min_words` is not between 1 and n.

    >>> index = build_index([EvalText("quiz", "1", "Which of the two kettles boils a litre first?")])
    >>> index.match("Q: which of the two kettles boils a litre first -- A: the red one")
    [Match(set_name='quiz', item_id='1', ngram_text='which of the two kettles boils a litre first', overlap_frac=1.0)]
    >>> index.match("Which of the two kettles is red?")
    []
    """
    if not 1 <= min_words <= n:
        raise ValueError(f"min_words: must be between 1 and n ({n}), got {min_words}.")
    items, lengths, hashes, texts = [], set(), [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    for set_name, item_id, text in eval_texts:
        words = split_words(text)
        if len(words) >= min_words:
            length = min(n, len(words))
            lengths.add(length)
            hashes.append(np.unique(run_hashes(hash_words(words), length)))
            texts.append(np.full(len(hashes[-1]), len(items), np.int32))
        items.append((set_name, item_id))
    pairs = np.concatenate(hashes), np.concatenate(texts)
    return _pack_index(*_drop_common(*pairs, items, max_items), items, tuple(sorted(lengths)))


def _drop_common(hashes, texts, items, max_items) -> tuple[np.ndarray, np.ndarray]:
    """Drops the (hash, text) pairs whose hash stands in too many items of the text's set."""
    if not items:
        return hashes, texts
    set_numbers = _number(set_name for set_name, _ in items)[texts]
    item_numbers = _number(items)[texts]
    _, hash_numbers = np.unique(hashes, return_inverse=True)
    in_set = hash_numbers.astype(np.int64) * (set_numbers.max(initial=0) + 1) + set_numbers
    distinct = np.unique(np.stack([in_set, item_numbers]), axis=1)
    groups, counts = np.unique(distinct[0], return_counts=True)
    rare = np.isin(in_set, groups[counts <= max_items])
    return hashes[rare], texts[rare]


def _number(values: Iterable) -> np.ndarray:
    numbers: dict = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _pack_index(hashes, texts, items, lengths) -> NgramIndex:
    order = np.lexsort((texts, hashes))
    distinct, firsts = np.unique(hashes[order], return_index=True)
    starts = np.append(firsts, len(hashes)).astype(np.int64)
    sizes = np.bincount(texts, minlength=len(items)).astype(np.int32)
    return NgramIndex(lengths, distinct, starts, texts[order], sizes, items)


def items_to_eval_texts(items: Iterable[dict], set_name: str) -> Iterator[EvalText]:
    """Yields the texts of evaluation items with `id`, `context` and `choices`."""
    for item in items:
        yield from _texts_of(set_name, str(item["id"]), [item["context"], *item["choices"]])


def _texts_of(set_name: str, item_id: str, fields: list[str]) -> Iterator[EvalText]:
    """Yields all fields as one text, and each that is long enough alone.

    A document may hold the question without its answers, or in another order.
    """
    fields = [text for text in fields if text.strip()]
    yield EvalText(set_name, item_id, "\n".join(fields))
    if len(fields) > 1:
        for text in fields:
            if len(split_words(text)) >= MIN_WORDS:
                yield EvalText(set_name, item_id, text)


def read_eval_texts(path: str | Path, name: str | None = None) -> list[EvalText]:
    """Reads the texts of any evaluation file, whatever its fields are called.

    Every string of a record counts, also those in lists and in records inside it, but no id.
    `.jsonl`: a record a line. `.json`: a list of records, or a record of such lists. `.csv` and
    `.tsv`: a row an item, the header too. `.txt`: paragraphs, or lines where no line is empty.

    Args:
        path: the file.
        name: of the set; the file's name without its ending by default.

    Raises:
        ValueError: if the file cannot be read so, or holds no item of `MIN_WORDS` words.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        endings = ", ".join(_READERS)
        raise ValueError(f"evaluation file: must end in one of {endings}, got {path}.")
    try:
        records = list(_READERS[path.suffix](path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"evaluation file: must be readable UTF-8, got {path}: {error}.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"evaluation file: must hold JSON, got {path}: {error}.") from None
    set_name = path.stem if name is None else name
    texts = []
    for number, record in enumerate(records, start=1):
        texts += _texts_of(set_name, _find_id(record, number), list(_strings_in(record)))
    if not any(len(split_words(text.text)) >= MIN_WORDS for text in texts):
        raise ValueError(
            f"evaluation file: must hold texts of at least {MIN_WORDS} words, got none in {path}."
        )
    return texts


def _read_jsonl(text: str) -> Iterator[object]:
    # Not splitlines(): a record may hold a line separator of Unicode.
    return (json.loads(line) for line in text.split("\n") if line.strip())


def _read_json(text: str) -> Iterator[object]:
    whole = json.loads(text)
    for part in whole.values() if isinstance(whole, dict) else [whole]:
        yield from part if isinstance(part, list) else [part]


def _read_table(delimiter: str):
    def read(text: str) -> Iterator[list[str]]:
        return csv.reader(text.splitlines(keepends=True), delimiter=delimiter)

    return read


def _read_paragraphs(text: str) -> list[str]:
    lines = [line.strip() for line in text.strip().splitlines()]
    paragraphs = "\n".join(lines).split("\n\n")
    return lines if len(paragraphs) == 1 else paragraphs


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table(","),
    ".tsv": _read_table("\t"),
    ".txt": _read_paragraphs,
}
_ID_FIELDS = ("id", "idx", "item_id", "question_id", "qid", "doc_id", "uid", "guid", "product_id")


def _find_id(record: object, number: int) -> str:
    if isinstance(record, dict):
        for key in _ID_FIELDS[:-1]:
            if record.get(key) not in (None, ""):
                return str(record[key])
    return str(number)


def _strings_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in _ID_FIELDS:
                yield from _strings_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings_in(part)


class Example(NamedTuple):
    """A document that was dropped, and one item that it holds."""

    document: str
    source: str
    language: str
    match: Match


@dataclass
class ContaminationReport:
    """Counts what was found; grows by `add` and `merge`, in any order to the same end.

    Attributes:
        max_examples: documents kept as examples for each set, those with the smallest keys.
        items_found: set name -> ids of items found in some document.
        dropped: (set name, source, language) -> documents dropped for it.
        examples: set name -> examples, sorted.
    """

    max_examples: int = 5
    items_found: dict[str, set[str]] = field(default_factory=dict)
    dropped: Counter = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, document: str, source: str, language: str, matches: Iterable[Match]) -> None:
        """Counts one document; `document` is its key or place, `matches` what the index found."""
        by_set: dict[str, list[Match]] = defaultdict(list)
        for match in matches:
            by_set[match.set_name].append(match)
        for name, found in by_set.items():
            self.items_found.setdefault(name, set()).update(match.item_id for match in found)
            self.dropped[name, source, language] += 1
            best = max(found, key=lambda match: (match.overlap_frac, match.item_id))
            self._keep_examples(name, [Example(document, source, language, best)])

    def merge(self, other: "ContaminationReport") -> None:
        """Adds the counts of another part of the corpus."""
        for name, ids in other.items_found.items():
            self.items_found.setdefault(name, set()).update(ids)
        self.dropped.update(other.dropped)
        for name, examples in other.examples.items():
            self._keep_examples(name, examples)

    def _keep_examples(self, name: str, more: list[Example]) -> None:
        kept = sorted(self.examples.get(name, []) + more)
        self.examples[name] = kept[: self.max_examples]


def report_words(report: ContaminationReport, index: NgramIndex) -> str:
    """Writes the report as plain lines: a table of sets, where it was found, examples."""
    counts = index.count_items()
    width = max([len("evaluation set"), *map(len, counts)])
    head = f"{'evaluation set':{width}}  {'items':>7} {'findable':>8} {'found':>7} {'dropped':>9}"
    lines = [head]
    for name, (items, findable) in counts.items():
        found = len(report.items_found.get(name, ()))
        dropped = sum(n for (held, _, _), n in report.dropped.items() if held == name)
        lines.append(f"{name:{width}}  {items:7,} {findable:8,} {found:7,} {dropped:9,}")
    for (name, source, language), number in sorted(report.dropped.items()):
        lines.append(f"{name}: {number:,} documents dropped from {source}, {language}")
    for name, examples in sorted(report.examples.items()):
        lines += [f"{name}: {_example_words(example)}" for example in examples]
    return "\n".join(lines)


def _example_words(example: Example) -> str:
    match = example.match
    return (
        f"{example.document} ({example.source}, {example.language}) holds "
        f'{match.overlap_frac:.0%} of item {match.item_id}: "{match.ngram_text}"'
    )
