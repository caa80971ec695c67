"""Pytrees by path: parameters addressed as `layers/attn/wq`.

Knows nothing of what the leaves are.
"""

from collections.abc import Callable, Mapping
from typing import Any


def flatten_paths(tree: Mapping) -> dict[str, Any]:
    """Flattens a nested dict into `path -> leaf`, sorted by path.

    >>> flatten_paths({"b": {"y": 2, "x": 1}, "a": 0})
    {'a': 0, 'b/x': 1, 'b/y': 2}
    """
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten_paths(value).items()})
        else:
            flat[key] = value
    return dict(sorted(flat.items()))


def unflatten_paths(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuilds the nested dict that `flatten_paths` took apart.

    >>> unflatten_paths({"a": 0, "b/x": 1})
    {'a': 0, 'b': {'x': 1}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_paths(function: Callable[[str, Any], Any], tree: Mapping) -> dict[str, Any]:
    """Applies `function(path, leaf)` to every leaf; the structure stays.

    >>> map_paths(lambda path, leaf: path, {"b": {"x": 1}})
    {'b': {'x': 'b/x'}}
    """
    flat = {path: function(path, leaf) for path, leaf in flatten_paths(tree).items()}
    return unflatten_paths(flat)
