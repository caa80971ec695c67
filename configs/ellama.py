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

PLANS
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
    "70b_2xv6e-256": Pod({"data": 2, "fsdp": 16, "context": 16}, 5, "full"),
}
VARIANTS = ("8b", "70b", *PODS)


def get_config(variant: str = "8b"):
    """Returns the configuration of one size, for one pod if it is named."""
    if variant not in VARIANTS:
        raise ValueError(f"ellama.py: variant must be one of {', '.join(VARIANTS)}, got {variant}.")
    config = base.get_config()
    config.model.preset = f"llama3.1-{variant.partition('_')[0]}"
    if variant in PODS:
        pod = PODS[variant]
        config.mesh.update(pod.mesh)
        config.train.num_microbatches = pod.num_microbatches
        config.model.remat = pod.remat
    return config
