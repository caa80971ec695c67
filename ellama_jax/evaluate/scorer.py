"""Owns log-likelihood scoring: requests packed into rows, one jitted forward, a sum each.

It knows tokens and parameters only; texts, tasks and metrics belong to `scorecard`.

One request is a context and its alternative continuations. They share one stretch of a row, so the
context is computed once; a row holds as many requests as fit (best fit):

    tokens     BOS  c1  c2 | a1  a2 | b1      BOS  d1 | ...          (the last token of every
    segment     1   1   1    1   1    1        2   2                  continuation is predicted,
    branch      0   0   0    1   1    2        0   0                  never read, so it is not laid)
    position    0   1   2    3   4    3        0   1

The hidden state at c2 predicts a1 and b1 alike. Only positions that predict something go through
the vocabulary projection, a chunk at a time: [rows, length, vocabulary] never exists.
"""

import bisect
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.core import sharding
from ellama_jax.core.distributed import leads
from ellama_jax.core.progress import progress
from ellama_jax.model import llama
from ellama_jax.model.presets import LlamaConfig

_log = logging.getLogger(__name__)

# Positions projected at once. 256 x 128,256 float32 logits are 125 MiB, and a matrix product of
# that height already runs at full speed.
_PROJECTED_AT_ONCE = 256
# Tokens predicted from one position are padded to a multiple of this, so that tasks with 2, 3 or 4
# choices share one compiled program.
_TARGETS_MULTIPLE = 4


@dataclasses.dataclass(frozen=True)
class Request:
    """Names what is to be scored: token ids of a context and of each alternative after it."""

    context_ids: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Score:
    """Holds the result of one request.

    Attributes:
        log_probs: [continuations] float64, natural log-probability summed over the tokens.
        greedy: [continuations] bool, whether every token was the most probable one.
        truncated_tokens: context tokens cut off on the left because the request was too long.
    """

    log_probs: np.ndarray
    greedy: np.ndarray
    truncated_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Some of one request's continuations, behind their (possibly cut) context: one stretch."""

    request: int
    context: tuple[int, ...]
    numbers: tuple[int, ...]  # which continuations of the request
    continuations: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One call's arrays, and which (request, continuation) each predicted token belongs to."""

    rows: dict[str, np.ndarray]  # tokens, positions, segment_ids, branch_ids: [rows, length] int32
    predictors: np.ndarray  # [rows * length] int32, flat index of positions that predict; then 0
    targets: np.ndarray  # [rows * length, targets a position] int32
    num_predictors: int
    owners: list[tuple[int, int, int, int]]  # (predictor, target slot, request, continuation)
    num_tokens: int


def score(
    params: dict,
    config: LlamaConfig,
    requests: Sequence[Request],
    *,
    row_length: int = 512,
    rows_per_batch: int = 8,
    batch_tokens: int | None = None,
    compute_dtype=jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    title: str = "scoring",
    beat: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Scores every continuation of every request.

    The result depends neither on the order of the requests nor on `row_length` or
    `rows_per_batch`. A request longer than `row_length` gets longer rows; only one whose context
    and longest continuation pass `config.max_seq_len` loses context, on the left, and is counted.

    Args:
        params: nested dict of arrays (DESIGN section 3).
        config: the model's sizes.
        requests: contexts (with BOS) and continuations; neither may be empty.
        row_length: tokens a row; five requests' worth and more waste little.
        rows_per_batch: rows a call of the model; of longer rows as many as hold no more tokens.
        batch_tokens: tokens a call, instead of `rows_per_batch`; one row may hold more.
        compute_dtype: dtype of the forward pass; log-softmax is float32 in any case.
        mesh: devices the parameters lie on; None for one device. Rows are then spread over its
            data and fsdp axes.
        title: words for the progress bar.
        beat: called after each batch.

    Returns:
        One `Score` a request, in their order.

    Raises:
        ValueError: for an empty context or continuation, or a continuation of `max_seq_len` tokens.
    """
    if batch_tokens is not None:
        rows_per_batch = max(1, batch_tokens // max(1, row_length))
    _check_sizes(row_length, rows_per_batch)
    if not requests:
        return []
    pieces, truncated = _make_pieces(requests, row_length, config.max_seq_len)
    if any(truncated):
        _log.warning(
            "scoring: %d of %d requests were longer than %d tokens and lost %d tokens of context.",
            np.count_nonzero(truncated), len(requests), config.max_seq_len, sum(truncated),
        )  # fmt: skip
    log_probs = [np.zeros(len(r.continuations)) for r in requests]
    greedy = [np.ones(len(r.continuations), bool) for r in requests]
    batches = list(_make_batches(pieces, row_length, rows_per_batch, _row_divisor(mesh)))
    with progress(
        title, total=sum(b.num_tokens for b in batches), unit="tokens", shown=leads()
    ) as bar:
        for batch in batches:
            token_scores, token_greedy = _run_batch(params, config, batch, compute_dtype, mesh)
            for place, slot, request, number in batch.owners:
                log_probs[request][number] += token_scores[place, slot]
                greedy[request][number] &= token_greedy[place, slot]
            bar.update(batch.num_tokens)
            beat()
    return [Score(*parts) for parts in zip(log_probs, greedy, truncated, strict=True)]


def score_rolling(
    params: dict,
    config: LlamaConfig,
    token_lists: Sequence[Sequence[int]],
    *,
    prefix_id: int,
    window: int,
    **options,
) -> np.ndarray:
    """Sums the negative log-likelihood of whole texts, however long.

    Args:
        token_lists: token ids of the texts, without BOS.
        prefix_id: what stands before the first token (BOS).
        window: tokens the model sees at most at once.
        **options: as for `score`.

    Returns:
        [texts] float64, in nats.
    """
    requests, owners = rolling_requests(token_lists, prefix_id=prefix_id, window=window)
    scores = score(params, config, requests, **options)
    return sum_rolling(scores, owners, len(token_lists))


def rolling_requests(
    token_lists: Sequence[Sequence[int]], *, prefix_id: int, window: int
) -> tuple[list[Request], list[int]]:
    """Cuts texts into requests that predict each token once, as lm-eval's loglikelihood_rolling.

    Returns:
        The requests, and for each the number of the text it belongs to.
    """
    requests, owners = [], []
    for number, tokens in enumerate(token_lists):
        for context, continuation in rolling_windows(tokens, prefix_id=prefix_id, window=window):
            requests.append(Request(context, [continuation]))
            owners.append(number)
    return requests, owners


def sum_rolling(scores: Sequence[Score], owners: Sequence[int], num_texts: int) -> np.ndarray:
    """Adds the scores of `rolling_requests` up to [texts] float64 negative log-likelihoods."""
    totals = np.zeros(num_texts)
    for result, number in zip(scores, owners, strict=True):
        totals[number] -= result.log_probs[0]
    return totals


def rolling_windows(
    tokens: Sequence[int], *, prefix_id: int, window: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts one text into (context, continuation) pairs that predict each token exactly once.

    Every window but the last predicts `window` tokens behind one token of context; the last one
    ends with the text and so keeps as much context as the window allows. The same windows as
    `lm_eval.utils.get_rolling_token_windows` with context_len=1, already made disjoint.

        >>> list(rolling_windows([11, 12, 13, 14, 15, 16], prefix_id=1, window=4))
        [([1], [11, 12, 13, 14]), ([12, 13, 14], [15, 16])]
    """
    if window < 1:
        raise ValueError(f"window: must be at least 1 token, got {window}.")
    tokens = list(tokens)
    for start in range(0, len(tokens), window):
        end = min(start + window, len(tokens))
        if start == 0:
            yield [prefix_id], tokens[:end]
        else:
            yield tokens[end - window - 1 : start], tokens[start:end]


def _check_sizes(row_length: int, rows_per_batch: int) -> None:
    for name, value in (("row_length", row_length), ("rows_per_batch", rows_per_batch)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}.")


def _make_pieces(requests, row_length: int, max_seq_len: int) -> tuple[list[_Piece], list[int]]:
    """Splits requests into stretches that fit a row; cuts contexts too long for the model."""
    row_limit = max(row_length, max_seq_len)
    pieces, truncated = [], []
    for number, request in enumerate(requests):
        context, cut = _cut_context(number, request, max_seq_len)
        truncated.append(cut)
        taken, room = [], row_limit - len(context)
        for which, ids in enumerate(request.continuations):
            if taken and len(ids) - 1 > room:
                pieces.append(_make_piece(number, context, taken, request))
                taken, room = [], row_limit - len(context)
            taken.append(which)
            room -= len(ids) - 1
        pieces.append(_make_piece(number, context, taken, request))
    return pieces, truncated


def _cut_context(number: int, request: Request, max_seq_len: int) -> tuple[tuple[int, ...], int]:
    """Returns the context that leaves room for the longest continuation, and how much it lost."""
    if not len(request.context_ids) or not len(request.continuations):
        raise ValueError(f"request {number}: needs a context and a continuation, got {request}.")
    longest = max(len(ids) for ids in request.continuations)
    if min(len(ids) for ids in request.continuations) == 0:
        raise ValueError(f"request {number}: no continuation may be empty, got {request}.")
    if longest > max_seq_len:
        raise ValueError(
            f"request {number}: a continuation must be at most max_seq_len ({max_seq_len}) tokens,"
            f" got {longest}; score it in windows (score_rolling)."
        )
    # The last token of a continuation is predicted but never read, so it needs no position.
    keep = max_seq_len - (longest - 1)
    cut = max(0, len(request.context_ids) - keep)
    return tuple(request.context_ids[cut:]), cut


def _make_piece(number, context, taken, request) -> _Piece:
    chosen = tuple(tuple(request.continuations[which]) for which in taken)
    return _Piece(number, context, tuple(taken), chosen)


def _pack_best_fit(pieces: Sequence[_Piece], row_length: int) -> list[list[_Piece]]:
    """Fills rows, longest piece first, each into the fullest row that still takes it."""
    rows: list[list[_Piece]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row number), sorted
    for piece in sorted(pieces, key=lambda p: (-p.length, p.request, p.numbers)):
        at = bisect.bisect_left(rooms, (piece.length, -1))
        if at == len(rooms):
            rows.append([])
            room, row = row_length, len(rows) - 1
        else:
            room, row = rooms.pop(at)
        rows[row].append(piece)
        bisect.insort(rooms, (room - piece.length, row))
    return rows


def _make_batches(pieces, row_length, rows_per_batch, divisor) -> Iterator[_Batch]:
    """Yields batches of ordinary rows, then of rows 2, 4, 8, ... times as long.

    A program is compiled for each length: doubled lengths are few, and a piece fills half its row
    at least. All lengths' batches hold about as many tokens.
    """
    slots = max((len(p.continuations) for p in pieces), default=1)
    slots = -(-slots // _TARGETS_MULTIPLE) * _TARGETS_MULTIPLE
    longest = max((p.length for p in pieces), default=row_length)
    longest = -(-longest // row_length) * row_length
    groups: dict[int, list[_Piece]] = {}
    for piece in pieces:
        doublings = (-(-piece.length // row_length) - 1).bit_length()
        groups.setdefault(min(row_length << doublings, longest), []).append(piece)
    for length, group in sorted(groups.items()):
        count = max(1, rows_per_batch * row_length // length)
        rows = _pack_best_fit(group, length)
        count = -(-count // divisor) * divisor
        for start in range(0, len(rows), count):
            batch_rows = rows[start : start + count]
            # The last batch is only as high as it must be: a second program, but no empty rows.
            height = -(-len(batch_rows) // divisor) * divisor
            yield _lay_batch(batch_rows, height, length, slots)


def _lay_piece(piece: _Piece) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Lays one piece out.

    Returns:
        [3, length] int32 tokens, positions and branch ids, and what is predicted from where, as
        (offset in the piece, target slot, token, number of the continuation).
    """
    depth = len(piece.context)
    columns = [(token, position, 0) for position, token in enumerate(piece.context)]
    predictions = []
    for slot, (number, ids) in enumerate(zip(piece.numbers, piece.continuations, strict=True)):
        # Several continuations are predicted from the last token of the context: a slot each.
        predictions.append((depth - 1, slot, ids[0], number))
        for i, token in enumerate(ids[:-1]):
            predictions.append((len(columns), 0, ids[i + 1], number))
            columns.append((token, depth + i, slot + 1))
    return np.array(columns, np.int32).T, predictions


def _lay_batch(rows: list[list[_Piece]], height: int, length: int, slots: int) -> _Batch:
    arrays = np.zeros((4, height, length), np.int32)
    predictors = np.zeros(height * length, np.int32)
    targets = np.zeros((height * length, slots), np.int32)
    owners, places, num_tokens = [], {}, 0
    for r, row in enumerate(rows):
        start = 0
        for segment, piece in enumerate(row, start=1):
            columns, predictions = _lay_piece(piece)
            end = start + piece.length
            assert end <= length, f"a row of {length} tokens was filled with {end}"
            arrays[:3, r, start:end] = columns
            arrays[3, r, start:end] = segment
            for offset, slot, token, number in predictions:
                position = r * length + start + offset
                place = places.setdefault(position, len(places))
                predictors[place], targets[place, slot] = position, token
                owners.append((place, slot, piece.request, number))
            start = end
            num_tokens += piece.length
    tokens, positions, branch_ids, segment_ids = arrays
    rows = {"tokens": tokens, "positions": positions, "segment_ids": segment_ids}
    rows["branch_ids"] = branch_ids
    return _Batch(rows, predictors, targets, len(places), owners, num_tokens)


def _row_divisor(mesh) -> int:
    """Returns what the number of rows must be a multiple of: the devices that share them."""
    axes = sharding.ACTIVATION_AXES["batch"]
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


def _run_batch(params, config, batch: _Batch, compute_dtype, mesh) -> tuple[np.ndarray, np.ndarray]:
    rows, picks = batch.rows, (batch.predictors, batch.targets, np.int32(batch.num_predictors))
    dtype = jnp.dtype(compute_dtype)
    if mesh is None:
        results = _score_rows(params, config, rows, picks, dtype)
    else:
        mine = sharding.local_rows(mesh, len(rows["tokens"]))
        rows = sharding.place_batch({name: array[mine] for name, array in rows.items()}, mesh)
        with jax.set_mesh(mesh):
            results = _score_rows(params, config, rows, picks, dtype)
    return sharding.read_whole(results, mesh)


@functools.partial(jax.jit, static_argnames=("config", "compute_dtype"))
def _score_rows(params, config, rows, picks, compute_dtype):
    """Returns [rows * length, slots] log-probability and greediness of every target."""
    predictors, targets, num_predictors = picks
    hidden = llama.hidden_states(params, config, **rows, compute_dtype=compute_dtype)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    size = min(_PROJECTED_AT_ONCE, len(predictors))

    def score_chunk(number, results):
        # The last chunk slides back instead of running over: some positions are scored twice.
        start = jnp.minimum(number * size, len(predictors) - size)
        at = jax.lax.dynamic_slice_in_dim(predictors, start, size)
        wanted = jax.lax.dynamic_slice_in_dim(targets, start, size)
        logits = llama.project_logits(params, config, hidden[at]).astype(jnp.float32)
        picked = jnp.take_along_axis(logits, wanted, axis=-1)
        found = (
            picked - jax.nn.logsumexp(logits, axis=-1, keepdims=True),
            wanted == jnp.argmax(logits, axis=-1, keepdims=True),
        )
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=0)
            for old, new in zip(results, found, strict=True)
        )

    empty = jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, bool)
    return jax.lax.fori_loop(0, -(-num_predictors // size), score_chunk, empty)
