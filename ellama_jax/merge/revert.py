"""Which parts of an adaptation can go back to base at no cost to e-commerce: a greedy study.

Owns the study on scorecards of validation questions. It scores nothing itself and chooses nothing by
test questions; the parts are those of `weights/alphas.py`.

    1. every part goes back to base alone: what does it cost?
    2. from the cheapest on, parts go back one after another; one that costs too much stays adapted.

That takes two scorecards a part. Trying every remaining part in every round, the greedy search of
textbooks, would take one for every pair of parts.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ellama_jax.evaluate.comparison import paired_difference, relative_gain, summary
from ellama_jax.weights.alphas import Alphas

# What all reverted parts together may cost: a twentieth of what adaptation gained, and a point of
# accuracy, which is a question or two of a usual validation split.
MAX_GAIN_LOSS = 0.05
MAX_ACCURACY_LOSS = 0.01
_MEANS = ("ecommerce", "bpb_ecommerce", "general", "bpb_general")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What going back to base may cost e-commerce in all.

    Attributes:
        gain_loss: share of what adaptation gained in bits per byte of e-commerce text; of accuracy
            where no text was scored.
        accuracy_loss: of e-commerce accuracy (plain mean over tasks and languages), absolute; or one
            standard error of the paired difference, if that is more.
    """

    gain_loss: float = MAX_GAIN_LOSS
    accuracy_loss: float = MAX_ACCURACY_LOSS

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < 1:
                title = f"--max-{name.replace('_', '-')}"
                raise ValueError(f"{title}: must be from 0 to below 1, got {value:g}.")

    def allow(self, base: dict, whole: dict, card: dict) -> bool:
        """Tells whether a model costs no more than these; all three are scorecards."""
        if _cost(*map(_means, (base, whole, card))) > self.gain_loss + 1e-12:
            return False
        before, after = (summary(model)["ecommerce"] for model in (whole, card))
        if before is None:
            return True
        _, stderr, _ = paired_difference(whole, card, domain="ecommerce")
        return before - after <= max(self.accuracy_loss, stderr or 0.0) + 1e-12


DEFAULT_LIMITS = Limits()


def parts_of(num_layers: int, *, tied: bool, layers_a_part: int = 1) -> list[str]:
    """Returns the parts that are tried: the embedding, groups of layers, the head.

    Args:
        num_layers: of the model.
        tied: whether the head is the embedding.
        layers_a_part: how many neighbouring layers go back together.

    >>> parts_of(5, tied=True, layers_a_part=2)
    ['embed', 'layers.0-1', 'layers.2-3', 'layers.4']
    """
    if not 1 <= layers_a_part <= num_layers:
        raise ValueError(
            f"--layers-a-part: must be from 1 to the model's {num_layers} layers, got {layers_a_part}."
        )
    parts = ["embed"]
    for first in range(0, num_layers, layers_a_part):
        last = min(first + layers_a_part, num_layers) - 1
        parts.append(f"layers.{first}" if first == last else f"layers.{first}-{last}")
    return parts if tied else [*parts, "head"]


def revert(alpha: float, parts: Sequence[str]) -> Alphas:
    """Returns alpha everywhere but in `parts`, which are base."""
    return Alphas((alpha,), tuple((part, (0.0,)) for part in parts))


def study_reverts(
    score: Callable[[Alphas], dict],
    parts: Sequence[str],
    *,
    alpha: float = 1.0,
    limits: Limits = DEFAULT_LIMITS,
) -> dict:
    """Finds parts that can go back to base together within `limits`.

    Args:
        score: scorecard of validation questions of the model with some alphas.
        parts: what goes back as one, see `parts_of`.
        alpha: of the model that is started from; 1 is adapted.
        limits: what may be lost of e-commerce in all.

    Returns:
        {"alpha", "base" and "whole": means, "alone": [{"part", means, "cost": share of what
        adaptation gained that is lost}, ...] in the order of `parts`, "trail": [{"part", means,
        "kept": whether it stays at base}, ...] in the order tried, "reverted": parts at base at the
        end, "final": means then}. Means are those of `comparison.summary`.

    Raises:
        ValueError: if no question or text is about e-commerce.
    """
    base_card, whole_card = score(Alphas((0.0,))), score(Alphas((alpha,)))
    base, whole = _means(base_card), _means(whole_card)
    if whole["ecommerce"] is None and whole["bpb_ecommerce"] is None:
        raise ValueError("moved: needs e-commerce questions or texts to judge by, got none.")
    alone = []
    for part in parts:
        found = _means(score(revert(alpha, [part])))
        alone.append({"part": part, **found, "cost": _cost(base, whole, found)})
    reverted, trail, final = [], [], whole
    # Equal costs, as of accuracies that no answer changed: the later part first, nearest to the head.
    places = {part: place for place, part in enumerate(parts)}
    for entry in sorted(alone, key=lambda entry: (entry["cost"], -places[entry["part"]])):
        card = score(revert(alpha, [*reverted, entry["part"]]))
        found, kept = _means(card), limits.allow(base_card, whole_card, card)
        if kept:
            reverted.append(entry["part"])
            final = found
        cost = _cost(base, whole, found)
        trail.append({"part": entry["part"], **found, "cost": cost, "kept": kept})
    return {
        "alpha": alpha,
        "limits": dataclasses.asdict(limits),
        "base": base,
        "whole": whole,
        "alone": alone,
        "trail": trail,
        "reverted": sorted(reverted, key=places.get),
        "final": final,
    }


def _means(card: dict) -> dict[str, float | None]:
    found = summary(card)
    return {name: found[name] for name in _MEANS}


def _cost(base: Mapping, whole: Mapping, found: Mapping) -> float:
    """Returns the share of the adaptation's gain that is lost; of bits per byte where there are any.

    They move with every weight, accuracies only where an answer changes.
    """
    name = "ecommerce" if whole["bpb_ecommerce"] is None else "bpb_ecommerce"
    gain = whole[name] - base[name]
    return (whole[name] - found[name]) / gain if gain else 0.0


def say_reverts(study: Mapping) -> str:
    """Says in a sentence or two what the study found."""
    count, tried = len(study["reverted"]), len(study["alone"])
    if not count:
        return f"None of the {tried} parts can go back to base within the limits."
    whole, final = study["whole"], study["final"]
    cost = _cost(study["base"], whole, final)
    changes = [
        f"{label} {_say_change(whole[name], final[name], name)}"
        for name, label in (
            ("ecommerce", "e-commerce accuracy"),
            ("bpb_ecommerce", "e-commerce bits per byte"),
            ("general", "general accuracy"),
            ("bpb_general", "general bits per byte"),
        )
        if whole[name] is not None
    ]
    return (
        f"{count} of {tried} parts can go back to base: {', '.join(study['reverted'])}. On validation "
        f"questions that changes {', '.join(changes)}; {1 - cost:.1%} of the gain on e-commerce stay."
    )


def _say_change(before: float, after: float, name: str) -> str:
    if name.startswith("bpb"):
        gain = relative_gain(after, before)
        return f"by {100 * gain:+.2f} %" if gain is not None else "by nothing that can be told"
    return f"by {100 * (after - before):+.1f} points"
