"""Copies of documents: what counts as the same text, and who is dropped."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ellama_jax.corpus.duplicates import (
    Duplicate,
    Member,
    Signer,
    candidate_recall,
    choose_bands,
    choose_keeper,
    drop_exact,
    drop_in_bucket,
    exact_key,
    find_duplicates,
    hash_words,
    run_hashes,
    shingle_hashes,
    similarity,
    split_words,
)
from ellama_jax.corpus.listings import listing_to_document, load_listings

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")

PROSE = (
    "The workshop opens at eight and the first lamps are packed before nine. Every crate is "
    "weighed twice, once by the packer and once by whoever drives the van to the harbour, because "
    "a wrong weight once cost the shop a whole shipment of glass. In the afternoon the two sisters "
    "answer letters, mostly about missing screws, and keep the best ones in a tin above the stove."
)
LISTING = (
    "Title: Nyx waste bin with soft-close lid, brushed steel, 40 L\nCategory: Kitchen > Bins\n"
    "Brand: Nyx\nCapacity: 40 L\nMaterial: Steel\nPrice: $49.99"
)


def jaccard(text, other, shingle=3):
    """The exact similarity, with Python's sets."""
    a, b = (set(shingle_hashes(t, shingle).tolist()) for t in (text, other))
    return len(a & b) / len(a | b)


def members_of(signatures, rank=1):
    return [Member(rank, f"{number:06}", row) for number, row in enumerate(signatures)]


def random_signatures(rng, count, num_perm=128):
    return rng.integers(0, 2**32, (count, num_perm), dtype=np.uint32)


@pytest.mark.parametrize(
    "other",
    [
        "kettle nyx, 1.5 l – größe m",
        "KETTLE  NYX,\t1.5\u00a0L\n–  GRÖSSE M ",
        "Kettle Nyx, １.５ L – Gro\u0308ße M",
        "Kettle\u200b Nyx, 1.5 L – Grö\u00adße M",
    ],
)
def test_case_spaces_and_encoding_make_no_other_text(other):
    assert exact_key("Kettle Nyx, 1.5 L – Größe M") == exact_key(other)


@pytest.mark.parametrize("other", ["Kettle 15 L", "Kettle 1,5 L", "Kettle -1.5 L", "Kettle 1.5 l."])
def test_punctuation_makes_another_exact_text(other):
    assert exact_key("Kettle 1.5 L") != exact_key(other)


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't pay €1.263,46!", ["dont", "pay", "1", "263", "46"]),
        ("snake_case WH-1000XM4", ["snake", "case", "wh", "1000xm4"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("กาน้ำ 2L", ["ก", "า", "น", "\u0e4d", "า", "2l"]),
        ("كِتَاب جديد", ["كِتَاب", "جديد"]),
        ("한국어 책", ["한국어", "책"]),
        ("🎉🎉 ---", []),
        ("", []),
        ("a\ud800b", ["a", "b"]),
    ],
)
def test_words_of_many_scripts(text, words):
    got = split_words(text)
    if "กา" in text:  # a tone mark is a character of its own, wherever NFKC puts it
        got = [word for word in got if word != "\u0e49"]
    assert got == words


def test_hashes_are_the_published_ones_of_xxh3():
    # XXH3_64bits of the empty input and of "a", from the reference implementation.
    assert [hex(value) for value in hash_words(["", "a"]).tolist()] == [
        "0x2d06800538d394c2",
        "0xe6c632b61e964e1f",
    ]


def test_runs_are_the_same_wherever_they_stand():
    words = split_words(PROSE)
    runs = run_hashes(hash_words(words), 5)
    assert len(runs) == len(words) - 4 == len(set(runs.tolist()))
    assert run_hashes(hash_words(words[7:12]), 5).tolist() == [runs[7]]
    assert run_hashes(hash_words(words[7:12][::-1]), 5)[0] != runs[7]
    assert run_hashes(hash_words(words[:4]), 5).shape == (0,)


def test_the_order_of_fields_does_not_matter_and_that_of_words_does():
    lines = LISTING.split("\n")
    assert jaccard(LISTING, "\n".join(lines[::-1])) == 1.0
    words = LISTING.split(" ")
    assert jaccard(LISTING, " ".join(words[::-1])) < 0.6


def test_where_prose_is_wrapped_does_not_matter():
    words = PROSE.split()
    wrapped = "\n".join(" ".join(words[at : at + 11]) for at in range(0, 66, 11))
    rest = " ".join(words[66:])
    assert jaccard(" ".join(words), f"{wrapped}\n{rest}") > 0.95


def test_another_number_makes_another_product_and_a_typo_does_not():
    assert jaccard(LISTING, LISTING.replace("40 L", "60 L")) < 0.65
    assert jaccard(LISTING, LISTING.replace("brushed", "brsuhed")) > 0.75


def test_signatures_do_not_depend_on_process_or_hash_seed():
    code = (
        "import sys; from ellama_jax.corpus.duplicates import Signer;"
        "s = Signer(); g = s.sign(sys.stdin.read());"
        "print(g.tobytes().hex(), b''.join(s.band_keys(g)).hex())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], input=LISTING, capture_output=True, text=True,
            check=True, cwd=ROOT, env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        ).stdout
        for seed, threads in (("0", "1"), ("77", "4"))
    }  # fmt: skip
    signer = pickle.loads(pickle.dumps(Signer()))
    signature = signer.sign(LISTING)
    keys = b"".join(signer.band_keys(signature)).hex()
    assert printed == {f"{signature.tobytes().hex()} {keys}\n"}


def test_signatures_stay_what_they_were():
    """Signatures of one run are compared with those of another: a library may not change them."""
    assert Signer().sign("red kettle").tolist()[:3] == [4236406662, 4270774112, 4101735205]


def test_estimates_are_as_close_to_jaccard_as_minhash_promises():
    rng = random.Random(0)
    words = [f"w{number}" for number in range(4_000)]
    errors = []
    for _ in range(60):
        text = rng.sample(words, 200)
        other = text[: rng.randrange(60, 200)] + rng.sample(words, 30)
        a, b = " ".join(text), " ".join(other)
        exact = jaccard(a, b)
        errors.append(similarity(Signer().sign(a), Signer().sign(b)) - exact)
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.045  # sqrt(0.5 * 0.5 / 128)


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.9])
def test_bands_find_pairs_as_the_curve_says(threshold):
    num_bands = choose_bands(128, threshold)
    rows = 128 // num_bands
    assert candidate_recall(threshold, num_bands, rows) >= 0.95
    assert candidate_recall(threshold, 128 // (rows + 1), rows + 1) < 0.95
    rng = np.random.default_rng(0)
    a = random_signatures(rng, 3_000)
    b = np.where(rng.random(a.shape) < threshold, a, random_signatures(rng, 3_000))
    used = slice(0, num_bands * rows)
    bands = (a[:, used] == b[:, used]).reshape(3_000, num_bands, rows).all(2).any(1)
    assert abs(bands.mean() - candidate_recall(threshold, num_bands, rows)) < 0.02
    signer = Signer(num_bands=num_bands, threshold=threshold)
    keyed = [
        bool({*signer.band_keys(x)} & {*signer.band_keys(y)}) for x, y in zip(a, b, strict=True)
    ]
    assert keyed == bands.tolist()


def test_the_default_bands_are_the_chosen_ones():
    assert Signer().num_bands == choose_bands(Signer().num_perm, Signer().threshold)


def test_too_few_slots_for_the_recall_are_an_error():
    with pytest.raises(ValueError, match="num_perm: must be large enough to find 95%"):
        choose_bands(4, 0.2)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"threshold": 0.0}, "threshold"),
        ({"num_bands": 129}, "num_bands"),
        ({"shingle": 0}, "shin"),
    ],
)
def test_settings_out_of_range_are_errors(settings, name):
    with pytest.raises(ValueError, match=f"{name}.*must be"):
        Signer(**settings)


@pytest.mark.parametrize("text", ["", "🎉🎉", " -- \n"])
def test_texts_without_words_are_like_nothing(text):
    signer = Signer()
    assert signer.band_keys(signer.sign(text)) == []
    assert find_duplicates([(1, "a", text), (1, "b", "!!")]) == []


def test_the_smallest_rank_and_key_stay_whatever_the_order():
    rng = np.random.default_rng(1)
    base = random_signatures(rng, 1)[0]
    near = [np.where(rng.random(128) < 0.05, 0, base).astype(np.uint32) for _ in range(5)]
    far = random_signatures(rng, 1)[0]
    members = [
        Member(1, "a", base), Member(1, "b", near[0]), Member(0, "z", near[1]),
        Member(0, "y", near[2]), Member(1, "far", far),
    ]  # fmt: skip
    expected = {("a", "y"), ("b", "y"), ("z", "y")}
    for seed in range(6):
        random.Random(seed).shuffle(members)
        found = drop_in_bucket(members, threshold=0.75)
        assert {(one.dropped, one.kept) for one in found} == expected


def test_who_is_like_a_dropped_one_goes_too():
    a = np.arange(128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:20] += 1000
    c[:20] += 1000
    c[20:40] += 1000
    assert similarity(a, c) < 0.75 < similarity(a, b) == similarity(b, c)
    found = list(drop_in_bucket(members_of([a, b, c]), 0.75))
    assert found == [
        Duplicate("000001", "000000", 108 / 128),
        Duplicate("000002", "000001", 108 / 128),
    ]


def test_a_bucket_of_one_boilerplate_is_compared_in_linear_time(monkeypatch):
    rng = np.random.default_rng(2)
    base = random_signatures(rng, 1)
    signatures = np.repeat(base, 20_000, axis=0)
    signatures[::7, :5] = random_signatures(rng, len(signatures[::7]), 5)
    compared = 0
    from ellama_jax.corpus import duplicates

    first_like = duplicates._first_like

    def count(pivots, signature, threshold):
        nonlocal compared
        compared += len(pivots)
        return first_like(pivots, signature, threshold)

    monkeypatch.setattr(duplicates, "_first_like", count)
    found = list(drop_in_bucket(members_of(signatures), 0.75, max_compared=16))
    assert len(found) == 19_999
    assert compared <= 16 * 20_000


def test_pivots_are_the_smallest_whatever_the_order():
    rng = np.random.default_rng(3)
    kinds = random_signatures(rng, 40)
    members = members_of(kinds[rng.integers(0, 40, 600)])
    expected = sorted(drop_in_bucket(members, 0.75, max_compared=10))
    for seed in range(4):
        random.Random(seed).shuffle(members)
        assert sorted(drop_in_bucket(members, 0.75, max_compared=10)) == expected
    everything = sorted(drop_in_bucket(members, 0.75, max_compared=100))
    assert set(expected) < set(everything) and len(everything) == 560


def test_an_iterator_of_members_is_an_error():
    with pytest.raises(ValueError, match="members: must be readable twice"):
        list(drop_in_bucket(iter(members_of(np.zeros((2, 8), np.uint32))), 0.75))


def test_an_empty_bucket_drops_nothing():
    assert list(drop_in_bucket([], 0.75)) == []
    assert list(drop_exact([])) == []


def test_the_report_names_the_most_similar_keeper():
    found = [Duplicate("d", "b", 0.9), Duplicate("d", "a", 0.9), Duplicate("d", "0", 0.8)]
    assert choose_keeper(found) == Duplicate("d", "a", 0.9)


def test_a_held_out_copy_throws_the_training_one_out():
    near = PROSE.replace("harbour", "station")
    found = find_duplicates([(1, "a-train", PROSE), (0, "z-heldout", near), (1, "c", LISTING)])
    assert [(one.dropped, one.kept) for one in found] == [("a-train", "z-heldout")]


def test_finding_does_not_depend_on_the_order():
    rng = random.Random(4)
    words = PROSE.split()
    documents = []
    for number in range(60):
        text = list(words)
        for _ in range(number % 6):
            text[rng.randrange(len(text))] = f"x{rng.randrange(99)}"
        documents.append((1, f"{number:02}", " ".join(text)))
    expected = find_duplicates(documents)
    assert expected
    for _ in range(3):
        rng.shuffle(documents)
        assert find_duplicates(documents) == expected


def test_found_pairs_are_those_of_exact_jaccard():
    """Brute force over all pairs of made-up documents, none of them near the threshold."""
    rng = random.Random(5)
    documents = []
    for number in range(40):
        text = [rng.choice(PROSE.split()) + str(rng.randrange(40)) for _ in range(60)]
        documents.append((1, f"{number:02}a", " ".join(text)))
        if number % 2:
            documents.append((1, f"{number:02}b", " ".join(text[:-3])))
    expected = {
        other
        for _, key, text in documents
        for _, other, copy in documents
        if key < other and jaccard(text, copy) > 0.85
    }
    assert len(expected) == 20
    assert {one.dropped for one in find_duplicates(documents)} == expected


@needs_shared
def test_copies_of_real_listings_are_found_and_other_products_stay():
    listings = load_listings(SHARED / "ae-110k_train_en.jsonl")[:500]
    documents = [
        (1, f"{number:04}", listing_to_document(one, seed=0)) for number, one in enumerate(listings)
    ]
    alone = {one.dropped for one in find_duplicates(documents)}
    assert len(alone) < 10
    copies = [
        (1, f"{number:04}-copy", listing_to_document(one, seed=99).upper().replace(",", " ,"))
        for number, one in enumerate(listings)
    ]
    dropped = {one.dropped for one in find_duplicates(documents + copies)}
    assert dropped == alone | {key for _, key, _ in copies}


@needs_shared
def test_real_questions_in_four_languages_are_no_copies_of_one_another():
    documents = []
    for language in ("en", "de", "fr", "es"):
        for number, line in enumerate((SHARED / f"mgsm_{language}.jsonl").open(encoding="utf-8")):
            documents.append((1, f"{language}-{number}", json.loads(line)["question"]))
    assert find_duplicates(documents) == []
