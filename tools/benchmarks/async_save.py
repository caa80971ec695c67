"""What an asynchronous checkpoint costs a training step, against a blocking one of the same bytes.

What: seconds of a step alone, of a step in which a save begins, of the steps while it is written in
the background, and of a blocking save; then of restoring it. The state is that of AdamW with random
weights of the preset; a step is a cheap update of all of it, jitted and donated as in training. On a
CPU the arrays are handed over as they are, not copied off a device: the first step after the call
then waits to overwrite what is still being read, and the writing takes cores from the steps.
Command: python tools/benchmarks/async_save.py --preset smollm2-135m
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from ellama_jax.model.llama import abstract_params, init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.weights.checkpoint import (
    open_manager,
    restore_training,
    save_training,
    tree_bytes,
)
from ellama_jax.weights.layout import make_meta


def make_tokenizer(directory: Path) -> Path:
    """Writes a small tokenizer, which every checkpoint root has beside its weights."""
    bpe = train_byte_bpe(["a red lamp for a green table"], 300)
    specials = map(bpe.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    save_tokenizer(directory, bpe, *specials)
    return directory


def make_steps(preset):
    """Returns the state, a function that updates it once and waits, and its abstract form."""
    optimizer = optax.adamw(1e-6)
    params = init_params(preset, 0)
    state = (params, jax.jit(optimizer.init)(params))

    def update(state):
        params, opt_state = state
        gradients = jax.tree.map(lambda x: x * jnp.float32(1e-3), params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(update, donate_argnums=0)
    shapes = abstract_params(preset)
    return state, jitted, (shapes, jax.eval_shape(optimizer.init, shapes))


def clock(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Bench:
    """A state that can be stepped and saved under one clock."""

    def __init__(self, preset, root: Path, tokenizer_dir: Path):
        self.state, self._update, self.abstract = make_steps(preset)
        self.step_number, self._root, self._tokenizer_dir = 0, root, tokenizer_dir
        fingerprint = load_tokenizer(tokenizer_dir).fingerprint
        self._meta = make_meta(preset, tokenizer_fingerprint=fingerprint, provenance={})
        self.step()  # compiles

    def open(self, asynchronous: bool):
        return open_manager(
            self._root, save_every_steps=1, keep_last=1, tokenizer_dir=self._tokenizer_dir,
            asynchronous=asynchronous,
        )  # fmt: skip

    def step(self) -> None:
        self.state = jax.block_until_ready(self._update(self.state))
        self.step_number += 1

    def save(self, manager) -> None:
        assert save_training(manager, self.step_number, *self.state, {}, self._meta)


def measure_async(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Returns seconds by what was timed, of saves in the background."""
    names = "step alone", "save call", "step after the call", "step while written", "whole save"
    secs = {name: [] for name in names}
    with bench.open(asynchronous=True) as manager:
        for _ in range(rounds):
            secs["step alone"] += [clock(bench.step) for _ in range(5)]
            began = time.perf_counter()
            secs["save call"].append(clock(lambda: bench.save(manager)))
            secs["step after the call"].append(clock(bench.step))
            while manager.is_saving_in_progress():
                secs["step while written"].append(clock(bench.step))
            manager.wait_until_finished()
            secs["whole save"].append(time.perf_counter() - began)
            bench.step()
    return secs


def measure_blocking(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Returns seconds of saves that return when all is on disk, and of restoring the last."""
    secs = {"blocking save": [], "restore": []}
    with bench.open(asynchronous=False) as manager:
        for _ in range(rounds):
            bench.step()
            secs["blocking save"].append(clock(lambda: bench.save(manager)))
        for _ in range(rounds):
            secs["restore"].append(
                clock(
                    lambda: jax.block_until_ready(restore_training(manager, *bench.abstract)[1:3])
                )
            )
    return secs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="where to write; by default a temporary place")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        root, tokenizer_dir = Path(directory) / "run", Path(directory) / "tokenizer"
        bench = Bench(get_preset(args.preset), root, make_tokenizer(tokenizer_dir))
        size = tree_bytes(bench.state)
        secs = measure_async(bench, args.rounds) | measure_blocking(bench, args.rounds)
    print(f"python tools/benchmarks/async_save.py --preset {args.preset} --rounds {args.rounds}")
    print(f"state {size / 2**30:.2f} GiB on {jax.default_backend()}; seconds, median (min to max)")
    for name, values in secs.items():
        median = statistics.median(values)
        rate = f"  {size / median / 1e9:5.2f} GB/s" if name in ("blocking save", "restore") else ""
        shown = f"{median:8.3f}  ({min(values):.3f} to {max(values):.3f}, n {len(values)})"
        print(f"{name:<20}{shown}{rate}")


if __name__ == "__main__":
    main()
