"""The training batches: a mixture of window sets, read in an order that depends on the step alone.

Owns the window sets of a mixture, reading, and the batches of each host. Shares and order are
tokens/mixture.py's; it does not make windows (tokens/windows.py), and knows nothing of devices: arrays
come out as NumPy.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grain
import numpy as np

from ellama_jax.config import batch_sizes, count_rows, rows_at, stage_sections
from ellama_jax.tokens.mixture import (
    RowOrder,
    SourceReads,
    check_repetition,
    describe_mixture_so_far,
    fingerprint_mixture,
    row_weights,
    source_shares,
)
from ellama_jax.tokens.windows import (
    Manifest,
    WindowSet,
    find_sets,
    read_manifest,
    read_rows,
)

if TYPE_CHECKING:
    from ellama_jax.config import DataConfig


@dataclass(frozen=True)
class Source:
    """One window set of the mixture.

    Attributes:
        name: the set's name, as `ecommerce-de`.
        windows: the set.
        token_shares: part of all tokens that come from here, stage by stage; those of all sources
            of a mixture sum to 1 in each stage.
    """

    name: str
    windows: WindowSet
    token_shares: tuple[float, ...]

    @property
    def token_share(self) -> float:
        """Part of all tokens that come from here before the first switch."""
        return self.token_shares[0]

    @property
    def domain(self) -> str:
        """The domain of every document in the set."""
        return self.windows.manifest.domain

    @property
    def language(self) -> str:
        """The language of every document in the set."""
        return self.windows.manifest.language

    def count_rows(self, seq_len: int) -> int:
        """Returns how many rows of `seq_len` tokens the set gives in one epoch."""
        return len(self.windows) * (self.windows.manifest.window_length // seq_len)

    def describe(self) -> dict:
        """Says what the manifest says: how much text, of which files."""
        manifest = self.windows.manifest
        return {
            "name": self.name,
            "domain": self.domain,
            "language": self.language,
            "token_share": self.token_share,
            "num_tokens": manifest.num_tokens,
            "num_documents": manifest.num_documents,
            "files": list(manifest.sources),
        }


def open_sources(data_config: "DataConfig", tokenizer_fingerprint: str | None) -> list[Source]:
    """Opens the window sets of a mixture and gives each its share of the tokens in each stage.

    Args:
        data_config: windows_dir holds the sets; replay_frac, general_shares, ecommerce_shares,
            source_weights and stages say the mixture; seq_len must divide the sets' window length.
        tokenizer_fingerprint: of the model's tokenizer; None accepts any single one.

    Returns:
        The sources, sorted by name; the place in this list is the batch's `source_ids`.

    Raises:
        ValueError: if shares do not sum to 1, a share has no set, or a set does not fit.
    """
    found: dict[tuple[str, str], list[tuple[Path, Manifest]]] = {}
    for path in find_sets(data_config.windows_dir, "data.windows_dir"):
        manifest = read_manifest(path)
        found.setdefault((manifest.domain, manifest.language), []).append((path, manifest))
    manifests = {key: [manifest for _, manifest in sets] for key, sets in found.items()}
    shares = [
        source_shares(section, path, manifests) for path, _, section in stage_sections(data_config)
    ]
    used = {name for stage in shares for name in stage}
    sources = [
        Source(
            manifest.name,
            WindowSet(path, tokenizer_fingerprint),
            tuple(stage.get(manifest.name, 0.0) for stage in shares),
        )
        for sets in found.values()
        for path, manifest in sets
        if manifest.name in used
    ]
    unused = sorted(m.name for sets in manifests.values() for m in sets if m.name not in used)
    if unused:
        logging.getLogger(__name__).warning(
            "%s: %s not used, the mixture gives no share.", data_config.windows_dir, unused
        )
    sources.sort(key=lambda source: source.name)
    _check_sources(sources, data_config.seq_len)
    return sources


class Loader:
    """The batches of a mixture; every one a pure function of (mixture, seed, step).

        loader = Loader(open_sources(config, tokenizer.fingerprint), config)
        for batch in loader.iterate(start_step, stop_step, rows_of): ...

    So resuming needs the step alone, and may happen on another number of hosts. The number of rows B
    may grow with the step (`batch_ramp`). At the first step
    of a stage the shares change; each source goes on where it was (arXiv 2407.07263: a blend of two
    stages with a late switch serves continued pretraining best). A batch is a dict
    of NumPy arrays: inputs, targets, segment_ids, positions [B, T] int32, loss_weights [B, T]
    float32, source_ids [B] int32.

    Attributes:
        sources: the mixture.
        stages: (path in the configuration, first step) of each stage; the first is `data`, 0.
        row_weights: part of all rows that come from each source, before the first switch. Rows of
            a source with much padding hold fewer tokens, so it gives more rows than its token
            share.
        mixture_fingerprint: sha256 over all that the batches depend on, all stages included.
    """

    def __init__(self, sources: Sequence[Source], data_config: "DataConfig"):
        """Prepares the mixture; reads no window yet.

        Args:
            sources: from `open_sources` of the same configuration.
            data_config: seq_len, global_batch_size (rows), batch_ramp, seed, stages,
                num_read_threads.

        Raises:
            ValueError: if there is no source, or a number is out of its range.
        """
        _check_sources(sources, data_config.seq_len)
        for name in ("global_batch_size", "num_read_threads"):
            if getattr(data_config, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(data_config, name)}.")
        self.sources = list(sources)
        self.stages = [(path, start) for path, start, _ in stage_sections(data_config)]
        self._config = data_config
        self._num_threads = data_config.num_read_threads
        self._num_rows = [source.count_rows(data_config.seq_len) for source in sources]
        num_tokens = [source.windows.manifest.num_tokens for source in sources]
        shares = zip(*(source.token_shares for source in sources), strict=True)
        weights = [row_weights(stage, self._num_rows, num_tokens) for stage in shares]
        self.row_weights = weights[0]
        first_rows = [count_rows(data_config, start) for _, start in self.stages]
        self._order = RowOrder(first_rows, weights)
        self._shuffles = [
            _shuffled(rows, source, data_config)
            for source, rows in zip(self.sources, self._num_rows, strict=True)
        ]
        self.mixture_fingerprint = fingerprint_mixture(self.mixture_until(None))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the global batch of `step`, counted from 0."""
        return self.host_batch(step, range(rows_at(self._config, int(step))))

    def host_batch(self, step: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Returns some rows of the global batch of `step`, as those that one host feeds.

        Args:
            rows: their places in the global batch, in the order wanted.
        """
        first, end = (count_rows(self._config, int(step) + more) for more in (0, 1))
        assert all(0 <= row < end - first for row in rows), f"step {step} has no such row: {rows}"
        places = [self._locate(first + int(row)) for row in rows]
        windows = [(self.sources[number].windows, place) for number, place in places]
        batch = read_rows(windows, self._config.seq_len)
        return batch | {"source_ids": np.int32([number for number, _ in places])}

    def iterate(
        self,
        start_step: int,
        stop_step: int,
        rows_of: Callable[[int], Sequence[int]] = range,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `host_batch(step, ...)` of the steps in [start_step, stop_step), read ahead.

        Grain's threads read the next batches while this one trains; the order is that of the
        steps whatever the number of threads.

        Args:
            rows_of: number of rows of a global batch -> those to read; by default all of them.
        """
        # Asked here, not in a thread, for what it may refuse.
        rows = {size: rows_of(size) for _, size in batch_sizes(self._config)}
        if start_step >= stop_step:
            return iter(())
        steps = grain.MapDataset.range(start_step, stop_step)
        batches = steps.map(
            lambda step: self.host_batch(step, rows[rows_at(self._config, int(step))])
        )
        # Twice as many batches ahead as threads: none waits for the slowest.
        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=2 * self._num_threads
        )
        return iter(batches.to_iter_dataset(options))

    def locate_rows(self, step: int) -> list[dict]:
        """Says where each row of the global batch of `step` lies, in the order of the batch.

        Returns:
            one {source, window, part} a row: the set's name, which of its windows, and which of the
            window's pieces of seq_len tokens.
        """
        first, places = count_rows(self._config, int(step)), []
        for row in range(first, first + rows_at(self._config, int(step))):
            number, place = self._locate(row)
            source = self.sources[number]
            parts = source.windows.manifest.window_length // self._config.seq_len
            window, part = divmod(place, parts)
            places.append({"source": source.name, "window": window, "part": part})
        return places

    def _locate(self, row: int) -> tuple[int, int]:
        """Returns a row's source and place in it; rows are counted from the first of the run."""
        source, index = self._order.locate(row)
        return source, int(self._shuffles[source][index])

    def count_tokens(self, batch: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Returns the tokens of each source in a batch, padding not counted, by name."""
        tokens = np.sum(batch["segment_ids"] != 0, axis=1)
        counts = np.bincount(batch["source_ids"], weights=tokens, minlength=len(self.sources))
        return {s.name: int(n) for s, n in zip(self.sources, counts, strict=True)}

    def epochs(self, step: int) -> dict[str, float]:
        """Returns how often each source was read in the steps before `step`, by name."""
        return {read.name: read.rows_read / read.num_rows for read in self._reads(step)}

    def check_repetition(self, steps: int) -> None:
        """Refuses, or warns of, sources that `steps` steps read more often than they may.

        Raises:
            ValueError: see `tokens/mixture.py:check_repetition`.
        """
        check_repetition(self._reads(steps), self._config, steps)

    def mixture_until(self, step: int | None) -> dict:
        """Returns as plain data all that the batches before `step` depend on; None: all batches.

        A later stage may still change: what was read so far stays what it is.
        """
        return describe_mixture_so_far(
            [source.name for source in self.sources],
            [source.windows.manifest.content_sha256 for source in self.sources],
            [start for _, start in self.stages],
            [source.token_shares for source in self.sources],
            self._config,
            step,
        )

    def fingerprint_until(self, step: int) -> str:
        """Returns a sha256 of `mixture_until(step)`: equal ones have read the same so far."""
        return fingerprint_mixture(self.mixture_until(step))

    def describe(self, steps: int) -> Iterator[str]:
        """Says what `steps` steps read of what there is: lines for sources, sizes and switches."""
        epochs = self.epochs(steps)
        for source in self.sources:
            yield (
                f"{source.token_share:6.1%} {source.name}: {source.windows.manifest.num_tokens} "
                f"tokens on disk, read {epochs[source.name]:.2f} times"
            )
        if self._config.batch_ramp:
            sizes = [f"{rows} from step {start}" for start, rows in batch_sizes(self._config)]
            yield f"rows a batch: {', '.join(sizes)}"
        for number, (path, start) in enumerate(self.stages[1:], start=1):
            shares = [(s.name, s.token_shares[number]) for s in self.sources]
            said = ", ".join(f"{share:.1%} {name}" for name, share in shares if share > 0)
            yield f"after step {start} ({path}): {said}"

    def _reads(self, step: int) -> list[SourceReads]:
        counts = self._order.rows_before(count_rows(self._config, step))
        return [
            SourceReads(source.name, count, rows, source.windows.manifest.num_tokens)
            for source, count, rows in zip(self.sources, counts, self._num_rows, strict=True)
        ]


def batch_fingerprint(batch: Mapping[str, np.ndarray], rows: Sequence[int] | None = None) -> str:
    """Returns 16 hex digits that tell one batch from another.

    A sum over rows of a hash of the row and its place, modulo 2^64. So hosts that hold parts of a
    batch can find that of the whole without exchanging rows, see `combine_fingerprints`.

    Args:
        batch: arrays with one leading row axis.
        rows: place of each row in the global batch; None: it is the whole batch.
    """
    total = 0
    places = range(len(batch["source_ids"])) if rows is None else rows
    for number, place in enumerate(places):
        digest = hashlib.blake2b(str(int(place)).encode(), digest_size=8)
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(batch[name][number]).tobytes())
        total += int.from_bytes(digest.digest(), "big")
    return f"{total % 2**64:016x}"


def combine_fingerprints(parts: Sequence[str]) -> str:
    """Returns the fingerprint of a batch from those of its parts, in any order.

    >>> combine_fingerprints(["fffffffffffffffe", "0000000000000005"])
    '0000000000000003'
    """
    return f"{sum(int(part, 16) for part in parts) % 2**64:016x}"


def _shuffled(num_rows: int, source: Source, data_config: "DataConfig") -> grain.MapDataset:
    """Repeats the places of a source's rows for ever, each epoch in an order of its own."""
    # The seed depends on the source's name, not on its place: adding a source leaves the
    # order of the others as it was. Grain shuffles every epoch anew.
    digest = hashlib.sha256(f"{data_config.seed}/{source.name}".encode()).digest()
    places = grain.MapDataset.range(num_rows)
    return places.shuffle(seed=int.from_bytes(digest[:4], "big")).repeat()


def _check_sources(sources: Sequence[Source], seq_len: int) -> None:
    if not sources:
        raise ValueError("sources: must be at least one, got none.")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"sources: must have different names, got {names}.")
    fingerprints = {source.windows.manifest.tokenizer_fingerprint for source in sources}
    if len(fingerprints) > 1:
        raise ValueError(
            f"sources: must come from one tokenizer, got fingerprints {sorted(fingerprints)}."
        )
    for source in sources:
        window_length = source.windows.manifest.window_length
        if seq_len < 2 or window_length % seq_len:
            raise ValueError(
                f"data.seq_len: must be 2 or more and divide the window_length {window_length} of "
                f"{source.name}, got {seq_len}."
            )
