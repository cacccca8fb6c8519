"""Scores where a protein may live in several places. Labels are 0/1 int[proteins, labels]."""

import numpy as np

RESAMPLES = 1_000


def multilabel_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """`accuracy` (the very set), `jaccard` (mean over proteins), `micro_f1`, `macro_f1`, `mcc` (over labels).

    The figures DeepLoc 2.0 gives (Thumuluri et al. 2022, doi:10.1093/nar/gkac278). F1 and MCC are 0 where
    undefined; labels that occur neither as truth nor as prediction are left out.
    """
    weights = np.ones((1, len(truth)))
    return {name: float(values[0]) for name, values in _scores(truth, predicted, weights).items()}


def multilabel_intervals(truth: np.ndarray, predicted: np.ndarray, seed: int) -> dict[str, list[float]]:
    """95% percentile intervals of the scores over resampled proteins."""
    count = len(truth)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    scores = _scores(truth, predicted, weights.astype(np.float64))
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in scores.items()}


def _scores(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Scores float[samples] of proteins weighted by `weights` float[samples, proteins]."""
    total = weights.sum(axis=1)
    exact = (truth == predicted).all(axis=1)
    jaccard = (truth & predicted).sum(axis=1) / np.maximum((truth | predicted).sum(axis=1), 1)
    hits, true, given = (
        weights @ part for part in (truth & predicted, truth, predicted)
    )  # [samples, labels]
    occurs = true + given > 0
    f1 = 2 * hits / np.where(occurs, true + given, 1)
    everybody = total[:, None]
    spread = true * (everybody - true) * given * (everybody - given)
    mcc = np.where(
        spread > 0, (everybody * hits - true * given) / np.sqrt(np.where(spread > 0, spread, 1)), 0.0
    )
    kinds = occurs.sum(axis=1)
    return {
        "accuracy": weights @ exact / total,
        "jaccard": weights @ jaccard / total,
        "micro_f1": 2 * hits.sum(axis=1) / (true + given).sum(axis=1),
        "macro_f1": f1.sum(axis=1) / kinds,
        "mcc": (mcc * occurs).sum(axis=1) / kinds,
    }
