"""`ellama prepare` in many small steps, to be killed between any two of them.

What: the other half of test_prepare_restart.py, run by verb_driver.py.
"""

from ellama_jax.tokens import prepare, tokenising

PART_BYTES = 1500
CHUNK_TOKENS = 600
FAN_IN = 8


def main(argv: list[str]) -> None:
    tokenising.PART_BYTES = prepare.PART_BYTES = (PART_BYTES, PART_BYTES)
    prepare.CHUNK_TOKENS, prepare.FAN_IN = CHUNK_TOKENS, FAN_IN
    prepare.main_prepare(argv)
