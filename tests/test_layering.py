"""Imports go downward only, and every vendor has one home."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ellama_jax"
# Lower layers first; a module imports from its own layer's package or from below.
LAYERS = (
    ("settings", "topology"),
    (
        "config",
        "config_evaluate",
        "tree",
        "sharding",
        "xla_flags",
        "distributed",
        "progress",
        "verb_process",
        "paths",
    ),
    ("model",),
    ("data",),
    ("weights",),
    ("evaluate",),
    ("train",),
    (
        "plan",
        "plan_compile",
        "plan_cost",
        "plan_program",
        "plan_search",
        "plan_table",
        "plan_targets",
        "plan_hlo",
        "plan_hlo_text",
        "plan_hlo_costs",
        "plan_hlo_collectives",
        "plan_hlo_buffers",
        "plan_hlo_memory",
        "plan_roofline",
    ),  # fmt: skip
    ("sweep_grid", "sweep_commands", "sweep_results", "sweep_show"),
    (
        "report",
        "report_evaluation",
        "report_moved",
        "report_page",
        "report_plots",
        "report_sections",
        "report_sweep",
        "report_tradeoff",
        "report_training",
    ),  # fmt: skip
    ("audit_page", "audit_words", "audit_curation_page", "audit_curation_words"),
    ("demo", "curate", "inspect", "sweep", "watch", "watch_log", "watch_page"),
    ("evidence", "evidence_words"),
    ("cli",),
)
HOMES = {
    "flax": {"model/llama.py"},
    "orbax": {"weights/checkpoint.py", "weights/lazy_writer.py"},
    "grain": {"data/loader.py"},
    "seqio": {"data/tasks.py"},
    "tensorflow": {"data/tasks.py", "data/tensorflow_records.py"},
    "tensorflow_datasets": {"data/tasks.py", "data/tensorflow_records.py"},
    "apache_beam": {"data/curation.py", "data/curation_sinks.py", "curate.py"},
    # reference.py asks the source without the code that imports it.
    "gguf": {"weights/gguf.py", "weights/reference.py"},
    "ml_collections": {"config.py"},
    "fsspec": {"paths.py"},
    "wandb": {"train/tracking.py"},
    "lm_eval": {"evaluate/__main__.py", "evaluate/lm_eval_model.py", "evaluate/lm_eval_run.py"},
}
# Never needed to run the product: references of tests and benchmarks. The process that computes what
# a checkpoint's source says is one of those.
STRANGERS = ("torch", "transformers", "mergekit", "accelerate")
STRANGERS_IN = {
    "weights/torchfile.py": {"torch"},  # inside functions: only Meta's checkpoints need it
    "weights/reference.py": {"torch", "transformers"},
    "weights/reference_meta.py": {"torch"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Yields every imported module's full name, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module):
    for number, names in enumerate(LAYERS):
        if module in names:
            return number
    raise AssertionError(f"{module} stands in no layer; name it in LAYERS")


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    if path == PACKAGE / "__init__.py":
        assert not list(imports(path))
        return
    mine = part_of(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "ellama_jax" or len(parts) < 2 or parts[1].startswith("_"):
            continue
        other = parts[1]
        below = layer_of(other) < layer_of(mine)
        together = other.split("_")[0] == mine.split("_")[0]  # report and report_page
        assert below or together, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_vendor_has_one_home(path):
    relative = str(path.relative_to(PACKAGE))
    for module in imports(path):
        vendor = module.split(".")[0]
        assert relative in HOMES.get(vendor, {relative}), f"{relative} imports {vendor}"
        allowed = STRANGERS_IN.get(relative, ())
        assert vendor in allowed or vendor not in STRANGERS, f"{relative} imports {vendor}"


def test_no_module_is_a_drawer_or_too_long():
    for path in FILES:
        assert path.stem not in ("utils", "util", "helpers", "common", "misc")
        assert len(path.read_text().splitlines()) <= 500, path


def test_the_layers_name_what_exists():
    named = {name for names in LAYERS for name in names}
    assert named == {part_of(path) for path in FILES} - {"__init__"}
