"""Llama as Flax NNX modules over a plain tree of parameters.

Owns what the parameters are (`PARAMETERS`) and how they are applied. Everything outside sees nested
dicts of arrays and the pure functions at the end of this file; reading weights from files belongs to
ellama_jax/weights.

Letters: B batch, T length, D embed, F mlp, N heads, K kv heads, H head_dim, V vocab, L layers.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ellama_jax.config import AttentionConfig
from ellama_jax.core.precision import float32_as_it_says
from ellama_jax.core.sharding import constrain, storage_sharding
from ellama_jax.core.tree import map_paths, unflatten_paths
from ellama_jax.model.attention import AUTO, attend, resolve_attention
from ellama_jax.model.attention_context import context_size, from_zigzag, to_zigzag
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.model.remat import checkpointed


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: named dims, and the standard deviation of its initial values (None: ones)."""

    dims: tuple[str, ...]
    init_std: float | None


def _parameters(config: LlamaConfig) -> dict[str, ParamSpec]:
    """Returns the table of parameters, one row each."""
    std = 0.02
    # Projections into the residual stream start smaller, as in GPT-2, so that its variance does
    # not grow with depth.
    residual = std / math.sqrt(2 * config.num_layers)
    table = {
        "embed/table": ParamSpec(("vocab", "embed"), std),
        "layers/attn_norm/scale": ParamSpec(("layers", "norm"), None),
        "layers/attn/wq": ParamSpec(("layers", "embed", "heads", "head_dim"), std),
        "layers/attn/wk": ParamSpec(("layers", "embed", "kv_heads", "head_dim"), std),
        "layers/attn/wv": ParamSpec(("layers", "embed", "kv_heads", "head_dim"), std),
        "layers/attn/wo": ParamSpec(("layers", "heads", "head_dim", "embed"), residual),
        "layers/mlp_norm/scale": ParamSpec(("layers", "norm"), None),
        "layers/mlp/w_gate": ParamSpec(("layers", "embed", "mlp"), std),
        "layers/mlp/w_up": ParamSpec(("layers", "embed", "mlp"), std),
        "layers/mlp/w_down": ParamSpec(("layers", "mlp", "embed"), residual),
        "final_norm/scale": ParamSpec(("norm",), None),
    }
    if not config.tied_embeddings:
        table["lm_head/kernel"] = ParamSpec(("embed", "vocab"), std)
    return table


def param_dims(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Returns the named dims of every parameter, by path."""
    return {path: spec.dims for path, spec in _parameters(config).items()}


def dim_sizes(config: LlamaConfig) -> dict[str, int]:
    """Returns the size of every parameter dim, in elements."""
    return {
        "vocab": config.vocab_size,
        "embed": config.embed_dim,
        "norm": config.embed_dim,
        "mlp": config.mlp_dim,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
    }


def abstract_params(config: LlamaConfig, dtype=jnp.float32, mesh: Mesh | None = None) -> dict:
    """Returns the parameters' shapes, dtypes and, given a mesh, shardings; nothing is allocated.

    Raises:
        ValueError: if a dim cannot be divided as the mesh asks.
    """
    sizes = dim_sizes(config)

    def abstract(path, spec):
        shape = tuple(sizes[dim] for dim in spec.dims)
        sharding = storage_sharding(mesh, spec.dims, shape, path) if mesh is not None else None
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return unflatten_paths({p: abstract(p, spec) for p, spec in _parameters(config).items()})


def init_params(
    config: LlamaConfig, seed: int, dtype=jnp.float32, mesh: Mesh | None = None
) -> dict:
    """Draws random parameters, created in place on the mesh; the same values on every mesh."""
    abstract = abstract_params(config, dtype, mesh)
    table = _parameters(config)
    sizes = dim_sizes(config)

    def draw():
        flat = {}
        for index, (path, spec) in enumerate(sorted(table.items())):
            shape = tuple(sizes[dim] for dim in spec.dims)
            if spec.init_std is None:
                flat[path] = jnp.ones(shape, dtype)
            else:
                key = jax.random.fold_in(jax.random.key(seed), index)
                flat[path] = (spec.init_std * jax.random.normal(key, shape)).astype(dtype)
        return unflatten_paths(flat)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract) if mesh is not None else None
    return jax.jit(draw, out_shardings=shardings)()


def count_params(config: LlamaConfig) -> int:
    """Returns the number of parameters.

    >>> from ellama_jax.model.presets import get_preset
    >>> count_params(get_preset("llama3.1-8b"))
    8030261248
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracked:
    """A parameter beside the tracer whose gradient is taken in its place.

    The gradient of a float32 matrix that is computed with in bfloat16 is a bfloat16 array, turned
    into float32 only because JAX gives a gradient its parameter's dtype; stacked over the layers
    that is the largest array of a step, for nothing. A tracer of zeros in the compute dtype takes
    the gradient as it is computed. Its value is never used.
    """

    param: jax.Array
    tracer: jax.Array


def make_tracers(params: dict, compute_dtype) -> dict:
    """Returns zeros shaped as `params`, in the dtype that each parameter's gradient is computed in.

    That is `compute_dtype` for what enters matrix products. The embedding's gradient sums over
    every occurrence of a token, and norms are computed in float32: theirs stay float32.
    """
    dtypes = {True: compute_dtype, False: jnp.float32}

    def tracer(path, param):
        return jnp.zeros(param.shape, dtypes[path not in _SUMMED and not path.endswith("/scale")])

    return map_paths(tracer, params)


_SUMMED = ("embed/table",)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blend:
    """A parameter between two models, made where it is used: (1 - alpha) base + alpha adapted.

    In float32, then in `base`'s dtype. Layers are made one at a time, so a third model never exists
    as a whole; and alpha is an argument of the compiled program, not a part of it.

    Attributes:
        base, adapted: arrays of one shape.
        alpha: float32, a number; [L] where the arrays are stacked [L, ...].
    """

    base: jax.Array
    adapted: jax.Array
    alpha: jax.Array

    def read(self) -> jax.Array:
        """Returns the parameter."""
        alpha = self.alpha.reshape(self.alpha.shape + (1,) * (self.base.ndim - self.alpha.ndim))
        base, adapted = self.base.astype(jnp.float32), self.adapted.astype(jnp.float32)
        return ((1 - alpha) * base + alpha * adapted).astype(self.base.dtype)


def read_params(tree):
    """Returns `tree` with `Tracked` leaves in their compute dtype and `Blend`s made; others stay."""

    def read(leaf):
        if isinstance(leaf, Tracked):
            return _read_tracked(leaf.param, leaf.tracer)
        return leaf.read() if isinstance(leaf, Blend) else leaf

    return jax.tree.map(read, tree, is_leaf=lambda leaf: isinstance(leaf, Tracked | Blend))


@jax.custom_vjp
def _read_tracked(param, tracer):
    dtype = jnp.finfo(tracer.dtype)
    if dtype.bits < jnp.finfo(param.dtype).bits:
        # Changes no value. But where nothing reads the float32 array, XLA for TPUs makes the whole
        # loop over layers read a copy in bfloat16, and so holds every layer's weights twice.
        param = jax.lax.reduce_precision(param, dtype.nexp, dtype.nmant)
    return param.astype(tracer.dtype)


def _read_forward(param, tracer):
    return _read_tracked(param, tracer), None


def _read_backward(_, gradient):
    return None, gradient


_read_tracked.defvjp(_read_forward, _read_backward)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (arXiv 1910.07467), computed in float32."""

    def __init__(self, params: dict, eps: float):
        self.scale = nnx.Param(params["scale"])
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)


@dataclass(frozen=True)
class Sight:
    """What every layer needs to know of the positions: their rotation, and who sees whom."""

    rope: tuple[jax.Array, jax.Array]
    segment_ids: jax.Array
    branch_ids: jax.Array | None
    attention: AttentionConfig


class Attention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions (arXiv 2104.09864)."""

    def __init__(self, params: dict):
        self.wq, self.wk, self.wv, self.wo = (
            nnx.Param(params[n]) for n in ("wq", "wk", "wv", "wo")
        )

    def __call__(self, x: jax.Array, sight: Sight) -> jax.Array:
        q, k, v = self.project(x, sight.rope)
        return self.combine(attend(q, k, v, sight.segment_ids, sight.branch_ids, sight.attention))

    def project(self, x: jax.Array, rope: tuple[jax.Array, jax.Array]):
        """Returns queries [B, T, N, H], keys and values [B, T, K, H], the first two rotated."""
        q = constrain(_project(x, self.wq, 1), "batch", "length", "heads", "head_dim")
        k = constrain(_project(x, self.wk, 1), "batch", "length", "kv_heads", "head_dim")
        v = constrain(_project(x, self.wv, 1), "batch", "length", "kv_heads", "head_dim")
        return apply_rope(q, *rope), apply_rope(k, *rope), v

    def combine(self, heads: jax.Array) -> jax.Array:
        """Projects what the heads [B, T, N, H] found back to [B, T, D]."""
        return _project(heads, self.wo, 2)


class MLP(nnx.Module):
    """The gated feed-forward layer SwiGLU (arXiv 2002.05202)."""

    def __init__(self, params: dict):
        self.w_gate, self.w_up, self.w_down = (
            nnx.Param(params[name]) for name in ("w_gate", "w_up", "w_down")
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(_project(x, self.w_gate, 1)) * _project(x, self.w_up, 1)
        return _project(constrain(hidden, "batch", "length", "mlp"), self.w_down, 1)


class Block(nnx.Module):
    """One decoder layer, or all of them stacked along a leading [L]."""

    def __init__(self, params: dict, config: LlamaConfig):
        self.attn_norm = RMSNorm(params["attn_norm"], config.norm_eps)
        self.attn = Attention(params["attn"])
        self.mlp_norm = RMSNorm(params["mlp_norm"], config.norm_eps)
        self.mlp = MLP(params["mlp"])

    def __call__(self, x: jax.Array, sight: Sight) -> jax.Array:
        return self.add_mlp(self.add_attention(x, sight))

    def add_attention(self, x: jax.Array, sight: Sight) -> jax.Array:
        return x + constrain(self.attn(self.attn_norm(x), sight), "batch", "length", "embed")

    def add_mlp(self, x: jax.Array) -> jax.Array:
        return x + constrain(self.mlp(self.mlp_norm(x)), "batch", "length", "embed")


class Llama(nnx.Module):
    """The whole model over a given tree of parameters (arrays or tracers).

    The module's own state has the same paths as the tree, so what works on NNX modules (Tunix,
    Qwix) works on `Llama(config, params)`.
    """

    def __init__(self, config: LlamaConfig, params: dict):
        self.config = config
        self.embed = Embed(read_params(params["embed"]))
        self.layers = Block(params["layers"], config)
        self.final_norm = RMSNorm(read_params(params["final_norm"]), config.norm_eps)
        if not config.tied_embeddings:
            self.lm_head = Head(read_params(params["lm_head"]))

    def __call__(self, tokens: jax.Array, sight: Sight, compute_dtype, remat: str) -> jax.Array:
        x = constrain(self.embed(tokens).astype(compute_dtype), "batch", "length", "embed")
        graph, stacked = nnx.split(self.layers)

        def run_layer(x, layer):
            return nnx.merge(graph, read_params(layer))(x, sight), None

        x, _ = jax.lax.scan(checkpointed(run_layer, remat), x, stacked)
        return self.final_norm(x)


class Embed(nnx.Module):
    """The token embedding."""

    def __init__(self, params: dict):
        self.table = nnx.Param(params["table"])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Stored divided over fsdp as well; gathered here as every weight is for its use. Looking up
        # in the stored form makes XLA replicate the result and divide it anew.
        table = constrain(self.table[...], "vocab", "embed")
        return jnp.take(table, tokens, axis=0)


class Head(nnx.Module):
    """The untied projection onto the vocabulary; applied in chunks by loss.py."""

    def __init__(self, params: dict):
        self.kernel = nnx.Param(params["kernel"])


def _project(x: jax.Array, weight: nnx.Param, num_contracted: int) -> jax.Array:
    """Contracts the last `num_contracted` dims of `x` with the first of `weight`."""
    kernel = weight[...].astype(x.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        # As one plain product. The gradient of a kernel over two dims, [B, T], is a product of two
        # transposed arrays to XLA on a CPU, at less than half the speed; divided arrays stay apart.
        inner = math.prod(kernel.shape[:num_contracted])
        flat = x.reshape(-1, inner) @ kernel.reshape(inner, -1)
        return flat.reshape(*x.shape[: x.ndim - num_contracted], *kernel.shape[num_contracted:])
    x_dims = tuple(range(x.ndim - num_contracted, x.ndim))
    weight_dims = tuple(range(num_contracted))
    return jax.lax.dot_general(x, kernel, ((x_dims, weight_dims), ((), ())))


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Returns RoPE's angular frequencies, [H / 2] float32, radians a position.

    With Llama 3.1's scaling, wavelengths beyond `original_max_seq_len / low_freq_factor` are
    stretched by `factor`, those under `original / high_freq_factor` stay, and between them the two
    are blended linearly (Llama 3.1's published code; arXiv 2407.21783, section 3.2).
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = (1.0 / (np.float32(config.rope_theta) ** exponents)).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    turns = scaling.original_max_seq_len * inverse / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return ((1 - kept) * inverse / scaling.factor + kept * inverse).astype(np.float32)


def rope_tables(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines for `positions` [B, T], each [B, T, 1, H / 2] float32."""
    angles = positions.astype(jnp.float32)[:, :, None, None] * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the two halves of each head (Hugging Face's half-split convention).

    Args:
        x: [B, T, N, H]; cos, sin: [B, T, 1, H / 2] float32.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def hidden_states(
    params: dict,
    config: LlamaConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    branch_ids: jax.Array | None = None,
    *,
    compute_dtype=jnp.float32,
    remat: str = "none",
    attention: AttentionConfig = AUTO,
    zigzag: bool = False,
) -> jax.Array:
    """Runs the model up to and with its final norm.

    Args:
        params: the parameter tree of `abstract_params`.
        tokens, positions, segment_ids: [B, T] int32; segment 0 is padding.
        branch_ids: [B, T] int32 or None, see `attention_mask`.
        compute_dtype: dtype of activations and matrix products; norms and softmax are float32.
        remat: what backward recomputes, one of `remat.REMAT_POLICIES`.
        attention: the kernel; `auto` is that of JAX's default backend.
        zigzag: says that rows are given, and wanted back, in the order that a mesh with `context`
            computes in (`batch_to_zigzag`); otherwise they are put into it and back.

    Returns:
        [B, T, D] in `compute_dtype`.
    """
    shards = context_size()
    attention = resolve_attention(attention, jax.default_backend(), tokens.shape[1], shards)
    if not zigzag:
        tokens, positions, segment_ids, branch_ids = (
            None if x is None else to_zigzag(x, shards)
            for x in (tokens, positions, segment_ids, branch_ids)
        )
    sight = Sight(rope_tables(config, positions), segment_ids, branch_ids, attention)
    with float32_as_it_says(compute_dtype):
        hidden = Llama(config, params)(tokens, sight, compute_dtype, remat)
    return hidden if zigzag else from_zigzag(hidden, shards)


def run_layer(
    params: dict,
    config: LlamaConfig,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs one decoder layer alone, for those who hold one layer at a time.

    Args:
        params: `layers` of the parameter tree, each leaf without its leading [L].
        x: [B, T, D], the embeddings or what the layer before returned second.
        positions, segment_ids: [B, T] int32; segment 0 is padding.

    Returns:
        The residual stream after attention and after the MLP, each [B, T, D] in the dtype of `x`.
    """
    block = Block(params, config)
    attention = resolve_attention(AUTO, jax.default_backend(), x.shape[1])
    sight = Sight(rope_tables(config, positions), segment_ids, None, attention)
    with float32_as_it_says(x.dtype):
        between = block.add_attention(x, sight)
        return between, block.add_mlp(between)


def normalize_final(params: dict, config: LlamaConfig, x: jax.Array) -> jax.Array:
    """Applies the final norm, `final_norm` of the tree, to the last layer's output [B, T, D]."""
    return RMSNorm(params, config.norm_eps)(x)


def output_kernel(params: dict, config: LlamaConfig) -> tuple[jax.Array, str]:
    """Returns the projection onto the vocabulary as it is stored, and its dims as letters.

    Those are `vd` for a tied table [V, D], `dv` for a kernel [D, V]. Turning one into the other
    would copy it, its gradient and its optimizer state in every step.
    """
    if config.tied_embeddings:
        return read_params(params["embed"])["table"], "vd"
    return read_params(params["lm_head"])["kernel"], "dv"


def project_logits(params: dict, config: LlamaConfig, hidden: jax.Array) -> jax.Array:
    """Projects hidden states [..., D] onto the vocabulary: logits [..., V] float32."""
    kernel, dims = output_kernel(params, config)
    with float32_as_it_says(hidden.dtype):
        return jnp.einsum(
            f"...d,{dims}->...v", hidden, kernel.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
