"""Corpora as SeqIO tasks: ours for other SeqIO code, and those of others for `prepare`.

Owns everything that touches SeqIO, which with TensorFlow takes 15 seconds to import: both are
imported inside functions. It does not pack or mask: SeqIO's own converters take id 0 for padding,
and in the Llama 3 vocabulary id 0 is "!". So SeqIO describes, and tokens/windows.py packs.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import os
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ellama_jax.core.paths import as_path
from ellama_jax.corpus.curation_output import curated_files, read_report
from ellama_jax.corpus.documents import read_documents
from ellama_jax.corpus.tensorflow_records import (
    quiet_tensorflow,
    read_tfds,
    tfds_identity,
    tfds_parts,
)
from ellama_jax.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

FEATURE = "targets"
_BATCH = 256  # documents encoded at once
_MOST_SHARDS = 64  # what is read again at most when reading a corpus was interrupted


class Corpus(NamedTuple):
    """A SeqIO task or mixture, or a TFDS dataset, whose texts are to become documents.

    Attributes:
        name: as registered; of TFDS `name` or `name:version`.
        is_tfds: which of the two.
        split: of it.
        text_field: the feature that holds the text; None is `targets` of a task, `text` of TFDS.
        modules: imported first, to register tasks.
        domain, language, source: of every document.
        data_dir: where a TFDS dataset was prepared; None is TFDS's own place.
    """

    name: str
    is_tfds: bool
    split: str
    text_field: str | None
    modules: tuple[str, ...]
    domain: str
    language: str
    source: str
    data_dir: str | None = None


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
    quiet_tensorflow()
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
        preprocessors=[_encode_batches],
        output_features={FEATURE: feature},
    )


def register_curation(
    name: str, directory: str | os.PathLike, tokenizer: Tokenizer
) -> "seqio.Mixture":
    """Registers what `ellama curate` wrote: a task for each source, domain and language, and all.

    Args:
        name: of the mixture; its tasks are `NAME.<domain>_<language>_<source>`. Their rates are
            their numbers of documents, so that each document comes as often as any other.
        directory: of `ellama curate`; its documents to train on count.
        tokenizer: makes the ids.

    Raises:
        ValueError: if the curation was not finished or holds no documents.
    """
    root = as_path(directory)
    records = {root / file["name"]: file["records"] for file in read_report(root)["files"]}
    sets: dict[str, list[Path]] = {}
    for path in curated_files(root, "documents", "train"):
        task = re.sub(r"-\d+-of-\d+\.jsonl\.gz$", "", path.name).replace("-", "_")
        sets.setdefault(f"{name}.{task}", []).append(path)
    if not sets:
        raise ValueError(f"{directory}: must hold documents to train on, got none.")
    for task, paths in sets.items():
        register_documents(task, paths, tokenizer)
    rates = {task: float(sum(records[path] for path in paths)) for task, paths in sets.items()}
    return make_mixture(name, rates)


def make_mixture(name: str, rates: Mapping[str, float]) -> "seqio.Mixture":
    """Registers a SeqIO mixture of tasks, replacing one of the same name.

    SeqIO's rates are shares of *documents*. One listing for one web page is a mixture with few
    listing tokens, so training mixes by tokens instead (tokens/loader.py).

    Args:
        name: as in `register_documents`.
        rates: task name -> rate, above 0.
    """
    quiet_tensorflow()
    import seqio

    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, list(rates.items()))


def read_ids(task: "seqio.Task") -> Iterator[np.ndarray]:
    """Yields the ids of each document of a task, [n] int32, in the order of its files."""
    dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False)
    for example in dataset.as_numpy_iterator():
        yield example[FEATURE]


def corpus_identity(corpus: Corpus) -> str:
    """Returns what a corpus says of its content: its tasks, their files, the registering code."""
    if corpus.is_tfds:
        with _naming_the_option():
            return tfds_identity(corpus.name, corpus.split, corpus.data_dir)
    digest = hashlib.sha256()
    for task in _text_tasks(corpus):
        digest.update(json.dumps([task.name, list(task.source.list_shards(corpus.split))]).encode())
    for name in corpus.modules:
        digest.update(Path(importlib.import_module(name).__file__).read_bytes())
    return digest.hexdigest()


def text_shards(corpus: Corpus) -> list[tuple[str, Callable[[], Iterator[str]]]]:
    """Returns the shards of a corpus, a name and a reader of the texts each.

    Of a task, what its preprocessors make before its own vocabulary comes in is the text. A
    mixture gives each of its tasks once: its rates are for training, not for what is on disk.

    Raises:
        ValueError: if there is no such task, dataset or split, or no text in the feature.
    """
    if corpus.is_tfds:
        return _tfds_shards(corpus)
    shards = []
    for task in _text_tasks(corpus):
        number = max(1, min(_MOST_SHARDS, len(task.source.list_shards(corpus.split))))
        name = re.sub(r"[^A-Za-z0-9]+", "_", task.name).strip("_")
        for index in range(number):
            read = functools.partial(_read_texts, task, corpus.split, index, number)
            shards.append((f"{name}-{corpus.split}-{index:05d}-of-{number:05d}", read))
    return shards


def _text_tasks(corpus: Corpus) -> list["seqio.Task"]:
    for name in corpus.modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--task-module: must be importable, got {name}: {error}.") from error
    tasks = [
        _text_task(task.name, task.source, task.preprocessors, corpus.text_field or FEATURE)
        for task in _tasks_of(corpus.name)
    ]
    for task in tasks:
        if corpus.split not in task.splits:
            raise ValueError(
                f"--split: must be one of {', '.join(task.splits)} of {task.name}, got "
                f"{corpus.split}."
            )
    return tasks


def _tasks_of(name: str) -> list["seqio.Task"]:
    quiet_tensorflow()
    import seqio

    try:
        found = seqio.get_mixture_or_task(name)
    except ValueError as error:
        raise ValueError(
            f"--task: {name} must be a registered SeqIO task or mixture, got none of this name; "
            "name the module that registers it with --task-module."
        ) from error
    return found.tasks if isinstance(found, seqio.Mixture) else [found]


@contextlib.contextmanager
def _naming_the_option() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--tfds: {error}") from error


def _tfds_shards(corpus: Corpus) -> list[tuple[str, Callable[[], Iterator[str]]]]:
    with _naming_the_option():
        parts = tfds_parts(corpus.name, corpus.split, corpus.data_dir)
    stem = re.sub(r"[^A-Za-z0-9]+", "_", corpus.name).strip("_")
    return [
        (
            f"{stem}-{number:05d}-of-{len(parts):05d}",
            functools.partial(_read_tfds_texts, corpus, *part),
        )
        for number, part in enumerate(parts)
    ]


def _read_tfds_texts(corpus: Corpus, split: str, start: int, stop: int) -> Iterator[str]:
    field = corpus.text_field or "text"
    examples = read_tfds(corpus.name, split, corpus.data_dir, start, stop)
    for number, example in enumerate(examples, start + 1):
        if not isinstance(example.get(field), str):
            known = {key: type(value).__name__ for key, value in example.items()}
            raise ValueError(
                f"--text-field: must be a feature of {corpus.name} that holds text, got {field} of "
                f"{known} in {split}, example {number}."
            )
        yield example[field]


def _text_task(name: str, source: object, preprocessors: Sequence, text_field: str) -> "seqio.Task":
    """Returns a task, not registered, that ends where the other would have tokenised."""
    import seqio
    import tensorflow as tf

    their = seqio.preprocessors
    names = ("tokenize", "tokenize_and_append_eos", "append_eos", "append_eos_after_trim")
    ends = [getattr(their, end) for end in names if hasattr(their, end)] + [_encode_batches]
    kept = [
        step
        for step in preprocessors
        if getattr(step, "func", step) not in ends
        and not isinstance(step, seqio.CacheDatasetPlaceholder)
    ]

    def keep_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
        spec = dataset.element_spec
        found = spec.get(text_field) if isinstance(spec, dict) else None
        if found is None or found.dtype != tf.string or found.shape.rank not in (0, None):
            known = {key: value.dtype.name for key, value in spec.items()}
            raise ValueError(
                f"--text-field: must be a feature of {name} that holds text, got {text_field} of "
                f"{known}."
            )
        return dataset.map(lambda example: {FEATURE: example[text_field]})

    feature = seqio.Feature(seqio.PassThroughVocabulary(1), dtype=tf.string, rank=0, add_eos=False)
    return seqio.Task(
        name.replace("/", "."), source=source, preprocessors=[*kept, keep_text],
        output_features={FEATURE: feature},
    )  # fmt: skip


def _read_texts(task: "seqio.Task", split: str, index: int, num_shards: int) -> Iterator[str]:
    import seqio

    info = seqio.ShardInfo(index, num_shards) if num_shards > 1 else None
    dataset = task.get_dataset(
        None, split=split, shuffle=False, seed=0, shard_info=info, try_in_mem_cache=False
    )
    for number, example in enumerate(dataset.as_numpy_iterator()):
        try:
            yield example[FEATURE].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{task.name}: example {number} of shard {index} must be UTF-8, got {error}."
            ) from error


def _encode_batches(
    dataset: "tf.data.Dataset", output_features: Mapping[str, "seqio.Feature"]
) -> "tf.data.Dataset":
    """SeqIO's `tokenize`, many texts at a time: the tokenizer then works on all cores."""
    import tensorflow as tf

    tokenizer = output_features[FEATURE].vocabulary.tokenizer

    def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = tokenizer.encode_batch([text.decode("utf-8") for text in texts])
        flat = np.fromiter((i for row in ids for i in row), dtype=np.int32)
        return flat, np.array([len(row) for row in ids], dtype=np.int64)

    def encode_batch(example: dict) -> dict:
        flat, lengths = tf.numpy_function(encode, [example[FEATURE]], (tf.int32, tf.int64))
        flat, lengths = tf.ensure_shape(flat, [None]), tf.ensure_shape(lengths, [None])
        return {FEATURE: tf.RaggedTensor.from_row_lengths(flat, lengths)}

    batches = dataset.batch(_BATCH).map(encode_batch).prefetch(1)
    return batches.unbatch().map(lambda example: {FEATURE: tf.convert_to_tensor(example[FEATURE])})


@functools.cache
def _vocabulary_class() -> type:
    quiet_tensorflow()
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


# --- A mixture streamed straight into training (tokens/streaming.py) ---


def find_mixture(name: str, module: str) -> "dict[str, tuple[seqio.Task, float]]":
    """Returns the tasks of a registered mixture, or one task, each with SeqIO's rate.

    Args:
        name: of a SeqIO mixture or task.
        module: imported first, for what it registers: a module's name or a file.py; "" for none.

    Raises:
        ValueError: if the module cannot be imported or registers no such name.
    """
    quiet_tensorflow()
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
