"""The model `ellama` against lm-eval's own Hugging Face backend on the same weights."""

import types

import lm_eval_cases as cases
import numpy as np
import pytest

from ellama_jax.core.sharding import make_mesh

pytest.importorskip("torch", reason="lm-eval's own backend runs in torch")
pytest.importorskip("transformers", reason="lm-eval's own backend")

from ellama_jax.evaluate import lm_eval_model
from ellama_jax.evaluate.lm_eval_model import EllamaLM


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no-bos"])
def folder(request, tmp_path_factory, tokenizer_dir):
    place = tmp_path_factory.mktemp("model") / "hf"
    return cases.write_model(place, tokenizer_dir, bos=request.param)


@pytest.fixture(scope="module")
def theirs(folder):
    return cases.their_model(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return EllamaLM(str(folder), batch_tokens=512, row_length=128)


def requests(*arguments):
    return [types.SimpleNamespace(args=args) for args in arguments]


PAIRS = requests(
    *[(text[:25], text[25:60]) for text in cases.TEXTS],
    *[("Colour:", choice) for choice in (" blue", " red", " dark green", " blue and white")],
    ("A context that ends in spaces  ", "word"),
    ("", "no context at all"),
    ("", "<|begin_of_text|>with a beginning of its own"),
    ("<|begin_of_text|>begun", " already"),
    (cases.TEXTS[3] * 3, " far too long a context"),
    (cases.TEXTS[3] * 3, " far too long"),
)


def test_log_likelihoods_and_greedy_flags_equal_theirs(ours, theirs):
    expected, found = theirs.loglikelihood(PAIRS), ours.loglikelihood(PAIRS)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_the_model_would_write_is_greedy_for_both(ours, theirs):
    prompt = "Stainless steel"
    (written,) = ours.generate_until(requests((prompt, {"until": [], "max_gen_toks": 3})))
    pairs = requests((prompt, written), (prompt, written + "x"))
    expected = [greedy for _, greedy in theirs.loglikelihood(pairs)]
    assert [greedy for _, greedy in ours.loglikelihood(pairs)] == expected


def test_rolling_log_likelihoods_equal_theirs(ours, theirs):
    texts = requests(*[(text,) for text in [*cases.TEXTS, cases.TEXTS[3] * 4, "x"]])
    expected = theirs.loglikelihood_rolling(texts)
    np.testing.assert_allclose(ours.loglikelihood_rolling(texts), expected, atol=1e-4, rtol=1e-6)


def test_written_texts_equal_theirs(ours, theirs):
    settings = {"until": ["\n\n", "er"], "max_gen_toks": 24, "do_sample": False}
    short = {"until": "a", "max_gen_toks": 7}
    prompts = requests(
        *[(text[:40], settings) for text in cases.TEXTS],
        *[(text[:30], short) for text in cases.TEXTS],
        (cases.TEXTS[3] * 3, settings),
        ("<|begin_of_text|>begun", {"until": [], "max_gen_toks": 12}),
    )
    expected = theirs.generate_until(prompts)
    assert ours.generate_until(prompts) == expected
    assert len(set(expected)) > 5


def test_bos_can_be_asked_for_and_refused(folder):
    for add in (True, False):
        ours, theirs = (
            make(str(folder), add_bos_token=add) for make in (EllamaLM, cases.their_model)
        )
        for text in ("blue", "<|begin_of_text|>blue"):
            assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_encode("blue", add_special_tokens=False) == theirs.tok_encode(
            "blue", add_special_tokens=False
        )
        pairs = PAIRS[:3]
        np.testing.assert_allclose(
            [x for x, _ in ours.loglikelihood(pairs)],
            [x for x, _ in theirs.loglikelihood(pairs)],
            atol=1e-4,
        )


def test_what_names_the_model_to_lm_eval_equals_theirs(ours, theirs):
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.chat_template(True) == theirs.chat_template(True)


@pytest.mark.parametrize("begin_answer", [True, False])
def test_chats_are_laid_out_as_theirs(ours, theirs, begin_answer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What colour? "},
        {"role": "assistant", "content": "The colour is "},
    ]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=begin_answer)
    assert ours.apply_chat_template(chat, add_generation_prompt=begin_answer) == expected


@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (2, 1, 2, 2)], ids=["fsdp", "context"])
def test_a_mesh_gives_the_same_answers(folder, ours, sizes):
    axes = ("data", "fsdp", "context", "tensor")
    mesh = make_mesh(dict(zip(axes, sizes, strict=True)))
    loaded = lm_eval_model.load(str(folder), mesh=mesh)
    placed = EllamaLM(loaded=loaded, batch_tokens=512, row_length=128)
    np.testing.assert_allclose(
        [x for x, _ in placed.loglikelihood(PAIRS)],
        [x for x, _ in ours.loglikelihood(PAIRS)],
        atol=1e-4,
    )
    prompts = requests(*[(text[:40], {"until": ["\n"], "max_gen_toks": 9}) for text in cases.TEXTS])
    assert placed.generate_until(prompts) == ours.generate_until(prompts)


def test_a_long_context_is_cut_on_the_left_and_counted(folder):
    ours = EllamaLM(str(folder), max_length=32)
    ours.loglikelihood(PAIRS)
    long = sum(
        len(context) + len(continuation) > 33
        for context, continuation in (
            ours._encode_pair(*request.args) for request in PAIRS if request.args[0]
        )
    )
    assert ours.truncated_requests == long > 2


def test_equal_contexts_are_computed_once(ours, monkeypatch):
    scored = []
    score = lm_eval_model.scorer.score

    def counting(params, config, requests, **options):
        scored.extend(requests)
        return score(params, config, requests, **options)

    monkeypatch.setattr(lm_eval_model.scorer, "score", counting)
    ours.loglikelihood(requests(*[("Colour:", f" {word}") for word in ("blue", "red", "green")]))
    assert [len(request.continuations) for request in scored] == [3]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("A context", ""), "continuation: must not be empty, got '' after a context that ends 'A"),
        (("Colour:", " blue" * 200), "continuation: must be at most 128 tokens long, got"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused_with_their_text(ours, pair, message):
    with pytest.raises(ValueError, match=message):
        ours.loglikelihood(requests(pair))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, r"generation_kwargs: must be among .* got {'num_beams': 4}"),
        ({"max_gen_toks": 128}, r"max_new_tokens: must be below the model's max_seq_len \(128\)"),
    ],
)
def test_generation_that_cannot_be_done_is_refused(ours, settings, message):
    with pytest.raises(ValueError, match=message):
        ours.generate_until(requests(("Colour:", {"until": [], **settings})))


def test_one_beam_is_no_other_generation(ours):
    plain = {"until": [], "max_gen_toks": 5}
    beam = {**plain, "num_beams": 1, "repetition_penalty": 1.0}
    first, second = ours.generate_until(requests(("Colour:", plain), ("Colour:", beam)))
    assert first == second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_length": 500},
            r"max_length: must be above 1 and at most max_seq_len \(128\), got 500",
        ),
        ({"batch_tokens": 0}, "batch_tokens: must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype: must be auto, float32 or bfloat16, got int8"),
    ],
)
def test_settings_out_of_range_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        EllamaLM(str(folder), **settings)


def test_a_model_must_be_named():
    with pytest.raises(ValueError, match="checkpoint: must name a checkpoint"):
        EllamaLM()
