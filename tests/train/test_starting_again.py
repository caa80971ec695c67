"""What a run that is started again refuses, mends and says: another base, damaged files, fewer steps."""

import json
import shutil

import pytest

from ellama_jax.model.llama import init_params
from ellama_jax.model.presets import get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.train.goodput import read_goodput, summarize
from ellama_jax.train.loop import train
from ellama_jax.train.metrics import read_metrics
from ellama_jax.train.run import prepare_run
from ellama_jax.weights.checkpoint import find_checkpoint, make_meta, write_checkpoint


@pytest.fixture
def make_base(windows_dir):
    """Returns `make(root, seed)`: a checkpoint of random weights, with the windows' tokenizer."""
    model, tokenizer_dir = get_preset("tiny"), windows_dir / "tokenizer"
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint

    def make(root, seed, **options):
        meta = make_meta(model, tokenizer_fingerprint=fingerprint, provenance={"kind": "import"})
        params = init_params(model, seed)
        more = {"config": model, "meta": meta, "tokenizer_dir": tokenizer_dir, **options}
        return write_checkpoint(root, params, **more).root

    return make


@pytest.fixture
def start(tiny_config, tmp_path):
    """Returns `start(**overrides)`, which trains in one workdir."""

    def run(**overrides):
        given = {"mesh__fsdp": 8, "train__steps": 2, **overrides}
        return train(prepare_run(tiny_config(**given), tmp_path / "run", allow_unverified=True))

    return run


def test_a_run_is_resumed_from_its_own_base_alone_wherever_that_lies(start, make_base, tmp_path):
    one, other = make_base(tmp_path / "one", 1), make_base(tmp_path / "other", 2)
    start(model__checkpoint=one)
    for steps in (2, 3):  # also where nothing is left to do
        with pytest.raises(ValueError, match=r"^model.checkpoint: must be the base .*one/0 with"):
            start(model__checkpoint=other, train__steps=steps)
        with pytest.raises(ValueError, match="got random weights"):
            start(train__steps=steps)
    moved = shutil.move(one, tmp_path / "moved")
    make_base(one, 2)  # another model at the same path
    with pytest.raises(ValueError, match=r"^model.checkpoint: must be the base"):
        start(model__checkpoint=one, train__steps=3)
    root = start(model__checkpoint=moved, train__steps=3)
    assert find_checkpoint(root).meta["provenance"]["base"] == str(tmp_path / "moved" / "0")


@pytest.mark.parametrize("content", ["", '{"step": 1', "[]", "\x00\x00", '{"starts": [{}]}\n'])
def test_a_damaged_file_beside_the_checkpoints_is_set_aside(start, tmp_path, capsys, content):
    start()
    names = ("metrics.jsonl", "goodput.json", "config.json")
    readable = {("metrics.jsonl", ""), ("metrics.jsonl", '{"step": 1'), ("metrics.jsonl", "[]"),
                ("metrics.jsonl", "\x00\x00"), ("config.json", '{"starts": [{}]}\n')}  # fmt: skip
    for name in names:
        (tmp_path / "run" / name).write_text(content)
    start(train__steps=3)
    said = capsys.readouterr().err
    for name in names:
        path = tmp_path / "run" / name
        aside = path.with_name(f"{name}.damaged")
        if (name, content) in readable:  # no line, or a last one without its end
            assert not aside.exists()
        else:
            assert aside.read_text() == content and f"{path}: cannot be read" in said
    assert read_metrics(tmp_path / "run")[-1]["step"] == 3
    assert read_goodput(tmp_path / "run")[-1]["last_step"] == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 3


def test_fewer_steps_than_are_done_are_refused(start):
    start(train__steps=3)
    with pytest.raises(
        ValueError, match=r"^train.steps: must be at least the 3 that .*run has done"
    ):
        start()


def test_a_finished_run_started_again_keeps_its_account(start, tmp_path):
    start()
    before = (tmp_path / "run" / "goodput.json").read_text()
    start()
    assert (tmp_path / "run" / "goodput.json").read_text() == before
    start(train__steps=3)
    starts = read_goodput(tmp_path / "run")
    assert len(starts) == 2 and starts[0]["complete"]
    assert "gap" not in summarize(starts)  # nobody waited for it


def test_an_extended_cosine_says_where_the_rate_jumps_to(start, capsys):
    start(train__steps=3)
    assert "learning rate" not in capsys.readouterr().err
    start(train__steps=30)
    said = capsys.readouterr().err
    assert "warning: learning rate: step 4 has" in said and "were 3 and are 30" in said
    start(train__steps=30, schedule__peak_frac=0.1)
    assert "learning rate" not in capsys.readouterr().err.replace("schedule.peak_frac", "")
