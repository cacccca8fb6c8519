"""Attributions of the first proteins of a file, as CSV and as a picture with the regions that stand out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esm2_hyperpod.artifacts import write_csv
from esm2_hyperpod.figures import BLUE, GREY, LIGHT, ORANGE, RED, WIDTH, new_figure, save_figure, short
from esm2_hyperpod.localization.attribution import Attribution

PICTURED = 20
NEIGHBOURS, REGIONS = 11, 5
"""Residues that a region's mean is over, and the most regions that are named."""


def write_attributions(output: Path, found: Sequence[Attribution]) -> None:
    """Write `output` (id, label, position, residue, attribution) and a picture of the same name."""
    header = ["id", "label", "position", "residue", "attribution"]
    rows = (
        [one.id, one.label, position, residue, f"{value:.6f}"]
        for one in found
        for position, residue, value in zip(one.position, one.residues, one.value)
    )
    write_csv(output, header, rows)
    if found:
        draw_attributions(output.with_suffix(".png"), found[:PICTURED])


def draw_attributions(path: Path, found: Sequence[Attribution]) -> None:
    """A panel a protein and label: residues for the label in blue, against it in red, regions in yellow."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = new_figure(WIDTH, 1.9 * len(found) + 0.4, rows=len(found))
    for axes, one in zip(panels, found):
        axes.bar(one.position, one.value, width=1.0, color=np.where(one.value > 0, BLUE, RED))
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.set(ylabel="logits", xlim=(0.5, one.position[-1] + 0.5))
        axes.set_title(f"{short(one.id, 28)}: {short(one.label, 24)} ({one.probability:.0%})")
        axes.margins(y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        top = axes.get_xaxis_transform()
        for first, last in regions(one.position, one.value):
            axes.axvspan(first - 0.5, last + 0.5, color=ORANGE, alpha=0.25, linewidth=0, zorder=0)
            name = f"{first}–{last}" if last > first else str(first)
            axes.text((first + last) / 2, 0.97, name, transform=top, ha="center", va="top", fontsize=9)
        for at in np.flatnonzero(np.diff(one.position) > 1):
            first, last = one.position[at] + 0.5, one.position[at + 1] - 0.5
            axes.axvspan(first, last, facecolor="white", edgecolor=LIGHT, hatch="///", linewidth=0)
            axes.text((first + last) / 2, 0.5, "not read", transform=top, ha="center", color=GREY)
    panels[-1].set_xlabel("position in the sequence")
    save_figure(figure, path)


def regions(position: np.ndarray, value: np.ndarray) -> list[tuple[int, int]]:
    """First and last position of the stretches that carry most, in the order of the sequence.

    Where the mean over `NEIGHBOURS` residues has at least half of its largest size, for the label or against
    it; the `REGIONS` largest of these.
    """
    parts = np.split(np.arange(len(position)), np.flatnonzero(np.diff(position) > 1) + 1)
    means = np.concatenate([_means(value[part]) for part in parts])
    if not means.any():
        return []
    kind = np.where(abs(means) >= abs(means).max() / 2, np.sign(means), 0)
    borders = (np.diff(kind) != 0) | (np.diff(position) > 1)
    runs = np.split(np.arange(len(kind)), np.flatnonzero(borders) + 1)
    runs = [run for run in runs if kind[run[0]]]
    largest = sorted(runs, key=lambda run: -abs(means[run].sum()))[:REGIONS]
    return sorted((int(position[run[0]]), int(position[run[-1]])) for run in largest)


def _means(value: np.ndarray) -> np.ndarray:
    """The mean of each residue and its neighbours, fewer at the ends."""
    window = np.ones(NEIGHBOURS)
    half = NEIGHBOURS // 2
    sums, counts = (np.convolve(of, window)[half : half + len(value)] for of in (value, np.ones(len(value))))
    return sums / counts
