"""Meta's checkpoints: made here out of transformers' random models, and through Meta's own class."""

import base64
import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.model.presets import PRESETS, RopeScaling, get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights import meta
from ellama_jax.weights.checkpoint import open_leaves
from ellama_jax.weights.importer import import_weights
from ellama_jax.weights.lazy import LazyArray
from ellama_jax.weights.tensors import TENSORS, open_tensors

# Hugging Face name -> Meta's name and the dim that its parallel layers divide, written out by hand.
TOP = {
    "model.embed_tokens": ("tok_embeddings", 0),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
}
LAYER = {
    "input_layernorm": ("attention_norm", None),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "post_attention_layernorm": ("ffn_norm", None),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
}
PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 512,
    "multiple_of": 64,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "use_scaled_rope": False,
}


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="torch writes and parses .pth files")


@pytest.fixture(scope="session")
def hf_tensors(torch):
    """The state of a random model of transformers, by its names."""
    transformers = pytest.importorskip("transformers", reason="the reference model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    state = transformers.LlamaForCausalLM(config).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def interleave(rows, num_heads):
    # The inverse of `permute` in transformers' convert_llama_weights_to_hf.py.
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)


def to_meta(tensors, params, shards, table_dim=0):
    """Divides Hugging Face tensors as Meta's parallel layers do: one dict of tensors a shard."""
    heads = {"wq": params["n_heads"], "wk": params["n_kv_heads"]}
    parts = [{} for _ in range(shards)]
    for name, tensor in tensors.items():
        stem, prefix = name.removesuffix(".weight"), ""
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            prefix = f"layers.{layer}."
        target, dim = (LAYER if prefix else TOP)[stem]
        dim = table_dim if target == "tok_embeddings" else dim
        kind = target.split(".")[-1]
        tensor = interleave(tensor, heads[kind]) if kind in heads else tensor
        if kind in ("wk", "wv") and shards > params["n_kv_heads"]:
            by_head = tensor.reshape(params["n_kv_heads"], -1, tensor.shape[1])
            tensor = by_head.repeat_interleave(shards // len(by_head), 0).reshape(-1, 64)
        for index, part in enumerate(parts):
            mine = tensor if dim is None else tensor.chunk(shards, dim)[index]
            part[f"{prefix}{target}.weight"] = mine.clone()
    return parts


@pytest.fixture
def write(torch, hf_tensors, tmp_path):
    """Returns a function that writes a checkpoint; `edit` may change its shards."""

    def write(shards=1, edit=None, dtype="float32", tied=False, table_dim=0, **params):
        params = {k: v for k, v in {**PARAMS, **params}.items() if v is not None}
        tensors = {name: t.to(getattr(torch, dtype)) for name, t in hf_tensors.items()}
        if tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        parts = to_meta(tensors, PARAMS, shards, table_dim)
        if edit is not None:
            edit(parts)
        for index, part in enumerate(parts):
            torch.save(part, tmp_path / f"consolidated.{index:02}.pth")
        (tmp_path / "params.json").write_text(json.dumps(params))
        (tmp_path / "tokenizer.model").write_bytes(b"")
        return tmp_path, tensors

    return write


def load(directory):
    config = meta.read_config(directory)
    return config, meta.open_tensors(directory, config)


def assert_same(torch, arrays, tensors):
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        values = arrays[name].load()
        assert (arrays[name].shape, arrays[name].dtype) == (values.shape, values.dtype)
        bits = torch.int32 if tensor.dtype == torch.float32 else torch.int16
        found = values.view(np.dtype(f"i{values.dtype.itemsize}"))
        np.testing.assert_array_equal(found, tensor.view(bits).numpy(), err_msg=name)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_bit_of_every_tensor_comes_back(torch, write, shards, dtype):
    directory, tensors = write(shards, dtype=dtype)
    config, arrays = load(directory)
    assert (config.num_kv_heads, config.tied_embeddings) == (2, False)
    expected = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    assert {array.dtype for array in arrays.values()} == {np.dtype(expected)}
    assert_same(torch, arrays, tensors)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("copy", [True, False])
def test_a_tied_head_is_found_and_left_out(torch, write, shards, copy):
    def drop(parts):
        for part in parts:
            part.pop("output.weight")

    directory, tensors = write(shards, edit=None if copy else drop, tied=True)
    config, arrays = load(directory)
    assert config.tied_embeddings
    tensors.pop("lm_head.weight")
    assert_same(torch, arrays, tensors)


@pytest.mark.parametrize("vocab_size", [512, -1, None])
@pytest.mark.parametrize("table_dim", [0, 1])
def test_the_table_is_joined_along_either_dim(torch, write, table_dim, vocab_size):
    # Llama 2 divides it by columns, and leaves the size of the vocabulary to the tokenizer.
    directory, tensors = write(4, table_dim=table_dim, vocab_size=vocab_size)
    config, arrays = load(directory)
    assert config.vocab_size == 512
    assert_same(torch, arrays, tensors)


def test_repeated_kv_heads_are_taken_once_where_params_count_each_copy(torch, write):
    directory, tensors = write(4, n_kv_heads=4)  # as 405B for 16 devices says 16
    config, arrays = load(directory)
    assert config.num_kv_heads == 2
    assert_same(torch, arrays, tensors)


def test_one_head_a_shard_is_no_repetition(write):
    directory, _ = write(2)
    assert meta.read_config(directory).num_kv_heads == 2


def test_any_box_is_that_part_of_the_whole(write):
    directory, _ = write(4)
    _, arrays = load(directory)
    rng = np.random.default_rng(0)
    for array in arrays.values():
        whole = array.load()
        for _ in range(20):
            ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in array.shape]
            box = tuple(slice(int(low), int(high)) for low, high in ends)
            np.testing.assert_array_equal(array.read(box), whole[box])


def test_only_the_shards_of_a_box_are_touched(write):
    directory, tensors = write(4)
    _, arrays = load(directory)
    for index in (0, 2, 3):
        (directory / f"consolidated.{index:02}.pth").unlink()
    queries = arrays["model.layers.1.self_attn.q_proj.weight"]  # rows 16 to 31 lie in shard 1
    expected = tensors["model.layers.1.self_attn.q_proj.weight"][18:30, 5:].numpy()
    np.testing.assert_array_equal(queries.read((slice(18, 30), slice(5, 64))), expected)
    down = arrays["model.layers.0.mlp.down_proj.weight"]  # columns 48 to 95
    expected = tensors["model.layers.0.mlp.down_proj.weight"][:, 50:90].numpy()
    np.testing.assert_array_equal(down.read((slice(0, 64), slice(50, 90))), expected)
    with pytest.raises(FileNotFoundError):
        queries.read((slice(14, 18), slice(0, 64)))


def test_the_buffer_of_rotations_is_dropped_and_the_unknown_keeps_its_name(torch, write):
    def add(parts):
        for part in parts:
            part["rope.freqs"] = torch.ones(8)
            part["layers.0.attention.wq.bias"] = torch.ones(16)
            part["layers.2.ffn_norm.weight"] = torch.ones(64)

    directory, tensors = write(2, edit=add)
    _, arrays = load(directory)
    assert arrays.keys() - tensors.keys() == {
        "layers.0.attention.wq.bias",
        "layers.2.ffn_norm.weight",
    }


def test_a_missing_tensor_is_missing_under_its_new_name(write):
    directory, tensors = write(edit=lambda parts: parts[0].pop("layers.1.attention.wk.weight"))
    _, arrays = load(directory)
    assert tensors.keys() - arrays.keys() == {"model.layers.1.self_attn.k_proj.weight"}


def test_scores_are_those_of_metas_rotation(write, torch):
    # Meta multiplies complex numbers made of neighbours (apply_rotary_emb in its model.py).
    import jax.numpy as jnp

    from ellama_jax.model.llama import apply_rope, rope_tables

    directory, _ = write()
    config, arrays = load(directory)
    x = np.random.default_rng(0).normal(size=(1, 7, 64)).astype(np.float32)
    positions = np.array([[0, 1, 2, 50, 51, 100, 999]], np.int32)
    theirs, ours = {}, {}
    frequencies = config.rope_theta ** -(np.arange(0, 16, 2) / 16)
    turns = np.exp(1j * positions[..., None, None] * frequencies)
    for kind, name in (("wq", "q_proj"), ("wk", "k_proj")):
        raw = torch.load(directory / "consolidated.00.pth")[f"layers.0.attention.{kind}.weight"]
        pairs = (x @ raw.numpy().T).reshape(1, 7, -1, 8, 2)
        theirs[kind] = (pairs[..., 0] + 1j * pairs[..., 1]) * turns
        weights = arrays[f"model.layers.0.self_attn.{name}.weight"].load()
        heads = jnp.asarray((x @ weights.T).reshape(1, 7, -1, 16))
        ours[kind] = np.asarray(apply_rope(heads, *rope_tables(config, jnp.asarray(positions))))
    expected = np.einsum("bthc,bshc->bths", theirs["wq"][:, :, :2], theirs["wk"].conj()).real
    scores = np.einsum("bthc,bshc->bths", ours["wq"][:, :, :2], ours["wk"])
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


# --- sizes ---------------------------------------------------------------------------------------


def test_sizes_are_those_of_params(write):
    directory, _ = write()
    expected = dataclasses.replace(
        get_preset("tiny"), name=directory.name, max_seq_len=8192, tied_embeddings=False,
        base_peak_learning_rate=None,
    )  # fmt: skip
    assert meta.read_config(directory) == expected


# What llama-models' sku_list.py says of each published model, and how many shards it has.
LLAMA = {"vocab_size": 128256, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}
PUBLISHED = [
    ("llama3.1-8b", 1, 4096, 32, 32, 8, 1.3, 1024),
    ("llama3.1-70b", 8, 8192, 80, 64, 8, 1.3, 4096),
    ("llama3.1-405b", 8, 16384, 126, 128, 8, 1.2, 4096),
    ("llama3.1-405b", 16, 16384, 126, 128, 16, 1.2, 4096),
    ("llama3.2-1b", 1, 2048, 16, 32, 8, 1.5, 256),
    ("llama3.2-3b", 1, 3072, 28, 24, 8, 1.0, 256),
]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p[0]}-{p[1]}")
def test_published_models_are_the_presets(tmp_path, monkeypatch, published):
    name, shards, *values = published
    keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim_multiplier", "multiple_of")
    (tmp_path / "params.json").write_text(json.dumps({**LLAMA, **dict(zip(keys, values))}))  # noqa: B905
    preset = PRESETS[name]
    for index in range(shards):
        (tmp_path / f"consolidated.{index:02}.pth").touch()

    def fill(shape, value):
        sizes = lambda box: [part.stop - part.start for part in box]  # noqa: E731
        return LazyArray(shape, np.dtype(np.float16), lambda box: np.full(sizes(box), value, "f2"))

    def open_torch_file(path):
        shard = int(path.suffixes[0].removeprefix("."))
        rows, width = 128256 // shards, preset.embed_dim
        # One KV head a shard in the last case: neighbours alike, other shards not.
        keys = fill((max(1, 8 // shards) * preset.head_dim, width), shard * 8 // shards)
        head = fill((rows, width), 0 if preset.tied_embeddings else 1)
        table = fill((rows, width), 0)
        return {
            "tok_embeddings.weight": table,
            "output.weight": head,
            "layers.0.attention.wk.weight": keys,
            "layers.0.feed_forward.w2.weight": fill((width, preset.mlp_dim // shards), 2),
        }

    monkeypatch.setattr(meta, "open_torch_file", open_torch_file)
    config = meta.read_config(tmp_path)
    assert config == dataclasses.replace(preset, name=tmp_path.name, base_peak_learning_rate=None)
    keys = meta.open_tensors(tmp_path, config)["model.layers.0.self_attn.k_proj.weight"]
    assert keys.shape == (8 * preset.head_dim, preset.embed_dim)
    assert keys.read((slice(1023 if shards == 16 else 0, 1024), slice(0, 9))).shape[1] == 9


@pytest.mark.parametrize(
    ("given", "tied", "factor"), [({}, False, 8), ({}, True, 32), ({"factor": 16}, True, 16)]
)
def test_the_scaling_is_8_or_32_for_a_tied_head_unless_given(write, given, tied, factor):
    given = {f"rope_scaling_{key}": value for key, value in given.items()}
    config = meta.read_config(write(tied=tied, use_scaled_rope=True, **given)[0])
    assert config.rope_scaling == RopeScaling(float(factor), 1.0, 4.0, 8192)
    assert config.max_seq_len == 131072


def test_params_of_llama_2_are_read(write):
    names = ("n_kv_heads", "rope_theta", "use_scaled_rope", "vocab_size")

    def widen(parts):  # as many KV heads as query heads
        for part in parts:
            for name in [n for n in part if n.endswith(("wk.weight", "wv.weight"))]:
                part[name] = part[name].repeat(2, 1)

    config = meta.read_config(write(2, edit=widen, **dict.fromkeys(names))[0])
    assert (config.num_kv_heads, config.rope_theta, config.max_seq_len) == (4, 10000.0, 4096)


def test_files_are_listed_in_the_order_of_shards(write):
    directory, _ = write(2)
    names = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
    assert [path.name for path in meta.find_files(directory)] == names
    assert meta.is_meta_directory(directory)
    assert not meta.is_meta_directory(directory.parent)


# --- what is refused -----------------------------------------------------------------------------


def refuse(directory, match):
    with pytest.raises(ValueError, match=match) as error:
        load(directory)
    message = str(error.value)
    assert message.startswith(str(directory)) and "\n" not in message


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"dim": None, "norm_eps": None}, "params.json: must give dim, norm_eps, got none"),
        ({"dim": "64"}, "params.json: dim must be a whole number above 0, got '64'"),
        ({"n_layers": True}, "n_layers must be a whole number above 0, got True"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0, got 0"),
        ({"use_scaled_rope": 1}, "use_scaled_rope must be true or false, got 1"),
        ({"n_heads": 5}, "dim must be a multiple of n_heads, got 64 and 5"),
        ({"n_kv_heads": 3}, "params.json: num_heads: must be a multiple of num_kv_heads"),
        ({"rope_scaling_factor": 8}, "rope_scaling_factor must go with use_scaled_rope, got it al"),
        ({"vision_chunk_size": 560}, "must describe a text model .* got vision_chunk_size=560"),
        ({"quantization_args": {"group_size": 32}}, "full precision .* got quantization_args="),
        ({"multiple_of": 100}, r"w1.weight: must make \[200, 64\] as params.json says, got 1 sha"),
    ],
)
def test_params_that_make_no_llama_are_named(write, params, match):
    refuse(write(**params)[0], match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "must be JSON, got"),
        ("[]", "must be a JSON object, got list"),
        (None, "must exist, got no such file"),
    ],
)
def test_broken_params_are_named(write, content, match):
    directory, _ = write()
    (directory / "params.json").unlink()
    if content is not None:
        (directory / "params.json").write_text(content)
    refuse(directory, f"params.json: {match}")


def test_a_gap_in_the_numbers_is_named(write):
    directory, _ = write(4)
    (directory / "consolidated.01.pth").unlink()
    refuse(directory, "must hold every shard, got none of consolidated.01.pth; fetch")


def test_a_missing_last_shard_shows_in_the_shapes(write):
    directory, _ = write(4)
    (directory / "consolidated.03.pth").unlink()
    refuse(directory, r"must make \[512, 64\] as params.json says, got 3 shards of \[128, 64\]; is")


def test_a_directory_without_shards_is_named(write):
    directory, _ = write()
    (directory / "consolidated.00.pth").unlink()
    refuse(directory, "must hold consolidated.00.pth and so on, got none")


def test_a_broken_shard_is_named(write):
    directory, _ = write(2)
    path = directory / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(directory, "consolidated.01.pth: must be a whole file of torch.save")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda p: p[1].pop("norm.weight"), "01.pth: must hold .* got norm.weight only in consol"),
        (lambda p: p[1].update(x=p[1]["norm.weight"]), "01.pth: must hold .* got x only here"),
        (
            lambda p: p[1].update({"output.weight": p[1]["output.weight"][1:]}),
            r"output.weight: must make \[512, 64\] .* 2 shards of \[255, 64\] and \[256, 64\]",
        ),
        (
            lambda p: p[1].update({"norm.weight": p[1]["norm.weight"].half()}),
            "norm.weight: must have one dtype in all shards, got float16, float32",
        ),
        (
            lambda p: p[0].update({"norm.weight": p[0]["norm.weight"][:32]}),
            r"norm.weight: must make \[64\] .* got 2 shards of \[32\] and \[64\]",
        ),
    ],
)
def test_shards_that_disagree_are_named(write, edit, match):
    refuse(write(2, edit=edit)[0], match)


def test_only_kv_heads_may_be_repeated(write):
    def repeat(parts):
        for index in (1, 3):
            parts[index]["output.weight"] = parts[index - 1]["output.weight"].repeat(2, 1)
            parts[index - 1]["output.weight"] = parts[index]["output.weight"]

    refuse(write(4, edit=repeat)[0], r"output.weight: must make .* got 4 shards of \[256, 64\]")


@pytest.mark.parametrize(
    ("part", "hf"), [("attention_norm", "input_layernorm"), ("attention.wv", "self_attn.v_proj")]
)
def test_copies_that_differ_are_named_when_read(write, part, hf):
    def change(parts):
        parts[3][f"layers.1.{part}.weight"].view(-1)[-1] += 1e-6

    _, arrays = load(write(4, edit=change)[0])
    arrays[f"model.layers.0.{hf}.weight"].load()
    with pytest.raises(
        ValueError, match=f".*: layers.1.{part}.weight: must be the same in all shards"
    ):
        arrays[f"model.layers.1.{hf}.weight"].load()


# --- Meta's own implementation -------------------------------------------------------------------


@pytest.fixture
def meta_model(torch, tmp_path):
    """Meta's Transformer in one process, with a checkpoint of its own random weights."""
    reason = "the packages llama-models and fairscale with Meta's own model are not installed"
    pytest.importorskip("llama_models", reason=reason)
    parallel = pytest.importorskip("fairscale.nn.model_parallel.initialize", reason=reason)
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    parallel.initialize_model_parallel(1)
    params = {**PARAMS, "ffn_dim_multiplier": 1.3, "rope_theta": 5e5, "use_scaled_rope": True}
    torch.manual_seed(0)
    model = Transformer(ModelArgs(max_seq_len=8448, max_batch_size=1, **params))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.3)
    torch.save(model.state_dict(), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(params))
    yield model, tmp_path
    parallel.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def to_params(config, arrays):
    """Our parameters, by the table of names."""
    from ellama_jax.core.tree import flatten_paths, unflatten_paths
    from ellama_jax.model.llama import abstract_params

    flat = {}
    for path, leaf in flatten_paths(abstract_params(config)).items():
        name, inputs = TENSORS[path]
        layers = range(config.num_layers if path.startswith("layers/") else 1)
        tensors = [arrays[name.format(layer)].load() for layer in layers]
        flat[path] = np.stack([t.T if inputs else t for t in tensors]).reshape(leaf.shape)
    return unflatten_paths(flat)


@pytest.mark.slow
def test_logits_are_those_of_metas_model_also_beyond_8192(torch, meta_model):
    import jax.numpy as jnp

    from ellama_jax.model.llama import hidden_states, project_logits

    model, directory = meta_model
    tokens = np.random.default_rng(0).integers(0, 512, (1, 8300)).astype(np.int32)
    chunks = [torch.from_numpy(tokens[:, i : i + 512]).long() for i in range(0, 8300, 512)]
    expected = [model(chunk, 512 * index).numpy() for index, chunk in enumerate(chunks)]
    expected = np.concatenate(expected, axis=1)
    config, arrays = load(directory)
    params = to_params(config, arrays)
    positions = np.arange(8300, dtype=np.int32)[None]
    hidden = hidden_states(params, config, jnp.asarray(tokens), positions, jnp.ones_like(tokens))
    logits = np.asarray(project_logits(params, config, hidden))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


# --- the whole import ----------------------------------------------------------------------------


def write_ranks(path):
    """The 256 bytes as tokens; with the special tokens, 512 ids as the model has."""
    lines = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    path.write_bytes(b"\n".join(lines))


def test_a_meta_directory_becomes_a_checkpoint_with_its_tokenizer(torch, write, tmp_path_factory):
    src, tensors = write(2, dtype="bfloat16")
    write_ranks(src / "tokenizer.model")
    dst = tmp_path_factory.mktemp("imported") / "base"
    info = import_weights(src, dst)
    exported = open_tensors(info.config, open_leaves(dst))
    assert_same(torch, exported, tensors)
    tokenizer = load_tokenizer(info.tokenizer_dir)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (256, 257, 512)
    assert tokenizer.decode(tokenizer.encode("Größe 42 <|eot_id|>")) == "Größe 42 <|eot_id|>"
    made = info.meta["provenance"]
    names = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
    assert made["format"] == "meta" and [source["name"] for source in made["sources"]] == names


@pytest.mark.parametrize("spoil", ["tokenizer.model", "consolidated.01.pth"])
def test_an_incomplete_meta_directory_leaves_nothing(write, tmp_path_factory, spoil):
    src, _ = write(2)
    write_ranks(src / "tokenizer.model")
    (src / spoil).unlink()
    dst = tmp_path_factory.mktemp("imported") / "base"
    with pytest.raises(ValueError, match=str(src)):
        import_weights(src, dst)
    assert list(dst.parent.iterdir()) == []
