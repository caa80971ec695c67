"""Which documents share a window: best-fit packing of whole documents.

Owns the assignment of documents to windows and the filling of these. It knows neither tokenizers
nor disks; tokens/windows.py frames documents and stores windows.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Marks padding in a window. Outside every vocabulary, for every id below it may be a token: id 0
# is "!" in the Llama 3 vocabulary, so 0 cannot mean padding.
PADDING = 0xFFFFFFFF

# Documents longer than this part of a window are packed longest first, see `_assign_windows`.
_LARGE_FRAC = 1 / 8


@dataclass(frozen=True)
class WindowPlan:
    """Which stretch of the tokens goes where; the stretches in the order of the windows.

    Attributes:
        window_of: [P] int64, ascending, the window of each stretch.
        starts, ends: [P] int64, the stretch in the documents laid end to end.
        num_windows: how many windows there are.
        window_length: tokens in a window.
    """

    window_of: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    num_windows: int
    window_length: int


def pack_documents(
    documents: Sequence[Sequence[int]], window_length: int, seed: int = 0
) -> np.ndarray:
    """Packs documents into windows, whole where they fit.

    Best fit: a document goes where it leaves the least room. One longer than a window is split
    into pieces of `window_length`; only its last piece shares a window with others. So a piece
    that does not end its document always fills its window, and a document's end is always
    visible in the tokens.

    Args:
        documents: ids of each document, BOS and EOS included where wanted.
        window_length: tokens in a window.
        seed: of the order of documents and of windows.

    Returns:
        [num_windows, window_length] uint32; unused places hold `PADDING`.

    Raises:
        ValueError: if `window_length` is below 2.

    >>> windows = pack_documents([[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]], window_length=4)
    >>> windows[windows == PADDING] = 0
    >>> sorted(sorted(window) for window in windows.tolist())
    [[0, 0, 4, 5], [1, 2, 3, 10], [6, 7, 8, 9]]
    """
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    if len(lengths) == 0:
        return np.empty((0, window_length), dtype=np.uint32)
    tokens = np.concatenate([np.asarray(document, dtype=np.uint32) for document in documents])
    return np.stack(list(fill_windows(tokens, plan_windows(lengths, window_length, seed))))


def plan_windows(
    lengths: np.ndarray,
    window_length: int,
    seed: int | Sequence[int],
    offsets: np.ndarray | None = None,
) -> WindowPlan:
    """Plans `pack_documents` from the documents' lengths alone.

    Args:
        lengths: [documents] int64, tokens of each.
        window_length: tokens in a window.
        seed: of the order of documents and of windows.
        offsets: [documents] int64, where each begins; by default they lie end to end.

    Raises:
        ValueError: if `window_length` is below 2.
    """
    if window_length < 2:
        raise ValueError(f"window_length: must be at least 2, got {window_length}.")
    rng = np.random.default_rng(seed)
    offsets = np.cumsum(lengths) - lengths if offsets is None else offsets
    pieces_of = -(-lengths // window_length)
    # Piece k of a document covers its tokens from k * window_length on.
    document = np.repeat(np.arange(len(lengths)), pieces_of)
    within = np.arange(len(document)) - np.repeat(np.cumsum(pieces_of) - pieces_of, pieces_of)
    starts = offsets[document] + within * window_length
    ends = np.minimum(starts + window_length, (offsets + lengths)[document])

    shuffled = rng.permutation(len(document))
    starts, ends = starts[shuffled], ends[shuffled]
    window, num_windows = _assign_windows(ends - starts, window_length)
    window = rng.permutation(num_windows)[window]
    # Within a window the order is random too: a run with a shorter seq_len cuts windows into
    # rows, and the long documents must not always come first.
    order = np.lexsort((rng.random(len(window)), window))
    return WindowPlan(window[order], starts[order], ends[order], num_windows, window_length)


def fill_windows(tokens: np.ndarray, plan: WindowPlan) -> Iterator[np.ndarray]:
    """Yields the planned windows, [window_length] uint32, from the documents laid end to end."""
    firsts = np.searchsorted(plan.window_of, np.arange(plan.num_windows + 1))
    for window in range(plan.num_windows):
        stretches = range(firsts[window], firsts[window + 1])
        filled = np.concatenate([tokens[plan.starts[s] : plan.ends[s]] for s in stretches])
        padding = np.full(plan.window_length - len(filled), PADDING, dtype=np.uint32)
        yield np.concatenate([filled, padding])


def _assign_windows(lengths: np.ndarray, window_length: int) -> tuple[np.ndarray, int]:
    """Gives each piece a window by best fit; returns their numbers and how many there are.

    Large pieces go first, longest first (best fit decreasing), for they decide the waste; small
    ones follow in the given random order and fill the gaps. Sorting these as well would put
    documents of one length, so often of one kind, together.
    """
    small = lengths <= window_length * _LARGE_FRAC
    order = np.lexsort((np.arange(len(lengths)), np.where(small, 0, -lengths)))
    open_windows: list[list[int]] = [[] for _ in range(window_length + 1)]  # by room left
    rooms: list[int] = []  # which of them are not empty, ascending
    assigned, num_windows = np.empty(len(lengths), dtype=np.int64), 0
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        tightest = bisect.bisect_left(rooms, length)
        if tightest == len(rooms):
            room, window, num_windows = window_length, num_windows, num_windows + 1
        else:
            room = rooms[tightest]
            window = open_windows[room].pop()
            if not open_windows[room]:
                del rooms[tightest]
        assigned[piece] = window
        left = room - length
        if left > 0:
            if not open_windows[left]:
                bisect.insort(rooms, left)
            open_windows[left].append(window)
    return assigned, num_windows
