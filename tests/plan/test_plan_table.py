"""What a plan says in words."""

from plan_records import GIB, collective, record

from ellama_jax.plan.table import PROMISE, WIDTH, block, summary

BLOCK = """\
v5p-8  4 x v5p (2x2x1)
----------------------
model      llama3.1-8b, 8.03B parameters
step       8 rows x 8,192 tokens = 65,536 tokens; rows a device: 2
data       2 hosts, each reads 4 rows a step, 128 KiB
mesh       data 1 x fsdp 4 x context 1 x tensor 1
computed   attention splash; remat full; parameters float32, activations auto
fits       yes: 40.00 GiB of 96.00 GiB a device at the peak, 56.00 GiB left
memory     at the peak: parameters 8.00 GiB, optimizer 16.00 GiB, batch 1.0 MiB, gradients and
             activations 15.00 GiB, other 0 KiB
             of it by the schedule, an estimate: gradients 8.00 GiB, activations 4.00 GiB, weights
               (cast, gathered or laid out anew) 3.00 GiB
           beside it: code 32.0 MiB, on the host 0 KiB
FLOPs      3.28e+15 the model's own a step, 4.36e+15 compiled: 1.33 x
traffic    1,000.0 GB of HBM read and written a device and step (an estimate)
network    kind            axes  over  of       dtype  times  GB sent  overlapped
           all-gather      fsdp  ici   weights  bf16      64    3.000         50%
           reduce-scatter  fsdp  ici   weights  bf16      64    3.000          0%
bounds     a step's compute 2.00 s, HBM 500.0 ms, ICI 250.0 ms, DCN 0.0 ms
           a step takes at least 2.00 s (compute): at most 8,192 tokens/s a chip, MFU 75.0%
           and 2.50 s (MFU 60.0%) if what the schedule does not overlap waits
save       a checkpoint of 96.00 GiB, 48.00 GiB a host of 2: 51.54 s at 1 GB/s a host
run        1,000 steps, 65.54M tokens
           at least 0.5 days, 48 chip-hours, $202 ($4.2 a chip and hour)
           0.8 days, 72 chip-hours, $302 at the assumed MFU of 50%"""


def test_a_block_says_everything_with_its_unit():
    assert block(record()) == BLOCK


def test_an_assumed_mfu_beyond_the_bound_is_said_to_be():
    hopeful = record(run={**record()["run"], "assumed_mfu": 0.9})
    assert "at the assumed MFU of 90%, which is beyond the bound" in block(hopeful)


def test_what_does_not_fit_says_by_how_much_and_what_is_largest():
    largest = [{"bytes": 4 * GIB, "shape": "f32[32,8,8192,4096]", "op_name": "jit(step)/scan"}]
    refused = record(
        outcome="no_fit", memory=None, flops=None, traffic=None, roofline=None, text_path="/tmp/x",
        message="RESOURCE_EXHAUSTED: Ran out of memory",
        out_of_memory={"needed_bytes": 40 * GIB, "available_bytes": 31 * GIB,
                       "missing_bytes": 9 * GIB, "largest": largest},
        run={**record()["run"], "bound": None, "assumed": None},
    )  # fmt: skip
    lines = block(refused).splitlines()
    assert "fits       no: 40.00 GiB of 31.00 GiB a device, 9.00 GiB too much" in lines
    assert (
        "memory     a device holds parameters 8.00 GiB, optimizer 16.00 GiB, batch 1.0 MiB; "
        in block(refused)
    )
    assert "             4.00 GiB f32[32,8,8192,4096] jit(step)/scan" in lines
    assert "           the compiler's full text: /tmp/x" in lines
    assert "bounds" not in block(refused) and "at least" not in block(refused)


def test_a_compiler_that_failed_is_not_said_to_have_no_room():
    failed = record(outcome="failed", memory=None, message="INTERNAL: oh", text_path="/tmp/x")
    assert "fits       not known, the compiler failed: INTERNAL: oh" in block(failed)
    assert "no:" not in block(failed)


def test_no_line_is_wider_than_the_page():
    long = [collective(source="activations", axes=["data", "fsdp", "context"])] * 30
    wide = record(message="m" * 20 + " word" * 60, outcome="failed", memory=None, collectives=long)
    assert max(map(len, block(wide).splitlines())) <= WIDTH
    assert max(map(len, block(record()).splitlines())) <= WIDTH
    several = summary([record(), record(target="16xv6e-256", num_chips=4096)])
    assert max(map(len, several.splitlines())) <= WIDTH


def test_collectives_beyond_the_first_are_summed():
    many = [collective(link_bytes=1e9)] * 13
    assert "and 192 more, 3.000 GB (see --json)" in block(record(collectives=many))


def test_a_summary_has_one_line_a_plan_and_dashes_for_what_is_not_known():
    unknown = record(target="v6e-16", outcome="no_fit", memory=None, roofline=None,
                     run={**record()["run"], "bound": None})  # fmt: skip
    head, first, second = summary([record(), unknown]).splitlines()
    assert head.split()[:3] == ["target", "chips", "fits"]
    assert first.split()[:5] == ["v5p-8", "4", "yes", "40.00", "GiB"] and "$202" in first
    assert second.split() == ["v6e-16", "4", "no", "-", "-", "-", "-", "-", "-"]


def test_bounds_are_called_bounds():
    assert "Bounds are not promises" in PROMISE
