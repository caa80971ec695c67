"""Meshes and the tables from dims to axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ellama_jax.model.llama import abstract_params, param_dims
from ellama_jax.model.presets import get_preset
from ellama_jax.sharding import (
    ACTIVATION_AXES,
    MESH_AXES,
    STORAGE_AXES,
    constrain,
    describe,
    make_mesh,
    partition_spec,
    place_batch,
    resolve_axis_sizes,
)
from ellama_jax.tree import flatten_paths


def sizes(data=1, fsdp=1, context=1, tensor=1):
    return {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}


def test_mesh_has_the_four_axes_and_all_devices():
    mesh = make_mesh(sizes(data=2, fsdp=-1, tensor=2))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == sizes(data=2, fsdp=2, tensor=2)
    assert len(set(mesh.devices.flat)) == 8


@pytest.mark.parametrize(
    "wrong", [sizes(fsdp=3), sizes(fsdp=-1, tensor=-1), sizes(fsdp=-1, tensor=3), sizes()]
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(wrong):
    with pytest.raises(
        ValueError, match=r"^mesh: axis sizes must multiply to the number of devices \(8\)"
    ):
        resolve_axis_sizes(wrong, 8)


def test_storage_of_a_weight_is_divided_by_fsdp_and_tensor():
    spec = partition_spec(
        ("layers", "embed", "mlp"), (30, 576, 1536), sizes(fsdp=4, tensor=2), STORAGE_AXES
    )
    assert spec == P(None, "fsdp", "tensor")


def test_axes_of_size_one_divide_nothing():
    assert partition_spec(("embed", "mlp"), (5, 7), sizes(data=8), STORAGE_AXES) == P(None, None)


def test_a_dim_over_two_axes_is_divided_by_both():
    spec = partition_spec(("batch", "length"), (16, 64), sizes(2, 2, 2, 1), ACTIVATION_AXES)
    assert spec == P(("data", "fsdp"), "context")


@pytest.mark.parametrize(
    ("dims", "shape", "message"),
    [
        (("embed", "wings"), (8, 8), "w: dim wings is unknown; known: layers, vocab"),
        (("mlp", "heads"), (8, 8), "w: dims mlp and heads both want mesh axis tensor"),
        (("embed", "mlp"), (8, 9),
         r"w: dim mlp of size 9 must be divisible by mesh axes \('tensor',\) of total size 2"),
    ],
)  # fmt: skip
def test_the_three_errors(dims, shape, message):
    with pytest.raises(ValueError, match=message):
        partition_spec(dims, shape, sizes(fsdp=2, tensor=2), STORAGE_AXES, "w")


def test_every_parameter_dim_has_a_place():
    for dims in param_dims(get_preset("llama3.1-8b")).values():
        assert set(dims) <= set(STORAGE_AXES)


def test_text_form_of_the_8b_sharding():
    """Golden: where each parameter of Llama 3.1 8B lies on fsdp 4 x tensor 2."""
    config = get_preset("llama3.1-8b")
    abstract = flatten_paths(abstract_params(config, mesh=make_mesh(sizes(fsdp=4, tensor=2))))
    lines = [
        describe(path, abstract[path], dims) for path, dims in sorted(param_dims(config).items())
    ]
    assert lines == [
        "embed/table float32[128256 vocab/tensor, 4096 embed/fsdp]",
        "final_norm/scale float32[4096 norm]",
        "layers/attn/wk float32[32 layers, 4096 embed/fsdp, 8 kv_heads/tensor, 128 head_dim]",
        "layers/attn/wo float32[32 layers, 32 heads/tensor, 128 head_dim, 4096 embed/fsdp]",
        "layers/attn/wq float32[32 layers, 4096 embed/fsdp, 32 heads/tensor, 128 head_dim]",
        "layers/attn/wv float32[32 layers, 4096 embed/fsdp, 8 kv_heads/tensor, 128 head_dim]",
        "layers/attn_norm/scale float32[32 layers, 4096 norm]",
        "layers/mlp/w_down float32[32 layers, 14336 mlp/tensor, 4096 embed/fsdp]",
        "layers/mlp/w_gate float32[32 layers, 4096 embed/fsdp, 14336 mlp/tensor]",
        "layers/mlp/w_up float32[32 layers, 4096 embed/fsdp, 14336 mlp/tensor]",
        "layers/mlp_norm/scale float32[32 layers, 4096 norm]",
        "lm_head/kernel float32[4096 embed/fsdp, 128256 vocab/tensor]",
    ]


def test_constrain_is_nothing_without_a_mesh_and_divides_with_one():
    x = jnp.ones((4, 8))
    assert constrain(x, "batch", "length") is x
    with jax.set_mesh(make_mesh(sizes(data=2, fsdp=2, tensor=2))):
        placed = jax.jit(lambda x: constrain(x, "batch", "length"))(x)
    assert placed.addressable_shards[0].data.shape == (1, 8)


def test_a_placed_batch_has_its_rows_in_order():
    rows = np.arange(32, dtype=np.int32).reshape(8, 4)
    placed = place_batch({"inputs": rows, "source_ids": rows[:, 0]}, make_mesh(sizes(fsdp=8)))
    np.testing.assert_array_equal(placed["inputs"], rows)
    assert placed["inputs"].addressable_shards[0].data.shape == (1, 4)
    assert placed["source_ids"].sharding.spec == P("fsdp")
