"""Corpora as SeqIO tasks: ours for other SeqIO code, and those of others for `prepare`.

Owns everything that touches SeqIO and TensorFlow, which take 15 seconds to import: they are
imported inside functions. It does not pack or mask: SeqIO's own converters take id 0 for padding,
and in the Llama 3 vocabulary id 0 is "!". So SeqIO describes, and data/windows.py packs.
"""

import functools
import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ellama_jax.data.documents import read_documents
from ellama_jax.data.tokenizer import Tokenizer

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
    """

    name: str
    is_tfds: bool
    split: str
    text_field: str | None
    modules: tuple[str, ...]
    domain: str
    language: str
    source: str


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
        preprocessors=[_encode_batches],
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


def corpus_identity(corpus: Corpus) -> str:
    """Returns what a corpus says of its content: its tasks, their files, the registering code."""
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
    shards = []
    for task in _text_tasks(corpus):
        number = max(1, min(_MOST_SHARDS, len(task.source.list_shards(corpus.split))))
        name = re.sub(r"[^A-Za-z0-9]+", "_", task.name).strip("_")
        for index in range(number):
            read = functools.partial(_read_texts, task, corpus.split, index, number)
            shards.append((f"{name}-{corpus.split}-{index:05d}-of-{number:05d}", read))
    return shards


def _text_tasks(corpus: Corpus) -> list["seqio.Task"]:
    _quiet_tensorflow()
    import seqio

    for name in corpus.modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--task-module: must be importable, got {name}: {error}.") from error
    if corpus.is_tfds:
        source = seqio.TfdsDataSource(_with_version(corpus.name))
        tasks = [_text_task(corpus.name, source, [], corpus.text_field or "text")]
    else:
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
    import seqio

    try:
        found = seqio.get_mixture_or_task(name)
    except ValueError as error:
        raise ValueError(
            f"--task: {name} must be a registered SeqIO task or mixture, got none of this name; "
            "name the module that registers it with --task-module."
        ) from error
    return found.tasks if isinstance(found, seqio.Mixture) else [found]


def _with_version(name: str) -> str:
    """Returns a TFDS name with its version, as SeqIO demands it."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except Exception as error:  # TFDS raises many kinds, some with pages of text
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"--tfds: {name} must be a dataset of TFDS, got {reason[:160]}") from error
    return name if ":" in name else f"{name}:{builder.version}"


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


# --- records of TFRecord files and TFDS datasets, for data/readers.py ----------------------------


def read_tfrecord_examples(path: str | os.PathLike) -> Iterator[dict | bytes]:
    """Yields the fields of each tf.train.Example of a TFRecord file, on a local disk and plain.

    Yields:
        The fields by name: single values as they are, several as a list, none as None; bytes as
        strings where they are UTF-8. A record that is no tf.train.Example comes as its bytes.

    Raises:
        ValueError: where the file is damaged; what came before was yielded.
    """
    _quiet_tensorflow()
    import tensorflow as tf

    records = tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator()
    missing = os.path.getsize(path)
    while True:
        try:
            record = next(records)
        except StopIteration:
            break
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(str(error.message).split("} ")[-1].split(" [Op:")[0]) from error
        missing -= len(record) + 16  # with its length and two checksums
        yield _example_fields(record)
    if missing:  # TensorFlow takes a file that ends inside a length for one that ends before it
        raise ValueError(f"{missing} bytes after the last record")


def tfds_parts(name: str, split: str, data_dir: str | None) -> list[tuple[str, int, int]]:
    """Returns the shards of a split of a TFDS dataset as (whole split, first, last + 1 example).

    Args:
        name: as TFDS takes it, `dataset/config:1.0.0`.
        split: in TFDS's language, as `train`, `train[:10%]` or `train+test`.
        data_dir: where the dataset was prepared; TFDS's own place by default.

    Raises:
        ValueError: if there is no such dataset, it was not prepared, or it has no such split.
    """
    import tensorflow_datasets as tfds

    builder = _tfds_builder(name, data_dir)
    splits = builder.info.splits
    if not splits:
        raise ValueError(f"{name}: must be prepared in {builder.data_dir}, got no splits there.")
    try:
        wanted = tfds.core.splits.AbstractSplit.from_spec(split).to_absolute(splits)
    except (ValueError, LookupError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"{name}: must have the split {split}, got {', '.join(sorted(splits))}."
        ) from error
    parts = []
    for piece in wanted:
        first, end = 0, splits[piece.splitname].num_examples if piece.to is None else piece.to
        for length in splits[piece.splitname].shard_lengths:
            start, stop = max(piece.from_ or 0, first), min(end, first + length)
            if start < stop:
                parts.append((piece.splitname, start, stop))
            first += length
    return parts


def read_tfds(name: str, split: str, data_dir: str | None, start: int, stop: int) -> Iterator[dict]:
    """Yields the examples `start` to `stop` of a whole split of a TFDS dataset, in stored order.

    Yields:
        Their features as plain values: labels by their names, bytes as strings where they are
        UTF-8, arrays as lists.
    """
    import tensorflow_datasets as tfds

    from ellama_jax.data.records import plain_value

    builder = _tfds_builder(name, data_dir)
    if builder.info.file_format in tfds.core.FileFormat.with_random_access():
        # The whole split, for that of Parquet files pays no heed to a slice.
        examples = builder.as_data_source(split)
        rows = (examples[index] for index in range(start, stop))
    else:
        wanted = tfds.core.ReadInstruction(split, from_=start, to=stop, unit="abs")
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        rows = tfds.as_numpy(builder.as_dataset(split=wanted, read_config=config))
    labels = {
        key: feature
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    for row in rows:
        # -1 says that there is no label.
        names = {k: f.int2str(int(row[k])) if row[k] >= 0 else None for k, f in labels.items()}
        yield plain_value(row) | names


def _tfds_builder(name: str, data_dir: str | None):
    _quiet_tensorflow()
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, LookupError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        where = data_dir or "TFDS's own folder; is data_dir missing"
        raise ValueError(f"{name}: must be a dataset of {where}, got: {reason}.") from error


def _example_fields(record: bytes) -> dict | bytes:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        return record
    return {name: _feature_value(features[name]) for name in sorted(features)}


def _feature_value(feature) -> object:
    from ellama_jax.data.records import plain_value

    kind = feature.WhichOneof("kind")
    values = [plain_value(value) for value in getattr(feature, kind).value] if kind else []
    return values[0] if len(values) == 1 else values or None
