"""A SeqIO mixture streamed into training: the Loader's batches, and exact where it resumes."""

import json

import numpy as np
import pytest
from test_loader import assert_batches_equal, host_rows, join_hosts, make_config

from ellama_jax.tokens.mixture import mixture_differences
from ellama_jax.tokens.streaming import Stream
from ellama_jax.tokens.tasks import make_mixture, make_vocabulary, register_documents
from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)

SHOP = [f"Lampe {n} aus Eiche, Preis {n * 7} EUR" for n in range(90)]
PROSE = ["! ! " + "the table stood by the window and the lamp " * (1 + n % 4) for n in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    bpe = train_byte_bpe([*SHOP, *PROSE], 400)
    save_tokenizer(path, bpe, bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT))
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def texts_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    for name, domain, texts in (("shop", "ecommerce", SHOP), ("prose", "general", PROSE)):
        rows = [{"text": t, "domain": domain, "language": "en", "source": name} for t in texts]
        lines = (json.dumps(row) + "\n" for row in rows)
        (path / f"{name}.jsonl").write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def mixture(tokenizer, texts_dir):
    for name in ("shop", "prose"):
        register_documents(f"stream_{name}", texts_dir / f"{name}.jsonl", tokenizer)
    make_mixture("stream_both", {"stream_shop": 3.0, "stream_prose": 1.0})
    return "stream_both"


def make_stream(tokenizer, name="stream_both", **changes):
    arguments = {"seqio_mixture": name, "seq_len": 64, "global_batch_size": 4, "max_epochs": 99.0}
    return Stream(make_config("unused", **(arguments | changes)), tokenizer)


def documents_of(batches, tokenizer):
    """Returns (source, ids without BOS and EOS) of the whole documents in batches."""
    found = []
    for batch in batches:
        for row in range(len(batch["source_ids"])):
            segments = batch["segment_ids"][row]
            for number in range(1, segments.max() + 1):
                ids = batch["inputs"][row][segments == number].tolist()
                if ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id:
                    found.append((int(batch["source_ids"][row]), tuple(ids[1:-1])))
    return found


def test_batches_have_the_format_of_the_loader(mixture, tokenizer):
    (batch,) = make_stream(tokenizer).iterate(0, 1)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    rows = ((4, 64), "int32")
    assert shapes == {
        "inputs": rows,
        "targets": rows,
        "segment_ids": rows,
        "positions": rows,
        "loss_weights": ((4, 64), "float32"),
        "source_ids": ((4,), "int32"),
    }


def test_an_epoch_is_every_document_once_whole_and_framed(mixture, tokenizer):
    stream = make_stream(tokenizer, "stream_prose")
    documents = [ids for _, ids in documents_of(stream.iterate(0, 20), tokenizer)]
    assert sorted(documents[:60]) == sorted(tuple(tokenizer.encode(text)) for text in PROSE)


def test_id_0_inside_text_is_no_padding(mixture, tokenizer):
    """ "!" is id 0 in a byte-level vocabulary, as in Llama 3's."""
    assert tokenizer.encode("!") == [0]
    batches = list(make_stream(tokenizer, "stream_prose").iterate(0, 3))
    zeros = sum(int(((b["inputs"] == 0) & (b["segment_ids"] > 0)).sum()) for b in batches)
    assert zeros > 10
    for batch in batches:
        padding = batch["segment_ids"] == 0
        assert not batch["loss_weights"][padding].any() and not batch["inputs"][padding].any()


def test_rates_are_shares_of_documents_and_rows_name_their_task(mixture, tokenizer):
    stream = make_stream(tokenizer)
    assert [source.name for source in stream.sources] == ["seqio/stream_prose", "seqio/stream_shop"]
    documents = documents_of(stream.iterate(0, 60), tokenizer)
    shop = {tuple(tokenizer.encode(text)) for text in SHOP}
    assert all((ids in shop) == (source == 1) for source, ids in documents)
    assert np.mean([source for source, _ in documents]) == pytest.approx(0.75, abs=0.03)


def test_whole_documents_leave_little_padding(mixture, tokenizer):
    batches = list(make_stream(tokenizer, seq_len=256).iterate(0, 8))
    assert np.mean([(b["segment_ids"] == 0).mean() for b in batches]) < 0.12


def test_equal_seeds_give_equal_batches_and_others_others(mixture, tokenizer):
    one, two = (list(make_stream(tokenizer).iterate(0, 12)) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert_batches_equal(first, second)
    other = list(make_stream(tokenizer, seed=5).iterate(0, 12))
    assert any((a["inputs"] != b["inputs"]).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_resuming_on_other_hosts_gives_the_same_bytes(mixture, tokenizer, num_hosts):
    whole = list(make_stream(tokenizer).iterate(0, 9))
    rows_of = [host_rows(host, num_hosts) for host in range(num_hosts)]
    hosts = [make_stream(tokenizer).iterate(5, 9, rows) for rows in rows_of]
    for step, parts in enumerate(zip(*hosts, strict=True), start=5):
        assert_batches_equal(join_hosts(parts, rows_of), whole[step])


def test_a_stream_goes_back_by_reading_again(mixture, tokenizer):
    stream = make_stream(tokenizer)
    first = list(stream.iterate(0, 4))
    for step in (2, 0):
        assert_batches_equal(next(stream.iterate(step, step + 1)), first[step])


def test_the_fingerprint_is_of_all_that_was_read(mixture, tokenizer, texts_dir):
    stream = make_stream(tokenizer)
    list(stream.iterate(0, 6))
    before = stream.mixture_until(6)
    assert make_stream(tokenizer).fingerprint_until(6) == before["rows"]
    assert stream.fingerprint_until(5) != before["rows"]
    path = texts_dir / "changed.jsonl"
    path.write_text((texts_dir / "shop.jsonl").read_text().replace("Eiche", "Ahorn"))
    register_documents("stream_changed", path, tokenizer)
    make_mixture("stream_now", {"stream_changed": 3.0, "stream_prose": 1.0})
    now = make_stream(tokenizer, "stream_now").mixture_until(6)
    now["tasks"] = before["tasks"]  # the names differ too
    assert [said.split()[0] for said in mixture_differences(before, now)] == ["rows"]


def test_reading_a_task_too_often_is_refused_or_warned_of(mixture, tokenizer, caplog):
    message = r"seqio/stream_shop may be read 2 times, and is read 2 times by step \d+; give it mo"
    with pytest.raises(ValueError, match=message):
        list(make_stream(tokenizer, max_epochs=2.0).iterate(0, 200))
    caps = {"seqio/stream_shop": 1.0}
    warned = make_stream(
        tokenizer, max_epochs_by_source=caps, on_repetition="warn", max_epochs=99.0
    )
    list(warned.iterate(0, 40))
    assert "data.max_epochs: seqio/stream_shop may be read 1 times, and is read 1" in caplog.text
    assert warned.epochs(0) == {"seqio/stream_prose": 0.0, "seqio/stream_shop": 0.0}
    assert warned.epochs(40)["seqio/stream_shop"] >= 1.0


def test_an_unknown_mixture_is_refused_with_the_nearest_name(mixture, tokenizer):
    message = r"^data.seqio_mixture: .* got stream_bothh; did you mean stream_both\?"
    with pytest.raises(ValueError, match=message):
        make_stream(tokenizer, "stream_bothh")
    with pytest.raises(ValueError, match=r"data.max_epochs_by_source.seqio/stream_shops: .* mean"):
        make_stream(tokenizer, max_epochs_by_source={"seqio/stream_shops": 1.0})


def test_a_module_that_registers_is_imported(tokenizer, texts_dir, tmp_path):
    file = tmp_path / "my_tasks.py"
    file.write_text(
        "from ellama_jax.tokens.tasks import register_documents\n"
        f"from test_streaming import current\n"
        f"register_documents('from_file', {str(texts_dir / 'shop.jsonl')!r}, current[0])\n"
    )
    current[:] = [tokenizer]
    stream = make_stream(tokenizer, "from_file", seqio_module=str(file))
    assert [source.name for source in stream.sources] == ["seqio/from_file"]
    with pytest.raises(
        ValueError, match="^data.seqio_module: must be .* got no_such_module: No mo"
    ):
        make_stream(tokenizer, "from_file", seqio_module="no_such_module")


current = []


def test_tasks_that_do_not_fit_the_model_are_refused(mixture, tokenizer, texts_dir, tmp_path):
    import seqio
    import tensorflow as tf

    def add(name, **features):
        seqio.TaskRegistry.remove(name)
        reader = seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"targets": "x"}),
            splits=["train"],
        )
        seqio.TaskRegistry.add(name, source=reader, preprocessors=[], output_features=features)

    bpe = train_byte_bpe(SHOP, 300)
    ends = bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    save_tokenizer(tmp_path / "other", bpe, *ends)
    other = load_tokenizer(tmp_path / "other")
    register_documents("stream_other", texts_dir / "shop.jsonl", other)
    with pytest.raises(
        ValueError, match=f"stream_other: must tokenise .* {other.fingerprint[:12]}"
    ):
        make_stream(tokenizer, "stream_other")
    add("stream_bytes", targets=seqio.Feature(seqio.ByteVocabulary(), add_eos=False))
    with pytest.raises(
        ValueError, match="must tokenise with the model's .* got ByteVocabulary; gi"
    ):
        make_stream(tokenizer, "stream_bytes")
    without = seqio.PassThroughVocabulary(10, eos_id=None)
    add("stream_endless", targets=seqio.Feature(without, add_eos=False))
    with pytest.raises(ValueError, match="must have a vocabulary with EOS, got PassThrough"):
        make_stream(tokenizer, "stream_endless")
    ours = seqio.Feature(make_vocabulary(tokenizer), add_eos=False)
    add("stream_pairs", inputs=ours, targets=ours)
    with pytest.raises(ValueError, match="must have the feature targets alone, .* got inputs, tar"):
        make_stream(tokenizer, "stream_pairs")


def test_a_broken_line_is_named_when_it_is_read(tokenizer, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": ""}\n')
    register_documents("stream_broken", tmp_path / "broken.jsonl", tokenizer)
    with pytest.raises(ValueError, match=r"^SeqIO task stream_broken: .*broken.jsonl:1: must be a"):
        list(make_stream(tokenizer, "stream_broken").iterate(0, 1))
