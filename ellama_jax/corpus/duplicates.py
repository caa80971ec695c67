"""Which documents are copies of one another: exact keys, MinHash signatures, buckets.

Owns what counts as the same text (`exact_key`), how a text becomes words and hashed runs of words,
and who is dropped when two documents are alike. It reads no files and groups nothing on disk: the
pipeline groups by the keys made here. Every function is pure and gives the same in any process.

Words are case-folded, NFKC-normalised runs of letters, digits and combining marks; in scripts
written without spaces every character is a word.
"""

import bisect
import functools
import hashlib
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import rensa
import xxhash

# Scripts without spaces between words: Thai and Lao, Myanmar, Khmer, kana, Han.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_APOSTROPHES = re.compile(r"(?<=\w)['’ʼ](?=\w)")
# Words with digits are this many shingles more; measured in docs/GUIDE.md.
NUMBER_WEIGHT = 4
# Lines of fewer words are fields, headings or list entries rather than wrapped prose.
SHORT_LINE_WORDS = 8

_SEED = 3142  # of the permutations: signatures made with another one cannot be compared
_EMPTY_SLOT = np.uint32(0xFFFFFFFF)  # what a signature of nothing holds
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(33)
_NUMBER_COPIES = np.arange(1, NUMBER_WEIGHT + 1, dtype=np.uint64)
_SPACELESS_CHARACTER = re.compile(f"[{_SPACELESS}]")
_ASCII_WORDS = re.compile("[a-z0-9]+")
_DIGIT = re.compile(r"\d")
_IGNORED = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphens, joiners, direction marks


def exact_key(text: str) -> bytes:
    """Returns the key that texts share when they differ in case, white space or encoding only.

    Unicode NFKC, case folding, white space joined, invisible characters dropped. Punctuation
    stays: "1.5 l" is not "1 5 l", and copies that differ in it have equal words, so that the
    near-duplicate pass finds them.

    >>> exact_key("Kettle,\\u00a0RED \\n 1.5 l") == exact_key("kettle, red 1.5 L")
    True
    >>> exact_key("Kettle 1.5 l") == exact_key("Kettle 15 l")
    False
    """
    folded = " ".join(_fold(text).split())
    return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _IGNORED.sub("", folded)


def split_words(text: str) -> list[str]:
    """Splits a text into normalised words; punctuation parts words, an apostrophe does not.

    >>> split_words("L’œuf: 1.5 kg, GRÖSSE")
    ['lœuf', '1', '5', 'kg', 'grösse']
    >>> split_words("赤いケトル 40L")
    ['赤', 'い', 'ケ', 'ト', 'ル', '40l']
    """
    return _find_words(_fold(text))


def _find_words(folded: str) -> list[str]:
    spaced = _APOSTROPHES.sub("", folded).replace("_", " ")
    if spaced.isascii():
        return _ASCII_WORDS.findall(spaced)
    if _SPACELESS_CHARACTER.search(spaced):
        spaced = _SPACELESS_CHARACTER.sub(r" \g<0> ", spaced)
    return _word_pattern().findall(spaced)


@functools.cache
def _word_pattern() -> re.Pattern:
    # Python's \w leaves out combining marks, which would cut Hindi and Arabic words into pieces.
    marks = "".join(chr(c) for c in range(0x300, 0xFFFF) if unicodedata.category(chr(c))[0] == "M")
    return re.compile(f"[\\w{marks}]+")


def hash_words(words: list[str]) -> np.ndarray:
    """Hashes each word to [W] uint64, the same on every machine and in every process (XXH3)."""
    digest = xxhash.xxh3_64_intdigest
    return np.array([digest(word.encode()) for word in words], np.uint64)


def run_hashes(word_hashes: np.ndarray, length: int) -> np.ndarray:
    """Hashes every run of `length` consecutive words.

    Args:
        word_hashes: [W] uint64, from `hash_words`.
        length: words a run, at least 1.

    Returns:
        [max(W - length + 1, 0)] uint64, in the order of the text.

    >>> a = run_hashes(hash_words(["red", "kettle", "red", "kettle"]), 2)
    >>> a.shape, bool(a[0] == a[2]), bool(a[0] == a[1])
    ((3,), True, False)
    """
    return _mix(_sum_runs(word_hashes, length))


def _sum_runs(word_hashes: np.ndarray, length: int) -> np.ndarray:
    """Combines [W] uint64 hashes of words into [max(W - length + 1, 0)] of runs, unmixed."""
    count = max(len(word_hashes) - length + 1, 0)
    runs = np.zeros(count, np.uint64)
    for place in range(length if count else 0):
        runs = runs * _MULTIPLIER + word_hashes[place : place + count]
    return runs


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Spreads every bit over all (the finaliser of MurmurHash3), for sums leave patterns."""
    hashes = (hashes ^ (hashes >> _SHIFT)) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> _SHIFT)) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> _SHIFT)


def shingle_hashes(text: str, shingle: int) -> np.ndarray:
    """Hashes what two copies of a text have in common: its runs of words, and its numbers.

    The fields of a listing come in any order, so no run crosses the end of a short line, and a
    line shorter than a run is one shingle; prose may be wrapped anywhere, so ends of longer lines
    are not seen. Words with digits count `NUMBER_WEIGHT` times more: "40 L" and "60 L" are what
    tells two products apart.

    Args:
        text: a document.
        shingle: words a run.

    Returns:
        [S] uint64, sorted and distinct; empty if the text holds no word.
    """
    parts = _split_parts(text)
    words = list(itertools.chain.from_iterable(parts))
    if not words:
        return np.empty(0, np.uint64)
    hashes = hash_words(words)
    ends = np.cumsum([len(part) for part in parts])
    short = [" ".join(part) for part in parts if len(part) < shingle]
    has_digit = [place for place, w in enumerate(words) if not w.isalpha() and _DIGIT.search(w)]
    numbers = hashes[has_digit, None] + _NUMBER_COPIES
    runs = _runs_inside(hashes, ends, shingle)
    return np.unique(_mix(np.concatenate([runs, hash_words(short), numbers.ravel()])))


def _split_parts(text: str) -> list[list[str]]:
    """Splits a text into parts that runs stay inside: short lines, and what is between them."""
    parts, short_before = [], True
    for line in _fold(text).splitlines():
        words = _find_words(line)
        if not words:
            continue
        short = len(words) < SHORT_LINE_WORDS
        if short or short_before:
            parts.append(words)
        else:
            parts[-1].extend(words)
        short_before = short
    return parts


def _runs_inside(word_hashes: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Returns the unmixed hashes of the runs that cross none of `ends`, [parts] counts of words."""
    runs = _sum_runs(word_hashes, length)
    crosses = np.zeros(len(word_hashes) + length, bool)
    for before in range(1, length):
        crosses[np.maximum(ends - before, 0)] = True
    return runs[~crosses[: len(runs)]]


def candidate_recall(similarity: float, num_bands: int, rows: int) -> float:
    """Returns how likely two documents of this Jaccard similarity share a band.

    1 - (1 - s^rows)^bands, Leskovec et al., Mining of Massive Datasets, section 3.4.2.

    >>> round(candidate_recall(0.8, 16, 8), 3), round(candidate_recall(0.3, 16, 8), 3)
    (0.947, 0.001)
    """
    return 1 - (1 - similarity**rows) ** num_bands


def choose_bands(num_perm: int, threshold: float, min_recall: float = 0.95) -> int:
    """Chooses the number of bands: the fewest that still find `min_recall` at the threshold.

    Fewer bands of more rows bring together fewer documents that are not alike.

    Args:
        num_perm: slots of a signature, cut into bands of num_perm // bands rows.
        threshold: Jaccard similarity from which two documents are copies.
        min_recall: share of the pairs exactly at the threshold that must share a band.

    Raises:
        ValueError: if no number of bands finds that many.

    >>> choose_bands(128, 0.75), round(candidate_recall(0.75, 21, 128 // 21), 3)
    (21, 0.984)
    """
    for rows in range(num_perm, 0, -1):
        num_bands = num_perm // rows
        if candidate_recall(threshold, num_bands, rows) >= min_recall:
            return num_bands
    raise ValueError(
        f"num_perm: must be large enough to find {min_recall:.0%} of the pairs of similarity "
        f"{threshold}, got {num_perm}; raise it, or the threshold."
    )


@dataclass(frozen=True)
class Signer:
    """Signs documents with MinHash (Broder 1997; rensa's R-MinHash after arXiv 1704.04370).

    Attributes:
        num_perm: slots of a signature, 4 bytes each; the similarity of two signatures has a
            standard error of sqrt(s (1 - s) / num_perm), 0.04 at 0.75.
        num_bands: see `choose_bands`; the slots left over by the division are only compared.
        threshold: estimated Jaccard similarity from which one of two documents is dropped.
        shingle: words a run, see `shingle_hashes`.
    """

    num_perm: int = 128
    num_bands: int = 21
    threshold: float = 0.75
    shingle: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: must be above 0 and at most 1, got {self.threshold}.")
        if not 1 <= self.num_bands <= self.num_perm:
            raise ValueError(
                f"num_bands: must be between 1 and num_perm ({self.num_perm}), "
                f"got {self.num_bands}."
            )
        if self.shingle < 1:
            raise ValueError(f"shingle: must be at least 1, got {self.shingle}.")

    def sign(self, text: str) -> np.ndarray:
        """Returns the signature of a document, [num_perm] uint32.

        >>> a = Signer().sign("Kettle Nyx, red\\nBrand: Nyx\\nVolume: 1.5 l\\nPrice: 49.99")
        >>> b = Signer().sign("KETTLE NYX red\\n\\nVolume: 1.5 L\\nBrand: Nyx\\nPrice: 49,99")
        >>> similarity(a, b)
        1.0
        """
        hashes = shingle_hashes(text, self.shingle)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, [0, len(hashes)], self.num_perm, _SEED
        )
        return np.array(matrix.to_rows()[0], np.uint32)

    def band_keys(self, signature: np.ndarray) -> list[bytes]:
        """Returns the keys to group by: documents that share one are compared.

        A key holds its band's number. A text without words has no key, for it is like nothing.
        """
        if (signature == _EMPTY_SLOT).all():
            return []
        rows = self.num_perm // self.num_bands
        width = rows * 4
        slots = np.ascontiguousarray(signature, "<u4").tobytes()
        return [
            band.to_bytes(2, "big")
            + xxhash.xxh3_64_digest(slots[band * width : (band + 1) * width])
            for band in range(self.num_bands)
        ]


def similarity(signature: np.ndarray, other: np.ndarray) -> float:
    """Estimates the Jaccard similarity of two documents: the share of equal slots."""
    return float(np.mean(signature == other))


class Member(NamedTuple):
    """A document in a bucket: the smaller (rank, key) stays.

    Attributes:
        rank: 0 for held-out documents, 1 for training ones, so that held-out ones stay.
        key: unique.
        signature: [num_perm] uint32.
    """

    rank: int
    key: str
    signature: np.ndarray


class Duplicate(NamedTuple):
    """One document is dropped because another, of smaller (rank, key), is like it."""

    dropped: str
    kept: str
    similarity: float


def drop_in_bucket(
    members: Iterable[Member], threshold: float, max_compared: int = 256
) -> Iterator[Duplicate]:
    """Finds the documents of one bucket that are like one of smaller (rank, key).

    Whoever is like a smaller one goes, also when that one goes itself: this can be told in each
    bucket alone, whatever the others say, and never keeps two documents that are alike.

    Time grows with the number of members, and memory does not: every member is compared with the
    `max_compared` smallest that have different signatures. In a bucket with more kinds of text
    than that, copies of the others are missed here (they share further bands).

    Args:
        members: (rank, key, signature); read twice, so no iterator. Order does not matter.
        threshold: estimated similarity from which the greater one is dropped.
        max_compared: pivots held in memory.

    Yields:
        One Duplicate per dropped document, in the order of `members`, naming the smallest
        document that is like it.

    Raises:
        ValueError: if `members` is an iterator, which cannot be read twice.
    """
    _require_rereadable(members)
    pivots = _smallest_by_signature(members, max_compared)
    matrix = np.stack([pivot.signature for pivot in pivots]) if pivots else None
    order = [(pivot.rank, pivot.key) for pivot in pivots]
    for rank, key, signature in members:
        num_smaller = bisect.bisect_left(order, (rank, key))
        found = _first_like(matrix[:num_smaller], signature, threshold)
        if found is not None:
            yield Duplicate(key, pivots[found[0]].key, found[1])


def _require_rereadable(members: Iterable) -> None:
    if iter(members) is iter(members):
        raise ValueError("members: must be readable twice, got an iterator; give a list.")


def _smallest_by_signature(members: Iterable[Member], count: int) -> list[Member]:
    """Returns the `count` smallest members with different signatures, sorted.

    Copies of one text would otherwise take all the places. A signature that was pushed out comes
    back with a smaller member, so the result does not depend on the order.
    """
    order: list[tuple[tuple[int, str], bytes]] = []
    held: dict[bytes, Member] = {}
    for member in map(Member._make, members):
        place, kind = member[:2], np.ascontiguousarray(member.signature, "<u4").tobytes()
        if kind in held:
            if held[kind][:2] <= place:
                continue
            order.remove((held[kind][:2], kind))
        elif len(order) == count and order[-1][0] < place:
            continue
        bisect.insort(order, (place, kind))
        held[kind] = member
        if len(order) > count:
            del held[order.pop()[1]]
    return [held[kind] for _, kind in order]


def _first_like(
    pivots: np.ndarray, signature: np.ndarray, threshold: float
) -> tuple[int, float] | None:
    """Finds the first row of [P, num_perm] that is like the signature; most have one early on."""
    for start, end in ((0, 8), (8, len(pivots))):
        same = np.count_nonzero(pivots[start:end] == signature, axis=1)
        equal = same / len(signature)
        alike = np.flatnonzero(equal >= threshold)
        if len(alike):
            return start + int(alike[0]), float(equal[alike[0]])
    return None


def drop_exact(members: Iterable[tuple[int, str]]) -> Iterator[Duplicate]:
    """Drops all but the smallest (rank, key) of documents that share an `exact_key`.

    >>> [duplicate.dropped for duplicate in drop_exact([(1, "b"), (1, "a"), (0, "z")])]
    ['b', 'a']
    """
    _require_rereadable(members)
    kept = min(members, default=None)
    for member in members:
        if member != kept:
            yield Duplicate(member[1], kept[1], 1.0)


def choose_keeper(duplicates: Iterable[Duplicate]) -> Duplicate:
    """Chooses what to report of one dropped document: the most similar keeper, then the smallest.

    A document may be dropped in several buckets.
    """
    return min(duplicates, key=lambda duplicate: (-duplicate.similarity, duplicate.kept))


def find_duplicates(
    documents: Iterable[tuple[int, str, str]], signer: Signer | None = None
) -> list[Duplicate]:
    """Finds the documents to drop among those that fit in memory, as the pipeline does.

    Args:
        documents: (rank, key, text), keys unique; see `Member`.
        signer: with which settings.

    Returns:
        One Duplicate per dropped document, sorted by its key.

    >>> find_duplicates([(1, "a", "Red kettle, 1.5 l"), (1, "b", "RED kettle,  1.5 l"),
    ...                  (1, "c", "Blue lamp, 40 cm")])
    [Duplicate(dropped='b', kept='a', similarity=1.0)]
    """
    signer = signer or Signer()
    exact, buckets = defaultdict(list), defaultdict(list)
    texts = {}
    for rank, key, text in documents:
        texts[rank, key] = text
        exact[exact_key(text)].append((rank, key))
    dropped = [duplicate for group in exact.values() for duplicate in drop_exact(group)]
    for rank, key in map(min, exact.values()):
        signature = signer.sign(texts[rank, key])
        for band in signer.band_keys(signature):
            buckets[band].append(Member(rank, key, signature))
    proposals = defaultdict(list)
    for members in (bucket for bucket in buckets.values() if len(bucket) > 1):
        for duplicate in drop_in_bucket(members, signer.threshold):
            proposals[duplicate.dropped].append(duplicate)
    dropped += [choose_keeper(found) for found in proposals.values()]
    return sorted(dropped)
