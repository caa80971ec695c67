"""A SeqIO mixture streamed straight into training, from the command line on."""

import json
import shutil

import pytest
from test_loop import assert_same_state, steady

from ellama_jax.train.loop import prepare_run, train
from ellama_jax.train.metrics import read_metrics

WORDS = {"en": "red lamp oak table price", "de": "rote Lampe Eiche Tisch Preis"}
TASKS = """
from ellama_jax.tokens.tasks import make_mixture, register_documents
from ellama_jax.tokens.tokenizer import load_tokenizer
tokenizer = load_tokenizer({tokenizer!r})
for name in ("en", "de"):
    register_documents("words_" + name, {directory!r} + "/" + name + ".jsonl", tokenizer)
make_mixture("words", {{"words_en": 2.0, "words_de": 1.0}})
"""


@pytest.fixture
def stream_config(tiny_config, windows_dir, tmp_path):
    """The tiny run on two tasks that a file registers; windows_dir gives the tokenizer alone."""
    for language, words in WORDS.items():
        row = {"domain": "general", "language": language, "source": "test"}
        rows = [{**row, "text": " ".join(words.split()[n % 3 :] * (1 + n % 2))} for n in range(60)]
        lines = (json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{language}.jsonl").write_text("".join(lines))
    file = tmp_path / "tasks.py"
    file.write_text(TASKS.format(tokenizer=str(windows_dir / "tokenizer"), directory=str(tmp_path)))
    return tiny_config(
        data__seqio_mixture="words", data__seqio_module=file, train__steps=4, mesh__fsdp=8
    )


@pytest.mark.slow
def test_a_streamed_run_resumes_bit_for_bit(stream_config, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    train(prepare_run(stream_config, whole))
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    train(prepare_run(stream_config, workdir))
    records = read_metrics(workdir)
    assert steady(records) == steady(read_metrics(whole)) and len(records) == 4
    assert_same_state(workdir / "checkpoints", whole / "checkpoints")
    assert set(records[-1]["tokens_consumed"]) == {"seqio/words_de", "seqio/words_en"}
    # A batch has two rows: each has the losses of what is in it.
    assert {"loss/seqio/words_de", "loss/seqio/words_en"} <= {key for r in records for key in r}
    path = tmp_path / "en.jsonl"
    path.write_text(path.read_text().replace("lamp", "door"))
    with pytest.raises(ValueError, match="up to step 4, got another: rows was"):
        train(prepare_run(stream_config, workdir))
