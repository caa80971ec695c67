"""`ellama VERB`: one table from verb to module, no logic.

What a verb does lives in its module; here is only how it is found and how its errors are said.
"""

import contextlib
import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from ellama_jax.core.exits import EXIT_MISTAKE, describe_error
from ellama_jax.core.terminal import only_shown, printable

VERBS = {
    "demo": ("ellama_jax.experiments.demo", "the whole job on this machine, from base model to report"),
    "import": ("ellama_jax.weights.importer", "HF or Meta directory, or GGUF file -> Orbax checkpoint"),
    "export": ("ellama_jax.weights.export", "Orbax checkpoint -> HF directory that transformers and vLLM load"),
    "verify": ("ellama_jax.weights.verify", "the conversion gate: a checkpoint against its source"),
    "curate": ("ellama_jax.corpus.curate", "raw records -> clean documents, split by product (Beam)"),
    "prepare": ("ellama_jax.tokens.prepare", "documents -> token windows on disk"),
    "inspect": ("ellama_jax.report.inspect", "what a checkpoint or window set holds; what differs"),
    "train": ("ellama_jax.train.loop", "continual pretraining from a configuration"),
    "watch": ("ellama_jax.report.watch", "a run on the terminal while it trains: loss, speed, mixture, ETA"),
    "evaluate": ("ellama_jax.evaluate.scorecard", "score a checkpoint on e-commerce and general tasks"),
    "build-benchmark": ("ellama_jax.evaluate.benchmark", "e-commerce tasks from a catalogue"),
    "build-classifier": ("ellama_jax.corpus.classifier", "the e-commerce classifier from labelled documents"),
    "merge": ("ellama_jax.merge.verb", "models of one architecture into one more, by seven methods"),
    "average": ("ellama_jax.merge.average", "the mean of a run's steps, or its moving average"),
    "merge-sweep": ("ellama_jax.merge.tradeoff_verb", "the trade-off curve between base and adapted"),
    "moved": ("ellama_jax.merge.moved", "where training moved the weights, and what can go back to base"),
    "plan": ("ellama_jax.plan.verb", "does a run fit on chips that are not here, how fast, what does it cost"),
    "sweep": ("ellama_jax.experiments.sweep", "the trials of configs/sweeps, here or as launch commands"),
    "evidence": ("ellama_jax.experiments.evidence", "the paper's claims, tried at the scale of this machine"),
    "report": ("ellama_jax.report.verb", "the HTML page of a run, a sweep or a merge"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Runs one verb; a user's mistake ends in one line on stderr and exit status 2.

    `ELLAMA_TRACEBACK=1` shows where an error was raised.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    verb = argv.pop(0)
    if verb not in VERBS:
        sys.exit(_fail("", f"{verb} is no verb; {_nearest(verb)}"))
    module, _ = VERBS[verb]
    try:
        if "ELLAMA_PARENT" in os.environ:  # started by another verb
            importlib.import_module("ellama_jax.core.verb_process").end_with_parent()
        with only_shown(), _dropped_interrupts_are_heard():
            getattr(importlib.import_module(module), f"main_{verb.replace('-', '_')}")(argv)
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output, as `| head`, has had enough. Nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        if os.environ.get("ELLAMA_TRACEBACK") and not isinstance(error, KeyboardInterrupt):
            raise
        status, line = describe_error(error)
        _fail(verb, line)
        sys.exit(status)


@contextlib.contextmanager
def _dropped_interrupts_are_heard() -> Iterator[None]:
    before = sys.unraisablehook
    sys.unraisablehook = functools.partial(_interrupt_again, before)
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt_again(otherwise: Callable, unraisable) -> None:
    """Hears a Ctrl-C that came where Python drops errors: a `__del__`, or a callback of its collector."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Not from here, where it would be dropped again.
        main_thread = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
    else:
        otherwise(unraisable)


def usage() -> str:
    """Returns the text of `ellama --help`."""
    lines = [f"  {verb:<16} {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        ["usage: ellama VERB [OPTIONS]; each verb has --help with an example", "", *lines]
    )


def _nearest(verb: str) -> str:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1)
    return f"did you mean {near[0]}?" if near else "see ellama --help."


def _fail(verb: str, message: str) -> int:
    print(printable(f"ellama{' ' if verb else ''}{verb}: error: {message}"), file=sys.stderr)
    return EXIT_MISTAKE


if __name__ == "__main__":
    main()
