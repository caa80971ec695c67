"""Llama 3's tokenizer.model, a file of tokens and ranks, as a tokenizer of the tokenizers library.

Owns the file and the special tokens that are not in it. Saving and loading tokenizers is
tokens/tokenizer.py's.

Source of the facts: Meta's `llama-models` 0.3.0 (llama3/tokenizer.py).
"""

import base64
import os
from pathlib import Path

import tokenizers

from ellama_jax.weights.gguf import LLAMA3_SPLIT

# Special tokens of Llama 3.1; those after them are reserved_special_token_2 and so on.
_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
_NUM_SPECIAL_TOKENS = 256


def convert_tokenizer(path: str | os.PathLike) -> tuple[tokenizers.Tokenizer, int, int]:
    """Makes a tokenizer of the tokenizers library out of Meta's tokenizer.model.

    Args:
        path: a tiktoken file, one base64 token and its rank a line. The rank is both the id and the
            order of merging; the 256 special tokens of Llama 3.1 follow the last.

    Returns:
        (tokenizer, bos_id, eos_id): same ids as Meta's own; `<|begin_of_text|>` is put before a
        text where special tokens are asked for.

    Raises:
        ValueError: if it is another kind of file (Llama 2's is SentencePiece) or a broken one.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

    vocab = _read_ranks(Path(path))
    bpe = models.BPE(vocab=vocab, merges=_derive_merges(vocab), ignore_merges=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    cut = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    tokenizer.decoder = decoders.ByteLevel()
    numbers = range(2, 2 + _NUM_SPECIAL_TOKENS - len(_SPECIAL_TOKENS))
    names = [*_SPECIAL_TOKENS, *(f"<|reserved_special_token_{number}|>" for number in numbers)]
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    bos_id, eos_id = map(tokenizer.token_to_id, names[:2])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", pair=f"{names[0]} $A $B", special_tokens=[(names[0], bos_id)]
    )
    return tokenizer, bos_id, eos_id


def _read_ranks(path: Path) -> dict[str, int]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file, got {error.strerror}.") from error
    if content.startswith(b"\n") and b"<unk>" in content[:100]:
        raise ValueError(
            f"{path}: must be Llama 3's (a token and its rank a line), got a SentencePiece model, "
            "as Llama 2 has; import the Hugging Face directory of the same model."
        )
    letters = _byte_letters()
    vocab = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            spelled = "".join(letters[byte] for byte in base64.b64decode(token, validate=True))
            vocab[spelled] = int(rank)
        except ValueError as error:
            raise ValueError(
                f"{path}: line {number} must be a base64 token and its rank, got {line[:40]!r}."
            ) from error
    _check_ranks(path, vocab, letters)
    return vocab


def _check_ranks(path: Path, vocab: dict[str, int], letters: list[str]) -> None:
    if sorted(vocab.values()) != list(range(len(vocab))) or "" in vocab:
        raise ValueError(
            f"{path}: ranks must count from 0 without gaps or repeats, got {len(vocab)} tokens with "
            f"ranks up to {max(vocab.values(), default=-1)}; fetch it again."
        )
    if missing := [byte for byte, letter in enumerate(letters) if letter not in vocab]:
        raise ValueError(
            f"{path}: must hold all 256 bytes as tokens, got none for {len(missing)} of them "
            f"(first {missing[0]}); fetch it again."
        )


def _byte_letters() -> list[str]:
    # GPT-2's spelling of bytes, which the tokenizers library works in: printable Latin-1 stands for
    # itself, the other bytes are lettered from U+0100 on.
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _derive_merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    # tiktoken joins the neighbours whose union has the lowest rank, whatever they are: so every
    # way to cut a token into two tokens is a merge, in the order of the token's rank.
    merges = []
    for token in sorted(vocab, key=vocab.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
    return merges
