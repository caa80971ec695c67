"""Sources that are no files yet become files in the cache, or are refused in words."""

import json
from pathlib import Path

import pytest

from ellama_jax.corpus import origins, sources


def test_an_ordinary_path_stays_as_it_is(tmp_path):
    assert origins.resolve_origin("a/*.jsonl", tmp_path) == ("a/*.jsonl", "")


def test_the_synthetic_catalogue_is_written_once(tmp_path):
    path, note = origins.resolve_origin("synthetic:listings:3", tmp_path / "cache")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 15 and note == ""
    assert {json.loads(line)["language"] for line in lines} == {"en", "de", "fr", "it", "es"}
    assert origins.resolve_origin("synthetic:listings:3", tmp_path / "cache")[0] == path


@pytest.mark.parametrize(
    "path, message",
    [
        ("synthetic:listings:0", "must be synthetic:listings:NUMBER_OF_PRODUCTS"),
        ("synthetic:reviews:5", "must be synthetic:listings:NUMBER_OF_PRODUCTS"),
        ("package:wikipedia", "must be one of shopify-taxonomy, debian-reference"),
    ],
)
def test_unknown_words_are_refused(tmp_path, path, message):
    with pytest.raises(ValueError, match=message):
        origins.resolve_origin(path, tmp_path)


def test_a_package_that_cannot_be_had_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda program: None)
    with pytest.raises(ValueError, match="npm is not installed.*Leave the source out"):
        origins.resolve_origin("package:shopify-taxonomy", tmp_path)
