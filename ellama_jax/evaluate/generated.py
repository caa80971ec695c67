"""Owns generated e-commerce tasks in a scorecard: items of a benchmark, answers written, their cells.

The tasks are `ecommerce`'s, how an answer is judged `answers`', how text is written `generation`'s.
Like lm-eval's tasks beside a benchmark, answers are greedy and end at the first line break or after 64
tokens; like the choices of a scorecard, they follow BOS, or EOS in models that have none.
"""

import collections
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.core.paths import as_path
from ellama_jax.evaluate import answers, ecommerce, generation
from ellama_jax.evaluate.choices import mean_of_items, question_print
from ellama_jax.evaluate.prompt_tokenizer import PromptTokenizer
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.tokenizer import Tokenizer
from ellama_jax.weights import checkpoint as checkpoints

GROUP = "ecommerce_generate"
TASKS = (GROUP, *ecommerce.GENERATED_TASKS)
MAX_NEW_TOKENS, STOPS = 64, ("\n",)
# A metric of `answers` whose cell is the median of its items, and what that cell is called.
MEDIAN_OF, MEDIAN = "abs_log_error", "median_abs_log_error"
_DRAWS, _DRAWS_AT_ONCE = 1000, 100


class Answers(NamedTuple):
    """What a model wrote, one text an item, and how many prompts lost tokens on the left."""

    texts: list[str]
    truncated: int


def gather_items(
    tasks: Collection[str], benchmark_dir: str | None, split: str | None
) -> list[dict]:
    """Collects the items that `tasks` ask for, out of a benchmark's generated.jsonl.

    Args:
        tasks: names; those that are not among `TASKS` are passed over.
        benchmark_dir: made by `ellama build-benchmark`.
        split: "test" or "validation"; None is both.

    Raises:
        ValueError: if there is no benchmark, it has no generated.jsonl, or no item of these tasks.
    """
    wanted = [name for name in ecommerce.GENERATED_TASKS if name in tasks or GROUP in tasks]
    if not wanted:
        return []
    named = ", ".join(name for name in tasks if name in TASKS)
    if benchmark_dir is None:
        raise ValueError(f"--benchmark: must name the built benchmark for {named}, got none.")
    if not (Path(benchmark_dir) / "generated.jsonl").is_file():
        raise ValueError(
            f"--benchmark: must hold generated.jsonl for {named}, got {benchmark_dir} without it; "
            "build it anew with `ellama build-benchmark`."
        )
    found = ecommerce.read_generated(benchmark_dir, split)
    items = [item for item in found if item["task"] in wanted]
    if not items:
        where = "any split" if split is None else f"the split {split}"
        raise ValueError(
            f"--benchmark: must have items of {named} in {where}, got none in {benchmark_dir}; its "
            "benchmark.json says what was missing."
        )
    return items


def write_answers(
    params: dict,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    checkpoint: str | Path,
    items: Sequence[dict],
    *,
    batch_tokens: int,
    compute_dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    title: str = "generating",
) -> Answers:
    """Lets a model answer each item, greedily, until a line break or 64 tokens.

    Args:
        params, config, tokenizer: of the model, as `scorecard.load_model` gives them.
        checkpoint: where it came from; its tokenizer directory names the tokens that end a text.
        items: of generated.jsonl.
        batch_tokens: slots of the cache at most, see `generation.generate`.
        compute_dtype: float32 or bfloat16.
        mesh: devices the parameters lie on, or None for one.
        title: words for the progress bar.

    Returns:
        The texts, in the items' order.

    Raises:
        ValueError: if the model has no room for 64 tokens and a prompt.
    """
    path = as_path(checkpoint)
    is_huggingface = (path / "config.json").is_file()
    folder = path if is_huggingface else checkpoints.find_checkpoint(path).tokenizer_dir
    spoken = PromptTokenizer(folder)
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    prompts = [
        generation.Prompt([prefix, *ids], MAX_NEW_TOKENS, STOPS)
        for ids in tokenizer.encode_batch([item["context"] for item in items])
    ]
    written = generation.generate(
        params, config, prompts,
        decode=lambda ids: spoken.decode(ids, skip_special_tokens=True), end_ids=spoken.end_ids,
        batch_tokens=batch_tokens, compute_dtype=jnp.dtype(compute_dtype), mesh=mesh, title=title,
    )  # fmt: skip
    truncated = sum(result.truncated_tokens > 0 for result in written)
    return Answers([result.text for result in written], truncated)


def answer_results(items: Sequence[dict], texts: Sequence[str]) -> list[dict]:
    """Returns the cells of a scorecard, one a task, language and metric of `answers.score_answer`.

    A cell keeps every item's value as "values", and no "correct". Its value is their mean with the
    mean's standard error; of prices' |log(answer / price)| it is the median, with the standard
    deviation of 1,000 seeded bootstrap medians. Nothing here has a chance level.

    Args:
        items: of generated.jsonl.
        texts: what a model wrote for each.
    """
    groups: dict[tuple, dict[str, float]] = collections.defaultdict(dict)
    asked = {item["id"]: question_print(item) for item in items}
    for item, text in zip(items, texts, strict=True):
        for metric, value in answers.score_answer(item, text).items():
            key = item["task"], item["domain"], item["language"], metric
            groups[key][item["id"]] = value
    results = []
    for (task, domain, language, metric), by_id in groups.items():
        values = list(by_id.values())
        is_median = metric == MEDIAN_OF
        results.append({
            "task": task,
            "domain": domain,
            "language": language,
            "metric": MEDIAN if is_median else metric,
            **(median_of_items(values) if is_median else mean_of_items(values)),
            "chance": None,
            "higher_is_better": not is_median,
            "correct": None,
            "values": values,
            "ids": list(by_id),
            "asked": [asked[name] for name in by_id],
        })  # fmt: skip
    return results


def median_of_items(values: Sequence[float]) -> dict:
    """Returns the median, its standard error by a bootstrap over items (None for one), and n.

    The usual large-sample error needs the density at the median, which few items, many of them at
    the worst error that counts, do not tell.

    >>> median_of_items([1.0, 1.0, 1.0])
    {'value': 1.0, 'stderr': 0.0, 'n': 3}
    """
    known, count = np.asarray(values, float), len(values)
    stderr = None
    if count > 1:
        rng = np.random.default_rng(0)
        medians = [
            np.median(known[rng.integers(0, count, (_DRAWS_AT_ONCE, count))], axis=1)
            for _ in range(_DRAWS // _DRAWS_AT_ONCE)
        ]
        stderr = float(np.concatenate(medians).std(ddof=1))
    return {"value": float(np.median(known)), "stderr": stderr, "n": count}
