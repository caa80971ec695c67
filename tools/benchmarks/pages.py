"""Language identification and quality rules on real text: how often right, what is refused, how fast.

    python tools/benchmarks/pages.py --cache /tmp/real --records ../shared/data

fetches real text by the machine's package clients (real_texts.py). The help of LibreOffice in other
languages holds English paragraphs that nobody translated, so its labels are no truth: what is told
of it is shown, and not counted as right or wrong.
"""

import argparse
import time
from collections import Counter, defaultdict
from pathlib import Path

from classifier import pick
from real_texts import LANGUAGES, load_real_texts

from ellama_jax.corpus.language import identify_language, keep_language, language_shares
from ellama_jax.corpus.quality import judge_quality

LENGTHS = (20, 40, 80, 200, 1000)
UNSURE_LABELS = ("libreoffice-help", "installation-guide")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--most", type=int, default=150, help="documents a source and language")
    args = parser.parse_args()
    records = pick(load_real_texts(args.cache, args.records), args.most)
    languages_by_length(records)
    mixed_pages(records)
    refusals(records)
    speeds(records)


def languages_by_length(records: list[dict]) -> None:
    print("language told right, by characters of the text (all 176 languages | among five)")
    cells = defaultdict(Counter)
    for one in records:
        if one["source"] in UNSURE_LABELS:
            continue
        length = next((limit for limit in LENGTHS if len(one["text"]) < limit), None)
        texts = [(length, one["text"])]
        if "title" in one:
            title = one["title"]
            texts.append((next((limit for limit in LENGTHS if len(title) < limit), None), title))
        if one["source"] == "taxonomy":
            name = one["text"].split("\n")[-1].split(", ")[0]
            texts.append((next((limit for limit in LENGTHS if len(name) < limit), None), name))
        for limit, text in texts:
            cell = cells[one["language"], limit]
            cell["all"] += 1
            cell["alone"] += identify_language(text)[0] == one["language"]
            cell["among"] += identify_language(text, LANGUAGES)[0] == one["language"]
    for language in LANGUAGES:
        row = []
        for limit in (*LENGTHS, None):
            cell = cells[language, limit]
            if cell["all"]:
                row.append(f"<{limit or 'more'}: {cell['alone'] / cell['all']:.3f} | "
                           f"{cell['among'] / cell['all']:.3f} ({cell['all']})")  # fmt: skip
        print(f"  {language}  " + "   ".join(row), flush=True)


def mixed_pages(records: list[dict]) -> None:
    """Lays English paragraphs between those of another language and takes them out again."""
    print("keep_language: paragraphs of the Debian reference, every second one English")
    prose = defaultdict(list)
    for one in records:
        if one["source"] == "debian-reference":
            prose[one["language"]] += one["text"].split("\n")
    for language in LANGUAGES[1:]:
        own, english = prose[language][:200], prose["en"][:200]
        pairs = list(zip(own, english, strict=False))
        kept = set(keep_language("\n".join(f"{a}\n{b}" for a, b in pairs), language).split("\n"))
        print(f"  {language}: kept {sum(a in kept for a, _ in pairs) / len(pairs):.3f} of its own, "
              f"{sum(b in kept for _, b in pairs) / len(pairs):.3f} of the English")  # fmt: skip
    print("English share of the letters of a help page, before and after keep_language")
    for language in LANGUAGES[1:]:
        texts = [
            one["text"]
            for one in records
            if (one["source"], one["language"]) == ("libreoffice-help", language)
        ]
        after = [keep_language(text, language) for text in texts]
        before, left = english_frac(texts), english_frac(after)
        size = sum(map(len, after)) / sum(map(len, texts))
        print(f"  {language}: {before:.3f} -> {left:.3f}, {size:.3f} of the characters kept", flush=True)  # fmt: skip


def english_frac(texts: list[str]) -> float:
    shares = [(language_shares(text).get("en", 0.0), len(text)) for text in texts]
    return sum(share * size for share, size in shares) / sum(size for _, size in shares)


def refusals(records: list[dict]) -> None:
    print(
        "share kept by the quality rules as prose | as shop, and what refused most as its own kind"
    )
    cells = defaultdict(lambda: (Counter(), Counter()))
    for one in records:
        for number, kind in enumerate(("prose", "shop")):
            verdict = judge_quality(one["text"], one["language"], kind) or "kept"
            cells[one["domain"], one["source"], one["language"]][number][verdict] += 1
    for (domain, source, language), counts in sorted(cells.items()):
        own = counts[domain == "ecommerce"]
        reasons = ", ".join(f"{n} {why}" for why, n in own.most_common(4) if why != "kept")
        shares = " | ".join(f"{count['kept'] / count.total():.3f}" for count in counts)
        print(f"  {domain:<9} {source:<18} {language} {own.total():>4}  {shares}  {reasons}", flush=True)  # fmt: skip


def speeds(records: list[dict]) -> None:
    print("documents a second of one core (CPU time, not the clock's)")
    prose = [one for one in records if one["domain"] == "general" and len(one["text"]) > 500]
    for name, chosen in (
        ("prose", prose),
        ("shop", [r for r in records if r["domain"] != "general"]),
    ):
        size = sum(len(one["text"]) for one in chosen) / len(chosen)
        for stage, do in (
            ("identify_language", lambda one: identify_language(one["text"])),
            ("keep_language", lambda one: keep_language(one["text"], one["language"])),
            ("judge_quality", lambda one: judge_quality(one["text"], one["language"])),
        ):
            started = time.process_time()
            for one in chosen:
                do(one)
            rate = len(chosen) / (time.process_time() - started)
            print(
                f"  {stage:<18} {name:<5} {rate:>8.0f} docs/s, {rate * size / 1e6:.2f} M characters/s"
            )


if __name__ == "__main__":
    main()
