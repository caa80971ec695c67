"""Whether a text is worth training on: the text of a web page, its figures, and the rules on them.

Owns the main text of an HTML page, the numbers that tell running text from noise, and one row of
limits for each language and kind of text. The rules are those of Gopher (arXiv 2112.11446, table
A1) and C4 (arXiv 1910.10683, section 2.2), with words and limits of each language's own as FineWeb-2
does it (arXiv 2506.20920); which language a text is in, `language` tells.

Product text is short and full of lists, sizes and prices, so the kind "shop" asks for fewer words,
allows figures and lists, and wants no full sentences. What repeats is refused in either kind.
"""

import functools
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ellama_jax.core.limits import LIST_DEPTH
from ellama_jax.corpus.debian_prose import STOP_WORDS

KINDS = ("prose", "shop")

# Longer texts are judged by so many words at their beginning: enough to tell, and memory stays flat.
_MAX_JUDGED_WORDS = 10_000


@dataclass(frozen=True)
class QualityRules:
    """The limits for one language and kind.

    Attributes:
        stop_words: frequent words of the language, in lower case; empty: not looked for.
        line_ends: what a sentence may end with.
        notices: phrases of cookie banners and browser warnings, in lower case.
        bounds: (figure, lowest, highest) in the order in which they are asked; figures as
            `quality_figures` names them.
    """

    stop_words: frozenset[str]
    line_ends: tuple[str, ...]
    notices: tuple[str, ...]
    bounds: tuple[tuple[str, float, float], ...]


_INFINITY = float("inf")
_LINE_ENDS = tuple(".!?…\"'”’»)]。！？؟।")
_ENGLISH_NOTICES = (
    "javascript is disabled", "enable javascript", "javascript must be enabled", "requires javascript",
    "uses cookies", "use cookies", "use of cookies", "cookie policy", "accept cookies",
    "accept all cookies", "terms of use", "privacy policy", "all rights reserved",
)  # fmt: skip

# A further language is one more row: the mean length of its words in characters (Gopher's 3 to 10
# is for English; German compounds need more room), and what its sites say about themselves.
_WORD_LENGTHS = {"en": (3, 10), "de": (3.5, 12), "fr": (3, 10), "it": (3, 10.5), "es": (3, 10)}
_ANY_WORD_LENGTH = (1.0, 25.0)  # Chinese and Japanese have no spaces between words
_NOTICES = {
    "en": (),
    "de": ("verwendet cookies", "verwenden cookies", "nutzt cookies", "nutzen cookies", "javascript ist deaktiviert",
           "javascript aktivieren", "aktivieren sie javascript", "cookies akzeptieren", "alle cookies", "datenschutzerklärung",
           "cookie-richtlinie", "alle rechte vorbehalten"),
    "fr": ("utilise des cookies", "utilisons des cookies", "javascript est désactivé", "activer javascript",
           "activez javascript", "accepter les cookies", "accepter tous les cookies", "politique de confidentialité",
           "mentions légales", "tous droits réservés"),
    "it": ("utilizza cookie", "utilizza i cookie", "utilizziamo i cookie", "utilizziamo cookie", "usa i cookie", "javascript è disabilitato",
           "abilitare javascript", "abilita javascript", "accetta i cookie", "accetta tutti i cookie", "informativa sulla privacy",
           "tutti i diritti riservati"),
    "es": ("utiliza cookies", "usa cookies", "utilizamos cookies", "usamos cookies", "javascript está desactivado", "javascript está deshabilitado",
           "habilitar javascript", "activar javascript", "aceptar cookies", "aceptar todas las cookies", "política de privacidad",
           "todos los derechos reservados"),
}  # fmt: skip
_PLACEHOLDERS = ("lorem ipsum", "dolor sit amet", "todo: text", "your text here")

# Both kinds: Gopher's limits on repetition, as shares of lines and characters.
_REPETITION = (
    ("duplicate_lines", 0, 0.30), ("duplicate_line_chars", 0, 0.20),
    ("duplicate_paragraphs", 0, 0.30), ("duplicate_paragraph_chars", 0, 0.20),
    ("top_2_gram", 0, 0.20), ("top_3_gram", 0, 0.18), ("top_4_gram", 0, 0.16),
    ("duplicate_5_grams", 0, 0.15), ("duplicate_6_grams", 0, 0.14), ("duplicate_7_grams", 0, 0.13),
    ("duplicate_8_grams", 0, 0.12), ("duplicate_9_grams", 0, 0.11), ("duplicate_10_grams", 0, 0.10),
)  # fmt: skip
_PROSE = (
    ("words", 50, 100_000), ("placeholders", 0, 0), ("notice_chars", 0, 0.30),
    ("symbols", 0, 0.10), ("curly_brackets", 0, 0.02), ("bullet_lines", 0, 0.90),
    ("ellipsis_lines", 0, 0.30), ("alphabetic_words", 0.80, 1), ("stop_words", 2, _INFINITY),
    ("ended_lines", 0.12, 1),
)  # fmt: skip
# Measured on real listings: titles such as "Size 1#2#3#", reviews that repeat their title, and
# category trees, whose names share words ("pour chien"), are no noise.
_SHOP = (
    ("words", 3, 100_000), ("placeholders", 0, 0), ("notice_chars", 0, 0.30),
    ("symbols", 0, 0.50), ("curly_brackets", 0, 0.02), ("ellipsis_lines", 0, 0.50),
    ("alphabetic_words", 0.50, 1),
)  # fmt: skip
_SHOP_REPETITION = {
    "duplicate_lines": 0.50, "duplicate_line_chars": 0.50, "duplicate_paragraphs": 0.50,
    "duplicate_paragraph_chars": 0.50, "top_2_gram": 0.35, "top_3_gram": 0.30, "top_4_gram": 0.30,
}  # fmt: skip
# In a text of a few words any pair of words is a large share of it (Gopher asks for 50 words first).
_MIN_WORDS_FOR_GRAMS = 50


@functools.cache
def quality_rules(language: str, kind: str = "prose") -> QualityRules:
    """Returns the rules of a language and kind; a language without a row has general ones.

    Args:
        language: ISO 639-1.
        kind: "prose" or "shop".

    >>> [bound for bound in quality_rules("de").bounds if bound[0] == "mean_word_length"]
    [('mean_word_length', 3.5, 12)]
    """
    if kind not in KINDS:
        raise ValueError(f"kind: must be one of {', '.join(KINDS)}, got {kind!r}.")
    low, high = _WORD_LENGTHS.get(language, _ANY_WORD_LENGTH)
    # Part numbers and sizes are short, names of materials long.
    length = ("mean_word_length", low, high) if kind == "prose" else (
        "mean_word_length", min(low, 2), high + 4
    )  # fmt: skip
    stop_words = frozenset(STOP_WORDS.get(language, "").split())
    bounds = [
        bound
        for bound in (*(_PROSE if kind == "prose" else _SHOP), length, *_repetition_bounds(kind))
        if bound[0] != "stop_words" or stop_words
    ]
    notices = _ENGLISH_NOTICES + _NOTICES.get(language, ())
    return QualityRules(stop_words, _LINE_ENDS, notices, tuple(bounds))


def _repetition_bounds(kind: str) -> list[tuple[str, float, float]]:
    wider = _SHOP_REPETITION if kind == "shop" else {}
    return [(name, low, wider.get(name, high)) for name, low, high in _REPETITION]


def judge_quality(text: str, language: str, kind: str = "prose") -> str | None:
    """Names the first rule that refuses a text.

    Args:
        text: plain text, as `page_text` gives it; lines are paragraphs.
        language: ISO 639-1; see `language.identify_language`.
        kind: "prose" or "shop".

    Returns:
        The figure with "_low" or "_high", or None if every rule keeps the text.

    >>> judge_quality("Lampe", "de", "shop")
    'words_low'
    >>> judge_quality("Tischlampe Nyx, Messing, 40 cm hoch, 49,99 €", "de", "shop") is None
    True
    >>> judge_quality("Nur wenige Worte.", "de")
    'words_low'
    """
    rules = quality_rules(language, kind)
    shape = _shape_figures(text, rules)
    broken = _first_broken(rules, shape)
    # Repetition costs most, so it is counted only for what the other rules keep.
    return broken or _first_broken(rules, _repetition_figures(text))


def quality_figures(text: str, language: str) -> dict[str, float]:
    """Returns every figure that the rules look at.

    Args:
        text: plain text, lines are paragraphs; at most its first 10,000 words count, but for
            `words`.
        language: whose stop words and notices are looked for.

    Returns:
        Name -> number: `words`, `stop_words` (how many different ones) and `placeholders` are
        counts, `mean_word_length` is in characters, all others are shares of 0 to 1 (`symbols` and
        `curly_brackets` for each word).

    >>> figures = quality_figures("One lamp.\\nOne lamp.\\n- red\\n", "en")
    >>> figures["words"], figures["duplicate_lines"], round(figures["bullet_lines"], 2)
    (5, 0.3333333333333333, 0.33)
    """
    return {**_shape_figures(text, quality_rules(language)), **_repetition_figures(text)}


def _first_broken(rules: QualityRules, figures: dict[str, float]) -> str | None:
    for name, low, high in rules.bounds:
        if name in figures and not low <= figures[name] <= high:
            return f"{name}_low" if figures[name] < low else f"{name}_high"
    return None


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _judged(text: str) -> str:
    """Returns a text, or of a very long one as many lines as hold the words that are judged."""
    limit = 12 * _MAX_JUDGED_WORDS
    return text if len(text) <= limit else text[:limit]


_SAID = re.compile(r"\w")
_LETTER = re.compile(r"[^\W\d_]")


def _shape_figures(text: str, rules: QualityRules) -> dict[str, float]:
    judged = _judged(text)
    lower = judged.lower()
    # French sets marks of punctuation apart, and lists begin with one: those are no words.
    times = Counter(judged.split())
    words = {word: n for word, n in times.items() if word.isalpha() or _SAID.search(word)}
    num_words, lines = sum(words.values()), _lines(judged)
    letters = sum(n for word, n in words.items() if word.isalpha() or _LETTER.search(word))
    bare = {word.strip(".,:;!?()\"'«»„“”").lower() for word in times}
    notices = list(filter(lower.__contains__, rules.notices))
    noticed = [line for line in lines if any(map(line.lower().__contains__, notices))]
    ends = [line.endswith(rules.line_ends) for line in lines]
    return {
        "words": num_words if judged is text else len(text.split()),
        "placeholders": sum(map(lower.count, _PLACEHOLDERS)),
        "notice_chars": _share(sum(map(len, noticed)), sum(map(len, lines))),
        "symbols": _share(judged.count("#") + judged.count("…") + judged.count("..."), num_words),
        "curly_brackets": _share(judged.count("{") + judged.count("}"), num_words),
        "bullet_lines": _share(sum(line.startswith(_BULLETS) for line in lines), len(lines)),
        "ellipsis_lines": _share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alphabetic_words": _share(letters, num_words),
        "stop_words": len(bare & rules.stop_words),
        "ended_lines": _share(sum(ends), len(lines)),
        "mean_word_length": _share(sum(len(word) * n for word, n in words.items()), num_words),
    }


_BULLETS = ("•", "-", "*", "·", "‣", "▪", "●", "–")


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def _repetition_figures(text: str) -> dict[str, float]:
    judged = _judged(text)
    lines = _lines(judged)
    paragraphs = [part for part in map(str.strip, re.split(r"\n\s*\n", judged)) if part]
    figures = {}
    for name, parts in (("line", lines), ("paragraph", paragraphs)):
        repeats = list(_repeats(parts))
        figures[f"duplicate_{name}s"] = _share(len(repeats), len(parts))
        figures[f"duplicate_{name}_chars"] = _share(sum(map(len, repeats)), len(judged))
    words = re.findall(r"\w+", judged.lower())
    if len(words) >= _MIN_WORDS_FOR_GRAMS:
        figures |= _gram_figures(words)
    return figures


def _repeats(parts: list[str]):
    """Yields each part that came before."""
    seen = set()
    for part in parts:
        if part in seen:
            yield part
        seen.add(part)


def _gram_figures(words: list[str]) -> dict[str, float]:
    """Returns the shares of the characters that repeated n-grams cover, n from 2 to 10."""
    ranks = {word: rank for rank, word in enumerate(sorted(set(words)))}
    grams = np.array([ranks[word] for word in words])
    ends = np.cumsum([0, *map(len, words)])
    places = np.arange(len(words))
    figures = {f"top_{count}_gram": 0.0 for count in (2, 3, 4)}
    figures |= {f"duplicate_{count}_grams": 0.0 for count in range(5, 11)}
    for count in range(2, 11):
        grams, places = _longer_grams(grams, places, len(words))
        if not len(grams):
            break
        chars = ends[places + count] - ends[places]
        if count < 5:
            covered = _top_gram_chars(grams, chars)
            figures[f"top_{count}_gram"] = covered / int(ends[-1])
        else:
            covered = _duplicate_gram_chars(grams, places, chars, count)
            figures[f"duplicate_{count}_grams"] = covered / int(ends[-1])
    return figures


def _longer_grams(
    grams: np.ndarray, places: np.ndarray, num_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the n-grams that come twice or more, of those that do with a word less.

    Args:
        grams: [G] rank of the shorter gram in the order of its words, 0 to `num_words`.
        places: [G] where each begins, rising.

    Returns:
        [H] ranks and [H] places; equal grams have equal ranks, others are in the order of words.
    """
    # A gram that comes twice begins and ends with shorter ones that do.
    follows = (places[1:] == places[:-1] + 1).nonzero()[0]
    if not len(follows):
        return grams[:0], places[:0]
    pairs = grams[follows] * (num_words + 1) + grams[follows + 1]
    order = pairs.argsort(kind="stable")
    ordered = pairs[order]
    changes = np.ones(len(pairs) + 1, bool)
    changes[1:-1] = ordered[1:] != ordered[:-1]
    again = ~(changes[:-1] & changes[1:])
    kept = np.zeros(len(pairs), int)
    kept[order] = changes[:-1].cumsum() * again  # ranks from 1; 0 for what comes once
    repeated = kept.nonzero()[0]
    return kept[repeated], places[follows[repeated]]


def _top_gram_chars(grams: np.ndarray, chars: np.ndarray) -> int:
    """Returns the characters that the most frequent n-gram covers."""
    times = np.bincount(grams)
    top = len(times) - 1 - int(times[::-1].argmax())  # of equally frequent ones the last by words
    return int(chars[np.argmax(grams == top)]) * int(times[top])


def _duplicate_gram_chars(
    grams: np.ndarray, places: np.ndarray, chars: np.ndarray, count: int
) -> int:
    """Returns the characters inside n-grams that came before, each character once."""
    seen, total, free = set(), 0, 0
    for gram, place, size in zip(grams.tolist(), places.tolist(), chars.tolist(), strict=True):
        if place < free:
            continue
        if gram in seen:
            total += size
            free = place + count
        else:
            seen.add(gram)
    return total


# --- web pages -----------------------------------------------------------------------------------

_HTML = re.compile(
    r"<\s*(!doctype|html|head|body|div|p|br|span|ul|ol|li|table|h[1-6]|a|b|i|strong|em)\b[^<>]*>", re.I
)  # fmt: skip
_SKIPPED = [
    "[data-skipped]",
    "[hidden]",
    '[aria-hidden="true"]',
    "nav", "footer", "aside", "button", "form select", "dialog", "template",
    '[role="navigation"]', '[role="dialog"]', '[role="contentinfo"]',
    '[id*="cookie"]', '[class*="cookie"]', '[id*="consent"]', '[class*="consent"]',
    '[class*="breadcrumb"]',
]  # fmt: skip
# A list is a menu if it has some links and hardly any text outside them.
_MIN_MENU_LINKS = 3
_MENU_LINK_FRAC = 0.8
_WATCHED = ("header", "ul", "ol", "a")


def page_text(page: str) -> str:
    """Returns the main text of an HTML page; a text that is no HTML comes back tidied only.

    Menus, headers and footers of the site, cookie banners, forms, scripts and hidden elements are
    left out. Lists and tables stay, since they are where a product's properties stand: a list item
    is a line that begins with a bullet, a table row is a line with tabs between its cells.

    Args:
        page: HTML, decoded, or plain text.

    Returns:
        Lines without white space at their ends and at most one empty line in a row.

    Raises:
        ValueError: if lists stand in each other without end.

    >>> page_text("<nav><a href='/'>Home</a></nav><h1>Lampe</h1><ul><li>40 cm<li>E27</ul>")
    'Lampe\\n\\n• 40 cm\\n• E27'
    >>> page_text("Preis < 5 €\\nund mehr")
    'Preis < 5 €\\nund mehr'
    """
    if not _HTML.search(page):
        return _tidy(page)
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(page)
    if tree.body is None:
        return ""
    _hide_menus(tree.body)
    # Not `main_content=True`: it drops every <ul>, and with it most of a product page.
    return _tidy(extract_plain_text(tree, alt_texts=False, skip_elements=_SKIPPED))


class _Seen:
    """What lies in a list, a header or a link: signs that are no space, of links and of all."""

    def __init__(self, node, tag: str, depth: int):
        self.node, self.tag, self.depth, self.has_title = node, tag, depth, False
        self.letters, self.num_links, self.link_letters = 0, 0, 0


def _hide_menus(body) -> None:
    """Marks lists of links, and headers that hold no title, as to be skipped.

    In one walk: asked of each list by itself, a thousand of them in each other are read a thousand times.
    """
    from resiliparse.parse.html import traverse_dom

    if body.query_selector("header, ul, ol") is None:
        return
    open_ones, hidden = [_Seen(body, "body", -1)], []

    def enter(context) -> None:
        node, depth = context.node, context.depth
        close(depth)
        if (tag := node.tag) in _WATCHED:
            open_ones.append(_Seen(node, tag, depth))
            if len(open_ones) > LIST_DEPTH:
                raise ValueError(f"page: must have lists at most {LIST_DEPTH} deep, got more.")
        elif tag == "h1":
            open_ones[-1].has_title = True
        elif tag == "#text":
            open_ones[-1].letters += len("".join(node.value.split()))

    def close(depth: int) -> None:
        """Closes what ended before an element of that depth; the walk does not tell of empty ones."""
        while open_ones[-1].depth >= depth:
            seen, around = open_ones.pop(), open_ones[-1]
            if (
                _is_menu(seen)
                if seen.tag in ("ul", "ol")
                else seen.tag == "header" and not seen.has_title
            ):
                hidden.append(seen.node)
            link = seen.tag == "a"
            around.has_title |= seen.has_title
            around.letters += seen.letters
            around.num_links += seen.num_links + link
            around.link_letters += seen.letters if link else seen.link_letters

    traverse_dom(body, enter)
    close(0)
    for node in hidden:
        node["data-skipped"] = ""


def _is_menu(seen: _Seen) -> bool:
    return seen.num_links >= _MIN_MENU_LINKS and seen.link_letters >= _MENU_LINK_FRAC * seen.letters


def _tidy(text: str) -> str:
    lines = (re.sub(r"[^\S\t]+", " ", line).strip() for line in text.splitlines())
    lines = (re.sub(r"\s*\t\s*", "\t", line) for line in lines)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
