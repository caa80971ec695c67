"""Which language a text is in: real records, mixed pages, and what is in no language."""

import json
import pickle
from pathlib import Path

import pytest

from ellama_jax.corpus.language import identify_language, keep_language, language_shares

RECORDS = Path(__file__).resolve().parents[3] / "shared" / "data"
LANGUAGES = ("en", "de", "fr", "it", "es")
DESCRIPTIONS = {
    "en": "This lamp stands safely on every table and comes with a long cable.",
    "de": "Diese Lampe steht sicher auf jedem Tisch und wird mit langem Kabel geliefert.",
    "fr": "Cette lampe tient bien sur toutes les tables et est livrée avec un long câble.",
    "it": "Questa lampada sta bene su ogni tavolo e viene fornita con un cavo lungo.",
    "es": "Esta lámpara se apoya bien en cualquier mesa y se entrega con un cable largo.",
}


def real_texts(name, key):
    path = RECORDS / name
    if not path.exists():
        pytest.skip(f"no real records beside this checkout ({name})")
    return [json.loads(line)[key] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_told_in_any_case(language):
    text = DESCRIPTIONS[language]
    assert identify_language(text)[0] == language
    assert (
        identify_language(text.upper())
        == identify_language(text)
        == identify_language(text.title())
    )


@pytest.mark.parametrize(
    ("name", "language", "key"),
    [
        ("mgsm_en.jsonl", "en", "question"), ("mgsm_de.jsonl", "de", "question"),
        ("mgsm_fr.jsonl", "fr", "question"), ("mgsm_es.jsonl", "es", "question"),
        ("xcopa_it_val.jsonl", "it", "premise"), ("magento_reviews_en.jsonl", "en", "review"),
    ],
)  # fmt: skip
def test_real_text_is_told(name, language, key):
    texts = real_texts(name, key)
    told = sum(identify_language(text)[0] == language for text in texts)
    assert told >= 0.97 * len(texts)


def test_real_titles_are_told_better_among_the_languages_of_the_shop():
    titles = real_texts("oa-mine_train_en.jsonl", "title")
    alone = sum(identify_language(title)[0] == "en" for title in titles) / len(titles)
    among = sum(identify_language(title, LANGUAGES)[0] == "en" for title in titles) / len(titles)
    assert alone > 0.90 and among > 0.93 and among > alone


@pytest.mark.parametrize(
    "text",
    ["", " \n\t", "4 x 100 g", "1.263,46 €", "SKU-4711/B 0815_x", "{{ a }}", "😀😀", "a b",
     "x = f(a[0]) + g(b);\nif (x == 1) { y += 2; }\nreturn x_1;", "\x00\x01"],
)  # fmt: skip
def test_what_is_no_language_is_undetermined(text):
    assert identify_language(text) == ("und", 0.0)
    assert identify_language(text, ["de", "en"]) == ("und", 0.0)


@pytest.mark.parametrize(
    ("text", "language"),
    [("这款灯可以放在任何桌子上使用", "zh"), ("このランプはどんな机にも置けます", "ja"),
     ("هذا المصباح يوضع على أي طاولة", "ar"), ("Эта лампа стоит на любом столе", "ru"),
     ("โคมไฟนี้วางได้บนโต๊ะทุกตัว", "th"), ("यह लैंप किसी भी मेज पर रखा जा सकता है", "hi")],
)  # fmt: skip
def test_other_scripts_are_told(text, language):
    assert identify_language(text)[0] == language
    assert identify_language(f"{text} 😀")[0] == language


def test_the_score_is_a_probability_and_sums_to_one_over_the_languages_named():
    text = "Lampe rouge pour chambre"
    scores = [identify_language(text, [language, "xx"])[1] for language in ("fr", "de")]
    assert scores == [1.0, 1.0]
    code, score = identify_language(text, ["fr", "de"])
    assert code == "fr" and 0.5 < score < 1


@pytest.mark.parametrize("among", [[], "de", ["xx"]])
def test_languages_that_cannot_be_told_are_refused(among):
    with pytest.raises(ValueError, match="among: must name"):
        identify_language("Diese Lampe ist rot", among)


def test_a_long_text_is_told_by_samples_of_all_of_it():
    pages = (DESCRIPTIONS["de"] + "\n") * 15_000  # 1 MB
    assert identify_language(pages)[0] == "de"
    assert identify_language(DESCRIPTIONS["en"] + "\n" + pages)[0] == "de"


def test_shares_are_by_letters():
    page = "\n".join([DESCRIPTIONS["de"], DESCRIPTIONS["en"], DESCRIPTIONS["de"], "40 cm"])
    shares = language_shares(page)
    assert list(shares) == ["de", "en"]
    assert shares["de"] == pytest.approx(0.70, abs=0.02) and sum(shares.values()) == pytest.approx(
        1
    )
    assert language_shares("1\n2") == {}


def test_paragraphs_of_another_language_go_and_short_ones_go_with_them():
    page = [
        "Über",
        DESCRIPTIONS["de"],
        "Farbe: Rot",
        DESCRIPTIONS["en"],
        "Height",
        DESCRIPTIONS["de"],
    ]
    kept = keep_language("\n".join(page), "de")
    assert kept.split("\n") == ["Über", DESCRIPTIONS["de"], "Farbe: Rot", DESCRIPTIONS["de"]]
    assert keep_language("\n".join(page), "en").split("\n") == [DESCRIPTIONS["en"], "Height"]
    assert keep_language("40 cm\n50 cm", "de") == "40 cm\n50 cm"
    assert keep_language("", "de") == ""


def test_nothing_is_downloaded_and_functions_pickle(monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", None)
    assert pickle.loads(pickle.dumps(identify_language))(DESCRIPTIONS["it"])[0] == "it"
