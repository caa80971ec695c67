"""A run that trains within seconds."""

import pytest

from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.tokens.windows import write_windows

CONFIG = """
from configs import demo
def get_config():
    config = demo.get_config("tiny")
    for shares in (config.data.ecommerce_shares, config.data.general_shares):
        shares.update({"en": 1.0, "de": 0.0, "fr": 0.0, "it": 0.0, "es": 0.0})
    return config
"""


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Arguments of `ellama train` for a tiny model from random weights."""
    root = tmp_path_factory.mktemp("windows")
    texts = [f"red lamp oak table price {number}" for number in range(120)]
    bpe = train_byte_bpe(texts, 320)
    save_tokenizer(
        root / "tokenizer", bpe, bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    )
    tokenizer = load_tokenizer(root / "tokenizer")
    for domain in ("ecommerce", "general"):
        write_windows(
            root / f"{domain}-en", tokenizer.encode_batch(texts), tokenizer=tokenizer,
            window_length=32, domain=domain, language="en", seed=0, sources=[], command="test",
        )  # fmt: skip
    (root / "run.py").write_text(CONFIG)
    keys = {
        "data.windows_dir": root, "data.seq_len": 32, "data.global_batch_size": 8,
        "schedule.warmup_steps": 1, "checkpoint.save_every_steps": 2, "checkpoint.keep_last": 2,
        "model.remat": "none", "data.max_epochs": 1e9,
    }  # fmt: skip
    return [f"--config={root / 'run.py'}", *(f"--config.{k}={v}" for k, v in keys.items())]
