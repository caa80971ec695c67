"""SeqIO tasks keep every id, and give the texts of others to `ellama prepare`."""

import json
from types import SimpleNamespace

import pytest
from small_corpus import TEXTS, document, make_tokenizer, write_jsonl

from ellama_jax.corpus.curation_output import to_line, write_shard
from ellama_jax.tokens import tasks
from ellama_jax.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


def specials(tokenizer):
    return (tokenizer.bos_id, tokenizer.eos_id)


def test_vocabulary_passes_seqios_own_round_trip(tokenizer):
    tf = pytest.importorskip("tensorflow", reason="SeqIO needs TensorFlow")
    vocabulary = tasks.make_vocabulary(tokenizer)
    assert (vocabulary.bos_id, vocabulary.eos_id) == specials(tokenizer)
    assert vocabulary.vocab_size == tokenizer.vocab_size
    for texts in TEXTS.values():
        for text in texts:
            ids = vocabulary.encode(text)
            in_graph = vocabulary.encode_tf(tf.constant(text))
            assert ids == in_graph.numpy().tolist() == tokenizer.encode(text)
            assert vocabulary.decode(ids) == vocabulary.decode_tf(in_graph).numpy().decode() == text


def test_vocabulary_does_not_read_id_0_after_eos_as_text(tokenizer):
    tf = pytest.importorskip("tensorflow", reason="SeqIO needs TensorFlow")
    vocabulary = tasks.make_vocabulary(tokenizer)
    ids = [0, tokenizer.eos_id, 0, 0]
    assert vocabulary.decode(ids) == "!<|end_of_text|>"
    assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == "!<|end_of_text|>"


def test_vocabularies_of_equal_tokenizers_are_equal(tokenizer, tokenizer_dir):
    vocabulary = tasks.make_vocabulary(tokenizer)
    assert vocabulary == tasks.make_vocabulary(load_tokenizer(tokenizer_dir))
    other = SimpleNamespace(fingerprint="0")
    assert vocabulary != tasks.make_vocabulary(other)


def test_task_gives_the_ids_of_every_document_in_order_and_keeps_id_0(tmp_path, tokenizer):
    texts = ["!", "! !!", "Jacke", "!Jacke!"]
    path = write_jsonl(tmp_path / "documents.jsonl", [document(text) for text in texts])
    task = tasks.register_documents("task_order", path, tokenizer)
    found = [ids.tolist() for ids in tasks.read_ids(task)]
    assert found == [tokenizer.encode(text) for text in texts]
    assert found[0] == [0] and found[1][0] == 0


def test_task_can_be_had_by_name_and_registered_again(tmp_path, tokenizer):
    seqio = pytest.importorskip("seqio", reason="reference: SeqIO's registry")
    for text in ("alt", "neu"):
        path = write_jsonl(tmp_path / f"{text}.jsonl", [document(text)])
        tasks.register_documents("task_named", path, tokenizer)
    found = seqio.get_mixture_or_task("task_named").get_dataset(None, shuffle=False)
    assert [tokenizer.decode(e["targets"]) for e in found.as_numpy_iterator()] == ["neu"]


def test_task_of_several_files_reads_one_after_the_other(tmp_path, tokenizer):
    paths = [write_jsonl(tmp_path / f"{t}.jsonl", [document(t)]) for t in ("eins", "zwei")]
    task = tasks.register_documents("task_files", paths, tokenizer)
    assert [tokenizer.decode(ids) for ids in tasks.read_ids(task)] == ["eins", "zwei"]


def test_mixture_draws_documents_at_its_rates(tmp_path, tokenizer):
    for name in ("left", "right"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [document(name)] * 400)
        tasks.register_documents(f"task_{name}", path, tokenizer)
    mixture = tasks.make_mixture("both", {"task_left": 3.0, "task_right": 1.0})
    dataset = mixture.get_dataset(None, split="train", shuffle=False, seed=0).take(400)
    drawn = [tokenizer.decode(e["targets"]) for e in dataset.as_numpy_iterator()]
    assert 0.68 < drawn.count("left") / 400 < 0.82
    assert set(drawn) == {"left", "right"}


def test_a_curation_is_a_mixture_of_a_task_for_each_set(tokenizer, tmp_path):
    files = []
    for (domain, language), texts in TEXTS.items():
        name = f"documents/train/{domain}-{language}-shop-00000-of-00001.jsonl.gz"
        lines = [to_line(document(text, domain, language)) for text in texts]
        shard = write_shard(str(tmp_path / name), [(bytes([n]), x) for n, x in enumerate(lines)])
        files.append({"name": name} | shard)
    with pytest.raises(ValueError, match="was never finished"):
        tasks.register_curation("shop", tmp_path, tokenizer)
    (tmp_path / "curation.json").write_text(json.dumps({"files": files}))
    mixture = tasks.register_curation("shop", tmp_path, tokenizer)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {
        "shop.ecommerce_de_shop": 3.0, "shop.ecommerce_fr_shop": 1.0, "shop.general_de_shop": 2.0,
    }  # fmt: skip
    task = next(task for task in mixture.tasks if task.name == "shop.general_de_shop")
    found = [tokenizer.decode(ids) for ids in tasks.read_ids(task)]
    assert found == TEXTS["general", "de"]
