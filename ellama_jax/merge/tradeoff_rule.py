"""Owns the choice of one model of a trade-off curve: who keeps general ability, and the best.

It reads scorecards of validation questions and runs no model. Intervals are `retention`'s.
"""

from collections.abc import Mapping, Sequence

from ellama_jax.config import SweepConfig
from ellama_jax.evaluate.comparison import summary
from ellama_jax.evaluate.retention import compare
from ellama_jax.merge.tradeoff_profiles import UNIFORM

# A 95 % interval is so many standard errors wide.
_ERRORS_WIDE = 2 * 1.96
_ROUNDING = 1e-12
# The quantity by which the best is chosen, by `SweepConfig.best_by`; of bits less is better.
BEST_OF = {"accuracy": "ecommerce", "bits_per_byte": "bpb_ecommerce"}


def make_point(
    base: dict,
    card: dict,
    rule: SweepConfig,
    *,
    alpha: float,
    profile: str = UNIFORM,
    step: int | None = None,
) -> dict:
    """Returns one point of a curve: what a scorecard says, and what of it is new against the base.

    Args:
        base, card: scorecards of alpha 0 and of the model, on the same questions.
        rule: what may be lost.
        alpha, profile, step: which model it is.

    Returns:
        {"alpha", "profile", "step", "scorecard", "keeps_general": bool, what `summary` gives,
        "changes": {name: change with its interval}, "by_language": [...]}; the last two as
        `retention.compare` gives them.
    """  # fmt: skip
    comparison = compare(base, card)
    changes = comparison["overall"]
    return {
        "alpha": alpha,
        "profile": profile,
        "step": step,
        "scorecard": card,
        "keeps_general": keeps_general(changes, rule),
        **summary(card),
        "changes": changes,
        "by_language": comparison["by_language"],
    }


def keeps_general(changes: Mapping[str, dict], rule: SweepConfig) -> bool:
    """Tells whether a model is as good at general tasks as the rule asks.

    Args:
        changes: of means against the base, `retention.compare`'s "overall".
        rule: a general mean may fall by `general_mean`, or by `standard_errors` of its change if
            that is more, for so much is not seen; bits per byte may rise by `bits_per_byte`.
    """
    mean, text = changes.get("general"), changes.get("bpb_general")
    if mean is not None and mean["change"] is not None:
        error = standard_error(mean)
        allowed = max(-rule.general_mean, rule.standard_errors * error)
        if -mean["change"] > allowed + _ROUNDING:
            return False
    if text is not None and text["change"] is not None:
        return text["change"] <= rule.bits_per_byte + _ROUNDING
    return True


def standard_error(change: Mapping) -> float:
    """Returns the standard error of a relative change, from its interval; 0 where it has none."""
    return 0.0 if change["low"] is None else (change["high"] - change["low"]) / _ERRORS_WIDE


def choose(points: Sequence[dict], rule: SweepConfig) -> dict:
    """Returns the point that the rule chooses, alpha 0 among them.

    Of equals it is the one with the smallest alpha, then the uniform profile, then the first.

    Raises:
        ValueError: if none has what is to be best.
    """
    name = BEST_OF[rule.best_by]
    if all(point[name] is None for point in points):
        raise ValueError(f"merge-sweep: needs {_NEEDED[rule.best_by]} to choose by, got none.")
    sign = 1 if rule.best_by == "accuracy" else -1

    def worth(point):
        return sign * point[name], -abs(point["alpha"]), point["profile"] == UNIFORM

    return max((point for point in points if point["keeps_general"]), key=worth)


_NEEDED = {
    "accuracy": "e-commerce items",
    "bits_per_byte": "e-commerce texts (--tasks bits_per_byte)",
}


def find_boundary(points: Sequence[dict], rule: SweepConfig) -> list[tuple[float, float]]:
    """Returns the intervals of a curve where the rule's boundary lies and could be worth finding.

    They are those where one end keeps general ability and the other does not, but is better at
    e-commerce than the best that is allowed so far; the one with the best such end first.

    Args:
        points: of one curve, ascending by alpha.
        rule: the rule.
    """
    name, sign = BEST_OF[rule.best_by], 1 if rule.best_by == "accuracy" else -1
    if any(point[name] is None for point in points):
        return []
    best = max(sign * point[name] for point in points if point["keeps_general"])
    found = []
    for left, right in zip(points, points[1:], strict=False):
        if left["keeps_general"] != right["keeps_general"]:
            worth = sign * (right if left["keeps_general"] else left)[name]
            if worth > best:
                found.append((-worth, left["alpha"], right["alpha"]))
    return [(low, high) for _, low, high in sorted(found)]


def say_rule(rule: SweepConfig) -> str:
    """Writes the rule for a reader."""
    what = {"accuracy": "best e-commerce accuracy (plain mean over tasks and languages)",
            "bits_per_byte": "fewest bits per byte of e-commerce text"}[rule.best_by]  # fmt: skip
    noise = ""
    if rule.standard_errors:
        many = f"{rule.standard_errors:g} standard error{'s' * (rule.standard_errors != 1)}"
        noise = f", or within {many} of the paired change if that is more"
    return (
        f"Of the models that keep general ability, the one with the {what} on validation questions;"
        " the smallest alpha of equals. General ability is kept where general accuracy is at least "
        f"{100 * (1 + rule.general_mean):g} % of the base's{noise}, and general bits per byte are at "
        f"most {100 * rule.bits_per_byte:g} % above it."
    )
