"""Which trials a sweep is made of."""

import shlex

import pytest

from ellama_jax.config import configs_dir, load_config, load_values
from ellama_jax.experiments.sweep_grid import plan_sweep

BASE = load_values([f"--config={configs_dir() / 'sweeps' / 'base.py'}"], "sweep")[0]
SHIPPED = ("learning_rate", "general_share", "context_size", "warmup", "late_switch")


def plan(**keys):
    return plan_sweep({**BASE, "config": "demo.py:tiny", **keys})


def chosen(sweep):
    return [tuple(setting.labels.values()) for setting in sweep.settings]


def test_a_product_has_every_combination_with_every_seed():
    sweep = plan(
        product=(("schedule.peak_frac", (0.1, 1.0)), ("data.replay_frac", (0.25, 0.5))),
        seeds=(3, 4, 5),
    )
    assert chosen(sweep) == [("0.1", "0.25"), ("0.1", "0.5"), ("1", "0.25"), ("1", "0.5")]
    assert [trial.seed for trial in sweep.trials] == [3, 4, 5] * 4
    assert [trial.config.data.seed for trial in sweep.trials] == [3, 4, 5] * 4
    assert sweep.trials[-1].config.schedule.peak_frac == 1.0
    assert sweep.trials[-1].config.data.replay_frac == 0.5


def test_zipped_axes_advance_together_and_multiply_with_the_product():
    rows = (("data.seq_len", (384, 768)), ("data.global_batch_size", (4, 2)))
    sweep = plan(zipped=(rows,), product=(("schedule.peak_frac", (0.1, 0.3)),), seeds=())
    assert chosen(sweep) == [
        ("0.1", "384", "4"), ("0.1", "768", "2"), ("0.3", "384", "4"), ("0.3", "768", "2")
    ]  # fmt: skip
    sizes = {t.config.data.seq_len * t.config.data.global_batch_size for t in sweep.trials}
    assert sizes == {1536}
    with pytest.raises(ValueError, match="same number of values, got data.seq_len 2, .* 1"):
        plan(zipped=((rows[0], ("data.global_batch_size", (4,))),))


def test_axes_one_at_a_time_share_the_trial_in_which_all_are_as_in_the_base():
    sweep = plan(
        one_at_a_time=(("schedule.peak_frac", (0.1, 1.0)), ("data.replay_frac", (0.5, 0.0))),
        seeds=(0,),
    )
    assert chosen(sweep) == [("0.1",), ("1",), ("0.5",), ("0",)]
    assert len(sweep.trials) == 3
    assert sweep.settings[0].trials == sweep.settings[2].trials == (sweep.trials[0].name,)


def test_lone_axes_are_tried_around_every_combination_of_the_others():
    sweep = plan(
        product=(("train.steps", (40, 60)),), seeds=(),
        one_at_a_time=(("schedule.peak_frac", (0.3,)), ("data.replay_frac", (0.0,))),
    )  # fmt: skip
    found = [(t.config.train.steps, t.config.schedule.peak_frac, t.config.data.replay_frac)
             for t in sweep.trials]  # fmt: skip
    assert found == [(40, 0.3, 0.5), (40, 0.1, 0.0), (60, 0.3, 0.5), (60, 0.1, 0.0)]


def test_a_constraint_sees_the_axes_and_the_other_keys():
    asked = []

    def allows(values):
        asked.append((values["schedule.warmup_steps"], values["train.steps"]))
        return values["schedule.warmup_steps"] < values["train.steps"] / 3

    sweep = plan(
        product=(("schedule.warmup_steps", (1, 2, 30)),), constraints=(allows,), seeds=(0,)
    )
    assert asked == [(1, 60), (2, 60), (30, 60)] and chosen(sweep) == [("1",), ("2",)]
    with pytest.raises(ValueError, match="leave at least one trial"):
        plan(product=(("schedule.warmup_steps", (30,)),), constraints=(lambda v: False,))
    with pytest.raises(ValueError, match="constraints: train.stepz is no configuration key"):
        plan(product=(("schedule.warmup_steps", (3,)),), constraints=(lambda v: v["train.stepz"],))


def test_long_values_have_labels_and_reach_the_configuration_whole():
    late = {"late": {"start_step": 30, "replay_frac": 0.25}}
    sweep = plan(product=(("data.stages", {"never": {}, "at 30": late}),), seeds=(0,))
    assert sweep.axes == {"data.stages": ("never", "at 30")}
    assert [trial.name.rsplit("_", 1)[0] for trial in sweep.trials] == [
        "stages-never_seed-0", "stages-at-30_seed-0"
    ]  # fmt: skip
    never, switched = (trial.config.data.stages for trial in sweep.trials)
    assert never == {} and switched["late"].replay_frac == 0.25


def test_a_trial_s_words_make_its_configuration_through_a_shell():
    stages = {"a b": {"late": {"start_step": 30, "replay_frac": 0.25}}}
    trial = plan(
        product=(("data.stages", stages),), overrides=(("model.checkpoint", "a b/c"),)
    ).trials[0]
    words = shlex.split(shlex.join(trial.arguments))
    assert load_config(words, "train")[0] == trial.config
    assert trial.config.model.checkpoint == "a b/c"


def test_the_name_changes_with_anything_that_is_trained_otherwise():
    axis = {"product": (("schedule.peak_frac", (0.1,)),), "seeds": (0,)}
    one, two = plan(**axis).trials[0], plan(**axis, overrides=(("train.steps", 50),)).trials[0]
    assert one.name != two.name
    assert one.name.rsplit("_", 1)[0] == two.name.rsplit("_", 1)[0] == "peak_frac-0.1_seed-0"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"config": ""}, "config: must name the configuration that the trials change"),
        ({"product": (("data.replay_frak", (0.5,)),)}, "data.replay_frak: is no configuration key"),
        ({"product": (("data.replay_frac", (1.5,)),)}, "data.replay_frac: must lie in"),
        ({"product": (("data.replay_frac", ()),)}, "must have a key and at least one value"),
        ({"product": (("data.replay_frac", (0.5, 0.5)),)}, "values of an axis must differ"),
        ({"product": ("data.replay_frac",)}, "product: must hold axes"),
        ({"product": (("data.seed", (1, 2)),)}, "data.seed: must be set by one axis, got two"),
        ({"product": (("train.steps", (9,)),), "one_at_a_time": (("train.steps", (8,)),)},
         "train.steps: must be set by one axis, got two"),
        ({"overrides": ("train.steps",)}, "overrides: must hold pairs"),
        ({"rule": {"gain": "eval_loss", "keep": "eval_loss", "limit": -1}}, "rule.limit: must be"),
        ({"axes": ()}, "--config: must be a sweep"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(keys, said):
    with pytest.raises(ValueError, match=said):
        plan(**keys)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("run", ["demo.py:smollm2-135m", "ellama.py:8b_v5p-256"])
def test_every_shipped_sweep_is_one_for_the_demo_and_for_the_paper_s_run(name, run):
    values, _ = load_values([f"--config={configs_dir() / 'sweeps' / name}.py:{run}"], "sweep")
    sweep = plan_sweep(values)
    assert len(sweep.axes) == (2 if name == "context_size" else 1)
    assert len(sweep.trials) == 2 * len(next(iter(sweep.axes.values())))
    tokens = {t.config.data.seq_len * t.config.data.global_batch_size for t in sweep.trials}
    assert len(tokens) == 1
    configurations = {repr(t.config) for t in sweep.trials}
    assert len(configurations) == len(sweep.trials)


def test_the_shipped_ablations_try_what_the_paper_asks():
    axes = {}
    for name in ("learning_rate", "general_share"):
        values, _ = load_values([f"--config={configs_dir() / 'sweeps' / name}.py"], "sweep")
        axes |= plan_sweep(values).axes
    assert axes["schedule.peak_frac"] == ("0.01", "0.03", "0.1", "0.3", "1")
    assert axes["data.replay_frac"] == ("0", "0.1", "0.25", "0.5", "0.75")
