"""Bounds on a step, by hand: two chips, round numbers."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from ellama_jax.config import load_config
from ellama_jax.core.sharding import make_mesh
from ellama_jax.model.flops import model_flops
from ellama_jax.model.presets import get_preset
from ellama_jax.plan.hlo import Collective, Flops, Operation, StepCosts, Traffic, analyze_step
from ellama_jax.plan.hlo_module import serialize
from ellama_jax.plan.roofline import count_links, roofline
from ellama_jax.plan.schedule import Loop, Start, Wait
from ellama_jax.train.program import make_program

CHIP = SimpleNamespace(
    flops_per_sec=1000.0, hbm_bytes_per_sec=100.0, ici_bytes_per_sec=10.0, ici_links=4,
    dcn_bytes_per_sec=1.0, devices_per_chip=1,
)  # fmt: skip


def torus(*shape):
    """A mesh of one axis over a torus of `shape`, and one of an axis per dim."""
    places = np.array(list(np.ndindex(shape)))
    devices = np.array([SimpleNamespace(coords=tuple(p)) for p in places], dtype=object)
    return SimpleNamespace(
        devices=devices.reshape(shape), axis_names=tuple("xyz"[: len(shape)]), size=len(places)
    )


def gather(payload, axes, slices=1, size=2, count=1):
    return Collective("all-gather", "g", "", "weights", axes, slices, size, "f32", payload, count)


def costs(*collectives, timeline=(), flops=2000.0, moved=50.0):
    return StepCosts(
        Flops(flops, 0.0, 0.0, ()), Traffic(moved, 0.0), collectives, tuple(timeline), ()
    )


def bound(step, hardware=CHIP, tokens=4, per_token=500.0, mesh=None):
    flops = SimpleNamespace(total_per_token=per_token)
    return roofline(step, flops, tokens, mesh or torus(2), hardware)


def test_a_step_is_no_faster_than_the_slowest_of_its_resources():
    fast = bound(costs(gather(40, ("x",))))
    assert (fast.compute_secs, fast.hbm_secs, fast.ici_secs) == (2.0, 0.5, 2.0)
    assert (fast.step_secs, fast.bound_by) == (2.0, "compute")
    slow = bound(costs(gather(100, ("x",))))
    assert (slow.ici_secs_by_axis, slow.step_secs, slow.bound_by) == ({"x": 5.0}, 5.0, "ici")
    moving = bound(costs(moved=900.0))
    assert (moving.step_secs, moving.bound_by) == (9.0, "hbm")


DOT, NORM = Operation("dot", 1000.0, 20.0), Operation("norm", 0.0, 5.0)  # 1 s and 0.05 s


def test_a_step_takes_its_operations_at_their_own_rooflines_and_what_it_waits_for():
    # The first gather, 2 s, is waited for at once; the second, 1 s a time, hides behind products.
    beside = Loop(2, (Start(1), DOT, NORM, NORM, Wait(1)))
    collectives = gather(40, ("x",)), gather(20, ("x",), count=2)
    result = bound(costs(*collectives, timeline=(Start(0), Wait(0), beside)))
    assert (result.exposed_secs, result.hidden) == (2.0, (0.0, 1.0))
    assert result.serial_step_secs == pytest.approx(2.0 + 2 * (1.0 + 2 * 0.05))
    assert result.serial_tokens_per_sec_per_chip == pytest.approx(4 / 4.2 / 2)


def test_a_collective_is_hidden_as_far_as_computation_lasts():
    timeline = (Start(0), DOT, Wait(0))
    result = bound(costs(gather(80, ("x",)), timeline=timeline))
    assert (result.exposed_secs, result.hidden) == (3.0, (0.25,))  # 4 s beside 1 s


def test_what_is_sent_on_the_same_links_takes_turns():
    # Two of 1 s each beside one product of 1 s: the first is hidden, whichever is asked for first.
    collectives = gather(20, ("x",)), gather(20, ("x",))
    for timeline in (
        (Start(0), Start(1), DOT, Wait(0), Wait(1)),
        (Start(0), Start(1), DOT, Wait(1), Wait(0)),
    ):
        result = bound(costs(*collectives, timeline=timeline))
        assert (result.hidden, result.exposed_secs) == ((1.0, 0.0), 1.0)
    apart = gather(20, ("x",)), gather(20, ("y",))
    result = bound(
        costs(*apart, timeline=(Start(0), Start(1), DOT, Wait(0), Wait(1))), mesh=torus(2, 2)
    )
    assert result.hidden == (1.0, 1.0)


def test_speed_and_utilisation_follow_from_the_bound():
    result = bound(costs())
    assert result.tokens_per_sec_per_chip == 4 / 2.0 / 2
    assert result.mfu == (4 * 500) / (2.0 * 2 * 1000)
    assert result.flops_ratio == 2 * 2000 / (4 * 500)


def test_two_devices_of_one_chip_share_its_peaks():
    shared = SimpleNamespace(**{**vars(CHIP), "devices_per_chip": 2})
    one, two = bound(costs(gather(40, ("x",)))), bound(costs(gather(40, ("x",))), shared)
    for name in ("compute_secs", "hbm_secs", "ici_secs"):
        assert getattr(two, name) == 2 * getattr(one, name)
    assert two.mfu == one.mfu  # half the peak for twice the time
    assert two.tokens_per_sec_per_chip == one.tokens_per_sec_per_chip  # and one chip, not two


def test_axes_have_their_own_links_and_slices_their_own_network():
    mesh = torus(2, 2)
    step = costs(gather(40, ("x",)), gather(80, ("y",)), gather(16, ("x",), slices=2))
    result = bound(step, mesh=mesh)
    assert result.ici_secs_by_axis == {"x": 2.0, "y": 4.0}
    assert (result.ici_secs, result.dcn_secs, result.step_secs) == (4.0, 8.0, 8.0)
    assert result.bound_by == "dcn"


@pytest.mark.parametrize(
    ("shape", "axes", "wrap", "links"),
    [
        ((2, 2), ("x",), (False, False), 1),  # one neighbour
        ((4, 4), ("x",), (False, False), 1),  # an open line: its ends have one link
        ((4, 4), ("x",), (True, True), 2),  # a ring sends both ways
        ((4, 4), ("x", "y"), (True, True), 4),
        ((4, 2, 2), ("x", "y", "z"), (True, False, False), 4),
    ],
)
def test_a_collective_sends_on_the_links_its_axes_lie_on(shape, axes, wrap, links):
    assert count_links(torus(*shape), axes, wrap, 6) == links


def test_part_of_a_ring_is_a_line():
    whole = torus(8)
    halves = SimpleNamespace(
        devices=whole.devices.reshape(2, 4), axis_names=("data", "fsdp"), size=8
    )
    assert count_links(halves, ("fsdp",), (True,), 6) == 1
    assert count_links(halves, ("data", "fsdp"), (True,), 6) == 2


def test_behind_a_switch_all_links_serve():
    plain = np.array([SimpleNamespace(), SimpleNamespace()], dtype=object)
    mesh = SimpleNamespace(devices=plain, axis_names=("fsdp",), size=2)
    assert count_links(mesh, ("fsdp",), (), 18) == 18


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "again"), [("none", 0.0), ("full", 1.0)])
def test_a_real_step_computes_its_models_flops_and_what_remat_adds(remat, again):
    arguments = [
        "--config", "configs/ellama.py:8b", "--config.model.preset=tiny",
        f"--config.model.remat={remat}", "--config.data.seq_len=128",
        "--config.data.global_batch_size=16",
    ]  # fmt: skip
    config, _ = load_config(arguments, "plan")
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    model = get_preset("tiny")
    compiled = make_program(config, model, mesh, 3).lower().compile()
    costs = analyze_step(serialize(compiled), mesh)
    flops = model_flops(model, 128)
    # The dense kernel computes the masked half too.
    projection = 6 * model.vocab_size * model.embed_dim
    layers = flops.palm_per_token - projection
    # Recompute repeats the layers' forward pass, a third of 3, but for the last product, whose
    # result nothing needs.
    down = 2 * model.num_layers * model.embed_dim * model.mlp_dim
    expected = flops.palm_per_token + again * (layers / 3 - down)
    assert costs.flops.total * 8 / (16 * 128) == pytest.approx(expected, rel=0.02)
    assert {c.axes for c in costs.collectives} == {("fsdp",)}
