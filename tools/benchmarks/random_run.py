"""A training run of random weights on random packed rows, for benchmarks that need neither.

Owns the configuration (configs/base.py with a few values changed), the rows and the first state. The
step itself is the one that `ellama train` runs: `ellama_jax.train.program.make_program`.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ellama_jax.config import RunConfig, configs_dir, load_config
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.features import to_features
from ellama_jax.train.optimizer import init_opt_state
from ellama_jax.train.program import Program
from ellama_jax.train.step import TrainState

EOS_ID = 2


def parse_with_config(parser: argparse.ArgumentParser, argv: list[str] | None = None):
    """Parses a benchmark's arguments; what begins with `--config.` is returned beside them."""
    parser.epilog = "Any key of configs/base.py can be changed: --config.model.remat=full"
    args, others = parser.parse_known_args(argv)
    strangers = [given for given in others if not given.startswith("--config.")]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    return args, others


def load_run_config(values: dict, arguments: list[str]) -> RunConfig:
    """Returns configs/base.py with `values` (dotted key -> value), then `--config.` arguments.

    Raises:
        ValueError: as for `ellama train`.
    """
    changed = [f"--config.{key}={value}" for key, value in values.items()]
    # A published peak is not needed to measure a step; any rate does.
    peak = "--config.schedule.base_peak_learning_rate=0.0003"
    config, _ = load_config(
        [f"--config={configs_dir() / 'base.py'}", peak, *changed, *arguments], "train"
    )
    return config


def random_batch(
    model: LlamaConfig, rows: int, length: int, tokens_per_document: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns a batch as the loader gives it.

    Args:
        tokens_per_document: mean length of a document; 0 is one document a row.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(EOS_ID + 1, model.vocab_size, (rows, length), dtype=np.uint32)
    if tokens_per_document:
        tokens[rng.random(tokens.shape) < 1 / tokens_per_document] = EOS_ID
    features = [to_features(row, eos_id=EOS_ID) for row in tokens]
    batch = {name: np.stack([row[name] for row in features]) for name in features[0]}
    return batch | {"source_ids": np.zeros(rows, np.int32)}


def first_state(program: Program, model: LlamaConfig, dtype: str, mesh: Mesh) -> TrainState:
    """Returns random weights and an empty optimizer, each where `program` wants it."""

    def zero(leaf):
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

    params = init_params(model, 0, jnp.dtype(dtype), mesh)
    empty = program.state._replace(params=None, opt_state=None)
    opt_state = init_opt_state(program.optimizer, params, program.state.opt_state)
    return jax.tree.map(zero, empty)._replace(params=params, opt_state=opt_state)
