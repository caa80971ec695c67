"""Merging against copying, and against mergekit: speed, memory, and the same numbers.

    python tools/benchmarks/merge.py --preset llama3.1-8b --workdir /tmp/merge
    python tools/benchmarks/merge.py --preset smollm2-135m --workdir /tmp/merge \\
        --mergekit /tmp/mergekit/bin/mergekit-yaml

makes random Hugging Face directories of the preset's shapes (bfloat16; the adapted ones are the base
with changes), runs each job in a process of its own from a cold page cache until its bytes are on
disk, copying and merging in turn, and prints seconds, the ratio to copying and the peak memory of
the process. Copying is reading one input and writing it by the same code as a merge is written.

With --mergekit the same merges are made by mergekit (0.1, in an environment of its own; it is no
dependency) from Hugging Face directories to Hugging Face directories, in the same run, in float32
rounded at the end, and the results are compared element by element. dare is compared at
a density of 1 alone: each has masks of its own.
Everything made is deleted at the end.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from weights import watch_memory

from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import save_tokenizer, train_byte_bpe
from ellama_jax.weights.export import make_config, write_tensors
from ellama_jax.weights.huggingface import open_safetensors
from ellama_jax.weights.lazy import LazyArray, split
from ellama_jax.weights.tensors import open_tensors

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
ELLAMA = [sys.executable, "-m", "ellama_jax.cli"]
# What a merge does without what makes it a merge: one input through the same reader and writer.
COPY = """
import sys
from pathlib import Path
from ellama_jax.weights.checkpoint import CheckpointInfo, make_meta, write_checkpoint
from ellama_jax.weights.export import write_directory
from ellama_jax.merge.inputs import open_models
src, dst, format = sys.argv[1:]
with open_models({"base": src}) as (model,):
    meta = make_meta(model.config, tokenizer_fingerprint=model.tokenizer.fingerprint,
                     provenance={"kind": "import"})
    if format == "orbax":
        write_checkpoint(dst, model.leaves, config=model.config, meta=meta,
                         tokenizer_dir=model.tokenizer_dir)
    else:
        dst = Path(dst)
        info = CheckpointInfo(dst, 0, dst, meta, model.config, model.tokenizer_dir)
        write_directory(dst, model.tensors(), model.tokenizer, lambda: info)
"""
# method -> (options of ours, those of each model at mergekit, those of the merge at mergekit).
METHODS = {
    "linear": (["--alpha", "0.3"], None, {}),
    "slerp": (["--alpha", "0.3"], None, {"t": 0.3}),
    "task_arithmetic": (["--weight", "0.6", "--weight", "0.5"], {}, {}),
    "ties": (["--weight", "0.6", "--weight", "0.5", "--density", "0.2"], {"density": 0.2}, {}),
    "dare": (["--weight", "0.6", "--weight", "0.5", "--density", "1"], {"density": 1.0}, {}),
    "dare_ties": (["--weight", "0.6", "--weight", "0.5", "--density", "1"], {"density": 1.0}, {}),
    "model_stock": ([], {}, {}),
}
THEIR_NAMES = {"dare": "dare_linear"}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama3.1-8b")
    parser.add_argument("--layers", type=int, help="fewer than the preset's, for a small disk")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", default="linear", help="comma-separated, or all")
    parser.add_argument("--format", default="huggingface", choices=("orbax", "huggingface"))
    parser.add_argument("--inputs", default="huggingface", choices=("orbax", "huggingface"))
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of the inputs")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml, or the Python beside it")
    args = parser.parse_args()
    args.methods = list(METHODS) if args.methods == "all" else args.methods.split(",")
    args.workdir.mkdir(parents=True)
    try:
        run(args)
    finally:
        shutil.rmtree(args.workdir)


def run(args) -> None:
    count = 1 + max(2 if METHODS[name][1] is not None else 1 for name in args.methods)
    sources = [args.workdir / name for name in ("base", "one", "two")[:count]]
    config = get_preset(args.preset)
    if args.layers:
        config = dataclasses.replace(config, name="cut", num_layers=args.layers)
    for number, source in enumerate(sources):
        size = make_source(source, config, number, DTYPES[args.dtype])
        if args.inputs == "orbax":
            to_orbax(source)
    print(f"{args.preset}, {config.num_layers} layers: {size / 1e9:.2f} GB of {args.dtype} an input, "
          f"{args.inputs} to {args.format}", flush=True)  # fmt: skip
    out, results = args.workdir / "out", {}
    for _ in range(args.rounds):
        for name, command in jobs(args, sources, out):
            secs, peak = timed(command)
            results.setdefault(name, []).append((secs, peak))
            print(f"  {name}: {secs:.1f} s, peak {peak:.2f} GiB", flush=True)
            if name.startswith("mergekit"):
                compare(out.with_name("ours"), out)
            keep = args.mergekit and not name.startswith(("mergekit", "copy"))
            shutil.rmtree(out.with_name("ours"), ignore_errors=True)
            out.rename(out.with_name("ours")) if keep else shutil.rmtree(out)
    report(results, size)


def jobs(args, sources, out):
    """Yields (name, command): copying and each merge, and mergekit's of the same after it."""
    copied = "copy"
    for method in args.methods:
        yield copied, [sys.executable, "-c", COPY, sources[0], out, args.format]
        ours, each, whole = METHODS[method]
        models = sources[1:] if each is not None else sources[1:2]
        named = ["--adapted", models[0]] if each is None else [
            part for model in models for part in ("--model", model)
        ]  # fmt: skip
        yield method, [*ELLAMA, "merge", "--method", method, "--base", sources[0], *named, *ours,
                       "--format", args.format, "--out", out]  # fmt: skip
        if args.mergekit:
            path = args.workdir / f"{method}.yaml"
            path.write_text(
                json.dumps(their_config(method, sources[0], models, each, whole, args.dtype))
            )
            yield f"mergekit {method}", [*mergekit(args.mergekit), path, out]


def their_config(method, base, models, each, whole, dtype) -> dict:
    """Returns mergekit's configuration of a merge; JSON is YAML too."""
    weights = (0.6, 0.5)
    listed = [{"model": str(m), "parameters": {"weight": w, **(each or {})}}
              for m, w in zip(models, weights, strict=False)]  # fmt: skip
    if method == "linear":
        listed = [{"model": str(m), "parameters": {"weight": w}}
                  for m, w in ((base, 0.7), (models[0], 0.3))]  # fmt: skip
    if method in ("slerp", "model_stock"):
        listed = [{"model": str(m)} for m in (base, *models)]
    named = {} if method == "linear" else {"base_model": str(base)}
    if each is not None and method.startswith("dare"):
        whole = {**whole, "rescale": True}
    return {"merge_method": THEIR_NAMES.get(method, method), "models": listed, **named,
            "parameters": whole, "dtype": "float32", "out_dtype": dtype}  # fmt: skip


def mergekit(path: Path) -> list[str]:
    """Returns the command that runs mergekit-yaml."""
    program = path if path.name == "mergekit-yaml" else path.with_name("mergekit-yaml")
    return [str(program), "--no-write-model-card"]


def timed(command) -> tuple[float, float]:
    """Returns (seconds until all is on disk, peak GiB) of a command, from a cold page cache."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the page cache could not be dropped: reads may come from memory", file=sys.stderr)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=said, stderr=said, env=environment
        )
        peak = watch_memory(process)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{command}: {said.read()[-2000:]}")
    os.sync()
    return time.perf_counter() - started, peak


def make_source(directory: Path, config, number: int, dtype=DTYPES["bfloat16"]) -> int:
    """Writes a random model; those after the first are the first with changes. Returns its bytes."""
    directory.mkdir()
    # One block again and again; few tensors are larger, so that few numbers meet themselves.
    block = np.random.default_rng(0).normal(0, 0.02, 2**25).astype(np.float32)
    if number:
        block = block.astype(dtype).astype(np.float32)
        block += np.random.default_rng(number).normal(0, 0.003, block.size).astype(np.float32)
    block = block.astype(dtype)

    def random_leaf(shape: tuple[int, ...], salt: int) -> LazyArray:
        def read(box):
            sizes = [part.stop - part.start for part in box]
            first = (salt + sum(part.start * 7919 for part in box)) % block.size
            return np.resize(np.roll(block, -first), int(np.prod(sizes))).reshape(sizes)

        return LazyArray(shape, dtype, read)

    shapes = {path: leaf.shape for path, leaf in flatten_paths(abstract_params(config)).items()}
    leaves = {p: random_leaf(s, 104729 * i) for i, (p, s) in enumerate(shapes.items())}
    tensors = open_tensors(config, leaves)
    write_tensors(directory, tensors)
    tokenizer = train_byte_bpe(["a blue shoe, a red lamp"], 300)
    bos, eos = map(tokenizer.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    save_tokenizer(directory / "tokenizer", tokenizer, bos, eos)
    for file in (directory / "tokenizer").iterdir():
        file.rename(directory / file.name)
    (directory / "tokenizer").rmdir()
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": None}
    (directory / "config.json").write_text(json.dumps(make_config(config, dtype, ids)))
    return sum(tensor.nbytes for tensor in tensors.values())


def to_orbax(source: Path) -> None:
    """Replaces a Hugging Face directory by the checkpoint that is imported from it."""
    foreign = source.with_name("foreign")
    source.rename(foreign)
    subprocess.run([*ELLAMA, "import", foreign, source], check=True, capture_output=True)
    shutil.rmtree(foreign)


def compare(ours: Path, theirs: Path) -> None:
    """Prints how many elements of two results differ, and by how much against the weights' size."""
    a, b = open_safetensors(ours), open_safetensors(theirs)
    if missing := sorted(a.keys() - b.keys()):
        raise SystemExit(f"mergekit's result lacks {missing[:3]}")
    differ = total = 0
    furthest = squares = 0.0
    for name, tensor in a.items():
        for box in split(tensor.shape, tensor.dtype.itemsize):
            x, y = (side.read(box).astype(np.float32) for side in (tensor, b[name]))
            gap = np.abs(x - y)
            differ, total = differ + int(np.count_nonzero(gap)), total + gap.size
            furthest = max(furthest, float(gap.max(initial=0)))
            squares += float(np.square(y, dtype=np.float64).sum())
    size = (squares / total) ** 0.5
    print(f"    {differ:,} of {total:,} elements differ ({differ / total:.2e}), by at most "
          f"{furthest:.2e}; a weight is {size:.2e}", flush=True)  # fmt: skip


def report(results: dict[str, list[tuple[float, float]]], size: int) -> None:
    copied = statistics.median(secs for secs, _ in results["copy"])
    print(f"{'':26}  GB/s  of copy  peak GiB  seconds")
    for name, rows in results.items():
        secs = [row[0] for row in rows]
        middle = statistics.median(secs)
        peak = max(row[1] for row in rows)
        against = ""
        if f"mergekit {name}" in results:
            theirs = statistics.median(row[0] for row in results[f"mergekit {name}"])
            against = f"  {theirs / middle:.2f} times as fast as mergekit"
        print(f"{name:26} {size / middle / 1e9:5.2f} {copied / middle:8.2f} {peak:9.2f}  "
              f"{', '.join(f'{s:.1f}' for s in secs)}{against}")  # fmt: skip


if __name__ == "__main__":
    main()
