"""The pictures of a test: which label is taken for which, what a probability is worth, numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esm2_hyperpod.figures import BLUE, GREY, LIGHT, WIDTH, add_title, new_figure, save_figure, short
from esm2_hyperpod.localization.metrics import ECE_BINS

CELL, LETTERS = 0.5, 24  # inches of a cell of the matrix; letters of a label
TICKS = (0, 0.25, 0.5, 0.75, 1)

Bins = Sequence[tuple[int, float, float]]
"""(proteins, mean probability, share correct), see `metrics.reliability`."""


def title_of(metrics: dict[str, Any]) -> str:
    """What the pictures of a run are of; its metrics.json."""
    proteins, origin = metrics["test"]["proteins"], metrics["split"]["origin"]["test"]
    return f"{proteins:,} test proteins, split: {origin}" + (
        ", synthetic" if metrics["synthetic_data"] else ""
    )


def draw_confusion_matrix(
    path: Path, confusion: np.ndarray, labels: list[str], title: str, unit: str = "proteins"
) -> None:
    """Share of each true label in colour and percent, with the counts; the most frequent labels first.

    Args:
        confusion: int[true label, predicted label].
        unit: what is counted.
    """
    support = confusion.sum(axis=1)
    order = np.argsort(-support, kind="stable")
    confusion, support = confusion[np.ix_(order, order)], support[order]
    names = [short(labels[number], LETTERS) for number in order]
    shares = confusion / np.maximum(support[:, None], 1)
    side, longest = max(CELL * len(names), 2), max(map(len, names))
    figure, (axes,) = new_figure(side + 0.08 * longest + 2.4, side + 0.055 * longest + 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(confusion)):
        colour = "white" if shares[row, column] > 0.5 else "black"
        place = {"ha": "center", "color": colour}
        axes.text(column, row, f"{shares[row, column]:.0%}", va="bottom", fontsize=10, **place)
        axes.text(column, row + 0.06, f"{confusion[row, column]:,}", va="top", fontsize=8, **place)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name} ({count:,})" for name, count in zip(names, support)])
    axes.set(xlabel="predicted", ylabel=f"true ({unit})")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format="{x:.0%}")
    bar.set_label("share of the true label")
    bar.outline.set_visible(False)
    add_title(figure, title)
    save_figure(figure, path)


def draw_reliability(path: Path, bins: dict[str, Bins], title: str, unit: str = "proteins") -> None:
    """Share of correct predictions against the probability given, with 95% intervals; how many, beneath.

    A column each for what `bins` has: before calibration, and after it. ECE: expected calibration error.
    Residues get no intervals: those of a protein are not independent.
    """
    from scipy.stats import binomtest  # slow to import

    figure, panels = new_figure(
        WIDTH, 5, rows=2, columns=len(bins), sharex=True, sharey="row", height_ratios=[3, 1]
    )
    for (name, points), above, below in zip(bins.items(), panels, panels[len(bins) :]):
        count, given, share = (np.array(values) for values in zip(*points))
        found = [binomtest(round(n * s), n).proportion_ci(method="wilson") for n, s in zip(count, share)]
        ends = np.array([[s - ci.low, ci.high - s] for s, ci in zip(share, found)]).clip(0).T
        ends = ends if unit == "proteins" else None
        above.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
        above.errorbar(
            given, share, ends, fmt="o", color=BLUE, ecolor=LIGHT, elinewidth=2, markersize=5, clip_on=False
        )
        error = np.abs(given - share) @ count / count.sum()
        above.set_title(f"{name} (ECE {error:.3f})")
        above.set(xlim=(0, 1), ylim=(0, 1), xticks=TICKS, yticks=TICKS)
        edges = np.floor(given * ECE_BINS).clip(max=ECE_BINS - 1) / ECE_BINS
        below.bar(edges, count, width=0.9 / ECE_BINS, align="edge", color=LIGHT)
        below.set(xlabel="probability given")
    panels[0].set_ylabel("share correct" + (" (95% interval)" if unit == "proteins" else ""))
    panels[len(bins)].set_ylabel(unit)
    add_title(figure, title)
    save_figure(figure, path)


def draw_numbers(path: Path, truth: np.ndarray, predicted: np.ndarray, title: str) -> None:
    """Predicted against true numbers, float[proteins] each, and the line where they are equal."""
    figure, (axes,) = new_figure(WIDTH, 6)
    axes.scatter(truth, predicted, s=12, alpha=0.5, color=BLUE)
    axes.axline((truth.mean(), truth.mean()), slope=1, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
    axes.set(xlabel="true", ylabel="predicted")
    add_title(figure, title)
    save_figure(figure, path)
