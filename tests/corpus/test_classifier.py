"""The e-commerce classifier: seeds that are refused, a split that does not leak, files, scores."""

import json
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ellama_jax import cli
from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.classifier import (
    build_classifier,
    choose_threshold,
    even_precision,
    fit_classifier,
    load_classifier,
    save_classifier,
    train_classifier,
    visible_text,
)
from ellama_jax.corpus.classifier_report import report_of
from ellama_jax.corpus.classifier_seeds import (
    MIN_DOCUMENTS,
    Seed,
    deal_sources,
    read_seeds,
    split_seeds,
)
from ellama_jax.corpus.listings import listing_to_document
from ellama_jax.experiments.general_text import generate_general_documents

RECORDS = Path(__file__).resolve().parents[3] / "shared" / "data"


def records(languages=("en", "de"), count=60):
    """Returns synthetic listings and statements; enough to fit, too alike to prove anything."""
    rows = []
    for one in generate_listings(0, count, languages):
        rows.append({"text": listing_to_document(one, seed=0), "language": one["language"],
                     "label": "ecommerce", "product_id": one["product_id"]})  # fmt: skip
    rows += generate_general_documents(0, count, languages)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    seeds = write(folder / "seeds.jsonl", records())
    report = build_classifier([seeds], folder / "model", seed=3, command="ellama build-classifier")
    return folder, report


def test_domain_stands_for_label_and_texts_count_once(tmp_path):
    rows = records()
    path = write(tmp_path / "seeds.jsonl", [*rows, {**rows[0], "text": f" {rows[0]['text']}\n"}])
    seeds, repeated = read_seeds([path])
    assert repeated == 1 and len(seeds) == len(rows)
    assert {seed.label for seed in seeds} == {"ecommerce", "other"}
    assert seeds[0].group == rows[0]["product_id"] and seeds[-1].group == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', ":241: must be a line of JSON in UTF-8"),
        ("[1]", ":241: must be a JSON object, got list"),
        ('{"text": " ", "language": "en", "label": "other"}', "text must be a text that is not empty"),
        ('{"text": "a", "language": 7, "label": "other"}', "language must be a text"),
        ('{"text": "a", "language": "en", "label": "spam"}', "got 'spam'"),
        ('{"text": "a", "language": "en"}', "label must be ecommerce or other"),
        ('{"text": "a b c", "language": "fr", "label": "other"}', "got 0 of other in fr|got 1 of other"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "seeds.jsonl", records())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_seeds([path])


def test_broken_utf8_is_named(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(b'{"text": "\xff", "language": "en", "label": "other"}\n')
    with pytest.raises(ValueError, match="seeds.jsonl:1: must be a line of JSON in UTF-8"):
        read_seeds([path])


def test_a_text_with_two_labels_is_refused(tmp_path):
    rows = records()
    path = write(tmp_path / "seeds.jsonl", [*rows, {**rows[0], "label": "other"}])
    with pytest.raises(
        ValueError, match=r":241: a text must have one label, .* at .*seeds.jsonl:1\."
    ):
        read_seeds([path])


def test_too_few_documents_of_a_language_and_label_are_refused(tmp_path):
    rows = [row for row in records() if row["language"] == "de" or "label" in row]
    with pytest.raises(ValueError, match=f"at least {MIN_DOCUMENTS} .*, got 0 of other in en"):
        read_seeds([write(tmp_path / "one-label.jsonl", rows)])
    with pytest.raises(ValueError, match="must hold labelled documents, got none"):
        read_seeds([write(tmp_path / "empty.jsonl", [])])


def test_no_group_and_no_near_duplicate_straddles_the_splits():
    words = [f"w{number}" for number in range(400)]
    rng = random.Random(0)
    seeds = []
    for number in range(90):
        text = " ".join(rng.choices(words, k=60))
        group = f"p{number // 2}" if number < 60 else ""
        seeds.append(Seed(text, "en", ("other", "ecommerce")[number // 2 % 2], group))
        if number >= 60:  # a near-duplicate without a group of its own
            seeds.append(Seed(text + " more", "en", seeds[-1].label, ""))
    splits = split_seeds(seeds, seed=0)
    assert sum(map(len, splits.values())) == len(seeds)
    places = {}
    for name, part in splits.items():
        for one in part:
            places.setdefault(one.group or one.text.removesuffix(" more"), set()).add(name)
    assert all(len(names) == 1 for names in places.values())
    assert len(places) == 60
    shuffled = rng.sample(seeds, len(seeds))
    assert {n: set(p) for n, p in split_seeds(shuffled, 0).items()} == {
        n: set(p) for n, p in splits.items()
    }
    assert split_seeds(seeds, seed=1) != splits


def test_one_group_cannot_be_split():
    seeds = [
        Seed(f"{label} text {n} {n * 7} {n * 11}", "en", label, label)
        for label in ("other", "ecommerce") for n in range(50)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="of enough different groups for three splits"):
        split_seeds(seeds, 0)


def test_our_own_labels_and_the_numbers_are_not_seen():
    assert visible_text("Titre : Lampe 40 cm\nPrix : 12,99 €") == "lampe 00 cm\n00,00 €"
    assert visible_text("Price: 12 for each") == visible_text("34 for each") == "00 for each"


def test_thresholds_are_those_of_even_classes():
    scores = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.3])
    labels = np.array([1, 1, 0, 1, 1, 0, 0])
    assert even_precision(scores >= 0.85, labels) == pytest.approx((2 / 4) / (2 / 4 + 1 / 3))
    assert choose_threshold(scores, labels, 0.95) == 0.9
    assert choose_threshold(scores, labels, 0.74) == 0.7
    assert choose_threshold(np.array([0.1, 0.2]), np.array([0, 1]), 0.95) == 0.5


def test_a_model_is_saved_without_pickle_and_loads_the_same(built):
    folder, report = built
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "model.json", "report.html", "report.json", "weights.npz",
    ]  # fmt: skip
    model = load_classifier(folder / "model")
    texts = [row["text"] for row in records(("fr",), 5)]
    scores = model.scores(texts)
    assert scores.dtype == np.float32 and scores.shape == (10,)
    assert (scores[:5] > 0.5).all() and (scores[5:] < 0.5).all()  # in a language it never saw
    assert np.array_equal(scores, [model.scores([text])[0] for text in texts])
    assert np.array_equal(scores, pickle.loads(pickle.dumps(model)).scores(texts))
    assert model.scores([]).shape == (0,)
    assert set(model.thresholds) == {"de", "en"} and model.threshold("sv") >= 0.5
    assert report == json.loads((folder / "model/report.json").read_text())


def test_the_report_says_what_was_measured(built):
    folder, report = built
    part = report["same_source"]
    assert [row["language"] for row in part["languages"]] == ["de", "en"]
    assert sum(report["documents"].values()) == 240
    overall = part["overall"]
    assert overall["ecommerce"] + overall["other"] == report["documents"]["test"]
    assert (
        sum(row["documents"] for row in part["calibration"]["bins"]) == report["documents"]["test"]
    )
    page = (folder / "model/report.html").read_text()
    assert page.count("<svg") == 2 and "<td>de</td>" in page and "http" not in page


def test_the_same_seeds_give_the_same_bytes_in_any_order_and_process(built):
    folder, _ = built
    rows = records()
    random.Random(1).shuffle(rows)
    path = write(folder / "shuffled.jsonl", rows)
    code = (
        "import sys; from ellama_jax.corpus.classifier import build_classifier; "
        "build_classifier([sys.argv[1]], sys.argv[2], seed=3)"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(folder / "again")], check=True)
    for name in ("model.json", "weights.npz"):
        assert (folder / "model" / name).read_bytes() == (folder / "again" / name).read_bytes()


def test_a_damaged_or_foreign_model_is_refused(built, tmp_path):
    model = load_classifier(built[0] / "model")
    save_classifier(tmp_path, model)
    packed = bytearray((tmp_path / "weights.npz").read_bytes())
    packed[len(packed) // 2] ^= 1
    (tmp_path / "weights.npz").write_bytes(packed)
    with pytest.raises(ValueError, match="must hold a whole classifier .* weights of another hash"):
        load_classifier(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="got format 99; build it again"):
        load_classifier(tmp_path)
    with pytest.raises(OSError):
        load_classifier(tmp_path / "none")


def test_a_target_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="target_precision: must be from 0.5 to below 1, got 1.5"):
        train_classifier({}, target_precision=1.5)


def test_the_verb_builds_and_a_mistake_writes_nothing(built, tmp_path, capsys):
    folder, _ = built
    seeds = str(folder / "seeds.jsonl")
    cli.main(["build-classifier", seeds, str(tmp_path / "model")])
    said = capsys.readouterr().out
    assert "same sources, de: threshold 0." in said and "precision 1.000" in said
    assert said.startswith("out of source: not measured")
    with pytest.raises(SystemExit) as stop:
        cli.main(["build-classifier", seeds, str(tmp_path / "model")])
    assert stop.value.code == 2 and "must not exist yet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["build-classifier", seeds, str(tmp_path / "other"), "--target-precision", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_real_titles_and_real_questions_are_told_apart():
    """Trained on other documents of the same sources; the benchmark holds whole sources out."""
    seeds = []
    for name, key, label in (
        ("oa-mine_train_en", "title", "ecommerce"),
        ("mgsm_en", "question", "other"),
    ):
        path = RECORDS / f"{name}.jsonl"
        if not path.exists():
            pytest.skip(f"no real records beside this checkout ({path.name})")
        lines = path.read_text(encoding="utf-8").splitlines()[:250]
        seeds += [Seed(json.loads(line)[key], "en", label, "") for line in lines]
    splits = split_seeds(seeds, 0)
    model = train_classifier(splits)
    for one, score in zip(
        splits["test"], model.scores([s.text for s in splits["test"]]), strict=True
    ):
        assert (score >= model.threshold("en")) == (one.label == "ecommerce")


def sourced(count=60):
    rows = records(("en", "de"), count)
    return [
        Seed(row["text"], row["language"], "ecommerce" if "label" in row else "other", "",
             f"{row.get('label', 'other')}-{number % 3}")
        for number, row in enumerate(rows)
    ]  # fmt: skip


def test_sources_are_dealt_whole_and_each_model_keeps_both_labels():
    seeds = sourced()
    folds = deal_sources(seeds)
    by_source = {}
    for one, fold in zip(seeds, folds, strict=True):
        by_source.setdefault(one.source, set()).add(int(fold))
    assert all(len(found) == 1 for found in by_source.values())
    for label in ("other", "ecommerce"):
        assert len({min(v) for k, v in by_source.items() if k.startswith(label)}) == 3
    assert (folds >= 0).all()
    assert deal_sources([replace(one, source=one.label) for one in seeds]) is None
    assert deal_sources([replace(one, source="") for one in seeds]) is None


def test_a_cell_of_one_source_is_not_judged_and_its_source_is_still_left_out():
    seeds = [
        replace(one, source="other-0") if (one.language, one.label) == ("de", "other") else one
        for one in sourced()
    ]
    folds = deal_sources(seeds)
    alone = [(one.language, one.label) == ("de", "other") for one in seeds]
    assert ((folds < 0) == alone).all()
    english = {int(f) for one, f in zip(seeds, folds, strict=True)
               if one.source == "other-0" and one.language == "en"}  # fmt: skip
    assert {-1 - int(f) for f in folds[folds < 0]} == english


def test_thresholds_come_from_sources_the_judging_model_never_saw():
    """A source of sums about buying looks like a shop: seen, it is told apart; unseen, it is not."""
    rng = random.Random(0)
    goods = ["kettle", "lamp", "backpack", "mug", "tent", "chair"]
    seeds = []
    for number in range(240):
        thing = goods[number % 6]
        tail = " ".join(rng.choices(goods, k=4)) + f" {rng.random():.4f}"
        seeds += [
            Seed(f"{thing} {tail} for $ 5, free shipping", "en", "ecommerce", "", f"s{number % 3}"),
            Seed(f"anna had {tail} and the sea, she slept", "en", "other", "", f"o{number % 2}"),
        ]
        if number % 2:
            seeds.append(
                Seed(f"how much is a {thing} {tail} for $ 5, bill?", "en", "other", "", "sums")
            )
    splits = split_seeds(seeds, 0)
    model, unseen = fit_classifier(splits)
    without, none = fit_classifier(
        {name: [replace(one, source="") for one in part] for name, part in splits.items()}
    )
    assert none is None
    assert {one.source for one in unseen.seeds} == {one.source for one in seeds}
    assert model.threshold("en") == without.threshold("en") == 0.5
    # The logit that is needed for a score of 0.5.
    assert -model.shift / model.slope > 3 > 0 > -without.shift / without.slope
    part = report_of(model, splits, unseen)
    assert part["out_of_source"]["overall"]["auc"] < part["same_source"]["overall"]["auc"] == 1.0


def test_weights_make_every_source_count_alike():
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.7, 0.6])
    labels = np.array([1, 1, 0, 0, 0, 1])
    weights = np.array([1, 1, 0.01, 0.01, 0.01, 1])
    assert even_precision(scores >= 0.7, labels, weights) == pytest.approx((2 / 3) / (2 / 3 + 1))
    weights = np.array([1, 1, 0.01, 0.01, 0.98, 1])
    scores[4] = 0.1
    assert choose_threshold(scores, labels, 0.95, weights) == 0.5
    assert choose_threshold(scores, labels, 0.95) == 0.8
