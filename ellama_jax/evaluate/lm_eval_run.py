"""`ellama evaluate` for the tasks of lm-evaluation-harness: checks, runs, writes lm-eval's own JSON.

The model is lm_eval_model.py's; tasks of our own, and scorecards, are `scorecard`'s.
"""

import argparse
import difflib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ellama_jax.core.paths import as_path, is_remote, write_whole
from ellama_jax.evaluate.card_text import markdown_table
from ellama_jax.weights.layout import check_file

_NEAREST = 3
_BUILT = "ellama_"  # begins the names of a built benchmark's tasks


def is_wanted(argv: list[str], own_tasks: Collection[str]) -> bool:
    """Tells whether a command names a task that is not ours, or says --lm-eval.

    >>> is_wanted(["--tasks", "arc_easy,mmlu"], ["mmlu"]), is_wanted(["--tasks=mmlu"], ["mmlu"])
    (True, False)
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--lm-eval", action="store_true")
    parser.add_argument("--include-path")
    found, _ = parser.parse_known_args(argv)
    names = _split(found.tasks)
    strangers = [name for name in names if name not in own_tasks]
    if found.lm_eval or not strangers:
        return found.lm_eval
    if found.include_path or any(name.startswith(_BUILT) for name in strangers):
        return True
    # A slip in one of our names is said by `scorecard`, unless lm-eval knows the name.
    near_ours = any(difflib.get_close_matches(name, own_tasks, n=1) for name in names)
    return not near_ours or _known_to_lm_eval(strangers)


def main_lm_eval(argv: list[str], own_tasks: Collection[str]) -> None:
    """Runs lm-eval's tasks on a checkpoint."""
    args = _parse_arguments(argv)
    names = _split(args.tasks)
    if not args.lm_eval and (ours := [name for name in names if name in own_tasks]):
        raise ValueError(
            f"--tasks: must be of one kind, got {', '.join(ours)} beside tasks of lm-eval; run them "
            "apart, or add --lm-eval if lm-eval's tasks of these names are meant."
        )
    if args.json:
        check_file(args.json, "--json")
    # What stands in the way of a task shows before any weight is read.
    manager = _open_tasks(args.include_path)
    tasks = load_tasks(find_tasks(names, manager), manager, args.num_fewshot)
    results = run(args, tasks, manager)
    samples = results.pop("samples", None)
    if args.json:
        _write(as_path(args.json), results, samples if args.log_samples else None)
    _print_tables(results)


def find_tasks(names: list[str], manager) -> list[str | dict]:
    """Resolves names, patterns and YAML files as lm-eval's command line does.

    Raises:
        ValueError: for one that lm-eval does not know, with the nearest names.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    chosen: list[str | dict] = []
    for name in names:
        if name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ValueError(f"--tasks: {name} must be a file, got nothing there.")
            chosen.append(load_yaml(str(Path(name).absolute()), resolve_func=True))
            continue
        found = manager.match_tasks([name])
        if not found:
            near = difflib.get_close_matches(name, manager.all_tasks, n=_NEAREST)
            hint = "`lm_eval ls tasks` lists them."
            if name.startswith(_BUILT) and not any(other.startswith(_BUILT) for other in near):
                hint = "those of a built benchmark need --include-path BENCHMARK."
            elif near:
                hint = f"did you mean {' or '.join(near)}?"
            raise ValueError(f"--tasks: must be tasks of lm-eval or our own, got {name}; {hint}")
        chosen += [task for task in found if task not in chosen]
    if not chosen:
        raise ValueError("--tasks: must name at least one task, got none.")
    return chosen


def load_tasks(chosen: list[str | dict], manager, num_fewshot: int | None = None) -> list:
    """Loads tasks and their data.

    Args:
        num_fewshot: worked examples that each task must have.

    Returns:
        lm-eval's tasks and groups of tasks.

    Raises:
        ValueError: for a task whose data must be downloaded and cannot be, whose code needs a
            package that is not installed, that is broken, or has too few worked examples.
    """
    loaded = []
    for task in chosen:
        name = task if isinstance(task, str) else task.get("task", "a YAML file")
        try:
            found = manager.load([task])
        except ImportError as error:
            raise ValueError(
                f"--tasks {name}: needs a package that is not installed, got {_first_line(error)}."
            ) from error
        except Exception as error:
            if not _is_unreachable(error):
                raise ValueError(
                    f"--tasks {name}: must be a task that lm-eval can load, got "
                    f"{type(error).__name__}: {_first_line(error)}."
                ) from error
            raise ValueError(
                f"--tasks {name}: needs a download that failed, got {_first_line(error)}; run once "
                "where the Hugging Face hub can be reached, then HF_HOME holds the data."
            ) from error
        for title, one in found["tasks"].items():
            _check_examples(title, one, num_fewshot or 0)
        group = found["groups"].get(name)
        loaded += found["tasks"].values() if group is None else [group]
    return loaded


def _check_examples(name: str, task, wanted: int) -> None:
    if not wanted or not hasattr(task, "fewshot_docs"):
        return
    # A question is not its own example: lm-eval draws one more where both are of one split.
    config = task.config
    own = config.fewshot_split in (None, config.test_split or config.validation_split)
    there = len(list(task.fewshot_docs() or ())) - own
    if wanted > there:
        raise ValueError(
            f"--num-fewshot: must be at most {max(there, 0)} for the task {name}, which has no more worked "
            f"examples, got {wanted}."
        )


def _is_unreachable(error: BaseException | None) -> bool:
    """Tells whether an error, or what it came from, is one of a network or of being offline."""
    while error is not None:
        vendor = type(error).__module__.split(".")[0]
        network = vendor in ("huggingface_hub", "requests", "httpx", "urllib3", "aiohttp")
        if isinstance(error, ConnectionError | TimeoutError) or network:
            return True
        # What datasets raises where the hub's listing could not be had and the cache lacks it.
        if vendor == "datasets" and isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False


def run(args: argparse.Namespace, tasks: list, manager) -> dict:
    """Evaluates; returns what `lm_eval.simple_evaluate` does."""
    import lm_eval

    import ellama_jax.evaluate.lm_eval_model  # noqa: F401  registers the model

    model_args = {
        "checkpoint": args.checkpoint,
        "dtype": args.compute_dtype,
        "batch_tokens": args.batch_tokens,
        "seed": args.seed,
        **{name: getattr(args, name) for name in ("data", "fsdp", "context", "tensor")},
        **{name: getattr(args, name) for name in ("max_length", "add_bos_token")
           if getattr(args, name) is not None},
    }  # fmt: skip
    return lm_eval.simple_evaluate(
        model="ellama",
        model_args=model_args,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.apply_chat_template,
        fewshot_as_multiturn=args.fewshot_as_multiturn,
        system_instruction=args.system_instruction,
        gen_kwargs=args.gen_kwargs,
        log_samples=args.log_samples,
        bootstrap_iters=args.bootstrap_iters,
        use_cache=_responses_path(args) if args.use_cache else None,
        cache_requests=args.cache_requests,
        confirm_run_unsafe_code=args.confirm_run_unsafe_code,
    )


def _responses_path(args: argparse.Namespace) -> str:
    """Names the file of cached responses by all that they depend on: lm-eval's keys are texts only.

    Another checkpoint, or the same one written anew, so never answers with old responses.
    """
    from ellama_jax.weights.checkpoint import find_checkpoint

    where = as_path(args.checkpoint)
    where = where if (where / "config.json").is_file() else find_checkpoint(where).path
    stamps = []  # of a local directory; in a bucket the place alone must do
    if not is_remote(where):
        stats = [(path.name, path.stat()) for path in sorted(where.iterdir())]
        stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    settings = (args.compute_dtype, args.max_length, args.add_bos_token, args.seed)
    digest = hashlib.sha256(repr((str(where), stamps, settings)).encode()).hexdigest()[:16]
    return os.path.join(args.use_cache, f"responses-{digest}")


@functools.cache  # reading what lm-eval has takes seconds
def _open_tasks(include_path: str | None):
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise ValueError(f"--include-path: must be a directory, got {include_path}.")
    return TaskManager(include_path=include_path)


def _known_to_lm_eval(names: list[str]) -> bool:
    manager = _open_tasks(None)
    return all(name.endswith(".yaml") or manager.match_tasks([name]) for name in names)


def _write(path: Path, results: dict, samples: dict | None) -> None:
    """Writes results as lm-eval does, and a task's samples beside them, one a line."""
    from lm_eval.utils import handle_non_serializable

    def dump(value, indent=None):
        return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, dump(results, indent=2) + "\n")
    for task, records in (samples or {}).items():
        lines = "".join(dump(record) + "\n" for record in records)
        write_whole(path.with_name(f"{path.stem}.samples_{task}.jsonl"), lines)


def _print_tables(results: dict) -> None:
    for column in ("results", "groups"):
        if column in results:
            print(table_of(results, column))


def table_of(results: dict, column: str = "results") -> str:
    """Returns the scores of tasks, or of groups, as Markdown; lm-eval's own table needs chardet, which is LGPL."""
    header = (column, "version", "filter", "shots", "metric", "value", "stderr")
    return "\n".join(markdown_table([header, *_rows_of(results, column)]))


def _rows_of(results: dict, column: str) -> Iterator[tuple]:
    for task, scores in results[column].items():
        about = (scores.get("alias", task), results["versions"].get(task, ""))
        shots = results["n-shot"].get(task, "")
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith("_stderr"):
                error = scores.get(f"{metric}_stderr,{filtered}")
                numbers = (f"{x:.4f}" if isinstance(x, float) else x or "" for x in (value, error))
                yield (*about, filtered, shots, metric, *numbers)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    """Reads how many worked examples."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a count, 0 or more, got {text}")
    return int(text)


def _number(text: str) -> int | float:
    """Reads a limit: a count of questions, or a share below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value < 1:
        return value
    if value >= 1 and value.is_integer():
        return int(value)
    raise argparse.ArgumentTypeError(f"must be a count, or a share between 0 and 1, got {text}")


def add_lm_eval_arguments(add: Callable) -> None:
    """Adds what lm-eval's tasks know; `add` is `add_argument` of a parser or a group."""
    add("--lm-eval", action="store_true", help="mean lm-eval's tasks, where a name is ours as well")
    add("--num-fewshot", type=_count, help="worked examples before each question")
    add("--apply-chat-template", action="store_true", help="lay prompts out as the model's chats")
    add("--fewshot-as-multiturn", action="store_true", help="worked examples as turns of the chat")
    add("--system-instruction", help="the chat's system message")
    add("--gen-kwargs", help="e.g. temperature=0.7,do_sample=true; for tasks that generate")
    add("--log-samples", action="store_true", help="write every prompt and answer beside --json")
    add("--use-cache", metavar="DIR", help="keep the model's responses there, and take them")
    add("--cache-requests", action="store_true", help="keep the prompts that lm-eval builds")
    add("--bootstrap-iters", type=int, default=100000, help="of errors without a formula; 0: none")
    add("--include-path", metavar="DIR", help="more tasks, as YAML files")
    add("--max-length", type=int, help="tokens of context and answer (default: the model's)")
    add("--batch-tokens", type=int, default=4096, help="tokens a call of the model")
    add("--add-bos-token", action=argparse.BooleanOptionalAction, help="default: as tokenizer.json")
    add("--confirm-run-unsafe-code", action="store_true", help="for tasks that run what is written")
    for axis in ("data", "fsdp", "context", "tensor"):
        add(
            f"--{axis}",
            type=int,
            default=1,
            help=f"devices along the mesh's {axis}; -1 is the rest",
        )


def _parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ellama evaluate",
        description="Score a checkpoint on tasks of lm-evaluation-harness.",
        epilog="example: ellama evaluate --checkpoint runs/a/checkpoints --tasks arc_easy,hellaswag "
        "--num-fewshot 5 --limit 200 --json runs/a/lm_eval.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--tasks", required=True, help="comma-separated names, patterns or files")
    parser.add_argument("--json", help="file to write lm-eval's results to")
    parser.add_argument("--limit", type=_number, help="questions a task, or a share below 1")
    parser.add_argument("--seed", type=int, default=0, help="of tokens that are drawn")
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    add_lm_eval_arguments(parser.add_argument)
    return parser.parse_args(argv)
