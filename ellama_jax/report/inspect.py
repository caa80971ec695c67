"""`ellama inspect`: say in words what a checkpoint, a window set or a mixture holds.

Owns the words only; reading belongs to weights and data.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from ellama_jax.core.paths import as_path
from ellama_jax.core.terminal import obeyed
from ellama_jax.corpus.curation_output import REPORT_FILE, is_curated
from ellama_jax.report.audit_text import (
    describe_languages,
    describe_mixture,
    describe_problems,
    describe_set,
    describe_stream,
    describe_vocabulary,
    show_window,
)
from ellama_jax.report.curation_text import describe_curation_whole, show_examples
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.tokens.windows import MANIFEST_FILE, WindowSet, find_sets

# Which jobs an option is for; elsewhere it is refused and not passed over in silence.
_OPTIONS = {
    "show": ("a window set", "a curation"),
    "window": ("a window set",),
    "sample": ("a window set", "a configuration"),
    "vocabulary": ("a window set",),
    "strict": ("a window set", "a configuration", "a curation"),
    "html": ("a window set", "a configuration", "a curation"),
    "tokenizer": ("a window set", "a configuration"),
    "mesh": ("a checkpoint",),
    "json": ("a checkpoint", "a comparison", "a window set", "a configuration", "a curation"),
    "layers": ("a comparison",),
    "plot": ("a comparison",),
}


def main_inspect(argv: list[str]) -> None:
    """Runs the verb `inspect`."""
    parser = _make_parser()
    args, overrides = parser.parse_known_args(argv)
    is_config = args.path.split(":")[0].endswith(".py")
    path = Path(args.path) if is_config else as_path(args.path)
    if overrides and not is_config:
        parser.error(f"unrecognized arguments: {shlex.join(overrides)}")
    job, run = _find_job(path, args, is_config)
    _check_options(args, job)
    run(path, args, overrides)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ellama inspect",
        description="Say in words what a checkpoint, a window set, a directory of window sets, a "
        "curation or a configuration's mixture holds, or how two models differ.",
        epilog="example:\n  ellama inspect runs/8b/checkpoints\n"
        "  ellama inspect runs/8b/checkpoints --mesh fsdp=8,tensor=2\n"
        "  ellama inspect base --diff runs/8b/checkpoints --layers --plot moved.png\n"
        "  ellama inspect curated --show 3 --html curation.html\n"
        "  ellama inspect windows --tokenizer base/tokenizer --html audit.html\n"
        "  ellama inspect windows/ecommerce-de --show 2 --tokenizer base/tokenizer\n"
        "  ellama inspect windows --tokenizer base/tokenizer --vocabulary 1000,5000,30000\n"
        "  ellama inspect configs/ellama.py:8b --config.data.windows_dir=windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", help="checkpoint root or step, window set(s), curation, or configuration file"
    )
    parser.add_argument(
        "--mesh", metavar="SIZES", help="show a checkpoint divided over a mesh, as fsdp=8,tensor=2"
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="say what differs in OTHER: a checkpoint, or anything that `ellama import` reads",
    )
    parser.add_argument("--layers", action="store_true", help="with --diff: a table layer by layer")
    parser.add_argument("--plot", metavar="OUT.png", help="with --diff: draw that table")
    parser.add_argument("--json", metavar="OUT", help="write what is said as data")
    parser.add_argument("--html", metavar="OUT.html", help="write an audit as one page")
    parser.add_argument(
        "--show", type=_positive, metavar="N",
        help="decode the first N windows; of a curation, N examples of each source and fate",
    )  # fmt: skip
    parser.add_argument("--window", type=int, metavar="I", help="decode window I, from 0")
    parser.add_argument(
        "--sample", type=_positive, metavar="N",
        help="read N windows of each set, spread evenly (default: about a million tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--vocabulary", type=_sizes, metavar="N,N",
        help="say how much shorter e-commerce text would get with N more tokens",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="exit with 1 if there is a problem")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer to decode windows with")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _sizes(text: str) -> list[int]:
    return sorted({_positive(part) for part in text.split(",")})


def _find_job(path: Path, args, is_config: bool) -> tuple[str, Callable]:
    """Returns what lies at `path`, in words for messages, and what is to be done with it."""
    is_windows = bool(_window_sets(path))
    if args.diff is not None:
        if is_config or is_windows:
            kind = "a configuration" if is_config else "windows"
            raise ValueError(f"--diff: must compare the weights of two models, got {kind}: {path}.")
        return "a comparison", _inspect_difference
    if is_config:
        return "a configuration", _inspect_mixture
    if is_windows:
        return "a window set", _inspect_windows
    if is_curated(path):
        return "a curation", _inspect_curation
    _check_finished(path)
    if path.is_file():
        raise ValueError(
            f"{path}: must be a directory or a configuration file (.py), got another file; "
            "`ellama import` makes checkpoints of GGUF files."
        )
    # ROOT/best is no directory, and means the best step of ROOT.
    if not path.is_dir() and path.name != "best":
        raise ValueError(f"{path}: must be a directory or a configuration file (.py), got neither.")
    return "a checkpoint", _inspect_checkpoint


def _check_finished(path: Path) -> None:
    """Refuses what `ellama curate` has begun; a local one is hidden beside its place till the end."""
    hidden = path.with_name(f".{path.name}.partial") if path.name else path
    begun = any((path / part / "train").is_dir() for part in ("documents", "listings"))
    if begun or (path / "work").is_dir() or (not path.exists() and hidden.is_dir()):
        raise ValueError(
            f"{path}: must hold a finished curation, got one without {REPORT_FILE}; "
            "curate again, it is written last."
        )


def _check_options(args, job: str) -> None:
    for name, jobs in _OPTIONS.items():
        value = getattr(args, name)
        if value is not None and value is not False and job not in jobs:
            hint = "; name the other with --diff" if jobs == ("a comparison",) else ""
            raise ValueError(f"--{name}: must be used with {' or '.join(jobs)}, got {job}{hint}.")


def _inspect_mixture(path: Path, args, overrides: list[str]) -> None:
    from ellama_jax.tokens.audit import audit_sets
    from ellama_jax.tokens.audit_problems import find_mixture_problems

    _check_files(args)
    config = _load_config(args.path, overrides)
    if config.data.seqio_mixture:
        return _inspect_stream(config, args)
    mixture, sets = measure_mixture_of(config)
    tokenizer = _find_tokenizer(sets[0].path, args.tokenizer)
    audit = {"mixture": mixture, **audit_sets(sets, tokenizer, args.sample), "vocabulary": None}
    found = [{"set": "mixture", "text": text} for text in find_mixture_problems(mixture)]
    audit["problems"] = found + audit["problems"]
    print(describe_mixture(mixture))
    print(describe_languages(audit["languages"], list(audit["sets"].values())))
    _close(f"Mixture of {args.path}", audit, sets, tokenizer, args)


def _inspect_stream(config, args) -> None:
    """Says what a SeqIO mixture is made of; there are no windows that could be audited."""
    from ellama_jax.tokens.tasks import find_mixture

    data = config.data
    for name in ("html", "sample", "tokenizer"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name}: must be used with a mixture of window sets, got the SeqIO mixture "
                f"{data.seqio_mixture}."
            )
    tasks = {name: rate for name, (_, rate) in find_mixture(
        data.seqio_mixture, data.seqio_module).items()}  # fmt: skip
    total = sum(tasks.values()) or 1.0
    stream = {
        "mixture": data.seqio_mixture, "steps": config.train.steps,
        "global_batch_size": data.global_batch_size, "seq_len": data.seq_len,
        "tasks": [{"name": name, "rate": rate, "share": rate / total}
                  for name, rate in sorted(tasks.items())],
    }  # fmt: skip
    print(describe_stream(stream))
    _write_json(args.json, {"stream": stream})


def _inspect_curation(path: Path, args, overrides: list[str]) -> None:
    from ellama_jax.corpus.curation_audit import audit_curation

    _check_files(args)
    audit = audit_curation(path, args.show)
    print(describe_curation_whole(audit))
    if args.show:
        _print_coloured(show_examples(audit, _has_colour()))
    _write_json(args.json, audit)
    if args.html is not None:
        from ellama_jax.report.curation_html import render_curation

        _write_page(args.html, render_curation(f"Curation {path}", audit))
    _end_with(audit["problems"], args)


def _window_sets(path: Path) -> list[Path]:
    """Returns a window set, or those in a directory."""
    if (path / MANIFEST_FILE).is_file():
        return [path]
    return find_sets(path, f"{path}") if path.is_dir() else []


def _inspect_windows(path: Path, args, overrides: list[str]) -> None:
    _check_files(args)
    sets = [WindowSet(place) for place in _window_sets(path)]
    tokenizer = _find_tokenizer(sets[0].path, args.tokenizer)
    if args.show or args.window is not None:
        return _show_windows(sets, args, tokenizer)
    _audit_windows(path, sets, args, tokenizer)


def _audit_windows(path: Path, sets: list[WindowSet], args, tokenizer: Tokenizer | None) -> None:
    from ellama_jax.tokens.audit import audit_sets

    audit = audit_sets(sets, tokenizer, args.sample)
    for said in audit["sets"].values():
        print(describe_set(said))
    print(describe_languages(audit["languages"], list(audit["sets"].values())))
    audit["vocabulary"] = _advise(sets, args, tokenizer)
    if audit["vocabulary"]:
        print(describe_vocabulary(audit["vocabulary"]))
    if tokenizer is None:
        print(
            f"nothing was decoded, so neither text nor duplicates were looked at: give --tokenizer, or put it in {sets[0].path.parent}/tokenizer"
        )
    _close(f"Audit of {path}", audit, sets, tokenizer, args)


def _close(title: str, audit: dict, sets: list, tokenizer: Tokenizer | None, args) -> None:
    """Writes what was asked for, lists the problems and sets the exit status."""
    _write_json(args.json, audit)
    if args.html is not None:
        from ellama_jax.report.audit_html import render_audit

        _write_page(args.html, render_audit(title, audit, sets, tokenizer))
    _end_with(audit["problems"], args)


def _write_page(path: str, page: str) -> None:
    _replace(Path(path), lambda partial: partial.write_text(page, encoding="utf-8"))
    print(f"wrote {path}")


def _end_with(problems: list, args) -> None:
    """Lists the problems last; with --strict they are an exit status."""
    if problems:
        _print_coloured(describe_problems(problems, _has_colour()))
        if args.strict:
            sys.exit(1)


def _print_coloured(text: str) -> None:
    print(text, file=obeyed(sys.stdout))


def _has_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _advise(sets: list[WindowSet], args, tokenizer: Tokenizer | None) -> dict | None:
    """Measures what more tokens would save, if asked."""
    from ellama_jax.tokens import vocabulary
    from ellama_jax.tokens.audit import read_documents

    if args.vocabulary is None:
        return None
    tokenizer = _require_tokenizer(tokenizer, sets)
    groups: dict[tuple[str, str], list] = {}
    for windows in sets:
        manifest = windows.manifest
        sample = args.sample or -(-vocabulary.DEFAULT_SAMPLE_TOKENS // manifest.window_length)
        documents = read_documents(windows, sample)
        groups.setdefault((manifest.domain, manifest.language), []).extend(documents)
    return vocabulary.advise(groups, tokenizer, args.vocabulary)


def _show_windows(sets: list[WindowSet], args, tokenizer: Tokenizer | None) -> None:
    if len(sets) > 1 and args.window is not None:
        raise ValueError(f"--window: must be used with one window set, got {len(sets)} sets.")
    tokenizer = _require_tokenizer(tokenizer, sets)
    for windows in sets:
        first, count = args.window or 0, args.show or 1
        if not 0 <= first < len(windows):
            raise ValueError(f"--window: must be from 0 to {len(windows) - 1}, got {first}.")
        for index in range(first, min(first + count, len(windows))):
            if len(sets) > 1:
                print(windows.path)
            tokens = windows[index]
            _print_coloured(show_window(tokens, index, windows.manifest, tokenizer, _has_colour()))


def _find_tokenizer(windows_dir: Path, tokenizer_dir: str | None) -> Tokenizer | None:
    """Returns the tokenizer that was named, or the one beside the sets; None if there is none."""
    beside = windows_dir.parent / "tokenizer"
    if tokenizer_dir is None and not beside.is_dir():
        return None
    return load_tokenizer(tokenizer_dir or beside)


def _require_tokenizer(tokenizer: Tokenizer | None, sets: list[WindowSet]) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(f"--tokenizer: must be given to decode {sets[0].path}, got none.")
    for windows in sets:
        WindowSet(windows.path, tokenizer.fingerprint)  # says which tokenizer it must be
    return tokenizer


def _inspect_checkpoint(path: Path, args, overrides: list[str]) -> None:
    from ellama_jax.weights.description import describe_facts, find_facts, parse_mesh

    mesh = parse_mesh(args.mesh) if args.mesh else None
    _check_files(args)
    facts = find_facts(_root_of_run(path), mesh)
    print(describe_facts(facts))
    _write_json(args.json, facts)


def _inspect_difference(path: Path, args, overrides: list[str]) -> None:
    from ellama_jax.report.heat_map import SUFFIXES, draw_heat_map
    from ellama_jax.weights.difference import compare
    from ellama_jax.weights.difference_text import describe_difference, difference_to_data

    plot = Path(args.plot) if args.plot else None
    if plot and plot.suffix not in SUFFIXES:
        raise ValueError(f"--plot: must end in one of {', '.join(SUFFIXES)}, got {plot}.")
    _check_files(args)
    found = compare(_root_of_run(path), _root_of_run(as_path(args.diff)))
    print(describe_difference(found, by_layer=args.layers))
    _write_json(args.json, difference_to_data(found))
    if plot:
        _replace(plot, lambda partial: draw_heat_map(found, partial, plot.suffix[1:]))


def _root_of_run(path: Path) -> Path:
    """Returns the checkpoint root in the directory of a run, anything else as it is."""
    inside = path / "checkpoints"
    return inside if inside.is_dir() else path


def _check_files(args) -> None:
    for option in ("json", "plot", "html"):
        _check_file(f"--{option}", getattr(args, option))


def _check_file(option: str, path: str | None) -> None:
    """Refuses a place where a file cannot be written, before the work for it is done."""
    from ellama_jax.weights.layout import check_writable

    if path is None:
        return
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{option}: must name a file, got {path}, which is none.")
    try:
        check_writable(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{option}: {error}") from error


def _write_json(path: str | None, data: dict) -> None:
    if path is not None:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _replace(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside `path` and moves it there, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _load_config(config_path: str, overrides: list[str]):
    from ellama_jax.config import load_config

    config, others = load_config([f"--config={config_path}", *overrides], "inspect")
    if others:
        raise ValueError(f"{others[0]}: is no option of inspect.")
    return config


def measure_mixture_of(config) -> tuple[dict, list[WindowSet]]:
    """Measures the mixture of window sets that a configuration asks for; returns it and the sets."""
    from ellama_jax.tokens.audit import measure_mixture
    from ellama_jax.tokens.loader import Loader, open_sources

    data = config.data
    loader = Loader(open_sources(data, None), data)
    mixture = measure_mixture(loader, data, config.train.steps)
    mixture |= {
        "steps": config.train.steps,
        "global_batch_size": data.global_batch_size,
        "batch_ramp": dict(data.batch_ramp),
        "seq_len": data.seq_len,
        "row_shares": list(loader.row_weights),
        "fingerprint": loader.mixture_fingerprint,
    }
    return mixture, [source.windows for source in loader.sources]
