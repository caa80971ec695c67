"""What a checkpoint is, as data and in words: sizes, steps, provenance, verification, leaves.

Owns the facts that `ellama inspect` shows and how they read. It reads no weight.
"""

import math
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, AxisType

from ellama_jax.core.paths import as_path, directory_bytes
from ellama_jax.core.sharding import MESH_AXES, describe, storage_sharding
from ellama_jax.model.llama import count_params, param_dims
from ellama_jax.model.presets import PRESETS, LlamaConfig, config_from_dict, config_to_dict
from ellama_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from ellama_jax.weights.checkpoint import list_leaves, open_leaves
from ellama_jax.weights.layout import (
    CheckpointInfo,
    StepEntry,
    find_checkpoint,
    list_steps,
    read_json_item,
    read_metrics,
)
from ellama_jax.weights.origin import describe_provenance, describe_verification
from ellama_jax.weights.stored import stored_shardings

_LABEL = 14  # width of what stands before the text
_WIDTH = 100  # of a line, where its words can be broken


def describe_checkpoint(path: str | os.PathLike) -> str:
    """Returns a few lines in words: sizes, dtype, tokenizer, and the preset it is."""
    info = find_checkpoint(path)
    leaves = list_leaves(info.path)
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in leaves.values())
    dtypes = " and ".join(sorted({dtype.name for _, dtype in leaves.values()}))
    lines = [
        f"model: {_name_preset(info.config)}",
        f"sizes: {', '.join(_size_lines(info.config))}",
        f"weights: {count_params(info.config):,} parameters, {dtypes}, {format_bytes(size)}",
        f"tokenizer: {_name_tokenizer(_tokenizer_facts(info))}",
    ]
    return "\n".join(f"  {line}" for line in lines)


def find_facts(path: str | os.PathLike, mesh: AbstractMesh | None = None) -> dict:
    """Returns everything a checkpoint says about itself and its place, as JSON-able data.

    Args:
        path: a root (its newest complete step is taken) or `ROOT/<step>`.
        mesh: where to lay the parameters in thought; None keeps to how they were saved.

    Raises:
        ValueError: if there is no complete step, its files are damaged, or `mesh` does not fit.
    """
    info = _find_quietly(as_path(path))
    leaves = _leaf_facts(info, mesh)
    dtypes: dict[str, int] = {}
    for leaf in leaves.values():
        dtypes[leaf["dtype"]] = dtypes.get(leaf["dtype"], 0) + math.prod(leaf["shape"])
    return {
        "path": str(info.path),
        "step": info.step,
        "preset": info.config.name if info.config.name in PRESETS else None,
        "model": config_to_dict(info.config),
        "num_params": count_params(info.config),
        "params_by_dtype": dtypes,
        "params_bytes": sum(leaf["bytes"] for leaf in leaves.values()),
        "disk_bytes": {
            item.name: directory_bytes(item)
            for item in sorted(info.path.iterdir())
            if item.is_dir()
        },
        "best_metric": _best_metric(info.meta),
        "steps": [_step_facts(entry) for entry in list_steps(info.root)],
        "provenance": info.meta["provenance"],
        "data": read_json_item(info.path, "data") if (info.path / "data").is_dir() else None,
        "verification": info.meta["verification"],
        "versions": info.meta["versions"],
        "commit": info.meta["commit"],
        "tokenizer": _tokenizer_facts(info),
        "saved_on": _saved_mesh(info),
        "mesh": dict(mesh.shape) if mesh is not None else None,
        "leaves": leaves,
    }


def parse_mesh(text: str) -> AbstractMesh:
    """Returns the mesh that `fsdp=8,tensor=2` names; axes left out have size 1, and no device.

    >>> dict(parse_mesh("fsdp=8,tensor=2").shape)
    {'data': 1, 'fsdp': 8, 'context': 1, 'tensor': 2}
    """
    sizes: dict[str, int] = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in sizes:
            raise ValueError(f"--mesh: axis must be one of {', '.join(MESH_AXES)}, got {axis!r}.")
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"--mesh: {axis} must be a size of at least 1, as in {axis}=2, got {size!r}."
            )
        sizes[axis] = int(size)
    types = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types)


def format_bytes(size: int) -> str:
    """Returns bytes with three digits in the unit that suits.

    >>> [format_bytes(n) for n in (900, 4096, 540_000_000, 16_060_522_496)]
    ['900 B', '4.00 KiB', '515 MiB', '15.0 GiB']
    """
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{size} B"
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"


# --- facts ---------------------------------------------------------------------------------------


def _find_quietly(path: Path) -> CheckpointInfo:
    # Incomplete steps stand in the table of steps, so they need no warning before it.
    if path.is_dir() and not path.name.isdigit():
        complete = [entry.step for entry in list_steps(path) if entry.problem is None]
        path = path / str(max(complete)) if complete else path
    return find_checkpoint(path)


def _leaf_facts(info: CheckpointInfo, mesh: AbstractMesh | None) -> dict[str, dict]:
    dims, saved = param_dims(info.config), stored_shardings(info.path / "params")
    facts = {}
    for path, leaf in open_leaves(info.path).items():
        names = dims.get(path, ())
        if len(names) != len(leaf.shape):
            raise ValueError(
                f"checkpoint {info.path}: {path} must have the dims {', '.join(names) or 'none'}, "
                f"got the shape {list(leaf.shape)}; was model changed in meta?"
            )
        sharding = _pad(saved.get(path), len(names))
        if mesh is not None:
            sharding = storage_sharding(mesh, names, leaf.shape, path)
        abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        shard = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        facts[path] = {
            "text": describe(path, abstract, names),
            "dtype": leaf.dtype.name,
            "shape": list(leaf.shape),
            "dims": list(names),
            "divided_by": [_axes(axes) for axes in sharding.spec] if sharding else None,
            "chunk_shape": list(leaf.grid or leaf.shape),
            "bytes": leaf.nbytes,
            "device_bytes": math.prod(shard) * leaf.dtype.itemsize,
        }
    return facts


def _pad(sharding: jax.NamedSharding | None, num_dims: int) -> jax.NamedSharding | None:
    """Names the trailing dims too, which JAX drops where they are not divided."""
    if sharding is None:
        return None
    missing = num_dims - len(sharding.spec)
    return jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec, *[None] * missing))


def _axes(entry) -> list[str]:
    return [] if entry is None else [entry] if isinstance(entry, str) else list(entry)


def _saved_mesh(info: CheckpointInfo) -> dict[str, int] | None:
    shardings = stored_shardings(info.path / "params").values()
    return next((dict(sharding.mesh.shape) for sharding in shardings), None)


def _step_facts(entry: StepEntry) -> dict:
    return {
        "step": entry.step,
        "name": entry.path.name,
        "problem": entry.problem,
        "saved_at": entry.saved_at.isoformat(timespec="seconds") if entry.saved_at else None,
        "bytes": directory_bytes(entry.path),
        # What is not finite compares with nothing, and is no JSON.
        "metrics": {n: x for n, x in read_metrics(entry.path).items() if math.isfinite(x)},
    }


def _best_metric(meta: Mapping) -> str | None:
    """Returns the metric by which the run keeps its best steps, None if it names none."""
    return meta.get("config", {}).get("checkpoint", {}).get("best_metric") or None


def _tokenizer_facts(info: CheckpointInfo) -> dict:
    # What is wrong with the tokenizer is told, and does not hide the rest.
    facts = {"fingerprint": info.meta["tokenizer_fingerprint"]}
    try:
        tokenizer = load_tokenizer(info.tokenizer_dir)
    except ValueError as error:
        return {**facts, "problem": str(error)}
    if tokenizer.fingerprint != facts["fingerprint"]:
        facts["problem"] = (
            f"{info.tokenizer_dir}: must have the fingerprint {facts['fingerprint'][:12]}, got "
            f"{tokenizer.fingerprint[:12]}; was the tokenizer changed?"
        )
    ends = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    named = {name: _token_facts(tokenizer, number) for name, number in ends.items()}
    return {**facts, "vocab_size": tokenizer.vocab_size, **named}


def _token_facts(tokenizer: Tokenizer, token_id: int | None) -> dict | None:
    return None if token_id is None else {"id": token_id, "text": tokenizer.decode([token_id])}


# --- words ---------------------------------------------------------------------------------------


def describe_facts(facts: Mapping) -> str:
    """Returns the whole of `find_facts` as a page for a terminal, 100 columns wide."""
    config = config_from_dict(facts["model"])
    versions = [f"{name} {version}" for name, version in facts["versions"].items() if version]
    sections = {
        "model": [_name_preset(config), *_size_lines(config)],
        "weights": _weight_lines(facts),
        "tokenizer": [_name_tokenizer(facts["tokenizer"])],
        "provenance": list(describe_provenance(facts["provenance"], facts["data"])),
        "verification": list(describe_verification(facts)),
        "made with": [", ".join(versions), f"commit {facts['commit'] or 'unknown'}"],
        "steps": list(_step_table(facts)),
    }
    lines = [facts["path"]]
    for label, texts in sections.items():
        wrapped = [line for text in texts for line in _wrap(text, _WIDTH - _LABEL)]
        starts = [label] + [""] * (len(wrapped) - 1)
        lines += [f"{s:<{_LABEL}}{text}".rstrip() for s, text in zip(starts, wrapped, strict=True)]
    return "\n".join([*lines, "", *_leaf_table(facts)])


def _wrap(text: str, width: int) -> list[str]:
    """Breaks a line that is too long; what follows stands a little further to the right."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.lstrip(), width, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _name_preset(config: LlamaConfig) -> str:
    if config.name in PRESETS:
        return f"preset {config.name}"
    return (
        f"no preset has these sizes (called {config.name}); its base peak learning rate is unknown"
    )


def _size_lines(config: LlamaConfig) -> list[str]:
    head = "tied head" if config.tied_embeddings else "untied head"
    return [
        f"{config.num_layers} layers, {config.embed_dim} wide, MLP {config.mlp_dim}, "
        f"{config.num_heads} heads and {config.num_kv_heads} KV heads of {config.head_dim}",
        f"vocabulary {config.vocab_size:,}, {head}, context {config.max_seq_len:,}",
    ]


def _weight_lines(facts: Mapping) -> list[str]:
    dtypes = " and ".join(sorted(facts["params_by_dtype"]))
    items = [f"{name} {format_bytes(n)}" for name, n in facts["disk_bytes"].items() if n >= 2**16]
    on_disk = format_bytes(sum(facts["disk_bytes"].values()))
    return [
        f"{facts['num_params']:,} parameters, {dtypes}, {format_bytes(facts['params_bytes'])}",
        f"{on_disk} on disk" + (f": {', '.join(items)}" if items else ""),
    ]


def _name_tokenizer(facts: Mapping) -> str:
    fingerprint = f"fingerprint {facts['fingerprint'][:12]}"
    if "vocab_size" not in facts:
        return f"{fingerprint}; PROBLEM: {facts['problem']}"
    ends = [f"{name.upper()} {_name_token(facts[name])}" for name in ("bos", "eos")]
    problem = f"; PROBLEM: {facts['problem']}" if "problem" in facts else ""
    return f"{facts['vocab_size']:,} ids, {', '.join(ends)}, {fingerprint}{problem}"


def _name_token(token: Mapping | None) -> str:
    return "none" if token is None else f"{token['id']} {token['text']}"


def _step_table(facts: Mapping) -> Iterator[str]:
    steps = facts["steps"]
    name = facts["best_metric"]
    if name is None and any("loss" in step["metrics"] for step in steps):
        name = "loss"
    best = _find_best(steps, facts["best_metric"])
    width = max(len("step"), *(len(f"{step['step']:,}") for step in steps))
    yield f"{'step':>{width}}  {'saved (UTC)':<16} {'on disk':>9}" + (f"  {name}" if name else "")
    for step in steps:
        date = (step["saved_at"] or "not saved")[:16].replace("T", " ")
        line = f"{step['step']:>{width},}  {date:<16} {format_bytes(step['bytes']):>9}"
        if step["problem"] is not None:
            yield f"{line}  IGNORED: {step['problem']}"
            continue
        value = step["metrics"].get(name)
        shown = [f"{value:.4f}".ljust(len(name))] if value is not None else []
        marks = {"best": step["step"] == best, "shown here": step["step"] == facts["step"]}
        notes = ", ".join(mark for mark, holds in marks.items() if holds)
        yield "  ".join([line, *shown, notes])


def _find_best(steps: list[dict], name: str | None) -> int | None:
    """Returns the complete step with the lowest value of a metric, the newest of equals."""
    known = {s["step"]: s["metrics"][name] for s in steps
             if s["problem"] is None and name in s["metrics"]}  # fmt: skip
    return min(known, key=lambda step: (known[step], -step), default=None)


def _leaf_table(facts: Mapping) -> Iterator[str]:
    leaves, divided = facts["leaves"], facts["mesh"] is not None
    yield from _mesh_lines(facts)
    yield f"{'a device' if divided else 'bytes':>9}  parameter"
    for leaf in leaves.values():
        size = leaf["device_bytes"] if divided else leaf["bytes"]
        yield f"{format_bytes(size):>9}  {leaf['text']}"
    yield from ("", "In chunks on disk of")
    # Few ways to cut many leaves: a line a way is shorter than a column a leaf.
    cuts: dict[str, list[str]] = {}
    for path, leaf in leaves.items():
        cuts.setdefault(_name_chunk(leaf), []).append(path)
    width = max(map(len, cuts))
    for cut, paths in cuts.items():
        lines = textwrap.wrap(", ".join(paths), max(_WIDTH - width - 4, 40))
        for start, line in zip([cut] + [""] * (len(lines) - 1), lines, strict=True):
            yield f"  {start:<{width}}  {line}"


def _mesh_lines(facts: Mapping) -> Iterator[str]:
    saved, mesh = facts["saved_on"], facts["mesh"]
    if mesh is not None:
        a_device = sum(leaf["device_bytes"] for leaf in facts["leaves"].values())
        yield f"As it would lie on {_name_mesh(mesh)} (/ reads divided by),"
        yield f"{format_bytes(a_device)} of parameters a device"
    elif saved is not None and math.prod(saved.values()) > 1:
        yield f"As it was saved, from {_name_mesh(saved)} (/ reads divided by)"
    else:
        yield "As it was saved, undivided; --mesh fsdp=8,tensor=2 shows it divided"


def _name_mesh(sizes: Mapping[str, int]) -> str:
    count = math.prod(sizes.values())
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    return f"{count} devices, mesh {axes}" if axes else "one device"


def _name_chunk(leaf: Mapping) -> str:
    """Names the dims that are cut on disk, and how long their pieces are.

    >>> _name_chunk({"shape": [32, 64], "dims": ["layers", "embed"], "chunk_shape": [1, 64]})
    '1 layer'
    """
    cut = [
        f"{piece} {dim.removesuffix('s') if piece == 1 else dim}"
        for piece, size, dim in zip(leaf["chunk_shape"], leaf["shape"], leaf["dims"], strict=True)
        if piece < size
    ]
    return ", ".join(cut) or "the whole"
