"""Corpora as SeqIO tasks, and the verb `prepare` that writes them as token windows.

Owns everything that touches SeqIO and TensorFlow, which take 15 seconds to import: they are
imported inside functions. It does not pack or mask: SeqIO's own converters take id 0 for padding,
and in the Llama 3 vocabulary id 0 is "!". So SeqIO describes and tokenises, and data/windows.py
packs.
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import os
import runpy
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ellama_jax.data.listings import listing_to_document, load_listings
from ellama_jax.data.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.data.windows import Manifest, check_absent, window_set_name, write_windows
from ellama_jax.paths import local_path
from ellama_jax.progress import progress

if TYPE_CHECKING:
    import seqio

DOMAINS = ("ecommerce", "general")
FEATURE = "targets"


def read_documents(path: str | os.PathLike) -> Iterator[dict]:
    """Yields the documents of a JSONL file, each checked.

    Args:
        path: one object a line: text, domain, language, source, and product_id or nothing. Empty
            lines are left out.

    Raises:
        ValueError: names the file and the line where one is no document.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line.decode("utf-8"))
                _check_document(document)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: must be a document, got {error}") from error
            yield document


def listing_documents(path: str | os.PathLike, seed: int) -> Iterator[dict]:
    """Yields the listings of a JSONL file as documents of the e-commerce domain.

    Args:
        path: listing records, see data/listings.py.
        seed: of the order of aspects in the text.
    """
    for listing in load_listings(path):
        yield {
            "text": listing_to_document(listing, seed=seed),
            "domain": "ecommerce",
            "language": listing["language"],
            "source": listing["source"],
            "product_id": listing["product_id"],
        }


def make_vocabulary(tokenizer: Tokenizer) -> "seqio.Vocabulary":
    """Returns a tokenizer as SeqIO wants one; its `pad_id` means nothing here."""
    return _vocabulary_class()(tokenizer)


def register_documents(
    name: str, paths: str | os.PathLike | Sequence[str | os.PathLike], tokenizer: Tokenizer
) -> "seqio.Task":
    """Registers documents as a SeqIO task, so that other SeqIO code can use them by name.

    The task gives one example per document, `targets` [n] int32: the ids of the text, id 0 kept,
    without BOS and EOS. A task of the same name is replaced, for SeqIO's registry is one for the
    whole process.

    Args:
        name: letters, digits and `_.:` only.
        paths: documents JSONL, see `read_documents`; one file or several.
        tokenizer: makes the ids.

    Returns:
        The task; `task.get_dataset(None, split="train", shuffle=False)` reads it.
    """
    _quiet_tensorflow()
    import seqio
    import tensorflow as tf

    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)

    # A function and not seqio.TextLineDataSource: it would forget file and line, which the
    # error for a broken line has to name.
    def read(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed
        return tf.data.Dataset.from_generator(
            lambda: ({FEATURE: d["text"]} for file in files for d in read_documents(file)),
            output_signature={FEATURE: tf.TensorSpec((), tf.string)},
        )

    seqio.TaskRegistry.remove(name)
    feature = seqio.Feature(make_vocabulary(tokenizer), add_eos=False, dtype=tf.int32)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(read, splits=["train"]),
        preprocessors=[functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False)],
        output_features={FEATURE: feature},
    )


def make_mixture(name: str, rates: Mapping[str, float]) -> "seqio.Mixture":
    """Registers a SeqIO mixture of tasks, replacing one of the same name.

    SeqIO's rates are shares of *documents*. One listing for one web page is a mixture with few
    listing tokens, so training mixes by tokens instead (data/loader.py).

    Args:
        name: as in `register_documents`.
        rates: task name -> rate, above 0.
    """
    _quiet_tensorflow()
    import seqio

    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, list(rates.items()))


def read_ids(task: "seqio.Task") -> Iterator[np.ndarray]:
    """Yields the ids of each document of a task, [n] int32, in the order of its files."""
    dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False)
    for example in dataset.as_numpy_iterator():
        yield example[FEATURE]


def prepare(
    *,
    documents: Sequence[str] = (),
    listings: Sequence[str] = (),
    tokenizer_dir: str | os.PathLike,
    window_length: int,
    out: str | os.PathLike,
    seed: int,
    by_source: bool = False,
    overwrite: bool = False,
    command: str,
) -> list[Manifest]:
    """Writes documents and listings as window sets, one for each domain and language.

    All input is read and checked before the first set is written; each set is written atomically.

    Args:
        documents: JSONL files of documents.
        listings: JSONL files of listing records.
        tokenizer_dir: of the model to be trained.
        window_length: tokens in a window.
        out: directory of the sets; each is `<domain>-<language>` or, with `by_source`,
            `<domain>-<language>-<source>`.
        seed: of aspect order and shuffles.
        by_source: one set for each source.
        overwrite: replace finished sets of the same names.
        command: for the manifests.

    Returns:
        The manifests, by name.

    Raises:
        ValueError: for a broken line, no input, an unfit tokenizer, or a set that exists.
    """
    if not documents and not listings:
        raise ValueError("--documents or --listings: must name at least one file, got none.")
    if window_length < 2:
        raise ValueError(f"--window-length: must be at least 2, got {window_length}.")
    tokenizer = load_tokenizer(tokenizer_dir)
    out = local_path(out, "--out")
    with _spool_directory(out) as spool_dir:
        groups = _split_into_groups(documents, listings, seed, by_source, spool_dir)
        for name in groups:
            check_absent(out / name, overwrite)
        return [
            _write_group(
                groups[name], out / name, tokenizer, window_length=window_length, seed=seed,
                overwrite=overwrite, command=command,
            )
            for name in sorted(groups)
        ]  # fmt: skip


def main_prepare(argv: list[str]) -> None:
    """Runs `ellama prepare`."""
    parser = argparse.ArgumentParser(
        prog="ellama prepare",
        description="Write documents as token windows, one set for each domain and language.",
        epilog="example: ellama prepare --documents reviews.jsonl docs.jsonl --listings shop.jsonl"
        "\n           --tokenizer checkpoints/base/tokenizer --window-length 8192 --out windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--documents", nargs="+", default=[], metavar="FILE", help="documents JSONL")
    add("--listings", nargs="+", default=[], metavar="FILE", help="listing records JSONL")
    add("--tokenizer", required=True, metavar="DIR", help="holds tokenizer.json of the model")
    add("--window-length", type=int, default=8192, help="tokens in a window (default 8192)")
    add("--out", required=True, metavar="DIR", help="where the sets are written")
    add("--seed", type=int, default=0, help="of aspect order and shuffles (default 0)")
    add("--by-source", action="store_true", help="one set for each source")
    add("--overwrite", action="store_true", help="replace finished sets of the same names")
    args = parser.parse_args(argv)
    manifests = prepare(
        documents=args.documents,
        listings=args.listings,
        tokenizer_dir=args.tokenizer,
        window_length=args.window_length,
        out=args.out,
        seed=args.seed,
        by_source=args.by_source,
        overwrite=args.overwrite,
        command=shlex.join(["ellama", "prepare", *argv]),
    )
    for manifest in manifests:
        print(_describe(manifest))


@dataclass
class _Group:
    """The documents of one window set, on their way there."""

    key: tuple[str, str, str | None]  # domain, language, source
    spool_path: Path
    counts: Counter = field(default_factory=Counter)  # documents by input file

    def add(self, key: tuple[str, str, str | None], path: str) -> None:
        """Counts a document of the file `path`."""
        if key != self.key:
            raise ValueError(
                f"{path}: set names must differ, got {self.spool_path.stem} for both {self.key} "
                f"and {key}; rename the source."
            )
        self.counts[str(path)] += 1


def _quiet_tensorflow() -> None:
    # Its start-up messages would bury ours; read once, when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@functools.cache
def _vocabulary_class() -> type:
    _quiet_tensorflow()
    import seqio
    import tensorflow as tf

    class TokenizerVocabulary(seqio.Vocabulary):
        """A Tokenizer behind SeqIO's interface."""

        def __init__(self, tokenizer: Tokenizer):
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def bos_id(self) -> int | None:
            return self.tokenizer.bos_id

        @property
        def eos_id(self) -> int:
            return self.tokenizer.eos_id

        @property
        def unk_id(self) -> None:
            return None

        @property
        def _base_vocab_size(self) -> int:
            return self.tokenizer.vocab_size

        def _encode(self, s: str) -> list[int]:
            return self.tokenizer.encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return self.tokenizer.decode(ids)

        def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
            def encode(text: bytes | np.ndarray) -> np.ndarray:
                # Bytes inside a dataset, an array of one object outside.
                text = text if isinstance(text, bytes) else text.item()
                return np.asarray(self.encode(text.decode("utf-8")), dtype=np.int32)

            return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

        def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
            # SeqIO's own fills what follows EOS with id 0, which here is text.
            def decode(row: np.ndarray) -> bytes:
                return self.decode(row.tolist()).encode("utf-8")

            return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), [])

        def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
            return self.decode_tf(ids)

        def __eq__(self, other: object) -> bool:
            same_class = isinstance(other, TokenizerVocabulary)
            return same_class and self.tokenizer.fingerprint == other.tokenizer.fingerprint

        def __hash__(self) -> int:
            return hash(self.tokenizer.fingerprint)

    return TokenizerVocabulary


def _check_document(document: object) -> None:
    if not isinstance(document, dict):
        raise ValueError(f"a JSON {type(document).__name__} instead of an object.")
    for name in ("text", "domain", "language", "source"):
        if not isinstance(document.get(name), str) or not document[name].strip():
            raise ValueError(f"{name}: must be a string that is not empty; it is missing or not.")
    if document["domain"] not in DOMAINS:
        raise ValueError(f"domain: must be ecommerce or general, got {document['domain']!r}.")
    window_set_name(document["domain"], document["language"])
    document["text"].encode("utf-8")  # half a surrogate pair is valid JSON, but no text


@contextlib.contextmanager
def _spool_directory(out: Path) -> Iterator[Path]:
    existed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".spool-", dir=out) as directory:
            yield Path(directory)
    finally:
        if not existed and not any(out.iterdir()):
            out.rmdir()  # a refused input leaves nothing behind


def _split_into_groups(
    documents: Sequence[str],
    listings: Sequence[str],
    seed: int,
    by_source: bool,
    spool_dir: Path,
) -> dict[str, _Group]:
    """Writes the documents of each window set into a file of their own; returns sets by name."""
    groups: dict[str, _Group] = {}
    inputs = [(path, read_documents(path)) for path in documents]
    inputs += [(path, listing_documents(path, seed)) for path in listings]
    with contextlib.ExitStack() as stack:
        files: dict[str, IO] = {}
        for path, read in inputs:
            for document in read:
                source = document["source"] if by_source else None
                key = (document["domain"], document["language"], source)
                name = window_set_name(*key)
                if name not in groups:
                    groups[name] = _Group(key, spool_dir / f"{name}.jsonl")
                    files[name] = stack.enter_context(
                        open(groups[name].spool_path, "w", encoding="utf-8")
                    )
                groups[name].add(key, path)
                files[name].write(json.dumps(document) + "\n")
    if not groups:
        raise ValueError(f"documents: must be at least one, got none in {[*documents, *listings]}.")
    return groups


def _write_group(
    group: _Group,
    dst: Path,
    tokenizer: Tokenizer,
    *,
    window_length: int,
    seed: int,
    overwrite: bool,
    command: str,
) -> Manifest:
    domain, language, source = group.key
    task_name = "prepare:" + dst.name.replace("-", "_")
    task = register_documents(task_name, group.spool_path, tokenizer)
    return write_windows(
        dst,
        _with_progress(read_ids(task), f"tokenising {dst.name}", group.counts.total()),
        tokenizer=tokenizer,
        window_length=window_length,
        domain=domain,
        language=language,
        source=source,
        seed=seed,
        sources=[
            {"name": Path(path).name, "sha256": _file_sha256(path), "documents": count}
            for path, count in group.counts.items()
        ],
        command=command,
        overwrite=overwrite,
    )


def _with_progress(items: Iterable, title: str, total: int) -> Iterator:
    with progress(title, total=total, unit="docs") as bar:
        for item in items:
            yield item
            bar.update(1)


def _file_sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(manifest: Manifest) -> str:
    full = manifest.num_tokens / (manifest.num_tokens + manifest.num_padding)
    return (
        f"{manifest.name}: {manifest.num_documents:,} documents, {manifest.num_tokens:,} tokens in "
        f"{manifest.num_windows:,} windows of {manifest.window_length:,} "
        f"({full:.1%} full, {manifest.num_split_documents:,} documents split)"
    )


# --- A mixture streamed straight into training (data/streaming.py) ---


def find_mixture(name: str, module: str) -> "dict[str, tuple[seqio.Task, float]]":
    """Returns the tasks of a registered mixture, or one task, each with SeqIO's rate.

    Args:
        name: of a SeqIO mixture or task.
        module: imported first, for what it registers: a module's name or a file.py; "" for none.

    Raises:
        ValueError: if the module cannot be imported or registers no such name.
    """
    _quiet_tensorflow()
    try:
        if module.endswith(".py"):
            runpy.run_path(module)
        elif module:
            importlib.import_module(module)
    except (ImportError, OSError, SyntaxError) as error:
        raise ValueError(
            f"data.seqio_module: must be a module or a file.py that can be imported, got {module}: "
            f"{error}."
        ) from error
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # it would take the memory that training needs
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "data.seqio_module names what registers it."
        raise ValueError(f"data.seqio_mixture: must be a registered name, got {name}; {hint}")
    found = seqio.get_mixture_or_task(name)
    if isinstance(found, seqio.Task):
        return {found.name: (found, 1.0)}
    return {task.name: (task, found.get_rate(task)) for task in found.tasks}


def read_shuffled_ids(task: "seqio.Task", seed: int) -> Iterator[np.ndarray]:
    """Yields the ids of each document of a task once, [n] int32, shuffled as SeqIO shuffles.

    Args:
        task: with the feature `targets`.
        seed: of the order, and of what the task's preprocessors draw.

    Raises:
        ValueError: if the task cannot be read.
    """
    import tensorflow as tf

    try:
        dataset = task.get_dataset(sequence_length=None, split="train", shuffle=True, seed=seed)
        for example in dataset.as_numpy_iterator():
            yield example[FEATURE]
    except tf.errors.OpError as error:
        # The first line says what happened, then follows where in TensorFlow.
        said = str(error.message).strip().splitlines()[0]
        raise ValueError(f"SeqIO task {task.name}: must be readable, got {said}") from error
