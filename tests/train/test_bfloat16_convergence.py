"""Some hundred small updates: bfloat16 rounded stochastically learns as float32 does, nearest not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.config import OptimizerConfig
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.train import step as training
from ellama_jax.train.optimizer import make_optimizer

STEPS, RATE = 400, 3e-5  # the rate of the paper's 8B run


def last_loss(batches, dtype, moments="float32"):
    tiny = get_preset("tiny")
    config = OptimizerConfig(
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
        mu_dtype=moments,
        nu_dtype=moments,
    )
    schedule = optax.constant_schedule(RATE)
    optimizer = make_optimizer(config, schedule)
    losses_of = training.make_loss_sums(
        tiny, num_sources=3, compute_dtype=jnp.float32, remat="none", chunk_tokens=64
    )
    step = training.make_train_step(losses_of, optimizer, schedule, 1)
    step = jax.jit(step, donate_argnums=0)
    params = init_params(tiny, 0, dtype)
    state = training.init_state(params, optimizer.init(params))
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, batches[number % len(batches)])
        losses.append(float(metrics.loss))
    return np.mean(losses[-len(batches) :])


def add_to_nearest(params, updates, rounding_seed, step):
    return optax.apply_updates(params, updates)


@pytest.mark.slow
def test_stochastic_rounding_learns_as_float32_does_and_nearest_does_not(make_batch, monkeypatch):
    batches = [make_batch(seed) for seed in range(4)]
    run = functools.partial(last_loss, batches)
    losses = {"float32": run(jnp.float32), "stochastic": run(jnp.bfloat16),
              "stochastic, moments too": run(jnp.bfloat16, "bfloat16")}  # fmt: skip
    monkeypatch.setattr(training, "add_updates", add_to_nearest)
    losses["nearest"] = run(jnp.bfloat16)
    print({name: round(float(loss), 4) for name, loss in losses.items()})
    start = np.log(512)  # of a model that knows nothing
    learned = {name: start - loss for name, loss in losses.items()}
    assert learned["float32"] > 0.5
    assert learned["stochastic"] == pytest.approx(learned["float32"], rel=0.02)
    assert learned["stochastic, moments too"] == pytest.approx(learned["float32"], rel=0.02)
    assert learned["nearest"] < 0.7 * learned["float32"]
