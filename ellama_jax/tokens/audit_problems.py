"""What in an audit is a problem, in words.

Owns the limits and the sentences; the figures are tokens/audit.py's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from ellama_jax.corpus.duplicates import Signer
from ellama_jax.tokens.windows import Manifest, WindowSet

# Beyond these shares a figure is a problem.
MAX_PADDING = 0.02  # of all places, the last window's not counted; packing promises below 0.01
MAX_EXACT, MAX_NEAR = 0.01, 0.05  # of the sampled documents
MAX_BROKEN = 0.001  # documents that hold U+FFFD, what is left of bytes that were no text
MAX_MARKUP = 0.01  # e-commerce documents with HTML in them

OTHER_TOKENIZER = "made by another tokenizer than the given one, so its text was not decoded"


def find_problems(audit: Mapping, manifest: Manifest, content_differs: bool = False) -> list[str]:
    """Says in words what is wrong with a set, worst first; empty if nothing is.

    Args:
        audit: as `audit_set` builds it.
        manifest: of the set.
        content_differs: the windows are others than those that were written.
    """
    marks, sample = audit["marks"], audit["sample"]
    problems = _mark_problems(marks, sample, manifest)
    if content_differs:
        problems.insert(0, "the windows are not those that the manifest's content_sha256 names")
    if sample["whole_set"]:
        problems += _count_problems(sample, manifest)
    extra = manifest.num_padding - manifest.window_length
    share = extra / (manifest.num_windows * manifest.window_length)
    if share > MAX_PADDING:
        problems.append(f"{audit['manifest']['padding_share']:.1%} of all places are padding; "
                        "windows longer than the documents pack better")  # fmt: skip
    return problems + _duplicate_problems(audit["duplicates"]) + _text_problems(audit)


def _mark_problems(marks: Mapping, sample: Mapping, manifest: Manifest) -> list[str]:
    problems = []
    if marks["bos_unused"]:
        problems.append(f"made without BOS, though the tokenizer has {marks['bos_unused']}: no "
                        "document begins with it; name it in the tokenizer's files and prepare "
                        "the set again")  # fmt: skip
    # Each split document has one end that begins inside it; all above that have lost their BOS,
    # or the document before holds an EOS.
    lost = marks["continued_ends"] - _most_continuations(sample, manifest)
    if lost > 0 and manifest.bos_id not in (None, manifest.eos_id):
        problems.append(f"{lost:,} documents do not begin with BOS and are no continuation of a "
                        "split one (or an EOS stands inside a document)")  # fmt: skip
    words = {
        "without_eos": "{:,} documents do not end with EOS",
        "empty": "{:,} documents are empty between BOS and EOS",
        "unknown_ids": f"{{:,}} ids are outside the vocabulary of {manifest.vocab_size:,}",
        "padding_inside": "{:,} windows hold padding before their last token",
    }
    problems += [text.format(marks[name]) for name, text in words.items() if marks[name]]
    for name, count in marks["special_inside"].items():
        problems.append(f"the special token {name} stands {count:,} times inside documents")
    return problems


def _most_continuations(sample: Mapping, manifest: Manifest) -> int:
    """Returns how many ends of split documents can lie in the windows that were read."""
    if sample["whole_set"]:
        return manifest.num_split_documents
    # Twice as many as there should be, and some: a sample is no exact part.
    expected = manifest.num_split_documents * sample["windows"] / sample["of_windows"]
    return min(manifest.num_split_documents, round(2 * expected) + 10)


def _count_problems(sample: Mapping, manifest: Manifest) -> list[str]:
    # With one token for BOS and EOS, an end before a continuation reads as a begin.
    slack = manifest.num_split_documents if manifest.bos_id == manifest.eos_id else 0
    problems = []
    for name, counted in (("documents", sample["documents"]), ("tokens", sample["tokens"])):
        stated = getattr(manifest, f"num_{name}")
        if abs(counted - stated) > (slack if name == "documents" else 0):
            problems.append(f"the manifest says {stated:,} {name}, the windows hold {counted:,}")
    return problems


def _duplicate_problems(found: Mapping | None) -> list[str]:
    if found is None:
        return []
    problems = []
    for kind, most, words in (
        ("exact", MAX_EXACT, "repeat another, but for case and white space"),
        ("near", MAX_NEAR, f"are near-duplicates (similarity {Signer().threshold:g} and above)"),
    ):
        if found[f"{kind}_share"] > most:
            problems.append(f"{found[f'{kind}_documents']:,} of {found['documents']:,} documents "
                            f"read ({found[f'{kind}_share']:.1%}) {words}")  # fmt: skip
    return problems


def _text_problems(audit: Mapping) -> list[str]:
    text, documents = audit["text"], max(1, audit["sample"]["documents"])
    if text is None:
        return []
    problems = []
    if text["broken_documents"] > MAX_BROKEN * documents:
        problems.append(f"{text['broken_documents']:,} of {documents:,} documents read hold "
                        "U+FFFD, the mark of bytes that were no UTF-8")  # fmt: skip
    # General text may be about HTML; a listing is not.
    is_shop = audit["manifest"]["domain"] == "ecommerce"
    if is_shop and text["markup_documents"] > MAX_MARKUP * documents:
        problems.append(f"{text['markup_documents']:,} of {documents:,} documents read hold tags "
                        "or character references of HTML")  # fmt: skip
    return problems


def compare_sets(sets: Sequence[WindowSet]) -> list[str]:
    """Says what is wrong between sets: several tokenizers, one content twice."""
    problems = []
    tokenizers = Counter(windows.manifest.tokenizer_fingerprint for windows in sets)
    if len(tokenizers) > 1:
        problems.append(f"made by {len(tokenizers)} different tokenizers; a mixture needs one")
    by_content: dict[str, list[str]] = {}
    for windows in sets:
        by_content.setdefault(windows.manifest.content_sha256, []).append(windows.path.name)
    for names in by_content.values():
        if len(names) > 1:
            problems.append(f"{' and '.join(names)} hold the same windows")
    return problems


def find_mixture_problems(mixture: Mapping) -> list[str]:
    """Says which sources of a mixture are read too often, as `measure_mixture` counted it.

    The limits are the configuration's (data.max_epochs, data.max_epochs_by_source), and so is what
    a run does about it.
    """
    result = "a run refuses this" if mixture["on_repetition"] == "error" else "a run only warns"
    return [
        f"{source['name']} is read {source['epochs']:.2f} times where {source['max_epochs']:g} is "
        f"allowed; {result} (data.on_repetition={mixture['on_repetition']})"
        for source in mixture["sources"]
        if source["epochs"] > source["max_epochs"]
    ]
