"""A sweep as `tradeoff.sweep` returns it, of made-up answers, for tests of what shows it."""

import dataclasses

from ellama_jax.config import GateConfig, SweepConfig
from ellama_jax.merge.loss_line import measure_line
from ellama_jax.merge.tradeoff import add_test
from ellama_jax.merge.tradeoff_rule import choose, make_point, say_rule

LANGUAGES = ("en", "de")
RULE = SweepConfig(standard_errors=0.0)


def make_answers(ecommerce: float, general: float, bpb: float = 1.0, texts: int = 20) -> dict:
    """A scorecard with these shares of right answers, and so many bits a byte."""
    found = []
    for domain, share in (("ecommerce", ecommerce), ("general", general)):
        for language in LANGUAGES:
            right = round(200 * share)
            found.append({
                "task": domain, "domain": domain, "metric": "accuracy", "language": language,
                "value": right / 200, "stderr": 0.01, "chance": 0.25, "n": 200,
                "ids": [f"{domain}/{number}/{language}" for number in range(200)],
                "correct": [1] * right + [0] * (200 - right),
            })  # fmt: skip
            sizes = [100 + 7 * number for number in range(texts)]
            # Documents differ, or there would be no interval.
            bits = [size * bpb * (1 + number % 5 / 20) for number, size in enumerate(sizes)]
            found.append({
                "task": "bits_per_byte", "domain": domain, "metric": "bits_per_byte",
                "language": language, "value": sum(bits) / sum(sizes), "stderr": 0.01, "n": texts,
                "correct": None, "ids": [f"{domain} {language} {n}" for n in range(texts)],
                "bits": bits, "bytes": sizes, "chance": None,
            })  # fmt: skip
    return {"model": "m", "checkpoint": None, "made_with": {}, "results": found}


def make_sweep(*, alphas=(0.0, 0.5, 1.0), profiles=(), steps=(), line=True, test=True) -> dict:
    """A sweep that gains in e-commerce all the way and loses general ability behind the middle."""

    def answers(alpha, strength=1.0):
        fall = 0.15 * max(0.0, alpha - 0.5) * strength
        bpb = 1.0 - 0.1 * strength * alpha * (1.3 - alpha)
        return make_answers(0.3 + 0.25 * alpha * strength, 0.5 - fall, bpb)

    base = answers(0.0)

    def curve(strength=1.0, profile="uniform", step=None, start=0):
        return [
            make_point(
                base, answers(alpha, strength), RULE, alpha=alpha, profile=profile, step=step
            )
            for alpha in alphas[start:]
        ]

    main = curve(step=steps[-1] if steps else None)
    curves = {
        name: curve(0.6 - number / 10, name, steps[-1] if steps else None, start=1)
        for number, name in enumerate(profiles)
    }
    by_step = [
        {"step": step, "points": curve((number + 1) / len(steps), step=step)}
        for number, step in enumerate(steps)
    ]
    points = [
        *main,
        *(p for c in curves.values() for p in c),
        *(p for e in by_step for p in e["points"]),
    ]
    chosen = choose(points, RULE)
    found = {
        "alphas": main, "profiles": curves, "steps": by_step, "chosen": chosen["alpha"],
        "chosen_profile": chosen["profile"], "chosen_step": chosen["step"],
        "rule": say_rule(RULE), "rule_settings": dataclasses.asdict(RULE),
        "line": None, "base": "base", "adapted": "adapted", "command": "", "checkpoint": None,
    }  # fmt: skip
    if line:
        found["line"] = measure_line({alpha: answers(alpha) for alpha in (-0.25, 0, 0.5, 1, 1.25)})
    cards = [answers(alpha) for alpha in (0.0, chosen["alpha"], 1.0)] if test else None
    return add_test(found, cards, GateConfig())
