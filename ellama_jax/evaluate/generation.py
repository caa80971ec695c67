"""Owns writing text: prompts into batches of few shapes, stop strings, what each prompt came to.

The device's part, cache and loop, is `decoding`'s. Tasks and their texts belong to lm-eval.

Neither order nor neighbours change what a prompt comes to: padding is seen by nothing, and a drawn
token depends on the seed, the prompt and how many tokens stand before it, never on the batch.
"""

import collections
import contextlib
import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.core import sharding
from ellama_jax.core.progress import progress
from ellama_jax.evaluate import decoding
from ellama_jax.model.presets import LlamaConfig

_log = logging.getLogger(__name__)

# Stop strings are looked for in text, on the host, after every so many tokens: at most so many are
# written in vain, and a step is not slowed by waiting for the host.
_TOKENS_BETWEEN_LOOKS = 16
_LEAST_WIDTH = 32  # of prompts, in slots; shorter ones share a program
_LEAST_NEW = 16  # slots for new tokens, likewise


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Names what is to be continued, and how.

    Attributes:
        ids: token ids, BOS included.
        max_new_tokens: the most tokens to write.
        stops: the text ends before the first of these strings.
        temperature: divides logits before a token is drawn; 0 takes the most probable token.
        top_p: tokens are drawn from the fewest that have this share of probability together.
        top_k: and from so many at most; 0 is no limit.
    """

    ids: Sequence[int]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclasses.dataclass(frozen=True)
class Written:
    """Holds what one prompt came to.

    Attributes:
        ids: the tokens written, without the one that ended the text.
        text: decoded, up to the first stop string.
        ended_by: "end" (a token that ends texts), "stop" (a string) or "length".
        truncated_tokens: tokens of the prompt that were cut off on the left.
    """

    ids: list[int]
    text: str
    ended_by: str
    truncated_tokens: int


def generate(
    params: dict,
    config: LlamaConfig,
    prompts: Sequence[Prompt],
    *,
    decode: Callable[[Sequence[int]], str],
    end_ids: Sequence[int],
    seed: int = 0,
    batch_tokens: int = 8192,
    compute_dtype=jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    title: str = "generating",
) -> list[Written]:
    """Continues every prompt.

    Args:
        params: nested dict of arrays (DESIGN section 3).
        config: the model's sizes.
        prompts: what to continue; a prompt that leaves no room for `max_new_tokens` loses tokens on
            the left, as in lm-eval, and is counted.
        decode: token ids to text.
        end_ids: tokens that end a text.
        seed: of the draws; two prompts that are equal in everything draw differently.
        batch_tokens: slots of the cache at most, prompts and new tokens of all rows together; one
            row may have more.
        compute_dtype: dtype of activations and cache; logits are float32 in any case.
        mesh: devices the parameters lie on; None for one device.
        title: words for the progress bar.

    Returns:
        One `Written` a prompt, in their order.

    Raises:
        ValueError: for an empty prompt, a number out of range, or `max_new_tokens` that leave no
            room for a prompt.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: must be at least 1, got {batch_tokens}.")
    kept = [_keep_right(number, p, config.max_seq_len) for number, p in enumerate(prompts)]
    lost = [len(p.ids) - len(ids) for p, ids in zip(prompts, kept, strict=True)]
    if any(lost):
        _log.warning(
            "generation: %d of %d prompts were longer than %d tokens less those to write, and lost "
            "%d tokens on the left.",
            np.count_nonzero(lost), len(prompts), config.max_seq_len, sum(lost),
        )  # fmt: skip
    divisor = 1
    if mesh is not None:
        mesh = decoding.fold_context(mesh)
        params = decoding.place_params(params, config, mesh)
        divisor = math.prod(mesh.shape[axis] for axis in sharding.ACTIVATION_AXES["batch"])
    streams = _number_streams(prompts, kept)
    ends = np.array(sorted(set(end_ids)) or [-1], np.int32)
    written: list[Written | None] = [None] * len(prompts)
    with progress(title, total=len(prompts), unit="prompts") as bar:
        for batch in _make_batches(prompts, kept, batch_tokens, divisor):
            run = _Run(params, config, batch, ends, seed, compute_dtype, mesh)
            run.place(prompts, kept, streams)
            for number, ids, ended in run.write(prompts, decode, frozenset(end_ids)):
                text = decode(ids)
                cut = cut_at_stops(text, prompts[number].stops)
                ended = "stop" if cut != text else ended
                written[number] = Written(ids, cut, ended, lost[number])
            bar.update(len(batch.numbers))
    return written


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Cuts a text before each of the strings in turn, as lm-eval does; empty strings cut nothing.

    >>> cut_at_stops("4 apples\\n\\nQ: and", ["Q:", "\\n\\n", ""])
    '4 apples'
    """
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


def bucket(size: int, least: int) -> int:
    """Rounds up to one of few sizes: `least` times 1, 1.5, 2, 3, 4, 6, 8, ...

    >>> [bucket(size, 32) for size in (1, 33, 50, 97, 200)]
    [32, 48, 64, 128, 256]
    """
    power = least
    while power < size:
        power *= 2
    middle = power * 3 // 4
    return middle if power > least and size <= middle else power


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Numbers of prompts that are run together, and the shapes they are run in."""

    numbers: list[int]
    rows: int
    width: int
    num_new: int


def _keep_right(number: int, prompt: Prompt, max_seq_len: int) -> tuple[int, ...]:
    if not len(prompt.ids):
        raise ValueError(f"prompt {number}: must have at least one token, got none.")
    for name, ok in (
        ("max_new_tokens", prompt.max_new_tokens >= 1),
        ("temperature", prompt.temperature >= 0),
        ("top_p", 0 < prompt.top_p <= 1),
        ("top_k", prompt.top_k >= 0),
    ):
        if not ok:
            rule = {"max_new_tokens": "at least 1", "top_p": "above 0 and at most 1"}
            said = rule.get(name, "at least 0")
            raise ValueError(f"{name}: must be {said}, got {getattr(prompt, name)}.")
    room = max_seq_len - prompt.max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens: must be below the model's max_seq_len ({max_seq_len}), got "
            f"{prompt.max_new_tokens}."
        )
    return tuple(prompt.ids[-room:])


def _number_streams(prompts: Sequence[Prompt], kept: Sequence[tuple[int, ...]]) -> list[int]:
    """Gives every prompt its stream of random numbers, from its tokens and its copies before it."""
    copies, streams = collections.Counter(), []
    for prompt, ids in zip(prompts, kept, strict=True):
        key = (ids, prompt.temperature, prompt.top_p, prompt.top_k)
        text = f"{ids} {copies[key]}".encode()
        copies[key] += 1
        streams.append(int.from_bytes(hashlib.sha256(text).digest()[:4], "big"))
    return streams


def _make_batches(prompts, kept, batch_tokens: int, divisor: int) -> Iterator[_Batch]:
    """Yields batches, longest prompts first, those with as many tokens to write together."""
    groups = collections.defaultdict(list)
    for number, prompt in enumerate(prompts):
        groups[bucket(prompt.max_new_tokens, _LEAST_NEW)].append(number)
    for num_new, numbers in sorted(groups.items()):
        numbers.sort(key=lambda number: (-len(kept[number]), kept[number], number))
        while numbers:
            width = bucket(len(kept[numbers[0]]), _LEAST_WIDTH)
            # Powers of two, so that a last, smaller batch rarely needs a program of its own.
            limit = 1 << (max(1, batch_tokens // (width + num_new)).bit_length() - 1)
            limit = -(-limit // divisor) * divisor
            taken, numbers = numbers[:limit], numbers[limit:]
            rows = 1 << (len(taken) - 1).bit_length()
            yield _Batch(taken, -(-min(rows, limit) // divisor) * divisor, width, num_new)


class _Run:
    """One batch on the device, from its prompts to the tokens of each row."""

    def __init__(self, params, config, batch, ends, seed, compute_dtype, mesh):
        self._params, self._config, self._batch, self._mesh = params, config, batch, mesh
        self._ends, self._seed, self._dtype = ends, seed, jnp.dtype(compute_dtype)

    def place(self, prompts, kept, streams) -> None:
        """Lays the prompts out, each at the end of its row; rows to spare write nothing."""
        rows, width = self._batch.rows, self._batch.width
        tokens, columns = np.zeros((rows, width), np.int32), collections.defaultdict(list)
        for row, number in enumerate(self._batch.numbers):
            prompt, ids = prompts[number], kept[number]
            tokens[row, width - len(ids) :] = ids
            values = (len(ids), prompt.max_new_tokens, prompt.temperature, prompt.top_p,
                      prompt.top_k, streams[number])  # fmt: skip
            for name, value in zip(_COLUMNS, values, strict=True):
                columns[name].append(value)
        spare = rows - len(self._batch.numbers)
        arrays = {
            name: np.array(columns[name] + [filler] * spare, dtype)
            for name, (filler, dtype) in _COLUMNS.items()
        }
        self.sampled = bool((arrays["temperature"] > 0).any())
        self._tokens, self._lengths, self._limits = (
            self._put(x) for x in (tokens, arrays["length"], arrays["limit"])
        )
        self._sampling = decoding.Sampling(
            *(self._put(arrays[name]) for name in ("temperature", "top_p", "top_k", "stream")),
            seed=np.uint32(self._seed % 2**32),
        )

    def write(self, prompts, decode, end_ids) -> list[tuple[int, list[int], str]]:
        """Runs the batch; returns (number of the prompt, its tokens, what ended them) a row."""
        numbers, num_new = self._batch.numbers, self._batch.num_new
        settings = (self._lengths, self._limits, self._ends, self._sampling)
        stopped = np.zeros(self._batch.rows, bool)
        any_stops = any(any(prompts[number].stops) for number in numbers)
        stride = _TOKENS_BETWEEN_LOOKS if any_stops else num_new
        with self._on_mesh():
            state = decoding.start(
                self._params, self._config, self._tokens, *settings, num_new=num_new,
                compute_dtype=self._dtype, sampled=self.sampled,
            )  # fmt: skip
            while True:
                so_far = state.step, state.done, state.written, state.counts
                step, done, rows, counts = sharding.read_whole(so_far, self._mesh)
                if any_stops:
                    stopped |= self._find_stops(prompts, decode, rows, counts, stopped, done)
                if (done | stopped).all() or step >= num_new:
                    break
                state = decoding.advance(
                    self._params, self._config, state, self._put(stopped),
                    np.int32(min(step + stride, num_new)), *settings, sampled=self.sampled,
                )  # fmt: skip
        results = []
        for row, number in enumerate(numbers):
            ids, ended = rows[row, : counts[row]].tolist(), "length"
            if ids and ids[-1] in end_ids:
                ids, ended = ids[:-1], "end"
            results.append((number, ids, ended))
        return results

    def _find_stops(self, prompts, decode, rows, counts, stopped, done) -> np.ndarray:
        """Tells which rows that still ran hold a stop string by now."""
        found = np.zeros_like(stopped)
        for row, number in enumerate(self._batch.numbers):
            stops = [stop for stop in prompts[number].stops if stop]
            if stops and not stopped[row] and not done[row]:
                text = decode(rows[row, : counts[row]].tolist())
                found[row] = any(stop in text for stop in stops)
        return found

    def _put(self, array):
        if self._mesh is None:
            return array
        dims = ("batch", "embed")[: array.ndim]  # one slot at a time: the length is not divided
        spec = sharding.partition_spec(
            dims, array.shape, self._mesh.shape, sharding.ACTIVATION_AXES, "prompts"
        )
        # Every process has all prompts, and gives its devices theirs.
        return jax.make_array_from_callback(
            array.shape, jax.sharding.NamedSharding(self._mesh, spec), lambda index: array[index]
        )

    def _on_mesh(self):
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


# What a row that holds no prompt says of itself, by the name of what every row says.
_COLUMNS = {
    "length": (1, np.int32),
    "limit": (0, np.int32),
    "temperature": (0.0, np.float32),
    "top_p": (1.0, np.float32),
    "top_k": (0, np.int32),
    "stream": (0, np.uint32),
}
