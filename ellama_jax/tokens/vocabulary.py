"""Vocabulary advice: how much shorter text would get if the tokenizer had N more tokens.

Owns a continuation of byte-level BPE training on top of a finished tokenizer, and its measurement on
held-out documents. It is a figure only: no tokenizer and no embedding is made, and what new
embeddings would have to learn is not counted (compare arXiv 2509.26124, where about 30k tokens of
e-commerce text shortened inputs by up to 20 %).
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ellama_jax.corpus.duplicates import (
    Duplicate,
    Member,
    Signer,
    choose_bands,
    drop_in_bucket,
    exact_key,
)
from ellama_jax.model.presets import PRESETS
from ellama_jax.tokens.tokenizer import Tokenizer

# Sets are read up to about so many tokens each unless told otherwise.
DEFAULT_SAMPLE_TOKENS = 2**22
HELDOUT_FRAC = 0.2
# Documents at least so similar do not stand on both sides of the split.
_ALIKE = Signer(num_bands=choose_bands(128, 0.5), threshold=0.5)
_BATCH = 1000  # texts encoded at a time

Word = tuple[int, ...]
Pair = tuple[int, int]


def learn_merges(words: Mapping[Word, int], num_new: int, tokenizer: Tokenizer) -> list[tuple]:
    """Continues BPE training (Sennrich et al. 2016) from where a tokenizer stands.

    The most frequent pair of neighbouring tokens becomes a token, `num_new` times; of equally
    frequent pairs the one with the smaller ids. No merge reaches over a pre-token's border.

    Args:
        words: ids of each pre-token, as `Tokenizer.encode_words` cuts them, and how often it
            occurs.
        num_new: tokens to add; fewer come out where the text has no more pairs.
        tokenizer: of the ids, which are below its vocab_size.

    Returns:
        [(left, right, merged)] in the order learnt; new ids count up from vocab_size. A pair
        whose text is a token already gives that token's id and adds none.
    """
    corpus = [list(word) for word in words]
    counts = list(words.values())
    pair_counts, places = _count_pairs(corpus, counts)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    texts = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    ids = {text: token_id for token_id, text in reversed(list(enumerate(texts))) if text}
    merges: list[tuple] = []
    last = tokenizer.vocab_size + num_new
    while heap and len(texts) < last:
        negative, pair = heapq.heappop(heap)
        count = pair_counts.get(pair, 0)
        if count != -negative:  # an older count; the present one goes back in its place
            if 0 < count < -negative:
                heapq.heappush(heap, (-count, pair))
            continue
        text = texts[pair[0]] + texts[pair[1]]
        merged = ids.setdefault(text, len(texts))
        if merged == len(texts):
            texts.append(text)
        merges.append((*pair, merged))
        for grown in _merge_everywhere(pair, merged, corpus, counts, pair_counts, places):
            heapq.heappush(heap, (-pair_counts[grown], grown))
    return merges


def _count_pairs(corpus: list[list[int]], counts: list[int]) -> tuple[dict, dict]:
    pair_counts: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, set[int]] = defaultdict(set)
    for number, word in enumerate(corpus):
        for pair in zip(word, word[1:], strict=False):
            pair_counts[pair] += counts[number]
            places[pair].add(number)
    return pair_counts, places


def _merge_everywhere(
    pair: Pair, merged: int, corpus: list, counts: list, pair_counts: dict, places: dict
) -> set[Pair]:
    """Merges `pair` in every word that holds it; returns the pairs that became more frequent."""
    changes: dict[Pair, int] = defaultdict(int)
    for number in places.pop(pair):
        old = corpus[number]
        new = merge_pair(old, pair, merged)
        if len(new) == len(old):
            continue  # the pair was there once, and an earlier merge took it away
        corpus[number] = new
        count = counts[number]
        for gone in zip(old, old[1:], strict=False):
            changes[gone] -= count
        for come in zip(new, new[1:], strict=False):
            changes[come] += count
            if merged in come:
                places[come].add(number)
    for changed, by in changes.items():
        pair_counts[changed] += by
    pair_counts.pop(pair, None)
    return {changed for changed, by in changes.items() if by > 0}


def merge_pair(word: Sequence[int], pair: Pair, merged: int) -> list[int]:
    """Replaces every occurrence of a pair in a word, from the left.

    >>> merge_pair([7, 7, 7, 8], (7, 7), 9)
    [9, 7, 8]
    """
    left, right = pair
    out, i, last = [], 0, len(word) - 1
    while i <= last:
        if word[i] == left and i < last and word[i + 1] == right:
            out.append(merged)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def count_merged(words: Mapping[Word, int], merges: Sequence[tuple]) -> int:
    """Counts the tokens of a text after merges, the earlier learnt ones first, as BPE encodes.

    Args:
        words: as in `learn_merges`.
        merges: from `learn_merges`, or the first of them.
    """
    ranks = {(left, right): (rank, merged) for rank, (left, right, merged) in enumerate(merges)}
    return sum(count * len(_encode(word, ranks)) for word, count in words.items())


def _encode(word: Sequence[int], ranks: Mapping[Pair, tuple[int, int]]) -> Sequence[int]:
    while True:
        known = [pair for pair in zip(word, word[1:], strict=False) if pair in ranks]
        if not known:
            return word
        pair = min(known, key=ranks.__getitem__)
        word = merge_pair(word, pair, ranks[pair][1])


def split_documents(texts: Sequence[str], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divides documents into a training and a held-out part that share no near-duplicates.

    Variants of one product lie on one side: documents that are alike, directly or over others, form
    groups. Groups go to the held-out part in the order of a hash until it holds a fifth of the
    tokens; one that is larger than what is left goes to training.

    Args:
        texts: of the documents.
        sizes: tokens of each.

    Returns:
        Numbers of the training and of the held-out documents, ascending.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(_group_alike(texts)):
        members[group].append(number)
    room = HELDOUT_FRAC * sum(sizes)
    heldout: list[int] = []
    # Not the first member but the one of the smallest digest: the order of documents is no matter.
    order = {group: min(_digest(texts[n]) for n in numbers) for group, numbers in members.items()}
    for group in sorted(members, key=lambda group: (order[group], group)):
        size = sum(sizes[number] for number in members[group])
        if size <= room:
            heldout += members[group]
            room -= size
    chosen = set(heldout)
    return [n for n in range(len(texts)) if n not in chosen], sorted(heldout)


def _group_alike(texts: Sequence[str]) -> list[int]:
    """Returns for each document the smallest number in its group."""
    parent = list(range(len(texts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for duplicate in _find_alike(texts):
        low, high = sorted((root(int(duplicate.kept)), root(int(duplicate.dropped))))
        parent[high] = low
    return [root(number) for number in range(len(texts))]


def _find_alike(texts: Sequence[str]) -> Iterator[Duplicate]:
    """Yields what each bucket finds: `find_duplicates` names one keeper, here every link counts."""
    firsts: dict[bytes, str] = {}
    buckets: dict[bytes, list[Member]] = defaultdict(list)
    # By content, so that the groups do not depend on the order of documents.
    for number in sorted(range(len(texts)), key=lambda number: _digest(texts[number])):
        key, same = str(number), exact_key(texts[number])
        if same in firsts:
            yield Duplicate(key, firsts[same], 1.0)
            continue
        firsts[same] = key
        signature = _ALIKE.sign(texts[number])
        for band in _ALIKE.band_keys(signature):
            buckets[band].append(Member(len(firsts), key, signature))
    for members in buckets.values():
        yield from drop_in_bucket(members, _ALIKE.threshold)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def count_words(texts: Sequence[str], tokenizer: Tokenizer) -> Counter[Word]:
    """Counts the pre-tokens of texts by their ids."""
    counts: Counter[Word] = Counter()
    for start in range(0, len(texts), _BATCH):
        for words in tokenizer.encode_words(texts[start : start + _BATCH]):
            counts.update(words)
    return counts


def advise(
    groups: Mapping[tuple[str, str], Sequence[np.ndarray]],
    tokenizer: Tokenizer,
    sizes: Sequence[int],
) -> dict:
    """Measures what N more tokens, learnt from e-commerce text, would save.

    Merges are learnt on the training part of all e-commerce documents together and measured on the
    held-out part by language, and on general text, none of which they were learnt from.

    Args:
        groups: (domain, language) -> ids of documents without BOS and EOS.
        tokenizer: what made the ids.
        sizes: how many tokens to add, each at least 1.

    Returns:
        `sizes` (with how many could be learnt), `rows` [{domain, language, documents, tokens,
        saved}] where `saved` is one share for each size, `parameters` (model -> added for each
        size) and what was read for training.

    Raises:
        ValueError: if there is no e-commerce text, or none of it can be held out.
    """
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"vocabulary: sizes must be at least 1, got {list(sizes)}.")
    train, tests = _split_groups(groups, tokenizer)
    merges = learn_merges(train, sizes[-1], tokenizer)
    # A merge whose text was a token already adds none: count those that do.
    new = np.cumsum([merged >= tokenizer.vocab_size for *_, merged in merges], dtype=int)
    cuts = [int(np.searchsorted(new, size, side="left")) + 1 for size in sizes]
    rows = []
    for (domain, language), (documents, words) in sorted(tests.items()):
        before = count_merged(words, [])
        saved = [1 - count_merged(words, merges[:cut]) / before for cut in cuts]
        rows.append({"domain": domain, "language": language, "documents": documents,
                     "tokens": before, "saved": saved})  # fmt: skip
    return {
        "sizes": sizes,
        "learnt": [min(size, int(new[-1]) if len(new) else 0) for size in sizes],
        "train_tokens": sum(len(word) * count for word, count in train.items()),
        "rows": rows,
        "parameters": added_parameters(tokenizer.vocab_size, sizes),
    }


def _split_groups(groups: Mapping, tokenizer: Tokenizer) -> tuple[Counter, dict]:
    """Returns the training words, and (documents, words) to measure on by domain and language."""
    keys = sorted(key for key in groups if key[0] == "ecommerce")
    if not keys:
        raise ValueError("--vocabulary: must be given e-commerce window sets to learn from, got "
                         f"{', '.join('-'.join(key) for key in sorted(groups))}.")  # fmt: skip
    documents = [document for key in keys for document in groups[key]]
    owner = [key for key in keys for _ in groups[key]]
    texts = [tokenizer.decode(ids.tolist()) for ids in documents]
    train, heldout = split_documents(texts, [len(document) for document in documents])
    if not heldout:
        raise ValueError("--vocabulary: must hold out documents that are unlike the others, got "
                         f"{len(documents)} that are all alike or too few.")  # fmt: skip

    tests = {key: [tokenizer.decode(ids.tolist()) for ids in groups[key]]
             for key in groups if key not in keys}  # fmt: skip
    for number in heldout:
        tests.setdefault(owner[number], []).append(texts[number])
    measured = {key: (len(of), count_words(of, tokenizer)) for key, of in tests.items() if of}
    return count_words([texts[number] for number in train], tokenizer), measured


def added_parameters(vocab_size: int, sizes: Sequence[int]) -> dict[str, list[int]]:
    """Returns the parameters that new tokens add to the models whose vocabulary this can be.

    A tied embedding counts once. Where no preset has this vocabulary, Llama 3.1 8B stands in.

    >>> added_parameters(128256, [1000])["llama3.1-8b"]
    [8192000]
    """
    fitting = [p for p in PRESETS.values() if p.vocab_size == vocab_size]
    return {
        preset.name: [size * preset.embed_dim * (2 - preset.tied_embeddings) for size in sizes]
        for preset in fitting or [PRESETS["llama3.1-8b"]]
    }
