"""Meshes and the tables from dims to axes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_shardings import AbsentDevice
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ellama_jax.core.sharding import (
    ACTIVATION_AXES,
    MESH_AXES,
    STORAGE_AXES,
    check_batch,
    check_dims,
    constrain,
    describe,
    local_rows,
    make_mesh,
    partition_spec,
    place_batch,
    resolve_axis_sizes,
    rows_by_process,
    rows_counted_here,
)
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params, dim_sizes, param_dims
from ellama_jax.model.presets import get_preset


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


@pytest.mark.parametrize(
    ("wrong", "devices", "fits"),
    [
        (sizes(fsdp=3), 8, "fsdp 8 fits 8 devices"),
        (sizes(fsdp=8, tensor=2), 8, "fsdp 4 x tensor 2 fits 8 devices"),
        (sizes(data=2, fsdp=-1, tensor=3), 8, "data 2 x fsdp 4 fits 8 devices"),
        (sizes(fsdp=-1, tensor=-1), 8, "fsdp 8 fits 8 devices"),
        (sizes(data=4, context=4, tensor=4), 32, "data 2 x context 4 x tensor 4 fits 32 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told_one_that_does(wrong, devices, fits):
    with pytest.raises(ValueError, match=f"; {fits}. At most one axis"):
        resolve_axis_sizes(wrong, devices)


def hosts(platform, number, devices):
    """Stand-ins for devices of several slices or hosts; only what the mesh asks of them."""
    return [
        types.SimpleNamespace(
            id=i, platform=platform, device_kind="absent", process_index=i // devices,
            slice_index=i // devices, coords=(i % devices, 0, 0), core_on_chip=0,
        )
        for i in range(number * devices)
    ]  # fmt: skip


def grid_of(platform, number, devices, wanted, monkeypatch):
    """Returns the slice of each place on the mesh; a Mesh itself wants hashable devices."""
    monkeypatch.setattr("ellama_jax.core.sharding.Mesh", lambda grid, *_, **__: grid)
    grid = make_mesh(wanted, hosts(platform, number, devices))
    return np.vectorize(lambda device: device.slice_index)(grid)


def test_slices_of_a_tpu_divide_data_alone(monkeypatch):
    slices = grid_of("tpu", 2, 4, sizes(data=4, fsdp=2), monkeypatch)
    assert slices[:, :, 0, 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    wrong = (
        r"^mesh.data: must be divisible by the number of slices \(2\), got 1; data 2 x fsdp 4 fits"
    )
    with pytest.raises(ValueError, match=wrong):
        make_mesh(sizes(fsdp=-1), hosts("tpu", 2, 4))


def test_hosts_of_gpus_divide_data_first_and_then_fsdp(monkeypatch):
    slices = grid_of("gpu", 4, 2, sizes(data=2, fsdp=4), monkeypatch)
    assert slices[:, :, 0, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert grid_of("gpu", 2, 4, sizes(fsdp=8), monkeypatch).ravel().tolist() == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match=r"^mesh.data: must be divisible by the number of slices"):
        make_mesh(sizes(tensor=8), hosts("gpu", 2, 4))


def test_a_torus_axis_is_split_where_no_whole_one_has_the_size(monkeypatch):
    """Eight chips in a row as fsdp 4 x tensor 2; jax alone refuses."""
    with pytest.raises(NotImplementedError):
        mesh_utils.create_device_mesh((1, 4, 1, 2), hosts("tpu", 1, 8))
    assert grid_of("tpu", 1, 8, sizes(fsdp=4, tensor=2), monkeypatch).shape == (1, 4, 1, 2)


@pytest.mark.parametrize(
    ("preset", "mesh", "message"),
    [
        ("llama3.1-8b", sizes(tensor=16),
         r"^mesh.tensor: must divide kv_heads \(8\), got 16; 1, 2, 4 or 8 fit\.$"),
        ("smollm2-135m", sizes(tensor=2),
         r"^mesh.tensor: must divide heads \(9\), kv_heads \(3\), got 2; 1 or 3 fit\.$"),
        ("tiny", sizes(fsdp=24, context=4),
         r"^mesh.fsdp x mesh.context: must divide embed \(64\), got 96; 8, 16, 32 or 64 fit\.$"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_divide_is_told_what_fits(preset, mesh, message):
    with pytest.raises(ValueError, match=message):
        check_dims(dim_sizes(get_preset(preset)), mesh)


def test_what_fits_and_what_is_not_known_yet_passes():
    check_dims(dim_sizes(get_preset("llama3.1-8b")), sizes(fsdp=-1, tensor=8))
    check_batch(1440, 8192, sizes(data=2, fsdp=16, context=4), 3)
    check_batch(7, 8192, sizes(fsdp=-1))


@pytest.mark.parametrize(
    ("rows", "length", "parts", "mesh", "message"),
    [
        (1440, 8192, 1, sizes(fsdp=64), r"mesh.data x mesh.fsdp \(64\), got 1440; 1408 or 1472 fit"),
        (4, 8192, 1, sizes(data=2, fsdp=4), r"\(8\), got 4; 8 fits"),
        (24, 64, 2, sizes(fsdp=8), r"x 2 micro-batches \(16\), got 24; 16 or 32 fit"),
        (8, 100, 1, sizes(context=8),
         r"^mesh.context: must divide data.seq_len \(100\), got 8; 1, 2, 4 or 5 fit"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_divide_is_told_what_fits(rows, length, parts, mesh, message):
    with pytest.raises(ValueError, match=message):
        check_batch(rows, length, mesh, parts)


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


def test_a_process_feeds_the_rows_of_its_own_devices_and_each_row_counts_once(monkeypatch):
    """Hosts own 2 x 2 blocks of a 4 x 4 torus, whose rows lie row-major: as on a v6e-16."""
    grid = np.array(
        [AbsentDevice(i, 0, (i % 4, i // 4, 0), 0, i // 8 * 2 + i // 2 % 2) for i in range(16)]
    )
    mesh = Mesh(grid.reshape(1, 8, 1, 2), MESH_AXES)
    assert {p: rows.tolist() for p, rows in rows_by_process(mesh, 16).items()} == {
        0: [0, 1, 4, 5], 1: [2, 3, 6, 7], 2: [8, 9, 12, 13], 3: [10, 11, 14, 15],
    }  # fmt: skip
    # `context` spans two hosts: both feed the same rows, the first one's count.
    mesh = Mesh(grid.reshape(1, 2, 8, 1), MESH_AXES)
    found = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append((local_rows(mesh, 4).tolist(), rows_counted_here(mesh, 4).tolist()))
    first, second = [0, 1], [2, 3]
    yes, no = [True, True], [False, False]
    assert found == [(first, yes), (first, no), (second, yes), (second, no)]


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2), (1, 1, 8, 1)])
def test_a_placed_batch_is_the_global_one_on_devices_in_any_order(shape):
    devices = np.random.default_rng(0).permutation(np.array(jax.devices()))
    mesh = Mesh(devices.reshape(shape), MESH_AXES)
    rows = np.arange(64, dtype=np.int32).reshape(8, 8)
    placed = place_batch({"inputs": rows, "source_ids": rows[:, 0]}, mesh)
    for shard in placed["inputs"].addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
    np.testing.assert_array_equal(placed["source_ids"], rows[:, 0])


def test_a_placed_batch_has_its_rows_in_order():
    rows = np.arange(32, dtype=np.int32).reshape(8, 4)
    placed = place_batch({"inputs": rows, "source_ids": rows[:, 0]}, make_mesh(sizes(fsdp=8)))
    np.testing.assert_array_equal(placed["inputs"], rows)
    assert placed["inputs"].addressable_shards[0].data.shape == (1, 4)
    assert placed["source_ids"].sharding.spec == P("fsdp")
