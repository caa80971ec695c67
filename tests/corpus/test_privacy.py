"""Private data found by its own rules, and the digits of shops left alone."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from ellama_jax.corpus import privacy, wording
from ellama_jax.corpus.privacy import mask_name, mask_private

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(
    "language, text, masked",
    [
        ("en", "Write to joe.doe+shop@mail.example.co.uk.", "Write to [e-mail]."),
        ("de", "an max (at) beispiel (punkt) de oder", "an [E-Mail] oder"),
        ("en", "Call 212-555-0187 or (212) 736-5000.", "Call [phone number] or [phone number]."),
        ("en", "phone: +44 20 7946 0958", "phone: [phone number]"),
        ("de", "Rufen Sie an: 030 901820 oder 089 12345678",
         "Rufen Sie an: [Telefonnummer] oder [Telefonnummer]"),
        ("en", "or 0049 30 901820 now", "or [phone number] now"),
        ("de", "Mobil 0171/1234567, +49 (0)30 901820", "Mobil [Telefonnummer], [Telefonnummer]"),
        ("fr", "Appelez le 01 42 68 53 00", "Appelez le [numéro de téléphone]"),
        ("it", "cell. 347 1234567", "cell. [numero di telefono]"),
        ("es", "Llámanos al 912 345 678", "Llámanos al [número de teléfono]"),
        ("en", "Card 4111 1111 1111 1111, exp", "Card [card number], exp"),
        ("en", "amex 3782-822463-10005", "amex [card number]"),
        ("de", "IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX", "IBAN [Bankkonto] BIC COBADEFFXXX"),
        ("en", "to GB29NWBK60161331926819 today", "to [bank account] today"),
        ("en", "Visit 221 Baker Street, London NW1 6XE.", "Visit [address]."),
        ("en", "1600 Pennsylvania Avenue NW, Washington, DC 20500", "[address]"),
        ("de", "Abholung: Musterstraße 12a, 10115 Berlin", "Abholung: [Adresse]"),
        ("de", "Hauptstr. 5, A-1010 Wien", "[Adresse]"),
        ("fr", "Retrait: 12 bis, rue de la Paix, 75002 Paris", "Retrait: [adresse]"),
        ("it", "in Via Giuseppe Garibaldi 12, 20121 Milano", "in [indirizzo]"),
        ("es", "en Calle Mayor 5, 2º B, 28013 Madrid", "en [dirección]"),
        ("en", "https://joe:pw@shop.example/x y", "[profile link] y"),
        ("en", "see https://www.facebook.com/joes.lamps, or instagram.com/joe",
         "see [profile link], or [profile link]"),
        ("en", "Follow us on Instagram @joes_lamps!", "Follow us on Instagram [user name]!"),
        ("en", "from 84.12.33.77 or 2a00:1450:4001:81b::200e",
         "from [IP address] or [IP address]"),
    ],
)  # fmt: skip
def test_private_data_is_masked_in_the_texts_language(language, text, masked):
    assert mask_private(text, language)[0] == masked
    assert mask_private(masked, language) == (masked, Counter())


@pytest.mark.parametrize(
    "text",
    [
        "EAN 4006381333931, ISBN 978-3-16-148410-0, GTIN 4111111111111111",
        "not a card 4111 1111 1111 1112", "UPC 012345678905, SKU 212-555-0187, model 212-736-5000",
        "10.5 x 20.25 x 30.75 cm, 100-240V 50-60Hz, 5000-10000 rpm", "2018-2019, 01.02.2019, 2019/2020",
        "0986 424 797, 04465-02220, 0 986 494 123, OE 030 109 244", "0201 / 0402 / 0603, 10 000 000",
        "DE89 3704 0044 0532 0130 01", "white guitar @6, only @22", "power @home, Pro@ctive",
        "192.168.1.1, 127.0.0.1, firmware 12.10.33.7, clause 2.1.4.8", "MAC 00:1A:2B:3C:4D:5E 12:30:45",
        "https://shop.example/lamp, www.shop.example", "1.263.460,00 €, $1,234,567.00, 12 990 CLP",
        "4 Way Stretch, 10 Speed Drive, 5 Star Road Bike", "Straße 7, Platz 10 und Ring 12345 Stück",
        "Via 4, Largo 20, Corso 12345", "iPhone 11 128GB 1234567890", "0012345678905 00012345678905", "IMEI 490154203237518",
        "1Set 2pcs/lot 100% 3.5g-28g 2-5LB 4.73\" #1 2# 3#", "", "no digits at all", "C/O, A/B, 24/7",
    ],
)  # fmt: skip
@pytest.mark.parametrize("language", ["en", "de", "fr", "it", "es"])
def test_the_digits_of_shops_are_left_alone(text, language):
    assert mask_private(text, language) == (text, Counter())


def test_kinds_are_counted():
    text = "a@b.example c@d.example +1 212 736 5000 4111111111111111"
    assert mask_private(text, "en")[1] == {"email": 2, "phone": 1, "card": 1}


def test_masking_twice_changes_nothing_more():
    rng = random.Random(0)
    pieces = ["a@b.example", "Tel. ", "030 901820", "+49 30 901820", "4111 1111 1111 1111", " ", ", ",
              "DE89370400440532013000", "Hauptstr. 5, 10115 Berlin", "@joe", "Instagram ", "84.12.33.77",
              "instagram.com/joe", " oder ", "0171/1234567", "212-736-5000", "-", ":", "(", ")", "7"]  # fmt: skip
    for _ in range(2000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 8)))
        masked, _ = mask_private(text, "de")
        assert mask_private(masked, "de") == (masked, Counter()), text


def test_every_language_has_every_mask_and_no_mask_is_data():
    kinds = {tuple(sorted(row)) for row in wording.MASKS.values()}
    assert len(kinds) == 1 and set(wording.MASKS) == set(wording.LABELS)
    for row in wording.MASKS.values():
        assert all(mask[0] == "[" and mask[-1] == "]" for mask in row.values())
    assert set(privacy.ADDRESSES) == set(privacy.PHONE_REGIONS) == set(wording.LABELS)


def test_a_language_without_a_row_is_masked_in_english_with_its_own_numbers():
    assert mask_private("zadzwoń: tel. 22 694 60 00", "pl")[0] == "zadzwoń: tel. [phone number]"


@pytest.mark.parametrize(
    "text, masked, count",
    [
        ("Lamp House sells lamps. LAMP  HOUSE!", "[seller] sells lamps. [seller]!", 2),
        ("Lamp Houses", "Lamp Houses", 0),
        ("C++ (lamp house)", "C++ ([seller])", 1),
    ],
)
def test_a_known_name_is_masked_as_whole_words(text, masked, count):
    assert mask_name(text, "Lamp House", "seller", "en") == (masked, count)


def test_names_too_short_to_be_sure_and_odd_ones_are_left():
    assert mask_name("AB sells AB", "AB", "seller", "en") == ("AB sells AB", 0)
    assert mask_name("a (b. c", "(b. [", "seller", "en") == ("a (b. c", 0)


@pytest.mark.parametrize("piece", ["a@", "1 ", "0171 ", "12 rue ", "Calle ", "DE12 ", "::1", "1."])
def test_cost_grows_with_length_only(piece):
    started = time.perf_counter()
    mask_private(piece * (60_000 // len(piece)) + " 28013 Madrid", "de")
    # Seconds on a busy machine; minutes if it were quadratic.
    assert time.perf_counter() - started < 20


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real records are not on this machine")
@pytest.mark.parametrize("language", ["en", "de", "fr"])
def test_nothing_in_5252_real_listings_and_500_reviews_is_taken_for_private(language):
    found = Counter()
    names = (
        "ae-110k_train",
        "dummyjson_listings",
        "magento_listings",
        "magento_reviews",
        "oa-mine_train",
    )
    for path in [SHARED_DATA / f"{name}_en.jsonl" for name in names]:
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            values = [record["title"], record.get("description"), record.get("review")]
            values += [str(value) for value in (record.get("aspects") or {}).values()]
            found += mask_private("\n".join(filter(None, values)), language)[1]
    assert not found


def test_every_number_behind_a_masked_one_is_masked_in_one_pass(monkeypatch):
    """Each is one to call only because the one before it was; a pass for each was quadratic."""
    passes = []
    count = privacy._mask_numbers
    monkeypatch.setattr(
        privacy, "_mask_numbers", lambda *given: passes.append(given) or count(*given)
    )
    text, found = mask_private("Tel. " + "0301234567, " * 2000, "de")
    assert found == {"phone": 2000} and "030" not in text
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("joe\uff20shop.example", "[e-mail]"),
        ("joe\u200b@shop.exa\u2060mple", "[e-mail]"),
        ("joe\ufe6bshop\uff0eexample", "[e-mail]"),
        ("call \uff12\uff11\uff12-736-5000", "call [phone number]"),
        ("\U0001d423oe@shop.example", "[e-mail]"),
    ],
)
def test_signs_of_another_face_or_without_width_hide_nothing(text, masked):
    assert mask_private(text, "en")[0] == masked


def test_a_text_with_nothing_private_keeps_its_faces():
    text = "\uff11\uff12 ㎡, x\u200by, \U0001d400, 👩\u200d👩\u200d👧"
    assert mask_private(text, "en") == (text, Counter())
