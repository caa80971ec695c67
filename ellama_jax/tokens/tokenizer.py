"""The tokenizer of a model: text to ids and back, with the ids that begin and end a document.

Owns reading, writing, fingerprinting and (for the tiny model) training of `tokenizer.json`
directories. It does not know about windows or batches: BOS and EOS are only named here, and put
around documents by tokens/windows.py.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import as_path, check_links

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

# The special tokens of a tokenizer we train, under Llama 3's names.
BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"

# Where Hugging Face writes BOS and EOS, the most specific file first: as strings in the first
# two, as ids in the last two.
_FILES_WITH_NAMES = (CONFIG_FILE, "special_tokens_map.json")
_FILES_WITH_IDS = ("generation_config.json", "config.json")


class Tokenizer:
    """Text to token ids and back, where no text ever becomes a special token.

    Attributes:
        bos_id: the id that begins a document, or None where the model has none.
        eos_id: the id that ends a document.
        vocab_size: 1 + the largest id the tokenizer knows.
        fingerprint: sha256 over the content of tokenizer.json and the two ids. Equal
            fingerprints mean equal ids for every text.
    """

    def __init__(self, content: str, bos_id: int | None, eos_id: int):
        """Builds the tokenizer from the text of a tokenizer.json and the ids around documents.

        Raises:
            ValueError: if the content is not a tokenizer, an id is outside its vocabulary, or
                text could produce the id that ends documents.
        """
        self._tokenizer = _parse_tokenizer(content, {bos_id, eos_id} - {None})
        self.bos_id, self.eos_id = bos_id, eos_id
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        self.fingerprint = _fingerprint(content, bos_id, eos_id)
        self._check_special_ids()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        The name of a special token inside the text is ordinary text: a listing that says
        "<|end_of_text|>" must not end a document.
        """
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, on all cores; the same as `encode` one by one."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, special tokens by their names."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def encode_words(self, texts: Sequence[str]) -> list[list[tuple[int, ...]]]:
        """Returns the ids of each text as `encode_batch` does, cut where pre-tokenization cuts.

        No merge reaches over such a border, so the parts can be counted and re-merged one by one.
        """
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_cut_at_words(encoding.ids, encoding.word_ids) for encoding in encodings]

    def token(self, token_id: int) -> str:
        """Returns how the vocabulary writes a token, "" for an id that it lacks."""
        return self._tokenizer.id_to_token(token_id) or ""

    def special_tokens(self) -> dict[int, str]:
        """Returns the names of the special tokens by id; no text gives one of these ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id: added[token_id].content for token_id in sorted(added)
                if added[token_id].special}  # fmt: skip

    def _check_special_ids(self) -> None:
        for name, special_id in (("bos_id", self.bos_id), ("eos_id", self.eos_id)):
            if special_id is None and name == "bos_id":
                continue
            token = self._tokenizer.id_to_token(special_id)
            if token is None:
                size = self.vocab_size
                raise ValueError(
                    f"{name}: must be an id of the tokenizer ({size} ids), got {special_id}."
                )
            if special_id in self.encode(token):
                raise ValueError(
                    f"{name}: must never come out of text, got {special_id} for the text "
                    f"{token!r}; choose a token that is not an ordinary word."
                )


def load_tokenizer(tokenizer_dir: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a directory that we or Hugging Face wrote.

    Args:
        tokenizer_dir: holds tokenizer.json, and BOS and EOS in tokenizer_config.json,
            special_tokens_map.json, generation_config.json or config.json (in this order).

    Raises:
        ValueError: if a file is missing or broken, no file names the token that ends a text, or a
            link leads out of the directory.
    """
    directory = as_path(tokenizer_dir)
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise ValueError(
            f"tokenizer {directory}: must hold {TOKENIZER_FILE}, got {_listing(directory)}; pass "
            "the tokenizer directory of a checkpoint or of a Hugging Face model."
        )
    check_links(directory)
    try:
        content = _read_text(path)
        names = _parse_tokenizer(content, set())
        bos_id, eos_id = _find_special_ids(directory, names)
        return Tokenizer(content, bos_id, eos_id)
    except ValueError as error:
        raise ValueError(f"tokenizer {directory}: {error}") from error


def save_tokenizer(
    dst_dir: str | os.PathLike, tokenizer: tokenizers.Tokenizer, bos_id: int | None, eos_id: int
) -> None:
    """Writes a tokenizer that both `load_tokenizer` and transformers' AutoTokenizer read.

    Args:
        dst_dir: must not exist yet, or be empty.
        tokenizer: not changed; its BOS and EOS become special tokens in the copy on disk.
        bos_id: the id that begins a document, or None.
        eos_id: the id that ends a document.

    Raises:
        ValueError: if `dst_dir` is occupied or an id is not in the tokenizer.
    """
    dst = Path(dst_dir)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"tokenizer {dst}: must be a new or empty directory, got {_listing(dst)}.")
    special_ids = [i for i in (bos_id, eos_id) if i is not None]
    written = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    _mark_special(written, special_ids)
    content = json.dumps(parse_json(written.to_str()), ensure_ascii=False, indent=1)
    Tokenizer(content, bos_id, eos_id)  # refuses what could not be loaded again
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if bos_id is None else written.id_to_token(bos_id),
        "eos_token": written.id_to_token(eos_id),
        # True would remove spaces before punctuation when decoding: not a round trip.
        "clean_up_tokenization_spaces": False,
    }
    files = {TOKENIZER_FILE: content, CONFIG_FILE: json.dumps(config, indent=1)}
    _write_directory(dst, files)


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE tokenizer; for the tiny model and for tests.

    Byte-level as Llama 3's: every text has ids, id 0 is the ordinary token "!", and the special
    tokens `BEGIN_OF_TEXT` and `END_OF_TEXT` come last.

    Args:
        texts: what to learn merges from.
        vocab_size: at most so many ids, special tokens included; few texts may give fewer.

    Returns:
        A tokenizer for `save_tokenizer`.

    Raises:
        ValueError: if `vocab_size` cannot hold all bytes and the special tokens.
    """
    specials = [BEGIN_OF_TEXT, END_OF_TEXT]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(specials):
        raise ValueError(
            f"vocab_size: must be at least {len(alphabet) + len(specials)} "
            f"(256 bytes and {len(specials)} special tokens), got {vocab_size}."
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer whose ids the embedding table of a model does not hold.

    A table larger than the tokenizer is fine: tables are padded to round sizes.

    Raises:
        ValueError: if the tokenizer has an id of `vocab_size` or above.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"tokenizer: ids must be below the model's vocab_size {vocab_size}, got ids up to "
            f"{tokenizer.vocab_size - 1}; is it the tokenizer of another model?"
        )


def _parse_tokenizer(content: str, special_ids: set[int]) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise ValueError(
            f"{TOKENIZER_FILE} must be a tokenizer of the tokenizers library, got {error}."
        ) from error
    # What a fine-tuning script left in the file must not cut or pad our documents.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _mark_special(tokenizer, sorted(special_ids))
    # "Encode the names of special tokens as ordinary text"; off by default in the library.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _mark_special(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> None:
    # Only tokens marked special are kept out of text; converted files often forget the mark.
    for special_id in ids:
        token = tokenizer.id_to_token(special_id)
        if token is not None:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def _fingerprint(content: str, bos_id: int | None, eos_id: int) -> str:
    tokenizer = parse_json(content)
    # These two never reach our ids (see _parse_tokenizer).
    tokenizer.pop("truncation", None)
    tokenizer.pop("padding", None)
    canonical = json.dumps([tokenizer, bos_id, eos_id], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _cut_at_words(ids: list[int], word_ids: list[int | None]) -> list[tuple[int, ...]]:
    borders = [i for i in range(1, len(ids)) if word_ids[i] != word_ids[i - 1]]
    return [tuple(ids[a:b]) for a, b in zip([0, *borders], [*borders, len(ids)], strict=True) if b]


def _find_special_ids(directory: Path, names: tokenizers.Tokenizer) -> tuple[int | None, int]:
    bos_id = _find_special_id(directory, "bos", names)
    eos_id = _find_special_id(directory, "eos", names)
    if eos_id is None:
        files = ", ".join(_FILES_WITH_NAMES + _FILES_WITH_IDS)
        raise ValueError(
            "eos_token: must be named, for a document ends with it, got none in "
            f"{files}; add it to {CONFIG_FILE}."
        )
    return bos_id, eos_id


def _find_special_id(directory: Path, kind: str, names: tokenizers.Tokenizer) -> int | None:
    for file in _FILES_WITH_NAMES:
        config = _read_json(directory / file)
        if f"{kind}_token" not in config:
            continue
        token = config[f"{kind}_token"]
        token = token["content"] if isinstance(token, dict) else token
        if token is None and kind == "bos":
            return None  # said to have none; config.json may still name an id (Qwen does)
        if token is not None:
            found = names.token_to_id(token)
            if found is None:
                raise ValueError(f"{kind}_token: must be in {TOKENIZER_FILE}, got {token!r}.")
            return found
    for file in _FILES_WITH_IDS:
        found = _read_json(directory / file).get(f"{kind}_token_id")
        if found is not None:
            # Chat models list several ends of turn; the first is the end of the text.
            return found[0] if isinstance(found, list) else found
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} must be UTF-8 text, got {error}.") from error


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} must be JSON, got {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must be a JSON object, got {type(content).__name__}.")
    return content


def _write_directory(dst: Path, files: dict[str, str]) -> None:
    partial = dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        for name, content in files.items():
            (partial / name).write_text(content, encoding="utf-8")
        os.replace(partial, dst)  # an empty directory may be replaced, a filled one may not
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _listing(path: Path) -> str:
    if not path.exists():
        return "no such directory"
    if not path.is_dir():
        return "a file"
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
