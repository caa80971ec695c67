"""Duplicates among tokenised documents: none missed, none invented, the same in any order."""

import numpy as np
import pytest

from ellama_jax.data.alike import find_duplicates


def document(seed, length=60):
    return np.random.default_rng(seed).integers(0, 50_000, length).astype(np.uint32)


def changed(tokens, *places):
    copy = tokens.copy()
    copy[list(places)] = 77_777
    return copy


def test_equal_documents_are_one_group_and_no_near_pair():
    same, other = document(0), document(1)
    groups, pairs = find_duplicates([same, other, same.copy(), same.copy()])
    assert groups == [[0, 2, 3]] and pairs == []


def test_a_changed_word_makes_a_near_duplicate_with_its_exact_similarity():
    first = document(0)
    # 60 tokens hold 56 runs of five; a changed one is in five of them: 51 common of 61.
    groups, pairs = find_duplicates([document(1), first, changed(first, 30)])
    assert groups == []
    assert pairs == [(1, 2, pytest.approx(51 / 61))]


def test_unlike_documents_and_those_of_few_tokens_are_no_duplicates():
    short = [np.array(ids, np.uint32) for ids in ([1], [2], [1, 2], [2, 1], [0, 1], [1, 0])]
    assert find_duplicates([*map(document, range(20)), *short]) == ([], [])
    assert find_duplicates([]) == ([], [])


def test_similarity_is_that_of_a_count_over_all_pairs():
    documents = [document(seed) for seed in range(30)]
    documents += [changed(documents[seed], *range(5, 5 + 7 * (seed % 4), 7)) for seed in range(12)]
    _, pairs = find_duplicates(documents, 0.5)
    runs = [{tuple(d[i : i + 5].tolist()) for i in range(56)} for d in documents]
    wanted = {
        (i, j): len(runs[i] & runs[j]) / len(runs[i] | runs[j])
        for j in range(len(runs))
        for i in range(j)
        if 0.5 <= len(runs[i] & runs[j]) / len(runs[i] | runs[j]) < 1
    }
    assert len(wanted) == 9
    assert {(i, j): pytest.approx(similarity) for i, j, similarity in pairs} == wanted
