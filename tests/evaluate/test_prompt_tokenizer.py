"""Ids, texts and chats against transformers' tokenizer of the same directory."""

import json
import shutil

import pytest

from ellama_jax.evaluate.prompt_tokenizer import PromptTokenizer

# What templates of instruction-tuned models use: trimmed blocks, tojson, loop controls, the mark
# of the model's own words, a refusal, another special token.
TEMPLATE = """\
{%- if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
{{- bos_token }}
{% for message in messages %}
    {% if message['role'] == 'skip' %}{% continue %}{% endif %}
{{ message['role'] }}: {% generation %}{{ message['content'] | tojson }}{% endgeneration %}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}assistant:{{ note | default('') }}{% endif %}"""
CHAT = [
    {"role": "user", "content": 'Größe "38" <b>?'},
    {"role": "skip", "content": "unseen"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture
def folder(tmp_path, tokenizer_dir):
    shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def write_config(folder, **values):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def theirs(folder):
    transformers = pytest.importorskip("transformers", reason="the reference tokenizer")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    ["", "Blue shoes", "  spaces  ", "<|begin_of_text|>Größe<|end_of_text|>\n", "<|end_of_text|>"],
)
def test_texts_become_the_ids_of_transformers_and_texts_again(folder, text):
    ours, reference = PromptTokenizer(folder), theirs(folder)
    ids = reference.encode(text)
    assert ours.encode(text) == ids
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_special_tokens_in_a_prompt_are_read(folder):
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.encode("<|end_of_text|>") == [tokenizer.eos_token_id]
    assert tokenizer.decode(tokenizer.eos_token_id) == tokenizer.eos_token == "<|end_of_text|>"


@pytest.mark.parametrize("in_its_own_file", [True, False])
def test_chats_are_laid_out_as_by_transformers(folder, in_its_own_file):
    if in_its_own_file:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        write_config(folder, chat_template="not this one")
    else:
        write_config(folder, chat_template=TEMPLATE)
    ours, reference = PromptTokenizer(folder), theirs(folder)
    expected = reference.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True, note=" now"
    )
    assert ours.apply_chat_template(CHAT, note=" now") == expected
    assert expected.endswith("assistant: now")


def test_of_several_templates_the_default_is_taken(folder):
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    write_config(folder, chat_template=named)
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.chat_template == {"tools": "T", "default": "D"}
    assert tokenizer.apply_chat_template(CHAT) == "D"


def test_a_base_model_has_no_chats(folder):
    with pytest.raises(ValueError, match="chat template: the tokenizer must have one .* got none"):
        PromptTokenizer(folder).apply_chat_template(CHAT)


def test_a_template_that_refuses_a_chat_or_is_broken_is_one_error(folder):
    write_config(folder, chat_template=TEMPLATE)
    tools = [{"role": "tool", "content": "x"}]
    with pytest.raises(ValueError, match="chat template: must take the chat, got no tools"):
        PromptTokenizer(folder).apply_chat_template(tools)
    write_config(folder, chat_template="{% for")
    with pytest.raises(ValueError, match="chat template: must take the chat, got"):
        PromptTokenizer(folder).apply_chat_template(CHAT)


def test_a_template_runs_in_a_sandbox(folder):
    write_config(folder, chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="chat template: must take the chat, got access to attr"):
        PromptTokenizer(folder).apply_chat_template(CHAT)


def test_the_model_says_what_ends_its_texts_and_how_it_draws(folder):
    assert PromptTokenizer(folder).end_ids == {PromptTokenizer(folder).eos_token_id}
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    eos = PromptTokenizer(folder).eos_token_id
    assert PromptTokenizer(folder).end_ids == {3, eos}
    settings = {"eos_token_id": [5, 6], "top_p": 0.9, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.end_ids == {5, 6, eos}
    assert tokenizer.sampling == {"top_p": 0.9}


def test_a_directory_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold tokenizer.json"):
        PromptTokenizer(tmp_path)
