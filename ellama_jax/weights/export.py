"""`ellama export`: a checkpoint becomes a Hugging Face directory that transformers and vLLM load.

Owns what such a directory holds beside the tensors (config.json, tokenizer, shards and their index)
and how it is written: in pieces, whole or not at all. Names and layouts of tensors are those of
tensors.py; the model card is model_card.py's.
"""

import argparse
import dataclasses
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np

from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import (
    as_path,
    copy_file,
    file_bytes,
    is_remote,
    remove_tree,
    replace_directory,
)
from ellama_jax.core.progress import Progress, mebibytes, progress
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.weights.checkpoint import CheckpointInfo, find_checkpoint, open_leaves
from ellama_jax.weights.content_hash import Ledger, tensor_arrays
from ellama_jax.weights.huggingface import (
    CONFIG_FILE,
    DTYPES,
    INDEX_FILE,
    SINGLE_FILE,
    read_json,
)
from ellama_jax.weights.layout import (
    check_destination,
    check_disk_space,
    check_fingerprint,
)
from ellama_jax.weights.lazy import Box, LazyArray, as_bits, read_ahead
from ellama_jax.weights.model_card import CARD_FILE, write_card
from ellama_jax.weights.tensors import open_tensors
from ellama_jax.weights.verdict import check_verified

GENERATION_FILE = "generation_config.json"
SHARD_BYTES = 5 * 10**9  # as transformers' save_pretrained

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_EXPORT_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


def export_checkpoint(
    path: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    allow_unverified: bool = False,
    results: str = "",
) -> Path:
    """Writes a checkpoint as a Hugging Face directory.

    In a bucket it is written in place, config.json last: what lacks it is no model.

    Args:
        path: a root or `ROOT/<step>`.
        dst: the directory to make.
        dtype: bfloat16, float16 or float32 (rounded to the nearest); None keeps each leaf's.
        shard_bytes: the most bytes of tensors in one file; a larger tensor has a file of its own.
        overwrite: replace an earlier export at `dst`; anything else is never replaced.
        allow_unverified: export a checkpoint that failed the conversion gate all the same.
        results: Markdown for the model card, as `ellama evaluate --markdown` writes it.

    Returns:
        `dst`.

    Raises:
        ValueError: if the checkpoint is damaged or failed its gate, its tokenizer is not the one it
            was made with, or `dst` cannot be written. Nothing is left half written then.
    """
    dst, info = as_path(dst), find_checkpoint(path)
    check_fingerprint(info.tokenizer_dir, info.meta["tokenizer_fingerprint"])
    tokenizer = load_tokenizer(info.tokenizer_dir)
    tensors = open_tensors(info.config, open_leaves(info.path))
    if dtype is not None:
        tensors = {name: _cast(tensor, _EXPORT_DTYPES[dtype]) for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    check_destination(dst, size, overwrite=overwrite, is_replaceable=is_export)
    check_verified(info, allow_unverified=allow_unverified)
    ledger, arrays = Ledger(f"export {info.path}"), tensor_arrays(info.config, tensors)
    tensors = {name: ledger.follow(tensor, arrays[name]) for name, tensor in tensors.items()}

    def describe() -> CheckpointInfo:
        return dataclasses.replace(info, meta={**info.meta, "weights": ledger.content()})

    write_directory(dst, tensors, tokenizer, describe, shard_bytes, results)
    return dst


def write_directory(
    dst: Path,
    tensors: Mapping[str, LazyArray],
    tokenizer: Tokenizer,
    describe: Callable[[], CheckpointInfo],
    shard_bytes: int = SHARD_BYTES,
    results: str = "",
) -> CheckpointInfo:
    """Writes a Hugging Face directory, whole or not at all, in place of what is at `dst`.

    Args:
        dst: the directory to make.
        tensors: by their names, in the order in which they are to lie.
        tokenizer: of the directory that `describe` names.
        describe: says what the model is, for config.json and the card; called once the tensors are
            written, for what is found out meanwhile.
        shard_bytes: the most bytes of tensors in one file.
        results: Markdown for the card.

    Returns:
        what `describe` returned.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    partial = dst if is_remote(dst) else dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    remove_tree(partial)
    try:
        partial.mkdir(parents=True)
        with progress(f"writing {dst.name}", mebibytes(size), "MiB") as bar:
            write_tensors(partial, tensors, shard_bytes, bar)
        info = describe()
        _write_companions(partial, info, tokenizer, tensors, results)
        if partial != dst:
            replace_directory(partial, dst)
    except BaseException:
        remove_tree(partial)
        raise
    return info


def is_export(directory: Path) -> bool:
    """Tells whether a directory is a Hugging Face model, which an export may replace."""
    names = {entry.name for entry in directory.iterdir()}
    return CONFIG_FILE in names and bool(names & {SINGLE_FILE, INDEX_FILE})


def _cast(tensor: LazyArray, dtype: np.dtype) -> LazyArray:
    return LazyArray(
        tensor.shape, dtype, lambda box: tensor.read(box).astype(dtype, copy=False), tensor.grid
    )


# --- tensors -------------------------------------------------------------------------------------


def write_tensors(
    directory: Path,
    tensors: Mapping[str, LazyArray],
    shard_bytes: int = SHARD_BYTES,
    bar: Progress | None = None,
) -> None:
    """Writes safetensors files of at most `shard_bytes`, and their index where there are several.

    Args:
        directory: where to; exists.
        tensors: by their names, in the order in which they are to lie.
        shard_bytes: the most bytes of tensors in one file.
        bar: counts MiB.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    files = {
        directory / file: {name: tensors[name] for name in names}
        for file, names in plan.filename_to_tensors.items()
    }
    (_upload_files if is_remote(directory) else _write_files)(files, bar)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(directory / INDEX_FILE, index)


def _write_files(files: Mapping[Path, Mapping[str, LazyArray]], bar: Progress | None) -> None:
    for path, tensors in files.items():
        write_safetensors(path, tensors, bar)


def _upload_files(files: Mapping[Path, Mapping[str, LazyArray]], bar: Progress | None) -> None:
    """Writes files of a bucket by way of the local disk, which needs room for the largest.

    An object is sent from its first byte to its last, and tensors are written as their boxes come.
    """
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in files.values()]
    with tempfile.TemporaryDirectory() as folder:
        check_disk_space(f"export by way of {folder}", Path(folder), max(sizes))
        for path, tensors in files.items():
            local = Path(folder) / path.name
            write_safetensors(local, tensors, bar)
            copy_file(local, path)
            local.unlink()


def write_safetensors(
    path: Path, tensors: Mapping[str, LazyArray], bar: Progress | None = None
) -> None:
    """Writes one safetensors file in pieces.

    The format (huggingface/safetensors): the length of the header as uint64, the header as JSON
    padded to a multiple of 8, the tensors end to end. The library's own writer takes whole files
    from memory.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, ThreadPoolExecutor(1) as flusher:
        file.write(struct.pack("<Q", len(text)) + text)
        flushed = flusher.submit(lambda: None)
        for name, box, piece in read_ahead(tensors):
            start = 8 + len(text) + header[name]["data_offsets"][0]
            _write_box(file, start, tensors[name].shape, box, np.ascontiguousarray(piece))
            # Sent to the disk meanwhile, and not all of it at the end.
            if flushed.done():
                flushed.result()
                flushed = flusher.submit(os.fdatasync, file.fileno())
            if bar is not None:
                bar.count_bytes(piece.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _write_box(file, start: int, shape: tuple[int, ...], box: Box, piece: np.ndarray) -> None:
    """Writes a box of a tensor [outputs, inputs] or [outputs] to its place, row by row if need be."""
    columns = shape[1] if len(shape) == 2 else 1
    first = box[1].start if len(shape) == 2 else 0
    raw = as_bits(piece)
    if raw.size == (box[0].stop - box[0].start) * columns:
        file.seek(start + box[0].start * columns * raw.itemsize)
        file.write(raw.data)
        return
    for row, values in zip(range(box[0].start, box[0].stop), raw, strict=True):
        file.seek(start + (row * columns + first) * raw.itemsize)
        file.write(values.data)


# --- what lies beside them -----------------------------------------------------------------------


def _write_companions(
    directory: Path,
    info: CheckpointInfo,
    tokenizer: Tokenizer,
    tensors: Mapping[str, LazyArray],
    results: str,
) -> None:
    kept = {entry.name: entry for entry in sorted(info.tokenizer_dir.iterdir())}
    source = read_json(kept.pop(CONFIG_FILE)) if CONFIG_FILE in kept else {}
    for name, entry in kept.items():
        copy_file(entry, directory / name)
    ids = _document_ids(tokenizer, source)
    dtype = tensors["model.embed_tokens.weight"].dtype
    generation = read_json(directory / GENERATION_FILE) if GENERATION_FILE in kept else {}
    named = {key: value for key, value in ids.items() if value is not None}
    _write_json(directory / GENERATION_FILE, {**generation, **named})
    write_card(directory / CARD_FILE, info, results)
    _write_json(directory / CONFIG_FILE, make_config(info.config, dtype, ids))


def make_config(config: LlamaConfig, dtype: np.dtype, ids: Mapping) -> dict:
    """Returns config.json as transformers from 4.43 on, transformers 5 and vLLM read it.

    Args:
        config: sizes and constants.
        dtype: of the tensors.
        ids: bos_token_id, eos_token_id and pad_token_id.
    """
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **ids,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_seq_len,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": scaling and {
            "factor": scaling.factor,
            "high_freq_factor": scaling.high_freq_factor,
            "low_freq_factor": scaling.low_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
            "rope_type": "llama3",
        },
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype.name,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }  # fmt: skip


def _document_ids(tokenizer: Tokenizer, source: Mapping) -> dict:
    """Returns the ids around documents; a source's list of ends stays if it holds ours."""
    ends = source.get("eos_token_id")
    keep = isinstance(ends, list) and tokenizer.eos_id in ends
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends if keep else tokenizer.eos_id,
        "pad_token_id": source.get("pad_token_id"),
    }


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- the verb ------------------------------------------------------------------------------------


def main_export(argv: list[str]) -> None:
    """Runs `ellama export CKPT DST`."""
    parser = argparse.ArgumentParser(
        prog="ellama export",
        description="Write a checkpoint as a Hugging Face directory that transformers and vLLM load.",
        epilog="example: ellama export runs/merged exports/merged --dtype bfloat16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint root, or ROOT/<step>")
    parser.add_argument("dst", metavar="DST", help="directory to make")
    parser.add_argument(
        "--dtype", choices=_EXPORT_DTYPES, help="of the tensors; as stored by default"
    )
    parser.add_argument(
        "--shard-bytes",
        type=int,
        default=SHARD_BYTES,
        help="most bytes a file (default %(default)s)",
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="Markdown for the model card, as `ellama evaluate --markdown FILE` writes it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the export at DST")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="export what failed `ellama verify`"
    )
    args = parser.parse_args(argv)
    if args.shard_bytes < 1:
        raise ValueError(f"--shard-bytes: must be at least 1, got {args.shard_bytes}.")
    results = _read_markdown(args.results) if args.results else ""
    with owned(args.dst, "ellama export"):
        dst = export_checkpoint(
            args.checkpoint,
            args.dst,
            dtype=args.dtype,
            shard_bytes=args.shard_bytes,
            overwrite=args.overwrite,
            allow_unverified=args.allow_unverified,
            results=results,
        )
    files = sorted(dst.glob("*.safetensors"))
    size = mebibytes(sum(map(file_bytes, files)))
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    print(f"Exported {args.checkpoint} to {dst}: {count} of weights, {size:,} MiB")


def _read_markdown(path: str) -> str:
    try:
        return as_path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--results: must be Markdown in UTF-8, got {path}: {error}.") from error
