"""Ablation: tokens a row, with as many tokens a step.

What: the run's own row length, its half and its quarter. Held-out text is read in rows of the same
length, the base's too: changes compare, losses do not. Longer rows ask for longer windows.
Command: ellama sweep --config configs/sweeps/context_size.py --workdir runs/context_size \\
             --set model.checkpoint=demo/base --set data.windows_dir=demo/windows \\
             --set evaluate.windows_dir=HELD_OUT
Hardware: of the run that it varies. Time: trials times the run's. Result: not yet measured.
"""

from configs.sweeps import base


def get_config(run: str = base.SMALL):
    """Returns the sweep over a configuration of configs/, FILE.py:ARGUMENT."""
    sweep, config = base.sweep_of(run)
    length, rows = config.data.seq_len, config.data.global_batch_size
    sweep.title = "Tokens a row"
    sweep.zipped = (
        (
            ("data.seq_len", (length // 4, length // 2, length)),
            ("data.global_batch_size", (4 * rows, 2 * rows, rows)),
        ),
    )
    return sweep
