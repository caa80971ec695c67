"""Imports go downward only, and every vendor has one home."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ellama_jax"
# Lower tiers first; a package imports from its own tier or from below.
TIERS = (
    ("core",),
    ("config",),
    ("model",),
    ("weights", "corpus", "tokens"),
    ("evaluate", "train"),
    ("merge", "plan"),
    ("report", "experiments"),
    ("cli",),
)
# The verb `curate` asks for the questions to keep out of its documents, and prints its own account.
UPWARD = {("corpus/curate.py", "evaluate"), ("corpus/curate.py", "report")}
HOMES = {
    "flax": {"model/llama.py"},
    "orbax": {"weights/checkpoint.py", "weights/lazy_writer.py"},
    "grain": {"tokens/loader.py"},
    "seqio": {"tokens/tasks.py"},
    # plan/hlo_module.py imports the schema of HLO modules by name, without TensorFlow around it.
    "tensorflow": {"tokens/tasks.py", "corpus/tensorflow_records.py", "plan/hlo_module.py"},
    "tensorflow_datasets": {"tokens/tasks.py", "corpus/tensorflow_records.py"},
    "apache_beam": {"core/beam_runner.py", "corpus/curation.py", "corpus/curation_sinks.py"},
    "dask": {"core/beam_runner.py"},
    # reference.py asks the source without the code that imports it.
    "gguf": {"weights/gguf.py", "weights/reference.py"},
    "ml_collections": {"config.py"},
    "fsspec": {"core/paths.py"},
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


def tier_of(package):
    for number, names in enumerate(TIERS):
        if package in names:
            return number
    raise AssertionError(f"{package} stands in no tier; name it in TIERS")


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def packages_imported(path):
    """Returns the packages of ours that a file imports from."""
    parts = (module.split(".") for module in imports(path))
    return {p[1] for p in parts if p[0] == "ellama_jax" and len(p) > 1 and p[1][0] != "_"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    if path == PACKAGE / "__init__.py":
        assert not list(imports(path))
        return
    for other in packages_imported(path):
        known = (str(path.relative_to(PACKAGE)), other) in UPWARD
        assert known or tier_of(other) <= tier_of(package_of(path)), f"{path} imports {other}"


def test_what_trains_does_not_import_the_corpus():
    for path in FILES:
        if package_of(path) in ("train", "model", "weights"):
            assert "corpus" not in packages_imported(path), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_vendor_has_one_home(path):
    relative = str(path.relative_to(PACKAGE))
    for module in imports(path):
        vendor = module.split(".")[0]
        assert relative in HOMES.get(vendor, {relative}), f"{relative} imports {vendor}"
        allowed = STRANGERS_IN.get(relative, ())
        assert vendor in allowed or vendor not in STRANGERS, f"{relative} imports {vendor}"


def test_no_module_is_a_drawer():
    for path in FILES:
        assert path.stem not in ("utils", "util", "helpers", "common", "misc")


def test_the_tiers_name_what_exists():
    named = {name for names in TIERS for name in names}
    assert named == {package_of(path) for path in FILES} - {"__init__"}
