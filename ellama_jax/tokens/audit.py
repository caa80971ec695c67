"""What a window set holds, as figures: documents, fertility, lengths, marks, duplicates.

Owns the figures, as plain data; what counts as a problem is tokens/audit_problems.py's. It opens no
files but the windows, and does not know how the figures are shown.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ellama_jax.config import batch_sizes, count_rows, stage_sections
from ellama_jax.corpus.duplicates import exact_key, find_duplicates
from ellama_jax.tokens.audit_problems import OTHER_TOKENIZER, compare_sets, find_problems
from ellama_jax.tokens.mixture import check_source_names
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.tokenizer import Tokenizer
from ellama_jax.tokens.windows import Manifest, WindowSet, segments

if TYPE_CHECKING:
    from ellama_jax.config import DataConfig
    from ellama_jax.tokens.loader import Loader

# A set is read up to about so many tokens unless told otherwise: seconds, decoding included.
DEFAULT_SAMPLE_TOKENS = 2**20
# Batches are read up to about so many tokens a stage to measure a mixture.
_MIXTURE_TOKENS = 2**22

# Tags and character references of HTML.
_MARKUP = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(\s[^<>]*)?/?>|&(#\d+|#x[0-9a-fA-F]+|[A-Za-z]+);")
_MOST_EXAMPLES = 5

# Names under which vocabularies keep the token that begins a text.
_BOS_NAMES = (
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "[BOS]",
    "<|startoftext|>",
    "<|begin▁of▁sentence|>",
)


@dataclass(frozen=True)
class Piece:
    """A document, or the part of a split one that lies in a window.

    Attributes:
        window: the window's number in the set.
        number: of the piece in its window, from 1.
        tokens: [n] uint32, BOS and EOS included.
        body: the tokens without BOS and EOS.
        begins, ends: whether the document's begin and end lie in this piece; where documents have
            no BOS the begin cannot be told from a continuation and `begins` is True.
    """

    window: int
    number: int
    tokens: np.ndarray
    body: np.ndarray
    begins: bool
    ends: bool


def cut_window(tokens: np.ndarray, manifest: Manifest, window: int = 0) -> list[Piece]:
    """Cuts a window into its documents and parts of documents.

    Args:
        tokens: [window_length] uint32, `PADDING` where unused.
        manifest: of the set; BOS and EOS are taken from it.
        window: the window's number, for the pieces.
    """
    bos, eos = manifest.bos_id, manifest.eos_id
    numbers, _ = segments(tokens, eos_id=eos, bos_id=bos)
    used = np.flatnonzero(numbers)
    tokens, numbers = tokens[used], numbers[used]
    borders = np.flatnonzero(np.diff(numbers)) + 1
    pieces = []
    for number, part in enumerate(np.split(tokens, borders), start=1):
        if len(part) == 0:
            continue
        begins = bos is None or bool(part[0] == bos)
        # A single token that is both BOS and EOS can only end a document that came before.
        ends = bool(part[-1] == eos) and not (bos == eos and begins and len(part) == 1)
        first = int(begins and bos is not None)
        body = part[first : len(part) - 1 if ends else len(part)]
        pieces.append(Piece(window, number, part, body, begins, ends))
    return pieces


def choose_windows(num_windows: int, sample: int | None, window_length: int) -> np.ndarray:
    """Chooses windows evenly over a set; the same ones every time.

    Args:
        num_windows: in the set.
        sample: how many; None takes as many as hold `DEFAULT_SAMPLE_TOKENS`.
        window_length: tokens in a window.

    >>> choose_windows(10, 3, 8).tolist(), choose_windows(3, 9, 8).tolist()
    ([1, 5, 8], [0, 1, 2])
    """
    count = -(-DEFAULT_SAMPLE_TOKENS // window_length) if sample is None else sample
    if count < 1:
        raise ValueError(f"sample: must be at least 1, got {count}.")
    if count >= num_windows:
        return np.arange(num_windows)
    return ((2 * np.arange(count) + 1) * num_windows) // (2 * count)


def read_documents(windows: WindowSet, sample: int | None = None) -> list[np.ndarray]:
    """Reads the whole documents in a sample of a set's windows, without BOS and EOS."""
    manifest = windows.manifest
    chosen = choose_windows(len(windows), sample, manifest.window_length).tolist()
    rows = windows.read(chosen)
    pieces = [piece for index, row in zip(chosen, rows, strict=True)
              for piece in cut_window(row, manifest, index)]  # fmt: skip
    return [piece.body for piece in pieces if piece.begins and piece.ends and len(piece.body)]


def audit_set(windows: WindowSet, tokenizer: Tokenizer | None, sample: int | None = None) -> dict:
    """Measures one window set.

    Args:
        windows: the set.
        tokenizer: what made it; without one nothing is decoded: `text` and `duplicates` are None.
        sample: windows to read; None takes about a million tokens.

    Returns:
        Plain data: `path`, `manifest` (what it says), `sample` (what was read), `lengths`, `marks`,
        `duplicates`, `text`, `fertility` (of the manifest or the sample; None if neither counts
        words) and `problems`.
    """
    manifest = windows.manifest
    chosen = choose_windows(len(windows), sample, manifest.window_length)
    rows = windows.read(chosen.tolist())
    pieces = [piece for index, row in zip(chosen.tolist(), rows, strict=True)
              for piece in cut_window(row, manifest, index)]  # fmt: skip
    whole = [piece for piece in pieces if piece.begins and piece.ends]
    text = None if tokenizer is None else _measure_text(pieces, tokenizer)
    audit = {
        "path": str(windows.path),
        "manifest": _say_manifest(manifest),
        "sample": _measure_sample(rows, pieces, manifest),
        "lengths": count_lengths([len(piece.tokens) for piece in whole]),
        "marks": check_marks(rows, pieces, manifest, tokenizer),
        "duplicates": None
        if tokenizer is None
        else measure_duplicates([tokenizer.decode(piece.body.tolist()) for piece in whole]),
        "text": text,
        "fertility": _find_fertility(manifest, text),
    }
    return {**audit, "problems": find_problems(audit, manifest, _content_differs(rows, manifest))}


def audit_sets(
    sets: Sequence[WindowSet], tokenizer: Tokenizer | None, sample: int | None = None
) -> dict:
    """Measures several window sets and what they have in common.

    Args:
        sets: of any domains and languages.
        tokenizer: of all of them; sets that another one made are not decoded.
        sample: windows to read of each.

    Returns:
        `sets` (name -> as `audit_set`), `languages` (fertility by domain and language) and
        `problems`, [{set, text}].
    """
    audits = {}
    for windows in sets:
        fits = tokenizer and tokenizer.fingerprint == windows.manifest.tokenizer_fingerprint
        audits[str(windows.path.name)] = audit_set(windows, tokenizer if fits else None, sample)
    strangers = [name for name, a in audits.items() if tokenizer and a["text"] is None]
    problems = [{"set": name, "text": text} for name, a in audits.items() for text in a["problems"]]
    problems += [{"set": name, "text": OTHER_TOKENIZER} for name in strangers]
    problems += [{"set": "all sets", "text": text} for text in compare_sets(sets)]
    return {"sets": audits, "languages": fertility_by_language(audits.values()),
            "problems": problems}  # fmt: skip


def fertility_by_language(audits: Sequence[Mapping]) -> list[dict]:
    """Sums fertility by domain and language: tokens per word, tokens and bytes.

    Args:
        audits: as `audit_set` gives them; those without fertility are left out.
    """
    sums: dict[tuple[str, str], Counter] = {}
    for audit in audits:
        manifest, found = audit["manifest"], audit["fertility"]
        if found is not None:
            counts = {name: found[name] for name in ("tokens", "words", "bytes", "documents")}
            key = (manifest["domain"], manifest["language"])
            sums.setdefault(key, Counter()).update(counts)
    return [{"domain": domain, "language": language, **_fertility(counts)}
            for (domain, language), counts in sorted(sums.items())]  # fmt: skip


def _fertility(counts: Mapping) -> dict:
    tokens, words, size = counts["tokens"], counts["words"], counts["bytes"]
    return {
        **counts,
        "tokens_per_word": tokens / words if words else None,
        "tokens_per_byte": tokens / size if size else None,
        "bytes_per_token": size / tokens if tokens else None,
    }


# --- figures -------------------------------------------------------------------------------------


def _say_manifest(manifest: Manifest) -> dict:
    names = (
        "name", "domain", "language", "source", "num_windows", "window_length", "num_documents",
        "num_tokens", "num_padding", "num_split_documents", "bos_id", "eos_id", "seed",
        "tokenizer_fingerprint", "sources", "command", "version",
    )  # fmt: skip
    said = {name: getattr(manifest, name) for name in names}
    said["by_source"] = getattr(manifest, "by_source", None) or {}
    places = manifest.num_windows * manifest.window_length
    return {
        **said,
        "padding_share": manifest.num_padding / places if places else 0.0,
        "split_share": manifest.num_split_documents / max(1, manifest.num_documents),
    }


def _measure_sample(rows: Sequence, pieces: Sequence[Piece], manifest: Manifest) -> dict:
    ends = [piece for piece in pieces if piece.ends]
    return {
        "windows": len(rows),
        "of_windows": manifest.num_windows,
        "whole_set": len(rows) == manifest.num_windows,
        "tokens": sum(len(piece.tokens) for piece in pieces),
        "documents": len(ends),
        "cut_documents": sum(not piece.begins for piece in ends),
        "pieces": len(pieces),
    }


def count_lengths(lengths: Sequence[int]) -> dict:
    """Counts documents by length in doubling steps, with the quartiles.

    >>> count_lengths([3, 5, 6, 9])["bins"]
    [[2, 4, 1], [4, 8, 2], [8, 16, 1]]
    """
    if not lengths:
        return {"documents": 0, "bins": []}
    array = np.sort(np.asarray(lengths))
    powers = np.floor(np.log2(array)).astype(int)
    counts = np.bincount(powers)
    bins = [[2**p, 2 ** (p + 1), int(counts[p])] for p in range(powers[0], powers[-1] + 1)]
    quartiles = [int(array[round(q * (len(array) - 1))]) for q in (0.25, 0.5, 0.75)]
    return {
        "documents": len(array), "bins": bins, "quartiles": quartiles,
        "mean": float(array.mean()), "longest": int(array[-1]),
    }  # fmt: skip


def _find_fertility(manifest: Manifest, text: Mapping | None) -> dict | None:
    """Takes what `prepare` counted of the whole set, else what was decoded of the sample."""
    if manifest.num_words is not None and manifest.num_bytes is not None:
        marks = manifest.num_documents * (1 + (manifest.bos_id is not None))
        counts = {"tokens": manifest.num_tokens - marks, "words": manifest.num_words,
                  "bytes": manifest.num_bytes, "documents": manifest.num_documents}  # fmt: skip
        return {**_fertility(counts), "from": "manifest"}
    if text is None:
        return None
    counts = {name: text[name] for name in ("tokens", "words", "bytes", "documents")}
    return {**_fertility(counts), "from": "sample"}


def _measure_text(pieces: Sequence[Piece], tokenizer: Tokenizer) -> dict:
    """Decodes the sample: how much text it is, and what should not be in it."""
    special = tokenizer.special_tokens()
    tokens = words = size = broken = named = marked = 0
    for piece in pieces:
        body = piece.body[~np.isin(piece.body, list(special))]
        text = tokenizer.decode(body.tolist())
        tokens, words = tokens + len(body), words + len(text.split())
        size += len(text.encode("utf-8", "replace"))
        whole = piece.begins and piece.ends  # a cut may go through a character
        broken += whole and "\ufffd" in text
        marked += piece.ends and _MARKUP.search(text) is not None
        named += piece.ends and any(name in text for name in special.values())
    return {
        "tokens": tokens, "words": words, "bytes": size,
        "documents": sum(piece.ends for piece in pieces),
        "broken_documents": broken,
        "markup_documents": marked,
        "documents_naming_special_tokens": named,
    }  # fmt: skip


def check_marks(
    rows: Sequence[np.ndarray],
    pieces: Sequence[Piece],
    manifest: Manifest,
    tokenizer: Tokenizer | None,
) -> dict:
    """Counts what BOS, EOS, padding and special tokens do where they should not.

    Args:
        rows: the windows read, each [window_length] uint32.
        pieces: what `cut_window` made of them.
        manifest: of the set.
        tokenizer: what made it; without one, only BOS and EOS are known as special.

    Returns:
        Counts that are 0 in a sound set, except `continuations`, the pieces that begin inside a
        document: a set has them where documents were split.
    """
    bos, length = manifest.bos_id, manifest.window_length
    if tokenizer is not None:
        special = tokenizer.special_tokens()
    else:
        special = {} if bos is None else {bos: "BOS"}
    inside = Counter()
    for piece in pieces:
        found = piece.body[np.isin(piece.body, list(special))]
        inside.update(special[token] for token in found.tolist())
    unended = [piece for piece in pieces if not piece.ends]
    return {
        "continuations": sum(not piece.begins for piece in pieces),
        "continued_ends": sum(not piece.begins and piece.ends for piece in pieces),
        # What does not end its document fills its window; anything shorter has lost its EOS.
        "without_eos": sum(len(piece.tokens) < length for piece in unended),
        "empty": sum(len(piece.body) == 0 for piece in pieces if piece.begins),
        "special_inside": dict(sorted(inside.items())),
        "unknown_ids": int(sum(np.sum(p.tokens >= manifest.vocab_size) for p in pieces)),
        "padding_inside": sum(_has_inner_padding(row) for row in rows),
        "bos_unused": None if tokenizer is None else _unused_bos(manifest, tokenizer),
    }


def _has_inner_padding(row: np.ndarray) -> bool:
    padding = row == PADDING
    return bool(np.any(padding[:-1] & ~padding[1:]))


def _unused_bos(manifest: Manifest, tokenizer: Tokenizer) -> str | None:
    """Returns the name of the BOS token that the vocabulary has and the set does not use."""
    if manifest.bos_id is not None:
        return None
    if tokenizer.bos_id is not None:
        return tokenizer.token(tokenizer.bos_id)
    names = set(tokenizer.special_tokens().values())
    return next((name for name in _BOS_NAMES if name in names), None)


def _content_differs(rows: Sequence[np.ndarray], manifest: Manifest) -> bool:
    """Tells whether windows, all of them read, are others than the manifest's hash says."""
    if len(rows) < manifest.num_windows:
        return False
    if not all("sha256" in shard for shard in manifest.shards):
        return _sha256(rows) != manifest.content_sha256
    ends = np.cumsum([shard["records"] for shard in manifest.shards])
    return any(_sha256(rows[end - shard["records"] : end]) != shard["sha256"]
               for shard, end in zip(manifest.shards, ends, strict=True))  # fmt: skip


def _sha256(rows: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.astype("<u4").tobytes())
    return digest.hexdigest()


# --- duplicates ----------------------------------------------------------------------------------


def measure_duplicates(texts: Sequence[str]) -> dict:
    """Counts documents that occur more than once, by the rules of `ellama curate`.

    Args:
        texts: of whole documents.

    Returns:
        `exact_documents` (equal but for case, white space and encoding) and `near_documents` (all
        but the first of a group), their shares, the most repeated documents and examples of
        near-duplicates side by side.
    """
    by_key = defaultdict(list)
    keys = [exact_key(text) for text in texts]
    for number, key in enumerate(keys):
        by_key[key].append(number)
    groups = [group for group in by_key.values() if len(group) > 1]
    found = find_duplicates((1, f"{number:09d}", text) for number, text in enumerate(texts))
    pairs = [(int(d.kept), int(d.dropped), d.similarity) for d in found]
    pairs = [pair for pair in pairs if keys[pair[0]] != keys[pair[1]]]
    exact, count = sum(len(group) - 1 for group in groups), max(1, len(texts))
    most = sorted(groups, key=lambda group: (-len(group), group[0]))[:_MOST_EXAMPLES]
    # Least alike first: what is told apart by a size or a price is the more telling example.
    shown = sorted(pairs, key=lambda pair: (pair[2], pair))[:_MOST_EXAMPLES]
    return {
        "documents": len(texts),
        "exact_documents": exact, "exact_share": exact / count,
        "near_documents": len(pairs), "near_share": len(pairs) / count,
        "most_repeated": [{"times": len(group), "text": texts[group[0]]} for group in most],
        "near_examples": [{"similarity": alike, "first": texts[i], "second": texts[j]}
                          for i, j, alike in shown],
    }  # fmt: skip


# --- mixtures ------------------------------------------------------------------------------------


def measure_mixture(loader: "Loader", data_config: "DataConfig", steps: int) -> dict:
    """Counts the tokens that batches really give, and puts them beside the asked shares.

    Args:
        loader: of the mixture.
        data_config: its section of the configuration.
        steps: of the run.

    Returns:
        `tokens` of the run, `stages` [{name, start_step, steps, tokens, measured_steps, weights}],
        `on_repetition` and `sources` [{name, domain, language, asked, realised, disk_tokens,
        epochs, max_epochs}] where `asked` and `realised` are shares of tokens, one for each stage.

    Raises:
        ValueError: if max_epochs_by_source names no source.
    """
    caps = data_config.max_epochs_by_source
    check_source_names(caps, [s.name for s in loader.sources], "data.max_epochs_by_source")
    largest = max(rows for _, rows in batch_sizes(data_config)) * data_config.seq_len
    stages, realised = _find_stages(data_config, steps), []
    for stage in stages:
        ends = stage["start_step"], stage["start_step"] + stage["steps"]
        before, after = (count_rows(data_config, step) for step in ends)
        stage["tokens"] = (after - before) * data_config.seq_len
        stage["measured_steps"] = max(1, min(stage["steps"], _MIXTURE_TOKENS // largest))
        realised.append(_count_share(loader, stage["start_step"], stage["measured_steps"]))
    epochs = loader.epochs(steps)
    sources = [
        {
            "name": source.name, "domain": source.domain, "language": source.language,
            "asked": list(source.token_shares),
            "realised": [share[source.name] for share in realised],
            "disk_tokens": source.windows.manifest.num_tokens,
            "epochs": epochs[source.name],
            "max_epochs": caps.get(source.name, data_config.max_epochs),
        }
        for source in loader.sources
    ]  # fmt: skip
    tokens = count_rows(data_config, steps) * data_config.seq_len
    return {"tokens": tokens, "stages": stages, "sources": sources,
            "on_repetition": data_config.on_repetition}  # fmt: skip


def _find_stages(data_config: "DataConfig", steps: int) -> list[dict]:
    sections = stage_sections(data_config)
    ends = [start for _, start, _ in sections[1:]] + [steps]
    return [{"name": path, "start_step": start, "steps": end - start,
             "replay_frac": section.replay_frac, "weights": dict(section.source_weights)}
            for (path, start, section), end in zip(sections, ends, strict=True)]  # fmt: skip


def _count_share(loader: "Loader", start_step: int, steps: int) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for batch in loader.iterate(start_step, start_step + steps):
        counts.update(loader.count_tokens(batch))
    total = max(1, counts.total())
    return {source.name: counts[source.name] / total for source in loader.sources}
