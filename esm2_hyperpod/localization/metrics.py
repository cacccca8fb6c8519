"""Scores of a classifier, their uncertainty, and the calibration of its probabilities."""

import datasets
import evaluate
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from esm2_hyperpod.localization.multilabel import multilabel_scores

RESAMPLES = 2_000
ECE_BINS = 15


class LocalizationScores(evaluate.Metric):
    """`accuracy`, `macro_f1` and `mcc` of predicted label numbers, as a `evaluate.Metric` kept in memory.

    `mcc` is the multi-class Matthews correlation, which is Gorodkin's R_K (2004,
    doi:10.1016/j.compbiolchem.2004.09.006), DeepLoc's second figure. Nothing is fetched.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy, macro F1 and multi-class Matthews correlation (Gorodkin's R_K).",
            citation="",
            inputs_description="predictions, references: label numbers; num_labels: how many there are",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, num_labels):
        confusion = confusion_matrix(np.asarray(references), np.asarray(predictions), num_labels)
        return {name: float(value) for name, value in scores_of_confusion(confusion).items()}


def score(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Scores of what the logits (float[proteins, labels]) predict, without intervals.

    `targets` are label numbers int[proteins], or 0/1 float[proteins, labels] where there may be several.
    """
    if targets.ndim == 2:
        predicted = decide(probabilities(logits, 1.0, multi_label=True), multi_label=True)
        return multilabel_scores(targets.astype(int), predicted)
    return LocalizationScores().compute(
        predictions=logits.argmax(axis=1), references=targets, num_labels=logits.shape[1]
    )


def decide(probability: np.ndarray, multi_label: bool) -> np.ndarray:
    """0/1 int[proteins, labels]: the most probable label; if `multi_label`, also all of a half or more."""
    chosen = np.zeros(probability.shape, dtype=int)
    chosen[np.arange(len(chosen)), probability.argmax(axis=1)] = 1
    if not multi_label:
        return chosen
    several = (probability >= 0.5).astype(int)
    return np.where(several.any(axis=1, keepdims=True), several, chosen)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """int64[labels, labels]: proteins of true label (row) predicted as (column)."""
    cells = np.bincount(truth * num_labels + predicted, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def scores_of_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, macro F1 and MCC of one confusion matrix, or of many at once ([..., labels, labels]).

    Macro F1 is over the labels that occur, as truth or as prediction. MCC is 0 where it is undefined.
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


def bootstrap_intervals(confusion: np.ndarray, seed: int) -> dict[str, list[float]]:
    """95% percentile intervals of the scores over resampled test proteins.

    Drawing proteins with replacement is drawing the confusion matrix from a multinomial.
    """
    total = confusion.sum()
    draws = np.random.default_rng(seed).multinomial(total, confusion.ravel() / total, size=RESAMPLES)
    scores = scores_of_confusion(draws.reshape(-1, *confusion.shape))
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in scores.items()}


def per_class(truth: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (number of true proteins) of each label; 0 where undefined.

    Args:
        truth, predicted: 0/1 int[proteins, labels].
    """
    rows = {}
    for label, true, given in zip(labels, truth.T, predicted.T):
        hits, support, predictions = int(true @ given), int(true.sum()), int(given.sum())
        rows[label] = {
            "precision": hits / max(predictions, 1),
            "recall": hits / max(support, 1),
            "f1": 2 * hits / max(support + predictions, 1),
            "support": support,
        }
    return rows


def probabilities(logits: np.ndarray, temperature: float, multi_label: bool) -> np.ndarray:
    """Calibrated probabilities float64[proteins, labels]; rows sum to 1 unless `multi_label`."""
    scaled = logits.astype(np.float64) / temperature
    return expit(scaled) if multi_label else softmax(scaled, axis=-1)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature that minimises the validation cross entropy (Guo et al. 2017, arXiv:1706.04599)."""
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
