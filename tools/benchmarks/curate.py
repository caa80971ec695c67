"""How fast `ellama curate` reads and writes, step by step and as a whole.

What: MB of text a second on one core for each thing that is done to a document (alone, in a plain
loop), then documents and MB a second of the whole verb with one and two workers, its peak memory,
and what Beam itself costs: the same pipeline's share beyond the steps. Listings are the synthetic
catalogue's, 16,800 of 3,360 products in five languages; pages are paragraphs of the Debian
reference, drawn anew for each page (fetched by apt-get; without it the synthetic general text).
Command: python tools/benchmarks/curate.py --megabytes 20
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ellama_jax.corpus import sources
from ellama_jax.corpus.catalogue import generate_listings, max_products
from ellama_jax.corpus.duplicates import Signer, exact_key
from ellama_jax.corpus.language import identify_language
from ellama_jax.corpus.listings import clean_listing, listing_to_document, normalise_listing
from ellama_jax.corpus.privacy import mask_private
from ellama_jax.corpus.quality import judge_quality
from ellama_jax.corpus.variants import collapse_variants
from ellama_jax.experiments.general_text import generate_general_documents

RECIPE = """
from configs.data import base


def get_config(root):
    config = base.get_config()
    config.sources.catalogue = base.source(kind="listings", paths=(f"{root}/listings.jsonl",))
    config.sources.web = base.source(kind="pages", paths=(f"{root}/pages.jsonl",), domain="general",
                                     language="detect")
    return config
"""


def draw_pages(cache: Path, megabytes: float) -> list[str]:
    """Returns pages of ten paragraphs each, about so many MB in all."""
    sources.gather_sources(cache, names=("debian-reference",))
    records = sources.load_debian_documents(cache) or list(generate_general_documents(0, 400))
    by_language: dict[str, list[str]] = {}
    for record in records:
        by_language.setdefault(record["language"], []).extend(record["text"].split("\n"))
    rng, pages, size = random.Random(0), [], 0
    while size < megabytes * 1e6:
        paragraphs = by_language[rng.choice(sorted(by_language))]
        pages.append("\n".join(rng.choices(paragraphs, k=10)))
        size += len(pages[-1].encode())
    return pages


def write_lines(path: Path, records) -> int:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return path.stat().st_size


def time_steps(listings: list[dict], pages: list[str]) -> None:
    """Prints what each step does in a second, alone on one core."""
    signer = Signer(num_perm=128, threshold=0.8)
    documents = [listing_to_document(listing, seed=0) for listing in listings]
    steps = {
        "listing: normalise": (listings, lambda r: normalise_listing(r, source="x")),
        "listing: clean": (listings, clean_listing),
        "listing: join variants": (listings, lambda r: collapse_variants([r])),
        "listing: to document": (listings, lambda r: listing_to_document(r, seed=0)),
        "page: language": (pages, identify_language),
        "page: quality": (pages, lambda text: judge_quality(text, "en")),
        "page: private data": (pages, lambda text: mask_private(text, "en")),
        "page: exact key": (pages, exact_key),
        "page: signature": (pages, signer.sign),
        "listing: signature": (documents, signer.sign),
    }
    for name, (items, step) in steps.items():
        size = sum(len((i if isinstance(i, str) else json.dumps(i)).encode()) for i in items)
        start = time.perf_counter()
        for item in items:
            step(item)
        secs = time.perf_counter() - start
        print(f"{name:<24} {len(items) / secs:>10,.0f} /s {size / secs / 1e6:>8.1f} MB/s")


def time_verb(root: Path, workers: int, size: int, number: int) -> None:
    """Prints what the whole verb does in a second, and its peak memory."""
    command = [sys.executable, "-m", "ellama_jax.cli", "curate", f"--config={root}/recipe.py:{root}",
               "--out", str(root / "out"), "--overwrite"]  # fmt: skip
    if workers > 1:
        command += [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    secs = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"curate, {workers} workers: {secs:.1f} s, {number / secs:,.0f} records/s, "
          f"{size / secs / 1e6:.2f} MB/s, peak {peak:.2f} GiB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=20, help="of pages")
    parser.add_argument("--workers", default="1,2", help="numbers of workers to try")
    parser.add_argument("--cache", default="/tmp/ellama-sources", type=Path)
    args = parser.parse_args()
    listings = list(generate_listings(0, max_products()))
    pages = draw_pages(args.cache, args.megabytes)
    time_steps(listings[:5000], pages[:1000])
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "recipe.py").write_text(RECIPE)
        size = write_lines(root / "listings.jsonl", listings)
        size += write_lines(root / "pages.jsonl", ({"text": page} for page in pages))
        print(f"{len(listings):,} listings and {len(pages):,} pages, {size / 1e6:.1f} MB")
        for workers in map(int, args.workers.split(",")):
            time_verb(root, workers, size, len(listings) + len(pages))


if __name__ == "__main__":
    main()
