"""Weights at rest: import, Orbax checkpoints, merging."""
