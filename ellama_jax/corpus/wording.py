"""What shops say in each language: labels, sentences, empty values, boilerplate, masks.

Owns words only; `templates`, `reviews`, `listings` and `privacy` say what is done with them. A
further language needs a row in `LABELS`. Without a row in the other tables it is written in the
forms that need no sentences, masked in English, and keeps its boilerplate.
"""

import re
from functools import cache
from typing import NamedTuple

LABELS: dict[str, dict[str, str]] = {
    "en": {"title": "Title", "category": "Category", "price": "Price",
           "description": "Description", "yes": "Yes", "no": "No", "home": "Home"},
    "de": {"title": "Titel", "category": "Kategorie", "price": "Preis",
           "description": "Beschreibung", "yes": "Ja", "no": "Nein", "home": "Startseite"},
    "fr": {"title": "Titre", "category": "Catégorie", "price": "Prix",
           "description": "Description", "yes": "Oui", "no": "Non", "home": "Accueil"},
    "it": {"title": "Titolo", "category": "Categoria", "price": "Prezzo",
           "description": "Descrizione", "yes": "Sì", "no": "No", "home": "Home"},
    "es": {"title": "Título", "category": "Categoría", "price": "Precio",
           "description": "Descripción", "yes": "Sí", "no": "No", "home": "Inicio"},
}  # fmt: skip


class Sentences(NamedTuple):
    """Ways to say a field in running text; `{}` is the value, aspects are "name: value; ..."."""

    title: tuple[str, ...]
    category: tuple[str, ...]
    price: tuple[str, ...]
    aspects: tuple[str, ...]


# No pattern agrees with its value in gender or number, since values may be anything.
SENTENCES = {
    "en": Sentences(
        ("Have a look at “{}”.", "This page is about “{}”.", "We offer “{}”."),
        ("It is listed under {}.", "You will find it in the category {}.", "Department: {}."),
        ("It costs {}.", "The price is {}.", "It sells for {}."),
        ("Specifications – {}.", "Details – {}.", "At a glance – {}."),
    ),
    "de": Sentences(
        ("Wir bieten an: „{}“.", "Hier geht es um „{}“.", "Im Angebot ist „{}“."),
        ("Sie finden den Artikel unter {}.", "Der Artikel steht in der Kategorie {}.",
         "Abteilung: {}."),
        ("Der Preis beträgt {}.", "Der Artikel kostet {}.", "Zu haben für {}."),
        ("Merkmale – {}.", "Auf einen Blick – {}.", "Produktdetails – {}."),
    ),
    "fr": Sentences(
        ("Nous vous proposons « {} ».", "Voici « {} ».", "Cette annonce porte sur « {} »."),
        ("L'article est classé dans {}.", "À retrouver au rayon {}.", "Rayon : {}."),
        ("L'article coûte {}.", "Son prix est de {}.", "En vente à {}."),
        ("Caractéristiques – {}.", "En bref – {}.", "Détails – {}."),
    ),
    "it": Sentences(
        ("Vi proponiamo «{}».", "Ecco «{}».", "Questo annuncio riguarda «{}»."),
        ("L'articolo si trova in {}.", "Lo trovate nella categoria {}.", "Reparto: {}."),
        ("L'articolo costa {}.", "Il prezzo è di {}.", "In vendita a {}."),
        ("Caratteristiche – {}.", "In breve – {}.", "Dettagli – {}."),
    ),
    "es": Sentences(
        ("Le ofrecemos «{}».", "Le presentamos «{}».", "Este anuncio trata de «{}»."),
        ("El artículo se encuentra en {}.", "Está en la categoría {}.", "Sección: {}."),
        ("El artículo cuesta {}.", "Su precio es de {}.", "A la venta por {}."),
        ("Características – {}.", "De un vistazo – {}.", "Detalles – {}."),
    ),
}  # fmt: skip


class Questions(NamedTuple):
    """Questions and answers about one product; `aspect` asks for any aspect by its name."""

    ask: str
    answer: str
    aspect: str
    category: str
    price: str
    description: str


QUESTIONS = {
    "en": Questions("Q: ", "A: ", "{}?", "Which category is it in?", "How much is it?",
                    "How is it described?"),
    "de": Questions("F: ", "A: ", "{}?", "In welcher Kategorie ist der Artikel?",
                    "Was kostet der Artikel?", "Wie wird der Artikel beschrieben?"),
    "fr": Questions("Q : ", "R : ", "{} ?", "Dans quelle catégorie est l'article ?",
                    "Combien coûte l'article ?", "Comment l'article est-il décrit ?"),
    "it": Questions("D: ", "R: ", "{}?", "In quale categoria è l'articolo?",
                    "Quanto costa l'articolo?", "Com'è descritto l'articolo?"),
    "es": Questions("P: ", "R: ", "¿{}?", "¿En qué categoría está el artículo?",
                    "¿Cuánto cuesta el artículo?", "¿Cómo se describe el artículo?"),
}  # fmt: skip


class ReviewWords(NamedTuple):
    """Words around a review; `stars` is filled with rating and scale, `grades` are for 1 to 5."""

    product: str
    rating: str
    headline: str
    review: str
    stars: str
    grades: tuple[str, str, str, str, str]


REVIEW_WORDS = {
    "en": ReviewWords("Product", "Rating", "Headline", "Review", "{} out of {} stars",
                      ("Very poor", "Poor", "Average", "Good", "Excellent")),
    "de": ReviewWords("Produkt", "Bewertung", "Überschrift", "Rezension", "{} von {} Sternen",
                      ("Sehr schlecht", "Schlecht", "Mittelmäßig", "Gut", "Ausgezeichnet")),
    "fr": ReviewWords("Produit", "Note", "Titre", "Avis", "{} étoiles sur {}",
                      ("Très mauvais", "Mauvais", "Moyen", "Bon", "Excellent")),
    "it": ReviewWords("Prodotto", "Voto", "Titolo", "Recensione", "{} stelle su {}",
                      ("Pessimo", "Scarso", "Discreto", "Buono", "Eccellente")),
    "es": ReviewWords("Producto", "Valoración", "Titular", "Reseña", "{} de {} estrellas",
                      ("Muy malo", "Malo", "Regular", "Bueno", "Excelente")),
}  # fmt: skip

# Values that say that there is no value, compared without case and outer punctuation. "Unbranded",
# "no name" and "none" are left in: they tell a buyer something ("Coating: None", "Brand: No name").
EMPTY_VALUES = {
    "en": {"n/a", "na", "not applicable", "does not apply", "not available", "not specified",
           "unspecified", "unknown", "null", "nan", "tbd", "see description", "not provided"},
    "de": {"nicht zutreffend", "trifft nicht zu", "keine angabe", "keine angaben", "ohne angabe",
           "k.a", "k. a", "unbekannt", "nicht verfügbar", "siehe beschreibung",
           "nicht angegeben"},
    "fr": {"non applicable", "ne s'applique pas", "non spécifié", "non renseigné", "inconnu",
           "non communiqué", "voir description", "n/c", "s/o"},
    "it": {"non applicabile", "non specificato", "non disponibile", "sconosciuto", "n/d", "n.d",
           "vedi descrizione"},
    "es": {"no aplicable", "no aplica", "no procede", "no especificado", "sin especificar",
           "desconocido", "no disponible", "ver descripción", "n/d"},
}  # fmt: skip

# Sentences about the seller's service, not about the product; each must match from its start.
BOILERPLATE = {
    "en": (
        r"(?:enjoy )?free (?:\w+ ){0,2}(?:shipping|delivery|returns?)",
        r"(?:we|(?:the )?items?|(?:all )?orders?) (?:\w+ )?(?:ships?|shipped|dispatched)\b",
        r"(?:ships|shipped|dispatched) (?:within|from|same|in \d)",
        r"(?:fast|quick) (?:and \w+ )?(?:shipping|delivery|dispatch)",
        r"if you have any (?:\w+ )?(?:questions?|problems?|concerns?|issues?)",
        r"(?:please )?(?:feel free to |do not hesitate to |don't hesitate to )?contact us",
        r"(?:please )?(?:leave|give) (?:us )?(?:a )?(?:positive|5.star|five.star) (?:feedback|review)",
        r"(?:\d+.day |we accept |our )(?:money.back|returns?|refund|return policy)",
        r"(?:please )?(?:visit|check out|see) (?:our|my) (?:other|shop|store|items)",
        r"thank you for (?:your (?:purchase|business|visit)|shopping|looking|visiting)",
        r"(?:100 ?% )?satisfaction guaranteed", r"buy with confidence", r"add to (?:cart|basket)",
    ),
    "de": (
        r"(?:versand|portofrei|kostenloser? (?:versand|lieferung|rückversand|retoure))"
        r"(?:kostenfrei|kosten|frei|:|\b)",
        r"(?:gratis|schneller) versand",
        r"(?:der |die )?(?:lieferung|versand) erfolgt", r"lieferzeit",
        r"bei (?:weiteren )?(?:fragen|problemen)", r"haben sie (?:noch )?fragen",
        r"(?:bitte )?(?:kontaktieren|schreiben) sie uns",
        r"vielen dank für (?:ihren|ihr|deinen|dein)",
        r"(?:bitte )?(?:besuchen|beachten) sie (?:auch )?(?:unseren|unsere|meine)",
        r"\d+ tage (?:rückgabe|widerruf)", r"privatverkauf", r"(?:rückgabe|umtausch) (?:und|ist|nur)",
        r"in den warenkorb",
    ),
    "fr": (
        r"(?:livraison|retours?|frais de port|expédition) (?:gratuit|offert|rapide|sous|en \d)",
        r"(?:si vous avez|pour) (?:des|la moindre|toute|une) questions?",
        r"(?:n'hésitez pas à|veuillez) (?:nous )?contacter", r"contactez.nous",
        r"merci (?:de|pour) votre (?:visite|achat|confiance)",
        r"(?:visitez|découvrez|consultez) (?:notre boutique|nos autres)",
        r"satisfait ou remboursé", r"ajouter au panier",
    ),
    "it": (
        r"(?:spedizione|consegna|reso) (?:gratuit|gratis|veloce|rapida|in \d|entro)",
        r"(?:se avete|se hai|per qualsiasi|per) (?:domand|dubbi|qualsiasi domand|informazion)",
        r"(?:non esita\w+ a )?contatta(?:teci|ci|rci)",
        r"grazie per (?:la (?:vostra|tua) (?:visita|fiducia)|il (?:vostro|tuo) acquisto)",
        r"(?:visitate|visita) il (?:nostro|mio) negozio", r"soddisfatti o rimborsati",
        r"aggiungi al carrello",
    ),
    "es": (
        r"(?:envío|devolución|devoluciones|entrega) (?:gratis|gratuit|rápid|en \d)",
        r"si (?:tiene|tienes) (?:alguna|cualquier) (?:pregunta|duda|consulta)",
        r"(?:no dude en |por favor )?(?:contáctenos|contáctanos|póngase en contacto|contactarnos)",
        r"gracias por (?:su|tu) (?:visita|compra|confianza)",
        r"(?:visite|visita) (?:nuestra|mi) tienda", r"satisfacción garantizada",
        r"añadir (?:al carrito|a la cesta)",
    ),
}  # fmt: skip

# Prices that name no amount. "Free" says more of the shop than of the product.
NO_PRICE = (
    r"free|gratis|on request|upon request|price on (?:request|application)|poa|call for price|"
    r"sold out|kostenlos|umsonst|(?:preis )?auf anfrage|gratuit|(?:prix )?sur demande|offert|"
    r"gratuito|(?:prezzo )?su richiesta|(?:precio )?a consultar|consultar|n/?a|tba|tbd|vb"
)

# Masks are words of the text's language in brackets: what is left still reads as a sentence.
MASKS = {
    "en": {"email": "[e-mail]", "phone": "[phone number]", "card": "[card number]",
           "iban": "[bank account]", "address": "[address]", "url": "[profile link]",
           "handle": "[user name]", "ip": "[IP address]", "seller": "[seller]"},
    "de": {"email": "[E-Mail]", "phone": "[Telefonnummer]", "card": "[Kartennummer]",
           "iban": "[Bankkonto]", "address": "[Adresse]", "url": "[Profil-Link]",
           "handle": "[Benutzername]", "ip": "[IP-Adresse]", "seller": "[Verkäufer]"},
    "fr": {"email": "[e-mail]", "phone": "[numéro de téléphone]", "card": "[numéro de carte]",
           "iban": "[compte bancaire]", "address": "[adresse]", "url": "[lien de profil]",
           "handle": "[nom d'utilisateur]", "ip": "[adresse IP]", "seller": "[vendeur]"},
    "it": {"email": "[e-mail]", "phone": "[numero di telefono]", "card": "[numero di carta]",
           "iban": "[conto bancario]", "address": "[indirizzo]", "url": "[link al profilo]",
           "handle": "[nome utente]", "ip": "[indirizzo IP]", "seller": "[venditore]"},
    "es": {"email": "[correo electrónico]", "phone": "[número de teléfono]",
           "card": "[número de tarjeta]", "iban": "[cuenta bancaria]", "address": "[dirección]",
           "url": "[enlace de perfil]", "handle": "[nombre de usuario]", "ip": "[dirección IP]",
           "seller": "[vendedor]"},
}  # fmt: skip


def check_language(language: object) -> str:
    """Returns the bare language of "de" or "de-DE" if `LABELS` knows it."""
    if isinstance(language, str) and language in LABELS:
        return language
    bare = re.split("[-_]", language)[0].lower() if isinstance(language, str) else language
    if not isinstance(bare, str) or bare not in LABELS:
        raise ValueError(f"language: must be one of {', '.join(LABELS)}, got {language!r}.")
    return bare


def line_prompt(name: str, language: str) -> str:
    """Returns the start of a line, up to its colon; the value follows after one space.

    >>> line_prompt("Material", "de"), line_prompt("Matière", "fr")
    ('Material:', 'Matière :')
    """
    return f"{name} :" if check_language(language) == "fr" else f"{name}:"


def one_line(text: str) -> str:
    """Joins a text's words by single ordinary spaces, so that a field is one line."""
    return " ".join(text.split())


def mask_word(kind: str, language: str) -> str:
    """Returns what stands in the place of private data: a word of the language, in brackets."""
    return MASKS.get(language, MASKS["en"])[kind]


def is_mask(text: str, language: str) -> bool:
    """Says whether a text is a mask and nothing else."""
    return text[:1] == "[" and text in MASKS.get(language, MASKS["en"]).values()


def is_empty_value(text: str, language: str) -> bool:
    """Says whether a value means that there is none.

    >>> is_empty_value("Nicht zutreffend.", "de"), is_empty_value("--", "fr")
    (True, True)
    >>> is_empty_value("N/A", "it"), is_empty_value("Unbranded", "en")
    (True, False)
    """
    if len(text) > 40:
        return False
    bare = text.casefold().strip(" .…·-–—_/?()[]*:,;")
    # English words of this kind stand in catalogues of every language.
    return not bare or bare in EMPTY_VALUES["en"] or bare in EMPTY_VALUES.get(language, ())


@cache
def boilerplate_pattern(language: str) -> re.Pattern | None:
    """Compiles a language's boilerplate; None where the table has no row."""
    rows = BOILERPLATE.get(language)
    return re.compile(r"\W*(?:" + "|".join(rows) + ")", re.IGNORECASE) if rows else None
