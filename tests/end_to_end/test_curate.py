"""`ellama curate` on raw records with every trap: what comes out, and that it always is the same."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw_sources import PROSE, QUESTION, RECIPE, SPECIAL, write_raw

from ellama_jax.corpus.curate import main_curate
from ellama_jax.corpus.curation_output import curated_files, read_shard

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
SHARED_RECIPE = """
from configs.data import base


def get_config(root):
    config = base.get_config()
    for name in ("ae-110k_train", "oa-mine_train", "dummyjson_listings"):
        config.sources[name.split("_")[0].replace("-", "_")] = base.source(
            kind="listings", paths=(f"{root}/{name}_en.jsonl",))
    config.sources.magento = base.source(
        kind="listings", paths=(f"{root}/magento_listings_en.jsonl",), products="magento",
        product_pattern=r"^(.+?)(?:-(?:XS|S|M|L|XL|[0-9]+)-[A-Za-z]+)?$")
    config.sources.magento_reviews = base.source(
        kind="reviews", paths=(f"{root}/magento_reviews_en.jsonl",), products="magento",
        fields={"title": "title", "text": "review", "rating": "rating", "product_id": "id",
                "language": "lang"})
    config.sources.mgsm = base.source(
        paths=(f"{root}/mgsm_*.jsonl",), domain="general", language="detect",
        fields={"text": "question"})
    config.decontamination.files = (f"{root}/mgsm_es.jsonl",)
    config.split.heldout_frac = 0.1
    return config
"""


def run(root, out, *more):
    main_curate([f"--config={root}/recipe.py:{root}", f"--out={out}", *more])
    return json.loads((out / "curation.json").read_text())


def digest(directory):
    """Returns a hash of every file below a directory, curation.json's command left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "curation.json":
                content = json.dumps(json.loads(content) | {"command": ""}).encode()
            found[str(path.relative_to(directory))] = hashlib.sha256(content).hexdigest()
    return found


def records(out, kind, split):
    return [record for path in curated_files(out, kind, split) for record in read_shard(path)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_raw(root)
    (root / "recipe.py").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def curated(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "out"
    return out, run(raw, out)


def everything(out):
    return records(out, "documents", "train") + records(out, "documents", "heldout")


def test_the_sizes_of_a_product_become_one_document(curated):
    out, report = curated
    bags = [d for d in everything(out) if "Tauern" in d["text"] and d["source"] == "catalogue"]
    german = [d for d in bags if d["language"] == "de"]
    assert len(german) == 1
    assert "1.263,46 €" in german[0]["text"] and "S, L" in german[0]["text"]
    assert "Leicht & stabil." in german[0]["text"]
    assert report["counts"]["catalogue"]["de"]["variant: joined with another"] == 1
    assert report["counts"]["shop"]["en"]["variant: joined with another"] == 1


def test_copies_and_translations_share_a_product_and_a_split(curated):
    out, _ = curated
    by_split = {}
    for split in ("train", "heldout"):
        for document in records(out, "documents", split):
            if "Tauern" in document["text"] or "bequem" in document["text"]:
                by_split.setdefault(split, []).append(document)
    (documents,) = by_split.values()  # all in one split: two languages, two shops, one review
    assert len(documents) == 4
    assert {d["product_id"] for d in documents} == {"shop/bag-1"}


def test_no_product_is_in_both_splits(curated):
    out, _ = curated
    train, heldout = (
        {d["product_id"] for d in records(out, "documents", split)} - {None}
        for split in ("train", "heldout")
    )
    assert train and heldout and not train & heldout


def test_listings_are_those_of_the_documents(curated):
    out, _ = curated
    for split in ("train", "heldout"):
        listings = records(out, "listings", split)
        documents = [
            d for d in records(out, "documents", split) if d["source"] in ("catalogue", "shop")
        ]
        assert len(listings) == len(documents)
        assert {r["product_id"] for r in listings} == {d["product_id"] for d in documents}


def test_bad_records_are_named_and_counted(curated):
    out, report = curated
    letters = sorted((out / "dead_letters").glob("*.jsonl.gz"))
    bad = [record for path in letters for record in read_shard(path)]
    assert sum(c.get("bad", 0) for s in report["counts"].values() for c in s.values()) == len(bad)
    reasons = " | ".join(record["reason"] for record in bad)
    assert len([r for r in bad if "catalogue" in r["place"]]) == 3
    assert "UTF-8" in reasons and "title" in reasons


def test_other_languages_and_fillers_are_left_out(curated):
    out, report = curated
    texts = "\n".join(d["text"] for d in everything(out))
    assert "fiets" not in texts and "лиса" not in texts and "Click here" not in texts
    assert report["counts"]["catalogue"]["nl"]["language"] == 1
    web = report["counts"]["web"]
    assert (
        sum(
            n for counts in web.values() for what, n in counts.items() if what.startswith("quality")
        )
        >= 1
    )


def test_duplicates_and_evaluation_text_are_left_out(curated):
    out, report = curated
    pages = [d["text"] for d in everything(out) if d["source"] == "web"]
    assert pages.count(PROSE["en"]) == 1
    assert sum(text.startswith(PROSE["de"][:60]) for text in pages) == 1
    assert not any(QUESTION in text for text in pages)
    counts = report["counts"]["web"]
    assert counts["en"]["duplicate: exact"] == 1 and counts["de"]["duplicate: near"] == 1
    assert counts["fr"]["evaluation: questions"] == 1
    (match,) = report["evaluation_text"]
    assert match["item_id"] == "q1" and match["source"] == "web"


def test_private_data_is_masked(curated):
    out, report = curated
    texts = "\n".join(d["text"] for d in everything(out))
    assert "marie.durand" not in texts and "42 68 53" not in texts
    assert (
        sum(n for what, n in report["counts"]["catalogue"]["fr"].items() if "changed" in what) >= 2
    )


def test_unusual_text_comes_through(curated):
    out, _ = curated
    texts = [d["text"] for d in everything(out)]
    assert any("🎉👩‍👩‍👧 שלום" in text for text in texts)
    assert any(SPECIAL in text for text in texts)  # text, for the tokenizer makes no token of it
    assert any(len(text) > 1_000_000 for text in texts)
    assert any("12.990 CLP" in text for text in texts)


def test_every_record_is_accounted_for(curated):
    _, report = curated
    for name, by_language in report["counts"].items():
        read = sum(counts.get("read", 0) for counts in by_language.values())
        ends = sum(
            number
            for counts in by_language.values()
            for what, number in counts.items()
            if what != "read" and "bytes" not in what and not what.startswith("changed")
        )
        assert read == ends, name


def test_workers_do_not_change_a_byte(raw, curated, tmp_path):
    out, _ = curated
    run(raw, tmp_path / "two", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
    assert digest(tmp_path / "two") == digest(out)


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_writes_the_same_bytes(raw, curated, tmp_path):
    out, _ = curated
    target = tmp_path / "again"
    command = [sys.executable, "-m", "ellama_jax.cli", "curate", f"--config={raw}/recipe.py:{raw}",
               f"--out={target}"]  # fmt: skip
    started = time.monotonic()
    subprocess.run([*command[:-1], f"--out={tmp_path / 'whole'}"], check=True, capture_output=True)
    whole_secs = time.monotonic() - started
    shutil.rmtree(tmp_path / "whole")

    rng = random.Random(0)
    killed = 0
    for attempt in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        # Most of the time goes by before the first record: every other kill waits for the first
        # file, so that it falls among the last ones.
        while attempt % 2 and process.poll() is None and not list(tmp_path.glob(".*.partial/*/*")):
            time.sleep(0.002)
        wait = whole_secs * rng.uniform(0, 0.1 if attempt % 2 else 0.8)
        begun = time.monotonic() if attempt % 2 else started
        while process.poll() is None and time.monotonic() - begun < wait:
            time.sleep(0.002)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
        assert not target.exists() or (target / "curation.json").is_file()
        if killed == 6:
            break
        if target.exists():  # it was faster than the kill
            assert digest(target) == digest(out)
            shutil.rmtree(target)
    assert killed == 6
    if not target.exists():
        subprocess.run(command, check=True, capture_output=True)
    assert digest(target) == digest(out)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs real records in {SHARED_DATA}")
def test_real_records_of_seven_schemas_are_read_without_code(tmp_path, capsys):
    (tmp_path / "recipe.py").write_text(SHARED_RECIPE)
    out = tmp_path / "out"
    main_curate([f"--config={tmp_path}/recipe.py:{SHARED_DATA}", f"--out={out}"])
    counts = json.loads((out / "curation.json").read_text())["counts"]
    read = {name: sum(c.get("read", 0) for c in by.values()) for name, by in counts.items()}
    assert read == {"ae_110k": 1568, "oa_mine": 1452, "dummyjson": 194, "magento": 2038,
                    "magento_reviews": 500, "mgsm": 1000}  # fmt: skip
    assert not any(counts[name].get("", {}).get("bad") for name in counts)
    # 147 parents and 1,891 variants: a document a parent.
    assert counts["magento"]["en"]["variant: joined with another"] > 1800
    # The Spanish questions are an evaluation set here: none of them may be trained on.
    kept = [d for d in records(out, "documents", "train") if d["source"] == "mgsm"]
    assert {d["language"] for d in kept} == {"en", "de", "fr"}
    said = capsys.readouterr().out
    assert "magento: 2,038 records" in said
