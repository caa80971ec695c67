"""Hugging Face directories of Llama models: config.json and safetensors to our config and leaves.

Owns the files of such a directory; names and layouts of tensors are in tensors.py. It does not know
about Orbax, nor about tokenizers; importer.py puts the parts together.
"""

import math
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from ellama_jax.core.limits import MODEL_JSON_BYTES, parse_json
from ellama_jax.core.paths import absolute, as_path, file_bytes, is_remote, name_inside, read_range
from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import LlamaConfig, RopeScaling
from ellama_jax.weights.lazy import Box, LazyArray, place, same_bits, split, whole
from ellama_jax.weights.tensors import assemble_leaves, some_of

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# safetensors' names of the dtypes that weights are kept in. Others are quantised formats.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

# What transformers' LlamaConfig takes for keys that are absent.
_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Features of the format that this model does not have: key -> the values that mean "absent".
_ABSENT = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", "swish"),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None),
}


# --- config.json ---------------------------------------------------------------------------------


def read_config(directory: str | os.PathLike) -> LlamaConfig:
    """Reads config.json of a `LlamaForCausalLM`.

    Args:
        directory: as `save_pretrained` writes it, by transformers 4 (`rope_scaling`) or 5
            (`rope_parameters`).

    Returns:
        The config, named after the directory; importer.py looks for a preset with its sizes.

    Raises:
        ValueError: if the file is missing or broken, or the model has what ours has not.
    """
    directory = as_path(directory)
    path = directory / CONFIG_FILE
    raw = read_json(path)
    _check_supported(path, raw)
    raw = {**_DEFAULTS, **raw}
    theta, scaling = _read_rope(path, raw)
    heads = raw["num_attention_heads"]
    return LlamaConfig(
        name=absolute(directory).name,
        vocab_size=raw["vocab_size"],
        embed_dim=raw["hidden_size"],
        mlp_dim=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw["num_key_value_heads"] or heads,
        head_dim=raw["head_dim"] or raw["hidden_size"] // heads,
        max_seq_len=raw["max_position_embeddings"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(raw["rms_norm_eps"]),
        tied_embeddings=bool(raw["tie_word_embeddings"]),
        base_peak_learning_rate=None,
    )


def _check_supported(path: Path, raw: dict) -> None:
    kind = raw.get("architectures") or [raw.get("model_type")]
    if kind not in (["LlamaForCausalLM"], ["llama"]):
        raise ValueError(f"{path}: architectures must be LlamaForCausalLM, got {kind}.")
    for key, absent in _ABSENT.items():
        if key in raw and raw[key] not in absent:
            raise ValueError(f"{path}: {key} must be {absent[0]} for this model, got {raw[key]}.")
    if missing := [key for key in _REQUIRED if not isinstance(raw.get(key), int)]:
        raise ValueError(f"{path}: must give {', '.join(missing)} as whole numbers, got none.")


def _read_rope(path: Path, raw: dict) -> tuple[float, RopeScaling | None]:
    # transformers 5 moved theta into the same dict as the scaling.
    rope = dict(raw["rope_parameters"] or raw["rope_scaling"] or {})
    theta = float(rope.get("rope_theta") or raw["rope_theta"])
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"{path}: rope_type must be default or llama3, got {kind}.")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [key for key in keys if key not in rope]:
        raise ValueError(f"{path}: rope scaling must give {', '.join(missing)}, got none.")
    factor, low, high, length = (rope[key] for key in keys)
    return theta, RopeScaling(float(factor), float(low), float(high), int(length))


def read_json(path: Path) -> dict:
    """Reads a JSON object; a ValueError names a file that is missing or none."""
    try:
        if file_bytes(path) > MODEL_JSON_BYTES:
            raise ValueError(f"more than {MODEL_JSON_BYTES:,} bytes")
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: must exist, got no such file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON, got {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(content).__name__}.")
    return content


# --- safetensors ---------------------------------------------------------------------------------


def open_directory(directory: str | os.PathLike, config: LlamaConfig) -> dict[str, LazyArray]:
    """Opens the weights of a Hugging Face directory as leaves of ours, each in its own dtype.

    Args:
        directory: holds model.safetensors, or shards and model.safetensors.index.json.
        config: from `read_config`.

    Returns:
        path -> leaf (DESIGN section 3). A leaf reads from the files just what a box needs.

    Raises:
        ValueError: if a file is missing or truncated, or tensors and parameters do not pair up.
    """
    tensors = open_safetensors(directory)
    if config.tied_embeddings:
        drop_tied_head(tensors)
    return assemble_leaves(str(directory), config, tensors)


def load_params(
    directory: str | os.PathLike, config: LlamaConfig, mesh: Mesh | None = None
) -> dict:
    """Reads the weights of a Hugging Face directory onto devices, each leaf in its own dtype.

    Args:
        directory: see `open_directory`.
        config: from `read_config`.
        mesh: where to place them, sharded as model/llama.py says; None is one device. Each process
            reads its own parts only.

    Returns:
        The nested dict of jax arrays (DESIGN section 3).
    """
    leaves = open_directory(directory, config)
    wanted = flatten_paths(abstract_params(config, mesh=mesh))
    placed = {
        path: place(leaf, wanted[path].update(dtype=leaf.dtype)) for path, leaf in leaves.items()
    }
    return unflatten_paths(placed)


def open_safetensors(directory: str | os.PathLike) -> dict[str, LazyArray]:
    """Opens the tensors of a directory by their names; no weight is read yet."""
    tensors: dict[str, LazyArray] = {}
    for path, names in _find_files(as_path(directory)).items():
        found = (_open_remote if is_remote(path) else _open_file)(path)
        if names is not None and (missing := sorted(names - found.keys())):
            raise ValueError(
                f"{path}: must hold {some_of(missing)} as {INDEX_FILE} says, got none."
            )
        if twice := sorted(found.keys() & tensors.keys()):
            raise ValueError(
                f"{path}: must not repeat tensors of other files, got {some_of(twice)}."
            )
        tensors.update(found)
    return tensors


def weight_files(directory: str | os.PathLike) -> list[Path]:
    """Returns the safetensors files that the weights of a directory lie in."""
    return sorted(_find_files(as_path(directory)))


def _find_files(directory: Path) -> dict[Path, set[str] | None]:
    # Each file with the tensors that the index promises in it; None where there is no index.
    if (directory / INDEX_FILE).is_file():
        index = read_json(directory / INDEX_FILE)
        files: dict[Path, set[str] | None] = {}
        for name, file in index.get("weight_map", {}).items():
            path = directory / name_inside(directory, file, INDEX_FILE)
            files.setdefault(path, set()).add(name)
        if missing := sorted(path.name for path in files if not path.is_file()):
            raise ValueError(
                f"{directory}: must hold {some_of(missing)} of {INDEX_FILE}, got none."
            )
        return files
    if (directory / SINGLE_FILE).is_file():
        return {directory / SINGLE_FILE: None}
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    hint = f"; save {pickled[0]} as safetensors first" if pickled else ""
    raise ValueError(f"{directory}: must hold {SINGLE_FILE} or {INDEX_FILE}, got neither{hint}.")


def _open_file(path: Path) -> dict[str, LazyArray]:
    import safetensors

    try:
        # The library checks that header and data fit each other and the size of the file.
        with safetensors.safe_open(path, framework="numpy") as file:
            starts = _data_starts(path)
            return {name: _open_tensor(path, file, name, starts[name]) for name in starts}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: must be a whole safetensors file, got a truncated or broken one ({error}); "
            "fetch it again."
        ) from error


def _data_starts(path: Path) -> dict[str, int]:
    """Returns where each tensor begins in the file, which the library does not tell."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


def _open_tensor(path: Path, file, name: str, start: int) -> LazyArray:
    part = file.get_slice(name)
    shape, dtype = tuple(part.get_shape()), _known_dtype(path, name, part.get_dtype())
    row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(box: Box) -> np.ndarray:
        if box[1:] != whole(shape[1:]):
            return _read_part(path, name, box)
        sizes = (box[0].stop - box[0].start, *shape[1:])
        offset = start + box[0].start * row_bytes
        return np.fromfile(path, dtype, math.prod(sizes), offset=offset).reshape(sizes)

    return LazyArray(shape, dtype, read)


def _read_part(path: Path, name: str, box: Box) -> np.ndarray:
    import safetensors

    # Opened for each box: the file is mapped into memory, and what was read through a mapping stays
    # in this process's memory until it is closed.
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.get_slice(name)[box]


def _open_remote(path: Path) -> dict[str, LazyArray]:
    """Opens a file in a bucket, which cannot be mapped: what a box needs is fetched by rows.

    Header and size are checked as the library checks them on a disk.
    """
    size = file_bytes(path)
    try:
        (length,) = struct.unpack("<Q", read_range(path, 0, 8))
        if length > size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = parse_json(read_range(path, 8, 8 + length))
        header.pop("__metadata__", None)
        _check_layout(header, size - 8 - length)
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(
            f"{path}: must be a whole safetensors file, got a truncated or broken one ({error}); "
            "upload it again."
        ) from error
    return {name: _open_rows(path, 8 + length, name, entry) for name, entry in header.items()}


def _check_layout(header: dict, data_bytes: int) -> None:
    """Raises a ValueError unless the tensors fill the data end to end, each as its shape says."""
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or stop < start:
            raise ValueError(f"{name} at {start} to {stop}, expected to begin at {end}")
        dtype = DTYPES.get(entry["dtype"])  # others are refused by name when they are opened
        if dtype is not None and stop - start != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"{name} of {stop - start} bytes for the shape {entry['shape']}")
        end = stop
    if end != data_bytes:
        raise ValueError(f"tensors of {end} bytes in {data_bytes} bytes of data")


def _open_rows(path: Path, data_start: int, name: str, entry: dict) -> LazyArray:
    shape, start = tuple(entry["shape"]), data_start + entry["data_offsets"][0]
    dtype = _known_dtype(path, name, entry["dtype"])
    row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(box: Box) -> np.ndarray:
        found = np.empty([part.stop - part.start for part in box], dtype)
        # Of columns, whole rows are fetched: in pieces, so that they never are the whole tensor.
        wanted = (found.shape[0], *shape[1:])
        for rows, *_ in split(wanted, dtype.itemsize, (1, *shape[1:])):
            first = start + (box[0].start + rows.start) * row_bytes
            raw = read_range(path, first, first + (rows.stop - rows.start) * row_bytes)
            found[rows] = np.frombuffer(raw, dtype).reshape(-1, *shape[1:])[:, *box[1:]]
        return found

    return LazyArray(shape, dtype, read)


def _known_dtype(path: Path, name: str, kind: str) -> np.dtype:
    if kind not in DTYPES:
        raise ValueError(
            f"{path}: {name} must be one of {', '.join(DTYPES)}, got {kind}; dequantise the model "
            "first."
        )
    return DTYPES[kind]


def drop_tied_head(tensors: dict[str, LazyArray]) -> None:
    """Takes the output projection out of `tensors` of a tied model, if it is the embedding's copy.

    Raises:
        ValueError: if it holds other values.
    """
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or embedding is None:
        return
    if not same_bits(head, embedding):
        raise ValueError(
            "lm_head.weight: must equal model.embed_tokens.weight where tie_word_embeddings is "
            "true, got other values; set tie_word_embeddings to false if the head is its own."
        )
    del tensors["lm_head.weight"]
