"""Owns the points of a sweep on disk, so that a broken one goes on where it was.

WORKDIR/sweep-points/ holds one scorecard a file, named by a hash of what it answers: both models,
the alphas, the questions and the settings. Whatever differs in one of them is another point.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ellama_jax import __version__
from ellama_jax.core.distributed import leads
from ellama_jax.core.limits import parse_json
from ellama_jax.evaluate.scorecard import Scoring, fingerprint, write_json
from ellama_jax.merge.blend import Source
from ellama_jax.weights.alphas import Alphas

FOLDER = "sweep-points"


def point_key(
    base: Source,
    adapted: Source,
    alphas: Alphas,
    items: Sequence[dict],
    texts: Sequence[dict],
    scoring: Scoring,
) -> dict:
    """Returns what a point's scorecard depends on, JSON-able; the base's on no adapted model."""
    return {
        "base": base.identity,
        "adapted": None if alphas.uniform == 0.0 else adapted.identity,
        "alphas": alphas.to_dict(),
        "items": fingerprint(items),
        "texts": fingerprint(texts),
        "compute_dtype": scoring.compute_dtype,
        "window": min(scoring.window, base.config.max_seq_len),
        "version": __version__,
    }


class PointStore:
    """Scorecards of points by their keys; it lies where all processes of a job can read it."""

    def __init__(self, workdir: Path):
        self._folder = workdir / FOLDER

    def get(self, key: dict) -> dict | None:
        """Returns a scorecard that was put; None where there is none, or its file is broken."""
        try:
            held = parse_json(self._path(key).read_text(encoding="utf-8"))
            return held["scorecard"] if held["key"] == key else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def put(self, key: dict, card: dict) -> None:
        """Writes a scorecard, whole or not at all; one process of a job does."""
        if leads():
            write_json(self._path(key), {"key": key, "scorecard": card})

    def _path(self, key: dict) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder / f"{name}.json"
