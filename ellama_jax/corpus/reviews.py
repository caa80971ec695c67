"""Reviews as records and as text: bring them into one form, write them, find the fields again.

Owns the review (rating, scale, title, text, product_id, product_title, language, source) and its
text forms. Names of reviewers are taken out when a record is read; listings are `listings`' own.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache

from ellama_jax.corpus.markup import strip_markup
from ellama_jax.corpus.prices import number_style, number_text
from ellama_jax.corpus.privacy import mask_name, mask_private, public_id
from ellama_jax.corpus.templates import text_lines
from ellama_jax.corpus.wording import (
    REVIEW_WORDS,
    check_language,
    line_prompt,
    one_line,
)

TEXT_FIELDS = ("text", "review", "review_text", "body", "content", "comment", "review_body")
TITLE_FIELDS = ("title", "headline", "summary", "review_title", "review_headline")
# Not "name", which is the product's as often.
REVIEWER_FIELDS = ("reviewer", "reviewer_name", "author", "user", "user_name", "nickname")
_FULL, _HALF, _EMPTY = "★", "½", "☆"


def normalise_review(record: Mapping, *, source: str, language: str | None = None) -> dict:
    """Brings a review into the form that all else works on, without private data and markup.

    The rating may be a number, "4/5", "4,5 von 5", "80 %" or stars; `scale` is the best possible
    one: what the rating itself says, else the record's `scale`, else 5. A title that only repeats
    the beginning of the text, as shops' excerpts do, is left out.

    Args:
        record: a rating, a text, or both; `TEXT_FIELDS` and `TITLE_FIELDS` name their fields.
        source: name of the corpus, where the record has none.
        language: of the review, where the record says none.

    Returns:
        dict with rating (float or None), scale (int), title, text, product_id, product_title,
        language and source.

    Raises:
        ValueError: naming the field that is wrong.

    >>> review = normalise_review(
    ...     {"rating": "4/5", "review": "Warm &amp; light, says <b>Jo Doe</b>.", "author": "Jo Doe",
    ...      "id": 7}, source="shop", language="en")
    >>> review["rating"], review["scale"], review["text"], review["product_id"]
    (4.0, 5, 'Warm & light, says [user name].', '7')
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"line: must be a JSON object, got {type(record).__name__}.")
    language = check_language(_first_of(record, "language", "lang") or language)
    rating, scale = _read_rating(_first_of(record, "rating", "stars", "score", "star_rating"),
                                 _first_of(record, "scale", "max_rating"))  # fmt: skip
    reviewer = _first_of(record, *REVIEWER_FIELDS)
    reviewer = reviewer if isinstance(reviewer, str) else ""
    title = one_line(_clean_text(record, TITLE_FIELDS, reviewer, language))
    text = _clean_text(record, TEXT_FIELDS, reviewer, language)
    if not text and (rating is None or not title):
        raise ValueError("text: must not be empty in a review without rating and title.")
    if one_line(text).casefold().startswith(title.rstrip(" .…").casefold()):
        title = ""
    product_id = _first_of(record, "product_id", "parent_id", "asin", "id")
    return {
        "rating": rating,
        "scale": scale,
        "title": title,
        "text": text,
        "product_id": None if product_id is None else public_id(str(product_id)),
        "product_title": one_line(_clean_text(record, ("product_title",), reviewer, language)),
        "language": language,
        "source": _first_of(record, "source") or source,
    }


def _first_of(record: Mapping, *keys: str) -> object:
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _clean_text(record: Mapping, keys: tuple[str, ...], reviewer: str, language: str) -> str:
    value = _first_of(record, *keys)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{keys[0]}: must be a text, got {value!r}.")
    text = mask_name(strip_markup(value or ""), reviewer, "handle", language)[0]
    return text_lines(mask_private(text, language)[0])


_OF = re.compile(
    r"(\d+(?:[.,]\d+)?)\s*(?:stars?|sternen?|étoiles?|stelle|estrellas?)?\s*"
    r"(?:/|out of|of|von|sur|su|de|di)\s*(\d+)\D*", re.IGNORECASE
)  # fmt: skip
_PERCENT = re.compile(r"(\d+(?:[.,]\d+)?)\s*%")
_ALONE = re.compile(
    r"(\d+(?:[.,]\d+)?)(?:\s*(?:stars?|sterne?|étoiles?|stell[ae]|estrellas?|★))?", re.I
)
_STARS = re.compile(rf"({_FULL}+{_HALF}?|⭐+){_EMPTY}*")


def _read_rating(value: object, scale: object) -> tuple[float | None, int]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, 5
    written = value
    if isinstance(value, str):
        value, said = _read_rating_text(value)
        scale = said or scale
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"rating: must be a number or like '4/5', got {written!r}.")
    scale = 5 if scale is None else scale
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale: must be a whole number from 1, got {scale!r}.")
    if not 0 <= value <= scale:
        raise ValueError(f"rating: must be from 0 to {scale}, got {written!r}.")
    return float(value), scale


def _read_rating_text(text: str) -> tuple[float | None, int | None]:
    """Reads "4/5", "4,5 von 5 Sternen", "80 %", "★★★★☆" or "4"; (None, None) if it is none."""
    text = text.strip()
    if found := _STARS.fullmatch(text):
        return text.count(_FULL) + text.count("⭐") + 0.5 * text.count(_HALF), None
    if found := _OF.fullmatch(text):
        return float(found[1].replace(",", ".")), int(found[2])
    if found := _PERCENT.fullmatch(text):
        return float(found[1].replace(",", ".")), 100
    if found := _ALONE.fullmatch(text):
        return float(found[1].replace(",", ".")), None
    return None, None


def review_to_document(review: dict, *, seed: int) -> str:
    """Writes a review as one text document, in one of `REVIEW_TEMPLATES` drawn by its content.

    A review that would not come back from the form drawn is written as "lines"; so are all of a
    language without words of its own, save those in "stars".

    Args:
        review: as `normalise_review` gives it.
        seed: of the draw; review and seed decide, in every process.

    >>> print(review_to_document({
    ...     "rating": 4.0, "scale": 5, "title": "Hält warm", "text": "Seit zwei Jahren im Einsatz.",
    ...     "product_id": "7", "product_title": "Mütze Nyx", "language": "de", "source": "shop"},
    ...     seed=0))
    Mütze Nyx
    ★★★★☆ Hält warm
    Seit zwei Jahren im Einsatz.
    """
    language = check_language(review["language"])
    values = [review["product_id"], review["rating"], review["title"], review["text"]]
    rng = random.Random(f"review {seed} {language} {values}")
    name = rng.choice(tuple(_WRITERS) if language in REVIEW_WORDS else ("lines", "stars"))
    for template in (name, "lines"):
        text = _WRITERS[template](review, language)
        if text is not None and _comes_back(text, review):
            return text
    return _write_lines(review, language)


def _comes_back(text: str, review: dict) -> bool:
    try:
        parsed = parse_review(text, review["language"])
    except ValueError:
        return False
    return parsed == {key: review[key] for key in parsed} | {"text": one_line(review["text"])} or (
        parsed == {key: review[key] for key in parsed}
    )


def parse_review(text: str, language: str) -> dict:
    """Finds the fields of a document that `review_to_document` wrote.

    Returns:
        dict with rating, scale (5 where there is no rating), title, text and product_title.

    Raises:
        ValueError: if the text has none of the forms.
    """
    language = check_language(language)
    for read in (_read_lines, _read_stars, _read_words, _read_last):
        fields = read(text.split("\n"), language)
        if fields is not None:
            return fields
    raise ValueError(f"review: must be of a form that was written here, got {text[:40]!r}.")


def _fields(rating, scale, title, text, product_title) -> dict:
    return {"rating": rating, "scale": scale or 5, "title": title, "text": text,
            "product_title": product_title}  # fmt: skip


@cache
def _words(language: str):
    """A language without words of its own gets English ones."""
    return REVIEW_WORDS.get(language, REVIEW_WORDS["en"])


def _rating_text(review: dict, language: str) -> str:
    return f"{number_text(review['rating'], language)}/{review['scale']}"


def _read_fraction(text: str, language: str) -> tuple[float, int] | None:
    found = re.fullmatch(r"(\d+(?:[.,]\d+)?)/(\d+)", text)
    if not found:
        return None
    return float(found[1].replace(number_style(language).decimal, ".")), int(found[2])


def _write_lines(review: dict, language: str) -> str:
    """A label and a value a line: product, rating, headline, text in one line."""
    words = _words(language)
    rating = "" if review["rating"] is None else _rating_text(review, language)
    pairs = [(words.product, review["product_title"]), (words.rating, rating),
             (words.headline, review["title"]), (words.review, one_line(review["text"]))]  # fmt: skip
    return "\n".join(f"{line_prompt(name, language)} {value}" for name, value in pairs if value)


def _read_lines(lines: list[str], language: str) -> dict | None:
    words, found = _words(language), {}
    for name in (words.product, words.rating, words.headline, words.review):
        label = line_prompt(name, language) + " "
        if lines and lines[0].startswith(label):
            found[name] = lines.pop(0).removeprefix(label)
    if lines or not found:
        return None
    rating = _read_fraction(found.get(words.rating, ""), language) or (None, None)
    if words.rating in found and rating[0] is None:
        return None
    return _fields(*rating, found.get(words.headline, ""), found.get(words.review, ""),
                   found.get(words.product, ""))  # fmt: skip


def _write_stars(review: dict, language: str) -> str | None:
    """Product; stars and headline; text."""
    rating, scale = review["rating"], review["scale"]
    if rating is None or scale != 5 or Fraction(rating).denominator > 2:
        return None
    half = rating % 1 > 0
    stars = _FULL * int(rating) + _HALF * half + _EMPTY * (5 - int(rating) - half)
    head = f"{stars} {review['title']}".rstrip()
    return "\n".join(part for part in (review["product_title"], head, review["text"]) if part)


def _read_stars(lines: list[str], language: str) -> dict | None:
    product = "" if _stars_of(lines[0]) else lines[0]
    lines = lines[bool(product) :]
    stars = _stars_of(lines[0]) if lines else None
    if not stars:
        return None
    rating = stars.count(_FULL) + 0.5 * stars.count(_HALF)
    return _fields(rating, 5, lines[0][len(stars) :].lstrip(), "\n".join(lines[1:]), product)


def _stars_of(line: str) -> str | None:
    found = re.match(rf"{_FULL}*{_HALF}?{_EMPTY}*(?= |$)", line)
    return found[0] if found and len(found[0]) == 5 else None


def _write_words(review: dict, language: str) -> str | None:
    """A headline that says the grade in words and stars, then the text."""
    rating, words = review["rating"], _words(language)
    if review["scale"] != 5 or rating not in (1, 2, 3, 4, 5) or not review["text"]:
        return None
    stars = words.stars.format(int(rating), 5)
    grade = f"{words.grades[int(rating) - 1]} ({stars})"
    about = f" – {review['product_title']}" if review["product_title"] else ""
    return f"{grade}{about}\n{review['title']}\n{review['text']}".replace("\n\n", "\n")


def _read_words(lines: list[str], language: str) -> dict | None:
    words = _words(language)
    for number, grade in enumerate(words.grades, start=1):
        start = f"{grade} ({words.stars.format(number, 5)})"
        about = lines[0].removeprefix(start)
        if about == lines[0] or (about and not about.startswith(" – ")) or len(lines) < 2:
            continue
        # Of several lines the first is the headline; a text of several lines has another form.
        title, text = (lines[1], lines[2]) if len(lines) == 3 else ("", "\n".join(lines[1:]))
        return _fields(float(number), 5, title, text, about.removeprefix(" – "))
    return None


def _write_last(review: dict, language: str) -> str | None:
    """The text first; then what it is about, and the rating."""
    if review["rating"] is None or not review["text"]:
        return None
    words = _words(language)
    head = f"{review['title']}\n" if review["title"] else ""
    stars = words.stars.format(number_text(review["rating"], language), review["scale"])
    product = f"{line_prompt(words.product, language)} {review['product_title']}\n"
    product = product if review["product_title"] else ""
    rating = f"{line_prompt(words.rating, language)} {stars}"
    return f"{head}{one_line(review['text'])}\n{product}{rating}"


@cache
def _stars_pattern(language: str) -> re.Pattern:
    words = _words(language)
    number = r"(\\d+(?:[.,]\\d+)?)"
    stars = re.sub(r"\\\{\\\}", number, re.escape(words.stars))
    return re.compile(re.escape(f"{line_prompt(words.rating, language)} ") + stars)


def _read_last(lines: list[str], language: str) -> dict | None:
    found = _stars_pattern(language).fullmatch(lines.pop())
    if not found:
        return None
    label = line_prompt(_words(language).product, language) + " "
    product = lines.pop().removeprefix(label) if lines and lines[-1].startswith(label) else ""
    if len(lines) not in (1, 2):
        return None
    title = lines[0] if len(lines) == 2 else ""
    rating = float(found[1].replace(",", "."))
    return _fields(rating, int(found[2]), title, lines[-1], product)


_WRITERS: dict[str, Callable[[dict, str], str | None]] = {
    "lines": _write_lines,
    "stars": _write_stars,
    "words": _write_words,
    "last": _write_last,
}
REVIEW_TEMPLATES = tuple(_WRITERS)
