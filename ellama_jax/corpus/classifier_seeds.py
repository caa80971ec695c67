"""Labelled documents to train the e-commerce classifier on, and their split.

Owns the seeds' form, what is refused, and what must not straddle the splits. What is learnt of them
is `classifier`'s business.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LABELS = ("other", "ecommerce")
_SOURCE_FOLDS = 5
MIN_DOCUMENTS = 40  # of each language and label; fewer leave nothing to choose a threshold by

_DOMAINS = {"ecommerce": "ecommerce", "general": "other"}
_SPLITS = ("train", "test", "train", "validation", "train", "train", "train")


@dataclass(frozen=True)
class Seed:
    """One labelled document; `group` is what must not straddle the splits, `source` whence it is."""

    text: str
    language: str
    label: str
    group: str
    source: str = ""


def read_seeds(paths: Sequence[str | Path]) -> tuple[list[Seed], int]:
    """Reads labelled documents, each text once.

    A line is a JSON object with `text`, `language`, and `label` ("ecommerce" or "other") or the
    `domain` of our own documents ("ecommerce" or "general"). `group` or `product_id` says which
    documents are of one thing, such as the variants and translations of a product; `source` names
    the shop, site or collection.

    Args:
        paths: JSONL files.

    Returns:
        The seeds, and how many lines repeated an earlier text.

    Raises:
        ValueError: if a line is no such object, a text has both labels, or a language has too few
            documents of either label.
        OSError: if a file cannot be read.
    """
    seeds: dict[tuple[str, str], tuple[Seed, str]] = {}
    repeated = 0
    for path in map(Path, paths):
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            seed, place = _read_seed(line, f"{path}:{number}"), f"{path}:{number}"
            key = (seed.language, " ".join(seed.text.split()))
            earlier = seeds.setdefault(key, (seed, place))
            if earlier[0].label != seed.label:
                raise ValueError(
                    f"{place}: a text must have one label, got {seed.label} here and "
                    f"{earlier[0].label} at {earlier[1]}."
                )
            repeated += earlier[1] != place
    found = [seed for seed, _ in seeds.values()]
    _check_counts(found)
    return found, repeated


def _read_seed(line: bytes, place: str) -> Seed:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: must be a line of JSON in UTF-8, got {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: must be a JSON object, got {type(record).__name__}.")
    for key in ("text", "language"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(
                f"{place}: {key} must be a text that is not empty, got {record.get(key)!r}."
            )
    label = record.get("label", _DOMAINS.get(str(record.get("domain"))))
    if label not in LABELS:
        raise ValueError(
            f"{place}: label must be ecommerce or other (or domain ecommerce or general), got "
            f"{record.get('label', record.get('domain'))!r}."
        )
    group = next((record[key] for key in ("group", "product_id") if record.get(key)), None)
    language = re.split("[-_]", record["language"])[0].lower()
    source = record.get("source")
    group, source = ("" if one is None else str(one) for one in (group, source))
    return Seed(record["text"], language, label, group, source)


def _check_counts(seeds: Sequence[Seed]) -> None:
    if not seeds:
        raise ValueError("seeds: must hold labelled documents, got none.")
    counts = Counter((seed.language, seed.label) for seed in seeds)
    for language in sorted({seed.language for seed in seeds}):
        for label in LABELS:
            if counts[language, label] < MIN_DOCUMENTS:
                raise ValueError(
                    f"seeds: need at least {MIN_DOCUMENTS} different documents of each label in "
                    f"every language, got {counts[language, label]} of {label} in {language}."
                )


def split_seeds(seeds: Sequence[Seed], seed: int) -> dict[str, list[Seed]]:
    """Splits documents into train (5 of 7), validation and test (1 of 7 each), group by group.

    Documents stay together that share a group, or that are near-duplicates: MinHash over word
    5-grams, Jaccard similarity about 0.7 and more. The order of the seeds does not matter.

    Raises:
        ValueError: if a language and label is missing in a split: its groups are too few.
    """
    ordered = sorted(
        seeds, key=lambda one: (one.language, one.label, one.text, one.group, one.source)
    )
    members: dict[int, list[Seed]] = {}
    for one, root in zip(ordered, _group_roots(ordered), strict=True):
        members.setdefault(root, []).append(one)
    kinds: dict[tuple, list[tuple[str, list[Seed]]]] = {}
    for group in members.values():
        kind = tuple(sorted({(one.language, one.label) for one in group}))
        digest = hashlib.sha256(
            f"{seed}\0{group[0].language}\0{group[0].text}".encode()
        ).hexdigest()
        kinds.setdefault(kind, []).append((digest, group))
    splits: dict[str, list[Seed]] = {"train": [], "validation": [], "test": []}
    for kind in sorted(kinds):
        for number, (_, group) in enumerate(sorted(kinds[kind], key=lambda pair: pair[0])):
            splits[_SPLITS[number % len(_SPLITS)]] += group
    _check_splits(ordered, splits)
    return splits


def deal_sources(seeds: Sequence[Seed]) -> np.ndarray | None:
    """Deals whole sources into up to five folds, each to be judged by a model of the others.

    Returns:
        [len(seeds)] fold of each document; -1 - fold where its language and label has one source
        alone, so that it is not judged; None if that leaves a label without any, or a model
        without a label.
    """
    names = defaultdict(set)
    for one in seeds:
        names[one.language, one.label].add(one.source)
    counts = {name: np.zeros(len(LABELS), int) for name in sorted({one.source for one in seeds})}
    for one in seeds:
        counts[one.source][LABELS.index(one.label)] += 1
    fold_of, load = {}, np.zeros((_SOURCE_FOLDS, len(LABELS)), int)
    # The largest first, each where there is least of its label.
    for name in sorted(counts, key=lambda name: (-counts[name].sum(), name)):
        fold_of[name] = int(load[:, counts[name].argmax()].argmin())
        load[fold_of[name]] += counts[name]
    judged = [len(names[one.language, one.label]) > 1 for one in seeds]
    folds = np.array([fold_of[one.source] for one in seeds])
    labels = {one.label for one, is_judged in zip(seeds, judged, strict=True) if is_judged}
    if len(labels) < len(LABELS) or (load == load.sum(0)).any():
        return None
    return np.where(judged, folds, -1 - folds)


def _check_splits(seeds: Sequence[Seed], splits: dict[str, list[Seed]]) -> None:
    for cell in sorted({(one.language, one.label) for one in seeds}):
        for name, part in splits.items():
            if not any((one.language, one.label) == cell for one in part):
                raise ValueError(
                    f"seeds: need documents of {cell[1]} in {cell[0]} of enough different groups "
                    f"for three splits, got none left for {name}."
                )


def _group_roots(seeds: Sequence[Seed]) -> list[int]:
    """Returns for each document the number of the first one of its group."""
    parents = list(range(len(seeds)))

    def find(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first: dict[tuple, int] = {}
    for number, one in enumerate(seeds):
        for key in _group_keys(one):
            left, right = sorted((find(first.setdefault(key, number)), find(number)))
            parents[right] = left
    return [find(number) for number in range(len(seeds))]


def _group_keys(one: Seed) -> Iterable[tuple]:
    from rensa import RMinHash

    if one.group:
        yield ("group", one.group)
    words = re.findall(r"\w+", one.text.lower())
    grams = [" ".join(words[start : start + 5]) for start in range(max(1, len(words) - 4))]
    sketch = RMinHash(num_perm=80, seed=1)
    sketch.update(grams)
    digest = sketch.digest()
    # 10 bands of 8: two texts meet with probability 0.5 at a similarity of 0.72.
    for band in range(10):
        yield (band, *digest[8 * band : 8 * band + 8])
