"""What compiler flags change of a step's schedule: bytes beside computation, memory, bounds.

    python tools/benchmarks/schedule.py table none --topology v6e-64 --out schedule.jsonl \
        --config.model.preset=llama3.1-8b --config.data.global_batch_size=320

Each set is compiled in a process of its own (1 to 2 minutes of a core, 2 GB); a line of JSON a set is
appended to --out as soon as it is there. With --init the flags reach the compiler by
LIBTPU_INIT_ARGS, else as compile options.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from random_run import load_run_config, parse_with_config

from ellama_jax.core.xla_flags import FLAGS, flags_for
from ellama_jax.plan.compile import compile_for
from ellama_jax.plan.targets import parse_targets

_ASYNC = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
_LAYOUT = {
    "xla_tpu_use_minor_sharding_for_major_trivial_input": "true",
    "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": "1",
    "xla_tpu_assign_all_reduce_scatter_layout": "true",
}
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
_SPARSE_CORE = {
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_disable_megacore_partitioning": "true",
    f"{_OFFLOAD}all_reduce": "true",
}
_HOST = {
    "xla_tpu_enable_all_experimental_scheduler_features": "true",
    "xla_tpu_enable_scheduler_memory_pressure_tracking": "true",
    "xla_tpu_host_transfer_overlap_limit": "32",
    "xla_tpu_aggressive_opt_barrier_removal": "ENABLED",
    "xla_lhs_prioritize_async_depth_over_stall": "ENABLED",
    "xla_tpu_enable_ag_backward_pipelining": "true",
    "xla_should_allow_loop_variant_parameter_in_chain": "ENABLED",
    "xla_should_add_loop_invariant_op_in_chain": "ENABLED",
    "xla_max_concurrent_host_send_recv": "128",
    "xla_tpu_scheduler_percent_shared_memory_limit": "100",
    "xla_latency_hiding_scheduler_rerun": "2",
}
_FUSE = "xla_tpu_enable_async_collective_fusion_fuse_"
# Published sets (AI-Hypercomputer/tpu-recipes and MaxText's benchmarks/xla_flags_library.py, read
# November 2026), without scoped VMEM, with which one compilation took 9 minutes.
SETS = {
    "none": {},
    "table": None,  # ours, of the generation
    # training/trillium/Llama3.1-8B-MaxText/v6e-64
    "trillium-8b": {
        **_LAYOUT, **_ASYNC, **_SPARSE_CORE, **_HOST, f"{_FUSE}all_gather": "false",
        "xla_tpu_enable_all_reduce_offload_tracing": "true",
        "xla_sc_enable_instruction_fusion": "false",
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    },
    # CF_FOR_ALL_GATHER of the 70B recipe for v6e-256, and with the sums on the SparseCores
    "fusions": {**_LAYOUT, **_ASYNC, f"{_FUSE}all_gather": "true"},
    "fusions-and-offload": {
        **_LAYOUT, **_ASYNC, **_SPARSE_CORE, f"{_FUSE}all_gather": "true",
        "xla_tpu_enable_all_reduce_offload_tracing": "true",
    },
    "fusions-of-all": {
        **_LAYOUT, **_ASYNC, f"{_FUSE}all_gather": "true", f"{_FUSE}all_reduce": "true",
        "xla_enable_async_all_reduce": "true",
    },
    # training/ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4
    "ironwood": {
        **_SPARSE_CORE, f"{_FUSE}all_gather": "false", "xla_enable_async_all_gather": "true",
        "xla_tpu_enable_all_gather_offload_tracing": "true",
        "xla_tpu_prefer_async_allgather_to_allreduce": "true",
        "xla_tpu_enable_sparse_core_reduce_scatter_v2": "true",
        "xla_tpu_use_single_sparse_core_for_all_gather_offload": "true",
        **{f"{_OFFLOAD}{kind}": "true"
           for kind in ("all_gather", "2d_all_gather", "3d_all_gather", "reduce_scatter")},
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=sorted(SETS), help="of flags")
    parser.add_argument("--topology", required=True, help="one, as v6e-64")
    parser.add_argument("--init", action="store_true", help="by LIBTPU_INIT_ARGS")
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON are appended")
    args, others = parse_with_config(parser)
    (target,) = parse_targets(args.topology)
    nothing = {flag.name: "" for flag in FLAGS if flag.name.startswith("xla_")}
    for name in args.sets:
        flags = SETS[name]
        if flags is None:
            flags = flags_for(target.topology.generation)
        options = nothing if args.init else {**nothing, **flags}
        words = " ".join(f"--{flag}={value}" for flag, value in flags.items())
        os.environ["LIBTPU_INIT_ARGS"] = words if args.init else ""
        config = load_run_config({"train.xla_flags": options}, others)
        with tempfile.NamedTemporaryFile(suffix=".txt") as text:
            answer = compile_for(config, target, Path(text.name))
        row = {"set": name, "init": args.init, "topology": target.name, "config": others, **answer}
        with args.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(summary(row), flush=True)


def summary(row: dict) -> str:
    """Returns a line of a table: memory, bytes sent and hidden, step at the peaks."""
    if row["outcome"] != "compiled":
        return f"| {row['topology']} | {row['set']} | {row['message'][:120]} |"
    sent = sum(item["link_bytes"] for item in row["collectives"])
    hidden = sum(item["overlapped_bytes"] for item in row["collectives"])
    bounds = row["roofline"]
    return (
        f"| {row['topology']} | {row['set']} | {row['memory']['peak_bytes'] / 2**30:.2f} | "
        f"{sent / 1e9:.1f} | {hidden / sent:.0%} | {bounds['exposed_secs'] * 1e3:.0f} | "
        f"{bounds['serial_step_secs']:.2f} | {bounds['serial_mfu']:.1%} | {row['secs']:.0f} |"
    )


if __name__ == "__main__":
    main()
