"""Vocabulary advice: the continuation is what the tokenizers library learns, the split is honest."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.listings import listing_to_document
from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.tokens.vocabulary import (
    added_parameters,
    advise,
    count_merged,
    count_words,
    learn_merges,
    split_documents,
)

LISTINGS = Path(__file__).parents[2].parent / "shared" / "data" / "oa-mine_train_en.jsonl"
TEXTS = [listing_to_document(listing, seed=0) for listing in generate_listings(0, 60)]


def make_tokenizer(directory, texts, vocab_size):
    bpe = train_byte_bpe(texts, vocab_size)
    ends = bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    save_tokenizer(directory, bpe, *ends)
    return load_tokenizer(directory)


def check_continuation(tmp_path, texts, start, more):
    """Compares a tokenizer continued by `more` with one that was trained to that size at once."""
    small = make_tokenizer(tmp_path / "small", texts, start)
    large = make_tokenizer(tmp_path / "large", texts, start + more)
    words = count_words(texts, small)
    merges = learn_merges(words, more, small)
    names = {i: small.token(i) for i in range(small.vocab_size)}
    for left, right, merged in merges:
        names[merged] = names[left] + names[right]
    assert {names[m] for *_, m in merges} <= {large.token(i) for i in range(large.vocab_size)}
    assert len({m for *_, m in merges if m >= small.vocab_size}) == more
    assert count_merged(words, merges) == sum(map(len, large.encode_batch(texts)))
    return count_merged(words, []), count_merged(words, merges)


def test_merges_go_on_as_the_tokenizers_library_would(tmp_path):
    before, after = check_continuation(tmp_path, TEXTS, 400, 500)
    assert after < 0.7 * before


def test_merges_go_on_as_the_library_would_on_real_titles(tmp_path):
    if not LISTINGS.exists():
        pytest.skip("the real records are not beside this checkout")
    lines = LISTINGS.read_text(encoding="utf-8").splitlines()
    check_continuation(tmp_path, [json.loads(line)["title"] for line in lines], 600, 1500)


def test_runs_of_one_letter_merge_as_the_library_would(tmp_path):
    texts = ["aaaaa aaaaaaa ababab abab aaa bbbb", "aabb aabb aabb ааа", "aaaa aaaa 5555 55555"]
    check_continuation(tmp_path, texts, 260, 8)


def test_words_are_cut_but_their_ids_stay_those_of_the_text(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "t", TEXTS, 500)
    texts = ["Jacke, 12,95 €\n  für <|end_of_text|> 🎿", "", *TEXTS[:20]]
    for text, words in zip(texts, tokenizer.encode_words(texts), strict=True):
        assert list(itertools.chain(*words)) == tokenizer.encode(text)
    assert len(tokenizer.encode_words(["two words"])[0]) == 2


def test_counts_over_words_are_what_encoding_with_the_merges_gives(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "t", ["xyz"], 258)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    words = Counter({(a, b, c): 2, (a, b, a, b): 3, (c,): 5})
    assert learn_merges(words, 2, tokenizer) == [(a, b, 258), (258, 258, 259)]
    assert count_merged(words, [(a, b, 258)]) == 2 * 2 + 3 * 2 + 5
    assert count_merged(words, learn_merges(words, 2, tokenizer)) == 2 * 2 + 3 * 1 + 5


def test_a_text_without_pairs_gives_fewer_tokens_than_asked(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "t", ["xyz"], 258)
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    assert learn_merges({(a, b): 1}, 50, tokenizer) == [(a, b, 258)]


def test_a_pair_whose_text_is_a_token_already_adds_none(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "t", ["abc abc abc"], 260)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    ab, abc = tokenizer.encode("ab")[0], tokenizer.encode("abc")[0]
    assert len({a, b, c, ab, abc}) == 5
    assert learn_merges({(a, b, c): 3}, 1, tokenizer) == [(a, b, ab), (ab, c, abc)]


def test_variants_of_a_product_never_stand_on_both_sides():
    rng = np.random.default_rng(0)
    products = [rng.integers(0, 9999, 80) for _ in range(40)]
    documents = [" ".join(map(str, [*product, size])) for product in products for size in (1, 2, 3)]
    train, heldout = split_documents(documents, [81] * 120)
    assert sorted(train + heldout) == list(range(120))
    assert {n // 3 for n in train}.isdisjoint({n // 3 for n in heldout})
    assert 0.15 < len(heldout) / len(documents) <= 0.2


def test_the_split_does_not_depend_on_the_order_of_documents():
    documents = [
        " ".join(map(str, np.random.default_rng(seed).integers(0, 9999, 50))) for seed in range(50)
    ]
    order = np.random.default_rng(1).permutation(50).tolist()
    _, heldout = split_documents(documents, [50] * 50)
    _, shuffled = split_documents([documents[n] for n in order], [50] * 50)
    assert sorted(order[n] for n in shuffled) == heldout


def test_advice_is_measured_on_held_out_documents_and_on_general_text(tmp_path):
    general = [f"In {year} the town of Ely had {year % 97} mills and a fair." for year in range(99)]
    tokenizer = make_tokenizer(tmp_path / "t", general, 400)
    groups = {
        ("ecommerce", "en"): [np.array(ids) for ids in tokenizer.encode_batch(TEXTS)],
        ("general", "en"): [np.array(ids) for ids in tokenizer.encode_batch(general)],
    }
    advice = advise(groups, tokenizer, [200, 50])
    assert advice["sizes"] == [50, 200] == advice["learnt"]
    shop, plain = advice["rows"]
    assert (shop["domain"], plain["domain"]) == ("ecommerce", "general")
    assert 0.1 < shop["saved"][0] < shop["saved"][1] and plain["saved"][1] < shop["saved"][0]
    heldout_and_train = shop["tokens"] + advice["train_tokens"]
    assert heldout_and_train == sum(map(len, groups["ecommerce", "en"]))
    assert plain["tokens"] == sum(map(len, groups["general", "en"]))


@pytest.mark.parametrize(
    ("keys", "sizes", "words"),
    [
        ([("general", "en")], [10], "must be given e-commerce window sets to learn from"),
        ([("ecommerce", "en")], [10], "must hold out documents that are unlike the others"),
        ([("ecommerce", "en")], [0], "sizes must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, keys, sizes, words):
    tokenizer = make_tokenizer(tmp_path / "t", ["xyz"], 258)
    with pytest.raises(ValueError, match=words):
        advise({key: [np.arange(9)] * 3 for key in keys}, tokenizer, sizes)


def test_a_tied_embedding_counts_once():
    assert added_parameters(128256, [1000])["llama3.2-1b"] == [2_048_000]
    assert added_parameters(49152, [10])["smollm2-135m"] == [5760]
    assert list(added_parameters(777, [1])) == ["llama3.1-8b"]
