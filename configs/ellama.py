"""e-Llama: Llama 3.1 continually pretrained on 1T tokens, half general, half e-commerce.

What: the paper's runs (arXiv 2501.09706): 85,000 updates of 1,440 rows of 8,192 tokens (11.8M), peak
learning rate 3e-5 (8B) and 1.5e-5 (70B), warm-up and cosine, general and e-commerce text 1 : 1.
Command: ellama train --config configs/ellama.py:8b_v5p-256 --workdir gs://BUCKET/runs/8b \\
             --config.model.checkpoint=gs://BUCKET/llama3.1-8b --config.data.windows_dir=gs://BUCKET/windows
Hardware: the argument names size and pod. `8b` and `70b` alone leave mesh, micro-batches and what is
recomputed to the command line: 1,440 is 32 x 45, so `data` times `fsdp` is a divisor of 32 on slices of
2, 4, 8 ... chips, and `context` or `tensor` takes what is left. On the pods below `context` does: at
8,192 tokens its keys and values are a small part of what `fsdp` sends.

What `ellama plan --config configs/ellama.py:VARIANT --topology POD` says (jax 0.10.2, libtpu 0.0.42.1;
bounds, not measurements: no step has run on a TPU yet):

    8b_v5p-256: v5p-256  128 x v5p (4x4x8)
    step       1,440 rows x 8,192 tokens = 11,796,480 tokens; rows a device: 45 in 5 micro-batches
    data       32 hosts, each reads 90 rows a step, 2.8 MiB
    mesh       data 1 x fsdp 32 x context 4 x tensor 1
    computed   attention splash; remat dots; parameters float32, activations auto
    fits       yes: 55.36 GiB of 95.74 GiB a device at the peak, 40.38 GiB left
    FLOPs      6.07e+17 the model's own a step, 6.72e+17 compiled: 1.11 x
    bounds     a step's compute 11.43 s, HBM 2.10 s, ICI 942.2 ms, DCN 0.0 ms
               a step takes at least 11.43 s (compute): at most 8,060 tokens/s a chip, MFU 90.4%
               and 12.55 s (MFU 82.4%) if what the schedule does not overlap waits
    save       a checkpoint of 89.75 GiB, 2.80 GiB a host of 32: 3.01 s at 1 GB/s a host
    run        85,000 steps, 1.00T tokens
               at least 11.2 days, 34,558 chip-hours

    8b_v6e-128: v6e-128  128 x v6e (8x16)
    step       1,440 rows x 8,192 tokens = 11,796,480 tokens; rows a device: 45 in 5 micro-batches
    data       32 hosts, each reads 90 rows a step, 2.8 MiB
    mesh       data 1 x fsdp 32 x context 4 x tensor 1
    computed   attention splash; remat attention; parameters float32, activations auto
    fits       yes: 14.20 GiB of 31.25 GiB a device at the peak, 17.05 GiB left
    FLOPs      6.07e+17 the model's own a step, 7.92e+17 compiled: 1.30 x
    bounds     a step's compute 6.74 s, HBM 3.31 s, ICI 1.90 s, DCN 0.0 ms
               a step takes at least 6.74 s (compute): at most 13,671 tokens/s a chip, MFU 76.6%
               and 8.43 s (MFU 61.3%) if what the schedule does not overlap waits
    save       a checkpoint of 89.75 GiB, 2.80 GiB a host of 32: 3.01 s at 1 GB/s a host
    run        85,000 steps, 1.00T tokens
               at least 6.6 days, 20,374 chip-hours

    70b_v5p-512: v5p-512  256 x v5p (4x8x8)
    step       1,440 rows x 8,192 tokens = 11,796,480 tokens; rows a device: 45 in 9 micro-batches
    data       64 hosts, each reads 90 rows a step, 2.8 MiB
    mesh       data 1 x fsdp 32 x context 8 x tensor 1
    computed   attention splash; remat dots; parameters float32, activations auto
    fits       yes: 78.86 GiB of 95.74 GiB a device at the peak, 16.88 GiB left
    FLOPs      5.3e+18 the model's own a step, 5.55e+18 compiled: 1.05 x
    bounds     a step's compute 47.23 s, HBM 6.73 s, ICI 7.91 s, DCN 0.0 ms
               a step takes at least 47.23 s (compute): at most 976 tokens/s a chip, MFU 95.5%
               and 51.39 s (MFU 87.8%) if what the schedule does not overlap waits
    save       a checkpoint of 788.50 GiB, 12.32 GiB a host of 64: 13.23 s at 1 GB/s a host
    run        85,000 steps, 1.00T tokens
               at least 46.5 days, 285,476 chip-hours

    70b_2xv6e-256: 2xv6e-256  512 x v6e (16x16), 2 slices
    step       1,440 rows x 8,192 tokens = 11,796,480 tokens; rows a device: 45 in 3 micro-batches
    data       128 hosts, each reads 90 rows a step, 2.8 MiB
    mesh       data 2 x fsdp 16 x context 16 x tensor 1
    computed   attention splash; remat attention; parameters float32, activations auto
    fits       yes: 27.92 GiB of 31.25 GiB a device at the peak, 3.33 GiB left
    FLOPs      5.3e+18 the model's own a step, 6.7e+18 compiled: 1.26 x
    bounds     a step's compute 14.26 s, HBM 6.65 s, ICI 4.86 s, DCN 146.7 ms
               a step takes at least 14.26 s (compute): at most 1,615 tokens/s a chip, MFU 79.1%
               and 17.62 s (MFU 64.0%) if what the schedule does not overlap waits
    save       a checkpoint of 788.50 GiB, 6.16 GiB a host of 128: 6.61 s at 1 GB/s a host
    run        85,000 steps, 1.00T tokens
               at least 14.0 days, 172,415 chip-hours

Time and result: not yet measured.
"""

from typing import NamedTuple

from configs import base


class Pod(NamedTuple):
    """How a size lies on one pod: mesh, parts of a batch, and what backward recomputes."""

    mesh: dict[str, int]
    num_microbatches: int
    remat: str


PODS = {
    "8b_v5p-256": Pod({"fsdp": 32, "context": 4}, 5, "dots"),
    "8b_v6e-128": Pod({"fsdp": 32, "context": 4}, 5, "attention"),
    "70b_v5p-512": Pod({"fsdp": 32, "context": 8}, 9, "dots"),
    "70b_2xv6e-256": Pod({"data": 2, "fsdp": 16, "context": 16}, 3, "attention"),
}
VARIANTS = ("8b", "70b", *PODS)


def get_config(variant: str = "8b"):
    """Returns the configuration of one size, for one pod if it is named."""
    if variant not in VARIANTS:
        raise ValueError(f"ellama.py: variant must be one of {', '.join(VARIANTS)}, got {variant}.")
    config = base.get_config()
    config.model.preset = f"llama3.1-{variant.partition('_')[0]}"
    if variant in PODS:
        # With the write that follows and the steps in flight, at most 15 minutes are ever lost.
        config.checkpoint.save_every_secs = 720.0
        pod = PODS[variant]
        config.mesh.update(pod.mesh)
        config.train.num_microbatches = pod.num_microbatches
        config.model.remat = pod.remat
    return config
