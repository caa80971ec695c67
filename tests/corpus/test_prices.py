"""Amounts in any locale's style, currencies, and the decimal sign of measures."""

import math

import pytest
from babel.numbers import format_currency

from ellama_jax.corpus import prices, wording
from ellama_jax.corpus.prices import (
    format_price,
    localise_units,
    normalise_price,
    number_style,
    number_text,
    parse_price,
)

FURTHER = {"pt": "Preço", "pl": "Cena", "nl": "Prijs", "sv": "Pris", "tr": "Fiyat", "ja": "価格"}


@pytest.fixture
def further_languages(monkeypatch):
    for language, price in FURTHER.items():
        row = wording.LABELS["en"] | {"price": price}
        monkeypatch.setitem(wording.LABELS, language, row)


@pytest.mark.parametrize(
    "value, currency, language, read",
    [
        (49.99, "EUR", "de", (49.99, "EUR")),
        (5, "usd", "en", (5.0, "USD")),
        ("1.263,46 €", None, "en", (1263.46, "EUR")),
        ("1,263.46", "USD", "de", (1263.46, "USD")),
        ("$ 12.990", "CLP", "es", (12990.0, "CLP")),
        ("12.990", "CLP", "en", (12990.0, "CLP")),
        ("EUR 1 234,50", None, "fr", (1234.5, "EUR")),
        ("1\u202f234,50\u00a0€", None, "fr", (1234.5, "EUR")),
        ("CHF 1'234.50", None, "de", (1234.5, "CHF")),
        ("CHF 1’234.–", None, "de", (1234.0, "CHF")),
        ("12,-", "EUR", "de", (12.0, "EUR")),
        ("12,-- €", None, "de", (12.0, "EUR")),
        ("12€50", None, "fr", (12.5, "EUR")),
        ("118, 99 €", None, "de", (118.99, "EUR")),
        ("1.234.567,89", "EUR", "en", (1234567.89, "EUR")),
        ("₹1,23,456.00", None, "en", (123456.0, "INR")),
        ("¥1,980", None, "en", (1980.0, "JPY")),
        ("¥1,980", "CNY", "en", (1980.0, "CNY")),
        ("0.500", "EUR", "en", (0.5, "EUR")),
        ("1.500", "KWD", "en", (1.5, "KWD")),
        ("1.500", "EUR", "en", (1500.0, "EUR")),
        ("49.9", "EUR", "de", (49.9, "EUR")),
        ("ab 19,99 €", None, "de", (19.99, "EUR")),
        ("UVP: 49,95 EUR inkl. MwSt.", None, "de", (49.95, "EUR")),
        ("19,99 € (1,99 €/100 g)", None, "de", (19.99, "EUR")),
        ("2 for 5 €", None, "en", (5.0, "EUR")),
        ("$5", None, "en", (5.0, "USD")),
        ("$5", "MXN", "es", (5.0, "MXN")),
    ],
)
def test_prices_are_read_in_any_locales_style(value, currency, language, read):
    assert normalise_price(value, currency, language) == read


@pytest.mark.parametrize(
    "text", ["19.99 - 29.99", "$19.99–$29.99", "19.99 to 29.99 USD", "from 19.99 to 29.99"]
)
def test_a_range_counts_by_its_lower_end(text):
    assert normalise_price(text, "USD", "en") == (19.99, "USD")


@pytest.mark.parametrize(
    "value",
    [None, "", " ", "kostenlos", "Preis auf Anfrage", "on request", "FREE!", "sur demande", "n/a",
     "-", "gratis", 0, 0.0, "0,00 €"],
)  # fmt: skip
def test_what_names_no_amount_is_no_price(value):
    assert normalise_price(value, "EUR", "de") == (None, None)


@pytest.mark.parametrize(
    "value, currency, reason",
    [
        (-5, "EUR", "price: must be a number that is not negative, got -5."),
        ("-19,99 €", None, "price: must be a number that is not negative, got '-19,99 €'."),
        ("€ -5", None, "price: must be a number that is not negative, got '€ -5'."),
        (math.nan, "EUR", "price: must be a number that is not negative, got nan."),
        (math.inf, "EUR", "price: must be a number that is below 1,000,000,000,000, got inf."),
        (True, "EUR", "price: must be a number, got True."),
        ([5], "EUR", r"price: must be a number, got \[5\]."),
        ("cheap", "EUR", "price: must be an amount as en writes it, got 'cheap'."),
        ("15.08.2017", "EUR", "price: must be an amount, got '15.08.2017'."),
        ("40% off", "EUR", "price: must be an amount as en writes it, got '40% off'."),
        ("$30 now $20", None, r"price: must hold one amount, got '\$30 now \$20'."),
        ("99 cents", "USD", "price: must be in the main unit, got '99 cents'."),
        ("12.50", None, "currency: must be a three-letter code, got None."),
        ("kr 100", None, "currency: must be a three-letter code, got None."),
        (5, "euro", "currency: must be a three-letter code, got 'euro'."),
        ("€ 5", "USD", r"currency: must be the one of the price \(EUR\), got 'USD'."),
    ],
)
def test_what_cannot_be_read_is_refused_naming_the_field(value, currency, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        normalise_price(value, currency, "en")


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="price: must be a number that is below"):
        normalise_price(10**400, "EUR", "en")


@pytest.mark.parametrize(
    "language, currency, written",
    [
        ("pt", "BRL", "R$ 1.234,50"), ("pt", "EUR", "€ 1.234,50"), ("pl", "PLN", "1 234,50 zł"),
        ("pl", "EUR", "1 234,50 €"), ("nl", "EUR", "€ 1.234,50"), ("sv", "SEK", "1 234,50 kr"),
        ("sv", "NOK", "1 234,50 NOK"), ("tr", "TRY", "₺1.234,50"), ("ja", "JPY", "¥1,235"),
        ("pl", "CLP", "1 235 CLP"),
    ],
)  # fmt: skip
def test_a_further_language_needs_no_table_of_numbers(
    further_languages, language, currency, written
):
    assert format_price(1234.5, currency, language) == written
    rounded = 1235.0 if currency in ("JPY", "CLP") else 1234.5
    assert parse_price(written, language) == (rounded, currency)
    assert normalise_price(written, None, language) == (rounded, currency)


@pytest.mark.parametrize("language", ["en", "de", "fr", "it"])
@pytest.mark.parametrize("amount", [0.5, 49.99, 1234.5, 1234567.8])
def test_amounts_are_cldrs_but_for_the_spaces(language, amount):
    cldr = format_currency(amount, "EUR", locale=language)
    assert format_price(amount, "EUR", language) == " ".join(cldr.split())


def test_every_written_price_is_normalised_back():
    for language in ("en", "de", "fr", "it", "es"):
        for currency in ("EUR", "USD", "GBP", "JPY", "CLP", "CHF", "PLN", "SEK"):
            for amount in (1, 12.0, 999, 1234, 12990, 1234567):
                written = format_price(amount, currency, language)
                assert normalise_price(written, None, language) == (amount, currency), written


def test_styles_are_plain_text():
    assert number_style("fr") == (" ", ",", False, True)
    assert number_style("en") == (",", ".", True, False)
    assert set(prices.NUMBER_STYLES) == set(wording.LABELS)


@pytest.mark.parametrize(
    "value, language, written",
    [
        ("27.5 cm", "de", "27,5 cm"),
        ("27.5cm", "fr", "27,5cm"),
        ("0.75 l", "it", "0,75 l"),
        ("10.5 x 20 x 3.25 cm", "es", "10,5 x 20 x 3,25 cm"),
        ("2,4 GHz", "en", "2.4 GHz"),
        ("0,1234 g", "en", "0.1234 g"),
        ("±0.5 %", "de", "±0,5 %"),
    ],
)
def test_measures_get_the_languages_decimal_sign(value, language, written):
    assert localise_units(value, language) == written
    assert localise_units(written, language) == written


@pytest.mark.parametrize(
    "value",
    ["10.5 US", "EU 38.5", "USB 3.1", "v2.5", "1.250 g", "27.5", "10.12.2019", "802.11 ac", "5.1",
     "M 2.5", "Bluetooth 5.0", "12.5.3 cm", "cm", "", "about 2.5 cm", "3.5 mm Klinke", "192.168.1.1"],
)  # fmt: skip
def test_what_may_be_no_measure_is_left_alone(value):
    assert localise_units(value, "de") == value


def test_numbers_as_the_language_writes_them():
    assert [number_text(value, "de") for value in (27.5, 4.0, 2018, 1e-7, 12345)] == [
        "27,5", "4", "2018", "1e-07", "12345",
    ]  # fmt: skip


def test_a_long_text_is_no_price_and_is_refused_before_it_is_looked_at():
    for read in (
        lambda text: normalise_price(text, None, "en"),
        lambda text: parse_price(text, "en"),
    ):
        with pytest.raises(
            ValueError, match="at most 500 characters, got 1,000,000, beginning '1/1/"
        ):
            read("1/" * 500_000)
