"""`ellama import`: a foreign model becomes a checkpoint root with its tokenizer beside it.

Owns telling the formats apart, fitting the model to a preset, and the record of where it came
from. Reading the formats is left to huggingface.py, meta.py and gguf.py, writing to checkpoint.py.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import tokenizers

from ellama_jax.core.distributed import leads, on_leader, one_job
from ellama_jax.core.limits import parse_json
from ellama_jax.core.ownership import owned
from ellama_jax.core.paths import as_path, check_links, copy_file, is_remote
from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import PRESETS, LlamaConfig, fields_that_differ, get_preset
from ellama_jax.tokens.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    check_fits,
    load_tokenizer,
    save_tokenizer,
)
from ellama_jax.weights import gguf, huggingface, meta
from ellama_jax.weights.checkpoint import CheckpointInfo, make_meta, write_checkpoint
from ellama_jax.weights.content_hash import Ledger, leaf_arrays
from ellama_jax.weights.description import describe_checkpoint
from ellama_jax.weights.layout import check_destination
from ellama_jax.weights.lazy import LazyArray, place
from ellama_jax.weights.tensors import assemble_leaves

# What a Hugging Face directory may say about its tokenizer. All of it is kept, so that an export
# gives back what was imported.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
# How far hashing may run ahead of reading.
_LEAD_BYTES = 2**28


@dataclass(frozen=True)
class _Model:
    """What was opened: sizes, leaves still unread, the tokenizer's directory, the source files."""

    format: str
    config: LlamaConfig
    leaves: dict[str, LazyArray]
    tokenizer_dir: Path
    files: list[Path]


def import_weights(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    preset: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    overwrite: bool = False,
) -> CheckpointInfo:
    """Imports a Hugging Face or Meta directory or a GGUF file into a new checkpoint root.

    Weights pass through in pieces, so that memory does not grow with the model. They keep their
    dtype; quantised GGUF formats become float32.

    Args:
        src: the directory or file.
        dst: the root to make; its single step is 0.
        preset: the model that `src` must be; None takes the preset with its sizes, if any.
        bos, eos: tokens that begin and end a document, where the source names others: an
            instruction-tuned model names the marks of its chat, but was pretrained with
            end-of-text between documents. None keeps the source's.
        overwrite: replace an existing checkpoint root at `dst`.

    Returns:
        The new checkpoint.

    Raises:
        ValueError: if `src` is incomplete, no Llama, or not the preset, if its tokenizer does not
            fit, or `dst` cannot be written. Nothing is written then.
    """
    src = as_path(src)
    source_format = detect_format(src)
    on_leader(lambda: check_destination(dst, 0, overwrite=overwrite))
    with _READERS[source_format](src, preset) as model:
        # The cheap checks come first: a wrong tokenizer shows before gigabytes are read.
        _name_document_tokens(model.tokenizer_dir, {"bos_token": bos, "eos_token": eos})
        tokenizer = load_tokenizer(model.tokenizer_dir)
        check_fits(tokenizer, model.config.vocab_size)
        size = sum(leaf.nbytes for leaf in model.leaves.values())
        on_leader(lambda: check_destination(dst, size, overwrite=overwrite))
        facts = make_meta(
            model.config,
            tokenizer_fingerprint=tokenizer.fingerprint,
            provenance={
                "kind": "import",
                "format": model.format,
                "document_tokens": {"bos": bos, "eos": eos},  # where the source names others
                "sources": [],
            },
        )
        pace = _Pace()
        leaves = {path: pace.follow(leaf) for path, leaf in model.leaves.items()}
        with _hashing(model.files if leads() else [], pace) as sources:
            content = {}
            if jax.process_count() > 1:
                leaves, content = _place(src, model.config, leaves)
            return write_checkpoint(
                dst,
                leaves,
                config=model.config,
                meta=facts,
                tokenizer_dir=model.tokenizer_dir,
                overwrite=overwrite,
                finish_meta=lambda facts: {
                    **facts,
                    **content,
                    "provenance": {**facts["provenance"], "sources": sources()},
                },
            )


def _place(
    src: Path, config: LlamaConfig, leaves: dict[str, LazyArray]
) -> tuple[dict[str, jax.Array], dict]:
    """Reads leaves onto a mesh of all devices of all processes, each process its own parts only.

    Returns:
        The leaves, and what meta says of their content.
    """
    ledger, arrays = Ledger(f"{src}", "mend or fetch it again."), leaf_arrays(config, leaves)
    leaves = {path: ledger.follow(leaf, arrays[path]) for path, leaf in leaves.items()}
    mesh = make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
    wanted = flatten_paths(abstract_params(config, mesh=mesh))
    placed = {p: place(leaf, wanted[p].update(dtype=leaf.dtype)) for p, leaf in leaves.items()}
    jax.block_until_ready(placed)
    ledger.join()
    return placed, {"weights": ledger.content()} if ledger.is_complete() else {}


def detect_format(src: str | os.PathLike) -> str:
    """Returns "huggingface", "meta" or "gguf" by what lies at `src`.

    Raises:
        ValueError: if it is neither; the message says what it seems to be. Also if it is in a
            bucket and not "huggingface": the other formats are mapped into memory.
    """
    found = _look_at(as_path(src))
    if is_remote(src) and found != "huggingface":
        raise ValueError(
            f"{src}: must be a Hugging Face directory to be read from a bucket, got the format "
            f"{found}; copy it to a local disk first, as with `gcloud storage cp -r`."
        )
    return found


def _look_at(src: Path) -> str:
    if src.is_file():
        with src.open("rb") as file:
            magic = file.read(4)
        if magic == gguf.MAGIC or src.suffix == ".gguf":
            return "gguf"
        raise ValueError(f"{src}: must be a GGUF file or a directory, got another kind of file.")
    if not src.is_dir():
        raise ValueError(f"{src}: must exist, got no such file or directory.")
    check_links(src)
    names = {entry.name for entry in src.iterdir()}
    if huggingface.CONFIG_FILE in names:
        return "huggingface"
    if meta.PARAMS_FILE in names:
        return "meta"
    if any(name.isdigit() for name in names) or "params" in names:
        hint = "an Orbax checkpoint, which needs no import"
    elif found := sorted(name for name in names if name.endswith(".gguf")):
        hint = f"a directory with {found[0]}; name the file"
    else:
        hint = "none of the files of a model"
    raise ValueError(
        f"{src}: must hold {huggingface.CONFIG_FILE} or {meta.PARAMS_FILE}, got {hint}."
    )


def open_source(
    src: str | os.PathLike, preset: str | None = None
) -> contextlib.AbstractContextManager:
    """Opens whatever `detect_format` knows, for the time of the context; no weight is read yet.

    Args:
        src: the directory or file.
        preset: the model that it must be; None takes the preset with its sizes, if any.

    Returns:
        A context whose `with` gives `config`, `leaves` (path -> LazyArray) and `tokenizer_dir`.
    """
    return _READERS[detect_format(src)](Path(src), preset)


def match_preset(config: LlamaConfig, preset: str | None = None) -> LlamaConfig:
    """Gives a foreign config the name and the base learning rate of the preset it is.

    Args:
        config: as read from the source.
        preset: the name it must fit; None looks for one, and keeps `config` if none fits.

    Returns:
        The preset, with the source's own `max_seq_len`.

    Raises:
        ValueError: if `preset` is given and differs; the message names what does.
    """
    if preset is not None and (differ := fields_that_differ(config, get_preset(preset))):
        said = "; ".join(f"{name} is {got}, expected {wanted}" for name, got, wanted in differ)
        raise ValueError(f"--preset {preset}: must fit the model, but {said}.")
    names = [preset] if preset is not None else list(PRESETS)
    for name in names:
        found = get_preset(name)
        if not fields_that_differ(config, found):
            return dataclasses.replace(found, max_seq_len=config.max_seq_len)
    return config


@contextlib.contextmanager
def _open_huggingface(src: Path, preset: str | None) -> Iterator[_Model]:
    config = match_preset(huggingface.read_config(src), preset)
    check_fits(load_tokenizer(src), config.vocab_size)
    leaves = huggingface.open_directory(src, config)
    with tempfile.TemporaryDirectory() as kept:
        present = [name for name in _TOKENIZER_FILES if (src / name).is_file()]
        for name in present:
            copy_file(src / name, Path(kept) / name)
        files = [*huggingface.weight_files(src), *(src / name for name in present)]
        yield _Model("huggingface", config, leaves, Path(kept), files)


@contextlib.contextmanager
def _open_gguf(src: Path, preset: str | None) -> Iterator[_Model]:
    found = gguf.open_gguf(src)
    config = match_preset(found.config, preset)
    with tempfile.TemporaryDirectory() as kept:
        kept_dir = Path(kept) / "tokenizer"
        save_tokenizer(kept_dir, found.tokenizer, found.bos_id, found.eos_id)
        yield _Model("gguf", config, found.leaves, kept_dir, [src])


@contextlib.contextmanager
def _open_meta(src: Path, preset: str | None) -> Iterator[_Model]:
    config = meta.read_config(src)
    leaves = assemble_leaves(str(src), config, meta.open_tensors(src, config))
    with tempfile.TemporaryDirectory() as kept:
        kept_dir = Path(kept) / "tokenizer"
        save_tokenizer(kept_dir, *meta.convert_tokenizer(src / meta.TOKENIZER_FILE))
        config = match_preset(config, preset)
        yield _Model("meta", config, leaves, kept_dir, meta.find_files(src))


_READERS = {"huggingface": _open_huggingface, "gguf": _open_gguf, "meta": _open_meta}


def _name_document_tokens(directory: Path, names: dict[str, str | None]) -> None:
    """Writes which tokens begin and end a document beside the tokenizer; None changes nothing."""
    names = {key: token for key, token in names.items() if token is not None}
    if not names:
        return
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    for key, token in names.items():
        if tokenizer.token_to_id(token) is None:
            raise ValueError(f"{key}: must be a token of the vocabulary, got {token!r}.")
    path = directory / CONFIG_FILE
    config = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**config, **names}, indent=1), encoding="utf-8")


class _Pace:
    """How far the weights have been read, which hashing the same files must not run far ahead of.

    A model may be larger than memory: what is hashed right after it was read comes from the page
    cache, what is hashed too early is read from the disk twice.
    """

    def __init__(self):
        self._moved = threading.Condition()
        self._read = 0

    def follow(self, leaf: LazyArray) -> LazyArray:
        """Returns the leaf, reads of which count."""

        def read(box):
            piece = leaf.read(box)
            self.advance(piece.nbytes)
            return piece

        return dataclasses.replace(leaf, read=read)

    def advance(self, num_bytes: float) -> None:
        """Counts bytes as read; infinity lets everybody go."""
        with self._moved:
            self._read += num_bytes
            self._moved.notify_all()

    def wait(self, position: int) -> None:
        """Waits until so many bytes have been read, but for a small lead."""
        with self._moved:
            self._moved.wait_for(lambda: self._read + _LEAD_BYTES >= position)


@contextlib.contextmanager
def _hashing(files: list[Path], pace: _Pace) -> Iterator[Callable[[], list[dict]]]:
    """Hashes the source files beside the work enclosed; what `with` returns waits for the result."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        running = worker.submit(_describe_files, files, pace, stop)

        def result() -> list[dict]:
            pace.advance(math.inf)
            return running.result()

        try:
            yield result
        finally:
            stop.set()
            pace.advance(math.inf)


def _describe_files(files: list[Path], pace: _Pace, stop: threading.Event) -> list[dict]:
    described, position = [], 0
    for path in files:
        # By name, not by path: where it lay on this machine means nothing elsewhere.
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while not stop.is_set() and (block := file.read(2**22)):
                digest.update(block)
                size += len(block)
                pace.wait(position + size)
        position += size
        described.append({"name": path.name, "bytes": size, "sha256": digest.hexdigest()})
    return described


# --- the verb ------------------------------------------------------------------------------------


def main_import(argv: list[str]) -> None:
    """Runs `ellama import SRC DST`."""
    parser = argparse.ArgumentParser(
        prog="ellama import",
        description="Import a Hugging Face directory (safetensors), Meta's own files or a GGUF file "
        "into a new checkpoint, its tokenizer beside it.",
        epilog="example: ellama import models/SmolLM2-135M-Instruct.Q4_1.gguf runs/base",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("src", metavar="SRC", help="Hugging Face or Meta directory, or .gguf file")
    parser.add_argument("dst", metavar="DST", help="checkpoint root to make")
    parser.add_argument("--preset", help="refuse the model unless it is this preset")
    parser.add_argument("--bos", metavar="TOKEN", help="begins a document; the source's by default")
    parser.add_argument("--eos", metavar="TOKEN", help="ends a document; the source's by default")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint at DST")
    args = parser.parse_args(argv)
    with one_job(), owned(args.dst, "ellama import"):
        info = import_weights(
            args.src,
            args.dst,
            preset=args.preset,
            bos=args.bos,
            eos=args.eos,
            overwrite=args.overwrite,
        )
        if leads():
            print(f"Imported {args.src} into {info.path}\n{describe_checkpoint(info.root)}")
