"""The test: the model's scores with intervals, beside what can be had without a language model.

The baselines always give the most frequent label, or are in `baselines.py`.
"""

from typing import Any

import numpy as np

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
    from esm2_hyperpod.localization import baselines  # slow to import

    several = settings.multi_label
    truth = as_rows(test.targets, len(settings.labels))
    given = {
        "uncalibrated": probabilities(logits, 1.0, several),
        "calibrated": settings.probabilities(logits),
    }
    predicted = decide(given["calibrated"], several)
    sequences = [[protein.sequence for protein in part] for part in (splits.train, splits.test)]
    with in_progress("k-mer baseline"):
        by_kmers = decide(baselines.kmer_predictions(sequences[0], train.targets, sequences[1]), several)
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
            "kmer_logistic_regression": {"what": baselines.KMER_CLASSIFIER, **scored(by_kmers)},
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
