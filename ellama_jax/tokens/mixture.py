"""The arithmetic of a mixture: which source gives which row at which step, and how often.

Owns shares, stages, positions, repetition and the identity of a mixture. It reads no window and
keeps no state: everything follows from the configuration and the sets' manifests. Reading is
tokens/loader.py's.
"""

import bisect
import difflib
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ellama_jax.config import batch_sizes
from ellama_jax.core.tree import flatten_paths
from ellama_jax.tokens.windows import Manifest

if TYPE_CHECKING:
    from ellama_jax.config import DataConfig

# Row weights are integers for exact arithmetic: floats would drift over a trillion tokens.
_WEIGHT_SCALE = 2**40

Key = tuple[str, str]  # domain, language


def language_shares(section: "DataConfig", path: str = "data") -> dict[Key, float]:
    """Returns each (domain, language)'s part of all tokens, those above 0.

    The general domain has `replay_frac` of the tokens, e-commerce the rest; each divides its part
    among languages by its shares.

    Args:
        section: the data section, or what it is in a stage.
        path: its name in messages.

    Raises:
        ValueError: if a number is out of its range or shares do not sum to 1.
    """
    replay_frac = section.replay_frac
    if not 0 <= replay_frac <= 1:
        raise ValueError(f"{path}.replay_frac: must be between 0 and 1, got {replay_frac}.")
    wanted = {}
    parts = (
        ("ecommerce", 1 - replay_frac, section.ecommerce_shares),
        ("general", replay_frac, section.general_shares),
    )
    for domain, domain_share, shares in parts:
        if domain_share == 0:
            continue
        total = math.fsum(shares.values())
        if abs(total - 1) > 1e-6 or any(share < 0 for share in shares.values()):
            raise ValueError(
                f"{path}.{domain}_shares: must be 0 or more and sum to 1, got {dict(shares)} "
                f"(sum {total:g})."
            )
        for language, share in shares.items():
            if share > 0:
                wanted[domain, language] = domain_share * share / total
    return wanted


def source_shares(
    section: "DataConfig", path: str, found: Mapping[Key, Sequence[Manifest]]
) -> dict[str, float]:
    """Returns each window set's part of all tokens, by name, those above 0.

    The sets of one domain and language divide its share by `source_weights` where these name
    them, else by their tokens.

    Args:
        section, path: as in `language_shares`.
        found: the manifests of the sets there are.

    Raises:
        ValueError: if a share has no set, or a weight is of no set or missing.
    """
    names = [manifest.name for manifests in found.values() for manifest in manifests]
    check_source_names(section.source_weights, names, f"{path}.source_weights")
    shares = {}
    for key, share in language_shares(section, path).items():
        if key not in found:
            raise ValueError(_missing_set(section.windows_dir, path, key, share, found))
        weights = _set_weights(section.source_weights, path, found[key])
        total = sum(weights.values())
        for name, weight in weights.items():
            if weight > 0:
                shares[name] = share * (weight / total)
    return shares


def row_weights(
    token_shares: Sequence[float], num_rows: Sequence[int], num_tokens: Sequence[int]
) -> list[float]:
    """Returns each source's part of all rows, for the given parts of all tokens.

    A source with much padding has few tokens in a row, so it gives more rows.

    Args:
        token_shares: of each source.
        num_rows, num_tokens: that each source has; their ratio is exact over whole epochs.

    >>> row_weights([0.5, 0.5], num_rows=[10, 10], num_tokens=[1000, 3000])
    [0.75, 0.25]
    """
    counts = zip(token_shares, num_rows, num_tokens, strict=True)
    weights = [share * rows / tokens for share, rows, tokens in counts]
    return [weight / math.fsum(weights) for weight in weights]


class RowOrder:
    """Which source gives row k of the mixture, and which of its rows: by arithmetic, no state.

    In each stage, after any k of its rows, each source has given k times its weight, to within
    about a row. Source by source, of the rows that those before it left over it takes its part of
    the weight that is left, rounded to the nearest row: rounded down, the first sources would all
    lag, and with them their domain. A stage begins where the one before left each source, so no
    row is given twice before its source has given all.

    Source 0 gives three of four rows, from row 4 on one of two:

        >>> order = RowOrder([0, 4], [[0.75, 0.25], [0.5, 0.5]])
        >>> [order.locate(row) for row in range(8)]
        [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1), (0, 4), (1, 2)]
        >>> order.rows_before(6)
        [4, 2]
    """

    def __init__(self, start_rows: Sequence[int], weights: Sequence[Sequence[float]]):
        """Prepares the order.

        Args:
            start_rows: first row of each stage, ascending, the first 0.
            weights: [stages][sources] parts of the stage's rows.
        """
        self._starts = list(start_rows)
        # Not 0 for what is above it: a source with a tiny share gives a row now and then.
        self._weights = [
            [max(1, round(weight * _WEIGHT_SCALE)) if weight > 0 else 0 for weight in stage]
            for stage in weights
        ]
        self._given = [[0] * len(weights[0])]  # by each source, when a stage begins
        for number, (start, end) in enumerate(itertools.pairwise(self._starts)):
            self._given.append(self._count(number, end - start))

    def locate(self, row: int) -> tuple[int, int]:
        """Returns the source of a row of the mixture, and which row of the source it is."""
        stage = bisect.bisect_right(self._starts, row) - 1
        before = row - self._starts[stage]
        after, weight_left = before + 1, sum(self._weights[stage])
        for source, weight in enumerate(self._weights[stage]):
            if weight == 0:
                continue
            half = weight_left // 2
            given, given_after = ((n * weight + half) // weight_left for n in (before, after))
            if given_after > given:
                return source, self._given[stage][source] + given
            before, after = before - given, after - given_after
            weight_left -= weight
        raise AssertionError("the last source must take every row that is left")

    def rows_before(self, row: int) -> list[int]:
        """Returns how many rows each source has given before a row of the mixture."""
        stage = bisect.bisect_right(self._starts, row) - 1
        return self._count(stage, row - self._starts[stage])

    def _count(self, stage: int, rows: int) -> list[int]:
        weight_left, counts = sum(self._weights[stage]), []
        for weight, before in zip(self._weights[stage], self._given[stage], strict=True):
            given = (rows * weight + weight_left // 2) // weight_left if weight else 0
            counts.append(before + given)
            rows, weight_left = rows - given, weight_left - weight
        return counts


def check_source_names(given: Iterable[str], names: Sequence[str], path: str) -> None:
    """Refuses keys of the configuration section `path` that name no source of the mixture."""
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(names))}."
            raise ValueError(f"{path}.{name}: is no source of this mixture; {hint}")


class SourceReads(NamedTuple):
    """How often one source is read up to some step.

    Attributes:
        name: of the source.
        rows_read: by then.
        num_rows: that the source has.
        num_tokens: that the source has.
    """

    name: str
    rows_read: int
    num_rows: int
    num_tokens: int


def check_repetition(reads: Sequence[SourceReads], data_config: "DataConfig", steps: int) -> None:
    """Refuses, or warns of, sources that a run reads more often than it may.

    Up to four epochs are nearly as good as new data, more are soon worth nothing (arXiv
    2305.16264).

    Args:
        reads: of the whole run.
        data_config: max_epochs, max_epochs_by_source, and on_repetition: error or warn.
        steps: of the run, for the message.

    Raises:
        ValueError: naming every such source, if `on_repetition` is "error"; and if
            `max_epochs_by_source` names no source.
    """
    caps = data_config.max_epochs_by_source
    names = [read.name for read in reads]
    check_source_names(caps, names, "data.max_epochs_by_source")
    over = []
    for read in reads:
        cap = caps.get(read.name, data_config.max_epochs)
        if read.rows_read > cap * read.num_rows:
            over.append(_describe_repetition(read, cap))
    if not over:
        return
    said = (
        f"data.max_epochs: no set may be read more often in {steps:,} steps, got "
        f"{'; '.join(over)}; prepare more text, give it a smaller share, train fewer steps, or "
        "raise data.max_epochs or data.max_epochs_by_source"
    )
    if data_config.on_repetition == "error":
        raise ValueError(f"{said} (data.on_repetition=warn trains all the same).")
    logging.getLogger(__name__).warning("%s.", said)


def describe_mixture_so_far(
    names: Sequence[str],
    contents: Sequence[str],
    start_steps: Sequence[int],
    token_shares: Sequence[Sequence[float]],
    data_config: "DataConfig",
    step: int | None = None,
) -> dict:
    """Returns as plain data all that the batches of the steps before `step` depend on.

    Stages and batch sizes that begin at `step` or later are left out: they may still change. So are
    sources that have given nothing by then.

    Args:
        names, contents: of the sources, and their `content_sha256`.
        start_steps: of the stages.
        token_shares: [sources][stages].
        data_config: seed, seq_len, global_batch_size and batch_ramp.
        step: None: all stages and sizes.
    """
    (_, first_rows), *later_rows = batch_sizes(data_config)
    order = {"seed": data_config.seed, "seq_len": data_config.seq_len}
    order["global_batch_size"] = first_rows
    later_rows = {str(start): n for start, n in later_rows if step is None or start < step}
    stages, used = {}, set()
    for stage, start in enumerate(start_steps):
        if stage > 0 and step is not None and start >= step:
            break
        shares = [(name, of[stage]) for name, of in zip(names, token_shares, strict=True)]
        stages[str(start)] = {name: share for name, share in shares if share > 0}
        used.update(stages[str(start)])
    windows = {n: content for n, content in zip(names, contents, strict=True) if n in used}
    mixture = {"order": order, "windows": windows, "shares_from_step": stages}
    return mixture | ({"rows_from_step": later_rows} if later_rows else {})


def fingerprint_mixture(mixture: Mapping) -> str:
    """Returns a sha256 of what `describe_mixture_so_far` gives.

    Without stages, and without a ramp of the batch size, it is what it was before there were any,
    so that runs of that time resume.
    """
    first, *later = [
        [int(start), [[name, mixture["windows"][name], share] for name, share in shares.items()]]
        for start, shares in mixture["shares_from_step"].items()
    ]
    order = [mixture["order"][name] for name in ("seed", "seq_len", "global_batch_size")]
    content = [first[1], order, later] if later else [first[1], order]
    if rows := mixture.get("rows_from_step"):
        content.append({int(start): number for start, number in rows.items()})
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def mixture_differences(before: Mapping, now: Mapping) -> list[str]:
    """Says in words where two results of `describe_mixture_so_far` differ.

    >>> mixture_differences({"order": {"seed": 0}}, {"order": {"seed": 1}})
    ['order/seed was 0, now 1']
    """
    old, new = flatten_paths(before), flatten_paths(now)
    said = []
    for name in sorted(old.keys() | new.keys()):
        values = [_short(values.get(name, "absent")) for values in (old, new)]
        if old.get(name) != new.get(name):
            said.append(f"{name} was {values[0]}, now {values[1]}")
    return said


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:12]


def _set_weights(
    given: Mapping[str, float], path: str, manifests: Sequence[Manifest]
) -> dict[str, float]:
    """Returns the weight of each set of one domain and language."""
    names = [manifest.name for manifest in manifests]
    named = [name for name in names if name in given]
    if not named:
        return {manifest.name: manifest.num_tokens for manifest in manifests}
    missing = sorted(set(names) - set(named))
    if missing:
        raise ValueError(
            f"{path}.source_weights: must name every set of a domain and language or none, got "
            f"{', '.join(named)} without {', '.join(missing)}; 0 leaves a set out."
        )
    if not any(given[name] > 0 for name in names):
        raise ValueError(
            f"{path}.source_weights: one of {', '.join(names)} must be above 0, got none."
        )
    return {name: given[name] for name in names}


def _missing_set(windows_dir: str, path: str, key: Key, share: float, found: Mapping) -> str:
    domain, language = key
    names = ", ".join("-".join(key) for key in sorted(found))
    return (
        f"{path}.{domain}_shares: {language} has {share:.1%} of the tokens, so {windows_dir} must "
        f"hold a window set {domain}-{language}, got {names or 'no set'}; prepare it or set its "
        "share to 0."
    )


def _describe_repetition(read: SourceReads, cap: float) -> str:
    asked = read.rows_read * read.num_tokens // read.num_rows
    return (
        f"{read.name} {read.rows_read / read.num_rows:.2f} times where {cap:g} is allowed "
        f"({read.num_tokens:,} tokens on disk, {asked:,} asked for)"
    )
