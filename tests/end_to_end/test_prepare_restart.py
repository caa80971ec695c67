"""`ellama prepare` killed at any moment and started again ends with the bytes of a run in peace."""

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
import time

import numpy as np
import prepare_slowly
import pytest
from verb_driver import Driver

from ellama_jax import cli
from ellama_jax.core import paths
from ellama_jax.core.paths import as_path, copy_tree
from ellama_jax.experiments.demo import write_jsonl
from ellama_jax.tokens import prepare, tokenising
from ellama_jax.tokens.tokenizer import save_tokenizer, train_byte_bpe
from ellama_jax.tokens.windows import WindowSet, read_manifest

KILLS = {1: 16, 2: 8}  # by the number of workers
WORDS = [
    "lamp",
    "lampe",
    "jacke",
    "veste",
    "giacca",
    "zapato",
    "rot",
    "blue",
    "grün",
    "été",
    "città",
    "12,50",
    "€",
    "🎿",
]


def make_documents(count, seed):
    chance = random.Random(seed)
    for number in range(count):
        length = chance.choice([3, 8, 20, 60, 400])
        yield {
            "text": f"{number} " + " ".join(chance.choices(WORDS, k=length)),
            "domain": chance.choice(["ecommerce", "general"]),
            "language": chance.choice(["en", "de"]),
            "source": chance.choice(["shop", "web"]),
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("restart")
    trained = train_byte_bpe([" ".join(WORDS)], 300)
    save_tokenizer(root / "tokenizer", trained, 298, 299)
    for name, count in (("a", 120), ("b", 60), ("c", 3)):
        write_jsonl(root / f"{name}.jsonl", list(make_documents(count, name)))
    return root


def argv_of(place, out, *more):
    files = [str(place / f"{name}.jsonl") for name in "abc"]
    options = ["--tokenizer", str(place / "tokenizer"), "--window-length", "64", "--out", str(out)]
    return ["--documents", *files, *options, *map(str, more)]


def content(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture
def small_steps(monkeypatch):
    """Lets this process work in as many steps as the driver does."""
    for module in (prepare, tokenising):
        monkeypatch.setattr(module, "PART_BYTES", (prepare_slowly.PART_BYTES,) * 2)
    for name in ("CHUNK_TOKENS", "FAN_IN"):
        monkeypatch.setattr(prepare, name, getattr(prepare_slowly, name))


def few_steps(monkeypatch):
    monkeypatch.setattr(tokenising, "PART_BYTES", (10_000, 10_000))
    monkeypatch.setattr(prepare, "CHUNK_TOKENS", 4000)
    monkeypatch.setattr(prepare, "FAN_IN", 3)


def slowly(argv, **options):
    """Returns a process that prepares in many small steps."""
    return Driver("prepare_slowly", "main", argv, **options)


def phase_of(out):
    """Says how far a killed run came: the names of what its work directory holds."""
    works = list(out.glob(".prepare-*")) if out.exists() else []
    if not works:
        return "outside"
    if (works[0] / "complete").exists():
        return "moving"
    for phase, name in (("packing", "chunks"), ("merging", "merged-1")):
        if (works[0] / name).exists() and any((works[0] / name).iterdir()):
            return phase
    return "tokenising"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_changes_no_byte(place, tmp_path, small_steps, workers):
    """Every run is killed at a random moment of its work, until one is quick enough to end.

    Each run that ends must have left the bytes of one that nobody disturbed, and no traces.
    """
    reference, out = tmp_path / "reference", tmp_path / "out"
    argv = argv_of(place, out, "--workers", workers)
    driver = slowly(argv)
    started = time.monotonic()
    driver.begin()
    driver.succeed()
    work_secs = time.monotonic() - started
    shutil.move(out, reference)
    wanted = content(reference)
    assert len(wanted) > 20

    chance, phases, ended = random.Random(workers), [], 0
    waiting = slowly(argv)
    while len(phases) < KILLS[workers] or ended == 0:
        driver, waiting = waiting, slowly(argv)
        driver.begin()
        # Mostly soon, for many kills; sometimes late enough to come to the end.
        limit = chance.uniform(0, 0.5 if len(phases) < KILLS[workers] else 30) * work_secs
        try:
            driver.process.wait(limit)
        except subprocess.TimeoutExpired:
            driver.process.kill()
            phases.append(phase_of(out))
        _, errors = driver.end()
        assert driver.process.returncode in (0, -9), errors
        if driver.process.returncode == 0:
            assert content(out) == wanted
            shutil.rmtree(out)
            ended += 1
    waiting.process.kill()
    waiting.end()
    print(f"{len(phases)} kills, {ended} ends: {sorted(phases)}")
    assert workers > 1 or {"tokenising", "merging", "packing"} & set(phases)


class Killed(BaseException):
    pass


def test_a_stop_before_any_single_rename_changes_no_byte(place, tmp_path, monkeypatch):
    """As if killed before the 1st, 2nd, ... rename of a run, and then started again."""
    few_steps(monkeypatch)
    out, rename = tmp_path / "out", os.replace
    argv = argv_of(place, out, "--overwrite", "--workers", 1)
    prepare.main_prepare(argv)
    wanted = content(out)
    shutil.rmtree(out)
    # In place of older sets, of which none may be mixed in.
    older = tmp_path / "older"
    prepare.main_prepare(argv_of(place, older, "--seed", 9, "--workers", 1))
    for stop_at in range(200):
        shutil.copytree(older, out)
        done = []

        def stop(*paths, stop_at=stop_at, done=done, **options):
            if len(done) == stop_at:
                raise Killed
            rename(*paths, **options)
            done.append(paths)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "replace", stop)
            prepare.main_prepare(argv)
            break
        prepare.main_prepare(argv)
        assert content(out) == wanted, f"stopped after {done[-1:]}"
        shutil.rmtree(out)
    assert 20 < stop_at < 199


def test_workers_and_order_of_files_and_places_change_no_window(place, tmp_path, small_steps):
    digests = []
    (tmp_path / "elsewhere").mkdir()
    for name in "abc":
        shutil.copy(place / f"{name}.jsonl", tmp_path / "elsewhere" / f"{name}.jsonl")
    for number, (root, order, workers) in enumerate(
        [(place, "abc", 1), (place, "cab", 2), (tmp_path / "elsewhere", "bca", 1)]
    ):
        prepare.prepare(
            documents=[root / f"{name}.jsonl" for name in order],
            tokenizer_dir=place / "tokenizer", window_length=64, out=tmp_path / str(number),
            seed=0, workers=workers, command="same",
        )  # fmt: skip
        digests.append(content(tmp_path / str(number)))
    assert digests[0] == digests[1] == digests[2]


def test_parts_of_another_size_change_no_window(place, tmp_path, monkeypatch):
    arrays = []
    for size in (700, 10**6):
        monkeypatch.setattr(tokenising, "PART_BYTES", (size, size))
        out = tmp_path / str(size)
        prepare.main_prepare(argv_of(place, out, "--workers", 1))
        windows = WindowSet(out / "general-de")
        arrays.append(np.stack([windows[i] for i in range(len(windows))]))
    np.testing.assert_array_equal(*arrays)


def interrupt(monkeypatch, place, out, after):
    """Lets a run stop in its first phase; returns the name of its work directory."""
    write, calls = tokenising.write_run, []

    def stop(path, sets):
        calls.append(path)
        if len(calls) > after:
            raise Killed
        return write(path, sets)

    with monkeypatch.context() as patch:
        patch.setattr(tokenising, "write_run", stop)
        with pytest.raises(Killed):
            prepare.main_prepare(argv_of(place, out, "--workers", 1))
    (work,) = out.glob(".prepare-*")
    return work


def test_what_is_finished_is_not_done_again(place, tmp_path, small_steps, monkeypatch):
    work = interrupt(monkeypatch, place, tmp_path / "out", after=10)
    finished = {path.stem for path in (work / "parts").iterdir() if path.name[0] != "."}
    assert len(finished) > 5
    began = []
    take = tokenising._Tokeniser.__init__

    def note(self, settings, prefix):
        began.append(prefix.rpartition("/")[2])
        take(self, settings, prefix)

    monkeypatch.setattr(tokenising._Tokeniser, "__init__", note)
    prepare.main_prepare(argv_of(place, tmp_path / "out", "--workers", 1))
    assert began and not finished & set(began)


@pytest.mark.parametrize("change", ["seed", "input"])
def test_other_arguments_or_input_start_over_and_say_so(
    place, tmp_path, small_steps, monkeypatch, capsys, change
):
    inputs = tmp_path / "inputs"
    shutil.copytree(place, inputs)
    work = interrupt(monkeypatch, inputs, tmp_path / "out", after=10)
    more = ["--seed", 5] if change == "seed" else []
    if change == "input":
        lines = (inputs / "b.jsonl").read_text().splitlines()
        (inputs / "b.jsonl").write_text("\n".join(lines[1:]) + "\n")
    prepare.main_prepare(argv_of(inputs, tmp_path / "out", *more))
    assert f"{work}: removed, it was left by an interrupted run" in capsys.readouterr().err
    prepare.main_prepare(argv_of(inputs, tmp_path / "fresh", *more))
    for path in (tmp_path / "fresh").iterdir():
        found = read_manifest(tmp_path / "out" / path.name)
        assert found.content_sha256 == read_manifest(path).content_sha256
    assert not list((tmp_path / "out").glob(".*"))


def test_a_finished_run_started_again_is_finished_at_once(place, tmp_path, capsys):
    argv = argv_of(place, tmp_path / "out")
    prepare.main_prepare(argv)
    first, before = capsys.readouterr().out, content(tmp_path / "out")
    prepare.main_prepare(argv)
    assert capsys.readouterr().out == first
    assert content(tmp_path / "out") == before


def test_two_runs_of_the_same_arguments_at_a_time_are_refused(place, tmp_path, monkeypatch):
    def second(*_):
        with pytest.raises(OSError, match="must be used by one run of these arguments at a time"):
            prepare.main_prepare(argv_of(place, tmp_path / "out"))
        raise Killed

    monkeypatch.setattr(tokenising, "write_run", second)
    with pytest.raises(Killed):
        prepare.main_prepare(argv_of(place, tmp_path / "out"))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    place, tmp_path, small_steps, monkeypatch, capsys
):
    write, calls = tokenising.write_run, []

    def full(path, sets):
        calls.append(path)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, sets)

    argv = argv_of(place, tmp_path / "out", "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(tokenising, "write_run", full)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["prepare", *argv])
    assert stopped.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert line == (
        f"ellama prepare: error: --out {tmp_path / 'out'}: must be on a disk with room, got no "
        "space left on device; make room and start again, what is done is kept."
    )
    cli.main(["prepare", *argv])
    prepare.main_prepare(argv_of(place, tmp_path / "fresh", "--workers", 1))
    fresh = read_manifest(tmp_path / "fresh" / "general-en")
    assert read_manifest(tmp_path / "out" / "general-en").content_sha256 == fresh.content_sha256


@pytest.mark.parametrize("limit", [200, 2000])
def test_writes_that_the_system_refuses_leave_what_can_be_gone_on_with(place, tmp_path, limit):
    """Real failing writes: no file may grow beyond `limit` bytes."""

    def forbid():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    failing = slowly(argv_of(place, out, "--workers", 1), preexec_fn=forbid)
    failing.begin()
    assert failing.process.wait(60) != 0
    failing.end()
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    for target in (out, tmp_path / "fresh"):
        driver = slowly(argv_of(place, target, "--workers", 1))
        driver.begin()
        driver.succeed()
    for path in (tmp_path / "fresh").iterdir():
        fresh = read_manifest(path)
        assert read_manifest(out / path.name).content_sha256 == fresh.content_sha256


def test_a_bucket_holds_what_a_disk_would_also_after_stops(place, tmp_path, monkeypatch, bucket):
    """Stopped at one write into the bucket after another, over older sets of the same names."""
    few_steps(monkeypatch)
    out = as_path(f"{bucket}/windows")
    prepare.main_prepare(argv_of(place, tmp_path / "out", "--workers", 1))
    prepare.main_prepare(argv_of(place, out, "--seed", 9, "--workers", 1))
    argv = argv_of(place, out, "--workers", 1, "--overwrite")
    bucket_files, done = paths._file_system(), []
    write = bucket_files.pipe_file
    for stop_at in (0, 5, 10, 20, 40, 60, 80, 10_000):

        def stop(*args, stop_at=stop_at, **options):
            if len(done) >= stop_at:
                raise Killed
            done.append(args[0])
            return write(*args, **options)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(bucket_files, "pipe_file", stop)
            prepare.main_prepare(argv)
            break
        assert any(path.name.startswith(".prepare-") for path in out.iterdir()) or not stop_at
    assert stop_at == 10_000
    copy_tree(out, tmp_path / "copy")
    found, wanted = content(tmp_path / "copy"), content(tmp_path / "out")
    assert found.keys() == wanted.keys()
    assert all(found[name] == wanted[name] for name in wanted if name.endswith(".npy"))
    # A finished run, started again, writes nothing.
    with monkeypatch.context() as patch:
        patch.setattr(bucket_files, "pipe_file", stop)
        prepare.main_prepare(argv[:-1])
