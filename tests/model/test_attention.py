"""Every kernel against references nobody here wrote, and what is said before anything compiles."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    TOLERANCE,
    assert_close,
    kernel,
    mask_in_numpy,
    out_and_gradients,
    packed_rows,
    reference,
)

from ellama_jax.config import AttentionConfig
from ellama_jax.model import attention_gpu
from ellama_jax.model.attention import (
    AUTO,
    attend,
    attention_mask,
    check_attention,
    describe_attention,
    resolve_attention,
)
from ellama_jax.model.attention_blocks import fit_blocks, visible_pairs
from ellama_jax.model.attention_context import zigzag_order
from ellama_jax.model.attention_splash import _make_kernel
from ellama_jax.model.presets import get_preset

LLAMA = get_preset("llama3.1-8b")
AXES = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


@functools.cache
def plain_case(dtype, head_dim):
    qkv, weights, ids = packed_rows(2, 256, 4, 2, head_dim, dtype)
    return qkv, weights, ids, out_and_gradients(lambda *x: reference(*x, ids), qkv, weights)


@pytest.mark.parametrize("dtype, head_dim", [("float32", 64), ("bfloat16", 128)])
@pytest.mark.parametrize(
    "name", ["dense", "blockwise", "splash", "splash, fused backward", "triton"]
)
def test_kernels_equal_plain_attention_and_so_do_their_gradients(name, dtype, head_dim):
    qkv, weights, ids, theirs = plain_case(dtype, head_dim)
    ours = out_and_gradients(kernel(name, jnp.asarray(ids)), qkv, weights)
    assert_close(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["blockwise", "splash", "triton"])
@pytest.mark.parametrize("block_q, block_kv", [(128, 256), (256, 128)])
def test_a_length_that_no_block_divides_is_padded(name, block_q, block_kv):
    qkv, weights, ids = packed_rows(1, 389, 2, 1, 64)  # a prime
    theirs = out_and_gradients(lambda *x: reference(*x, ids), qkv, weights)
    ours = out_and_gradients(kernel(name, jnp.asarray(ids), block_q, block_kv), qkv, weights)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("name", ["dense", "blockwise"])
def test_kernels_equal_torch(name):
    torch = pytest.importorskip("torch", reason="torch is the reference")
    qkv, weights, ids = packed_rows(2, 96, 4, 2, 16)
    theirs = [torch.tensor(np.asarray(x)).swapaxes(1, 2).requires_grad_() for x in qkv]
    mask = torch.tensor(mask_in_numpy(ids))[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        *theirs, attn_mask=mask, enable_gqa=True
    ).swapaxes(1, 2)
    (out * torch.tensor(np.asarray(weights))).sum().backward()
    wanted = [out.detach().numpy(), *(x.grad.swapaxes(1, 2).numpy() for x in theirs)]
    ours = out_and_gradients(kernel(name, jnp.asarray(ids), 32, 48), qkv, weights)
    assert_close(ours, wanted, 1e-5)


@pytest.mark.parametrize("name", ["blockwise", "splash", "triton", "cudnn"])
def test_branches_are_kept_apart_whatever_the_kernel(name):
    """A branch equals its context with it alone."""
    length = 300 if name == "blockwise" else 30  # blocks and [T, S]
    context, first = length // 2, length // 3
    branches = np.repeat([0, 1, 2], [context, first, length - context - first])[None]
    qkv, _, _ = packed_rows(1, length, 4, 2, 16)
    ids = jnp.ones((1, length), jnp.int32)
    ours = attend(*qkv, ids, jnp.asarray(branches), AttentionConfig(name, 50, 60))
    for branch in (1, 2):
        kept = np.flatnonzero((branches[0] == 0) | (branches[0] == branch))
        alone = reference(*(x[:, kept] for x in qkv), np.ones((1, len(kept)), np.int32))
        np.testing.assert_allclose(ours[:, kept], alone, rtol=1e-5, atol=1e-5)


def test_the_mask_knows_the_order_of_permuted_rows():
    rng = np.random.default_rng(0)
    order = rng.permutation(12)
    ids = np.repeat([[1, 2, 0]], 4, axis=1)
    mask = attention_mask(jnp.asarray(ids[:, order]), None, jnp.asarray(order))
    assert np.array_equal(mask[0], mask_in_numpy(ids)[0][np.ix_(order, order)])


def test_blockwise_never_builds_all_scores():
    qkv, weights, ids = packed_rows(1, 1024, 2, 1, 16)

    def text(name):
        def total(*qkv):
            return jnp.sum(kernel(name, jnp.asarray(ids))(*qkv) * weights)

        return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*qkv).compile().as_text()

    assert not re.search(r"\b1024,1024\b", text("blockwise"))
    assert re.search(r"\b1024,1024\b", text("dense"))


@pytest.mark.parametrize("name", ["blockwise", "splash"])
def test_a_policy_that_saves_attention_does_not_compute_it_again(name):
    qkv, _, ids = packed_rows(1, 256, 2, 1, 64)

    def forwards(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        attention = kernel(name, jnp.asarray(ids), interpret=False)
        layer = jax.checkpoint(attention, policy=policy)
        total = jax.value_and_grad(lambda *x: jnp.sum(layer(*x) ** 2), argnums=(0, 1, 2))
        text = jax.jit(total).trace(*qkv).lower(lowering_platforms=("tpu",)).as_text()
        if name == "splash":
            return text.count('kernel_name = "splash_mha_fwd')
        return text.count("stablehlo.while") - 1  # backward has one

    assert (forwards("attention"), forwards()) == (1, 2)


@pytest.mark.parametrize(
    "length, shards, blocks, fused",
    [
        (1024, 1, (128, 128), False), (1024, 2, (128, 256), False), (2048, 4, (256, 128), False),
        (1024, 1, (128, 256), True), (1024, 2, (256, 128), True),
    ],
)  # fmt: skip
def test_splash_from_a_scaled_down_mask_equals_jax_s_own_maker(length, shards, blocks, fused):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    mask = masks.CausalMask((length, length))
    mask.q_sequence = zigzag_order(length, shards)
    ours = _make_kernel(length, shards, blocks, fused, False)
    theirs = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * 4), block_sizes=ours.kwargs["block_sizes"], head_shards=1,
        q_seq_shards=shards,
    )  # fmt: skip
    assert jax.tree.structure(ours.tree_flatten()[0]) == jax.tree.structure(
        theirs.tree_flatten()[0]
    )
    for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == wanted.dtype
        np.testing.assert_array_equal(mine, wanted)


def test_triton_lowers_for_cuda_without_one():
    qkv, weights, ids = packed_rows(1, 256, 4, 2, 128, "bfloat16")

    def total(*qkv):
        return jnp.sum(attention_gpu.triton(*qkv, jnp.asarray(ids)) * weights)

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in qkv]
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, platform="gpu")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    ):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*shapes)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mha_forward" in text and "mha_backward" in text


def test_cudnn_is_told_each_document_and_its_place(monkeypatch):
    """cuDNN is not here: what it is asked for is checked, not what it answers."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    qkv, weights, ids = packed_rows(2, 256, 4, 2, 128, "bfloat16")

    def total(*qkv):
        out = attend(*qkv, jnp.asarray(ids), None, AttentionConfig("cudnn", 128, 128))
        return jnp.sum(out * weights)

    text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(*qkv))
    assert "cond[" in text
    for name in ("dot_product_attention_fwd", "dot_product_attention_bwd"):
        call = text[text.index(name) :]
        assert "mask_type=MaskType.PADDING_CAUSAL" in call
    assert "i32[2,32]" in text and "i32[2,33]" in text  # lengths and offsets of 32 documents


def test_runs_cover_every_position_of_a_row():
    _, _, ids = packed_rows(3, 64, 1, 1, 8)
    lengths, offsets = map(np.asarray, attention_gpu.find_runs(jnp.asarray(ids), 8))
    for row, sizes, places in zip(ids, lengths, offsets, strict=True):
        sizes = sizes[sizes >= 0]
        assert sizes.sum() == 64 and places[len(sizes)] == 64
        for place, size in zip(places, sizes, strict=False):
            assert len(set(row[place : place + size])) == 1
        assert len(sizes) == 1 + np.count_nonzero(np.diff(row))


def test_blocks_above_the_diagonal_are_left_out():
    pairs = visible_pairs(np.arange(1024), np.arange(1024), 128, 128)
    assert len(pairs) == 8 * 9 // 2
    assert np.all(pairs[:, 0] >= pairs[:, 1])


@pytest.mark.parametrize("length", [1, 7, 128, 389, 1000, 8192, 8320])
@pytest.mark.parametrize("blocks", [(128, 128), (512, 1024), (384, 256)])
@pytest.mark.parametrize("step", [1, 128])
def test_fitted_blocks_divide_the_padded_row(length, blocks, step):
    padded, fitted = fit_blocks(length, blocks, step)
    assert length <= padded < length + max(step, np.lcm(*blocks))
    for block, wanted in zip(fitted, blocks, strict=True):
        assert padded % block == 0 and block % step == 0
        assert min(wanted, padded) / 2 <= block <= wanted


@pytest.mark.parametrize(
    "platform, length, context, kernel, blocks",
    [
        ("tpu", 64, 1, "splash", 1024), ("tpu", 131072, 16, "splash", 1024),
        ("gpu", 8192, 1, "triton", 1024), ("gpu", 8192, 2, "blockwise", 1024),
        ("cpu", 64, 1, "dense", 1024), ("cpu", 512, 1, "blockwise", 128),
    ],
)  # fmt: skip
def test_auto_is_by_platform_and_length(platform, length, context, kernel, blocks):
    resolved = resolve_attention(AUTO, platform, length, context)
    assert (resolved.kernel, resolved.block_q, resolved.block_kv) == (kernel, blocks, blocks)
    assert resolve_attention(resolved, "cpu", 8, 1) == resolved
    check_attention(AUTO, platform, LLAMA, length, AXES | {"context": context}, jnp.bfloat16)
    assert describe_attention(AUTO, platform, length, context).startswith(f"attention: {kernel}")


def test_ring_is_blockwise_on_every_platform():
    ring = AttentionConfig(context="ring")
    assert resolve_attention(ring, "tpu", 8192, 4).kernel == "blockwise"
    assert resolve_attention(ring, "tpu", 8192, 1).kernel == "splash"
    assert describe_attention(ring, "tpu", 8192, 4) == (
        "attention: blockwise, blocks 1024 x 1024, keys by ring over 4 devices"
    )


@pytest.mark.parametrize(
    "change, platform, axes, dtype, message",
    [
        (dict(kernel="splash"), "cpu", {}, "float32",
         "model.attention.kernel: splash needs a TPU, got cpu; use auto or blockwise."),
        (dict(kernel="cudnn"), "tpu", {}, "bfloat16",
         "model.attention.kernel: cudnn needs a GPU, got tpu; use auto or blockwise."),
        (dict(kernel="triton"), "cpu", {}, "float32",
         "model.attention.kernel: triton needs a GPU, got cpu; use auto or blockwise."),
        (dict(kernel="mosaic"), "gpu", {}, "bfloat16",
         "model.attention.kernel: mosaic, JAX's Mosaic GPU kernel, has neither segment ids nor a "
         "causal backward pass; use auto, triton or cudnn."),
        (dict(kernel="cudnn"), "gpu", {}, "float32",
         "model.attention.kernel: cudnn computes in bfloat16, got float32; set "
         "model.compute_dtype=bfloat16, or use auto."),
        (dict(kernel="triton"), "gpu", {"context": 2}, "bfloat16",
         "model.attention.kernel: triton works on whole rows, got mesh.context=2; use auto or "
         "blockwise."),
        (dict(kernel="splash", context="ring"), "tpu", {"context": 2}, "bfloat16",
         "model.attention.kernel: must be blockwise for model.attention.context=ring, got splash; "
         "use auto, or context=all_gather."),
        (dict(), "tpu", {"tensor": 16}, "bfloat16",
         "mesh.tensor: must divide the number of kv heads (8), got 16; use at most 8 and more of "
         "mesh.fsdp."),
        (dict(), "tpu", {"context": 3}, "bfloat16",
         "data.seq_len: must be a multiple of 768 for kernel splash over mesh.context=3, got 8192; "
         "use 8448 or a smaller mesh.context."),
        (dict(block_kv=1000), "tpu", {}, "bfloat16",
         "model.attention.block_kv: must be a multiple of 128 for kernel splash, got 1000; use 512 "
         "or 1024."),
    ],
)  # fmt: skip
def test_what_a_kernel_lacks_is_one_clear_line(change, platform, axes, dtype, message):
    attention = dataclasses.replace(AUTO, **change)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_attention(attention, platform, LLAMA, 8192, AXES | axes, dtype)
