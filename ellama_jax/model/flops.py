"""How many floating-point operations training a token takes, by the model's arithmetic alone.

Owns the count that MFU is a fraction of. What a compiled program really executes (recomputation,
the optimizer) is the planner's question.
"""

from ellama_jax.model.presets import LlamaConfig

FORMULA = "6 x matrix parameters (no embedding look-up) + 6 x layers x heads x head_dim x seq_len"


def matrix_params(model: LlamaConfig) -> int:
    """Returns how many parameters a token is multiplied by: all matrices, and the projection onto
    the vocabulary, tied or not. The embedding look-up multiplies nothing, norms next to nothing.
    """
    attention = 2 * model.embed_dim * model.head_dim * (model.num_heads + model.num_kv_heads)
    mlp = 3 * model.embed_dim * model.mlp_dim
    return model.num_layers * (attention + mlp) + model.vocab_size * model.embed_dim


def model_flops_per_token(model: LlamaConfig, seq_len: int) -> float:
    """Returns the FLOPs of forward and backward for one position of a row of `seq_len`.

    A matrix parameter costs 2 FLOPs forward and 4 backward (arXiv 2001.08361). Attention is causal:
    a query meets half of the `seq_len` keys on average, 2 FLOPs each for the score and 2 for the
    value, three times over with backward: 6 x seq_len for each of heads x head_dim of a layer. PaLM
    (arXiv 2204.02311, appendix B) counts the masked half too, 12. Recomputation does not count, and
    rows of several documents count as rows of one.

    Args:
        model: the shapes.
        seq_len: positions in a row.

    >>> from ellama_jax.model.presets import get_preset
    >>> round(model_flops_per_token(get_preset("llama3.1-8b"), 8192) / 1e9, 2)
    51.47
    """
    attention = 6 * model.num_layers * model.num_heads * model.head_dim * seq_len
    return 6.0 * matrix_params(model) + attention
