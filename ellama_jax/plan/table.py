"""A plan in words: one block of plain text a target, and what several have side by side.

Owns wording and layout, 100 columns at most. The numbers come as `plan.plan_record` gives them.
"""

import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 100
_LABEL = 11
_MOST_ROWS = 10  # of collectives
PROMISE = (
    "Bounds are not promises: no step is faster than what its FLOPs, memory traffic or network "
    "traffic take at the published peaks; a real one is slower. Days count steps alone: no "
    "evaluation, checkpoint or restart. Fitting is proven by this compiler's version."
)


def block(record: Mapping) -> str:
    """Returns the text of one plan."""
    title = f"{record['target']}  {_target_words(record)}"
    lines = [title, "-" * min(WIDTH, len(title))]
    step = record["step"]
    microbatches = step["num_microbatches"]
    lines += _row("model", f"{record['model']}, {_big(record['num_params'])} parameters")
    lines += _row(
        "step",
        f"{step['global_batch_size']:,} rows x {step['seq_len']:,} tokens = "
        f"{step['tokens']:,} tokens; rows a device: {step['rows_per_device']:g}"
        + (f" in {microbatches} micro-batches" if microbatches > 1 else ""),
    )
    if hosts := step["hosts"]:
        who = f"{hosts['count']} hosts, each" if hosts["count"] > 1 else "1 host"
        lines += _row("data", f"{who} reads {hosts['rows']:,} rows a step, {size(hosts['bytes'])}")
    lines += _row("mesh", " x ".join(f"{axis} {count}" for axis, count in step["mesh"].items()))
    lines += _row(
        "computed",
        f"attention {step['attention_kernel']}; remat {step['remat']}; parameters "
        f"{step['param_dtype']}, activations {step['compute_dtype']}",
    )
    lines += _row("fits", *_fits(record))
    if record["memory"] is not None:
        lines += _row("memory", *_memory(record["memory"], record["peak_parts"]))
    elif record["state"] is not None:
        words = {
            "parameters": "params_bytes",
            "optimizer": "optimizer_bytes",
            "batch": "batch_bytes",
        }
        parts = ", ".join(f"{name} {size(record['state'][key])}" for name, key in words.items())
        lines += _row("memory", f"a device holds {parts}; gradients and activations beside it")
    if record["unread"]:
        lines += _row("traffic", f"not read from this compiler's text: {record['unread']}")
    lines += _row("FLOPs", *_flops(record))
    if record["traffic"] is not None:
        lines += _row("traffic", *_traffic(record["traffic"]))
        lines += _row("network", *_network(record["collectives"]))
    if record["roofline"] is not None:
        lines += _row("bounds", *_bounds(record["roofline"]))
    if record["checkpoint"] is not None:
        lines += _row("save", _save(record["checkpoint"]))
    lines += _row("run", *_run(record))
    return "\n".join(lines)


def summary(records: Sequence[Mapping]) -> str:
    """Returns a table with one line a plan."""
    head = ("target", "chips", "fits", "memory", "step min", "MFU max", "tokens/s/chip max",
            "days min", "cost min")  # fmt: skip
    return table([head, *(_summary_row(record) for record in records)])


def _summary_row(record: Mapping) -> tuple[str, ...]:
    memory, roofline, run = record["memory"], record["roofline"], record["run"]
    bound = run["bound"]
    return (
        record["target"],
        f"{record['num_chips']:,}",
        {"compiled": "yes", "no_fit": "no", "failed": "failed"}[record["outcome"]],
        "-" if memory is None else size(memory["peak_bytes"]),
        "-" if roofline is None else _secs(roofline["step_secs"]),
        "-" if roofline is None else f"{roofline['mfu']:.1%}",
        "-" if roofline is None else f"{roofline['tokens_per_sec_per_chip']:,.0f}",
        "-" if bound is None else f"{bound['days']:,.1f}",
        "-" if bound is None or bound["cost_usd"] is None else f"${bound['cost_usd']:,.0f}",
    )


def table(rows: Sequence[Sequence[str]], indent: int = 0) -> str:
    """Lays rows out in columns, the first to the left and numbers to the right.

    >>> print(table([("kind", "count"), ("all-gather", "64")]))
    kind        count
    all-gather     64
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    wordy = [not any(row[i][:1].isdigit() for row in rows[1:]) for i in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, wordy, strict=True)
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Returns text in lines of the page's width; options are not broken at their hyphens."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


# --- the rows of a block -------------------------------------------------------------------------


def _row(label: str, *lines: str) -> list[str]:
    """Returns a label and what it says; long lines are wrapped, a line's own indent stays."""
    found = []
    for line in lines:
        indent = len(line) - len(line.lstrip(" "))
        found += textwrap.wrap(
            line, WIDTH - _LABEL, subsequent_indent=" " * (indent + 2), drop_whitespace=True,
            break_long_words=False, break_on_hyphens=False,
        ) or [""]  # fmt: skip
    return [
        f"{label if number == 0 else '':<{_LABEL}}{line}".rstrip()
        for number, line in enumerate(found)
    ]


def _target_words(record: Mapping) -> str:
    words = f"{record['num_chips']:,} x {record['hardware'] or record['device_kind'] or 'chips'}"
    if record["shape"]:
        words += f" ({'x'.join(map(str, record['shape']))})"
    if record["num_slices"] > 1:
        words += f", {record['num_slices']} slices"
    if record["num_devices"] != record["num_chips"]:
        words += f", {record['num_devices']:,} devices"
    return words


def _fits(record: Mapping) -> list[str]:
    memory, limit = record["memory"], record["limit_bytes"]
    if record["outcome"] == "compiled":
        if limit is None:
            return [f"{size(memory['peak_bytes'])} a device at the peak; no limit is known here"]
        left = limit - memory["peak_bytes"]
        return [
            f"yes: {size(memory['peak_bytes'])} of {size(limit)} a device at the peak, "
            f"{size(left)} left"
        ]
    where = f"the compiler's full text: {record['text_path']}"
    if record["outcome"] == "failed":
        return [f"not known, the compiler failed: {record['message']}", where]
    found = record["out_of_memory"]
    lines = [f"no: {record['message']}"]
    if found["missing_bytes"] is not None:
        lines = [
            f"no: {size(found['needed_bytes'])} of {size(found['available_bytes'])} a device, "
            f"{size(found['missing_bytes'])} too much"
        ]
    for item in found["largest"]:
        lines.append(f"  {size(item['bytes'])} {item['shape']} {item['op_name']}".rstrip())
    return [*lines, where]


def _memory(memory: Mapping, parts_of_peak: Mapping | None) -> list[str]:
    parts = {
        "parameters": "params_bytes",
        "optimizer": "optimizer_bytes",
        "batch": "batch_bytes",
        "gradients and activations": "temporary_bytes",
        "other": "other_bytes",
    }
    words = ", ".join(f"{name} {size(memory[key])}" for name, key in parts.items())
    lines = [f"at the peak: {words}"]
    if parts_of_peak is not None:
        kinds = ("gradients", "activations", "weights")
        names = dict.fromkeys(kinds, "") | {"weights": " (cast, gathered or laid out anew)"}
        alive = ", ".join(f"{kind}{names[kind]} {size(parts_of_peak[kind])}" for kind in kinds)
        lines.append(f"  of it by the schedule, an estimate: {alive}")
    return [
        *lines,
        f"beside it: code {size(memory['code_bytes'])}, on the host {size(memory['host_bytes'])}",
    ]


def _flops(record: Mapping) -> list[str]:
    model, step = record["model_flops"], record["step"]
    if model is None:
        return ["not known"]
    wanted = model["total_per_token"] * step["tokens"]
    words = f"{wanted:.3g} the model's own a step"
    if record["flops"] is not None:
        compiled = record["flops"]["total"] * record["num_devices"]
        words += f", {compiled:.3g} compiled: {compiled / wanted:.2f} x"
    return [words]


def _traffic(traffic: Mapping) -> list[str]:
    words = f"{traffic['hbm_bytes'] / 1e9:,.1f} GB of HBM read and written a device and step"
    if traffic["host_bytes"]:
        words += f", {traffic['host_bytes'] / 1e9:,.1f} GB over the link to the host"
    return [f"{words} (an estimate)"]


def _network(sums: Sequence[Mapping]) -> list[str]:
    if not sums:
        return ["no collectives"]
    rows = [("kind", "axes", "over", "of", "dtype", "times", "GB sent", "overlapped")]
    for item in sums[:_MOST_ROWS]:
        sent = item["link_bytes"]
        rows.append((
            item["kind"], "*".join(item["axes"]), item["network"], item["source"], item["dtype"],
            f"{item['count']:,}", f"{sent / 1e9:,.3f}",
            f"{item['overlapped_bytes'] / sent:.0%}" if sent and item["overlapped_bytes"] is not None else "-",
        ))  # fmt: skip
    lines = table(rows).splitlines()
    if rest := sums[_MOST_ROWS:]:
        sent = sum(item["link_bytes"] for item in rest)
        lines.append(
            f"and {sum(i['count'] for i in rest):,} more, {sent / 1e9:,.3f} GB (see --json)"
        )
    return lines


def _bounds(roofline: Mapping) -> list[str]:
    times = {"compute": "compute_secs", "HBM": "hbm_secs", "ICI": "ici_secs", "DCN": "dcn_secs"}
    words = ", ".join(f"{name} {_secs(roofline[key])}" for name, key in times.items())
    return [
        f"a step's {words}",
        f"a step takes at least {_secs(roofline['step_secs'])} ({roofline['bound_by']}): at most "
        f"{roofline['tokens_per_sec_per_chip']:,.0f} tokens/s a chip, MFU {roofline['mfu']:.1%}",
        f"and {_secs(roofline['serial_step_secs'])} (MFU {roofline['serial_mfu']:.1%}) if what the "
        "schedule does not overlap waits",
    ]


def _save(checkpoint: Mapping) -> str:
    hosts, share = checkpoint["hosts"], size(checkpoint["bytes_per_host"])
    each = f", {share} a host of {hosts:,}" if hosts > 1 else ""
    return (
        f"a checkpoint of {size(checkpoint['bytes'])}{each}: {_secs(checkpoint['secs'])} at "
        f"{checkpoint['write_rate']:g} GB/s a host"
    )


def _run(record: Mapping) -> list[str]:
    run = record["run"]
    price = run["price_usd_per_chip_hour"]
    at = "" if price is None else f" (${price:g} a chip and hour)"
    lines = [f"{run['steps']:,} steps, {_big(run['tokens'])} tokens"]
    if run["bound"] is not None:
        lines.append(f"at least {_cost(run['bound'])}{at}")
    if run["assumed"] is not None:
        above = record["roofline"]["mfu"] < run["assumed_mfu"]
        beyond = ", which is beyond the bound" if above else ""
        lines.append(
            f"{_cost(run['assumed'])} at the assumed MFU of {run['assumed_mfu']:.0%}{beyond}"
        )
    return lines


def _cost(cost: Mapping) -> str:
    words = f"{cost['days']:,.1f} days, {cost['chip_hours']:,.0f} chip-hours"
    return words if cost["cost_usd"] is None else f"{words}, ${cost['cost_usd']:,.0f}"


def size(num_bytes: float) -> str:
    """Returns bytes in the unit that shows them.

    >>> size(40.57 * 2**30), size(3 * 2**20), size(65536)
    ('40.57 GiB', '3.0 MiB', '64 KiB')
    """
    if num_bytes >= 0.1 * 2**30:
        return f"{num_bytes / 2**30:,.2f} GiB"
    return (
        f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.0f} KiB"
    )


def _secs(secs: float) -> str:
    return f"{secs:,.2f} s" if secs >= 1 else f"{secs * 1e3:,.1f} ms"


def _big(count: float) -> str:
    """Returns a count in the unit people say it in.

    >>> _big(8030261248), _big(1.0027e12), _big(123456)
    ('8.03B', '1.00T', '123,456')
    """
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return f"{count:,.0f}"
