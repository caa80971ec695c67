"""Owns how an audit reads on a terminal or in a pipe: lines, bars and decoded windows.

The figures are tokens/audit.py's and tokens/vocabulary.py's, the page report/audit_html.py's.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ellama_jax.core.terminal import one_line, printable
from ellama_jax.tokens.audit import Piece, cut_window
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.tokenizer import Tokenizer
from ellama_jax.tokens.windows import Manifest

_RULER = 78  # columns
_BAR = 40
_BOLD, _DIM, _CYAN, _RED, _PLAIN = "\033[1m", "\033[2m", "\033[36m", "\033[31m", "\033[0m"
FERTILITY_FROM = {"manifest": "of the whole set, as prepare counted it",
                  "sample": "of the windows read, decoded"}  # fmt: skip
# What a document may hold and a terminal would obey.


def describe_set(audit: Mapping) -> str:
    """Says what one window set holds, as `audit_set` found it."""
    m, sample, found = audit["manifest"], audit["sample"], audit["duplicates"]
    files = ", ".join(source["name"] for source in m["sources"]) or "none named"
    read = "all windows" if sample["whole_set"] else (
        f"{sample['windows']:,} of {sample['of_windows']:,} windows")  # fmt: skip
    lines = [
        f"{audit['path']}: {m['domain']} text, language {m['language']}",
        f"  {m['num_documents']:,} documents, {m['num_tokens']:,} tokens in "
        f"{m['num_windows']:,} windows of {m['window_length']:,}",
        f"  padding {m['padding_share']:.1%}, {m['num_split_documents']:,} documents split "
        f"({m['split_share']:.1%})",
        f"  tokenizer {m['tokenizer_fingerprint'][:12]}, seed {m['seed']}, files: {files}",
        f"  made by: {m['command']}",
        *_source_lines(m),
        f"  read {read}: {sample['documents']:,} documents, {sample['tokens']:,} tokens",
    ]
    if audit["fertility"] is not None:
        lines.append("  " + _fertility_words(audit["fertility"], audit["text"]))
    if found is None:
        return "\n".join([*lines, *length_lines(audit["lengths"])])
    lines.append(f"  duplicates among {found['documents']:,} whole documents: "
                 f"{found['exact_documents']:,} exact ({found['exact_share']:.1%}), "
                 f"{found['near_documents']:,} near ({found['near_share']:.1%})")  # fmt: skip
    return "\n".join([*lines, *_repeated_lines(found), *length_lines(audit["lengths"])])


def _source_lines(manifest: Mapping) -> Iterator[str]:
    for name, counts in sorted(manifest["by_source"].items()):
        share = counts["tokens"] / manifest["num_tokens"]
        yield (f"    {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens "
               f"({share:.1%})")  # fmt: skip


def _fertility_words(found: Mapping, text: Mapping | None) -> str:
    words = f"{found['tokens_per_word']:.2f} tokens a word" if found["words"] else "no words"
    if found["bytes"]:
        words += (f", {found['tokens_per_byte']:.3f} tokens a byte "
                  f"({found['bytes_per_token']:.2f} bytes a token)")  # fmt: skip
    words += f", {FERTILITY_FROM[found['from']]}"
    named = text["documents_naming_special_tokens"] if text else 0
    more = f"; {named:,} documents spell a special token's name as text" if named else ""
    return f"fertility: {words}{more}"


def _repeated_lines(found: Mapping) -> Iterator[str]:
    for repeated in found["most_repeated"][:3]:
        yield f"    {repeated['times']} times: {one_line(repeated['text'], 60)}"


def length_lines(lengths: Mapping) -> list[str]:
    """Draws the lengths of documents as bars of text.

    >>> from ellama_jax.tokens.audit import count_lengths
    >>> print("\\n".join(length_lines(count_lengths([3, 5, 6, 9]))))
      tokens a document: quartiles 5, 6, 6, mean 5.8, longest 9
            2-3 ████████████████████ 1
            4-7 ████████████████████████████████████████ 2
           8-15 ████████████████████ 1
    """
    if not lengths["bins"]:
        return ["  no whole document read"]
    quartiles = ", ".join(f"{value:,}" for value in lengths["quartiles"])
    lines = [f"  tokens a document: quartiles {quartiles}, mean {lengths['mean']:,.1f}, "
             f"longest {lengths['longest']:,}"]  # fmt: skip
    most = max(count for *_, count in lengths["bins"])
    for low, high, count in lengths["bins"]:
        bar = "█" * max(round(_BAR * count / most), int(count > 0))
        lines.append(f"  {bin_name(low, high):>9} {bar}{' ' if bar else ''}{count:,}")
    return lines


def bin_name(low: int, high: int) -> str:
    """Names the lengths from `low` to below `high`.

    >>> bin_name(1, 2), bin_name(1024, 2048)
    ('1', '1024-2047')
    """
    return str(low) if high == low + 1 else f"{low}-{high - 1}"


def describe_languages(languages: Sequence[Mapping], audits: Sequence[Mapping]) -> str:
    """Puts tokens and fertility by domain and language side by side."""
    fertility = {(row["domain"], row["language"]): row for row in languages}
    tokens: dict[tuple[str, str], list[int]] = {}
    for audit in audits:
        m = audit["manifest"]
        sums = tokens.setdefault((m["domain"], m["language"]), [0, 0])
        sums[0] += m["num_tokens"]
        sums[1] += m["num_documents"]
    total = sum(count for count, _ in tokens.values())
    rows = [("domain", "language", "tokens", "share", "documents", "tokens/word", "bytes/token")]
    for key, (count, documents) in sorted(tokens.items()):
        row = fertility.get(key, {"tokens_per_word": None, "bytes_per_token": None})
        rows.append((*key, f"{count:,}", f"{count / total:.1%}", f"{documents:,}",
                     _two(row["tokens_per_word"]), _two(row["bytes_per_token"])))  # fmt: skip
    return table_text(rows, 2)


def describe_vocabulary(advice: Mapping) -> str:
    """Says what more tokens would save, with how the figure was made."""
    sizes = advice["sizes"]
    rows = [("domain", "language", "held-out tokens", *(f"+{size:,}" for size in sizes))]
    for row in advice["rows"]:
        saved = [f"{share:.1%}" for share in row["saved"]]
        rows.append((row["domain"], row["language"], f"{row['tokens']:,}", *saved))
    for model, added in advice["parameters"].items():
        rows.append(("", "", f"{model}:", *(f"+{count / 1e6:,.1f}M" for count in added)))
    lines = ["tokens saved by N more tokens, and the embedding parameters these add",
             table_text(rows, 2), *vocabulary_notes(advice)]  # fmt: skip
    return "\n".join(lines)


def vocabulary_notes(advice: Mapping) -> list[str]:
    """Returns how a vocabulary figure was made and what it does not say, in sentences."""
    notes = [
        f"Learnt from {advice['train_tokens']:,} tokens of e-commerce text, measured on documents "
        "that are unlike any of these.",
        "An upper estimate for text from elsewhere: translations of a training document may be "
        "among the held-out ones, and what the new embeddings must learn is not counted.",
    ]
    short = [size for size, learnt in zip(advice["sizes"], advice["learnt"], strict=True)
             if learnt < size]  # fmt: skip
    if short:
        notes.append(f"The text gave only {advice['learnt'][-1]:,} new tokens; figures above that "
                     "stand still, and more text would teach more.")  # fmt: skip
    return notes


def batch_words(mixture: Mapping) -> str:
    """Says how many rows a batch has, or from how many it grows."""
    ramp = {int(step): rows for step, rows in mixture["batch_ramp"].items()}
    sizes = [ramp[step] for step in sorted(ramp)] + [mixture["global_batch_size"]]
    return " then ".join(map(str, sizes))


def describe_mixture(mixture: Mapping) -> str:
    """Says what mixture a configuration asks for, what its batches give and how often it reads."""
    stages = mixture["stages"]
    lines = [f"{mixture['steps']:,} steps of {batch_words(mixture)} x "
             f"{mixture['seq_len']} tokens, {domain_words(stages[0]['replay_frac'])}"]  # fmt: skip
    rows = [("source", "tokens on disk", "read", "allowed")]
    for source in mixture["sources"]:
        rows.append((source["name"], f"{source['disk_tokens']:,}", f"{source['epochs']:.2f} times",
                     f"{source['max_epochs']:g}"))  # fmt: skip
    lines.append(table_text(rows, 1))
    for number, stage in enumerate(stages):
        lines += _stage_lines(mixture["sources"], stage, number, len(stages))
    return "\n".join([*lines, f"mixture fingerprint {mixture['fingerprint'][:16]}"])


def domain_words(replay_frac: float) -> str:
    """Says how a mixture divides its tokens among the domains.

    >>> domain_words(0.25)
    '75% e-commerce, 25% general'
    """
    return f"{1 - replay_frac:.0%} e-commerce, {replay_frac:.0%} general"


def stage_name(stage: Mapping) -> str:
    """Names a stage by its place in the configuration."""
    return stage["name"].rpartition(".")[2] if "." in stage["name"] else "begin"


def _stage_lines(sources: Sequence[Mapping], stage: Mapping, number: int, of: int) -> list[str]:
    head = (f"stage {stage_name(stage)} from step {stage['start_step']:,}, "
            f"{domain_words(stage['replay_frac'])}: " if of > 1 else "")  # fmt: skip
    lines = [f"{head}{stage['tokens']:,} tokens; shares in the first {stage['measured_steps']:,} of "
             f"{stage['steps']:,} steps"]  # fmt: skip
    if stage["weights"]:
        lines.append(f"  {weight_words(stage['weights'])}")
    rows = [("source", "asked", "realised", "off by")]
    for source in sources:
        asked, realised = source["asked"][number], source["realised"][number]
        off = f"{100 * (realised - asked):+.2f} points"
        rows.append((source["name"], f"{asked:.2%}", f"{realised:.2%}", off))
    return [*lines, table_text(rows, 1)]


def weight_words(weights: Mapping[str, float]) -> str:
    """Says what divides a language among its sets.

    >>> weight_words({"ecommerce-de-shop": 3.0, "ecommerce-de-web": 1.0})
    'source_weights: ecommerce-de-shop 3, ecommerce-de-web 1; other languages by their tokens'
    """
    said = ", ".join(f"{name} {weight:g}" for name, weight in sorted(weights.items()))
    return f"source_weights: {said}; other languages by their tokens"


def describe_stream(stream: Mapping) -> str:
    """Says what a SeqIO mixture is made of; its text is not audited, for it is in no windows."""
    rows = [("task", "rate", "of the documents")]
    for task in stream["tasks"]:
        rows.append((task["name"], f"{task['rate']:g}", f"{task['share']:.2%}"))
    many = "1 task" if len(stream["tasks"]) == 1 else f"{len(stream['tasks'])} tasks"
    return "\n".join([
        f"{stream['steps']:,} steps of {stream['global_batch_size']} x {stream['seq_len']} tokens "
        f"from the SeqIO mixture {stream['mixture']}: {many}, tokenised while they are read",
        table_text(rows, 1),
        "nothing was audited: the text is in no window set; `ellama prepare` makes them",
    ])  # fmt: skip


def describe_problems(problems: Sequence[Mapping], colour: bool = False) -> str:
    """Lists the problems, one a line."""
    on, off = (_RED, _PLAIN) if colour else ("", "")
    return "\n".join(f"{on}problem:{off} {printable(problem['set'])}: "
                     f"{printable(problem['text'])}"
                     for problem in problems)  # fmt: skip


def table_text(rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Lays out a table, its first columns to the left and the others to the right.

    >>> print(table_text([("name", "tokens"), ("a", "1,000")], 1))
      name  tokens
      a      1,000
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i < text_columns else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def show_window(
    tokens: np.ndarray, index: int, manifest: Manifest, tokenizer: Tokenizer, colour: bool
) -> str:
    """Decodes a window with a ruler line before every document.

    Args:
        tokens: [window_length] uint32.
        index: the window's number.
        manifest: of its set.
        tokenizer: what made it.
        colour: whether to use a terminal's colours.
    """
    pieces = cut_window(tokens, manifest, index)
    padding = int(np.sum(tokens == PADDING))
    title = f"window {index}: {len(pieces)} documents, {len(tokens) - padding:,} tokens"
    lines = [_ruler("═", f"{title}, {padding:,} padding", colour, _BOLD)]
    for piece in pieces:
        lines.append(_ruler("─", piece_title(piece), colour, _CYAN))
        lines.append(_piece_text(piece, tokenizer, colour))
    if padding:
        lines.append(_ruler("·", f"{padding:,} padding", colour, _DIM))
    return "\n".join(lines)


def piece_title(piece: Piece) -> str:
    """Names a piece: its number, its tokens and whether it is a part of a split document."""
    parts = [f"document {piece.number}", f"{len(piece.tokens):,} tokens"]
    if not piece.begins:
        parts.append("continues a split document")
    if not piece.ends:
        parts.append("goes on in another window" if len(piece.tokens) else "empty")
    return ", ".join(parts)


def _piece_text(piece: Piece, tokenizer: Tokenizer, colour: bool) -> str:
    on, off = (_DIM, _PLAIN) if colour else ("", "")
    text = ""
    for special, ids in special_runs(piece.tokens, tokenizer):
        words = printable(tokenizer.decode(ids.tolist()))
        text += f"{on}{words}{off}" if special else words
    return text


def special_runs(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[tuple[bool, np.ndarray]]:
    """Cuts tokens into runs of text and single special tokens, each marked as what it is."""
    special = np.isin(tokens, list(tokenizer.special_tokens()))
    borders = np.flatnonzero(special[1:] | special[:-1]) + 1
    for run in np.split(np.arange(len(tokens)), borders):
        if len(run):
            yield bool(special[run[0]]), tokens[run]


def make_ruler(mark: str, title: str, colour: bool, strong: bool = False) -> str:
    """Draws a line with a title in it, before a piece of text."""
    return _ruler(mark, title, colour, _BOLD if strong else _CYAN)


def _ruler(mark: str, title: str, colour: bool, tone: str) -> str:
    line = f"{mark * 2} {printable(title)} "
    line += mark * max(2, _RULER - len(line))
    return f"{tone}{line}{_PLAIN}" if colour else line


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
