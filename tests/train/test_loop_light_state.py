"""A run with all that learns in bfloat16, an average, a guard and a growing batch, resumed."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from test_loop import assert_same_state, steady

from ellama_jax.merge.average import average_checkpoints
from ellama_jax.train.loop import prepare_run, train
from ellama_jax.train.metrics import read_metrics
from ellama_jax.weights.checkpoint import open_average, restore_params
from ellama_jax.weights.layout import read_json_item

RAMP = {"3": 8}  # then 16


@pytest.fixture
def light_config(tiny_config):
    config = tiny_config(
        model__param_dtype="bfloat16", optimizer__mu_dtype="bfloat16",
        optimizer__nu_dtype="bfloat16", optimizer__ema_decay=0.5, optimizer__ema_dtype="bfloat16",
        train__spike_factor=6.0, train__spike_window=4, data__global_batch_size=16, mesh__fsdp=8,
        train__steps=6, checkpoint__save_every_steps=2, checkpoint__keep_last=9,
    )  # fmt: skip
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_ramp=RAMP))


def test_it_resumes_bit_for_bit_in_the_ramp_and_after_it(light_config, tmp_path):
    whole = tmp_path / "whole"
    train(prepare_run(light_config, whole))
    records = read_metrics(whole)
    tokens = np.diff([0] + [sum(r["tokens_consumed"].values()) for r in records])
    assert tokens[:3].max() <= 8 * light_config.data.seq_len < tokens[3:].min()
    assert [r["spikes"] for r in records] == [0] * 6
    data = read_json_item(whole / "checkpoints" / "6", "data")
    np.testing.assert_array_equal(
        np.float32(data["guard"]["losses"]), np.float32([r["loss"] for r in records[-4:]])
    )
    for kept in (2, 4):
        workdir = tmp_path / f"from {kept}"
        shutil.copytree(whole, workdir)
        for step in range(kept + 2, 8, 2):
            shutil.rmtree(workdir / "checkpoints" / str(step))
        train(prepare_run(light_config, workdir))
        assert steady(read_metrics(workdir)) == steady(records)
        assert_same_state(workdir / "checkpoints", whole / "checkpoints")
        again = read_json_item(workdir / "checkpoints" / "6", "data")
        assert again == data
    _check_average(whole / "checkpoints", tmp_path / "ema")


def _check_average(root, out):
    """The average lies near the weights, is not they, and other verbs read it."""
    average_checkpoints([root / "6"], out, "ema")
    kept = {name: leaf.load() for name, leaf in open_average(root / "6").items()}
    weights, average = restore_params(root / "6"), restore_params(out)
    leaf = np.asarray(average["embed"]["table"])
    np.testing.assert_array_equal(leaf, kept["embed/table"])
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), weights, average)
    assert 0 < max(jax.tree.leaves(apart)) < 0.1
