"""A tokenizer and checkpoints of the tiny model, made once for all tests of weights."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from ellama_jax.model.llama import abstract_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.weights.checkpoint import make_meta, write_checkpoint

TEXT = ["The blue shoe costs 20 euros.", "Der blaue Schuh kostet 20 Euro.", "La chaussure bleue."]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    dst = tmp_path_factory.mktemp("made") / "tokenizer"
    tokenizer = train_byte_bpe(TEXT, 300)
    save_tokenizer(dst, tokenizer, *map(tokenizer.token_to_id, SPECIALS))
    return dst


SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>")


@pytest.fixture(scope="session")
def tiny():
    return get_preset("tiny")


@pytest.fixture(scope="session")
def untied(tiny):
    return dataclasses.replace(tiny, name="untied", tied_embeddings=False)


@pytest.fixture(scope="session")
def draw_params():
    """Returns a function that draws random parameters of a config with NumPy."""

    def draw(config, seed=0, dtype=np.float32):
        rng = np.random.default_rng(seed)
        shapes = abstract_params(config)
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)

    return draw


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer_dir, draw_params):
    """Returns a function that writes a checkpoint of random parameters and returns them."""

    def make(dst, config, seed=0, dtype=np.float32, **kwargs):
        params = draw_params(config, seed, dtype)
        meta = make_meta(
            config,
            tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint,
            provenance={
                "kind": "import",
                "format": "huggingface",
                "sources": [{"name": f"seed {seed}", "bytes": 5, "sha256": "00"}],
            },
        )
        args = {"config": config, "meta": meta, "tokenizer_dir": tokenizer_dir, **kwargs}
        write_checkpoint(dst, params, **args)
        return params

    return make


@pytest.fixture
def tiny_root(tmp_path, tiny, make_checkpoint):
    make_checkpoint(tmp_path / "root", tiny, dtype=ml_dtypes.bfloat16)
    return tmp_path / "root"
