"""Checkpoints and Hugging Face directories in a bucket are what they are on a disk."""

import json
import shutil
import struct

import jax
import ml_dtypes
import numpy as np
import pytest

from ellama_jax.cli import main
from ellama_jax.core.paths import as_path, copy_tree, remove_tree
from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.evaluate.scorecard import load_model
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights import layout
from ellama_jax.weights.checkpoint import (
    find_checkpoint,
    latest_step,
    make_meta,
    open_leaves,
    open_manager,
    restore_leaf,
    restore_params,
    restore_training,
    save_training,
)
from ellama_jax.weights.export import export_checkpoint
from ellama_jax.weights.huggingface import open_safetensors
from ellama_jax.weights.importer import import_weights


@pytest.fixture(scope="module")
def sources(tmp_path_factory, untied, make_checkpoint):
    """A local checkpoint with a head of its own, and its export in several shards."""
    root = tmp_path_factory.mktemp("sources")
    make_checkpoint(root / "base", untied, dtype=ml_dtypes.bfloat16)
    export_checkpoint(root / "base", root / "hf", shard_bytes=200_000)
    assert len(list((root / "hf").glob("*.safetensors"))) > 1
    return root


@pytest.fixture(scope="module")
def base(bucket, sources):
    """The same model imported from the bucket into the bucket."""
    copy_tree(sources / "hf", as_path(f"{bucket}/hf"))
    import_weights(f"{bucket}/hf", f"{bucket}/base")
    return f"{bucket}/base"


def assert_same_bits(got, expected):
    got, expected = flatten_paths(got), flatten_paths(expected)
    assert got.keys() == expected.keys()
    for name, leaf in expected.items():
        assert got[name].dtype == leaf.dtype
        assert np.asarray(got[name]).tobytes() == np.asarray(leaf).tobytes(), name


def contents(directory):
    return {entry.name: entry.read_bytes() for entry in as_path(directory).iterdir()}


# --- one step ------------------------------------------------------------------------------------


def test_an_import_in_the_bucket_is_bitwise_the_one_on_a_disk(base, sources):
    local = import_weights(sources / "hf", sources / "imported")
    found = find_checkpoint(base)
    assert str(found.path) == f"{base}/0"
    assert found.meta == local.meta
    assert_same_bits(restore_params(base), restore_params(sources / "base"))
    assert load_tokenizer(found.tokenizer_dir).fingerprint == found.meta["tokenizer_fingerprint"]


def test_it_restores_onto_a_mesh(base, sources):
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    params = restore_params(base, mesh=mesh)
    assert len(params["layers"]["mlp"]["w_up"].sharding.device_set) == 8
    assert_same_bits(params, restore_params(sources / "base"))


def test_one_leaf_and_one_box_are_read_alone(base, sources):
    expected = restore_leaf(sources / "base", "layers/mlp/w_up")
    assert restore_leaf(base, "layers/mlp/w_up").tobytes() == expected.tobytes()
    box = (slice(1, 2), slice(3, 7), slice(2, 9))
    piece = open_leaves(base)["layers/mlp/w_up"].read(box)
    assert piece.tobytes() == expected[box].tobytes()


def test_the_meta_is_replaced_alone(base):
    info = find_checkpoint(base)
    before = sorted(map(str, info.path.iterdir()))
    verdict = {"status": "passed", "summary": "1 check passed"}
    layout.write_meta(info, {**info.meta, "verification": verdict})
    assert find_checkpoint(base).meta["verification"] == verdict
    assert sorted(map(str, info.path.iterdir())) == before


def test_inspect_reads_it(base, capsys):
    main(["inspect", base])
    assert "fingerprint" in capsys.readouterr().out


def test_an_occupied_place_is_refused_and_replaced_when_asked(bucket, base, capsys):
    copy = ["import", f"{bucket}/hf", f"{bucket}/again"]
    main(copy)
    first = find_checkpoint(f"{bucket}/again").meta
    with pytest.raises(SystemExit):
        main(copy)
    said = capsys.readouterr().err
    assert f"{bucket}/again: must not exist yet; pass --overwrite to replace it." in said
    main([*copy, "--overwrite", "--eos", "<|begin_of_text|>"])
    second = find_checkpoint(f"{bucket}/again").meta
    assert second["tokenizer_fingerprint"] != first["tokenizer_fingerprint"]
    with pytest.raises(SystemExit):
        main(["import", f"{bucket}/hf", f"{bucket}/hf", "--overwrite"])
    assert "only a checkpoint root is replaced" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(bucket, tiny, make_checkpoint, monkeypatch):
    def fail(*_, **__):
        raise OSError("the connection was lost")

    monkeypatch.setattr("ellama_jax.weights.checkpoint._finish_root", fail)
    with pytest.raises(OSError, match="connection was lost"):
        make_checkpoint(f"{bucket}/failed", tiny)
    assert not as_path(f"{bucket}/failed").exists()


def test_a_bucket_that_cannot_be_written_is_one_line(bucket, monkeypatch):
    place = as_path(f"{bucket}/locked")

    def fail(*_, **__):
        raise RuntimeError("Forbidden: no storage.objects.create access.\nmore")

    monkeypatch.setattr(type(place), "write_text", fail)
    with pytest.raises(ValueError) as error:
        layout.check_destination(place, 0, overwrite=False)
    assert str(error.value) == (
        f"{place}: must be in a bucket where objects can be made and deleted, got: Forbidden: no "
        "storage.objects.create access."
    )


# --- sources -------------------------------------------------------------------------------------


def test_columns_of_a_tensor_are_read_like_its_rows(bucket, base, sources, monkeypatch):
    local, remote = open_safetensors(sources / "hf"), open_safetensors(f"{bucket}/hf")
    assert local.keys() == remote.keys()
    monkeypatch.setattr("ellama_jax.weights.lazy.PIECE_BYTES", 2048)  # several pieces of rows
    for name in ("lm_head.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        whole = local[name].load()
        assert remote[name].load().tobytes() == whole.tobytes()
        box = tuple(slice(3, size - 1) for size in whole.shape)
        assert remote[name].read(box).tobytes() == np.ascontiguousarray(whole[box]).tobytes()


def with_header(change):
    """Returns what changes the header of a safetensors file by `change(header)`."""

    def apply(raw):
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    return apply


def _reshape(header):
    header["model.norm.weight"]["shape"][0] += 1


def _overlap(header):
    header["model.norm.weight"]["data_offsets"] = [0, 8]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-2],
        lambda raw: raw + b"\0\0",
        lambda raw: raw[:20],
        lambda raw: raw[:4],
        lambda raw: struct.pack("<Q", 2**40) + raw[8:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        with_header(_reshape),
        with_header(_overlap),
    ],
    ids=["truncated", "padded", "half a header", "no header", "long header", "no JSON", "shape", "overlap"],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_line_as_on_a_disk(bucket, sources, tmp_path, damage):
    path = next(p for p in (sources / "hf").glob("*.safetensors") if b"model.norm.weight" in p.read_bytes()[:9999])  # fmt: skip
    broken = damage(path.read_bytes())
    there = as_path(f"{bucket}/broken")
    (tmp_path / "model.safetensors").write_bytes(broken)
    (there / "model.safetensors").write_bytes(broken)
    said = r"model\.safetensors: must be a whole safetensors file, got a truncated or broken one"
    for directory in (tmp_path, there):
        with pytest.raises(ValueError, match=said):
            open_safetensors(directory)


def test_other_dtypes_are_named(bucket, tmp_path):
    from safetensors.numpy import save

    there = as_path(f"{bucket}/int8/model.safetensors")
    there.write_bytes(save({"x": np.zeros(4, np.int8)}))
    with pytest.raises(ValueError, match="x must be one of F32, F16, BF16, got I8; dequantise"):
        open_safetensors(there.parent)


@pytest.mark.parametrize("name, found", [("gguf/m.gguf", "gguf"), ("meta/params.json", "meta")])
def test_formats_that_are_mapped_into_memory_must_be_copied_first(bucket, name, found, capsys):
    as_path(f"{bucket}/{name}").write_bytes(b"GGUF")
    src = f"{bucket}/{name}" if found == "gguf" else f"{bucket}/meta"
    with pytest.raises(SystemExit):
        main(["import", src, f"{bucket}/never"])
    said = capsys.readouterr().err
    assert f"got the format {found}; copy it to a local disk first" in said
    assert not as_path(f"{bucket}/never").exists()


def test_verify_asks_for_a_source_on_a_disk(bucket, base, capsys):
    with pytest.raises(SystemExit):
        main(["verify", base, f"{bucket}/hf"])
    assert "SRC: must be on a local disk" in capsys.readouterr().err


def test_a_hugging_face_directory_is_evaluated_from_the_bucket(bucket, base, sources):
    params, config, tokenizer, _ = load_model(f"{bucket}/hf")
    assert_same_bits(params, restore_params(sources / "base"))
    assert config.name == "hf" and tokenizer.vocab_size <= config.vocab_size


# --- merge and export ----------------------------------------------------------------------------


def test_merge_and_export_pass_through_the_bucket(bucket, base, sources, tmp_path, capsys):
    main(["merge", "--base", base, "--adapted", str(sources / "base"), "--alpha", "1", "--out",
          f"{bucket}/merged"])  # fmt: skip
    main(["export", f"{bucket}/merged", f"{bucket}/exported", "--shard-bytes", "200000"])
    assert "files of weights" in capsys.readouterr().out
    exported, expected = contents(f"{bucket}/exported"), contents(sources / "hf")
    card = exported.pop("README.md").decode()
    assert "alpha 1" in card and expected.pop("README.md")
    assert exported == expected
    import_weights(f"{bucket}/exported", tmp_path / "back")
    assert_same_bits(restore_params(tmp_path / "back"), restore_params(sources / "base"))


def test_an_export_is_refused_where_something_is_and_replaced_when_asked(bucket, base, capsys):
    main(["export", base, f"{bucket}/taken"])
    with pytest.raises(SystemExit):
        main(["export", base, f"{bucket}/taken"])
    assert "must not exist yet; pass --overwrite" in capsys.readouterr().err
    main(["export", base, f"{bucket}/taken", "--dtype", "float32", "--overwrite"])
    assert json.loads(contents(f"{bucket}/taken")["config.json"])["torch_dtype"] == "float32"
    with pytest.raises(SystemExit):
        main(["export", base, base, "--overwrite"])
    assert "only an earlier export is replaced" in capsys.readouterr().err


def test_an_export_needs_local_room_for_its_largest_file(bucket, base, monkeypatch, capsys):
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(layout.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit):
        main(["export", base, f"{bucket}/no-room"])
    assert "export by way of" in capsys.readouterr().err
    assert not as_path(f"{bucket}/no-room").exists()


def test_what_is_left_of_an_interrupted_export_is_no_model(bucket, base, monkeypatch, capsys):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ellama_jax.weights.export.write_card", die)
    monkeypatch.setattr("ellama_jax.weights.export.remove_tree", lambda path: None)
    with pytest.raises(SystemExit):
        main(["export", base, f"{bucket}/half"])
    assert "model.safetensors" in contents(f"{bucket}/half")
    with pytest.raises(SystemExit):
        main(["import", f"{bucket}/half", f"{bucket}/never"])
    assert "must hold config.json" in capsys.readouterr().err


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def save(bucket, tiny, draw_params, tokenizer_dir):
    """Returns `save(root, {step: loss}, **options)`: a run's steps, the tree they hold."""
    import optax

    params = draw_params(tiny)
    opt_state = optax.adam(1e-3).init(params)
    meta = make_meta(
        tiny,
        tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint,
        provenance={"kind": "train"},
        config={"checkpoint": {"best_metric": "loss"}},
    )

    def save(root, losses, **options):
        options = {"save_every_steps": 1, "keep_last": 2, **options}
        with open_manager(root, tokenizer_dir=tokenizer_dir, **options) as manager:
            for step, loss in losses.items():
                tree = jax.tree.map(lambda leaf, step=step: leaf + step, params)
                assert save_training(
                    manager, step, tree, opt_state, {"step": step}, meta, metrics={"loss": loss}
                )
        return params, opt_state

    return save


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)


def test_a_run_keeps_the_last_and_the_best_and_comes_back(bucket, save, tokenizer_dir):
    root = f"{bucket}/run"
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}
    params, opt_state = save(root, losses, best_metric="loss")
    kept = {entry.name for entry in as_path(root).iterdir()}
    assert kept == {"2", "3", "4", "tokenizer"}
    assert find_checkpoint(root).step == 4 and find_checkpoint(f"{root}/best").step == 2
    options = {"save_every_steps": 1, "keep_last": 2, "best_metric": "loss"}
    with open_manager(root, tokenizer_dir=tokenizer_dir, **options) as manager:
        step, restored, state, data, _ = restore_training(
            manager, abstract(params), abstract(opt_state), 3
        )
    assert (step, data) == (3, {"step": 3})
    assert_same_bits(restored, jax.tree.map(lambda leaf: leaf + 3, params))
    jax.tree.map(np.testing.assert_array_equal, state, opt_state)


def test_an_incomplete_step_is_named_passed_over_and_saved_again(bucket, save, caplog):
    root = f"{bucket}/broken"
    save(root, {1: 1.0, 2: 2.0})
    for lost in ("params/_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt"):
        file = as_path(root) / "2" / lost
        kept = file.read_bytes()
        file.unlink()
        caplog.clear()
        assert latest_step(root) == 1
        assert f"{root}/2: ignored, it is incomplete" in caplog.text
        file.write_bytes(kept)
    file.unlink()  # as Orbax leaves it that was ended before its last word
    save(root, {2: 1.5})
    assert f"{root}/2: incomplete (commit_success.txt missing), removed" in caplog.text
    assert latest_step(root) == 2 and find_checkpoint(f"{root}/best").step == 1


def test_an_interrupted_start_copies_the_tokenizer_again(bucket, save, tokenizer_dir):
    root = as_path(f"{bucket}/restarted")
    (root / "tokenizer" / "tokenizer_config.json").write_text("{}")
    save(str(root), {1: 1.0})
    assert (
        load_tokenizer(root / "tokenizer").fingerprint == load_tokenizer(tokenizer_dir).fingerprint
    )
    remove_tree(root)
