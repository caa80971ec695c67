"""The update against torch's AdamW, and the learning-rate curve by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.config import OptimizerConfig, ScheduleConfig
from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.model.llama import abstract_params, init_params
from ellama_jax.model.presets import PRESETS, get_preset
from ellama_jax.train.optimizer import (
    abstract_opt_state,
    add_updates,
    decay_mask,
    global_norm,
    init_opt_state,
    make_optimizer,
    make_schedule,
    peak_learning_rate,
)

TINY = get_preset("tiny")
ADAMW = OptimizerConfig(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


def schedule_config(**changes):
    values = dict(peak_frac=0.1, base_peak_learning_rate=None, warmup_steps=4, final_frac=0.1)
    return ScheduleConfig(**{**values, **changes})


def test_peak_is_a_fraction_of_the_base_model_s_own():
    """The paper's rates: 3e-5 for 8B, 1.5e-5 for 70B."""
    assert peak_learning_rate(schedule_config(), get_preset("llama3.1-8b")) == pytest.approx(3e-5)
    assert peak_learning_rate(schedule_config(), get_preset("llama3.1-70b")) == pytest.approx(
        1.5e-5
    )
    configured = schedule_config(base_peak_learning_rate=1e-3)
    assert peak_learning_rate(configured, get_preset("llama3.1-8b")) == pytest.approx(1e-4)


def test_an_unpublished_base_rate_must_be_configured():
    with pytest.raises(
        ValueError, match="^schedule.base_peak_learning_rate: must be set for llama3.2-1b"
    ):
        peak_learning_rate(schedule_config(), get_preset("llama3.2-1b"))


def test_schedule_warms_up_and_follows_the_cosine():
    schedule = make_schedule(schedule_config(), TINY, steps=104)
    peak = 0.1 * TINY.base_peak_learning_rate
    rates = np.array([float(schedule(step)) for step in range(105)])
    np.testing.assert_allclose(rates[:5], peak * np.array([0.2, 0.4, 0.6, 0.8, 1.0]), rtol=1e-5)
    # 50 of the 100 cosine steps: half-way between peak and a tenth of it.
    np.testing.assert_allclose(rates[54], peak * 0.55, rtol=1e-5)
    np.testing.assert_allclose(rates[104], peak * 0.1, rtol=1e-5)
    assert np.all(np.diff(rates[4:]) < 0)


def test_norms_and_embedding_are_not_decayed_and_everything_else_is():
    params = abstract_params(get_preset("llama3.1-8b"))
    kept = {path for path, decayed in flatten_paths(decay_mask(params)).items() if not decayed}
    assert kept == {
        "embed/table",
        "final_norm/scale",
        "layers/attn_norm/scale",
        "layers/mlp_norm/scale",
    }


@pytest.mark.parametrize("name", PRESETS)
def test_decay_rules_cover_every_leaf_of_every_preset(name):
    assert all(
        isinstance(d, bool) for d in jax.tree.leaves(decay_mask(abstract_params(PRESETS[name])))
    )


def test_a_leaf_without_rule_is_an_error():
    with pytest.raises(ValueError, match="^layers/adapter: must match a rule"):
        decay_mask({"layers": {"adapter": jnp.ones(3)}})


def test_updates_equal_torch_adamw_with_clipping():
    torch = pytest.importorskip("torch", reason="torch is the reference")
    params = init_params(TINY, 0)
    mask = flatten_paths(decay_mask(params))
    theirs = {
        p: torch.nn.Parameter(torch.tensor(np.asarray(v))) for p, v in flatten_paths(params).items()
    }
    groups = [
        {"params": [theirs[p] for p in theirs if mask[p]], "weight_decay": 0.1},
        {"params": [theirs[p] for p in theirs if not mask[p]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    optimizer = make_optimizer(ADAMW, optax.constant_schedule(1e-2))
    state = optimizer.init(params)
    for step in range(3):
        keys = iter(jax.random.split(jax.random.key(step), len(theirs)))
        # The first gradient is long and is clipped, the later ones are short and are not.
        scale = 5.0 if step == 0 else 1e-4
        gradients = unflatten_paths(
            {
                p: scale * jax.random.normal(next(keys), v.shape)
                for p, v in flatten_paths(params).items()
            }
        )
        for path, g in flatten_paths(gradients).items():
            theirs[path].grad = torch.tensor(np.asarray(g))
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        adamw.step()
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for path, ours in flatten_paths(params).items():
        np.testing.assert_allclose(
            ours, theirs[path].detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=path
        )


def test_global_norm_is_that_of_all_leaves_together():
    assert float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]], jnp.bfloat16)})) == 5.0


def test_optimizer_state_lies_where_its_parameters_lie():
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    abstract = abstract_params(TINY, mesh=mesh)
    optimizer = make_optimizer(ADAMW, optax.constant_schedule(1.0))
    wanted = abstract_opt_state(optimizer, abstract)
    state = init_opt_state(optimizer, init_params(TINY, 0, mesh=mesh), wanted)
    moments = [
        leaf for leaf in jax.tree.leaves(state) if leaf.shape == abstract["embed"]["table"].shape
    ]
    assert len(moments) == 2
    for moment in moments:
        assert moment.sharding == abstract["embed"]["table"].sharding
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, wanted)


# --- dtypes of the state and averages ------------------------------------------------------------


def run_leaf(config, gradients, *, rate=1e-2, params=None):
    """Updates one decayed leaf with a gradient a step; returns parameters and Adam's state."""
    optimizer = make_optimizer(config, optax.constant_schedule(rate))
    params = {"lm_head": {"kernel": jnp.zeros(gradients.shape[1:]) if params is None else params}}
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient, step):
        full = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        updates, state = optimizer.update({"lm_head": {"kernel": gradient}}, state, full)
        return add_updates(params, updates, config.rounding_seed, step), state

    for step, gradient in enumerate(gradients):
        params, state = update(params, state, gradient, jnp.int32(step))
    return params["lm_head"]["kernel"], state


def test_moments_of_bfloat16_follow_optax_in_float32():
    """Tolerance of bfloat16: 2 % of the largest update after 50 noisy steps."""
    config = dataclasses.replace(ADAMW, mu_dtype="bfloat16", nu_dtype="bfloat16", clip_norm=1e9)
    gradients = jax.random.normal(jax.random.key(0), (50, 2048))
    ours, state = run_leaf(config, gradients)
    adam = state[1][0]
    assert {leaf.dtype for leaf in jax.tree.leaves((adam.mu, adam.nu))} == {jnp.dtype("bfloat16")}
    theirs, reference = jnp.zeros(2048), optax.adamw(1e-2, b2=0.95, weight_decay=0.1)
    kept = reference.init(theirs)
    for gradient in gradients:
        updates, kept = reference.update(gradient, kept, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    assert abs(np.mean(ours - theirs)) < 1e-3 * np.std(theirs)
    nu = kept[0].nu
    # Unbiased: errors of single moments are a part in 2^8 and more, their mean is not.
    assert abs(np.mean(adam.nu["lm_head"]["kernel"].astype(jnp.float32) / nu) - 1) < 2e-3


def test_a_second_moment_rounded_to_nearest_would_stall_and_ours_does_not():
    """From 1 towards 1.06, b2 = 0.95: a step changes 0.3 %, less than half of bfloat16's 0.8 %."""
    target = jnp.full((100, 4096), np.sqrt(1.06), jnp.float32)
    nearest = jnp.ones((), jnp.bfloat16)
    for _ in range(100):
        moved = 0.95 * nearest.astype(jnp.float32) + 0.05 * 1.06
        nearest = moved.astype(jnp.bfloat16)
    assert nearest == 1.0
    config = dataclasses.replace(ADAMW, nu_dtype="bfloat16", clip_norm=1e9)
    optimizer = make_optimizer(config, optax.constant_schedule(0.0))
    params = {"lm_head": {"kernel": jnp.zeros(4096)}}
    state = optimizer.init(params)
    adam = state[1][0]
    ones = {"lm_head": {"kernel": jnp.ones(4096, jnp.bfloat16)}}
    state = (state[0], (adam._replace(nu=ones), *state[1][1:]))
    update = jax.jit(optimizer.update)
    for gradient in target:
        _, state = update({"lm_head": {"kernel": gradient}}, state, params)
    nu = np.asarray(state[1][0].nu["lm_head"]["kernel"], np.float32)
    # Half a percent of the way below 1.06 is left of the start: 0.95^100.
    assert abs(nu.mean() - (1.06 - 0.06 * 0.95**100)) < 5e-4


@pytest.mark.parametrize("rate", [1e-4, 1e-5])
def test_updates_too_small_for_bfloat16_are_kept_in_expectation(rate):
    """Updates of `rate` at parameters of 1: nearest needs 2e-3 or more to move at all."""
    gradients = jnp.ones((40, 8192))
    config = dataclasses.replace(ADAMW, weight_decay=0.0, clip_norm=1e9)
    params = jnp.ones(8192, jnp.bfloat16)
    moved, _ = run_leaf(config, gradients, rate=rate, params=params)
    assert moved.dtype == jnp.bfloat16
    assert jnp.ones((), jnp.bfloat16) - jnp.bfloat16(rate) == 1.0
    mean = float(np.asarray(moved, np.float64).mean())
    # Each step rounds up or down by 2^-8 with a chance of rate 2^8: that is its variance.
    error = 5 * np.sqrt(40 * rate * 2**-8 / 8192)
    assert abs((1 - mean) - 40 * rate) < error


def test_state_dtypes_do_not_depend_on_those_of_the_parameters():
    """A bfloat16 parameter's second moment is float32 unless it is asked to be less."""
    config = dataclasses.replace(ADAMW, mu_dtype="bfloat16", ema_decay=0.9)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    state = abstract_opt_state(optimizer, abstract_params(TINY, jnp.bfloat16))
    adam, average = state[1][0], state[2]
    for tree, dtype in ((adam.mu, "bfloat16"), (adam.nu, "float32"), (average.average, "float32")):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}


def test_every_leaf_of_the_state_lies_as_its_parameter_does():
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    params = abstract_params(TINY, mesh=mesh)
    config = dataclasses.replace(ADAMW, nu_dtype="bfloat16", ema_decay=0.9, ema_dtype="bfloat16")
    state = abstract_opt_state(make_optimizer(config, optax.constant_schedule(1.0)), params)
    adam, average = state[1][0], state[2]
    for tree in (adam.mu, adam.nu, average.average):
        assert jax.tree.map(lambda x: x.sharding, tree) == jax.tree.map(
            lambda x: x.sharding, params
        )
    assert average.count.sharding.is_fully_replicated


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_average_is_the_exponential_one_of_the_parameters(dtype):
    """By hand from the parameters of each step; 0.99 is more than bfloat16 could follow nearest."""
    config = dataclasses.replace(ADAMW, ema_decay=0.99, ema_dtype=dtype, clip_norm=1e9)
    gradients = jax.random.normal(jax.random.key(0), (60, 4096)) + 1
    expected = start = np.ones(4096)
    trail = []
    optimizer = make_optimizer(config, optax.constant_schedule(1e-2))
    now = {"lm_head": {"kernel": jnp.ones(4096)}}
    kept, update = optimizer.init(now), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, kept = update({"lm_head": {"kernel": gradient}}, kept, now)
        now = optax.apply_updates(now, updates)
        trail.append(np.asarray(now["lm_head"]["kernel"], np.float64))
    for values in trail:
        expected = 0.99 * expected + 0.01 * values
    average = np.asarray(kept[2].average["lm_head"]["kernel"], np.float64)
    assert np.abs(start - expected).mean() > 0.05
    if dtype == "float32":
        np.testing.assert_allclose(average, expected, rtol=1e-5)
    assert abs(average.mean() - expected.mean()) < 1e-3 * abs(expected.mean())


def test_an_average_begins_as_a_copy_that_can_be_donated():
    params = {"lm_head": {"kernel": jnp.ones(3)}}
    config = dataclasses.replace(ADAMW, ema_decay=0.9)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    state = optimizer.init(params)
    jax.jit(lambda x: jax.tree.map(jnp.negative, x), donate_argnums=0)(params)
    np.testing.assert_array_equal(state[2].average["lm_head"]["kernel"], np.ones(3))


def test_without_options_the_state_is_that_of_older_checkpoints():
    """Paths and dtypes: a run that began with optax.adamw resumes."""
    params = abstract_params(TINY)
    before = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda step: 1.0, weight_decay=0.1, mask=decay_mask),
    )
    ours = make_optimizer(ADAMW, lambda step: 1.0)
    shapes = [jax.eval_shape(optimizer.init, params) for optimizer in (before, ours)]
    keys = [jax.tree_util.tree_flatten_with_path(shape)[0] for shape in shapes]
    assert keys[0] == keys[1]
