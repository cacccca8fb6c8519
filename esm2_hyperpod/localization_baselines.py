"""What can be had without a language model: always giving the most frequent label, and counting k-mers."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

TERMINUS = 50
KMER_BASELINE = (
    "logistic regression on residues and residue pairs of the whole sequence, and again of its first "
    f"{TERMINUS} and last {TERMINUS} residues (tf-idf, C = 10)"
)


def majority_predictions(test_targets: np.ndarray) -> np.ndarray:
    """The most frequent label of the test proteins for each of them: no constant guess does better."""
    return np.full(len(test_targets), np.bincount(test_targets).argmax())


def kmer_predictions(train: Sequence[str], train_targets: np.ndarray, test: Sequence[str]) -> np.ndarray:
    """Label numbers that `KMER_BASELINE`, fitted on the training sequences, gives the test sequences."""
    classifier = make_pipeline(
        TfidfVectorizer(analyzer=_words, sublinear_tf=True), LogisticRegression(C=10.0, max_iter=500)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 rounds are plenty for a yardstick
        classifier.fit(train, train_targets)
    return classifier.predict(test)


def _words(sequence: str) -> list[str]:
    """The features of a sequence, those of the termini marked so that they are counted apart."""
    parts = {"": sequence, "N-terminal ": sequence[:TERMINUS], "C-terminal ": sequence[-TERMINUS:]}
    return [
        mark + part[start : start + length]
        for mark, part in parts.items()
        for length in (1, 2)
        for start in range(len(part) - length + 1)
    ]
