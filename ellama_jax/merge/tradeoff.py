"""Owns the trade-off curve: models between base and adapted, all scored, one chosen by rule.

Scoring a model between two is blend.py's, where the next point goes tradeoff_points.py's, the rule
tradeoff_rule.py's, merging merge/verb.py's. Validation questions choose; test questions are
asked once, when everything is chosen.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ellama_jax.config import GateConfig, SweepConfig, check_sweep
from ellama_jax.core.distributed import leads
from ellama_jax.core.paths import as_path, remove_tree
from ellama_jax.evaluate.retention import check_gate, compare
from ellama_jax.evaluate.scorecard import DEFAULT_SCORING, Scoring, write_json
from ellama_jax.merge.blend import (
    Source,
    check_fit,
    find_source,
    load_pair,
    replace_adapted,
    score_blend,
    stored_bytes,
)
from ellama_jax.merge.loss_line import line_alphas, measure_line
from ellama_jax.merge.tradeoff_points import next_alpha
from ellama_jax.merge.tradeoff_profiles import UNIFORM, alphas_of
from ellama_jax.merge.tradeoff_rule import (
    choose,
    find_boundary,
    make_point,
    say_rule,
    standard_error,
)
from ellama_jax.merge.tradeoff_store import PointStore, point_key
from ellama_jax.merge.tradeoff_text import say_result
from ellama_jax.merge.verb import merge_checkpoints
from ellama_jax.weights.alphas import Alphas
from ellama_jax.weights.checkpoint import find_checkpoint
from ellama_jax.weights.layout import check_destination, check_writable
from ellama_jax.weights.verdict import check_verified

FILE, MERGED = "sweep.json", "merged"
DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What extrapolation adds to the first alphas.
BEYOND = (1.25, 1.5)
# What the curve is to show: where one of these bends, another point is worth its cost.
_SHOWN = ("ecommerce", "general", "bpb_ecommerce", "bpb_general")

Questions = tuple[Sequence[dict], Sequence[dict]]


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """Says which models are scored.

    Attributes:
        alphas: the first points of the curve; 0 is always one.
        adaptive: add points up to `rule.max_points` where it bends or the rule's boundary lies.
        rule: the rule, and how many points a curve has at most.
        profiles: further curves at `alphas`, names of `tradeoff_profiles.PROFILES`.
        line: number of evenly spaced alphas from 0 to 1 at which text is scored; 0 for none.
        extrapolate: whether alphas outside [0, 1] are allowed.
    """

    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    adaptive: bool = True
    rule: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    profiles: tuple[str, ...] = ()
    line: int = 0
    extrapolate: bool = False


def sweep(
    base: str | Path,
    adapted: str | Path | Sequence[str | Path],
    questions: Questions,
    workdir: str | Path,
    plan: SweepPlan,
    *,
    test: Questions | None = None,
    scoring: Scoring = DEFAULT_SCORING,
    gate: GateConfig | None = None,
    command: str = "",
    write_merged: bool = False,
    overwrite: bool = False,
    allow_unverified: bool = False,
) -> dict:
    """Scores models between base and adapted, chooses one and writes WORKDIR/sweep.json.

    Each model is loaded once. Points that an earlier sweep in this workdir scored are not scored
    again.

    Args:
        base, adapted: checkpoints of one architecture and tokenizer; several adapted ones are steps
            of one run, in order: the last is the curve's, the others are scored at `plan.alphas`.
        questions: validation (items, texts), which choose.
        workdir: where sweep.json and points go, and the chosen checkpoint as `merged`.
        plan: what is scored.
        test: (items, texts) that report on base, chosen and adapted; None leaves that out.
        scoring: how to run the model; both models are divided over its mesh.
        gate: what the chosen model is held against on the test questions.
        command: recorded in the file.
        write_merged: write the chosen model, unless it is base or adapted themselves.
        overwrite: replace an earlier `merged`.
        allow_unverified: take checkpoints that failed the conversion gate all the same.

    Returns:
        The content of sweep.json: `alphas` (the curve's points, as `make_point` gives them),
        `profiles` (name -> points), `steps` ([{step, points}]), `chosen`, `chosen_profile`,
        `chosen_step`, `rule`, `line`, `test`, `sentence`, `checkpoint` and where it came from.

    Raises:
        ValueError: if the models do not fit each other, there is nothing to choose by, an alpha lies
            outside unasked, test questions choose, or the workdir cannot be written; nothing is
            written then.
    """
    workdir = as_path(workdir)
    adapted = [adapted] if isinstance(adapted, str | Path) else list(adapted)
    check_sweep(plan.rule, "--")
    _check_questions(questions, test, plan)
    check_writable(workdir / FILE)
    ours, theirs = find_source(base), [find_source(path) for path in adapted]
    for source in theirs:
        check_fit(ours, source)
    alphas = check_alphas(plan, ours.config.num_layers)
    if write_merged:
        size = max(stored_bytes(source) for source in (ours, *theirs))
        check_destination(workdir / MERGED, size, overwrite=overwrite)
    for source in (ours, *theirs):
        if source.info is not None:
            check_verified(source.info, allow_unverified=allow_unverified)
    models = _Models(ours, PointStore(workdir), scoring)
    curves = _score_curves(models, theirs, alphas, questions, plan)
    chosen = choose([point for curve in curves.all for point in curve], plan.rule)
    chosen_source = next(s for s in theirs if s.step == chosen["step"] or chosen["step"] is None)
    found = {
        "alphas": curves.main,
        "profiles": curves.profiles,
        "steps": curves.steps,
        "chosen": chosen["alpha"],
        "chosen_profile": chosen["profile"],
        "chosen_step": chosen["step"],
        "rule": say_rule(plan.rule),
        "rule_settings": dataclasses.asdict(plan.rule),
        "line": _score_line(models, theirs[-1], curves.main, questions, plan),
        "base": str(base),
        "adapted": [str(path) for path in adapted] if len(adapted) > 1 else str(adapted[0]),
        "command": command,
    }
    cards = None
    if test is not None:
        cards = _score_test(models, chosen_source, theirs[-1], chosen, test)
    found = add_test(found, cards, gate or GateConfig())
    found["checkpoint"] = None
    if write_merged:
        found["checkpoint"] = _write_chosen(
            ours, chosen_source, chosen, workdir / MERGED, overwrite, allow_unverified
        )
    if leads():
        write_json(workdir / FILE, found)
    return found


def add_test(found: dict, cards: Sequence[dict] | None, gate: GateConfig) -> dict:
    """Returns a sweep with what test questions say of base, chosen and adapted, and the sentence.

    Args:
        found: a sweep, as `sweep` returns one.
        cards: the three scorecards; None if no test question was asked.
        gate: what the chosen one is held against.
    """
    if cards is None:
        found = {**found, "test": None}
        return {**found, "sentence": say_result(found)}
    base, chosen, adapted = cards
    changes = {"chosen": compare(base, chosen), "adapted": compare(base, adapted)}
    found = {
        **found,
        "test": {
            "scorecards": dict(zip(("base", "chosen", "adapted"), cards, strict=True)),
            "changes": changes,
            "gate": check_gate(changes["chosen"], gate),
        },
    }
    return {**found, "sentence": say_result(found)}


def check_alphas(plan: SweepPlan, num_layers: int) -> list[float]:
    """Returns the first alphas, 0 among them, ascending.

    Raises:
        ValueError: if one lies outside [0, 1] unasked, or there is none but 0.
    """
    for alpha in plan.alphas:
        Alphas((alpha,)).check(num_layers, extrapolate=plan.extrapolate)
    alphas = sorted({0.0, *map(float, plan.alphas)})
    if len(alphas) < 2:
        raise ValueError(
            "--alphas: must name an alpha beside 0, the base, got only that; a curve has two."
        )
    return alphas


def _check_questions(questions: Questions, test: Questions | None, plan: SweepPlan) -> None:
    """Refuses a sweep that could not choose or report, before anything is loaded."""
    items, texts = questions
    ecommerce = [r for r in (*items, *texts) if r["domain"] == "ecommerce"]
    if plan.rule.best_by == "accuracy" and not any("choices" in record for record in ecommerce):
        raise ValueError("merge-sweep: needs e-commerce items to choose by, got none.")
    if plan.rule.best_by == "bits_per_byte" and not any("text" in record for record in ecommerce):
        raise ValueError(
            "merge-sweep: needs e-commerce texts to choose by, got none; add bits_per_byte to "
            "--tasks."
        )
    if plan.line:
        line_alphas(plan.line)
    if plan.line and not texts:
        raise ValueError(
            "--line: must have validation texts to score, got none; add bits_per_byte to --tasks."
        )
    if test is None:
        return
    if not any(test):
        raise ValueError(
            "merge-sweep: needs test questions to report on the choice, got none; pass --no-test."
        )
    shared = _names(questions) & _names(test)
    if shared:
        raise ValueError(
            f"merge-sweep: no test question may choose, got {len(shared)} in both splits, as "
            f"{min(shared)}."
        )


def _names(questions: Questions) -> set[str]:
    items, texts = questions
    digests = (hashlib.sha256(text["text"].encode()).hexdigest()[:16] for text in texts)
    return {str(item["id"]) for item in items} | {f"text {digest}" for digest in digests}


class _Models:
    """Base and one adapted model in memory, loaded when a point needs them that is not stored."""

    def __init__(self, base: Source, store: PointStore, scoring: Scoring):
        self._base, self._store, self._scoring = base, store, scoring
        self._pair: tuple[dict, dict] | None = None
        self._loaded: Source | None = None

    def score(self, adapted: Source, alphas: Alphas, questions: Questions, model: str) -> dict:
        """Returns the scorecard of one blend, from the store if it is there."""
        key = point_key(self._base, adapted, alphas, *questions, self._scoring)
        card = self._store.get(key)
        if card is None:
            pair = self._load(adapted)
            card = score_blend(
                *pair, alphas, self._base.config, self._base.tokenizer, *questions,
                model=model, scoring=self._scoring,
            )  # fmt: skip
            self._store.put(key, card)
        return {**card, "model": model}

    def _load(self, adapted: Source) -> tuple[dict, dict]:
        if self._pair is None:
            self._pair = load_pair(self._base, adapted, mesh=self._scoring.mesh)
        elif self._loaded is not adapted:
            base_params, self._pair = self._pair[0], None  # makes room for the next
            self._pair = replace_adapted(base_params, adapted, mesh=self._scoring.mesh)
        self._loaded = adapted
        return self._pair


@dataclasses.dataclass
class _Curves:
    main: list[dict]
    profiles: dict[str, list[dict]]
    steps: list[dict]

    @property
    def all(self) -> list[list[dict]]:
        return [self.main, *self.profiles.values(), *(entry["points"] for entry in self.steps)]


def _score_curves(models, sources, alphas, questions, plan: SweepPlan) -> _Curves:
    """Scores every curve; the step that the main curve is of comes last and stays loaded."""
    several = len(sources) > 1
    base_card = models.score(sources[0], alphas_of(UNIFORM, 0.0), questions, point_name(0.0))

    def score(source, alpha, profile=UNIFORM):
        step = source.step if several else None
        card = base_card
        if alpha:
            name = point_name(alpha, profile, step)
            card = models.score(source, alphas_of(profile, alpha), questions, name)
        return make_point(base_card, card, plan.rule, alpha=alpha, profile=profile, step=step)

    steps = [
        {"step": source.step, "points": [score(source, alpha) for alpha in alphas]}
        for source in sources[:-1]
    ]
    last = sources[-1]
    main = [score(last, alpha) for alpha in alphas]
    while plan.adaptive and len(main) < plan.rule.max_points:
        alpha = _next(main, plan.rule)
        if alpha is None:
            break
        main.append(score(last, alpha))
        main.sort(key=lambda point: point["alpha"])
    profiles = {
        name: [score(last, alpha, name) for alpha in alphas if alpha] for name in plan.profiles
    }
    if several:
        at = [point for point in main if point["alpha"] in alphas]
        steps.append({"step": last.step, "points": at})
    return _Curves(main, profiles, steps)


def _next(points: Sequence[dict], rule: SweepConfig) -> float | None:
    """Chooses the next alpha of a curve from its points."""
    alphas = [point["alpha"] for point in points]
    quantities, noise = {}, {}
    for name in _SHOWN:
        if all(point[name] is not None for point in points):
            quantities[name] = [point[name] for point in points]
            # A difference of two standard errors may be nothing.
            errors = [standard_error(point["changes"][name]) for point in points]
            noise[name] = 2 * max(errors) * abs(points[0][name])
    return next_alpha(alphas, quantities, find_boundary(points, rule), noise)


def _score_line(models, source, main, questions, plan: SweepPlan) -> dict | None:
    if not plan.line:
        return None
    texts = questions[1]
    known = {point["alpha"]: point["scorecard"] for point in main}
    cards = {}
    for alpha in line_alphas(plan.line):
        cards[alpha] = known.get(alpha) or models.score(
            source, alphas_of(UNIFORM, alpha), ([], texts), point_name(alpha)
        )
    return measure_line(cards)


def _score_test(models, chosen_source, adapted, chosen, test: Questions) -> list[dict]:
    """Asks the test questions: of base, chosen and adapted, each once."""
    # The last step is loaded, an earlier one may have to be: it comes last.
    after = models.score(adapted, alphas_of(UNIFORM, 1.0), test, "adapted")
    base = models.score(adapted, alphas_of(UNIFORM, 0.0), test, "base")
    alphas = alphas_of(chosen["profile"], chosen["alpha"])
    return [base, models.score(chosen_source, alphas, test, "chosen"), after]


def point_name(alpha: float, profile: str = UNIFORM, step: int | None = None) -> str:
    """Names a point for tables and plots.

    >>> point_name(0.25), point_name(0.5, "early"), point_name(1.0, step=40)
    ('alpha 0.25', 'alpha 0.5 early', 'alpha 1 step 40')
    """
    shape = "" if profile == UNIFORM else f" {profile}"
    return f"alpha {alpha:g}{shape}" + ("" if step is None else f" step {step}")


def _write_chosen(base, source, chosen, out, overwrite: bool, allow_unverified: bool) -> str:
    """Writes the chosen model and returns its path; base and adapted themselves are not copied."""
    if chosen["profile"] == UNIFORM and chosen["alpha"] in (0.0, 1.0):
        # An earlier choice must not pass for this one.
        if overwrite and leads() and out.exists():
            remove_tree(out)
        return str(source.path if chosen["alpha"] else base.path)
    alphas = alphas_of(chosen["profile"], chosen["alpha"])
    alpha = alphas if alphas.uniform is None else alphas.uniform
    merge_checkpoints(
        base.path, source.path, alpha, out, overwrite=overwrite, allow_unverified=allow_unverified
    )
    return str(find_checkpoint(out).path)
