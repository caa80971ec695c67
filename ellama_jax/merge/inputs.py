"""The models that a merge takes: opened, compared, and described for the record.

Owns which models fit each other, tokenizers included. It opens Orbax steps and whatever
`ellama import` reads, and reads no weight; sums are merge/stream.py's.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ellama_jax.core.paths import absolute, as_path, file_bytes, is_remote
from ellama_jax.core.tree import flatten_paths
from ellama_jax.merge.stream import Group
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import LlamaConfig, fields_that_differ
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.weights.checkpoint import CheckpointInfo, find_checkpoint, list_leaves, open_leaves
from ellama_jax.weights.content_hash import Array, Ledger, leaf_arrays, tensor_arrays
from ellama_jax.weights.difference import is_foreign
from ellama_jax.weights.huggingface import drop_tied_head, open_safetensors
from ellama_jax.weights.importer import detect_format, open_source
from ellama_jax.weights.layout import check_fingerprint
from ellama_jax.weights.lazy import LazyArray
from ellama_jax.weights.preflight import check_same_leaves
from ellama_jax.weights.tensors import open_tensors
from ellama_jax.weights.verdict import check_verified

# The leaves that have a row for each token.
_VOCABULARY = ("embed/table", "lm_head/kernel")


@dataclass(frozen=True)
class Model:
    """One input, opened and not yet read.

    Attributes:
        role: base, adapted or model, with a number where there are several.
        path: as given.
        config: the model.
        leaves: path -> leaf of ours.
        tokenizer_dir: holds its tokenizer.
        tokenizer: that tokenizer.
        format: "orbax", or what `detect_format` says.
        info: of a step of ours, None for a foreign model.
    """

    role: str
    path: Path
    config: LlamaConfig
    leaves: Mapping[str, LazyArray]
    tokenizer_dir: Path
    tokenizer: Tokenizer
    format: str
    info: CheckpointInfo | None = None

    @property
    def title(self) -> str:
        """The step or path, for messages."""
        return str(self.info.path if self.info else self.path)

    def tensors(self) -> dict[str, LazyArray]:
        """Opens the weights as Hugging Face tensors: its own files where it has them."""
        if self.format != "huggingface":
            return open_tensors(self.config, self.leaves)
        tensors = open_safetensors(self.path)
        if self.config.tied_embeddings:
            drop_tied_head(tensors)
        return tensors

    def describe(self) -> dict:
        """Returns the JSON-able record of it, for provenance."""
        if self.info is not None:
            facts = {"name": self.info.root.name, "step": self.info.step,
                     "commit": self.info.meta["commit"]}  # fmt: skip
            return {"role": self.role, **facts, "provenance": self.info.meta["provenance"]}
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        sources = [{"name": file.name, "bytes": file_bytes(file)} for file in files]
        made = {"kind": "import", "format": self.format, "sources": sources}
        return {"role": self.role, "name": absolute(self.path).name, "provenance": made}


@contextlib.contextmanager
def open_models(paths: Mapping[str, str | os.PathLike]) -> Iterator[list[Model]]:
    """Opens models for the time of the context.

    Args:
        paths: role -> a checkpoint root or step, or anything that `ellama import` reads.

    Raises:
        ValueError: if one cannot be opened, or one is given twice.
    """
    with contextlib.ExitStack() as stack:
        models = [_open_model(role, as_path(path), stack) for role, path in paths.items()]
        places: dict[str, Model] = {}
        for model in models:
            place = model.title if is_remote(model.path) else os.path.realpath(model.title)
            if place in places:
                raise ValueError(
                    f"merge: models must differ, got {model.path} as {places[place].role} and as "
                    f"{model.role}; name each once."
                )
            places[place] = model
        yield models


def _open_model(role: str, path: Path, stack: contextlib.ExitStack) -> Model:
    model = _open(role, path, stack)
    shapes = {name: (leaf.shape,) for name, leaf in model.leaves.items()}
    wanted = flatten_paths(abstract_params(model.config))
    check_same_leaves(f"merge {model.title}", shapes, wanted, model.config)
    return model


def _open(role: str, path: Path, stack: contextlib.ExitStack) -> Model:
    if is_foreign(path):
        found = stack.enter_context(open_source(path))
        tokenizer = load_tokenizer(found.tokenizer_dir)
        return Model(role, path, found.config, found.leaves, found.tokenizer_dir, tokenizer,
                     detect_format(path))  # fmt: skip
    info = find_checkpoint(path)
    # The tokenizer that may be copied must still be the one that the model was made with.
    check_fingerprint(info.tokenizer_dir, info.meta["tokenizer_fingerprint"])
    tokenizer = load_tokenizer(info.tokenizer_dir)
    leaves = open_leaves(info.path)
    return Model(role, path, info.config, leaves, info.tokenizer_dir, tokenizer, "orbax", info)


def check_gates(models: Sequence[Model], *, allow_unverified: bool) -> None:
    """Refuses checkpoints that failed the conversion gate; a foreign model needs none."""
    for model in models:
        if model.info is not None:
            check_verified(model.info, allow_unverified=allow_unverified)


# --- do they fit ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vocabulary:
    """Which rows of the vocabulary all models have.

    Attributes:
        shared: how many rows that are; None where all have all.
        largest: number of the model whose further rows and tokenizer are kept.
    """

    shared: int | None = None
    largest: int = 0


def check_models(models: Sequence[Model]) -> Vocabulary:
    """Refuses models of different shapes, constants or tokenizers; reads no weight.

    Vocabularies may nest: where all ids of one tokenizer mean the same tokens in another with more,
    the rows that both have are merged.

    Raises:
        ValueError: naming what differs.
    """
    first = models[0]
    vocabulary = _nest([model.tokenizer for model in models], models)
    nests = vocabulary.shared is not None
    for other in models[1:]:
        shapes = [_shapes(model, nests) for model in (first, other)]
        title = f"merge {first.title} with {other.title}"
        check_same_shapes(title, *shapes, roles=(first.role, other.role))
        _check_constants(first.config, other.config, ("vocab_size",) if nests else ())
    return vocabulary


def check_mergeable(base: CheckpointInfo, adapted: CheckpointInfo) -> None:
    """Refuses two checkpoints of different tokenizers, shapes or constants; reads no weight."""
    prints = [info.meta["tokenizer_fingerprint"] for info in (base, adapted)]
    if prints[0] != prints[1]:
        raise ValueError(
            f"merge: both models must have one tokenizer, got fingerprint {prints[0][:12]} in "
            f"{base.path} and {prints[1][:12]} in {adapted.path}."
        )
    # The tokenizer that will be copied must still be the one that both were made with.
    check_fingerprint(base.tokenizer_dir, prints[0])
    shapes = [
        {name: shape for name, (shape, _) in list_leaves(info.path).items()}
        for info in (base, adapted)
    ]
    check_same_shapes(f"merge {base.path} with {adapted.path}", *shapes)
    _check_constants(base.config, adapted.config)


def _nest(tokenizers: Sequence[Tokenizer], models: Sequence[Model]) -> Vocabulary:
    sizes = [model.config.vocab_size for model in models]
    one = len({tokenizer.fingerprint for tokenizer in tokenizers}) == 1
    if one and len(set(sizes)) == 1:
        return Vocabulary()
    largest = max(range(len(models)), key=lambda i: (tokenizers[i].vocab_size, sizes[i], -i))
    whole = tokenizers[largest]
    for model, tokenizer in zip(models, tokenizers, strict=True):
        wrong = next((i for i in range(tokenizer.vocab_size)
                      if tokenizer.token(i) not in ("", whole.token(i))), None)  # fmt: skip
        if wrong is not None:
            raise ValueError(
                f"merge: all models must have one tokenizer, or one whose ids the larger keeps, got "
                f"id {wrong} as {tokenizer.token(wrong)!r} in {model.title} and as "
                f"{whole.token(wrong)!r} in {models[largest].title}; merge models of one tokenizer."
            )
        if model.config.vocab_size > sizes[largest]:
            raise ValueError(
                f"merge: the model with the larger tokenizer must have the larger embedding, got "
                f"{sizes[largest]} rows in {models[largest].title} and {model.config.vocab_size} in "
                f"{model.title}."
            )
    shared = min(sizes)
    if not one:
        shared = min(shared, *(tokenizer.vocab_size for tokenizer in tokenizers))
    return Vocabulary(shared, largest)


def _shapes(model: Model, nests: bool) -> dict[str, tuple[int, ...]]:
    shapes = {path: leaf.shape for path, leaf in model.leaves.items()}
    for path in _VOCABULARY if nests else ():
        if path in shapes:
            shapes[path] = tuple(s for s in shapes[path] if s != model.config.vocab_size)
    return shapes


def check_same_shapes(
    title: str, ours: Mapping, theirs: Mapping, roles: Sequence[str] = ("base", "adapted")
) -> None:
    """Refuses two sets of leaves of different names or shapes, naming every one."""
    differences = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            where = roles[0] if name not in ours else roles[1]
            differences.append(f"{name} is missing in {where}")
        elif ours[name] != theirs[name]:
            sizes = f"{list(ours[name])} in {roles[0]}, {list(theirs[name])} in {roles[1]}"
            differences.append(f"{name} is {sizes}")
    if differences:
        verb = "leaf differs" if len(differences) == 1 else "leaves differ"
        raise ValueError(f"{title}: {len(differences)} {verb}: {'; '.join(differences)}.")


def _check_constants(a: LlamaConfig, b: LlamaConfig, ignored: Sequence[str] = ()) -> None:
    differ = [found for found in fields_that_differ(a, b) if found[0] not in ignored]
    if differ:
        pairs = "; ".join(f"{key} is {ours} and {theirs}" for key, ours, theirs in differ)
        raise ValueError(f"merge: both models must have the same constants, but {pairs}.")


# --- what is merged with what --------------------------------------------------------------------


def make_groups(
    models: Sequence[Model], vocabulary: Vocabulary, *, foreign: bool
) -> tuple[dict[str, Group], dict[str, Group], list[Ledger]]:
    """Pairs the arrays of all models.

    Args:
        models: from `open_models`, compared.
        vocabulary: from `check_models`.
        foreign: as Hugging Face tensors, for a result that is one; else as leaves of ours. So nothing
            is transposed to and fro.

    Returns:
        name -> group whose reads are hashed and must each happen once; the same, not hashed; and
        the models' ledgers, which have the hashes once all is read.
    """
    ledgers = [Ledger(model.title) for model in models]
    opened = [model.tensors() if foreign else model.leaves for model in models]
    arrays = [
        (tensor_arrays if foreign else leaf_arrays)(model.config, leaves)
        for model, leaves in zip(models, opened, strict=True)
    ]
    groups = []
    for hashed in (True, False):
        followed = [
            {name: ledger.follow(leaves[name], where[name], hashed=hashed) for name in where}
            for ledger, leaves, where in zip(ledgers, opened, arrays, strict=True)
        ]
        groups.append({
            name: _group(array, [leaves[name] for leaves in followed], vocabulary)
            for name, array in arrays[vocabulary.largest].items()
        })  # fmt: skip
    return groups[0], groups[1], ledgers


def _group(array: Array, sources: Sequence[LazyArray], vocabulary: Vocabulary) -> Group:
    shared = vocabulary.shared if array.path in _VOCABULARY else None
    return Group(array, tuple(sources), shared, vocabulary.largest)


def merged_config(models: Sequence[Model], vocabulary: Vocabulary) -> LlamaConfig:
    """Returns the config of the result: the first model's, with the larger vocabulary."""
    return replace(models[0].config, vocab_size=models[vocabulary.largest].config.vocab_size)
