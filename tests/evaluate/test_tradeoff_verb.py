"""`ellama merge-sweep` as it is called: options, files, steps of a run, mistakes."""

import json
import shutil

import pytest

from ellama_jax.config import configs_dir
from ellama_jax.corpus import catalogue, listings
from ellama_jax.evaluate import benchmark
from ellama_jax.merge import tradeoff, tradeoff_verb
from ellama_jax.merge.tradeoff_verb import main_merge_sweep, parse_alphas, split_texts
from ellama_jax.weights.layout import find_checkpoint

RECORDS = list(catalogue.generate_listings(0, 15))
NOTHING = {"checkpoint": None}
TEXTS = [listings.listing_to_text_record(record, seed=0) for record in RECORDS]


@pytest.fixture(scope="module")
def place(checkpoints, tmp_path_factory):
    """A directory with a benchmark, texts, and a run of three steps: base, adapted, adapted."""
    folder = tmp_path_factory.mktemp("verb")
    source = folder / "catalogue.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    bench = ["--heldout-frac", "0.6", "--validation-frac", "0.5"]
    benchmark.main_build_benchmark([str(source), str(folder / "bench"), *bench])
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    run = folder / "run"
    shutil.copytree(checkpoints["adapted"] / "tokenizer", run / "tokenizer")
    for step, name in ((10, "base"), (20, "adapted"), (40, "adapted")):
        shutil.copytree(checkpoints[name] / "0", run / str(step))
    return folder


@pytest.fixture
def call(place, checkpoints, tmp_path):
    """Calls the verb with e-commerce questions, two a task; returns sweep.json."""

    def call(*changes, adapted=(checkpoints["adapted"],)):
        argv = ["--base", checkpoints["base"], "--adapted", *adapted, "--workdir", tmp_path / "out",
                "--tasks", "ecommerce", "--benchmark", place / "bench", "--limit", 1, *changes]  # fmt: skip
        main_merge_sweep([str(word) for word in argv])
        return json.loads((tmp_path / "out" / "sweep.json").read_text())

    return call


def names_of(cards):
    return {name for card in cards for row in card["results"] for name in row["ids"]}


def test_the_verb_writes_every_file_and_says_what_to_do(call, place, tmp_path, capsys):
    texts = ["--tasks", "ecommerce,bits_per_byte", "--texts", place / "texts.jsonl"]
    found = call("--alphas", "0,1", "--profiles", "early", "--line", 3, *texts)
    files = {path.name for path in (tmp_path / "out").iterdir()} - {"merged"}
    assert files == {"sweep.json", "sweep.md", "sweep.svg", "sweep.png", "sweep-points"}
    said = capsys.readouterr().out
    assert found["sentence"] in said and found["rule"] in said and "chosen model: " in said
    assert found["sentence"] in (tmp_path / "out" / "sweep.md").read_text()
    assert found["command"].startswith("ellama merge-sweep --base")
    assert [point["alpha"] for point in found["profiles"]["early"]] == [1.0]
    assert set(found["line"]["domains"]) == {"ecommerce"}


def test_no_question_both_chooses_and_reports(call, place):
    texts = ["--tasks", "ecommerce,bits_per_byte", "--texts", place / "texts.jsonl"]
    found = call("--alphas", "0,1", "--no-checkpoint", *texts)
    chose = names_of(point["scorecard"] for point in found["alphas"])
    told = names_of(found["test"]["scorecards"].values())
    assert chose and told and not chose & told
    assert found["checkpoint"] is None


def test_points_are_added_up_to_the_number_asked_for(call):
    found = call("--max-points", 4, "--no-test", "--no-checkpoint")
    alphas = [point["alpha"] for point in found["alphas"]]
    # From three first ones, thinned out of five, to a fourth in the middle of two of them.
    assert len(alphas) == 4 and {0.0, 1.0} < set(alphas) and found["test"] is None


def test_extrapolation_tries_alphas_above_1_and_may_name_any(call):
    found = call("--extrapolate", "--max-points", 2, "--no-test", "--no-checkpoint")
    assert [point["alpha"] for point in found["alphas"]] == [0.0, 1.5]
    found = call("--extrapolate", "--alphas=-0.5,1", "--no-test", "--no-checkpoint")
    assert [point["alpha"] for point in found["alphas"]] == [-0.5, 0.0, 1.0]


def test_steps_of_a_run_are_scored_beside_one_base_each_loaded_once(
    call, place, monkeypatch, checkpoints
):
    loaded = []

    def note(name):
        original = getattr(tradeoff, name)

        def load(*args, **options):
            loaded.append(f"{name} {args[1].step}")
            return original(*args, **options)

        monkeypatch.setattr(tradeoff, name, load)

    for name in ("load_pair", "replace_adapted"):
        note(name)
    run = [place / "run"]
    argv = ["--steps", "all", "--alphas", "0,0.5,1", "--no-test", "--no-checkpoint"]
    found = call(*argv, adapted=run)
    assert [entry["step"] for entry in found["steps"]] == [10, 20, 40]
    # Step 10 is a copy of the base, 40 one of 20, whose points are taken.
    assert loaded == ["load_pair 10", "replace_adapted 20"]
    by_step = {entry["step"]: entry["points"] for entry in found["steps"]}
    # The curve is the last step's.
    means = {step: [point["ecommerce"] for point in points] for step, points in by_step.items()}
    assert len(set(means[10])) == 1 and means[20] == means[40] != means[10]
    assert [point["ecommerce"] for point in found["alphas"]] == means[40]
    listed = call(
        "--alphas", "0,0.5,1", "--no-test", "--no-checkpoint",
        adapted=[place / "run" / "40", place / "run" / "10", place / "run" / "20"],
    )  # fmt: skip
    assert listed["steps"] == found["steps"]


def test_a_chosen_step_is_the_one_that_is_written(call, place, monkeypatch):
    def take(points, rule):
        return next(p for p in points if p["step"] == 20 and p["alpha"] == 0.5)

    monkeypatch.setattr(tradeoff, "choose", take)
    found = call("--steps", "20,40", "--alphas", "0,0.5", adapted=[place / "run"])
    assert (found["chosen"], found["chosen_step"]) == (0.5, 20)
    assert found["checkpoint"].endswith("merged/0") and "of step 20" in found["sentence"]
    sources = find_checkpoint(found["checkpoint"]).meta["provenance"]["sources"]
    assert [source["step"] for source in sources] == [0, 20]


def test_a_configuration_gives_the_first_alphas_and_the_rule(call, monkeypatch):
    seen = []
    monkeypatch.setattr(
        tradeoff_verb, "sweep", lambda *args, **options: seen.append(args[4]) or NOTHING
    )
    monkeypatch.setattr(tradeoff_verb, "write_words_and_plot", lambda *args: None)
    monkeypatch.setattr(tradeoff_verb, "format_sweep", lambda found: "")
    argv = [
        "--config",
        f"{configs_dir()}/demo.py:tiny",
        "--config.evaluate.sweep.general_mean=-0.02",
    ]
    with pytest.raises(FileNotFoundError):  # nothing was written: only the plan is of interest
        call(*argv, "--standard-errors", 0)
    plan = seen[0]
    assert plan.alphas == (0.0, 0.5, 1.0) and plan.adaptive
    assert plan.rule == tradeoff.SweepConfig(max_points=5, general_mean=-0.02, standard_errors=0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--alphas", "0;1"], "--alphas: must be numbers and commas, got 0;1"),
        (["--alphas", "0,1", "--max-points", 5], "--max-points: must not stand beside --alphas"),
        (["--alphas", "0,2"], "alpha: must be from 0 .* got 2; pass --extrapolate"),
        (["--alphas", "0"], "--alphas: must name an alpha beside 0"),
        (["--max-points", 1], "--max-points: must be at least 2"),
        (["--profiles", "erly"], "--profiles: must be known profiles or all, got erly; .* early?"),
        (["--general-mean", "1"], r"--general-mean: must lie in \(-1, 0\], .*got 1.0"),
        (["--limit", "0"], "--limit: must be at least 1, got 0"),
        (["--steps", "10"], "--steps: must be complete steps of .*adapted .0., got 10"),
        (["--steps", "ten"], "--steps: must be all or numbers and commas, got ten"),
        (["--line", "5"], "--line: must have validation texts to score, got none; add bits_per"),
        (["--tasks", "bits_per_byte"], "--texts: must name held-out texts"),
        (["--no-test", "--test-texts", "t"], "--test-texts: must not stand beside --no-test, got t"),
        (["--mesh", "depth=2"], "--mesh: must be axes as fsdp=4,tensor=2, got depth=2"),
        (["--best-by", "bits_per_byte"], "needs e-commerce texts to choose by, got none"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_before_anything_is_loaded(
    call, monkeypatch, options, words, tmp_path
):
    monkeypatch.setattr(tradeoff, "load_pair", lambda *args, **more: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=words):
        call(*options)
    assert not (tmp_path / "out").exists()


def test_several_adapted_models_must_be_different_steps(call, place, checkpoints):
    with pytest.raises(ValueError, match="--steps: must stand beside one --adapted, got 2"):
        call("--steps", "all", adapted=[place / "run", checkpoints["adapted"]])
    with pytest.raises(ValueError, match="--adapted: must differ, got"):
        call(adapted=[place / "run", place / "run"])
    with pytest.raises(ValueError, match="--adapted: must be different steps .* got steps 40, 40"):
        call(adapted=[place / "run", place / "run" / "40"])


@pytest.mark.parametrize(
    ("frac", "words"),
    [
        (
            0.0,
            "must hold validation items, got none in .*; build it with a --validation-frac above",
        ),
        (
            0.999,
            "must hold test items, got none in .*; build it with a smaller --validation-frac, or",
        ),
    ],
)
def test_a_benchmark_without_one_of_the_splits_is_refused(call, place, tmp_path, frac, words):
    bench = tmp_path / "bench"
    argv = [str(place / "catalogue.jsonl"), str(bench), "--heldout-frac", "0.6"]
    benchmark.main_build_benchmark([*argv, "--validation-frac", str(frac)])
    with pytest.raises(ValueError, match=words):
        call("--benchmark", bench)


def test_texts_fall_on_one_side_whatever_stands_beside_them():
    parts = split_texts(TEXTS)
    assert len(parts["validation"]) + len(parts["test"]) == len(TEXTS)
    assert all(len(part) > len(TEXTS) / 5 for part in parts.values())
    assert split_texts(TEXTS[3:5])["test"] == [text for text in TEXTS[3:5] if text in parts["test"]]


def test_alphas_are_numbers():
    assert parse_alphas("0,0.5, 1") == [0.0, 0.5, 1.0]
