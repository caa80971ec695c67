"""GGUF files of Llama models: weights, sizes and tokenizer out of one file.

Owns what is particular to GGUF: its metadata keys, the dequantisation to float32, the order of
query and key rows, and the tokenizer inside. Names and layouts are mapped onto those of
tensors.py, which makes the leaves.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from ellama_jax.model.presets import PRESETS, LlamaConfig, RopeScaling
from ellama_jax.weights.lazy import Box, LazyArray, as_bits
from ellama_jax.weights.tensors import assemble_leaves

MAGIC = b"GGUF"

# GGUF tensor name -> Hugging Face tensor name; {} is the layer.
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
ROPE_FACTORS = "rope_freqs.weight"

# How llama.cpp's converter says which text is split before merging (its `tokenizer.ggml.pre`).
# The expression of Llama 3 is the one in the model's own tokenizer.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    "smollm": "digits",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "gpt-2": "gpt2",
    "default": "gpt2",
}

# llama.cpp's token types (gguf.TokenType): ordinary text is 1.
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True)
class GgufModel:
    """What one file holds: sizes, leaves (float32), the tokenizer, and the ids around documents."""

    config: LlamaConfig
    leaves: dict[str, LazyArray]
    tokenizer: tokenizers.Tokenizer
    bos_id: int | None
    eos_id: int


def open_gguf(path: str | os.PathLike) -> GgufModel:
    """Opens a Llama model in a GGUF file; weights are read, and dequantised, when asked for.

    Args:
        path: a whole, single-part file of architecture "llama" with a byte-level BPE tokenizer.

    Raises:
        ValueError: if the file is truncated, or holds something this model is not.
    """
    path = Path(path)
    reader = _open(path)
    config = _read_config(reader, path)
    leaves = assemble_leaves(str(path), config, _open_tensors(reader, path, config))
    tokenizer = _read_tokenizer(reader, path)
    bos_id, eos_id = (_optional(reader, f"tokenizer.ggml.{k}_token_id") for k in ("bos", "eos"))
    if eos_id is None:
        raise ValueError(f"{path}: tokenizer.ggml.eos_token_id must be given, got none.")
    return GgufModel(config, leaves, tokenizer, bos_id, eos_id)


def unpermute_rotary(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Brings query or key rows from GGUF's order into the half-split order of Hugging Face.

    GGUF rotates neighbours (0, 1), (2, 3), ... of a head; Hugging Face rotates row i with row
    i + H/2. llama.cpp's converter interleaves the two halves; this takes them apart again.

    Args:
        rows: [num_heads * H, D].
        num_heads: query or key heads.

    Returns:
        [num_heads * H, D].

    One head with H = 4:

        >>> unpermute_rotary(np.array([[0], [1], [2], [3]]), 1).ravel().tolist()
        [0, 2, 1, 3]
    """
    total, width = rows.shape
    pairs = rows.reshape(num_heads, total // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(total, width)


def unpermuted(tensor: LazyArray, num_heads: int) -> LazyArray:
    """Returns query or key rows [num_heads * H, D] in half-split order; whole heads are read."""
    size = tensor.shape[0] // num_heads

    def read(box: Box) -> np.ndarray:
        rows, columns = box
        first, last = rows.start // size, -(-rows.stop // size)
        heads = as_bits(tensor.read((slice(first * size, last * size), columns)))
        ordered = unpermute_rotary(heads, last - first).view(tensor.dtype)
        return ordered[rows.start - first * size : rows.stop - first * size]

    return LazyArray(tensor.shape, tensor.dtype, read, (size, 1))


# --- the file ------------------------------------------------------------------------------------


def _open(path: Path):
    import gguf

    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file, got {error.strerror}.") from error
    if magic != MAGIC:
        raise ValueError(f"{path}: must be a GGUF file, got one that begins with {magic!r}.")
    try:
        _check_counts(path)
        reader = gguf.GGUFReader(path)
        # Reading past the end of the map gives short arrays, which fail to reshape; be sure.
        end = max((int(t.data_offset + t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise ValueError(
            f"{path}: must be a whole GGUF file, got a truncated or broken one ({error}); "
            "fetch it again."
        ) from error
    if end > path.stat().st_size or not reader.tensors:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: must be a whole GGUF file of {end} bytes, got {size}; fetch it again."
        )
    return reader


# Bytes of a value, by the number of its type in the format's table; 8 is a string, 9 an array.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_TENSOR_BYTES = 32  # that the description of a tensor has at least


def _check_counts(path: Path) -> None:
    """Raises a ValueError where a file counts more than it can hold: the library would go on counting.

    The format: ggml's docs/gguf.md, version 2 and 3.
    """
    with path.open("rb") as file:
        size = path.stat().st_size

        def number(form: str) -> int:
            return struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0]

        def skip(count: int, each: int) -> None:
            if count * each > size - file.tell():
                raise ValueError(f"{count:,} values that would not fit into the file")
            file.seek(count * each, os.SEEK_CUR)

        def skip_value(kind: int) -> None:
            if kind == _STRING:
                skip(number("Q"), 1)
            elif kind != _ARRAY:
                skip(1, _VALUE_BYTES[kind])
            elif (inner := number("I")) in _VALUE_BYTES:
                skip(number("Q"), _VALUE_BYTES[inner])
            elif inner != _STRING:
                raise ValueError("an array of arrays")
            else:
                for _ in range(number("Q")):
                    skip(number("Q"), 1)

        file.seek(4)
        version, tensors, pairs = number("I"), number("Q"), number("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}, which is neither 2 nor 3")
        for _ in range(pairs):
            skip(number("Q"), 1)
            skip_value(number("I"))
        if tensors * _TENSOR_BYTES > size - file.tell():
            raise ValueError(f"{tensors:,} tensors that would not fit into the file")


def _required(reader, path: Path, key: str):
    value = _optional(reader, key)
    if value is None:
        raise ValueError(f"{path}: must give {key}, got none.")
    return value


def _optional(reader, key: str):
    field = reader.get_field(key)
    return None if field is None else field.contents()


# --- sizes ---------------------------------------------------------------------------------------


def _read_config(reader, path: Path) -> LlamaConfig:
    architecture = _required(reader, path, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path}: general.architecture must be llama, got {architecture}.")
    if _optional(reader, "llama.expert_count"):
        raise ValueError(f"{path}: must not have experts, got a mixture-of-experts model.")
    if (_optional(reader, "split.count") or 1) > 1:
        raise ValueError(f"{path}: must be a single file, got one part of several; join them.")
    names = {tensor.name for tensor in reader.tensors}
    heads = _required(reader, path, "llama.attention.head_count")
    embed_dim = _required(reader, path, "llama.embedding_length")
    head_dim = _optional(reader, "llama.attention.key_length") or embed_dim // heads
    if (_optional(reader, "llama.rope.dimension_count") or head_dim) != head_dim:
        raise ValueError(f"{path}: llama.rope.dimension_count must be head_dim {head_dim}.")
    theta = _clean(_optional(reader, "llama.rope.freq_base") or 10000.0)
    return LlamaConfig(
        name=path.stem,
        vocab_size=len(_required(reader, path, "tokenizer.ggml.tokens")),
        embed_dim=embed_dim,
        mlp_dim=_required(reader, path, "llama.feed_forward_length"),
        num_layers=_required(reader, path, "llama.block_count"),
        num_heads=heads,
        num_kv_heads=_optional(reader, "llama.attention.head_count_kv") or heads,
        head_dim=head_dim,
        max_seq_len=_required(reader, path, "llama.context_length"),
        rope_theta=theta,
        rope_scaling=_read_rope_scaling(reader, path, head_dim, theta),
        norm_eps=_clean(_required(reader, path, "llama.attention.layer_norm_rms_epsilon")),
        # llama.cpp writes the output projection only where it is not the embedding table.
        tied_embeddings="output.weight" not in names,
        base_peak_learning_rate=None,
    )


def _clean(value: float) -> float:
    # Metadata is float32: 9.999999747e-06 was written as 1e-05, and is meant so.
    return float(str(np.float32(value)))


def _read_rope_scaling(reader, path: Path, head_dim: int, theta: float) -> RopeScaling | None:
    kind = _optional(reader, "llama.rope.scaling.type")
    if kind not in (None, "none"):
        raise ValueError(f"{path}: llama.rope.scaling.type must be none, got {kind}.")
    tensors = [tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS]
    if not tensors:
        return None
    # GGUF keeps only the resulting factor of each frequency; find the settings they come from.
    factors = np.asarray(tensors[0].data, np.float32).ravel()
    known = {preset.rope_scaling for preset in PRESETS.values()} - {None}
    for scaling in sorted(known, key=lambda known: known.factor):
        expected = rope_factors(head_dim, theta, scaling)
        if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4):
            return scaling
    raise ValueError(
        f"{path}: {ROPE_FACTORS} must be those of Llama 3.1 or 3.2, got factors from "
        f"{factors.min():g} to {factors.max():g}; import the Hugging Face directory instead."
    )


def rope_factors(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Returns what each RoPE frequency is divided by under the "llama3" scaling.

    Source: `rope_scaling` of Llama 3.1 as in transformers' `_compute_llama3_parameters`.

    Args:
        head_dim: H.
        theta: base of the frequencies.
        scaling: factor, and the wavelengths between which it sets in.

    Returns:
        [H / 2] float32, from 1 (short wavelengths) to `scaling.factor` (long ones).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    turns = scaling.original_max_seq_len / (2 * np.pi * theta**exponents)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / scaling.factor + smooth)).astype(np.float32)


# --- weights -------------------------------------------------------------------------------------


def _open_tensors(reader, path: Path, config: LlamaConfig) -> dict[str, LazyArray]:
    renamed = {
        name.format(layer): target.format(layer)
        for name, target in TENSORS.items()
        for layer in range(config.num_layers)
    }
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name != ROPE_FACTORS:
            # A tensor we do not know keeps its name, so that it is reported as one with no place.
            tensors[renamed.get(tensor.name, tensor.name)] = _open_tensor(tensor, path, config)
    return tensors


def _open_tensor(tensor, path: Path, config: LlamaConfig) -> LazyArray:
    # GGUF counts dims from the innermost one.
    shape = tuple(int(size) for size in reversed(tensor.shape))
    lazy = LazyArray(shape, np.dtype(np.float32), _make_read(tensor, path))
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    num_heads = next((n for part, n in heads.items() if f".{part}.weight" in tensor.name), None)
    return lazy if num_heads is None else unpermuted(lazy, num_heads)


def _make_read(tensor, path: Path):
    from gguf import quants

    # Blocks of a quantised format run along rows, so that whole rows can be read alone. Not through
    # the reader's mapping of the file, of which every page once read would stay in memory.
    stored, row_shape = tensor.data.dtype, tensor.data.shape[1:]
    row_bytes = tensor.n_bytes // tensor.data.shape[0]
    name, kind, start = tensor.name, tensor.tensor_type, int(tensor.data_offset)

    def read(box: Box) -> np.ndarray:
        rows = box[0]
        count = (rows.stop - rows.start) * row_bytes // stored.itemsize
        raw = np.fromfile(path, stored, count, offset=start + rows.start * row_bytes)
        try:
            values = quants.dequantize(raw.reshape(-1, *row_shape), kind)
        except NotImplementedError as error:
            raise ValueError(f"{name}: must be a known format, got {kind.name}.") from error
        return values[:, *box[1:]]

    return read


# --- tokenizer -----------------------------------------------------------------------------------


def _read_tokenizer(reader, path: Path):
    from tokenizers import Tokenizer, decoders, models

    kind = _required(reader, path, "tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"{path}: tokenizer.ggml.model must be gpt2 (byte-level BPE), got {kind}; "
            "import the Hugging Face directory instead."
        )
    tokens = _required(reader, path, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in _required(reader, path, "tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ValueError(f"{path}: tokens must be unique, got {len(tokens) - len(vocab)} repeated.")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=_is_llama3(reader)))
    tokenizer.pre_tokenizer = _make_pre_tokenizer(reader, path)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens, _optional(reader, "tokenizer.ggml.token_type") or [])
    return tokenizer


def _is_llama3(reader) -> bool:
    # Llama 3's own tokenizer takes a whole word that is in the vocabulary before merging.
    name = _optional(reader, "tokenizer.ggml.pre") or "default"
    return name in _PRE_TOKENIZERS and _PRE_TOKENIZERS[name] == "llama3"


def _make_pre_tokenizer(reader, path: Path):
    from tokenizers import Regex, pre_tokenizers

    name = _optional(reader, "tokenizer.ggml.pre") or "default"
    if name not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ValueError(f"{path}: tokenizer.ggml.pre must be one of {known}, got {name}.")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if _PRE_TOKENIZERS[name] == "gpt2":
        return byte_level
    if _PRE_TOKENIZERS[name] == "digits":
        # Every digit stands alone, in llama.cpp and in SmolLM2's own tokenizer.json.
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    mapped = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, mapped])


def _add_special_tokens(tokenizer, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    def added(wanted: int, special: bool) -> list:
        chosen = [token for token, kind in zip(tokens, types, strict=False) if kind == wanted]
        return [AddedToken(token, normalized=False, special=special) for token in chosen]

    tokenizer.add_special_tokens(added(_CONTROL, True))
    tokenizer.add_tokens(added(_USER_DEFINED, False))
