"""HTML and junk out of shop text, and all that merely looks like it left in."""

import json
import random
import time
from pathlib import Path

import pytest

from ellama_jax.corpus.markup import strip_markup

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(
    "page, text",
    [
        ("<p>Soft <b>and</b> warm</p><p>New</p>", "Soft and warm\nNew"),
        ("one<br>two<br/><br />three", "one\ntwo\nthree"),
        ("<ul><li>wool</li><li>90 cm</li></ul>", "• wool\n• 90 cm"),
        ("<UL>\n  <LI>wool\n  <LI>90\n cm\n</UL>", "• wool\n• 90 cm"),
        ("<table><tr><th>Size</th><td>M</td></tr><tr><td>Color</td><td>Red</td></tr></table>",
         "Size | M\nColor | Red"),
        ("<dl><dt>Fit</dt><dd>Slim</dd><dt>Cut</dt><dd>V</dd></dl>", "Fit: Slim\nCut: V"),
        ("A<script>var x = '<p>';</script>B<style>p{}</style><!-- c -->", "A B"),
        ("<div class='a>b' id=\"x\">kept</div>", "kept"),
        ("<font color=red>R</font><o:p></o:p><span>G</span>", "RG"),
        ("&lt;p&gt;Escaped &amp;amp; twice&lt;/p&gt;", "Escaped & twice"),
        ("caf&eacute; &#8364;5 &#x20AC;6 90&nbsp;cm LumaTech&trade;", "café €5 €6 90 cm LumaTech™"),
        ("<img src='x.jpg' alt='y'>Picture <a href='u'>link</a>!", "Picture link!"),
        ("cut in a tag <a href=\"http://shop", "cut in a tag "),
        ("<![CDATA[inside]]>", "inside"),
    ],
)  # fmt: skip
def test_a_page_becomes_what_its_reader_sees(page, text):
    assert strip_markup(page).strip() == text.strip()


@pytest.mark.parametrize(
    "text",
    ["a < b and 5 > 3", "I <3 it", "x<y", "if a<b and c>d", "<- left, right ->", "AT&T, R&D, A & B",
     "https://x.example/?a=1&copy=2", "5\" x 3' <15 kg", "Line one\nline two", "1 << 2 >> 3", "<<>>",
     "<unknown>", "50% & more", "p < .05", "مصباح أحمر", "אור לבן",
     "👩\u200d👩\u200d👧 👍🏽 ❤\ufe0f 🏳\ufe0f\u200d🌈", "می\u200cخواهم", "क्\u200dष", "naïve Ångström", "漢字 かな"],
)  # fmt: skip
def test_what_merely_looks_like_markup_or_junk_survives(text):
    assert strip_markup(text) == text


@pytest.mark.parametrize(
    "junk, text",
    [
        ("zero\u200bwidth\ufeff soft\u00adhyphen\u2060", "zerowidth softhyphen"),
        ("bell\x07 null\x00 c1\x92", "bell null c1"),
        ("no\u00a0break", "no break"),
        ("lone \ud83d surrogate", "lone  surrogate"),
        ("a\u200db \u200c c", "ab  c"),
        ("icon \ue001 font", "icon  font"),
        ("next\x85line", "next\nline"),
        ("Â mojibake stays", "Â mojibake stays"),
    ],
)
def test_control_and_zero_width_characters_go(junk, text):
    assert strip_markup(junk) == text


def test_cleaning_twice_changes_nothing_more():
    rng = random.Random(0)
    pieces = ["<p>", "</p>", "<li>", "&amp;", "&lt;", "b", "<b>", "&#60;", ";", "lt", "amp", " ", "<",
              ">", "a=", '"', "'", "\n", "\u200d", "😀", "<!--", "-->", "|", "•", "td", "</td>"]  # fmt: skip
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        once = strip_markup(text)
        for _ in range(4):  # an escaped entity may hold another: each pass peels, none adds
            again = strip_markup(once)
            assert len(again) <= len(once) + 2
            once = again
        assert strip_markup(once) == once


def test_clean_text_is_returned_as_the_same_object():
    text = "Plain, short text."
    assert strip_markup(text) is text


@pytest.mark.parametrize(
    "piece", ["<b ", '<a href="', "&amp;", "<!--", "<script>", "<li>", "\u200d"]
)
def test_cost_grows_with_length_only(piece):
    started = time.perf_counter()
    strip_markup(piece * (300_000 // len(piece)))
    # Seconds on a busy machine; minutes if it were quadratic.
    assert time.perf_counter() - started < 20


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
def test_real_records_keep_their_words_and_lose_their_entities():
    for name in ("magento_listings_en", "ae-110k_train_en"):
        for line in (SHARED_DATA / f"{name}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            text = record["title"] + " " + record.get("description", "")
            clean = strip_markup(text)
            assert "&#" not in clean and "&reg;" not in clean and "&quot;" not in clean
            if "&" not in text:
                assert clean.split() == text.replace("\u200b", "").split()
