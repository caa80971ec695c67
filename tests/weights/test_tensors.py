"""The table between Hugging Face's tensors and our leaves, whole and box by box."""

import numpy as np
import pytest

from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.weights.lazy import LazyArray, from_array, split
from ellama_jax.weights.tensors import (
    TENSORS,
    assemble_leaves,
    extract_tensor,
    open_tensors,
    read_layer,
)


def test_every_parameter_has_a_row(untied):
    assert TENSORS.keys() == flatten_paths(abstract_params(untied)).keys()


def test_head_dims_are_placed_by_hand():
    # One head pair by hand: q_proj row n*H + h holds what head n, dim h reads from the input.
    tensor = from_array(np.arange(2 * 2 * 3, dtype=np.int32).reshape(4, 3))  # [N*H, D]
    box = (slice(0, 3), slice(0, 2), slice(0, 2))
    out = read_layer("layers/attn/wq", tensor, (3, 2, 2), box)  # [D, N, H]
    assert out[:, 0, 1].tolist() == [3, 4, 5] and out[:, 1, 0].tolist() == [6, 7, 8]
    tensor = from_array(np.arange(3 * 4, dtype=np.int32).reshape(3, 4))  # o_proj [D, N*H]
    box = (slice(0, 2), slice(0, 2), slice(0, 3))
    out = read_layer("layers/attn/wo", tensor, (2, 2, 3), box)  # [N, H, D]
    assert out[1, 0].tolist() == [2, 6, 10]


@pytest.fixture
def leaves(untied, draw_params):
    return {path: from_array(leaf) for path, leaf in flatten_paths(draw_params(untied)).items()}


def test_tensors_of_leaves_make_the_same_leaves(untied, leaves):
    back = assemble_leaves("made", untied, open_tensors(untied, leaves))
    assert back.keys() == leaves.keys()
    for path, leaf in leaves.items():
        assert (back[path].shape, back[path].dtype) == (leaf.shape, leaf.dtype)
        np.testing.assert_array_equal(back[path].load(), leaf.load(), err_msg=path)


def random_box(rng, shape):
    starts = [int(rng.integers(0, size)) for size in shape]
    return tuple(
        slice(start, int(rng.integers(start + 1, size + 1)))
        for start, size in zip(starts, shape, strict=True)
    )


@pytest.mark.parametrize("path", sorted(TENSORS))
def test_any_box_is_that_part_of_the_whole(path, untied, leaves):
    """Both ways, heads cut in their middle too."""
    rng = np.random.default_rng(0)
    tensors = open_tensors(untied, leaves)
    leaf, whole = assemble_leaves("made", untied, tensors)[path], leaves[path].load()
    for _ in range(40):
        box = random_box(rng, leaf.shape)
        np.testing.assert_array_equal(leaf.read(box), whole[box], err_msg=str(box))
    name = TENSORS[path][0].format(1)
    tensor = tensors[name]
    expected = extract_tensor(path, whole[1] if path.startswith("layers/") else whole)
    for _ in range(40):
        box = random_box(rng, tensor.shape)
        np.testing.assert_array_equal(tensor.read(box), expected[box], err_msg=str(box))


def counting(array, reads):
    """A lazy array that notes how many elements are read of it."""
    return LazyArray(
        array.shape, array.dtype, lambda box: reads.append(array[box].size) or array[box]
    )


def test_importing_in_pieces_reads_every_element_once(untied, leaves):
    arrays = {name: tensor.load() for name, tensor in open_tensors(untied, leaves).items()}
    reads = []
    made = assemble_leaves("made", untied, {n: counting(a, reads) for n, a in arrays.items()})
    for leaf in made.values():
        # A grid as the checkpoint's: one layer, whole heads.
        grid = (1, 16, *leaf.shape[2:]) if len(leaf.shape) > 2 else leaf.shape
        for box in split(leaf.shape, 4, grid, piece_bytes=4096):
            leaf.read(box)
    assert sum(reads) == sum(array.size for array in arrays.values())


def test_a_host_reads_its_part_only(untied, leaves):
    """One of four parts along embed and two along heads: an eighth of wq is read, not more."""
    arrays = {name: tensor.load() for name, tensor in open_tensors(untied, leaves).items()}
    reads = []
    made = assemble_leaves("made", untied, {n: counting(a, reads) for n, a in arrays.items()})
    leaf = made["layers/attn/wq"]
    leaf.read((slice(0, 2), slice(16, 32), slice(2, 4), slice(0, 16)))
    assert sum(reads) == leaf.size // 8
