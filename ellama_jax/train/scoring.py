"""The scorecard during a run: questions scored on the run's own mesh, and the retention gate.

Owns when the base is scored, where scorecards of a run lie (WORKDIR/evaluations/<step>.json) and
what a broken gate does. Scores are evaluate/scorecard.py's, changes and the gate's rules
evaluate/retention.py's; no weights are copied.
"""

from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from ellama_jax.core.distributed import leads
from ellama_jax.evaluate.card_text import say_comparison, say_gate
from ellama_jax.evaluate.comparison import summary
from ellama_jax.evaluate.retention import check_gate, compare
from ellama_jax.evaluate.scorecard import (
    Scoring,
    evaluate_params,
    fingerprint,
    json_text,
    read_scorecard,
)
from ellama_jax.train.kept import RunFiles
from ellama_jax.train.program import compute_dtype
from ellama_jax.train.run import Run

FOLDER = "evaluations"


class RunScores:
    """Scores a run's questions at its steps; reads parameters, and changes nothing.

        scores = RunScores(run, mesh, first=0, files=RunFiles(run.workdir))
        scores.run(state.params, 0)["eval_score/general"]     # the base
        scores.run(state.params, 500)["eval_change/general"]

    Attributes:
        refusal: why the run must stop by `evaluate.gate`, in one line; "" while it need not.
    """

    def __init__(self, run: Run, mesh: Mesh, first: int, files: RunFiles):
        """Prepares to score after step `first`; scorecards are written by `files`.

        Args:
            run: its `questions` are scored.
            first: updates done so far; where there are some, the base was scored before them.

        Raises:
            ValueError: if that scorecard of the base is not there.
        """
        evaluate, platform = run.config.evaluate, mesh.devices.flat[0].platform
        self._run, self._gate, self.refusal, self._files = run, evaluate.gate, "", files
        self._scoring = Scoring(
            row_length=evaluate.row_length,
            rows_per_batch=evaluate.rows_per_batch,
            window=evaluate.window,
            compute_dtype=str(compute_dtype(run.config.model, platform).__name__),
            mesh=mesh,
        )
        self._base = _read_base(run, first) if first else None
        last = _path(run, first)
        if first and last.is_file() and "against_base" in (card := read_scorecard(last)):
            # What stopped a run before stops it again, unless the rules are others now.
            self._judge(card["against_base"], first)

    def run(
        self, params: dict, step: int, beat: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Scores parameters, writes the scorecard and says how it compares with the base.

        All processes must call this at the same step.

        Args:
            params: of the model, on the mesh.
            step: updates done so far; 0 is the base.
            beat: called after each batch.

        Returns:
            `eval_score/<mean>` by the names of `comparison.summary`,
            `eval_score/<task>/<language>`, `eval_change/<mean>` relative to the base, and
            `eval_gate`, 1.0 where it was passed.
        """
        items, texts = self._run.questions
        name = f"step {step}" if step else "base"
        card = evaluate_params(
            params, self._run.model, self._run.tokenizer, items, texts,
            model=name, scoring=self._scoring, beat=beat,
        )  # fmt: skip
        card["made_with"]["step"] = step
        if step == 0:
            card["made_with"]["weights_identity"] = self._run.base_identity
        found = _named_scores(card)
        if step == 0:
            self._base = card
        else:
            comparison = compare(self._base, card)
            card["against_base"] = comparison
            found |= {
                f"eval_change/{mean}": row["change"]
                for mean, row in comparison["overall"].items()
                if row["change"] is not None
            }
            gate = self._judge(comparison, step)
            card["gate"] = gate
            if gate["passed"] is not None and gate["action"] != "off":
                found["eval_gate"] = float(gate["passed"])
        if leads():
            self._files.write(_name(step), json_text(card))
            self._say(card)
        return found

    def _judge(self, comparison: dict, step: int) -> dict:
        gate = check_gate(comparison, self._gate)
        if gate["passed"] is False and gate["action"] == "stop":
            self.refusal = (
                f"stopped after step {step} by the {say_gate(gate)} Its checkpoint is kept; lower "
                "schedule.peak_frac or raise data.replay_frac in a new workdir, or go on with "
                "evaluate.gate.action=warn."
            )
        return gate

    def _say(self, card: dict) -> None:
        """Prints the changes and the gate, in lines that stand between those of training."""
        if "against_base" in card:
            print(say_comparison(card["against_base"]), flush=True)
            if self._gate.action != "off":
                print(say_gate(card["gate"]), flush=True)


def _named_scores(card: dict) -> dict[str, float]:
    means = {
        f"eval_score/{name}": value
        for name, value in summary(card).items()
        if value is not None and not name.endswith("_stderr")
    }
    tasks = {
        f"eval_score/{row['task']}/{row['language']}": row["value"]
        for row in card["results"]
        if row["metric"] == "accuracy"
    }
    return means | tasks


def _name(step: int) -> str:
    return f"{FOLDER}/{step}.json"


def _path(run: Run, step: int) -> Path:
    return run.workdir / _name(step)


def _read_base(run: Run, first: int) -> dict:
    path = _path(run, 0)
    if not path.is_file():
        raise ValueError(
            f"evaluate.tasks: needs the scores of the base, made before the first step, got none at "
            f"{path} and {first} steps done; score the base with `ellama evaluate --json {path}`, or "
            "leave evaluate.tasks empty."
        )
    base = read_scorecard(path)
    items, texts = run.questions
    made = base["made_with"]
    if (scored := made.get("weights_identity")) not in (None, run.base_identity):
        raise ValueError(
            f"{path}: must be the scores of {run.base and run.base.path}, got those of other weights "
            f"({scored}); score the base again with `ellama evaluate --json {path}`."
        )
    asked = fingerprint(items), fingerprint(texts)
    if leads() and asked != (made.get("items_fingerprint"), made.get("texts_fingerprint")):
        print(f"{path}: the base was asked other questions; what both were asked counts.")
    return base
