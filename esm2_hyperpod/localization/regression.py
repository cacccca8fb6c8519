"""The task of a number a protein: stability, fluorescence, affinity."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esm2_hyperpod.localization.encoding import Encoded
from esm2_hyperpod.localization.pictures import draw_numbers
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.localization.task import Places
from esm2_hyperpod.proteins.kinds import targets
from esm2_hyperpod.proteins.splits import Splits

RESAMPLES = 1_000


class Regression(Places):
    """A number a protein. Logits are float32[proteins, 1]: the number less the mean, over the scale."""

    title = "A number for each protein"
    truth_column = "target"
    limits = "The model gives a number to any sequence, also to what is no protein."

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, class_weights: None) -> torch.Tensor:
        """Squared error summed over the proteins, of numbers in standard deviations, in fp32."""
        return (logits.float()[:, 0] - targets).square().sum()

    def figures(self, logits: np.ndarray, encoded: Encoded, settings: Settings) -> dict[str, float]:
        """Scores of the validation numbers, in the units of the file."""
        truth = encoded.targets.astype(np.float64) * settings.scale + settings.mean
        return scores_of_numbers(truth, numbers(logits, settings))

    def calibrate(self, settings: Settings, logits: np.ndarray, encoded: Encoded) -> None:
        """Nothing: numbers have no probability."""

    def evaluate(
        self,
        logits: np.ndarray,
        splits: Splits,
        settings: Settings,
        train: Encoded,
        test: Encoded,
        seed: int,
    ) -> dict[str, Any]:
        """Scores of the test proteins with intervals, beside those of the mean and of k-mers."""
        from esm2_hyperpod.localization import baselines  # slow to import

        truth, mean = targets(splits.test), float(targets(splits.train).mean())

        def scored(predicted: np.ndarray) -> dict[str, Any]:
            figures = scores_of_numbers(truth, predicted)
            return {**figures, "intervals_95": intervals_of_numbers(truth, predicted, seed)}

        penalty, by_kmers = baselines.kmer_numbers(splits)
        return {
            "proteins": len(truth),
            "model": scored(numbers(logits, settings)),
            "baselines": {
                "mean_of_training": {"number": mean, **scored(np.full(len(truth), mean))},
                "kmer_ridge_regression": {
                    "what": baselines.KMER_REGRESSION,
                    "penalty": penalty,
                    **scored(by_kmers),
                },
            },
            "numbers": {"true": truth.tolist(), "predicted": numbers(logits, settings).tolist()},
        }

    def scores(self, settings: Settings) -> dict[str, str]:
        """As `Places.scores`."""
        return {"spearman": "Spearman", "pearson": "Pearson", "rmse": "RMSE"}

    def columns(self, settings: Settings) -> list[str]:
        """The number, in the units of the training file."""
        return ["prediction"]

    def cells(self, sequences: Sequence[str], logits: np.ndarray, settings: Settings) -> Iterator[list[str]]:
        """As `Places.cells`."""
        return ([f"{number:.7g}"] for number in numbers(logits, settings))

    def draw(self, output_dir: Path, test: dict[str, Any], settings: Settings, title: str) -> None:
        """As `Places.draw`."""
        true, predicted = (np.array(test["numbers"][name]) for name in ("true", "predicted"))
        draw_numbers(output_dir / "predicted_against_true.png", true, predicted, title)

    def what(self, settings: Settings) -> str:
        """As `Places.what`."""
        return (
            f"A number from the sequence; those of the training proteins have the mean {settings.mean:.4g} "
            f"and the standard deviation {settings.scale:.4g}"
        )

    def amount(self, settings: Settings, cropped: int) -> str:
        """As `Places.amount`."""
        return (
            f"targets {settings.mean:.4g} +- {settings.scale:.4g}; {cropped:,} longer than "
            f"{settings.max_seq_length:,} tokens and cropped"
        )

    def notes(self, test: dict[str, Any], settings: Settings) -> str:
        """As `Places.notes`."""
        return (
            "RMSE is in the units of the targets, whose standard deviation over the training proteins is "
            f"{settings.scale:.4g}. A correlation with a constant is 0. The k-mer baseline is "
            f"{test['baselines']['kmer_ridge_regression']['what']}."
        )


def numbers(logits: np.ndarray, settings: Settings) -> np.ndarray:
    """What logits float32[proteins, 1] stand for, in the units of the training file: float64[proteins]."""
    return logits[:, 0].astype(np.float64) * settings.scale + settings.mean


def scores_of_numbers(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Spearman's and Pearson's correlation (0 with a constant) and RMSE of float64[proteins] each."""
    return _scores(_Ranked(truth), _Ranked(predicted), np.ones(len(truth)))


def intervals_of_numbers(truth: np.ndarray, predicted: np.ndarray, seed: int) -> dict[str, list[float]]:
    """95% percentile intervals of `scores_of_numbers` over resampled proteins."""
    random, count = np.random.default_rng(seed), len(truth)
    pair = _Ranked(truth), _Ranked(predicted)
    draws = (random.multinomial(count, np.full(count, 1 / count)) for _ in range(RESAMPLES))
    found = [_scores(*pair, draw.astype(np.float64)) for draw in draws]
    return {name: np.percentile([row[name] for row in found], [2.5, 97.5]).tolist() for name in found[0]}


class _Ranked:
    """Numbers float64[n] that can be ranked in any sample of them, ties sharing their mean rank."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self._different, self._place = np.unique(values, return_inverse=True)

    def ranks(self, weight: np.ndarray) -> np.ndarray:
        """The rank of each number in a sample that holds it `weight` times, float64[n]."""
        times = np.bincount(self._place, weight, len(self._different))
        return (times.cumsum() - (times - 1) / 2)[self._place]


def _scores(truth: _Ranked, predicted: _Ranked, weight: np.ndarray) -> dict[str, float]:
    error = weight @ (truth.values - predicted.values) ** 2 / weight.sum()
    return {
        "spearman": _correlation(truth.ranks(weight), predicted.ranks(weight), weight),
        "pearson": _correlation(truth.values, predicted.values, weight),
        "rmse": float(np.sqrt(error)),
    }


def _correlation(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> float:
    """Pearson's correlation of a weighted sample; 0 if one side is constant in it."""
    taken = weight > 0
    if np.ptp(first[taken]) == 0 or np.ptp(second[taken]) == 0:
        return 0.0
    first, second = (values - weight @ values / weight.sum() for values in (first, second))
    spread = np.sqrt((weight @ first**2) * (weight @ second**2))
    return float(weight @ (first * second) / spread)
