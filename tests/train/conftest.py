"""A tiny model, batches that pack documents, and a run that can be trained in a second."""

import jax
import numpy as np
import pytest
from jax._src import compiler

from ellama_jax.config import configs_dir, load_config
from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.tokens.windows import to_features, write_windows

NUM_SOURCES = 3
WORDS = {"en": "red lamp oak table price", "de": "rote Lampe Eiche Tisch Preis"}


@pytest.fixture
def make_batch():
    """Returns `make(seed, rows, length)`: packed rows of random tokens with padding at the end."""

    def make(seed=0, rows=8, length=32):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(3, 500, (rows, length), dtype=np.uint32)
        tokens[rng.random(tokens.shape) < 0.15] = 2  # EOS: several documents a row
        for row in range(rows):
            tokens[row, length - row % 5 :] = 0xFFFFFFFF
        features = [to_features(row, eos_id=2) for row in tokens]
        batch = {name: np.stack([f[name] for f in features]) for name in features[0]}
        return batch | {"source_ids": np.arange(rows, dtype=np.int32) % NUM_SOURCES}

    return make


@pytest.fixture(scope="session")
def windows_dir(tmp_path_factory):
    """Four small window sets of a 512-token BPE, with the tokenizer beside them."""
    root = tmp_path_factory.mktemp("windows")
    rng = np.random.default_rng(0)
    texts = {
        language: [" ".join(rng.permutation(words.split())) for _ in range(120)]
        for language, words in WORDS.items()
    }
    bpe = train_byte_bpe(sum(texts.values(), []), 512)
    save_tokenizer(
        root / "tokenizer", bpe, bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    )
    tokenizer = load_tokenizer(root / "tokenizer")
    for domain in ("ecommerce", "general"):
        for language in texts:
            write_windows(
                root / f"{domain}-{language}", tokenizer.encode_batch(texts[language]),
                tokenizer=tokenizer, window_length=32, domain=domain, language=language, seed=0,
                sources=[], command="test",
            )  # fmt: skip
    return root


@pytest.fixture(scope="session")
def held_out(tmp_path_factory, windows_dir):
    """Two held-out sets of the tokenizer that the training windows have."""
    root, tokenizer = tmp_path_factory.mktemp("held"), load_tokenizer(windows_dir / "tokenizer")
    for domain, language, text in (
        ("general", "en", "table red price"), ("ecommerce", "de", "Tisch rote Eiche"),
    ):  # fmt: skip
        write_windows(
            root / f"{domain}-{language}", tokenizer.encode_batch([text] * 90), tokenizer=tokenizer,
            window_length=32, domain=domain, language=language, seed=0, sources=[], command="test",
        )  # fmt: skip
    return root


@pytest.fixture
def tiny_arguments(windows_dir):
    """Command-line arguments of a six-step run of the tiny model from random weights."""
    keys = {
        "data.windows_dir": windows_dir, "data.seq_len": 32, "data.global_batch_size": 8,
        "train.steps": 6, "schedule.warmup_steps": 1, "checkpoint.save_every_steps": 2,
        "checkpoint.keep_last": 3, "model.remat": "none",
        "data.max_epochs": 1e9,  # the sets are tiny; tests of repetition set their own
    }  # fmt: skip
    config = """
from configs import demo
def get_config():
    config = demo.get_config("tiny")
    for shares in (config.data.ecommerce_shares, config.data.general_shares):
        shares.update({"en": 0.7, "de": 0.3, "fr": 0.0, "it": 0.0, "es": 0.0})
    return config
"""
    file = windows_dir / "tiny_run.py"
    file.write_text(config)
    return [f"--config={file}", *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.fixture
def cached_programs(monkeypatch):
    """Returns a function that gives the names of programs found compiled since it was last called."""
    found, log = [], compiler.log_persistent_cache_hit
    monkeypatch.setattr(
        compiler, "log_persistent_cache_hit", lambda name, key: (found.append(name), log(name, key))
    )
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def take():
        taken, found[:] = list(found), []
        return taken

    yield take
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.fixture
def tiny_config(tiny_arguments):
    """Returns `make(**overrides)`, keys written with `__` for the dot."""

    def make(**overrides):
        more = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
        return load_config([*tiny_arguments, *more], "train")[0]

    assert configs_dir().is_dir()
    return make
