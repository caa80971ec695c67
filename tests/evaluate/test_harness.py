"""MMLU questions out of lm-eval's own files: the real ones, and hand-written odd ones."""

import collections
import subprocess
import sys

import pytest

from ellama_jax.evaluate import harness

TASKS_DIR = harness.find_lm_eval_tasks()


def test_the_same_number_of_questions_in_five_languages():
    items = harness.load_mmlu(limit=25, seed=0)
    counts = collections.Counter(item["language"] for item in items)
    assert counts == {"en": 25, "de": 25, "fr": 25, "it": 25, "es": 25}
    assert len({item["id"] for item in items}) == 125
    assert {item["task"] for item in items} == {"mmlu"}
    assert {item["domain"] for item in items} == {"general"}


def test_without_a_limit_the_smallest_language_decides():
    items = harness.load_mmlu(limit=None, seed=0, max_chars=300)
    counts = collections.Counter(item["language"] for item in items)
    fitting = {
        code: sum(harness._num_chars(q) <= 300 for q in harness.read_questions(TASKS_DIR, code))
        for code in harness.LANGUAGES
    }
    assert set(counts.values()) == {min(fitting.values())}


def test_the_draw_depends_on_the_seed_only():
    first = harness.load_mmlu(limit=10, seed=1, languages=["en"])
    assert harness.load_mmlu(limit=10, seed=1, languages=["en"]) == first
    assert harness.load_mmlu(limit=10, seed=2, languages=["en"]) != first


def test_long_questions_are_left_out():
    for item in harness.load_mmlu(limit=200, seed=0, max_chars=150):
        assert len(item["context"]) + sum(map(len, item["choices"])) < 150 + 30


@pytest.mark.parametrize("language", harness.LANGUAGES)
def test_every_question_has_four_different_clean_answers(language):
    questions = harness.read_questions(TASKS_DIR, language)
    assert len(questions) > 250
    for question in questions:
        assert len(set(question["choices"])) == 4
        assert 0 <= question["answer"] < 4
        assert "&#39;" not in question["question"] + "".join(question["choices"])


def test_known_questions_are_read_with_their_known_answers():
    def answers(language, subject):
        found = [q for q in harness.read_questions(TASKS_DIR, language) if q["subject"] == subject]
        return {q["choices"][q["answer"]] for q in found}

    assert "Cranial" in answers("en", "anatomy")
    assert "Kranial" in answers("de", "anatomy")
    assert "Crânien" in answers("fr", "anatomy")
    assert "Craniale" in answers("it", "anatomy")
    assert "Craneal" in answers("es", "anatomy")


def test_letters_show_the_answers_and_ask_for_a_letter():
    (item,) = harness.load_mmlu(limit=1, seed=0, languages=["fr"], style="letters")
    lines = item["context"].split("\n")
    assert [line[:3] for line in lines[-5:-1]] == ["A. ", "B. ", "C. ", "D. "]
    assert lines[-1] == "Réponse :"
    assert item["choices"] == [" A", " B", " C", " D"]


def test_reading_questions_does_not_import_lm_eval():
    code = (
        "import sys; from ellama_jax.evaluate import harness; harness.load_mmlu(limit=1, seed=0);"
        "assert 'lm_eval' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_english(tmp_path, *samples):
    folder = tmp_path / "mmlu" / "flan_cot_fewshot"
    folder.mkdir(parents=True)
    body = "fewshot_config:\n  samples:\n"
    for question, target in samples:
        body += f"  - question: {question!r}\n    target: {target!r}\n"
    (folder / "mmlu_odd.yaml").write_text(body + "process_docs: !function utils.f\n")


def test_questions_that_cannot_be_scored_are_left_out(tmp_path):
    write_english(
        tmp_path,
        ("Good? (A) a (B) b (C) c (D) d", "The answer is (C)."),
        ("Three? (A) a (B) b (C) c", "The answer is (C)."),
        ("Twice? (A) a (B) a (C) c (D) d", "The answer is (C)."),
        ("No answer? (A) a (B) b (C) c (D) d", "Who knows."),
    )
    questions = harness.read_questions(tmp_path, "en")
    assert questions == [
        {"subject": "odd", "number": 0, "question": "Good?", "choices": list("abcd"), "answer": 2}
    ]


def test_a_broken_file_is_named(tmp_path):
    write_english(tmp_path)
    path = tmp_path / "mmlu" / "flan_cot_fewshot" / "mmlu_odd.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match="mmlu_odd.yaml must be YAML"):
        harness.read_questions(tmp_path, "en")


def test_another_lm_eval_without_the_files_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="mmlu_de must hold mmlu_de_"):
        harness.read_questions(tmp_path, "de")


def test_without_lm_eval_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="lm_eval must be installed.*leave mmlu out"):
        harness.load_mmlu(limit=1, seed=0)


def test_unknown_styles_and_languages_are_refused():
    with pytest.raises(ValueError, match="style: must be one of cloze, letters, got essay"):
        harness.load_mmlu(limit=1, seed=0, style="essay")
    with pytest.raises(ValueError, match=r"among en, de, fr, it, es, got \['pt'\]"):
        harness.load_mmlu(limit=1, seed=0, languages=["pt", "en"])
