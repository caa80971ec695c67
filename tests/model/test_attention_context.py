"""Rows divided over the mesh equal whole rows: attention, the model, the loss and its gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import assert_close, kernel, out_and_gradients, packed_rows, reference

from ellama_jax.config import AttentionConfig
from ellama_jax.core.sharding import make_mesh, place_batch
from ellama_jax.model.attention_blocks import visible_pairs
from ellama_jax.model.attention_context import (
    batch_to_zigzag,
    from_zigzag,
    to_zigzag,
    zigzag_order,
)
from ellama_jax.model.llama import abstract_params, hidden_states, init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.train.step import make_loss_sums

TINY = get_preset("tiny")


def mesh_of(**sizes):
    sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes
    return make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])


def divided(name, ids, mesh, context="all_gather", block=64):
    """The kernel on a mesh, from whole rows to whole rows."""
    shards = mesh.shape["context"]
    attention = kernel(name, to_zigzag(jnp.asarray(ids), shards), block, block, context)

    def run(*qkv):
        return from_zigzag(attention(*(to_zigzag(x, shards) for x in qkv)), shards)

    return run


@pytest.mark.parametrize(
    "name, context, sizes",
    [
        ("dense", "all_gather", dict(context=2, tensor=2)),
        ("blockwise", "all_gather", dict(fsdp=2, tensor=2)),
        ("blockwise", "all_gather", dict(context=4, tensor=2)),
        ("blockwise", "ring", dict(fsdp=2, context=2, tensor=2)),
        ("blockwise", "ring", dict(context=4, tensor=2)),
        ("splash", "all_gather", dict(fsdp=2, tensor=2)),
        ("splash", "all_gather", dict(context=2, tensor=2)),
        ("triton", "all_gather", dict(data=2, tensor=2)),
    ],
)
def test_a_mesh_changes_neither_attention_nor_its_gradients(name, context, sizes):
    block, length = (128, 512) if name == "splash" else (16, 128)
    qkv, weights, ids = packed_rows(2, length, 4, 2, 64)
    theirs = out_and_gradients(lambda *x: reference(*x, ids), qkv, weights)
    mesh = mesh_of(**sizes)
    if name == "triton":  # interpreted inside the same division
        from ellama_jax.model.attention_context import per_device

        arrays = ("heads", "heads", "heads", "rows")

        def run(*qkv):
            local = lambda q, k, v, ids: kernel("triton", ids)(q, k, v)  # noqa: E731
            return per_device(local, (*qkv, jnp.asarray(ids)), arrays)
    else:
        run = divided(name, ids, mesh, context, block)
    with jax.set_mesh(mesh):
        ours = out_and_gradients(run, qkv, weights)
    assert_close(ours, theirs, 1e-5)


def test_a_document_over_all_shards_and_one_within_a_chunk_are_seen_by_the_ring():
    qkv, weights, _ = packed_rows(2, 64, 2, 1, 8)
    ids = np.stack([np.ones(64), np.repeat([1, 2, 3], [3, 2, 59])]).astype(np.int32)
    theirs = out_and_gradients(lambda *x: reference(*x, ids), qkv, weights)
    mesh = mesh_of(context=8)
    with jax.set_mesh(mesh):
        ours = out_and_gradients(divided("blockwise", ids, mesh, "ring", 4), qkv, weights)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_zigzag_is_undone_and_puts_positions_where_it_says(shards):
    x = jnp.arange(48).reshape(2, 24)
    there = to_zigzag(x, shards)
    assert np.array_equal(there[0], zigzag_order(24, shards))
    assert np.array_equal(from_zigzag(there, shards), x)


@pytest.mark.parametrize("shards, block_q, block_kv", [(2, 4, 4), (4, 8, 2), (8, 2, 4)])
def test_every_shard_of_a_zigzag_row_has_the_same_work(shards, block_q, block_kv):
    length = 16 * shards
    whole = np.arange(length)

    def work(order):
        parts = order.reshape(shards, -1)
        return {len(visible_pairs(part, whole, block_q, block_kv)) for part in parts}

    assert len(work(zigzag_order(length, shards))) == 1
    assert len(work(whole)) == shards  # contiguous shards differ


def lowered(name, context, dtype):
    qkv, weights, ids = packed_rows(1, 128, 4, 2, 64, dtype)
    mesh = mesh_of(context=2)

    def total(*qkv):
        return jnp.sum(divided(name, ids, mesh, context, 16)(*qkv) * weights)

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*qkv).as_text()


def test_keys_are_gathered_in_their_own_dtype():
    gathers = re.findall(
        r"all_gather.*?-> tensor<[0-9x]*x(\w+)>", lowered("blockwise", "all_gather", "bfloat16")
    )
    assert sorted(set(gathers)) == ["bf16", "i32"]


def test_the_ring_passes_keys_on_and_gathers_nothing():
    text = lowered("blockwise", "ring", "bfloat16")
    assert "collective_permute" in text and "all_gather" not in text


def packed_batch(rows=4, length=64):
    rng = np.random.default_rng(0)
    _, _, ids = packed_rows(rows, length, 1, 1, 8)
    begins = np.r_["1,2", np.ones((rows, 1), bool), ids[:, 1:] != ids[:, :-1]]
    places = np.broadcast_to(np.arange(length), ids.shape)
    positions = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    tokens, targets = rng.integers(0, TINY.vocab_size, (2, rows, length), np.int32)
    return {
        "inputs": tokens, "targets": targets, "positions": positions.astype(np.int32),
        "segment_ids": ids, "loss_weights": (rng.random(ids.shape) * (ids != 0)).astype(np.float32),
        "source_ids": np.arange(rows, dtype=np.int32) % 2,
    }  # fmt: skip


def test_a_batch_is_permuted_along_its_rows_only():
    batch = packed_batch()
    with jax.set_mesh(mesh_of(context=2)):
        there = batch_to_zigzag(jax.tree.map(jnp.asarray, batch))
    assert np.array_equal(there["source_ids"], batch["source_ids"])
    assert np.array_equal(there["targets"], batch["targets"][:, zigzag_order(64, 2)])


@pytest.mark.slow
def test_hidden_states_come_back_in_order():
    params, batch = init_params(TINY, 0), packed_batch()
    arrays = [jnp.asarray(batch[name]) for name in ("inputs", "positions", "segment_ids")]
    run = jax.jit(lambda params: hidden_states(params, TINY, *arrays))
    alone = run(params)
    with jax.set_mesh(mesh_of(context=2)):
        ours = jax.jit(lambda params: hidden_states(params, TINY, *arrays))(params)
    np.testing.assert_allclose(ours, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "context, sizes",
    [
        ("all_gather", dict(fsdp=2, context=2, tensor=2)),
        ("ring", dict(context=4, tensor=2)),
    ],
)
def test_loss_and_gradients_of_divided_rows_equal_one_device_s(context, sizes):
    params, batch = init_params(TINY, 0), packed_batch()

    def run(params, batch, attention):
        loss_sums = make_loss_sums(
            TINY, num_sources=2, compute_dtype=jnp.float32, remat="full", chunk_tokens=64,
            attention=attention,
        )  # fmt: skip
        return jax.jit(jax.value_and_grad(loss_sums, has_aux=True))(params, batch)

    theirs = run(params, batch, AttentionConfig("dense"))
    mesh = mesh_of(**sizes)
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(TINY, mesh=mesh))
        placed = jax.device_put(params, places)
        ours = run(placed, place_batch(batch, mesh), AttentionConfig("blockwise", 8, 8, context))
    for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.max(np.abs(mine - wanted)) <= 1e-5 * np.max(np.abs(wanted))
