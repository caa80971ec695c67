"""What `ellama inspect` says."""

import json

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


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two tiny checkpoints of different random weights."""
    root = tmp_path_factory.mktemp("bases")
    for seed in (0, 1):
        make_tiny_base(root / str(f"base-{seed}"), TEXTS, seed=seed)
    return root


def test_a_checkpoint_is_written_as_data_over_an_older_file(bases, tmp_path):
    out = tmp_path / "facts.json"
    out.write_text("older")
    main_inspect([str(bases / "base-0"), "--mesh", "fsdp=2", "--json", str(out)])
    facts = json.loads(out.read_text())
    assert facts["preset"] == "tiny" and facts["mesh"]["fsdp"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def test_a_difference_is_told_written_and_drawn(bases, tmp_path, capsys):
    plot, out = tmp_path / "deep" / "moved.png", tmp_path / "difference.json"
    options = ["--layers", "--json", str(out), "--plot", str(plot)]
    main_inspect([str(bases / "base-0"), "--diff", str(bases / "base-1"), *options])
    said = capsys.readouterr().out
    assert "layer attn_norm" in said and "Moved most: " in said
    data = json.loads(out.read_text())
    assert data["leaves"]["layers/attn/wq"]["layers"][1]["relative_change"] > 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in plot.parent.iterdir()] == ["moved.png"]


def test_the_directory_of_a_run_stands_for_its_checkpoints(bases, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").symlink_to(bases / "base-0")
    main_inspect([str(tmp_path / "run")])
    main_inspect([str(bases / "base-0"), "--diff", str(tmp_path / "run")])
    assert "Nothing differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{windows}", "--diff", "{base}"], "--diff: must compare the weights of two models"),
        (["x.py", "--diff", "{base}"], "--diff: must compare the weights of two models"),
        (["{base}", "--diff", "{windows}"], "must hold a complete step, got none"),
        (["{base}", "--diff", "{base}", "--mesh", "fsdp=2"], "--mesh: must be used with a check"),
        (["{base}", "--diff", "{base}", "--plot", "a.doc"], "--plot: must end in one of .png"),
        (["{base}", "--layers"], "--layers: must be used with a comparison"),
        (["{base}", "--plot", "a.png"], "--plot: must be used with a comparison"),
        (["{base}", "--show", "1"], "--show: must be used with a window set"),
        (["{windows}", "--json", "a.json"], "--json: must be used with a checkpoint"),
        (["{base}", "--json", "{base}"], "--json: must name a file"),
        (["{base}", "--json", "{base}/tokenizer/tokenizer.json/a"], "--json: "),
        (["{base}", "--mesh", "model=2"], "--mesh: axis must be one of"),
        (["{base}", "--mesh", "tensor=5"], "must be divisible by mesh axes"),
        (["{base}/tokenizer/tokenizer.json"], "must be a directory or a configuration file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    argv, words, bases, windows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"base": bases / "base-0", "windows": windows}
    with pytest.raises(ValueError) as error:
        main_inspect([word.format(**places) for word in argv])
    assert words in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
