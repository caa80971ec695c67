"""Ablation: which share of the tokens is general text (replay).

What: 0, 10, 25, 50 and 75 %. The paper (arXiv 2501.09706) took 50 %.
Command: ellama sweep --config configs/sweeps/general_share.py --workdir runs/general_share \\
             --set model.checkpoint=demo/base --set data.windows_dir=demo/windows \\
             --set evaluate.windows_dir=HELD_OUT
Hardware: of the run that it varies. Time: trials times the run's. Result: docs/RESULTS.md, evidence.
"""

from configs.sweeps import base


def get_config(run: str = base.SMALL):
    """Returns the sweep over a configuration of configs/, FILE.py:ARGUMENT."""
    sweep, _ = base.sweep_of(run)
    sweep.title = "General share of the tokens"
    sweep.product = (("data.replay_frac", (0.0, 0.1, 0.25, 0.5, 0.75)),)
    return sweep
