"""The synthetic catalogue: listings in five languages, made here, so it runs anywhere in a minute.

What: 720 products (argument: another number), each described in five languages with one product id;
a tenth of the products held out in all of them.
Command: ellama curate --config configs/data/catalogue.py --out curated
Hardware: one CPU core. Time and result: docs/RESULTS.md.
"""

from configs.data import base


def get_config(products: str = "720"):
    """Returns the configuration of so many products."""
    config = base.get_config()
    config.sources.catalogue = base.source(
        kind="listings",
        paths=(f"synthetic:listings:{products}",),
        licence="Apache-2.0",
    )
    config.split.heldout_frac = 0.1
    return config
