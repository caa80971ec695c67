"""How many floating-point operations training a token takes, by the model's arithmetic alone.

Owns the count that MFU is a fraction of. What a compiled program really executes (recomputation,
the optimizer) is the planner's question.
"""

from dataclasses import dataclass

from ellama_jax.model.presets import LlamaConfig

FORMULA = "6 x matrix parameters (no embedding look-up) + 6 x layers x heads x head_dim x seq_len"


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs that training on one token takes, forward and backward, nothing computed twice.

    Attributes:
        matmul_per_token: 6 a parameter that multiplies, 2 forward and 4 backward (arXiv 2001.08361).
        attention_per_token: scores and their use, 6 L N H T: a causal query meets T / 2 keys on
            average, 2 FLOPs each for the score and 2 for the value, three times over with backward.
        attention_full_per_token: 12 L N H T, the convention of PaLM (arXiv 2204.02311, appendix B),
            which counts the masked half too.
    """

    matmul_per_token: float
    attention_per_token: float
    attention_full_per_token: float

    @property
    def total_per_token(self) -> float:
        """With causal attention: what MFU is reckoned from here."""
        return self.matmul_per_token + self.attention_per_token

    @property
    def palm_per_token(self) -> float:
        """With full attention: gives a higher MFU for the same speed, and many publish it."""
        return self.matmul_per_token + self.attention_full_per_token


def matrix_params(model: LlamaConfig) -> int:
    """Returns how many parameters a token is multiplied by: all matrices, and the projection onto
    the vocabulary, tied or not. The embedding look-up multiplies nothing, norms next to nothing.
    """
    attention = 2 * model.embed_dim * model.head_dim * (model.num_heads + model.num_kv_heads)
    mlp = 3 * model.embed_dim * model.mlp_dim
    return model.num_layers * (attention + mlp) + model.vocab_size * model.embed_dim


def model_flops(model: LlamaConfig, seq_len: int) -> ModelFlops:
    """Returns the FLOPs a token of rows of `seq_len`; rows of several documents count as of one.

    >>> from ellama_jax.model.presets import get_preset
    >>> flops = model_flops(get_preset("llama3.1-8b"), 8192)
    >>> [round(x / 1e9, 2) for x in (flops.matmul_per_token, flops.total_per_token)]
    [45.03, 51.47]
    """
    causal = 6.0 * model.num_layers * model.num_heads * model.head_dim * seq_len
    return ModelFlops(6.0 * matrix_params(model), causal, 2 * causal)
