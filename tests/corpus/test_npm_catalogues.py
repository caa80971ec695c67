"""Category trees: literal records of hand-made files of the packages' shape."""

import json

from ellama_jax.corpus.npm_catalogues import read_taxonomy

TAXONOMY = {
    "version": "x",
    "verticals": [
        {
            "name": "Tiere",
            "prefix": "ap",
            "categories": [
                {"id": "ap", "name": "Tiere", "parent_id": None},
                {"id": "ap-1", "name": "Vögel", "parent_id": "ap"},
                {"id": "ap-2", "name": "Katzen", "parent_id": "ap"},
                {"id": "ap-1-1", "name": "Käfige", "parent_id": "ap-1"},
            ],
        }
    ],
}


def test_categories_with_children_become_documents(tmp_path):
    path = tmp_path / "de.json"
    path.write_text(json.dumps(TAXONOMY), encoding="utf-8")
    records = read_taxonomy(path, "de")
    assert [record["text"] for record in records] == [
        "Kategorie: Tiere\nUnterkategorien: Vögel, Katzen",
        "Kategorie: Tiere > Vögel\nUnterkategorien: Käfige",
    ]
    assert [record["product_id"] for record in records] == ["taxonomy-ap", "taxonomy-ap-1"]
    assert {(record["domain"], record["language"]) for record in records} == {("ecommerce", "de")}


def test_french_labels_have_their_space(tmp_path):
    path = tmp_path / "fr.json"
    path.write_text(json.dumps(TAXONOMY), encoding="utf-8")
    assert read_taxonomy(path, "fr")[1]["text"].startswith("Catégorie : Tiere > Vögel\nSous-caté")
