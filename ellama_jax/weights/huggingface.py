"""Hugging Face directories of Llama models: config.json and safetensors to our config and params.

Owns the table that relates tensor names and layouts on the two sides, usable in both directions.
It does not know about Orbax, nor about tokenizers; importer.py puts the parts together.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import LlamaConfig, RopeScaling
from ellama_jax.progress import progress
from ellama_jax.tree import flatten_paths, unflatten_paths

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# safetensors' names of the dtypes that weights are kept in. Others are quantised formats.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

# path -> (name at Hugging Face, number of leading dims of our leaf that are inputs).
# torch keeps a linear layer as [outputs, inputs] with heads flattened into one dim; ours is
# [*inputs, *outputs]. So one number says it all: 0 is taken as it is, else it is a transposition.
TENSORS = {
    "embed/table": ("model.embed_tokens.weight", 0),
    "layers/attn_norm/scale": ("model.layers.{}.input_layernorm.weight", 0),
    "layers/attn/wq": ("model.layers.{}.self_attn.q_proj.weight", 1),
    "layers/attn/wk": ("model.layers.{}.self_attn.k_proj.weight", 1),
    "layers/attn/wv": ("model.layers.{}.self_attn.v_proj.weight", 1),
    "layers/attn/wo": ("model.layers.{}.self_attn.o_proj.weight", 2),
    "layers/mlp_norm/scale": ("model.layers.{}.post_attention_layernorm.weight", 0),
    "layers/mlp/w_gate": ("model.layers.{}.mlp.gate_proj.weight", 1),
    "layers/mlp/w_up": ("model.layers.{}.mlp.up_proj.weight", 1),
    "layers/mlp/w_down": ("model.layers.{}.mlp.down_proj.weight", 1),
    "final_norm/scale": ("model.norm.weight", 0),
    "lm_head/kernel": ("lm_head.weight", 1),
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


@dataclass(frozen=True)
class Source:
    """One tensor that can be read: its shape, its dtype, and the function that reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


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
    path = Path(directory) / CONFIG_FILE
    raw = _read_json(path)
    _check_supported(path, raw)
    raw = {**_DEFAULTS, **raw}
    theta, scaling = _read_rope(path, raw)
    heads = raw["num_attention_heads"]
    return LlamaConfig(
        name=Path(directory).absolute().name,
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


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: must exist, got no such file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON, got {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(content).__name__}.")
    return content


# --- safetensors ---------------------------------------------------------------------------------


def load_params(directory: str | os.PathLike, config: LlamaConfig) -> dict:
    """Reads the weights of a Hugging Face directory, each leaf in its own dtype.

    Args:
        directory: holds model.safetensors, or shards and model.safetensors.index.json.
        config: from `read_config`.

    Returns:
        Nested dict of NumPy arrays (DESIGN section 3); tensors are read one at a time into their
        place, so the peak is the model plus one tensor.

    Raises:
        ValueError: if a file is missing or truncated, or tensors and parameters do not pair up.
    """
    sources = open_safetensors(directory)
    if config.tied_embeddings:
        _drop_tied_head(sources)
    return assemble_params(str(directory), config, sources)


def open_safetensors(directory: str | os.PathLike) -> dict[str, Source]:
    """Lists the tensors of a directory by their names; nothing is read yet."""
    sources = {}
    for path, names in _find_files(Path(directory)).items():
        found = _open_file(path)
        if names is not None and (missing := sorted(names - found.keys())):
            raise ValueError(f"{path}: must hold {_some(missing)} as {INDEX_FILE} says, got none.")
        if twice := sorted(found.keys() & sources.keys()):
            raise ValueError(f"{path}: must not repeat tensors of other files, got {_some(twice)}.")
        sources.update(found)
    return sources


def _find_files(directory: Path) -> dict[Path, set[str] | None]:
    # Each file with the tensors that the index promises in it; None where there is no index.
    if (directory / INDEX_FILE).is_file():
        index = _read_json(directory / INDEX_FILE)
        files: dict[Path, set[str] | None] = {}
        for name, file in index.get("weight_map", {}).items():
            files.setdefault(directory / file, set()).add(name)
        if missing := sorted(path.name for path in files if not path.is_file()):
            raise ValueError(f"{directory}: must hold {_some(missing)} of {INDEX_FILE}, got none.")
        return files
    if (directory / SINGLE_FILE).is_file():
        return {directory / SINGLE_FILE: None}
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    hint = f"; save {pickled[0]} as safetensors first" if pickled else ""
    raise ValueError(f"{directory}: must hold {SINGLE_FILE} or {INDEX_FILE}, got neither{hint}.")


def _open_file(path: Path) -> dict[str, Source]:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
        return {name: _describe(path, file, name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: must be a whole safetensors file, got a truncated or broken one ({error}); "
            "fetch it again."
        ) from error


def _describe(path: Path, file, name: str) -> Source:
    part = file.get_slice(name)
    if part.get_dtype() not in DTYPES:
        raise ValueError(
            f"{path}: {name} must be one of {', '.join(DTYPES)}, got {part.get_dtype()}; "
            "dequantise the model first."
        )
    dtype = DTYPES[part.get_dtype()]
    return Source(tuple(part.get_shape()), dtype, lambda: file.get_tensor(name))


def _drop_tied_head(sources: dict[str, Source]) -> None:
    # Some tied models carry a copy of the embedding as lm_head. It may go only if it is a copy.
    head, embedding = sources.pop("lm_head.weight", None), sources.get("model.embed_tokens.weight")
    if head is None or embedding is None:
        return
    if not np.array_equal(head.read(), embedding.read()):
        raise ValueError(
            "lm_head.weight: must equal model.embed_tokens.weight where tie_word_embeddings is "
            "true, got other values; set tie_word_embeddings to false if the head is its own."
        )


# --- both directions -----------------------------------------------------------------------------


def tensor_names(config: LlamaConfig) -> dict[str, list[str]]:
    """Returns the names of the tensors that make each parameter, in the order of layers.

    >>> from ellama_jax.model.presets import get_preset
    >>> tensor_names(get_preset("tiny"))["layers/attn/wq"]
    ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight']
    """
    names = {}
    for path in flatten_paths(abstract_params(config)):
        template = TENSORS[path][0]
        count = config.num_layers if path.startswith("layers/") else 1
        names[path] = [template.format(layer) for layer in range(count)]
    return names


def place_tensor(path: str, tensor: np.ndarray, out: np.ndarray) -> None:
    """Writes one Hugging Face tensor into one layer of our leaf, in our layout.

    Args:
        path: of the parameter, which says the layout.
        tensor: [outputs, inputs], or as it is for norms and the embedding table.
        out: one layer of the leaf ([D, N, H] for wq); contiguous, filled in place.
    """
    inputs = TENSORS[path][1]
    if inputs == 0:
        out[...] = tensor
    else:
        out.reshape(tensor.shape[::-1])[...] = tensor.T


def extract_tensor(path: str, layer: np.ndarray) -> np.ndarray:
    """Returns one layer of our leaf in Hugging Face's layout; the inverse of `place_tensor`.

    >>> extract_tensor("layers/attn/wo", np.zeros((4, 16, 64))).shape  # [N, H, D]
    (64, 64)
    """
    inputs = TENSORS[path][1]
    return layer if inputs == 0 else layer.reshape(*foreign_shape(path, layer.shape)[::-1]).T


def foreign_shape(path: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Returns the shape that one layer of `shape` has at Hugging Face.

    >>> foreign_shape("layers/attn/wk", (64, 2, 16))
    (32, 64)
    """
    shape, inputs = tuple(shape), TENSORS[path][1]
    if inputs == 0:
        return shape
    return (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))


def assemble_params(title: str, config: LlamaConfig, sources: Mapping[str, Source]) -> dict:
    """Fills every parameter from its tensors, each tensor used once and each parameter filled once.

    Args:
        title: what is read, for messages.
        config: the model.
        sources: tensors under their Hugging Face names.

    Returns:
        Nested dict of NumPy arrays in the dtype of their sources.

    Raises:
        ValueError: if tensors are missing, left over, or of another shape or dtype than expected.
    """
    names = tensor_names(config)
    shapes = {path: leaf.shape for path, leaf in flatten_paths(abstract_params(config)).items()}
    _check_sources(title, names, shapes, sources)
    flat = {}
    with progress("reading weights", total=sum(map(len, names.values())), unit="tensors") as bar:
        for path, tensors in names.items():
            leaf = np.empty(shapes[path], sources[tensors[0]].dtype)
            layers = leaf if path.startswith("layers/") else leaf[None]
            for layer, name in zip(layers, tensors, strict=True):
                place_tensor(path, sources[name].read(), layer)
                bar.update(1)
            flat[path] = leaf
    return unflatten_paths(flat)


def _check_sources(title, names, shapes, sources) -> None:
    wanted = {name: path for path, tensors in names.items() for name in tensors}
    # Old conversions carry RoPE's frequencies as a buffer; they follow from the config.
    unused = {n for n in sources.keys() - wanted.keys() if not n.endswith("rotary_emb.inv_freq")}
    if missing := sorted(wanted.keys() - sources.keys()):
        raise ValueError(
            f"{title}: {len(missing)} tensors are missing: {_some(missing)}; "
            f"is the directory complete?"
        )
    if unused:
        raise ValueError(
            f"{title}: {len(unused)} tensors have no place in this model: {_some(sorted(unused))}."
        )
    for name, path in wanted.items():
        layer_shape = shapes[path][1:] if path.startswith("layers/") else shapes[path]
        expected = foreign_shape(path, layer_shape)
        if sources[name].shape != expected:
            raise ValueError(
                f"{title}: {name} must be {list(expected)} as the config says, "
                f"got {list(sources[name].shape)}."
            )
        if sources[name].dtype != sources[names[path][0]].dtype:
            raise ValueError(
                f"{title}: {name} must have the dtype of its other layers, "
                f"{sources[names[path][0]].dtype}, got {sources[name].dtype}."
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
