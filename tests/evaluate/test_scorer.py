"""Scores against transformers, against the plain forward pass, and against themselves."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transposed import params_of_transformers

from ellama_jax.core.sharding import make_mesh
from ellama_jax.evaluate import scorer
from ellama_jax.evaluate.scorer import Request
from ellama_jax.model import llama
from ellama_jax.model.presets import get_preset

CONFIG = dataclasses.replace(get_preset("tiny"), vocab_size=101, max_seq_len=96)


@pytest.fixture(scope="module")
def params():
    # Ten times the usual spread: near-uniform predictions would hide misplaced targets.
    drawn = llama.init_params(CONFIG, seed=3)
    return jax.tree.map(lambda x: x * 10 if x.std() > 0 else x, drawn)


def random_requests(seed, count, max_context=30, max_choices=5, max_tokens=6):
    rng = np.random.default_rng(seed)

    def ids(least, most):
        return rng.integers(0, CONFIG.vocab_size, rng.integers(least, most + 1)).tolist()

    def choices():
        return [ids(1, max_tokens) for _ in range(rng.integers(1, max_choices + 1))]

    return [Request([1, *ids(0, max_context)], choices()) for _ in range(count)]


@jax.jit
def forward_alone(params, tokens):
    """Log-probabilities [T, V] of one sequence in a row of its own."""
    row = jnp.asarray(tokens)[None]
    positions = jnp.arange(row.shape[1])[None]
    hidden = llama.hidden_states(params, CONFIG, row, positions, jnp.ones_like(row))
    return jax.nn.log_softmax(llama.project_logits(params, CONFIG, hidden)[0])


def predict_alone(params, tokens):
    # Zeros behind the sequence spare a compilation for every length; nothing before sees them.
    padded = np.zeros(CONFIG.max_seq_len + 1, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(forward_alone(params, padded))[: len(tokens)]


def score_one_by_one(params, request):
    """Log-probability of each continuation from a plain forward pass over that sequence alone."""
    totals, greedy = [], []
    for continuation in request.continuations:
        predicted = predict_alone(params, [*request.context_ids, *continuation])
        predicted = predicted[len(request.context_ids) - 1 : -1]
        totals.append(float(sum(row[t] for row, t in zip(predicted, continuation, strict=True))))
        greedy.append([int(row.argmax()) for row in predicted] == list(continuation))
    return totals, greedy


def log_probs(scores):
    return np.concatenate([s.log_probs for s in scores])


def test_scores_equal_a_forward_pass_over_each_sequence_alone(params):
    requests = random_requests(seed=0, count=12)
    scores = scorer.score(params, CONFIG, requests, row_length=64, rows_per_batch=3)
    for request, found in zip(requests, scores, strict=True):
        expected, greedy = score_one_by_one(params, request)
        np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)
        assert found.greedy.tolist() == greedy


def test_greedy_marks_the_continuation_the_model_itself_would_write(params):
    context = [1, 17, 40]
    written = []
    for _ in range(4):
        written.append(int(predict_alone(params, [*context, *written])[-1].argmax()))
    spoiled = [*written[:3], (written[3] + 1) % CONFIG.vocab_size]
    (found,) = scorer.score(params, CONFIG, [Request(context, [written, spoiled])], row_length=16)
    assert found.greedy.tolist() == [True, False]


@pytest.mark.parametrize(
    ("row_length", "rows_per_batch"), [(40, 1), (64, 4), (96, 7), (256, 2), (10, 5)]
)
def test_scores_do_not_depend_on_row_length_or_batch(params, row_length, rows_per_batch):
    requests = random_requests(seed=1, count=20)
    expected = log_probs(scorer.score(params, CONFIG, requests, row_length=128, rows_per_batch=2))
    found = scorer.score(
        params, CONFIG, requests, row_length=row_length, rows_per_batch=rows_per_batch
    )
    np.testing.assert_allclose(log_probs(found), expected, rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_the_order_of_the_requests(params):
    requests = random_requests(seed=2, count=15)
    order = np.random.default_rng(0).permutation(len(requests))
    straight = scorer.score(params, CONFIG, requests, row_length=64)
    shuffled = scorer.score(params, CONFIG, [requests[i] for i in order], row_length=64)
    np.testing.assert_allclose(
        log_probs(shuffled), log_probs([straight[i] for i in order]), rtol=1e-5, atol=1e-5
    )


def test_scores_equal_those_of_transformers():
    torch = pytest.importorskip("torch", reason="the reference model runs in torch")
    transformers = pytest.importorskip("transformers", reason="the reference model")
    modeling = pytest.importorskip(
        "transformers.models.llama.modeling_llama", reason="needs a complete torch installation"
    )
    torch.manual_seed(0)
    reference = modeling.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=CONFIG.vocab_size, hidden_size=64, intermediate_size=192,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=96, rope_theta=10000.0, rms_norm_eps=1e-5,
            tie_word_embeddings=True, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    params = params_of_transformers(reference, CONFIG.num_layers)
    requests = random_requests(seed=5, count=10)
    scores = scorer.score(params, CONFIG, requests, row_length=80, rows_per_batch=2)
    for request, found in zip(requests, scores, strict=True):
        for value, continuation in zip(found.log_probs, request.continuations, strict=True):
            ids = torch.tensor([[*request.context_ids, *continuation]])
            with torch.no_grad():
                predicted = reference(ids).logits[0, :-1].log_softmax(-1)
            each = predicted.gather(1, ids[0, 1:, None])[len(request.context_ids) - 1 :]
            np.testing.assert_allclose(value, each.sum().item(), rtol=1e-4, atol=1e-4)


def test_a_mesh_of_eight_devices_gives_the_same_scores(params):
    requests = random_requests(seed=4, count=9)
    expected = log_probs(scorer.score(params, CONFIG, requests, row_length=64))
    mesh = make_mesh({"data": 2, "fsdp": 2, "context": 1, "tensor": 2})
    config = dataclasses.replace(CONFIG, vocab_size=102)  # divisible by the tensor axis
    table = jnp.concatenate([params["embed"]["table"], jnp.full((1, 64), 0.0)])
    padded = {**params, "embed": {"table": table}}
    abstract = llama.abstract_params(config, mesh=mesh)
    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), padded, abstract)
    alone = log_probs(scorer.score(padded, config, requests, row_length=64))
    found = log_probs(scorer.score(placed, config, requests, row_length=64, mesh=mesh))
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
    assert np.abs(found - expected).max() > 0  # the added word takes some probability


def test_a_long_request_loses_the_left_of_its_context_and_says_so(params, caplog):
    ids = np.random.default_rng(7).integers(0, CONFIG.vocab_size, 120).tolist()
    choices = [[5, 6, 7], [8]]
    with caplog.at_level(logging.WARNING):
        short, long = scorer.score(
            params, CONFIG, [Request([1, 2], choices), Request(ids, choices)], row_length=32
        )
    # 96 positions: the last 94 context tokens and two of the three tokens of the longest choice.
    assert (short.truncated_tokens, long.truncated_tokens) == (0, 26)
    assert "1 of 2 requests were longer than 96 tokens and lost 26 tokens" in caplog.text
    expected, _ = score_one_by_one(params, Request(ids[26:], choices))
    np.testing.assert_allclose(long.log_probs, expected, rtol=1e-5, atol=1e-5)


def test_a_request_with_too_many_choices_for_a_row_is_split(params):
    choices = np.random.default_rng(8).integers(0, CONFIG.vocab_size, (30, 6)).tolist()
    request = Request(list(range(1, 40)), choices)
    (found,) = scorer.score(params, CONFIG, [request], row_length=64)
    expected, _ = score_one_by_one(params, request)
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], [[1]]), "request 0: needs a context"),
        (Request([1], []), "request 0: needs a context and a continuation"),
        (Request([1], [[2], []]), "request 0: no continuation may be empty"),
        (Request([1], [[2] * 97]), r"at most max_seq_len \(96\) tokens, got 97"),
    ],
)
def test_unusable_requests_are_refused_by_number(params, request_, message):
    with pytest.raises(ValueError, match=message):
        scorer.score(params, CONFIG, [request_])


def test_sizes_below_one_are_refused(params):
    with pytest.raises(ValueError, match="row_length: must be at least 1, got 0"):
        scorer.score(params, CONFIG, [], row_length=0)


def test_no_requests_give_no_scores(params):
    assert scorer.score(params, CONFIG, []) == []


def test_a_row_holds_context_once_and_choices_without_their_last_token():
    pieces, _ = scorer._make_pieces([Request([1, 2, 3], [[10, 11, 12], [20, 21]])], 8, 8)
    (batch,) = scorer._make_batches(pieces, row_length=8, rows_per_batch=2, divisor=1)
    assert {name: rows.tolist() for name, rows in batch.rows.items()} == {
        "tokens": [[1, 2, 3, 10, 11, 20, 0, 0]],
        "positions": [[0, 1, 2, 3, 4, 3, 0, 0]],
        "segment_ids": [[1, 1, 1, 1, 1, 1, 0, 0]],
        "branch_ids": [[0, 0, 0, 1, 1, 2, 0, 0]],
    }
    assert batch.num_predictors == 4
    assert batch.predictors[:4].tolist() == [2, 3, 4, 5]
    expected = [[10, 20, 0, 0], [11, 0, 0, 0], [12, 0, 0, 0], [21, 0, 0, 0]]
    assert batch.targets[:4].tolist() == expected
    assert batch.owners == [(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0), (0, 1, 0, 1), (3, 0, 0, 1)]


def test_packing_wastes_little_and_the_last_batch_has_no_empty_rows():
    requests = random_requests(seed=9, count=200)
    pieces, _ = scorer._make_pieces(requests, 256, 512)
    batches = list(scorer._make_batches(pieces, row_length=256, rows_per_batch=8, divisor=1))
    laid = sum(b.num_tokens for b in batches)
    room = sum(b.rows["tokens"].size for b in batches)
    assert laid == sum(
        len(r.context_ids) + sum(len(c) - 1 for c in r.continuations) for r in requests
    )
    assert laid / room > 0.95
    assert len({b.rows["tokens"].shape for b in batches}) <= 2
    assert all((b.rows["segment_ids"] > 0).any(axis=1).all() for b in batches)


def test_long_requests_get_rows_of_few_lengths_within_the_budget_of_tokens(params):
    lengths = (10, 20, 40, 70, 90, 25, 33)
    requests = [Request(list(range(1, length)), [[5], [6]]) for length in lengths]
    pieces, _ = scorer._make_pieces(requests, 16, 96)
    batches = list(scorer._make_batches(pieces, row_length=16, rows_per_batch=8, divisor=1))
    assert {b.rows["tokens"].shape[1] for b in batches} == {16, 32, 64, 96}
    assert all(b.rows["tokens"].size <= 128 for b in batches)
    by_budget = scorer.score(params, CONFIG, requests, row_length=16, batch_tokens=128)
    expected = scorer.score(params, CONFIG, requests, row_length=96, rows_per_batch=1)
    np.testing.assert_allclose(log_probs(by_budget), log_probs(expected), rtol=1e-5, atol=1e-5)


def test_rolling_windows_equal_those_of_lm_eval():
    lm_eval_utils = pytest.importorskip("lm_eval.utils", reason="the reference for windows")
    for length in (1, 3, 4, 5, 8, 9, 23):
        tokens = list(range(100, 100 + length))
        expected = [
            lm_eval_utils.make_disjoint_window(pair)
            for pair in lm_eval_utils.get_rolling_token_windows(tokens, 1, 4, 1)
        ]
        found = list(scorer.rolling_windows(tokens, prefix_id=1, window=4))
        assert found == [(list(context), list(targets)) for context, targets in expected]


def test_rolling_scores_add_up_each_token_once(params):
    texts = [list(range(10, 33)), [5], [7, 8, 9]]
    found = scorer.score_rolling(params, CONFIG, texts, prefix_id=1, window=8, row_length=32)
    expected = [
        -sum(
            score_one_by_one(params, Request(context, [targets]))[0][0]
            for context, targets in scorer.rolling_windows(text, prefix_id=1, window=8)
        )
        for text in texts
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    whole = scorer.score_rolling(params, CONFIG, texts, prefix_id=1, window=64, row_length=32)
    alone, _ = score_one_by_one(params, Request([1], [texts[0]]))
    np.testing.assert_allclose(whole[0], -alone[0], rtol=1e-5)


def test_a_window_below_one_token_is_refused():
    with pytest.raises(ValueError, match="window: must be at least 1 token, got 0"):
        list(scorer.rolling_windows([1, 2], prefix_id=0, window=0))
