"""What can be had without a language model: always giving the most frequent label, and counting k-mers."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

TERMINUS = 50
KMER_BASELINE = (
    "logistic regression on residues and residue pairs of the whole sequence, and again of its first "
    f"{TERMINUS} and last {TERMINUS} residues (tf-idf, C = 10)"
)


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
    features = TfidfVectorizer(analyzer=_words, sublinear_tf=True)
    classifier = make_pipeline(features, OneVsRestClassifier(regression) if several else regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 rounds are plenty for a yardstick
        classifier.fit(train, train_targets)
    return classifier.predict_proba(test)


def _words(sequence: str) -> list[str]:
    """The features of a sequence, those of the termini marked so that they are counted apart."""
    parts = {"": sequence, "N-terminal ": sequence[:TERMINUS], "C-terminal ": sequence[-TERMINUS:]}
    return [
        mark + part[start : start + length]
        for mark, part in parts.items()
        for length in (1, 2)
        for start in range(len(part) - length + 1)
    ]
