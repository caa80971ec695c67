"""The public address, once there is one, reaches notebooks and README."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location(
    "set_repository", ROOT / "tools" / "set_repository.py"
)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def clone(tmp_path):
    shutil.copytree(ROOT / "tools" / "colab", tmp_path / "tools" / "colab")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_every_notebook_gets_the_address_and_the_readme_a_badge_for_each(clone):
    names = sorted(path.name for path in (clone / "tools" / "colab").glob("*.ipynb"))
    assert len(tool.set_repository("shop/ellama_jax", clone)) == len(names) + 1 == 4
    for name in names:
        notebook = json.loads((clone / "tools" / "colab" / name).read_text())
        settings = "".join(sum((cell["source"] for cell in notebook["cells"]), []))
        assert 'REPOSITORY = "https://github.com/shop/ellama_jax"' in settings
        link = f"(https://colab.research.google.com/github/shop/ellama_jax/blob/main/tools/colab/{name})"
        assert (clone / "README.md").read_text().count(link) == 1


def test_the_address_can_change(clone):
    once = [path.read_text() for path in _files(clone) if tool.set_repository("a/b", clone) or True]
    tool.set_repository("c/d", clone)
    assert tool.set_repository("c/d", clone) == []
    tool.set_repository("a/b", clone)
    assert [path.read_text() for path in _files(clone)] == once


def _files(clone):
    return [clone / "README.md", *sorted((clone / "tools" / "colab").glob("*.ipynb"))]


@pytest.mark.parametrize("name", ["ellama", "https://x/y/z", 'a/b"c', "a/b)"])
def test_what_is_no_address_changes_nothing(clone, name):
    before = [path.read_text() for path in _files(clone)]
    with pytest.raises(ValueError, match="must be a name on GitHub"):
        tool.set_repository(name, clone)
    assert [path.read_text() for path in _files(clone)] == before
