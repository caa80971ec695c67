"""What one step of a compiled program computes and moves, from its instructions.

Owns FLOPs and HBM traffic. Collectives and their links are plan/hlo_collectives.py's part; what the
figures mean in seconds is plan/roofline.py's.
"""

import math
import re
from dataclasses import dataclass

from ellama_jax.plan.hlo_module import HBM, HOST, Array, Computation, Instruction, Module

# Matrix products an attention kernel runs, each 2 B N T S H: forward q k^T and p v; the queries'
# gradient recomputes p and adds do v^T and ds k; the keys' adds two instead of one; fused, p and
# do v^T are shared.
_KERNELS = (
    (re.compile(r"dq_?dkv|dkv_?dq|fused_bwd|fused_backward|bwd_fused"), 5),
    (re.compile(r"dkv|dkdv"), 4),
    (re.compile(r"dq"), 3),
    (re.compile(r"fwd|forward|flash_attention|splash"), 2),
)
# Pallas' own GPU kernels (Triton), q [B, T, N, H]: the backward one does all five at once.
_GPU_KERNELS = {"mha_forward": 2, "mha_preprocess_backward": 0, "mha_backward": 5}
_FUSED = re.compile(r'\\?"use_fused_bwd_kernel\\?": true')
_BLOCKS = re.compile(r'\\?"(block_q\w*|block_kv\w*)\\?": (\d+)')
_KERNEL_TARGETS = re.compile(r"tpu_custom_call|__cudnn|__cublas|mosaic|triton|__onednn")
_ELEMENTWISE = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "power",
    "exponential", "log", "tanh", "logistic", "rsqrt", "sqrt", "cosine", "sine", "select", "compare",
    "exponential-minus-one", "log-plus-one", "and", "or", "not", "clamp", "floor", "sign", "atan2",
}  # fmt: skip
# Names for what another instruction made, and loops, whose bodies are counted themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
    "after-all", "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "call-start",
    "async-start", "add-dependency",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
# Asynchronous copies and slices run beside computation, collectives are counted in seconds of links.
_COLLECTIVE = (
    "all-", "reduce-scatter", "collective-", "ragged-", "copy-start", "slice-start", "send", "recv",
)  # fmt: skip
_PARTS = ("dynamic-slice", "slice", "gather", "slice-start", "dynamic-slice-start")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one device in one step; a multiply-add is two.

    Attributes:
        matmul: of dots and convolutions, fusions and loops entered, loops times their trips.
        attention: of attention kernels, by formula: only blocks that the causal mask leaves.
        elementwise: one an element of arithmetic and of what reductions read; not in `total`, for
            it runs on the vector unit beside the matrix unit.
        uncounted: kernels whose FLOPs no formula here gives; empty for the steps we make.
    """

    matmul: float
    attention: float
    elementwise: float
    uncounted: tuple[str, ...]

    @property
    def total(self) -> float:
        """What a step's compute time is reckoned from."""
        return self.matmul + self.attention


@dataclass(frozen=True)
class Traffic:
    """Bytes one device moves in one step: an estimate.

    Each top-level instruction reads its operands from HBM and writes its results there once; of a
    slice, a gather or an update in place only the part; what the compiler keeps in VMEM (`S(1)`) is
    free. Kernels and matrix products that read an operand several times move more.
    """

    hbm_bytes: float
    host_bytes: float


@dataclass(frozen=True)
class Operation:
    """One top-level instruction, which the device runs by itself: of one run its FLOPs and bytes."""

    name: str
    flops: float
    hbm_bytes: float


def count_flops(module: Module) -> Flops:
    """Counts the FLOPs of one step on one device."""
    sums = {"matmul": 0.0, "attention": 0.0, "elementwise": 0.0}
    uncounted = []
    for visit in module.walk():
        instruction, computation = visit.instruction, visit.computation
        kind, flops = _flops_of(instruction, computation)
        if kind == "uncounted":
            uncounted.append(instruction.name)
        elif kind:
            sums[kind] += flops * visit.count
    return Flops(**sums, uncounted=tuple(uncounted))


def estimate_traffic(module: Module) -> Traffic:
    """Estimates the bytes one device moves through HBM and over its host link in one step."""
    totals = {HBM: 0.0, HOST: 0.0}
    for visit in _top_level(module):
        for space in totals:
            totals[space] += visit.count * _bytes_moved(module, visit, space)
    return Traffic(totals[HBM], totals[HOST])


def read_operation(
    module: Module, computation: Computation, instruction: Instruction
) -> Operation | None:
    """Reads what the device does for one instruction; None for collectives and what costs nothing."""
    if _is_free(instruction) or instruction.opcode.startswith(_COLLECTIVE):
        return None
    where = module, computation, instruction
    moved = _bytes_read(*where, HBM) + _bytes_written(*where, HBM)
    return Operation(instruction.name, flops_inside(*where), float(moved))


def _top_level(module):
    return (v for v in module.walk() if not v.fused and not _is_free(v.instruction))


def _bytes_moved(module, visit, space):
    where = module, visit.computation, visit.instruction, space
    return _bytes_read(*where) + _bytes_written(*where)


def _is_free(instruction):
    opcode = instruction.opcode
    if opcode == "custom-call":
        return instruction.proto.custom_call_target in _FREE_CALLS
    return opcode in _FREE or opcode.endswith(("-done", "-update"))


def flops_inside(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Returns the FLOPs of matrix products and attention of one run of an instruction."""
    total = 0.0
    for visit in module.walk_instruction(computation, instruction):
        kind, flops = _flops_of(visit.instruction, visit.computation)
        total += flops * visit.count if kind in ("matmul", "attention") else 0.0
    return total


def _flops_of(instruction, computation):
    opcode, shape = instruction.opcode, instruction.arrays
    if opcode == "dot":
        return "matmul", 2.0 * shape[0].size * _contracted(instruction, computation)
    if opcode == "convolution":
        return "matmul", 2.0 * _convolution_products(instruction, computation)
    if opcode == "custom-call":
        return _custom_call_flops(instruction, computation)
    if opcode in _ELEMENTWISE and shape[0].dtype[0] in "fb":
        return "elementwise", float(shape[0].size)
    if opcode == "reduce":
        return "elementwise", float(computation.by_name[instruction.operands[0]].arrays[0].size)
    return None, 0.0


def _contracted(dot, computation):
    left = computation.by_name[dot.operands[0]].arrays[0]
    dims = dot.proto.dot_dimension_numbers.lhs_contracting_dimensions
    return math.prod(left.dims[d] for d in dims)


def _convolution_products(convolution, computation):
    """Counts multiply-adds as XLA's HloCostAnalysis does: positions in the padding are left out.

    The TPU compiler writes matrix products as convolutions whose windows lie mostly in the padding
    (`size=1x32 pad=0_0x31_31` over an input of one), so the window's size alone says far too much.
    """
    left, right = (computation.by_name[name].arrays[0] for name in convolution.operands[:2])
    result = convolution.arrays[0]
    dims, windows = (
        convolution.proto.convolution_dimension_numbers,
        convolution.proto.window.dimensions,
    )
    products = right.dims[dims.kernel_input_feature_dimension]
    products *= right.dims[dims.kernel_output_feature_dimension]
    products *= left.dims[dims.input_batch_dimension]
    products //= max(1, convolution.proto.batch_group_count)
    places = zip(
        dims.input_spatial_dimensions, dims.kernel_spatial_dimensions, dims.output_spatial_dimensions,
        windows, strict=True,
    )  # fmt: skip
    for i, k, o, window in places:
        products *= _valid_positions(left.dims[i], right.dims[k], result.dims[o], window)
    return products


def _valid_positions(size, kernel, result, window):
    """Counts the pairs (output, kernel position) that read an input element, not padding."""
    stride, input_dilation = window.stride, window.base_dilation
    last = (size - 1) * input_dilation
    count = 0
    for k in range(kernel):
        # The input position of output o is o * stride + offset.
        offset = k * window.window_dilation - window.padding_low
        if input_dilation == 1:
            first = max(0, -(offset // stride))
            count += max(0, min(result - 1, (last - offset) // stride) - first + 1)
        else:
            places = (o * stride + offset for o in range(result))
            count += sum(0 <= p <= last and p % input_dilation == 0 for p in places)
    return count


def _custom_call_flops(call, computation):
    target = call.proto.custom_call_target
    if not _KERNEL_TARGETS.search(target):
        return None, 0.0
    arrays = [computation.by_name[name].arrays[0] for name in call.operands]
    if target.startswith("__cublas"):
        return "matmul", _gemm_flops(call, arrays)
    if target.startswith("__cudnn$fmha"):
        return "attention", _cudnn_attention_flops(call, target, arrays)
    return _kernel_flops(call, arrays)


def _gemm_flops(call, arrays):
    numbers = call.backend_config["gemm_backend_config"]["dot_dimension_numbers"]
    dims = numbers["lhs_contracting_dimensions"]
    return 2.0 * call.arrays[0].size * math.prod(arrays[0].dims[int(d)] for d in dims)


def _cudnn_attention_flops(call, target, arrays):
    q, k = arrays[:2]  # [B, T, N, H] and [B, S, K, H]
    products = 5 if "Backward" in target else 2
    share = 0.5 if b"CAUSAL" in call.proto.backend_config else 1.0
    return share * products * 2.0 * q.size * k.dims[1]


def _kernel_flops(call, arrays):
    """A Pallas attention kernel by its name; q [.., N, T, H] and k [.., K, S, H] come first."""
    path = call.op_name.rsplit("pallas_call", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    name = f"{call.name} {path}"
    floating = [a for a in arrays if a.dtype[0] in "fb" and len(a.dims) >= 3]
    config = call.proto.backend_config.decode(errors="replace")
    on_gpu = re.search("|".join(_GPU_KERNELS), config)
    if on_gpu and len(floating) >= 2:
        q, k = floating[:2]
        return "attention", 0.5 * _GPU_KERNELS[on_gpu.group()] * 2.0 * q.size * k.dims[1]
    products = next((count for pattern, count in _KERNELS if pattern.search(name)), None)
    if products == 4 and _FUSED.search(
        call.frontend_attribute("kernel_metadata")
    ):  # the queries' gradient comes with it
        products = 5
    if products is None or len(floating) < 3:
        return "uncounted", 0.0
    q, k = floating[:2]
    keys = k.dims[-2]
    return "attention", causal_share(call, keys) * products * 2.0 * q.size * keys


def causal_share(call: Instruction, keys: int) -> float:
    """Returns the share of a causal kernel's blocks that it computes.

    A block is computed whole where any of its queries sees any of its keys: for n x n square blocks
    that is (n + 1) / 2n. Queries divided over mesh.context see more or fewer; this is their mean. Kernels
    that do not say their blocks are taken for 1/2.
    """
    sizes = dict(_BLOCKS.findall(call.frontend_attribute("kernel_metadata")))
    part = next((p for p in ("dkv", "dq") if re.search(rf"_{p}", call.name)), "")
    suffix = f"_{part}" if part else ""
    block_q, block_kv = sizes.get(f"block_q{suffix}"), sizes.get(f"block_kv{suffix}")
    if block_q is None or block_kv is None:
        return 0.5
    block_q, block_kv = min(int(block_q), keys), min(int(block_kv), keys)
    rows, columns = keys // block_q, keys // block_kv
    seen = sum(min(columns, -(-(row + 1) * block_q // block_kv)) for row in range(rows))
    return seen / (rows * columns)


def _bytes_in(arrays: tuple[Array, ...], space: int) -> int:
    return sum(array.bytes for array in arrays if array.space == space)


def _bytes_read(module, computation, instruction, space):
    operands = (computation.by_name[name] for name in instruction.operands)
    return sum(
        _operand_bytes(module, instruction, place, operand, space)
        for place, operand in enumerate(operands)
    )


def _operand_bytes(module, instruction, place, operand, space):
    """Bytes that `instruction` reads of its operand number `place`, never more than it has."""
    whole = _bytes_in(operand.arrays, space)
    if not whole:
        return 0
    opcode = instruction.opcode
    if opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        return min(whole, _parameter_bytes(module, inner, inner.parameters[place], whole))
    if place == 0 and opcode in _PARTS:
        part = instruction.arrays[1 if opcode.endswith("-start") else 0]
        return min(whole, part.bytes)
    if place == 0 and opcode == "dynamic-update-slice":
        return 0
    return whole


def _parameter_bytes(module, computation, value, whole):
    """Bytes of a fusion's parameter that the fusion reads, followed through bitcasts and fusions."""
    total = 0
    for user in computation.users.get(value.name, ()):
        place = user.operands.index(value.name)
        if user.opcode in ("bitcast", "get-tuple-element"):
            total += _parameter_bytes(module, computation, user, whole)
        elif user.opcode == "fusion":
            inner = module.computations[user.called[0]]
            total += _parameter_bytes(module, inner, inner.parameters[place], whole)
        elif place == 0 and user.opcode in _PARTS:
            total += user.bytes
        elif place == 0 and user.opcode in ("dynamic-update-slice", "scatter"):
            continue  # in place: what is written is counted with the result
        elif user.opcode != "tuple" and not _is_sending(user):
            return whole
    return total


def _is_sending(instruction):
    """Whether it is part of an asynchronous collective fusion, until that is done."""
    if instruction.proto.custom_call_target == "AsyncCollectiveStart":
        return True
    return "async_collective_fusion_config" in instruction.backend_config


def _bytes_written(module, computation, instruction, space):
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        results = _results(inner, inner.root)
        spaces = [array.space for array in instruction.arrays]
        return sum(
            _written_by(module, inner, result)
            for result, where in zip(results, spaces, strict=False)
            if where == space
        )
    if instruction.opcode == "dynamic-update-slice" and instruction.arrays[0].space == space:
        return _written_by(module, computation, instruction)
    if instruction.opcode == "send":  # the receiving end writes
        return 0
    return _bytes_in(computation.results_of(instruction), space)


def _results(computation, root):
    if root.opcode == "tuple":
        return [computation.by_name[name] for name in root.operands]
    return [root]


def _written_by(module, computation: Computation, result: Instruction):
    """Bytes of a fusion's result that it writes: of an update in place, the update.

    What an asynchronous collective fusion hands on was written before, or will be when it is done.
    """
    made = result
    if result.opcode == "get-tuple-element":
        made = computation.by_name[result.operands[0]]
    if result.opcode == "parameter" or _is_sending(made):
        return 0
    if result.opcode == "bitcast":
        return _written_by(module, computation, computation.by_name[result.operands[0]])
    if result.opcode == "dynamic-update-slice":
        return computation.by_name[result.operands[1]].bytes
    if result.opcode == "fusion" and len(result.arrays) == 1:
        inner = module.computations[result.called[0]]
        return _written_by(module, inner, inner.root)
    return result.bytes
