"""Pictures of a test: confusion matrix, calibration, predicted against true numbers."""

from pathlib import Path

import numpy as np

from esm2_hyperpod.figures import new_figure, save_figure


def draw_confusion_matrix(path: Path, confusion: np.ndarray, labels: list[str], title: str) -> None:
    """A picture of the confusion matrix: counts, coloured by the share of the true label."""
    from sklearn.metrics import ConfusionMatrixDisplay

    size = 3 + 0.6 * len(labels)
    figure, (axes,) = new_figure(size, size)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares, display_labels=labels)
    display.plot(
        ax=axes, include_values=False, cmap="Blues", xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 1}
    )
    for row, column in np.ndindex(*confusion.shape):
        dark = shares[row, column] > 0.5
        axes.text(
            column, row, confusion[row, column], ha="center", va="center", color="white" if dark else "black"
        )
    axes.set(title=title, xlabel="predicted", ylabel="true")
    save_figure(figure, path)


def draw_reliability(path: Path, bins: dict[str, list[tuple[int, float, float]]], title: str) -> None:
    """Share of correct predictions against the probability they were given, with and without calibration."""
    figure, (axes,) = new_figure(5, 5)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfectly calibrated")
    for name, points in bins.items():
        axes.plot([given for _, given, _ in points], [share for _, _, share in points], "o-", label=name)
    axes.set(
        title=title, xlabel="probability of the prediction", ylabel="share correct", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend()
    save_figure(figure, path)


def draw_numbers(path: Path, truth: np.ndarray, predicted: np.ndarray, title: str) -> None:
    """Predicted against true numbers, float[proteins] each, and the line where they are equal."""
    figure, (axes,) = new_figure(5, 5)
    axes.scatter(truth, predicted, s=6, alpha=0.5)
    axes.axline((truth.mean(), truth.mean()), slope=1, color="grey", linestyle="--")
    axes.set(title=title, xlabel="true", ylabel="predicted")
    save_figure(figure, path)
