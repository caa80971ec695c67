"""Every mesh trains as one device does: the run's own program on eight fake devices.

The measure: losses and gradient norms of each step within 1e-5 relative; of each updated parameter
array the largest difference within 1e-5 of its largest value. All float32.
"""

import dataclasses

import jax
import numpy as np
import pytest

from ellama_jax.config import configs_dir, load_config
from ellama_jax.core.sharding import MESH_AXES, make_mesh, place_batch
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model import llama
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.train.optimizer import init_opt_state
from ellama_jax.train.program import make_program
from ellama_jax.train.step import init_state

STEPS, ROWS, LENGTH, NUM_SOURCES = 3, 16, 32, 3
TINY = get_preset("tiny")
TOLERANCE = 1e-5
# (data, fsdp, context, tensor) and micro-batches.
MESHES = {
    "data 8": ((8, 1, 1, 1), 1),
    "fsdp 8": ((1, 8, 1, 1), 1),
    "context 8": ((1, 1, 8, 1), 1),
    "fsdp 4 x tensor 2": ((1, 4, 1, 2), 1),
    "data 2 x fsdp 2 x tensor 2, 2 micro-batches": ((2, 2, 1, 2), 2),
    "data 2 x context 2 x tensor 2": ((2, 1, 2, 2), 1),
    "fsdp 2 x context 2 x tensor 2": ((1, 2, 2, 2), 1),
}


def train(make_batch, shape, num_microbatches=1):
    """Runs three steps; returns losses and gradient norms by step, and the parameters by path."""
    keys = {
        "data.seq_len": LENGTH, "data.global_batch_size": ROWS, "train.steps": STEPS,
        "train.num_microbatches": num_microbatches, "schedule.warmup_steps": 1,
        # Far above rounding: otherwise the first updates are signs of gradients, of noise too.
        "optimizer.eps": 1e-3,
    }  # fmt: skip
    file = configs_dir() / "demo.py"
    keys = [f"--config.{key}={value}" for key, value in keys.items()]
    config, _ = load_config([f"--config={file}:tiny", *keys], "train")
    sizes = dict(zip(MESH_AXES, shape, strict=True))
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(shape))])
    program = make_program(config, TINY, mesh, NUM_SOURCES)
    with jax.set_mesh(mesh):
        params = init_params(TINY, 0, mesh=mesh)
        opt_state = init_opt_state(program.optimizer, params, program.state.opt_state)
        state, said = init_state(params, opt_state), []
        for step in range(STEPS):
            batch = make_batch(step, rows=ROWS, length=LENGTH)
            weights = np.random.default_rng(step).choice([0.0, 0.25, 1.0], (ROWS, LENGTH))
            batch["loss_weights"] = (batch["loss_weights"] * weights).astype(np.float32)
            state, metrics = program.step_fn(state, place_batch(batch, mesh))
            said.append((float(metrics.loss), float(metrics.grad_norm)))
    return np.array(said), flatten_paths(jax.device_get(state.params))


@pytest.fixture(scope="module")
def alone():
    return {}


def assert_equal_to_one_device(alone, make_batch, shape, num_microbatches=1):
    if not alone:
        alone["said"], alone["params"] = train(make_batch, (1, 1, 1, 1))
    said, params = train(make_batch, shape, num_microbatches)
    np.testing.assert_allclose(said, alone["said"], rtol=TOLERANCE)
    start = flatten_paths(jax.device_get(init_params(TINY, 0)))
    for path, wanted in alone["params"].items():
        assert np.abs(wanted - start[path]).max() > 100 * TOLERANCE * np.abs(wanted).max(), path
        apart = np.abs(params[path] - wanted).max() / np.abs(wanted).max()
        assert apart <= TOLERANCE, f"{path}: {apart:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_losses_and_updates_equal_those_of_one_device(name, alone, make_batch):
    """Packed documents, padding, uneven weights: a mean of means would differ."""
    assert_equal_to_one_device(alone, make_batch, *MESHES[name])


@pytest.mark.slow
def test_a_residual_stream_divided_over_tensor_changes_nothing(alone, make_batch, monkeypatch):
    """Sequence parallelism: `residual_length` where the stream is whole in `embed`."""
    pinned = []

    def divided(x, *dims):
        if dims == ("batch", "length", "embed"):
            dims = ("batch", "residual_length", "embed")
        pinned.append(dims)
        return constrain(x, *dims)

    constrain = llama.constrain
    monkeypatch.setattr(llama, "constrain", divided)
    assert_equal_to_one_device(alone, make_batch, (1, 2, 2, 2))
    assert ("batch", "residual_length", "embed") in pinned


def test_the_mesh_is_checked_before_anything_is_compiled():
    config = load_config([f"--config={configs_dir() / 'demo.py'}:tiny"], "train")[0]
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, global_batch_size=12)
    )
    mesh = make_mesh({"data": 1, "fsdp": 8, "context": 1, "tensor": 1})
    with pytest.raises(ValueError, match=r"^data.global_batch_size: .* \(8\), got 12; 8 or 16 fit"):
        make_program(config, TINY, mesh, NUM_SOURCES)
    mesh = make_mesh({"data": 1, "fsdp": 2, "context": 1, "tensor": 4})
    with pytest.raises(
        ValueError, match=r"^mesh.tensor: must divide kv_heads \(2\), got 4; 1 or 2"
    ):
        make_program(config, TINY, mesh, NUM_SOURCES)
