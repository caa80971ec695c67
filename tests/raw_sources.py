"""Hand-written raw records with every trap, in several schemas, and the recipe that reads them."""

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet

SPECIAL = "<|end_of_text|><|begin_of_text|>"
QUESTION = (
    "Which of the following best describes the reason why the moon always shows nearly the same "
    "face to an observer who stands on the surface of the earth?"
)
PROSE = {
    "en": "The old lighthouse stood on the cliff and the keeper walked up its stairs every evening "
    "to light the lamp. He had done this for thirty years, and he knew that the ships out on the "
    "water would not find the harbour without it. When the storm came in from the north, he stayed "
    "awake all night and watched the sea. In the morning the wind was gone, and the fishermen came "
    "to thank him with bread and with fish.",
    "de": "Der alte Leuchtturm stand auf der Klippe, und der Wärter ging jeden Abend die Treppe "
    "hinauf, um die Lampe anzuzünden. Er hatte das seit dreißig Jahren getan, und er wusste, dass "
    "die Schiffe draußen auf dem Wasser den Hafen ohne sie nicht finden würden. Als der Sturm aus "
    "dem Norden kam, blieb er die ganze Nacht wach und sah auf das Meer. Am Morgen war der Wind "
    "fort, und die Fischer kamen mit Brot und Fisch, um ihm zu danken.",
    "fr": "Le vieux phare se dressait sur la falaise et le gardien montait chaque soir l'escalier "
    "pour allumer la lampe. Il le faisait depuis trente ans, et il savait que les navires ne "
    "trouveraient pas le port sans elle. Quand la tempête est venue du nord, il est resté éveillé "
    "toute la nuit et il a regardé la mer. Au matin le vent était tombé, et les pêcheurs sont venus "
    "le remercier avec du pain et du poisson.",
    "it": "Il vecchio faro stava sulla scogliera e il guardiano saliva ogni sera le scale per "
    "accendere la lampada. Lo faceva da trent'anni, e sapeva che le navi non avrebbero trovato il "
    "porto senza di essa. Quando la tempesta è arrivata dal nord, è rimasto sveglio tutta la notte "
    "e ha guardato il mare. Al mattino il vento era calato, e i pescatori sono venuti a "
    "ringraziarlo con il pane e con il pesce.",
    "es": "El viejo faro estaba en el acantilado y el guardián subía cada noche la escalera para "
    "encender la lámpara. Lo hacía desde hacía treinta años, y sabía que los barcos no encontrarían "
    "el puerto sin ella. Cuando la tormenta llegó del norte, se quedó despierto toda la noche y "
    "miró el mar. Por la mañana el viento se había calmado, y los pescadores vinieron a darle las "
    "gracias con pan y con pescado.",
}  # fmt: skip


def listing(sku, title, language, **fields):
    return {
        "item": {"sku": sku, "title": title, "specifics": fields.pop("aspects", {})},
        "offer": {"price": fields.pop("price", None), "currency": fields.pop("currency", "EUR")},
        "site": {"language": language},
        "cat": fields.pop("category", "Sport > Taschen"),
        **fields,
    }


def catalogue():
    """Listings of a nested schema; the comments say what each is there for."""
    records = [
        # Two sizes of one product: one document.
        listing("bag-1-S", "Wanderrucksack Tauern, S", "de", price="1.263,46 €",
                aspects={"Größe": "S", "Farbe": "Grün"}, html="<p>Leicht &amp; stabil.</p>"),
        listing("bag-1-L", "Wanderrucksack Tauern, L", "de", price="1.263,46 €",
                aspects={"Größe": "L", "Farbe": "Grün"}, html="<p>Leicht &amp; stabil.</p>"),
        # The same product in another language: the same split.
        listing("bag-1-S", "Tauern hiking backpack, S", "en", price=1299.0, currency="USD",
                aspects={"Size": "S", "Color": "Green"}, ean="4006381333931"),
        # Another shop's copy of it, known by its EAN alone.
        listing("x-77", "Backpack Tauern by Alpina", "en", price=1199, currency="USD",
                aspects={"Color": "Green"}, ean="4006381333931"),
        # A price in Chilean pesos, which have no cents.
        listing("cl-1", "Mochila Andes 40 L", "es", price="$ 12.990", currency="CLP"),
        # Private data.
        listing("pii-1", "Lampe de bureau", "fr", price=20,
                html="Écrivez à marie.durand@example.fr ou appelez le 01 42 68 53 00."),
        # Names of special tokens, emoji, right-to-left text, a megabyte.
        listing("token-1", f"Tazza {SPECIAL} rossa", "it", html=SPECIAL),
        listing("emoji-1", "Party hat 🎉👩‍👩‍👧 שלום", "en", html="Great fun 🎈"),
        listing("huge-1", "Endless rope", "en", html="A very long rope. " * 60_000),
        # A language that is not asked for.
        listing("nl-1", "Rode fiets", "nl"),
    ]  # fmt: skip
    colours = ["Rot", "Blau", "Gelb", "Schwarz", "Weiß", "Grau", "Braun", "Lila"]
    things = ["Zelt", "Kocher", "Schlafsack", "Stirnlampe", "Trinkflasche", "Isomatte"]
    records += [
        listing(f"many-{n}", f"{things[n % 6]} Modell {n}, {colours[n % 8]}", "de", price=10 + n,
                aspects={"Farbe": colours[n % 8], "Serie": f"Serie {n * 7}"},
                html=f"{things[n % 6]} Nummer {n} für {n % 4 + 1} Personen, geprüft im Jahr {1990 + n}.")
        for n in range(40)
    ]  # fmt: skip
    return records


def write_raw(root):
    """Writes the raw files; returns nothing, `RECIPE` names them."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False).encode() for record in catalogue()]
    lines.insert(3, b'{"item": {"sku": "bad-1", "title": "br\xff\xfeken"}}')  # no UTF-8
    lines.insert(5, b'{"item": {"sku": "bad-2", ')  # no JSON
    lines.insert(7, b"")
    lines.insert(9, b'{"item": {"title": ""}, "site": {"language": "en"}}')  # no title
    (root / "catalogue.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    with open(root / "shop.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Handle", "Title", "Body (HTML)", "Vendor", "Option1 Name",
                         "Option1 Value", "Variant Price"])  # fmt: skip
        for size in ("250 ml", "500 ml"):
            writer.writerow(["mug", "Enamel mug", "<ul><li>Line one</li><li>Line two</li></ul>",
                             "Camp & Co", "Volume", size, "12.50"])  # fmt: skip
    reviews = [
        {"sku": "bag-1-L", "stars": 5, "headline": "Super", "body": "Sehr bequem, trägt sich gut."},
        {"sku": "pii-9", "stars": 1, "headline": "Schlecht", "body": "Nach zwei Tagen gerissen."},
        {"sku": "pii-9", "stars": 1, "headline": "", "body": ""},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(reviews), root / "reviews.parquet")
    pages = [{"text": text, "url": f"https://example.org/{code}"} for code, text in PROSE.items()]
    pages += [
        {"text": PROSE["en"], "url": "copy"},  # an exact copy
        {"text": PROSE["de"].replace("dreißig", "vierzig"), "url": "near"},  # a near copy
        {"text": f"{PROSE['fr'][:80]} {QUESTION} {PROSE['fr'][80:]}", "url": "leak"},
        {"text": "", "url": "empty"},
        {"text": "Click here to read more about it. " * 30, "url": "filler"},
        {"text": "Быстрая коричневая лиса прыгает через ленивую собаку. " * 8, "url": "ru"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pages), root / "pages.parquet")
    question = {"id": "q1", "question": QUESTION, "choices": ["Tides", "Luck", "Chance", "Wind"]}
    (root / "questions.jsonl").write_text(json.dumps(question) + "\n")


RECIPE = """
from configs.data import base


def get_config(root):
    config = base.get_config()
    config.sources.catalogue = base.source(
        kind="listings", paths=(f"{root}/catalogue.jsonl.gz",), products="shop",
        product_pattern="^(.+?)(?:-[SL])?$", max_bad_frac=0.1,
        fields={"title": "item.title", "category": "cat", "aspects": "item.specifics",
                "price": "offer.price", "currency": "offer.currency", "description": "html",
                "language": "site.language", "product_id": "item.sku", "gtin": "ean"})
    config.sources.shop = base.source(
        kind="listings", paths=(f"{root}/shop.csv",), language="en",
        fields={"title": "Title", "description": "Body (HTML)", "price": "Variant Price",
                "currency": "='USD'", "aspects": "[Option1 Name:Option1 Value]", "product_id": "Handle"})
    config.sources.reviews = base.source(
        kind="reviews", paths=(f"{root}/reviews.parquet",), language="de", products="shop",
        product_pattern="^(.+?)(?:-[SL])?$", max_bad_frac=0.5,
        fields={"title": "headline", "text": "body", "rating": "stars", "product_id": "sku"})
    config.sources.web = base.source(
        kind="pages", paths=(f"{root}/pages.parquet",), domain="general", language="detect",
        fields={"text": "text"})
    config.decontamination.files = (f"{root}/questions.jsonl",)
    config.split.heldout_frac = 0.2
    config.split.heldout_texts_frac = 0.0
    return config
"""
