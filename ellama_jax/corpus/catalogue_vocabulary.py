"""Words of the synthetic catalogue in five languages, and the shape of its tables' rows.

Owns the hand-written vocabulary that several product types share (colours, materials, aspect
names) and the row types `ProductType` and `Brand`. It knows no product, brand or price: those are
in `catalogue_clothing`, `catalogue_home` and `catalogue_kitchen`.
"""

from dataclasses import dataclass

CATALOGUE_LANGUAGES = ("en", "de", "fr", "it", "es")


@dataclass(frozen=True)
class ProductAspect:
    """One property of a product type: its name and its possible values, each in five languages."""

    name: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Brand:
    """An invented brand and its habits, which are what a model can learn about it.

    Attributes:
        name: the same in every language.
        leaf: index of the category leaf that most of its products belong to.
        habits: index of its usual value for each of the type's `habit_aspects`.
        tier: its price level as a multiple of the type's base price.
        series: name of a series -> index of its usual value of the type's `series_aspect`.
    """

    name: str
    leaf: int
    habits: tuple[int, int]
    tier: float
    series: dict[str, int]


@dataclass(frozen=True)
class ProductType:
    """A kind of product: words in five languages, aspects, brands.

    Attributes:
        department, group, leaves: the three levels of the category path.
        noun: the word in titles; it does not tell the leaf.
        base_price: in US dollars for a brand of tier 1.
        shown_aspects: drawn freely per product and written in the title.
        habit_aspects: two aspects that follow the brand.
        series_aspect: an aspect that follows the series.
        sentences: short descriptions, each in five languages.
    """

    key: str
    department: tuple[str, ...]
    group: tuple[str, ...]
    leaves: tuple[tuple[str, ...], ...]
    noun: tuple[str, ...]
    base_price: float
    shown_aspects: tuple[ProductAspect, ...]
    habit_aspects: tuple[ProductAspect, ProductAspect]
    series_aspect: ProductAspect
    brands: tuple[Brand, ...]
    sentences: tuple[tuple[str, ...], ...]


def words(text: str) -> tuple[str, ...]:
    """Splits `"Wool|Wolle|Laine|Lana|Lana"` into its five languages (en, de, fr, it, es).

    A text without a bar is the same in every language ("Bluetooth", "20 W").

    >>> words("Wool|Wolle|Laine|Lana|Lana")
    ('Wool', 'Wolle', 'Laine', 'Lana', 'Lana')
    >>> words("20 W")
    ('20 W', '20 W', '20 W', '20 W', '20 W')
    """
    parts = tuple(part.strip() for part in text.split("|"))
    if len(parts) == 1:
        return parts * len(CATALOGUE_LANGUAGES)
    assert len(parts) == len(CATALOGUE_LANGUAGES) and all(parts), f"words: five parts, got {text!r}"
    return parts


def aspect(name: str, *values: str) -> ProductAspect:
    """Builds a `ProductAspect` from bar-separated words."""
    return ProductAspect(words(name), tuple(words(value) for value in values))


def litres(*amounts: float) -> list[str]:
    """Writes capacities with each language's decimal sign and usual symbol for the litre.

    >>> litres(1.5)
    ['1.5 L|1,5 l|1,5 L|1,5 l|1,5 l']
    """
    plain = [f"{amount:g}" for amount in amounts]
    comma = [amount.replace(".", ",") for amount in plain]
    return [f"{p} L|{c} l|{c} L|{c} l|{c} l" for p, c in zip(plain, comma, strict=True)]


# Materials. Written once, so that the same word is used wherever a product is made of it.
ALUMINUM = "Aluminum|Aluminium|Aluminium|Alluminio|Aluminio"
BAMBOO = "Bamboo|Bambus|Bambou|Bambù|Bambú"
BRASS = "Brass|Messing|Laiton|Ottone|Latón"
CANVAS = "Canvas|Canvas|Toile|Tela|Lona"
CERAMIC = "Ceramic|Keramik|Céramique|Ceramica|Cerámica"
COPPER = "Copper|Kupfer|Cuivre|Rame|Cobre"
CORK = "Cork|Kork|Liège|Sughero|Corcho"
COTTON = "Cotton|Baumwolle|Coton|Cotone|Algodón"
FABRIC = "Fabric|Stoff|Tissu|Tessuto|Tela"
FAUX_LEATHER = "Faux leather|Kunstleder|Similicuir|Similpelle|Polipiel"
GLASS = "Glass|Glas|Verre|Vetro|Vidrio"
LEATHER = "Leather|Leder|Cuir|Pelle|Cuero"
LINEN = "Linen|Leinen|Lin|Lino|Lino"
NYLON = "Nylon|Nylon|Nylon|Nylon|Nailon"
PLASTIC = "Plastic|Kunststoff|Plastique|Plastica|Plástico"
POLYESTER = "Polyester|Polyester|Polyester|Poliestere|Poliéster"
SILICONE = "Silicone|Silikon|Silicone|Silicone|Silicona"
STAINLESS_STEEL = "Stainless steel|Edelstahl|Acier inoxydable|Acciaio inox|Acero inoxidable"
STEEL = "Steel|Stahl|Acier|Acciaio|Acero"
TITANIUM = "Titanium|Titan|Titane|Titanio|Titanio"
VELVET = "Velvet|Samt|Velours|Velluto|Terciopelo"
WOOD = "Wood|Holz|Bois|Legno|Madera"
WOOL = "Wool|Wolle|Laine|Lana|Lana"

# Ways to close a thing.
ZIP = "Zipper|Reißverschluss|Fermeture éclair|Cerniera|Cremallera"
BUTTONS = "Buttons|Knöpfe|Boutons|Bottoni|Botones"
SNAPS = "Snap buttons|Druckknöpfe|Boutons-pression|Automatici|Botones a presión"
BUCKLE = "Buckle|Schnalle|Boucle|Fibbia|Hebilla"

# Aspect names that recur.
MATERIAL_NAME = "Material|Material|Matière|Materiale|Material"
CLOSURE_NAME = "Closure|Verschluss|Fermeture|Chiusura|Cierre"
HOUSING_NAME = "Housing|Gehäuse|Boîtier|Scocca|Carcasa"
HANDLE_NAME = "Handle|Griff|Poignée|Manico|Mango"
POWER_NAME = "Power|Leistung|Puissance|Potenza|Potencia"
CAPACITY_NAME = "Capacity|Fassungsvermögen|Capacité|Capacità|Capacidad"
SIZE_NAME = "Size|Größe|Taille|Taglia|Talla"

# Colours stand alone in titles and aspects ("Noir", not "noire"), as on marketplaces, so that
# they never need to agree with a noun's gender.
COLOR = aspect(
    "Color|Farbe|Couleur|Colore|Color",
    "Black|Schwarz|Noir|Nero|Negro",
    "White|Weiß|Blanc|Bianco|Blanco",
    "Gray|Grau|Gris|Grigio|Gris",
    "Navy blue|Marineblau|Bleu marine|Blu navy|Azul marino",
    "Olive green|Olivgrün|Vert olive|Verde oliva|Verde oliva",
    "Red|Rot|Rouge|Rosso|Rojo",
    "Beige",
    "Brown|Braun|Marron|Marrone|Marrón",
    "Turquoise|Türkis|Turquoise|Turchese|Turquesa",
    "Yellow|Gelb|Jaune|Giallo|Amarillo",
)

STYLE = aspect(
    "Style|Stil|Style|Stile|Estilo",
    "Modern|Modern|Moderne|Moderno|Moderno",
    "Rustic|Rustikal|Rustique|Rustico|Rústico",
    "Industrial|Industriell|Industriel|Industriale|Industrial",
    "Scandinavian|Skandinavisch|Scandinave|Scandinavo|Escandinavo",
)

COUNTRY = aspect(
    "Country of origin|Herkunftsland|Pays d'origine|Paese d'origine|País de origen",
    "Italy|Italien|Italie|Italia|Italia",
    "Germany|Deutschland|Allemagne|Germania|Alemania",
    "Switzerland|Schweiz|Suisse|Svizzera|Suiza",
    "Portugal|Portugal|Portugal|Portogallo|Portugal",
    "Sweden|Schweden|Suède|Svezia|Suecia",
)

# Departments: the first level of every category path.
CLOTHING = words(
    "Clothing & Accessories|Kleidung & Accessoires|Vêtements et accessoires|"
    "Abbigliamento e accessori|Ropa y accesorios"
)
HOME = words("Home & Living|Haus & Wohnen|Maison et déco|Casa e arredo|Casa y decoración")
KITCHEN = words("Kitchen|Küche|Cuisine|Cucina|Cocina")
ELECTRONICS = words("Electronics|Elektronik|Électronique|Elettronica|Electrónica")
SPORTS = words(
    "Sports & Outdoors|Sport & Outdoor|Sports et plein air|Sport e outdoor|Deporte y aire libre"
)
