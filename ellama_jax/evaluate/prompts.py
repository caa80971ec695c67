"""The questions of the e-commerce tasks, written by hand in five languages.

Owns words only: `tasks/` says what is asked. Labels of a listing's own lines are those of training
text (corpus/wording.py); what is here are questions about a listing, a category or a pair. No pattern
agrees with what is filled in in gender or number, since that may be anything.
"""

from typing import NamedTuple

from ellama_jax.corpus.wording import line_prompt


class Prompts(NamedTuple):
    """One language's words.

    Attributes:
        question, answer: labels before a question and its answer.
        listing: label of a listing where there are two, filled with 1 or 2.
        stated: asks what a listing states, filled with an aspect's name.
        not_stated: the answer where it states nothing.
        bins: asks for a price range.
        price_range: a range, filled with two amounts.
        common: asks for the aspect that a category's listings state most often.
        common_list: asks for several of them, filled with their number, at least 2.
        title: asks for a listing's title.
        match: asks whether two listings show one product.
        yes, no: the answers to that.
    """

    question: str
    answer: str
    listing: str
    stated: str
    not_stated: str
    bins: str
    price_range: str
    common: str
    common_list: str
    title: str
    match: str
    yes: str
    no: str


PROMPTS = {
    "en": Prompts(
        question="Question",
        answer="Answer",
        listing="Listing {}",
        stated="What value does this listing state for “{}”? If it states none, the answer is "
        "“not stated”.",
        not_stated="not stated",
        bins="In which price range is this item?",
        price_range="{} to {}",
        common="Which detail do listings in this category state most often?",
        common_list="Which {} details do listings in this category state most often? List them, "
        "separated by commas.",
        title="What is the title of this listing?",
        match="Are both listings for the same product, apart from options such as color or size?",
        yes="Yes",
        no="No",
    ),
    "de": Prompts(
        question="Frage",
        answer="Antwort",
        listing="Angebot {}",
        stated="Welchen Wert nennt dieses Angebot für „{}“? Nennt es keinen, lautet die Antwort "
        "„nicht angegeben“.",
        not_stated="nicht angegeben",
        bins="In welcher Preisspanne liegt dieser Artikel?",
        price_range="{} bis {}",
        common="Welche Angabe findet sich in den Angeboten dieser Kategorie am häufigsten?",
        common_list="Welche {} Angaben finden sich in den Angeboten dieser Kategorie am "
        "häufigsten? Zählen Sie sie auf, durch Kommas getrennt.",
        title="Wie lautet der Titel dieses Angebots?",
        match="Geht es in beiden Angeboten um dasselbe Produkt, abgesehen von Varianten wie Farbe "
        "oder Größe?",
        yes="Ja",
        no="Nein",
    ),
    "fr": Prompts(
        question="Question",
        answer="Réponse",
        listing="Annonce {}",
        stated="Quelle valeur cette annonce indique-t-elle pour « {} » ? Si elle n'en indique "
        "aucune, la réponse est « non précisé ».",
        not_stated="non précisé",
        bins="Dans quelle fourchette de prix se situe cet article ?",
        price_range="de {} à {}",
        common="Quelle caractéristique est le plus souvent indiquée dans les annonces de cette "
        "catégorie ?",
        common_list="Quelles sont les {} caractéristiques le plus souvent indiquées dans les "
        "annonces de cette catégorie ? Énumérez-les, séparées par des virgules.",
        title="Quel est le titre de cette annonce ?",
        match="Ces deux annonces portent-elles sur le même produit, abstraction faite de variantes "
        "comme la couleur ou la taille ?",
        yes="Oui",
        no="Non",
    ),
    "it": Prompts(
        question="Domanda",
        answer="Risposta",
        listing="Annuncio {}",
        stated="Quale valore indica questo annuncio per «{}»? Se non ne indica nessuno, la "
        "risposta è «non indicato».",
        not_stated="non indicato",
        bins="In quale fascia di prezzo rientra questo articolo?",
        price_range="da {} a {}",
        common="Quale caratteristica è indicata più spesso negli annunci di questa categoria?",
        common_list="Quali sono le {} caratteristiche indicate più spesso negli annunci di questa "
        "categoria? Elencatele, separate da virgole.",
        title="Qual è il titolo di questo annuncio?",
        match="I due annunci riguardano lo stesso prodotto, a parte varianti come il colore o la "
        "taglia?",
        yes="Sì",
        no="No",
    ),
    "es": Prompts(
        question="Pregunta",
        answer="Respuesta",
        listing="Anuncio {}",
        stated="¿Qué valor indica este anuncio para «{}»? Si no indica ninguno, la respuesta es "
        "«no indicado».",
        not_stated="no indicado",
        bins="¿En qué rango de precios se encuentra este artículo?",
        price_range="de {} a {}",
        common="¿Qué característica se indica con más frecuencia en los anuncios de esta "
        "categoría?",
        common_list="¿Cuáles son las {} características que se indican con más frecuencia en los "
        "anuncios de esta categoría? Enumérelas, separadas por comas.",
        title="¿Cuál es el título de este anuncio?",
        match="¿Se refieren los dos anuncios al mismo producto, aparte de variantes como el color "
        "o la talla?",
        yes="Sí",
        no="No",
    ),
}


def ask(lines: list[str], question: str, language: str) -> str:
    """Writes what is known, a question and the label of its answer; a space and the answer follow.

    >>> print(ask(["Titre : Lampe Nyx"], PROMPTS["fr"].title, "fr"))
    Titre : Lampe Nyx
    Question : Quel est le titre de cette annonce ?
    Réponse :
    """
    words = PROMPTS[language]
    asked = f"{line_prompt(words.question, language)} {question}"
    return "\n".join([*lines, asked, line_prompt(words.answer, language)])
