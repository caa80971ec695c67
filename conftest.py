"""Doctests of modules that only run beside torch are not collected where it is missing."""

import importlib.util

collect_ignore = (
    [] if importlib.util.find_spec("torch") else ["ellama_jax/weights/reference_meta.py"]
)
