"""The notebooks: as they are stored, and run from top to bottom on their tiny setting."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "tools" / "colab").glob("*.ipynb"))
ADAPT, PLAN, MERGE = "adapt_a_small_model", "import_and_plan_llama_8b", "merge_and_evaluate"
MISSING = [
    name for name in ("nbformat", "nbclient", "ipykernel") if not importlib.util.find_spec(name)
]
needs_nbformat = pytest.mark.skipif(
    "nbformat" in MISSING, reason="nbformat is in tools/notebook-tests.txt"
)
needs_kernel = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)}: in tools/notebook-tests.txt"
)
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def python_of(source):
    """Returns a cell's Python, without the magic that says where it runs."""
    return source.partition("\n")[2] if source.startswith("%%ellama_python\n") else source


def titled(path, title):
    (found,) = [source for source in code_cells(path) if source.startswith(f"# @title {title}")]
    return found


# --- as they are stored --------------------------------------------------------------------------


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == [ADAPT, PLAN, MERGE]


@needs_nbformat
@every_notebook
def test_outputs_and_counts_are_cleared_and_every_cell_can_be_parsed(path):
    import nbformat

    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            ast.parse(python_of(cell.source))


@needs_nbformat
@every_notebook
def test_nothing_of_the_host_that_made_it_is_left(path):
    text = path.read_text()
    assert not re.search(r"(?<![\w.}])/(work|tmp|home|root|usr|opt|content)\b", text)
    assert set(re.findall(r"\w+://", text)) <= {"gs://"}
    assert set(read(path).metadata) == {"kernelspec", "language_info", "colab"}


@needs_nbformat
@every_notebook
def test_the_tiny_setting_changes_settings_alone(path):
    settings = titled(path, "Settings")
    fields = set(re.findall(r"^([A-Z_]+) = .*# @param", settings, re.MULTILINE))
    tiny = [node for node in ast.parse(settings).body if isinstance(node, ast.If)]
    changed = {n.id for node in tiny for n in ast.walk(node)
               if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}  # fmt: skip
    assert "REPOSITORY" in fields and changed and changed <= fields - {"REPOSITORY"}
    assert sum("ELLAMA_NOTEBOOK" in source for source in code_cells(path)) == 1


@needs_nbformat
@every_notebook
def test_where_the_package_is_there_nothing_is_installed(path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it installed something"))
    exec(titled(path, "Install"), {"REPOSITORY": ""})


@needs_nbformat
@every_notebook
def test_without_package_and_repository_it_says_what_to_fill_in(path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^REPOSITORY: must be the address or path of the repo"):
        exec(titled(path, "Install"), {"REPOSITORY": ""})


@needs_nbformat
@every_notebook
def test_an_install_makes_an_environment_of_its_own_as_a_tpu_host_has_it(
    path, monkeypatch, tmp_path
):
    calls = []

    def record(command, check, env=None):
        calls.append(command)
        if command[0] == "git":
            Path(command[-1], "tpu_scripts").mkdir(parents=True)
            for name in ("tpu_scripts/on_host.sh", "requirements.lock"):
                Path(command[-1], name).touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", record)
    names = {"REPOSITORY": "somewhere"}
    for _ in range(2):
        exec(titled(path, "Install"), names)
    assert [command[0] for command in calls] == ["git", "bash", "bash"]
    assert calls[0][-2:] == ["somewhere", "ellama_jax_clone"]
    assert calls[1][1:] == ["ellama_jax_env/on_host.sh", "install"]
    assert names["PYTHON"] == str(tmp_path / "ellama_jax_env/venv/bin/python")
    home = tmp_path / "ellama_jax_env"
    assert (home / "job.install").read_text().strip() == str(tmp_path / "ellama_jax_clone")
    assert path.stem != PLAN or (home / "job.packages").read_text() == "jax[tpu]\n"


@needs_nbformat
def test_the_notebook_itself_needs_nothing_that_is_not_there_and_there_is_one_route():
    """What is not Python's own or IPython's is imported where ellama runs."""
    own = set(sys.stdlib_module_names) | {"IPython"}
    for path in NOTEBOOKS:
        for source in code_cells(path):
            if source.startswith("%%ellama_python\n"):
                continue
            for node in ast.walk(ast.parse(source)):
                names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert {name.partition(".")[0] for name in names} <= own, source
    helpers = {next(s for s in code_cells(p) if "def ellama(" in s) for p in NOTEBOOKS}
    assert len(helpers) == 1


# --- run from top to bottom ----------------------------------------------------------------------


def execute(name, place, **settings):
    """Runs a notebook in `place` on the tiny setting; returns its text and how many plots it drew."""
    from nbclient import NotebookClient

    notebook = read(ROOT / "tools" / "colab" / f"{name}.ipynb")
    for cell in notebook.cells:
        for key, value in settings.items():
            if cell.source.startswith("# @title Settings"):
                cell.source, count = re.subn(f'{key} = ""', f"{key} = {value!r}", cell.source)
                assert count == 1
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"ELLAMA_NOTEBOOK": "tiny", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute(env=environment)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    plots = sum("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs), plots


@needs_kernel
@pytest.mark.slow
def test_a_small_model_is_adapted_and_can_be_again(tmp_path):
    text, plots = execute(ADAPT, tmp_path)
    assert plots == 2
    assert "finished: all 24 steps are done and saved." in text
    assert re.search(
        r"bits_per_byte \(ecommerce\).*base +adapted|base +adapted +adapted gain", text
    )
    assert (tmp_path / "adapt/run/checkpoints/24").is_dir()
    gained = re.search(r"bits per byte, e-commerce text .*?([+-][\d.]+) %", text)
    assert float(gained[1]) > 0  # it has learned something
    assert (tmp_path / "adapt/run/report.html").stat().st_size > 10_000
    again, plots = execute(ADAPT, tmp_path)
    assert plots == 2 and "resuming after step 24" in again


@needs_kernel
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu, the TPU compiler")
def test_a_run_is_planned_with_and_without_weights(tmp_path):
    text, plots = execute(PLAN, tmp_path)
    assert plots == 1
    assert "MODEL_DIR is empty: the import is skipped." in text
    assert "131,392 parameters: 0.000 GiB in bfloat16" in text
    assert re.search(r"^fits +yes: [\d.]+ MiB of 15.75 GiB a device", text, re.MULTILINE)
    assert re.search(
        r"^v5e-4: fits, [\d.]+ of 15.75 GiB a device; a step at least", text, re.MULTILINE
    )

    write_huggingface(tmp_path)
    text, _ = execute(PLAN, tmp_path, MODEL_DIR="hf")
    assert "Imported hf into plan/base/0" in text
    assert "--config.model.checkpoint=plan/base " in text
    text, _ = execute(PLAN, tmp_path, MODEL_DIR="nowhere")
    assert "nowhere holds no config.json: the import is skipped." in text


def write_huggingface(place):
    """Lays out a tiny model as one from Hugging Face."""
    from ellama_jax import cli
    from ellama_jax.experiments.demo import make_tiny_base

    make_tiny_base(place / "tiny", ["one small text"] * 20, seed=0)
    cli.main(["export", str(place / "tiny"), str(place / "hf")])


@needs_kernel
@pytest.mark.slow
def test_two_models_are_merged_and_the_choice_is_evaluated(tmp_path):
    text, plots = execute(MERGE, tmp_path)
    assert plots == 2
    assert "Merged 0.5 x merge/example/base (step 0) + 0.5 x merge/example/checkpoints" in text
    assert re.search(r"^chosen alpha: (0|0.5|1)$", text, re.MULTILINE)
    assert "on test questions that chose nothing" in text
    assert re.search(r"base +adapted +chosen", text)
    assert (tmp_path / "merge/export/config.json").is_file()
    assert "| " in (tmp_path / "merge/card.md").read_text()
