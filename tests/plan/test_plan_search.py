"""What the search lists, leaves out and ranks."""

import dataclasses
import math

import jax
import pytest
from plan_records import GIB, record

from ellama_jax.config import load_config
from ellama_jax.core.sharding import MESH_AXES, make_mesh
from ellama_jax.core.topology import HARDWARE
from ellama_jax.model.llama import abstract_params, count_params
from ellama_jax.model.presets import get_preset
from ellama_jax.model.remat import REMAT_POLICIES
from ellama_jax.plan.search import (
    Candidate,
    chip_elements,
    estimate,
    list_candidates,
    list_meshes,
    needs_more,
    overrides,
    search,
    search_block,
    with_candidate,
)
from ellama_jax.plan.targets import check_sizes, parse_targets

FLOAT32 = ("float32",) * 3
FACTS = {"device_kind": "TPU v5", "limit_bytes": 95.74 * GIB}
CHEAPEST = REMAT_POLICIES[0]


def config(*changes):
    given = [f"--config.{override}" for override in changes]
    return load_config(["--config", "configs/ellama.py", *given], "plan")[0]


def one(name):
    return parse_targets(name)[0]


def candidate(**changes):
    base = Candidate((1, 4, 1, 1), 1, "full", FLOAT32)
    return dataclasses.replace(base, **changes)


def listed(name, *changes):
    rows = config(*changes)
    return list(list_candidates(rows, get_preset(rows.model.preset), one(name)))


def test_every_mesh_multiplies_to_the_devices_and_slices_divide_data():
    meshes = list(list_meshes(one("2xv6e-16")))
    assert {math.prod(mesh) for mesh in meshes} == {32}
    assert {mesh[0] % 2 for mesh in meshes} == {0}
    assert len(set(meshes)) == len(meshes)


def test_what_is_listed_passes_the_checks_of_a_plan_and_keeps_the_global_batch():
    rows = config("data.global_batch_size=48")
    found = listed("v5p-32", "data.global_batch_size=48")
    assert found
    for item in found:
        changed = with_candidate(rows, item)
        check_sizes(changed, one("v5p-32"))
        assert changed.data.global_batch_size == 48
        rows_of_a_device = 48 // (item.mesh[0] * item.mesh[1])
        assert rows_of_a_device % item.num_microbatches == 0


def test_rows_are_divided_by_context_only_where_they_are_long_or_few():
    assert {item.mesh[2] for item in listed("v5p-8", "data.global_batch_size=8")} == {1}
    few = listed("v5p-128", "data.global_batch_size=2")
    assert min(item.mesh[2] for item in few) > 1
    long = listed("v5p-8", "data.global_batch_size=8", "data.seq_len=131072")
    assert {item.mesh[2] for item in long} == {1, 2, 4}


@pytest.mark.parametrize("mesh", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)])
def test_a_devices_part_of_the_parameters_is_what_the_shardings_give(mesh):
    model = get_preset("tiny")
    placed = abstract_params(model, mesh=make_mesh(dict(zip(MESH_AXES, mesh, strict=True))))
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(placed))
    assert chip_elements(mesh, model) == held < count_params(model)


def test_a_mesh_that_cannot_divide_the_model_is_not_listed():
    # 8 heads of keys and values.
    assert max(item.mesh[3] for item in listed("v5p-128", "data.global_batch_size=64")) == 8


def test_estimates_go_the_way_memory_and_time_go():
    rows, model, peaks = (
        config("data.global_batch_size=8"),
        get_preset("llama3.1-8b"),
        HARDWARE["v5p"],
    )

    def guess(**changes):
        return estimate(candidate(**changes), rows, model, peaks)

    base = guess()
    # 8.03B parameters x 12 bytes over 4 chips, and the batch.
    assert base.arguments_bytes == pytest.approx(8030261248 * 3, rel=1e-3)
    assert guess(remat=CHEAPEST).step_secs < base.step_secs
    assert guess(remat=CHEAPEST).peak_bytes > base.peak_bytes
    assert guess(num_microbatches=2).step_secs > base.step_secs
    assert guess(dtypes=("float32", "bfloat16", "bfloat16")).arguments_bytes < base.arguments_bytes


def test_estimates_order_the_policies_by_memory_and_by_time():
    rows, model = config("data.global_batch_size=8"), get_preset("llama3.1-8b")
    guesses = [estimate(candidate(remat=remat), rows, model, HARDWARE["v5p"])
               for remat in REMAT_POLICIES]  # fmt: skip
    peaks = [guess.peak_bytes for guess in guesses]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    secs = [guess.step_secs for guess in guesses]
    assert secs == sorted(secs)


def test_an_estimate_is_near_what_the_compiler_says_for_8b_on_v5p_8():
    """39.6 GiB by libtpu 0.0.42.1, see docs/LOG.md; it orders, so a quarter is near enough."""
    rows = config("data.global_batch_size=8")
    guess = estimate(candidate(), rows, get_preset("llama3.1-8b"), HARDWARE["v5p"])
    assert guess.peak_bytes / GIB == pytest.approx(39.6, rel=0.25)


def test_needing_more_is_only_said_on_the_same_mesh():
    assert needs_more(candidate(remat=CHEAPEST), candidate())
    assert needs_more(candidate(), candidate(num_microbatches=2))
    assert needs_more(candidate(), candidate(dtypes=("float32", "bfloat16", "float32")))
    assert not needs_more(candidate(remat=CHEAPEST, num_microbatches=2), candidate())
    assert not needs_more(candidate(mesh=(4, 1, 1, 1)), candidate())


def compiler(fits):
    """Returns a stand-in for the compiler by a rule, and what it was asked."""
    asked = []

    def compile_candidate(item, changed):
        asked.append(item)
        known = record(overrides=overrides(config(), item))
        if not fits(item):
            gone = dict.fromkeys(("memory", "roofline", "flops", "traffic"))
            room = {"needed_bytes": 2, "available_bytes": 1, "missing_bytes": 1, "largest": []}
            gone["run"] = {**known["run"], "bound": None, "assumed": None}
            return {**known, "outcome": "no_fit", "message": "", "out_of_memory": room, **gone}
        secs = 2.0 + REMAT_POLICIES.index(item.remat) + item.mesh[3]
        return {**known, "roofline": {**known["roofline"], "step_secs": secs}}

    return compile_candidate, asked


def run_search(fits, max_compiles=6, **facts):
    rows = config("data.global_batch_size=8")
    compile_candidate, asked = compiler(fits)
    found = search(rows, one("v5p-8"), {**FACTS, **facts}, max_compiles, compile_candidate)
    return found, asked


def test_the_best_bound_of_what_fits_comes_first():
    found, asked = run_search(lambda item: item.remat != CHEAPEST)
    outcomes = [kept["outcome"] for kept in found.records]
    assert outcomes == sorted(outcomes)  # compiled before no_fit
    secs = [kept["roofline"]["step_secs"] for kept in found.records if kept["roofline"]]
    assert secs == sorted(secs) and len(secs) >= 2
    assert len(asked) == 6 == found.counts["compiled"]


def test_what_needs_more_than_a_miss_is_not_compiled():
    found, asked = run_search(lambda item: False)
    for place, item in enumerate(asked):
        assert not any(needs_more(item, missed) for missed in asked[:place])
    assert found.counts["needs_more"] > 0


def test_every_configuration_is_accounted_for():
    found, _ = run_search(lambda item: item.num_microbatches > 1)
    counts = dict(found.counts)
    assert counts.pop("listed") == sum(counts.values())


def test_what_cannot_hold_its_state_is_left_out_before_compiling():
    # 12 bytes a parameter over 4 chips are 22.4 GiB.
    found, asked = run_search(lambda item: True, limit_bytes=20 * GIB)
    assert found.counts["too_large"] > 0
    assert all(item.dtypes != FLOAT32 for item in asked)
    with pytest.raises(ValueError, match="GiB at least, got 5.00 GiB; take more chips"):
        run_search(lambda item: True, limit_bytes=5 * GIB)


def test_a_batch_without_a_mesh_is_refused():
    with pytest.raises(ValueError, match="got 7 rows"):
        search(config("data.global_batch_size=7"), one("v6e-256"), FACTS, 1, None)


def test_micro_batches_divide_every_size_of_a_ramp():
    rows = config("data.global_batch_size=32", "train.num_microbatches=4")
    rows = dataclasses.replace(rows, data=dataclasses.replace(rows.data, batch_ramp={"9": 12}))
    found = list(list_candidates(rows, get_preset(rows.model.preset), one("v5p-8")))
    assert {item.num_microbatches for item in found if item.mesh == (1, 4, 1, 1)} == {1}
    for item in found:
        check_sizes(with_candidate(rows, item), one("v5p-8"))


def test_a_kernel_that_the_platform_lacks_is_refused_and_not_searched_for():
    with pytest.raises(ValueError, match="cudnn needs a GPU, got tpu; use auto or blockwise"):
        search(config("model.attention.kernel=cudnn"), one("v5p-8"), FACTS, 1, None)


def test_after_misses_of_a_policy_the_search_turns_to_a_heavier_one():
    fitting = REMAT_POLICIES[2:]
    found, asked = run_search(lambda item: item.remat in fitting, max_compiles=12)
    assert asked[0].remat not in fitting
    assert found.records[0]["outcome"] == "compiled"


def test_the_words_hold_what_to_paste_and_what_was_not_tried():
    found, _ = run_search(lambda item: item.mesh[3] > 1, max_compiles=5)
    text = search_block(found, max_compiles=5, best=2)
    best = found.records[0]
    assert "--config.mesh.tensor=" in " ".join(best["overrides"])
    assert f" 1  {' '.join(best['overrides'])}\n" in text
    assert "(--max-compiles 5)" in " ".join(text.split())
    assert "The best in full:" in text
    nothing, _ = run_search(lambda item: False, max_compiles=3)
    assert "Nothing that was tried fits" in search_block(nothing, 3, 2)


def test_overrides_lead_to_the_candidate_and_leave_the_rest():
    rows = config("data.global_batch_size=8")
    wanted = candidate(mesh=(1, 2, 1, 2), num_microbatches=2, remat=CHEAPEST)
    given = overrides(rows, wanted)
    # mesh.fsdp is -1 in the configuration: what remains.
    assert given == [
        "--config.mesh.tensor=2",
        "--config.train.num_microbatches=2",
        f"--config.model.remat={CHEAPEST}",
    ]
    again = config("data.global_batch_size=8", *(item[len("--config.") :] for item in given))
    expected = with_candidate(rows, wanted)
    assert dataclasses.replace(again, mesh=expected.mesh) == expected
