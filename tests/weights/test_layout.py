"""What is found in a root, what a checkpoint says of itself, and where none may be written."""

import errno
import json
import shutil

import pytest

from ellama_jax.core import paths
from ellama_jax.model.presets import get_preset
from ellama_jax.weights import layout
from ellama_jax.weights.checkpoint import restore_leaf, write_checkpoint
from ellama_jax.weights.layout import (
    META_KEYS,
    check_destination,
    find_checkpoint,
    latest_step,
    make_meta,
    read_json_item,
    set_aside_incomplete,
    write_json_item,
)

PARTS = ("_CHECKPOINT_METADATA", "params/_METADATA", "meta/metadata")


def make_step(directory, without=None):
    """Makes the files by which a step is known to be complete, but one."""
    for part in PARTS:
        (directory / part).parent.mkdir(parents=True, exist_ok=True)
        if part != without:
            (directory / part).write_text('{"commit_timestamp_nsecs": 1}')
    return directory


# --- finding -------------------------------------------------------------------------------------


def test_the_newest_complete_step_counts_by_number_not_by_name(tmp_path):
    for step in ("9", "100", "20"):
        make_step(tmp_path / step)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "notes 7").mkdir()
    assert latest_step(tmp_path) == 100


@pytest.mark.parametrize("part", PARTS)
def test_a_step_without_one_of_its_parts_is_passed_over(tmp_path, part, caplog):
    make_step(tmp_path / "1")
    make_step(tmp_path / "2", without=part)
    assert latest_step(tmp_path) == 1
    assert f"{tmp_path / '2'}: ignored, it is incomplete" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"commit_timestamp_nsecs": null}'])
def test_a_step_that_was_not_committed_is_passed_over(tmp_path, content):
    (make_step(tmp_path / "1") / "_CHECKPOINT_METADATA").write_text(content)
    assert latest_step(tmp_path) is None


def test_a_root_that_does_not_exist_has_no_step(tmp_path):
    assert latest_step(tmp_path / "nowhere") is None


def test_incomplete_steps_are_set_aside_and_the_rest_of_a_save_is_removed(tmp_path, caplog):
    make_step(tmp_path / "1")
    make_step(tmp_path / "2", without="meta/metadata")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    set_aside_incomplete(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1", "2.incomplete"]
    assert (tmp_path / "2.incomplete" / "params" / "_METADATA").is_file()
    assert "incomplete, set aside as 2.incomplete" in caplog.text
    assert "3.orbax-checkpoint-tmp: incomplete (being written, or interrupted)" in caplog.text


def rewrite_model(root, **changes):
    meta = read_json_item(root / "0", "meta")
    write_json_item(root / "0", "meta", {**meta, "model": {**meta["model"], **changes}})


def test_unreadable_meta_is_named(tiny_root):
    (tiny_root / "0" / "meta" / "metadata").write_text('{"model": ')
    with pytest.raises(ValueError, match="meta must be readable"):
        find_checkpoint(tiny_root)


def test_meta_without_its_keys_is_named(tiny_root):
    write_json_item(tiny_root / "0", "meta", {"model": {}, "commit": None})
    with pytest.raises(ValueError, match="meta must hold tokenizer_fingerprint, versions, prov"):
        find_checkpoint(tiny_root)


def test_meta_of_no_model_is_named(tiny_root):
    rewrite_model(tiny_root, colour="blue")
    with pytest.raises(ValueError, match=r"meta must describe a model;.*unknown \['colour'\]"):
        find_checkpoint(tiny_root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "must be a directory, got nothing"),
        (lambda p: p.write_text("x"), "got a file; `ellama import` makes"),
        (lambda p: p.mkdir(), "must hold a complete step, got none"),
        (lambda p: (p / "5").mkdir(parents=True), r"got only incomplete ones \(5\)"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, make, message):
    make(tmp_path / "c")
    with pytest.raises(ValueError, match=message):
        find_checkpoint(tmp_path / "c")


def test_a_hugging_face_directory_is_recognised(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="got a Hugging Face directory.*`ellama import`"):
        find_checkpoint(tmp_path)


# --- meta ----------------------------------------------------------------------------------------


def make_tiny_meta(**more):
    provenance = {"kind": "train", "sources": []}
    return make_meta(get_preset("tiny"), tokenizer_fingerprint="f", provenance=provenance, **more)


def test_meta_says_what_the_checkpoint_is_and_what_made_it():
    meta = make_tiny_meta(seed=7)
    assert set(meta) == {*META_KEYS, "seed"}
    assert meta["model"]["num_kv_heads"] == 2 and meta["verification"] is None
    assert set(meta["versions"]) >= {"jax", "flax", "orbax-checkpoint"}
    assert json.loads(json.dumps(meta)) == meta


# --- what may not be written ---------------------------------------------------------------------


def test_an_existing_checkpoint_is_not_replaced_unasked(tiny_root, tiny, make_checkpoint):
    with pytest.raises(ValueError, match="must not exist yet; pass --overwrite"):
        make_checkpoint(tiny_root, tiny, seed=1)
    params = make_checkpoint(tiny_root, tiny, seed=1, overwrite=True)
    written = restore_leaf(tiny_root, "final_norm/scale")
    assert written.tolist() == params["final_norm"]["scale"].tolist()
    assert sorted(p.name for p in tiny_root.parent.iterdir()) == ["root"]


def test_a_directory_that_is_no_checkpoint_is_never_replaced(tmp_path, tiny, make_checkpoint):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="only a checkpoint root is replaced"):
        make_checkpoint(tmp_path / "home", tiny, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path, tiny, make_checkpoint, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=300 * 2**10)
    monkeypatch.setattr(layout.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="c: the disk must have 17 MiB free, got 0 MiB"):
        make_checkpoint(tmp_path / "deep" / "c", tiny)
    assert list(tmp_path.iterdir()) == []


def test_a_place_under_a_file_is_refused(tmp_path, tiny, make_checkpoint):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be in a writable directory, but .*file is not one"):
        make_checkpoint(tmp_path / "file" / "c", tiny)


def test_a_read_only_place_is_refused(tmp_path, tiny, make_checkpoint, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(layout.tempfile, "TemporaryFile", refuse)
    message = "must be in a writable directory, but .* is not one \\(Read-only file system\\)"
    with pytest.raises(ValueError, match=message):
        make_checkpoint(tmp_path / "c", tiny)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path, tiny, make_checkpoint, monkeypatch):
    def fail(src, dst):
        raise OSError("input/output error")

    monkeypatch.setattr("ellama_jax.weights.checkpoint.replace_directory", fail)
    with pytest.raises(OSError, match="input/output error"):
        make_checkpoint(tmp_path / "c", tiny)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model_are_refused(
    tmp_path, tiny, untied, draw_params, tokenizer_dir
):
    meta = make_tiny_meta()
    with pytest.raises(ValueError, match=r"1 leaf differs: lm_head/kernel is not expected\."):
        write_checkpoint(
            tmp_path / "c",
            draw_params(untied),
            config=tiny,
            meta=meta,
            tokenizer_dir=tokenizer_dir,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_other_than_the_meta_says_is_refused(
    tmp_path, tiny, draw_params, tokenizer_dir
):
    meta = {**make_tiny_meta(), "tokenizer_fingerprint": "0" * 64}
    with pytest.raises(ValueError, match="must have the fingerprint 000000000000, got"):
        write_checkpoint(
            tmp_path / "c", draw_params(tiny), config=tiny, meta=meta, tokenizer_dir=tokenizer_dir
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["0", "0.incomplete", "5.orbax-checkpoint-tmp"])
def test_a_root_with_any_kind_of_step_may_be_replaced(tmp_path, name):
    (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / "tokenizer").mkdir()
    check_destination(tmp_path / "root", 0, overwrite=True)


def test_an_empty_directory_is_a_free_place(tmp_path):
    check_destination(tmp_path, 0, overwrite=False)


def test_the_old_root_comes_back_if_the_new_one_cannot_be_moved(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "weights").write_text("kept")
    with pytest.raises(OSError):
        paths.replace_directory(tmp_path / "nowhere", tmp_path / "old")
    assert (tmp_path / "old" / "weights").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
