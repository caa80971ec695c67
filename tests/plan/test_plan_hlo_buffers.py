"""What is alive at the peak: by hand, and against what a compiler allots."""

import jax
import jax.numpy as jnp
import pytest
from hlo_texts import compiled as compile_for_cpu
from hlo_texts import entry, fake_mesh

from ellama_jax.plan.hlo import analyze_step
from ellama_jax.plan.hlo_module import serialize


def test_buffers_live_from_their_making_to_their_last_use():
    text = entry("""%p = f32[1000] parameter(0)
%a = f32[1000] broadcast(%p), dimensions={0}
%b = f32[2000] concatenate(%a, %a), dimensions={0}
%c = f32[3000] concatenate(%b, %p), dimensions={0}
ROOT %d = f32[10] slice(%c), slice={[0:10]}""")
    peak = analyze_step(text, fake_mesh(fsdp=1)).peak
    # p is not donated: it stays. a is gone when c is made, d not yet there.
    assert {buffer.name: buffer.bytes for buffer in peak} == {"p": 4000, "b": 8000, "c": 12000}
    assert [buffer.kind for buffer in peak] == ["activations", "activations", "argument"]


UPDATE = """%p = f32[1000] parameter(0)
%g = f32[1000] parameter(1)
%far = f32[1000] copy(%p)
%wide = f32[9000] broadcast(%g), dimensions={0}
%part = f32[1000] slice(%wide), slice={[0:1000]}
%new = f32[1000] add(%far, %part)
ROOT %out = (f32[1000]) tuple(%new)"""


@pytest.mark.parametrize("donated", [True, False])
def test_a_donated_argument_is_gone_after_its_last_use(donated):
    alias = ", input_output_alias={ {0}: (0, {}, may-alias) }" if donated else ""
    header = "HloModule m, is_scheduled=true" + alias
    peak = analyze_step(entry(UPDATE, header=header), fake_mesh(fsdp=1)).peak
    # At `part`: the copy, the wide array and the other argument; `p` unless it was given away.
    names = {"g", "far", "wide", "part"} | (set() if donated else {"p"})
    assert {buffer.name for buffer in peak} == names


def test_a_loops_carry_and_updates_in_place_take_no_second_buffer():
    before = """%body (b: (s32[], f32[8,100], f32[100])) -> (s32[], f32[8,100], f32[100]) {
  %b = (s32[], f32[8,100], f32[100]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %all = f32[8,100] get-tuple-element(%b), index=1
  %x = f32[100] get-tuple-element(%b), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %wide = f32[700] broadcast(%x), dimensions={0}
  %y = f32[100] slice(%wide), slice={[0:100]}
  %row = f32[1,100] bitcast(%y)
  %set = f32[8,100] dynamic-update-slice(%all, %row, %i, %i)
  ROOT %out = (s32[], f32[8,100], f32[100]) tuple(%next, %set, %y)
}
%cond (c: (s32[], f32[8,100], f32[100])) -> pred[] {
  %c = (s32[], f32[8,100], f32[100]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(8)
  ROOT %more = pred[] compare(%j, %limit), direction=LT
}"""
    text = entry(
        """%p = f32[100] parameter(0)
%zero = s32[] constant(0)
%saved = f32[8,100] broadcast(%p), dimensions={0}
%own = f32[100] copy(%p)
%init = (s32[], f32[8,100], f32[100]) tuple(%zero, %saved, %own)
%loop = (s32[], f32[8,100], f32[100]) while(%init), condition=%cond, body=%body
ROOT %r = f32[8,100] get-tuple-element(%loop), index=1""",
        before,
    )
    peak = analyze_step(text, fake_mesh(fsdp=1)).peak
    # Inside the body only `wide` is new: `set` lies in `saved`, `y` where the carry is.
    assert {buffer.name: buffer.bytes for buffer in peak} == {
        "p": 400, "saved": 3200, "own": 400, "wide": 2800,
    }  # fmt: skip


def test_the_peak_of_a_real_program_is_near_what_its_compiler_allots():
    def loss(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0] ** 2)

    compiled = compile_for_cpu(jax.grad(loss), (6, 64, 64), (512, 64))
    memory = compiled.memory_analysis()
    allotted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    allotted += memory.output_size_in_bytes
    costs = analyze_step(serialize(compiled), fake_mesh(fsdp=1))
    found = sum(buffer.bytes for buffer in costs.peak)
    assert 0.9 * allotted < found <= 1.02 * allotted
    saved = [buffer for buffer in costs.largest if buffer.shape == "f32[6,512,64]"]
    assert saved and saved[0].kind == "activations"


FUSED_UPDATE = """
%put (d: f32[8,100], e: f32[1,100], k: s32[]) -> f32[8,100] {
  %d = f32[8,100] parameter(0)
  %e = f32[1,100] parameter(1)
  %k = s32[] parameter(2)
  %inner = f32[8,100] dynamic-update-slice(%d, %e, %k, %k)
  ROOT %view = f32[8,100] bitcast(%inner)
}"""


@pytest.mark.parametrize(
    "update",
    ["dynamic-update-slice(%big, %p, %i, %i)", "fusion(%big, %p, %i), kind=kLoop, calls=%put"],
)
def test_an_update_in_place_takes_no_second_buffer(update):
    text = entry(
        f"""%p = f32[1,100] parameter(0)
%i = s32[] constant(0)
%big = f32[8,100] broadcast(%p), dimensions={{0,1}}
%set = f32[8,100] {update}
ROOT %r = f32[4] slice(%set), slice={{[0:1], [0:4]}}""",
        FUSED_UPDATE,
    )
    peak = analyze_step(text, fake_mesh(fsdp=1)).peak
    assert {buffer.name: buffer.bytes for buffer in peak} == {"p": 400, "big": 3200, "r": 16}
