"""Meta's own checkpoints: params.json, consolidated.NN.pth and tokenizer.model.

Owns what is particular to Meta's files: the sizes, the joining of tensor-parallel shards and the
order of query and key rows. Tensors come out under Hugging Face's names and in its layout; filling
parameters with them is tensors.py's, the .pth container torchfile.py's, the tokenizer
rankfile.py's (and reached through here).

Source of the facts: Meta's `llama-models` 0.3.0 (llama3/args.py, llama3/model.py, checkpoint.py,
sku_list.py).
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ellama_jax.model.presets import LlamaConfig, RopeScaling
from ellama_jax.weights.gguf import unpermuted
from ellama_jax.weights.huggingface import read_json
from ellama_jax.weights.lazy import Box, LazyArray, as_bits, same_bits
from ellama_jax.weights.rankfile import convert_tokenizer as convert_tokenizer
from ellama_jax.weights.torchfile import open_torch_file

PARAMS_FILE = "params.json"
TOKENIZER_FILE = "tokenizer.model"
_SHARD = re.compile(r"consolidated\.(\d+)\.pth")

# Meta's name -> (Hugging Face's name, dims): V vocabulary, D embedding, F MLP, Q and K the rows of
# all query and of all KV heads. {} is the layer.
_TENSORS = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", "VD"),
    "norm.weight": ("model.norm.weight", "D"),
    "output.weight": ("lm_head.weight", "VD"),
    "layers.{}.attention_norm.weight": ("model.layers.{}.input_layernorm.weight", "D"),
    "layers.{}.attention.wq.weight": ("model.layers.{}.self_attn.q_proj.weight", "QD"),
    "layers.{}.attention.wk.weight": ("model.layers.{}.self_attn.k_proj.weight", "KD"),
    "layers.{}.attention.wv.weight": ("model.layers.{}.self_attn.v_proj.weight", "KD"),
    "layers.{}.attention.wo.weight": ("model.layers.{}.self_attn.o_proj.weight", "DQ"),
    "layers.{}.ffn_norm.weight": ("model.layers.{}.post_attention_layernorm.weight", "D"),
    "layers.{}.feed_forward.w1.weight": ("model.layers.{}.mlp.gate_proj.weight", "FD"),
    "layers.{}.feed_forward.w2.weight": ("model.layers.{}.mlp.down_proj.weight", "DF"),
    "layers.{}.feed_forward.w3.weight": ("model.layers.{}.mlp.up_proj.weight", "FD"),
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# A buffer of Llama 1 and 2 that follows from the config.
_DROPPED = "rope.freqs"

# Keys of params.json that make a text model, with the kinds of numbers they are.
_KEYS = {
    "dim": int,
    "n_layers": int,
    "n_heads": int,
    "multiple_of": int,
    "norm_eps": float,
    "n_kv_heads": int,
    "vocab_size": int,
    "ffn_dim_multiplier": float,
    "rope_theta": float,
    "rope_scaling_factor": float,
    "use_scaled_rope": bool,
}
_REQUIRED = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")
# Settings of Meta's generation code; not of the model.
_IGNORED = ("max_seq_len", "max_batch_size")


def is_meta_directory(directory: str | os.PathLike) -> bool:
    """Returns whether a directory holds the params.json of a Meta checkpoint."""
    return (Path(directory) / PARAMS_FILE).is_file()


def find_files(directory: str | os.PathLike) -> list[Path]:
    """Returns the files that make the model: the shards in order, params.json, tokenizer.model."""
    directory = Path(directory)
    return [*_find_shards(directory), directory / PARAMS_FILE, directory / TOKENIZER_FILE]


# --- sizes ---------------------------------------------------------------------------------------


def read_config(directory: str | os.PathLike) -> LlamaConfig:
    """Reads the sizes and constants of a Meta checkpoint.

    What params.json leaves out is found in the tensors: a vocabulary of -1 or none, whether the
    head is tied (no output.weight, or one equal to tok_embeddings.weight), and how many KV heads
    are different ones (405B for 16 devices holds its 8 heads twice and says 16). Scaled RoPE is
    stretched by 8, by 32 where the head is tied, or by rope_scaling_factor where that is given.

    The context is in no file: 131,072 with scaled RoPE, else 8,192, and 4,096 where rope_theta is
    absent, as it is up to Llama 2.

    Args:
        directory: holds params.json and all of consolidated.NN.pth.

    Returns:
        The config, named after the directory.

    Raises:
        ValueError: if a file is missing or broken, or the model has what ours has not.
    """
    directory = Path(directory)
    path = directory / PARAMS_FILE
    raw = _read_params(path)
    shards = _open_shards(directory)
    try:
        config = _make_config(directory, raw, shards)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tensors = _join_shards(str(directory), shards, config)
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    tied = head is None or (embedding is not None and same_bits(head, embedding))
    return dataclasses.replace(config, tied_embeddings=tied, rope_scaling=_read_scaling(raw, tied))


def _read_params(path: Path) -> dict:
    raw = read_json(path)
    given = {key: value for key, value in raw.items() if value is not None and value != -1}
    _check_params(path, given)
    return given


def _check_params(path: Path, given: dict) -> None:
    if missing := [key for key in _REQUIRED if key not in given]:
        raise ValueError(f"{path}: must give {', '.join(missing)}, got none.")
    for key, value in given.items():
        if key in _IGNORED or (key not in _KEYS and value is False):
            continue
        if key not in _KEYS:
            raise ValueError(
                f"{path}: must describe a text model in full precision with the keys "
                f"{', '.join(_KEYS)}, got {key}={value!r:.40}."
            )
        kinds = (int, float) if _KEYS[key] is float else (_KEYS[key],)
        # A bool is an int in Python, and not in JSON.
        if type(value) not in kinds or (_KEYS[key] is not bool and value <= 0):
            kind = {int: "a whole number above 0", float: "a number above 0"}
            expected = kind.get(_KEYS[key], "true or false")
            raise ValueError(f"{path}: {key} must be {expected}, got {value!r}.")
    if given["dim"] % given["n_heads"]:
        got = f"{given['dim']} and {given['n_heads']}"
        raise ValueError(f"{path}: dim must be a multiple of n_heads, got {got}.")
    if "rope_scaling_factor" in given and not given.get("use_scaled_rope"):
        raise ValueError(f"{path}: rope_scaling_factor must go with use_scaled_rope, got it alone.")


def _make_config(directory: Path, raw: dict, shards: list[dict[str, LazyArray]]) -> LlamaConfig:
    head_dim = raw["dim"] // raw["n_heads"]
    context = 131072 if raw.get("use_scaled_rope") else 8192 if "rope_theta" in raw else 4096
    return LlamaConfig(
        name=directory.absolute().name,
        vocab_size=raw.get("vocab_size") or _count_vocabulary(shards, raw["dim"]),
        embed_dim=raw["dim"],
        mlp_dim=_mlp_dim(raw["dim"], raw.get("ffn_dim_multiplier", 1.0), raw["multiple_of"]),
        num_layers=raw["n_layers"],
        num_heads=raw["n_heads"],
        num_kv_heads=_count_kv_heads(shards, raw.get("n_kv_heads", raw["n_heads"]), head_dim),
        head_dim=head_dim,
        max_seq_len=context,
        # Llama 1 and 2 leave it out; every later file gives it.
        rope_theta=float(raw.get("rope_theta", 10000.0)),
        rope_scaling=None,
        norm_eps=float(raw["norm_eps"]),
        tied_embeddings=False,
        base_peak_learning_rate=None,
    )


def _mlp_dim(dim: int, multiplier: float, multiple_of: int) -> int:
    """Returns the width of the MLP by Meta's formula (`FeedForward` in model.py).

    >>> _mlp_dim(4096, 1.3, 1024), _mlp_dim(16384, 1.2, 4096)  # Llama 3.1 8B and 405B
    (14336, 53248)
    """
    width = int(multiplier * int(2 * (4 * dim) / 3))
    return multiple_of * -(-width // multiple_of)


def _count_vocabulary(shards: list[dict[str, LazyArray]], dim: int) -> int:
    parts = [shard["tok_embeddings.weight"] for shard in shards if "tok_embeddings.weight" in shard]
    if not parts or any(len(part.shape) != 2 for part in parts):
        raise ValueError("vocab_size must be given where there is no tok_embeddings.weight.")
    by_rows = parts[0].shape[1] == dim
    return sum(part.shape[0] for part in parts) if by_rows else parts[0].shape[0]


def _count_kv_heads(shards: list[dict[str, LazyArray]], stated: int, head_dim: int) -> int:
    # More devices than KV heads: each holds one head, neighbours the same.
    keys = [shard.get("layers.0.attention.wk.weight") for shard in shards]
    if len(keys) == 1 or any(key is None or key.shape[0] != head_dim for key in keys):
        return stated
    copies = 1
    while copies < len(keys) and same_bits(keys[0], keys[copies]):
        copies += 1
    return stated if copies == 1 else -(-len(keys) // copies)


def _read_scaling(raw: dict, tied: bool) -> RopeScaling | None:
    if not raw.get("use_scaled_rope"):
        return None
    # Meta's files say that RoPE is scaled and not by how much. It is 8 in Llama 3.1 and 3.3, and 32
    # in Llama 3.2 1B and 3B (llama-models issues 166 and 241), the only ones with a tied head.
    factor = raw.get("rope_scaling_factor", 32.0 if tied else 8.0)
    return RopeScaling(float(factor), 1.0, 4.0, 8192)


# --- weights -------------------------------------------------------------------------------------


def open_tensors(directory: str | os.PathLike, config: LlamaConfig) -> dict[str, LazyArray]:
    """Lists the tensors of a checkpoint by their Hugging Face names; no weight is read yet.

    Reading a box touches only the shards and, but for whole heads of q and k, the rows and columns
    that it lies in. What all shards hold (norms, repeated KV heads) is compared as it is read.

    Args:
        directory: holds all of consolidated.NN.pth.
        config: from `read_config`.

    Returns:
        Arrays in Hugging Face's layout, [outputs, inputs]. A tensor that is none of Llama's keeps
        its name; the copy that a tied head is, is left out.

    Raises:
        ValueError: if a shard is missing or broken, shards disagree, or shapes are not the
            config's; from `read`, if copies differ.
    """
    tensors = _join_shards(str(directory), _open_shards(Path(directory)), config)
    if config.tied_embeddings:
        tensors.pop(_HEAD, None)
    return tensors


def _find_shards(directory: Path) -> list[Path]:
    found = {}
    for path in directory.glob("consolidated.*.pth"):
        if match := _SHARD.fullmatch(path.name):
            found[int(match[1])] = path
    if not found:
        raise ValueError(f"{directory}: must hold consolidated.00.pth and so on, got none.")
    if missing := sorted(set(range(max(found) + 1)) - found.keys()):
        names = ", ".join(f"consolidated.{number:02}.pth" for number in missing)
        raise ValueError(f"{directory}: must hold every shard, got none of {names}; fetch them.")
    return [found[number] for number in sorted(found)]


def _open_shards(directory: Path) -> list[dict[str, LazyArray]]:
    paths = _find_shards(directory)
    shards = [open_torch_file(path) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if differing := sorted(shard.keys() ^ shards[0].keys()):
            where = "only here" if differing[0] in shard else f"only in {paths[0].name}"
            raise ValueError(
                f"{path}: must hold the tensors of {paths[0].name}, got {differing[0]} {where} "
                f"({len(differing)} such); are they shards of one model?"
            )
    for shard in shards:
        shard.pop(_DROPPED, None)
    return shards


def _join_shards(
    title: str, shards: list[dict[str, LazyArray]], config: LlamaConfig
) -> dict[str, LazyArray]:
    known = {
        name.format(layer): (target.format(layer), dims)
        for name, (target, dims) in _TENSORS.items()
        for layer in range(config.num_layers)
    }
    sizes = {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "F": config.mlp_dim,
        "Q": config.num_heads * config.head_dim,
        "K": config.num_kv_heads * config.head_dim,
    }
    tensors = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        if name not in known:
            tensors[name] = parts[0]
            continue
        target, dims = known[name]
        shape = tuple(sizes[dim] for dim in dims)
        joined = _join(f"{title}: {name}", parts, shape, repeats=dims[0] == "K")
        rotated = name.endswith(("wq.weight", "wk.weight"))
        # Meta rotates neighbours, as GGUF does.
        tensors[target] = unpermuted(joined, shape[0] // config.head_dim) if rotated else joined
    return tensors


def _join(
    name: str, parts: Sequence[LazyArray], shape: tuple[int, ...], repeats: bool
) -> LazyArray:
    """Joins the parts of one tensor along the dim in which their sizes add up to `shape`.

    Args:
        name: of the tensor, for messages.
        parts: one a shard, in order.
        shape: of the whole by the config.
        repeats: whether neighbouring parts may be copies, as KV heads for many devices are.
    """
    if len({part.dtype for part in parts}) > 1:
        found = ", ".join(sorted({part.dtype.name for part in parts}))
        raise ValueError(f"{name}: must have one dtype in all shards, got {found}.")
    if all(part.shape == shape for part in parts):
        return _check_copies(name, parts)
    for dim in range(len(shape)):
        copies = _count_copies(parts, shape, dim)
        if copies == 1 or (copies and repeats and dim == 0 and len(parts) % copies == 0):
            runs = [parts[i : i + copies] for i in range(0, len(parts), copies)]
            return _concatenate([_check_copies(name, run) for run in runs], dim, shape)
    found = sorted({str(list(part.shape)) for part in parts})
    raise ValueError(
        f"{name}: must make {list(shape)} as {PARAMS_FILE} says, got {len(parts)} shards of "
        f"{' and '.join(found)}; is a shard missing, or {PARAMS_FILE} of another model?"
    )


def _count_copies(parts: Sequence[LazyArray], shape: tuple[int, ...], dim: int) -> int:
    # How often the parts fill `shape` along `dim`; 0 if they do not.
    def others(sizes):
        return (*sizes[:dim], *sizes[dim + 1 :])

    if any(len(part.shape) != len(shape) or others(part.shape) != others(shape) for part in parts):
        return 0
    times, rest = divmod(sum(part.shape[dim] for part in parts), shape[dim])
    return 0 if rest else times


def _check_copies(name: str, copies: Sequence[LazyArray]) -> LazyArray:
    if len(copies) == 1:
        return copies[0]

    def read(box: Box) -> np.ndarray:
        first = copies[0].read(box)
        for copy in copies[1:]:
            if not np.array_equal(as_bits(first), as_bits(copy.read(box))):
                raise ValueError(
                    f"{name}: must be the same in all shards that hold it, got different values; "
                    "are they shards of one model? Else take its Hugging Face directory."
                )
        return first

    return dataclasses.replace(copies[0], read=read)


def _concatenate(parts: list[LazyArray], dim: int, shape: tuple[int, ...]) -> LazyArray:
    if len(parts) == 1:
        return parts[0]
    stops = np.cumsum([part.shape[dim] for part in parts]).tolist()

    def read(box: Box) -> np.ndarray:
        pieces = []
        for part, stop in zip(parts, stops, strict=True):
            start = stop - part.shape[dim]
            low, high = max(box[dim].start, start), min(box[dim].stop, stop)
            if low < high:
                inner = slice(low - start, high - start)
                pieces.append(as_bits(part.read((*box[:dim], inner, *box[dim + 1 :]))))
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=dim)
        return joined.view(parts[0].dtype)

    return LazyArray(shape, parts[0].dtype, read)
