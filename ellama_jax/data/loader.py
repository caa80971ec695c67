"""The training batches: a mixture of window sets, read in an order that depends on the step alone.

Owns the shares of the sources, the order of rows and the batches of each host. It does not make
windows (data/windows.py), and knows nothing of devices: arrays come out as NumPy.
"""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grain
import numpy as np

from ellama_jax.data.windows import MANIFEST_FILE, WindowSet, read_manifest, to_features
from ellama_jax.paths import local_path

if TYPE_CHECKING:
    from ellama_jax.config import DataConfig

# Row weights are integers for exact arithmetic: floats would drift over a trillion tokens.
_WEIGHT_SCALE = 2**40


@dataclass(frozen=True)
class Source:
    """One window set of the mixture.

    Attributes:
        name: the set's name, as `ecommerce-de`.
        windows: the set.
        token_share: part of all tokens that come from here; the shares of a mixture sum to 1.
    """

    name: str
    windows: WindowSet
    token_share: float

    @property
    def domain(self) -> str:
        """The domain of every document in the set."""
        return self.windows.manifest.domain

    @property
    def language(self) -> str:
        """The language of every document in the set."""
        return self.windows.manifest.language


def open_sources(data_config: "DataConfig", tokenizer_fingerprint: str | None) -> list[Source]:
    """Opens the window sets of a mixture and gives each its share of the tokens.

    The general domain has `replay_frac` of the tokens, e-commerce the rest; each divides its part
    among languages by its shares, and a language among its sets by their sizes.

    Args:
        data_config: windows_dir holds the sets; replay_frac, general_shares and ecommerce_shares
            say the mixture; seq_len must divide the sets' window length.
        tokenizer_fingerprint: of the model's tokenizer; None accepts any single one.

    Returns:
        The sources, sorted by name; the place in this list is the batch's `source_ids`.

    Raises:
        ValueError: if shares do not sum to 1, a share has no set, or a set does not fit.
    """
    wanted = _language_shares(data_config)
    found = _find_sets(local_path(data_config.windows_dir, "data.windows_dir"))
    sources = []
    for key, share in wanted.items():
        if key not in found:
            raise ValueError(_missing_set(data_config.windows_dir, key, share, found))
        sets = [WindowSet(path, tokenizer_fingerprint) for path in found[key]]
        all_tokens = sum(windows.manifest.num_tokens for windows in sets)
        for windows in sets:
            part = windows.manifest.num_tokens / all_tokens
            sources.append(Source(windows.manifest.name, windows, share * part))
    unused = ["-".join(key) for key in sorted(found.keys() - wanted.keys())]
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
        for batch in loader.iterate(start_step, stop_step, process_index, process_count): ...

    So resuming needs the step alone, and may happen on another number of hosts. A batch is a dict
    of NumPy arrays: inputs, targets, segment_ids, positions [B, T] int32, loss_weights [B, T]
    float32, source_ids [B] int32.

    Attributes:
        sources: the mixture.
        row_weights: part of all rows that come from each source. Rows of a source with much
            padding hold fewer tokens, so it gives more rows than its token share.
        mixture_fingerprint: sha256 over all that the batches depend on.
    """

    def __init__(self, sources: Sequence[Source], data_config: "DataConfig"):
        """Prepares the mixture; reads no window yet.

        Args:
            sources: from `open_sources`.
            data_config: seq_len, global_batch_size (rows), seed, num_read_threads.

        Raises:
            ValueError: if there is no source, or a number is out of its range.
        """
        _check_sources(sources, data_config.seq_len)
        for name in ("global_batch_size", "num_read_threads"):
            if getattr(data_config, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(data_config, name)}.")
        self.sources = list(sources)
        self.row_weights = _row_weights(sources, data_config.seq_len)
        self._batch_size = data_config.global_batch_size
        self._num_threads = data_config.num_read_threads
        self._rows = _mix_rows(self.sources, self.row_weights, data_config)
        self.mixture_fingerprint = _mixture_fingerprint(self.sources, data_config)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the global batch of `step`, counted from 0."""
        return self.host_batch(step, 0, 1)

    def host_batch(self, step: int, process_index: int, process_count: int) -> dict:
        """Returns the rows of the global batch of `step` that one host feeds.

        Host 0 has the first rows, so the hosts' batches laid end to end are the global batch.

        Raises:
            ValueError: if `process_count` does not divide the global batch size.
        """
        self._check_host(process_index, process_count)
        rows_per_host = self._batch_size // process_count
        first = step * self._batch_size + process_index * rows_per_host
        rows = [self._rows[first + row] for row in range(rows_per_host)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def iterate(
        self, start_step: int, stop_step: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `host_batch(step, ...)` of the steps in [start_step, stop_step), read ahead.

        Grain's threads read the next batches while this one trains; the order is that of the
        steps whatever the number of threads.
        """
        self._check_host(process_index, process_count)
        if start_step >= stop_step:
            return iter(())
        steps = grain.MapDataset.range(start_step, stop_step)
        batches = steps.map(lambda step: self.host_batch(step, process_index, process_count))
        # Twice as many batches ahead as threads: none waits for the slowest.
        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=2 * self._num_threads
        )
        return iter(batches.to_iter_dataset(options))

    def count_tokens(self, batch: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Returns the tokens of each source in a batch, padding not counted, by name."""
        tokens = np.sum(batch["segment_ids"] != 0, axis=1)
        counts = np.bincount(batch["source_ids"], weights=tokens, minlength=len(self.sources))
        return {s.name: int(n) for s, n in zip(self.sources, counts, strict=True)}

    def _check_host(self, process_index: int, process_count: int) -> None:
        if process_count < 1 or self._batch_size % process_count:
            raise ValueError(
                f"global_batch_size: must be divisible by the number of hosts {process_count}, "
                f"got {self._batch_size}."
            )
        if not 0 <= process_index < process_count:
            raise ValueError(
                f"process_index: must be in [0, {process_count}), got {process_index}."
            )


def batch_fingerprint(batch: Mapping[str, np.ndarray], first_row: int = 0) -> str:
    """Returns 16 hex digits that tell one batch from another.

    A sum over rows of a hash of the row and its place, modulo 2^64. So hosts that hold parts of a
    batch can find that of the whole without exchanging rows, see `combine_fingerprints`.

    Args:
        batch: arrays with one leading row axis.
        first_row: place of the first row in the global batch.
    """
    total = 0
    for row in range(len(batch["source_ids"])):
        digest = hashlib.blake2b(str(first_row + row).encode(), digest_size=8)
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(batch[name][row]).tobytes())
        total += int.from_bytes(digest.digest(), "big")
    return f"{total % 2**64:016x}"


def combine_fingerprints(parts: Sequence[str]) -> str:
    """Returns the fingerprint of a batch from those of its parts, in any order.

    >>> combine_fingerprints(["fffffffffffffffe", "0000000000000005"])
    '0000000000000003'
    """
    return f"{sum(int(part, 16) for part in parts) % 2**64:016x}"


class _Rows:
    """The rows of one source, in the order of its windows, as Grain's random access source."""

    def __init__(self, source: Source, source_id: int, seq_len: int):
        self._windows, self._source_id, self._seq_len = source.windows, source_id, seq_len
        self._rows_per_window = source.windows.manifest.window_length // seq_len

    def __len__(self) -> int:
        return len(self._windows) * self._rows_per_window

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window, part = divmod(int(index), self._rows_per_window)
        tokens = self._windows[window][part * self._seq_len : (part + 1) * self._seq_len]
        manifest = self._windows.manifest
        row = to_features(tokens, eos_id=manifest.eos_id, bos_id=manifest.bos_id)
        return row | {"source_ids": np.int32(self._source_id)}


class _Interleave(grain.transforms.DatasetSelectionMap):
    """Which source gives row k of the mixture, and which of its rows: by arithmetic, no state.

    After any k rows, each source has given k times its weight, to within about a row. Source by
    source, of the rows that those before it left over it takes its part of the weight that is
    left, rounded to the nearest row: rounded down, the first sources would all lag, and with them
    their domain. `MapDataset.mix` rounds down, and the weights to 1 % of the smallest.
    """

    def __init__(self, row_weights: Sequence[float]):
        self._weights = [max(1, round(weight * _WEIGHT_SCALE)) for weight in row_weights]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        weight_left = sum(self._weights)
        before, after = index, index + 1  # rows left over, without and with row `index`
        for source, weight in enumerate(self._weights):
            half = weight_left // 2
            given, given_after = ((n * weight + half) // weight_left for n in (before, after))
            if given_after > given:
                return source, given
            before, after = before - given, after - given_after
            weight_left -= weight
        raise AssertionError("the last source must take every row that is left")


def _mix_rows(
    sources: Sequence[Source], row_weights: Sequence[float], data_config: "DataConfig"
) -> grain.MapDataset:
    datasets = []
    for source_id, source in enumerate(sources):
        rows = grain.MapDataset.source(_Rows(source, source_id, data_config.seq_len))
        # The seed depends on the source's name, not on its place: adding a source leaves the
        # order of the others as it was. Grain shuffles every epoch anew.
        digest = hashlib.sha256(f"{data_config.seed}/{source.name}".encode()).digest()
        datasets.append(rows.shuffle(seed=int.from_bytes(digest[:4], "big")).repeat())
    return grain.MapDataset.select_from_datasets(datasets, _Interleave(row_weights))


def _row_weights(sources: Sequence[Source], seq_len: int) -> list[float]:
    # rows = tokens / (mean tokens of a row), over a whole number of epochs exactly.
    rows = []
    for source in sources:
        manifest = source.windows.manifest
        num_rows = manifest.num_windows * (manifest.window_length // seq_len)
        rows.append(source.token_share * num_rows / manifest.num_tokens)
    return [weight / math.fsum(rows) for weight in rows]


def _language_shares(data_config: "DataConfig") -> dict[tuple[str, str], float]:
    """Returns each (domain, language)'s part of all tokens, those above 0."""
    replay_frac = data_config.replay_frac
    if not 0 <= replay_frac <= 1:
        raise ValueError(f"data.replay_frac: must be between 0 and 1, got {replay_frac}.")
    wanted = {}
    parts = (
        ("ecommerce", 1 - replay_frac, data_config.ecommerce_shares),
        ("general", replay_frac, data_config.general_shares),
    )
    for domain, domain_share, shares in parts:
        if domain_share == 0:
            continue
        total = math.fsum(shares.values())
        if abs(total - 1) > 1e-6 or any(share < 0 for share in shares.values()):
            raise ValueError(
                f"data.{domain}_shares: must be 0 or more and sum to 1, got {dict(shares)} "
                f"(sum {total:g})."
            )
        for language, share in shares.items():
            if share > 0:
                wanted[domain, language] = domain_share * share / total
    return wanted


def _find_sets(windows_dir: Path) -> dict[tuple[str, str], list[Path]]:
    """Returns the finished sets directly below a directory, by domain and language."""
    if not windows_dir.is_dir():
        raise ValueError(f"data.windows_dir: must be a directory, got {windows_dir}.")
    found: dict[tuple[str, str], list[Path]] = {}
    # Hidden directories are sets that are being written.
    for path in sorted(windows_dir.glob(f"[!.]*/{MANIFEST_FILE}")):
        manifest = read_manifest(path.parent)
        found.setdefault((manifest.domain, manifest.language), []).append(path.parent)
    return found


def _missing_set(windows_dir: str, key: tuple[str, str], share: float, found: Mapping) -> str:
    domain, language = key
    names = ", ".join("-".join(key) for key in sorted(found))
    return (
        f"data.{domain}_shares: {language} has {share:.1%} of the tokens, so {windows_dir} must "
        f"hold a window set {domain}-{language}, got {names or 'no set'}; prepare it or set its "
        "share to 0."
    )


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


def _mixture_fingerprint(sources: Sequence[Source], data_config: "DataConfig") -> str:
    parts = [
        [source.name, source.windows.manifest.content_sha256, source.token_share]
        for source in sources
    ]
    order = [data_config.seed, data_config.seq_len, data_config.global_batch_size]
    return hashlib.sha256(json.dumps([parts, order]).encode()).hexdigest()
