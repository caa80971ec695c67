"""What backward computes again instead of keeping it, by name.

Owns the policies. Where they are tried one after the other against a compiler is train/program.py.
"""

from collections.abc import Callable

import jax
from jax import checkpoint_policies as policies
from jax.ad_checkpoint import checkpoint_name

# From least to most computed again, and so from most memory to least:
#   none       nothing;
#   dots       what is cheap: all but the results of matrix products and of attention;
#   attention  all but attention's result;
#   full       the whole layer, from its input;
#   offload    the same, and the layers' inputs wait in the host's memory.
REMAT_POLICIES = ("none", "dots", "attention", "full", "offload")
_INPUT, _ATTENTION = "layer_input", "attention"


def checkpointed(run_layer: Callable, remat: str) -> Callable:
    """Wraps `run_layer(x, layer)`, the body of a scan, so that backward recomputes what is not saved.

    Raises:
        ValueError: if `remat` is no policy.
    """
    check_remat(remat)
    if remat == "none":
        return run_layer
    attention = policies.save_only_these_names(_ATTENTION)
    policy = {
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, attention
        ),
        "attention": attention,
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[_INPUT],
            offload_src="device", offload_dst="pinned_host",
        ),
    }[remat]  # fmt: skip

    def run_named(x, layer):
        return run_layer(checkpoint_name(x, _INPUT), layer)

    return jax.checkpoint(run_named, policy=policy, prevent_cse=False)


def check_remat(remat: str, *others: str) -> None:
    """Raises a ValueError if `remat` is neither a policy nor one of `others`."""
    known = (*REMAT_POLICIES, *others)
    if remat not in known:
        raise ValueError(f"model.remat: must be one of {', '.join(known)}, got {remat}.")
