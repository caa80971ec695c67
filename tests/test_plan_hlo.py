"""Costs read from compiled text: against hand arithmetic, XLA's own count, and real programs."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.plan_hlo import analyze_step
from ellama_jax.plan_hlo_costs import count_flops, estimate_traffic
from ellama_jax.plan_hlo_text import HBM, HOST, parse_arrays, parse_module


def entry(lines, before="", header="HloModule m, is_scheduled=true"):
    body = "\n".join(f"  {line}" for line in lines.strip().splitlines())
    return f"{header}\n{before}\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n"


def fake_mesh(slices=1, **sizes):
    """A mesh whose devices only know their slice, which divides the first axis."""
    count = int(np.prod(list(sizes.values())))
    devices = np.array(
        [SimpleNamespace(slice_index=place * slices // count) for place in range(count)],
        dtype=object,
    ).reshape(list(sizes.values()))
    return SimpleNamespace(devices=devices, axis_names=tuple(sizes), size=count)


def flops_of(text):
    return count_flops(parse_module(text))


def compiled_text(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile()


# --- the text ---


def test_arrays_know_their_memory_space_and_what_their_tiles_add():
    vmem, host, scalar = parse_arrays(
        "(f32[3,5]{1,0:T(8,128)S(1)}, bf16[130,2]{0,1:T(8,128)(2,1)S(5)}, s32[]{:T(128)})"
    )
    assert (vmem.space, host.space, scalar.space) == (1, HOST, HBM)
    assert (vmem.bytes, vmem.padded_bytes) == (3 * 5 * 4, 8 * 128 * 4)
    # {0,1}: dim 0 is the minor one, so 130 is rounded up to 256 and 2 to 8.
    assert (host.bytes, host.padded_bytes) == (130 * 2 * 2, 256 * 8 * 2)
    assert (scalar.size, scalar.bytes) == (1, 4)


def test_an_attribute_with_line_breaks_stays_with_its_instruction():
    text = entry(
        'ROOT %k = f32[1] custom-call(), custom_call_target="x", frontend_attributes={a={\n'
        '"m":"{\\"n\\": 1}"\n}}, metadata={op_name="jit(f)/k[\\\'a\\\']"}'
    )
    (instruction,) = parse_module(text).computations["main"].instructions
    assert instruction.op_name == "jit(f)/k['a']"
    assert instruction.attribute("custom_call_target") == '"x"'


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="must hold an ENTRY computation"):
        parse_module("nothing here")


# --- loops ---

LOOP = """
%body (b: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %b = (s32[], f32[4,4]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[4,4] get-tuple-element(%b), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[4,4]) tuple(%next, %y)
}
%wrapped (w: s32[], v: s32[]) -> pred[] {
  %w = s32[] parameter(0)
  %v = s32[] parameter(1)
  ROOT %lt = pred[] compare(%w, %v), direction=LT
}
%cond (c: (s32[], f32[4,4])) -> pred[] {
  %c = (s32[], f32[4,4]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] LIMIT
  ROOT %more = pred[] fusion(%j, %limit), kind=kLoop, calls=%wrapped
}
"""
RUN = """%p = f32[4,4] parameter(0)
%three = s32[] constant(3)
%start = s32[] copy(%three)
%init = (s32[], f32[4,4]) tuple(%start, %p)
%loop = (s32[], f32[4,4]) while(%init), condition=%cond, body=%bodyKNOWN
ROOT %r = f32[4,4] get-tuple-element(%loop), index=1"""


def test_trips_follow_from_start_step_and_limit_of_a_loop():
    text = entry(RUN.replace("KNOWN", ""), LOOP.replace("LIMIT", "constant(10)"))
    assert flops_of(text).matmul == 4 * (2 * 4 * 4 * 4)  # 3, 5, 7, 9


def test_what_the_compiler_says_of_trips_comes_first():
    known = ', backend_config={"known_trip_count":{"n":"7"}}'
    text = entry(RUN.replace("KNOWN", known), LOOP.replace("LIMIT", "constant(10)"))
    assert flops_of(text).matmul == 7 * 128


def test_a_loop_without_a_known_end_is_refused():
    text = entry(RUN.replace("KNOWN", ""), LOOP.replace("LIMIT", "parameter(1)"))
    with pytest.raises(ValueError, match="loop: its trip count must be a constant"):
        flops_of(text)


def test_of_a_conditional_the_dearer_branch_counts():
    dot = "dot(%NAMEa, %NAMEa), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    before = "\n".join(
        f"%{name} (a: f32[4,4]) -> f32[4,4] {{\n  %{name}a = f32[4,4] parameter(0)\n"
        f"  ROOT %{name}r = f32[4,4] {operation.replace('NAME', name)}\n}}"
        for name, operation in (("cheap", "negate(%NAMEa)"), ("dear", dot))
    )
    text = entry(
        "%q = s32[] parameter(0)\n%p = f32[4,4] parameter(1)\nROOT %r = f32[4,4] "
        "conditional(%q, %p, %p), branch_computations={%cheap, %dear}",
        before,
    )
    assert flops_of(text).matmul == 128


# --- FLOPs ---


def test_nested_scans_of_a_real_program_count_by_their_trips():
    def run(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        def round_(x, _):
            return jax.lax.scan(layer, x, weights)[0], None

        return jax.lax.scan(round_, x, None, length=5)[0]

    compiled = compiled_text(run, (64, 128), (3, 128, 128))
    assert flops_of(compiled.as_text()).matmul == 5 * 3 * (2 * 64 * 128 * 128)
    # What XLA says of the same program: one round of each loop.
    assert compiled.cost_analysis()["flops"] < 2 * (2 * 64 * 128 * 128)


def test_products_without_loops_are_what_xla_counts():
    def run(x, w, v):
        return jnp.einsum("bth,hd,bsd->bts", x, w, v)

    compiled = compiled_text(run, (2, 24, 16), (16, 40), (2, 12, 40))
    assert flops_of(compiled.as_text()).matmul == pytest.approx(
        compiled.cost_analysis()["flops"], rel=1e-3
    )


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [((1, 1), (1, 1)), ((1, 2), (2, 1))])
def test_positions_in_the_padding_do_not_count_just_as_for_xla(stride, dilation):
    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, stride, ((3, 2), (0, 5)), *dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    compiled = compiled_text(run, (2, 9, 7, 3), (3, 4, 3, 5))
    counted = flops_of(compiled.as_text())
    assert counted.matmul > 0
    assert counted.matmul == compiled.cost_analysis()["flops"]


def test_a_matrix_product_written_as_a_padded_convolution_counts_once():
    # wq of 8B on a v5p, [2, 8192, 4096] x [4096, 32, 128]: the window of 32 lies over an input of 1.
    text = entry("""%x = bf16[2,8192,4096,1] parameter(0)
%w = bf16[4096,32,128,1] parameter(1)
ROOT %r = bf16[2,8192,32,128] convolution(%x, %w), window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f""")
    assert flops_of(text).matmul == 2 * (2 * 8192) * 4096 * (32 * 128)


SPLASH = """%next = s8[1,8,8] parameter(0)
%q = bf16[2,32,8192,128] parameter(1)
%k = bf16[2,8,8192,128] parameter(2)
%v = bf16[2,8,8192,128] parameter(3)
ROOT %splash_mha_NAME_segmented.1 = bf16[2,32,8192,128] custom-call(%next, %q, %k, %v), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 1024, \\"block_kv\\": 1024, \\"block_q_dkv\\": 2048, \\"block_kv_dkv\\": 1024, \\"block_q_dq\\": 8192, \\"block_kv_dq\\": 8192}"
}}, metadata={op_name="jit(f)/splash_mha_NAME_segmented/pallas_call"}"""


@pytest.mark.parametrize(
    ("name", "products", "share"),
    # Shares by hand: of 8 x 8 blocks 36; of 4 x 8 blocks 2 + 4 + 6 + 8 = 20; of one block all.
    [("fwd", 2, 36 / 64), ("dkv", 4, 20 / 32), ("dq", 3, 1.0)],
)
def test_a_causal_kernel_counts_the_blocks_it_computes(name, products, share):
    flops = flops_of(entry(SPLASH.replace("NAME", name)))
    assert flops.attention == share * products * 2 * (2 * 32 * 8192 * 8192 * 128)
    assert flops.matmul == 0 and flops.uncounted == ()


def test_a_kernel_that_no_formula_fits_is_named_not_dropped():
    text = entry('ROOT %mystery.1 = f32[8] custom-call(), custom_call_target="tpu_custom_call"')
    assert flops_of(text).uncounted == ("mystery.1",)


def test_gemms_of_gpu_libraries_count():
    config = (
        '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}}'
    )
    text = entry(f"""%a = bf16[3,8,16] parameter(0)
%b = bf16[3,16,32] parameter(1)
ROOT %g = bf16[3,8,32] custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={config}""")
    assert flops_of(text).matmul == 2 * (3 * 8 * 32) * 16


# --- memory traffic ---

SLICED = """
%part (a: f32[32,100], i: s32[]) -> f32[1,100] {
  %a = f32[32,100] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,100] dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,100}
  ROOT %neg = f32[1,100] negate(%cut)
}
%put (d: f32[32,100], e: f32[1,100], j: s32[]) -> f32[32,100] {
  %d = f32[32,100] parameter(0)
  %e = f32[1,100] parameter(1)
  %j = s32[] parameter(2)
  %nil = s32[] constant(0)
  ROOT %set = f32[32,100] dynamic-update-slice(%d, %e, %j, %nil)
}
"""


def test_slices_and_updates_in_place_move_only_their_part():
    text = entry(
        """%p = f32[32,100] parameter(0)
%n = s32[] parameter(1)
%one = f32[1,100] fusion(%p, %n), kind=kLoop, calls=%part
ROOT %all = f32[32,100] fusion(%p, %one, %n), kind=kLoop, calls=%put""",
        SLICED,
    )
    # Reads 400 and the index, writes 400; reads 400 and the index, writes 400.
    assert estimate_traffic(parse_module(text)).hbm_bytes == 2 * (400 + 4 + 400)


def test_what_stays_in_vmem_is_free_and_the_host_link_counts_apart():
    text = entry("""%p = f32[100] parameter(0)
%fast = f32[100]{0:S(1)} negate(%p)
%slow = f32[100]{0:S(5)} negate(%fast)
ROOT %r = f32[100] bitcast(%p)""")
    traffic = estimate_traffic(parse_module(text))
    assert (traffic.hbm_bytes, traffic.host_bytes) == (400, 400)


def test_an_elementwise_program_moves_its_operands_and_results_once():
    compiled = compiled_text(lambda x, y: jnp.tanh(x) * y + 1, (64, 64), (64, 64))
    traffic = estimate_traffic(parse_module(compiled.as_text()))
    assert traffic.hbm_bytes == 3 * 64 * 64 * 4 == compiled.cost_analysis()["bytes accessed"]


# --- collectives ---


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
    text = jax.jit(function).lower(jax.ShapeDtypeStruct((64, 16), jnp.float32)).compile().as_text()
    found = {
        c.kind: (c.axes, c.group_size, c.payload_bytes, c.count, c.ici_bytes, c.network)
        for c in analyze_step(text, mesh).collectives
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


PAIR = """%p = f32[4,512] parameter(0)
%w = f32[512,512] parameter(1)
%g = (f32[4,512], f32[8,512]) all-gather-start(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}
BETWEEN
%done = f32[8,512] all-gather-done(%g)
ROOT %r = f32[8,512] negate(%done)"""
DOT = "%d = f32[4,512] dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}"


@pytest.mark.parametrize(
    ("between", "overlapped"), [(DOT, True), ("%d = f32[4,512] negate(%p)", False)]
)
def test_a_gather_is_hidden_where_a_product_stands_between_its_start_and_done(between, overlapped):
    mesh = fake_mesh(fsdp=2)
    (found,) = analyze_step(entry(PAIR.replace("BETWEEN", between)), mesh).collectives
    assert found.overlapped is overlapped
    assert found.payload_bytes == 8 * 512 * 4  # the gathered array, not the operand in the tuple


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
%token = token[] after-all()
%send.1 = (bf16[4096], u32[], token[]) send(%p, %token), {attributes}
%recv.1 = (bf16[4096], u32[], token[]) recv(%token), {attributes}
%sent = token[] send-done(%send.1)
%d = f32[4,4] dot(%w, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
ROOT %got = (bf16[4096], token[]) recv-done(%recv.1)""")
    (found,) = analyze_step(text, fake_mesh(slices=2, data=2, fsdp=4)).collectives
    assert (found.kind, found.axes, found.network) == ("all-reduce", ("data",), "dcn")
    assert (found.ici_bytes, found.dcn_bytes) == (0, 2 * 8192 / 2)
    assert found.overlapped  # the product runs before the answer is waited for


# --- what is alive at the peak ---


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


def test_the_peak_of_a_real_program_is_near_what_its_compiler_allots():
    def loss(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0] ** 2)

    compiled = compiled_text(jax.grad(loss), (6, 64, 64), (512, 64))
    memory = compiled.memory_analysis()
    allotted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    allotted += memory.output_size_in_bytes
    costs = analyze_step(compiled.as_text(), fake_mesh(fsdp=1))
    found = sum(buffer.bytes for buffer in costs.peak)
    assert 0.9 * allotted < found <= 1.02 * allotted
    saved = [buffer for buffer in costs.largest if buffer.shape == "f32[6,512,64]"]
    assert saved and saved[0].kind == "activations"


# --- a real TPU program ---


@pytest.mark.slow
def test_scanned_layers_on_a_tpu_cost_what_unrolled_ones_extrapolate_to(monkeypatch):
    pytest.importorskip("libtpu")
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = Mesh(np.array(devices), ("fsdp",))

    def place(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def compiled(layers, unroll):
        def loss(weights, x):
            def layer(x, w):
                return x + jnp.tanh(x @ w[0]) @ w[1], None

            return jnp.sum(jax.lax.scan(layer, x, weights, unroll=unroll)[0].astype(jnp.float32))

        weights = (
            place((layers, 256, 512), None, "fsdp"), place((layers, 512, 256), None, None, "fsdp"),
        )  # fmt: skip
        return jax.jit(jax.grad(loss)).lower(weights, place((64, 256), "fsdp")).compile()

    two, four = (compiled(layers, layers).cost_analysis()["flops"] for layers in (2, 4))
    scanned = flops_of(compiled(12, 1).as_text())
    assert scanned.matmul == pytest.approx((four - two) / 2 * 12, rel=0.1)
    by_hand = 3 * 2 * (64 / 4) * (2 * 256 * 512) * 12
    assert scanned.matmul == pytest.approx(by_hand, rel=0.01)
