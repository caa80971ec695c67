"""The rule on hand-written scorecards, and where the curve is refined."""

import pytest

from ellama_jax.config import SweepConfig, check_sweep
from ellama_jax.merge import tradeoff_points, tradeoff_rule
from ellama_jax.merge.tradeoff_points import NARROWEST, next_alpha

RULE = SweepConfig(standard_errors=0.0)


def make_card(ecommerce_correct, general_correct, bpb=1.0, ecommerce_bpb=1.0):
    """Answers to 1000 questions of each domain, and one text of each."""
    found = []
    for domain, count in (("ecommerce", ecommerce_correct), ("general", general_correct)):
        found.append({
            "task": domain, "domain": domain, "metric": "accuracy", "language": "en",
            "value": count / 1000, "stderr": 0.01, "chance": 0.25, "n": 1000,
            "ids": [f"{domain}/{number}/en" for number in range(1000)],
            "correct": [1] * count + [0] * (1000 - count),
        })  # fmt: skip
    for domain, value in (("general", bpb), ("ecommerce", ecommerce_bpb)):
        found.append({
            "task": "bits_per_byte", "domain": domain, "metric": "bits_per_byte", "language": "en",
            "value": value, "stderr": 0.01, "n": 1, "correct": None, "ids": ["text"],
            "bits": [1000 * value], "bytes": [1000], "chance": None,
        })  # fmt: skip
    return {"model": "m", "made_with": {}, "results": found}


def points_of(cards, rule=RULE):
    """Points of {alpha: scorecard}; 0 is the base."""
    return [
        tradeoff_rule.make_point(cards[0.0], card, rule, alpha=alpha)
        for alpha, card in sorted(cards.items())
    ]


def choose(cards, rule=RULE):
    return tradeoff_rule.choose(points_of(cards, rule), rule)["alpha"]


def test_the_best_at_e_commerce_is_chosen_where_all_keep_general_ability():
    cards = {0.0: make_card(300, 500), 0.5: make_card(600, 500), 1.0: make_card(500, 499)}
    assert choose(cards) == 0.5
    points = points_of(cards)
    assert [point["keeps_general"] for point in points] == [True] * 3
    assert [point["ecommerce"] for point in points] == [0.3, 0.6, 0.5]


@pytest.mark.parametrize(("correct", "kept"), [(496, True), (495, True), (494, False)])
def test_general_accuracy_is_kept_at_99_percent_of_the_bases_and_not_below(correct, kept):
    cards = {0.0: make_card(300, 500), 1.0: make_card(900, correct)}
    assert points_of(cards)[1]["keeps_general"] is kept
    assert choose(cards) == (1.0 if kept else 0.0)


def test_a_loss_within_the_standard_errors_asked_for_is_let_through():
    # 12 of 1000 questions lost and none won: 2.4 % of the base, its standard error 0.7 %.
    cards = {0.0: make_card(300, 500), 1.0: make_card(900, 488)}
    error = tradeoff_rule.standard_error(points_of(cards)[1]["changes"]["general"])
    assert error == pytest.approx((12 * 0.988) ** 0.5 / 500, rel=0.1)
    allowed = [SweepConfig(standard_errors=errors) for errors in (1.0, 3.0, 4.0)]
    assert [choose(cards, rule) for rule in allowed] == [0.0, 0.0, 1.0]


def test_general_text_that_is_written_worse_is_not_let_through():
    cards = {
        0.0: make_card(300, 500),
        0.5: make_card(500, 500, bpb=1.01),
        1.0: make_card(900, 500, bpb=1.0101),
    }
    assert choose(cards) == 0.5
    assert choose(cards, SweepConfig(bits_per_byte=0.02)) == 1.0


def test_the_best_can_be_the_one_that_writes_e_commerce_text_best():
    cards = {
        0.0: make_card(300, 500, ecommerce_bpb=1.0),
        0.5: make_card(500, 500, ecommerce_bpb=0.8),
        1.0: make_card(900, 500, ecommerce_bpb=0.9),
    }
    assert choose(cards, SweepConfig(best_by="bits_per_byte")) == 0.5
    assert choose(cards) == 1.0


def test_of_equals_the_smaller_alpha_and_then_the_uniform_profile_is_chosen():
    cards = {0.0: make_card(300, 500), 0.5: make_card(600, 500), 1.0: make_card(600, 500)}
    assert choose(cards) == 0.5
    late = tradeoff_rule.make_point(cards[0.0], cards[0.5], RULE, alpha=0.5, profile="late")
    assert tradeoff_rule.choose([late, *points_of(cards)], RULE)["profile"] == "uniform"


def test_if_every_merge_forgets_the_base_remains():
    assert choose({0.0: make_card(300, 500), 1.0: make_card(900, 100)}) == 0.0


def test_without_what_is_to_be_best_nothing_can_be_chosen():
    card = make_card(300, 500)
    card["results"] = [row for row in card["results"] if row["domain"] == "general"]
    for best_by, words in (("accuracy", "e-commerce items"), ("bits_per_byte", "commerce texts")):
        with pytest.raises(ValueError, match=f"needs .*{words}.* to choose by, got none"):
            choose({0.0: card}, SweepConfig(best_by=best_by))


def test_the_boundary_is_sought_only_where_more_could_be_won():
    cards = {0.0: make_card(300, 500), 0.5: make_card(600, 500), 1.0: make_card(900, 100)}
    assert tradeoff_rule.find_boundary(points_of(cards), RULE) == [(0.5, 1.0)]
    worse = {**cards, 1.0: make_card(500, 100)}  # forgets, and is no better for it
    assert tradeoff_rule.find_boundary(points_of(worse), RULE) == []


def test_the_rule_is_written_with_its_numbers():
    said = tradeoff_rule.say_rule(SweepConfig(general_mean=-0.02, standard_errors=2.0))
    assert "at least 98 % of the base's, or within 2 standard errors" in said
    assert "at most 1 % above it" in said
    assert "standard error" not in tradeoff_rule.say_rule(RULE)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_points", 1), ("best_by", "luck"), ("general_mean", 0.01), ("general_mean", -1.0),
     ("bits_per_byte", -0.01), ("standard_errors", -1.0)],
)  # fmt: skip
def test_a_rule_that_cannot_hold_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"^evaluate.sweep.{key}: must .*, got {value}\.$"):
        check_sweep(SweepConfig(**{key: value}))


# --- where the next point goes -------------------------------------------------------------------


def refine(curve, most, *, boundary=None, start=(0.0, 0.25, 0.5, 0.75, 1.0)):
    """Adds points to a curve, a function of alpha, until the chooser has enough."""
    alphas = list(start)
    while len(alphas) < most:
        between = [] if boundary is None else [
            (low, high) for low, high in zip(alphas, alphas[1:], strict=False) if low <= boundary < high
        ]  # fmt: skip
        alpha = next_alpha(alphas, {"q": [curve(alpha) for alpha in alphas]}, between)
        if alpha is None:
            break
        alphas = sorted([*alphas, alpha])
    return alphas


def test_a_straight_curve_gets_no_point():
    assert refine(lambda alpha: 3 - 2 * alpha, 20) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert refine(lambda alpha: 7.0, 20) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_points_gather_where_the_curve_bends():
    found = refine(lambda alpha: min(1.0, alpha / 0.3), 12)
    added = set(found) - {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(added) >= 4 and sum(0.2 < alpha < 0.5 for alpha in added) >= len(added) - 1
    found = refine(lambda alpha: alpha**8, 9)
    assert sum(alpha > 0.5 for alpha in found) > sum(alpha < 0.5 for alpha in found)


def test_the_boundary_is_halved_until_it_is_narrow():
    found = refine(lambda alpha: alpha, 40, boundary=0.6)
    left, right = max(a for a in found if a <= 0.6), min(a for a in found if a > 0.6)
    assert right - left == pytest.approx(NARROWEST)
    assert len(found) == 5 + 4


def test_no_two_points_come_closer_than_is_of_use():
    found = refine(lambda alpha: float(alpha > 0.4), 100)
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert min(gaps) >= NARROWEST * (1 - 1e-9) and len(found) < 100


def test_a_bend_within_the_noise_is_none():
    alphas, values = [0.0, 0.5, 1.0], [0.50, 0.53, 0.50]
    assert next_alpha(alphas, {"q": values}) is not None
    assert next_alpha(alphas, {"q": values}, noise={"q": 2.0}) is None


def test_an_error_is_no_smaller_than_that_of_a_parabola():
    # Linear interpolation of x^2 over a width h is wrong by h^2 / 4 in the middle.
    alphas = [0.0, 0.25, 0.5, 1.0]
    errors = tradeoff_points.line_errors(alphas, [alpha**2 for alpha in alphas])
    assert errors.tolist() == pytest.approx([0.25**2 / 4, 0.25**2 / 4, 0.5**2 / 4])
