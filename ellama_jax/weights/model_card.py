"""The model card of an export: what the model is and everything it was made of.

Owns the words of README.md; the facts are those of the checkpoint's meta and data.
"""

from collections.abc import Iterator
from pathlib import Path

from ellama_jax.model.llama import count_params
from ellama_jax.weights.layout import CheckpointInfo, read_json_item, verification_state

CARD_FILE = "README.md"

_TITLES = {"import": "Llama model", "train": "Adapted Llama model", "merge": "Merged Llama model"}


def write_card(path: Path, info: CheckpointInfo) -> None:
    """Writes the card of a checkpoint's export."""
    path.write_text(make_card(info), encoding="utf-8")


def make_card(info: CheckpointInfo) -> str:
    """Returns the card: sizes, verification, and the provenance down to the first files."""
    config, provenance = info.config, info.meta["provenance"]
    title = _TITLES.get(provenance["kind"], "Llama model")
    return "\n".join([
        "---", "library_name: transformers", "pipeline_tag: text-generation",
        "tags: [llama, ellama_jax]", "---", "",
        f"# {title}: {config.name}", "",
        f"{count_params(config):,} parameters, {config.num_layers} layers, vocabulary "
        f"{config.vocab_size:,}, context {config.max_seq_len:,}. Written by ellama_jax from step "
        f"{info.step} of a checkpoint; the licence of the base model applies.", "",
        "## Provenance", "",
        *_describe(provenance, 0), *_describe_tokens(info), "",
        "## Verification", "",
        _describe_verification(info.meta), "",
        "## Made with", "",
        *(f"- {name} {version}" for name, version in info.meta["versions"].items() if version),
        f"- commit {info.meta['commit'] or 'unknown'}",
        f"- tokenizer fingerprint {info.meta['tokenizer_fingerprint']}", "",
    ])  # fmt: skip


def _describe(provenance: dict, depth: int) -> Iterator[str]:
    indent = "  " * depth
    describe = {"train": _describe_training, "merge": _describe_merge}
    lines = describe.get(provenance.get("kind"), _describe_import)(provenance)
    yield from (f"{indent}{line}" for line in lines)


def _describe_import(provenance: dict) -> Iterator[str]:
    if "source" in provenance:
        yield f"- {provenance['source']}"
        return
    yield f"- imported, format {provenance['format']}, from"
    for source in provenance["sources"]:
        yield f"  - `{source['name']}`, {source['bytes']:,} bytes, sha256 `{source['sha256']}`"


def _describe_training(provenance: dict) -> Iterator[str]:
    yield f"- continually pretrained for {provenance['step']} steps"
    for source in provenance.get("data", []):
        yield (
            f"  - {source['token_share']:.1%} {source['name']}: {source['domain']} text, language "
            f"{source['language']}, {source['num_tokens']:,} tokens in {source['num_documents']:,} "
            "documents"
        )
    yield f"  - mixture fingerprint `{provenance['mixture_fingerprint']}`"
    if provenance.get("base_provenance") is None:
        yield f"  - base: {provenance['base']}"
    else:
        yield "  - base:"
        yield from _describe(provenance["base_provenance"], 2)


def _describe_merge(provenance: dict) -> Iterator[str]:
    yield f"- merged, method {provenance['method']}, alpha {provenance['alpha']:g}, of"
    for source in provenance["sources"]:
        yield f"  - {source['role']}: `{source['name']}` step {source['step']}, weights sha256 `{source['params_sha256']}`"  # fmt: skip
        yield from _describe(source["provenance"], 2)


def _describe_verification(meta: dict) -> str:
    state, found = verification_state(meta), meta["verification"] or {}
    if state == "never":
        return "The conversion of the base was never compared with its source."
    inherited = ", inherited from what it was made of" if "inherited_from" in found else ""
    return f"Conversion against the source: {state}{inherited} ({found['summary']})."


def _describe_tokens(info: CheckpointInfo) -> Iterator[str]:
    """Says what a trained step has read; imported and merged ones have no data item."""
    if (info.path / "data").is_dir():
        ledger = read_json_item(info.path, "data")["ledger"]
        yield from ("", "Tokens consumed:", "")
        yield from (f"- {name}: {tokens:,}" for name, tokens in ledger.items())
