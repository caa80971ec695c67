"""Import, export, save and restore against `cp` of the same bytes and transformers' load-and-save.

    python tools/benchmarks/weights.py --preset llama3.1-8b --workdir /tmp/weights

makes a random Hugging Face directory of the preset's shapes (bfloat16), runs each job in a process
of its own from a cold page cache until its bytes are on disk, and prints GB/s of weights (a gigabyte
is 10^9 bytes), the ratio to `cp` in the same run, and the peak memory of the job's process. The
export is compared with the source byte by byte. Everything made is deleted at the end.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import save_tokenizer, train_byte_bpe
from ellama_jax.weights.export import make_config, write_tensors
from ellama_jax.weights.lazy import LazyArray
from ellama_jax.weights.tensors import open_tensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ELLAMA = [sys.executable, "-m", "ellama_jax.cli"]
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
model.save_pretrained(sys.argv[2], max_shard_size="5GB")
"""
# Save and restore of what fits into memory, timed inside the process that holds it.
SAVE_RESTORE = """
import sys, time, os, jax, shutil
from ellama_jax.weights.checkpoint import find_checkpoint, restore_params, write_checkpoint
src, dst = sys.argv[1:]
info = find_checkpoint(src)
started = time.perf_counter()
params = jax.block_until_ready(restore_params(src))
restored = time.perf_counter() - started
started = time.perf_counter()
write_checkpoint(dst, params, config=info.config, meta=info.meta, tokenizer_dir=info.tokenizer_dir)
os.sync()
print("SECS", restored, time.perf_counter() - started)
"""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama3.1-8b")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", default="cp,import,export,transformers,restore+save")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True)
    try:
        run(args)
    finally:
        shutil.rmtree(args.workdir)


def run(args) -> None:
    source, base = args.workdir / "hf", args.workdir / "base"
    size = make_source(source, args.preset)
    jobs = args.jobs.split(",")
    print(f"{args.preset}: {size / 1e9:.2f} GB of bfloat16, {args.rounds} rounds", flush=True)
    results: dict[str, list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for job in jobs:
            for name, *measured in do(job, args.workdir, source, base):
                results.setdefault(name, []).append(tuple(measured))
                print(f"  {name}: {measured[0]:.1f} s, peak {measured[1]:.2f} GiB", flush=True)
    report(results, size)


def do(job: str, workdir: Path, source: Path, base: Path):
    """Yields (name, seconds, peak GiB) of one job; what it makes is deleted, but for the import."""
    out = workdir / "out"
    if job == "cp":
        yield "cp", *timed(["cp", "-r", source, out])
    elif job == "import":
        shutil.rmtree(base, ignore_errors=True)
        yield "ellama import", *timed([*ELLAMA, "import", source, base])
    elif job == "export":
        yield "ellama export", *timed([*ELLAMA, "export", base, out])
        check_same(source, out)
    elif job == "transformers":
        yield "transformers load + save", *timed([sys.executable, "-c", TRANSFORMERS, source, out])
    elif job == "restore+save":
        output, _, peak = timed_output([sys.executable, "-c", SAVE_RESTORE, base, out])
        restore, save = map(float, output.split("SECS")[1].split())
        yield "restore, all in memory", restore, peak
        yield "save, from memory", save, peak
    else:
        raise SystemExit(f"--jobs: {job} is none.")
    shutil.rmtree(out, ignore_errors=True)


def timed(command) -> tuple[float, float]:
    """Returns (seconds until all is on disk, peak GiB) of a command."""
    return timed_output(command)[1:]


def timed_output(command) -> tuple[str, float, float]:
    os.sync()
    drop_page_cache()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    peak = watch_memory(process)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command}: {errors[-2000:]}")
    os.sync()
    return output, time.perf_counter() - started, peak


def watch_memory(process) -> float:
    """Waits for a process to end; returns the peak of its resident memory in GiB."""
    # The system's own count after the end (ru_maxrss) would begin with that of this process.
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        lines = status.read_text().splitlines()
        peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), peak)
        time.sleep(0.02)
    return peak / 2**20


def drop_page_cache() -> None:
    """Lets every job read from disk; without the right to, says so once."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the page cache could not be dropped: reads may come from memory", file=sys.stderr)


def make_source(directory: Path, preset: str) -> int:
    """Writes a random Hugging Face directory of a preset's shapes; returns its bytes of weights."""
    config = get_preset(preset)
    directory.mkdir()
    # Numbers as weights have them (compressible as those are), a block of them again and again.
    block = np.random.default_rng(0).normal(0, 0.02, 2**25).astype(BFLOAT16)

    def random_leaf(path: str, shape: tuple[int, ...]) -> LazyArray:
        offset = int.from_bytes(hashlib.sha256(path.encode()).digest()[:3], "little")

        def read(box):
            sizes = [part.stop - part.start for part in box]
            first = (offset + sum(part.start * 7919 for part in box)) % block.size
            count = int(np.prod(sizes))
            return np.resize(np.roll(block, -first)[: min(count, block.size)], count).reshape(sizes)

        return LazyArray(shape, BFLOAT16, read)

    shapes = {path: leaf.shape for path, leaf in flatten_paths(abstract_params(config)).items()}
    tensors = open_tensors(config, {path: random_leaf(path, s) for path, s in shapes.items()})
    write_tensors(directory, tensors)
    tokenizer = train_byte_bpe(["a blue shoe, a red lamp"], 300)
    bos, eos = map(tokenizer.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    save_tokenizer(directory / "tokenizer", tokenizer, bos, eos)
    for file in (directory / "tokenizer").iterdir():
        file.rename(directory / file.name)
    (directory / "tokenizer").rmdir()
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": None}
    (directory / "config.json").write_text(json.dumps(make_config(config, BFLOAT16, ids)))
    return sum(tensor.nbytes for tensor in tensors.values())


def check_same(source: Path, export: Path) -> None:
    """Refuses an export that is not the source, byte by byte."""
    for file in sorted(source.glob("model*")):
        subprocess.run(["cmp", file, export / file.name], check=True)


def report(results: dict[str, list[tuple[float, float]]], size: int) -> None:
    copied = statistics.median(secs for secs, _ in results["cp"]) if "cp" in results else None
    print(f"{'':26}  GB/s  of cp's  peak GiB  seconds")
    for name, rows in results.items():
        secs = [row[0] for row in rows]
        middle = statistics.median(secs)
        ratio = f"{copied / middle:7.2f}" if copied else "      -"
        peak = max(row[1] for row in rows)
        print(f"{name:26} {size / middle / 1e9:5.2f} {ratio} {peak:9.2f}  "
              f"{', '.join(f'{s:.1f}' for s in secs)}")  # fmt: skip


if __name__ == "__main__":
    main()
