"""A few documents of three sets, and a tokenizer that was trained on them."""

import json

from ellama_jax.tokens.tokenizer import save_tokenizer, train_byte_bpe

TEXTS = {
    ("ecommerce", "de"): [
        "Titel: Jacke, grün\nPreis: 129,95 €",
        "! Sehr gut ! Passt !",
        "Zu klein",
    ],
    ("ecommerce", "fr"): ["Veste imperméable à capuche"],
    ("general", "de"): ["Die Donau ist ein Fluss. " * 12, "Ende <|end_of_text|> oder nicht?"],
}


def make_tokenizer(directory):
    trained = train_byte_bpe([text for texts in TEXTS.values() for text in texts], 320)
    save_tokenizer(directory, trained, trained.get_vocab_size() - 2, trained.get_vocab_size() - 1)
    return directory


def document(text, domain="ecommerce", language="de", source="shop", **changes):
    fields = {"text": text, "domain": domain, "language": language, "source": source}
    return fields | {"product_id": None} | changes


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)
