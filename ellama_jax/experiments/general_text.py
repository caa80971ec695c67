"""SYNTHETIC general text in five languages, for machines where no real text can be fetched.

Owns hand-written facts (capitals, rivers, animals, elements, days) and seeded arithmetic, written
as plain sentences. Everything said is true, but the text is narrow and repeats itself: it keeps a
run working, and is no replacement for the prose that `sources` fetches.
"""

import random
from collections.abc import Callable, Iterator, Sequence

from ellama_jax.corpus.catalogue_vocabulary import CATALOGUE_LANGUAGES, words

# "of the country", its capital, and the river that flows through the capital.
_COUNTRIES = [
    tuple(words(part) for part in row)
    for row in (
        ("France|Frankreich|de la France|della Francia|de Francia",
         "Paris|Paris|Paris|Parigi|París", "The Seine|die Seine|La Seine|La Senna|El Sena"),
        ("Austria|Österreich|de l'Autriche|dell'Austria|de Austria",
         "Vienna|Wien|Vienne|Vienna|Viena",
         "The Danube|die Donau|Le Danube|Il Danubio|El Danubio"),
        ("Italy|Italien|de l'Italie|dell'Italia|de Italia",
         "Rome|Rom|Rome|Roma|Roma", "The Tiber|der Tiber|Le Tibre|Il Tevere|El Tíber"),
        ("Egypt|Ägypten|de l'Égypte|dell'Egitto|de Egipto",
         "Cairo|Kairo|Le Caire|Il Cairo|El Cairo", "The Nile|der Nil|Le Nil|Il Nilo|El Nilo"),
        ("Portugal|Portugal|du Portugal|del Portogallo|de Portugal",
         "Lisbon|Lissabon|Lisbonne|Lisbona|Lisboa", "The Tagus|der Tejo|Le Tage|Il Tago|El Tajo"),
        ("Poland|Polen|de la Pologne|della Polonia|de Polonia",
         "Warsaw|Warschau|Varsovie|Varsavia|Varsovia",
         "The Vistula|die Weichsel|La Vistule|La Vistola|El Vístula"),
        ("Germany|Deutschland|de l'Allemagne|della Germania|de Alemania",
         "Berlin|Berlin|Berlin|Berlino|Berlín", "The Spree|die Spree|La Spree|La Sprea|El Spree"),
        ("Spain|Spanien|de l'Espagne|della Spagna|de España",
         "Madrid|Madrid|Madrid|Madrid|Madrid",
         "The Manzanares|der Manzanares|Le Manzanares|Il Manzanarre|El Manzanares"),
    )
]  # fmt: skip

# An animal, its class, and what it eats.
_ANIMALS = [
    tuple(words(part) for part in row)
    for row in (
        ("An owl|Eine Eule|Un hibou|Un gufo|Un búho",
         "a bird|ein Vogel|un oiseau|un uccello|un ave",
         "mice|Mäuse|des souris|topi|ratones"),
        ("A cow|Eine Kuh|Une vache|Una mucca|Una vaca",
         "a mammal|ein Säugetier|un mammifère|un mammifero|un mamífero",
         "grass|Gras|de l'herbe|erba|hierba"),
        ("A frog|Ein Frosch|Une grenouille|Una rana|Una rana",
         "an amphibian|ein Amphibium|un amphibien|un anfibio|un anfibio",
         "insects|Insekten|des insectes|insetti|insectos"),
        ("A shark|Ein Hai|Un requin|Uno squalo|Un tiburón",
         "a fish|ein Fisch|un poisson|un pesce|un pez",
         "other fish|andere Fische|d'autres poissons|altri pesci|otros peces"),
        ("A squirrel|Ein Eichhörnchen|Un écureuil|Uno scoiattolo|Una ardilla",
         "a mammal|ein Säugetier|un mammifère|un mammifero|un mamífero",
         "nuts|Nüsse|des noix|noci|nueces"),
        ("A snake|Eine Schlange|Un serpent|Un serpente|Una serpiente",
         "a reptile|ein Reptil|un reptile|un rettile|un reptil",
         "small animals|kleine Tiere|de petits animaux|piccoli animali|animales pequeños"),
    )
]  # fmt: skip

# An element, its symbol and its atomic number.
_ELEMENTS = [
    (words(names), symbol, number)
    for names, symbol, number in (
        ("Iron|Eisen|Le fer|Il ferro|El hierro", "Fe", 26),
        ("Copper|Kupfer|Le cuivre|Il rame|El cobre", "Cu", 29),
        ("Gold|Gold|L'or|L'oro|El oro", "Au", 79),
        ("Silver|Silber|L'argent|L'argento|La plata", "Ag", 47),
        ("Oxygen|Sauerstoff|L'oxygène|L'ossigeno|El oxígeno", "O", 8),
        ("Carbon|Kohlenstoff|Le carbone|Il carbonio|El carbono", "C", 6),
        ("Lead|Blei|Le plomb|Il piombo|El plomo", "Pb", 82),
        ("Helium|Helium|L'hélium|L'elio|El helio", "He", 2),
    )
]

_DAYS = [
    words(day)
    for day in (
        "Monday|Montag|lundi|lunedì|lunes", "Tuesday|Dienstag|mardi|martedì|martes",
        "Wednesday|Mittwoch|mercredi|mercoledì|miércoles",
        "Thursday|Donnerstag|jeudi|giovedì|jueves", "Friday|Freitag|vendredi|venerdì|viernes",
        "Saturday|Samstag|samedi|sabato|sábado", "Sunday|Sonntag|dimanche|domenica|domingo",
    )
]  # fmt: skip

_CAPITAL = words(
    "The capital of {0} is {1}.|Die Hauptstadt von {0} ist {1}.|La capitale {0} est {1}.|"
    "La capitale {0} è {1}.|La capital {0} es {1}."
)
_RIVER = words(
    "{2} flows through it.|Durch die Stadt fließt {2}.|{2} traverse la ville.|"
    "{2} attraversa la città.|{2} pasa por la ciudad."
)
_ANIMAL = words(
    "{0} is {1} and eats {2}.|{0} ist {1} und frisst {2}.|{0} est {1} et mange {2}.|"
    "{0} è {1} e mangia {2}.|{0} es {1} y come {2}."
)
_ELEMENT = words(
    "{0} has the symbol {1} and the atomic number {2}.|"
    "{0} hat das Symbol {1} und die Ordnungszahl {2}.|"
    "{0} a pour symbole {1} et pour numéro atomique {2}.|"
    "{0} ha il simbolo {1} e il numero atomico {2}.|"
    "{0} tiene el símbolo {1} y el número atómico {2}."
)
_DAY = words(
    "The day after {0} is {1}.|Auf {0} folgt {1}.|Après {0} vient {1}.|Dopo {0} viene {1}.|"
    "Después del {0} viene el {1}."
)
_SUM = words(
    "{0} plus {1} is {2}, and {2} minus {0} is {1}.|"
    "{0} plus {1} ist {2}, und {2} minus {0} ist {1}.|"
    "{0} plus {1} font {2}, et {2} moins {0} font {1}.|"
    "{0} più {1} fa {2}, e {2} meno {0} fa {1}.|"
    "{0} más {1} son {2}, y {2} menos {0} son {1}."
)
_TRAIN = words(
    "A train that travels {0} kilometers an hour covers {2} kilometers in {1} hours.|"
    "Ein Zug, der {0} Kilometer in der Stunde fährt, legt in {1} Stunden {2} Kilometer zurück.|"
    "Un train qui parcourt {0} kilomètres par heure en parcourt {2} en {1} heures.|"
    "Un treno che percorre {0} chilometri all'ora ne percorre {2} in {1} ore.|"
    "Un tren que recorre {0} kilómetros por hora recorre {2} kilómetros en {1} horas."
)

Fact = tuple[str, ...]  # one statement in each of CATALOGUE_LANGUAGES


def generate_general_documents(
    seed: int, num_documents: int, languages: Sequence[str] = CATALOGUE_LANGUAGES
) -> Iterator[dict]:
    """Yields synthetic general text records, one per document and language.

    Args:
        seed: of the facts drawn.
        num_documents: documents a language; document i says the same in every language.
        languages: which of en, de, fr, it, es.

    Yields:
        Text records (text, domain "general", language, source "general-text", product_id None).

    Raises:
        ValueError: if a language is not written.

    >>> next(generate_general_documents(0, 1, ["en"]))["source"]
    'general-text'
    """
    unknown = [language for language in languages if language not in CATALOGUE_LANGUAGES]
    if unknown:
        known = ", ".join(CATALOGUE_LANGUAGES)
        raise ValueError(f"languages: must be among {known}, got {unknown[0]!r}.")
    return _generate(seed, num_documents, tuple(languages))


def _generate(seed: int, num_documents: int, languages: tuple[str, ...]) -> Iterator[dict]:
    for number in range(num_documents):
        facts = _draw_facts(random.Random(f"general {seed} {number}"))
        for language in languages:
            column = CATALOGUE_LANGUAGES.index(language)
            yield {
                "text": " ".join(fact[column] for fact in facts),
                "domain": "general",
                "language": language,
                "source": "general-text",
                "product_id": None,
            }


def _draw_facts(rng: random.Random) -> list[Fact]:
    """Draws up to 14 facts, each theme at least once, in a new order."""
    themes: list[Callable[[random.Random], Fact]] = [
        _country_fact, _animal_fact, _element_fact, _day_fact, _sum_fact, _train_fact,
    ]  # fmt: skip
    chosen = themes + rng.choices(themes, k=rng.randint(4, 8))
    rng.shuffle(chosen)
    # A fact drawn twice is said once.
    return list(dict.fromkeys(theme(rng) for theme in chosen))


def _fill(templates: Fact, *values: Fact) -> Fact:
    """Fills each language's template with that language's words."""
    return tuple(
        template.format(*(value[column] for value in values))
        for column, template in enumerate(templates)
    )


def _same(*values: object) -> list[Fact]:
    """Repeats symbols and numbers, which are the same in every language."""
    return [(str(value),) * len(CATALOGUE_LANGUAGES) for value in values]


def _country_fact(rng: random.Random) -> Fact:
    country = rng.choice(_COUNTRIES)
    capital, river = _fill(_CAPITAL, *country), _fill(_RIVER, *country)
    return tuple(f"{first} {second}" for first, second in zip(capital, river, strict=True))


def _animal_fact(rng: random.Random) -> Fact:
    return _fill(_ANIMAL, *rng.choice(_ANIMALS))


def _element_fact(rng: random.Random) -> Fact:
    names, symbol, number = rng.choice(_ELEMENTS)
    return _fill(_ELEMENT, names, *_same(symbol, number))


def _day_fact(rng: random.Random) -> Fact:
    today = rng.randrange(len(_DAYS))
    return _fill(_DAY, _DAYS[today], _DAYS[(today + 1) % len(_DAYS)])


def _sum_fact(rng: random.Random) -> Fact:
    first, second = rng.randint(2, 60), rng.randint(2, 60)
    return _fill(_SUM, *_same(first, second, first + second))


def _train_fact(rng: random.Random) -> Fact:
    speed, hours = 10 * rng.randint(5, 20), rng.randint(2, 6)
    return _fill(_TRAIN, *_same(speed, hours, speed * hours))
