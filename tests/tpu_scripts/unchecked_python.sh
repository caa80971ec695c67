#!/usr/bin/env bash
# Python, but for the check of a run: that takes seconds, and is not what most of these tests look at.
[[ $2 == ellama_jax.plan.launch ]] || exec "$REAL_PYTHON" "$@"
