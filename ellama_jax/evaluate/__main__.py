"""lm-eval's own command line with the model `ellama` known to it; lm_eval_model.py says why."""

from lm_eval.__main__ import cli_evaluate

import ellama_jax.evaluate.lm_eval_model  # noqa: F401  registers the model

if __name__ == "__main__":
    cli_evaluate()
