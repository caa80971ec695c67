"""Trees by path."""

from ellama_jax.core.tree import flatten_paths, map_paths, unflatten_paths

TREE = {"layers": {"attn": {"wq": 1, "wk": 2}, "norm": 3}, "embed": 4}


def test_flat_paths_are_sorted_and_come_back():
    flat = flatten_paths(TREE)
    assert list(flat.items()) == [
        ("embed", 4), ("layers/attn/wk", 2), ("layers/attn/wq", 1), ("layers/norm", 3),
    ]  # fmt: skip
    assert unflatten_paths(flat) == TREE


def test_map_sees_path_and_leaf():
    mapped = map_paths(lambda path, leaf: (path.count("/"), leaf), TREE)
    assert mapped["layers"]["attn"]["wk"] == (2, 2)
    assert mapped["embed"] == (0, 4)
