"""The preflight diff: which leaves of a checkpoint do not fit what is expected, and why.

Compares names, shapes and where it matters dtypes before anything is read or written; it touches no file.
"""

from collections.abc import Mapping

from ellama_jax.model.llama import param_dims

# Which key of the configuration a dim's size comes from, for the question after a diff.
_CONFIG_KEYS = {
    "vocab": "vocab_size",
    "embed": "embed_dim",
    "norm": "embed_dim",
    "mlp": "mlp_dim",
    "layers": "num_layers",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
}


def check_same_leaves(
    title: str, stored: Mapping, wanted: Mapping, config=None, *, same_dtypes: bool = False
) -> None:
    """Refuses leaves that do not fit, naming every one of them.

    Args:
        title: what is being done, as `restore runs/a/40`.
        stored: path -> (shape, dtype) of what is there; without `same_dtypes` the shape is enough.
        wanted: path -> anything with a shape and a dtype, of what is expected.
        config: the model, where its keys can explain a difference.
        same_dtypes: refuse to cast, for what must come back bit for bit.

    Raises:
        ValueError: if leaves are missing, extra, of another shape or of a dtype that may not be cast.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    differences, changed = [], set()
    for name in sorted(stored.keys() | shapes.keys()):
        if name not in stored:
            differences.append(f"{name} is missing")
        elif name not in shapes:
            differences.append(f"{name} is not expected")
        elif stored[name][0] != shapes[name]:
            got, expected = list(stored[name][0]), list(shapes[name])
            differences.append(f"{name} is {got}, expected {expected}")
            changed |= _guess_changed_keys(name, got, expected, config)
        elif same_dtypes and stored[name][1] != wanted[name].dtype:
            differences.append(f"{name} is {stored[name][1]}, expected {wanted[name].dtype}")
            changed.add("param_dtype")
    if "lm_head/kernel" in stored.keys() ^ shapes.keys():
        changed.add("tied_embeddings")
    if differences:
        verb = "leaf differs" if len(differences) == 1 else "leaves differ"
        question = f" Was {' or '.join(sorted(changed))} changed?" if changed else ""
        raise ValueError(f"{title}: {len(differences)} {verb}: {'; '.join(differences)}.{question}")


def _guess_changed_keys(name: str, got: list, expected: list, config) -> set[str]:
    dims = param_dims(config).get(name, ()) if config is not None else ()
    if not len(dims) == len(got) == len(expected):
        return set()
    return {_CONFIG_KEYS[d] for d, a, b in zip(dims, got, expected, strict=True) if a != b}
