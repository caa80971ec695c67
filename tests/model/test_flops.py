"""FLOPs of a token against what torch counts of transformers' Llama."""

import dataclasses

import pytest

from ellama_jax.model.flops import matrix_params, model_flops
from ellama_jax.model.llama import count_params
from ellama_jax.model.presets import get_preset

TINY = get_preset("tiny")


@pytest.mark.parametrize("name", ["tiny", "llama3.1-8b", "llama3.2-1b"])
def test_all_parameters_count_but_norms_and_the_look_up(name):
    model = get_preset(name)
    look_up = 0 if model.tied_embeddings else model.vocab_size * model.embed_dim
    norms = (2 * model.num_layers + 1) * model.embed_dim
    assert matrix_params(model) == count_params(model) - look_up - norms


def test_the_forward_pass_is_what_torch_counts():
    """Three forward passes' worth, of which the masked half of attention is not counted."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    model, length = dataclasses.replace(TINY, num_kv_heads=TINY.num_heads), 32
    config = transformers.LlamaConfig(
        vocab_size=model.vocab_size, hidden_size=model.embed_dim, intermediate_size=model.mlp_dim,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads, head_dim=model.head_dim,
        attn_implementation="eager", tie_word_embeddings=True,
    )  # fmt: skip
    reference = transformers.LlamaForCausalLM(config)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        reference(torch.zeros(1, length, dtype=torch.long))
    masked_half = 2 * model.num_layers * model.num_heads * model.head_dim * length
    by_torch = 3 * (counter.get_total_flops() / length - masked_half)
    assert model_flops(model, length).total_per_token == pytest.approx(by_torch, rel=1e-12)


def test_a_llamas_flops_a_token_are_those_of_its_matrices_and_half_its_attention():
    flops = model_flops(get_preset("llama3.1-8b"), 8192)
    by_hand = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
    assert flops.matmul_per_token == 6 * by_hand
    # PaLM's 12 L N H T; half of it where no query sees what comes after it.
    assert flops.palm_per_token - flops.matmul_per_token == 12 * 32 * 4096 * 8192
    assert flops.total_per_token - flops.matmul_per_token == 6 * 32 * 4096 * 8192
