"""What a finished curation holds, as figures: each source's way from records to documents.

Owns the figures and what counts as a problem, as plain data from curation.json; documents are read
for examples only. How they are shown is report/curation_text.py's and report/curation_html.py's.
"""

import gzip
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ellama_jax.corpus.curation_output import curated_files, read_report

MAX_DROPPED = 0.5  # of a source's readable records, joined variants not counted
DEFAULT_EXAMPLES = 3  # of each source and fate, on a page
_KEPT, _CHANGED, _JOINED = "kept: ", "changed: ", "variant: "
_SPLITS = ("train", "heldout")


def audit_curation(directory: Path, examples: int | None = None) -> dict:
    """Measures a directory of `ellama curate`.

    Args:
        directory: with curation.json.
        examples: how many of each source to read of what was kept, dropped and bad; None reads
            `DEFAULT_EXAMPLES`.

    Returns:
        `path`, what `measure_curation` gives, `examples` (source -> {kept, dropped, bad}) and
        `problems` [{set, text}].

    Raises:
        ValueError: if it was never finished, or a file is not whole.
    """
    for split in _SPLITS:
        curated_files(directory, "documents", split)  # says what is missing
    report = read_report(directory)
    audit = {"path": str(directory), **measure_curation(report)}
    few = DEFAULT_EXAMPLES if examples is None else examples
    audit["examples"] = {
        source["name"]: {
            "kept": list(itertools.islice(_read_kept(directory, report, source), few)),
            "dropped": _choose_dropped(report["examples"], source["name"], few),
            "bad": list(itertools.islice(_read_bad(directory, report, source["name"]), few)),
        }
        for source in audit["sources"]
    }
    return {**audit, "problems": find_curation_problems(audit)}


def measure_curation(report: Mapping) -> dict:
    """Sums what curation.json counts.

    Args:
        report: the content of curation.json.

    Returns:
        `version`, `command`, `languages` (asked for), `notes`, `evaluation` [{set, item, documents,
        sources}], the most often found first, `heldout_frac` (asked for), and `sources` [{name,
        kind, licence, read, bad, joined, dropped, changed, kept, other, sets}]. Of a source `joined`
        are variants that went into another's document, `dropped` and `changed` are {what: records},
        `kept` is {documents, bytes}, `other` what is left of `read` after all these (0 where every
        record is one document), and `sets` [{domain, language, split, documents, bytes}].
    """
    recipe = report["recipe"]
    return {
        "version": report["version"],
        "command": report["command"],
        "languages": list(recipe["languages"]),
        "heldout_frac": max(recipe["split"]["heldout_frac"], recipe["split"]["heldout_texts_frac"]),
        "notes": list(report["notes"]),
        "sources": [_measure_source(name, recipe["sources"][name], by_language)
                    for name, by_language in report["counts"].items()],
        "evaluation": _sum_matches(report["evaluation_text"]),
    }  # fmt: skip


def _measure_source(name: str, asked: Mapping, by_language: Mapping) -> dict:
    total = Counter()
    for counts in by_language.values():
        total.update(counts)
    sets = list(_find_sets(by_language))
    kept = {key: sum(found[key] for found in sets) for key in ("documents", "bytes")}
    joined = sum(n for what, n in total.items() if what.startswith(_JOINED))
    dropped = {what: n for what, n in sorted(total.items()) if n and not what.startswith(
        (_KEPT, _CHANGED, _JOINED)) and what not in ("read", "bad")}  # fmt: skip
    changed = {what.removeprefix(_CHANGED): n for what, n in sorted(total.items())
               if n and what.startswith(_CHANGED)}  # fmt: skip
    gone = total["bad"] + joined + sum(dropped.values())
    return {
        "name": name, "kind": asked["kind"], "licence": asked["licence"],
        "read": total["read"], "bad": total["bad"], "joined": joined, "dropped": dropped,
        "changed": changed, "kept": kept, "other": total["read"] - gone - kept["documents"],
        "sets": sets,
    }  # fmt: skip


def _find_sets(by_language: Mapping) -> Iterator[dict]:
    for language, counts in sorted(by_language.items()):
        for what, documents in sorted(counts.items()):
            if what.startswith(_KEPT) and not what.endswith(", bytes"):
                domain, split = what.removeprefix(_KEPT).split(", ")
                yield {"domain": domain, "language": language, "split": split,
                       "documents": documents, "bytes": counts[f"{what}, bytes"]}  # fmt: skip


def sum_sets(sources: Sequence[Mapping], keys: Sequence[str]) -> dict[tuple, Counter]:
    """Sums documents and bytes of all sources' sets by some of domain, language and split."""
    sums: dict[tuple, Counter] = defaultdict(Counter)
    for found in (found for source in sources for found in source["sets"]):
        counts = {name: found[name] for name in ("documents", "bytes")}
        sums[tuple(found[key] for key in keys)].update(counts)
    return dict(sorted(sums.items()))


def _sum_matches(matches: Sequence[Mapping]) -> list[dict]:
    documents: dict[tuple, set] = defaultdict(set)
    sources: dict[tuple, set] = defaultdict(set)
    for match in matches:
        item = match["set_name"], str(match["item_id"])
        documents[item].add(match["id"])
        sources[item].add(match["source"])
    order = sorted(documents, key=lambda item: (-len(documents[item]), item))
    return [{"set": item[0], "item": item[1], "documents": len(documents[item]),
             "sources": sorted(sources[item])} for item in order]  # fmt: skip


def find_curation_problems(audit: Mapping) -> list[dict]:
    """Says in words what a curation should not have done: [{set, text}]."""
    problems = []
    for source in audit["sources"]:
        problems += [{"set": source["name"], "text": text} for text in _source_problems(source)]
    found = {language for (language,) in sum_sets(audit["sources"], ["language"])}
    for language in audit["languages"]:
        if language not in found:
            problems.append({"set": "all sources", "text": f"no text was kept in {language}, which "
                             "the recipe asks for"})  # fmt: skip
    splits = sum_sets(audit["sources"], ["split"])
    if ("heldout",) not in splits:
        asked = audit["heldout_frac"]
        problems.append({"set": "all sources", "text": "nothing is held out, so no bits per byte "
                         f"can be measured (the recipe asks for {asked:.1%})"})  # fmt: skip
    if splits and ("train",) not in splits:
        problems.append({"set": "all sources", "text": "everything is held out"})
    return problems


def _source_problems(source: Mapping) -> Iterator[str]:
    good = source["read"] - source["bad"] - source["joined"]
    dropped = sum(source["dropped"].values())
    if not source["kept"]["documents"]:
        yield f"nothing is kept of {source['read']:,} records"
    elif dropped > MAX_DROPPED * good:
        most = max(source["dropped"], key=lambda what: (source["dropped"][what], what))
        yield (f"{dropped:,} of {good:,} readable records ({dropped / good:.1%}) were dropped, "
               f"most for: {most} ({source['dropped'][most]:,})")  # fmt: skip
    if source["bad"]:
        yield (f"{source['bad']:,} of {source['read']:,} records were bad; dead_letters/ names "
               "each with its reason")  # fmt: skip


# --- examples ------------------------------------------------------------------------------------


def _read_kept(directory: Path, report: Mapping, source: Mapping) -> Iterator[dict]:
    """Yields documents of a source, of its sets by turns; shards are in random order already."""
    names = [file["name"] for file in report["files"]]
    readers = []
    for split, found in ((split, found) for split in _SPLITS for found in source["sets"]):
        prefix = f"documents/{split}/{found['domain']}-{found['language']}-{source['name']}-"
        # The number follows: "shop" is no "shop-b".
        mine = [name for name in names if name.startswith(prefix)
                and name.removeprefix(prefix)[:5].isdigit()]  # fmt: skip
        if split == found["split"] and mine:
            place = {"split": split, "language": found["language"], "domain": found["domain"]}
            readers.append(_with(place, _read_lines(directory / name for name in mine)))
    while readers:
        for reader in list(readers):
            try:
                yield next(reader)
            except StopIteration:
                readers.remove(reader)


def _with(place: Mapping, records: Iterator[dict]) -> Iterator[dict]:
    return ({**place, "id": record["id"], "text": record["text"]} for record in records)


def _read_lines(paths: Iterator[Path]) -> Iterator[dict]:
    for path in paths:
        with path.open("rb") as raw, gzip.open(raw) as lines:
            yield from map(json.loads, lines)


def _choose_dropped(examples: Sequence[Mapping], source: str, few: int) -> list[dict]:
    """Chooses examples of all reasons by turns."""
    turns = defaultdict(list)
    for example in (example for example in examples if example["source"] == source):
        turns[example["reason"]].append(example)
    order = itertools.zip_longest(*(turns[reason] for reason in sorted(turns)))
    return [dict(example) for turn in order for example in turn if example][:few]


def _read_bad(directory: Path, report: Mapping, source: str) -> Iterator[dict]:
    prefix = f"dead_letters/{source}-"
    names = [file["name"] for file in report["files"] if file["name"].startswith(prefix)
             and file["name"].removeprefix(prefix)[:5].isdigit()]  # fmt: skip
    return _read_lines(directory / name for name in names)
