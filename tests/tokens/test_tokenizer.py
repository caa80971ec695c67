"""Tokenizers: no text becomes a special token, what is written loads again, also by others."""

import json
import shutil

import pytest
import tokenizers

from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    check_fits,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)

TEXTS = [
    "Wasserdichte Wanderjacke für Damen, 129,95 €",
    "Veste de randonnée imperméable à capuche",
    "Waterproof hiking jacket, size M, colour: green!",
    "The shop sells jackets. The jackets are waterproof.",
]


@pytest.fixture(scope="module")
def trained():
    return train_byte_bpe(TEXTS, 300)


@pytest.fixture
def tokenizer_dir(tmp_path, trained):
    bos_id, eos_id = trained.token_to_id(BEGIN_OF_TEXT), trained.token_to_id(END_OF_TEXT)
    save_tokenizer(tmp_path / "tokenizer", trained, bos_id, eos_id)
    return tmp_path / "tokenizer"


def edit_json(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def test_trained_tokenizer_ends_with_its_special_tokens_and_keeps_id_0_for_text(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (298, 299, 300)
    assert tokenizer.encode("!") == [0]


@pytest.mark.parametrize("text", [*TEXTS, "", " two  spaces\n\ttab", "日本語 🎿", "\x00\x7f"])
def test_every_text_comes_back_from_its_ids(tokenizer_dir, text):
    tokenizer = load_tokenizer(tokenizer_dir)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_have_names_and_every_id_a_spelling(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    assert tokenizer.special_tokens() == {298: BEGIN_OF_TEXT, 299: END_OF_TEXT}
    assert [tokenizer.token(i) for i in (0, 299, 300)] == ["!", END_OF_TEXT, ""]


@pytest.mark.parametrize("name", [END_OF_TEXT, BEGIN_OF_TEXT, f"a{END_OF_TEXT}b", "<|im_end|>"])
def test_names_of_special_tokens_in_text_are_ordinary_text(tmp_path, name):
    trained = train_byte_bpe(TEXTS, 300)
    trained.add_special_tokens(["<|im_end|>"])
    save_tokenizer(tmp_path / "t", trained, 298, 299)
    tokenizer = load_tokenizer(tmp_path / "t")
    ids = tokenizer.encode(name)
    assert not {298, 299, 300} & set(ids)
    assert tokenizer.decode(ids) == name
    assert tokenizer.encode_batch([name]) == [ids]


def test_eos_that_its_file_does_not_mark_as_special_still_stays_out_of_text(tokenizer_dir):
    content = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = False
    (tokenizer_dir / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    plain = tokenizers.Tokenizer.from_str(json.dumps(content))
    plain.encode_special_tokens = True
    assert 299 in plain.encode(END_OF_TEXT).ids  # the trap is real
    assert 299 not in load_tokenizer(tokenizer_dir).encode(END_OF_TEXT)


def test_special_ids_decode_to_their_names(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    ids = [tokenizer.bos_id, *tokenizer.encode("jacket"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == f"{BEGIN_OF_TEXT}jacket{END_OF_TEXT}"


def test_batch_gives_the_ids_of_single_texts(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_truncation_and_padding_left_in_the_file_do_not_touch_documents(tmp_path, trained):
    settings = tokenizers.Tokenizer.from_str(trained.to_str())
    settings.enable_truncation(3)
    settings.enable_padding(length=50)
    save_tokenizer(tmp_path / "t", settings, 298, 299)
    expected = trained.encode(TEXTS[0]).ids
    assert load_tokenizer(tmp_path / "t").encode(TEXTS[0]) == expected


def test_transformers_reads_the_directory_with_the_same_ids(tokenizer_dir):
    transformers = pytest.importorskip("transformers", reason="reference: transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    ours = load_tokenizer(tokenizer_dir)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


def test_directory_written_by_transformers_loads(tokenizer_dir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="reference: transformers")
    transformers.AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(tmp_path / "hf")
    theirs, ours = load_tokenizer(tmp_path / "hf"), load_tokenizer(tokenizer_dir)
    assert (theirs.bos_id, theirs.eos_id) == (298, 299)
    assert theirs.encode(TEXTS[1]) == ours.encode(TEXTS[1])


def test_fingerprint_is_that_of_the_content_not_of_the_file(tokenizer_dir, tmp_path):
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    copy = shutil.copytree(tokenizer_dir, tmp_path / "copy")
    content = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    reordered = dict(reversed(content.items()))
    (copy / "tokenizer.json").write_text(json.dumps(reordered, indent=4), encoding="utf-8")
    assert load_tokenizer(copy).fingerprint == fingerprint
    assert len(fingerprint) == 64


def test_fingerprint_changes_with_the_vocabulary_and_with_eos(tokenizer_dir, tmp_path):
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint
    other = train_byte_bpe(TEXTS[:2], 300)
    save_tokenizer(tmp_path / "other", other, 298, 299)
    assert load_tokenizer(tmp_path / "other").fingerprint != fingerprint
    edit_json(tokenizer_dir / "tokenizer_config.json", eos_token=BEGIN_OF_TEXT)
    assert load_tokenizer(tokenizer_dir).fingerprint != fingerprint


def test_special_ids_are_found_where_hugging_face_writes_them(tokenizer_dir):
    (tokenizer_dir / "tokenizer_config.json").unlink()
    (tokenizer_dir / "config.json").write_text('{"bos_token_id": 298, "eos_token_id": 298}')
    assert load_tokenizer(tokenizer_dir).eos_id == 298
    # More specific files win, and of several ends the first counts.
    (tokenizer_dir / "generation_config.json").write_text('{"eos_token_id": [299, 298]}')
    assert load_tokenizer(tokenizer_dir).eos_id == 299
    tokens = {"eos_token": {"content": BEGIN_OF_TEXT}, "bos_token": END_OF_TEXT}
    (tokenizer_dir / "special_tokens_map.json").write_text(json.dumps(tokens))
    tokenizer = load_tokenizer(tokenizer_dir)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (299, 298)


def test_bos_declared_as_none_is_not_taken_from_the_model_config(tokenizer_dir):
    edit_json(tokenizer_dir / "tokenizer_config.json", bos_token=None)
    (tokenizer_dir / "config.json").write_text('{"bos_token_id": 298}')
    assert load_tokenizer(tokenizer_dir).bos_id is None


def test_missing_and_broken_directories_are_refused_by_name(tmp_path, tokenizer_dir):
    with pytest.raises(ValueError, match="must hold tokenizer.json, got no such directory"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match="got tokenizer, weights.bin"):
        load_tokenizer(tmp_path)
    (tokenizer_dir / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="tokenizer.json must be a tokenizer"):
        load_tokenizer(tokenizer_dir)


def test_missing_or_unknown_eos_is_refused(tokenizer_dir):
    config = tokenizer_dir / "tokenizer_config.json"
    edit_json(config, eos_token=None)
    with pytest.raises(ValueError, match="eos_token: must be named"):
        load_tokenizer(tokenizer_dir)
    edit_json(config, eos_token="<|absent|>")
    with pytest.raises(ValueError, match="eos_token: must be in tokenizer.json, got '<|absent|>'"):
        load_tokenizer(tokenizer_dir)
    config.write_text("not json")
    with pytest.raises(ValueError, match="tokenizer_config.json must be JSON"):
        load_tokenizer(tokenizer_dir)


def test_save_refuses_ids_it_cannot_name_and_occupied_places(tmp_path, trained):
    with pytest.raises(ValueError, match=r"eos_id: must be an id of the tokenizer .*got 300"):
        save_tokenizer(tmp_path / "t", trained, None, 300)
    assert not (tmp_path / "t").exists()
    (tmp_path / "t").mkdir()
    save_tokenizer(tmp_path / "t", trained, None, 299)  # an empty directory is welcome
    assert load_tokenizer(tmp_path / "t").bos_id is None
    with pytest.raises(ValueError, match="must be a new or empty directory"):
        save_tokenizer(tmp_path / "t", trained, None, 299)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_an_ordinary_token_may_not_end_documents(tmp_path, trained):
    letter = trained.token_to_id("t")
    with pytest.raises(ValueError, match="eos_id: must never come out of text, got .* text 't'"):
        save_tokenizer(tmp_path / "t", trained, None, letter)
    assert not any(tmp_path.iterdir())


def test_vocabulary_must_hold_all_bytes_and_the_special_tokens():
    with pytest.raises(ValueError, match="vocab_size: must be at least 258 .*got 257"):
        train_byte_bpe(TEXTS, 257)


def test_tokenizer_must_fit_the_model(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    check_fits(tokenizer, 300)
    check_fits(tokenizer, 320)  # a padded table
    with pytest.raises(ValueError, match="below the model's vocab_size 299, got ids up to 299"):
        check_fits(tokenizer, 299)
