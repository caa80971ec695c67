"""The model against transformers, and the properties every packed causal model must have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import arrays_in

from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import (
    Llama,
    Tracked,
    abstract_params,
    count_params,
    hidden_states,
    init_params,
    make_tracers,
    output_kernel,
    param_dims,
    project_logits,
    read_params,
    rope_frequencies,
)
from ellama_jax.model.loss import token_losses
from ellama_jax.model.presets import PRESETS, RopeScaling, get_preset

TINY = get_preset("tiny")
LLAMA3 = RopeScaling(8.0, 1.0, 4.0, 8192)
FEATURES = {
    "multi-head, tied": dict(num_kv_heads=4),
    "grouped, tied": dict(),
    "multi-query, untied": dict(num_kv_heads=1, tied_embeddings=False),
    "grouped, untied, llama3 rope": dict(
        tied_embeddings=False, rope_theta=500000.0, rope_scaling=LLAMA3, max_seq_len=131072
    ),
    "head_dim apart from embed_dim / num_heads": dict(head_dim=32),
}


def random_params(config, seed=0):
    """Random weights that are large enough for every part of the model to matter."""
    params = init_params(config, seed)
    keys = jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(params)))
    leaves, tree = jax.tree.flatten(params)
    noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def plain_row(tokens, first_position=0):
    tokens = jnp.asarray(tokens)[None]
    positions = first_position + jnp.arange(tokens.shape[1])[None]
    return tokens, positions, jnp.ones_like(tokens)


def logits_of(params, config, tokens, positions, segment_ids, **kwargs):
    @jax.jit
    def run(params):
        hidden = hidden_states(params, config, tokens, positions, segment_ids, **kwargs)
        return project_logits(params, config, hidden)

    return np.asarray(run(params))


def transformers_logits(params, config, tokens, positions):
    """Runs transformers' LlamaForCausalLM with the same weights."""
    torch = pytest.importorskip("torch", reason="torch is the reference")
    from transformers import LlamaConfig, LlamaForCausalLM

    scaling = config.rope_scaling
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling:
        rope |= {
            "rope_type": "llama3", "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }  # fmt: skip
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.embed_dim,
            intermediate_size=config.mlp_dim, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim, max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied_embeddings,
            rope_parameters=rope, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    ours = {k: torch.tensor(np.asarray(v)) for k, v in flatten_paths(params).items()}
    state = {
        "model.embed_tokens.weight": ours["embed/table"],
        "model.norm.weight": ours["final_norm/scale"],
    }
    state["lm_head.weight"] = (
        ours["embed/table"] if config.tied_embeddings else ours["lm_head/kernel"].T
    )
    for i in range(config.num_layers):
        at = f"model.layers.{i}"
        state[f"{at}.input_layernorm.weight"] = ours["layers/attn_norm/scale"][i]
        state[f"{at}.post_attention_layernorm.weight"] = ours["layers/mlp_norm/scale"][i]
        for name in ("q", "k", "v"):
            weight = ours[f"layers/attn/w{name}"][i]
            state[f"{at}.self_attn.{name}_proj.weight"] = weight.reshape(config.embed_dim, -1).T
        wo = ours["layers/attn/wo"][i]
        state[f"{at}.self_attn.o_proj.weight"] = wo.reshape(-1, config.embed_dim).T
        for name in ("gate", "up", "down"):
            state[f"{at}.mlp.{name}_proj.weight"] = ours[f"layers/mlp/w_{name}"][i].T
    model.load_state_dict(state)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(np.asarray(tokens)).long(),
            position_ids=torch.tensor(np.asarray(positions)).long(),
        )
    return out.logits.numpy()


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("first_position", [0, 9000])
def test_logits_equal_transformers(feature, first_position):
    config = dataclasses.replace(TINY, **FEATURES[feature])
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 64)
    row = plain_row(tokens, first_position)
    ours = logits_of(params, config, *row)
    theirs = transformers_logits(params, config, row[0], row[1])
    assert np.max(np.abs(ours - theirs)) < 1e-4 * np.max(np.abs(theirs))


def test_llama3_rope_scaling_matters_beyond_the_original_length():
    """Guards the test above: without the scaling it would fail."""
    config = dataclasses.replace(TINY, **FEATURES["grouped, untied, llama3 rope"])
    unscaled = dataclasses.replace(config, rope_scaling=None)
    params = random_params(config)
    row = plain_row(np.r_[np.arange(40), np.arange(40)])
    far = row[1] * 300
    ours, plain = (logits_of(params, c, row[0], far, row[2]) for c in (config, unscaled))
    assert np.max(np.abs(ours - plain)) > 1e-2 * np.max(np.abs(plain))


def test_llama3_rope_frequencies_are_the_published_ones():
    """High frequencies stay, low ones are divided by 8 (worked from Llama 3.1's rule by hand)."""
    config = get_preset("llama3.1-8b")
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    ratio = plain / rope_frequencies(config)
    wavelengths = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelengths < 8192 / 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelengths > 8192], 8.0, rtol=1e-6)
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert len(between) and np.all((between > 1) & (between < 8))


def test_packed_documents_do_not_see_each_other():
    params = random_params(TINY)
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 500, size) for size in (5, 11, 8)]
    tokens = np.concatenate([*documents, [0, 0]])[None]
    positions = np.concatenate([*map(np.arange, (5, 11, 8)), [0, 0]])[None]
    segments = np.repeat([1, 2, 3, 0], [5, 11, 8, 2])[None]
    packed = logits_of(params, TINY, *map(jnp.asarray, (tokens, positions, segments)))[0]
    alone = [logits_of(params, TINY, *plain_row(document))[0] for document in documents]
    np.testing.assert_allclose(packed[:24], np.concatenate(alone), rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(packed))


def test_branches_see_their_context_but_not_each_other():
    params = random_params(TINY)
    rng = np.random.default_rng(2)
    context, first, second = (rng.integers(0, 500, size) for size in (7, 3, 4))
    tokens = jnp.asarray(np.concatenate([context, first, second])[None])
    positions = jnp.asarray(
        np.concatenate([np.arange(7), 7 + np.arange(3), 7 + np.arange(4)])[None]
    )
    branches = jnp.asarray(np.repeat([0, 1, 2], [7, 3, 4])[None])
    ours = logits_of(params, TINY, tokens, positions, jnp.ones_like(tokens), branch_ids=branches)[0]
    for branch, rows in ((first, slice(7, 10)), (second, slice(10, 14))):
        alone = logits_of(params, TINY, *plain_row(np.r_[context, branch]))[0]
        np.testing.assert_allclose(ours[rows], alone[7:], rtol=1e-5, atol=1e-5)


def test_no_position_sees_the_future():
    """By gradient: the hidden state at t depends on embeddings up to t, and on all of those."""
    config = dataclasses.replace(TINY, vocab_size=16)
    params = random_params(config)
    tokens, positions, segments = plain_row(np.arange(12))

    def state_at(table, t):
        changed = {**params, "embed": {"table": table}}
        return hidden_states(changed, config, tokens, positions, segments)[0, t].sum()

    gradient = jax.jit(jax.grad(state_at), static_argnums=1)
    for t in (0, 5, 11):
        # Token i stands at position i, so row i of the table's gradient is position i's influence.
        influence = np.abs(np.asarray(gradient(params["embed"]["table"], t))).sum(axis=1)
        assert np.all(influence[: t + 1] > 0)
        assert np.all(influence[t + 1 :] == 0)


def test_bfloat16_compute_stays_close_to_float32():
    params = init_params(TINY, 0)
    row = plain_row(np.arange(32))
    exact = logits_of(params, TINY, *row)
    rounded = logits_of(params, TINY, *row, compute_dtype=jnp.bfloat16)
    assert np.max(np.abs(exact - rounded)) < 2e-2 * np.max(np.abs(exact))


def test_parameter_counts_are_the_published_ones():
    counts = {name: count_params(config) for name, config in PRESETS.items() if name != "tiny"}
    assert counts == {
        "llama3.1-8b": 8030261248,
        "llama3.1-70b": 70553706496,
        "llama3.1-405b": 405853388800,
        "llama3.2-1b": 1235814400,
        "llama3.2-3b": 3212749824,
        "smollm2-135m": 134515008,
        "smollm2-360m": 361821120,
        "smollm2-1.7b": 1711376384,
    }


def test_initial_parameters_have_the_abstract_shapes_and_are_seeded():
    params, abstract = init_params(TINY, 0), abstract_params(TINY)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), abstract
    )
    again, other = init_params(TINY, 0), init_params(TINY, 1)
    table = params["embed"]["table"]
    assert np.array_equal(table, again["embed"]["table"])
    assert not np.array_equal(table, other["embed"]["table"])
    assert abs(float(jnp.std(table)) - 0.02) < 1e-3


def test_module_state_has_the_paths_of_the_parameter_tree():
    from flax import nnx

    config = dataclasses.replace(TINY, tied_embeddings=False)
    state = nnx.state(Llama(config, init_params(config, 0)), nnx.Param)
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    assert paths == set(param_dims(config))


# --- tracers: gradients taken in the compute dtype -----------------------------------------------


@functools.cache
def model_of(tied):
    config = dataclasses.replace(TINY, tied_embeddings=tied)
    return config, random_params(config)


def row_loss(config, dtype):
    """The loss of a packed row in which each token stands more than once, by the parameters."""
    tokens = jnp.arange(16)[None] % 7
    positions, segments = jnp.arange(16)[None] % 9, 1 + jnp.arange(16)[None] // 9

    def total(params):
        hidden = hidden_states(params, config, tokens, positions, segments, compute_dtype=dtype)
        kernel, dims = output_kernel(params, config)
        weights = jnp.linspace(0.0, 1.0, 16)[None]
        return token_losses(hidden, kernel, tokens + 1, weights, 8, kernel_dims=dims)[0]

    return total


def by_params(params, tracers, config, dtype):
    return jax.grad(row_loss(config, dtype))(params)


def by_tracers(params, tracers, config, dtype):
    total = row_loss(config, dtype)
    return jax.grad(lambda tracers: total(jax.tree.map(Tracked, params, tracers)))(tracers)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def both_gradients(*arguments, config, dtype):
    return by_params(*arguments, config, dtype), by_tracers(*arguments, config, dtype)


@pytest.mark.parametrize(
    "dtype, tied", [(jnp.float32, False), (jnp.bfloat16, False), (jnp.bfloat16, True)]
)
def test_gradients_by_tracers_are_those_by_parameters(dtype, tied):
    """In bfloat16 matrices' come as they are computed; the table's and the norms' in float32."""
    config, params = model_of(tied)
    tracers = make_tracers(params, dtype)
    both = both_gradients(params, tracers, config=config, dtype=dtype)
    plain, tracked = map(flatten_paths, both)
    for path, wanted in plain.items():
        summed = path == "embed/table" or path.endswith("scale")
        assert tracked[path].dtype == (jnp.float32 if summed else dtype), path
        assert np.abs(wanted).max() > 1e-2, path
        got = np.asarray(tracked[path], np.float32)
        # By its parameter, the head's is not rounded at all.
        np.testing.assert_allclose(got, wanted, rtol=1e-5 if dtype == jnp.float32 else 2**-7,
                                   atol=1e-6 * np.abs(wanted).max(), err_msg=path)  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_values_of_tracers_are_never_used(dtype):
    config, params = model_of(False)
    zeros = make_tracers(params, dtype)
    nans = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), zeros)
    got = [both_gradients(params, x, config=config, dtype=dtype)[1] for x in (zeros, nans)]
    jax.tree.map(np.testing.assert_array_equal, *got)


def test_no_gradient_of_a_stacked_matrix_is_in_float32():
    """What tracers are for: the parameters' own gradients have such an array for each matrix."""
    config, params = model_of(False)

    tracers = make_tracers(params, jnp.bfloat16)

    def arrays(gradients):
        traced = jax.make_jaxpr(gradients, static_argnums=(2, 3))
        found = arrays_in(traced(params, tracers, config, jnp.bfloat16))
        return {(array.shape, array.dtype.name) for array in found}

    matrices = [*params["layers"]["attn"].values(), *params["layers"]["mlp"].values()]
    in_float32 = {(matrix.shape, "float32") for matrix in matrices}
    assert in_float32 <= arrays(by_params)
    assert not in_float32 & arrays(by_tracers)
    assert {(matrix.shape, "bfloat16") for matrix in matrices} <= arrays(by_tracers)


def awkward_floats():
    """Bit patterns all over float32, and each bfloat16's halfway to the next with its neighbours."""
    patterns = np.arange(0, 2**32, 2**12 - 1, dtype=np.uint64)
    edges = (np.arange(2**16, dtype=np.uint64)[:, None] << 16) + [0x7FFF, 0x8000, 0x8001, 0]
    return np.r_[patterns, edges.ravel()].astype(np.uint32).view(np.float32)


def test_reading_in_bfloat16_rounds_as_astype_does_bit_for_bit():
    """Infinities, NaN, denormals and what overflows too."""
    values = awkward_floats()
    tracked = Tracked(jnp.asarray(values), jnp.zeros(values.shape, jnp.bfloat16))
    got = np.asarray(jax.jit(read_params)({"w": tracked})["w"])
    with np.errstate(invalid="ignore"):
        wanted = values.astype(jnp.bfloat16)
    assert got.dtype == wanted.dtype
    nan = np.isnan(values)
    assert nan.any() and np.isinf(values).any()
    assert np.all(np.isnan(got[nan].astype(np.float32)))
    assert np.array_equal(got[~nan].view(np.uint16), wanted[~nan].view(np.uint16))


def test_reading_rounds_first_only_where_the_tracer_is_narrower():
    def text(param, tracer):
        tracked = Tracked(jnp.ones(3, param), jnp.zeros(3, tracer))
        return str(jax.make_jaxpr(read_params)({"w": tracked}))

    assert "reduce_precision" in text("float32", "bfloat16")
    for param, tracer in (
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
    ):
        assert "reduce_precision" not in text(param, tracer)
