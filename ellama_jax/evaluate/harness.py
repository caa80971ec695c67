"""Owns general-knowledge questions: MMLU in five languages, out of lm-eval's installed files.

lm-evaluation-harness ships a few hundred MMLU development questions (arXiv 2009.03300) as worked
examples inside its task files, in English and, from Meta's Llama 3 evaluation, in German, French,
Italian and Spanish. They need no download, and they are read without importing lm_eval. Scoring
them belongs to `scorecard`.

Two ways to ask, because small models cannot use the first:
    letters   the question and its four answers, then " A", " B", " C" or " D" (lm-eval's `mmlu`);
              below some billion parameters every model stands at chance here.
    cloze     the question alone, then each answer's own words; moves for small models too.
"""

import html
import importlib.util
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

LANGUAGES = ("en", "de", "fr", "it", "es")
STYLES = ("cloze", "letters")
_LETTERS = "ABCD"
# What stands before a question and its answer; French sets a space before the colon.
_LABELS = {
    "en": ("Question:", "Answer:"),
    "de": ("Frage:", "Antwort:"),
    "fr": ("Question :", "Réponse :"),
    "it": ("Domanda:", "Risposta:"),
    "es": ("Pregunta:", "Respuesta:"),
}


def load_mmlu(
    *,
    limit: int | None,
    seed: int,
    languages: Sequence[str] = LANGUAGES,
    style: str = "cloze",
    max_chars: int = 400,
    tasks_dir: str | Path | None = None,
) -> list[dict]:
    """Draws the same number of MMLU questions in each language, as evaluation items.

    Args:
        limit: questions a language (None is all); fewer if one language has fewer that fit.
        seed: what the draw depends on.
        languages: codes out of `LANGUAGES`.
        style: "cloze" or "letters", see the module's docstring.
        max_chars: questions longer than this, answers included, are left out.
        tasks_dir: lm-eval's folder of tasks; None finds the installed one.

    Returns:
        Items of task "mmlu" and domain "general".

    Raises:
        ValueError: for an unknown style or language, or if lm_eval is not installed.
    """
    if style not in STYLES:
        raise ValueError(f"mmlu style: must be one of {', '.join(STYLES)}, got {style}.")
    if unknown := sorted(set(languages) - set(LANGUAGES)):
        raise ValueError(f"mmlu languages: must be among {', '.join(LANGUAGES)}, got {unknown}.")
    tasks_dir = find_lm_eval_tasks() if tasks_dir is None else Path(tasks_dir)
    by_language = {}
    for language in languages:
        questions = [q for q in read_questions(tasks_dir, language) if _num_chars(q) <= max_chars]
        random.Random(f"{seed}/mmlu/{language}").shuffle(questions)
        by_language[language] = questions
    count = min(len(questions) for questions in by_language.values())
    count = count if limit is None else min(count, limit)
    return [
        make_item(question, language, style)
        for language, questions in by_language.items()
        for question in questions[:count]
    ]


def find_lm_eval_tasks() -> Path:
    """Finds lm-eval's folder of tasks without importing lm_eval (which takes seconds)."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "mmlu: the package lm_eval must be installed, for it holds the questions, got none; "
            "install requirements.lock or leave mmlu out of --tasks."
        )
    return Path(spec.submodule_search_locations[0]) / "tasks"


def read_questions(tasks_dir: Path, language: str) -> list[dict]:
    """Reads every question of one language.

    Returns:
        Dicts of `subject`, `number` (in its file), `question`, `choices` (4) and `answer` (0-3),
        in the order of the files. What is not a question with four answers is left out.

    Raises:
        ValueError: if this lm-eval holds no such files.
    """
    if language == "en":
        folder, parse = tasks_dir / "mmlu" / "flan_cot_fewshot", _parse_english
    else:
        folder = tasks_dir / "llama3" / "instruct" / f"mmlu_{language}"
        parse = _parse_translated
    prefix = "mmlu_" if language == "en" else f"mmlu_{language}_"
    questions = []
    for path in sorted(folder.glob(f"{prefix}*.yaml")):
        for number, sample in enumerate(_read_samples(path)):
            parsed = parse(sample)
            if parsed is not None:
                subject = path.stem.removeprefix(prefix)
                questions.append({"subject": subject, "number": number, **parsed})
    if not questions:
        raise ValueError(f"mmlu: {folder} must hold {prefix}*.yaml with questions, got none.")
    return questions


def make_item(question: dict, language: str, style: str) -> dict:
    """Writes one question as an evaluation item.

    >>> question = {"subject": "anatomy", "number": 0, "question": "The pituitary gland is in the",
    ...             "choices": ["abdomen", "skull", "pleura", "spine"], "answer": 1}
    >>> item = make_item(question, "en", "cloze")
    >>> item["context"]
    'Question: The pituitary gland is in the\\nAnswer:'
    >>> item["choices"], item["answer"]
    ([' abdomen', ' skull', ' pleura', ' spine'], 1)
    >>> print(make_item(question, "en", "letters")["context"])
    The pituitary gland is in the
    A. abdomen
    B. skull
    C. pleura
    D. spine
    Answer:
    """
    ask, answer = _LABELS[language]
    if style == "cloze":
        context = f"{ask} {question['question']}\n{answer}"
        choices = [f" {choice}" for choice in question["choices"]]
    else:
        lines = (f"{a}. {c}" for a, c in zip(_LETTERS, question["choices"], strict=True))
        context = "\n".join([question["question"], *lines, answer])
        choices = [f" {letter}" for letter in _LETTERS]
    return {
        "id": f"mmlu/{question['subject']}/{question['number']}/{language}",
        "task": "mmlu",
        "domain": "general",
        "language": language,
        "context": context,
        "choices": choices,
        "answer": question["answer"],
        "metric": "accuracy",
        "product_id": None,
    }


def _num_chars(question: dict) -> int:
    return len(question["question"]) + sum(map(len, question["choices"]))


def _read_samples(path: Path) -> Iterator[dict]:
    import yaml

    # lm-eval's files name Python functions by a tag of its own; the samples need none of them.
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"mmlu: {path} must be YAML, got {error}.".replace("\n", " ")) from error
    if isinstance(loaded, dict) and "fewshot_config" in loaded:
        yield from loaded["fewshot_config"]["samples"]


def _parse_translated(sample: dict) -> dict | None:
    choices = [_clean(sample["input_choice_list"][letter]) for letter in _LETTERS]
    answer = _LETTERS.find(sample["input_correct_responses"][0].strip("(). ")[:1])
    return _checked(_clean(sample["input_question"]), choices, answer)


def _parse_english(sample: dict) -> dict | None:
    # "question (A) one (B) two (C) three (D) four": parts are question, "A", one, "B", two, ...
    parts = re.split(r"\(([ABCD])\)\s", sample["question"])
    told = re.search(r"answer is \(?([ABCD])\b", sample["target"])
    if parts[1::2] != list(_LETTERS) or told is None:
        return None
    choices = [_clean(choice) for choice in parts[2::2]]
    return _checked(_clean(parts[0]), choices, _LETTERS.index(told.group(1)))


def _checked(question: str, choices: list[str], answer: int) -> dict | None:
    """Returns the question, or None where it cannot be scored (an answer missing or twice)."""
    if answer < 0 or not question or not all(choices) or len(set(choices)) < len(choices):
        return None
    return {"question": question, "choices": choices, "answer": answer}


def _clean(text: str) -> str:
    """Undoes HTML escapes (the translations have &#39;) and joins wrapped lines."""
    return " ".join(html.unescape(str(text)).split())
