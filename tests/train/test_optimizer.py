"""The update against torch's AdamW, and the learning-rate curve by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.config import OptimizerConfig, ScheduleConfig
from ellama_jax.model.llama import abstract_params, init_params
from ellama_jax.model.presets import PRESETS, get_preset
from ellama_jax.sharding import make_mesh
from ellama_jax.train.optimizer import (
    abstract_opt_state,
    decay_mask,
    global_norm,
    init_opt_state,
    make_optimizer,
    make_schedule,
    peak_learning_rate,
)
from ellama_jax.tree import flatten_paths, unflatten_paths

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
