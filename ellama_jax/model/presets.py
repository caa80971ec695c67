"""Published shapes of the Llama architecture, by name.

Owns sizes and constants only; the parameters themselves are made in llama.py.
Sources: the models' own config.json files; base peak learning rates from the Llama 3 paper
(arXiv 2407.21783, table 3) and the SmolLM2 paper (arXiv 2502.02737).
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass

from ellama_jax.core.limits import MODEL_SIZES


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's RoPE scaling ("llama3"): long wavelengths are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of one Llama model.

    `base_peak_learning_rate` is the peak rate of the base model's own pretraining, None where it
    was not published; continual pretraining states its own peak as a fraction of it.
    """

    name: str
    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool
    base_peak_learning_rate: float | None

    def __post_init__(self):
        for name, most in MODEL_SIZES.items():
            if not 1 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}: must be from 1 to {most:,}, got {value:,}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads: must be a multiple of num_kv_heads ({self.num_kv_heads}), "
                f"got {self.num_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: must be even for RoPE, got {self.head_dim}.")


# Fields that change nothing of what a model computes.
INCIDENTAL = ("name", "base_peak_learning_rate", "max_seq_len")


def fields_that_differ(a: LlamaConfig, b: LlamaConfig) -> list[tuple[str, object, object]]:
    """Returns (field, value in a, value in b) of all that two models compute otherwise.

    Numbers are the same if they differ by rounding alone: formats write them in other precisions.

    >>> from dataclasses import replace
    >>> fields_that_differ(_TINY, replace(_TINY, name="other", mlp_dim=64))
    [('mlp_dim', 192, 64)]
    """
    ours, theirs = config_to_dict(a), config_to_dict(b)
    return [
        (key, ours[key], theirs[key])
        for key in ours
        if key not in INCIDENTAL and not _same(ours[key], theirs[key])
    ]


def _same(a: object, b: object) -> bool:
    return math.isclose(a, b) if isinstance(a, float) and isinstance(b, float) else a == b


def config_to_dict(config: LlamaConfig) -> dict:
    """Returns `config` as plain JSON-able data."""
    return dataclasses.asdict(config)


def config_from_dict(data: dict) -> LlamaConfig:
    """Rebuilds what `config_to_dict` wrote.

    Raises:
        ValueError: if keys are missing or unknown.
    """
    expected = {field.name for field in dataclasses.fields(LlamaConfig)}
    if set(data) != expected:
        raise ValueError(
            f"model: must have the keys {sorted(expected)}; "
            f"missing {sorted(expected - set(data))}, unknown {sorted(set(data) - expected)}."
        )
    scaling = data["rope_scaling"]
    return LlamaConfig(**{**data, "rope_scaling": RopeScaling(**scaling) if scaling else None})


def get_preset(name: str) -> LlamaConfig:
    """Returns the preset called `name`.

    Raises:
        ValueError: if there is none; the message names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}."
        raise ValueError(f"model.preset: must be a known preset, got {name}; {hint}")
    return PRESETS[name]


def _llama31(name, embed_dim, mlp_dim, num_layers, num_heads, peak):
    return LlamaConfig(
        name=name, vocab_size=128256, embed_dim=embed_dim, mlp_dim=mlp_dim, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=8, head_dim=128, max_seq_len=131072,
        rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), norm_eps=1e-5,
        tied_embeddings=False, base_peak_learning_rate=peak,
    )  # fmt: skip


def _llama32(name, embed_dim, num_layers, num_heads, head_dim):
    # Pruned and distilled from Llama 3.1 8B; its own learning rate was not published.
    return LlamaConfig(
        name=name, vocab_size=128256, embed_dim=embed_dim, mlp_dim=8192, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=8, head_dim=head_dim, max_seq_len=131072,
        rope_theta=500000.0, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), norm_eps=1e-5,
        tied_embeddings=True, base_peak_learning_rate=None,
    )  # fmt: skip


def _smollm2(name, embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, theta, peak):
    return LlamaConfig(
        name=name, vocab_size=49152, embed_dim=embed_dim, mlp_dim=mlp_dim, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=64, max_seq_len=8192,
        rope_theta=theta, rope_scaling=None, norm_eps=1e-5, tied_embeddings=True,
        base_peak_learning_rate=peak,
    )  # fmt: skip


_TINY = LlamaConfig(
    name="tiny", vocab_size=512, embed_dim=64, mlp_dim=192, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, max_seq_len=1024, rope_theta=10000.0, rope_scaling=None,
    norm_eps=1e-5, tied_embeddings=True, base_peak_learning_rate=3e-2,
)  # fmt: skip

PRESETS: dict[str, LlamaConfig] = {
    config.name: config
    for config in (
        _llama31("llama3.1-8b", 4096, 14336, 32, 32, 3e-4),
        _llama31("llama3.1-70b", 8192, 28672, 80, 64, 1.5e-4),
        _llama31("llama3.1-405b", 16384, 53248, 126, 128, 8e-5),
        _llama32("llama3.2-1b", 2048, 16, 32, 64),
        _llama32("llama3.2-3b", 3072, 28, 24, 128),
        _smollm2("smollm2-135m", 576, 1536, 30, 9, 3, 100000.0, 3e-3),
        _smollm2("smollm2-360m", 960, 2560, 32, 15, 5, 100000.0, 3e-3),
        _smollm2("smollm2-1.7b", 2048, 8192, 24, 32, 32, 130000.0, 5e-4),
        _TINY,
    )
}
