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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ellama_jax.data.classifier_seeds import LABELS, Seed, read_seeds, split_seeds
from ellama_jax.data.listings import LABELS as LISTING_LABELS

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


def train_classifier(
    splits: dict[str, list[Seed]], *, target_precision: float = 0.95, seed: int = 0
) -> Classifier:
    """Fits on `train`; calibrates and chooses the thresholds on `validation`.

    Every language and label weighs the same, whatever the numbers of its documents. A threshold is
    the least score, from 0.5, at which the precision of the language's validation documents, at
    even classes, reaches the target; where no score does, the best.

    Args:
        splits: as `split_seeds` gives them; `test` is not looked at.
        target_precision: between 0.5 and 1.
        seed: of the random cuts.
    """
    if not 0.5 <= target_precision < 1:
        raise ValueError(f"target_precision: must be from 0.5 to below 1, got {target_precision}.")
    train = [
        Seed(text, one.language, one.label, one.group)
        for one in splits["train"]
        for text in _cut_texts(one, seed)
    ]
    features = _features([one.text for one in train])
    # What no training text holds has weight 0; without it the fit is many times faster.
    used = np.unique(features.indices)
    fitted = _fit_logistic(features[:, used], train, strength=30.0)
    weights = np.zeros(features.shape[1], np.float32)
    weights[used], intercept = fitted.coef_[0], float(fitted.intercept_[0])
    held = splits["validation"]
    logits = _features([one.text for one in held]) @ weights.astype(np.float64) + intercept
    # Weak strength: a handful of validation documents that separate must not give certainty.
    platt = _fit_logistic(logits[:, None], held, strength=1.0)
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    calibrated = Classifier(weights, intercept, slope, shift, {}, _LEAST_THRESHOLD)
    scores, labels = calibrated._calibrate(logits), label_array(held)
    languages = np.array([one.language for one in held])
    thresholds = {
        language: choose_threshold(scores[languages == language], labels[languages == language], target_precision)
        for language in sorted(set(languages.tolist()))
    }  # fmt: skip
    default = max(thresholds.values())
    return Classifier(weights, intercept, slope, shift, thresholds, default)


def label_array(seeds: Sequence[Seed]) -> np.ndarray:
    """Returns 1 for e-commerce and 0 for other; [len(seeds)] int."""
    return np.array([LABELS.index(one.label) for one in seeds], dtype=int)


def _fit_logistic(features, seeds: Sequence[Seed], strength: float):
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    counts = Counter((one.language, one.label) for one in seeds)
    weights = np.array([1 / counts[one.language, one.label] for one in seeds])
    weights *= len(seeds) / weights.sum()
    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=300, tol=1e-4)
    # In one thread, so that sums, and the model's bytes, do not depend on the number of cores.
    with threadpool_limits(1):
        return model.fit(features, label_array(seeds), sample_weight=weights)


def choose_threshold(scores: np.ndarray, labels: np.ndarray, target_precision: float) -> float:
    """Returns the least score, from 0.5, that reaches a precision at even classes.

    Args:
        scores: [n] calibrated.
        labels: [n] 0 or 1; both occur.
        target_precision: as for `train_classifier`.

    >>> choose_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]), 0.95)
    0.8
    """
    candidates = sorted({_LEAST_THRESHOLD, *(float(s) for s in scores if s > _LEAST_THRESHOLD)})
    reached = [(even_precision(scores >= one, labels), one) for one in candidates]
    good = [one for precision, one in reached if precision >= target_precision]
    return good[0] if good else max(reached)[1]


def even_precision(chosen: np.ndarray, labels: np.ndarray) -> float:
    """Returns the precision if both classes were equally frequent; 0 if nothing is chosen."""
    recall, false_rate = chosen[labels == 1].mean(), chosen[labels == 0].mean()
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
        content = json.loads(text)
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
    from ellama_jax.data.classifier_report import render_report, report_of

    dst = Path(dst)
    if dst.exists():
        raise ValueError(f"{dst}: must not exist yet, got a path that does; choose another.")
    seeds, repeated = read_seeds(seed_paths)
    splits = split_seeds(seeds, seed)
    model = train_classifier(splits, target_precision=target_precision, seed=seed)
    report = {
        "command": command,
        "seed": seed,
        "target_precision": target_precision,
        "seeds": [{"path": str(path), "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
                  for path in seed_paths],
        "repeated": repeated,
        **report_of(model, splits),
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
        "seeds", nargs="+", metavar="SEEDS", help="JSONL: text, language, label (ecommerce | other)"
    )
    add("dst", metavar="DST", help="directory to make: the model, report.json and report.html")
    add("--target-precision", type=float, default=0.95, help="for each language (default 0.95)")
    add("--seed", type=int, default=0, help="of split and cuts (default 0)")
    args = parser.parse_args(argv)
    report = build_classifier(
        args.seeds, args.dst, target_precision=args.target_precision, seed=args.seed,
        command=shlex.join(["ellama", "build-classifier", *argv]),
    )  # fmt: skip
    for row in report["languages"]:
        print(
            f"{row['language']}: threshold {row['threshold']:.3f}, on {row['ecommerce']} + "
            f"{row['other']} test documents: precision {row['precision']:.3f}, recall "
            f"{row['recall']:.3f}, F1 {row['f1']:.3f}, AUC {row['auc']:.4f}"
        )
    print(f"{args.dst}: {', '.join((*MODEL_FILES, 'report.json', 'report.html'))}")
