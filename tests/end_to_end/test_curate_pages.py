"""A classifier built from small seeds, then `ellama curate` on web pages with it, in five languages."""

import hashlib
import json

import numpy as np
import pytest
from raw_sources import PROSE

from ellama_jax import cli
from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.classifier import load_classifier
from ellama_jax.corpus.curate import main_curate
from ellama_jax.corpus.curation_output import curated_files, read_shard
from ellama_jax.corpus.listings import listing_to_document
from ellama_jax.experiments.general_text import generate_general_documents

LANGUAGES = ("en", "de", "fr", "it", "es")
RECIPE = """
from configs.data import base


def get_config(root):
    config = base.get_config()
    config.sources.web = base.source(
        kind="pages", paths=(f"{root}/pages.jsonl",), language="detect", fields={"text": "html"})
    config.pages.classifier = f"{root}/model"
    config.decontamination.sets = ()
    config.split.heldout_texts_frac = 0.0
    return config
"""


def seed_documents():
    """Listings in two templates, statements, and hand-written sentences: two sources of each label."""
    rows = []
    for number, one in enumerate(generate_listings(0, 80)):
        text = listing_to_document(one, seed=number % 7)
        rows.append({"text": text, "language": one["language"], "label": "ecommerce",
                     "product_id": one["product_id"], "source": f"shop-{number // 5 % 2}"})  # fmt: skip
    rows += generate_general_documents(0, 60)
    for language, text in PROSE.items():
        words = text.split()
        rows += [{"text": " ".join(words[at : at + 14]), "language": language, "label": "other",
                  "source": "stories"} for at in range(0, len(words) - 14, 2)]  # fmt: skip
    return rows


def shop_page(listing):
    """Writes a listing as a page of a shop, with the menu and the footer that such a page has."""
    text = listing_to_document(listing, seed=3)
    items = "".join(f"<li>{line}</li>" for line in text.split("\n") if line.strip())
    return (
        "<html><body><nav><a href='/'>Startmenü</a></nav>"
        f"<h1>{listing['title']}</h1><ul>{items}</ul><footer>© 2024</footer></body></html>"
    )


def write_pages(path):
    """Writes shop pages, stories and noise of every language; returns how many shop pages."""
    listings = [one for one in generate_listings(9, 400) if one["product_id"].endswith("0")]
    pages = [shop_page(one) for one in listings]
    pages += [
        f"<html><body><article><p>{text}</p></article></body></html>" for text in PROSE.values()
    ]
    pages += [
        "Click here to read more about it. " * 30,
        "Klicken Sie hier, um mehr zu lesen. " * 30,
    ]
    path.write_text("".join(json.dumps({"html": page}) + "\n" for page in pages))
    return len(listings)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    lines = [json.dumps(row) + "\n" for row in seed_documents()]
    (root / "seeds.jsonl").write_text("".join(lines))
    cli.main(["build-classifier", str(root / "seeds.jsonl"), str(root / "model")])
    write_pages(root / "pages.jsonl")
    (root / "recipe.py").write_text(RECIPE)
    main_curate([f"--config={root}/recipe.py:{root}", f"--out={root / 'out'}"])
    return root


def documents(out):
    return [one for path in curated_files(out, "documents", "train") for one in read_shard(path)]


def test_shop_pages_are_ecommerce_and_stories_are_general(curated):
    found = documents(curated / "out")
    stories = [d for d in found if any(d["text"][:40] == text[:40] for text in PROSE.values())]
    assert {(d["language"], d["domain"]) for d in stories} == {(x, "general") for x in LANGUAGES}
    shops = [d for d in found if d not in stories]
    assert {d["language"] for d in shops} == set(LANGUAGES)
    assert len(shops) >= 25 and {d["domain"] for d in shops} == {"ecommerce"}
    assert not any("Startmenü" in d["text"] or "© 2024" in d["text"] for d in shops)


def test_noise_is_dropped_by_the_quality_rules(curated):
    counts = json.loads((curated / "out/curation.json").read_text())["counts"]["web"]
    dropped = {
        language: sum(n for what, n in by.items() if what.startswith("quality"))
        for language, by in counts.items()
    }
    assert dropped["en"] >= 1 and dropped["de"] >= 1
    assert not any(
        "Click" in d["text"] or "Klicken" in d["text"] for d in documents(curated / "out")
    )


def test_the_same_pages_give_the_same_bytes(curated):
    main_curate([f"--config={curated}/recipe.py:{curated}", f"--out={curated / 'again'}"])
    for path in curated_files(curated / "out", "documents", "train"):
        other = curated / "again" / path.relative_to(curated / "out")
        assert (
            hashlib.sha256(path.read_bytes()).digest()
            == hashlib.sha256(other.read_bytes()).digest()
        )


def test_scores_do_not_depend_on_the_batch_bit_for_bit(curated):
    model = load_classifier(curated / "model")
    texts = [
        json.loads(line)["html"] for line in (curated / "pages.jsonl").read_text().splitlines()
    ]
    together = model.scores(texts)
    assert np.array_equal(together, [model.scores([text])[0] for text in texts])
    assert np.array_equal(together[::-1], model.scores(texts[::-1]))
    assert np.array_equal(
        together, np.concatenate([model.scores(texts[:7]), model.scores(texts[7:])])
    )


def test_the_report_puts_sources_never_seen_first(curated):
    report = json.loads((curated / "model/report.json").read_text())
    for part in ("out_of_source", "same_source"):
        assert [row["language"] for row in report[part]["languages"]] == sorted(LANGUAGES)
    page = (curated / "model/report.html").read_text()
    assert page.index("Sources never seen") < page.index("same sources (flattering)")
    assert page.count("<svg") == 4
