"""Collectives read from compiled text: of real programs, of libtpu's forms, bytes by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_texts import entry, fake_mesh
from jax.sharding import Mesh, PartitionSpec

from ellama_jax.plan.hlo import analyze_step
from ellama_jax.plan.hlo_module import serialize


def test_collectives_of_a_real_program_have_their_axes_bytes_and_trips():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))

    def run(x):
        def body(x, _):
            gathered = jax.lax.all_gather(x, "fsdp", tiled=True)
            total = jax.lax.psum(gathered, ("data", "tensor"))
            return jax.lax.psum_scatter(total, "fsdp", tiled=True) * 0.5, None

        y, _ = jax.lax.scan(body, x, None, length=6)
        return jax.lax.ppermute(y, "tensor", [(0, 1), (1, 0)])

    spec = PartitionSpec("fsdp")
    function = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    compiled = jax.jit(function).lower(jax.ShapeDtypeStruct((64, 16), jnp.float32)).compile()
    found = {
        c.kind: (c.axes, c.group_size, c.payload_bytes, c.count, c.ici_bytes, c.network)
        for c in analyze_step(serialize(compiled), mesh).collectives
    }
    whole, part = 64 * 16 * 4, 32 * 16 * 4
    assert found == {
        "all-gather": (("fsdp",), 2, whole, 6, 6 * part, "ici"),
        "all-reduce": (("data", "tensor"), 4, whole, 6, 6 * 2 * whole * 3 / 4, "ici"),
        "reduce-scatter": (("fsdp",), 2, whole, 6, 6 * part, "ici"),
        "collective-permute": (("tensor",), 2, part, 1, part, "ici"),
    }


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp", "tensor")),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[4,2]T(1,0)", ("fsdp",)),  # 0 2 4 6 1 3 5 7 in rows of two
        ("mesh['data'=2,'fsdp'=2,'tensor'=2] {'data','tensor'}", ("data", "tensor")),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),  # the middle factor of 8 = 2 x 2 x 2
        ("mesh['a'=8], device_ids=([2,4]T(1,0)) {'a':(4)2}", ("data",)),
        ("{}", ("data", "fsdp", "tensor")),
    ],
)
def test_groups_in_every_form_are_told_by_the_axes_of_the_mesh(groups, axes):
    text = entry(f"""%p = f32[512] parameter(0)
ROOT %r = f32[512] all-reduce(%p), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add""")
    (found,) = analyze_step(text, fake_mesh(data=2, fsdp=2, tensor=2)).collectives
    assert found.axes == axes


def test_a_fusion_that_keeps_its_part_of_a_sum_is_a_reduce_scatter():
    before = """%scatter (i: bf16[64,16]) -> bf16[16,16] {
  %i = bf16[64,16] parameter(0)
  %all-reduce.1 = bf16[64,16] all-reduce(%i), replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  ROOT %cut = bf16[16,16] dynamic-slice(%all-reduce.1, %id, %id), dynamic_slice_sizes={16,16}
}"""
    text = entry(
        "%p = bf16[64,16] parameter(0)\nROOT %r = bf16[16,16] fusion(%p), kind=kCustom, "
        'calls=%scatter, metadata={op_name="transpose(jvp())/while/body/dot_general"}',
        before,
    )
    (found,) = analyze_step(text, fake_mesh(fsdp=4)).collectives
    assert (found.kind, found.source) == ("reduce-scatter", "gradients")
    assert found.ici_bytes == (64 * 16 * 2) * 3 / 4


def test_a_group_over_slices_sends_each_slices_part_over_dcn():
    text = entry("""%p = f32[1024] parameter(0)
ROOT %r = f32[1024] all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add""")
    (found,) = analyze_step(text, fake_mesh(slices=2, data=2, fsdp=4)).collectives
    assert (found.network, found.slices) == ("dcn", 2)
    # Within a slice of 4: scatter and gather of 4,096 bytes; between 2: each device's 1,024.
    assert found.ici_bytes == 2 * 4096 * 3 / 4
    assert found.dcn_bytes == 2 * 1024 / 2


def test_what_libtpu_sends_between_slices_is_a_collective_over_dcn():
    attributes = (
        'channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r0"'
        ',_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = entry(f"""%p = bf16[4096] parameter(0)
%w = f32[4,4] parameter(1)
%t = token[] after-all()
%send.1 = (bf16[4096], u32[], token[]) send(%p, %t), {attributes}
%recv.1 = (bf16[4096], u32[], token[]) recv(%t), {attributes}
%sent = token[] send-done(%send.1), channel_id=2
%d = f32[4,4] dot(%w, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
ROOT %got = (bf16[4096], token[]) recv-done(%recv.1), channel_id=2""")
    (found,) = analyze_step(text, fake_mesh(slices=2, data=2, fsdp=4)).collectives
    assert (found.kind, found.axes, found.network) == ("all-reduce", ("data",), "dcn")
    assert (found.ici_bytes, found.dcn_bytes) == (0, 2 * 8192 / 2)


@pytest.mark.parametrize(
    ("kind", "groups", "path", "source"),
    [
        ("all-reduce", "{{0,1},{2,3}}", "transpose(jvp())/while/body/dot_general", "activations"),
        ("all-reduce", "{{0,2},{1,3}}", "transpose(jvp())/while/body/dot_general", "gradients"),
        ("all-gather", "{{0,2},{1,3}}", "jvp()/while/body/dot_general", "weights"),
        ("all-gather", "{{0,2},{1,3}}", "jvp()/sharding_constraint", "other"),
        ("all-reduce", "{{0,2},{1,3}}", "jvp()/while/body/cd,vd->cv/dot_general", "loss"),
    ],
)
def test_a_collective_is_named_after_what_it_sends(kind, groups, path, source):
    more = "dimensions={0}" if kind == "all-gather" else "to_apply=%add"
    shape = "f32[1024]" if kind == "all-gather" else "f32[512]"
    text = entry(f"""%p = f32[512] parameter(0)
ROOT %r = {shape} {kind}(%p), replica_groups={groups}, {more}, metadata={{op_name="jit(step)/{path}"}}""")
    (found,) = analyze_step(text, fake_mesh(fsdp=2, tensor=2)).collectives
    assert found.source == source
