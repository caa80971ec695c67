"""A tiny model with its tokenizer and checkpoints, shared by the tests of scoring."""

import jax
import pytest

from ellama_jax.corpus import catalogue, listings
from ellama_jax.model import llama
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens import tokenizer
from ellama_jax.weights import checkpoint

CONFIG = get_preset("tiny")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    texts = [
        listings.listing_to_document(record, seed=0)
        for record in catalogue.generate_listings(0, 30)
    ]
    trained = tokenizer.train_byte_bpe(texts, CONFIG.vocab_size)
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    bos, eos = (trained.token_to_id(t) for t in (tokenizer.BEGIN_OF_TEXT, tokenizer.END_OF_TEXT))
    tokenizer.save_tokenizer(folder, trained, bos, eos)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tokenizer_dir):
    return tokenizer.load_tokenizer(tokenizer_dir)


def draw_params(seed):
    # Ten times the usual spread: a model that prefers something can be told from one that does not.
    params = llama.init_params(CONFIG, seed)
    return jax.tree.map(lambda x: x * 10 if x.std() > 0 else x, params)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tokenizer_dir, tiny_tokenizer):
    """Roots of two random tiny models, as {"base": path, "adapted": path}."""
    folder, roots = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, name in enumerate(("base", "adapted")):
        meta = checkpoint.make_meta(
            CONFIG,
            tokenizer_fingerprint=tiny_tokenizer.fingerprint,
            provenance={"kind": "import", "sources": []},
        )
        roots[name] = folder / name
        checkpoint.write_checkpoint(
            roots[name], draw_params(seed), config=CONFIG, meta=meta, tokenizer_dir=tokenizer_dir
        )
    return roots
