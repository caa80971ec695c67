"""A process that does nothing but save: every state is a pure function of its step.

What: the other half of test_crash.py, which starts it, kills it while it saves, and starts the next.
Command: python tests/weights/crash_writer.py ROOT TOKENIZER_DIR; begins at a line on stdin, and
restores the newest step, checks it, and saves the steps after it until it is killed.
"""

import dataclasses
import sys

import jax
import numpy as np
import optax

from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights.checkpoint import open_manager, restore_training, save_training
from ellama_jax.weights.layout import make_meta

# A wide embedding, for saves that last some tenths of a second: 26 MiB of parameters, 78 of state.
CONFIG = dataclasses.replace(get_preset("tiny"), name="wide", vocab_size=100_000)


def abstract_state():
    """Returns the shapes of parameters and AdamW's state."""
    params = abstract_params(CONFIG)
    return params, jax.eval_shape(optax.adamw(1e-3).init, params)


def state_at(step: int):
    """Returns parameters and optimizer state of a step: other bits in every element and step."""
    leaves, structure = jax.tree.flatten(abstract_state())
    made = []
    for number, leaf in enumerate(leaves):
        bits = np.arange(np.prod(leaf.shape, dtype=int), dtype=np.uint32) * np.uint32(2654435761)
        bits = bits + np.uint32(step * 40503 + number)
        # Floats in [1, 2): the mantissa is what varies. Counters are taken as they are.
        made.append(((bits >> 9) | np.uint32(0x3F800000)).view(leaf.dtype).reshape(leaf.shape))
    return jax.tree.unflatten(structure, made)


def same_bits(got, wanted) -> bool:
    """Says whether two states are equal to the bit."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def open_run(root, tokenizer_dir):
    """Opens the root as a training run does."""
    return open_manager(root, tokenizer_dir=tokenizer_dir, save_every_steps=1, keep_last=2)


def main(root: str, tokenizer_dir: str) -> None:
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    meta = make_meta(CONFIG, tokenizer_fingerprint=fingerprint, provenance={"kind": "train"})
    print("ready", flush=True)
    sys.stdin.readline()
    with open_run(root, tokenizer_dir) as manager:
        step = 0
        if manager.latest_step() is not None:
            step, *state, data, _ = restore_training(manager, *abstract_state())
            assert same_bits(state, state_at(step)) and data == {"step": step}
        print(f"from {step}", flush=True)
        while True:
            step += 1
            params, opt_state = jax.tree.map(jax.numpy.asarray, state_at(step))
            save_training(manager, step, params, opt_state, {"step": step}, meta)


if __name__ == "__main__":
    main(*sys.argv[1:])
