"""The task of one label a residue: secondary structure, binding sites, disorder."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from esm2_hyperpod.alphabet import encode
from esm2_hyperpod.localization.encoding import NO_LABEL, Encoded, EncodedResidues
from esm2_hyperpod.localization.metrics import (
    calibration_facts,
    intervals_over_proteins,
    per_class_of_confusion,
    probabilities,
    scores_of_confusion,
)
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.localization.task import SCORES, Places, calibration_and_classes
from esm2_hyperpod.proteins.labelled import Protein
from esm2_hyperpod.proteins.splits import Splits
from esm2_hyperpod.streaming.windows import windows


class Residues(Places):
    """A label a residue. Logits are float32[tokens of all windows, labels]."""

    title = "A label for each residue"
    loads_with = "AutoModelForTokenClassification"
    truth_column = "true_labels"
    unit = "residues"
    limits = "The model gives one of its labels to each residue of any sequence, also of what is no protein."

    def encode(self, proteins: Sequence[Protein], settings: Settings) -> EncodedResidues:
        """As `Places.encode`, in windows."""
        return EncodedResidues(proteins, settings)

    def inputs(self, sequences: Sequence[str], settings: Settings) -> list[np.ndarray]:
        """As `Places.inputs`; several windows of a protein that is longer than one."""
        return [
            encode(sequence[window.start : window.stop].encode())
            for sequence in sequences
            for window in windows(len(sequence), settings.max_seq_length)
        ]

    def counted(self, encoded: Encoded) -> np.ndarray:
        """The labelled residues of each window."""
        return np.array([(row != NO_LABEL).sum() for row in encoded.targets])

    def flat_targets(self, encoded: Encoded) -> np.ndarray:
        """int64[tokens of all windows]."""
        return np.concatenate(encoded.targets)

    def loss(
        self, logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Cross entropy summed over the labelled residues, in fp32; logits may be [rows, tokens, labels]."""
        logits = logits.float().flatten(0, -2)
        losses = functional.cross_entropy(
            logits, targets.flatten(), class_weights, ignore_index=NO_LABEL, reduction="none"
        )
        return losses.sum()

    def figures(self, logits: np.ndarray, encoded: Encoded, settings: Settings) -> dict[str, float]:
        """Scores of the labelled validation residues."""
        confusion = confusions(logits.argmax(axis=1), encoded, logits.shape[1]).sum(axis=0)
        return {name: float(value) for name, value in scores_of_confusion(confusion).items()}

    def calibrate(self, settings: Settings, logits: np.ndarray, encoded: Encoded) -> None:
        """As `Places.calibrate`, by the labelled residues."""
        targets = self.flat_targets(encoded)
        labelled = targets != NO_LABEL
        settings.calibrate(logits[labelled], targets[labelled])

    def evaluate(
        self,
        logits: np.ndarray,
        splits: Splits,
        settings: Settings,
        train: Encoded,
        test: Encoded,
        seed: int,
    ) -> dict[str, Any]:
        """Scores of the labelled test residues, with intervals over proteins; calibration."""
        from esm2_hyperpod.localization import baselines  # slow to import

        count, targets = len(settings.labels), self.flat_targets(test)
        labelled = targets != NO_LABEL
        truth, predicted = targets[labelled], logits.argmax(axis=1)
        given = {
            "uncalibrated": probabilities(logits[labelled], 1.0, False),
            "calibrated": settings.probabilities(logits[labelled]),
        }
        right = predicted[labelled] == truth
        judged = {name: (probability.max(axis=1), right) for name, probability in given.items()}
        majority = int(np.bincount(truth).argmax())

        def scored(predicted: np.ndarray) -> dict[str, Any]:
            found = confusions(predicted, test, count)
            figures = {name: float(v) for name, v in scores_of_confusion(found.sum(axis=0)).items()}
            return {**figures, "intervals_95": intervals_over_proteins(found, seed)}

        by_window = baselines.window_predictions(train, test, seed)
        confusion = confusions(predicted, test, count).sum(axis=0)
        return {
            "proteins": len(splits.test),
            "residues": len(truth),
            "model": scored(predicted),
            "baselines": {
                "majority_class": {
                    "label": settings.labels[majority],
                    **scored(np.full(len(targets), majority)),
                },
                "window_logistic_regression": {"what": baselines.WINDOW_CLASSIFIER, **scored(by_window)},
            },
            "calibration": calibration_facts(settings.temperature, judged),
            "per_class": per_class_of_confusion(confusion, settings.labels),
            "confusion_matrix": confusion.tolist(),
        }

    def scores(self, settings: Settings) -> dict[str, str]:
        """As `Places.scores`."""
        return SCORES

    def columns(self, settings: Settings) -> list[str]:
        """A string of labels, and the mean probability that they were given."""
        return ["labels", "confidence"]

    def cells(self, sequences: Sequence[str], logits: np.ndarray, settings: Settings) -> Iterator[list[str]]:
        """As `Places.cells`: a label for each residue, from the window in which it is farthest from a cut."""
        letters, start = np.array(settings.labels), 0
        for sequence in sequences:
            parts = []
            for window in windows(len(sequence), settings.max_seq_length):
                first = start + 1 - window.start  # the row of the protein's first residue, if it had one
                parts.append(logits[first + window.first : first + window.last])
                start += window.stop - window.start + 2
            probability = settings.probabilities(np.concatenate(parts))
            confidence = f"{probability.max(axis=1).mean():.6f}" if len(probability) else ""
            yield ["".join(letters[probability.argmax(axis=1)]), confidence]

    def what(self, settings: Settings) -> str:
        """As `Places.what`."""
        return f"One of {len(settings.labels)} labels for each residue: {', '.join(settings.labels)}"

    def amount(self, settings: Settings, cropped: int) -> str:
        """As `Places.amount`."""
        return (
            f"{len(settings.labels)} labels; {cropped:,} longer than {settings.max_seq_length:,} tokens and "
            "read in windows"
        )

    def reading(self, settings: Settings, cropped: int) -> str:
        """As `Places.reading`."""
        return (
            f"{cropped:,} proteins of more than {settings.max_seq_length:,} tokens are read in windows that "
            "overlap by half; each residue counts once. Residues without a label never count."
        )

    def notes(self, test: dict[str, Any], settings: Settings) -> str:
        """As `Places.notes`."""
        return (
            f"{test['residues']:,} labelled residues of {test['proteins']:,} proteins. The majority class is "
            f"the most frequent label of the test residues. The window baseline is "
            f"{test['baselines']['window_logistic_regression']['what']}.\n\n"
            f"{calibration_and_classes(test, settings, 'residues')}"
        )


def confusions(predicted: np.ndarray, encoded: EncodedResidues, labels: int) -> np.ndarray:
    """int[proteins, true, predicted label], the labelled residues of each protein.

    Args:
        predicted: int[tokens of all windows], label numbers.
    """
    targets = np.concatenate(encoded.targets)
    protein = np.repeat(encoded.protein, [len(row) for row in encoded.targets])
    labelled = targets != NO_LABEL
    cell = (protein[labelled] * labels + targets[labelled]) * labels + predicted[labelled]
    proteins = int(encoded.protein.max()) + 1
    return np.bincount(cell, minlength=proteins * labels**2).reshape(proteins, labels, labels)
