"""What can be had without a language model: k-mers and neighbours, counted.

A room for scikit-learn, whose import takes a third of a start: import this where a baseline is computed.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from esm2_hyperpod.alphabet import AMINO_ACIDS, encode
from esm2_hyperpod.localization.encoding import NO_LABEL, EncodedResidues
from esm2_hyperpod.proteins.kinds import targets
from esm2_hyperpod.proteins.splits import Splits

TERMINUS = 50
KMER_CLASSIFIER = (
    "logistic regression on residues and residue pairs of the whole sequence, and again of its first "
    f"{TERMINUS} and last {TERMINUS} residues (tf-idf, C = 10)"
)

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
KMER_REGRESSION = (
    "ridge regression on residues and residue pairs of the whole sequence, and again of its first "
    f"{TERMINUS} and last {TERMINUS} residues (tf-idf), its penalty chosen on validation"
)

AROUND = 7
FITTED = 50_000
WINDOW_CLASSIFIER = (
    f"logistic regression on a residue and the {AROUND} on each side of it, one-hot, fitted on at most "
    f"{FITTED:,} training residues"
)


def kmer_predictions(train: Sequence[str], train_targets: np.ndarray, test: Sequence[str]) -> np.ndarray:
    """What `KMER_CLASSIFIER`, fitted on `train`, gives the test sequences: float[test, labels].

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


def kmer_numbers(splits: Splits) -> tuple[float, np.ndarray]:
    """The penalty and the numbers of the test proteins by `KMER_REGRESSION`: float64[test proteins]."""
    features = TfidfVectorizer(analyzer=kmer_words, sublinear_tf=True)
    train, validation, test = (
        [protein.sequence for protein in part] for part in (splits.train, splits.validation, splits.test)
    )
    known, wanted = features.fit_transform(train), targets(splits.validation)
    models = {penalty: Ridge(alpha=penalty).fit(known, targets(splits.train)) for penalty in PENALTIES}
    held_out = features.transform(validation)
    errors = {penalty: np.square(m.predict(held_out) - wanted).mean() for penalty, m in models.items()}
    best = min(errors, key=errors.get)
    return best, models[best].predict(features.transform(test))


def window_predictions(train: EncodedResidues, test: EncodedResidues, seed: int) -> np.ndarray:
    """What `WINDOW_CLASSIFIER` gives: int[tokens of the test's windows], label numbers."""
    targets = np.concatenate(train.targets)
    fitted = np.flatnonzero(targets != NO_LABEL)
    if len(fitted) > FITTED:
        fitted = np.sort(np.random.default_rng(seed).choice(fitted, FITTED, replace=False))
    regression = LogisticRegression(max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 rounds are plenty for a yardstick
        regression.fit(_neighbourhoods(train)[fitted], targets[fitted])
    return regression.predict(_neighbourhoods(test))


def _neighbourhoods(encoded: EncodedResidues) -> sparse.csr_array:
    """One-hot residues around each token: float[tokens, (2 AROUND + 1) x kinds]; the ends are a kind, too."""
    kinds = len(AMINO_ACIDS) + 2
    kind_of_token = np.full(256, kinds - 2)
    kind_of_token[encode(AMINO_ACIDS.encode())[1:-1]] = np.arange(len(AMINO_ACIDS))
    kind_of_token[encode(b"")] = kinds - 1  # <cls> and <eos>
    wide = [np.pad(kind_of_token[ids], AROUND, constant_values=kinds - 1) for ids in encoded.ids]
    size = 2 * AROUND + 1
    rows = np.concatenate([np.lib.stride_tricks.sliding_window_view(row, size) for row in wide])
    columns = (rows + np.arange(size) * kinds).ravel()
    starts = np.arange(len(rows) + 1) * size
    ones = np.ones(len(columns), dtype=np.float32)
    return sparse.csr_array((ones, columns, starts), shape=(len(rows), size * kinds))
