"""The loss on held-out text during a run, on the run's own mesh.

Owns how it is summed and named. Which text it is, tokens/held_out.py says; the loss function is that
of training.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from ellama_jax.config import RunConfig
from ellama_jax.core.sharding import local_rows, place_batch
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.held_out import HeldOut
from ellama_jax.train.program import make_losses


class Validation:
    """Takes the loss of held-out rows; reads parameters, and changes nothing.

    validation = Validation(config, model, mesh, held_out)
    validation.run(state.params)["eval_loss/general/en"]
    """

    def __init__(self, config: RunConfig, model: LlamaConfig, mesh: Mesh, held_out: HeldOut):
        """Prepares; it is compiled when it runs first."""
        self._mesh, self._held_out = mesh, held_out
        self._rows = _rows_at_once(config, mesh)
        losses = make_losses(config, model, mesh, len(held_out.names))
        self._losses = jax.jit(lambda params, batch: losses(params, batch)[1])

    def run(self, params: dict, beat: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Returns the losses in nats a token, and bits a byte where the sets say their bytes.

        All processes must call this at the same step.

        Args:
            params: of the model, on the mesh.
            beat: called after each batch.

        Returns:
            `eval_loss`, and `eval_loss/<domain>/<language>` and `eval_bits_per_byte/...` by name.
        """
        rows_of = functools.partial(local_rows, self._mesh)
        total = np.zeros((2, len(self._held_out.names)))
        running = None
        for rows in self._held_out.batches(self._rows, rows_of):
            sums = self._losses(params, place_batch(rows, self._mesh))
            # The next batch is read while this one is computed, and no more than two lie there.
            total += _read(running)
            running = sums
            beat()
        total += _read(running)
        return named_losses(self._held_out.names, *total, self._held_out.bytes_per_token())


def named_losses(
    names: list[str], losses: np.ndarray, weights: np.ndarray, bytes_per_token: Mapping[str, float]
) -> dict[str, float]:
    """Names sums of losses by domain and language.

    Args:
        names: `<domain>/<language>`.
        losses, weights: [names] sums over tokens.
        bytes_per_token: by name; a name without has no bits per byte.

    >>> named_losses(["a/de", "a/en"], np.array([6.0, 2.0]), np.array([3.0, 1.0]), {"a/en": 4.0})
    {'eval_loss': 2.0, 'eval_loss/a/de': 2.0, 'eval_loss/a/en': 2.0, 'eval_bits_per_byte/a/en': 0.7213475204444817}
    """
    found = {"eval_loss": float(losses.sum() / max(weights.sum(), 1.0))}
    for name, loss, weight in zip(names, losses, weights, strict=True):
        if weight > 0:
            found[f"eval_loss/{name}"] = float(loss / weight)
    for name, size in bytes_per_token.items():
        if f"eval_loss/{name}" in found:
            bits = found[f"eval_loss/{name}"] / math.log(2)
            found[f"eval_bits_per_byte/{name}"] = bits / size
    return found


def _read(sums) -> np.ndarray | float:
    if sums is None:
        return 0.0
    return np.array(jax.device_get((sums.source_losses, sums.source_weights)), np.float64)


def _rows_at_once(config: RunConfig, mesh: Mesh) -> int:
    """Returns the rows of a micro-batch, which fit; of a batch where the mesh cannot divide those."""
    rows, rest = divmod(config.data.global_batch_size, config.train.num_microbatches)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return rows if not rest and rows % shards == 0 else config.data.global_batch_size
