"""One step: sums rather than means, the same on every mesh, bad updates skipped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.config import OptimizerConfig
from ellama_jax.core.sharding import make_mesh, place_batch
from ellama_jax.model.llama import (
    abstract_params,
    hidden_states,
    init_params,
    project_logits,
    read_params,
)
from ellama_jax.model.presets import get_preset
from ellama_jax.train.optimizer import abstract_opt_state, init_opt_state, make_optimizer
from ellama_jax.train.spikes import make_guard
from ellama_jax.train.step import Sums, init_state, make_loss_sums, make_train_step

TINY = get_preset("tiny")
# eps far above rounding: otherwise the first updates are signs of gradients, of noise too.
ADAMW = OptimizerConfig(b1=0.9, b2=0.95, eps=1e-3, weight_decay=0.1, clip_norm=1.0)
RATE = optax.constant_schedule(1e-2)
OPTIMIZER = make_optimizer(ADAMW, RATE)
MESHES = {
    "one device": None,
    "data 8": (8, 1, 1, 1),
    "fsdp 8": (1, 8, 1, 1),
    "fsdp 4 x tensor 2": (1, 4, 1, 2),
    "data 2 x fsdp 2 x tensor 2": (2, 2, 1, 2),
    "fsdp 2 x context 2 x tensor 2": (1, 2, 2, 2),
}


def loss_sums(chunk_tokens=64):
    return make_loss_sums(
        TINY, num_sources=3, compute_dtype=jnp.float32, remat="none", chunk_tokens=chunk_tokens
    )


@functools.cache
def compiled_step(num_microbatches):
    """One jitted function for all tests of a kind, so that each mesh is compiled for once."""
    step = make_train_step(loss_sums(), OPTIMIZER, RATE, num_microbatches)
    return jax.jit(step, donate_argnums=0)


def run_steps(batches, *, num_microbatches=1, mesh_shape=None):
    """Trains from seed 0 on `batches`; returns the parameters (host) and the last metrics."""
    sizes = dict(
        zip(("data", "fsdp", "context", "tensor"), mesh_shape or (1, 1, 1, 1), strict=True)
    )
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        params = init_params(TINY, 0, mesh=mesh)
        wanted = abstract_opt_state(OPTIMIZER, abstract_params(TINY, mesh=mesh))
        state = init_state(params, init_opt_state(OPTIMIZER, params, wanted))
        step = compiled_step(num_microbatches)
        for batch in batches:
            state, metrics = step(state, place_batch(batch, mesh))
    return jax.device_get(state), jax.device_get(metrics)


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


def test_loss_is_the_mean_over_all_counted_tokens(make_batch):
    """Against optax on whole logits; a mean of row means would differ."""
    batch = make_batch()
    _, metrics = run_steps([batch])
    params = init_params(TINY, 0)
    hidden = hidden_states(
        params, TINY, *(batch[n] for n in ("inputs", "positions", "segment_ids"))
    )
    logits = project_logits(params, TINY, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    weights = batch["loss_weights"]
    np.testing.assert_allclose(metrics.loss, np.sum(losses * weights) / weights.sum(), rtol=1e-5)
    row_means = np.sum(losses * weights, axis=1) / weights.sum(axis=1)
    assert abs(metrics.loss - row_means.mean()) > 1e-4
    for source in range(3):
        mine = batch["source_ids"] == source
        expected = np.sum((losses * weights)[mine])
        np.testing.assert_allclose(metrics.source_loss_sums[source], expected, rtol=1e-5)
        assert metrics.source_weight_sums[source] == weights[mine].sum()
        assert metrics.source_tokens[source] == np.sum(batch["segment_ids"][mine] != 0)


@pytest.mark.parametrize("name", [name for name in MESHES if name != "one device"])
def test_every_mesh_gives_the_loss_and_parameters_of_one_device(name, make_batch):
    batches = [make_batch(seed) for seed in range(2)]
    alone, metrics_alone = run_steps(batches)
    divided, metrics = run_steps(batches, mesh_shape=MESHES[name])
    np.testing.assert_allclose(metrics.loss, metrics_alone.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, metrics_alone.grad_norm, rtol=1e-5)
    assert_close(divided.params, alone.params)
    assert_close(metrics.source_loss_sums, metrics_alone.source_loss_sums)


def test_parameters_really_are_divided_on_a_mesh():
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    w_up = init_params(TINY, 0, mesh=mesh)["layers"]["mlp"]["w_up"]
    assert w_up.addressable_shards[0].data.shape == (2, 64 // 4, 192 // 2)


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_microbatches_add_up_to_the_whole_batch(num_microbatches, make_batch):
    """Rows have different numbers of counted tokens: a mean of means would differ."""
    batches = [make_batch(seed) for seed in range(2)]
    whole, metrics_whole = run_steps(batches)
    parts, metrics = run_steps(batches, num_microbatches=num_microbatches)
    np.testing.assert_allclose(metrics.loss, metrics_whole.loss, rtol=1e-5)
    assert_close(parts.params, whole.params)
    assert metrics.weight_sum == metrics_whole.weight_sum


def test_microbatches_work_on_a_mesh(make_batch):
    batches = [make_batch(rows=16)]
    whole, _ = run_steps(batches)
    parts, _ = run_steps(
        batches, num_microbatches=2, mesh_shape=MESHES["data 2 x fsdp 2 x tensor 2"]
    )
    assert_close(parts.params, whole.params)


def test_microbatches_of_bfloat16_gradients_add_up_in_float32():
    """256 + 1 is 256 in bfloat16."""

    def sums(params, batch):
        weight = read_params(params)["w"]
        assert weight.dtype == jnp.bfloat16
        total = jnp.sum(weight * batch["x"].astype(weight.dtype), dtype=jnp.float32)
        nothing = jnp.zeros(1)
        return total, Sums(total, jnp.float32(len(batch["x"])), nothing, nothing, nothing)

    step = make_train_step(sums, optax.sgd(1.0), RATE, 4, jnp.bfloat16)
    params = {"w": jnp.zeros(2)}
    batch = {"x": jnp.array([[256.0, 1.0], [1.0, 256.0], [1.0, 1.0], [1.0, 1.0]])}
    state, metrics = jax.jit(step)(init_state(params, optax.sgd(1.0).init(params)), batch)
    assert (metrics.weight_sum, metrics.skipped) == (4.0, 0)
    np.testing.assert_array_equal(state.params["w"], [-259 / 4, -259 / 4])


def test_an_update_that_is_not_finite_is_skipped_and_counted(make_batch):
    good, bad = make_batch(0), make_batch(1)
    bad["loss_weights"] = bad["loss_weights"] * np.float32(np.inf)
    before, _ = run_steps([good])
    after, metrics = run_steps([good, bad])
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (2, 1, 1)
    assert not np.isfinite(metrics.loss)


def test_a_good_update_ends_the_row_of_skipped_ones(make_batch):
    bad = make_batch(1)
    bad["loss_weights"] = bad["loss_weights"] * np.float32(np.nan)
    state, _ = run_steps([bad, bad, make_batch(2)])
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 2, 0)


def test_a_batch_of_padding_alone_gives_no_loss_and_no_nan(make_batch):
    batch = make_batch()
    for name in ("inputs", "segment_ids", "positions", "targets", "loss_weights"):
        batch[name] = np.zeros_like(batch[name])
    state, metrics = run_steps([batch])
    assert metrics.loss == 0 and metrics.skipped == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_padding_rows_do_not_change_the_update(make_batch):
    batch = make_batch()
    padded = {name: np.concatenate([rows, np.zeros_like(rows)]) for name, rows in batch.items()}
    plain, padded = run_steps([batch])[0], run_steps([padded])[0]
    assert_close(plain.params, padded.params)


def test_training_lowers_the_loss(make_batch):
    losses = [float(run_steps([make_batch(0)] * n)[1].loss) for n in (1, 8)]
    assert losses[1] < losses[0] - 0.5


# --- bfloat16 and spikes -------------------------------------------------------------------------

LIGHT = dataclasses.replace(
    ADAMW, mu_dtype="bfloat16", nu_dtype="bfloat16", ema_decay=0.5, ema_dtype="bfloat16"
)


def rising(count):
    return 1e-2 * (1 + count / 100)


@functools.cache
def light_step(rounding_seed=0):
    """All of the state in bfloat16, and a guard of 4 updates."""
    optimizer = make_optimizer(LIGHT, rising)
    step = make_train_step(
        loss_sums(), optimizer, rising, 1, rounding_seed=rounding_seed, spike_factor=6.0
    )
    return optimizer, jax.jit(step, donate_argnums=0)


def run_light(batches, *, mesh_shape=(1, 1, 1, 1), state=None, rounding_seed=0):
    """Returns the state, on the host, before the first step and after each, and all metrics."""
    optimizer, step = light_step(rounding_seed)
    sizes = dict(zip(("data", "fsdp", "context", "tensor"), mesh_shape, strict=True))
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(mesh_shape))])
    trail = []
    with jax.set_mesh(mesh):
        if state is None:
            params = init_params(TINY, 0, jnp.bfloat16, mesh)
            wanted = abstract_opt_state(optimizer, abstract_params(TINY, jnp.bfloat16, mesh))
            opt_state = init_opt_state(optimizer, params, wanted)
            state = init_state(params, opt_state, make_guard(4))
        states = [jax.device_get(state)]
        for batch in batches:
            state, metrics = step(state, place_batch(batch, mesh))
            states.append(jax.device_get(state))
            trail.append(jax.device_get(metrics))
    return states, trail


def test_a_state_of_bfloat16_learns_keeps_its_dtypes_and_resumes_bit_for_bit(make_batch):
    batches = [make_batch(seed % 2) for seed in range(6)]
    states, metrics = run_light(batches)
    assert metrics[-1].loss < metrics[0].loss - 0.3
    dtypes = jax.tree.map(lambda x: x.dtype, states)
    assert all(later == dtypes[0] for later in dtypes[1:])
    assert {d.name for d in jax.tree.leaves(dtypes[0].params)} == {"bfloat16"}
    again, _ = run_light(batches[3:], state=jax.tree.map(jnp.asarray, states[3]))
    jax.tree.map(np.testing.assert_array_equal, again[-1], states[-1])
    other, _ = run_light(batches[:1], rounding_seed=1)
    tables = [run[1].params["embed"]["table"] for run in (other, states)]
    assert np.any(tables[0] != tables[1])


def test_rounding_is_the_same_on_a_mesh(make_batch):
    """Gradients differ in their last bits, so some values round the other way; few do."""
    alone, _ = run_light([make_batch()])
    divided, _ = run_light([make_batch()], mesh_shape=(1, 4, 1, 2))
    for ours, theirs in zip(
        *(map(jax.tree.leaves, (alone[1].params, divided[1].params))), strict=True
    ):
        assert np.mean(ours != theirs) < 0.02
        assert ours.size < 1000 or np.mean(ours != 0) > 0.5


def test_a_spike_is_left_out_counted_and_forgotten(make_batch):
    """All targets of a spike are one word, so its loss is far off and finite."""
    good, spike, bad = make_batch(0), make_batch(9), make_batch(1)
    spike["targets"] = np.full_like(spike["targets"], 1)
    bad["loss_weights"] = bad["loss_weights"] * np.float32(np.nan)
    states, metrics = run_light([good] * 12 + [spike, bad, good, good])
    assert [bool(m.spiked) for m in metrics] == [False] * 12 + [True, False, False, False]
    assert (metrics[-1].spikes, metrics[-1].skipped) == (1, 1)
    before, after = states[12], states[13]
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    assert after.step == before.step + 1 and after.guard.count == before.guard.count
    # The rate is that of the optimizer's own count, which stands still where an update is left out.
    counts = [count for state in states for count in updates_made(state.opt_state)]
    assert counts == [*range(13), 12, 12, 13, 14]
    rates = [float(m.learning_rate) for m in metrics]
    np.testing.assert_allclose(rates, [rising(count) for count in counts[:-1]], rtol=1e-6)


def updates_made(opt_state):
    """The counts that schedules go by, among those of an optimizer's parts."""
    is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    parts = jax.tree.leaves(opt_state, is_leaf=is_schedule)
    return [int(part.count) for part in parts if is_schedule(part)]
