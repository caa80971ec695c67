"""Memory by use, and compilers' refusals: their own words, figures by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ellama_jax.plan.hlo_memory import device_bytes, parse_out_of_memory, split_memory

GIB = 2**30
# libtpu 0.0.42.1, 8B on v5e:2x4.
SHORT = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(23.10G) exceeds available HBM (15.75G)."
)
LONG = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 34.05G of 31.25G hbm. Exceeded hbm capacity by 2.80G.

Total hbm usage >= 34.55G:
    reserved        518.00M
    program          26.86G
    arguments         7.19G

Program hbm requirement 26.86G:
    HLO temp         26.86G (100.0% utilization: Unpadded (26.80G) Padded (26.80G), 0.2% fragmentation)

  Largest program allocations in hbm:

  1. Size: 10.00G
     Operator: op_name="jit(train_step)/jvp()/while"
     Shape: bf16[80,1,8192,8192]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 10.00G
     XLA label: custom-call.7
     Allocation type: HLO temp
     ==========================

  2. Size: 512.5M
     Shape: f32[16384,8200]{1,0:T(8,128)}
     Unpadded size: 512.5M
     Allocation type: HLO temp
     ==========================
"""


def test_a_refusal_in_one_line_says_what_is_missing():
    refusal = parse_out_of_memory(SHORT)
    assert (refusal.needed_bytes, refusal.available_bytes) == (round(23.1 * GIB), 15.75 * GIB)
    assert refusal.missing_bytes == refusal.needed_bytes - refusal.available_bytes
    assert (refusal.space, refusal.largest) == ("hbm", ())


def test_a_refusal_with_a_report_names_the_largest_allocations():
    refusal = parse_out_of_memory(LONG)
    assert (refusal.needed_bytes, refusal.available_bytes, refusal.missing_bytes) == (
        round(34.05 * GIB), 31.25 * GIB, round(2.8 * GIB),
    )  # fmt: skip
    assert refusal.space == "hbm"
    first, second = refusal.largest
    assert (first.bytes, first.op_name, first.kind) == (
        10 * GIB, "jit(train_step)/jvp()/while", "HLO temp",
    )  # fmt: skip
    assert first.shape == "bf16[80,1,8192,8192]{3,2,1,0:T(8,128)(2,1)}"
    assert (second.bytes, second.op_name) == (round(512.5 * 2**20), "")


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert parse_out_of_memory("INVALID_ARGUMENT: unknown flag xla_tpu_nonsense") is None
    assert parse_out_of_memory("Ran out of patience") is None


def test_the_split_of_a_real_program_adds_up_to_its_peak():
    mesh = Mesh(np.array(jax.devices()).reshape(8), ("fsdp",))

    def place(shape, spec, dtype=jnp.float32):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = {"w": place((64, 16), ("fsdp",))}
    moments = (place((64, 16), ("fsdp",)), place((64, 16), ("fsdp",), jnp.bfloat16))
    batch = {"x": place((16, 64), ("fsdp",))}
    count = place((), (), jnp.int32)

    def step(params, moments, count, batch):
        loss = jnp.tanh(batch["x"] @ params["w"]).sum()
        return params["w"] - loss, moments[0] + moments[1], count + 1

    compiled = jax.jit(step).lower(params, moments, count, batch).compile()
    program = SimpleNamespace(
        mesh=mesh, batch=batch, state=SimpleNamespace(params=params, opt_state=moments)
    )
    split = split_memory(compiled.memory_analysis(), program)
    assert split.params_bytes == 64 * 16 * 4 / 8
    assert split.optimizer_bytes == 64 * 16 * (4 + 2) / 8
    assert split.batch_bytes == 16 * 64 * 4 / 8
    assert split.other_bytes == 4
    known = split.params_bytes + split.optimizer_bytes + split.batch_bytes + split.other_bytes
    assert split.peak_bytes == known + split.temporary_bytes
    assert split.temporary_bytes >= 64 * 16 * 4  # the gathered weights
    assert split.host_bytes == 0


def test_arrays_on_the_host_take_no_device_memory():
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    there = NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")
    here = NamedSharding(mesh, PartitionSpec("fsdp"))
    tree = [jax.ShapeDtypeStruct((8, 4), jnp.int8, sharding=s) for s in (there, here)]
    assert device_bytes(tree) == 4
