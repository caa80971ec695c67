"""`ellama merge` killed at any moment writes a whole checkpoint or none, and in the end the same one."""

import random
import shutil
import time

import pytest
from directory_contents import contents
from verb_driver import Driver, kill_until_it_ends

from ellama_jax.core.tree import flatten_paths
from ellama_jax.experiments.demo import make_tiny_base
from ellama_jax.model.llama import init_params
from ellama_jax.weights.checkpoint import restore_params, write_checkpoint
from ellama_jax.weights.layout import find_checkpoint

KILLS = 12
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and a model trained from it, by name."""
    root = tmp_path_factory.mktemp("models")
    make_tiny_base(root / "base", ["red lamp oak table"] * 50, seed=0)
    info = find_checkpoint(root / "base")
    write_checkpoint(
        root / "adapted", init_params(info.config, 1), config=info.config, meta=info.meta,
        tokenizer_dir=root / "base" / "tokenizer",
    )  # fmt: skip
    return root


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_killed_at_random_moments_it_ends_bit_for_bit_and_leaves_nothing(models, tmp_path, method):
    out, peace = tmp_path / "place" / "out", tmp_path / "peace" / "out"
    out.parent.mkdir()
    more = ["--density", "0.4"] if method == "ties" else []

    def merge(target):
        words = ["--base", models / "base", "--adapted", models / "adapted", "--alpha", "0.5",
                 "--method", method, *more, "--out", target]  # fmt: skip
        return Driver("ellama_jax.merge.verb", "main_merge", words)

    peace.parent.mkdir()
    driver = merge(peace)
    driver.begin()
    started = time.monotonic()
    driver.succeed()
    secs = time.monotonic() - started
    wanted = flatten_paths(restore_params(find_checkpoint(peace).path))

    def check(ended):
        if not ended:
            assert not out.exists() or whole(out) == whole(peace)
        if out.exists():
            found = flatten_paths(restore_params(find_checkpoint(out).path))
            assert all((found[name] == value).all() for name, value in wanted.items())
        if ended:
            assert whole(out) == whole(peace)
            assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out, ignore_errors=True)

    killed = kill_until_it_ends(lambda: merge(out), KILLS // 2, secs, random.Random(method), check)
    assert killed == KILLS // 2


def whole(root):
    """The names of all files of a checkpoint, but for those of arrays, which carry random ids."""
    return sorted(name for name in contents(root) if "/d/" not in name)
