"""Owns the page of a curation: each source's way from records to documents, and examples.

The figures are corpus/curation_audit.py's; the frame and the looks are the audit's and the report's.
"""

from collections.abc import Mapping

from ellama_jax.core.terminal import printable
from ellama_jax.corpus.curation_audit import sum_sets
from ellama_jax.report.audit_html import (
    STYLE,
    escape_text,
    make_plot,
    make_row,
    make_table,
    make_tile,
    problem_section,
    short_number,
)
from ellama_jax.report.curation_text import (
    FATES,
    example_text,
    example_title,
    funnel_steps,
    mebibytes_text,
)
from ellama_jax.report.page import render_page
from ellama_jax.report.plots import Bar
from ellama_jax.report.sections import make_section

_MOST_CHARACTERS = 900  # of one example
_MOST_ITEMS = 50  # of the evaluation sets
_GONE, _KEPT = 3, 0  # colours
_DOMAINS = {"ecommerce": 0, "general": 1}

_MORE_STYLE = """
.fate { border-left: 4px solid var(--tone); padding: 6px 10px 8px; margin: 0 0 10px;
  background: color-mix(in srgb, var(--tone) 8%, transparent); border-radius: 0 6px 6px 0; }
.fate h4 { margin: 0 0 4px; font-size: .8rem; font-weight: 600; color: var(--soft);
  overflow-wrap: anywhere; }
"""


def render_curation(title: str, audit: Mapping) -> str:
    """Builds the page of a curation, as `audit_curation` found it.

    Returns:
        One HTML document that refers to nothing outside itself.
    """
    sections = [
        problem_section(audit["problems"], "No problem was found."),
        _funnel_section(audit),
        _kept_section(audit),
        _evaluation_section(audit),
        *_example_sections(audit),
        _origin_section(audit),
    ]
    content = {
        "title": title,
        "subtitle": f"{len(audit['sources'])} sources, made by ellama_jax {audit['version']}",
        "tiles": _tiles(audit),
        "sections": sections,
        "footer": "Made by `ellama inspect` from curation.json.",
    }
    return render_page(content, STYLE + _MORE_STYLE)


def _tiles(audit: Mapping) -> list[dict]:
    sources, problems = audit["sources"], audit["problems"]
    read = sum(source["read"] for source in sources)
    dropped = sum(sum(source["dropped"].values()) for source in sources)
    kept = sum(source["kept"]["documents"] for source in sources)
    size = sum(source["kept"]["bytes"] for source in sources)
    held = sum_sets(sources, ["split"]).get(("heldout",), {"documents": 0})["documents"]
    return [
        make_tile("problems", str(len(problems)), "listed below" if problems else "none found",
                  "bad" if problems else "good"),
        make_tile("records read", short_number(read), f"of {len(sources)} sources"),
        make_tile("dropped", f"{dropped / max(1, read):.1%}", f"{dropped:,} records"),
        make_tile("documents kept", short_number(kept), mebibytes_text(size)),
        make_tile("held out", f"{held / max(1, kept):.1%}", f"{held:,} documents"),
    ]  # fmt: skip


def _funnel_section(audit: Mapping) -> dict:
    plots, rows = [], []
    for source in audit["sources"]:
        left = source["read"]
        bars = [Bar("", "read", left, 1, text=f"{left:,}")]
        for what, number, size in funnel_steps(source):
            colour = _KEPT if what == "kept" else _GONE
            bars.append(Bar("", what, abs(number), colour, text=f"{number:,}"))
            share = f"{abs(number) / max(1, source['read']):.1%}"
            rows.append(make_row([source["name"], what, f"{number:,}", share, size]))
        plots.append(make_plot(source["name"], bars, _source_caption(source)))
    words = ["What became of the records of each source, in the order from the most frequent loss. "
             "Variants of one product are joined in one document and not lost."]  # fmt: skip
    header = ("source", "what became of them", "records", "of those read", "size")
    return make_section("From records to documents", words, plots=plots,
                        tables=[make_table(header, rows, 2)])  # fmt: skip


def _source_caption(source: Mapping) -> str:
    said = [source["kind"], *([source["licence"]] if source["licence"] else [])]
    said += [f"{what} changed in {number:,}" for what, number in source["changed"].items()]
    return ", ".join(said)


def _kept_section(audit: Mapping) -> dict:
    plots = []
    sums = sum_sets(audit["sources"], ["domain", "language"])
    if sums:
        for key, title in (("bytes", "Text kept"), ("documents", "Documents kept")):
            bars = [Bar(domain, language, counts[key], _DOMAINS.get(domain, 2),
                        text=mebibytes_text(counts[key]) if key == "bytes" else f"{counts[key]:,}")
                    for (domain, language), counts in sums.items()]  # fmt: skip
            plots.append(make_plot(title, bars))
    kept = sum_sets(audit["sources"], ["domain", "language", "split"])
    rows = [make_row([*key, f"{counts['documents']:,}", mebibytes_text(counts["bytes"])])
            for key, counts in kept.items()]  # fmt: skip
    header = ("domain", "language", "split", "documents", "size")
    words = [] if sums else ["Nothing was kept."]
    return make_section("Kept text by domain and language", words, plots=plots,
                        tables=[make_table(header, rows, 3)] if rows else [])  # fmt: skip


def _evaluation_section(audit: Mapping) -> dict:
    found = audit["evaluation"]
    if not found:
        return make_section("Evaluation text", ["None was found, or none was looked for."])
    words = [f"{len(found):,} items were found in documents, which were left out."]
    if len(found) > _MOST_ITEMS:
        words.append(f"The {_MOST_ITEMS} that were found most often:")
    rows = [make_row([item["set"], printable(item["item"]), ", ".join(item["sources"]),
                      f"{item['documents']:,}"]) for item in found[:_MOST_ITEMS]]  # fmt: skip
    table = make_table(("set", "item", "in sources", "documents"), rows, 3)
    return make_section("Evaluation text", words, tables=[table])


def _example_sections(audit: Mapping) -> list[dict]:
    """Returns a section for each source: what was left out beside what was kept."""
    sections = []
    for source, examples in audit["examples"].items():
        left = "".join(_example_markup(fate, example) for fate in ("dropped", "bad")
                       for example in examples[fate])  # fmt: skip
        right = "".join(_example_markup("kept", example) for example in examples["kept"])
        nothing = '<p class="soft">none</p>'
        markup = (f'<div class="card twin"><div class="pair"><div><h3>Left out</h3>{left or nothing}'
                  f"</div><div><h3>Kept</h3>{right or nothing}</div></div></div>")  # fmt: skip
        sections.append({**make_section(f"Examples of {source}"), "markup": markup})
    return sections


def _example_markup(fate: str, example: Mapping) -> str:
    tone = {"kept": "c0", "dropped": "c3", "bad": "c4"}[fate]
    title = escape_text(f"{FATES[fate]}: {example_title(fate, example)}")
    text = escape_text(example_text(fate, example, _MOST_CHARACTERS))
    return (f'<div class="fate {tone}"><h4>{title}</h4><div class="text" dir="auto">{text}</div>'
            "</div>")  # fmt: skip


def _origin_section(audit: Mapping) -> dict:
    text = "\n".join([printable(audit["command"]), *map(printable, audit["notes"])])
    return make_section("How it was made", blocks=[
        {"folded": True, "title": "Command and origins", "text": text}])  # fmt: skip
