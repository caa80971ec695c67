"""The conversion gate, `ellama verify`: does a checkpoint say what its source says?

Owns the comparison, its bounds and the verdict, which it writes into the checkpoint's meta. What the
source says is computed by reference.py in a process of its own; what the checkpoint says by
forward.py; which mistake it is by diagnosis.py; what follows from the verdict is verdict.py's.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import as_path, check_links, local_path, write_whole
from ellama_jax.core.progress import progress
from ellama_jax.model.llama import rope_frequencies
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.weights import huggingface
from ellama_jax.weights.checkpoint import find_damage
from ellama_jax.weights.diagnosis import find_faults
from ellama_jax.weights.forward import Answer, ask
from ellama_jax.weights.layout import (
    CheckpointInfo,
    check_writable,
    find_checkpoint,
    make_meta,
    write_meta,
)
from ellama_jax.weights.measures import BOUNDS, Measure, measure_groups

REFERENCE_FORMAT = 1
_SIZES = (
    "vocab_size",
    "embed_dim",
    "mlp_dim",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
)


@dataclass(frozen=True)
class Reference:
    """What the source says; see `reference.write_reference`."""

    header: dict
    arrays: dict[str, np.ndarray]

    @property
    def title(self) -> str:
        """Names the source."""
        return f"{self.header['source']['name']} ({self.header['source']['format']})"


@dataclass(frozen=True)
class Check:
    """One thing that must hold, with what was found."""

    name: str
    passed: bool
    detail: str


def verify_checkpoint(
    checkpoint: str | os.PathLike, source: str | os.PathLike
) -> tuple[CheckpointInfo, dict]:
    """Compares a checkpoint with its source and writes the verdict into its meta.

    Args:
        checkpoint: a root or `ROOT/<step>`; an imported one, for a trained one differs on purpose.
        source: what it was imported from (Hugging Face directory, GGUF file or Meta directory), or
            the .npz file that `write_reference` made of it.

    Returns:
        The checkpoint with its new meta, and the verdict, `meta["verification"]`.

    Raises:
        ValueError: if the two cannot be compared; the meta stays as it was then.
    """
    info = find_checkpoint(checkpoint)
    _check_imported(info)
    check_writable(info.path / "meta" / "metadata")
    reference = open_reference(source)
    _check_sizes(info, reference)
    answer = ask(info, reference.arrays)
    result = judge(info, answer, reference)
    return write_meta(info, {**info.meta, "verification": result}), result


def judge(info: CheckpointInfo, answer: Answer, reference: Reference) -> dict:
    """Measures, checks and sums up; returns the verdict as JSON-able data."""
    groups = [row["group"] for row in reference.header["rows"]]
    measures = measure_groups(answer.logits, reference.arrays, groups)
    faults = []
    if any(measure.excess() for measure in measures.values()):
        faults = find_faults(info, answer, reference.arrays)
    checks = [
        *_check_logits(measures, reference),
        *_check_constants(info, reference),
        *_check_tokenizer(info, reference),
    ]
    failed = [check for check in checks if not check.passed]
    passed = not failed
    return {
        "status": "passed" if passed else "failed",
        "summary": f"{len(checks)} checks passed" if passed else _sum_up(failed, faults),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "source": reference.header["source"],
        "reference": {k: reference.header[k] for k in ("date", "top_k", "versions")},
        "measures": {group: asdict(measure) for group, measure in measures.items()},
        "bounds": BOUNDS,
        "checks": [asdict(check) for check in checks],
        "faults": faults,
        "versions": make_meta(info.config, tokenizer_fingerprint="", provenance={})["versions"],
    }


def _sum_up(failed: list[Check], faults: list[str]) -> str:
    # One line that is read in other verbs' errors too; the numbers are in the measures.
    short = [
        f"{c.name} differ" if c.name.startswith("logits") else f"{c.name}: {c.detail}"
        for c in failed
    ]
    return "; ".join(short + faults[-1:])


def _check_imported(info: CheckpointInfo) -> None:
    kind = info.meta["provenance"].get("kind")
    if kind in ("train", "merge", "average"):
        raise ValueError(
            f"checkpoint {info.path}: must be an imported one, got provenance {kind}, which differs "
            "from any source; verify the base it was made from."
        )


def _check_sizes(info: CheckpointInfo, reference: Reference) -> None:
    theirs = reference.header["sizes"]
    differ = [
        f"{name} is {getattr(info.config, name)}, the source's {theirs[name]}"
        for name in _SIZES
        if getattr(info.config, name) != theirs[name]
    ]
    if differ:
        raise ValueError(
            f"checkpoint {info.path}: must have the sizes of {reference.title}, but "
            f"{'; '.join(differ)}; is it what the checkpoint was imported from?"
        )


# --- the source's side ---------------------------------------------------------------------------


def open_reference(source: str | os.PathLike) -> Reference:
    """Reads a stored reference, or has one computed from the source itself.

    Raises:
        ValueError: if it is no reference, or the source cannot be run; in one line.
    """
    source = local_path(source, "SRC")
    if source.suffix == ".npz":
        return read_reference(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        write_reference(source, path)
        return read_reference(path)


def read_reference(path: Path) -> Reference:
    """Reads what `write_reference` wrote.

    Raises:
        ValueError: if the file is missing, damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = parse_json(arrays.pop("header").tobytes())
        answers = {"logits"} if header["top_k"] is None else {"top_ids", "top_logits", "rest"}
        wanted = {"tokens", "positions", "lengths", "frequencies", "residual_rms", *answers}
        if header["format"] != REFERENCE_FORMAT or arrays.keys() != wanted:
            raise ValueError("another format")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: must exist, got no such file.") from error
    except Exception as error:  # zipfile, zlib, json and NumPy each have their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: must be a whole reference of `ellama verify --write-reference`, got: {reason}."
        ) from error
    return Reference(header, arrays)


def write_reference(
    source: str | os.PathLike, dst: str | os.PathLike, top_k: int | None = None
) -> None:
    """Has reference.py run the source, in a process that leaves with its memory.

    Raises:
        ValueError: with its one line, if it fails.
    """
    src = local_path(source, "SRC")
    if not src.exists():
        raise ValueError(f"{source}: must exist, got no such file or directory.")
    if src.is_dir():
        check_links(src)
        if (src / huggingface.INDEX_FILE).is_file():
            huggingface.weight_files(src)  # transformers would follow whatever the index names
    command = [sys.executable, "-P", "-m", "ellama_jax.weights.reference", str(source), str(dst)]
    command += [] if top_k is None else ["--top-k", str(top_k)]
    house = str(Path(__file__).resolve().parents[2])
    paths = [house, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        said = list(_follow(process.stderr, Path(source).name))
    if process.returncode == 0:
        return
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    raise ValueError(errors[-1] if errors else _describe_death(source, process.returncode, said))


def _follow(lines, name: str) -> Iterator[str]:
    """Shows the progress that reference.py writes; yields the other lines."""
    bar = None
    for line in map(str.rstrip, lines):
        match = re.fullmatch(r"layer (\d+) of (\d+)", line)
        if match is None:
            yield line
            continue
        if bar is None:
            shown = progress(f"running {name}", total=int(match[2]), unit="layers")
            bar = shown.__enter__()
        bar.update(1)
    if bar is not None:
        bar.close()


def _describe_death(source, status: int, said: list[str]) -> str:
    hint = said[-1][:200] if said and status > 0 else "it was ended, perhaps for want of memory"
    return (
        f"{source}: must be computable on this machine, got exit status {status} ({hint}); store a "
        "reference on a larger one with --write-reference."
    )


# --- checks --------------------------------------------------------------------------------------


def _check_logits(measures: Mapping[str, Measure], reference: Reference) -> Iterator[Check]:
    context = reference.header["sizes"]["max_seq_len"]
    for group, measure in measures.items():
        excess = measure.excess()
        where = f"positions {measure.first:,} to {measure.last:,}"
        if group == "far" and measure.last < 8192:
            where += f" (the last of a context of {context:,})"
        detail = f"{where}: {', '.join(excess)}" if excess else f"{where} agree"
        yield Check(f"logits at {group} positions", not excess, detail)
    if measures["far"].excess() and not measures["short"].excess():
        yield Check("RoPE over long distances", False, "near positions agree and far ones do not")


def _check_constants(info: CheckpointInfo, reference: Reference) -> Iterator[Check]:
    config, sizes = info.config, reference.header["sizes"]
    words = {True: "shared with the embedding", False: "of its own"}
    tied = [words[bool(t)] for t in (config.tied_embeddings, sizes["tied_embeddings"])]
    same = f"{tied[0]}, as in the source"
    other = f"must be {tied[1]} as in the source, got {tied[0]}"
    yield Check("head", tied[0] == tied[1], same if tied[0] == tied[1] else other)
    fits = bool(np.isclose(config.norm_eps, sizes["norm_eps"], rtol=1e-6))
    detail = f"{config.norm_eps:g}, the source's {sizes['norm_eps']:g}"
    yield Check("norm_eps", fits, detail)
    yield _check_rope(rope_frequencies(config), reference.arrays["frequencies"])


def _check_rope(ours: np.ndarray, theirs: np.ndarray) -> Check:
    """Compares RoPE's frequencies, and says by what they differ which setting is wrong."""
    if np.allclose(ours, theirs, rtol=1e-5):
        return Check("RoPE", True, f"{len(ours)} frequencies as in the source")
    thetas = [float(f[1]) ** -len(f) for f in (ours, theirs)]
    if not np.isclose(*thetas, rtol=1e-3):
        detail = f"rope_theta must be about {thetas[1]:,.0f} as in the source, got {thetas[0]:,.0f}"
    else:
        ratio = ours / theirs
        detail = (
            "rope_scaling must be the source's, got frequencies that are "
            f"{ratio.min():.3g} to {ratio.max():.3g} times as high"
        )
    return Check("RoPE", False, detail)


def _check_tokenizer(info: CheckpointInfo, reference: Reference) -> Iterator[Check]:
    tokenizer, theirs = load_tokenizer(info.tokenizer_dir), reference.header["tokenizer"]
    expected = info.meta["tokenizer_fingerprint"]
    found = tokenizer.fingerprint
    fits = f"{found[:12]}, as in the meta"
    yield Check(
        "tokenizer fingerprint",
        found == expected,
        fits if found == expected else f"must be {expected[:12]} of the meta, got {found[:12]}",
    )
    yield from _check_texts(tokenizer, reference)
    yield _check_special(tokenizer, theirs["special"])
    named = info.meta["provenance"].get("document_tokens", {})
    for kind in ("bos", "eos"):
        yield _check_document_token(tokenizer, kind, named.get(kind), theirs)


def _check_texts(tokenizer: Tokenizer, reference: Reference) -> Iterator[Check]:
    texts, ids = reference.header["texts"], reference.header["ids"]
    other = [name for name, text in texts.items() if tokenizer.encode(text) != ids[name]]
    detail = f"must be the source's, but differ in {', '.join(other)}"
    count = sum(map(len, ids.values()))
    yield Check("token ids", not other, detail if other else f"{count} of {', '.join(texts)} text")
    lost = [n for n, text in texts.items() if tokenizer.decode(tokenizer.encode(text)) != text]
    detail = f"decoding must give the text back, but does not in {', '.join(lost)}"
    yield Check(
        "round trip", not lost, detail if lost else f"text comes back in {', '.join(texts)}"
    )


def _check_special(tokenizer: Tokenizer, special: Mapping[str, int]) -> Check:
    ours = {i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None}
    names = {**special, **{tokenizer.decode([i]): i for i in ours}}
    wrong = [name for name in names if names[name] in tokenizer.encode(f"a {name} b")]
    detail = f"their names in text must stay text, but become ids: {', '.join(wrong[:5])}"
    return Check(
        "special tokens", not wrong, detail if wrong else f"{len(names)} stay text in text"
    )


def _check_document_token(tokenizer, kind: str, token: str | None, theirs: dict) -> Check:
    """Compares the id that begins or ends a document; `token` is what the import named, if any."""
    special, source_id = theirs["special"], theirs[f"{kind}_id"]
    found = getattr(tokenizer, f"{kind}_id")
    # An ordinary token of the vocabulary may be named too; the source does not list those.
    wanted = source_id if token is None else special.get(token, found)
    names = {i: f"{name} ({i})" for name, i in special.items()} | {None: "none"}
    ours, source_s = (names.get(i, f"id {i}") for i in (found, source_id))
    if found != wanted:
        detail = f"must be {names.get(wanted, f'id {wanted}')}, got {ours}"
        return Check(kind.upper(), False, detail)
    same = "as in the source" if found == source_id else f"named at import; the source: {source_s}"
    return Check(kind.upper(), True, f"{ours}, {same}")


# --- the verb ------------------------------------------------------------------------------------


def main_verify(argv: list[str]) -> None:
    """Runs `ellama verify CKPT SRC`."""
    parser = argparse.ArgumentParser(
        prog="ellama verify",
        description="Compare an imported checkpoint with its source, near position 0 and beyond "
        "8,192, and write the verdict into the checkpoint. Exit status 1: it failed.",
        epilog="example:\n  ellama verify runs/base models/Llama-3.1-8B\n"
        "where the source does not fit, store what it says on a machine where it does:\n"
        "  ellama verify --write-reference 70b.npz --top-k 64 models/Llama-3.1-70B\n"
        "  ellama verify runs/70b 70b.npz\n"
        "read all that a step stores and compare it with the checksums it was written with:\n"
        "  ellama verify --integrity runs/de/checkpoints",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CKPT", nargs="?", help="checkpoint root or step")
    parser.add_argument(
        "source",
        metavar="SRC",
        nargs="?",
        help="what it was imported from (HF directory, GGUF file, Meta directory), or a REF.npz",
    )
    parser.add_argument("--json", metavar="OUT", help="write the verdict there too")
    parser.add_argument("--write-reference", metavar="REF.npz", help="store what SRC says; no CKPT")
    parser.add_argument("--top-k", type=int, metavar="N", help="store N logits a position; all")
    parser.add_argument("--integrity", action="store_true", help="compare checksums; no SRC")
    args = parser.parse_args(argv)
    if args.integrity:
        _check_integrity(parser, args)
    elif args.write_reference:
        _store(parser, args)
    elif args.source is None:
        parser.error("CKPT and SRC must be given.")
    else:
        _verify(args)


def _check_integrity(parser: argparse.ArgumentParser, args) -> None:
    if args.source or args.checkpoint is None or args.write_reference or args.json:
        parser.error("--integrity takes CKPT alone.")
    info, damage = find_checkpoint(args.checkpoint), find_damage(args.checkpoint)
    print("\n".join(damage) or f"{info.path}: all that it stores is as it was written.")
    if damage:
        sys.stdout.flush()
        what = f"{len(damage)} damaged parts" if len(damage) > 1 else "1 damaged part"
        print(f"ellama verify: {info.path}: {what}; use another step.", file=sys.stderr)
        sys.exit(1)


def _store(parser: argparse.ArgumentParser, args) -> None:
    if args.source is not None or args.checkpoint is None:
        parser.error("--write-reference takes SRC alone.")
    if not args.write_reference.endswith(".npz"):
        raise ValueError(f"--write-reference: must end in .npz, got {args.write_reference}.")
    check_writable(local_path(args.write_reference, "--write-reference"))
    write_reference(args.checkpoint, args.write_reference, args.top_k)
    reference = read_reference(Path(args.write_reference))
    kept = "all logits" if args.top_k is None else f"the {args.top_k} largest logits"
    size = Path(args.write_reference).stat().st_size
    print(
        f"Stored {kept} of {reference.title} at {sum(reference.arrays['lengths'])} positions in "
        f"{args.write_reference}, {size / 1024:,.0f} KiB"
    )


def _verify(args) -> None:
    if args.json:
        check_writable(args.json)
    info, result = verify_checkpoint(args.checkpoint, args.source)
    print(describe(info, result))
    if args.json:
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        write_whole(as_path(args.json), text)
    if result["status"] == "failed":
        sys.stdout.flush()
        print(f"ellama verify: failed: {info.path}: {result['summary']}.", file=sys.stderr)
        sys.exit(1)


def describe(info: CheckpointInfo, result: dict) -> str:
    """Returns the verdict as a table, a line a check and a closing sentence."""
    source, reference = result["source"], result["reference"]
    kept = "all logits" if reference["top_k"] is None else f"{reference['top_k']} logits a position"
    versions = f"transformers {reference['versions']['transformers']}"
    lines = [
        f"{info.path} against {source['name']} ({source['format']}; {kept}, {versions}, "
        f"{reference['date'][:10]})",
        f"  {'positions':<22} {'compared':>8} {'KL mean':>9} {'KL max':>9} {'max diff':>9} "
        f"{'argmax':>7}",
    ]
    for group, m in result["measures"].items():
        where = f"{group}, {m['first']:,} to {m['last']:,}"
        lines.append(
            f"  {where:<22} {m['positions']:>8} {m['kl_mean']:>9.1e} {m['kl_max']:>9.1e} "
            f"{m['max_difference']:>9.1e} {m['argmax_agreement']:>7.1%}"
        )
    b = result["bounds"]
    lines.append(
        f"  {'bounds':<22} {'':>8} {b['kl_mean']:>9.0e} {b['kl_max']:>9.0e} "
        f"{b['max_difference']:>9.0e} {b['argmax_agreement']:>7.0%}"
    )
    lines += [
        f"  {'ok' if check['passed'] else 'FAIL':<4} {check['name']}: {check['detail']}"
        for check in result["checks"]
    ]
    lines += [f"  why  {fault}" for fault in result["faults"]]
    if result["status"] == "passed":
        lines.append(f"passed: {info.path} says what its source says; written into its meta.")
    else:
        count = sum(not check["passed"] for check in result["checks"])
        lines.append(
            f"FAILED: {count} of {len(result['checks'])} checks; written into its meta, so training, "
            "merging and export refuse it. Import it again."
        )
    return "\n".join(lines)
