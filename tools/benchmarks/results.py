"""Rows of docs/RESULTS.md: a measurement with its date, command, versions and commit."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def provenance() -> dict[str, str]:
    """Returns date, commit (`+` where the tree differs from it), versions and command."""
    import jax

    def git(*arguments):
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(REPOSITORY):
        script = script.relative_to(REPOSITORY)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": (git("rev-parse", "--short=12", "HEAD") or "unknown") + dirty,
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}",
        "command": f"`python {shlex.join([str(script), *_without_append(sys.argv[1:])])}`",
    }


def machine_cpu() -> str:
    """Returns the processor, the cores this process may use, and what else ran on them."""
    name = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, load {os.getloadavg()[0]:.1f} at the end"


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Returns rows of the same columns as a markdown table.

    >>> print(markdown_table([{"mesh": "data 2", "ratio": "1.1"}]))
    | mesh | ratio |
    |---|---|
    | data 2 | 1.1 |
    """
    header = [_line(rows[0]), "|" + "---|" * len(rows[0])]
    return "\n".join(header + [_line(row.values()) for row in rows])


def append_rows(path: Path, title: str, rows: list[dict[str, str]]) -> None:
    """Adds rows to the table under the heading `### title`; heading and table are made where missing.

    Raises:
        ValueError: if the table there has other columns.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    heading = f"### {title}"
    if heading not in lines:
        lines += ["", heading, "", *markdown_table(rows).splitlines()]
    else:
        start = lines.index(heading) + 1
        end = next((i for i in range(start, len(lines)) if lines[i].startswith("#")), len(lines))
        table = [i for i in range(start, end) if lines[i].startswith("|")]
        if not table or lines[table[0]] != _line(rows[0]):
            raise ValueError(
                f"--append: the table under {heading!r} in {path} must have the columns "
                f"{_line(rows[0])}, got {lines[table[0]] if table else 'none'}; rename the heading."
            )
        # The first table only: it ends where its lines stop following each other.
        last = table[0]
        while last + 1 in table:
            last += 1
        lines[last + 1 : last + 1] = [_line(row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def report(title: str, rows: list[dict[str, str]], append: Path | None) -> None:
    """Prints rows as a markdown table and, with `append`, adds them to that file."""
    print(f"\n### {title}\n\n{markdown_table(rows)}", flush=True)
    if append is not None:
        append_rows(append, title, rows)
        print(f"appended to {append}", flush=True)


def _line(cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _without_append(arguments: list[str]) -> list[str]:
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--append":
            rest[:1] = []
        elif not argument.startswith("--append="):
            kept.append(argument)
    return kept
