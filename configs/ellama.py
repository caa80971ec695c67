"""e-Llama: Llama 3.1 continually pretrained on 1T tokens, half general, half e-commerce.

What: the paper's runs (arXiv 2501.09706). The argument picks the size: `8b` or `70b`.
Command: ellama train --config configs/ellama.py:8b --workdir gs://BUCKET/runs/8b \\
             --config.model.checkpoint=gs://BUCKET/llama3.1-8b --config.data.windows_dir=gs://BUCKET/windows
Hardware: not yet decided by the compiler. Time and result: not yet measured.
"""

from configs import base

VARIANTS = ("8b", "70b")


def get_config(variant: str = "8b"):
    """Returns the configuration of one size."""
    if variant not in VARIANTS:
        raise ValueError(f"ellama.py: variant must be one of {', '.join(VARIANTS)}, got {variant}.")
    config = base.get_config()
    config.model.preset = f"llama3.1-{variant}"
    return config
