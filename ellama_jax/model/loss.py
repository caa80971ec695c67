"""The next-token loss, without ever holding [B, T, V] logits.

Owns the fused projection and cross-entropy; which positions count is the batch's `loss_weights`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ellama_jax.core.precision import float32_as_it_says
from ellama_jax.core.sharding import ACTIVATION_AXES, STORAGE_AXES


def token_losses(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunk_tokens: int,
    *,
    kernel_dims: str = "vd",
) -> tuple[jax.Array, jax.Array]:
    """Computes the weighted sum of next-token cross-entropies and each token's own.

    The words of the vocabulary are taken a block at a time; a block's logits live only while they
    are computed. One pass finds each position's normaliser; under differentiation a second one
    computes the logits again and forms both gradients (as Cut Cross-Entropy does in a kernel,
    arXiv 2411.09009). With a single block the first pass's logits serve the second.

    On a mesh each device takes its own positions and its part of the vocabulary. A block of the
    kernel is gathered in the dtype of `hidden`, and the block's gradient is divided over the
    devices again before the next one, so that no device ever holds the whole kernel or the
    gradient of it.

    Args:
        hidden: [B, T, D]; kernel: [V, D]; targets: [B, T] int32; weights: [B, T] float32.
        chunk_tokens: at most as many logits as so many positions have exist at one time, on each
            device; where words do not divide into blocks, up to one more for each position.
        kernel_dims: `vd`, or `dv` for a kernel stored as [D, V].

    Returns:
        `total`, float32 scalar, differentiable in `hidden` and `kernel`, and `losses` [B, T]
        float32 in nats, unweighted, not differentiable.
    """
    plan = _make_plan(chunk_tokens, kernel_dims)
    with float32_as_it_says(hidden.dtype):
        total, losses = _fused(hidden, kernel, targets, weights, plan)
    return total, jax.lax.stop_gradient(losses)


@dataclass(frozen=True)
class _Plan:
    """How the work is cut: positions a chunk, the kernel's dims, and what the mesh divides.

    `batch`, `length`, `vocab` and `stored` are the mesh axes that divide rows, positions, the
    vocabulary, and the embedding of the stored kernel.
    """

    chunk_tokens: int
    kernel_dims: str
    batch: tuple[str, ...]
    length: tuple[str, ...]
    vocab: tuple[str, ...]
    stored: tuple[str, ...]

    @property
    def words_dim(self) -> int:
        return self.kernel_dims.index("v")


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fused(hidden, kernel, targets, weights, plan):
    return _on_mesh(_local_losses, ("total", "batch"), plan)(hidden, kernel, targets, weights)


def _fused_forward(hidden, kernel, targets, weights, plan):
    total, losses, hidden_grad, kernel_grad = _on_mesh(
        _local_gradients, ("total", "batch", "hidden", "kernel"), plan
    )(hidden, kernel, targets, weights)
    # The residuals are the gradients themselves; only their dtypes are needed besides.
    return (total, losses), (hidden_grad, kernel_grad.astype(kernel.dtype))


def _fused_backward(plan, gradients, cotangents):
    hidden_grad, kernel_grad = gradients
    scale, _ = cotangents
    scaled = partial(jax.tree.map, lambda g: (g * scale).astype(g.dtype))
    return scaled(hidden_grad), scaled(kernel_grad), None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _make_plan(chunk_tokens: int, kernel_dims: str) -> _Plan:
    mesh = jax.sharding.get_abstract_mesh()
    tables = {
        "batch": ACTIVATION_AXES["batch"], "length": ACTIVATION_AXES["length"],
        "vocab": STORAGE_AXES["vocab"], "stored": STORAGE_AXES["embed"],
    }  # fmt: skip

    def dividing(axes):
        return () if mesh.empty else tuple(axis for axis in axes if mesh.shape[axis] > 1)

    axes = {name: dividing(axes) for name, axes in tables.items()}
    return _Plan(chunk_tokens, kernel_dims, **axes)


def _on_mesh(local: Callable, outputs: tuple[str, ...], plan: _Plan) -> Callable:
    """Runs `local` on every device of the current mesh, on its part of each array."""
    local = partial(local, plan)
    if not (plan.batch or plan.length or plan.vocab or plan.stored):
        return local
    rows = PartitionSpec(plan.batch or None, plan.length or None)
    axes = {"v": plan.vocab or None, "d": plan.stored or None}
    kernel = PartitionSpec(*(axes[dim] for dim in plan.kernel_dims))
    specs = {"total": PartitionSpec(), "batch": rows, "hidden": rows, "kernel": kernel}
    return jax.shard_map(
        local,
        in_specs=tuple(specs[name] for name in ("hidden", "kernel", "batch", "batch")),
        out_specs=tuple(specs[name] for name in outputs),
        check_vma=False,
    )


def _local_losses(plan: _Plan, hidden, kernel, targets, weights):
    """Returns the total over all devices and this device's losses [b, t]."""
    blocks = _Blocks(plan, hidden, kernel, targets)
    _, losses = _first_pass(plan, blocks)
    losses = losses.reshape(targets.shape)
    return _sum(jnp.sum(losses * weights), plan.batch + plan.length), losses


def _local_gradients(plan: _Plan, hidden, kernel, targets, weights):
    """Returns what `_local_losses` does, and the gradients of hidden and of the stored kernel."""
    blocks = _Blocks(plan, hidden, kernel, targets)
    if blocks.count == 1:
        words = blocks.words(0)
        logits = blocks.logits(0, words)
        normaliser, losses = _finish(plan, _add_block(_start(blocks), blocks, 0, logits))
    else:
        normaliser, losses = _first_pass(plan, blocks)
    weight = weights.reshape(-1, 1)

    def gradients(index, words, logits):
        # d loss / d logits = softmax - onehot, times the token's weight.
        hit = blocks.local_targets(index)[:, None] == jnp.arange(blocks.size)
        logits_grad = (jnp.exp(logits - normaliser[:, None]) - hit) * weight
        logits_grad = logits_grad.astype(hidden.dtype)
        hidden_grad = jnp.einsum(
            f"nv,{plan.kernel_dims}->nd", logits_grad, words, preferred_element_type=jnp.float32
        )
        return hidden_grad, _divided(logits_grad, blocks.hidden, plan).astype(kernel.dtype)

    def add_gradients(hidden_grad, index):
        words = blocks.words(index)
        more, words_grad = gradients(index, words, blocks.logits(index, words))
        return hidden_grad + more, words_grad

    if blocks.count == 1:
        hidden_grad, words_grads = gradients(0, words, logits)
    else:
        start = jnp.zeros(blocks.hidden.shape, jnp.float32)
        hidden_grad, words_grads = jax.lax.scan(add_gradients, start, jnp.arange(blocks.count))
    hidden_grad = _sum(hidden_grad.astype(hidden.dtype), plan.vocab).reshape(hidden.shape)
    # Replicas along axes that do not divide the kernel have seen other rows.
    replicas = tuple(axis for axis in plan.batch + plan.length if axis not in plan.stored)
    kernel_grad = _sum(blocks.join(words_grads), replicas)
    losses = losses.reshape(targets.shape)
    total = _sum(jnp.sum(losses * weights), plan.batch + plan.length)
    return total, losses, hidden_grad, kernel_grad


class _Blocks:
    """This device's words in blocks, and its positions in a row: n positions, v words a block."""

    def __init__(self, plan: _Plan, hidden, kernel, targets):
        self.plan, self.dtype = plan, hidden.dtype
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        self.num_words = kernel.shape[plan.words_dim]
        self.count = _count_blocks(self.num_words, len(self.hidden), plan.chunk_tokens)
        self.size = -(-self.num_words // self.count)
        padding = [(0, 0), (0, 0)]
        padding[plan.words_dim] = (0, self.count * self.size - self.num_words)
        self.kernel = jnp.pad(kernel, padding)
        self.targets = targets.reshape(-1)
        if plan.vocab:
            mine = self.targets - jax.lax.axis_index(plan.vocab) * self.num_words
            # The first words of the next device's part would stand in this part's padding.
            self.targets = jnp.where(mine < self.num_words, mine, -1)

    def words(self, index) -> jax.Array:
        """Returns block `index` of the kernel over the whole embedding, in the compute dtype."""
        dim = self.plan.words_dim
        block = jax.lax.dynamic_slice_in_dim(self.kernel, index * self.size, self.size, dim)
        block = block.astype(self.dtype)
        if not self.plan.stored:
            return block
        return jax.lax.all_gather(block, self.plan.stored, axis=1 - dim, tiled=True)

    def logits(self, index, words: jax.Array) -> jax.Array:
        """Returns those of block `index` [n, v] float32, of padding -inf."""
        product = f"nd,{self.plan.kernel_dims}->nv"
        logits = jnp.einsum(product, self.hidden, words, preferred_element_type=jnp.float32)
        if self.count * self.size == self.num_words:
            return logits
        real = index * self.size + jnp.arange(self.size) < self.num_words
        return jnp.where(real, logits, -jnp.inf)

    def local_targets(self, index) -> jax.Array:
        """Returns targets [n] counted from the first word of block `index`."""
        return self.targets - index * self.size

    def join(self, blocks: jax.Array) -> jax.Array:
        """Lays gradients of blocks side by side, as the stored kernel is."""
        if self.count > 1:
            dim = self.plan.words_dim
            blocks = jnp.moveaxis(blocks, 0, dim)
            shape = list(blocks.shape)
            shape[dim : dim + 2] = [shape[dim] * shape[dim + 1]]
            blocks = blocks.reshape(shape)
        return jax.lax.slice_in_dim(blocks, 0, self.num_words, axis=self.plan.words_dim)


def _count_blocks(num_words: int, num_positions: int, chunk_tokens: int) -> int:
    """Returns how many blocks the words are cut into; sizes that fill the lanes are preferred.

    >>> _count_blocks(128256, 8192, 2048), _count_blocks(512, 100, 2048)
    (6, 1)
    """
    least = min(-(-num_positions // chunk_tokens), num_words)
    for lanes in (128, 1):
        for count in range(least, 2 * least + 1):
            if num_words % (count * lanes) == 0:
                return count
    return least


class _Sums(NamedTuple):
    """Over the words so far: largest logit, sum of exponentials, the target's logit; each [n]."""

    top: jax.Array
    exponentials: jax.Array
    chosen: jax.Array


def _start(blocks: _Blocks) -> _Sums:
    zeros = jnp.zeros(blocks.targets.shape, jnp.float32)
    return _Sums(jnp.full_like(zeros, -jnp.inf), zeros, zeros)


def _first_pass(plan: _Plan, blocks: _Blocks) -> tuple[jax.Array, jax.Array]:
    def add(sums, index):
        return _add_block(sums, blocks, index, blocks.logits(index, blocks.words(index))), None

    return _finish(plan, jax.lax.scan(add, _start(blocks), jnp.arange(blocks.count))[0])


def _add_block(sums: _Sums, blocks: _Blocks, index, logits: jax.Array) -> _Sums:
    top = jnp.maximum(sums.top, logits.max(axis=-1))
    exponentials = jnp.exp(logits - top[:, None]).sum(axis=-1)
    targets = blocks.local_targets(index)
    here = (targets >= 0) & (targets < blocks.size)
    place = jnp.clip(targets, 0, blocks.size - 1)[:, None]
    chosen = jnp.take_along_axis(logits, place, axis=-1)[:, 0]
    return _Sums(
        top,
        sums.exponentials * jnp.exp(sums.top - top) + exponentials,
        sums.chosen + jnp.where(here, chosen, 0.0),
    )


def _finish(plan: _Plan, sums: _Sums) -> tuple[jax.Array, jax.Array]:
    """Returns normalisers and losses [n], over the words of all devices."""
    top = jax.lax.pmax(sums.top, plan.vocab) if plan.vocab else sums.top
    exponentials = _sum(sums.exponentials * jnp.exp(sums.top - top), plan.vocab)
    normaliser = top + jnp.log(exponentials)
    return normaliser, normaliser - _sum(sums.chosen, plan.vocab)


def _divided(logits_grad: jax.Array, hidden: jax.Array, plan: _Plan) -> jax.Array:
    """Returns a block's gradient: the part stored here, of the sum over devices."""
    product = partial(jnp.einsum, f"nv,nd->{plan.kernel_dims}", logits_grad, hidden)
    if not plan.stored:
        return product(preferred_element_type=jnp.float32)
    return jax.lax.psum_scatter(
        product(), plan.stored, scatter_dimension=1 - plan.words_dim, tiled=True
    )


def _sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x
