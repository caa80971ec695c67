"""Files that `torch.save` wrote, as lazily read arrays, without running what is in them.

Owns the container: a zip archive with a pickle that describes tensors and an entry of raw bytes for
each storage. It does not know what the tensors are of; meta.py does.

torch parses the pickle (weights-only, with no weight read) and NumPy maps the bytes. torch's own
`mmap=True` maps the file writable and private, which Linux refuses for files larger than memory.
"""

import io
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from ellama_jax.weights.lazy import Box, LazyArray

# torch's names of the dtypes that weights are kept in.
_DTYPES = {
    "torch.float32": np.dtype(np.float32),
    "torch.float16": np.dtype(np.float16),
    "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ZIP_MAGIC, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
# Lengths of a zip's last record and of an entry's header, both without their variable parts.
_END_BYTES, _HEADER_BYTES = 22, 30


def open_torch_file(path: str | os.PathLike) -> dict[str, LazyArray]:
    """Lists the tensors of a file; `read` of one touches only the pages of its box.

    Each read maps the file anew and unmaps it: pages that stay mapped count as memory used.

    Args:
        path: a dict of dense float32, float16 or bfloat16 tensors, saved by torch 1.6 or later.

    Returns:
        The arrays by name, in the order of the file.

    Raises:
        ValueError: if torch is not installed, or the file is truncated, padded, of another kind, or
            holds anything but such tensors. Code in a pickle is never run.
    """
    path = Path(path)
    entries = _read_directory(path)
    tensors = _parse(path)
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError(f"{path}: must hold a dict of tensors, got {_describe_kind(tensors)}.")
    return {name: _make_lazy(path, name, tensor, entries) for name, tensor in tensors.items()}


def _read_directory(path: Path) -> dict[int, int]:
    # Where the bytes of each entry begin -> how many they are.
    _check_ends(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            located = dict(_locate(file, info) for info in archive.infolist())  # none is compressed
            order = [info for info in archive.infolist() if info.filename.endswith("/byteorder")]
            if order and archive.read(order[0]) != b"little":
                raise ValueError("numbers are big-endian")
            return located
    except (OSError, ValueError, struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(_broken(path, str(error))) from error


def _check_ends(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            end = file.read()
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file, got {error.strerror}.") from error
    if magic != _ZIP_MAGIC:
        raise ValueError(
            f"{path}: must be a zip archive as torch.save writes since torch 1.6, got a file that "
            f"begins with {magic!r}; take the Hugging Face directory of the same model."
        )
    # The archive ends with its end record; zip readers look for it further up, past any padding.
    if not end.startswith(_ZIP_END):
        raise ValueError(_broken(path, "no end record in its last 22 bytes"))


def _locate(file, info: zipfile.ZipInfo) -> tuple[int, int]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"entry {info.filename} is compressed")
    file.seek(info.header_offset)
    header = file.read(_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return info.header_offset + _HEADER_BYTES + name_bytes + extra_bytes, info.file_size


def _broken(path: Path, problem: str) -> str:
    return (
        f"{path}: must be a whole file of torch.save, got a truncated, padded or broken one "
        f"({problem}); fetch it again."
    )


def _parse(path: Path):
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path}: must be read with torch, got no such package; install it (pip install torch) "
            "or take the Hugging Face directory of the same model."
        ) from error
    _check_finds_offsets(torch, path)
    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: must hold nothing but tensors, got a pickle with {_name_code(error)}; it was "
            "not run. Take the file from its publisher, or the Hugging Face directory."
        ) from error
    except Exception as error:  # torch raises whatever a damaged pickle leads it into
        raise ValueError(_broken(path, _first_line(error))) from error


def _check_finds_offsets(torch, path: Path) -> None:
    # On the device "meta" tensors have no values, and their storages say where these lie: tried on a
    # file in memory, for an older torch reads all of the weights and then does not say.
    file = io.BytesIO()
    torch.save(torch.zeros(1), file)
    file.seek(0)
    storage = torch.load(file, map_location="meta", weights_only=True).untyped_storage()
    if getattr(storage, "_checkpoint_offset", None) is None:
        raise ValueError(
            f"{path}: must be read with a torch that finds weights without reading them (2.13 "
            f"does), got {torch.__version__}; update it."
        )


def _name_code(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"the code {found[1]}" if found else f"something else ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).strip(" .")[:120]


def _describe_kind(content) -> str:
    return "an empty one" if isinstance(content, dict) else type(content).__name__


def _make_lazy(path: Path, name: str, tensor, entries: dict[int, int]) -> LazyArray:
    dtype = _check_kind(path, name, tensor)
    shape, strides = tuple(tensor.shape), [dtype.itemsize * step for step in tensor.stride()]
    start = tensor.untyped_storage()._checkpoint_offset
    offset = dtype.itemsize * tensor.storage_offset()
    used = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if used + dtype.itemsize > entries.get(start, 0):
        raise ValueError(_broken(path, f"{name} reaches beyond its entry in the archive"))
    # Copied as bits: NumPy moves numbers of a foreign dtype one by one.
    bits = np.dtype(f"u{dtype.itemsize}")

    def read(box: Box) -> np.ndarray:
        mapped = np.memmap(path, np.uint8, "r")
        values = np.ndarray(shape, bits, mapped, start + offset, strides)
        return values[box].copy().view(dtype)

    return LazyArray(shape, dtype, read)


def _check_kind(path: Path, name: str, tensor) -> np.dtype:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise ValueError(f"{path}: must hold tensors by name, got {kind} for {name!r}.")
    if str(tensor.dtype) not in _DTYPES or tensor.layout != torch.strided:
        layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
        raise ValueError(
            f"{path}: {name} must be one of {', '.join(_DTYPES)}, got {tensor.dtype}{layout}; take "
            "the model in its published precision."
        )
    if tensor.numel() == 0:
        raise ValueError(f"{path}: {name} must not be empty, got shape {list(tensor.shape)}.")
    return _DTYPES[str(tensor.dtype)]
