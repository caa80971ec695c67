"""How well the e-commerce classifier tells real text apart, on documents of sources it never saw.

    python tools/benchmarks/classifier.py --cache /tmp/real --records ../shared/data

fetches the seeds by the machine's package clients (real_texts.py), and prints two tables. *Held-out
documents*: trained and tested on all sources, split by group, after the cross-validation by source
that the build makes itself. *Held-out sources*: four models, each trained and calibrated without one
kind of shop text and one of other text; what it takes of those for e-commerce at its own
thresholds. The last is the honest figure.
"""

import argparse
import hashlib
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from real_texts import LANGUAGES, load_real_texts
from sklearn.metrics import roc_auc_score

from ellama_jax.corpus.catalogue import generate_listings
from ellama_jax.corpus.classifier import fit_classifier, train_classifier
from ellama_jax.corpus.classifier_report import report_of
from ellama_jax.corpus.classifier_seeds import Seed, split_seeds
from ellama_jax.corpus.listings import listing_to_document
from ellama_jax.experiments.general_text import generate_general_documents

# Sources held out together: one kind of shop text and one of other text, so that every test
# compares two kinds that the model never saw; what two packages of one project say alike is one.
FOLDS = (
    ("taxonomy", "libreoffice-help"),
    ("dummyjson", "debian-reference", "installation-guide"),
    ("ae-110k", "oa-mine", "mgsm"),
    ("magento", "magento-reviews", "udhr", "xcopa", "mmlu"),
)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--most", type=int, default=100, help="documents a source and language")
    parser.add_argument("--seeds-out", type=Path, help="write the seeds as JSONL and stop")
    args = parser.parse_args()
    pool = pick(load_real_texts(args.cache, args.records), args.most)
    made = synthetic()
    if args.seeds_out:
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in [*pool, *made]]
        args.seeds_out.write_text("".join(lines), encoding="utf-8")
        return
    held_out_documents([*pool, *made])
    held_out_sources(pool, made)


def pick(records: list[dict], most: int) -> list[dict]:
    """Returns at most `most` documents of each source and language, whole groups where possible."""
    cells = defaultdict(list)
    for one in records:
        key = hashlib.sha256(one["group"].encode()).hexdigest()
        cells[one["source"], one["language"]].append((key, one["text"], one))
    return [
        one
        for cell in sorted(cells)
        for _, _, one in sorted(cells[cell], key=lambda x: x[:2])[:most]
    ]


def synthetic() -> list[dict]:
    """Returns the project's own listings and statements: only ever trained on."""
    records = []
    for one in generate_listings(seed=0, num_products=100):
        text = listing_to_document(one, seed=0)
        records.append({"text": text, "language": one["language"], "domain": "ecommerce",
                        "source": "catalogue", "group": f"catalogue:{one['product_id']}"})  # fmt: skip
    for number, one in enumerate(generate_general_documents(0, 100)):
        records.append({**one, "group": f"general-text:{number // len(LANGUAGES)}"})
    return records


def seeds_of(records: list[dict]) -> list[Seed]:
    label = {"ecommerce": "ecommerce", "general": "other"}
    unique = {(one["language"], " ".join(one["text"].split())): one for one in records}
    return [
        Seed(one["text"], one["language"], label[one["domain"]], one["group"], one["source"])
        for one in unique.values()
    ]


def held_out_documents(records: list[dict]) -> None:
    splits = split_seeds(seeds_of(records), seed=0)
    started = time.perf_counter()
    model, unseen = fit_classifier(splits)
    print(f"held-out documents ({sum(map(len, splits.values()))} seeds, fitted in "
          f"{time.perf_counter() - started:.0f} s)")  # fmt: skip
    report = report_of(model, splits, unseen)
    for kind in ("out_of_source", "same_source"):
        print(f"  {kind}")
        for row in report[kind]["languages"]:
            cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print("    " + " ".join(cells))
    texts = [one.text for one in splits["test"]] * 3
    started = time.process_time()
    model.scores(texts)
    print(f"  scoring, one core: {len(texts) / (time.process_time() - started):.0f} docs/s, "
          f"{sum(map(len, texts)) / len(texts):.0f} characters each", flush=True)  # fmt: skip


def held_out_sources(pool: list[dict], made: list[dict]) -> None:
    print(
        "held-out sources: share taken for e-commerce, at the thresholds of a model of the others"
    )
    collected = defaultdict(lambda: ([], [], []))
    for fold in FOLDS:
        test = [one for one in pool if one["source"] in fold]
        rest = [one for one in [*pool, *made] if one["source"] not in fold]
        model = train_classifier(split_seeds(seeds_of(rest), seed=0))
        scores = model.scores([one["text"] for one in test])
        cells = defaultdict(lambda: defaultdict(list))
        for one, score in zip(test, scores, strict=True):
            taken = bool(score >= model.threshold(one["language"]))
            cells[one["domain"], one["source"]][one["language"]].append(taken)
            truth, guess, chosen = collected[one["language"]]
            truth.append(one["domain"] == "ecommerce")
            guess.append(float(score))
            chosen.append(taken)
        for (domain, source), row in sorted(cells.items()):
            shares = "  ".join(f"{k} {np.mean(v):.3f} ({len(v)})" for k, v in row.items())
            print(f"  {domain:<9} {source:<18} {shares}", flush=True)
    for language, (truth, guess, chosen) in sorted(collected.items()):
        summary(language, np.array(truth), np.array(guess), np.array(chosen))


def summary(language: str, truth: np.ndarray, guess: np.ndarray, chosen: np.ndarray) -> None:
    """Prints one language's line over all held-out sources."""
    recall, false_rate = chosen[truth].mean(), chosen[~truth].mean()
    auc = roc_auc_score(truth, guess) if truth.any() and not truth.all() else float("nan")
    print(f"  {language}: {truth.sum()} + {(~truth).sum()} documents, precision "
          f"{(chosen & truth).sum() / max(1, chosen.sum()):.3f} (at even classes "
          f"{recall / max(recall + false_rate, 1e-12):.3f}), recall {recall:.3f}, false positives "
          f"{false_rate:.3f}, AUC {auc:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
