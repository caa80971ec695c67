"""A curation whose input and output lie in a bucket is the one that it would be on a disk."""

import json

import pytest
from raw_sources import RECIPE, catalogue, write_raw
from test_curate import digest

from ellama_jax import cli
from ellama_jax.core.paths import as_path, copy_tree
from ellama_jax.corpus.curate import _check_absent, _start, main_curate
from ellama_jax.corpus.curation_output import REPORT_FILE
from ellama_jax.evaluate.scorecard import read_texts
from ellama_jax.tokens.tokenizer import save_tokenizer, train_byte_bpe


def error_of(capfd, *argv):
    """Runs a verb that must be refused; returns the last line that it said."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in argv])
    assert stop.value.code == 2
    return capfd.readouterr().err.splitlines()[-1]


def test_a_bucket_is_read_and_written_like_a_disk(bucket, tmp_path, capfd):
    raw, out = tmp_path / "raw", f"{bucket}/curated"
    write_raw(raw)
    (tmp_path / "recipe.py").write_text(RECIPE.replace("catalogue.jsonl.gz", "cat*.jsonl.gz"))
    copy_tree(raw, as_path(f"{bucket}/raw"))
    argv = [f"--config={tmp_path}/recipe.py:{bucket}/raw", f"--out={out}"]
    old = as_path(f"{out}/documents/train/old.jsonl.gz")
    old.write_text("an earlier curation's")
    assert "must be new or empty" in error_of(capfd, "curate", *argv)
    as_path(f"{out}/{REPORT_FILE}").write_text("{}")
    assert error_of(capfd, "curate", *argv).endswith("a finished curation; --overwrite it.")
    assert old.exists()

    # The same bytes as on a disk; of what was there nothing is left.
    main_curate([*argv, "--overwrite"])
    main_curate([f"--config={tmp_path}/recipe.py:{raw}", f"--out={tmp_path / 'local'}"])
    copy_tree(as_path(out), tmp_path / "copy")
    on_disk, in_bucket = digest(tmp_path / "local"), digest(tmp_path / "copy")
    assert on_disk.keys() == in_bucket.keys()
    names = [name for name in on_disk if name.startswith(("documents/", "listings/"))]
    assert len(names) > 10 and all(on_disk[name] == in_bucket[name] for name in names)
    report = json.loads(as_path(f"{out}/{REPORT_FILE}").read_text())
    assert f"{bucket}/raw/catalogue.jsonl.gz" in {file["path"] for file in report["inputs"]}

    # prepare: the directory, a glob of its files, and what was never finished.
    tokenizer = tmp_path / "tokenizer"
    trained = train_byte_bpe([str(record) for record in catalogue()[10:]], 320)
    size = trained.get_vocab_size()
    save_tokenizer(tokenizer, trained, size - 2, size - 1)
    more = ["--tokenizer", str(tokenizer), "--window-length", "64", "--workers", "1"]
    for name, documents in (("a", out), ("b", f"{out}/documents/train/*.jsonl.gz")):
        cli.main(["prepare", "--documents", documents, "--out", str(tmp_path / name), *more])
    assert digest_of_shards(tmp_path / "a") == digest_of_shards(tmp_path / "b") != {}

    # The benchmark and the held-out texts.
    cli.main(["build-benchmark", out, str(tmp_path / "benchmark"), "--items-per-task", "2"])
    assert {text["language"] for text in read_texts(out)} >= {"de"}

    as_path(f"{out}/{REPORT_FILE}").unlink()
    argv = ["prepare", "--documents", out, "--out", tmp_path / "c", *more]
    assert "curation without it was never finished" in error_of(capfd, *argv)
    assert not (tmp_path / "c").exists()


def test_a_curation_that_was_killed_may_be_begun_again(bucket):
    out = as_path(f"{bucket}/killed")
    for name in ("documents/train/a.jsonl.gz", "work/counts.jsonl.gz"):
        (out / name).write_text("half")
    with pytest.raises(ValueError, match="must be new or empty, got something that is no curation"):
        _check_absent(out, overwrite=False)
    (out / "curation.started").write_text("ellama curate")
    _check_absent(out, overwrite=False)
    _start(out, "ellama curate again")
    assert [path.name for path in out.iterdir()] == ["curation.started"]


def digest_of_shards(root):
    found = digest(root)
    return {name: found[name] for name in found if "manifest" not in name}
