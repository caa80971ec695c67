"""The loader's tokens a second, against other readers of the same windows, and what opening costs.

What: window sets of random ids are written, one with 30 % padding, then read through
`Loader.iterate` with 1, 2 and 4 threads; best of several runs, for other work on the machine only
slows. Beside it: the windows alone, the same as NumPy maps them into memory (no checksum is looked at)
and as ArrayRecord, Grain's own mix with `to_features` and `batch`, and the price of the batch
fingerprint. Then the shares of tokens that came out against those asked for. `--bucket SECS` reads from
the tests' fake bucket, whose every answer takes so long (needs tools/bucket-tests.txt). `--open WINDOWS`
opens instead a set of so many windows made of holes, on a disk and, with `--bucket`, in the bucket.
Command: python tools/benchmarks/loader.py; --bucket 0.05; --open 122070312 --bucket 0.05
"""

import argparse
import collections
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import grain
import numpy as np

from ellama_jax.config import DataConfig, configs_dir, load_config
from ellama_jax.core.paths import as_path, copy_file, copy_tree, read_range
from ellama_jax.tokens.loader import Loader, batch_fingerprint, open_sources
from ellama_jax.tokens.windows import (
    MANIFEST_FILE,
    Manifest,
    WindowSet,
    finish_set,
    make_manifest,
    record_type,
    shard_name,
    to_features,
    write_shard,
    write_windows,
)

TOKENIZER = SimpleNamespace(bos_id=128000, eos_id=128001, vocab_size=128256, fingerprint="f" * 64)
SHARD_WINDOWS = 4096
# Set -> (mean tokens of a document as a part of the window, share of the tokens). Documents of 0.7 of
# a window cannot share one: 30 % padding, as badly packed text would have.
SETS = {
    ("ecommerce", "en"): (0.70, 0.3),
    ("ecommerce", "de"): (0.02, 0.2),
    ("general", "en"): (0.30, 0.4),
    ("general", "de"): (0.05, 0.1),
}


def write_sets(directory: Path, window_length: int, num_windows: int) -> None:
    """Writes four sets: one of documents that fill 70 % of a window, three that pack well."""
    rng = np.random.default_rng(0)
    for (domain, language), (frac, _) in SETS.items():
        mean, tokens, documents = frac * window_length, 0, []
        while tokens < num_windows * window_length * (0.7 if frac > 0.5 else 1):
            length = int(mean if frac > 0.5 else 2 + rng.exponential(mean))
            documents.append(rng.integers(0, 128000, length, dtype=np.uint32))
            tokens += length + 2
        write_windows(
            directory / f"{domain}-{language}", documents, tokenizer=TOKENIZER,
            window_length=window_length, domain=domain, language=language, seed=0, sources=[],
            command="tools/benchmarks/loader.py",
        )  # fmt: skip


def make_config(
    windows_dir: str, seq_len: int, rows: int, threads: int, sets: Mapping = SETS
) -> DataConfig:
    """Returns base.py's data section with the shares of `sets`."""
    base, _ = load_config([f"--config={configs_dir() / 'base.py'}"], "benchmark")
    parts = collections.defaultdict(dict)
    for (domain, language), (_, share) in sets.items():
        parts[domain][language] = share
    sums = {domain: sum(shares.values()) for domain, shares in parts.items()}
    shares = {
        f"{domain}_shares": {name: share / sums[domain] for name, share in shares.items()}
        for domain, shares in parts.items()
    }
    return dataclasses.replace(
        base.data, windows_dir=str(windows_dir), replay_frac=sums["general"], seq_len=seq_len,
        global_batch_size=rows, num_read_threads=threads, **shares,
    )  # fmt: skip


def read_bare(windows: Sequence[Sequence], steps: int, rows: int) -> Iterator[None]:
    """Reads as many windows as the loader does, in random order, and nothing else."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        for _ in range(rows):
            chosen = windows[rng.integers(len(windows))]
            chosen[int(rng.integers(len(chosen)))]
        yield


class Mapped:
    """A set as NumPy alone maps it into memory."""

    def __init__(self, windows: WindowSet):
        names = [shard["name"] for shard in windows.manifest.shards]
        self._shards = [np.load(windows.path / name, mmap_mode="r")["tokens"] for name in names]
        self._places = [(s, i) for s, shard in enumerate(self._shards) for i in range(len(shard))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:
        shard, place = self._places[index]
        return self._shards[shard][place].copy()


def as_array_record(windows: WindowSet, directory: Path) -> Sequence:
    """Writes a set's windows as this package wrote them before; returns their reader."""
    from array_record.python import array_record_data_source, array_record_module

    path = str(directory / f"{windows.path.name}.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for window in windows:
        writer.write(window.tobytes())
    writer.close()
    return array_record_data_source.ArrayRecordDataSource([path])


def read_grain(loader: Loader, steps: int, rows: int, threads: int) -> Iterable:
    """Mixes, shuffles and batches as a user of Grain would without us."""
    parts = []
    for number, source in enumerate(loader.sources):
        ends = {"eos_id": TOKENIZER.eos_id, "bos_id": TOKENIZER.bos_id}
        rows_of = grain.MapDataset.source(source.windows).shuffle(seed=number).repeat()
        parts.append(rows_of.map(lambda tokens, ends=ends: to_features(tokens, **ends)))
    mixed = grain.MapDataset.mix(parts, [source.token_share for source in loader.sources])
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads * rows)
    return mixed[: steps * rows].to_iter_dataset(options).batch(rows)


def best_rates(make: Callable[[], Iterable], tokens: int, runs: int) -> tuple[float, float]:
    """Returns millions of tokens a second and a CPU second, each of the best of several runs.

    The second says what the work costs, on a busy machine too.
    """
    secs, cpu_secs = [], []
    for _ in range(runs):
        start, cpu_start = time.perf_counter(), time.process_time()
        collections.deque(make(), maxlen=0)
        secs.append(time.perf_counter() - start)
        cpu_secs.append(time.process_time() - cpu_start)
    return tokens / min(secs) / 1e6, tokens / min(cpu_secs) / 1e6


def _print_rates(label: str, rates: tuple[float, float], bare: float | None = None) -> None:
    ratio = f", {rates[1] / bare:.2f} of bare" if bare else ""
    print(f"{label:<32}{rates[0]:7.2f} M tokens/s {rates[1]:7.2f} M tokens/CPU s{ratio}")


def measure(directory: str, args: argparse.Namespace) -> None:
    """Prints the rates, and the shares that came out."""
    steps, rows, tokens = args.steps, args.rows, args.steps * args.rows * args.seq_len
    loader = Loader(*_open(directory, args, 1))
    windows = [source.windows for source in loader.sources]
    bare = best_rates(lambda: read_bare(windows, steps, rows), tokens, args.runs)
    _print_rates("bare windows, 1 thread", bare)
    with tempfile.TemporaryDirectory() as scratch:
        others = {"bare NumPy map, 1 thread": list(map(Mapped, windows)) if not args.bucket else ()}
        records = [as_array_record(w, Path(scratch)) for w in windows] if not args.bucket else ()
        others["bare ArrayRecord, 1 thread"] = records
        for label, sets in others.items():
            if sets:
                rates = best_rates(lambda s=sets: read_bare(s, steps, rows), tokens, args.runs)
                _print_rates(label, rates, bare[1])
    for threads in (1, 2, 4):
        loader = Loader(*_open(directory, args, threads))
        readers = {"Loader.iterate": lambda loader=loader: loader.iterate(0, steps)}
        if not args.bucket:
            readers["plain Grain"] = lambda n=threads, o=loader: read_grain(o, steps, rows, n)
        for name, make in readers.items():
            label = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            _print_rates(label, best_rates(make, tokens, args.runs), bare[1])
    batch = loader.batch(0)
    rates = best_rates(lambda: [batch_fingerprint(batch)], rows * args.seq_len, 3 * args.runs)
    _print_rates("fingerprint of a batch", rates)
    report_shares(loader, steps)


def _open(directory: str, args: argparse.Namespace, threads: int) -> tuple:
    config = make_config(directory, args.seq_len, args.rows, threads)
    return open_sources(config, None), config


def report_shares(loader: Loader, steps: int) -> None:
    """Prints the share of tokens of each source, asked for and consumed."""
    consumed = collections.Counter()
    for batch in loader.iterate(0, steps):
        consumed.update(loader.count_tokens(batch))
    total = sum(consumed.values())
    print(f"shares of {total:,} tokens after {steps} steps:")
    for source, weight in zip(loader.sources, loader.row_weights, strict=True):
        manifest = source.windows.manifest
        padding = manifest.num_padding / (manifest.num_windows * manifest.window_length)
        print(
            f"  {source.name:<14} asked {source.token_share:7.3%}, consumed "
            f"{consumed[source.name] / total:7.3%}, of rows {weight:7.3%}, padding {padding:.1%}"
        )


def write_holes(directory: Path, num_windows: int, window_length: int) -> Manifest:
    """Writes a set whose shards, of 4,096 windows as those of `ellama prepare`, are holes."""
    directory.mkdir(parents=True)
    shard = write_shard(directory / "shard", [np.zeros(window_length, np.uint32)])
    head = (directory / "shard").read_bytes()[: -record_type(window_length).itemsize]
    (directory / "shard").unlink()
    count, shards = -(-num_windows // SHARD_WINDOWS), []
    for number in range(count):
        records = min(SHARD_WINDOWS, num_windows - number * SHARD_WINDOWS)
        size = len(head) + records * record_type(window_length).itemsize
        shards.append(
            shard | {"name": shard_name(number, count), "records": records, "bytes": size}
        )
        with (directory / shards[-1]["name"]).open("wb") as file:
            # NumPy leaves room behind the first axis for it to grow.
            old, new = b"(1,), }", f"({records},), }}".encode()
            file.write(head.replace(old.ljust(len(new)), new))
            file.truncate(size)
    manifest = make_manifest(
        TOKENIZER, shards, window_length=window_length, num_tokens=num_windows * window_length,
        domain="general", language="en", source=None, num_documents=num_windows, seed=0, sources=[],
        num_split_documents=0, command="tools/benchmarks/loader.py",
    )  # fmt: skip
    finish_set(directory, manifest)
    return manifest


def measure_opening(windows_dir: str, args: argparse.Namespace) -> None:
    """Prints what a mixture of one set costs to open, in a process that has only that to do."""
    code = (
        "import re, sys, time\n"
        "from loader import Loader, make_config, open_sources\n"
        "peak = lambda: int(re.search('VmHWM:[^0-9]*([0-9]+)', open('/proc/self/status').read())[1]) / 1024\n"
        "config = make_config(sys.argv[1], 8192, 8, 4, {('general', 'en'): (1, 1.0)})\n"
        "before, began = peak(), time.perf_counter()\n"
        "loader = Loader(open_sources(config, None), config)\n"
        "loader.check_repetition(1000), loader.locate_rows(999)\n"
        "secs, windows = time.perf_counter() - began, loader.sources[0].windows\n"
        "print(f'{sys.argv[1]}: {len(windows):,} windows in {len(windows.manifest.shards):,} shards: '\n"
        "      f'opened in {secs:.2f} s, peak memory {before:.0f} MiB before, {peak():.0f} after')"
    )
    for _ in range(args.runs):
        command = [sys.executable, "-c", code, windows_dir]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=16, help="rows a step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--windows", type=int, default=500, help="a set")
    parser.add_argument("--runs", type=int, default=5, help="the fastest counts")
    parser.add_argument("--bucket", type=float, metavar="SECS", help="read from a fake bucket")
    parser.add_argument("--open", type=int, metavar="WINDOWS", help="only open a set of so many")
    args = parser.parse_args()
    sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "tests"))
    import fake_bucket

    with tempfile.TemporaryDirectory() as directory:
        if args.open:
            manifest = write_holes(Path(directory) / "general-en", args.open, args.seq_len)
            measure_opening(directory, args)
        else:
            write_sets(Path(directory), args.seq_len, args.windows)
        if args.bucket is None:
            return None if args.open else measure(directory, args)
        with fake_bucket.fake_bucket():
            place = as_path(f"gs://{fake_bucket.BUCKET}/windows")
            if args.open:
                local, name = Path(directory) / "general-en", "general-en"
                copy_file(local / MANIFEST_FILE, place / name / MANIFEST_FILE)
                head = read_range(local / manifest.shards[0]["name"], 0, 192)
                sizes = {shard["name"]: shard["bytes"] for shard in manifest.shards}
                fake_bucket.pretend(place / name, sizes, head)
            else:
                copy_tree(Path(directory), place)
            fake_bucket.inject({"match": "", "share": 1.0, "kind": "slow", "secs": args.bucket})
            (measure_opening if args.open else measure)(str(place), args)


if __name__ == "__main__":
    main()
