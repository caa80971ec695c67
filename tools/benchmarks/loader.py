"""The loader's tokens a second, against bare ArrayRecord reading and a plain Grain mixture.

What: window sets of random ids are written, one with 30 % padding, then read through
`Loader.iterate` with 1, 2 and 4 threads; best of several runs, for other work on the machine only
slows. Beside it: the records alone, Grain's own mix with `to_features` and `batch`, and the price of
the batch fingerprint. Then the shares of tokens that came out against those asked for.
Command: python tools/benchmarks/loader.py
"""

import argparse
import collections
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import grain
import numpy as np

from ellama_jax.config import DataConfig, configs_dir, load_config
from ellama_jax.tokens.loader import Loader, batch_fingerprint, open_sources
from ellama_jax.tokens.windows import WindowSet, to_features, write_windows

TOKENIZER = SimpleNamespace(bos_id=128000, eos_id=128001, vocab_size=128256, fingerprint="f" * 64)
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


def make_config(windows_dir: Path, seq_len: int, rows: int, threads: int) -> DataConfig:
    """Returns base.py's data section with the shares of `SETS`."""
    base, _ = load_config([f"--config={configs_dir() / 'base.py'}"], "benchmark")
    parts = collections.defaultdict(dict)
    for (domain, language), (_, share) in SETS.items():
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


def read_bare(windows: list[WindowSet], steps: int, rows: int) -> Iterator[None]:
    """Reads as many records as the loader does, in random order, and nothing else."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        for _ in range(rows):
            chosen = windows[rng.integers(len(windows))]
            chosen[int(rng.integers(len(chosen)))]
        yield


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


def measure(directory: Path, args: argparse.Namespace) -> None:
    """Prints the rates, and the shares that came out."""
    steps, rows, tokens = args.steps, args.rows, args.steps * args.rows * args.seq_len
    loader = Loader(*_open(directory, args, 1))
    windows = [source.windows for source in loader.sources]
    bare = best_rates(lambda: read_bare(windows, steps, rows), tokens, args.runs)
    _print_rates("bare ArrayRecord, 1 thread", bare)
    for threads in (1, 2, 4):
        loader = Loader(*_open(directory, args, threads))
        for name, make in (
            ("Loader.iterate", lambda loader=loader: loader.iterate(0, steps)),
            ("plain Grain", lambda n=threads, o=loader: read_grain(o, steps, rows, n)),
        ):
            label = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            _print_rates(label, best_rates(make, tokens, args.runs), bare[1])
    batch = loader.batch(0)
    rates = best_rates(lambda: [batch_fingerprint(batch)], rows * args.seq_len, 3 * args.runs)
    _print_rates("fingerprint of a batch", rates)
    report_shares(loader, steps)


def _open(directory: Path, args: argparse.Namespace, threads: int) -> tuple:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=16, help="rows a step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--windows", type=int, default=500, help="a set")
    parser.add_argument("--runs", type=int, default=5, help="the fastest counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_sets(Path(directory), args.seq_len, args.windows)
        measure(Path(directory), args)


if __name__ == "__main__":
    main()
