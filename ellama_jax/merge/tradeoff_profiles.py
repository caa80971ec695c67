"""Owns named shapes over depth: how far each layer goes while the whole model goes to alpha.

    early   1 0        the first layers go to alpha, the last stay at base, straight in between
    middle  0 1 0      the middle goes to alpha, both ends stay

A shape by part keeps some parameters at base and takes all others to alpha.
"""

import dataclasses
import difflib
from collections.abc import Sequence

from ellama_jax.weights.alphas import Alphas

UNIFORM = "uniform"


@dataclasses.dataclass(frozen=True)
class _Shape:
    """`depth` is scaled by alpha; `parts` of alphas.PARTS stay at base."""

    says: str
    depth: tuple[float, ...] = (1.0,)
    parts: tuple[str, ...] = ()


PROFILES = {
    UNIFORM: _Shape("every parameter alike"),
    "early": _Shape("most at the first layers, none at the last", (1.0, 0.0)),
    "late": _Shape("most at the last layers, none at the first", (0.0, 1.0)),
    "middle": _Shape("most in the middle, none at both ends", (0.0, 1.0, 0.0)),
    "ends": _Shape("most at both ends, none in the middle", (1.0, 0.0, 1.0)),
    "base-norms": _Shape("all but the norms, which stay at base", parts=("norms",)),
    "base-embeddings": _Shape(
        "all but embedding and head, which stay at base", parts=("embed", "head")
    ),
    "base-attention": _Shape("all but attention, which stays at base", parts=("attn",)),
    "base-mlp": _Shape("all but the MLPs, which stay at base", parts=("mlp",)),
}


def alphas_of(profile: str, alpha: float) -> Alphas:
    """Returns alpha of every parameter.

    >>> str(alphas_of("middle", 0.5)), str(alphas_of("base-norms", 0.25))
    ('0,0.5,0', '0.25 norms=0')
    """
    shape = PROFILES[profile]
    depth = tuple(alpha * share for share in shape.depth)
    return Alphas(depth, tuple((part, (0.0,)) for part in shape.parts))


def check_profiles(names: Sequence[str]) -> list[str]:
    """Returns the profiles that are meant, without the uniform one, which is always scored.

    Raises:
        ValueError: for a name of none, with the nearest.

    >>> check_profiles(["early", "uniform", "early"]), len(check_profiles(["all"]))
    (['early'], 8)
    """
    if list(names) == ["all"]:
        names = list(PROFILES)
    for name in names:
        if name not in PROFILES:
            near = difflib.get_close_matches(name, PROFILES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PROFILES)}."
            raise ValueError(f"--profiles: must be known profiles or all, got {name}; {hint}")
    return [name for name in dict.fromkeys(names) if name != UNIFORM]
