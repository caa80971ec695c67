"""The demo: a small really trained model adapted on this machine's CPU.

What: SmolLM2-135M (`smollm2-135m`), or random weights of a tiny model (`tiny`, for development), on a
1 : 1 mixture of general and multilingual e-commerce text. `ellama demo` fills in the paths.
Command: make demo, or ellama demo --model smollm2-135m --workdir demo
Hardware: 2 CPU cores, 8 GiB. Time and result: docs/RESULTS.md.
"""

from configs import base

VARIANTS = ("smollm2-135m", "tiny")


def get_config(variant: str = "smollm2-135m"):
    """Returns the configuration for one of the two models."""
    if variant not in VARIANTS:
        raise ValueError(f"demo.py: variant must be one of {', '.join(VARIANTS)}, got {variant}.")
    config = base.get_config()
    config.model.preset = variant
    config.model.remat = "dots"  # less memory to write and read: faster than none on a CPU
    config.model.loss_chunk_tokens = 512
    config.data.general_shares.update({"en": 0.4, "de": 0.15, "fr": 0.15, "it": 0.15, "es": 0.15})
    config.data.seq_len = 384  # about four listings
    config.data.num_read_threads = 1
    config.checkpoint.keep_last = 1
    config.evaluate.row_length = 512
    config.evaluate.rows_per_batch = 2
    config.evaluate.alphas = (0.0, 0.5, 1.0)
    config.evaluate.sweep.max_points = 5
    if variant == "tiny":
        return _tiny(config)
    config.data.global_batch_size = 2
    config.train.steps = 60
    # Twice the paper's fraction: 42k tokens are no 1T, and merging takes back what it costs.
    config.schedule.peak_frac = 0.2
    config.schedule.warmup_steps = 4
    config.checkpoint.save_every_steps = 30
    config.evaluate.items_per_task = 24
    config.evaluate.mmlu_per_language = 54
    config.evaluate.texts_per_source = 4
    return config


def _tiny(config):
    # Its tokenizer of 512 ids makes documents longer.
    config.data.seq_len = 768
    config.data.global_batch_size = 2
    config.train.steps = 60
    config.schedule.warmup_steps = 5
    config.checkpoint.save_every_steps = 30
    config.evaluate.items_per_task = 12
    config.evaluate.mmlu_per_language = 12
    config.evaluate.texts_per_source = 3
    return config
