"""What the phases after tokenising cost `ellama prepare` as its input grows, and at 1T tokens.

What: runs of random documents (600 tokens on average) at several sizes, merged and packed as the
verb does it, in this process on one core: seconds and files read for a million tokens, which must
not grow with the size. A piece that is read at once is as large as at 1T tokens, 65,536 of them: a
run of 2**24 tokens is cut in 256. Then the same rates for 1T tokens on a cluster.
Command: python tools/benchmarks/prepare_scale.py --workdir W --text-mb-per-sec 1.7
"""

import argparse
import os
import shutil
import time
from pathlib import Path

import numpy as np

from ellama_jax.core.progress import duration
from ellama_jax.tokens import prepare, shuffle
from ellama_jax.tokens.shuffle import FAN_IN, Unsorted, write_run
from ellama_jax.tokens.tokenising import PART_BYTES, RUN_TOKENS, Settings
from ellama_jax.tokens.workdir import WorkDir

RUN_OF_BENCHMARK, MEAN_TOKENS = 2**16, 600
BYTES_A_TOKEN = 4.5


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="made, and removed at the end")
    parser.add_argument("--runs", type=int, nargs="+", default=[600, 1200, 2400])
    parser.add_argument(
        "--text-mb-per-sec", type=float, required=True,
        help="of tokenising on one core: prepare.py's rate divided by its cores")  # fmt: skip
    parser.add_argument("--cores", type=int, default=32 * 32)
    args = parser.parse_args()
    reads = count_reads()
    rates = {}
    for number in args.runs:
        args.workdir.mkdir(parents=True)
        try:
            rates = measure(args.workdir, number, reads)
        finally:
            shutil.rmtree(args.workdir)
    extrapolate(rates, args)


def count_reads() -> list[int]:
    """Counts ranges that are read, and the sizes of what is pickled for a worker."""
    reads, read = [0], shuffle.read_range

    def counting(*range_of_file):
        reads[0] += 1
        return read(*range_of_file)

    shuffle.read_range = counting
    return reads


def measure(workdir: Path, number: int, reads: list[int]) -> dict[str, float]:
    """Prints and returns the million tokens a second of each phase."""
    rng = np.random.default_rng(0)
    with WorkDir(workdir, "0" * 16) as work:
        runs, columns, tokens = work.directory("runs-0"), [], 0
        for run in range(number):
            lengths = rng.geometric(1 / MEAN_TOKENS, RUN_OF_BENCHMARK // MEAN_TOKENS) + 2
            unsorted = Unsorted()
            keys = rng.integers(0, 2**64, len(lengths), dtype=np.uint64)
            content = rng.integers(0, 128_000, lengths.sum()).astype(np.uint32)
            unsorted.add(keys, lengths, content)
            written = write_run(runs / f"{run:06d}-0.run", {"general-en": unsorted})
            columns.append([[Path(written.path).name, written.sections]])
            tokens += unsorted.num_tokens
        sets = {"general-en": {"by_source": {"web": {"tokens": tokens}}}}
        work.directory("sets").joinpath("general-en").mkdir()
        settings = Settings("", "", 8192, 0, False)
        secs, counts, started = {}, {}, time.perf_counter()
        index = prepare._merge_all(map, work, columns)
        secs["merge"], counts["merge"] = time.perf_counter() - started, reads[0]
        chunks = prepare._pack_all(map, work, sets, index, settings)
        secs["pack"] = time.perf_counter() - started - secs["merge"]
        counts["pack"] = reads[0] - counts["merge"]
        reads[0] = 0
        assert sum(chunk["shard"]["records"] for chunk in chunks["general-en"]) * 8192 >= tokens
    millions = tokens / 1e6
    print(f"{number:,} runs, {millions:.0f}M tokens: " + "; ".join(
        f"{phase} {secs[phase]:.1f} s, {1000 * secs[phase] / millions:.1f} ms and "
        f"{counts[phase] / millions:.1f} reads a million tokens" for phase in secs), flush=True)  # fmt: skip
    return {phase: millions / secs[phase] for phase in secs}


def extrapolate(rates: dict[str, float], args) -> None:
    """Prints what 1T tokens take, phase by phase."""
    tokens = 1e12
    text = tokens * BYTES_A_TOKEN
    runs = max(text / PART_BYTES[1], tokens / RUN_TOKENS)
    columns, chunks = -(-runs // FAN_IN), tokens / prepare.CHUNK_TOKENS
    print(f"1T tokens: {text / 1e12:.1f} TB of text, {runs:,.0f} runs, {columns:,.0f} columns, "
          f"{chunks:,.0f} chunks; reads: {2 * chunks * FAN_IN:,.0f} to merge, "
          f"{2 * chunks * columns:,.0f} to pack")  # fmt: skip
    total = 0.0
    phases = {"tokenise": text / (args.text_mb_per_sec * 1e6)}
    phases |= {phase: tokens / (rate * 1e6) for phase, rate in rates.items()}
    for phase, secs in phases.items():
        total += secs / args.cores
        print(f"{phase}: {secs / 3600:,.0f} core-hours, {duration(secs / args.cores)} on "
              f"{args.cores} cores")  # fmt: skip
    print(f"all: {duration(total)} on {args.cores} cores; this machine has {os.cpu_count()}")


if __name__ == "__main__":
    main()
