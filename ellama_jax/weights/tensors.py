"""Hugging Face's names and layouts of tensors, and ours: the table that relates them, both ways.

Owns what every foreign format is mapped onto. It opens no file; huggingface.py, gguf.py and meta.py
do, export.py writes them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.weights.lazy import Box, LazyArray, transpose, whole

# path -> (name at Hugging Face, number of leading dims of our leaf that are inputs).
# torch keeps a linear layer as [outputs, inputs] with heads flattened into one dim; ours is
# [*inputs, *outputs]. So one number says it all: 0 is taken as it is, else it is a transposition.
TENSORS = {
    "embed/table": ("model.embed_tokens.weight", 0),
    "layers/attn_norm/scale": ("model.layers.{}.input_layernorm.weight", 0),
    "layers/attn/wq": ("model.layers.{}.self_attn.q_proj.weight", 1),
    "layers/attn/wk": ("model.layers.{}.self_attn.k_proj.weight", 1),
    "layers/attn/wv": ("model.layers.{}.self_attn.v_proj.weight", 1),
    "layers/attn/wo": ("model.layers.{}.self_attn.o_proj.weight", 2),
    "layers/mlp_norm/scale": ("model.layers.{}.post_attention_layernorm.weight", 0),
    "layers/mlp/w_gate": ("model.layers.{}.mlp.gate_proj.weight", 1),
    "layers/mlp/w_up": ("model.layers.{}.mlp.up_proj.weight", 1),
    "layers/mlp/w_down": ("model.layers.{}.mlp.down_proj.weight", 1),
    "final_norm/scale": ("model.norm.weight", 0),
    "lm_head/kernel": ("lm_head.weight", 1),
}


def tensor_names(config: LlamaConfig) -> dict[str, list[str]]:
    """Returns the names of the tensors that make each parameter, in the order of layers.

    >>> from ellama_jax.model.presets import get_preset
    >>> tensor_names(get_preset("tiny"))["layers/attn/wq"]
    ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight']
    """
    names = {}
    for path in flatten_paths(abstract_params(config)):
        template = TENSORS[path][0]
        count = config.num_layers if path.startswith("layers/") else 1
        names[path] = [template.format(layer) for layer in range(count)]
    return names


def read_layer(path: str, tensor: LazyArray, shape: Sequence[int], box: Box) -> np.ndarray:
    """Reads a box of one layer of a leaf of ours out of its Hugging Face tensor.

    Args:
        path: of the leaf, which says the layout.
        tensor: [outputs, inputs], or as it is for norms and the embedding table.
        shape: of our layer ([D, N, H] for wq).
        box: what to read of it.
    """
    inputs = TENSORS[path][1]
    if inputs == 0:
        return tensor.read(box)
    rows, columns = _flat(box[inputs:], shape[inputs:]), _flat(box[:inputs], shape[:inputs])
    piece = transpose(tensor.read((rows, columns)))
    # Rows and columns cover whole heads; what the box leaves out of them falls away here.
    sizes = [box[0].stop - box[0].start, *shape[1:inputs]]
    sizes += [box[inputs].stop - box[inputs].start, *shape[inputs + 1 :]]
    kept = [p if i not in (0, inputs) else slice(None) for i, p in enumerate(box)]
    return piece.reshape(sizes)[tuple(kept)]


def open_tensors(config: LlamaConfig, leaves: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """Returns the Hugging Face tensors of leaves of ours; the inverse of `assemble_leaves`.

    Args:
        config: the model.
        leaves: path -> leaf.

    Returns:
        name -> tensor, layer by layer, as the model's own checkpoints are ordered.
    """
    names = tensor_names(config)
    outside = {p: _foreign_tensor(p, leaves[p], None) for p in names if not p.startswith("layers/")}
    tensors = {names["embed/table"][0]: outside.pop("embed/table")}
    for layer in range(config.num_layers):
        for path in TENSORS:
            if path.startswith("layers/"):
                tensors[names[path][layer]] = _foreign_tensor(path, leaves[path], layer)
    return tensors | {names[path][0]: tensor for path, tensor in outside.items()}


def _foreign_tensor(path: str, leaf: LazyArray, layer: int | None) -> LazyArray:
    skip = 0 if layer is None else 1
    shape, inputs = leaf.shape[skip:], TENSORS[path][1]
    grid = (leaf.grid or (1,) * len(leaf.shape))[skip:]

    def read(box: Box) -> np.ndarray:
        ours = (
            box
            if inputs == 0
            else (*_cover(box[1], shape[:inputs]), *_cover(box[0], shape[inputs:]))
        )
        if layer is None:
            piece = extract_tensor(path, leaf.read(ours))
        else:
            piece = extract_tensor(path, leaf.read((slice(layer, layer + 1), *ours))[0])
        if inputs == 0:
            return piece
        first = (
            _flat(ours[inputs:], shape[inputs:]).start,
            _flat(ours[:inputs], shape[:inputs]).start,
        )
        return piece[tuple(slice(p.start - f, p.stop - f) for p, f in zip(box, first, strict=True))]

    if inputs:
        rows, columns = math.prod(shape[inputs + 1 :]), math.prod(shape[1:inputs])
        grid = (grid[inputs] * rows, grid[0] * columns)
    return LazyArray(foreign_shape(path, shape), leaf.dtype, read, grid)


def _cover(flat: slice, shape: Sequence[int]) -> Box:
    """Returns the smallest box of whole inner dims that covers a range of the flattened ones."""
    inner = math.prod(shape[1:])
    first = slice(flat.start // inner, -(-flat.stop // inner))
    return (first, *whole(shape[1:]))


def _flat(box: Box, shape: Sequence[int]) -> slice:
    """Returns the range, in the dims flattened to one, that covers a box."""
    inner = math.prod(shape[1:])
    return slice(box[0].start * inner, box[0].stop * inner)


def extract_tensor(path: str, layer: np.ndarray) -> np.ndarray:
    """Returns one layer of our leaf, or whole output columns of it, in Hugging Face's layout.

    >>> extract_tensor("layers/attn/wo", np.zeros((4, 16, 64), np.float32)).shape  # [N, H, D]
    (64, 64)
    """
    inputs = TENSORS[path][1]
    if inputs == 0:
        return layer
    return transpose(layer.reshape(*foreign_shape(path, layer.shape)[::-1]))


def foreign_shape(path: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Returns the shape that one layer of `shape` has at Hugging Face.

    >>> foreign_shape("layers/attn/wk", (64, 2, 16))
    (32, 64)
    """
    shape, inputs = tuple(shape), TENSORS[path][1]
    if inputs == 0:
        return shape
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def assemble_leaves(
    title: str, config: LlamaConfig, tensors: Mapping[str, LazyArray]
) -> dict[str, LazyArray]:
    """Makes every leaf of its tensors, each tensor used once and each leaf filled once.

    Args:
        title: what is read, for messages.
        config: the model.
        tensors: under their Hugging Face names, in Hugging Face's layout.

    Returns:
        path -> leaf in the dtype of its tensors.

    Raises:
        ValueError: if tensors are missing, left over, or of another shape or dtype than expected.
    """
    names = tensor_names(config)
    shapes = {path: leaf.shape for path, leaf in flatten_paths(abstract_params(config)).items()}
    _check_tensors(title, names, shapes, tensors)
    return {
        path: _make_leaf(path, shapes[path], [tensors[name] for name in names[path]])
        for path in names
    }


def _make_leaf(path: str, shape: tuple[int, ...], tensors: list[LazyArray]) -> LazyArray:
    if not path.startswith("layers/"):
        return LazyArray(
            shape, tensors[0].dtype, lambda box: read_layer(path, tensors[0], shape, box)
        )

    def read(box: Box) -> np.ndarray:
        layers = range(box[0].start, box[0].stop)
        parts = [read_layer(path, tensors[layer], shape[1:], box[1:]) for layer in layers]
        return parts[0][None] if len(parts) == 1 else np.stack(parts)

    return LazyArray(shape, tensors[0].dtype, read)


def _check_tensors(title, names, shapes, tensors) -> None:
    wanted = {name: path for path, parts in names.items() for name in parts}
    # Old conversions carry RoPE's frequencies as a buffer; they follow from the config.
    unused = {n for n in tensors.keys() - wanted.keys() if not n.endswith("rotary_emb.inv_freq")}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(
            f"{title}: {len(missing)} tensors are missing: {some_of(missing)}; "
            f"is the directory complete?"
        )
    if unused:
        raise ValueError(
            f"{title}: {len(unused)} tensors have no place in this model: {some_of(sorted(unused))}."
        )
    for name, path in wanted.items():
        layer_shape = shapes[path][1:] if path.startswith("layers/") else shapes[path]
        expected = foreign_shape(path, layer_shape)
        if tensors[name].shape != expected:
            raise ValueError(
                f"{title}: {name} must be {list(expected)} as the config says, "
                f"got {list(tensors[name].shape)}."
            )
        if tensors[name].dtype != tensors[names[path][0]].dtype:
            raise ValueError(
                f"{title}: {name} must have the dtype of its other layers, "
                f"{tensors[names[path][0]].dtype}, got {tensors[name].dtype}."
            )


def some_of(names: list[str]) -> str:
    """Names at most six of many, for messages."""
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
