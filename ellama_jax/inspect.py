"""`ellama inspect`: say in words what a checkpoint, a window set or a mixture holds.

Owns the words only; reading belongs to weights and data.
"""

import argparse
import contextlib
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from ellama_jax.data.tokenizer import load_tokenizer
from ellama_jax.data.windows import MANIFEST_FILE, PADDING, WindowSet, read_manifest, segments
from ellama_jax.paths import as_path

# Which jobs an option is for; elsewhere it is refused and not passed over in silence.
_OPTIONS = {
    "show": ("a window set",),
    "tokenizer": ("a window set",),
    "mesh": ("a checkpoint",),
    "json": ("a checkpoint", "a comparison"),
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
        description="Say in words what a checkpoint, a window set, a directory of window sets or a "
        "configuration's mixture holds, or how two models differ.",
        epilog="example:\n  ellama inspect runs/8b/checkpoints\n"
        "  ellama inspect runs/8b/checkpoints --mesh fsdp=8,tensor=2\n"
        "  ellama inspect base --diff runs/8b/checkpoints --layers --plot moved.png\n"
        "  ellama inspect windows/ecommerce-de --show 2 --tokenizer base/tokenizer\n"
        "  ellama inspect configs/ellama.py:8b --config.data.windows_dir=windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", help="checkpoint root or step, window set(s), or configuration file"
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
    parser.add_argument("--json", metavar="OUT", help="write what is said about weights as data")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="decode the first N windows"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer to decode windows with")
    return parser


def _find_job(path: Path, args, is_config: bool) -> tuple[str, Callable]:
    """Returns what lies at `path`, in words for messages, and what is to be done with it."""
    is_windows = (path / MANIFEST_FILE).exists() or any(path.glob(f"*/{MANIFEST_FILE}"))
    if args.diff is not None:
        if is_config or is_windows:
            kind = "a configuration" if is_config else "windows"
            raise ValueError(f"--diff: must compare the weights of two models, got {kind}: {path}.")
        return "a comparison", _inspect_difference
    if is_config:
        return "a configuration", _inspect_mixture
    if is_windows:
        return "a window set", _inspect_windows
    if path.is_file():
        raise ValueError(
            f"{path}: must be a directory or a configuration file (.py), got another file; "
            "`ellama import` makes checkpoints of GGUF files."
        )
    # ROOT/best is no directory, and means the best step of ROOT.
    if not path.is_dir() and path.name != "best":
        raise ValueError(f"{path}: must be a directory or a configuration file (.py), got neither.")
    return "a checkpoint", _inspect_checkpoint


def _check_options(args, job: str) -> None:
    for name, jobs in _OPTIONS.items():
        if getattr(args, name) and job not in jobs:
            hint = "; name the other with --diff" if jobs == ("a comparison",) else ""
            raise ValueError(f"--{name}: must be used with {' or '.join(jobs)}, got {job}{hint}.")


def _inspect_mixture(path: Path, args, overrides: list[str]) -> None:
    print(describe_mixture(args.path, overrides))


def _inspect_windows(path: Path, args, overrides: list[str]) -> None:
    if (path / MANIFEST_FILE).exists():
        print(describe_windows(path))
        if args.show:
            _show(path, args.show, args.tokenizer)
    else:
        sets = sorted(child.parent for child in path.glob(f"*/{MANIFEST_FILE}"))
        print("\n".join(describe_windows(windows) for windows in sets))


def _inspect_checkpoint(path: Path, args, overrides: list[str]) -> None:
    from ellama_jax.weights.description import describe_facts, find_facts, parse_mesh

    mesh = parse_mesh(args.mesh) if args.mesh else None
    _check_file("--json", args.json)
    facts = find_facts(_root_of_run(path), mesh)
    print(describe_facts(facts))
    _write_json(args.json, facts)


def _inspect_difference(path: Path, args, overrides: list[str]) -> None:
    from ellama_jax.weights.difference import compare
    from ellama_jax.weights.difference_words import describe_difference, difference_to_data
    from ellama_jax.weights.heat_map import SUFFIXES, draw_heat_map

    plot = Path(args.plot) if args.plot else None
    if plot and plot.suffix not in SUFFIXES:
        raise ValueError(f"--plot: must end in one of {', '.join(SUFFIXES)}, got {plot}.")
    _check_file("--json", args.json)
    _check_file("--plot", args.plot)
    found = compare(_root_of_run(path), _root_of_run(as_path(args.diff)))
    print(describe_difference(found, by_layer=args.layers))
    _write_json(args.json, difference_to_data(found))
    if plot:
        _replace(plot, lambda partial: draw_heat_map(found, partial, plot.suffix[1:]))


def _root_of_run(path: Path) -> Path:
    """Returns the checkpoint root in the directory of a run, anything else as it is."""
    inside = path / "checkpoints"
    return inside if inside.is_dir() else path


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


def describe_windows(path: Path) -> str:
    """Says what a window set holds, after checking its shards against its manifest."""
    WindowSet(path)
    manifest = read_manifest(path)
    positions = manifest.num_windows * manifest.window_length
    files = ", ".join(source["name"] for source in manifest.sources) or "none named"
    return "\n".join((
        f"{path}: {manifest.domain} text, language {manifest.language}",
        f"  {manifest.num_documents:,} documents, {manifest.num_tokens:,} tokens in "
        f"{manifest.num_windows:,} windows of {manifest.window_length:,}",
        f"  padding {manifest.num_padding / positions:.1%}, "
        f"{manifest.num_split_documents:,} documents split",
        f"  tokenizer {manifest.tokenizer_fingerprint[:12]}, seed {manifest.seed}, files: {files}",
        f"  made by: {manifest.command}",
    ))  # fmt: skip


def describe_mixture(config_path: str, overrides: list[str]) -> str:
    """Says what mixture a configuration asks for and how much text there is for it."""
    from ellama_jax.config import load_config
    from ellama_jax.data.loader import Loader, open_sources

    config, others = load_config([f"--config={config_path}", *overrides], "inspect")
    if others:
        raise ValueError(f"{others[0]}: is no option of inspect.")
    data = config.data
    sources = open_sources(data, None)
    loader = Loader(sources, data)
    total = config.train.steps * data.global_batch_size * data.seq_len
    lines = [f"{config.train.steps:,} steps of {data.global_batch_size} x {data.seq_len} tokens, "
             f"{1 - data.replay_frac:.0%} e-commerce, {data.replay_frac:.0%} general"]  # fmt: skip
    for source, rows in zip(loader.sources, loader.row_weights, strict=True):
        tokens = source.windows.manifest.num_tokens
        epochs = source.token_share * total / tokens
        lines.append(f"  {source.name}: {source.token_share:.1%} of tokens ({rows:.1%} of rows), "
                     f"{tokens:,} tokens on disk, read {epochs:.2f} times")  # fmt: skip
    return "\n".join([*lines, f"mixture fingerprint {loader.mixture_fingerprint[:16]}"])


def _show(path: Path, count: int, tokenizer_dir: str | None) -> None:
    """Decodes the first windows of a set, document by document."""
    manifest = read_manifest(path)
    beside = path.parent / "tokenizer"
    if tokenizer_dir is None and not beside.is_dir():
        raise ValueError(f"--tokenizer: must be given to decode {path}, got none.")
    tokenizer = load_tokenizer(tokenizer_dir or beside)
    windows = WindowSet(path, tokenizer.fingerprint)
    for index in range(min(count, len(windows))):
        tokens = windows[index]
        numbers, _ = segments(tokens, eos_id=manifest.eos_id, bos_id=manifest.bos_id)
        print(f"\nwindow {index}: {numbers.max()} documents, {(tokens == PADDING).sum()} padding")
        for number in range(1, numbers.max() + 1):
            print(f"--- document {number}\n{tokenizer.decode(tokens[numbers == number].tolist())}")
