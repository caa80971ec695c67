"""Progress without a terminal: plain lines, few of them."""

from ellama_jax.core import progress as module
from ellama_jax.core.progress import progress


def test_one_line_at_the_end_when_the_work_is_short(capsys):
    with progress("packing", total=3, unit="docs") as bar:
        for _ in range(3):
            bar.update(1)
        bar.note(loss=1.23456, source="web")
    assert capsys.readouterr().err == "packing: 3/3 docs, 0 s loss=1.235 source=web\n"


def test_long_work_says_where_it_is_and_no_line_comes_twice(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECS_BETWEEN_LINES", 0.0)
    with progress("packing", total=2, unit="docs") as bar:
        bar.update(1)
        bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["packing: 1/2 docs, 0 s", "packing: 2/2 docs, 0 s"]


def test_the_last_line_comes_even_when_the_work_fails(capsys):
    try:
        with progress("packing", total=5, unit="docs") as bar:
            bar.update(2)
            raise KeyError
    except KeyError:
        pass
    assert "packing: 2/5 docs" in capsys.readouterr().err
