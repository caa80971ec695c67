"""The loss on held-out text is that of each row computed alone."""

import dataclasses

import jax
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.train.step import make_loss_sums
from ellama_jax.train.validation import Validation, _rows_at_once

TINY = get_preset("tiny")
NAMES = ["ecommerce/de", "general/en"]


class Rows:
    """Seven packed rows as `HeldOut` gives them, the last batch filled up with padding."""

    names = NAMES

    def __init__(self, batch):
        self.batch = batch | {"source_ids": batch["source_ids"] % 2}

    def bytes_per_token(self):
        return {"general/en": 4.0}

    def batches(self, size, rows_of):
        assert rows_of(size).tolist() == list(range(size))
        for start in range(0, 7, size):
            rows = {name: x[start : start + size].copy() for name, x in self.batch.items()}
            missing = start + len(rows["inputs"]) - 7
            for name in ("loss_weights", "segment_ids") if missing > 0 else ():
                rows[name][-missing:] = 0
            yield rows


@pytest.mark.parametrize(("sizes", "microbatches"), [((1, 4, 1, 2), 1), ((2, 2, 1, 2), 2)])
def test_it_is_the_loss_of_each_row_alone(tiny_config, make_batch, sizes, microbatches):
    config = tiny_config(train__num_microbatches=microbatches)
    mesh = make_mesh(dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True)))
    rows = Rows(make_batch())
    params = jax.device_get(init_params(TINY, 3))
    alone = make_loss_sums(
        TINY, num_sources=2, compute_dtype=np.float32, remat="none", chunk_tokens=512
    )
    one = jax.jit(lambda params, batch: alone(params, batch)[1])
    totals = np.zeros((2, 2))
    for row in range(7):
        sums = one(params, {name: x[row : row + 1] for name, x in rows.batch.items()})
        totals += np.array([sums.source_losses, sums.source_weights])
    with jax.set_mesh(mesh):
        placed = init_params(TINY, 3, mesh=mesh)
        found = Validation(config, TINY, mesh, rows).run(placed)
    assert set(found) == {"eval_loss", "eval_bits_per_byte/general/en", *(
        f"eval_loss/{name}" for name in NAMES)}  # fmt: skip
    assert found["eval_loss"] == pytest.approx(totals[0].sum() / totals[1].sum(), rel=1e-6)
    for index, name in enumerate(NAMES):
        expected = totals[0, index] / totals[1, index]
        assert found[f"eval_loss/{name}"] == pytest.approx(expected, rel=1e-6)
    bits = found["eval_loss/general/en"] / np.log(2) / 4.0
    assert found["eval_bits_per_byte/general/en"] == pytest.approx(bits)


def test_no_more_rows_at_once_than_a_microbatch(tiny_config):
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    config = tiny_config(train__num_microbatches=2)
    assert _rows_at_once(config, mesh) == 4
    train = dataclasses.replace(config.train, num_microbatches=4)  # 2 rows cannot be divided by 4
    assert _rows_at_once(dataclasses.replace(config, train=train), mesh) == 8
