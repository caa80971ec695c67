"""The model card of an export: what the model is and everything it was made of.

Owns the page, README.md; the words for provenance and verification are origin.py's.
"""

import re
from pathlib import Path

from ellama_jax.model.llama import count_params
from ellama_jax.weights.layout import CheckpointInfo, read_json_item
from ellama_jax.weights.origin import describe_provenance, describe_verification

CARD_FILE = "README.md"

_TITLES = {
    "import": "Llama model",
    "train": "Adapted Llama model",
    "merge": "Merged Llama model",
    "average": "Averaged Llama model",
}
_ALL_DIGITS = 64
# A directory of this machine or of a bucket, with what lies in it: /home/me/runs/de/checkpoints/9.
_PLACE = re.compile(r"(?:(?<![\w.:/~-])~?/|gs://)[^\s,;:'\"`()]+")


def make_card(info: CheckpointInfo, results: str = "") -> str:
    """Returns the card: sizes, results, provenance down to the first files, verification, versions.

    Args:
        info: the checkpoint.
        results: Markdown, as `ellama evaluate --markdown` writes it; empty for none.
    """
    config, meta = info.config, _published(info.meta)
    # Only trained steps have a data item.
    data = read_json_item(info.path, "data") if (info.path / "data").is_dir() else None
    checked = {**meta, "path": info.root.name}
    return "\n".join([
        "---", "library_name: transformers", "pipeline_tag: text-generation",
        "tags: [llama, ellama_jax]", "---", "",
        f"# {_TITLES.get(meta['provenance']['kind'], 'Llama model')}: {config.name}", "",
        f"{count_params(config):,} parameters, {config.num_layers} layers, vocabulary "
        f"{config.vocab_size:,}, context {config.max_seq_len:,}. {_say_writing(info)}; the licence of "
        "the base model applies.", "",
        *(["## Results", "", _published(results.strip()), ""] if results.strip() else []),
        "## Provenance", "", "```",
        *describe_provenance(meta["provenance"], data, _ALL_DIGITS), "```", "",
        "## Conversion against the source", "", "```", *describe_verification(checked), "```", "",
        "## Made with", "",
        *(f"- {name} {version}" for name, version in meta["versions"].items() if version),
        f"- commit {meta['commit'] or 'unknown'}",
        *([f"- weights hash {meta['weights']['hash']}"] if "weights" in meta else []),
        f"- tokenizer fingerprint {meta['tokenizer_fingerprint']}", "",
    ])  # fmt: skip


def _published(value):
    """Leaves the last two names of every path, for a card is read by others."""
    if isinstance(value, dict):
        return {key: _published(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_published(part) for part in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute():  # with spaces too
        return "/".join(Path(value).parts[-2:])
    return _PLACE.sub(lambda found: "/".join(found[0].rstrip("/").split("/")[-2:]), value)


def _say_writing(info: CheckpointInfo) -> str:
    # A merge written as a Hugging Face directory lies in no root.
    if info.root == info.path:
        return "Merged by ellama_jax"
    return f"Written by ellama_jax from step {info.step} of a checkpoint"


def write_card(path: Path, info: CheckpointInfo, results: str = "") -> None:
    """Writes the card of a checkpoint's export, with `results` as `make_card` takes them."""
    path.write_text(make_card(info, results), encoding="utf-8")
