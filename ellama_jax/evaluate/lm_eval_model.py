"""Owns the model `ellama` of lm-evaluation-harness: its requests in, scores and texts out.

lm-eval (arXiv 2405.14782) owns tasks, prompts, metrics and results. Tokens and truncation follow
its own Hugging Face backend, so that the two give the same numbers; the device's work is `scorer`'s
and `generation`'s. lm-eval 0.4 finds no models of other packages, so that its command line is started
with this one known to it (or use `ellama evaluate`, see `lm_eval_run`):

    python -m ellama_jax.evaluate --model ellama --model_args checkpoint=runs/a --tasks arc_easy
"""

import dataclasses
import logging
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
)

from ellama_jax.core import sharding
from ellama_jax.core.paths import as_path
from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.evaluate import generation, scorer
from ellama_jax.evaluate.prompt_tokenizer import PromptTokenizer
from ellama_jax.model import llama
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.tokenizer import check_fits, load_tokenizer
from ellama_jax.weights import checkpoint as checkpoints
from ellama_jax.weights import huggingface

_log = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 4096
# Contexts between two writes to the cache of responses, where there is one.
_CONTEXTS_A_PART = 2048
# Settings of generation that other backends know and that change nothing at these values.
_NEUTRAL = {
    "num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "min_length": 0, "min_p": 0.0,
    "early_stopping": None, "use_cache": True, "num_return_sequences": 1, "typical_p": 1.0,
}  # fmt: skip


class LoadedModel(NamedTuple):
    """A model in memory: what `EllamaLM` needs of it, from a checkpoint or from a run."""

    params: dict
    config: LlamaConfig
    tokenizer_dir: Path
    mesh: jax.sharding.Mesh | None
    origin: dict


@register_model("ellama")
class EllamaLM(TemplateLM):
    """A Llama of ours as lm-eval sees it."""

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        pretrained: str | None = None,
        loaded: LoadedModel | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        row_length: int = 512,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        data: int = 1,
        fsdp: int = 1,
        context: int = 1,
        tensor: int = 1,
        chat_template_args: dict | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """Loads a model, or takes one from memory.

        Args:
            checkpoint: an Orbax root or step, or a Hugging Face directory; `pretrained` is the same.
            loaded: a model in memory instead; `dtype` and the mesh are then its own concern.
            dtype: float32 or bfloat16, of weights and arithmetic; auto is float32 on a CPU and
                bfloat16 elsewhere.
            max_length: tokens of context and continuation, by default all that the model takes.
            batch_tokens: tokens a call of the model, and slots of the cache that generation uses.
            row_length: tokens of a packed row, see `scorer`.
            add_bos_token: None leaves it to tokenizer.json, as lm-eval's `hf` does.
            prefix_token_id: what stands before a text without context, by default BOS or else EOS.
            seed: of tokens that are drawn.
            data, fsdp, context, tensor: sizes of the mesh; one may be -1, "all remaining devices".
            chat_template_args: passed to the chat template.
            batch_size, max_batch_size, device: of lm-eval's command line; `batch_tokens` and the
                mesh stand for them.
        """
        super().__init__()
        # lm-eval would fork processes for its bootstrap, and a fork beside JAX's threads may hang.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        for name, value in (("batch_tokens", batch_tokens), ("row_length", row_length)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}.")
        checkpoint = checkpoint or pretrained
        if (checkpoint is None) == (loaded is None):
            raise ValueError("checkpoint: must name a checkpoint or Hugging Face directory.")
        if loaded is None:
            sizes = {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
            loaded = load(checkpoint, dtype=dtype, mesh=_make_mesh(sizes))
        self._params, config, tokenizer_dir, self._mesh, self.origin = loaded
        self.tokenizer = PromptTokenizer(tokenizer_dir)
        if max_length is not None and not 1 < max_length <= config.max_seq_len:
            raise ValueError(
                f"max_length: must be above 1 and at most max_seq_len ({config.max_seq_len}), got "
                f"{max_length}."
            )
        self.max_length = max_length or config.max_seq_len
        self._config = dataclasses.replace(config, max_seq_len=self.max_length)
        self._dtype = jnp.dtype(_resolve_dtype(dtype))
        self._batch_tokens, self._row_length = batch_tokens, min(row_length, batch_tokens)
        self._add_bos_token, self._prefix_token_id = add_bos_token, prefix_token_id
        self._seed = seed
        self._chat_template_args = chat_template_args or {}
        self.truncated_requests = 0

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def max_gen_toks(self) -> int:
        """Tokens to write where a task names no number."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the keys of lm-eval's cache of requests."""
        return f"ellama-{self.tokenizer.fingerprint[:16]}"

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """Lays out a chat; a template that refuses a system message gets the chat without it."""
        settings = {"add_generation_prompt": add_generation_prompt, **self._chat_template_args}
        try:
            return self.tokenizer.apply_chat_template(chat_history, **settings)
        except ValueError:
            spoken = [message for message in chat_history if message["role"] != "system"]
            if len(spoken) == len(chat_history):
                raise
            _log.warning("the chat template takes no system message; it is left out.")
            return self.tokenizer.apply_chat_template(spoken, **settings)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs):
        """Returns the ids of a text, with BOS where lm-eval's Hugging Face backend has it."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        if add_special_tokens is None and has_bos_prefix(string, prefix):
            add_special_tokens = False
        return self._encode(string, add_special_tokens)

    def _encode(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None and self._add_bos_token and self.tokenizer.bos_token:
            return [self.tokenizer.bos_token_id, *self.tokenizer.encode(string, False)]
        asked = self._add_bos_token if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, True if asked is None else asked)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Scores (context, continuation) pairs of texts."""
        for request in requests:
            context, continuation = request.args
            if not continuation:
                raise ValueError(
                    f"continuation: must not be empty, got {continuation!r} after a context that "
                    f"ends {context[-60:]!r}; the task has an empty choice."
                )
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
        """Scores (texts, context ids, continuation ids); equal contexts are computed once."""
        groups: dict[tuple, list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            self._check_lengths(texts, context, continuation)
            # A pair that must lose context loses what it alone must: it shares with none.
            fits = len(context) + len(continuation) <= self.max_length + 1
            groups.setdefault((tuple(context), None if fits else number), []).append(number)
        results: list = [None] * len(requests)
        for part in self._parts(list(groups.items())):
            scored = [
                scorer.Request(context, [requests[number][2] for number in members])
                for (context, _), members in part
            ]
            for score, (_, members) in zip(self._score(scored), part, strict=True):
                for place, number in enumerate(members):
                    answer = float(score.log_probs[place]), bool(score.greedy[place])
                    results[number] = answer
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        return results

    def _check_lengths(self, texts, context, continuation) -> None:
        if not len(continuation):
            raise ValueError(
                f"continuation: must have a token of its own, got {texts[1]!r} after a context that "
                f"ends {texts[0][-60:]!r}, whose tokens are the context's."
            )
        if len(continuation) > self.max_length:
            raise ValueError(
                f"continuation: must be at most {self.max_length} tokens long, got "
                f"{len(continuation)}: {texts[1][:60]!r}."
            )

    def _parts(self, groups: list) -> list[list]:
        size = _CONTEXTS_A_PART if self.cache_hook.dbdict is not None else max(1, len(groups))
        return [groups[start : start + size] for start in range(0, len(groups), size)]

    def _score(self, requests: list[scorer.Request]) -> list[scorer.Score]:
        scores = scorer.score(
            self._params, self._config, requests, row_length=self._row_length,
            batch_tokens=self._batch_tokens, compute_dtype=self._dtype, mesh=self._mesh,
        )  # fmt: skip
        self.truncated_requests += sum(score.truncated_tokens > 0 for score in scores)
        return scores

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Scores whole texts in windows of the model's length."""
        texts = [request.args[0] for request in requests]
        windows, owners = scorer.rolling_requests(
            [self.tok_encode(text) for text in texts],
            prefix_id=self.prefix_token_id, window=self.max_length,
        )  # fmt: skip
        totals = scorer.sum_rolling(self._score(windows), owners, len(texts))
        results = [-float(nats) for nats in totals]
        for text, result in zip(texts, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result)
        return results

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Continues each context until one of its stop strings."""
        prompts = [self._make_prompt(*request.args) for request in requests]
        written = generation.generate(
            self._params, self._config, prompts,
            decode=lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True),
            end_ids=self.tokenizer.end_ids, seed=self._seed, batch_tokens=self._batch_tokens,
            compute_dtype=self._dtype, mesh=self._mesh,
        )  # fmt: skip
        self.truncated_requests += sum(result.truncated_tokens > 0 for result in written)
        for request, result in zip(requests, written, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, result.text)
        return [result.text for result in written]

    def _make_prompt(self, context: str, settings: dict) -> generation.Prompt:
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        eos = self.tokenizer.decode(self.eot_token_id)
        stops = handle_stop_sequences(settings.pop("until", None), eos=eos)
        sampled = settings.pop("do_sample")
        temperature = settings.pop("temperature", 0.0) if sampled else 0.0
        settings.pop("temperature", None)
        # Where a task names none, those of the model's own configuration, else transformers'.
        defaults = {"top_p": 1.0, "top_k": 50, **self.tokenizer.sampling}
        top_p, top_k = (settings.pop(name, defaults[name]) for name in ("top_p", "top_k"))
        most = settings.pop("max_gen_toks")
        known = has_bos_prefix(context, self.tokenizer.bos_token)
        ids = self._encode(context, False if known else None) or [self.prefix_token_id]
        if "max_length" in settings:
            most = max(1, settings.pop("max_length") - len(ids))
        odd = {k: v for k, v in settings.items() if v != _NEUTRAL.get(k, v if v is None else ...)}
        if odd:
            raise ValueError(
                "generation_kwargs: must be among until, max_gen_toks, do_sample, temperature, "
                f"top_p and top_k, got {odd}."
            )
        return generation.Prompt(ids, most, tuple(stops), temperature, top_p, top_k or 0)

    def get_model_info(self) -> dict:
        """Says what was evaluated, for lm-eval's results."""
        return {
            "model_num_parameters": llama.count_params(self._config),
            "model_dtype": self._dtype.name,
            "model_revision": str(self.origin.get("step", "")),
            "model_sha": "",
            "model_origin": self.origin,
        }


def load(path: str, *, dtype: str = "auto", mesh: jax.sharding.Mesh | None = None) -> LoadedModel:
    """Loads an Orbax root or step, or a Hugging Face directory, its weights in `dtype`.

    They are cast once, and not in every call: the arithmetic would cast them to it anyway.
    """
    where, wanted = as_path(path), jnp.dtype(_resolve_dtype(dtype))
    if (where / "config.json").is_file():
        config, tokenizer_dir = huggingface.read_config(where), where
        flat = flatten_paths(huggingface.load_params(where, config, mesh))
        for name in flat:  # one leaf at a time, so that only one is held twice
            flat[name] = flat[name].astype(wanted)
        params, origin = unflatten_paths(flat), {"provenance": {"kind": "huggingface"}}
    else:
        info = checkpoints.find_checkpoint(where)
        config, tokenizer_dir = info.config, info.tokenizer_dir
        params = checkpoints.restore_params(info.path, dtype=wanted, mesh=mesh)
        origin = {"step": info.step, "provenance": info.meta["provenance"]}
    check_fits(load_tokenizer(tokenizer_dir), config.vocab_size)
    return LoadedModel(params, config, tokenizer_dir, mesh, origin)


def _resolve_dtype(dtype: str) -> str:
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: must be auto, float32 or bfloat16, got {dtype}.")
    return dtype


def _make_mesh(sizes: dict[str, int]) -> jax.sharding.Mesh | None:
    if set(sizes.values()) == {1}:
        return None
    devices = jax.devices()
    known = [size for size in sizes.values() if size != -1]
    count = 1
    for size in known:
        count *= size
    return sharding.make_mesh(sizes, devices if len(known) < len(sizes) else devices[:count])
