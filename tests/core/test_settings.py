"""Plain values into dataclasses: what is converted, and what one line says of a mistake."""

from dataclasses import dataclass, field

import pytest

from ellama_jax.core.settings import build_dataclass


@dataclass(frozen=True)
class Leaf:
    size: int
    rate: float = 0.5


@dataclass(frozen=True)
class Tree:
    name: str
    fast: bool
    leaf: Leaf
    limit: float | None
    alphas: tuple[float, ...]
    leaves: dict[str, Leaf]
    steps: dict[str, int] = field(default_factory=dict)


def values(**changes):
    plain = {
        "name": "oak", "fast": True, "leaf": {"size": 3}, "limit": None, "alphas": [0, 0.5],
        "leaves": {"a": {"size": 1, "rate": 2}}, "steps": {},
    }  # fmt: skip
    return {**plain, **changes}


def test_values_come_in_the_types_of_the_annotations():
    tree = build_dataclass(Tree, values(limit=1, steps={"5": 7}))
    assert tree == Tree("oak", True, Leaf(3), 1.0, (0.0, 0.5), {"a": Leaf(1, 2.0)}, {"5": 7})
    assert [type(x) for x in (tree.limit, *tree.alphas, tree.leaves["a"].rate)] == [float] * 4
    assert [build_dataclass(Tree, values(limit=x)).limit for x in (None, 0)] == [None, 0.0]


def test_what_has_a_default_may_be_left_out():
    plain = values()
    del plain["steps"]
    assert build_dataclass(Tree, plain).steps == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nam": 1}, "nam: is no configuration key; did you mean name?"),
        ({"xyz": 1}, "xyz: is no configuration key; known: name, fast, leaf, limit, alphas, leaves, "
                     "steps."),
        ({3: 1}, "3: is no configuration key; known: name, fast, leaf, limit, alphas, leaves, steps."),
        ({"leaf": {"sise": 1}}, "leaf.sise: is no configuration key; did you mean leaf.size?"),
        ({"leaves": {"b": {"size": 1, "rat": 1}}},
         "leaves.b.rat: is no configuration key; did you mean leaves.b.rate?"),
        ({"leaf": {}}, "leaf.size: must be set; configs/base.py defines every key."),
        ({"leaf": 3}, "leaf: must be a section, got 3."),
        ({"leaf": None}, "leaf: must be a section, got None."),
        ({"leaves": {"b": [1]}}, "leaves.b: must be a section, got [1]."),
        ({"leaves": [1]}, "leaves: must be dict, got [1] (list)."),
        ({"leaf": {"size": 2.0}}, "leaf.size: must be int, got 2.0 (float)."),
        ({"leaf": {"size": True}}, "leaf.size: must be int, got True (bool)."),
        ({"leaf": {"size": 1, "rate": True}}, "leaf.rate: must be float, got True (bool)."),
        ({"fast": 1}, "fast: must be bool, got 1 (int)."),
        ({"name": None}, "name: must be str, got None (NoneType)."),
        ({"limit": "1"}, "limit: must be float, got '1' (str)."),
        ({"alphas": (0.0, "x")}, "alphas[1]: must be float, got 'x' (str)."),
        ({"alphas": "0.5"}, "alphas: must be tuple, got '0.5' (str)."),
        ({"steps": {"5": "7"}}, "steps.5: must be int, got '7' (str)."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(changes, message):
    with pytest.raises(ValueError) as error:
        build_dataclass(Tree, values() | changes)
    assert str(error.value) == message


def test_every_missing_key_is_named_at_once_under_its_path():
    with pytest.raises(
        ValueError, match=r"^trees\.name, trees\.leaf, trees\.leaves: must be set; "
    ):
        build_dataclass(Tree, {"fast": True, "limit": None, "alphas": ()}, "trees.")
