"""What benchmarks do besides measuring: rows added to a file, names read from a compiled program."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "tools" / "benchmarks"
HLO = """\
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %mul = f32[2]{0} multiply(%p, %p), metadata={op_name="jit(train_step)/jvp()/mul"}
}

%body (q: (s32[], f32[2])) -> (s32[], f32[2]) {
  %q = (s32[], f32[2]{0}) parameter(0)
  %dot = f32[2]{0} dot(%q, %q), metadata={op_name="jit(train_step)/transpose(jvp())/while/dot"}
  %copy.1 = f32[2]{0} copy(%dot)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %fusion.1 = f32[2]{0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %while.1 = (s32[], /*index=1*/f32[2]{0}) while(%t), body=%body
}
"""


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("results", "profile_table", "evaluation"):
        sys.modules.pop(name, None)


def test_rows_go_to_the_end_of_their_own_table(benchmark_modules, tmp_path):
    from results import append_rows

    file = tmp_path / "RESULTS.md"
    file.write_text("# Results\n\n### A\n\n| x |\n|---|\n| 1 |\n\nText.\n\n| y |\n|---|\n| 9 |\n")
    append_rows(file, "A", [{"x": "2"}])
    append_rows(file, "B", [{"z": "3"}])
    append_rows(file, "B", [{"z": "4"}])
    assert file.read_text() == (
        "# Results\n\n### A\n\n| x |\n|---|\n| 1 |\n| 2 |\n\nText.\n\n| y |\n|---|\n| 9 |\n"
        "\n### B\n\n| z |\n|---|\n| 3 |\n| 4 |\n"
    )


def test_a_table_of_other_columns_is_refused(benchmark_modules, tmp_path):
    from results import append_rows

    file = tmp_path / "RESULTS.md"
    file.write_text("### A\n\n| x |\n|---|\n| 1 |\n")
    with pytest.raises(ValueError, match=r"must have the columns \| y \|, got \| x \|"):
        append_rows(file, "A", [{"y": "2"}])


def test_unnamed_instructions_belong_to_what_is_in_or_around_them(benchmark_modules):
    from profile_table import phase_of, read_names

    names, opcodes = read_names(HLO)
    assert opcodes["while.1"] == "while"
    assert phase_of(names["fusion.1"]) == "forward and loss"  # by what it fuses
    assert phase_of(names["copy.1"]) == "backward"  # by the loop body it stands in
    assert phase_of(names["while.1"]) == "update and the rest"


def test_answers_of_two_backends_are_compared_in_words(benchmark_modules):
    from evaluation import compare

    ours = [(-1.0, True), (-2.0, False), (-3.0, False), (-4.0, False)]
    theirs = [(-2.5, True), (-2.0, True), (-3.0, False), (-4.0, False)]
    assert compare("loglikelihood", ours, theirs) == (
        "largest difference 1.5e+00 nats, 3 of 4 greedy flags and 0 of 1 choices equal"
    )
    assert compare("loglikelihood_rolling", [-1.0, -2.0], [-1.0, -2.5]) == (
        "largest difference 5.0e-01 nats"
    )
    assert compare("generate_until", ["a", "b"], ["a", "c"]) == "1 of 2 texts equal"
