"""A Llama in Meta's own files, run as Meta's published code runs it.

Owns a plain forward pass in Meta's convention: neighbouring pairs of a head are rotated as complex
numbers, and the weights stay as they lie in the file, so that a conversion that forgets to permute
queries and keys, or permutes them wrongly, is seen. It serves reference.py alone and knows nothing of
what is asked. Sources: model.py and tokenizer.py of Llama 3 and 3.1.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import regex
import torch

# Which dim of a weight Meta's model parallelism divides (fairscale's column and row parallel layers).
_DIVIDED = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class MetaModel:
    """params.json and consolidated.*.pth, joined and widened to float32 one weight at a time.

    Attributes:
        sizes: under the names of this project's `LlamaConfig`.
        frequencies: of RoPE, [H / 2] float32, radians a position.
    """

    def __init__(self, src: Path, say_progress: Callable[[int, int], None]):
        """Opens the shards; `say_progress` is called with (layers done, layers) by every run.

        Raises:
            ValueError: if there are none.
        """
        self._say_progress = say_progress
        params = json.loads((src / "params.json").read_text(encoding="utf-8"))
        paths = sorted(src.glob("consolidated.*.pth"))
        if not paths:
            raise ValueError("no consolidated.*.pth beside params.json")
        self._shards = [
            torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in paths
        ]
        self.sizes = self._find_sizes(params)
        self._frequencies = _frequencies(params, self.sizes["head_dim"])
        self.frequencies = self._frequencies.numpy()

    def _find_sizes(self, params: dict) -> dict:
        tied = "output.weight" not in self._shards[0]
        rows = len(self._shards[0]["tok_embeddings.weight" if tied else "output.weight"])
        heads, scaled = params["n_heads"], params.get("use_scaled_rope")
        return {
            "vocab_size": rows * len(self._shards),
            "embed_dim": params["dim"],
            "mlp_dim": len(self._shards[0]["layers.0.feed_forward.w1.weight"]) * len(self._shards),
            "num_layers": params["n_layers"],
            "num_heads": heads,
            "num_kv_heads": params.get("n_kv_heads") or heads,
            "head_dim": params.get("head_dim") or params["dim"] // heads,
            # params.json does not say it; these are the published contexts of 3.1 and of 3.
            "max_seq_len": params.get("max_seq_len") or (131072 if scaled else 8192),
            "norm_eps": params["norm_eps"],
            "tied_embeddings": tied,
        }

    def run(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Runs rows [R, T] int64; see `reference.Source.run`."""
        angles = torch.from_numpy(positions).float()[..., None] * self._frequencies
        turns = torch.polar(torch.ones_like(angles), angles)[:, :, None]  # [R, T, 1, H / 2]
        x = self._read("tok_embeddings")[torch.from_numpy(tokens)]
        residuals = [x.numpy()]
        for layer in range(self.sizes["num_layers"]):
            at = f"layers.{layer}"
            x = x + self._attend(self._norm(x, f"{at}.attention_norm"), f"{at}.attention", turns)
            residuals.append(x.numpy())
            x = x + self._feed_forward(self._norm(x, f"{at}.ffn_norm"), f"{at}.feed_forward")
            residuals.append(x.numpy())
            self._say_progress(layer + 1, self.sizes["num_layers"])
        return self._norm(x, "norm").numpy(), residuals

    def project(self, hidden: np.ndarray) -> np.ndarray:
        """Projects hidden states [P, D] onto the vocabulary, [P, V] float32."""
        kernel = self._read("tok_embeddings" if self.sizes["tied_embeddings"] else "output")
        return (torch.from_numpy(hidden) @ kernel.T).numpy()

    def _read(self, name: str) -> torch.Tensor:
        parts = [shard[f"{name}.weight"] for shard in self._shards]
        if parts[0].ndim == 1:  # norms are whole on every shard
            return parts[0].float()
        dim = _DIVIDED.get(name.split(".")[-1])
        if dim is None:  # the embedding: Llama 3 divides its rows, Llama 2 divided its columns
            dim = 0 if len(parts[0]) * len(parts) == self.sizes["vocab_size"] else 1
        return torch.cat(parts, dim).float()

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.sizes["norm_eps"])
        return x * inverse * self._read(name)

    def _attend(self, x: torch.Tensor, at: str, turns: torch.Tensor) -> torch.Tensor:
        head_dim, length = self.sizes["head_dim"], x.shape[1]
        q, k, v = (
            (x @ self._read(f"{at}.{name}").T).unflatten(-1, (-1, head_dim))
            for name in ("wq", "wk", "wv")
        )
        q, k = _rotate_pairs(q, turns), _rotate_pairs(k, turns)
        k, v = (y.repeat_interleave(q.shape[2] // y.shape[2], dim=2) for y in (k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        mask = torch.full((length, length), float("-inf")).triu(1)
        scores = q @ k.transpose(2, 3) / head_dim**0.5 + mask
        out = torch.softmax(scores, dim=-1) @ v
        return out.transpose(1, 2).flatten(2) @ self._read(f"{at}.wo").T

    def _feed_forward(self, x: torch.Tensor, at: str) -> torch.Tensor:
        gate, up = (x @ self._read(f"{at}.{name}").T for name in ("w1", "w3"))
        return (torch.nn.functional.silu(gate) * up) @ self._read(f"{at}.w2").T


def read_tokenizer(src: Path) -> tuple[Callable, int, int, dict[str, int]]:
    """Reads tokenizer.model: (text to ids, BOS id, EOS id, both by their names)."""
    lines = (src / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = {"<|begin_of_text|>": len(ranks), "<|end_of_text|>": len(ranks) + 1}
    return lambda text: _encode(text, ranks), *special.values(), special


def _frequencies(params: dict, head_dim: int) -> torch.Tensor:
    """Llama 3.1's precompute_freqs_cis, up to the product with the positions."""
    exponents = torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim
    frequencies = 1.0 / (params.get("rope_theta", 10000.0) ** exponents)
    if not params.get("use_scaled_rope"):
        return frequencies
    # Llama 3.1's apply_scaling; its constants are in the code, not in params.json.
    factor = params.get("rope_scaling_factor") or 8
    low, high, old_context = 1, params.get("rope_high_freq_factor") or 4, 8192
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * torch.pi / frequency
        if wavelength < old_context / high:
            scaled.append(frequency)
        elif wavelength > old_context / low:
            scaled.append(frequency / factor)
        else:
            smooth = (old_context / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return torch.stack(scaled)


def _rotate_pairs(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(3)


def _encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding as tiktoken's: the pair with the lowest rank is joined first.

    >>> _encode("abc", {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4})
    [0, 3]
    """
    ids = []
    for piece in regex.findall(_SPLIT, text):
        whole = piece.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while len(parts) > 1:
            pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[at] == len(ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids
