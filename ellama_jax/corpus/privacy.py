"""Private data out of text: who to write to, call, visit or pay.

Owns what counts as private and its masks' places. Precision comes first: a wrongly masked article
number is lost text, and shops are full of digits; so cards must pass Luhn's check, IBANs theirs,
phone numbers a library's rules, and addresses need street, house number and postcode together.
Names of people are found only where a record says them (`mask_name`).
"""

import hashlib
import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, lru_cache

from ellama_jax.corpus.prices import home_territory
from ellama_jax.corpus.wording import mask_word

# Where a number without country code may be from, the likeliest first. A language without a row
# is tried in the country where most of its speakers live.
PHONE_REGIONS = {
    "en": ("US", "GB", "AU", "IE"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR", "BE", "CH", "CA"),
    "it": ("IT", "CH"),
    "es": ("ES", "MX", "AR", "CL", "CO"),
}
_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+%-]{1,64}(?:@|\s?[\[(]\s?(?:at|ät)\s?[\])]\s?)"
    r"(?:[\w-]{1,63}(?:\.|\s?[\[(]\s?(?:dot|punkt)\s?[\])]\s?)){1,4}[a-zA-Z]{2,24}(?![\w@])",
    re.IGNORECASE,
)
_URL_USER = re.compile(
    r"\b(?:https?|ftp)://[^\s/@:]{1,64}(?::[^\s/@]{0,64})?@[^\s<>\"]{1,300}", re.IGNORECASE
)
_PROFILE = re.compile(
    r"(?<![\w.])(?:https?://)?(?:www\.|m\.|[a-z]{2}\.)?(?:(?:facebook|fb|instagram|twitter|x|tiktok|"
    r"pinterest|snapchat|threads|vk)\.com/|linkedin\.com/in/|youtube\.com/(?:@|c/|user/|channel/)|"
    r"(?:t|wa|m)\.me/|instagr\.am/|ebay\.[a-z.]{2,6}/(?:usr|str)/|etsy\.com/(?:shop|people)/)"
    r"(?!share|sharer|intent)[^\s<>\"')\]]{0,200}[^\s<>\"')\].,;:!?]",
    re.IGNORECASE,
)
_HANDLE = re.compile(r"(?<![\w@./])@[A-Za-z_][\w.]{1,28}\w")
_SOCIAL = re.compile(
    r"insta|twitter|tiktok|facebook|\bfb\b|telegram|snapchat|youtube|whats|\big\b|follow|folg|suivez|"
    r"segui|sígue|siga|pinterest|threads|@",
    re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{1,4}(?![\w:])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}\b")
IBAN_LENGTHS = {
    "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IT": 27,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28,
    "PT": 25, "RO": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26,
}  # fmt: skip
_CARD = re.compile(
    r"(?<![\w.,-])(?:\d{4}[ -]?){3}\d{4}(?![\w-]|[.,]\d)|(?<![\w.,-])3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?![\w-]|[.,]\d)"
)
# Visa, Mastercard (two ranges), Discover, JCB, UnionPay; Amex by its own form above.
_ISSUER = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|6(?:011|4[4-9]|5|2)|35(?:2[89]|[3-8])|3[47]"
)
_ARTICLE = re.compile(
    r"\b(?:ean|gtin|upc|isbn|asin|sku|mpn|imei|oem?|serial|art(?:icle|ikel|[íi]culo|icolo)?|"
    r"modell?o?|modèle|ref|réf|part|pièce|item)\b\W{0,4}(?:nr|no|num\w*|code|n°)?\W{0,3}$",
    re.IGNORECASE,
)
_PHONE_LIKE = re.compile(r"(?<![\w.,/#$€£-])(?:\+|\()?\d[\d\s()./-]{6,22}\d(?![\w$€£%]|[.,]\d)")
_BEFORE_PHONE = 32  # characters before a number that say what it is
# Words before a number that make it one to call; our own masks are among them, so that the second
# number of two is found as well.
_CALL = re.compile(
    r"(?:\btel\w*|\btél\w*|\b(?:tele)?phone|\bfon\b|\bfax|\bcall|\bmobil\w*|\bhandy\b|whats ?app|"
    r"hotline|\bsms\b|\bruf(?:en|nummer)|\bappel\w*|\bportable|\bchiam\w*|\bcell\b|\bcellulare|"
    r"\bll[aá]m\w*|\bmóvil|☎|📞|📱|✆)[^\d\n+]{0,20}$",
    re.IGNORECASE,
)
_CITY = r"[A-ZÄÖÜÀ-Ý][\w'.-]{1,30}(?:[ -][A-ZÄÖÜÀ-Ýadsl][\w'.-]{1,20}){0,3}"
_NAME = r"[\w'.-]{1,25}"
# Street, house number, postcode and place; all languages' forms are looked for in every text.
ADDRESSES = {
    "en": rf"\d{{1,5}}[A-Za-z]? (?:{_NAME} ){{1,3}}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|"
          r"Boulevard|Blvd|Court|Ct|Way|Square|Sq|Close|Place|Pl|Terrace|Highway|Hwy)\b\.?"
          r"(?:,? [\w#. '-]{1,25}){0,2}?,? (?:[A-Z]{2},? \d{5}(?:-\d{4})?\b|"
          r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}\b)",
    "de": r"[A-ZÄÖÜ][\w.-]{0,25}(?: [A-ZÄÖÜ][\w.-]{1,20}){0,2}?[ -]?(?:[Ss]traße|[Ss]trasse|[Ss]tr\.|"
          r"[Ww]eg|[Pp]latz|[Aa]llee|[Gg]asse|[Rr]ing|[Dd]amm|[Uu]fer) \d{1,4} ?[a-zA-Z]?,? "
          rf"(?:(?:D|A|CH)[- ])?\d{{4,5}} {_CITY}",
    "fr": r"\d{1,4}(?: ?(?:bis|ter))?,? (?:rue|avenue|av\.|boulevard|bd|place|chemin|allée|impasse|"
          rf"quai|route|cours) (?:{_NAME} ){{0,4}}{_NAME},? (?:F-)?\d{{5}} {_CITY}",
    "it": r"(?:[Vv]ia|[Vv]iale|[Pp]iazza|[Cc]orso|[Ll]argo|[Vv]icolo|[Ss]trada) "
          rf"(?:{_NAME} ){{0,3}}{_NAME},? (?:n\. ?)?\d{{1,4}}(?:/?[a-zA-Z])?,? (?:I-)?\d{{5}} {_CITY}",
    "es": r"(?:[Cc]alle|C/|[Aa]venida|[Aa]vda\.?|[Pp]laza|[Pp]aseo|[Cc]arrer) ?"
          rf"(?:{_NAME} ){{0,4}}{_NAME},? (?:n[º°.] ?)?\d{{1,4}}(?:,? [\wº.ª]{{1,6}}){{0,2}},? \d{{5}} {_CITY}",
}  # fmt: skip


def mask_private(text: str, language: str) -> tuple[str, Counter]:
    """Puts a word in brackets in the place of each piece of private data.

    E-mail addresses, web addresses with a user's name, social handles, IBANs, payment cards, postal
    addresses, phone numbers and public IP addresses. The word is of the text's language, so that
    the sentence around it still reads; masking a masked text changes nothing.

    Returns:
        The text, and how many of each kind: email, url, handle, iban, card, address, phone, ip.

    >>> text, found = mask_private("Call +1 (212) 736-5000 or write to joe@shop.example", "en")
    >>> text, dict(found)
    ('Call [phone number] or write to [e-mail]', {'email': 1, 'phone': 1})
    >>> mask_private("EAN 4006381333931, 10.5 x 20 cm, model 800-1234", "en")[0]
    'EAN 4006381333931, 10.5 x 20 cm, model 800-1234'
    """
    total: Counter = Counter()
    original, text = text, plain_signs(text)
    for _ in range(_MOST_PASSES):
        if not _SUSPECT.search(text):
            break
        found: Counter = Counter()
        if "@" in text or "/" in text or _AT.search(text):
            text = _mask_web(text, language, found)
        if _HAS_NUMBER.search(text):
            text = _mask_numbers(text, language, found)
        if not found:
            break
        total += found  # and once more: what stood between two masks may be private now
    return (text if total else original), total


# What hides a sign from a pattern and not from a reader: signs of another width, size or face, and
# such without width. The latter only between letters and signs of ASCII: emoji and scripts need them.
_OTHER_FACE = re.compile("[\ufe50-\ufe6b\uff01-\uff5e\U0001d400-\U0001d7ff]")
_NO_WIDTH = re.compile(r"(?<=[!-~])[\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]+(?=[!-~])")


def plain_signs(text: str) -> str:
    r"""Returns a text with letters, digits and signs of ASCII in the place of those that look so.

    >>> plain_signs("joe\uff20shop.\u200bexample"), plain_signs("\uff14\uff10\uff10"), plain_signs("m²")
    ('joe@shop.example', '400', 'm²')
    """
    text = _OTHER_FACE.sub(lambda sign: unicodedata.normalize("NFKC", sign[0]), text)
    return _NO_WIDTH.sub("", text)


def public_id(identifier: str) -> str:
    """Returns a product's id, or a hash where it names a person: some shops have it begin with an e-mail.

    >>> public_id(" B0\uff11\u200b7X"), public_id("joe@shop.example/7")[:3]
    ('B017X', 'id-')
    """
    plain = plain_signs(identifier).strip()
    if mask_private(plain, "en")[1].keys() & {"email", "url", "handle"}:
        return f"id-{hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()}"
    return plain


def mask_raw(raw: str, names: Iterable[object] = ()) -> str:
    r"""Masks private data in what could not be read as a record, for people who look for the reason.

    Args:
        raw: as it was in the file; escapes of JSON are undone.
        names: of sellers and reviewers, where they are known.

    >>> mask_raw('{"mail": "joe\\u0040shop.example", "by": "Jo Doe"', ["Jo Doe"])
    '{"mail": "[e-mail]", "by": "[user name]"'
    """
    text = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), raw)
    for name in filter(None, names):
        if isinstance(name, str):
            text, _ = mask_name(text, name, "handle", "und")
    return mask_private(text, "und")[0]


_ESCAPE = re.compile(r"\\u(00[2-7][0-9a-fA-F]|[fF][fFeE][0-9a-fA-F]{2}|20[0-6][0-9a-fA-F])")

# Ordinary text needs two, the second to see that nothing is left; a text of nothing but addresses and
# numbers may not have as many as it has numbers.
_MOST_PASSES = 8
_SUSPECT = re.compile(r"[@\d/]|[\[(]\s?[aä]t\s?[\])]", re.IGNORECASE)
_AT = re.compile(r"[\[(]\s?[aä]t\s?[\])]", re.IGNORECASE)
_HAS_PROFILE = re.compile(r"://|\.(?:com|me|am)/|/(?:usr|str)/", re.IGNORECASE)
# Four digits with little between them, or a British postcode: nothing below is shorter.
_HAS_NUMBER = re.compile(
    r"\d(?:[\s()./:-]{0,3}\d){3}|:[0-9a-fA-F]{0,4}:|[A-Z]\d[A-Z\d]? ?\d[A-Z]{2}\b"
)


def _mask_web(text: str, language: str, found: Counter) -> str:
    if "/" in text and _HAS_PROFILE.search(text):
        text = _replace(_URL_USER, "url", text, language, found)
        text = _replace(_PROFILE, "url", text, language, found)
    if "@" in text or _AT.search(text):
        text = _replace(_EMAIL, "email", text, language, found)
    if "@" not in text:
        return text
    return _replace(_HANDLE, "handle", text, language, found,
                    lambda m: _SOCIAL.search(text, max(0, m.start() - 40), m.start()))  # fmt: skip


def _mask_numbers(text: str, language: str, found: Counter) -> str:
    digits = sum(map(str.isdigit, text))
    if digits >= 12:
        text = _IBAN.sub(lambda m: _mask_iban(m[0], language, found), text)
        text = _replace(_CARD, "card", text, language, found, _is_card)
    if digits >= 5 and _POSTCODE.search(text):
        text = _replace(_address(), "address", text, language, found)
    if digits >= 7:
        text = _mask_phones(text, language, found)
    if text.count(".") >= 3:
        text = _replace(_IPV4, "ip", text, language, found, _is_public_ip)
    if text.count(":") >= 3:
        text = _replace(_IPV6, "ip", text, language, found, _is_public_ip)
    return text


def _replace(
    pattern: re.Pattern,
    kind: str,
    text: str,
    language: str,
    found: Counter,
    really: Callable[[re.Match], object] | None = None,
) -> str:
    """Masks what the pattern finds and `really` agrees to."""

    def mask(match: re.Match) -> str:
        if really is not None and not really(match):
            return match[0]
        found[kind] += 1
        return mask_word(kind, language)

    return pattern.sub(mask, text)


def _mask_phones(text: str, language: str, found: Counter) -> str:
    """Masks phone numbers from left to right: one behind a masked one is one to call, too."""
    parts, end, before = [], 0, ""
    for match in _PHONE_LIKE.finditer(text):
        between = text[end : match.start()]
        before = (before + between)[-_BEFORE_PHONE:]
        word = match[0]
        if _is_phone(word, before, language):
            word = mask_word("phone", language)
            found["phone"] += 1
        parts += (between, word)
        before, end = before + word, match.end()
    return "".join([*parts, text[end:]])


def _mask_iban(span: str, language: str, found: Counter) -> str:
    """Masks the IBAN at a span's beginning; what the pattern took beyond its length stays."""
    length = IBAN_LENGTHS.get(span[:2], 0)
    ends = [end for end in range(len(span) + 1) if _solid(span[:end]) and
            len(_solid(span[:end])) == length]  # fmt: skip
    if not ends or not _passes_97(_solid(span)[:length]):
        return span
    found["iban"] += 1
    return mask_word("iban", language) + span[ends[0] :]


def _solid(text: str) -> str:
    return text.replace(" ", "").replace("-", "")


def _passes_97(iban: str) -> bool:
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97 == 1


def _is_card(match: re.Match) -> bool:
    digits = _solid(match[0])
    before = match.string[max(0, match.start() - 24) : match.start()]
    if not _ISSUER.match(digits) or _ARTICLE.search(before) or len(set(digits)) == 1:
        return False
    doubled = [int(sign) * 2 for sign in digits[-2::-2]]
    total = sum(map(int, digits[-1::-2])) + sum(n - 9 if n > 9 else n for n in doubled)
    return total % 10 == 0


_POSTCODE = re.compile(r"\b\d{4,5}\b|\b[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}\b")


@cache
def _address() -> re.Pattern:
    return re.compile(r"(?<!\w)(?:" + "|".join(ADDRESSES.values()) + ")")


def _is_phone(span: str, before: str, language: str) -> bool:
    """Accepts a valid number that looks like one: with a country code, called one, or grouped."""
    if not 7 <= sum(map(str.isdigit, span)) <= 15 or _ARTICLE.search(before):
        return False
    # Digits alone behind "00" are a GTIN filled up with zeros.
    international = span[0] == "+" or (span.startswith("00") and not span.isdigit())
    if not (international or _GROUPED.fullmatch(span) or _CALL.search(before)):
        return False
    return any(_is_valid_phone(span, region) for region in _regions(language))


# Without a word like "call": an area code in brackets, or set apart by a slash as Germans do, the
# American 3-3-4, the French pairs. Other groups with a leading 0 are part numbers as often.
_GROUPED = re.compile(
    r"\(0?\d{2,5}\)[\s-]?\d{2,4}(?:[\s-]?\d{2,4}){1,3}|[2-9]\d\d([-. ])[2-9]\d\d\1\d{4}|"
    r"0[1-79](?:([ .])\d\d)(?:\2\d\d){3}|0\d{2,4} ?/ ?\d{5,8}"
)


@cache
def _regions(language: str) -> tuple[str | None, ...]:
    if language in PHONE_REGIONS:
        return PHONE_REGIONS[language]
    home = None if language == "und" else home_territory(language)
    return (
        (home,)
        if home
        else tuple(region for regions in PHONE_REGIONS.values() for region in regions)
    )


def _is_valid_phone(span: str, region: str | None) -> bool:
    import phonenumbers

    text = "+" + span[2:] if span.startswith("00") else span
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


_VERSION = re.compile(r"(?:\bv|version|firmware|release|fw|build|sw)\W{0,3}$", re.IGNORECASE)


def _is_public_ip(match: re.Match) -> bool:
    text = match[0]
    before = match.string[max(0, match.start() - 16) : match.start()]
    # "2.1.4.8" is a version or a clause; addresses have larger parts.
    if _VERSION.search(before) or ("." in text and len(text) < 9):
        return False
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


@lru_cache(maxsize=1000)  # sellers are many
def _name_pattern(name: str) -> re.Pattern:
    words = r"\s+".join(map(re.escape, name.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def mask_name(text: str, name: str, kind: str, language: str) -> tuple[str, int]:
    """Masks a known name (of who sells, of who reviews) as whole words, in any case.

    Names under three letters are left: they are too likely to be something else.

    >>> mask_name("Sold by LAMP  house, Bonn", "Lamp House", "seller", "en")
    ('Sold by [seller], Bonn', 1)
    """
    if sum(map(str.isalnum, name)) < 3:
        return text, 0
    return _name_pattern(name).subn(mask_word(kind, language), text)
