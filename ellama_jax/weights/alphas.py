"""How far each parameter goes from base to adapted: one number, or by depth and by part.

Owns that choice and its text form; what is done with the numbers belongs to the merge methods.

    0.3                     every parameter
    0,0.5,1                 a gradient: values at evenly spaced depths, in between interpolated
    0.3 and embed=0         all at 0.3 but the embedding
    0.3 and layers.0-7=0    all at 0.3 but the first eight layers
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

# name of a part -> the paths that belong to it, by prefix.
PARTS: dict[str, tuple[str, ...]] = {
    "embed": ("embed/",),
    "head": ("lm_head/",),
    "norms": ("layers/attn_norm/", "layers/mlp_norm/", "final_norm/"),
    "attn": ("layers/attn/",),
    "mlp": ("layers/mlp/",),
    **{name: (f"layers/attn/{name}",) for name in ("wq", "wk", "wv", "wo")},
    **{name: (f"layers/mlp/{name}",) for name in ("w_gate", "w_up", "w_down")},
}
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


@dataclasses.dataclass(frozen=True)
class Alphas:
    """Says alpha for every parameter: 0 is base, 1 is adapted.

    Attributes:
        depth: one value for all, or several at evenly spaced depths from the embedding's side (the
            first layer) to the head's (the last), linearly interpolated, as mergekit's gradients.
        parts: in order, (name of `PARTS` or `layers.I` or `layers.I-J`, values as `depth`); the later
            wins. Values of a range of layers are spaced over that range.
    """

    depth: tuple[float, ...] = (1.0,)
    parts: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def of(self, path: str, num_layers: int) -> float | np.ndarray:
        """Returns alpha of one leaf: [num_layers] float64 of a stacked one, else a number.

        Args:
            path: as in `layers/attn/wq`.
            num_layers: of the model.

        Embeddings take a gradient's first value, what comes after the layers its last:

            >>> Alphas((0.0, 1.0), (("layers.1-2", (0.5,)),)).of("layers/attn/wq", 4).round(2).tolist()
            [0.0, 0.5, 0.5, 1.0]
            >>> Alphas((0.0, 1.0)).of("embed/table", 4), Alphas((0.0, 1.0)).of("final_norm/scale", 4)
            (0.0, 1.0)
        """
        stacked = path.startswith("layers/")
        values = _spread(self.depth, num_layers)
        if not stacked:
            values = values[:1] if path.startswith("embed/") else values[-1:]
        values = values.copy()
        for name, given in self.parts:
            if found := _LAYERS.fullmatch(name):
                if stacked:
                    first, last = _layer_range(name, found, num_layers)
                    values[first : last + 1] = _spread(given, last + 1 - first)
            elif path.startswith(PARTS[name]):
                spread = _spread(given, num_layers)
                ends = spread[:1] if path.startswith("embed/") else spread[-1:]
                values = spread if stacked else ends
        return values if stacked else float(values[0])

    def check(self, num_layers: int, *, extrapolate: bool = False) -> None:
        """Refuses what fits no model of `num_layers`, and what lies outside [0, 1] unasked.

        Raises:
            ValueError: for a number that is none or outside, or layers that the model does not have.
        """
        for name, values in (("alpha", self.depth), *self.parts):
            title = name if name == "alpha" else f"alpha of {name}"
            if found := _LAYERS.fullmatch(name):
                _layer_range(name, found, num_layers)
            for value in values:
                if not math.isfinite(value):
                    raise ValueError(f"{title}: must be a finite number, got {value}.")
                if not (extrapolate or 0.0 <= value <= 1.0):
                    raise ValueError(
                        f"{title}: must be from 0 (base) to 1 (adapted), got {value:g}; pass "
                        "--extrapolate to go beyond one of them."
                    )

    @property
    def uniform(self) -> float | None:
        """The one value that all parameters have, None where they differ."""
        values = {*self.depth, *(value for _, given in self.parts for value in given)}
        return self.depth[0] if len(values) == 1 else None

    def __str__(self) -> str:
        parts = [f"{name}={_join(values)}" for name, values in self.parts]
        return " ".join([_join(self.depth), *parts])

    def to_dict(self) -> dict:
        """Returns the JSON-able form, for provenance."""
        return {"depth": list(self.depth), "parts": [[n, list(v)] for n, v in self.parts]}


def parse_alphas_by_part(depth: str, parts: Sequence[str] = ()) -> Alphas:
    """Reads the text form: `0.3` or `0,0.5,1`, and any number of `embed=0`, `layers.0-7=0,1`.

    Raises:
        ValueError: for what is no number or no part of the model, with the nearest name.

    >>> str(parse_alphas_by_part("0.3", ["embed=0", "layers.0-7=0,1"]))
    '0.3 embed=0 layers.0-7=0,1'
    """
    found = []
    for text in parts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--alpha-of: must be PART=ALPHA, as embed=0, got {text}.")
        if name not in PARTS and not _LAYERS.fullmatch(name):
            near = difflib.get_close_matches(name, PARTS, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            known = ", ".join(PARTS)
            raise ValueError(
                f"--alpha-of: must name one of {known}, layers.I or layers.I-J, got {name}; {hint}"
            )
        found.append((name, _numbers("--alpha-of", values)))
    return Alphas(_numbers("--alpha", depth), tuple(found))


def alphas_from_dict(content: Mapping) -> Alphas:
    """Undoes `Alphas.to_dict`."""
    return Alphas(tuple(content["depth"]), tuple((n, tuple(v)) for n, v in content["parts"]))


def _numbers(title: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{title}: must be numbers and commas, got {text!r}.") from None


def _spread(values: Sequence[float], count: int) -> np.ndarray:
    """Returns [count] float64, `values` evenly spaced over it and interpolated in between."""
    places = np.linspace(0.0, 1.0, len(values)) if len(values) > 1 else [0.0]
    return np.interp(np.linspace(0.0, 1.0, count) if count > 1 else [0.0], places, values)


def _layer_range(name: str, found: re.Match, num_layers: int) -> tuple[int, int]:
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < num_layers:
        raise ValueError(
            f"alpha of {name}: must be layers 0 to {num_layers - 1} of this model, in order, got "
            f"{first} to {last}."
        )
    return first, last


def _join(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
