"""`ellama train` whose process 1 reads slowly, or not at all from its fourth batch on."""

import sys
import time

import jax

from ellama_jax.tokens.loader import Loader
from ellama_jax.train.loop import main_train


def main(how: str, argv: list[str]) -> None:
    iterate = Loader.iterate

    def slowly(self, *args):
        for number, batch in enumerate(iterate(self, *args)):
            if jax.process_index() == 1 and number >= 3:
                time.sleep(1.0 if how == "slow" else 3600)
            yield batch

    Loader.iterate = slowly
    main_train(argv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
