"""Averages of checkpoints against NumPy, and what keeps no moving average."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from ellama_jax.config import OptimizerConfig
from ellama_jax.core.tree import flatten_paths
from ellama_jax.merge.average import average_checkpoints, main_average
from ellama_jax.train.optimizer import make_optimizer
from ellama_jax.weights.checkpoint import (
    find_checkpoint,
    open_manager,
    restore_params,
    save_training,
)
from ellama_jax.weights.origin import describe_provenance


def load(root):
    return {n: np.asarray(x) for n, x in flatten_paths(restore_params(root)).items()}


@pytest.fixture
def run(tmp_path, tiny, make_checkpoint, tokenizer_dir):
    """Returns a training root with the steps 1 and 2, the second of which keeps an average."""
    make_checkpoint(tmp_path / "base", tiny)
    meta = find_checkpoint(tmp_path / "base").meta
    meta = {**meta, "provenance": {"kind": "train", "step": 2, "base": "random weights"}}
    params = restore_params(tmp_path / "base")
    config = OptimizerConfig(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    root = tmp_path / "run"
    with open_manager(
        root, tokenizer_dir=tokenizer_dir, save_every_steps=1, keep_last=None, asynchronous=False
    ) as manager:
        for step, decay in ((1, 0.0), (2, 0.5)):
            kept = OptimizerConfig(**{**vars(config), "ema_decay": decay, "ema_dtype": "bfloat16"})
            optimizer = make_optimizer(kept, optax.constant_schedule(1.0))
            doubled = jax.tree.map(lambda p, n=step: p * n, params)
            save_training(manager, step, doubled, optimizer.init(doubled), {}, meta)
    return root


def test_the_mean_of_two_steps_is_numpy_s(tmp_path, run):
    info = average_checkpoints([run / "1", run / "2"], tmp_path / "mean")
    first = load(run / "1")
    for name, leaf in load(info.path).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, 1.5 * first[name], rtol=1e-6, err_msg=name)
    said = "\n".join(describe_provenance(info.meta["provenance"]))
    hashes = [source["weights_hash"][:12] for source in info.meta["provenance"]["sources"]]
    assert said.startswith(
        f"the mean of run/1, weights hash {hashes[0]}, run/2, weights hash {hashes[1]}; the last was\n"
        "  continually pretrained for 2"
    )


def test_the_moving_average_of_a_step_is_taken_out_bit_for_bit(tmp_path, run, capsys):
    main_average([str(run), "--weights", "ema", "--out", str(tmp_path / "ema")])
    assert "Averaged ema of step 2 into" in capsys.readouterr().out
    second = load(run / "2")
    found = load(tmp_path / "ema")
    assert found.keys() == second.keys()
    for name, leaf in found.items():
        assert leaf.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(leaf, np.asarray(jnp.asarray(second[name], jnp.bfloat16)))


def test_the_mean_of_one_is_that_one(tmp_path, tiny, make_checkpoint):
    params = make_checkpoint(tmp_path / "one", tiny, dtype=ml_dtypes.bfloat16)
    average_checkpoints([tmp_path / "one"], tmp_path / "mean")
    for name, leaf in load(tmp_path / "mean").items():
        assert leaf.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(leaf, flatten_paths(params)[name])


@pytest.mark.parametrize(
    ("steps", "weights", "message"),
    [
        (
            ["run/1"],
            "ema",
            r"checkpoint .*run/1: must keep a moving average .* got none; train with",
        ),
        (["base"], "ema", r"must keep a moving average"),
        (["run/1", "run/1"], "params", r"^average: must be given different checkpoints"),
        (["run/1", "other"], "params", r"leaf differs: lm_head"),
        (["run/1"], "swa", r"^weights: must be one of params, ema, got swa"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    tmp_path, run, untied, make_checkpoint, steps, weights, message
):
    make_checkpoint(tmp_path / "other", untied)
    with pytest.raises(ValueError, match=message):
        average_checkpoints([tmp_path / step for step in steps], tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()
