"""`ellama train` whose process 1 reads slowly, or not at all from its fourth batch on."""

import sys
import time

import jax

from ellama_jax.data.loader import Loader
from ellama_jax.train.loop import main_train

how, iterate = sys.argv[1], Loader.iterate


def slowly(self, *args):
    for number, batch in enumerate(iterate(self, *args)):
        if jax.process_index() == 1 and number >= 3:
            time.sleep(1.0 if how == "slow" else 3600)
        yield batch


Loader.iterate = slowly
main_train(sys.argv[2:])
