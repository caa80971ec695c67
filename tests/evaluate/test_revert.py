"""The study of what can go back to base, on a model whose parts are worth what we say."""

import pytest

from ellama_jax.merge.revert import Limits, parts_of, revert, say_reverts, study_reverts

LAYERS = 4
PARTS = parts_of(LAYERS, tied=True)


def result(domain, metric, value):
    """A cell of a scorecard; accuracies have 1,000 questions, the first so many answered right."""
    right = [int(number < round(1000 * value)) for number in range(1000)]
    return {"task": "t", "domain": domain, "language": "en", "metric": metric, "value": value,
            "stderr": None, "correct": right, "ids": [str(n) for n in range(1000)]}  # fmt: skip


class Model:
    """Its bits per byte fall by `worth[part]` for each adapted part; records what is asked."""

    def __init__(self, worth, accuracy_worth=None):
        self.worth, self.accuracy_worth, self.asked = worth, accuracy_worth or {}, []

    def score(self, alphas):
        shares = {
            part: float(alphas.of("embed/table", LAYERS)) if part == "embed"
            else float(alphas.of("layers/attn/wq", LAYERS)[int(part.removeprefix("layers."))])
            for part in PARTS
        }  # fmt: skip
        self.asked.append({part for part, share in shares.items() if share})
        bits = 3.0 - sum(self.worth.get(part, 0) * share for part, share in shares.items())
        right = 0.4 + sum(self.accuracy_worth.get(p, 0) * share for p, share in shares.items())
        return {"results": [
            result("ecommerce", "bits_per_byte", bits), result("ecommerce", "accuracy", right),
            result("general", "accuracy", 0.3), result("general", "bits_per_byte", 1.0),
        ]}  # fmt: skip


def test_parts_are_the_embedding_groups_of_layers_and_an_own_head():
    assert PARTS == ["embed", "layers.0", "layers.1", "layers.2", "layers.3"]
    assert parts_of(4, tied=False, layers_a_part=3) == ["embed", "layers.0-2", "layers.3", "head"]
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"from 1 to the model's 4 layers, got {count}"):
            parts_of(4, tied=True, layers_a_part=count)


def test_parts_that_gave_nothing_go_back_and_the_others_stay():
    model = Model({"layers.1": 1.0, "layers.3": 0.5})
    study = study_reverts(model.score, PARTS)
    assert study["reverted"] == ["embed", "layers.0", "layers.2"]
    assert study["base"]["bpb_ecommerce"] == 3.0 and study["final"]["bpb_ecommerce"] == 1.5
    costs = {entry["part"]: entry["cost"] for entry in study["alone"]}
    assert costs == {"embed": 0, "layers.0": 0, "layers.1": 1 / 1.5, "layers.2": 0,
                     "layers.3": 0.5 / 1.5}  # fmt: skip
    assert list(costs) == PARTS
    assert [entry["part"] for entry in study["trail"] if not entry["kept"]] == [
        "layers.3", "layers.1"]  # fmt: skip


def test_what_each_may_cost_alone_is_too_much_together():
    """Of a bit of gain 5 % may be lost: two parts of 3 % are not both free."""
    model = Model({"layers.1": 0.94, "layers.0": 0.029, "layers.2": 0.031})
    study = study_reverts(model.score, PARTS)
    assert study["reverted"] == ["embed", "layers.0", "layers.3"]
    assert [entry["cost"] for entry in study["trail"] if entry["part"] == "layers.2"] == [
        pytest.approx(0.06)]  # fmt: skip
    wider = study_reverts(model.score, PARTS, limits=Limits(gain_loss=0.06))
    assert wider["reverted"] == ["embed", "layers.0", "layers.2", "layers.3"]


def test_accuracy_is_kept_too():
    model = Model({"layers.1": 1.0}, {"layers.2": 0.02, "layers.0": 0.005})
    study = study_reverts(model.score, PARTS)
    assert study["reverted"] == ["embed", "layers.0", "layers.3"]
    assert study["final"]["ecommerce"] == pytest.approx(study["whole"]["ecommerce"] - 0.005)
    wider = study_reverts(model.score, PARTS, limits=Limits(accuracy_loss=0.03))
    assert wider["reverted"] == ["embed", "layers.0", "layers.2", "layers.3"]


def test_a_loss_within_its_own_standard_error_is_none():
    """Two of 1,000 answers lost are a difference of 0.2 % +- 0.14 %; one is within its error."""
    strict = Limits(accuracy_loss=0.0)
    for lost, kept in ((0.001, True), (0.002, False)):
        model = Model({"layers.1": 1.0}, {"layers.2": lost})
        assert ("layers.2" in study_reverts(model.score, PARTS, limits=strict)["reverted"]) == kept


def test_it_takes_two_scorecards_a_part_and_two_of_the_models():
    model = Model({"layers.1": 1.0})
    study_reverts(model.score, PARTS)
    assert len(model.asked) == 2 * len(PARTS) + 2
    assert model.asked[:2] == [set(), set(PARTS)]
    assert model.asked[2] == set(PARTS) - {"embed"}


def test_a_merged_model_is_started_from_too():
    model = Model({"layers.1": 1.0})
    study = study_reverts(model.score, PARTS, alpha=0.5)
    assert study["whole"]["bpb_ecommerce"] == 2.5
    assert revert(0.5, ["embed"]).of("layers/attn/wq", 2).tolist() == [0.5, 0.5]


def test_without_e_commerce_there_is_nothing_to_judge_by():
    def score(alphas):
        return {"results": [result("general", "accuracy", 0.5)]}

    with pytest.raises(
        ValueError, match="needs e-commerce questions or texts to judge by, got none"
    ):
        study_reverts(score, PARTS)


@pytest.mark.parametrize(("limits", "name"), [
    ({"accuracy_loss": -0.1}, "--max-accuracy-loss"), ({"gain_loss": 1.0}, "--max-gain-loss"),
    ({"gain_loss": float("nan")}, "--max-gain-loss"),
])  # fmt: skip
def test_limits_are_shares(limits, name):
    with pytest.raises(ValueError, match=f"{name}: must be from 0 to below 1, got"):
        Limits(**limits)


def test_what_was_found_in_words():
    model = Model({"layers.1": 1.0, "layers.0": 0.01}, {"layers.0": 0.005})
    study = study_reverts(model.score, ["layers.0", "layers.1"])
    assert say_reverts(study) == (
        "1 of 2 parts can go back to base: layers.0. On validation questions that changes e-commerce "
        "accuracy by -0.5 points, e-commerce bits per byte by +0.50 %, general accuracy by +0.0 "
        "points, general bits per byte by +0.00 %; 99.0% of the gain on e-commerce stay."
    )
    none = study_reverts(Model({"layers.1": 1.0}).score, ["layers.1"])
    assert say_reverts(none) == "None of the 1 parts can go back to base within the limits."
