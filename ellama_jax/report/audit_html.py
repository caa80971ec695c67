"""Owns the page of an audit: windows and mixtures as tables, plots and decoded text.

The figures are tokens/audit.py's and tokens/vocabulary.py's; the frame and the drawings are the report's.
Documents hold markup, scripts and both directions of writing: every piece of text is escaped here.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from ellama_jax.core.terminal import one_line, printable
from ellama_jax.report.audit_text import (
    FERTILITY_FROM,
    batch_words,
    bin_name,
    piece_title,
    special_runs,
    stage_name,
    vocabulary_notes,
    weight_words,
)
from ellama_jax.report.page import render_page
from ellama_jax.report.plots import Bar, Line, bar_chart, line_chart
from ellama_jax.report.sections import make_section
from ellama_jax.tokens.audit import Piece, cut_window
from ellama_jax.tokens.packing import PADDING
from ellama_jax.tokens.tokenizer import Tokenizer
from ellama_jax.tokens.windows import WindowSet

_MOST_WINDOWS = 6  # shown decoded, over all sets
_MOST_PIECES = 10  # of one window
_LOOKED_AT = 64  # windows from which those are chosen
_MOST_CHARACTERS = 900  # of one document
_MOST_REPEATED = 6  # groups of equal documents, over all sets
_MOST_PAIRS = 6  # of near-duplicates, over all sets

STYLE = """
.tiles { grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.strip { display: flex; height: 14px; border-radius: 4px; overflow: hidden; margin: 8px 0 12px; }
.strip i { min-width: 1px; border-right: 1px solid var(--card); }
.strip i:last-child { border-right: 0; }
.c0 { --tone: var(--c0); } .c1 { --tone: var(--c1); } .c2 { --tone: var(--c2); }
.c3 { --tone: var(--c3); } .c4 { --tone: var(--c4); }
.strip i { background: var(--tone); }
.strip i.padding, .piece.padding { background: repeating-linear-gradient(-45deg, var(--rule) 0 4px,
  transparent 4px 8px); }
.piece { border-left: 4px solid var(--tone); margin: 0 0 10px; padding: 6px 10px 8px;
  background: color-mix(in srgb, var(--tone) 8%, transparent); border-radius: 0 6px 6px 0; }
.piece.padding { --tone: var(--rule); color: var(--soft); font-size: .85rem; margin-bottom: 0; }
.piece h4 { margin: 0 0 4px; font-size: .8rem; font-weight: 600; color: var(--soft); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; line-height: 1.5; }
.chip { display: inline-block; border: 1px solid var(--tone, var(--soft)); border-radius: 9px;
  padding: 0 7px; font: .72rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; direction: ltr;
  unicode-bidi: isolate; color: var(--soft); background: var(--card); }
.piece.cut-end { border-bottom: 2px dashed var(--tone); }
.piece.cut-begin { border-top: 2px dashed var(--tone); }
.window { margin: 12px 0 18px; } .window h3 { margin: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 12px; } .pair > div { min-width: 0; } .pair p { margin: 0; }
.twin { margin: 12px 0; } .twin h3 { margin-bottom: 8px; }
mark { background: color-mix(in srgb, var(--c1) 32%, transparent); color: inherit;
  border-radius: 3px; padding: 0 1px; }
.again { margin: 0 0 8px; } .again b { font-size: .85rem; }
.problems { border-left: 4px solid var(--bad); } .problems ul { margin: 0; }
.problems li { overflow-wrap: anywhere; }
td:first-child { overflow-wrap: anywhere; }
"""


def render_audit(
    title: str, audit: Mapping, sets: Sequence[WindowSet], tokenizer: Tokenizer | None
) -> str:
    """Builds the page of an audit.

    Args:
        title: of the page.
        audit: as `audit_sets` gives it, with `vocabulary` (`vocabulary.advise` or None) and, for
            a configuration, `mixture`.
        sets: the audited sets, whose windows are shown.
        tokenizer: what decodes them; without one no window is shown.

    Returns:
        One HTML document that refers to nothing outside itself.
    """
    audits = audit["sets"]
    sections = [
        problem_section(audit["problems"], "No problem was found in the windows read."),
        _mixture_section(audit.get("mixture")),
        _set_section(audits),
        _language_section(audits, audit["languages"]),
        _length_section(audits),
        _vocabulary_section(audit["vocabulary"]),
        _duplicate_section(audits),
        _window_section(sets, tokenizer),
    ]
    content = {
        "title": title,
        "subtitle": _subtitle(audits),
        "tiles": _tiles(audits, audit["problems"]),
        "sections": [section for section in sections if section],
        "footer": "Made by `ellama inspect` from the windows on disk.",
    }
    return render_page(content, STYLE)


def _subtitle(audits: Mapping) -> str:
    read = sum(a["sample"]["windows"] for a in audits.values())
    total = sum(a["sample"]["of_windows"] for a in audits.values())
    lengths = sorted({a["manifest"]["window_length"] for a in audits.values()})
    words = " and ".join(f"{length:,}" for length in lengths)
    return f"{read:,} of {total:,} windows read, {words} tokens each"


def _tiles(audits: Mapping, problems: Sequence) -> list[dict]:
    manifests = [a["manifest"] for a in audits.values()]
    tokens = sum(m["num_tokens"] for m in manifests)
    documents = sum(m["num_documents"] for m in manifests)
    padding = sum(m["num_padding"] for m in manifests)
    cut = sum(m["num_split_documents"] for m in manifests)
    found = [a["duplicates"] for a in audits.values() if a["duplicates"] is not None]
    again = sum(d["exact_documents"] + d["near_documents"] for d in found)
    seen = max(1, sum(d["documents"] for d in found))
    return [
        make_tile("problems", str(len(problems)), "listed below" if problems else "none found",
              "bad" if problems else "good"),
        make_tile("tokens", short_number(tokens), f"in {len(audits)} window sets"),
        make_tile("documents", short_number(documents), f"{cut:,} cut ({cut / max(1, documents):.1%})"),
        make_tile("duplicates", f"{again / seen:.1%}", "exact and near, of the documents read")
        if found else make_tile("duplicates", "–", "not looked for without the tokenizer"),
        make_tile("padding", f"{padding / max(1, tokens + padding):.2%}", "of all places"),
    ]  # fmt: skip


def problem_section(problems: Sequence[Mapping], none: str) -> dict:
    """Returns the section that lists problems, [{set, text}], or says that there are none."""
    if not problems:
        return make_section("Problems", [none])
    items = "".join(
        f"<li><b>{escape_text(p['set'])}</b>: {escape_text(p['text'])}</li>" for p in problems
    )
    section = make_section("Problems")
    return {**section, "markup": f'<div class="card problems"><ul>{items}</ul></div>'}


def _mixture_section(mixture: Mapping | None) -> dict | None:
    if mixture is None:
        return None
    stages = mixture["stages"]
    measured = stages[0]["measured_steps"]
    words = [
        f"{mixture['steps']:,} steps of {batch_words(mixture)} x {mixture['seq_len']} "
        f"tokens, {short_number(mixture['tokens'])} tokens in all; fingerprint "
        f"{mixture['fingerprint'][:16]}. Asked is what the configuration says, realised what the "
        f"first {measured:,} steps{' of each stage' if len(stages) > 1 else ''} gave."
    ]
    words += [f"{stage_name(stage)}: {weight_words(stage['weights'])}."
              for stage in stages if stage["weights"]]  # fmt: skip
    header = ["source", "tokens on disk", "times read", "allowed"]
    bars = []
    for stage in stages:
        head = f"{stage_name(stage)}: " if len(stages) > 1 else ""
        header += [f"{head}asked", "realised", "tokens"]
    rows = []
    for source in mixture["sources"]:
        row = [source["name"], f"{source['disk_tokens']:,}", f"{source['epochs']:.2f}",
               f"{source['max_epochs']:g}"]  # fmt: skip
        for number, stage in enumerate(stages):
            asked, realised = source["asked"][number], source["realised"][number]
            row += [f"{asked:.2%}", f"{realised:.2%}", short_number(asked * stage["tokens"])]
            group = stage_name(stage) if len(stages) > 1 else ""
            bars.append((number, Bar(group, source["name"], 100 * realised, _colour(source["domain"]),
                                     mark=100 * asked, text=f"{realised:.1%}")))  # fmt: skip
        rows.append(make_row(row))
    ordered = [bar for _, bar in sorted(bars, key=lambda item: item[0])]
    plot = make_plot("Share of tokens, in per cent", ordered, "tick: what was asked")
    return make_section(
        "Mixture", words, legend=("e-commerce", "general"), plots=[plot],
        tables=[make_table(header, rows, 1)],
    )  # fmt: skip


def _set_section(audits: Mapping) -> dict:
    header = ("set", "documents", "tokens", "windows", "padding", "cut", "tokens a word",
              "bytes a token", "exact again", "near again")  # fmt: skip
    rows = []
    for name, audit in audits.items():
        m, found, text = audit["manifest"], audit["duplicates"], audit["fertility"] or {}
        cells = make_row([
            name, f"{m['num_documents']:,}", f"{m['num_tokens']:,}", f"{m['num_windows']:,}",
            f"{m['padding_share']:.2%}", f"{m['split_share']:.1%}",
            _two(text.get("tokens_per_word")), _two(text.get("bytes_per_token")),
            *(f"{found[key]:.1%}" if found else "–" for key in ("exact_share", "near_share")),
        ])  # fmt: skip
        rows.append(cells)
    blocks = [{"folded": True, "title": "How the sets were made",
               "text": "\n".join(f"{name}: {printable(a['manifest']['command'])}"
                                 for name, a in audits.items())}]  # fmt: skip
    tables = [make_table(header, rows, 1), *_source_table(audits)]
    return make_section("Window sets", tables=tables, blocks=blocks)


def _source_table(audits: Mapping) -> list[dict]:
    """Returns a table of the documents' sources, or none where no manifest counts them."""
    rows = [
        make_row([source, name, f"{counts['documents']:,}", f"{counts['tokens']:,}",
              f"{counts['tokens'] / audit['manifest']['num_tokens']:.1%}"])
        for name, audit in audits.items()
        for source, counts in sorted(audit["manifest"]["by_source"].items())
    ]  # fmt: skip
    return (
        [make_table(("source", "set", "documents", "tokens", "of its set"), rows, 2)]
        if rows
        else []
    )


def _language_section(audits: Mapping, languages: Sequence[Mapping]) -> dict:
    plots = []
    for key, title in (("num_tokens", "Tokens"), ("num_documents", "Documents")):
        sums: Counter[tuple[str, str]] = Counter()
        for manifest in (audit["manifest"] for audit in audits.values()):
            sums[manifest["domain"], manifest["language"]] += manifest[key]
        bars = [Bar(domain, language, count, _colour(domain), text=short_number(count))
                for (domain, language), count in sorted(sums.items())]  # fmt: skip
        plots.append(make_plot(title, bars))
    for key, title in (("tokens_per_word", "Tokens a word"), ("bytes_per_token", "Bytes a token")):
        bars = [Bar(row["domain"], row["language"], row[key], _colour(row["domain"]),
                    text=_two(row[key])) for row in languages if row[key]]  # fmt: skip
        if bars:
            plots.append(make_plot(title, bars))
    ways = sorted({a["fertility"]["from"] for a in audits.values() if a["fertility"]})
    words = ["Words are what white space separates. More tokens a word, or fewer bytes a token, "
             "make a language dearer to train on and its texts longer to read.",
             *(f"Fertility {FERTILITY_FROM[way]}." for way in ways)]  # fmt: skip
    return make_section("Languages and fertility", words, plots=plots)


def _length_section(audits: Mapping) -> dict:
    plots = []
    for name, audit in audits.items():
        lengths = audit["lengths"]
        if not lengths["bins"]:
            continue
        bars = [Bar("", bin_name(low, high), count, _colour(audit["manifest"]["domain"]),
                    text=f"{count:,}") for low, high, count in lengths["bins"]]  # fmt: skip
        quartiles = ", ".join(f"{value:,}" for value in lengths["quartiles"])
        plots.append(
            make_plot(name, bars, f"quartiles {quartiles}; longest {lengths['longest']:,}")
        )
    words = ["Whole documents read, by their tokens; each step doubles."]
    return make_section("Document lengths", words, plots=plots)


def _vocabulary_section(advice: Mapping | None) -> dict | None:
    if advice is None:
        return None
    sizes = advice["sizes"]
    header = ("domain", "language", "held-out tokens", *(f"+{size:,}" for size in sizes))
    rows = [make_row([row["domain"], row["language"], f"{row['tokens']:,}",
                  *(f"{share:.1%}" for share in row["saved"])]) for row in advice["rows"]]  # fmt: skip
    models = [make_row([model, *(f"{count / 1e6:,.1f}M" for count in added)])
              for model, added in advice["parameters"].items()]  # fmt: skip
    names = [f"{row['domain']} {row['language']}" for row in advice["rows"]]
    plots = []
    for domain in dict.fromkeys(row["domain"] for row in advice["rows"]):
        mine = [row for row in advice["rows"] if row["domain"] == domain]
        lines = [Line(names[i], [0, *sizes], [0, *(100 * share for share in row["saved"])], i % 5)
                 for i, row in enumerate(mine)]  # fmt: skip
        chart = line_chart(domain, lines, "new tokens", "tokens saved, %")
        caption = ", ".join(f"{row['language']} {row['saved'][-1]:.1%}" for row in mine)
        plots.append({"title": domain, "svg": chart, "caption": f"at the right end: {caption}"})
    legend = tuple(dict.fromkeys(row["language"] for row in advice["rows"]))
    return make_section(
        "What more tokens would save", vocabulary_notes(advice), legend=legend, plots=plots,
        tables=[make_table(header, rows, 2),
                make_table(("embedding parameters added", *header[3:]), models, 1)],
    )  # fmt: skip


# --- documents -----------------------------------------------------------------------------------


def _duplicate_section(audits: Mapping) -> dict:
    repeated, pairs = [], []
    for name, audit in audits.items():
        found = audit["duplicates"]
        if found is None:
            continue
        repeated += [(group["times"], name, group["text"]) for group in found["most_repeated"]]
        pairs += [(name, example) for example in found["near_examples"]]
    words = ["Whole documents of the windows read, each set for itself; in a sample of a part f of "
             "the windows, only about f squared of all pairs can meet. What is a duplicate is the "
             "rule of `ellama curate`."]  # fmt: skip
    if all(audit["duplicates"] is None for audit in audits.values()):
        words = ["Not looked for: windows are decoded for this, which needs their tokenizer."]
    elif not repeated and not pairs:
        words.append("None found.")
    repeated.sort(key=lambda group: -group[0])
    # A few of every set before more of one.
    order = sorted(range(len(pairs)), key=lambda index: _place_in_set(pairs, index))
    markup = _repeated_markup(repeated[:_MOST_REPEATED])
    markup += "".join(_pair_markup(*pairs[index]) for index in order[:_MOST_PAIRS])
    return {**make_section("Duplicates left", words), "markup": markup}


def _repeated_markup(repeated: Sequence[tuple[int, str, str]]) -> str:
    if not repeated:
        return ""
    items = "".join(
        f'<div class="again"><b>{times} times in {escape_text(name)}</b>'
        f'<div class="text" dir="auto">{escape_text(one_line(text, 200))}</div></div>'
        for times, name, text in repeated
    )
    return f'<div class="card twin"><h3>Most repeated</h3>{items}</div>'


def _place_in_set(pairs: Sequence[tuple], index: int) -> tuple[int, int]:
    return sum(name == pairs[index][0] for name, _ in pairs[:index]), index


def _pair_markup(name: str, example: Mapping) -> str:
    first, second = (printable(example[key])[:_MOST_CHARACTERS] for key in ("first", "second"))
    left, right = mark_differences(first, second)
    return (
        f'<div class="card twin"><h3>{escape_text(name)}, similarity {example["similarity"]:.2f}</h3>'
        f'<div class="pair"><div class="text" dir="auto">{left}</div>'
        f'<div class="text" dir="auto">{right}</div></div></div>'
    )


def mark_differences(first: str, second: str) -> tuple[str, str]:
    """Returns both texts as markup, with the words marked in which they differ.

    >>> mark_differences("size <S>", "size <L>")
    ('size <mark>&lt;S&gt;</mark>', 'size <mark>&lt;L&gt;</mark>')
    """
    words = [re.findall(r"\s+|\S+", text) for text in (first, second)]
    sides: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, *words, autojunk=False)
    for kind, *spans in matcher.get_opcodes():
        for side, side_words, (start, end) in zip(
            sides, words, (spans[:2], spans[2:]), strict=True
        ):
            text = escape_text("".join(side_words[start:end]))
            side.append(text if kind == "equal" or not text else f"<mark>{text}</mark>")
    return "".join(sides[0]), "".join(sides[1])


def _window_section(sets: Sequence[WindowSet], tokenizer: Tokenizer | None) -> dict | None:
    if tokenizer is None:
        return None
    each = max(1, min(2, _MOST_WINDOWS // len(sets)))
    fitting = [w for w in sets if w.manifest.tokenizer_fingerprint == tokenizer.fingerprint]
    step = -(-len(fitting) // _MOST_WINDOWS)  # of many sets, some of all kinds
    chosen = [(windows, index) for windows in fitting[:: max(1, step)]
              for index in _telling_windows(windows)[:each]]  # fmt: skip
    markup = "".join(window_markup(windows, index, tokenizer, is_open=number < 2)
                     for number, (windows, index) in enumerate(chosen))  # fmt: skip
    words = ["Each colour is a document, a chip a special token, a dashed edge the place where a "
             "split document was cut; the strip shows the whole window."]  # fmt: skip
    return {**make_section("Windows, decoded", words), "markup": markup}


def _telling_windows(windows: WindowSet) -> list[int]:
    """Returns two windows of the first ones: the one of most documents, and one with a cut."""
    looked_at = range(min(_LOOKED_AT, len(windows)))
    read = windows.read(looked_at)
    pieces = [cut_window(read[index], windows.manifest, index) for index in looked_at]
    most = max(looked_at, key=lambda index: len(pieces[index]))
    cut = [i for i in looked_at if i != most and not all(p.begins and p.ends for p in pieces[i])]
    return [most, *cut[:1]]


def window_markup(
    windows: WindowSet, index: int, tokenizer: Tokenizer, is_open: bool = True
) -> str:
    """Returns one decoded window as markup: a strip of its documents, then their text."""
    tokens = windows[index]
    pieces = cut_window(tokens, windows.manifest, index)
    padding = int((tokens == PADDING).sum())
    strip = "".join(
        f'<i class="c{(piece.number - 1) % 5}" style="flex-grow:{len(piece.tokens)}"></i>'
        for piece in pieces
    )
    strip += f'<i class="padding" style="flex-grow:{padding}"></i>' if padding else ""
    shown = "".join(_piece_markup(piece, tokenizer) for piece in pieces[:_MOST_PIECES])
    if len(pieces) > _MOST_PIECES:
        shown += f'<p class="soft">and {len(pieces) - _MOST_PIECES:,} more documents</p>'
    if padding:
        shown += f'<div class="piece padding">{padding:,} padding</div>'
    documents = "1 document" if len(pieces) == 1 else f"{len(pieces)} documents"
    title = f"{windows.path.name}, window {index}: {documents}, {padding:,} padding"
    folded = f"<details{' open' if is_open else ''}><summary>documents</summary>{shown}</details>"
    return (f'<div class="card window"><h3>{escape_text(title)}</h3><div class="strip">{strip}</div>'
            f"{folded}</div>")  # fmt: skip


def _piece_markup(piece: Piece, tokenizer: Tokenizer) -> str:
    body, left = "", _MOST_CHARACTERS
    runs = list(special_runs(piece.tokens, tokenizer))
    for special, ids in runs:
        text = printable(tokenizer.decode(ids.tolist()))
        if special:
            body += f'<bdi class="chip">{escape_text(text)}</bdi>'
        else:
            body += escape_text(text[:left])
            more = len(text) - left
            body += f'<span class="soft"> … {more:,} more characters … </span>' if more > 0 else ""
            left = max(0, left - len(text))
    edges = "" if piece.begins else " cut-begin"
    edges += "" if piece.ends else " cut-end"
    return (
        f'<div class="piece c{(piece.number - 1) % 5}{edges}"><h4>{escape_text(piece_title(piece))}</h4>'
        f'<div class="text" dir="auto">{body}</div></div>'
    )


# --- small parts ---------------------------------------------------------------------------------


def escape_text(text: str) -> str:
    """Makes markup of a text that may hold anything."""
    return escape(text, quote=True)


def make_tile(name: str, value: str, note: str, tone: str = "") -> dict:
    """Returns one of the large numbers on top of a page."""
    return {"name": name, "value": value, "note": note, "tone": tone}


def _cell(text: str) -> dict:
    return {"text": text, "small": "", "tone": ""}


def make_row(texts: Sequence[str]) -> list[dict]:
    """Returns a row of plain cells."""
    return [_cell(text) for text in texts]


def make_table(header: Sequence[str], rows: Sequence, text_columns: int) -> dict:
    """Returns a table whose first columns are text and the others numbers."""
    return {"header": header, "rows": rows, "text_columns": text_columns}


def make_plot(title: str, bars: Sequence[Bar], caption: str = "") -> dict:
    """Returns a plot of bars."""
    return {"title": title, "svg": bar_chart(title, bars), "caption": caption}


def _colour(domain: str) -> int:
    return 0 if domain == "ecommerce" else 1


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def short_number(count: float) -> str:
    """Writes a large number with three digits.

    >>> short_number(950), short_number(12_345), short_number(2.5e12)
    ('950', '12.3k', '2.5T')
    """
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if name == 'k' else size):.3g}{name}"
    return f"{count:,.0f}"
