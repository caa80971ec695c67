"""Boxes cover an array once, within bounds; transposition is exact."""

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.weights.lazy import from_array, read_ahead, split, transpose


@pytest.mark.parametrize(
    ("shape", "grid", "piece_bytes"),
    [
        ((5, 7, 9), None, 40),
        ((5, 7, 9), (1, 7, 3), 100),
        ((5, 7, 9), (2, 3, 4), 10_000),
        ((16,), None, 8),
        ((3, 1000), (1, 1000), 64),
    ],
)
def test_boxes_cover_an_array_once(shape, grid, piece_bytes):
    seen = np.zeros(shape, int)
    for box in split(shape, 4, grid, piece_bytes):
        seen[box] += 1
        size = seen[box].size * 4
        assert size <= piece_bytes or size <= np.prod(grid) * 4
        for part, block, whole in zip(box, grid or (1,) * len(shape), shape, strict=True):
            assert part.start % block == 0 and (part.stop % block == 0 or part.stop == whole)
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_transposing_keeps_every_bit(dtype):
    bits = np.random.default_rng(0).integers(0, 2**16, (37, 53 * 4), np.uint16)
    matrix = bits.view(dtype) if dtype != np.float64 else bits.view(np.float64)
    out = transpose(matrix)
    assert out.dtype == dtype
    assert np.ascontiguousarray(out).tobytes() == np.ascontiguousarray(matrix.T).tobytes()


def test_boxes_read_ahead_come_in_order():
    array = from_array(np.arange(100).reshape(20, 5))
    pieces = [piece for _, piece in read_ahead(array, split(array.shape, 8, None, 80))]
    assert len(pieces) == 10
    np.testing.assert_array_equal(np.concatenate(pieces), array.load())


def test_an_error_in_reading_ahead_reaches_the_reader():
    def read(box):
        raise ValueError("the file ends here")

    array = from_array(np.zeros((4, 4)))
    broken = type(array)(array.shape, array.dtype, read)
    with pytest.raises(ValueError, match="the file ends here"):
        list(read_ahead(broken, split((4, 4), 8)))
