"""Ablation: the peak learning rate, as a fraction of the base model's own peak.

What: 1, 3, 10, 30 and 100 %. The paper (arXiv 2501.09706) tried 3e-5, 3e-4 and 3e-3 for 8B, which is
10, 100 and 1,000 % of the base's 3e-4, and took 10 %.
Command: ellama sweep --config configs/sweeps/learning_rate.py --workdir runs/learning_rate \\
             --set model.checkpoint=demo/base --set data.windows_dir=demo/windows \\
             --set evaluate.windows_dir=HELD_OUT
         Another run's: --config configs/sweeps/learning_rate.py:ellama.py:8b_v5p-256
Hardware: of the run that it varies. Time: trials times the run's. Result: docs/RESULTS.md, evidence.
"""

from configs.sweeps import base


def get_config(run: str = base.SMALL):
    """Returns the sweep over a configuration of configs/, FILE.py:ARGUMENT."""
    sweep, _ = base.sweep_of(run)
    sweep.title = "Peak learning rate as a fraction of the base's own"
    sweep.product = (("schedule.peak_frac", (0.01, 0.03, 0.1, 0.3, 1.0)),)
    return sweep
