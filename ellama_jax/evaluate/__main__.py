"""lm-eval's own command line with the model `ellama` known to it; lm_eval_model.py says why."""

import os
import sys

from lm_eval import utils
from lm_eval.__main__ import cli_evaluate

import ellama_jax.evaluate.lm_eval_model  # noqa: F401  registers the model
from ellama_jax.evaluate.lm_eval_run import table_of

if __name__ == "__main__":
    utils.make_table = table_of  # lm-eval's own needs chardet
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        if os.environ.get("ELLAMA_TRACEBACK"):
            raise
        print(f"ellama_jax.evaluate: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
