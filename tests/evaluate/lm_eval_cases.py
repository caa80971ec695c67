"""A tiny model on disk in both forms, local tasks of every type, and lm-eval's own backend on it."""

import json
import shutil

import tokenizers
from tokenizers.processors import TemplateProcessing

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] "
    "{{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TEXTS = [
    "Stainless steel water bottle, 750 ml, keeps drinks cold.",
    "Ladies' running shoes in blue; size 38. Breathable mesh.",
    "Kabelloser Kopfhörer mit Geräuschunterdrückung, schwarz.",
    "A wooden table made of solid oak for six people. " * 6,
]


def write_model(folder, tokenizer_dir, *, bos, max_length=128, seed=0):
    """Writes random weights as a Hugging Face directory; `bos`: tokenizer.json puts BOS first."""
    import torch
    import transformers

    shutil.copytree(tokenizer_dir, folder)
    path = folder / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    begin, end = (tokenizer.token_to_id(config[name]) for name in ("bos_token", "eos_token"))
    if bos:
        token = config["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, begin)]
        )
        tokenizer.save(str(path))
    config["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=max_length, rope_theta=10000.0, rms_norm_eps=1e-5,
            tie_word_embeddings=True, initializer_range=0.2, bos_token_id=begin, eos_token_id=end,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def their_model(folder, **settings):
    """Returns lm-eval's own backend on a Hugging Face directory."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3, **settings)


def write_tasks(folder):
    """Writes one task of each output type, with its data beside it; returns their names."""
    folder.mkdir(parents=True)
    docs = [
        {
            "question": text[:30],
            "choices": ["blue", "solid oak", "750 ml", "schwarz"],
            "answer": number % 4,
            "text": text,
        }
        for number, text in enumerate(TEXTS * 2)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    head = (
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {folder / 'docs.jsonl'}\n"
        "test_split: test\nfewshot_split: test\nmetadata:\n  version: 1\n"
    )
    bodies = {
        "local_choice": (
            'output_type: multiple_choice\ndoc_to_text: "Q: {{question}}\\nA:"\n'
            "doc_to_choice: choices\ndoc_to_target: answer\n"
            "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
        ),
        "local_cloze": (
            "output_type: loglikelihood\ndoc_to_text: '{{text[:20]}}'\n"
            "doc_to_target: '{{text[20:40]}}'\n"
            "metric_list:\n  - metric: perplexity\n  - metric: acc\n"
        ),
        "local_rolling": (
            "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
            "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
        ),
        "local_writing": (
            'output_type: generate_until\ndoc_to_text: "Q: {{question}}\\nA:"\n'
            "doc_to_target: '{{text}}'\ngeneration_kwargs:\n  until: [\"\\n\", e]\n"
            "  max_gen_toks: 24\n  do_sample: false\nmetric_list:\n  - metric: exact_match\n"
        ),
    }
    for name, body in bodies.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{body}")
    return sorted(bodies)
