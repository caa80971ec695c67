"""A process that runs `ellama prepare` in many small steps, to be killed between any two of them.

What: the other half of test_prepare_restart.py. Command: python tests/end_to_end/prepare_slowly.py
and the verb's arguments; begins at a line on stdin.
"""

import sys

from ellama_jax.data import prepare, tokenising

PART_BYTES = 1500
CHUNK_TOKENS = 600


def main() -> None:
    tokenising.PART_BYTES = prepare.PART_BYTES = (PART_BYTES, PART_BYTES)
    prepare.CHUNK_TOKENS = CHUNK_TOKENS
    print("ready", flush=True)
    sys.stdin.readline()
    prepare.main_prepare(sys.argv[1:])


if __name__ == "__main__":
    main()
