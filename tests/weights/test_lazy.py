"""Boxes cover an array once, within bounds; transposition is exact."""

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.weights.lazy import LazyArray, from_array, read_ahead, split, transpose


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


def test_boxes_read_ahead_come_in_order(monkeypatch):
    monkeypatch.setattr("ellama_jax.weights.lazy.PIECE_BYTES", 80)
    arrays = {
        "a": np.arange(100).reshape(20, 5),
        "b": np.arange(3),
        "c": np.arange(30).reshape(6, 5),
    }
    seen = {name: np.full_like(array, -1) for name, array in arrays.items()}
    lazy = {name: from_array(array) for name, array in arrays.items()}
    order = []
    for name, box, piece in read_ahead(lazy):
        seen[name][box] = piece
        order.append(name)
    assert order == ["a"] * 10 + ["b"] + ["c"] * 3
    for name, array in arrays.items():
        np.testing.assert_array_equal(seen[name], array)


def test_an_error_in_reading_ahead_reaches_the_reader():
    def read(box):
        raise ValueError("the file ends here")

    broken = LazyArray((4, 4), np.dtype(np.float64), read)
    with pytest.raises(ValueError, match="the file ends here"):
        list(read_ahead({"a": broken}))
