"""`ellama evaluate` with tasks of lm-eval: the same results from both forms of a checkpoint."""

import argparse
import json
import os
import subprocess
import sys

import lm_eval_cases as cases
import numpy as np
import pytest

pytest.importorskip("torch", reason="lm-eval's own backend runs in torch")
pytest.importorskip("transformers", reason="lm-eval's own backend")

from ellama_jax import cli
from ellama_jax.evaluate import lm_eval_run, scorecard
from ellama_jax.evaluate.lm_eval_model import EllamaLM
from ellama_jax.weights.importer import import_weights

ALL = "local_choice,local_cloze,local_rolling,local_writing"


@pytest.fixture(scope="module")
def places(tmp_path_factory, tokenizer_dir):
    """A Hugging Face directory, its Orbax import and a directory of local tasks."""
    folder = tmp_path_factory.mktemp("run")
    cases.write_model(folder / "hf", tokenizer_dir, bos=True, max_length=256)
    import_weights(folder / "hf", folder / "orbax")
    cases.write_tasks(folder / "tasks")
    return folder


def evaluate(places, checkpoint, out, *options, tasks=ALL):
    """Runs the command; returns what it wrote."""
    cli.main(
        ["evaluate", "--checkpoint", str(places / checkpoint), "--tasks", tasks,
         "--include-path", str(places / "tasks"), "--batch-tokens", "1024", "--bootstrap-iters", "100", "--json", str(out),
         *options]
    )  # fmt: skip
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def results(places):
    return evaluate(places, "hf", places / "hf.json", "--num-fewshot", "1")


def test_results_equal_those_of_lm_evals_own_backend(places, results):
    import lm_eval
    from lm_eval.tasks import TaskManager

    theirs = lm_eval.simple_evaluate(
        model=cases.their_model(places / "hf"),
        tasks=ALL.split(","),
        num_fewshot=1,
        task_manager=TaskManager(include_path=str(places / "tasks")),
        bootstrap_iters=0,
        log_samples=False,
    )
    for task, expected in theirs["results"].items():
        for name, value in expected.items():
            if isinstance(value, float) and "stderr" not in name:
                found = results["results"][task][name]
                np.testing.assert_allclose(found, value, rtol=1e-4, err_msg=f"{task} {name}")
    assert set(results["results"]) == set(ALL.split(","))


def test_the_orbax_import_gives_the_numbers_of_its_source(places, results):
    found = evaluate(places, "orbax", places / "orbax.json", "--num-fewshot", "1")
    assert found["results"] == results["results"]
    assert found["config"]["model_revision"] == "0"


def test_the_file_is_lm_evals_own(results):
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config"} <= set(results)
    assert results["config"]["model"] == "ellama"
    assert results["config"]["model_dtype"] == "float32"
    assert set(results["n-shot"].values()) == {1}
    assert "samples" not in results


def test_more_worked_examples_than_a_task_has_are_refused_by_its_name(places, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(places, "hf", tmp_path / "x.json", "--num-fewshot", "1000", tasks="local_choice")
    said = capsys.readouterr().err
    assert "--num-fewshot: must be at most" in said and "for the task local_choice" in said


def test_limits_and_samples(places, tmp_path):
    out = tmp_path / "some.json"
    found = evaluate(places, "hf", out, "--limit", "2", "--log-samples", tasks="local_choice")
    assert found["n-samples"]["local_choice"] == {"original": 8, "effective": 2}
    lines = (tmp_path / "some.samples_local_choice.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["doc"]["answer"] for sample in samples] == [0, 1]
    assert samples[0]["arguments"][0] == ["Q: Stainless steel water bottle, \nA:", " blue"]


def test_a_chat_template_lays_prompts_out(places, tmp_path):
    out = tmp_path / "chat.json"
    evaluate(
        places, "hf", out, "--apply-chat-template", "--log-samples", "--system-instruction",
        "Be brief.", tasks="local_choice",
    )  # fmt: skip
    (line, *_) = (tmp_path / "chat.samples_local_choice.jsonl").read_text().splitlines()
    prompt = json.loads(line)["arguments"][0][0]
    assert prompt.startswith("<|begin_of_text|>[system] Be brief.<|end_of_text|>\n[user] Q: Stain")
    assert prompt.endswith("A:<|end_of_text|>\n[assistant] ")


def test_kept_responses_are_taken_and_never_those_of_another_model(
    places, tmp_path, results, monkeypatch
):
    cache, asked = str(tmp_path / "cache"), []
    tokens = EllamaLM._loglikelihood_tokens

    def counting(self, requests, **options):
        asked.append(len(requests))
        return tokens(self, requests, **options)

    monkeypatch.setattr(EllamaLM, "_loglikelihood_tokens", counting)
    options = ("--num-fewshot", "1", "--use-cache", cache)
    first = evaluate(places, "hf", tmp_path / "1.json", *options, tasks="local_choice")
    again = evaluate(places, "hf", tmp_path / "2.json", *options, tasks="local_choice")
    assert len(asked) == 1
    assert first["results"] == again["results"]
    assert first["results"]["local_choice"] == results["results"]["local_choice"]
    evaluate(places, "orbax", tmp_path / "3.json", *options, tasks="local_choice")
    assert len(asked) == 2


def said(capsys, *arguments):
    """Returns the one line that a mistaken command ends with."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", *map(str, arguments)])
    assert stopped.value.code == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ellama evaluate:")]
    assert len(lines) == 1
    return lines[0].removeprefix("ellama evaluate: error: ")


def test_a_task_that_does_not_exist_gives_the_nearest_names(places, capsys):
    line = said(capsys, "--checkpoint", places / "hf", "--tasks", "arc_eazy")
    assert line.startswith(
        "--tasks: must be tasks of lm-eval or our own, got arc_eazy; did you mean"
    )
    assert "arc_easy" in line
    line = said(capsys, "--checkpoint", places / "hf", "--tasks", "no such thing at all")
    assert line.endswith("got no such thing at all; `lm_eval ls tasks` lists them.")


def test_a_task_that_needs_a_download_says_so(places, capsys):
    line = said(capsys, "--checkpoint", places / "hf", "--tasks", "arc_easy")
    assert line.startswith(
        "--tasks arc_easy: needs a download that failed, got Couldn't reach 'all"
    )
    assert line.endswith("then HF_HOME holds the data.")


def test_our_own_tasks_are_not_mixed_with_those_of_lm_eval(places, capsys):
    line = said(capsys, "--checkpoint", places / "hf", "--tasks", "mmlu,arc_easy")
    assert line.startswith(
        "--tasks: must be of one kind, got mmlu beside tasks of lm-eval; run them"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--checkpoint", "nowhere"], "checkpoint nowhere: must be a directory, got nothing."),
        (["--include-path", "nowhere"], "--include-path: must be a directory, got nowhere."),
        (
            ["--data", "3", "--fsdp", "-1"],
            "mesh: axis sizes must multiply to the number of devices (8), got data 3 x fsdp -1 x "
            "context 1 x tensor 1; fsdp 8 fits 8 devices. At most one axis may be -1 (all that "
            "remain).",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(places, capsys, arguments, line):
    found = said(
        capsys, "--checkpoint", places / "hf", "--include-path", places / "tasks", "--tasks",
        "local_choice", *arguments,
    )  # fmt: skip
    assert found == line


@pytest.mark.parametrize("count", ["-1", "1.5", "many"])
def test_worked_examples_are_counted(capsys, count):
    with pytest.raises(SystemExit, match="2"):
        lm_eval_run.main_lm_eval(
            ["--checkpoint", "c", "--tasks", "arc_easy", f"--num-fewshot={count}"], ()
        )
    assert f"--num-fewshot: must be a count, 0 or more, got {count}" in capsys.readouterr().err


def test_an_empty_choice_is_said_with_its_context(places, tmp_path, capsys):
    cases.write_tasks(tmp_path / "tasks")
    path = tmp_path / "tasks" / "docs.jsonl"
    first, others = path.read_text().split("\n", 1)
    path.write_text(first + "\n" + others.replace('"solid oak"', '""'))
    yaml = tmp_path / "tasks" / "local_choice.yaml"
    yaml.write_text(yaml.read_text() + "target_delimiter: ''\n")
    line = said(capsys, "--checkpoint", places / "hf", "--tasks", yaml)
    assert line.startswith("continuation: must not be empty, got '' after a context that ends")


def test_a_task_that_lm_eval_cannot_load_is_named(places, tmp_path, capsys):
    cases.write_tasks(tmp_path / "tasks")
    (tmp_path / "tasks" / "docs.jsonl").write_text("")
    yaml = tmp_path / "tasks" / "local_choice.yaml"
    line = said(capsys, "--checkpoint", places / "hf", "--tasks", yaml)
    assert line.startswith("--tasks local_choice: must be a task that lm-eval can load, got ")


def test_a_slip_in_a_name_of_ours_is_said_as_before(capsys):
    line = said(capsys, "--checkpoint", "nowhere", "--tasks", "bits_per_bite")
    assert line == "--tasks: must be known tasks, got bits_per_bite; did you mean bits_per_byte?"


def test_names_of_ours_go_to_lm_eval_only_when_asked():
    assert not lm_eval_run.is_wanted(["--tasks", "mmlu,bits_per_byte"], scorecard.TASKS)
    assert lm_eval_run.is_wanted(["--tasks", "mmlu", "--lm-eval"], scorecard.TASKS)
    assert lm_eval_run.is_wanted(["--checkpoint", "a", "--tasks=hellaswag"], scorecard.TASKS)


def test_tasks_of_a_built_benchmark_are_lm_evals_though_their_names_are_near_ours(places, capsys):
    wanted = ["--tasks", "ellama_price_prediction_de"]
    assert lm_eval_run.is_wanted(wanted, scorecard.TASKS)
    assert lm_eval_run.is_wanted(["--tasks", "mnlu", "--include-path", "a"], scorecard.TASKS)
    line = said(capsys, "--checkpoint", places / "hf", *wanted)
    assert line.endswith("; those of a built benchmark need --include-path BENCHMARK.")


def test_a_limit_is_a_count_or_a_share():
    assert [lm_eval_run._number(text) for text in ("7", "0.25", "2.0")] == [7, 0.25, 2]
    for text in ("0", "-2", "1.5", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a count, or a share"):
            lm_eval_run._number(text)


def test_the_help_of_lm_evals_tasks_is_its_own(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "--lm-eval", "--help"])
    assert stopped.value.code == 0
    assert "--num-fewshot" in capsys.readouterr().out


@pytest.mark.slow
def test_ours_is_known_to_lm_evals_own_command_line(places, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "ellama_jax.evaluate", "--model", "ellama", "--model_args",
         f"checkpoint={places / 'orbax'},batch_tokens=1024", "--include_path",
         str(places / "tasks"), "--tasks", "local_choice,local_writing", "--limit", "3",
         "--output_path", str(tmp_path / "out.json")],
        env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    (written,) = tmp_path.glob("out_*.json")
    found = json.loads(written.read_text())
    assert set(found["results"]) == {"local_choice", "local_writing"}
    assert found["config"]["model"] == "ellama"


@pytest.mark.slow
def test_a_mistake_in_lm_evals_own_command_line_is_one_line(places):
    ran = subprocess.run(
        [sys.executable, "-m", "ellama_jax.evaluate", "--model", "ellama", "--model_args",
         "checkpoint=/no/such", "--include_path", str(places / "tasks"), "--tasks", "local_choice"],
        env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2
    said = "ellama_jax.evaluate: error: checkpoint /no/such: must be a directory, got nothing."
    assert ran.stderr.splitlines()[-1] == said and "Traceback" not in ran.stderr


def test_lm_eval_is_imported_only_where_it_is_needed():
    code = (
        "import sys; from ellama_jax.evaluate import scorecard, generation;"
        "assert not {'lm_eval', 'datasets', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
