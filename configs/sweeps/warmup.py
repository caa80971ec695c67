"""Ablation: how long the learning rate warms up.

What: none, 2, 10 and 30 % of the run.
Command: ellama sweep --config configs/sweeps/warmup.py --workdir runs/warmup \\
             --set model.checkpoint=demo/base --set data.windows_dir=demo/windows \\
             --set evaluate.windows_dir=HELD_OUT
Hardware: of the run that it varies. Time: trials times the run's. Result: not yet measured.
"""

from configs.sweeps import base


def get_config(run: str = base.SMALL):
    """Returns the sweep over a configuration of configs/, FILE.py:ARGUMENT."""
    sweep, config = base.sweep_of(run)
    steps = config.train.steps
    sweep.title = "Steps of warm-up"
    shares = {"none": 0, "2 %": 2, "10 %": 10, "30 %": 30}
    warmups = {label: -(-share * steps // 100) for label, share in shares.items()}
    sweep.product = (("schedule.warmup_steps", warmups),)
    return sweep
