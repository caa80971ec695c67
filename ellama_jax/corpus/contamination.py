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
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ellama_jax.core.paths import as_path
from ellama_jax.corpus.duplicates import hash_words, run_hashes, split_words

# A text of fewer words is found whole or not at all, and below MIN_WORDS not looked for:
# "Color: black" stands in half of all listings.
NGRAM_WORDS = 13
MIN_WORDS = 8
MIN_OVERLAP_FRAC = 0.5
# An n-gram of more items of one set is its template, its few-shot examples or a licence.
MAX_ITEMS_PER_NGRAM = 10

_ARRAYS = ("prefixes", "hashes", "starts", "texts", "sizes")
_PUNCTUATION = re.compile(r"[^\w\s]")


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
        prefixes: [<= H] uint64, sorted and distinct hashes of the first lengths[0] words of each.
        hashes: [H] uint64, sorted and distinct.
        starts: [H + 1] int64; the texts that hold hashes[i] are texts[starts[i] : starts[i + 1]].
        texts: [P] int32, numbers of texts.
        sizes: [T] int32, distinct n-grams of each text that count; 0 where it cannot be found.
        items: (set_name, item_id) of each text.
    """

    lengths: tuple[int, ...]
    prefixes: np.ndarray
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
        places = self._candidate_places(word_hashes)
        for length in self.lengths if len(places) else ():
            for place, number in self._find(run_hashes(word_hashes, length), places):
                first_places.setdefault(number, (place, length))
        best: dict[tuple[str, str], Match] = {}
        for number, overlap, place, length in self._overlaps(first_places):
            item = self.items[number]
            if overlap >= min_overlap_frac and (item not in best or overlap > best[item][3]):
                best[item] = Match(*item, " ".join(words[place : place + length]), overlap)
        return sorted(best.values())

    @cached_property
    def _filter(self) -> np.ndarray:
        """A table of the prefixes' low bits, which tells most places of a document apart."""
        bits = min(max(int(len(self.prefixes) * 32).bit_length(), 10), 30)
        table = np.zeros(1 << bits, bool)
        table[self.prefixes & np.uint64(len(table) - 1)] = True
        return table

    def _candidate_places(self, word_hashes: np.ndarray) -> np.ndarray:
        """Returns the places of [W] words at which an n-gram of the index begins, rising."""
        if not len(self.prefixes):
            return np.empty(0, np.int64)
        runs = run_hashes(word_hashes, self.lengths[0])
        places = np.flatnonzero(self._filter[runs & np.uint64(len(self._filter) - 1)])
        return places[_find_sorted(self.prefixes, runs[places]) >= 0]

    def _find(self, runs: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yields (place, number in `hashes`) of the runs at `places` that the index holds."""
        places = places[places < len(runs)]
        numbers = _find_sorted(self.hashes, runs[places])
        held = numbers >= 0
        yield from zip(places[held].tolist(), numbers[held].tolist(), strict=True)

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


def _find_sorted(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns where each of `wanted` stands in sorted, non-empty `values`, or -1."""
    places = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[places] == wanted, places, -1)


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
    items, runs, sizes = [], [], []
    for set_name, item_id, text in eval_texts:
        for words in _spellings(text):
            items.append((set_name, item_id))
            runs.append(hash_words(words) if len(words) >= min_words else np.empty(0, np.uint64))
            sizes.append(min(n, len(words)))
    # Prefixes are as long as the shortest text, so that one look at a place covers all lengths.
    lengths = sorted({size for size in sizes if size >= min_words}) or [n]
    triples = [
        _text_runs(word_hashes, size, lengths[0], number)
        for number, (word_hashes, size) in enumerate(zip(runs, sizes, strict=True))
    ]
    hashes, prefixes, texts = np.concatenate([*triples, np.empty((3, 0), np.uint64)], axis=1)
    texts = texts.astype(np.int32)
    rare = _is_rare(hashes, texts, items, max_items)
    return _pack_index(tuple(lengths), prefixes[rare], hashes[rare], texts[rare], items)


def _spellings(text: str) -> list[list[str]]:
    """Returns the words of a text, and those it has when punctuation was deleted or made spaces.

    "3.50", "350" and "3 50", "l'eau" and "l eau" are other words; a copy may have any of them.
    """
    spellings = [text, _PUNCTUATION.sub("", text), _PUNCTUATION.sub(" ", text)]
    return [list(words) for words in dict.fromkeys(tuple(split_words(s)) for s in spellings)]


def _text_runs(word_hashes, length: int, prefix_length: int, number: int) -> np.ndarray:
    """Returns [3, K] uint64: hashes of distinct runs, of their prefixes, the text's number."""
    hashes, firsts = np.unique(run_hashes(word_hashes, length), return_index=True)
    prefixes = run_hashes(word_hashes, prefix_length)[firsts]
    return np.stack([hashes, prefixes, np.full(len(hashes), number, np.uint64)])


def _is_rare(hashes, texts, items, max_items) -> np.ndarray:
    """Tells of each (hash, text) pair whether few enough items of the text's set hold the hash."""
    if not len(hashes):
        return np.zeros(0, bool)
    set_numbers = _number(set_name for set_name, _ in items)[texts]
    item_numbers = _number(items)[texts]
    _, hash_numbers = np.unique(hashes, return_inverse=True)
    in_set = hash_numbers * (set_numbers.max() + 1) + set_numbers
    num_items = item_numbers.max() + 1
    held = np.unique(in_set * num_items + item_numbers) // num_items
    return np.bincount(held, minlength=in_set.max() + 1)[in_set] <= max_items


def _number(values: Iterable) -> np.ndarray:
    numbers: dict = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _pack_index(lengths, prefixes, hashes, texts, items) -> NgramIndex:
    order = np.lexsort((texts, hashes))
    distinct, firsts = np.unique(hashes[order], return_index=True)
    starts = np.append(firsts, len(hashes)).astype(np.int64)
    sizes = np.bincount(texts, minlength=len(items)).astype(np.int32)
    return NgramIndex(lengths, np.unique(prefixes), distinct, starts, texts[order], sizes, items)


def items_to_eval_texts(items: Iterable[dict], set_name: str) -> Iterator[EvalText]:
    """Yields the texts of evaluation items with `id`, `context` and `choices`."""
    for item in items:
        fields = {"context": item["context"], "choices": list(item["choices"])}
        yield from _texts_of(set_name, str(item["id"]), fields)


def _texts_of(set_name: str, item_id: str, record: object) -> Iterator[EvalText]:
    """Yields all strings of a record as one text, and each that is long enough alone.

    A document may hold the question without its answers, or in another order. What stands in a
    list is an answer: a category path of ten words is one, and stands in hundreds of listings.
    """
    strings = [(text, alone) for text, alone in _strings_in(record) if text.strip()]
    yield EvalText(set_name, item_id, "\n".join(text for text, _ in strings))
    for text, alone in strings if len(strings) > 1 else ():
        if alone and len(split_words(text)) >= MIN_WORDS:
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
    path = as_path(path)
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
        texts += _texts_of(set_name, _find_id(record, number), record)
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


def _read_table(delimiter: str) -> Callable[[str], Iterator[object]]:
    def read(text: str) -> Iterator[dict]:
        for row in csv.reader(text.splitlines(keepends=True), delimiter=delimiter):
            yield dict(enumerate(row))

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
_ID_FIELDS = ("id", "idx", "item_id", "question_id", "qid", "doc_id", "uid", "guid")


def _find_id(record: object, number: int) -> str:
    if isinstance(record, dict):
        for key in _ID_FIELDS:
            if record.get(key) not in (None, ""):
                return str(record[key])
    return str(number)


def _strings_in(value: object, alone: bool = True) -> Iterator[tuple[str, bool]]:
    """Yields the strings of a record, and whether each is a field of its own."""
    if isinstance(value, str):
        yield value, alone
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in _ID_FIELDS:
                yield from _strings_in(part, alone)
    elif isinstance(value, list):
        for part in value:
            yield from _strings_in(part, isinstance(part, dict))


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


def save_index(index: NgramIndex, path: str | Path) -> None:
    """Writes an index as one file, local or in a bucket."""
    items = np.frombuffer(json.dumps(index.items).encode(), np.uint8)
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    content = io.BytesIO()
    np.savez(content, items=items, lengths=np.array(index.lengths, np.int64), **arrays)
    as_path(path).write_bytes(content.getvalue())


def load_index(path: str | Path) -> NgramIndex:
    """Reads an index that `save_index` wrote."""
    with np.load(io.BytesIO(as_path(path).read_bytes())) as file:
        items = [tuple(item) for item in json.loads(file["items"].tobytes())]
        arrays = {name: file[name] for name in _ARRAYS}
        return NgramIndex(lengths=tuple(file["lengths"].tolist()), items=items, **arrays)
