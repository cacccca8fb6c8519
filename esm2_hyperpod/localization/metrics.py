"""Scores of a classifier, their uncertainty, and the calibration of its probabilities.

Truth and predictions are 0/1 int[proteins, labels], with a single 1 a row unless proteins may live in several
places.
"""

import numpy as np
from scipy.special import expit, log_softmax, softmax

RESAMPLES = {"one label": 2_000, "several": 1_000, "residues": 1_000}
ECE_BINS = 15


def as_rows(targets: np.ndarray, labels: int) -> np.ndarray:
    """Targets, label numbers int[proteins] or float[proteins, labels], as 0/1 int[proteins, labels]."""
    return targets.astype(int) if targets.ndim == 2 else np.eye(labels, dtype=int)[targets]


def decide(probability: np.ndarray, multi_label: bool) -> np.ndarray:
    """0/1 int[proteins, labels]: the most probable label; if `multi_label`, also all of a half or more."""
    chosen = np.zeros(probability.shape, dtype=int)
    chosen[np.arange(len(chosen)), probability.argmax(axis=1)] = 1
    if not multi_label:
        return chosen
    several = (probability >= 0.5).astype(int)
    return np.where(several.any(axis=1, keepdims=True), several, chosen)


def scores(truth: np.ndarray, predicted: np.ndarray, multi_label: bool) -> dict[str, float]:
    """The figures of `scores_of_confusion`, or of `scores_of_sets` if `multi_label`."""
    if multi_label:
        found = scores_of_sets(truth, predicted, np.ones((1, len(truth))))
        return {name: float(values[0]) for name, values in found.items()}
    return {name: float(value) for name, value in scores_of_confusion(truth.T @ predicted).items()}


def intervals(
    truth: np.ndarray, predicted: np.ndarray, multi_label: bool, seed: int
) -> dict[str, list[float]]:
    """95% percentile intervals of `scores` over resampled proteins."""
    random = np.random.default_rng(seed)
    if multi_label:
        count = len(truth)
        weights = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES["several"])
        found = scores_of_sets(truth, predicted, weights.astype(np.float64))
    else:
        # Drawing proteins with replacement is drawing the confusion matrix from a multinomial.
        confusion = truth.T @ predicted
        shares = confusion.ravel() / confusion.sum()
        draws = random.multinomial(confusion.sum(), shares, size=RESAMPLES["one label"])
        found = scores_of_confusion(draws.reshape(-1, *confusion.shape))
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in found.items()}


def intervals_over_proteins(confusions: np.ndarray, seed: int) -> dict[str, list[float]]:
    """95% percentile intervals of `scores_of_confusion` where proteins, not their residues, are resampled.

    Residues of one protein are right or wrong together, so resampling them would make intervals too narrow.

    Args:
        confusions: int[proteins, true, predicted label], the residues of each protein.
    """
    random, count = np.random.default_rng(seed), len(confusions)
    flat = confusions.reshape(count, -1).astype(np.float64)
    draws = [
        random.multinomial(count, np.full(count, 1 / count)) @ flat for _ in range(RESAMPLES["residues"])
    ]
    found = scores_of_confusion(np.stack(draws).reshape(-1, *confusions.shape[1:]))
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in found.items()}


def scores_of_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, macro F1 and MCC of one confusion matrix, or of many at once ([..., true, predicted label]).

    Macro F1 is over the labels that occur, as truth or as prediction. MCC is the multi-class Matthews
    correlation, Gorodkin's R_K (2004, doi:10.1016/j.compbiolchem.2004.09.006), DeepLoc's second figure; it is
    0 where it is undefined.
    """
    confusion = confusion.astype(np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    truth, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = truth.sum(axis=-1)
    occurs = (truth + predicted) > 0
    f1 = 2 * hits / np.where(occurs, truth + predicted, 1)
    # Gorodkin's R_K from the marginals: (N tr C - sum t_k p_k) / sqrt((N^2 - |p|^2)(N^2 - |t|^2))
    covariance = total * hits.sum(axis=-1) - (truth * predicted).sum(axis=-1)
    spread = (total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (truth**2).sum(axis=-1))
    return {
        "accuracy": hits.sum(axis=-1) / total,
        "macro_f1": f1.sum(axis=-1) / occurs.sum(axis=-1),
        "mcc": np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0),
    }


def scores_of_sets(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Scores float[samples] where proteins have several labels, of samples of the proteins.

    `accuracy` (all labels right), `jaccard` (mean over proteins), `micro_f1`, `macro_f1`, `mcc` (mean over
    labels): the figures DeepLoc 2.0 gives (Thumuluri et al. 2022, doi:10.1093/nar/gkac278). F1 and MCC are 0
    where undefined; labels that occur neither as truth nor as prediction are left out.

    Args:
        weights: float[samples, proteins], how often each protein is in each sample.
    """
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


def per_class(truth: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (number of true proteins) of each label; 0 where undefined."""
    counts = ((int(t @ p), int(t.sum()), int(p.sum())) for t, p in zip(truth.T, predicted.T))
    return {label: _figures(*row) for label, row in zip(labels, counts)}


def per_class_of_confusion(confusion: np.ndarray, labels: list[str]) -> dict[str, dict[str, float]]:
    """As `per_class`, of a confusion matrix int[true, predicted label]."""
    counts = zip(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
    return {label: _figures(*map(int, row)) for label, row in zip(labels, counts)}


def _figures(hits: int, support: int, predictions: int) -> dict[str, float]:
    return {
        "precision": hits / max(predictions, 1),
        "recall": hits / max(support, 1),
        "f1": 2 * hits / max(support + predictions, 1),
        "support": support,
    }


def probabilities(logits: np.ndarray, temperature: float, multi_label: bool) -> np.ndarray:
    """Calibrated probabilities float64[proteins, labels]; rows sum to 1 unless `multi_label`."""
    scaled = logits.astype(np.float64) / temperature
    return expit(scaled) if multi_label else softmax(scaled, axis=-1)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature that minimises the validation cross entropy (Guo et al. 2017, arXiv:1706.04599)."""
    from scipy.optimize import minimize_scalar  # slow to import

    logits = logits.astype(np.float64)

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if targets.ndim == 2:
            return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))
        return float(-log_softmax(scaled, axis=-1)[np.arange(len(targets)), targets].mean())

    return float(np.exp(minimize_scalar(cross_entropy, bounds=(-3, 3), method="bounded").x))


def reliability(probability: np.ndarray, correct: np.ndarray) -> list[tuple[int, float, float]]:
    """(proteins, mean probability, share correct) of each filled one of `ECE_BINS` equal bins.

    Args:
        probability: float[n], what the model gave a prediction.
        correct: bool[n], whether it was right.
    """
    bins = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)
    inside = [bins == number for number in range(ECE_BINS)]
    return [(int(b.sum()), float(probability[b].mean()), float(correct[b].mean())) for b in inside if b.any()]


def expected_calibration_error(probability: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between probability and share correct, weighted by the proteins of each bin."""
    bins = reliability(probability, correct)
    return sum(count * abs(given - share) for count, given, share in bins) / len(correct)


def calibration_facts(
    temperature: float, judged: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, float | dict]:
    """What a report says of probabilities.

    Args:
        judged: before calibration and after it, by name: probabilities float[n] and whether each was right.
    """
    return {
        "temperature": temperature,
        "expected_calibration_error": {
            name: expected_calibration_error(*pair) for name, pair in judged.items()
        },
        "reliability": {name: reliability(*pair) for name, pair in judged.items()},
    }
