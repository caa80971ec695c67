"""Llama 3's tokenizer.model: a small one written here, and the real one through Meta's own class."""

import base64
import importlib
import json
import random
from pathlib import Path

import pytest
import tokenizers

from ellama_jax.tokens.tokenizer import load_tokenizer, save_tokenizer, train_byte_bpe
from ellama_jax.weights.rankfile import convert_tokenizer

TEXTS = [
    "The Lenovo ThinkPad X1, 14\" display: it's 1299.90 € — don't wait!\n\nBuy now.",
    "Größe 42, Farbe: weiß. Die Schuhe kosten 89,95 € (inkl. MwSt.), süß & schön.",
    "L'écran est très lumineux; où l'achète-t-on ? À partir de 249,00 €, c'est l'été.",
    "Scarpe da corsa perché più leggere: 37, €65,50. Qualità garantita così com'è.",
    "¿Cuánto cuesta el móvil? Año 2024, tamaño pequeño, ¡envío gratis! Niño, señal.",
    "日本語 и русский 🙂 tabs\tand  two spaces\n    indent\r\n <|eot_id|>user",
    "שלום עולם، مرحبا بالعالم ١٢٣ עוד מילה",
    "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪 e\u0301 \u200b\ufeff\u00a0\u3000",
    "1 22 333 4444 55555 0123456789",
    "",
]


def merge_by_rank(ranks, piece):
    """Byte-pair encoding in its plainest form: join the leftmost pair of the lowest rank."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        unions = [ranks.get(a + b, 2**31) for a, b in zip(parts, parts[1:], strict=False)]
        if not unions or min(unions) == 2**31:
            return [ranks[part] for part in parts]
        i = unions.index(min(unions))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture(scope="module")
def ranks():
    """Ranks as tiktoken has them: bytes in another order than their values, then longer tokens."""
    trained = json.loads(train_byte_bpe(TEXTS[:6] * 2, 600).to_str())["model"]["vocab"]
    decoder = tokenizers.decoders.ByteLevel()
    longer = {decoder.decode([t]).encode() for t in trained if len(t) > 1}
    longer = sorted(t for t in longer if len(t) > 1 and "\ufffd" not in t.decode())
    random.Random(0).shuffle(longer)
    return {
        token: rank for rank, token in enumerate([bytes([b ^ 33]) for b in range(256)] + longer)
    }


@pytest.fixture
def write(tmp_path):
    def write(ranks):
        lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
        (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
        return tmp_path / "tokenizer.model"

    return write


# --- a small file --------------------------------------------------------------------------------


def test_pieces_are_merged_by_rank(write, ranks):
    tokenizer, *_ = convert_tokenizer(write(ranks))
    tokenizer.encode_special_tokens = True
    for text in [*TEXTS, "the the theteh  kosten" * 3]:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        expected = [merge_by_rank(ranks, text[a:b].encode()) for _, (a, b) in pieces]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == [i for piece in expected for i in piece]
    assert len(tokenizer.encode(TEXTS[0], add_special_tokens=False)) < len(TEXTS[0].encode()) / 2


def test_special_tokens_follow_the_last_rank(write, ranks):
    tokenizer, bos_id, eos_id = convert_tokenizer(write(ranks))
    first = len(ranks)
    names = {
        "<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|finetune_right_pad_id|>": 4,
        "<|start_header_id|>": 6, "<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10,
        "<|image|>": 11, "<|reserved_special_token_2|>": 12, "<|reserved_special_token_245|>": 255,
    }  # fmt: skip
    assert {name: tokenizer.token_to_id(name) - first for name in names} == names
    assert tokenizer.get_vocab_size() == first + 256
    assert (bos_id, eos_id) == (first, first + 1)
    assert tokenizer.encode("<|eot_id|>", add_special_tokens=False).ids == [first + 9]


def test_a_text_begins_with_bos_where_special_tokens_are_asked_for(write, ranks):
    tokenizer, bos_id, _ = convert_tokenizer(write(ranks))
    plain = tokenizer.encode("a shoe", add_special_tokens=False).ids
    assert tokenizer.encode("a shoe").ids == [bos_id, *plain]


def test_every_text_comes_back_also_after_saving(write, ranks, tmp_path):
    save_tokenizer(tmp_path / "saved", *convert_tokenizer(write(ranks)))
    saved = load_tokenizer(tmp_path / "saved")
    for text in TEXTS:
        assert saved.decode(saved.encode(text)) == text


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda r: r.pop(b"a"), "ranks must count from 0 without gaps or repeats, got"),
        (lambda r: r.update({b"abcabc": 5}), "ranks must count from 0 without gaps"),
        (lambda r: r.update({b"": len(r)}), "line .* must be a base64 token and its rank, got b' "),
        (
            lambda r: r.update({b"!!": r.pop(b"a")}),
            "must hold all 256 bytes .* 1 of them .first 97",
        ),
        (lambda r: r.clear(), "must hold all 256 bytes as tokens, got none for 256 of them"),
    ],
)
def test_broken_ranks_are_named(write, ranks, edit, match):
    edited = dict(ranks)
    edit(edited)
    with pytest.raises(ValueError, match=match):
        convert_tokenizer(write(edited))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "got a SentencePiece model, as Llama 2"),
        (b'{"version": "1.0"}', "line 1 must be a base64 token and its rank, got b'{"),
        (b"IQ== 0\nIg==\n", "line 2 must be a base64 token and its rank, got b'Ig=='"),
        (b"IQ== zero", "line 1 must be"),
        (b"I\xff== 0", "line 1 must be"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, match):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=match) as error:
        convert_tokenizer(tmp_path / "tokenizer.model")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a readable file, got No such file"):
        convert_tokenizer(tmp_path / "tokenizer.model")


# --- the real one --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """Meta's own tokenizer, and ours of the same file."""
    pytest.importorskip("tiktoken", reason="Meta's tokenizer runs on tiktoken")
    reason = "the package llama-models with Meta's tokenizer is not installed"
    pytest.importorskip("llama_models", reason=reason)
    meta = importlib.import_module("llama_models.llama3.tokenizer")
    path = Path(meta.__file__).with_name("tokenizer.model")
    tokenizer, bos_id, eos_id = convert_tokenizer(path)
    tokenizer.encode_special_tokens = True  # names in a text are text, as in Meta's encode
    return meta.Tokenizer(path), tokenizer, bos_id, eos_id


def assert_same_ids(real, text):
    expected = real[0].encode(text, bos=False, eos=False)
    assert real[1].encode(text, add_special_tokens=False).ids == expected, repr(text)


def test_special_tokens_of_the_real_file_are_those_of_meta(real):
    theirs, ours, bos_id, eos_id = real
    assert {name: ours.token_to_id(name) for name in theirs.special_tokens} == theirs.special_tokens
    assert (bos_id, eos_id) == (theirs.bos_id, theirs.eos_id) == (128000, 128001)
    assert ours.get_vocab_size() == theirs.n_words == 128256


def test_the_real_file_gives_the_ids_of_meta_in_many_languages(real):
    for text in TEXTS:
        assert_same_ids(real, text)
        assert real[1].decode(real[1].encode(text, add_special_tokens=False).ids) == text


def test_the_real_file_gives_the_ids_of_meta_on_long_runs(real):
    for character in [chr(code) for code in range(1, 127)] + list("—─═░▓…।的ー🙂éا\u00a0\u3000"):
        for count in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 80, 127, 129, 200):
            assert_same_ids(real, character * count)


def test_the_real_file_gives_the_ids_of_meta_on_random_text(real):
    rng = random.Random(0)
    tokens = real[0].model.token_byte_values()
    planes = ((0, 0x24F), (32, 126), (0x250, 0xD7FF), (0xE000, 0x10FFFF))
    for _ in range(5000):
        codes = [rng.randint(*rng.choice(planes)) for _ in range(rng.randint(1, 40))]
        assert_same_ids(real, "".join(map(chr, codes)))
        glued = b"".join(rng.choice(tokens) for _ in range(rng.randint(1, 8)))
        assert_same_ids(real, glued.decode("utf-8", "ignore"))
        runs = [rng.choice("aA-= \n\t*_1") * rng.randint(1, 9) for _ in range(6)]
        assert_same_ids(real, "".join(runs))
