"""Files of torch.save, whole and damaged; torch itself is the reference writer."""

import os
import pickle
import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.weights.torchfile import open_torch_file


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch writes and parses .pth files")


@pytest.fixture
def path(torch, tmp_path):
    """A file of two tensors."""
    torch.save({"a": torch.arange(60.0).reshape(5, 12), "b": torch.ones(3)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def refuse(path, match):
    with pytest.raises(ValueError, match=match) as error:
        open_torch_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and " must " in message and "\n" not in message


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_every_bit_of_a_tensor_comes_back(torch, tmp_path, name, dtype):
    # All patterns of 16 bits, NaNs of every kind among them.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).reshape(256, 256)
    tensor = bits.view(getattr(torch, name)) if name != "float32" else bits.view(torch.float32)
    torch.save({"w": tensor}, tmp_path / "w.pth")
    array = open_torch_file(tmp_path / "w.pth")["w"]
    assert (array.shape, array.dtype) == (tuple(tensor.shape), np.dtype(dtype))
    np.testing.assert_array_equal(array.load().view(np.int16), bits.numpy())


def test_a_box_is_that_part_of_the_tensor(torch, path):
    array = open_torch_file(path)["a"]
    whole = np.arange(60, dtype=np.float32).reshape(5, 12)
    np.testing.assert_array_equal(array.read((slice(1, 4), slice(2, 9))), whole[1:4, 2:9])


def test_views_into_one_storage_come_back_as_they_were_seen(torch, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"left": base[:, :3], "right": base[:, 3:], "turned": base.T, "again": base}
    torch.save(views, tmp_path / "w.pth")
    arrays = open_torch_file(tmp_path / "w.pth")
    for name, view in views.items():
        np.testing.assert_array_equal(arrays[name].load(), view.numpy(), err_msg=name)


def test_a_state_dict_with_its_metadata_and_parameters_is_read(torch, tmp_path):
    layer = torch.nn.Linear(4, 3)
    torch.save(layer.state_dict(), tmp_path / "w.pth")
    arrays = open_torch_file(tmp_path / "w.pth")
    np.testing.assert_array_equal(arrays["weight"].load(), layer.weight.detach().numpy())
    torch.save(dict(layer.named_parameters()), tmp_path / "p.pth")
    np.testing.assert_array_equal(
        open_torch_file(tmp_path / "p.pth")["bias"].load(), layer.bias.detach().numpy()
    )


def test_what_is_read_can_be_written_to_without_changing_the_file(path):
    before = path.read_bytes()
    open_torch_file(path)["b"].load()[:] = 7
    assert path.read_bytes() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(torch, tmp_path):
    tensors = {f"w{i}": torch.ones(2**14, 2**13, dtype=torch.bfloat16) for i in range(6)}
    torch.save(tensors, tmp_path / "w.pth")  # 1.5 GiB
    program = """
        import re, sys
        from ellama_jax.weights.lazy import split
        from ellama_jax.weights.torchfile import open_torch_file

        def peak_mib():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

        arrays = open_torch_file(sys.argv[1])
        before = peak_mib()
        for array in arrays.values():
            for box in split(array.shape, 2):
                assert (array.read(box) == 1).all()
        print(peak_mib() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "w.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400  # MiB, above what importing torch takes


# --- what is refused -----------------------------------------------------------------------------


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", b"")
    refuse(tmp_path / "w.pth", r"must be read with torch, got no such package; install it \(pip")


def test_an_older_torch_is_refused_before_it_reads_all_weights(torch, path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: torch.zeros(1))
    refuse(path, "must be read with a torch that finds weights without .* got 2.*; update it")


@pytest.mark.parametrize("place", ["beside", "inside", "instead"])
def test_code_in_a_pickle_is_named_and_not_run(torch, tmp_path, place):
    trace = tmp_path / "was run"

    class Code:
        def __reduce__(self):
            return os.system, (f"touch '{trace}'",)

    contents = {"beside": {"w": torch.ones(2), "x": Code()}, "inside": {"w": [Code()]}}
    torch.save(contents.get(place, Code()), tmp_path / "w.pth")
    refuse(
        tmp_path / "w.pth", r"nothing but tensors, got a pickle with the code \w+.system; it was"
    )
    assert not trace.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # it would have been
    assert trace.exists()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    refuse(path, "must be a (whole file of torch.save, got a truncated|zip archive)")


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 4096, b"\n"])
def test_a_padded_file_is_named(path, padding):
    path.write_bytes(path.read_bytes() + padding)
    refuse(path, "must be a whole file of torch.save, got a truncated, padded or broken one")


def test_damage_anywhere_in_the_description_is_an_error_or_harmless(path):
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("w/data.pkl")
    start = whole.index(b"\x80\x02")
    refused = 0
    for position in range(start, start + info.file_size):
        damaged = bytearray(whole)
        damaged[position] ^= 0x15
        path.write_bytes(damaged)
        try:
            for array in open_torch_file(path).values():
                array.load()
        except ValueError as error:
            refused += str(error).startswith(f"{path}: must ")
    assert refused > info.file_size / 2


def test_a_missing_storage_is_named(torch, path, tmp_path):
    with zipfile.ZipFile(path) as src, zipfile.ZipFile(tmp_path / "x.pth", "w") as dst:
        for info in src.infolist():
            if not info.filename.endswith("data/1"):
                dst.writestr(info.filename, src.read(info))
    refuse(tmp_path / "x.pth", "must be a whole file of torch.save")


def test_a_compressed_entry_is_named(path, tmp_path):
    with zipfile.ZipFile(path) as src, zipfile.ZipFile(tmp_path / "x.pth", "w") as dst:
        for info in src.infolist():
            dst.writestr(info.filename, src.read(info), compress_type=zipfile.ZIP_DEFLATED)
    refuse(tmp_path / "x.pth", "entry w/data.pkl is compressed")


def test_a_big_endian_file_is_named(path, tmp_path):
    with zipfile.ZipFile(path) as src, zipfile.ZipFile(tmp_path / "x.pth", "w") as dst:
        for info in src.infolist():
            swapped = info.filename.endswith("byteorder")
            dst.writestr(info.filename, b"big" if swapped else src.read(info))
    refuse(tmp_path / "x.pth", "numbers are big-endian")


def test_the_format_before_torch_1_6_is_named(torch, tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "w.pth", "must be a zip archive as torch.save writes since torch 1.6")


def test_a_plain_pickle_is_named(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"w": 1}))
    refuse(tmp_path / "w.pth", "got a file that begins with b'.x80")


def test_a_missing_file_is_named(tmp_path):
    refuse(tmp_path / "w.pth", "must be a readable file, got No such file")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda torch: [torch.ones(2)], "must hold a dict of tensors, got list"),
        (lambda torch: {}, "must hold a dict of tensors, got an empty one"),
        (lambda torch: {"model": {"w": torch.ones(2)}}, "tensors by name, got dict for 'model'"),
        (lambda torch: {"w": torch.ones(2), "step": 7}, "tensors by name, got int for 'step'"),
        (lambda torch: {0: torch.ones(2)}, "tensors by name, got Tensor for 0"),
        (lambda torch: {"w": torch.ones(2).to(torch.int8)}, "w must be one of .* got torch.int8;"),
        (lambda torch: {"w": torch.ones(2).double()}, "got torch.float64; take the model in its"),
        (lambda torch: {"w": torch.ones(2, 2).to_sparse()}, "got torch.float32 torch.sparse_coo"),
        (lambda torch: {"w": torch.ones(0, 4)}, r"w must not be empty, got shape \[0, 4\]"),
    ],
)
def test_what_is_no_table_of_plain_tensors_is_refused(torch, tmp_path, make, match):
    torch.save(make(torch), tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", match)
