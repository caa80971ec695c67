"""A plan's record with round numbers, for tests of what is made of one."""

MESH = {"data": 1, "fsdp": 4, "context": 1, "tensor": 1}
GIB = 2**30


def record(**changes):
    """Returns a record as `plan.plan_record` gives it, with some keys changed."""
    return {
        "target": "v5p-8", "hardware": "v5p", "shape": [2, 2, 1], "num_chips": 4, "num_devices": 4,
        "num_slices": 1, "model": "llama3.1-8b", "num_params": 8030261248,
        "step": {
            "global_batch_size": 8, "seq_len": 8192, "tokens": 65536, "rows_per_device": 2.0,
            "num_microbatches": 1, "hosts": {"count": 2, "rows": 4, "bytes": 131072}, "mesh": MESH, "attention_kernel": "splash", "remat": "full",
            "param_dtype": "float32", "compute_dtype": "auto",
        },
        "outcome": "compiled", "message": None, "text_path": None, "out_of_memory": None,
        "limit_bytes": 96 * GIB, "device_kind": "TPU v5", "versions": {"jax": "0.10.2"},
        "state": {"params_bytes": 8 * GIB, "optimizer_bytes": 16 * GIB, "batch_bytes": 2**20},
        "checkpoint": {
            "bytes": 96 * GIB, "hosts": 2, "bytes_per_host": 48 * GIB, "write_rate": 1.0,
            "secs": 51.54,
        },
        "memory": {
            "peak_bytes": 40 * GIB, "params_bytes": 8 * GIB, "optimizer_bytes": 16 * GIB,
            "batch_bytes": 2**20, "other_bytes": 0, "temporary_bytes": 15 * GIB,
            "code_bytes": 2**25, "host_bytes": 0,
        },
        "model_flops": {"total_per_token": 5e10},
        "flops": {"total": 1.09e15},
        "traffic": {"hbm_bytes": 1e12, "host_bytes": 0},
        "collectives": [collective(), collective(kind="reduce-scatter", overlapped_bytes=0.0)],
        "peak_parts": {
            "argument": 24 * GIB, "gradients": 8 * GIB, "weights": 3 * GIB, "activations": 4 * GIB,
        },
        "largest": [], "unread": None, "compile_secs": 50.0, "secs": 60.0, "overrides": [],
        "roofline": {
            "compute_secs": 2.0, "hbm_secs": 0.5, "ici_secs": 0.25, "dcn_secs": 0.0,
            "step_secs": 2.0, "serial_step_secs": 2.5, "bound_by": "compute", "mfu": 0.75,
            "serial_mfu": 0.6, "tokens_per_sec_per_chip": 8192.0,
        },
        "run": {
            "steps": 1000, "tokens": 65536000, "price_usd_per_chip_hour": 4.2,
            "bound": {"days": 0.5, "chip_hours": 48.0, "cost_usd": 201.6},
            "assumed_mfu": 0.5,
            "assumed": {"days": 0.75, "chip_hours": 72.0, "cost_usd": 302.4},
        },
        **changes,
    }  # fmt: skip


def collective(**changes):
    """Returns one row of a record's collectives."""
    return {
        "kind": "all-gather", "source": "weights", "axes": ["fsdp"], "network": "ici",
        "dtype": "bf16", "count": 64, "payload_bytes": 4e9, "link_bytes": 3e9,
        "overlapped_bytes": 1.5e9, **changes,
    }  # fmt: skip
