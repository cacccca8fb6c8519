"""The test: the model's scores with intervals, beside what can be had without a language model.

The baselines always give the most frequent label, and count k-mers.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from esm2_hyperpod.console import in_progress
from esm2_hyperpod.localization.encoding import EncodedProteins
from esm2_hyperpod.localization.metrics import (
    as_rows,
    calibration_facts,
    decide,
    intervals,
    per_class,
    probabilities,
    scores,
)
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.proteins.splits import Splits

TERMINUS = 50
KMER_BASELINE = (
    "logistic regression on residues and residue pairs of the whole sequence, and again of its first "
    f"{TERMINUS} and last {TERMINUS} residues (tf-idf, C = 10)"
)


def evaluate_test(
    logits: np.ndarray,
    splits: Splits,
    settings: Settings,
    train: EncodedProteins,
    test: EncodedProteins,
    seed: int,
) -> dict[str, Any]:
    """Scores of the test proteins with 95% intervals, beside those of the baselines; calibration.

    Args:
        logits: float[test proteins, labels].
        seed: of the bootstrap.
    """
    several = settings.multi_label
    truth = as_rows(test.targets, len(settings.labels))
    given = {
        "uncalibrated": probabilities(logits, 1.0, several),
        "calibrated": settings.probabilities(logits),
    }
    predicted = decide(given["calibrated"], several)
    sequences = [[protein.sequence for protein in part] for part in (splits.train, splits.test)]
    with in_progress("k-mer baseline"):
        by_kmers = decide(kmer_predictions(sequences[0], train.targets, sequences[1]), several)
    by_majority = majority_predictions(truth)
    calibration = {name: _judged(p, truth, predicted, several) for name, p in given.items()}

    def scored(given: np.ndarray) -> dict[str, Any]:
        figures = scores(truth, given, several)
        return {**figures, "intervals_95": intervals(truth, given, several, seed)}

    return {
        "proteins": len(truth),
        "model": scored(predicted),
        "baselines": {
            "majority_class": {"label": settings.joined(by_majority[0]), **scored(by_majority)},
            "kmer_logistic_regression": {"what": KMER_BASELINE, **scored(by_kmers)},
        },
        "calibration": calibration_facts(settings.temperature, calibration),
        "per_class": per_class(truth, predicted, settings.labels),
        "confusion_matrix": (truth.T @ predicted).tolist(),
    }


def _judged(
    probability: np.ndarray, truth: np.ndarray, predicted: np.ndarray, several: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the predicted label (or of every label), and whether that label is true."""
    if several:
        return probability.ravel(), truth.ravel() == 1
    return probability.max(axis=1), (truth & predicted).any(axis=1)


def majority_predictions(truth: np.ndarray) -> np.ndarray:
    """The most frequent label (or set of labels) of the test proteins for each of them.

    No constant guess is right more often. 0/1 int[proteins, labels], as `truth` is.
    """
    kinds, counts = np.unique(truth, axis=0, return_counts=True)
    return np.repeat(kinds[counts.argmax()][None], len(truth), axis=0)


def kmer_predictions(train: Sequence[str], train_targets: np.ndarray, test: Sequence[str]) -> np.ndarray:
    """What `KMER_BASELINE`, fitted on the training sequences, gives the test sequences: float[test, labels].

    Probabilities; one regression a label where `train_targets` are 0/1 rows, else one for all labels.
    """
    several = train_targets.ndim == 2
    regression = LogisticRegression(C=10.0, max_iter=500)
    features = TfidfVectorizer(analyzer=kmer_words, sublinear_tf=True)
    classifier = make_pipeline(features, OneVsRestClassifier(regression) if several else regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 rounds are plenty for a yardstick
        classifier.fit(train, train_targets)
    return classifier.predict_proba(test)


def kmer_words(sequence: str) -> list[str]:
    """The features of a sequence, those of the termini marked so that they are counted apart."""
    parts = {"": sequence, "N-terminal ": sequence[:TERMINUS], "C-terminal ": sequence[-TERMINUS:]}
    return [
        mark + part[start : start + length]
        for mark, part in parts.items()
        for length in (1, 2)
        for start in range(len(part) - length + 1)
    ]
