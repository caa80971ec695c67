"""A path is on a disk or in a bucket, and what is neither is said in one line."""

import os
import pathlib
import subprocess
import sys

import pytest

from ellama_jax.cli import main
from ellama_jax.core import paths


def test_a_local_path_stays_pathlib(tmp_path):
    for given in ("runs/base", tmp_path):
        assert type(paths.as_path(given)) is type(pathlib.Path())
        assert paths.as_path(given) == pathlib.Path(given)


@pytest.mark.parametrize("given", ["s3://bucket/run", "file:///runs", "gs:/bucket/run"])
def test_other_urls_are_refused(given):
    with pytest.raises(ValueError, match=r"must be a local path or begin with gs://, got neither"):
        paths.as_path(given)


@pytest.mark.parametrize("given, lacks", [("gs://", "bucket"), ("gs://b", "place"), ("gs://b/", "place")])  # fmt: skip
def test_a_bucket_alone_is_no_place(given, lacks):
    with pytest.raises(ValueError, match=rf"as gs://bucket/run, got no {lacks}\."):
        paths.as_path(given)


def test_without_gcsfs_the_error_names_what_to_install(monkeypatch):
    import fsspec

    def fail(*_):
        raise ImportError("no gcsfs")

    paths._file_system.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", fail)
    with pytest.raises(ValueError, match="need gcsfs, got none; `pip install gcsfs`"):
        paths.as_path("gs://never-asked-for/run")


@pytest.mark.parametrize(
    "error, said",
    [
        (PermissionError("Forbidden: no access.\nmore"), "Forbidden: no access; are there cred"),
        (RuntimeError(), "RuntimeError; are there credentials"),
        (FileNotFoundError("b/other"), "must exist, got no such bucket"),
    ],
)
def test_a_bucket_that_cannot_be_reached_is_one_line(monkeypatch, capsys, error, said):
    class System:
        def call(self, *_, **__):
            raise error

    monkeypatch.setattr(paths, "_file_system", System)
    with pytest.raises(SystemExit):
        main(["inspect", "gs://locked/run"])
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and said in output.err and not output.out


def test_what_must_be_on_a_disk_says_so():
    with pytest.raises(
        ValueError, match=r"data\.windows_dir: must be on a local disk, got gs://b/w"
    ):
        paths.local_path("gs://b/w", "data.windows_dir")


def test_writing_whole_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    paths.write_whole(path, "one")
    monkeypatch.setattr(paths.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        paths.write_whole(path, "two")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


# --- in a bucket ---------------------------------------------------------------------------------


def test_a_place_in_a_bucket_has_the_methods_of_pathlib(bucket):
    place = paths.as_path(f"{bucket}/a/b/")
    assert (str(place), place.name, str(place.parent)) == (f"{bucket}/a/b", "b", f"{bucket}/a")
    assert not place.exists() and paths.is_remote(place) and paths.absolute(place) == place
    (place / "x.json").write_text("hello")
    assert place.is_dir() and (place / "x.json").is_file()
    assert [entry.name for entry in place.iterdir()] == ["x.json"]
    assert paths.file_bytes(place / "x.json") == 5
    assert paths.read_range(place / "x.json", 1, 3) == b"el"


def test_trees_are_copied_into_a_bucket_and_back_and_removed(bucket, tmp_path):
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "deep" / "one").write_bytes(bytes(range(256)))
    (tmp_path / "src" / "two").write_bytes(b"")
    there = paths.as_path(f"{bucket}/tree")
    paths.copy_tree(tmp_path / "src", there)
    paths.copy_tree(there, tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "one").read_bytes() == bytes(range(256))
    assert (tmp_path / "back" / "two").read_bytes() == b""
    paths.remove_tree(there)
    paths.remove_tree(there)
    assert not there.exists()


def test_what_another_writer_puts_into_a_bucket_is_seen_at_once(bucket):
    """TensorStore and other hosts write past the library that lists."""
    import tensorstore as ts

    place = paths.as_path(f"{bucket}/shared")
    (place / "first").write_text("1")
    assert [entry.name for entry in place.iterdir()] == ["first"]
    ts.KvStore.open(f"{bucket}/shared/").result().write("second", b"2").result()
    assert sorted(entry.name for entry in place.iterdir()) == ["first", "second"]
    assert (place / "second").read_bytes() == b"2"


def test_a_bucket_that_does_not_exist_is_one_line(bucket, capsys):
    with pytest.raises(SystemExit):
        main(["import", "gs://no-such-bucket/hf", f"{bucket}/base"])
    error = capsys.readouterr().err
    assert error == "ellama import: error: gs://no-such-bucket: must exist, got no such bucket.\n"


def test_what_a_killed_process_was_writing_goes_and_what_a_living_one_writes_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".out.partial-{gone.pid:09d}", f".out.partial-{os.getpid()}", ".out.partial-x",
             f".other.partial-{gone.pid}", "out"]  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    paths.remove_left_over(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
    paths.remove_left_over(tmp_path / "nowhere" / "out")
