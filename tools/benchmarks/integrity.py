"""What checksums cost: a checkpoint restored with and without comparing them, and by Orbax alone.

    python tools/benchmarks/integrity.py --preset llama3.2-1b --workdir /tmp/integrity

writes a checkpoint of random bfloat16 weights in the preset's shapes, restores it in turns by each
way (the files in the page cache, which is where checksums cost most), and prints the median seconds
of a restore and their ratios. What was made is deleted at the end.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.weights import stored
from ellama_jax.weights.checkpoint import make_meta, restore_params, write_checkpoint
from ellama_jax.weights.lazy import LazyArray


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama3.2-1b")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    root = args.workdir / "checkpoint"
    size, written = write(root, args.workdir / "tokenizer", get_preset(args.preset))
    print(f"{size / 1e9:.2f} GB, written in {written:.1f} s")
    ways = {"checked": checked, "unchecked": unchecked, "orbax": by_orbax}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds + 1):
        for name, restore in ways.items():
            started = time.perf_counter()
            jax.block_until_ready(restore(root))
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name, secs in medians.items():
        ratio = secs / medians["unchecked"]
        print(f"{name:<10} {secs:6.2f} s  {size / 1e9 / secs:5.2f} GB/s  {ratio:.3f} x unchecked")
    shutil.rmtree(args.workdir)


def write(root: Path, tokenizer_dir: Path, config) -> tuple[int, float]:
    """Writes random weights; returns their bytes and the seconds it took."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(ml_dtypes.bfloat16)

    def draw(box) -> np.ndarray:
        shape = [part.stop - part.start for part in box]
        return rng.integers(0, 2**14, shape, np.uint16).view(dtype)

    shapes = flatten_paths(abstract_params(config))
    leaves = {name: LazyArray(leaf.shape, dtype, draw) for name, leaf in shapes.items()}
    tokenizer = train_byte_bpe(["a b c"], 300)
    save_tokenizer(tokenizer_dir, tokenizer, None, tokenizer.token_to_id(END_OF_TEXT))
    meta = make_meta(
        config,
        tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint,
        provenance={"kind": "import", "sources": []},
    )
    started = time.perf_counter()
    write_checkpoint(
        root, unflatten_paths(leaves), config=config, meta=meta, tokenizer_dir=tokenizer_dir
    )
    return sum(leaf.nbytes for leaf in leaves.values()), time.perf_counter() - started


def checked(root: Path):
    """Restores as every verb does."""
    return restore_params(root)


def unchecked(root: Path):
    """The same without comparing."""
    with mock.patch.object(stored, "_is_whole", lambda piece, expected: True):
        return restore_params(root)


def by_orbax(root: Path):
    """Restores the same item with Orbax's handler."""
    return ocp.PyTreeCheckpointHandler().restore((root / "0" / "params").resolve())


if __name__ == "__main__":
    main()
