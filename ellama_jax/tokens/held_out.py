"""Text that a run is measured on and never trained on: the same rows every time it is asked.

Owns which rows of held-out window sets are read, and their batches. The loss on them is
train/validation.py's.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ellama_jax.tokens.windows import WindowSet, find_sets, read_rows

_NAME = "evaluate.windows_dir"


class HeldOut:
    """Rows of held-out window sets, an equal number of each, spread evenly over it.

        held_out = HeldOut("heldout", seq_len=8192, num_rows=5760, tokenizer_fingerprint=None)
        for batch in held_out.batches(1440): ...    # the format of `Loader`

    Attributes:
        names: `<domain>/<language>` by `source_ids`; sets of one domain and language share one.
        num_rows: rows there are to read, at most what was asked for.
    """

    def __init__(
        self,
        windows_dir: str | os.PathLike,
        seq_len: int,
        num_rows: int,
        tokenizer_fingerprint: str | None,
    ):
        """Opens the sets below `windows_dir`; reads no window yet.

        Args:
            windows_dir: directory of window sets.
            seq_len: tokens a row; divides the window length.
            num_rows: rows over all sets together; a set with fewer than its part gives all it has.
            tokenizer_fingerprint: of the model's tokenizer; None accepts any.

        Raises:
            ValueError: if there is no set, or one does not fit.
        """
        paths = find_sets(windows_dir, _NAME)
        if not paths:
            raise ValueError(
                f"{_NAME}: must hold window sets, got none in {windows_dir}; `ellama prepare` "
                "writes them."
            )
        self._sets = [WindowSet(path, tokenizer_fingerprint) for path in paths]
        self._seq_len = seq_len
        for windows in self._sets:
            if windows.manifest.window_length % seq_len:
                raise ValueError(
                    f"data.seq_len: must divide the window_length {windows.manifest.window_length} "
                    f"of {windows.path}, got {seq_len}."
                )
        labels = [f"{w.manifest.domain}/{w.manifest.language}" for w in self._sets]
        self.names = sorted(set(labels))
        self._ids = [self.names.index(label) for label in labels]
        self._places = _spread([self._count_rows(w) for w in self._sets], num_rows)
        self.num_rows = len(self._places)

    def check_apart(self, trained: Iterable[WindowSet]) -> None:
        """Refuses sets that are trained on.

        Raises:
            ValueError: naming the set.
        """
        here = {windows.manifest.content_sha256: windows for windows in self._sets}
        for windows in trained:
            same = here.get(windows.manifest.content_sha256)
            if same is not None:
                raise ValueError(
                    f"{_NAME}: must hold text that is not trained on, got {same.path}, which has "
                    f"the windows of {windows.path}."
                )

    def bytes_per_token(self) -> dict[str, float]:
        """Returns by name the mean UTF-8 bytes of a token that is predicted at whole documents.

        Every token but a document's first (BOS) is predicted, EOS too. A name whose sets do not
        say their bytes is left out.
        """
        totals: dict[str, list[int]] = {}
        unknown = set()
        for windows, number in zip(self._sets, self._ids, strict=True):
            manifest, name = windows.manifest, self.names[number]
            if manifest.num_bytes is None:
                unknown.add(name)
                continue
            framing = manifest.num_documents if manifest.bos_id is not None else 0
            total = totals.setdefault(name, [0, 0])
            total[0] += manifest.num_bytes
            total[1] += manifest.num_tokens - framing
        return {n: text / tokens for n, (text, tokens) in totals.items() if n not in unknown}

    def batches(
        self, batch_size: int, rows_of: Callable[[int], Sequence[int]] = range
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the rows of each batch, or some of them, always in the same order.

        The last batch is filled up with rows of padding, whose loss weighs 0.

        Args:
            batch_size: rows of a whole batch.
            rows_of: which rows of it, as of `Loader.iterate`.
        """
        mine = rows_of(batch_size)
        for start in range(0, self.num_rows, batch_size):
            yield self._read([start + int(row) for row in mine])

    def _count_rows(self, windows: WindowSet) -> int:
        return len(windows) * (windows.manifest.window_length // self._seq_len)

    def _read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        places = [self._places[row] if row < self.num_rows else self._places[0] for row in rows]
        batch = read_rows([(self._sets[n], index) for n, index in places], self._seq_len)
        for values in batch.values():
            values[np.asarray(rows) >= self.num_rows] = 0  # as all-padding windows come out
        return batch | {"source_ids": np.int32([self._ids[number] for number, _ in places])}


def _spread(counts: list[int], num_rows: int) -> list[tuple[int, int]]:
    """Chooses (set, row) pairs, about as many of each set, at equal distances.

    >>> _spread([2, 100], 6)
    [(0, 0), (0, 1), (1, 0), (1, 33), (1, 66)]
    """
    each = max(1, num_rows // len(counts))
    places = []
    for number, count in enumerate(counts):
        wanted = min(each, count)
        places += [(number, i * count // wanted) for i in range(wanted)]
    return places
