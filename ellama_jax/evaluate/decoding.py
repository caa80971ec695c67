"""Owns one batch's generation on the device: the key-value cache, the loop, the choice of a token.

It knows arrays only: a batch of prompts goes in, token ids come out. Which prompts share a batch,
stop strings and texts belong to `generation`.

Prompts of different lengths end at the same slot, so that every step writes one slot of all rows:

    slot       0   1   2   3 | 4   5   ...        P = 4 slots of prompt, then one a new token
    row 0      .   .  c1  c2 | n1  n2             `.` is padding, seen by nothing
    row 1     d1  d2  d3  d4 | m1  m2
    position   .   .   0   1 | 2   3              of row 0: padding moves no position

The cache of keys and of values is [L, B, S, K, H] each, in the compute dtype.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ellama_jax.core.precision import float32_as_it_says
from ellama_jax.core.sharding import ACTIVATION_AXES, MESH_AXES, constrain, partition_spec
from ellama_jax.model import llama
from ellama_jax.model.attention import AUTO, attend, resolve_attention
from ellama_jax.model.presets import LlamaConfig


class Sampling(NamedTuple):
    """How each row's tokens are drawn, [B] each.

    Attributes:
        temperature: float32; 0 takes the most probable token.
        top_p: float32, the least share of probability that is kept; 1 keeps all.
        top_k: int32, how many of the most probable tokens are kept; 0 keeps all.
        streams: uint32, the row's own stream of random numbers, whatever row it is.
        seed: [] uint32.
    """

    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    streams: jax.Array
    seed: jax.Array


class Progressed(NamedTuple):
    """What a batch has come to; every array but `step` has B rows.

    Attributes:
        keys, values: [L, B, S, K, H].
        written: [B, G] int32, the tokens so far; those after a row's end mean nothing.
        counts: [B] int32, how many of them count, a token that ended the row included.
        done: [B] bool.
        step: [] int32, tokens written to the longest row.
    """

    keys: jax.Array
    values: jax.Array
    written: jax.Array
    counts: jax.Array
    done: jax.Array
    step: jax.Array


def fold_context(mesh: Mesh) -> Mesh:
    """Returns a mesh of the same devices without `context`, whose devices join `fsdp`.

    A step has one position, which nothing can divide. Weights lie on the folded mesh as before:
    `embed` is stored over fsdp and context together.
    """
    sizes = dict(mesh.shape)
    shape = (sizes["data"], sizes["fsdp"] * sizes["context"], 1, sizes["tensor"])
    return Mesh(mesh.devices.reshape(shape), MESH_AXES, axis_types=mesh.axis_types)


@functools.partial(jax.jit, static_argnames=("config", "num_new", "compute_dtype", "sampled"))
def start(
    params: dict,
    config: LlamaConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    limits: jax.Array,
    ends: jax.Array,
    sampling: Sampling,
    *,
    num_new: int,
    compute_dtype,
    sampled: bool,
) -> Progressed:
    """Reads the prompts into a fresh cache and writes every row's first token.

    Args:
        tokens: [B, P] int32, each prompt at the end of its row.
        lengths: [B] int32, tokens of each prompt.
        limits: [B] int32, the most tokens to write; a row with 0 is done at once.
        ends: [E] int32, ids that end a row.
        num_new: G, slots for new tokens.
        sampled: whether any row has a temperature; without, nothing is sorted or drawn.
    """
    rows, width = tokens.shape
    starts = width - lengths
    slots = jnp.arange(width)
    segments = (slots >= starts[:, None]).astype(jnp.int32)
    rope = llama.rope_tables(config, jnp.maximum(slots - starts[:, None], 0))
    attention = resolve_attention(AUTO, jax.default_backend(), width)
    shape = (config.num_layers, rows, width + num_new, config.num_kv_heads, config.head_dim)
    empty = _constrain_cache(jnp.zeros(shape, compute_dtype))

    def attend_prompt(q, k, v, keys, values, layer):
        keys, values = _write(keys, k, layer, 0), _write(values, v, layer, 0)
        return attend(q, k, v, segments, None, attention), keys, values

    x, keys, values = _run_layers(params, config, tokens, rope, empty, empty, attend_prompt)
    state = Progressed(
        keys,
        values,
        written=jnp.zeros((rows, num_new), jnp.int32),
        counts=jnp.zeros(rows, jnp.int32),
        done=limits == 0,
        step=jnp.int32(0),
    )
    return _write_token(params, config, x[:, -1], state, limits, ends, sampling, sampled)


@functools.partial(jax.jit, static_argnames=("config", "sampled"), donate_argnames=("state",))
def advance(
    params: dict,
    config: LlamaConfig,
    state: Progressed,
    stopped: jax.Array,
    until: jax.Array,
    lengths: jax.Array,
    limits: jax.Array,
    ends: jax.Array,
    sampling: Sampling,
    *,
    sampled: bool,
) -> Progressed:
    """Writes tokens until all rows are done or have `until` tokens.

    Args:
        state: what `start` or `advance` returned; its memory is used again.
        stopped: [B] bool, rows that have ended for a reason of the caller's.
        until: [] int32, at most G.
        lengths, limits, ends, sampling, sampled: as for `start`.
    """
    slots = state.keys.shape[2]
    width = slots - state.written.shape[1]
    starts = width - lengths

    def unfinished(state):
        return (state.step < until) & ~state.done.all()

    def write_next(state):
        last = jax.lax.dynamic_index_in_dim(state.written, state.step - 1, axis=1)  # [B, 1]
        slot = width + state.step - 1
        rope = llama.rope_tables(config, (slot - starts)[:, None])
        places = jnp.arange(slots)
        seen = (places >= starts[:, None]) & (places <= slot)  # [B, S]

        def attend_cache(q, k, v, keys, values, layer):
            keys, values = _write(keys, k, layer, slot), _write(values, v, layer, slot)
            k, v = (
                constrain(
                    jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False),
                    "batch", "length", "kv_heads", "head_dim",
                )
                for cache in (keys, values)
            )  # fmt: skip
            out = jax.nn.dot_product_attention(
                q, k, v, mask=seen[:, None, None], implementation="xla"
            )
            return out, keys, values

        x, keys, values = _run_layers(
            params, config, last, rope, state.keys, state.values, attend_cache
        )
        state = state._replace(keys=keys, values=values)
        return _write_token(params, config, x[:, -1], state, limits, ends, sampling, sampled)

    state = state._replace(done=state.done | stopped)
    return jax.lax.while_loop(unfinished, write_next, state)


def _run_layers(params, config, tokens, rope, keys, values, attend_with):
    """Runs the model with attention of the caller's; returns final hidden states and the cache."""
    x = llama.Embed(params["embed"])(tokens).astype(keys.dtype)
    x = constrain(x, "batch", "length", "embed")

    def run_layer(carry, layer):
        x, keys, values = carry
        number, layer_params = layer
        block = llama.Block(layer_params, config)
        q, k, v = block.attn.project(block.attn_norm(x), rope)
        heads, keys, values = attend_with(q, k, v, keys, values, number)
        x = x + constrain(block.attn.combine(heads), "batch", "length", "embed")
        return (block.add_mlp(x), keys, values), None

    layers = jnp.arange(config.num_layers), params["layers"]
    with float32_as_it_says(x.dtype):
        (x, keys, values), _ = jax.lax.scan(run_layer, (x, keys, values), layers)
    return llama.normalize_final(params["final_norm"], config, x), keys, values


def _write(cache, new, layer, slot):
    """Puts `new` [B, T, K, H] into one layer of the cache [L, B, S, K, H], from `slot` on."""
    return jax.lax.dynamic_update_slice(
        cache, new.astype(cache.dtype)[None], (layer, 0, slot, 0, 0)
    )


def _constrain_cache(cache):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return cache
    dims = ("batch", "length", "kv_heads", "head_dim")
    spec = partition_spec(dims, cache.shape[1:], mesh.shape, ACTIVATION_AXES, "cache")
    return jax.lax.with_sharding_constraint(cache, PartitionSpec(None, *spec))


def _write_token(params, config, hidden, state, limits, ends, sampling, sampled):
    """Chooses every row's next token from its last hidden state [B, D]."""
    logits = llama.project_logits(params, config, hidden).astype(jnp.float32)
    chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampled:
        drawn = jax.vmap(_draw, in_axes=(0, 0, 0, 0, 0, None, None))(
            logits, sampling.temperature, sampling.top_p, sampling.top_k, sampling.streams,
            sampling.seed, state.step,
        )  # fmt: skip
        chosen = jnp.where(sampling.temperature > 0, drawn, chosen)
    written = jax.lax.dynamic_update_slice(state.written, chosen[:, None], (0, state.step))
    counts = state.counts + ~state.done
    ended = (chosen[:, None] == ends).any(axis=-1)
    done = state.done | ended | (counts >= limits)
    return state._replace(written=written, counts=counts, done=done, step=state.step + 1)


def _draw(logits, temperature, top_p, top_k, stream, seed, step):
    """Draws one token from logits [V]."""
    logits = keep_probable(logits / jnp.where(temperature > 0, temperature, 1.0), top_p, top_k)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def keep_probable(logits: jax.Array, top_p: jax.Array, top_k: jax.Array) -> jax.Array:
    """Sets what top-k and then nucleus sampling (arXiv 1904.09751) leave out to -inf.

    Args:
        logits: [V] float32.
        top_p: the fewest tokens that together have this probability are kept; 1 keeps all.
        top_k: so many tokens are kept (and those equal to the last); 0 keeps all.

    >>> jnp.isfinite(keep_probable(jnp.log(jnp.array([0.1, 0.5, 0.4])), 0.6, 0)).tolist()
    [False, True, True]
    """
    descending = -jnp.sort(-logits)
    ranks = jnp.arange(logits.shape[0])
    kth = descending[jnp.where(top_k > 0, jnp.minimum(top_k, len(ranks)), len(ranks)) - 1]
    descending = jnp.where(descending >= kth, descending, -jnp.inf)
    shares = jax.nn.softmax(descending)
    before = jnp.cumsum(shares) - shares
    kept = jnp.where((before < top_p) | (top_p >= 1), descending, jnp.inf)
    least = jnp.maximum(jnp.min(kept), kth)
    return jnp.where(logits >= jnp.minimum(least, descending[0]), logits, -jnp.inf)


def place_params(params: dict, config: LlamaConfig, mesh: Mesh) -> dict:
    """Lays parameters on a folded mesh; nothing moves where they lie on its unfolded one."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, llama.abstract_params(config, mesh=mesh))
    return jax.device_put(params, shardings)
