"""Which blocks of queries and keys a kernel works on, and what must divide what.

Owns sizes and the list of blocks that hold something visible; the kernels own the arithmetic.
"""

import math

import numpy as np


def fit_blocks(length: int, blocks: tuple[int, int], step: int) -> tuple[int, tuple[int, int]]:
    """Chooses block sizes for a row, and how far the row is padded for them.

    A row shorter than a block is one block. Otherwise each size is the largest multiple of `step`
    that divides the row and is at most the wanted one; if that is less than half of it, the row is
    padded to a multiple of both wanted sizes instead.

    Args:
        length: positions of a row.
        blocks: wanted sizes for queries and keys, multiples of `step`.
        step: what the kernel's blocks are multiples of.

    Returns:
        the padded length, and the sizes, which divide it.

    >>> fit_blocks(8192, (1024, 2048), 128)
    (8192, (1024, 2048))
    >>> fit_blocks(300, (1024, 1024), 128)
    (384, (384, 384))
    >>> fit_blocks(67 * 128, (1024, 1024), 128)
    (9216, (1024, 1024))
    """
    padded = math.ceil(length / step) * step
    fitted = tuple(largest_block(padded, block, step) for block in blocks)
    if all(2 * got >= min(block, padded) for got, block in zip(fitted, blocks, strict=True)):
        return padded, fitted
    multiple = math.lcm(*(min(block, padded) for block in blocks))
    padded = math.ceil(length / multiple) * multiple
    return padded, tuple(largest_block(padded, block, step) for block in blocks)


def largest_block(length: int, block: int, step: int) -> int:
    """Returns the largest multiple of `step` up to `block` that divides `length`, a multiple of it.

    >>> largest_block(640, 512, 128)
    128
    """
    for size in range(min(block, length) // step * step, 0, -step):
        if length % size == 0:
            return size
    raise ValueError(f"block: must be at least {step}, got {block}.")


def visible_pairs(
    q_order: np.ndarray, k_order: np.ndarray, block_q: int, block_kv: int
) -> np.ndarray:
    """Lists the pairs of blocks in which some query comes at or after some key.

    Args:
        q_order: [T], each query's place in its row; k_order: [S].

    Returns:
        [pairs, 2] int32, block of queries and block of keys, by the former and then the latter.

    >>> visible_pairs(np.arange(4), np.arange(4), 2, 2).tolist()
    [[0, 0], [1, 0], [1, 1]]
    """
    last_query = q_order.reshape(-1, block_q).max(axis=1)
    first_key = k_order.reshape(-1, block_kv).min(axis=1)
    return np.argwhere(last_query[:, None] >= first_key[None, :]).astype(np.int32)
