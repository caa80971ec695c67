"""Long contexts: perplexity by position against a plain forward, and what is hidden where."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ellama_jax.corpus import catalogue
from ellama_jax.evaluate import card_text, long_context, scorecard
from ellama_jax.model import llama

LENGTH = 300


@pytest.fixture(scope="module")
def texts():
    """Two long texts a language, and one too short to reach the last interval."""
    words = [record["title"] for record in catalogue.generate_listings(0, 300)]
    long = [
        {"text": ". ".join(words[start::2]) + ".", "domain": "general", "language": language}
        for language in ("en", "de")
        for start in (0, 1)
    ]
    return [*long, {"text": "Too short.", "domain": "general", "language": "en"}]


@pytest.fixture(scope="module")
def model(checkpoints):
    params, config, tokenizer, _ = scorecard.load_model(checkpoints["base"])
    return params, config, tokenizer


@pytest.fixture(scope="module")
def measured(model, texts):
    return long_context.measure(*model, texts, max_length=LENGTH, row_length=256, rows_per_batch=2)


@functools.partial(jax.jit, static_argnames="config")
def _log_softmax(params, config, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = llama.hidden_states(params, config, tokens, positions, jnp.ones_like(tokens))
    return jax.nn.log_softmax(llama.project_logits(params, config, hidden)[0])


def predict(params, config, tokens):
    """[T] tokens -> [T, V] log-probabilities of one whole row, all positions at once."""
    return np.asarray(_log_softmax(params, config, tokens[None]))


def test_perplexity_by_position_is_that_of_a_plain_forward(measured, model, texts):
    params, config, tokenizer = model
    rows = {(r["language"], r["start"], r["end"]): r for r in measured["positions"]}
    assert [key[1:] for key in rows if key[0] == "de"] == [(0, 128), (128, 256), (256, LENGTH)]
    for language in ("en", "de"):
        chosen = [t["text"] for t in texts if t["language"] == language and len(t["text"]) > 99]
        by_token = []
        for text in chosen:
            tokens = np.array([tokenizer.bos_id, *tokenizer.encode(text)[:LENGTH]], np.int32)
            log_probs = predict(params, config, tokens[:-1])
            by_token.append(-log_probs[np.arange(LENGTH), tokens[1:]])
        for start, end in ((0, 128), (128, 256), (256, LENGTH)):
            row = rows[language, start, end]
            means = np.array(by_token)[:, start:end].mean(axis=1)
            assert row["nats_per_token"] == pytest.approx(means.mean(), rel=1e-5)
            assert row["perplexity"] == pytest.approx(np.exp(means.mean()), rel=1e-4)
            assert row["stderr"] == pytest.approx(means.std(ddof=1) / np.sqrt(2), rel=1e-3)
            assert row["n"] == 2  # the short text counts nowhere


def test_every_length_and_depth_has_needles_that_fit(model, texts):
    params, config, tokenizer = model
    items = long_context.make_needles(texts, tokenizer, LENGTH, tokenizer.bos_id, seed=0)
    assert {item["language"] for item in items} == {"en", "de"}
    assert {item["length"] for item in items} == {150, 300}
    cells = {(i["language"], i["length"], i["depth"]) for i in items}
    assert len(items) == len(cells) * long_context.NEEDLES
    assert len(cells) == 2 * 2 * len(long_context.DEPTHS)
    answers = set()
    for item in items:
        longest = max(map(len, item["choices_ids"]))
        assert len(item["context_ids"]) + longest == item["length"]
        assert item["context_ids"][0] == tokenizer.bos_id
        said = tokenizer.decode(item["context_ids"][1:])
        right = item["choices"][item["answer"]]
        assert len(set(item["choices"])) == 8 and said.count(f" {right}.") == 1
        assert not any(f" {c}." in said for c in item["choices"] if c != right)
        hay = said.rsplit("\n\n", 1)[0].rstrip()
        starts = ("The secret word of the city of", "Das Geheimwort der Stadt")
        assert hay.startswith(starts) or item["depth"] > 0
        assert hay.endswith(f" {right}.") or item["depth"] < 1
        # The needle and the question are about one city, and the answer is not given there.
        asked = said.rsplit("\n\n", 1)[1]
        assert right not in asked and said.endswith((" is", " lautet"))
        answers.add(item["answer"])
    assert len(answers) == 8


def test_depths_stand_in_their_order(model, texts):
    tokenizer = model[2]
    places = {}
    for item in long_context.make_needles(texts, tokenizer, 600, tokenizer.bos_id, seed=1):
        if item["length"] == 600:
            said = tokenizer.decode(item["context_ids"][1:])
            right = item["choices"][item["answer"]]
            places.setdefault(item["depth"], []).append(said.index(f" {right}.") / len(said))
    means = [np.mean(places[depth]) for depth in long_context.DEPTHS]
    assert means == sorted(means) and means[0] < 0.15 and means[-1] > 0.75


def test_the_same_seed_hides_the_same_needles(model, texts):
    tokenizer = model[2]
    first, again, other = (
        long_context.make_needles(texts, tokenizer, 256, tokenizer.bos_id, seed)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_most_probable_word_per_byte_is_the_answer(measured, model, texts):
    """One cell of the result, from logits of plain forwards."""
    params, config, tokenizer = model
    items = long_context.make_needles(texts, tokenizer, LENGTH, tokenizer.bos_id, seed=0)
    row = next(r for r in measured["needles"] if (r["length"], r["depth"]) == (150, 0.5))
    correct = []
    for item in (next(i for i in items if i["id"] == name) for name in row["ids"]):
        scores = []
        for word, ids in zip(item["choices"], item["choices_ids"], strict=True):
            tokens = np.array([*item["context_ids"], *ids], np.int32)
            tokens = np.pad(tokens, (0, 160 - len(tokens)))
            length = len(item["context_ids"]) + len(ids)
            log_probs = predict(params, config, tokens)
            at = np.arange(length - len(ids), length)
            scores.append(log_probs[at - 1, tokens[at]].sum() / len(word.encode()))
        correct.append(int(np.argmax(scores) == item["answer"]))
    assert row["correct"] == correct and row["chance"] == 1 / 8
    assert row["value"] == np.mean(correct)


def test_a_model_card_tells_long_contexts_too(measured):
    card = {"model": "base", "results": [], "long_context": measured}
    text = card_text.format_markdown([card], [], [])
    assert "### Long contexts" in text and "### All tasks" not in text
    assert long_context.format_long_context([card]) in text


def test_five_languages_have_sentences_words_and_cities():
    assert set(long_context._WORDS) == set(long_context._CITIES) == set(long_context.LANGUAGES)
    assert set(long_context.LANGUAGES) == {"en", "de", "fr", "it", "es"}
    for language in long_context.LANGUAGES:
        words = long_context._WORDS[language].split()
        assert len(words) == len(set(words)) == 12
        needle, question = long_context._SENTENCES[language]
        # The question ends as the needle begins, up to the word.
        assert question.split("\n")[1].split(": ")[1].removeprefix(" ") + " {word}." == needle


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (100, r"^--max-length: must lie between 256 tokens and the model's \d+, got 100"),
        (10**6, r"^--max-length: must lie between"),
        (
            None,
            r"^--long-context: must hold a text of \d+ tokens, the longest has \d+; give longer",
        ),
    ],
)
def test_lengths_that_cannot_be_measured_are_said(model, length, message):
    short = [{"text": "A few words.", "domain": "general", "language": "en"}]
    with pytest.raises(ValueError, match=message):
        long_context.measure(*model, short, max_length=length)


def test_the_verb_measures_base_and_adapted_side_by_side(checkpoints, texts, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in texts[:2]))
    outs = {}
    for name in ("base", "adapted"):
        outs[name] = tmp_path / f"{name}.json"
        scorecard.main_evaluate([
            "--checkpoint", str(checkpoints[name]), "--long-context", str(path), "--max-length",
            "256", "--row-length", "256", "--json", str(outs[name]),
        ])  # fmt: skip
    capsys.readouterr()
    scorecard.main_evaluate(["--scorecards", str(outs["base"]), str(outs["adapted"])])
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0].split() == ["perplexity", "by", "position", "base", "adapted"]
    for column, name in ((-2, "base"), (-1, "adapted")):
        result = scorecard.read_scorecard(outs[name])["long_context"]
        (row,) = (r for r in result["positions"] if r["start"] == 128)
        line = next(line for line in lines if line.strip().startswith("128 to 256"))
        assert line.split()[column] == f"{row['perplexity']:.3f}"
    assert "needles found, by depth" in lines
