"""Packing: nothing is lost, what fits stays whole, little is wasted."""

import numpy as np
import pytest

from ellama_jax.tokens.packing import PADDING, pack_documents, plan_windows

BOS, EOS = 98, 99


def random_documents(seed, count=60, longest=40):
    """Documents of 1 to `longest` ids in [0, 98), skewed to short ones; id 0 is common."""
    rng = np.random.default_rng(seed)
    lengths = 1 + (longest * rng.random(count) ** 3).astype(int)
    return [np.maximum(0, rng.integers(-20, 98, length)).tolist() for length in lengths]


def pieces_of(window, eos=EOS):
    """Splits a window at EOS by a loop: the reference for the vectorised `segments`."""
    pieces = [[]]
    for token in window.tolist():
        if token == PADDING:
            break
        pieces[-1].append(token)
        if token == eos:
            pieces.append([])
    return [piece for piece in pieces if piece]


def framed(documents):
    return [[BOS, *document, EOS] for document in documents]


@pytest.mark.parametrize("seed", range(8))
def test_every_document_token_appears_exactly_once(seed):
    documents = framed(random_documents(seed))
    windows = pack_documents(documents, 16, seed)
    pieces = [tuple(piece) for window in windows for piece in pieces_of(window)]
    expected = [
        tuple(document[start : start + 16])
        for document in documents
        for start in range(0, len(document), 16)
    ]
    assert sorted(pieces) == sorted(expected)


@pytest.mark.parametrize("seed", range(8))
def test_documents_that_fit_are_whole_and_unfinished_pieces_fill_their_window(seed):
    documents = framed(random_documents(seed))
    whole = {tuple(document) for document in documents if len(document) <= 16}
    found = set()
    for window in pack_documents(documents, 16, seed):
        for piece in pieces_of(window):
            assert piece[-1] == EOS or len(piece) == 16
            found.add(tuple(piece))
    assert whole and whole <= found


def test_padding_only_ends_a_window():
    for window in pack_documents(framed(random_documents(1)), 16):
        used = window != PADDING
        assert used.any() and np.all(np.diff(used.astype(int)) <= 0)


def test_packing_needs_at_most_a_hundredth_more_windows_than_the_tokens():
    rng = np.random.default_rng(0)
    documents = [[7] * n for n in np.clip(rng.lognormal(4.5, 1.0, 4000), 3, 4000).astype(int)]
    windows = pack_documents(documents, 1024)
    assert len(windows) <= 1.01 * sum(map(len, documents)) / 1024


def test_equal_seeds_pack_alike_and_others_differently():
    documents = framed(random_documents(0))
    first, again, other = (pack_documents(documents, 16, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_neighbours_in_the_source_do_not_stay_neighbours():
    # Document i holds its own number: in the order given, differences would all be 1.
    documents = [[i, i, i, i] for i in range(90)]
    firsts = pack_documents(documents, 8)[:, ::4].astype(int)
    assert np.mean(np.abs(firsts[:, 0] - firsts[:, 1]) == 1) < 0.2
    assert np.mean(np.abs(np.diff(firsts[:, 0]))) > 15


def test_no_documents_pack_into_no_windows():
    assert pack_documents([], 16).shape == (0, 16)
    with pytest.raises(ValueError, match="window_length: must be at least 2, got 1"):
        pack_documents([[1]], 1)


def test_short_documents_of_one_length_do_not_gather_in_windows():
    # Sorted by length, as plain best fit decreasing does, nearly every window held one length.
    lengths = np.random.default_rng(0).integers(5, 60, 3000)
    plan = plan_windows(lengths, 1024, seed=0)
    spread = [np.std((plan.ends - plan.starts)[plan.window_of == w]) for w in range(60)]
    assert min(spread) > 0.6 * np.std(lengths)


def test_plan_covers_all_tokens_once_in_ascending_windows():
    lengths = np.array([40, 3, 7, 16, 33])
    plan = plan_windows(lengths, 16, seed=1)
    covered = np.concatenate([np.arange(s, e) for s, e in zip(plan.starts, plan.ends, strict=True)])
    assert sorted(covered) == list(range(lengths.sum()))
    assert np.all(np.diff(plan.window_of) >= 0)
    # 40 = 16 + 16 + 8 and 33 = 16 + 16 + 1 leave room for 7 and 3 in one window more.
    assert plan.num_windows == 7 and plan.window_of[-1] == 6
