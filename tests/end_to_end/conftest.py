"""Good input of every kind, of which the tests of bad input spoil a copy, and how they look at it."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from directory_contents import contents

from ellama_jax import cli
from ellama_jax.core.tree import flatten_paths
from ellama_jax.corpus.catalogue import generate_listings, split_products
from ellama_jax.corpus.listings import listing_to_text_record
from ellama_jax.evaluate.benchmark import write_benchmark
from ellama_jax.experiments.demo import make_tiny_base, write_jsonl
from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.tokens.windows import write_windows
from ellama_jax.weights.checkpoint import make_meta, write_checkpoint
from ellama_jax.weights.tensors import extract_tensor, tensor_names

LISTINGS = list(generate_listings(0, 40))
TEXTS = [listing_to_text_record(listing, seed=0)["text"] for listing in LISTINGS]
WINDOW = 32
PROGRESS = re.compile(r"[^:]+: \d+/\d+ \w+, \d+ s\b")
RUN_CONFIG = """
from configs import demo
def get_config():
    config = demo.get_config("tiny")
    for shares in (config.data.ecommerce_shares, config.data.general_shares):
        shares.update({"en": 1.0, "de": 0.0, "fr": 0.0, "it": 0.0, "es": 0.0})
    config.data.seq_len, config.data.global_batch_size = 32, 8
    config.train.steps, config.schedule.warmup_steps = 2, 1
    config.checkpoint.save_every_steps = 1
    return config
"""


def write_huggingface(dst, tokenizer_dir):
    from safetensors.numpy import save_file

    tiny = get_preset("tiny")
    shutil.copytree(tokenizer_dir, dst)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tiny.vocab_size,
        "hidden_size": tiny.embed_dim,
        "intermediate_size": tiny.mlp_dim,
        "num_hidden_layers": tiny.num_layers,
        "num_attention_heads": tiny.num_heads,
        "num_key_value_heads": tiny.num_kv_heads,
        "tie_word_embeddings": True,
    }
    (dst / "config.json").write_text(json.dumps(config))
    leaves, tensors = flatten_paths(init_params(tiny, 0)), {}
    for path, names in tensor_names(tiny).items():
        layers = leaves[path] if path.startswith("layers/") else leaves[path][None]
        for name, layer in zip(names, layers, strict=True):
            tensors[name] = np.ascontiguousarray(extract_tensor(path, np.asarray(layer)))
    save_file(tensors, dst / "model.safetensors")


def write_gguf(path):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_tensor("token_embd.weight", np.ones((512, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    for finish in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(writer, finish)()
    writer.close()


def write_sibling(dst, tokenizer_dir, **changes):
    """Writes a model with the tokenizer of the base: drawn anew, or of another size."""
    config = dataclasses.replace(get_preset("tiny"), **changes)
    meta = make_meta(
        config,
        tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint,
        provenance={"kind": "import", "sources": []},
    )
    params = init_params(config, 1)
    write_checkpoint(dst, params, config=config, meta=meta, tokenizer_dir=tokenizer_dir)


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Checkpoints, foreign models, windows, listings and documents, all of them fine."""
    root = tmp_path_factory.mktemp("good")
    make_tiny_base(root / "base", TEXTS, seed=0)
    make_tiny_base(root / "stranger", TEXTS[:20], seed=1)  # another tokenizer
    tokenizer_dir = root / "base" / "tokenizer"
    write_sibling(root / "adapted", tokenizer_dir)
    write_sibling(root / "wide", tokenizer_dir, name="wide", mlp_dim=256)
    write_huggingface(root / "hf", tokenizer_dir)
    write_gguf(root / "model.gguf")
    tokenizer = load_tokenizer(tokenizer_dir)
    for domain in ("ecommerce", "general"):
        write_windows(
            root / "windows" / f"{domain}-en", tokenizer.encode_batch(TEXTS[:20]),
            tokenizer=tokenizer, window_length=WINDOW, domain=domain, language="en", seed=0,
            sources=[], command="test",
        )  # fmt: skip
    write_jsonl(root / "listings.jsonl", LISTINGS)
    write_benchmark(
        root / "benchmark", *split_products(LISTINGS, 0.5, seed=0), validation_frac=0.5, seed=0,
        items_per_task=1, source={}, command="test",
    )  # fmt: skip
    documents = [{"text": t, "domain": "general", "language": "en", "source": "s"} for t in TEXTS]
    write_jsonl(root / "documents.jsonl", documents)
    (root / "run.py").write_text(RUN_CONFIG)
    return root


@pytest.fixture
def place(good, tmp_path):
    """A copy of the good input that a test may spoil; the current directory of the verb."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def refused(place, monkeypatch, capfd):
    """Returns a function that runs a verb, checks that it is refused, and gives back its line."""
    monkeypatch.chdir(place)
    # Without a setting of its own the demo would start its process, which is pytest, again.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**34))

    def run(*argv, changed=(), status=2):
        before, _ = contents(place), capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in argv])
        assert stop.value.code == status
        lines = capfd.readouterr().err.splitlines()
        lines = [line for line in lines if not PROGRESS.match(line)]
        assert len(lines) == 1, lines
        start = f"ellama {argv[0]}: error: "
        assert lines[0].startswith(start)
        after = contents(place)
        differ = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        assert {path for path in differ if not path.startswith(tuple(changed))} == set()
        return lines[0].removeprefix(start)

    return run
