"""Records out of TFRecord files and TFDS datasets, for corpus/readers.py.

Owns the reading alone; SeqIO's tasks are tokens/tasks.py's. The two are the only modules that import
TensorFlow, which takes many seconds: inside functions.
"""

import json
import os
from collections.abc import Iterator

from ellama_jax.corpus.records import plain_value


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's start-up messages, which would bury ours, from being printed.

    They are decided when it is imported, so this comes before.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def read_tfrecord_examples(path: str | os.PathLike) -> Iterator[dict | bytes]:
    """Yields the fields of each tf.train.Example of a TFRecord file, on a local disk and plain.

    Yields:
        The fields by name: single values as they are, several as a list, none as None; bytes as
        strings where they are UTF-8. A record that is no tf.train.Example comes as its bytes.

    Raises:
        ValueError: where the file is damaged; what came before was yielded.
    """
    quiet_tensorflow()
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


def tfds_identity(name: str, split: str, data_dir: str | None) -> str:
    """Returns what tells the content of a split of a TFDS dataset from that of others."""
    info = _tfds_builder(name, data_dir).info
    about = {key: [part.num_bytes, part.shard_lengths] for key, part in info.splits.items()}
    return json.dumps([info.full_name, split, os.fspath(info.data_dir), about])


def read_tfds(name: str, split: str, data_dir: str | None, start: int, stop: int) -> Iterator[dict]:
    """Yields the examples `start` to `stop` of a whole split of a TFDS dataset, in stored order.

    Yields:
        Their features as plain values: labels by their names, bytes as strings where they are
        UTF-8, arrays as lists.
    """
    import tensorflow_datasets as tfds

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
    quiet_tensorflow()
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, LookupError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        where = data_dir or "TFDS's own folder; is its directory missing"
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
    kind = feature.WhichOneof("kind")
    values = [plain_value(value) for value in getattr(feature, kind).value] if kind else []
    return values[0] if len(values) == 1 else values or None
