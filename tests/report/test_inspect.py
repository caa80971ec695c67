"""What `ellama inspect` says."""

import html
import html.parser
import json
import re
import shutil

import pytest

from ellama_jax.corpus.curation_output import to_line, write_shard
from ellama_jax.experiments.demo import make_tiny_base
from ellama_jax.model.llama import count_params
from ellama_jax.model.presets import get_preset
from ellama_jax.report.inspect import main_inspect
from ellama_jax.tokens.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_byte_bpe,
)
from ellama_jax.tokens.windows import WindowSet, write_windows

TEXTS = ["a red lamp", "a blue lamp and a red one"]
NASTY = "שלום <script>alert(1)</script><img src=x onerror=y> 🎿 \x1b[2J & </div></main>"
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "pink", "grey")
WOODS = ("oak", "beech", "walnut", "pine", "cherry", "maple", "birch", "ash")


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    root = tmp_path_factory.mktemp("windows")
    bpe = train_byte_bpe(TEXTS, 300)
    save_tokenizer(
        root / "tokenizer", bpe, bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    )
    tokenizer = load_tokenizer(root / "tokenizer")
    for domain in ("ecommerce", "general"):
        write_windows(
            root / f"{domain}-en", tokenizer.encode_batch(TEXTS), tokenizer=tokenizer,
            window_length=64, domain=domain, language="en", seed=0,
            sources=[{"name": "lamps.jsonl", "sha256": "0" * 64, "documents": 2}], command="made so",
        )  # fmt: skip
    return root


def test_a_window_set_is_described_and_its_documents_decoded(windows, capsys):
    main_inspect([str(windows / "ecommerce-en"), "--show", "1"])
    out = capsys.readouterr().out
    for text in TEXTS:
        assert text in out
    main_inspect([str(windows / "ecommerce-en")])
    out = capsys.readouterr().out
    assert "ecommerce text, language en" in out
    assert "2 documents" in out and "lamps.jsonl" in out and "made by: made so" in out


def test_a_shown_window_has_a_ruler_before_every_document(windows, capsys):
    main_inspect([str(windows / "ecommerce-en"), "--show", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("══ window 0: 2 documents, ") and "padding ══" in lines[0]
    rulers = [line for line in lines if line.startswith("── document")]
    assert [ruler.split(",")[0] for ruler in rulers] == ["── document 1", "── document 2"]
    text = lines[lines.index(rulers[0]) + 1]
    assert text.startswith(BEGIN_OF_TEXT) and text.endswith(END_OF_TEXT)
    assert "\x1b" not in "".join(lines)  # no colour in a pipe


def test_parts_of_a_split_document_are_named_and_windows_can_be_picked(split, capsys):
    count = len(WindowSet(split / "ecommerce-en"))
    said = []
    for index in range(count):
        main_inspect([str(split / "ecommerce-en"), "--window", str(index)])
        out = capsys.readouterr().out
        assert out.startswith(f"══ window {index}: ")
        said.append(out)
    assert count > 2
    assert sum("goes on in another window" in out for out in said) == count - 1
    assert sum("continues a split document" in out for out in said) == count - 1


def test_a_terminal_is_not_obeying_what_a_document_holds(split, capsys, monkeypatch):
    monkeypatch.setattr("ellama_jax.report.inspect._has_colour", lambda: True)
    main_inspect([str(split / "general-en"), "--show", "9"])
    out = capsys.readouterr().out
    assert "\\x1b[2J" in out and "\x1b[2J" not in out
    assert f"\x1b[2m{BEGIN_OF_TEXT}\x1b[0m" in out


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A set with a split document and one with what could hurt a page or a terminal."""
    root = tmp_path_factory.mktemp("split")
    bpe = train_byte_bpe([*TEXTS, NASTY], 300)
    ends = bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    save_tokenizer(root / "tokenizer", bpe, *ends)
    tokenizer = load_tokenizer(root / "tokenizer")
    long = " ".join(f"{number} lamps" for number in range(60))
    for domain, texts in (("ecommerce", [long]), ("general", [NASTY, NASTY, *TEXTS])):
        write_windows(
            root / f"{domain}-en", tokenizer.encode_batch(texts), tokenizer=tokenizer,
            window_length=128, domain=domain, language="en", seed=0, sources=[],
            command="made <i>so</i>",
        )  # fmt: skip
    return root


def test_an_audit_is_told_written_as_data_and_as_a_page(split, tmp_path, capsys):
    page, data = tmp_path / "audit.html", tmp_path / "audit.json"
    main_inspect([str(split), "--html", str(page), "--json", str(data)])
    out = capsys.readouterr().out
    assert "1 exact" in out and "tokens a document: quartiles" in out and "fertility: " in out
    assert out.splitlines()[-1].startswith("problem: general-en: 1 of 4 documents read")
    audit = json.loads(data.read_text())
    assert audit["problems"][0]["set"] == "general-en"
    assert {row["domain"] for row in audit["languages"]} == {"ecommerce", "general"}
    text = page.read_text(encoding="utf-8")
    assert text.index("Problems") < text.index("Window sets") < text.index("Windows, decoded")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["audit.html", "audit.json"]


def test_nothing_in_a_document_becomes_markup_of_the_page(split, tmp_path):
    page = tmp_path / "audit.html"
    main_inspect([str(split), "--html", str(page)])
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.names & {"script", "img", "iframe", "link"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "made &lt;i&gt;so" in text
    assert not tags.attributes & {"onerror", "onload", "src", "href"}
    assert tags.unclosed == []
    # The direction of a text follows its first letter, not the special token before it.
    assert f'dir="auto"><bdi class="chip">{html.escape(BEGIN_OF_TEXT)}</bdi>שלום' in text


class Tags(html.parser.HTMLParser):
    """The names and attributes of a page's elements, and those that nothing closes."""

    EMPTY = ("meta", "polyline", "line", "rect", "circle", "br")

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.unclosed = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.EMPTY:
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.unclosed.pop() == tag


def test_another_tokenizer_decodes_nothing(windows, split, capsys):
    argv = [str(windows / "ecommerce-en"), "--tokenizer", str(split / "tokenizer")]
    main_inspect(argv)
    assert "problem: ecommerce-en: made by another tokenizer" in capsys.readouterr().out
    with pytest.raises(ValueError, match="tokenizer_fingerprint must be that of the model"):
        main_inspect([*argv, "--show", "1"])


def test_only_strict_makes_a_problem_an_exit_status(split, capsys):
    main_inspect([str(split / "general-en")])
    with pytest.raises(SystemExit) as ended:
        main_inspect([str(split / "general-en"), "--strict"])
    assert ended.value.code == 1
    main_inspect([str(split / "ecommerce-en"), "--strict"])
    assert "problem:" not in capsys.readouterr().out.split("ecommerce-en:")[-1]


def test_a_set_that_is_being_written_is_passed_over(windows, tmp_path, capsys):
    shutil.copytree(windows / "ecommerce-en", tmp_path / ".ecommerce-en.partial")
    with pytest.raises(ValueError, match="must hold"):
        main_inspect([str(tmp_path)])
    shutil.copytree(windows / "general-en", tmp_path / "general-en")
    main_inspect([str(tmp_path)])
    assert "partial" not in capsys.readouterr().out


def test_without_a_tokenizer_all_but_the_text_is_said(windows, tmp_path, capsys):
    shutil.copytree(windows / "ecommerce-en", tmp_path / "ecommerce-en")
    main_inspect([str(tmp_path / "ecommerce-en"), "--html", str(tmp_path / "a.html")])
    out = capsys.readouterr().out
    assert (
        "nothing was decoded, so neither text nor duplicates were looked at" in out
        and "fertility" not in out
    )
    with pytest.raises(ValueError, match="--tokenizer: must be given to decode"):
        main_inspect([str(tmp_path / "ecommerce-en"), "--show", "1"])


def test_vocabulary_advice_is_a_table(tmp_path, capsys):
    texts = [f"{a} lamp of {b} wood, {a} {b} finish" for a in COLOURS for b in WOODS]
    bpe = train_byte_bpe(["xyz"], 258)
    ends = bpe.token_to_id(BEGIN_OF_TEXT), bpe.token_to_id(END_OF_TEXT)
    save_tokenizer(tmp_path / "tokenizer", bpe, *ends)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    write_windows(
        tmp_path / "ecommerce-en", tokenizer.encode_batch(texts), tokenizer=tokenizer,
        window_length=512, domain="ecommerce", language="en", seed=0, sources=[], command="so",
    )  # fmt: skip
    argv = [str(tmp_path / "ecommerce-en"), "--vocabulary", "20,5", "--html"]
    main_inspect([*argv, str(tmp_path / "a.html")])
    out = capsys.readouterr().out
    assert "held-out tokens" in out and "llama3.1-8b:" in out
    assert re.search(r"ecommerce  en +[\d,]+ +\d+\.\d% +\d+\.\d%", out)
    assert "What more tokens would save" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_directory_of_window_sets_lists_them_all(windows, capsys):
    main_inspect([str(windows)])
    out = capsys.readouterr().out
    assert "ecommerce-en: ecommerce text" in out and "general-en: general text" in out


def test_a_configuration_s_mixture_is_described(windows, tmp_path, capsys):
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config('tiny')\n"
        "    only = {'en': 1.0, 'de': 0.0, 'fr': 0.0, 'it': 0.0, 'es': 0.0}\n"
        "    config.data.ecommerce_shares.update(only)\n"
        "    config.data.general_shares.update(only)\n"
        "    return config\n"
    )
    more = [f"--config.data.windows_dir={windows}", "--config.data.seq_len=64"]
    main_inspect([str(config), *more, "--config.data.replay_frac=0.25"])
    out = capsys.readouterr().out
    assert "75% e-commerce, 25% general" in out
    assert re.search(r"general-en +[\d,]+ +[\d.]+ times +4\n", out)
    assert "a run refuses this (data.on_repetition=error)" in out
    assert "mixture fingerprint" in out
    assert re.search(r"general-en +25\.00% +\d\d\.\d\d% +[+-]\d\.\d\d points", out)
    page, data = tmp_path / "mixture.html", tmp_path / "mixture.json"
    main_inspect([str(config), *more, "--html", str(page), "--json", str(data)])
    assert "<h2>Mixture</h2>" in page.read_text(encoding="utf-8")
    mixture = json.loads(data.read_text())["mixture"]
    assert [source["asked"] for source in mixture["sources"]] == [[0.5], [0.5]]


def test_stages_weights_and_caps_of_a_mixture_are_shown(windows, tmp_path, capsys):
    config = tmp_path / "staged.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config('tiny')\n"
        "    only = {'en': 1.0, 'de': 0.0, 'fr': 0.0, 'it': 0.0, 'es': 0.0}\n"
        "    config.data.ecommerce_shares.update(only)\n"
        "    config.data.general_shares.update(only)\n"
        "    config.data.stages.late = ConfigDict({'start_step': 40, 'replay_frac': 0.1})\n"
        "    config.data.max_epochs_by_source = ConfigDict({'general-en': 1000.0})\n"
        "    return config\n"
    )
    main_inspect([str(config), f"--config.data.windows_dir={windows}", "--config.data.seq_len=64"])
    out = capsys.readouterr().out
    assert "stage late from step 40, 90% e-commerce, 10% general" in out
    assert re.search(r"general-en +[\d,]+ +[\d.]+ times +1,?000\n", out)
    assert "problem: mixture: ecommerce-en is read" in out
    assert "problem: mixture: general-en is read" not in out


def test_a_checkpoint_is_described(tmp_path, capsys):
    make_tiny_base(tmp_path / "base", TEXTS, seed=0)
    main_inspect([str(tmp_path / "base")])
    out = capsys.readouterr().out
    assert "preset tiny" in out and "2 layers, 64 wide" in out
    assert f"{count_params(get_preset('tiny')):,} parameters" in out


def test_options_that_only_a_configuration_takes_are_refused_elsewhere(windows, capsys):
    with pytest.raises(SystemExit):
        main_inspect([str(windows), "--config.data.seq_len=64"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_place_that_holds_nothing_known_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        main_inspect([str(tmp_path)])
    with pytest.raises(ValueError, match="must be a directory or a configuration file"):
        main_inspect([str(tmp_path / "absent")])


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two tiny checkpoints of different random weights."""
    root = tmp_path_factory.mktemp("bases")
    for seed in (0, 1):
        make_tiny_base(root / str(f"base-{seed}"), TEXTS, seed=seed)
    return root


def test_a_checkpoint_is_written_as_data_over_an_older_file(bases, tmp_path):
    out = tmp_path / "facts.json"
    out.write_text("older")
    main_inspect([str(bases / "base-0"), "--mesh", "fsdp=2", "--json", str(out)])
    facts = json.loads(out.read_text())
    assert facts["preset"] == "tiny" and facts["mesh"]["fsdp"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def test_a_difference_is_told_written_and_drawn(bases, tmp_path, capsys):
    plot, out = tmp_path / "deep" / "moved.png", tmp_path / "difference.json"
    options = ["--layers", "--json", str(out), "--plot", str(plot)]
    main_inspect([str(bases / "base-0"), "--diff", str(bases / "base-1"), *options])
    said = capsys.readouterr().out
    assert "layer attn_norm" in said and "Moved most: " in said
    data = json.loads(out.read_text())
    assert data["leaves"]["layers/attn/wq"]["layers"][1]["relative_change"] > 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in plot.parent.iterdir()] == ["moved.png"]


def test_the_directory_of_a_run_stands_for_its_checkpoints(bases, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").symlink_to(bases / "base-0")
    main_inspect([str(tmp_path / "run")])
    main_inspect([str(bases / "base-0"), "--diff", str(tmp_path / "run")])
    assert "Nothing differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{windows}", "--diff", "{base}"], "--diff: must compare the weights of two models"),
        (["x.py", "--diff", "{base}"], "--diff: must compare the weights of two models"),
        (["{base}", "--diff", "{windows}"], "must hold a complete step, got none"),
        (["{base}", "--diff", "{base}", "--mesh", "fsdp=2"], "--mesh: must be used with a check"),
        (["{base}", "--diff", "{base}", "--plot", "a.doc"], "--plot: must end in one of .png"),
        (["{base}", "--layers"], "--layers: must be used with a comparison"),
        (["{base}", "--plot", "a.png"], "--plot: must be used with a comparison"),
        (["{base}", "--show", "1"], "--show: must be used with a window set"),
        (["{base}", "--html", "a.html"], "--html: must be used with a window set or a config"),
        (["{base}", "--vocabulary", "5"], "--vocabulary: must be used with a window set"),
        (["{base}", "--window", "0"], "--window: must be used with a window set"),
        (["{windows}", "--window", "0"], "--window: must be used with one window set, got 2"),
        (["{windows}/general-en", "--window", "7"], "--window: must be from 0 to 0, got 7"),
        (["{windows}", "--html", "{base}"], "--html: must name a file"),
        (["{base}", "--json", "{base}"], "--json: must name a file"),
        (["{base}", "--json", "{base}/tokenizer/tokenizer.json/a"], "--json: "),
        (["{base}", "--mesh", "model=2"], "--mesh: axis must be one of"),
        (["{base}", "--mesh", "tensor=5"], "must be divisible by mesh axes"),
        (["{base}/tokenizer/tokenizer.json"], "must be a directory or a configuration file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    argv, words, bases, windows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"base": bases / "base-0", "windows": windows}
    with pytest.raises(ValueError) as error:
        main_inspect([word.format(**places) for word in argv])
    assert words in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A finished curation, as small as its files may be."""
    root = tmp_path_factory.mktemp("curation") / "curated"
    record = {"id": "shop-1", "text": NASTY}
    name = "documents/train/ecommerce-en-shop-00000-of-00001.jsonl.gz"
    file = {"name": name, **write_shard(str(root / name), [(b"", to_line(record))])}
    counts = {"read": 5, "bad": 1, "language": 3, "kept: ecommerce, train": 1,
              "kept: ecommerce, train, bytes": len(NASTY.encode())}  # fmt: skip
    split = {"heldout_frac": 0.1, "heldout_texts_frac": 0.0}
    source = {"kind": "listings", "licence": "MIT"}
    example = {"source": "shop", "place": "a:2", "language": "nl", "reason": "language"}
    match = {"id": "shop-2", "source": "shop", "set_name": "mmlu", "item_id": "q1"}
    report = {
        "version": "0", "command": "made so", "notes": [], "files": [file],
        "recipe": {"languages": ["en", "de"], "split": split, "sources": {"shop": source}},
        "counts": {"shop": {"en": counts}}, "evaluation_text": [match],
        "examples": [{**example, "text": "Rode fiets"}],
    }  # fmt: skip
    (root / "curation.json").write_text(json.dumps(report))
    return root


def test_a_curation_is_told_with_its_problems_and_examples(curated, tmp_path, capsys):
    page, data = tmp_path / "a.html", tmp_path / "a.json"
    main_inspect([str(curated), "--show", "1", "--html", str(page), "--json", str(data)])
    out = capsys.readouterr().out
    assert "shop: 5 records (listings, MIT)" in out and "Rode fiets" in out
    assert re.search(r"another language +-3 +-60\.0%", out) and "\x1b" not in out
    assert re.search(r"mmlu +q1 +shop +1", out)
    problems = [problem["text"] for problem in json.loads(data.read_text())["problems"]]
    assert [text[:20] for text in problems] == [
        "3 of 4 readable reco", "1 of 5 records were ", "no text was kept in ", "nothing is held out,",
    ]  # fmt: skip
    tags = Tags(page.read_text(encoding="utf-8"))
    assert not tags.names & {"script", "img"} and tags.unclosed == []


def test_an_unfinished_curation_is_one_line(tmp_path):
    (tmp_path / ".curated.partial" / "work").mkdir(parents=True)
    for name in ("curated", ".curated.partial"):
        with pytest.raises(ValueError, match="must hold a finished curation"):
            main_inspect([str(tmp_path / name)])
