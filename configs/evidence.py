"""The paper's claims, tried at the scale of this machine: base, adaptation, and the ablations.

What: the demo's run (SmolLM2-135M, half general, half e-commerce in five languages) from beginning to
end with each seed, and below a sweep around it, shorter, of the two ablations that the paper
(arXiv 2501.09706) chose its recipe by: peak learning rate, and share of general text.
Command: make evidence, or ellama evidence --config configs/evidence.py --workdir evidence
Hardware: 2 CPU cores, 12 GiB, 12 GB of disk. Time and result: docs/RESULTS.md.
"""

from configs.sweeps import base


def get_config(run: str = base.SMALL):
    """Returns the sweep over the demo's configuration, demo.py:MODEL."""
    sweep, _ = base.sweep_of(run)
    small = run.endswith(":tiny")
    sweep.title = "Ablations around the demo's run"
    sweep.one_at_a_time = (
        ("schedule.peak_frac", (0.1, 1.0) if small else (0.01, 0.03, 0.1, 0.2, 0.3, 1.0)),
        ("data.replay_frac", (0.0, 0.5) if small else (0.0, 0.1, 0.25, 0.5, 0.75)),
    )
    # Two thirds of the trials' time is training, the rest their held-out text, before and after.
    sweep.overrides = (
        ("train.steps", 4 if small else 20),
        ("schedule.warmup_steps", 2),
        ("evaluate.batches", 10 if small else 15),
        ("evaluate.every_steps", 1000),
        ("checkpoint.save_every_steps", 1000),
    )
    sweep.seeds = (0, 1)
    sweep.remove_checkpoints = True
    return sweep
