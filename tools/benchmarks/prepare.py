"""Measures `ellama prepare` against the bare tokenizer on the same real text and cores.

What: seconds and ratio of both, taken in turns; padding; peak memory of all processes at 1x and 4x
the text, which should be equal. The text is that of the Debian reference and the product taxonomy
(ellama_jax/corpus/sources.py), repeated with a number in front so that no two documents are equal.
Command: python tools/benchmarks/prepare.py --tokenizer DIR --workdir /tmp/bench --mebibytes 24
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ellama_jax.corpus.sources import gather_sources, load_debian_documents, load_taxonomy_documents

ELLAMA = [sys.executable, "-m", "ellama_jax.cli"]
BARE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
tokenizer.encode_special_tokens = True
texts = [json.loads(line)["text"] for line in open(sys.argv[2], encoding="utf-8")]
started, tokens = time.perf_counter(), 0
for first in range(0, len(texts), 4096):
    batch = tokenizer.encode_batch_fast(texts[first : first + 4096], add_special_tokens=False)
    tokens += sum(len(encoding) for encoding in batch)
print(time.perf_counter() - started, tokens)
"""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="of the sources (default: in --workdir)")
    parser.add_argument("--mebibytes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--larger", type=int, default=4, help="factor of the memory's test, or 0")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True)
    try:
        run(args)
    finally:
        shutil.rmtree(args.workdir)


def run(args) -> None:
    cache = args.cache or args.workdir / "cache"
    gather_sources(cache, names=("debian-reference", "shopify-taxonomy"))
    documents = load_debian_documents(cache) + load_taxonomy_documents(cache)
    text = args.workdir / "text.jsonl"
    size = write_text(text, documents, args.mebibytes)
    ratios = []
    for _ in range(args.rounds):
        bare, tokens = map(
            float, output([sys.executable, "-c", BARE, args.tokenizer, text]).split()
        )
        secs, peak = prepare(args, text)
        ratios.append(bare / secs)
        print(
            f"{size / 1e6:.1f} MB, {tokens / 1e6:.2f}M tokens: bare {bare:.1f} s "
            f"({size / bare / 1e6:.2f} MB/s), prepare {secs:.1f} s ({size / secs / 1e6:.2f} MB/s), "
            f"ratio {ratios[-1]:.2f}, peak {peak:.0f} MiB",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")
    report_padding(args.workdir / "windows")
    if args.larger:
        size = write_text(text, documents, args.mebibytes * args.larger)
        secs, peak = prepare(args, text)
        print(f"{size / 1e6:.1f} MB: prepare {secs:.1f} s, peak {peak:.0f} MiB")
        report_padding(args.workdir / "windows")


def write_text(path: Path, documents: list[dict], mebibytes: int) -> int:
    """Writes the documents again and again; returns the bytes of their text."""
    size = repeat = 0
    with path.open("w", encoding="utf-8") as file:
        while size < mebibytes * 2**20:
            for document in documents:
                text = f"{repeat} {document['text']}"
                size += len(text.encode())
                line = {**document, "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            repeat += 1
    return size


def prepare(args, text: Path) -> tuple[float, float]:
    """Returns (seconds with start and end, peak MiB of all processes) of the verb."""
    out = args.workdir / "windows"
    shutil.rmtree(out, ignore_errors=True)
    command = [*ELLAMA, "prepare", "--documents", text, "--tokenizer", args.tokenizer, "--out", out]
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, family_memory(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"prepare: must succeed, got exit status {process.returncode}.")
    return time.perf_counter() - started, peak / 2**20


def family_memory(pid: int) -> int:
    """Returns the memory of a process and its children that is theirs alone, in bytes."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        pids = [pid, *map(int, children.read_text().split())]
        lines = [Path(f"/proc/{p}/smaps_rollup").read_text().splitlines() for p in pids]
    except OSError:
        return 0
    kib = [int(line.split()[1]) for part in lines for line in part if line.startswith("Pss:")]
    return sum(kib) * 1024


def output(command) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def report_padding(windows: Path) -> None:
    rows = [json.loads(path.read_text()) for path in sorted(windows.glob("*/manifest.json"))]
    padding = sum(row["num_padding"] for row in rows)
    places = sum(row["num_windows"] * row["window_length"] for row in rows)
    worst = max(rows, key=lambda row: row["num_padding"] / row["num_tokens"])
    share = worst["num_padding"] / (worst["num_windows"] * worst["window_length"])
    print(
        f"padding {padding / places:.2%} over {len(rows)} sets, at most {share:.2%} "
        f"({worst['name']}, {worst['num_windows']} windows)"
    )


if __name__ == "__main__":
    main()
