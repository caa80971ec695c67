"""Amounts and units: read them as any shop writes them, write them as the language does.

Owns number styles (from CLDR, by Babel), currencies and prices. Spaces are ordinary ones
everywhere, also before a currency sign: no-break spaces are lost in most scraped text, and cost
extra tokens. Exchange rates and price comparison are nobody's business here.
"""

import math
import re
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, lru_cache
from typing import NamedTuple

from ellama_jax.core.limits import PRICE_CHARACTERS
from ellama_jax.corpus.wording import LABELS, NO_PRICE, check_language


class NumberStyle(NamedTuple):
    """How a language writes an amount of money."""

    thousands: str
    decimal: str
    symbol_first: bool
    symbol_apart: bool = True


# The four that every language here writes by their sign. Others are written by their ISO code,
# except a language's own (zł in Polish).
CURRENCY_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
# Signs that name a currency wherever they stand; "$" and "¥" do not, "kr" depends on the language.
_SURE_SIGNS = {"€": "EUR", "£": "GBP", "zł": "PLN", "₹": "INR", "₺": "TRY", "₽": "RUB", "₩": "KRW",
               "₪": "ILS", "₫": "VND", "฿": "THB", "Kč": "CZK", "Ft": "HUF", "R$": "BRL",
               "US$": "USD", "C$": "CAD", "CA$": "CAD", "A$": "AUD", "AU$": "AUD", "NZ$": "NZD",
               "HK$": "HKD", "S$": "SGD", "Fr.": "CHF"}  # fmt: skip
MAX_PRICE = 10**12
_DOLLARS = {"USD", "CAD", "AUD", "NZD", "HKD", "SGD", "CLP", "MXN", "ARS", "COP", "UYU", "TWD"}


@cache
def number_style(language: str) -> NumberStyle:
    """Returns how CLDR says that the language writes amounts, with ordinary spaces.

    >>> number_style("de")
    NumberStyle(thousands='.', decimal=',', symbol_first=False, symbol_apart=True)
    """
    from babel import Locale

    locale = Locale.parse(check_language(language))
    signs = locale.number_symbols["latn"]
    pattern = locale.currency_formats["standard"].pattern.split(";")[0]
    first = pattern.lstrip("\u200f\u200e").startswith("¤")
    apart = bool(re.search(r"¤[\s\xa0]|[\s\xa0]¤", pattern))
    group = " " if signs["group"].isspace() else signs["group"]
    return NumberStyle(group, signs["decimal"], first, apart)


@lru_cache(maxsize=1000)
def currency_decimals(currency: str) -> int:
    """Returns a currency's minor digits (ISO 4217): 2 for EUR, 0 for JPY and CLP, 3 for KWD."""
    from babel.numbers import get_currency_precision

    return get_currency_precision(currency)


@cache
def home_territory(language: str) -> str | None:
    """Returns the territory where most of a language's speakers live (CLDR): DE for "de"."""
    from babel.core import get_global

    likely = get_global("likely_subtags").get(language, "")
    return likely.rsplit("_", 1)[-1] if "_" in likely else None


@cache
def _symbols(language: str) -> dict[str, str]:
    """Maps currencies to the signs that the language writes: the four, and its own."""
    from babel import Locale
    from babel.numbers import get_territory_currencies

    territory = home_territory(language)
    own = {code: Locale.parse(language).currency_symbols.get(code, code)
           for code in (get_territory_currencies(territory) if territory else [])}  # fmt: skip
    return {code: sign.replace("\xa0", " ") for code, sign in own.items()} | CURRENCY_SYMBOLS


def format_price(price: float, currency: str, language: str) -> str:
    """Writes an amount of money as the language does.

    Args:
        price: the amount in the currency's main unit, not negative; rounded half up.
        currency: ISO 4217 code.
        language: a key of `LABELS`.

    >>> format_price(1234.5, "USD", "en"), format_price(1234.5, "EUR", "de")
    ('$1,234.50', '1.234,50 €')
    >>> format_price(1234.5, "EUR", "fr"), format_price(1234.5, "CHF", "it")
    ('1 234,50 €', '1.234,50 CHF')
    >>> format_price(12990, "CLP", "es")
    '12.990 CLP'
    """
    language = check_language(language)
    style = number_style(language)
    if not math.isfinite(price) or price < 0:
        raise ValueError(f"price: must be a number that is not negative, got {price}.")
    step = Decimal(1).scaleb(-currency_decimals(currency))
    exact = Decimal(str(price)).quantize(step, rounding=ROUND_HALF_UP)
    # Python groups the American way; the signs are swapped through a placeholder.
    amount = f"{exact:,}".replace(",", "\0").replace(".", style.decimal)
    amount = amount.replace("\0", style.thousands)
    symbol = _symbols(language).get(currency, currency)
    space = "" if symbol != currency and not style.symbol_apart else " "
    return f"{symbol}{space}{amount}" if style.symbol_first else f"{amount}{space}{symbol}"


@cache
def _amount_pattern(language: str) -> re.Pattern:
    style = number_style(language)
    thousands, decimal = re.escape(style.thousands), re.escape(style.decimal)
    return re.compile(rf"(?:\d+|\d{{1,3}}(?:{thousands}\d{{3}})+)(?:{decimal}\d+)?")


_AROUND_A_NUMBER = re.compile(r"([^\d]*?)\s*(\d[\d.,’'\s]*?)\s*([^\d]*)")


@lru_cache(maxsize=10_000)  # a document is read once more than it is written
def parse_price(text: str, language: str) -> tuple[float, str | None]:
    """Reads an amount written as `format_price` writes it; a missing currency gives None.

    >>> parse_price("1.234,50 €", "de"), parse_price("CHF 80.00", "en"), parse_price("12", "fr")
    ((1234.5, 'EUR'), (80.0, 'CHF'), (12.0, None))
    """
    language = check_language(language)
    style = number_style(language)
    _check_length(text)
    number = _AROUND_A_NUMBER.fullmatch(text.strip())
    mark = (number[1] or number[3]).strip() if number else ""
    codes = {symbol: code for code, symbol in _symbols(language).items()}
    if mark and mark not in codes and not re.fullmatch("[A-Z]{3}", mark):
        number = None
    digits = re.sub(r"\s", " ", number[2]) if number else ""
    if (number and number[1] and number[3]) or not _amount_pattern(language).fullmatch(digits):
        raise ValueError(f"price: must be an amount as {language} writes it, got {text!r}.")
    amount = float(digits.replace(style.thousands, "").replace(style.decimal, "."))
    return amount, codes.get(mark, mark or None)


def normalise_price(
    value: object, currency: object, language: str
) -> tuple[float | None, str | None]:
    """Makes an amount and its ISO code of a price as catalogues hold it.

    A text may be written in any locale's style. One separator with exactly three digits after it
    groups thousands ("12.990", "1,263"), unless the currency has three decimals or the amount
    begins with 0. Of a range the lower end counts, as for variants of one product; unit prices in
    brackets do not. 0, "free", "on request" and the like are no price: shops write them where the
    price is elsewhere.

    Args:
        value: number, text or None.
        currency: ISO code or None; a sign or code in the text serves where it is missing.
        language: a key of `LABELS`; decides what "kr" is.

    Returns:
        (amount, currency), both None where there is no price.

    Raises:
        ValueError: naming `price` or `currency`, where a price is there and cannot be read.

    >>> normalise_price("1.263,46 €", None, "en"), normalise_price("$ 12.990", "CLP", "es")
    ((1263.46, 'EUR'), (12990.0, 'CLP'))
    >>> normalise_price("CHF 1'234.50", None, "de"), normalise_price("12,-", "EUR", "de")
    ((1234.5, 'CHF'), (12.0, 'EUR'))
    >>> normalise_price("19.99 - 29.99", "USD", "en"), normalise_price("auf Anfrage", None, "de")
    ((19.99, 'USD'), (None, None))
    """
    currency = currency.strip() or None if isinstance(currency, str) else currency
    if isinstance(value, str):
        value, marked = _read_text(value, currency, check_language(language))
        currency = _one_currency(currency, marked)
    if value is None:
        return None, None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"price: must be a number, got {value!r}.")
    if not 0 <= value < MAX_PRICE:
        limit = "not negative" if not value >= MAX_PRICE else f"below {MAX_PRICE:,}"
        raise ValueError(f"price: must be a number that is {limit}, got {value}.")
    if value == 0:
        return None, None
    if not isinstance(currency, str) or not re.fullmatch("[A-Za-z]{3}", currency):
        raise ValueError(f"currency: must be a three-letter code, got {currency!r}.")
    return float(value), currency.upper()


_NO_PRICE = re.compile(rf"(?:{NO_PRICE})?[\W_]*", re.IGNORECASE)
_SPACES = re.compile(r"[\s\u00a0\u2009\u202f]+")
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
# "12,-", "12.-- €", "12,– EUR": a dash for no cents.
_NO_CENTS = re.compile(r"(?<=\d)[.,]\s?[-–—]+")
_CENTS = re.compile(r"\s?(?:cents?\b|ct\b|¢|centimes\b|céntimos\b)", re.IGNORECASE)
_SPACED_CENTS = re.compile(r"(?<=\d)([.,]) (?=\d\d(?![\d.,]))")  # "118, 99 €"
_SIGN_FOR_DECIMAL = re.compile(r"(?<=\d)\s?([€$£])\s?(?=\d\d(?!\d))")
_NUMBER = re.compile(
    r"\d+(?:[.,'’ ]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*|(?<!\d)[.,]\d{1,2}(?!\d)"
)
_RANGE = re.compile(
    r"\s*(?:\D{0,4}?\s*)?(?:[-–—~]|to|bis|à|a|al|hasta|au)\s*(?:\D{0,4}?)\s*", re.IGNORECASE
)
_MARK = r"(?:US|CA|AU|NZ|HK|[CASR])?\$|€|£|¥|zł|₹|₺|₽|₩|₪|₫|฿|Kč|Ft\b|kr\b\.?|Fr\.|\b[A-Z]{3}\b"
_MARK_BEFORE = re.compile(rf"({_MARK})\W{{0,2}}$")
_MARK_AFTER = re.compile(rf"\W{{0,2}}?({_MARK})")


def _check_length(text: str) -> None:
    if len(text) > PRICE_CHARACTERS:
        raise ValueError(
            f"price: must have at most {PRICE_CHARACTERS} characters, got {len(text):,}, beginning "
            f"{text[:40]!r}."
        )


def _read_text(text: str, currency: object, language: str) -> tuple[float | None, str | None]:
    _check_length(text)
    spaced = _SPACES.sub(" ", text).strip()
    if _NO_PRICE.fullmatch(spaced):
        return None, None
    plain = _SPACED_CENTS.sub(r"\1", _NO_CENTS.sub("", _BRACKETS.sub(" ", spaced)))
    marked_decimal = _SIGN_FOR_DECIMAL.search(plain)
    plain = _SIGN_FOR_DECIMAL.sub(".", plain)
    found = [number for number in _NUMBER.finditer(plain) if plain[number.end() :][:1] != "%"]
    if not found:
        raise ValueError(f"price: must be an amount as {language} writes it, got {text!r}.")
    number = _the_one(found, plain, text)
    if _CENTS.match(plain, number.end()):
        raise ValueError(f"price: must be in the main unit, got {text!r}.")
    if re.fullmatch(r"(?:\D*\s)?[-−]\s?(?:\D{0,4}\s?)?", plain[: number.start()]) and (
        number is found[0]
    ):
        raise ValueError(f"price: must be a number that is not negative, got {text!r}.")
    mark = marked_decimal[1] if marked_decimal else _mark_beside(plain, number)
    code = _code_of(mark, language)
    known = currency if isinstance(currency, str) else code
    return _read_number(number[0], known, language), code


def _the_one(found: list[re.Match], plain: str, text: str) -> re.Match:
    """Picks the amount: the only number, the only one with a currency, or a range's lower end."""
    if len(found) == 1:
        return found[0]
    if len(found) == 2 and _RANGE.fullmatch(plain[found[0].end() : found[1].start()]):
        return found[0]
    marked = [number for number in found if _mark_beside(plain, number)]
    if len(marked) != 1:
        raise ValueError(f"price: must hold one amount, got {text!r}.")
    return marked[0]


def _mark_beside(plain: str, number: re.Match) -> str | None:
    after = _MARK_AFTER.match(plain, number.end())
    before = _MARK_BEFORE.search(plain, 0, number.start())
    marks = [mark[1] for mark in (before, after) if mark and _is_currency(mark[1])]
    return marks[0] if marks else None


def _is_currency(mark: str) -> bool:
    return not re.fullmatch("[A-Z]{3}", mark) or mark in _iso_codes()


@cache
def _iso_codes() -> frozenset[str]:
    from babel import Locale

    return frozenset(Locale.parse("en").currencies)


def _code_of(mark: str | None, language: str) -> str | None:
    if mark is None or mark in _iso_codes():
        return mark
    if mark in _SURE_SIGNS:
        return _SURE_SIGNS[mark]
    codes = {symbol: code for code, symbol in _symbols(language).items()}
    return codes.get(mark.rstrip("."))


def _one_currency(given: object, marked: str | None) -> object:
    """Takes the given currency; one that the price itself contradicts is an error."""
    if not isinstance(given, str) or marked is None or given.upper() == marked:
        return marked if given is None else given
    if marked == "USD" and given.upper() in _DOLLARS or {marked, given.upper()} == {"JPY", "CNY"}:
        return given
    raise ValueError(f"currency: must be the one of the price ({marked}), got {given!r}.")


# "1,23,456" is how India groups.
_GROUPED = re.compile(r"\d{1,3}(?:([.,])\d{2,3})?(?:\1\d{2,3})*(?<=[.,]\d{3})")


def _read_number(digits: str, currency: str | None, language: str) -> float:
    digits = re.sub(r"['’ ]", "", digits)
    signs = re.findall("[.,]", digits)
    decimal = signs[-1] if signs else None
    if decimal and len(set(signs)) == 1:
        head, tail = digits.split(decimal, 1)[0], digits.rsplit(decimal, 1)[1]
        decimals = currency_decimals(currency.upper()) if currency else 2
        grouped = len(tail) == 3 and len(head) <= 3 and head not in ("", "0")
        if decimals == 3 and len(signs) == 1 and decimal == number_style(language).decimal:
            grouped = False
        if len(signs) > 1 or grouped:
            decimal = None
    whole, cents = digits.rsplit(decimal, 1) if decimal else (digits, "0")
    if re.search("[.,]", whole) and not _GROUPED.fullmatch(whole):
        raise ValueError(f"price: must be an amount, got {digits!r}.")
    return float(f"{re.sub('[.,]', '', whole) or '0'}.{cents}")


def number_text(number: float, language: str) -> str:
    """Writes a plain number as the language does, ungrouped: model years stay model years.

    >>> number_text(27.5, "de"), number_text(4.0, "en"), number_text(2018, "fr")
    ('27,5', '4', '2018')
    """
    text = str(number).removesuffix(".0")
    return text if "e" in text else text.replace(".", number_style(language).decimal)


_UNITS = (
    "mm|cm|dm|m|km|µm|nm|mg|g|kg|t|ml|cl|dl|l|L|mL|cm²|m²|cm³|m³|qm|sqm|W|kW|Wh|kWh|V|mV|kV|A|mA|"
    "Ah|mAh|Hz|kHz|MHz|GHz|MB|GB|TB|Mbit/s|dB|°C|°F|K|bar|Pa|kPa|Nm|N|rpm|oz|fl oz|lb|lbs|in|inch|"
    "inches|ft|yd|Zoll|pouces|pollici|pulgadas|%"
)
_MEASURE = re.compile(
    rf"[±~]?\d+(?:[.,]\d+)?(?:\s?(?:{_UNITS}))?(?:\s?[x×*]\s?\d+(?:[.,]\d+)?(?:\s?(?:{_UNITS}))?){{0,2}}"
)
_ENDS_IN_UNIT = re.compile(rf"(?<=[\d\s])(?:{_UNITS})$")
_FRACTION = re.compile(r"(?<=\d)[.,](?=(?:\d{1,2}|\d{4,})(?!\d))")


def localise_units(value: str, language: str) -> str:
    """Writes the decimal sign of a measure as the language does.

    Only where the whole value is a number, or up to three joined by "x", with a unit of measure;
    three digits after the sign may be thousands and are left alone.

    >>> localise_units("27.5 cm", "de"), localise_units("10,5 x 20 cm", "en")
    ('27,5 cm', '10.5 x 20 cm')
    >>> localise_units("10.5 US", "de"), localise_units("1.250 g", "de")
    ('10.5 US', '1.250 g')
    """
    if not value[-1:].strip() or not _FRACTION.search(value):
        return value
    if not _MEASURE.fullmatch(value) or not _ENDS_IN_UNIT.search(value):
        return value
    return _FRACTION.sub(number_style(language).decimal, value)


NUMBER_STYLES = {language: number_style(language) for language in LABELS}
