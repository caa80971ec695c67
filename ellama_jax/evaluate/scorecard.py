"""Owns scorecards: from texts and items to values with n, standard error and chance level.

It turns text into tokens; the model's work is `scorer`'s, what choices and generated answers come to
`choices`' and `generated`'s, the tasks are from `ecommerce` and `harness`, and `comparison` lays
scorecards side by side.

A scorecard is plain data, one JSON file a model:

    {"model": "base", "checkpoint": ..., "made_with": {...},
     "results": [{"task", "domain", "language", "metric", "value", "stderr", "n", "chance",
                  "higher_is_better", "correct": [0 or 1, ...] or null, "ids": [...]}]}

Results of text have "bits" and "bytes" of every document in place of "correct"; credit and generated
answers have "values" of every item.
"""

import argparse
import collections
import dataclasses
import difflib
import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import as_path, write_whole
from ellama_jax.corpus.curation_output import curated_files, read_shard
from ellama_jax.evaluate import (
    ecommerce,
    generated,
    harness,
    lm_eval_run,
    long_context,
    scorer,
    side_by_side,
)
from ellama_jax.evaluate.choices import choice_results
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.tokenizer import Tokenizer, check_fits, load_tokenizer
from ellama_jax.weights import checkpoint as checkpoints
from ellama_jax.weights import huggingface
from ellama_jax.weights.layout import check_file, weights_identity

# Share of the general questions that only choose alpha (merge-sweep) and are never reported.
MMLU_VALIDATION_FRAC = 1 / 3

TASKS = ("ecommerce", *ecommerce.TASKS, "mmlu", "bits_per_byte")
# What is answered by writing takes longer: neither a run nor a sweep asks it.
ALL_TASKS = (*TASKS, *generated.TASKS)
# A slot of the cache costs far less memory than a token that is scored.
_SLOTS_A_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Says how to run the model; none of it changes a score beyond rounding, but for `window`.

    Attributes:
        row_length: tokens a packed row.
        rows_per_batch: rows a call.
        window: tokens of context that bits per byte uses at most.
        compute_dtype: float32 or bfloat16.
        mesh: devices, or None for one.
    """

    row_length: int = 512
    rows_per_batch: int = 4
    window: int = 1024
    compute_dtype: str = "float32"
    mesh: jax.sharding.Mesh | None = None


DEFAULT_SCORING = Scoring()


def evaluate_checkpoint(
    checkpoint: str | Path,
    items: Sequence[dict],
    texts: Sequence[dict],
    *,
    model: str | None = None,
    scoring: Scoring = DEFAULT_SCORING,
    written_items: Sequence[dict] = (),
    long_texts: Sequence[dict] = (),
    max_length: int | None = None,
) -> dict:
    """Scores a checkpoint: an Orbax root or step, or a Hugging Face directory.

    Args:
        checkpoint: where the weights and their tokenizer are.
        items: multiple-choice items of `ecommerce` and `harness`.
        texts: documents (dicts of text, domain, language) for bits per byte.
        model: what the scorecard calls it, by default the directory's name.
        scoring: how to run it.
        written_items: items of `ecommerce.read_generated`, which the model answers by writing.
        long_texts: documents for `long_context.measure`, none for none of it.
        max_length: tokens of those at most; None is the model's maximum.

    Returns:
        The scorecard, with "long_context" where there were texts for it.
    """
    if not any((items, texts, written_items, long_texts)):
        raise ValueError("evaluate: must have at least one item or text, got none.")
    params, config, tokenizer, origin = load_model(checkpoint, mesh=scoring.mesh)
    model = model or as_path(checkpoint).name
    card = evaluate_params(params, config, tokenizer, items, texts, model=model, scoring=scoring)
    card["checkpoint"] = str(checkpoint)
    card["made_with"].update(origin)
    if written_items:
        started = time.monotonic()
        written = generated.write_answers(
            params, config, tokenizer, checkpoint, written_items,
            batch_tokens=_SLOTS_A_TOKEN * scoring.row_length * scoring.rows_per_batch,
            compute_dtype=scoring.compute_dtype, mesh=scoring.mesh, title=f"generating {model}",
        )  # fmt: skip
        card["results"] += generated.answer_results(written_items, written.texts)
        card["made_with"]["generated_fingerprint"] = fingerprint(written_items)
        card["made_with"]["truncated_requests"] += written.truncated
        card["made_with"]["generated_secs"] = round(time.monotonic() - started, 1)
    if long_texts:
        card["long_context"] = long_context.measure(
            params, config, tokenizer, long_texts, max_length=max_length,
            row_length=scoring.row_length, rows_per_batch=scoring.rows_per_batch,
            compute_dtype=scoring.compute_dtype, mesh=scoring.mesh, title=f"long context {model}",
        )  # fmt: skip
    return card


def load_model(path: str | Path, *, mesh=None) -> tuple[dict, LlamaConfig, Tokenizer, dict]:
    """Loads parameters, config and tokenizer, and says where they came from."""
    path = as_path(path)
    if (path / "config.json").is_file():
        config, tokenizer = huggingface.read_config(path), load_tokenizer(path)
        params = huggingface.load_params(path, config, mesh)
        origin = {"provenance": {"kind": "huggingface"}}
    else:
        info = checkpoints.find_checkpoint(path)
        config, tokenizer = info.config, load_tokenizer(info.tokenizer_dir)
        params = checkpoints.restore_params(info.path, mesh=mesh)
        origin = {
            "step": info.step,
            "weights_identity": weights_identity(info.path),
            "provenance": info.meta["provenance"],
        }
    check_fits(tokenizer, config.vocab_size)
    return params, config, tokenizer, origin


def evaluate_params(
    params: dict,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    items: Sequence[dict],
    texts: Sequence[dict],
    *,
    model: str,
    scoring: Scoring = DEFAULT_SCORING,
    beat: Callable[[], None] = lambda: None,
) -> dict:
    """Scores parameters in memory; all items and texts share rows and one compiled program.

    `beat` is called after each batch.
    """
    started = time.monotonic()
    # Models without BOS are given EOS to begin with, as lm-eval does.
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    requests = encode_items(tokenizer, items, prefix)
    window = min(scoring.window, config.max_seq_len)
    token_lists = tokenizer.encode_batch([text["text"] for text in texts])
    rolling, owners = scorer.rolling_requests(token_lists, prefix_id=prefix, window=window)
    scores = scorer.score(
        params,
        config,
        [*requests, *rolling],
        row_length=scoring.row_length,
        rows_per_batch=scoring.rows_per_batch,
        compute_dtype=jnp.dtype(scoring.compute_dtype),
        mesh=scoring.mesh,
        title=f"scoring {model}",
        beat=beat,
    )
    item_scores, rolling_scores = scores[: len(items)], scores[len(items) :]
    nats = scorer.sum_rolling(rolling_scores, owners, len(texts))
    meta = checkpoints.make_meta(config, tokenizer_fingerprint=tokenizer.fingerprint, provenance={})
    return {
        "model": model,
        "checkpoint": None,
        "results": [
            *choice_results(items, [score.log_probs for score in item_scores]),
            *_text_results(texts, nats),
        ],
        "made_with": {
            "items_fingerprint": fingerprint(items),
            "texts_fingerprint": fingerprint(texts),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "preset": config.name,
            "compute_dtype": scoring.compute_dtype,
            "window": window,
            "truncated_requests": sum(score.truncated_tokens > 0 for score in scores),
            "secs": round(time.monotonic() - started, 1),
            "versions": meta["versions"],
            "commit": meta["commit"],
        },
    }


def encode_items(
    tokenizer: Tokenizer, items: Sequence[dict], prefix_id: int
) -> list[scorer.Request]:
    """Tokenises contexts and choices.

    Context and choice are encoded together and the choice is what follows the context's own
    tokens, as in lm-eval. Where the two would melt into one token, the choice is encoded alone:
    the tokens that are scored always spell the choice.
    """
    contexts = tokenizer.encode_batch([item["context"] for item in items])
    wholes = iter(tokenizer.encode_batch([i["context"] + c for i in items for c in i["choices"]]))
    requests = []
    for item, context in zip(items, contexts, strict=True):
        continuations = []
        for choice, whole in zip(item["choices"], wholes, strict=False):
            fits = whole[: len(context)] == context
            continuations.append(whole[len(context) :] if fits else tokenizer.encode(choice))
        requests.append(scorer.Request([prefix_id, *context], continuations))
    return requests


def fingerprint(records: Iterable[dict]) -> str:
    """Returns 16 hex digits that tell whether two scorecards answered the same questions."""
    lines = sorted(json.dumps(record, sort_keys=True) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _text_results(texts: Sequence[dict], nats: np.ndarray) -> list[dict]:
    groups = collections.defaultdict(list)
    for text, nll in zip(texts, nats, strict=True):
        raw = text["text"].encode()
        member = nll / math.log(2), len(raw), hashlib.sha256(raw).hexdigest()[:16]
        groups[text["domain"], text["language"]].append(member)
    return [
        {
            "task": "bits_per_byte",
            "domain": domain,
            "language": language,
            "metric": "bits_per_byte",
            **bits_per_byte(*np.array([member[:2] for member in members]).T),
            "chance": None,
            "higher_is_better": False,
            "correct": None,
            "bits": [float(bits) for bits, _, _ in members],
            "bytes": [size for _, size, _ in members],
            "ids": [name for _, _, name in members],
        }
        for (domain, language), members in groups.items()
    ]


def bits_per_byte(bits: np.ndarray, sizes: np.ndarray) -> dict:
    """Returns total bits over total bytes, its standard error over documents, and n.

    The error is that of a ratio of two sums (the delta method, Cochran 1977, section 6.4), for
    long documents count more than short ones.

    Args:
        bits: [documents], negative log-likelihood in bits.
        sizes: [documents], UTF-8 bytes.

    >>> bits_per_byte(np.array([10.0, 30.0]), np.array([10, 20]))["value"]
    1.3333333333333333
    """
    count, ratio = len(bits), float(bits.sum() / sizes.sum())
    stderr = None
    if count > 1:
        residuals = bits - ratio * sizes
        stderr = float(np.sqrt((residuals**2).sum() / (count - 1) / count) / sizes.mean())
    return {"value": ratio, "stderr": stderr, "n": count}


def read_texts(path: str | Path) -> list[dict]:
    """Reads held-out documents: JSONL with text, domain and language.

    Args:
        path: a file, or a directory of `ellama curate`, whose held-out documents are meant.

    Raises:
        ValueError: naming the first line that is none.
        OSError: if the file cannot be read.
    """
    path = as_path(path)
    if path.is_dir():
        files = curated_files(path, "documents", "heldout")
        return [record for file in files for record in read_shard(file)]
    texts = []
    with path.open("rb") as lines:  # what is no UTF-8 is then the error of one line
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_json(line)
                texts.append({key: str(record[key]) for key in ("text", "domain", "language")})
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{path}: line {number} must have text, domain and language, got {error}."
                ) from error
    texts = [text for text in texts if text["text"].strip()]
    if not texts:
        raise ValueError(f"{path}: must hold a document with text, got none.")
    return texts


def limit_each(records: Sequence[dict], limit: int | None, keys: Sequence[str]) -> list[dict]:
    """Keeps the first `limit` records of each combination of `keys`; None keeps all."""
    counts = collections.Counter()
    kept = []
    for record in records:
        group = tuple(record[key] for key in keys)
        counts[group] += 1
        if limit is None or counts[group] <= limit:
            kept.append(record)
    return kept


def read_scorecard(path: str | Path) -> dict:
    """Reads a scorecard, or says that the file is none."""
    try:
        card = parse_json(as_path(path).read_text(encoding="utf-8"))
        card["model"], card["results"], card["made_with"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: must be a scorecard, as `ellama evaluate --json` writes one, got other content."
        ) from error
    return card


def write_json(path: str | Path, content: dict) -> None:
    """Writes JSON whole or not at all."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json_text(content))


def json_text(content: dict) -> str:
    """Returns a scorecard as it stands in its file."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def main_evaluate(argv: list[str]) -> None:
    """Runs `ellama evaluate`."""
    if lm_eval_run.is_wanted(argv, ALL_TASKS):
        return lm_eval_run.main_lm_eval(argv, ALL_TASKS)
    args = _parse_arguments(argv)
    gate = side_by_side.gate_of(args)
    for name in ("json", "markdown"):
        if path := getattr(args, name):
            check_file(path, f"--{name}")
    cards = [read_scorecard(path) for path in args.scorecards or [args.base] if path]
    if args.scorecards:
        comparisons, gates = side_by_side.lay_side_by_side(cards, gate, markdown_path=args.markdown)
        if args.json:
            write_json(args.json, {"comparisons": comparisons, "gates": gates})
        return side_by_side.leave_if_refused(gates, gate)
    card = _score_as_asked(args)
    card["made_with"]["command"] = shlex.join(["ellama", "evaluate", *argv])
    comparisons, gates = side_by_side.lay_side_by_side(
        [*cards, card], gate, markdown_path=args.markdown
    )
    if comparisons:
        card |= {"against_base": comparisons[0], "gate": gates[0]}
    if args.json:
        write_json(args.json, card)
    side_by_side.leave_if_refused(gates, gate)


def _score_as_asked(args: argparse.Namespace) -> dict:
    items, texts, written = [], [], []
    split = None if args.split == "all" else args.split
    if args.tasks or not args.long_context:
        tasks = check_tasks(args.tasks or "", known=ALL_TASKS)
        written = generated.gather_items(tasks, args.benchmark, split)
        items, texts = gather_questions(
            tasks,
            benchmark_dir=args.benchmark,
            texts_path=args.texts,
            split=split,
            limit=args.limit,
            mmlu_style=args.mmlu_style,
            seed=args.seed,
        )
    long_texts = read_texts(args.long_context) if args.long_context else []
    scoring = Scoring(
        row_length=args.row_length,
        rows_per_batch=args.rows_per_batch,
        window=args.window,
        compute_dtype=args.compute_dtype,
    )
    return evaluate_checkpoint(
        args.checkpoint, items, texts, model=args.model, scoring=scoring,
        written_items=limit_each(written, args.limit, ("task", "language")),
        long_texts=limit_each(long_texts, args.limit, ("domain", "language")),
        max_length=args.max_length,
    )  # fmt: skip


def gather_questions(
    tasks: Sequence[str],
    *,
    benchmark_dir: str | None,
    texts_path: str | None,
    split: str | None,
    limit: int | None,
    mmlu_style: str = "cloze",
    seed: int = 0,
) -> tuple[list[dict], list[dict]]:
    """Collects the items and texts that `tasks` ask for, at most `limit` a task and language."""
    items, texts = [], []
    wanted = [name for name in ecommerce.TASKS if name in tasks or "ecommerce" in tasks]
    if wanted:
        if benchmark_dir is None:
            raise ValueError("--benchmark: must name the built benchmark for e-commerce, got none.")
        found = ecommerce.read_items(benchmark_dir, split)
        for name in wanted:
            if name in tasks and not any(item["task"] == name for item in found):
                raise ValueError(
                    f"--tasks: must have items in {benchmark_dir} ({split or 'all'} split), got "
                    f"{name}, which has none; its benchmark.json says why."
                )
        items += limit_each([i for i in found if i["task"] in wanted], limit, ("task", "language"))
    if "mmlu" in tasks:
        found = harness.load_mmlu(limit=None, seed=seed, style=mmlu_style)
        found = ecommerce.assign_splits(found, validation_frac=MMLU_VALIDATION_FRAC, seed=seed)
        found = [item for item in found if split in (None, item["split"])]
        items += limit_each(found, limit, ("language",))
    if "bits_per_byte" in tasks:
        if texts_path is None:
            raise ValueError("--texts: must name held-out texts for bits_per_byte, got none.")
        texts = limit_each(read_texts(texts_path), limit, ("domain", "language"))
    return items, texts


def check_tasks(text: str, name: str = "--tasks", *, known: Collection[str] = TASKS) -> list[str]:
    """Splits "a,b", given as `name`, and refuses names of no task, with the nearest one."""
    tasks = [part.strip() for part in text.split(",") if part.strip()]
    for task in tasks:
        if task in generated.TASKS and task not in known:
            raise ValueError(f"{name}: must be tasks with choices, got {task}; it is answered by "
                             "writing, which `ellama evaluate` alone scores.")  # fmt: skip
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
            raise ValueError(f"{name}: must be known tasks, got {task}; {hint}")
    if not tasks:
        raise ValueError(f"{name}: must name at least one of {', '.join(known)}, got none.")
    return tasks


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `evaluate` and `merge-sweep` share."""
    parser.add_argument("--benchmark", help="directory made by `ellama build-benchmark`")
    parser.add_argument("--texts", help="held-out documents, JSONL with text, domain, language")
    parser.add_argument("--limit", type=int, help="at most so many a task and language")
    parser.add_argument("--mmlu-style", choices=harness.STYLES, default="cloze")
    parser.add_argument("--seed", type=int, default=0, help="which MMLU questions are drawn")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--row-length", type=int, default=Scoring.row_length)
    parser.add_argument("--rows-per-batch", type=int, default=Scoring.rows_per_batch)
    parser.add_argument("--window", type=int, default=Scoring.window, help="of bits per byte")


def _parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama evaluate",
        description="Score a checkpoint (an Orbax root or step, or a Hugging Face directory).",
        epilog=(
            f"tasks: {', '.join(ALL_TASKS)}\n"
            "example: ellama evaluate --checkpoint runs/a/checkpoints --tasks ecommerce,mmlu "
            "--benchmark runs/benchmark --json runs/a/scores/adapted.json\n"
            "         ellama evaluate --scorecards runs/a/scores/base.json "
            "runs/a/scores/adapted.json --markdown card.md\n"
            "Other names are tasks of lm-eval: ellama evaluate --lm-eval --help"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", help="what to score")
    parser.add_argument("--tasks", help="comma-separated")
    parser.add_argument("--model", help="the scorecard's name for it, e.g. base")
    parser.add_argument("--split", choices=("test", "validation", "all"), default="test")
    parser.add_argument("--json", help="file to write the scorecard to")
    add_scoring_arguments(parser)
    parser.add_argument(
        "--long-context",
        metavar="TEXTS",
        help="perplexity by position and needles in long held-out texts, JSONL as --texts",
    )
    parser.add_argument("--max-length", type=int, help="tokens of those (default: the model's)")
    side_by_side.add_arguments(parser)
    args = parser.parse_args(argv)
    side_by_side.check_arguments(args)
    return args
