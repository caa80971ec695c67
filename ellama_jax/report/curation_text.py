"""Owns how a curation reads on a terminal or in a pipe: what became of each source's records.

The figures are corpus/curation_audit.py's, the page report/curation_html.py's.
"""

from collections.abc import Iterator, Mapping

from ellama_jax.core.terminal import one_line, printable
from ellama_jax.corpus.curation_audit import sum_sets
from ellama_jax.report.audit_text import make_ruler, table_text

_MOST_ITEMS = 10  # of the evaluation sets
_MOST_CHARACTERS = 600  # of one example
FATES = {"kept": "kept", "dropped": "dropped", "bad": "bad"}


def describe_curation(figures: Mapping) -> str:
    """Says what a curation read, left out and kept, source by source.

    Args:
        figures: from `measure_curation`.
    """
    return "\n".join(line for source in figures["sources"] for line in _source_lines(source))


def _source_lines(source: Mapping) -> Iterator[str]:
    licence = f", {source['licence']}" if source["licence"] else ""
    yield f"{source['name']}: {source['read']:,} records ({source['kind']}{licence})"
    rows = [(what, f"{number:,}", f"{number / max(1, source['read']):.1%}", size)
            for what, number, size in funnel_steps(source)]  # fmt: skip
    yield table_text(rows, 1)
    if source["changed"]:
        said = ", ".join(f"{what} {number:,}" for what, number in source["changed"].items())
        yield f"  changed in them: {said}"


def funnel_steps(source: Mapping) -> Iterator[tuple[str, int, str]]:
    """Yields what became of a source's records: (in words, how many, size of what was kept)."""
    if source["bad"]:
        yield "bad", -source["bad"], ""
    if source["joined"]:
        yield "variants joined with another", -source["joined"], ""
    for what, number in sorted(source["dropped"].items(), key=lambda item: (-item[1], item[0])):
        yield drop_words(what), -number, ""
    if source["other"]:
        # A record without a document, or several of one.
        yield "in no document or in several", -source["other"], ""
    yield "kept", source["kept"]["documents"], mebibytes_text(source["kept"]["bytes"])


def drop_words(what: str) -> str:
    """Says a reason of curation.json.

    >>> drop_words("language"), drop_words("evaluation: mmlu"), drop_words("quality: few_words")
    ('another language', 'evaluation text: mmlu', 'quality: few words')
    """
    if what == "language":
        return "another language"
    if what.startswith("evaluation: "):
        return what.replace("evaluation: ", "evaluation text: ", 1)
    return what.replace("_", " ") if what.startswith("quality: ") else what


def mebibytes_text(size: int) -> str:
    """Writes a size in MiB with as many digits as tell something.

    >>> mebibytes_text(150_000_000), mebibytes_text(1_600_000), mebibytes_text(90)
    ('143 MiB', '1.53 MiB', '0.0001 MiB')
    """
    value = size / 2**20
    digits = next((n for n, least in ((0, 100), (1, 10), (2, 0.1)) if value >= least), 4)
    return f"{value:,.{digits}f} MiB"


def describe_curation_whole(audit: Mapping) -> str:
    """Says all that a curation holds, as `audit_curation` found it."""
    kept = sum_sets(audit["sources"], ["domain", "language", "split"])
    documents = sum(counts["documents"] for counts in kept.values())
    size = mebibytes_text(sum(counts["bytes"] for counts in kept.values()))
    rows = [("domain", "language", "split", "documents", "size")]
    rows += [(*key, f"{counts['documents']:,}", mebibytes_text(counts["bytes"]))
             for key, counts in kept.items()]  # fmt: skip
    lines = [
        f"{audit['path']}: a curation of {len(audit['sources'])} sources, {documents:,} documents "
        f"({size}) kept",
        f"made by: {printable(audit['command'])}",
        *(printable(note) for note in audit["notes"]),
        describe_curation(audit), "kept text", table_text(rows, 3),
        *_evaluation_lines(audit["evaluation"]),
    ]  # fmt: skip
    return "\n".join(lines)


def _evaluation_lines(found: list[Mapping]) -> Iterator[str]:
    if not found:
        yield "no evaluation text found"
        return
    yield "evaluation text found, in documents that were left out"
    rows = [("set", "item", "in sources", "documents")]
    rows += [(item["set"], one_line(item["item"], 40), ", ".join(item["sources"]),
              f"{item['documents']:,}") for item in found[:_MOST_ITEMS]]  # fmt: skip
    yield table_text(rows, 3)
    if len(found) > _MOST_ITEMS:
        yield f"  and {len(found) - _MOST_ITEMS:,} more items"


def show_examples(audit: Mapping, colour: bool) -> str:
    """Shows documents kept, records dropped and bad ones, with a ruler line before each."""
    lines = []
    for source, examples in audit["examples"].items():
        lines.append(make_ruler("═", source, colour, strong=True))
        for fate in FATES:
            for example in examples[fate]:
                lines.append(make_ruler("─", f"{fate}: {example_title(fate, example)}", colour))
                lines.append(example_text(fate, example, _MOST_CHARACTERS))
    return "\n".join(lines)


def example_title(fate: str, example: Mapping) -> str:
    """Says where an example is from, and why it was left out."""
    if fate == "kept":
        return f"{example['id']}, {example['domain']} {example['language']}, {example['split']}"
    reason = example["reason"] if fate == "bad" else drop_words(example["reason"])
    language = "" if fate == "bad" else f" ({example['language']})"
    return one_line(f"{reason}{language}, {example['place'].rpartition('/')[2]}", 160)


def example_text(fate: str, example: Mapping, most: int) -> str:
    """Returns the text of an example, cut, with control characters written out."""
    text = printable(example["raw" if fate == "bad" else "text"]).strip() or "(no text)"
    return text if len(text) <= most else f"{text[:most]} …"
