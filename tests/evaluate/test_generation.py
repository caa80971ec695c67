"""Generated tokens against transformers, against a forward pass without cache, and themselves."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transposed import params_of_transformers

from ellama_jax.core.sharding import make_mesh
from ellama_jax.evaluate import decoding, generation
from ellama_jax.evaluate.generation import Prompt
from ellama_jax.model import llama
from ellama_jax.model.presets import get_preset

CONFIG = dataclasses.replace(get_preset("tiny"), vocab_size=102, max_seq_len=96)
END = 7


@pytest.fixture(scope="module")
def params():
    # Ten times the usual spread: near-uniform predictions would make every choice a near tie.
    drawn = llama.init_params(CONFIG, seed=5)
    return jax.tree.map(lambda x: x * 10 if x.std() > 0 else x, drawn)


def spell(ids):
    """Two letters a token, so that a stop string may lie across tokens."""
    return "".join(f"{chr(97 + i % 26)}{chr(65 + i // 26)}" for i in ids)


def write(params, prompts, **options):
    options = {"decode": spell, "end_ids": [END], **options}
    return generation.generate(params, options.pop("config", CONFIG), prompts, **options)


def random_prompts(seed, count, most=60, **settings):
    rng = np.random.default_rng(seed)
    settings = {"max_new_tokens": 12, **settings}
    return [
        Prompt([1, *rng.integers(8, CONFIG.vocab_size, rng.integers(0, most)).tolist()], **settings)
        for _ in range(count)
    ]


@jax.jit
def next_logits(params, tokens, length):
    row = tokens[None]
    positions = jnp.arange(row.shape[1])[None]
    hidden = llama.hidden_states(params, CONFIG, row, positions, jnp.ones_like(row))
    return llama.project_logits(params, CONFIG, hidden[0, length - 1])


def write_without_cache(params, prompt):
    ids = list(prompt.ids)
    for _ in range(prompt.max_new_tokens):
        padded = np.zeros(CONFIG.max_seq_len, np.int32)
        padded[: len(ids)] = ids
        ids.append(int(next_logits(params, padded, len(ids)).argmax()))
        if ids[-1] == END:
            return ids[len(prompt.ids) : -1]
    return ids[len(prompt.ids) :]


def test_greedy_tokens_equal_those_of_a_forward_pass_without_cache(params):
    prompts = random_prompts(0, 7)
    found = write(params, prompts)
    expected = [write_without_cache(params, prompt) for prompt in prompts]
    assert [w.ids for w in found] == expected
    assert [w.text for w in found] == [spell(ids) for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 3  # the model does not always say the same


def test_greedy_tokens_equal_those_of_transformers():
    torch = pytest.importorskip("torch", reason="the reference model runs in torch")
    transformers = pytest.importorskip("transformers", reason="the reference model")
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, vocab_size=101)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=101, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=96,
            rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    params = params_of_transformers(reference, CONFIG.num_layers)
    prompts = [
        dataclasses.replace(p, ids=[i % 101 for i in p.ids]) for p in random_prompts(1, 6, most=40)
    ]
    found = write(params, prompts, config=config)
    for prompt, ours in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            theirs = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=prompt.max_new_tokens,
                do_sample=False, eos_token_id=END, pad_token_id=0,
            )  # fmt: skip
        theirs = theirs[0, len(prompt.ids) :].tolist()
        assert ours.ids == (theirs[:-1] if theirs[-1] == END else theirs)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_neither_batch_nor_order_nor_padding_changes_what_is_written(params, temperature):
    prompts = random_prompts(2, 6, most=30, temperature=temperature, top_p=0.9, top_k=40)
    expected = write(params, prompts, seed=3)
    assert write(params, prompts, seed=3, batch_tokens=1) == expected
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = write(params, [prompts[i] for i in order], seed=3, batch_tokens=300)
    assert shuffled == [expected[i] for i in order]
    # Behind a long neighbour every row has more padding.
    longest = Prompt([1, *range(8, 88)], max_new_tokens=12)
    assert write(params, [longest, *prompts], seed=3)[1:] == expected


@pytest.mark.parametrize(
    "sizes",
    [{"data": 2, "fsdp": 2, "context": 1, "tensor": 2}, {"data": 1, "fsdp": 2, "context": 4, "tensor": 1}],
    ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items() if v > 1),
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_mesh_of_eight_devices_writes_the_same(params, sizes, temperature):
    prompts = random_prompts(4, 5, temperature=temperature, top_k=30)
    expected = write(params, prompts, seed=1)
    mesh = make_mesh(sizes)
    abstract = llama.abstract_params(CONFIG, mesh=mesh)
    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), params, abstract)
    assert write(placed, prompts, seed=1, mesh=mesh) == expected


def test_draws_follow_the_seed_and_copies_of_a_prompt_differ(params):
    prompts = random_prompts(6, 1, temperature=1.0) * 4
    found = write(params, prompts, seed=0)
    assert len({tuple(w.ids) for w in found}) > 1
    assert write(params, prompts, seed=0) == found
    assert write(params, prompts, seed=1) != found


def test_every_step_draws_anew(params):
    # So hot that all tokens are alike probable: a number drawn once would give one token throughout.
    (found,) = write(params, random_prompts(7, 1, temperature=1e6), end_ids=[])
    assert len(set(found.ids)) > 8


def test_draws_follow_the_probabilities(params):
    (prompt,) = random_prompts(8, 1, temperature=0.7, max_new_tokens=1)
    padded = np.zeros(CONFIG.max_seq_len, np.int32)
    padded[: len(prompt.ids)] = prompt.ids
    expected = np.asarray(jax.nn.softmax(next_logits(params, padded, len(prompt.ids)) / 0.7))
    found = write(params, [prompt] * 2000, end_ids=[])
    counts = np.bincount([w.ids[0] for w in found], minlength=CONFIG.vocab_size)
    # Four standard errors of each share, and a little for the rare ones.
    allowed = 4 * np.sqrt(expected * (1 - expected) / 2000) + 2 / 2000
    assert (np.abs(counts / 2000 - expected) < allowed).all()


def test_what_is_drawn_from_equals_the_filters_of_transformers():
    torch = pytest.importorskip("torch", reason="the reference filters run in torch")
    process = pytest.importorskip(
        "transformers.generation.logits_process", reason="the reference filters"
    )
    logits = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * 3
    for top_p, top_k in ((0.5, 0), (0.9, 7), (1.0, 3), (1e-6, 0), (0.95, 50), (1.0, 0)):
        theirs = torch.from_numpy(logits.copy())
        if top_k:
            theirs = process.TopKLogitsWarper(top_k)(None, theirs)
        if top_p < 1:
            theirs = process.TopPLogitsWarper(top_p)(None, theirs)
        ours = jax.vmap(lambda row: decoding.keep_probable(row, top_p, top_k))(logits)  # noqa: B023
        np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())


def test_text_ends_before_a_stop_string_that_lies_across_tokens(params):
    (prompt,) = random_prompts(9, 1, max_new_tokens=40)
    (whole,) = write(params, [prompt], end_ids=[])
    stop = whole.text[41:43]  # the second letter of one token and the first of the next
    (found,) = write(params, [dataclasses.replace(prompt, stops=("??", stop))], end_ids=[])
    assert found.text == whole.text.split(stop)[0]
    assert found.ended_by == "stop"
    assert whole.ended_by == "length"
    assert len(found.ids) < len(whole.ids)  # the row stopped and did not write in vain


def test_rows_stop_one_by_one(params):
    long, short = random_prompts(10, 2, max_new_tokens=40)
    whole = write(params, [long, short], end_ids=[])
    stop = whole[1].text[4:8]
    stopped = dataclasses.replace(short, stops=(stop,))
    found = write(params, [long, stopped], end_ids=[])
    assert found[0] == whole[0]
    assert found[1].text == whole[1].text.split(stop)[0]


def test_a_token_that_ends_texts_is_not_part_of_them(params):
    (prompt,) = random_prompts(11, 1)
    (whole,) = write(params, [prompt], end_ids=[])
    end = whole.ids[5]
    (found,) = write(params, [prompt], end_ids=[END, end])
    assert found.ids == whole.ids[: whole.ids.index(end)]
    assert found.ended_by == "end"


def test_a_long_prompt_loses_its_left_and_says_so(params, caplog):
    ids = np.random.default_rng(12).integers(8, CONFIG.vocab_size, 120).tolist()
    long, cut = Prompt(ids, 12), Prompt(ids[-84:], 12)  # 96 positions less 12 to write
    with caplog.at_level(logging.WARNING):
        found, expected = write(params, [long, cut])
    assert found == dataclasses.replace(expected, truncated_tokens=36)
    assert "1 of 2 prompts were longer than 96 tokens" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt([], 4), "prompt 0: must have at least one token"),
        (Prompt([1], 0), "max_new_tokens: must be at least 1, got 0"),
        (Prompt([1], 96), r"max_new_tokens: must be below the model's max_seq_len \(96\), got 96"),
        (Prompt([1], 4, temperature=-1), "temperature: must be at least 0, got -1"),
        (Prompt([1], 4, top_p=0.0), "top_p: must be above 0 and at most 1, got 0.0"),
        (Prompt([1], 4, top_k=-1), "top_k: must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_written_is_refused(params, prompt, message):
    with pytest.raises(ValueError, match=message):
        write(params, [prompt])


def test_no_prompts_write_nothing(params):
    assert write(params, []) == []


def test_batches_keep_to_the_budget_in_few_shapes():
    prompts = random_prompts(13, 200, most=80)
    kept = [tuple(p.ids) for p in prompts]
    batches = list(generation._make_batches(prompts, kept, 1024, 1))
    assert sorted(n for b in batches for n in b.numbers) == list(range(200))
    assert all(b.rows * (b.width + b.num_new) <= 1024 for b in batches)
    assert all(len(kept[n]) <= b.width for b in batches for n in b.numbers)
    assert len({(b.rows, b.width, b.num_new) for b in batches}) <= 5


def test_bfloat16_writes_nearly_what_float32_does(params):
    prompts = random_prompts(15, 6, max_new_tokens=4)
    exact, rounded = write(params, prompts), write(params, prompts, compute_dtype=jnp.bfloat16)
    same = sum(a.ids[0] == b.ids[0] for a, b in zip(exact, rounded, strict=True))
    assert same >= 4


def test_the_cache_is_in_the_compute_dtype(params):
    prompt = random_prompts(14, 1)[0]
    state = decoding.start(
        params, CONFIG, np.array([prompt.ids]), np.array([len(prompt.ids)]), np.array([4]),
        np.array([END]), decoding.Sampling(*np.zeros((4, 1)), np.uint32(0)), num_new=4,
        compute_dtype=jnp.dtype(jnp.bfloat16), sampled=False,
    )  # fmt: skip
    assert state.keys.dtype == jnp.bfloat16
    assert state.keys.shape == (2, 1, len(prompt.ids) + 4, 2, 16)


def test_a_step_needs_little_memory_beside_the_cache():
    config = dataclasses.replace(get_preset("tiny"), num_layers=8, max_seq_len=8192)
    shape, rows = jax.ShapeDtypeStruct, 2
    ints, floats = shape((rows,), jnp.int32), shape((rows,), jnp.float32)
    sampling = decoding.Sampling(
        floats, floats, ints, shape((rows,), jnp.uint32), shape((), jnp.uint32)
    )
    cache = shape((8, rows, 8192, config.num_kv_heads, config.head_dim), jnp.float32)
    state = decoding.Progressed(
        cache, cache, shape((rows, 64), jnp.int32), ints, shape((rows,), bool), shape((), jnp.int32)
    )
    compiled = decoding.advance.lower(
        llama.abstract_params(config), config, state, state.done, state.step, ints, ints,
        shape((1,), jnp.int32), sampling, sampled=False,
    ).compile()  # fmt: skip
    memory, cache_bytes = compiled.memory_analysis(), 2 * cache.size * 4
    assert memory.alias_size_in_bytes >= cache_bytes  # written in place
    assert memory.temp_size_in_bytes < cache_bytes / 2  # one layer's part at a time
