"""`ellama inspect`: say in words what a checkpoint, a window set or a mixture holds.

Owns the words only; reading belongs to weights and data.
"""

import argparse
import shlex
from pathlib import Path

from ellama_jax.data.tokenizer import load_tokenizer
from ellama_jax.data.windows import MANIFEST_FILE, PADDING, WindowSet, read_manifest, segments
from ellama_jax.paths import as_path


def main_inspect(argv: list[str]) -> None:
    """Runs the verb `inspect`."""
    parser = argparse.ArgumentParser(
        prog="ellama inspect",
        description="Say in words what a checkpoint, a window set, a directory of window sets or a "
        "configuration's mixture holds.",
        epilog="example:\n  ellama inspect windows/ecommerce-de --show 2 --tokenizer base/tokenizer\n"
        "  ellama inspect runs/8b/checkpoints\n  ellama inspect configs/ellama.py:8b "
        "--config.data.windows_dir=windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", help="checkpoint root or step, window set(s), or configuration file"
    )
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="decode the first N windows"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer to decode windows with")
    args, overrides = parser.parse_known_args(argv)
    is_config = args.path.split(":")[0].endswith(".py")
    path = Path(args.path) if is_config else as_path(args.path)
    if overrides and not is_config:
        parser.error(f"unrecognized arguments: {shlex.join(overrides)}")
    if is_config:
        print(describe_mixture(args.path, overrides))
    elif not path.is_dir():
        raise ValueError(f"{path}: must be a directory or a configuration file (.py), got neither.")
    elif (path / MANIFEST_FILE).exists():
        print(describe_windows(path))
        if args.show:
            _show(path, args.show, args.tokenizer)
    elif sets := sorted(child.parent for child in path.glob(f"*/{MANIFEST_FILE}")):
        print("\n".join(describe_windows(windows) for windows in sets))
    else:
        from ellama_jax.weights.importer import describe_checkpoint

        print(describe_checkpoint(path))


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
