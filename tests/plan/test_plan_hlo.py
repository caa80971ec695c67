"""Costs read from compiled programs: against hand arithmetic, XLA's own count, and real programs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_texts import compiled as compile_for_cpu
from hlo_texts import entry
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.plan.hlo_costs import count_flops, estimate_traffic
from ellama_jax.plan.hlo_module import HBM, HOST, read_module, serialize


def flops_of(text):
    return count_flops(read_module(text))


# --- the module ---


def test_arrays_know_their_memory_space_and_what_their_tiles_add():
    shape = "(f32[3,5]{1,0:T(8,128)S(1)}, bf16[130,2]{0,1:T(8,128)(2,1)S(5)}, s32[]{:T(128)})"
    module = read_module(entry(f'ROOT %r = {shape} custom-call(), custom_call_target="x"'))
    vmem, host, scalar = module.computations["main"].root.arrays
    assert (vmem.space, host.space, scalar.space) == (1, HOST, HBM)
    assert (vmem.bytes, vmem.padded_bytes) == (3 * 5 * 4, 8 * 128 * 4)
    # {0,1}: dim 0 is the minor one, so 130 is rounded up to 256 and 2 to 8.
    assert (host.bytes, host.padded_bytes) == (130 * 2 * 2, 256 * 8 * 2)
    assert (scalar.size, scalar.bytes) == (1, 4)


def test_instructions_stand_in_the_order_of_the_schedule():
    text = entry("%p = f32[4] parameter(0)\n%b = f32[4] negate(%p)\nROOT %a = f32[4] abs(%p)")
    module = read_module(text)
    assert module.is_scheduled
    assert [i.name for i in module.computations["main"].instructions] == ["p", "b", "a"]
    assert not read_module(
        entry("ROOT %p = f32[4] parameter(0)", header="HloModule m")
    ).is_scheduled


def test_tensorflow_itself_is_not_imported_to_read_a_program():
    code = (
        "import sys; from ellama_jax.plan.hlo_module import _schema; _schema(); "
        "assert not any(name.split('.')[0] == 'tensorflow' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bytes_without_a_program_are_refused():
    with pytest.raises(ValueError, match="must hold an entry computation"):
        read_module(b"")


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

    compiled = compile_for_cpu(run, (64, 128), (3, 128, 128))
    assert flops_of(serialize(compiled)).matmul == 5 * 3 * (2 * 64 * 128 * 128)
    # What XLA says of the same program: one round of each loop.
    assert compiled.cost_analysis()["flops"] < 2 * (2 * 64 * 128 * 128)


def test_products_without_loops_are_what_xla_counts():
    def run(x, w, v):
        return jnp.einsum("bth,hd,bsd->bts", x, w, v)

    compiled = compile_for_cpu(run, (2, 24, 16), (16, 40), (2, 12, 40))
    assert flops_of(serialize(compiled)).matmul == pytest.approx(
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

    compiled = compile_for_cpu(run, (2, 9, 7, 3), (3, 4, 3, 5))
    counted = flops_of(serialize(compiled))
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


def test_a_fused_backward_kernel_does_five_products_where_two_kernels_do_seven():
    text = SPLASH.replace("NAME", "dkv").replace('"{', '"{\\"use_fused_bwd_kernel\\": true, ', 1)
    flops = flops_of(entry(text))
    assert flops.attention == 20 / 32 * 5 * 2 * (2 * 32 * 8192 * 8192 * 128)


@pytest.mark.parametrize(
    ("call", "products"),
    [
        ('"__cudnn$fmhaSoftmax", backend_config={"mask_type":"CAUSAL"}', 2),
        ('"__cudnn$fmhaSoftmaxBackward", backend_config={"mask_type":"PADDING_CAUSAL"}', 5),
        ('"__gpu$xla.gpu.triton", backend_config={"name":"mha_forward"}', 2),
        ('"__gpu$xla.gpu.triton", backend_config={"name":"mha_backward"}', 5),
        ('"__gpu$xla.gpu.triton", backend_config={"name":"mha_preprocess_backward"}', 0),
    ],
)
def test_attention_of_gpu_libraries_counts_half_of_all_pairs(call, products):
    text = entry(f"""%q = bf16[2,512,8,64] parameter(0)
%k = bf16[2,512,2,64] parameter(1)
ROOT %a.1 = bf16[2,512,8,64] custom-call(%q, %k, %k), custom_call_target={call}""")
    assert flops_of(text).attention == products * 2 * (2 * 8 * 512 * 512 * 64) / 2


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
    assert estimate_traffic(read_module(text)).hbm_bytes == 2 * (400 + 4 + 400)


def test_what_stays_in_vmem_is_free_and_the_host_link_counts_apart():
    text = entry("""%p = f32[100] parameter(0)
%fast = f32[100]{0:S(1)} negate(%p)
%slow = f32[100]{0:S(5)} negate(%fast)
ROOT %r = f32[100] bitcast(%p)""")
    traffic = estimate_traffic(read_module(text))
    assert (traffic.hbm_bytes, traffic.host_bytes) == (400, 400)


def test_an_elementwise_program_moves_its_operands_and_results_once():
    compiled = compile_for_cpu(lambda x, y: jnp.tanh(x) * y + 1, (64, 64), (64, 64))
    traffic = estimate_traffic(read_module(serialize(compiled)))
    assert traffic.hbm_bytes == 3 * 64 * 64 * 4 == compiled.cost_analysis()["bytes accessed"]


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
    scanned = flops_of(serialize(compiled(12, 1)))
    assert scanned.matmul == pytest.approx((four - two) / 2 * 12, rel=0.1)
    by_hand = 3 * 2 * (64 / 4) * (2 * 256 * 512) * 12
    assert scanned.matmul == pytest.approx(by_hand, rel=0.01)
