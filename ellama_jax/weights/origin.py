"""Where a checkpoint comes from and whether that was checked, in words.

Owns the reading of meta's `provenance` and `verification`, older and partial ones too: what is not
there is not said.
"""

from collections.abc import Callable, Iterator, Mapping

from ellama_jax.weights.alphas import alphas_from_dict

_STEP = "  "


def describe_provenance(
    provenance: Mapping, data: Mapping | None = None, digits: int = 12
) -> Iterator[str]:
    """Says what made a checkpoint, down to the first files.

    Args:
        provenance: from meta.
        data: the data item of a trained step, for the tokens it has consumed.
        digits: how many of each sha256's 64 are shown.
    """
    kind = provenance.get("kind", "import")
    if kind == "train":
        yield from _describe_training(provenance, data, digits)
    else:
        yield from _KINDS.get(kind, _describe_other)(provenance, digits)


def _describe_import(provenance: Mapping, digits: int) -> Iterator[str]:
    if "source" in provenance:
        yield f"made of {provenance['source']}"
        return
    files = provenance.get("sources", [])
    origin = {"huggingface": "a Hugging Face directory", "gguf": "a GGUF file",
              "meta": "Meta's own format"}.get(provenance.get("format", ""), "files")  # fmt: skip
    yield f"imported from {origin}" + (":" if files else "")
    width = max((len(file["name"]) for file in files), default=0)
    for file in files:
        size = f"{file['bytes']:>15,} bytes" if "bytes" in file else ""
        digest = f"sha256 {file['sha256'][:digits]}" if "sha256" in file else ""
        yield f"{_STEP}{file['name']:<{width}}  {size}  {digest}".rstrip()


def _describe_training(provenance: Mapping, data: Mapping | None, digits: int) -> Iterator[str]:
    mixture = str(provenance.get("mixture_fingerprint", "unknown"))[:digits]
    steps = f"{provenance['step']:,}" if "step" in provenance else "an unknown number of"
    yield f"continually pretrained for {steps} steps on mixture {mixture}"
    sources = {source["name"]: source for source in provenance.get("data", [])}
    ledger = (data or {}).get("ledger", {})
    total = sum(ledger.values())
    width = max(map(len, [*sources, *ledger]), default=0)
    for name in ledger or sources:
        read = (
            f"{ledger[name]:>17,} tokens read, {ledger[name] / (total or 1):6.1%}" if ledger else ""
        )
        asked = _describe_source(sources[name]) if name in sources else ""
        yield f"{_STEP}{name:<{width}}{read}{asked}"
    if total:
        yield f"{_STEP}{'together':<{width}}{total:>17,} tokens read"
    if skipped := (data or {}).get("skipped"):
        yield f"{_STEP}{skipped:,} updates were skipped, their loss or gradient was not finite"
    if spikes := (data or {}).get("guard", {}).get("spikes"):
        yield f"{_STEP}{spikes:,} updates were left out as spikes of loss or gradient"
    base = provenance.get("base_provenance")
    yield f"from {provenance.get('base', 'an unknown base')}" + (", which was" if base else "")
    if base:
        yield from (_STEP + line for line in describe_provenance(base, digits=digits))


def _describe_source(source: Mapping) -> str:
    if "document_share" in source:  # streamed: nobody knows how much there is
        return f"  (asked for {source['document_share']:.1%} of the documents, streamed)"
    return (
        f"  (asked for {source['token_share']:.1%}; on disk {source['num_tokens']:,} tokens in "
        f"{source['num_documents']:,} documents)"
    )


def _describe_merge(provenance: Mapping, digits: int) -> Iterator[str]:
    alpha = provenance.get("alpha")
    known = isinstance(alpha, int | float)
    shares = {"base": 1 - alpha, "adapted": alpha} if known else {}
    facts = [f"method {provenance.get('method', 'unknown')}"]
    if alpha is not None:
        facts.append(f"alpha {_describe_weight(alpha)}")
    facts += [f"{key} {provenance[key]}" for key in ("density", "seed", "dtype")
              if provenance.get(key) is not None]  # fmt: skip
    yield f"merged, {', '.join(facts)}:"
    if rows := provenance.get("vocabulary"):
        yield (
            f"{_STEP}the first {rows['shared_rows']:,} rows of the vocabulary; the others, up to "
            f"{rows['rows']:,}, and the tokenizer are those of {rows['from']}"
        )
    linear = provenance.get("method", "linear") == "linear"
    for source in provenance.get("sources", []):
        share = f"{shares[source['role']]:g} x " if linear and source.get("role") in shares else ""
        if "weight" in source:
            share = f"weight {_describe_weight(source['weight'])} of "
        place = _describe_place(source)
        yield (
            f"{_STEP}{share}{source.get('role', 'input')}, {place}{_describe_hash(source, digits)}, "
            "which was"
        )
        made = describe_provenance(source.get("provenance", {}), digits=digits)
        yield from (2 * _STEP + line for line in made)


def _describe_weight(weight: float | Mapping) -> str:
    return f"{weight:g}" if isinstance(weight, int | float) else str(alphas_from_dict(weight))


def _describe_place(source: Mapping) -> str:
    name = source.get("name", "unnamed")
    # A Hugging Face directory has no steps; records without either are older.
    foreign = source.get("provenance", {}).get("kind") == "import" and "step" not in source
    return name if foreign else f"{name}/{source.get('step', '?')}"


def _describe_hash(source: Mapping, digits: int) -> str:
    # Older records hash the leaves as they were stored.
    for key, name in (("weights_hash", "weights hash"), ("params_sha256", "weights sha256")):
        if key in source:
            return f", {name} {source[key][:digits]}"
    return ""


def _describe_average(provenance: Mapping, digits: int) -> Iterator[str]:
    sources = provenance.get("sources", [])
    what = {"params": "the mean of", "ema": "the moving average of the parameters of"}
    places = (f"{_describe_place(source)}{_describe_hash(source, digits)}" for source in sources)
    yield f"{what.get(provenance.get('weights'), 'an average of')} {', '.join(places)}; the last was"
    for source in sources[-1:]:
        made = describe_provenance(source.get("provenance", {}), digits=digits)
        yield from (_STEP + line for line in made)


def _describe_other(provenance: Mapping, _: int) -> Iterator[str]:
    facts = (f"{key} {value}" for key, value in provenance.items() if key != "kind")
    yield f"{provenance['kind']}: {'; '.join(facts)}".removesuffix(": ")


_KINDS: dict[str, Callable[[Mapping, int], Iterator[str]]] = {
    "import": _describe_import,
    "merge": _describe_merge,
    "average": _describe_average,
}


def describe_verification(facts: Mapping) -> Iterator[str]:
    """Says what the conversion gate found, and which command runs it.

    Args:
        facts: `verification` and `provenance` of a meta, and the `path` of the checkpoint.
    """
    imported = facts["provenance"].get("kind") == "import"
    command = f"`ellama verify {facts['path'] if imported else 'IMPORT'} SRC`"
    verification = facts["verification"]
    if verification is None:
        what = "never verified" if imported else "never verified, nor was what it was made from"
        yield f"{what}; {command} compares an import's logits with its source"
        return
    status = str(verification.get("status", "of unknown outcome"))
    date = f" on {str(verification['date'])[:10]}" if verification.get("date") else ""
    source = verification.get("source")
    name = source.get("name") if isinstance(source, Mapping) else source
    against = f" against {name}" if name else ""
    yield f"{status.upper() if status == 'failed' else status}{date}{against}"
    if summary := verification.get("summary"):
        yield from (_STEP + line for line in str(summary).split("; "))
    if inherited := verification.get("inherited_from"):
        bases = [inherited] if isinstance(inherited, str) else inherited
        yield f"{_STEP}inherited from {', '.join(bases)}"
    if status == "failed":
        yield f"{_STEP}{command} says more"
