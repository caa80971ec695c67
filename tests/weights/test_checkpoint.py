"""Checkpoints come back bit for bit, on any mesh, or not at all with a clear line."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights import layout
from ellama_jax.weights.checkpoint import (
    find_checkpoint,
    latest_step,
    list_leaves,
    make_meta,
    open_manager,
    restore_leaf,
    restore_params,
    restore_training,
    save_training,
    tree_bytes,
    write_checkpoint,
)
from ellama_jax.weights.layout import read_json_item, write_json_item
from ellama_jax.weights.verify import main_verify


def assert_same_bits(got, expected):
    got, expected = map(jax.tree_util.tree_leaves_with_path, (got, expected))
    assert [path for path, _ in got] == [path for path, _ in expected]
    for (path, a), (_, b) in zip(got, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path


# --- one step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_parameters_come_back_bit_for_bit_in_their_own_dtype(
    tmp_path, untied, make_checkpoint, dtype
):
    params = make_checkpoint(tmp_path / "c", untied, dtype=dtype)
    assert_same_bits(restore_params(tmp_path / "c"), params)


def test_special_float_values_survive(tmp_path, tiny, draw_params, make_checkpoint, tokenizer_dir):
    params = draw_params(tiny)
    params["final_norm"]["scale"][:5] = [-0.0, np.inf, -np.inf, np.nan, 1e-45]
    meta = find_meta(tiny, tokenizer_dir)
    write_checkpoint(tmp_path / "c", params, config=tiny, meta=meta, tokenizer_dir=tokenizer_dir)
    assert_same_bits(restore_params(tmp_path / "c"), params)


def find_meta(config, tokenizer_dir, **more):
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    provenance = {"kind": "train", "sources": []}
    return make_meta(config, tokenizer_fingerprint=fingerprint, provenance=provenance, **more)


def test_restore_casts_to_the_wanted_dtype_with_round_to_nearest(tiny_root, tiny, draw_params):
    stored = draw_params(tiny, dtype=ml_dtypes.bfloat16)
    widened = jax.tree.map(lambda leaf: leaf.astype(np.float32), stored)
    assert_same_bits(restore_params(tiny_root, dtype=jnp.float32), widened)


def test_restore_narrows_as_numpy_does(tmp_path, tiny, make_checkpoint):
    params = make_checkpoint(tmp_path / "c", tiny)
    narrowed = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
    assert_same_bits(restore_params(tmp_path / "c", dtype=jnp.bfloat16), narrowed)


def test_restore_places_leaves_on_the_mesh_as_the_model_says(tmp_path, tiny, make_checkpoint):
    params = make_checkpoint(tmp_path / "c", tiny)
    mesh = make_mesh({"data": 1, "fsdp": 2, "context": 1, "tensor": 2}, jax.devices()[:4])
    restored = restore_params(tmp_path / "c", mesh=mesh)
    assert_same_bits(restored, params)
    wanted = flatten_paths(abstract_params(tiny, jnp.float32, mesh))
    for path, leaf in flatten_paths(restored).items():
        assert leaf.sharding.is_equivalent_to(wanted[path].sharding, leaf.ndim), path
    assert len(restored["layers"]["mlp"]["w_up"].sharding.device_set) == 4


def test_without_a_mesh_leaves_lie_on_one_device(tiny_root):
    leaf = restore_params(tiny_root)["embed"]["table"]
    assert isinstance(leaf, jax.Array)
    assert leaf.sharding.device_set == {jax.devices()[0]}


def test_one_leaf_is_read_alone_and_as_stored(tiny_root, tiny, draw_params):
    expected = draw_params(tiny, dtype=ml_dtypes.bfloat16)["layers"]["attn"]["wq"]
    leaf = restore_leaf(tiny_root, "layers/attn/wq")
    assert isinstance(leaf, np.ndarray)
    assert_same_bits(leaf, expected)


def test_an_unknown_leaf_is_named(tiny_root):
    with pytest.raises(ValueError, match="must hold the parameter layers/attn/wx, got embed/table"):
        restore_leaf(tiny_root, "layers/attn/wx")


def test_a_chunk_that_is_missing_is_damage_and_not_zeros(tiny_root):
    import tensorstore as ts

    base = {"driver": "file", "path": f"{tiny_root}/0/params/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    chunk = next(key for key in store.list().result() if key.startswith(b"layers.attn.wq/1"))
    store.delete_range(ts.KvStore.KeyRange(chunk, chunk + b"\0")).result()
    with pytest.raises(ValueError, match="the checkpoint is damaged or truncated"):
        restore_leaf(tiny_root, "layers/attn/wq")


def test_leaves_are_listed_with_shape_and_dtype(tiny_root):
    leaves = list_leaves(tiny_root)
    assert leaves["layers/attn/wk"] == ((2, 64, 2, 16), np.dtype(ml_dtypes.bfloat16))
    assert len(leaves) == 11 and "lm_head/kernel" not in leaves


def test_a_checkpoint_says_what_it_is(tiny_root, tiny, tokenizer_dir):
    info = find_checkpoint(tiny_root)
    assert (info.root, info.step, info.path) == (tiny_root, 0, tiny_root / "0")
    assert info.config == tiny
    assert info.meta["tokenizer_fingerprint"] == load_tokenizer(info.tokenizer_dir).fingerprint
    assert info.meta["versions"]["jax"] == jax.__version__
    assert info.meta["provenance"]["kind"] == "import" and info.meta["verification"] is None
    assert find_checkpoint(tiny_root / "0") == info


def test_a_root_that_was_moved_restores(tiny_root, tmp_path, tiny, draw_params):
    tiny_root.rename(tmp_path / "elsewhere")
    expected = draw_params(tiny, dtype=ml_dtypes.bfloat16)
    assert_same_bits(restore_params(tmp_path / "elsewhere"), expected)


def test_tree_bytes_counts_arrays_and_shapes():
    tree = (np.zeros((2, 3), np.float32), {"a": jax.ShapeDtypeStruct((5,), jnp.bfloat16)})
    assert tree_bytes(tree) == 2 * 3 * 4 + 5 * 2


# --- what may not be restored --------------------------------------------------------------------


def rewrite_model(root, **changes):
    meta = read_json_item(root / "0", "meta")
    write_json_item(root / "0", "meta", {**meta, "model": {**meta["model"], **changes}})


def test_the_diff_names_every_leaf_and_asks_for_the_key(tiny_root):
    rewrite_model(tiny_root, num_kv_heads=4, tied_embeddings=False)
    expected = (
        f"restore {tiny_root}: 3 leaves differ: "
        "layers/attn/wk is [2, 64, 2, 16], expected [2, 64, 4, 16]; "
        "layers/attn/wv is [2, 64, 2, 16], expected [2, 64, 4, 16]; "
        "lm_head/kernel is missing. Was num_kv_heads or tied_embeddings changed?"
    )
    with pytest.raises(ValueError) as error:
        restore_params(tiny_root)
    assert str(error.value) == expected


def data_files(directory):
    return [p for p in directory.rglob("*") if p.is_file() and p.parent.name == "d"]


def test_a_truncated_weight_file_is_one_clear_line(tiny_root):
    largest = max(data_files(tiny_root / "0" / "params"), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"restore {tiny_root}/0: the checkpoint is damaged") as e:
        restore_params(tiny_root)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA"])
def test_a_truncated_index_is_one_clear_line(tiny_root, name):
    path = tiny_root / "0" / "params" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="the checkpoint is damaged or truncated") as error:
        restore_params(tiny_root)
    assert "\n" not in str(error.value)


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def training(tiny, draw_params, tokenizer_dir):
    """Returns (params, opt_state, meta) of a run after some updates."""
    params = jax.tree.map(jnp.asarray, draw_params(tiny))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(3, x.dtype), opt_state)
    return params, opt_state, find_meta(tiny, tokenizer_dir, seed=7)


def as_abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def open_run(root, tokenizer_dir, **kwargs):
    options = {"save_every_steps": 10, "keep_last": 2, "tokenizer_dir": tokenizer_dir, **kwargs}
    return open_manager(root, **options)


def save_steps(root, tokenizer_dir, training, steps):
    params, opt_state, meta = training
    with open_run(root, tokenizer_dir) as manager:
        return [save_training(manager, s, params, opt_state, {"step": s}, meta) for s in steps]


def test_a_run_comes_back_bit_for_bit(tmp_path, training, tokenizer_dir):
    params, opt_state, meta = training
    data = {"step": 20, "ledger": {"ecommerce-de": 12345678901234}, "fingerprint": "ab"}
    with open_run(tmp_path / "run", tokenizer_dir) as manager:
        assert save_training(manager, 20, params, opt_state, data, meta)
    with open_run(tmp_path / "run", tokenizer_dir) as manager:
        restored = restore_training(manager, as_abstract(params), as_abstract(opt_state))
    assert restored[0] == 20 and restored[3] == data and restored[4] == meta
    assert_same_bits(restored[1], params)
    assert_same_bits(restored[2], opt_state)
    assert jax.tree.structure(restored[2]) == jax.tree.structure(opt_state)


def test_a_run_saved_on_eight_devices_restores_on_two(tmp_path, training, tokenizer_dir):
    params, opt_state, meta = training
    eight = jax.sharding.Mesh(np.array(jax.devices()), "x")
    two = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")

    def place(mesh):
        split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
        return lambda leaf: split if leaf.ndim and leaf.shape[0] % 8 == 0 else whole

    sharded = jax.tree.map(lambda x: jax.device_put(x, place(eight)(x)), (params, opt_state))
    save_steps(tmp_path / "run", tokenizer_dir, (*sharded, meta), [10])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(two)(x)),
        (params, opt_state),
    )
    with open_run(tmp_path / "run", tokenizer_dir) as manager:
        _, got_params, got_state, _, _ = restore_training(manager, *wanted)
    assert_same_bits((got_params, got_state), (params, opt_state))
    assert len(got_params["embed"]["table"].sharding.device_set) == 2


def test_parameters_of_a_run_can_be_read_alone(tmp_path, training, tokenizer_dir):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    assert_same_bits(restore_params(tmp_path / "run" / "10"), training[0])


def test_only_due_steps_are_saved_and_only_the_last_are_kept(tmp_path, training, tokenizer_dir):
    saved = save_steps(tmp_path / "run", tokenizer_dir, training, [5, 10, 10, 20, 25, 30])
    assert saved == [False, True, False, True, False, True]
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["20", "30", "tokenizer"]


def test_a_step_that_is_not_due_is_saved_when_forced(tmp_path, training, tokenizer_dir):
    params, opt_state, meta = training
    with open_run(tmp_path / "run", tokenizer_dir) as manager:
        assert save_training(manager, 3, params, opt_state, {}, meta, force=True)
    assert latest_step(tmp_path / "run") == 3


def test_arrays_given_away_right_after_an_async_save_do_not_change_it(
    tmp_path, training, tokenizer_dir
):
    params, opt_state, meta = training
    expected = jax.tree.map(lambda x: np.array(x, copy=True), (params, opt_state))
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with open_run(tmp_path / "run", tokenizer_dir) as manager:
        save_training(manager, 10, params, opt_state, {}, meta)
        state = (params, opt_state)
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
        _, got_params, got_state, _, _ = restore_training(manager, *as_abstract(state))
    assert_same_bits((got_params, got_state), expected)


def break_newest(run):
    (run / "20" / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(run / "10", run / "40.orbax-checkpoint-tmp")


def test_incomplete_steps_are_passed_over_and_named(tmp_path, training, tokenizer_dir, caplog):
    run = tmp_path / "run"
    save_steps(run, tokenizer_dir, training, [10, 20])
    break_newest(run)
    assert find_checkpoint(run).step == 10
    assert "20: ignored, it is incomplete (not committed)" in caplog.text
    assert "40.orbax-checkpoint-tmp: ignored, it is incomplete (being written" in caplog.text
    with pytest.raises(ValueError, match=r"20: must be complete, got a step incomplete"):
        find_checkpoint(run / "20")


@pytest.mark.parametrize("item", ["params", "meta"])
def test_a_step_without_an_item_is_incomplete(tmp_path, training, tokenizer_dir, item):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10, 20])
    shutil.rmtree(tmp_path / "run" / "20" / item)
    assert latest_step(tmp_path / "run") == 10


def test_a_run_resumes_past_incomplete_steps_and_saves_them_again(
    tmp_path, training, tokenizer_dir
):
    run = tmp_path / "run"
    save_steps(run, tokenizer_dir, training, [10, 20])
    break_newest(run)
    params, opt_state, meta = training
    with open_run(run, tokenizer_dir) as manager:
        step, *_ = restore_training(manager, as_abstract(params), as_abstract(opt_state))
        assert step == 10
        assert save_training(manager, 20, params, opt_state, {"again": True}, meta)
    assert latest_step(run) == 20
    assert sorted(p.name for p in run.iterdir()) == ["10", "20", "20.incomplete", "tokenizer"]


def test_a_chosen_step_is_restored(tmp_path, training, tokenizer_dir):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10, 20])
    wanted = [as_abstract(tree) for tree in training[:2]]
    with open_run(tmp_path / "run", tokenizer_dir) as manager:
        assert restore_training(manager, *wanted, step=10)[3] == {"step": 10}


def test_another_optimizer_is_named_before_anything_is_read(tmp_path, training, tokenizer_dir):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    wanted = optax.sgd(1e-3, momentum=0.9).init(training[0])
    message = r"10 opt_state: .* 0/trace/embed/table is missing"
    with (
        open_run(tmp_path / "run", tokenizer_dir) as manager,
        pytest.raises(ValueError, match=message),
    ):
        restore_training(manager, as_abstract(training[0]), as_abstract(wanted))


def test_parameters_of_other_sizes_are_named(tmp_path, tiny, training, tokenizer_dir):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    wider = abstract_params(dataclasses.replace(tiny, mlp_dim=256))
    message = r"w_up is \[2, 64, 192\], expected \[2, 64, 256\]"
    with (
        open_run(tmp_path / "run", tokenizer_dir) as manager,
        pytest.raises(ValueError, match=message),
    ):
        restore_training(manager, wider, as_abstract(training[1]))


@pytest.mark.parametrize("part", [0, 1])
def test_a_run_is_not_cast_to_another_dtype_on_the_way(tmp_path, training, tokenizer_dir, part):
    """Neither parameters nor moments: every leaf is named, with the key that was changed."""
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    wanted = list(map(as_abstract, training[:2]))
    narrowed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), wanted[part])
    wanted[part] = narrowed
    leaves = 11 if part == 0 else 23  # two moments and the counter
    message = rf"{leaves} leaves differ: .*float32, expected bfloat16.* Was param_dtype changed"
    with (
        open_run(tmp_path / "run", tokenizer_dir) as manager,
        pytest.raises(ValueError, match=message),
    ):
        restore_training(manager, *wanted)


def test_every_leaf_of_the_optimizer_state_that_differs_is_named(tmp_path, training, tokenizer_dir):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    wanted = as_abstract(training[1])
    leaf = jax.ShapeDtypeStruct((2, 64, 200), jnp.float32)
    wanted[1][0].mu["layers"]["mlp"]["w_up"] = leaf
    del wanted[1][0].nu["embed"]
    message = (
        r"opt_state: 2 leaves differ: 1/0/mu/layers/mlp/w_up is \[2, 64, 192\], "
        r"expected \[2, 64, 200\]; 1/0/nu/embed/table is not expected"
    )
    with (
        open_run(tmp_path / "run", tokenizer_dir) as manager,
        pytest.raises(ValueError, match=message),
    ):
        restore_training(manager, as_abstract(training[0]), wanted)


def test_an_imported_checkpoint_has_nothing_to_resume(tiny_root, tokenizer_dir, training):
    message = "must hold an optimizer state, got parameters only"
    with open_run(tiny_root, tokenizer_dir) as manager, pytest.raises(ValueError, match=message):
        restore_training(manager, *map(as_abstract, training[:2]))


def test_a_full_disk_stops_a_save_and_leaves_earlier_steps(
    tmp_path, training, tokenizer_dir, monkeypatch
):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(layout.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="20: the disk must have 18 MiB free, got 1 MiB"):
        save_steps(tmp_path / "run", tokenizer_dir, training, [20])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["10", "tokenizer"]


def test_a_run_cannot_change_its_tokenizer(tmp_path, training, tokenizer_dir):
    save_steps(tmp_path / "run", tokenizer_dir, training, [10])
    other = tmp_path / "other"
    shutil.copytree(tokenizer_dir, other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": None}))
    with pytest.raises(ValueError, match="was the tokenizer changed"):
        open_run(tmp_path / "run", other)


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, tokenizer_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a writable directory, got Not a directory"):
        open_run(tmp_path / "file" / "run", tokenizer_dir)


def test_a_run_without_tokenizer_is_not_begun(tmp_path):
    with pytest.raises(ValueError, match="must hold tokenizer.json"):
        open_run(tmp_path / "run", tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["save_every_steps", "keep_last"])
def test_numbers_below_one_are_refused(tmp_path, tokenizer_dir, name):
    with pytest.raises(ValueError, match=f"{name}: must be at least 1, got 0"):
        open_run(tmp_path / "run", tokenizer_dir, **{name: 0})
    assert not (tmp_path / "run").exists()


# --- damage --------------------------------------------------------------------------------------


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def read_run(root, tokenizer_dir, training):
    with open_run(root, tokenizer_dir) as manager:
        return restore_training(manager, *map(as_abstract, training[:2]))


def test_one_flipped_byte_is_never_restored_and_the_step_before_is(
    tmp_path, training, tokenizer_dir, caplog
):
    """In every file of the newest step: weights, optimizer, indices, data position, meta."""
    params, opt_state, meta = training
    whole = tmp_path / "whole"
    save_steps(whole, tokenizer_dir, training, [10])
    newer = jax.tree.map(lambda x: x + 1, params)
    save_steps(whole, tokenizer_dir, (newer, opt_state, meta), [20])
    files = [p.relative_to(whole) for p in (whole / "20").rglob("*") if p.is_file()]
    passed_over = set()
    for number, file in enumerate(sorted(f for f in files if (whole / f).stat().st_size)):
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        flip(root / file, (root / file).stat().st_size // 2)
        step, *found = read_run(root, tokenizer_dir, training)
        assert step in (10, 20), file
        assert_same_bits(found[0], newer if step == 20 else params)
        assert_same_bits(found[1], opt_state)
        assert found[2:] == [{"step": step}, meta], file
        if step == 10:
            passed_over.add(file.parts[1])
            assert not (root / "20").exists() and f"{root}/20" in caplog.text
        shutil.rmtree(root)
    assert passed_over >= {"params", "opt_state", "data", "meta"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"loss": 0.1}'])
def test_damaged_metrics_are_set_aside_and_the_step_stays(
    tmp_path, training, tokenizer_dir, content
):
    root = tmp_path / "run"
    save_steps(root, tokenizer_dir, training, [10])
    (root / "10" / "metrics" / "metrics").write_bytes(content)
    assert read_run(root, tokenizer_dir, training)[0] == 10
    assert (root / "10" / "metrics.damaged" / "metrics").read_bytes() == content
    assert not (root / "10" / "metrics").exists()


def test_a_zeroed_page_of_weights_is_named_by_its_leaf(tmp_path, training, tokenizer_dir):
    root = tmp_path / "run"
    save_steps(root, tokenizer_dir, training, [10])
    largest = max(data_files(root / "10" / "params"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        file.write(bytes(4096))
    with pytest.raises(ValueError, match=r"run/10: .*(layers|embed|norm).*no other step is whole"):
        read_run(root, tokenizer_dir, training)
    assert (root / "10").is_dir()  # what cannot be replaced stays where it is


def test_verify_integrity_reads_all_and_names_each_damaged_leaf(
    tmp_path, training, tokenizer_dir, capsys
):
    root = tmp_path / "run"
    save_steps(root, tokenizer_dir, training, [10])
    main_verify(["--integrity", str(root)])
    assert "as it was written" in capsys.readouterr().out
    for item in ("params", "opt_state"):
        files = data_files(root / "10" / item)
        file = max(files, key=lambda path: path.stat().st_size)
        flip(file, file.stat().st_size // 2)
    with pytest.raises(SystemExit) as ended:
        main_verify(["--integrity", str(root / "10")])
    said = capsys.readouterr()
    assert ended.value.code == 1 and f"{root}/10: 2 damaged parts" in said.err
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert all(re.search(r"chunk [\d.]+", line) for line in lines)
    assert all(re.search(r"(layers|embed|norm|head)/\w", line) for line in lines)


def test_a_root_that_was_replaced_is_read_anew(tiny, make_checkpoint, tmp_path):
    """In one process, which remembers nothing of what lay there before."""
    for seed in (1, 2):
        params = make_checkpoint(tmp_path / "root", tiny, seed, overwrite=True)
        assert_same_bits(restore_params(tmp_path / "root"), params)
