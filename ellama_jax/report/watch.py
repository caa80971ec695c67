"""`ellama watch`: a page of a run on the terminal while it trains.

Owns the verb and when the page is drawn anew; what stands on it is report/watch_screen.py's.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from ellama_jax.core.paths import as_path
from ellama_jax.core.terminal import obeyed
from ellama_jax.report.watch_log import METRICS_FILE, Watched
from ellama_jax.report.watch_screen import page


def main_watch(argv: list[str]) -> None:
    """Runs the verb `watch`."""
    parser = argparse.ArgumentParser(
        prog="ellama watch",
        description="Show how a run goes, until it is finished or Ctrl-C: loss by domain and "
        "language, speed, mixture, the last checkpoint and when it will be done.",
        epilog="example:\n  ellama watch runs/8b\n  ellama watch gs://bucket/runs/8b --every 60\n"
        "  ellama watch runs/8b --once > page.txt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", metavar="DIR", help="directory of the run, local or gs://")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECS",
                        help="seconds between two looks (default: 2)")  # fmt: skip
    parser.add_argument(
        "--once", action="store_true",
        help="print the page as it is now; so does a pipe",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not (math.isfinite(args.every) and args.every >= 0.1):
        raise ValueError(f"--every: must be at least 0.1 seconds, got {args.every:g}.")
    run, console = (
        Watched(_find_run(args.workdir)),
        Console(file=obeyed(sys.stdout), highlight=False, markup=False),
    )
    if args.once or not sys.stdout.isatty() or console.is_dumb_terminal:
        console.print(page(run, console))
    else:
        _follow(run, console, args.every)


def _find_run(workdir: str) -> Path:
    """Returns the directory of a run, or says what is wrong with it."""
    path = as_path(workdir)
    if not path.is_dir():
        what = "a file" if path.exists() else "nothing"
        raise ValueError(f"{workdir}: must be the directory of a run, got {what}.")
    files = ("config.json", METRICS_FILE)
    if not any((path / name).exists() for name in files):
        raise ValueError(
            f"{workdir}: must be the directory of a run, with {' or '.join(files)} in it, got "
            "neither; `ellama train` writes them when it begins."
        )
    return path


def _follow(run: Watched, console: Console, every: float) -> None:
    """Draws the page anew until the run has ended or Ctrl-C; the last one stays."""
    try:
        with Live(page(run, console), console=console, auto_refresh=False) as live:
            while run.ended() is None:
                time.sleep(every)
                run.update()
                live.update(page(run, console), refresh=True)
    except KeyboardInterrupt:
        pass
