"""`ellama plan` as a user calls it, on fake devices."""

import json
import math
import re

import pytest

from ellama_jax import cli

TINY = [
    "--config=configs/ellama.py", "--config.model.preset=tiny", "--config.data.seq_len=64",
    "--config.data.global_batch_size=4", "--config.train.steps=2000",
]  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """One plan for two fake devices: what was printed, the JSON, and the directory of texts."""
    folder = tmp_path_factory.mktemp("plan")
    argv = ["plan", *TINY, "--topology", "cpu-2", "--json", str(folder / "plan.json")]
    printed = pytest.MonkeyPatch()
    lines = []
    with printed.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(words)))
        cli.main([*argv, "--text-dir", str(folder), "--config.mesh.fsdp=2", "--price", "2"])
    return "\n".join(lines), json.loads((folder / "plan.json").read_text()), folder


def test_a_plan_prints_a_block_and_calls_its_bounds_bounds(planned):
    text, data, _ = planned
    assert text.startswith("plan: ") or "cpu-2  2 x cpu" in text
    for label in ("model", "step", "mesh", "fits", "memory", "FLOPs", "traffic", "network", "run"):
        assert re.search(rf"^{label} +\S", text, re.M), label
    assert "Bounds are not promises" in text


def test_the_json_says_what_was_planned_by_what(planned):
    _, data, _ = planned
    assert data["format"] == 1
    assert data["command"].startswith("ellama plan --config=configs/ellama.py")
    assert data["config"]["model"]["preset"] == "tiny"
    assert data["versions"]["jax"]
    (plan,) = data["plans"]
    assert plan["outcome"] == "compiled" and plan["target"] == "cpu-2"
    assert plan["step"]["mesh"] == {"data": 1, "fsdp": 2, "context": 1, "tensor": 1}
    assert plan["step"]["tokens"] == 256 and plan["run"]["tokens"] == 256 * 2000
    # Nobody knows the peaks of fake devices, and nothing is made up for them.
    assert plan["limit_bytes"] is None and plan["roofline"] is None
    assert plan["run"]["bound"] is None and plan["run"]["price_usd_per_chip_hour"] == 2


def test_memory_and_flops_are_those_of_the_step(planned):
    (plan,) = planned[1]["plans"]
    memory = plan["memory"]
    # float32: 4 bytes a parameter, 8 of moments; norms are whole on both devices.
    assert memory["params_bytes"] == pytest.approx(plan["num_params"] * 4 / 2, rel=0.01)
    assert memory["optimizer_bytes"] == pytest.approx(2 * memory["params_bytes"], rel=0.01)
    saved = plan["checkpoint"]
    assert saved["bytes"] == pytest.approx(12 * plan["num_params"], abs=8) and saved["hosts"] == 1
    assert saved["secs"] == pytest.approx(saved["bytes"] / 1e9)
    model = plan["model_flops"]["total_per_token"] * plan["step"]["tokens"]
    compiled = plan["flops"]["total"] * plan["num_devices"]
    assert 1.0 < compiled / model < 3.0
    kinds = {item["kind"] for item in plan["collectives"]}
    assert kinds and all(item["axes"] == ["fsdp"] for item in plan["collectives"])
    assert math.isfinite(plan["traffic"]["hbm_bytes"]) and plan["traffic"]["hbm_bytes"] > 0


def test_the_compiled_text_is_kept_where_asked(planned):
    _, data, folder = planned
    (text,) = folder.glob("ellama-plan-cpu-2-*.txt")
    assert data["plans"][0]["text_path"] == str(text)
    assert text.read_text().startswith("HloModule")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--topology: must name one or more, as v5p-128,v6e-256, got none."),
        (["--topology", "v5p-9"], "nearest: v5p-8 and v5p-16"),
        (["--topology", "cpu-2", "--price", "-3"], "--price: must be US dollars"),
        (["--topology", "cpu-2", "--mfu", "40"], "--mfu: must lie in (0, 1]"),
        (["--topology", "cpu-2", "--json", "nowhere/plan.json"], "got nowhere; make it first"),
        (["--topology", "cpu-2", "--json", "."], "--json: must be a file, got the directory"),
        (["--topology", "cpu-2", "--text-dir", "nowhere"], "--text-dir: must lie in a directory"),
        (["--topology", "cpu-2", "--search", "--max-compiles", "0"], "--max-compiles: must be"),
        (["--topology", "cpu-3"], "must divide embed (64), got 3; "),
        (["--topology", "cpu-2", "--config.mesh.fsdp=4"], "fsdp 2 fits 2 devices"),
        (["--topology", "cpu-2", "--config.mesh.fsdq=4"], "fsdp"),
        (["--topology", "cpu-2", "--config.model.preset=tinny"], "did you mean tiny?"),
        (["--topology", "cpu-2", "--config.model.attention.kernel=splash"], "splash needs a TPU"),
        (["--topology", "v5p-8", "--config.model.attention.kernel=mosaic"], "use auto, triton or"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_compiled(argv, said, capfd, monkeypatch):
    def compiled(*_):
        raise AssertionError("a compiler was started")

    monkeypatch.setattr("ellama_jax.plan.compile._run", compiled)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *TINY, *argv])
    (line,) = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.startswith("ellama plan: error: ") and said in line


def test_a_compiler_that_fails_is_reported_with_its_first_line(capfd, monkeypatch, tmp_path):
    def failed(arguments, log, environment, on_phase):
        log.write_text("INTERNAL: something broke\n")
        return 1

    monkeypatch.setattr("ellama_jax.plan.compile._run", failed)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *TINY, "--topology", "cpu-2", "--text-dir", str(tmp_path)])
    captured = capfd.readouterr()
    (text,) = tmp_path.glob("*.txt")
    assert stop.value.code == 2
    assert f"INTERNAL: something broke (full text: {text})" in captured.err
    assert text.read_text() == "INTERNAL: something broke\n"


def test_gpus_that_are_not_here_are_said_to_be_missing(capfd):
    with pytest.raises(SystemExit):
        cli.main(["plan", *TINY, "--topology", "gpu"])
    assert "topology: gpu needs a GPU in this machine" in capfd.readouterr().err
