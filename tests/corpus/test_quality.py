"""Quality rules and the text of web pages: each rule refuses what it should, real text stays."""

import json
import random
from pathlib import Path

import pytest

from ellama_jax.corpus.quality import judge_quality, page_text, quality_figures, quality_rules

RECORDS = Path(__file__).resolve().parents[3] / "shared" / "data"
PROSE = {
    "en": "The house stands on a hill above the river, and from its windows you can see the old town. "
          "In spring the garden is full of flowers that her mother planted many years ago. Nobody has "
          "lived there since the autumn, but a neighbour comes once a week to open the shutters. He "
          "says that the roof needs work before winter, or rain will get into the rooms.",
    "de": "Das Haus steht auf einem Hügel über dem Fluss, und von den Fenstern sieht man die alte Stadt. "
          "Im Frühling ist der Garten voller Blumen, die ihre Mutter vor vielen Jahren gepflanzt hat. "
          "Seit dem Herbst wohnt dort niemand mehr, aber ein Nachbar öffnet einmal in der Woche die "
          "Fensterläden. Er sagt, dass das Dach vor dem Winter repariert werden muss.",
    "fr": "La maison est sur une colline au-dessus de la rivière, et de ses fenêtres on voit la vieille "
          "ville. Au printemps, le jardin est plein de fleurs que sa mère a plantées il y a longtemps. "
          "Personne n'y habite depuis l'automne, mais un voisin vient une fois par semaine ouvrir les "
          "volets. Il dit que le toit doit être réparé avant l'hiver ; sinon, il pleuvra dedans.",
    "it": "La casa è su una collina sopra il fiume, e dalle finestre si vede la città vecchia. In "
          "primavera il giardino è pieno di fiori che sua madre piantò molti anni fa. Dall'autunno non "
          "ci abita più nessuno, ma un vicino viene una volta alla settimana ad aprire le imposte. Dice "
          "che il tetto deve essere riparato prima di questo inverno, o pioverà nelle stanze.",
    "es": "La casa está en una colina sobre el río, y desde las ventanas se ve la ciudad vieja. En "
          "primavera el jardín está lleno de flores que su madre plantó hace muchos años. Desde el otoño "
          "no vive nadie allí, pero un vecino viene una vez por semana a abrir las persianas. Dice que "
          "el tejado se tiene que arreglar antes del invierno, o lloverá en los cuartos.",
}  # fmt: skip


@pytest.mark.parametrize("language", PROSE)
def test_running_text_is_kept(language):
    assert judge_quality(PROSE[language], language) is None
    assert judge_quality(PROSE[language], language, "shop") is None


@pytest.mark.parametrize("language", ["pt", "und", "zh"])
def test_a_language_without_a_row_has_general_rules(language):
    assert judge_quality(PROSE["es"], language) is None
    assert "stop_words" not in [name for name, _, _ in quality_rules(language).bounds]


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("Nur kurz.", "words_low"),
        (PROSE["de"] + " Lorem ipsum.", "placeholders_high"),
        ("Wir verwenden Cookies, und mit der Nutzung dieser Seiten stimmen Sie dem zu, wie es in der "
         "Datenschutzerklärung steht, die Sie dort unten auf allen unseren Seiten finden können.\n"
         + PROSE["de"],
         "notice_chars_high"),
        (PROSE["de"].replace(" ", " # ", 9), "symbols_high"),
        (PROSE["de"].replace(" ", " {a} ", 9), "curly_brackets_high"),
        ("- " + PROSE["de"].replace(" ", "\n- ")[:-1], "bullet_lines_high"),
        ("...\n".join(PROSE["de"].split(". ")) + "...", "ellipsis_lines_high"),
        (PROSE["de"] + " 12 34 56 78" * 9, "alphabetic_words_low"),
        (PROSE["it"], "stop_words_low"),
        (PROSE["de"].replace(". ", ".x\n").replace(" und", "\n")[:-1], "ended_lines_low"),
        (PROSE["de"].replace(" ", "").replace(".", ". ") + " und der Tisch" * 20, "mean_word_length_high"),
        (((PROSE["de"] + "\n") * 2)[:-1] , "duplicate_lines_high"),
        (PROSE["de"] + " " + PROSE["de"], "duplicate_5_grams_high"),
    ],
)  # fmt: skip
def test_each_rule_refuses(text, refused):
    if refused == "stop_words_low":
        text = " ".join(word for word in text.split() if word not in ("in", "un", "es"))
    if refused == "mean_word_length_high":
        text = (
            "Das und der " + " ".join(w + "verarbeitungsanlage" for w in PROSE["de"].split()) + "."
        )
    assert judge_quality(text, "de") == refused


def test_figures_are_those_of_the_papers():
    """Counted by hand; Gopher table A1 for the shares of characters."""
    figures = quality_figures("a b c\na b c\n\nd # e…\n- f.", "en")
    assert figures["words"] == 9
    assert figures["duplicate_lines"] == 0.25
    assert figures["duplicate_line_chars"] == 5 / 24
    assert figures["bullet_lines"] == 0.25 and figures["ellipsis_lines"] == 0.25
    assert figures["ended_lines"] == 0.5
    assert figures["symbols"] == 2 / 9
    # 60 words: ten of five letters, then the same ten, then 40 that come once.
    ten = " ".join(f"word{letter}" for letter in "abcdefghij")
    rest = " ".join(f"{a}{b}xyz" for a in "pqrs" for b in "abcdefghij")
    figures = quality_figures(f"{ten} {ten} {rest}", "en")
    assert figures["top_2_gram"] == 2 * 10 / 300
    assert figures["duplicate_5_grams"] == 50 / 300 == figures["duplicate_10_grams"]


def test_french_marks_set_apart_are_no_words():
    text = "Est-ce vrai ? Oui ! Non : « peut-être » ; voilà - ici"
    assert quality_figures(text, "fr")["words"] == 7
    assert quality_figures(text, "fr")["alphabetic_words"] == 1.0


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Tischlampe Nyx, Messing\n40 cm x 12 cm\n49,99 €", "de"),
        ("Zoccoli da donna, 38\nMateriale: pelle\nPrezzo: 1.263,46 €", "it"),
        ("FISH KING 4Pcs/Lot Mepps Spinner Bait Size 1#2#3#4#5# Fishing Lures", "en"),
    ],
)
def test_a_shop_s_text_is_kept_as_shop_and_refused_as_prose(text, language):
    assert judge_quality(text, language, "shop") is None
    assert judge_quality(text, language, "prose") == "words_low"


@pytest.mark.parametrize(
    ("name", "keys", "least"),
    [("ae-110k_train_en.jsonl", ["title"], 0.99), ("oa-mine_train_en.jsonl", ["title"], 0.99),
     ("dummyjson_listings_en.jsonl", ["title", "description"], 0.99),
     ("magento_reviews_en.jsonl", ["title", "review"], 0.95)],
)  # fmt: skip
def test_real_shop_text_is_kept(name, keys, least):
    path = RECORDS / name
    if not path.exists():
        pytest.skip(f"no real records beside this checkout ({name})")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = ["\n".join(record[key] for key in keys) for record in records]
    assert sum(judge_quality(t, "en", "shop") is None for t in texts) >= least * len(texts)


def test_edges_do_not_break():
    for text in ("", "\n\n", "\x00", "😀" * 1000, "a" * 1_000_000, "{" * 500):
        assert judge_quality(text, "de") is not None
    long = "\n".join(
        f"Satz {n} steht in der Zeile und ist nicht wie die {n * 7}." for n in range(20_000)
    )
    assert quality_figures(long, "de")["words"] == 240_000
    with pytest.raises(ValueError, match="kind: must be one of prose, shop, got 'blog'"):
        judge_quality("text", "de", "blog")


SHOP_PAGE = """<html><head><title>T</title><style>p {}</style></head><body>
<header><a href="/">Shop</a><nav><ul><li><a href="/l">Lampen</a></li></ul></nav></header>
<div id="cookie-banner">Wir verwenden Cookies.</div>
<main><header><h1>Tischlampe Nyx</h1></header><p>49,99&nbsp;&euro;</p>
<ul><li>Höhe: 40 cm</li><li>Fassung: E27</li></ul>
<table><tr><th>Material</th><td>Stahl</td></tr></table>
<dl><dt>Farbe</dt><dd>Rot</dd></dl><button>In den Warenkorb</button>
<p>Steht sicher<br>auf jedem <b>Tisch</b>.</p><p hidden>Geheim</p>
<ul><li><a href="1">Andere Lampe</a></li><li><a href="2">Noch eine</a></li><li><a href="3">Mehr</a></li></ul>
</main><footer>Impressum</footer><script>var a = 1;</script></body></html>"""


def test_a_product_page_keeps_lists_and_tables_and_loses_menus():
    lines = [line for line in page_text(SHOP_PAGE).split("\n") if line]
    assert lines == [
        "Tischlampe Nyx", "49,99 €", "• Höhe: 40 cm", "• Fassung: E27", "Material\tStahl", "Farbe",
        "Rot", "Steht sicher", "auf jedem Tisch.",
    ]  # fmt: skip


def test_text_that_is_no_html_is_tidied_only():
    assert (
        page_text("  Preis < 5 €  \r\n\n\n\nund  a <b\t\tmehr ") == "Preis < 5 €\n\nund a <b\tmehr"
    )
    assert page_text("") == ""


def test_broken_html_gives_its_text():
    assert page_text("<p>Eins<p>Zwei <b>drei</div></span>") == "Eins\n\nZwei drei"
    assert page_text("<html><body></body></html>") == ""


def plain_gram_chars(words, count):
    """Counts, gram by gram, what the rules say: of the most frequent gram, and of those that came before."""
    grams = [tuple(words[at : at + count]) for at in range(len(words) - count + 1)]
    times = {gram: grams.count(gram) for gram in grams}
    top = max(times, key=lambda gram: (times[gram], gram), default=())
    seen, again, at = set(), 0, 0
    while at < len(grams):
        if grams[at] in seen:
            again += sum(map(len, grams[at]))
            at += count
        else:
            seen.add(grams[at])
            at += 1
    return (sum(map(len, top)) * times[top] if times.get(top, 0) > 1 else 0), again


def test_repeated_grams_are_those_of_counting_one_by_one():
    rng = random.Random(0)
    for size in (1, 2, 3, 8, 60, 1000):
        for _ in range(6):
            kinds = [f"{'x' * rng.randrange(5)}{number}" for number in range(size)]
            words = rng.choices(kinds, k=rng.randrange(50, 150))
            words += words[10 : rng.randrange(11, 40)]
            figures, total = quality_figures(" ".join(words), "en"), sum(map(len, words))
            for count in range(2, 11):
                top, again = plain_gram_chars(words, count)
                name, chars = (
                    (f"top_{count}_gram", top) if count < 5 else (f"duplicate_{count}_grams", again)
                )
                assert figures[name] == chars / total, (words, count)


def test_lists_and_headers_in_each_other_are_read_once():
    """Read for each of them anew, they would take hours."""
    nested = "<ul><li>a" * 90 + "</ul>" * 90
    assert page_text("<main><h1>Lampe</h1>" + nested * 500).count("• a") == 45_000
    assert page_text("<main><h1>Lampe</h1>" + "<header></header>" * 50_000) == "Lampe"


@pytest.mark.parametrize("tag", ["<ul><li>a", "<ol><li>a", "<header><a>b</a>"])
def test_lists_in_each_other_without_end_are_refused(tag):
    """Each would be indented by one sign more: 10 GB of text out of 500 kB."""
    with pytest.raises(ValueError, match="page: must have lists at most 100 deep"):
        page_text("<main><h1>Lampe</h1>" + tag * 50_000)


def test_empty_lists_and_links_end_where_they_end():
    menu = "<ul>" + "<li><a></a><a href=x>Rubrik</a>" * 4 + "</ul>"
    page = f"<main><h1>Lampe</h1><ul></ul><header></header>{menu}<ul><li>40 cm</ul></main>"
    assert page_text(page) == "Lampe\n\n• 40 cm"
