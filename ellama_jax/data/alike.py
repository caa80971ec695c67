"""Which documents are the same, to the letter or nearly: MinHash over runs of tokens.

Owns the comparison of tokenised documents for audits and honest splits; removing duplicates from
text is the curation's.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

NEAR_JACCARD = 0.8

_SHINGLE = 5  # tokens
_PERMUTATIONS = 128


def find_duplicates(
    documents: Sequence[np.ndarray], jaccard: float = NEAR_JACCARD
) -> tuple[list[list[int]], list[tuple[int, int, float]]]:
    """Finds equal documents, and near-duplicates by MinHash over runs of five tokens.

    Args:
        documents: ids of each.
        jaccard: similarity of the sets of runs from which two documents are near-duplicates;
            candidates come from MinHash (Broder 1997), the similarity itself is computed exactly.

    Returns:
        Groups of two and more equal documents, and (first, second, similarity) of
        near-duplicates, each second with the one it was found by; equal ones are not among them.
    """
    equal: dict[bytes, list[int]] = {}
    for number, document in enumerate(documents):
        key = hashlib.blake2b(np.ascontiguousarray(document).tobytes(), digest_size=16).digest()
        equal.setdefault(key, []).append(number)
    groups = [group for group in equal.values() if len(group) > 1]
    firsts = [group[0] for group in equal.values()]
    shingles = [_shingles(documents[number]) for number in firsts]
    pairs = []
    for i, j in _candidates(shingles, jaccard):
        similarity = _jaccard(shingles[i], shingles[j])
        if similarity >= jaccard:
            pairs.append((firsts[i], firsts[j], similarity))
    return groups, pairs


def _shingles(document: np.ndarray) -> np.ndarray:
    """Hashes every run of five tokens to 64 bits; a shorter document is one run."""
    ids = np.asarray(document, dtype=np.uint64) + np.uint64(1)
    count = max(1, len(ids) - _SHINGLE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(min(_SHINGLE, len(ids))):
        hashes = (hashes + ids[place : place + count]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def _candidates(shingles: Sequence[np.ndarray], jaccard: float) -> list[tuple[int, int]]:
    """Pairs each set with the first one that shares a band of its signature, for every band."""
    import rensa

    if len(shingles) < 2:
        return []
    # b bands of r rows meet at about (1/b)^(1/r): a little below the wanted similarity.
    rows = next(r for r in (8, 4, 2, 1) if (r / _PERMUTATIONS) ** (1 / r) < jaccard)
    offsets = np.cumsum([0, *map(len, shingles)]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(shingles), offsets, num_perm=_PERMUTATIONS, seed=0
    )
    signatures = np.array(matrix.to_rows(), dtype=np.uint32)
    found = set()
    for start in range(0, _PERMUTATIONS, rows):
        first_with: dict[bytes, int] = {}
        band = np.ascontiguousarray(signatures[:, start : start + rows])
        for number, key in enumerate(band.view(f"V{4 * rows}").ravel().tolist()):
            first = first_with.setdefault(key, number)
            if first != number:
                found.add((first, number))
    return sorted(found)


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
