"""Weights and sizes of Hugging Face directories, against what transformers itself holds."""

import json

import ml_dtypes
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.core.tree import flatten_paths
from ellama_jax.model.presets import RopeScaling
from ellama_jax.weights.huggingface import load_params, open_safetensors, read_config
from ellama_jax.weights.tensors import extract_tensor, tensor_names

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def write_config(directory, **changes):
    raw = {key: value for key, value in {**CONFIG, **changes}.items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


# --- config.json ---------------------------------------------------------------------------------


def test_sizes_and_constants_are_read(tmp_path):
    config = read_config(write_config(tmp_path, head_dim=32, rope_theta=5e5))
    assert (config.vocab_size, config.embed_dim, config.mlp_dim) == (512, 64, 192)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.head_dim, config.max_seq_len, config.rope_theta) == (32, 1024, 500000.0)
    assert (config.norm_eps, config.tied_embeddings, config.rope_scaling) == (1e-5, True, None)


def test_absent_keys_have_the_defaults_of_transformers(tmp_path):
    absent = ("num_key_value_heads", "tie_word_embeddings", "rms_norm_eps")
    config = read_config(write_config(tmp_path, **dict.fromkeys(absent, "absent")))
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert (config.rope_theta, config.norm_eps, config.tied_embeddings) == (1e4, 1e-6, False)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
    ],
    ids=["transformers 4", "transformers 5", "older key"],
)
def test_llama3_scaling_is_read_in_both_spellings(tmp_path, rope):
    config = read_config(write_config(tmp_path, **rope))
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architectures must be LlamaForCausalLM, got"),
        ({"attention_bias": True}, "attention_bias must be False for this model, got True"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu for this model, got gelu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "must be default or llama3, got lin"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "must be default or llama3, got yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "must give low_freq_factor, hi"),
        ({"hidden_size": "absent"}, "must give hidden_size as whole numbers"),
        ({"num_key_value_heads": 3}, "num_heads: must be a multiple of num_kv_heads"),
    ],
)
def test_what_the_model_has_not_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(write_config(tmp_path, **changes))


@pytest.mark.parametrize(("text", "message"), [("{", "must be JSON"), ("[]", "must be a JSON obj")])
def test_a_broken_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        read_config(tmp_path)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json: must exist, got no such file"):
        read_config(tmp_path)


def export_tensors(config, params):
    leaves = flatten_paths(params)
    tensors = {}
    for path, names in tensor_names(config).items():
        layers = leaves[path] if path.startswith("layers/") else leaves[path][None]
        pairs = zip(names, layers, strict=True)
        tensors.update({n: np.ascontiguousarray(extract_tensor(path, x)) for n, x in pairs})
    return tensors


def write_weights(directory, tensors):
    from safetensors.numpy import save_file

    save_file(tensors, directory / "model.safetensors")
    return directory


# --- loading -------------------------------------------------------------------------------------


def make_llama(torch, **changes):
    import transformers

    torch.manual_seed(0)
    raw = {key: value for key, value in CONFIG.items() if key != "architectures"}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**raw, **changes}))


def to_numpy(torch, tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"], ids=["one file", "sharded"])
def test_params_are_those_of_the_saved_model(tmp_path, tied, dtype, shard_size):
    torch = pytest.importorskip("torch", reason="the reference is transformers on torch")
    model = make_llama(torch, tie_word_embeddings=tied).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "100KB")
    config = read_config(tmp_path)
    assert config.tied_embeddings == tied
    params = flatten_paths(load_params(tmp_path, config))
    state = {name: to_numpy(torch, tensor) for name, tensor in model.state_dict().items()}

    # Written out by hand, not by the table under test.
    def layer(name):
        return np.stack([state[f"model.layers.{i}.{name}.weight"] for i in range(2)])

    by_hand = {
        "embed/table": state["model.embed_tokens.weight"],
        "final_norm/scale": state["model.norm.weight"],
        "layers/attn_norm/scale": layer("input_layernorm"),
        "layers/mlp_norm/scale": layer("post_attention_layernorm"),
        "layers/attn/wq": np.einsum("lnhd->ldnh", layer("self_attn.q_proj").reshape(2, 4, 16, 64)),
        "layers/attn/wk": np.einsum("lnhd->ldnh", layer("self_attn.k_proj").reshape(2, 2, 16, 64)),
        "layers/attn/wv": np.einsum("lnhd->ldnh", layer("self_attn.v_proj").reshape(2, 2, 16, 64)),
        "layers/attn/wo": np.einsum("ldnh->lnhd", layer("self_attn.o_proj").reshape(2, 64, 4, 16)),
        "layers/mlp/w_gate": np.einsum("lfd->ldf", layer("mlp.gate_proj")),
        "layers/mlp/w_up": np.einsum("lfd->ldf", layer("mlp.up_proj")),
        "layers/mlp/w_down": np.einsum("ldf->lfd", layer("mlp.down_proj")),
    }
    if not tied:
        by_hand["lm_head/kernel"] = state["lm_head.weight"].T
    assert params.keys() == by_hand.keys()
    for path, expected in by_hand.items():
        assert params[path].dtype == expected.dtype, path
        np.testing.assert_array_equal(params[path], expected, err_msg=path)


def test_the_config_that_transformers_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is transformers on torch")
    scaling = {"rope_theta": 500000.0, **LLAMA3}
    make_llama(torch, rope_parameters=scaling, head_dim=32).config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **{"architectures": None}}))
    config = read_config(tmp_path)
    assert (config.rope_theta, config.head_dim) == (500000.0, 32)
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.fixture
def tensors(tiny, draw_params):
    return export_tensors(tiny, draw_params(tiny))


def test_a_copy_of_the_embedding_may_stand_as_tied_head(tmp_path, tiny, tensors, draw_params):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    params = load_params(write_weights(tmp_path, tensors), tiny)
    assert "lm_head" not in params
    np.testing.assert_array_equal(params["embed"]["table"], draw_params(tiny)["embed"]["table"])


def test_another_head_in_a_tied_model_is_refused(tmp_path, tiny, tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    with pytest.raises(ValueError, match="lm_head.weight: must equal model.embed_tokens.weight"):
        load_params(write_weights(tmp_path, tensors), tiny)


def test_missing_tensors_are_listed(tmp_path, tiny, tensors):
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        del tensors[name]
    message = "2 tensors are missing: model.layers.1.mlp.up_proj.weight, model.norm.weight; is the"
    with pytest.raises(ValueError, match=message):
        load_params(write_weights(tmp_path, tensors), tiny)


def test_tensors_without_a_place_are_listed(tmp_path, tiny, tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    with pytest.raises(ValueError, match=r"1 tensors have no place .* model.layers.0.self_attn.q"):
        load_params(write_weights(tmp_path, tensors), tiny)


def test_frequencies_of_old_conversions_are_passed_over(tmp_path, tiny, tensors):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    assert "embed" in load_params(write_weights(tmp_path, tensors), tiny)


def test_a_tensor_of_another_shape_is_named(tmp_path, tiny, tensors):
    tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((64, 64), np.float32)
    with pytest.raises(ValueError, match=r"1.self_attn.k_proj.weight must be \[32, 64\] .* \[64"):
        load_params(write_weights(tmp_path, tensors), tiny)


def test_a_transposed_tensor_is_named(tmp_path, tiny, tensors):
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    with pytest.raises(ValueError, match=r"down_proj.weight must be \[64, 192\] .* got \[192"):
        load_params(write_weights(tmp_path, tensors), tiny)


def test_layers_of_two_dtypes_are_named(tmp_path, tiny, tensors):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    with pytest.raises(ValueError, match=f"{name} must have the dtype of its other layers, flo"):
        load_params(write_weights(tmp_path, tensors), tiny)


def test_quantised_weights_are_refused(tmp_path, tiny, tensors):
    tensors["model.norm.weight"] = np.zeros(64, np.int8)
    with pytest.raises(ValueError, match="model.norm.weight must be one of F32, F16, BF16, got I8"):
        load_params(write_weights(tmp_path, tensors), tiny)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 200, -1000], ids=["empty", "length", "header", "data"])
def test_a_truncated_file_is_named(tmp_path, tiny, tensors, keep):
    path = write_weights(tmp_path, tensors) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors: must be a whole safetensors file"):
        load_params(tmp_path, tiny)


def write_index(directory, tensors):
    """Writes two shards and their index; returns the index."""
    from safetensors.numpy import save_file

    half = len(tensors) // 2
    items = sorted(tensors.items())
    weight_map = {}
    for file, part in (("a.safetensors", items[:half]), ("b.safetensors", items[half:])):
        save_file(dict(part), directory / file)
        weight_map.update({name: file for name, _ in part})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_a_missing_shard_is_named(tmp_path, tiny, tensors):
    write_index(tmp_path, tensors)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match="must hold b.safetensors of model.safetensors.index.json"):
        load_params(tmp_path, tiny)


def test_a_tensor_that_only_the_index_has_is_named(tmp_path, tiny, tensors):
    index = write_index(tmp_path, tensors)
    index["weight_map"]["model.extra.weight"] = "a.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a.safetensors: must hold model.extra.weight as"):
        load_params(tmp_path, tiny)


def test_a_tensor_in_two_shards_is_named(tmp_path, tiny, tensors):
    write_index(tmp_path, tensors)
    from safetensors.numpy import load_file, save_file

    second = load_file(tmp_path / "b.safetensors")
    twice = sorted(load_file(tmp_path / "a.safetensors"))[0]
    save_file({**second, twice: np.zeros(1, np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=f"must not repeat tensors of other files, got {twice}"):
        load_params(tmp_path, tiny)


def test_pickled_weights_are_refused_with_advice(tmp_path, tiny):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="got neither; save pytorch_model.bin as safetensors"):
        load_params(tmp_path, tiny)


@pytest.mark.parametrize("surplus", [b"\0", b"\0" * 4096])
def test_a_padded_file_is_named(tmp_path, tiny, tensors, surplus):
    path = write_weights(tmp_path, tensors) / "model.safetensors"
    path.write_bytes(path.read_bytes() + surplus)
    with pytest.raises(ValueError, match="model.safetensors: must be a whole safetensors file"):
        load_params(tmp_path, tiny)


def test_nothing_is_read_while_listing(tmp_path, tensors):
    found = open_safetensors(write_weights(tmp_path, tensors))
    tensor = found["model.layers.0.self_attn.k_proj.weight"]
    assert (tensor.shape, tensor.dtype) == ((32, 64), np.float32)
    expected = tensors["model.layers.0.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(tensor.load(), expected)
    part = (slice(3, 20), slice(7, 8))
    np.testing.assert_array_equal(tensor.read(part), expected[part])


def test_weights_are_read_onto_a_mesh(tmp_path, untied, draw_params):
    params = draw_params(untied, dtype=ml_dtypes.bfloat16)
    write_weights(tmp_path, export_tensors(untied, params))
    mesh = make_mesh({"data": 2, "fsdp": 2, "context": 1, "tensor": 2})
    restored = flatten_paths(load_params(tmp_path, untied, mesh))
    assert restored["layers/mlp/w_up"].sharding.shard_shape((2, 64, 192)) == (2, 32, 96)
    for path, leaf in flatten_paths(params).items():
        assert restored[path].dtype == leaf.dtype
        np.testing.assert_array_equal(restored[path], leaf, err_msg=path)
