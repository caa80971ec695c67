"""Owns the report: what a run directory says, told on one self-contained HTML page.

It reads the files and writes the page; what the sections say is report/sections.py's.
"""

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from ellama_jax.core.limits import parse_json
from ellama_jax.core.paths import local_path
from ellama_jax.report.evaluation import EVALUATION_SECTIONS
from ellama_jax.report.moved import MOVED_SECTIONS
from ellama_jax.report.page import render_page
from ellama_jax.report.sections import SECTIONS, RunFiles, make_lead, make_section
from ellama_jax.report.sweep import sweep_section
from ellama_jax.report.tradeoff import TRADEOFF_SECTIONS, tradeoff_section
from ellama_jax.report.training import TRAINING_SECTIONS

_FIRST_MODELS = ("base", "adapted", "merged")


def write_report(workdir: str | Path) -> Path:
    """Writes WORKDIR/report.html from the files of the run, whole or not at all.

    Args:
        workdir: a run directory; parts it lacks are left out and named on the page.

    Returns:
        The page's path.

    Raises:
        ValueError: if it is no run directory, or one of its files is broken.
    """
    files = read_run(workdir)
    page = render_page(build_content(files))
    path = files.workdir / "report.html"
    with tempfile.NamedTemporaryFile(
        "w", dir=files.workdir, prefix=".report-", delete=False, encoding="utf-8"
    ) as partial:
        partial.write(page)
    os.chmod(partial.name, 0o644)
    os.replace(partial.name, path)
    return path


def read_run(workdir: str | Path) -> RunFiles:
    """Reads every part of a run directory that is there."""
    workdir = local_path(workdir, "report")
    files = RunFiles(
        workdir,
        _read_json(workdir / "run.json"),
        _read_json(workdir / "config.json"),
        _read_metrics(workdir / "metrics.jsonl"),
        sorted(map(_read_json, workdir.glob("scores/*.json")), key=_model_order),
        _read_json(workdir / "sweep.json"),
        _read_json(workdir / "goodput.json"),
        _read_json(workdir / "moved.json"),
        _read_json(workdir / "trials.json"),
    )
    parts = (getattr(files, field.name) for field in dataclasses.fields(files)[1:])
    if not any(parts):
        raise ValueError(
            f"report: {workdir} must be a run directory (with run.json, config.json, metrics.jsonl,"
            " scores/, sweep.json or moved.json), or that of a sweep (trials.json), got none of these."
        )
    return files


_TRADEOFF = ("sweep.json (ellama merge-sweep)", "trade-off over alpha", tradeoff_section)
# Behind a section, what not every run has and nobody misses.
_AFTER = {
    "scorecard": EVALUATION_SECTIONS,
    "trade-off over alpha": (*TRADEOFF_SECTIONS, *MOVED_SECTIONS),
    "learning rate and speed": TRAINING_SECTIONS,
}


def build_content(files: RunFiles) -> dict:
    """Builds what `render_page` shows."""
    run = files.run or {}
    if files.trials is not None:
        return _page(files.trials["title"], "", [], [], [sweep_section(files.trials)])
    sections, missing = [], []
    at = [name for _, name, _ in SECTIONS].index("scorecard") + 1
    for source, name, make in (*SECTIONS[:at], _TRADEOFF, *SECTIONS[at:]):
        section = make(files)
        if section is None:
            missing.append(f"{name}: needs {source}")
        else:
            sections.append(section)
        more = _AFTER.get(name, ())
        sections += [found for make in more if (found := make(files)) is not None]
    if missing:
        words = ["These parts are left out, for the run directory lacks their files:"]
        sections.append(make_section("Left out", words, missing))
    title = run.get("title") or f"Run {files.workdir.name}"
    lead = make_lead(files)
    plots = _lead_plots(sections) if lead else []
    return _page(title, _subtitle(run), lead, plots, sections)


def _lead_plots(sections: list) -> list[dict]:
    """Takes the one picture out of its section: gain against loss, else the gains."""
    for title in ("Trade-off", "Adaptation and forgetting"):
        for section in sections:
            if section["title"] == title and section["plots"]:
                first, *section["plots"] = section["plots"]
                return [first]
    return []


def _page(title: str, subtitle: str, lead: list, plots: list, sections: list) -> dict:
    footer = "Made by `ellama report` from the files of the directory."
    return {
        "title": title, "subtitle": subtitle, "lead": lead, "lead_plots": plots, "sections": sections,
        "footer": footer,
    }  # fmt: skip


def _subtitle(run: dict) -> str:
    forms = {"model": "{}", "started": "started {}", "finished": "finished {}", "commit": "{:.12}"}
    return " · ".join(form.format(run[key]) for key, form in forms.items() if run.get(key))


def _model_order(card: dict) -> tuple[int, str]:
    model = card["model"]
    return (_FIRST_MODELS.index(model) if model in _FIRST_MODELS else len(_FIRST_MODELS), model)


def _read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON, got {error}.") from error


def _read_metrics(path: Path) -> list[dict]:
    """Reads one record a line; a last line that was cut off (the run was killed) is left out."""
    if not path.is_file():
        return []
    records = []
    # As bytes: what is no UTF-8 is then the error of one line.
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} must be JSON, got {error}.") from error
    return records


def main_report(argv: list[str]) -> None:
    """Runs `ellama report`."""
    parser = argparse.ArgumentParser(
        prog="ellama report",
        description="Write the HTML page of a run, a sweep or a merge: WORKDIR/report.html.",
        epilog="example: ellama report runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", help="directory of the run or the sweep")
    print(f"wrote {write_report(parser.parse_args(argv).workdir)}")
