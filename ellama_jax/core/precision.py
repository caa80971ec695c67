"""What float32 means for matrix products.

Owns that one word. Which dtype a program computes in is its configuration's.
"""

import contextlib

import jax
import jax.numpy as jnp


def float32_as_it_says(dtype) -> contextlib.AbstractContextManager:
    """Returns a context in whose traces matrix products of a float32 program are float32's own.

    By default a TPU makes them of bfloat16 parts, in one pass of its matrix unit, and a GPU of TF32:
    an 8 or 10 bit significand. "highest" is six passes of bfloat16, or true float32. A CPU
    computes in float32 either way. A program of another dtype asks for nothing.

    Args:
        dtype: in which the program computes.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()
