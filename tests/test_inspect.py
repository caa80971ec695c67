"""What `ellama inspect` says."""

import pytest

from ellama_jax.data.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.data.windows import write_windows
from ellama_jax.demo import make_tiny_base
from ellama_jax.inspect import main_inspect
from ellama_jax.model.llama import count_params
from ellama_jax.model.presets import get_preset

TEXTS = ["a red lamp", "a blue lamp and a red one"]


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    root = tmp_path_factory.mktemp("windows")
    bpe = train_byte_bpe(TEXTS, 300)
    save_tokenizer(
        root / "tokenizer", bpe, bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    )
    tokenizer = load_tokenizer(root / "tokenizer")
    for domain in ("ecommerce", "general"):
        write_windows(
            root / f"{domain}-en", tokenizer.encode_batch(TEXTS), tokenizer=tokenizer,
            window_length=64, domain=domain, language="en", seed=0,
            sources=[{"name": "lamps.jsonl", "sha256": "0" * 64, "documents": 2}], command="made so",
        )  # fmt: skip
    return root


def test_a_window_set_is_described_and_its_documents_decoded(windows, capsys):
    main_inspect([str(windows / "ecommerce-en"), "--show", "1"])
    out = capsys.readouterr().out
    assert "ecommerce text, language en" in out
    assert "2 documents" in out and "lamps.jsonl" in out and "made by: made so" in out
    for text in TEXTS:
        assert text in out


def test_a_directory_of_window_sets_lists_them_all(windows, capsys):
    main_inspect([str(windows)])
    out = capsys.readouterr().out
    assert "ecommerce-en: ecommerce text" in out and "general-en: general text" in out


def test_a_configuration_s_mixture_is_described(windows, tmp_path, capsys):
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config('tiny')\n"
        "    only = {'en': 1.0, 'de': 0.0, 'fr': 0.0, 'it': 0.0, 'es': 0.0}\n"
        "    config.data.ecommerce_shares.update(only)\n"
        "    config.data.general_shares.update(only)\n"
        "    return config\n"
    )
    more = [f"--config.data.windows_dir={windows}", "--config.data.seq_len=64"]
    main_inspect([str(config), *more, "--config.data.replay_frac=0.25"])
    out = capsys.readouterr().out
    assert "75% e-commerce, 25% general" in out
    assert "ecommerce-en: 75.0% of tokens" in out and "general-en: 25.0% of tokens" in out
    assert "mixture fingerprint" in out


def test_a_checkpoint_is_described(tmp_path, capsys):
    make_tiny_base(tmp_path / "base", TEXTS, seed=0)
    main_inspect([str(tmp_path / "base")])
    out = capsys.readouterr().out
    assert "preset tiny" in out and "2 layers, 64 wide" in out
    assert f"{count_params(get_preset('tiny')):,} parameters" in out


def test_options_that_only_a_configuration_takes_are_refused_elsewhere(windows, capsys):
    with pytest.raises(SystemExit):
        main_inspect([str(windows), "--config.data.seq_len=64"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_place_that_holds_nothing_known_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        main_inspect([str(tmp_path)])
    with pytest.raises(ValueError, match="must be a directory or a configuration file"):
        main_inspect([str(tmp_path / "absent")])
