"""Ablation: a late switch to more e-commerce text.

What: the mixture as it is to the end, or a quarter general text from 60 or 80 % of the run on; a blend
that changes late is what "Reuse, Don't Retrain" (arXiv 2407.07263) found best.
Command: ellama sweep --config configs/sweeps/late_switch.py --workdir runs/late_switch \\
             --set model.checkpoint=demo/base --set data.windows_dir=demo/windows \\
             --set evaluate.windows_dir=HELD_OUT
Hardware: of the run that it varies. Time: trials times the run's. Result: not yet measured.
"""

from configs.sweeps import base


def get_config(run: str = base.SMALL):
    """Returns the sweep over a configuration of configs/, FILE.py:ARGUMENT."""
    sweep, config = base.sweep_of(run)
    steps = config.train.steps
    sweep.title = "Late switch of the mixture"
    stages = {
        f"at {share} %": {"late": {"start_step": share * steps // 100, "replay_frac": 0.25}}
        for share in (60, 80)
    }
    sweep.product = (("data.stages", {"never": {}, **stages}),)
    return sweep
