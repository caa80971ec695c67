"""The source's side: the rows that are asked, and transformers and Meta's code as they compute."""

import copy
import json
import shutil

import numpy as np
import pytest

from ellama_jax.weights import reference
from ellama_jax.weights.verify import read_reference, write_reference

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="transformers is the reference")

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, attn_implementation="eager")
    ).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.15 * torch.randn(weight.shape)
    return made


@pytest.fixture(scope="module")
def huggingface_dir(model, tokenizer_dir, tmp_path_factory):
    dst = tmp_path_factory.mktemp("hf") / "tiny"
    model.save_pretrained(dst)
    shutil.copytree(tokenizer_dir, dst, dirs_exist_ok=True)
    return dst


def to_meta_order(weight):
    """[outputs, inputs] with pairs H / 2 apart -> side by side, as Meta's files have them."""
    halves = weight.reshape(-1, 2, SIZES["head_dim"] // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_meta_dir(dst, model, tokenizer_dir, shards=2, order=to_meta_order):
    """Writes the model as Meta would: its names, its order of rows, divided over shards."""
    dst.mkdir()
    theirs = {
        "self_attn.q_proj": ("attention.wq", 0), "self_attn.k_proj": ("attention.wk", 0),
        "self_attn.v_proj": ("attention.wv", 0), "self_attn.o_proj": ("attention.wo", 1),
        "mlp.gate_proj": ("feed_forward.w1", 0), "mlp.down_proj": ("feed_forward.w2", 1),
        "mlp.up_proj": ("feed_forward.w3", 0), "input_layernorm": ("attention_norm", None),
        "post_attention_layernorm": ("ffn_norm", None),
    }  # fmt: skip
    state = model.state_dict()
    tensors = {
        "tok_embeddings.weight": (state["model.embed_tokens.weight"], 0),
        "norm.weight": (state["model.norm.weight"], None),
        "output.weight": (state["lm_head.weight"], 0),
    }
    for layer in range(SIZES["num_hidden_layers"]):
        for name, (meta_name, dim) in theirs.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            weight = order(weight) if name[10:16] in ("q_proj", "k_proj") else weight
            tensors[f"layers.{layer}.{meta_name}.weight"] = (weight, dim)
    for shard in range(shards):
        part = {
            name: (weight if dim is None else weight.chunk(shards, dim)[shard]).clone()
            for name, (weight, dim) in tensors.items()
        }
        torch.save(part, dst / f"consolidated.{shard:02}.pth")
    params = {
        "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320,
        "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True,
    }  # fmt: skip
    (dst / "params.json").write_text(json.dumps(params))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (dst / name).write_bytes((tokenizer_dir / name).read_bytes())
    return dst


def stored(src, dst, top_k=None):
    reference.write_reference(src, dst, top_k)
    return read_reference(dst)


# --- the rows ------------------------------------------------------------------------------------


IDS = {language: list(range(100)) for language in reference.TEXTS}


def test_rows_reach_beyond_8192_and_to_the_end_of_a_context_of_128k():
    rows = {row["name"]: row for row in reference.make_rows(IDS, 7, 131072)}
    assert list(rows) == [
        "en", "de", "fr", "it", "es", "en, without BOS", "9000 to 9063", "0, 4000 and 9042 on",
        "131008 to 131071", "0, 65536 and 131050 on",
    ]  # fmt: skip
    assert [name for name, row in rows.items() if row["tokens"][0] != 7] == ["en, without BOS"]
    jumping = rows["0, 4000 and 9042 on"]["positions"]
    assert jumping[:2] == [0, 1] and jumping[21:23] == [4000, 4001] and jumping[-1] == 9063
    assert all(len(row["tokens"]) == len(row["positions"]) == 64 for row in rows.values())


@pytest.mark.parametrize("context", [100, 1024, 8192, 9063])
def test_a_shorter_context_is_asked_at_its_last_positions(context):
    rows = reference.make_rows(IDS, None, context)
    far = [row for row in rows if row["group"] == "far"]
    assert len(rows) == 7 and len(far) == 2
    assert all(row["positions"][-1] == context - 1 for row in far)
    assert all(0 <= p < context for row in rows for p in row["positions"])
    assert all(np.all(np.diff(row["positions"]) > 0) for row in rows)


def test_texts_are_in_five_languages_with_what_tokenizers_get_wrong():
    assert list(reference.TEXTS) == ["en", "de", "fr", "it", "es"]
    for sign in "€ßüœ¿¡'\"":
        assert any(sign in text for text in reference.TEXTS.values()), sign


# --- what transformers says ----------------------------------------------------------------------


def test_rows_are_answered_as_transformers_answers_them_one_by_one(
    huggingface_dir, model, tmp_path
):
    """A position at a time, which needs no mask and knows no documents, with a cache between."""
    arrays = stored(huggingface_dir, tmp_path / "ref.npz").arrays
    assert arrays["lengths"].tolist() == [64] * 10
    logits = arrays["logits"].reshape(10, 64, -1)
    for row in (1, 7, 9):  # near the start, and both that jump
        ids, places = (
            torch.from_numpy(arrays[name][row : row + 1].astype(np.int64))
            for name in ("tokens", "positions")
        )
        expected, cache = [], transformers.DynamicCache()
        with torch.no_grad():
            for t in range(64):
                out = model(ids[:, t : t + 1], position_ids=places[:, t : t + 1],
                            past_key_values=cache, use_cache=True)  # fmt: skip
                expected.append(out.logits[0, 0].numpy())
        np.testing.assert_allclose(logits[row], expected, atol=1e-5 * np.abs(expected).max())


def test_a_model_in_bfloat16_is_widened_exactly_and_left_as_it_was(model, tokenizer_dir, tmp_path):
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    for name, made in (("narrow", narrow), ("wide", copy.deepcopy(narrow).float())):
        made.save_pretrained(tmp_path / name)
        shutil.copytree(tokenizer_dir, tmp_path / name, dirs_exist_ok=True)
    logits = [
        stored(tmp_path / n, tmp_path / f"{n}.npz").arrays["logits"] for n in ("narrow", "wide")
    ]
    np.testing.assert_array_equal(*logits)


def test_the_largest_logits_and_the_rest_are_those_of_all(huggingface_dir, tmp_path):
    whole = stored(huggingface_dir, tmp_path / "all.npz").arrays["logits"]
    top = stored(huggingface_dir, tmp_path / "top.npz", 5).arrays
    np.testing.assert_array_equal(np.sort(whole, axis=-1)[:, :-6:-1], top["top_logits"])
    np.testing.assert_array_equal(
        np.take_along_axis(whole, top["top_ids"].astype(int), -1), top["top_logits"]
    )
    total = torch.logsumexp(torch.from_numpy(whole), -1).numpy()
    kept = torch.logsumexp(torch.from_numpy(top["top_logits"]), -1).numpy()
    np.testing.assert_allclose(np.logaddexp(kept, top["rest"]), total, rtol=1e-6)
    assert (tmp_path / "top.npz").stat().st_size < (tmp_path / "all.npz").stat().st_size / 5


def test_a_reference_says_what_it_was_made_of(huggingface_dir, tmp_path):
    header = stored(huggingface_dir, tmp_path / "ref.npz", 3).header
    files = {file["name"]: file for file in header["source"]["files"]}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert len(files["model.safetensors"]["sha256"]) == 64
    assert header["versions"]["torch"] == torch.__version__
    assert header["texts"] == reference.TEXTS and set(header["ids"]) == set(reference.TEXTS)
    assert header["tokenizer"]["special"] == {"<|begin_of_text|>": 298, "<|end_of_text|>": 299}
    assert header["sizes"]["tied_embeddings"] is False and header["top_k"] == 3


def test_a_gguf_file_s_rope_factors_are_applied(model):
    """transformers passes over them; without them Llama 3.1 would seem wrong far away."""
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    wanted = model.model.rotary_emb.inv_freq.numpy()
    source = reference._transformers_source(
        "gguf", unscaled(model), reference.Tokens(list, None, 0, {}), (plain / wanted).astype("f4")
    )
    np.testing.assert_allclose(source.frequencies, wanted, rtol=1e-6)


def unscaled(model):
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SIZES, "rope_parameters": rope}, attn_implementation="eager")
    )


# --- Meta's files --------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_meta_s_code_and_transformers_agree_on_one_model(
    huggingface_dir, model, tokenizer_dir, tmp_path, shards
):
    """Two implementations, two orders of rows, near and far: the permutation must be right."""
    src = write_meta_dir(tmp_path / "meta", model, tokenizer_dir, shards)
    theirs, plain = stored(src, tmp_path / "m.npz"), stored(huggingface_dir, tmp_path / "h.npz")
    expected = plain.arrays["logits"]
    np.testing.assert_allclose(
        theirs.arrays["logits"], expected, atol=2e-5 * np.abs(expected).max()
    )
    np.testing.assert_allclose(
        theirs.arrays["residual_rms"], plain.arrays["residual_rms"], rtol=1e-5
    )
    np.testing.assert_allclose(theirs.arrays["frequencies"], plain.arrays["frequencies"], rtol=1e-6)
    for key in ("sizes", "tokenizer", "ids", "rows"):
        assert theirs.header[key] == plain.header[key], key


def test_meta_s_order_of_rows_matters(model, tokenizer_dir, huggingface_dir, tmp_path):
    src = write_meta_dir(tmp_path / "meta", model, tokenizer_dir, order=lambda weight: weight)
    got = stored(src, tmp_path / "m.npz").arrays["logits"]
    expected = stored(huggingface_dir, tmp_path / "h.npz").arrays["logits"]
    assert np.abs(got - expected).max() > 0.05 * np.abs(expected).max()


def test_meta_s_tokenizer_file_is_read_as_tiktoken_reads_it(tmp_path):
    import base64

    from ellama_jax.weights.reference_meta import read_tokenizer

    tokens = [bytes([b]) for b in range(256)] + [b"sh", b"oe", b"shoe", b" shoe", b"12"]
    lines = [f"{base64.b64encode(t).decode()} {rank}" for rank, t in enumerate(tokens)]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    encode, bos, eos, special = read_tokenizer(tmp_path)
    assert (bos, eos) == (261, 262) == tuple(special.values())
    assert encode("shoe shoe") == [258, 259] and encode("1234") == [260, 51, 52]
    assert encode("é") == list("é".encode()) and encode("<|end_of_text|>")[0] == ord("<")


def test_a_pickle_with_code_in_it_is_not_run(model, tokenizer_dir, tmp_path):
    src = write_meta_dir(tmp_path / "meta", model, tokenizer_dir, 1)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"tok_embeddings.weight": Evil()}, src / "consolidated.00.pth")
    with pytest.raises(ValueError, match="must be a meta model that loads, got: Weights only load"):
        reference.write_reference(src, tmp_path / "ref.npz", None)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ref.npz").exists()


# --- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF and then nothing")
    (tmp_path / "empty").mkdir()
    for src, words in (
        ("model.gguf", "must be a gguf model that loads, got: "),
        ("empty", "must be a huggingface model that loads, got: "),
        ("nowhere", "must exist, got no such file or directory."),
    ):
        with pytest.raises(ValueError, match=words) as error:
            reference.write_reference(tmp_path / src, tmp_path / "ref.npz", None)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ref.npz").exists()


@pytest.mark.parametrize("top_k", [0, 320, -1])
def test_a_top_k_that_is_none_is_refused(huggingface_dir, tmp_path, top_k):
    with pytest.raises(ValueError, match=f"--top-k: must be from 1 to 319, got {top_k}."):
        reference.write_reference(huggingface_dir, tmp_path / "ref.npz", top_k)


def test_the_process_hands_its_one_line_on(tmp_path):
    with pytest.raises(ValueError, match="^.*nowhere: must exist, got no such file or directory.$"):
        write_reference(tmp_path / "nowhere", tmp_path / "ref.npz")
