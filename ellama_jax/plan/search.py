"""The search for a configuration that fits a target and is fast there.

Owns which configurations are tried and in what order: all that the sizes allow are listed, those
that cannot fit by arithmetic are left out, the rest is ordered by an estimate, and the first few are
compiled. The estimate only orders; what is told of a configuration comes from the compiler.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ellama_jax.config import RunConfig, batch_sizes, config_from_mapping, config_to_mapping
from ellama_jax.core.sharding import MESH_AXES, STORAGE_AXES, partition_spec
from ellama_jax.core.topology import HARDWARE, Hardware, hardware_of
from ellama_jax.model.attention import check_attention
from ellama_jax.model.llama import count_params, dim_sizes, param_dims
from ellama_jax.model.presets import LlamaConfig, get_preset
from ellama_jax.model.remat import REMAT_POLICIES
from ellama_jax.plan.table import block, size, table, wrapped
from ellama_jax.plan.targets import Target
from ellama_jax.train.program import check_sizes, compute_dtype

_BYTES = {"float32": 4, "bfloat16": 2}
# A shorter piece of a row than this leaves the matrix unit idle between its tiles.
_MIN_PIECE_TOKENS = 1024
_LONG_ROW_TOKENS = 32768  # from here on a row may be too much for one device
_MAX_TENSOR = 16
# Of a layer's forward pass: the part that a policy computes again, and of its work in memory the part
# that it keeps beside the layer's input. Of 8B and 70B as compiled, roughly.
_RECOMPUTED = {"none": 0.0, "dots": 0.1, "attention": 0.9, "full": 1.0, "offload": 1.0}
_KEPT = {"none": 1.0, "dots": 0.7, "attention": 0.1, "full": 0.0, "offload": 0.0}
_HOST_BYTES_PER_SEC = 1.6e10  # nominal: a device's share of the link to its host
_NOMINAL = HARDWARE["v5e"]  # orders candidates for devices whose peaks are not known


@dataclass(frozen=True)
class Candidate:
    """What the search changes of a configuration.

    Attributes:
        mesh: axis sizes in the order of `MESH_AXES`.
        num_microbatches: parts of the global batch, which stays what the configuration says.
        remat: a policy's name.
        dtypes: of the parameters, and of the first and second moments.
    """

    mesh: tuple[int, ...]
    num_microbatches: int
    remat: str
    dtypes: tuple[str, str, str]

    @property
    def values(self) -> dict[str, int | str]:
        """Configuration key -> value."""
        param, mu, nu = self.dtypes
        return {
            **{f"mesh.{axis}": size for axis, size in zip(MESH_AXES, self.mesh, strict=True)},
            "train.num_microbatches": self.num_microbatches,
            "model.remat": self.remat,
            "model.param_dtype": param,
            "optimizer.mu_dtype": mu,
            "optimizer.nu_dtype": nu,
        }


@dataclass(frozen=True)
class Estimate:
    """What arithmetic says of a candidate, bytes and seconds of one device and step.

    `arguments_bytes` (state and batch) is exact; the others only order candidates.
    """

    arguments_bytes: float
    peak_bytes: float
    step_secs: float

    def scaled_peak_bytes(self, scale: float) -> float:
        """Returns the peak if all beside the arguments is `scale` times what was estimated."""
        return self.arguments_bytes + scale * (self.peak_bytes - self.arguments_bytes)


@dataclass(frozen=True)
class Found:
    """What a search did.

    Attributes:
        tried: candidates that were compiled, with their records, the best first.
        counts: how many there were, and how many were left out for what reason.
    """

    tried: tuple[tuple[Candidate, dict], ...]
    counts: Mapping[str, int]

    @property
    def records(self) -> list[dict]:
        """The records alone."""
        return [record for _, record in self.tried]


def search(
    config: RunConfig,
    target: Target,
    facts: Mapping,
    max_compiles: int,
    compile_candidate: Callable[[Candidate, RunConfig], dict],
) -> Found:
    """Compiles the most promising configurations and ranks them.

    Args:
        config: where the search starts; model, tokens and kernels stay.
        target: for what.
        facts: of `plan_compile.describe`: kind of the devices, and what their programs may use.
        max_compiles: after so many the search ends.
        compile_candidate: returns a plan's record.

    Raises:
        ValueError: if there is no configuration to try.
    """
    model = get_preset(config.model.preset)
    check_attention(
        config.model.attention, target.platform, model, config.data.seq_len,
        dict.fromkeys(MESH_AXES, 1), compute_dtype(config.model, target.platform),
    )  # fmt: skip
    hardware = hardware_of(facts["device_kind"]) or _NOMINAL
    limit_bytes = facts["limit_bytes"] or math.inf
    every = list(list_candidates(config, model, target))
    if not every:
        raise ValueError(
            f"{target.name}: must have a mesh for rows of {config.data.seq_len} tokens and "
            f"data.global_batch_size, got {config.data.global_batch_size} rows; a power of two fits."
        )
    estimates = {item: estimate(item, config, model, hardware) for item in every}
    possible = [item for item in every if estimates[item].arguments_bytes <= limit_bytes]

    scales = dict.fromkeys(REMAT_POLICIES, 1.0)

    def order(item):
        # What likely does not fit comes after what likely does, the nearest miss first.
        guess = estimates[item]
        missing = max(0.0, guess.scaled_peak_bytes(scales[item.remat]) - limit_bytes)
        # A tenth of the estimate is no difference; at equal speed an exact dtype is better.
        secs = float(f"{guess.step_secs:.1e}")
        return missing, secs, _reduced(item), guess.step_secs, guess.peak_bytes, item.mesh

    waiting, tried, too_much, slower = possible, [], 0, 0
    while waiting and len(tried) < max_compiles:
        candidate = min(waiting, key=order)
        record = compile_candidate(candidate, with_candidate(config, candidate))
        tried.append((candidate, record))
        waiting = [item for item in waiting if item != candidate]
        before = len(waiting)
        if record["outcome"] == "no_fit":
            waiting = [item for item in waiting if not needs_more(item, candidate)]
            too_much += before - len(waiting)
        elif record["outcome"] == "compiled":
            waiting = [item for item in waiting if not needs_more(candidate, item)]
            slower += before - len(waiting)
        scale = scales[candidate.remat]
        scales[candidate.remat] = _learned(scale, estimates[candidate], record)
    counts = {
        "listed": len(every),
        "too_large": len(every) - len(possible),
        "needs_more": too_much,
        "slower": slower,
        "compiled": len(tried),
        "not_tried": len(waiting),
    }
    if not tried:
        raise ValueError(
            f"{target.name}: must hold a device's part of parameters and optimizer, which is "
            f"{min(e.arguments_bytes for e in estimates.values()) / 2**30:.1f} GiB at least, "
            f"got {limit_bytes / 2**30:.2f} GiB; take more chips."
        )
    return Found(tuple(sorted(tried, key=lambda pair: _rank(pair[1]))), counts)


def _learned(scale: float, guess: Estimate, record: Mapping) -> float:
    """Returns by how much estimates were wrong, as the compiler's answer to one shows."""
    if record["outcome"] == "failed":
        return scale
    if record["outcome"] == "compiled":
        peak, least = record["memory"]["peak_bytes"], 0.0
    else:
        # What a refusal says may be a part of what is needed.
        peak, least = record["out_of_memory"]["needed_bytes"], 2 * scale
    temporary = max(peak - guess.arguments_bytes, 0)
    return max(least, temporary / (guess.peak_bytes - guess.arguments_bytes))


def with_candidate(config: RunConfig, candidate: Candidate) -> RunConfig:
    """Returns a configuration with a candidate's values."""
    return _with_values(config, candidate.values)


def _with_values(config: RunConfig, values: Mapping[str, int | str]) -> RunConfig:
    mapping = config_to_mapping(config)
    for key, value in values.items():
        section, _, name = key.partition(".")
        mapping[section][name] = value
    return config_from_mapping(mapping)


def overrides(config: RunConfig, candidate: Candidate) -> list[str]:
    """Returns the arguments that turn a configuration into the candidate's, those that differ."""
    mapping = config_to_mapping(config)
    found = []
    for key, value in candidate.values.items():
        section, _, name = key.partition(".")
        # An axis of -1 takes what the others leave, so what the candidate has.
        if mapping[section][name] not in (value, -1):
            found.append(f"--config.{key}={value}")
    return found


def _rank(record: Mapping) -> tuple:
    """Orders records: what fits by its bound, then by what is not overlapped, then by memory."""
    if record["outcome"] != "compiled":
        return (1, 0.0, 0.0, 0)
    roofline = record["roofline"]
    # A thousandth is no difference: then the one with less waiting, then with less memory.
    secs = (roofline["step_secs"], roofline["serial_step_secs"]) if roofline else (0.0, 0.0)
    return (0, *(float(f"{value:.3g}") for value in secs), record["memory"]["peak_bytes"])


def _reduced(candidate: Candidate) -> int:
    """Counts dtypes that are smaller than float32."""
    return sum(dtype != "float32" for dtype in candidate.dtypes)


# --- what there is to try ------------------------------------------------------------------------


def list_candidates(config: RunConfig, model: LlamaConfig, target: Target) -> Iterator[Candidate]:
    """Yields every configuration that the sizes allow on a target."""
    # Micro-batches are the search's to choose, and divide every size of a ramp.
    config = _with_values(config, {"train.num_microbatches": 1})
    rows = math.gcd(*(size for _, size in batch_sizes(config.data)))
    meshes = [
        mesh for mesh in list_meshes(target) if _mesh_allowed(mesh, config, model, target.platform)
    ]
    # Rows are divided before their positions are: that sends nothing.
    whole_rows = [mesh for mesh in meshes if mesh[2] == 1]
    if whole_rows and config.data.seq_len < _LONG_ROW_TOKENS:
        meshes = whole_rows
    for mesh in meshes:
        rows_per_part = rows // (mesh[0] * mesh[1])
        parts = [
            parts for parts in divisors(rows_per_part) if parts <= 64 or parts == rows_per_part
        ]
        for part, remat, dtypes in itertools.product(parts, REMAT_POLICIES, _dtypes(config)):
            yield Candidate(mesh, part, remat, dtypes)


def list_meshes(target: Target) -> Iterator[tuple[int, ...]]:
    """Yields the meshes that multiply to a target's devices; slices divide `data`.

    >>> from ellama_jax.plan.targets import parse_targets
    >>> sorted(list_meshes(parse_targets("cpu-2")[0]))
    [(1, 1, 1, 2), (1, 1, 2, 1), (1, 2, 1, 1), (2, 1, 1, 1)]
    """
    devices = target.num_devices
    for data in divisors(devices):
        if data % target.num_slices:
            continue
        for tensor in divisors(devices // data):
            if tensor > _MAX_TENSOR:
                continue
            for context in divisors(devices // data // tensor):
                yield (data, devices // data // tensor // context, context, tensor)


def _mesh_allowed(
    mesh: tuple[int, ...], config: RunConfig, model: LlamaConfig, platform: str
) -> bool:
    sizes = dict(zip(MESH_AXES, mesh, strict=True))
    if sizes["context"] > 1 and config.data.seq_len // sizes["context"] < _MIN_PIECE_TOKENS:
        return False
    try:
        check_sizes(config, model, sizes, platform)
    except ValueError:
        return False
    return True


def chip_elements(mesh: tuple[int, ...], model: LlamaConfig) -> int:
    """Returns how many elements of the parameters one device of a mesh holds."""
    sizes, elements = dict(zip(MESH_AXES, mesh, strict=True)), dim_sizes(model)
    total = 0
    for path, dims in param_dims(model).items():
        shape = [elements[dim] for dim in dims]
        spec = partition_spec(dims, shape, sizes, STORAGE_AXES, path)
        axes = [axis for entry in spec if entry for axis in _names(entry)]
        total += math.prod(shape) // math.prod(sizes[axis] for axis in axes)
    return total


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def _dtypes(config: RunConfig) -> list[tuple[str, str, str]]:
    """Returns the configured dtypes, and the smaller ones in the order in which they cost accuracy."""
    mine = (config.model.param_dtype, config.optimizer.mu_dtype, config.optimizer.nu_dtype)
    smaller = [
        (mine[0], "bfloat16", mine[2]),
        (mine[0], "bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ]
    return list(dict.fromkeys([mine, *smaller]))


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


# --- what arithmetic says ------------------------------------------------------------------------


def needs_more(item: Candidate, other: Candidate) -> bool:
    """Tells whether `item` needs at least the memory of `other`, and no more time.

    So it is on the same mesh, with as many rows at a time or more, as little recomputed or less, and
    no dtype smaller. Where `other` does not fit, `item` does not; where `item` fits, `other` is no
    better.
    """
    cheaper = REMAT_POLICIES.index(item.remat) <= REMAT_POLICIES.index(other.remat)
    larger = all(
        _BYTES[mine] >= _BYTES[its] for mine, its in zip(item.dtypes, other.dtypes, strict=True)
    )
    same = item.mesh == other.mesh
    return same and cheaper and larger and item.num_microbatches <= other.num_microbatches


def estimate(
    candidate: Candidate, config: RunConfig, model: LlamaConfig, hardware: Hardware
) -> Estimate:
    """Estimates a candidate's memory and time, see `Estimate`.

    Memory beside the state is gradients, the residual stream that is saved a layer, what the policy
    saves more, and one layer's work. Time is the longer of computing (what is recomputed included)
    and of sending (weights gathered twice a micro-batch and gradients scattered once, activations
    over `tensor`, keys and values over `context`, gradients over `data`, what is offloaded to the host and back), and
    a tenth of the shorter.
    """
    data, fsdp, context, tensor = candidate.mesh
    parts, seq_len = candidate.num_microbatches, config.data.seq_len
    tokens = config.data.global_batch_size * seq_len / (data * fsdp * context)  # of a device
    at_once = tokens / parts
    held, whole = chip_elements(candidate.mesh, model), count_params(model)
    again, kept = _RECOMPUTED[candidate.remat], _KEPT[candidate.remat]

    state = sum(_BYTES[dtype] for dtype in candidate.dtypes) * held
    gradients = held * (4 if parts > 1 else 2)
    residual = at_once * model.embed_dim * 2
    inputs = 0 if candidate.remat == "offload" else residual  # they wait on the host
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    layer = at_once * (2 * heads + 3 * model.mlp_dim) / tensor * 2 + 3 * residual
    activations = model.num_layers * (inputs + layer * kept) + 2 * layer
    gathered = 3 * 2 * (whole / model.num_layers) / tensor
    arguments = state + 16 * tokens
    peak = arguments + gradients + activations + gathered

    attention = 6 * model.num_layers * model.num_heads * model.head_dim * seq_len
    flops = (6 * whole + attention) * tokens / tensor * (1 + again / 3)
    link = hardware.ici_bytes_per_sec * 2  # both ways round a ring
    shard = fsdp * context
    weights = whole / tensor * 2 * (1 - 1 / shard) * 3 * parts
    over_tensor = model.num_layers * (4 + 2 * again) * tokens * model.embed_dim * 2
    over_tensor *= 2 * (1 - 1 / tensor)
    keys = model.num_layers * tokens * (context - 1) * 2 * model.num_kv_heads * model.head_dim * 6
    replicas = 2 * (1 - 1 / data) * held * 4
    sending = (weights + over_tensor + keys / tensor) / link + replicas / hardware.dcn_bytes_per_sec
    if candidate.remat == "offload":
        sending += 2 * model.num_layers * tokens * model.embed_dim * 2 / _HOST_BYTES_PER_SEC
    computing = flops / hardware.device_flops_per_sec
    secs = max(computing, sending) + 0.1 * min(computing, sending)
    return Estimate(arguments, peak, secs)


# --- words ---------------------------------------------------------------------------------------


def search_block(found: Found, max_compiles: int, best: int) -> str:
    """Returns what a search found in words: the ranking, the best in full, what was not tried."""
    fitting = [pair for pair in found.tried if pair[1]["outcome"] == "compiled"]
    target = found.tried[0][1]["target"]
    lines = [f"{target}: searched", table(_ranking(found.tried[:best] if fitting else found.tried))]
    for number, (_, record) in enumerate(fitting[:best], start=1):
        changes = " ".join(record["overrides"]) or "(the configuration as it is)"
        lines.append(f"{number:>2}  {changes}")
    lines.append(wrapped(_counts_in_words(found.counts, max_compiles)))
    if fitting:
        lines += ["", "The best in full:", "", block(fitting[0][1])]
    else:
        lines += ["", "Nothing that was tried fits; the nearest:", "", block(found.tried[0][1])]
    return "\n".join(lines)


def _ranking(tried: Sequence[tuple[Candidate, dict]]) -> list[tuple[str, ...]]:
    rows = [("", "data x fsdp x context x tensor", "parts", "remat", "params/mu/nu", "memory",
             "step min", "MFU max")]  # fmt: skip
    for number, (candidate, record) in enumerate(tried, start=1):
        fits, roofline = record["outcome"] == "compiled", record["roofline"]
        rows.append((
            f"{number:>2}",
            " x ".join(map(str, candidate.mesh)),
            str(candidate.num_microbatches),
            candidate.remat,
            "/".join({"float32": "f32", "bfloat16": "bf16"}[d] for d in candidate.dtypes),
            size(record["memory"]["peak_bytes"]) if fits else "too large",
            f"{roofline['step_secs']:.3g} s" if roofline else "-",
            f"{roofline['mfu']:.1%}" if roofline else "-",
        ))  # fmt: skip
    return rows


def _counts_in_words(counts: Mapping[str, int], max_compiles: int) -> str:
    """Says what was tried and what was not."""
    words = [f"{counts['listed']:,} configurations are possible, {counts['compiled']} compiled"]
    if counts["too_large"]:
        words.append(f"{counts['too_large']:,} left out: their state alone does not fit")
    if counts["needs_more"]:
        words.append(f"{counts['needs_more']:,} left out: one that needs less did not fit")
    if counts["slower"]:
        words.append(f"{counts['slower']:,} left out: one that recomputes less fits")
    if counts["not_tried"]:
        words.append(
            f"{counts['not_tried']:,} not tried: by an estimate slower or larger "
            f"(--max-compiles {max_compiles})"
        )
    return "; ".join(words) + "."
