"""Owns text to ids and back as a model is prompted: special tokens are read, chats are laid out.

`data.tokenizer` never lets a text become a special token, for documents are not instructions. Here
they are: "<|eot_id|>" in a chat is that token, as in transformers, which this follows without
needing it. Batches and models are no business of this module.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import as_path
from ellama_jax.tokens.tokenizer import CONFIG_FILE, TOKENIZER_FILE, load_tokenizer

_TEMPLATE_FILE = "chat_template.jinja"
# Marks where the message that is to be continued ends in a chat that is laid out.
# The space is gone again where the template trims messages; the message then ends trimmed.
_END_OF_MESSAGE = "<<end of the message to continue>>"


class PromptTokenizer:
    """What transformers' tokenizer of the same directory does, as far as lm-eval asks.

    Attributes:
        bos_token, eos_token: texts; BOS is None where the model has none.
        bos_token_id, eos_token_id: their ids.
        pad_token, pad_token_id: EOS, for nothing is padded with a token here.
        end_ids: every id that ends what the model writes, an end of turn too.
        chat_template: Jinja text, texts by name, or None.
        sampling: `top_p` and `top_k` where the model's generation_config.json names them.
        fingerprint: of the ids, see `data.tokenizer`.
    """

    def __init__(self, directory: str | os.PathLike):
        """Reads a tokenizer directory.

        Raises:
            ValueError: if there is none, or it is broken.
        """
        directory = as_path(directory)
        named = load_tokenizer(directory)
        content = (directory / TOKENIZER_FILE).read_text(encoding="utf-8")
        self._tokenizer = tokenizers.Tokenizer.from_str(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos_token_id, self.eos_token_id = named.bos_id, named.eos_id
        known = self._tokenizer.get_added_tokens_decoder()
        for number in {named.bos_id, named.eos_id} - {None, *known}:
            token = AddedToken(named.token(number), special=True, normalized=False)
            self._tokenizer.add_special_tokens([token])
        self.bos_token = None if named.bos_id is None else named.token(named.bos_id)
        self.eos_token = named.token(named.eos_id)
        self.pad_token, self.pad_token_id = self.eos_token, self.eos_token_id
        self.fingerprint = named.fingerprint
        config = _read_json(directory / CONFIG_FILE)
        generation = _read_json(directory / "generation_config.json")
        self.chat_template = _read_template(directory, config)
        self.end_ids = _read_end_ids(directory, generation) | {named.eos_id}
        self.sampling = {k: generation[k] for k in ("top_p", "top_k") if generation.get(k)}
        # A template may name any special token that the configuration does.
        self._names = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in config.items()
            if key.endswith("_token") and isinstance(value, str | dict)
        }
        self._names.update(bos_token=self.bos_token or "", eos_token=self.eos_token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of a text; by default with what the tokenizer itself puts around it."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int] | int, skip_special_tokens: bool = False) -> str:
        """Returns the text of ids, or of one."""
        ids = [ids] if isinstance(ids, int) else list(ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, chat: Sequence[dict], *, add_generation_prompt: bool = True, **settings
    ) -> str:
        """Lays a chat out as text.

        Args:
            chat: messages of `role` and `content`.
            add_generation_prompt: begin the model's answer; otherwise the last message is left
                open, for the model to continue it.
            **settings: what the template may ask for besides.

        Raises:
            ValueError: if there is no chat template, or it refuses the chat.
        """
        template = self.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            raise ValueError(
                f"chat template: the tokenizer must have one in {CONFIG_FILE} or {_TEMPLATE_FILE}, "
                "got none; is this a base model?"
            )
        chat = [dict(message) for message in chat]
        if not add_generation_prompt:
            chat[-1]["content"] += f"{_END_OF_MESSAGE} "
        text = _render(
            template, messages=chat, tools=None, documents=None,
            add_generation_prompt=add_generation_prompt, **(self._names | settings),
        )  # fmt: skip
        if add_generation_prompt:
            return text
        before, _, after = text.rpartition(_END_OF_MESSAGE)
        return before if after.startswith(" ") else before.rstrip()


def _read_json(path: Path) -> dict:
    return parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_template(directory: Path, config: dict) -> str | dict | None:
    path = directory / _TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template


def _read_end_ids(directory: Path, generation: dict) -> set[int]:
    found = generation.get("eos_token_id")
    if found is None:
        found = _read_json(directory / "config.json").get("eos_token_id")
    return set(found) if isinstance(found, list) else {found} - {None}


def _render(template: str, **values) -> str:
    """Runs a template with the settings and names that transformers gives it, in a sandbox."""
    import datetime

    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Lets `{% generation %}` pass: it marks the model's own words for training."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, indent=None, **settings):
        return json.dumps(value, ensure_ascii=False, indent=indent, **settings)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(**values)
    except jinja2.TemplateError as error:
        raise ValueError(f"chat template: must take the chat, got {error}.") from error
