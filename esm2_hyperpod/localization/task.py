"""What a fine-tuning task consists of, beyond what all have in common; and the first: places in the cell."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from esm2_hyperpod.localization.encoding import Encoded, EncodedProteins, encode_cropped
from esm2_hyperpod.localization.evaluation import evaluate_test
from esm2_hyperpod.localization.metrics import as_rows, decide, probabilities, scores
from esm2_hyperpod.localization.pictures import draw_confusion_matrix, draw_reliability
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.proteins.splits import Splits

SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC (Gorodkin's R_K)"}
MULTILABEL_SCORES = {
    "accuracy": "all labels right",
    "jaccard": "Jaccard",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mcc": "mean MCC",
}


class Places:
    """Where in the cell a protein lives: a label a protein, or several.

    Logits are float32[proteins, labels].
    """

    title = "Subcellular localization"
    loads_with = "AutoModelForSequenceClassification"
    truth_column = "true_label"
    unit = "proteins"
    limits = (
        "The model gives one of its labels to any sequence, also to what lives elsewhere, in several places, "
        "or\nis no protein."
    )

    def encode(self, proteins: Sequence, settings: Settings) -> Encoded:
        """Labelled proteins as the model reads them."""
        return EncodedProteins(proteins, settings)

    def inputs(self, sequences: Sequence[str], settings: Settings) -> list[np.ndarray]:
        """Token ids uint8[tokens] of what the model reads of proteins."""
        return [encode_cropped(sequence, settings) for sequence in sequences]

    def counted(self, encoded: Encoded) -> np.ndarray:
        """How much each item counts in the loss of a batch: int64[items]."""
        return np.ones(len(encoded), dtype=np.int64)

    def flat_targets(self, encoded: Encoded) -> np.ndarray:
        """The targets of all logits."""
        return encoded.targets

    def loss(
        self, logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None
    ) -> torch.Tensor:
        """See `classification_loss`."""
        return classification_loss(logits, targets, class_weights)

    def figures(self, logits: np.ndarray, encoded: Encoded, settings: Settings) -> dict[str, float]:
        """Scores of validation logits."""
        several = settings.multi_label
        predicted = decide(probabilities(logits, 1.0, several), several)
        return scores(as_rows(encoded.targets, logits.shape[1]), predicted, several)

    def calibrate(self, settings: Settings, logits: np.ndarray, encoded: Encoded) -> None:
        """Put into `settings` what makes of logits probabilities, by those of the validation proteins."""
        settings.calibrate(logits, encoded.targets)

    def evaluate(
        self,
        logits: np.ndarray,
        splits: Splits,
        settings: Settings,
        train: Encoded,
        test: Encoded,
        seed: int,
    ) -> dict[str, Any]:
        """The test: scores with intervals, beside those of baselines."""
        return evaluate_test(logits, splits, settings, train, test, seed)

    def scores(self, settings: Settings) -> dict[str, str]:
        """The scores of the report and their names."""
        return MULTILABEL_SCORES if settings.multi_label else SCORES

    def columns(self, settings: Settings) -> list[str]:
        """The columns of a table of predictions, after the id."""
        return ["label", *settings.labels]

    def cells(self, sequences: Sequence[str], logits: np.ndarray, settings: Settings) -> Iterator[list[str]]:
        """A protein's row of a table of predictions, after the id."""
        return map(settings.cells, settings.probabilities(logits))

    def draw(self, output_dir: Path, test: dict[str, Any], settings: Settings, title: str) -> None:
        """Pictures of the test."""
        confusion = np.array(test["confusion_matrix"])
        draw_confusion_matrix(
            output_dir / "confusion_matrix.png", confusion, settings.labels, title, self.unit
        )
        bins = test["calibration"]["reliability"]
        draw_reliability(output_dir / "reliability.png", bins, title, self.unit)

    def what(self, settings: Settings) -> str:
        """What the model says, for its card."""
        some = "Any" if settings.multi_label else "One"
        return (
            f"{some} of {len(settings.labels)} localizations from the sequence: {', '.join(settings.labels)}"
        )

    def amount(self, settings: Settings, cropped: int) -> str:
        """How much there is to tell apart, and what is too long."""
        return (
            f"{len(settings.labels)} labels; {cropped:,} longer than {settings.max_seq_length:,} tokens and "
            "cropped"
        )

    def reading(self, settings: Settings, cropped: int) -> str:
        """How long proteins are read, for the report."""
        return (
            f"At most {settings.max_seq_length:,} tokens a protein (crop: {settings.crop}); {cropped:,} "
            "proteins were longer."
        )

    def notes(self, test: dict[str, Any], settings: Settings) -> str:
        """What the report says below the table of scores."""
        return (
            "The majority class is the most frequent label of the test proteins. "
            f"The k-mer baseline is {test['baselines']['kmer_logistic_regression']['what']}.\n\n"
            f"{calibration_and_classes(test, settings, 'proteins')}"
        )


def calibration_and_classes(test: dict[str, Any], settings: Settings, unit: str) -> str:
    """The part of a report about probabilities and single labels."""
    error = test["calibration"]["expected_calibration_error"]
    rows = [
        f"| {label} | {row['precision']:.2f} | {row['recall']:.2f} | {row['f1']:.2f} | {row['support']} |"
        for label, row in test["per_class"].items()
    ]
    return "\n".join(
        [
            f"Logits are divided by a temperature of {settings.temperature:.2f}, fitted on validation: "
            f"expected calibration error {error['calibrated']:.3f} (without it {error['uncalibrated']:.3f}).",
            "",
            f"| label | precision | recall | F1 | test {unit} |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None
) -> torch.Tensor:
    """Loss summed over the proteins of a micro-batch, in fp32. Weighted losses are divided by the number of
    proteins, not by the weights that happen to be in the batch, so that a batch may be cut anyhow.

    Args:
        logits: [proteins, labels].
        targets: int64[proteins] label numbers, or float[proteins, labels] of 0 and 1.
        class_weights: float[labels], of mean 1 over the training proteins, or None.
    """
    logits = logits.float()
    if targets.is_floating_point():
        loss = functional.binary_cross_entropy_with_logits(logits, targets, class_weights, reduction="none")
        return loss.mean(dim=1).sum()
    return functional.cross_entropy(logits, targets, class_weights, reduction="none").sum()
