"""Training batches straight from a SeqIO mixture, for trials: nothing is prepared first.

Owns the packing on the fly and the place in the stream. It has the face of tokens/loader.py's
`Loader`, but not its random access: to resume at a step, the stream is read again up to it. SeqIO
itself is tokens/tasks.py's.
"""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ellama_jax.tokens.mixture import RowOrder, check_source_names
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.tasks import FEATURE, find_mixture, read_shuffled_ids
from ellama_jax.tokens.tokenizer import Tokenizer
from ellama_jax.tokens.windows import to_features

if TYPE_CHECKING:
    from ellama_jax.config import DataConfig

# Rows that wait for a document which fits. More waste less, but of a small task they would hold
# all there is.
_OPEN_ROWS = 16


@dataclass(frozen=True)
class StreamedTask:
    """One SeqIO task of a streamed mixture.

    Attributes:
        task: the `seqio.Task`, as it is registered.
        document_share: part of all *documents* that come from here: what a rate is in SeqIO.
    """

    task: Any
    document_share: float

    domain = "seqio"

    @property
    def name(self) -> str:
        """The name in ledgers."""
        return f"{self.domain}/{self.task.name}"

    @property
    def language(self) -> str:
        """The name in metrics: SeqIO tasks say nothing of language."""
        return self.task.name

    def describe(self) -> dict:
        """Says what is known of the task."""
        names = {"name": self.name, "domain": self.domain, "language": self.language}
        return {**names, "document_share": self.document_share}


class Stream:
    """The batches of a SeqIO mixture, in the format of `Loader`, tokenised while they are read.

        stream = Stream(config.data, tokenizer)
        for batch in stream.iterate(start_step, stop_step, rows_of): ...

    Documents come task by task at SeqIO's rates and are framed, BOS and EOS, as `ellama prepare`
    does. A row holds documents of one task, whole where they fit. Equal corpora, configuration and
    seed give equal batches. Every host reads and tokenises the whole stream.

    Attributes:
        sources: the tasks; the place in this list is the batch's `source_ids`.
    """

    def __init__(self, data_config: "DataConfig", tokenizer: Tokenizer):
        """Finds the mixture; reads nothing yet.

        Args:
            data_config: seqio_mixture, seqio_module, seq_len, global_batch_size, seed, and
                max_epochs, max_epochs_by_source, on_repetition.
            tokenizer: of the model.

        Raises:
            ValueError: if there is no such mixture, or it does not fit the model.
        """
        tasks = find_mixture(data_config.seqio_mixture, data_config.seqio_module)
        total = sum(rate for _, rate in tasks.values())
        self.sources = [
            StreamedTask(task, rate / total)
            for _, (task, rate) in sorted(tasks.items())
            if rate > 0
        ]
        for source in self.sources:
            _check_features(source.task, tokenizer)
        names = [source.name for source in self.sources]
        check_source_names(data_config.max_epochs_by_source, names, "data.max_epochs_by_source")
        self._config, self._tokenizer = data_config, tokenizer
        self._restart()

    def iterate(
        self,
        start_step: int,
        stop_step: int,
        rows_of: Callable[[int], Sequence[int]] = range,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields a host's rows of the batches of the steps in [start_step, stop_step).

        The batches before `start_step` are read again first. That is exact and its price: as long
        as tokenising took the first time.

        Args:
            rows_of: as of `Loader.iterate`.

        Raises:
            ValueError: if a document does not fit, or a task would be read more often than it may.
        """
        rows = np.asarray(rows_of(self._config.global_batch_size))
        return self._iterate(start_step, stop_step, rows)

    def epochs(self, step: int) -> dict[str, float]:
        """Returns how often each task was read to its end in the steps before `step`, by name."""
        self._seek(step)
        counts = self._marks[step][1]
        return {s.name: float(n) for s, n in zip(self.sources, counts, strict=True)}

    def mixture_until(self, step: int | None) -> dict:
        """Returns as plain data what was read before `step`; reads up to it if it has to.

        The corpus behind a task may have changed since; the digest of all rows shows it.
        """
        self._seek(step or 0)
        order = {n: getattr(self._config, n) for n in ("seed", "seq_len", "global_batch_size")}
        tasks = {source.name: source.document_share for source in self.sources}
        return {"order": order, "tasks": tasks, "rows": self._marks[step or 0][0]}

    def fingerprint_until(self, step: int) -> str:
        """Returns a sha256 of every row before `step`; reads up to it if it has to."""
        return self.mixture_until(step)["rows"]

    def describe(self, steps: int) -> Iterator[str]:
        """Says what is streamed, one line a task."""
        del steps  # how much text there is shows only when it is read
        for source in self.sources:
            yield f"{source.document_share:6.1%} {source.name}: of the documents, streamed"

    def _restart(self) -> None:
        # Digest of all rows so far and epochs begun of each task, when each step begins.
        self._epochs = [0] * len(self.sources)
        self._digest = hashlib.sha256()
        self._marks = [self._mark()]
        self._rows = self._read_rows()

    def _mark(self) -> tuple[str, tuple[int, ...]]:
        return self._digest.hexdigest(), tuple(self._epochs)

    def _seek(self, step: int) -> None:
        while len(self._marks) <= step:
            self._next_batch()

    def _iterate(self, start: int, stop: int, mine: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        if start < len(self._marks) - 1:
            self._restart()
        self._seek(start)
        for step in range(start, stop):
            assert len(self._marks) == step + 1, "one iteration at a time"
            yield {name: rows[mine] for name, rows in self._next_batch().items()}

    def _next_batch(self) -> dict[str, np.ndarray]:
        rows = list(itertools.islice(self._rows, self._config.global_batch_size))
        tokens = np.stack([row for _, row in rows])
        source_ids = np.array([source for source, _ in rows], dtype=np.int32)
        self._digest.update(source_ids.tobytes())
        self._digest.update(tokens.astype("<u4").tobytes())
        self._marks.append(self._mark())
        ends = {"eos_id": self._tokenizer.eos_id, "bos_id": self._tokenizer.bos_id}
        return {**to_features(tokens, **ends), "source_ids": source_ids}

    def _read_rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields source and tokens of each row, without end."""
        order = RowOrder([0], [[source.document_share for source in self.sources]])
        packed = [_OpenRows(self._config.seq_len) for _ in self.sources]
        documents = [self._read_documents(number) for number in range(len(self.sources))]
        for number in itertools.count():
            source, _ = order.locate(number)
            document = next(documents[source])
            if document is None:  # the end of an epoch
                yield from ((source, row) for row in packed[source].close_all())
                document = next(documents[source])
            yield from ((source, row) for row in packed[source].add(document))

    def _read_documents(self, number: int) -> Iterator[np.ndarray | None]:
        """Yields the framed documents of a task, epoch after epoch, None where one ends."""
        task = self.sources[number].task
        for epoch in itertools.count():
            self._check_repetition(number, epoch)
            seed = hashlib.sha256(f"{self._config.seed}/{task.name}/{epoch}".encode()).digest()
            place = -1
            for place, ids in enumerate(read_shuffled_ids(task, int.from_bytes(seed[:3], "big"))):
                yield _frame(ids, self._tokenizer, f"SeqIO task {task.name}: document {place}")
            if place < 0:
                raise ValueError(f"SeqIO task {task.name}: must have documents, got none.")
            self._epochs[number] += 1
            yield None

    def _check_repetition(self, number: int, epoch: int) -> None:
        source, data = self.sources[number], self._config
        cap = data.max_epochs_by_source.get(source.name, data.max_epochs)
        if epoch == 0 or epoch < cap:
            return
        said = (
            f"data.max_epochs: {source.name} may be read {cap:g} times, and is read {epoch} times "
            f"by step {len(self._marks)}; give it more text or a smaller rate, train fewer steps, "
            "or raise data.max_epochs or data.max_epochs_by_source"
        )
        if data.on_repetition == "error":
            raise ValueError(f"{said} (data.on_repetition=warn trains all the same).")
        logging.getLogger(__name__).warning("%s.", said)


def _check_features(task: Any, tokenizer: Tokenizer) -> None:
    features, name = task.output_features, f"SeqIO task {task.name}"
    if list(features) != [FEATURE]:
        raise ValueError(
            f"{name}: must have the feature {FEATURE} alone, which holds the text, got "
            f"{', '.join(features)}."
        )
    vocabulary = features[FEATURE].vocabulary
    found = type(vocabulary).__name__
    if vocabulary.eos_id is None:
        raise ValueError(f"{name}: must have a vocabulary with EOS, got {found} without.")
    used = getattr(getattr(vocabulary, "tokenizer", None), "fingerprint", None)
    if used != tokenizer.fingerprint:
        raise ValueError(
            f"{name}: must tokenise with the model's tokenizer, {tokenizer.fingerprint[:12]}, got "
            f"{found}{' ' + used[:12] if used else ''}; give its feature "
            "make_vocabulary(load_tokenizer(DIR)), see ellama_jax/tokens/tasks.py."
        )


def _frame(ids: np.ndarray, tokenizer: Tokenizer, name: str) -> np.ndarray:
    """Puts BOS and EOS around a document as windows have them."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    # A task may have put them there itself; text never gives these ids.
    if len(ids) and ids[0] in bos:
        ids = ids[1:]
    if len(ids) and ids[-1] == tokenizer.eos_id:
        ids = ids[:-1]
    if len(ids) == 0:
        raise ValueError(f"{name} must hold tokens, got none.")
    if ids.min() < 0 or ids.max() >= tokenizer.vocab_size or tokenizer.eos_id in ids:
        raise ValueError(
            f"{name} must hold ids of text in [0, {tokenizer.vocab_size}) without EOS "
            f"({tokenizer.eos_id}), got {ids.min()} to {ids.max()}; are documents joined in it?"
        )
    return np.concatenate([bos, ids, [tokenizer.eos_id]]).astype(np.uint32)


class _OpenRows:
    """Rows of one task that still have room: best fit among a few, the fullest leaves first.

    >>> rows = _OpenRows(4)
    >>> [list(rows.add(np.full(n, n, np.uint32))) for n in (3, 2)]
    [[], []]
    >>> [row.tolist() for row in rows.add(np.array([7, 8, 9, 4, 5], np.uint32))]
    [[7, 8, 9, 4], [3, 3, 3, 5]]
    """

    def __init__(self, seq_len: int):
        self._seq_len = seq_len
        self._rows: list[list[np.ndarray]] = []

    def add(self, document: np.ndarray) -> Iterator[np.ndarray]:
        """Places a document, whole unless it is longer than a row; yields rows that leave."""
        for start in range(0, len(document), self._seq_len):
            piece = document[start : start + self._seq_len]
            fits = [row for row in self._rows if self._room(row) >= len(piece)]
            if fits:
                min(fits, key=self._room).append(piece)
            else:
                self._rows.append([piece])
            fullest = min(self._rows, key=self._room)
            if self._room(fullest) == 0 or len(self._rows) > _OPEN_ROWS:
                self._rows = [row for row in self._rows if row is not fullest]
                yield self._filled(fullest)

    def close_all(self) -> Iterator[np.ndarray]:
        """Yields all rows there are."""
        yield from map(self._filled, self._rows)
        self._rows = []

    def _room(self, row: list[np.ndarray]) -> int:
        return self._seq_len - sum(map(len, row))

    def _filled(self, row: list[np.ndarray]) -> np.ndarray:
        padding = np.full(self._room(row), PADDING, dtype=np.uint32)
        return np.concatenate([*row, padding]).astype(np.uint32)
