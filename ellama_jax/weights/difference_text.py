"""A comparison of two sets of weights in words, tables and plain data.

Owns how it reads; the numbers are difference.py's, the picture heat_map.py's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from ellama_jax.weights.difference import Comparison, Difference, constants_that_differ

# The order in which a layer uses its parameters, by short name.
LAYER_ORDER = ("attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w_gate", "w_up", "w_down")
_COLUMN = 9  # as wide as the longest of them, and as a share


def describe_difference(found: Comparison, *, by_layer: bool = False) -> str:
    """Returns a table with a line a leaf, and where the weights moved most and least.

    Args:
        found: from `compare`.
        by_layer: add the table of relative change, layer by parameter.
    """
    lines = [*_headline(found), "", *_leaf_table(found)]
    if by_layer:
        lines += ["", *_layer_table(found.stacked)]
    return "\n".join([*lines, "", *_closing(found)])


def short_name(path: str) -> str:
    """Returns the last part of a path that says what it is.

    >>> short_name("layers/attn/wq"), short_name("layers/attn_norm/scale")
    ('wq', 'attn_norm')
    """
    *parents, name = path.split("/")
    return parents[-1] if name in ("scale", "kernel", "table") else name


def format_share(value: float) -> str:
    """Returns a share in per cent with three significant digits.

    >>> [format_share(x) for x in (0.0, 0.98765, 0.99999, 0.0034567, 0.0000012, 12.5)]
    ['0%', '98.8%', '>99.9%', '0.346%', '0.00012%', '1250%']
    """
    if not math.isfinite(value):
        return "-"
    if 0.9995 <= value < 1:
        return ">99.9%"  # "100%" would say all
    digits = 2 if 0 < value < 1e-5 else 3
    percent = 100 * float(f"{value:.{digits}g}")
    if percent == 0 or percent >= 100:
        return f"{percent:.0f}%"
    if percent < 1e-5:
        return f"{percent:.0e}%"
    decimals = max(0, digits - 1 - math.floor(math.log10(percent)))
    return f"{percent:.{decimals}f}%"


def difference_to_data(found: Comparison) -> dict:
    """Returns everything that was found as JSON-able data; null where a number is not defined."""
    sides = {
        role: {
            "path": side.title,
            "model": side.config.name,
            "tokenizer_fingerprint": side.fingerprint,
            "dtypes": {path: leaf.dtype.name for path, leaf in side.leaves.items()},
        }
        for role, side in (("a", found.a), ("b", found.b))
    }
    leaves = {}
    for path, whole in found.leaves.items():
        leaves[path] = {"shape": list(found.a.leaves[path].shape), **_numbers(whole)}
        if path in found.stacked:
            leaves[path]["layers"] = [_numbers(part) for part in found.parts[path]]
    return {
        **sides,
        "same_tokenizer": found.a.fingerprint == found.b.fingerprint,
        "constants_that_differ": constants_that_differ(found.a.config, found.b.config),
        "total": _numbers(found.total),
        "layers": [_numbers(layer) for layer in found.layers],
        "leaves": leaves,
    }


def _numbers(found: Difference) -> dict:
    values = {
        "size": found.size,
        "norm_a": found.norm_a,
        "norm_b": found.norm_b,
        "norm_difference": found.norm_difference,
        "relative_change": found.relative,
        "cosine": found.cosine,
        "cosine_of_change_with_a": found.cosine_with_a,
        "max_abs_difference": found.max_abs,
        "changed": found.changed,
        "changed_frac": found.changed_frac,
        "nonfinite_a": found.nonfinite_a,
        "nonfinite_b": found.nonfinite_b,
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _headline(found: Comparison) -> Iterator[str]:
    dtypes = [" and ".join(sorted({leaf.dtype.name for leaf in side.leaves.values()}))
              for side in (found.a, found.b)]  # fmt: skip
    same = found.a.fingerprint == found.b.fingerprint
    yield f"A  {found.a.title} ({dtypes[0]})"
    yield f"B  {found.b.title} ({dtypes[1]})"
    yield f"   {found.total.size:,} parameters each" + (", one tokenizer" if same else "")
    if not same:
        prints = f"{found.a.fingerprint[:12]} and {found.b.fingerprint[:12]}"
        # A fingerprint covers both; which of the two differs it does not tell.
        yield f"   THE TOKENIZERS DIFFER ({prints}), in their tokens"
        yield "   or only in which of them begin and end a document"
    for phrase in constants_that_differ(found.a.config, found.b.config):
        yield f"   the models' constants differ: {phrase}"


def _leaf_table(found: Comparison) -> Iterator[str]:
    width = max(len("all parameters"), *map(len, found.leaves))
    yield (
        f"{'':<{width}} {'|A|':>10} {'|B|':>10} {'|B-A|':>10} {'relative':>9} {'cosine':>10} "
        f"{'max |b-a|':>9} {'changed':>8}"
    )
    for path, part in {**found.leaves, "all parameters": found.total}.items():
        yield (
            f"{path:<{width}} {part.norm_a:>10.5g} {part.norm_b:>10.5g} "
            f"{part.norm_difference:>10.5g} {format_share(part.relative):>9} "
            f"{_format_cosine(part.cosine):>10} {part.max_abs:>9.3g} "
            f"{format_share(part.changed_frac):>8}"
        )


def _format_cosine(cosine: float) -> str:
    """Returns eight digits, so that a small turn does not read as none; "-" if not defined."""
    return "-" if math.isnan(cosine) else f"{cosine:.7f}"


def _layer_table(stacked: Mapping[str, Sequence[Difference]]) -> Iterator[str]:
    columns = {short_name(path): parts for path, parts in stacked.items()}
    columns = {name: columns[name] for name in LAYER_ORDER}
    yield "relative change |B-A| / |A|, layer by layer"
    yield "layer" + "".join(f" {name:>{_COLUMN}}" for name in columns)
    for layer, parts in enumerate(zip(*columns.values(), strict=True)):
        yield f"{layer:>5}" + "".join(f" {format_share(p.relative):>{_COLUMN}}" for p in parts)
    whole = [format_share(sum(parts, Difference()).relative) for parts in columns.values()]
    yield "  all" + "".join(f" {share:>{_COLUMN}}" for share in whole)


def _closing(found: Comparison) -> Iterator[str]:
    yield from _nonfinite(found)
    if not found.total.changed:
        yield "Nothing differs: every element of B has the value it has in A."
        return
    # A leaf that holds nothing but zeros has no relative change; the table shows its norms.
    places = [
        (part.relative, _name_place(path, layer, path in found.stacked))
        for path, parts in found.parts.items()
        for layer, part in enumerate(parts)
        if math.isfinite(part.relative)
    ]
    total = found.total
    yield (
        f"{format_share(total.changed_frac)} of the elements changed; all of them together moved by "
        f"{format_share(total.relative)} of A's norm."
    )
    if not places:
        return
    (highest, most), (lowest, least) = max(places), min(places)
    unmoved = sum(relative == 0 for relative, _ in places)
    yield f"Moved most: {most}, by {format_share(highest)}."
    if unmoved:
        yield f"Not moved at all: {unmoved} of {len(places)} tensors, the first of them {least}."
    else:
        yield f"Moved least: {least}, by {format_share(lowest)}."


def _name_place(path: str, layer: int, stacked: bool) -> str:
    return f"layer {layer} of {path}" if stacked else path


def _nonfinite(found: Comparison) -> Iterator[str]:
    for path, parts in found.parts.items():
        for layer, part in enumerate(parts):
            if part.nonfinite_a or part.nonfinite_b:
                yield (
                    f"NOT FINITE: {_name_place(path, layer, path in found.stacked)} has "
                    f"{part.nonfinite_a:,} NaN or infinite elements in A and "
                    f"{part.nonfinite_b:,} in B; they are in no sum above."
                )
