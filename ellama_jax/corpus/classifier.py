"""The e-commerce classifier: trained here from labelled documents, applied to any text.

Owns what the model sees of a text, the fit, the thresholds and the files of a model; the seeds and
their split are `classifier_seeds`'. One model serves all languages: hashed words and parts of words with a few counted
signs of a shop (prices, sizes, order buttons), a logistic regression over them, and Platt's
calibration. The page about a model is drawn in `classifier_report`.

No feature may tell the class by the form of the seeds: labels that our own documents carry
("Title:", "Prix :") are taken off before anything is counted, every number looks alike, rates are
used instead of lengths, and the model is fitted on random cuts of the documents besides the whole.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ellama_jax.core.limits import parse_json
from ellama_jax.core.ownership import owned
from ellama_jax.corpus.classifier_seeds import (
    LABELS,
    MIN_DOCUMENTS,
    Seed,
    deal_sources,
    read_seeds,
    split_seeds,
)
from ellama_jax.corpus.listings import LABELS as LISTING_LABELS

MODEL_FILES = ("model.json", "weights.npz")

_FORMAT = 1
_BITS = 18  # hashed features of each kind
_MAX_CHARS = 2000  # of a text that are looked at
_CUTS = 2  # random cuts of each training document, besides the whole
# Below it a calibrated score says "rather not", whatever a small validation split allows.
_LEAST_THRESHOLD = 0.5


# --- what the model sees -------------------------------------------------------------------------

_OWN_NAMES = sorted(
    {row[field] for row in LISTING_LABELS.values() for field in ("title", "category", "price", "description")}
)  # fmt: skip
_OWN_LABELS = re.compile(
    rf"^\s*(?:{'|'.join(map(re.escape, _OWN_NAMES))}) ?: ?", re.MULTILINE | re.IGNORECASE
)

# Signs of a shop, in several languages each; a further language is further words.
_SIGNS = {
    "price": r"[€$£¥]\s?\d|\d\s?(?:[€$£¥]|\b(?:eur|usd|gbp|chf|euros?|dollars?)\b)",
    "size": r"\d\s?(?:mm|cm|m|km|inch|in|ft|g|kg|oz|lbs?|ml|cl|l|w|kw|v|mah|gb|tb|mb|hz|pcs|pack|stück|pièces?|pezzi|piezas)\b"
    r"|\b\d+\s?[x×]\s?\d+",
    "order": r"\b(?:add to (?:cart|basket|bag)|buy now|in stock|out of stock|free (?:shipping|delivery)|check ?out"
    r"|in den warenkorb|jetzt kaufen|auf lager|lieferbar|versandkosten\w*|lieferzeit|inkl\. mwst"
    r"|ajouter au panier|acheter|en stock|livraison|rupture de stock|expédié"
    r"|aggiungi al carrello|acquista|disponibile|spedizione|esaurito"
    r"|añadir (?:al carrito|a la cesta)|comprar|en existencias|envío|agotado)\b",
    "review": r"\b(?:stars?|sterne?|étoiles?|stelle|estrellas|reviews?|bewertung(?:en)?|avis|recensioni|reseñas|opiniones)\b",
    "trade": r"\b(?:brand|sku|ean|gtin|isbn|model|warranty|marke|garantie|modell|marque|modèle|garantía|marca|modelo|modello|garanzia"
    r"|material|matière|materiale|farbe|colou?r|couleur|colore|größe|taille|taglia|talla|size)\b",
    "sentence": r"[^\W\d_]{2}[.!?](?:\s|$)",
    "code": r"[{}<>\\=_/]|\(\)",
}  # fmt: skip
_SIGN_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _SIGNS.items()}
_NUM_DENSE = len(_SIGNS) + 2


def visible_text(text: str) -> str:
    """Returns what the model sees of a text: without our own labels, cut, numbers made alike.

    >>> visible_text("Titel: Lampe Nyx\\nPreis: 49,99 €")
    'lampe nyx\\n00,00 €'
    """
    return re.sub(r"\d", "0", _OWN_LABELS.sub("", text[:_MAX_CHARS])).lower()


def _dense_features(text: str) -> list[float]:
    """Counts the signs in a visible text, for each word, with falling weight; [_NUM_DENSE]."""
    words = max(1, len(text.split()))
    counts = [len(pattern.findall(text)) for pattern in _SIGN_PATTERNS.values()]
    counts += [text.count("0"), text.count(",")]
    return [(count / words) ** 0.5 for count in counts]


@functools.cache
def _vectorizers() -> tuple:
    from sklearn.feature_extraction.text import HashingVectorizer

    shared = {"n_features": 2**_BITS, "alternate_sign": False, "binary": True, "lowercase": False}
    return (
        HashingVectorizer(**shared, ngram_range=(1, 2), token_pattern=r"[^\W_]+|[€$£¥]"),
        HashingVectorizer(**shared, analyzer="char_wb", ngram_range=(3, 5)),
    )


def _features(texts: Sequence[str]):
    """Returns a sparse matrix [len(texts), 2 * 2**_BITS + _NUM_DENSE]; unit rows in each part."""
    from scipy.sparse import csr_matrix, hstack

    shown = [visible_text(text) for text in texts]
    hashed = [vectorizer.transform(shown) for vectorizer in _vectorizers()]
    return hstack([*hashed, csr_matrix([_dense_features(text) for text in shown])], format="csr")


def _cut_texts(one: Seed, seed: int) -> list[str]:
    """Returns the document and random cuts of it, 8 to 250 words long, so that length tells nothing."""
    rng = random.Random(f"{seed} {one.language} {one.text}")
    pieces = re.findall(r"\S+\s*", one.text)
    cuts = [one.text]
    for _ in range(_CUTS if len(pieces) > 8 else 0):
        length = int(8 * (min(250, len(pieces)) / 8) ** rng.random())
        start = rng.randrange(len(pieces) - length + 1)
        cuts.append("".join(pieces[start : start + length]).strip())
    return cuts


# --- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """A fitted model.

    Attributes:
        weights: [2 * 2**18 + signs] float32.
        intercept, slope, shift: score = sigmoid(slope * (x . weights + intercept) + shift).
        thresholds: language -> least score of what is taken for e-commerce.
        default_threshold: for languages it never saw.
    """

    weights: np.ndarray
    intercept: float
    slope: float
    shift: float
    thresholds: dict[str, float]
    default_threshold: float

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the calibrated probability that each text is e-commerce; [len(texts)] float32."""
        if not len(texts):
            return np.zeros(0, np.float32)
        return self._calibrate(_features(texts) @ self.weights.astype(np.float64) + self.intercept)

    def threshold(self, language: str) -> float:
        """Returns the least score of e-commerce in a language."""
        return self.thresholds.get(language, self.default_threshold)

    def _calibrate(self, logits: np.ndarray) -> np.ndarray:
        raised = np.clip(self.slope * logits + self.shift, -50, 50)
        return (1 / (1 + np.exp(-raised))).astype(np.float32)


@dataclass(frozen=True)
class OutOfSource:
    """What models say of documents whose whole source they never saw, in the same order.

    Scores and choices are cross-fitted: calibration and thresholds of the other sources too.
    """

    seeds: list[Seed]
    scores: np.ndarray
    chosen: np.ndarray


def train_classifier(
    splits: dict[str, list[Seed]], *, target_precision: float = 0.95, seed: int = 0
) -> Classifier:
    """Returns the model of `fit_classifier` alone."""
    return fit_classifier(splits, target_precision=target_precision, seed=seed)[0]


def fit_classifier(
    splits: dict[str, list[Seed]], *, target_precision: float = 0.95, seed: int = 0
) -> tuple[Classifier, OutOfSource | None]:
    """Fits the weights, calibrates, and chooses a threshold for each language.

    Where the seeds have two sources or more of each label, the model is fitted on `train` and
    `validation`, and calibrated by what up to five other models, each fitted without some sources,
    say of the documents of these sources. Else it is fitted on `train` and calibrated on
    `validation`, which flatters it: documents of one source are alike.

    Every language and label weighs the same, whatever the numbers of its documents, and in the
    calibration every source of them. A threshold is the least score, from 0.5, at which the
    precision at even classes reaches the target; where no score does, the best. A language with
    fewer than 40 documents of a label to choose by takes the threshold of all languages together.

    Args:
        splits: as `split_seeds` gives them; `test` is not looked at.
        target_precision: between 0.5 and 1.
        seed: of the random cuts.
    """
    if not 0.5 <= target_precision < 1:
        raise ValueError(f"target_precision: must be from 0.5 to below 1, got {target_precision}.")
    known = [*splits["train"], *splits["validation"]]
    folds = deal_sources(known)
    if folds is None:
        held = splits["validation"]
        weights, intercept = _fit_words(*_cut_features(splits["train"], seed)[:2])
        logits = _features([one.text for one in held]) @ weights.astype(np.float64) + intercept
        return _settle(
            Classifier(weights, intercept, 1, 0, {}, 0), held, logits, target_precision
        ), None
    features, cuts, places = _cut_features(known, seed)
    weights, intercept = _fit_words(features, cuts)
    logits = _unseen_logits(features, cuts, places, folds)
    bare, judged = Classifier(weights, intercept, 1, 0, {}, 0), folds >= 0
    held = [one for one, is_judged in zip(known, judged, strict=True) if is_judged]
    model = _settle(bare, held, logits[judged], target_precision)
    return model, _cross_fit(bare, held, logits[judged], folds[judged], target_precision)


def _cut_features(seeds: Sequence[Seed], seed: int):
    """Returns features and seeds of all documents and their cuts, and the place of each document."""
    cuts, places = [], []
    for number, one in enumerate(seeds):
        texts = _cut_texts(one, seed)
        cuts += [replace(one, text=text) for text in texts]
        places += [number] * len(texts)
    return _features([one.text for one in cuts]), cuts, np.array(places)


def _fit_words(features, seeds: Sequence[Seed]) -> tuple[np.ndarray, float]:
    # What no training text holds has weight 0; without it the fit is many times faster.
    used = np.unique(features.indices)
    fitted = _fit_logistic(features[:, used], seeds, _cell_weights(seeds), strength=30.0)
    weights = np.zeros(features.shape[1], np.float32)
    weights[used] = fitted.coef_[0]
    return weights, float(fitted.intercept_[0])


def _unseen_logits(features, cuts: list[Seed], places: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Returns for each document the logit of a model that saw nothing of its fold's sources."""
    sources = np.where(folds < 0, -1 - folds, folds)
    firsts = np.flatnonzero(np.diff(places, prepend=-1))  # the whole documents
    logits = np.zeros(len(folds))
    for fold in sorted(set(sources.tolist())):
        rest = np.flatnonzero(sources[places] != fold)
        weights, intercept = _fit_words(features[rest], [cuts[row] for row in rest])
        own = sources == fold
        logits[own] = features[firsts[own]] @ weights.astype(np.float64) + intercept
    return logits


def _cross_fit(
    bare: Classifier, seeds: list[Seed], logits: np.ndarray, folds: np.ndarray, target: float
) -> OutOfSource | None:
    """Judges each fold by the calibration and thresholds of the others; None if one lacks a label."""
    scores, chosen = np.zeros(len(seeds), np.float32), np.zeros(len(seeds), bool)
    for fold in sorted(set(folds.tolist())):
        others = [one for one, own in zip(seeds, folds == fold, strict=True) if not own]
        if len({one.label for one in others}) < len(LABELS):
            return None
        model = _settle(bare, others, logits[folds != fold], target)
        for number in np.flatnonzero(folds == fold):
            scores[number] = model._calibrate(logits[number])
            chosen[number] = scores[number] >= model.threshold(seeds[number].language)
    return OutOfSource(seeds, scores, chosen)


def _settle(bare: Classifier, seeds: list[Seed], logits: np.ndarray, target: float) -> Classifier:
    """Returns a model calibrated, and with thresholds chosen, by logits of documents."""
    labels, weights = label_array(seeds), _cell_weights(seeds, by_source=True)
    # Weak strength: a handful of documents that separate must not give certainty.
    platt = _fit_logistic(logits[:, None], seeds, weights, strength=1.0)
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    scores = replace(bare, slope=slope, shift=shift)._calibrate(logits)
    pooled = choose_threshold(scores, labels, target, weights)
    languages = np.array([one.language for one in seeds])
    thresholds = {}
    for language in sorted(set(languages.tolist())):
        own = languages == language
        enough = np.bincount(labels[own], minlength=len(LABELS)).min() >= MIN_DOCUMENTS
        thresholds[language] = (
            choose_threshold(scores[own], labels[own], target, weights[own]) if enough else pooled
        )
    default = max(pooled, *thresholds.values())
    return Classifier(bare.weights, bare.intercept, slope, shift, thresholds, default)


def label_array(seeds: Sequence[Seed]) -> np.ndarray:
    """Returns 1 for e-commerce and 0 for other; [len(seeds)] int."""
    return np.array([LABELS.index(one.label) for one in seeds], dtype=int)


def _cell_weights(seeds: Sequence[Seed], by_source: bool = False) -> np.ndarray:
    """Weighs every language and label alike, and every source of one if asked; [len(seeds)], mean 1."""
    keys = [(one.language, one.label, one.source if by_source else "") for one in seeds]
    documents, parts = Counter(keys), Counter(key[:2] for key in set(keys))
    weights = np.array([1 / documents[key] / parts[key[:2]] for key in keys])
    return weights * (len(seeds) / weights.sum())


def _fit_logistic(features, seeds: Sequence[Seed], weights: np.ndarray, strength: float):
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=300, tol=1e-4)
    # In one thread, so that sums, and the model's bytes, do not depend on the number of cores.
    with threadpool_limits(1):
        return model.fit(features, label_array(seeds), sample_weight=weights)


def choose_threshold(
    scores: np.ndarray,
    labels: np.ndarray,
    target_precision: float,
    weights: np.ndarray | None = None,
) -> float:
    """Returns the least score, from 0.5, that reaches a precision at even classes.

    Args:
        scores: [n] calibrated.
        labels: [n] 0 or 1; both occur.
        target_precision: as for `fit_classifier`.
        weights: [n] of the documents; all alike by default.

    >>> choose_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]), 0.95)
    0.8
    """
    candidates = sorted({_LEAST_THRESHOLD, *(float(s) for s in scores if s > _LEAST_THRESHOLD)})
    reached = [(even_precision(scores >= one, labels, weights), one) for one in candidates]
    good = [one for precision, one in reached if precision >= target_precision]
    return good[0] if good else max(reached)[1]


def even_precision(
    chosen: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Returns the precision if both classes were equally frequent; 0 if nothing is chosen."""
    weights = np.ones(len(labels)) if weights is None else weights
    recall, false_rate = (
        (chosen * weights)[labels == label].sum() / weights[labels == label].sum()
        for label in (1, 0)
    )
    return float(recall / (recall + false_rate)) if recall + false_rate else 0.0


# --- files ---------------------------------------------------------------------------------------


def save_classifier(folder: Path, model: Classifier) -> None:
    """Writes a model's two files into an existing directory; `model.json` names the other's hash."""
    import sklearn

    np.savez_compressed(folder / "weights.npz", weights=model.weights)
    content = {
        "format": _FORMAT,
        "intercept": model.intercept,
        "slope": model.slope,
        "shift": model.shift,
        "thresholds": model.thresholds,
        "default_threshold": model.default_threshold,
        "weights_sha256": hashlib.sha256((folder / "weights.npz").read_bytes()).hexdigest(),
        "versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")


def load_classifier(path: str | Path) -> Classifier:
    """Loads a model that `ellama build-classifier` wrote.

    Raises:
        ValueError: if the files are not those of a whole model of this version.
        OSError: if there are none.
    """
    path = Path(path)
    text, packed = (path / "model.json").read_text("utf-8"), path / "weights.npz"
    try:
        content = parse_json(text)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}")
        if hashlib.sha256(packed.read_bytes()).hexdigest() != content["weights_sha256"]:
            raise ValueError("weights of another hash")
        with np.load(packed, allow_pickle=False) as arrays:
            weights = arrays["weights"]
        if weights.shape != (2 * 2**_BITS + _NUM_DENSE,):
            raise ValueError(f"weights of shape {weights.shape}")
        return Classifier(
            weights, content["intercept"], content["slope"], content["shift"],
            content["thresholds"], content["default_threshold"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: must hold a whole classifier of this version, got {error}; build it again."
        ) from error


def build_classifier(
    seed_paths: Sequence[str | Path],
    dst: str | Path,
    *,
    target_precision: float = 0.95,
    seed: int = 0,
    command: str = "",
) -> dict:
    """Trains a classifier and writes model, report.json and report.html; returns the report.

    Raises:
        ValueError: if the seeds are not fit to train on, or `dst` exists.
        OSError: if a file cannot be read or written.
    """
    from ellama_jax.corpus.classifier_report import render_report, report_of

    dst = Path(dst)
    if dst.exists():
        raise ValueError(f"{dst}: must not exist yet, got a path that does; choose another.")
    seeds, repeated = read_seeds(seed_paths)
    splits = split_seeds(seeds, seed)
    model, unseen = fit_classifier(splits, target_precision=target_precision, seed=seed)
    report = {
        "command": command,
        "seed": seed,
        "target_precision": target_precision,
        "seeds": [{"path": str(path), "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
                  for path in seed_paths],
        "repeated": repeated,
        **report_of(model, splits, unseen),
    }  # fmt: skip
    partial = dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        save_classifier(partial, model)
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / "report.json").write_text(text, encoding="utf-8")
        (partial / "report.html").write_text(render_report(report), encoding="utf-8")
        os.replace(partial, dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def main_build_classifier(argv: list[str]) -> None:
    """Runs `ellama build-classifier`."""
    parser = argparse.ArgumentParser(
        prog="ellama build-classifier",
        description="Train the e-commerce classifier from labelled documents.",
        epilog="example: ellama build-classifier shop.jsonl other.jsonl models/ecommerce",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "seeds",
        nargs="+",
        metavar="SEEDS",
        help="JSONL: text, language, label (ecommerce | other), source",
    )
    add("dst", metavar="DST", help="directory to make: the model, report.json and report.html")
    add("--target-precision", type=float, default=0.95, help="for each language (default 0.95)")
    add("--seed", type=int, default=0, help="of split and cuts (default 0)")
    args = parser.parse_args(argv)
    with owned(args.dst, "ellama build-classifier"):
        report = build_classifier(
            args.seeds, args.dst, target_precision=args.target_precision, seed=args.seed,
            command=shlex.join(["ellama", "build-classifier", *argv]),
        )  # fmt: skip
    _print_figures("out of source", report["out_of_source"])
    _print_figures("same sources", report["same_source"])
    print(f"{args.dst}: {', '.join((*MODEL_FILES, 'report.json', 'report.html'))}")


def _print_figures(kind: str, part: dict | None) -> None:
    if part is None:
        print(
            f"{kind}: not measured; it takes seeds of two sources or more of each label (`source`)"
        )
        return
    for row in part["languages"]:
        print(
            f"{kind}, {row['language']}: threshold {row['threshold']:.3f}, {row['ecommerce']} + "
            f"{row['other']} documents: precision {row['precision']:.3f} (at even classes "
            f"{row['even_precision']:.3f}), recall {row['recall']:.3f}, AUC {_write(row['auc'])}"
        )


def _write(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
