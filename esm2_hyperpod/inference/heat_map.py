"""A picture of the effects of all single substitutions: residues by position."""

import csv
import re
from pathlib import Path

import numpy as np

from esm2_hyperpod.figures import WIDTH, new_figure, save_figure, short

PICTURED, LINES, POSITIONS = 4, 40, 60
"""At most so many proteins, the first of the table, and lines of so many positions: larger is too large."""
ORDER = "GAVLIMPFWYSTCNQDEKRH"
"""Residues by their chemistry: small, aliphatic, aromatic, polar, acidic, basic."""


def draw_heat_map(table: Path, score: str, path: Path, only: str | None) -> int:
    """Draw the single substitutions of the first proteins of a table of scores; returns how many proteins.

    `only` is the protein that all rows are of; without it their column `id` says. A substitution that is not
    in the table is blank, the wild type a dot. The colours end where 99% of the scores do.
    """
    grids = _grids(table, score, only)
    lines = [(name, start, grid) for name, grid in grids.items() for start in _lines(grid)][:LINES]
    if not lines:
        return 0
    found = [value for grid in grids.values() for effects in grid.values() for _, _, value in effects]
    if "marginals" in score:
        most = float(np.percentile(np.abs(found), 99)) or 1.0
        colours = {"vmin": -most, "vmax": most, "cmap": "RdBu_r"}
    else:
        low, high = np.percentile(found, [1, 99])
        colours = {"vmin": low, "vmax": high, "cmap": "viridis"}
    figure, panels = new_figure(WIDTH + 1.5, 2.9 * len(lines) + 0.6, rows=len(lines))
    for axes, (name, start, grid) in zip(panels, lines):
        shown = _draw_line(axes, start, grid, colours)
        if start == _lines(grid)[0]:
            axes.set_title(short(name, 60))
    panels[-1].set_xlabel("position, wild type above it (dot)")
    bar = figure.colorbar(shown, ax=panels, shrink=min(1, 1.5 / len(lines) + 0.1), extend="both", aspect=30)
    bar.set_label(score.replace("_", " ") + (" (log odds)" if "marginals" in score else ""))
    bar.outline.set_visible(False)
    save_figure(figure, path)
    return len(grids)


def _draw_line(axes, start: int, grid: dict[int, list[tuple[str, str, float]]], colours: dict):
    """Draw the positions from `start`; returns the image."""
    image = np.full((len(ORDER), POSITIONS), np.nan)
    wild_type = {}
    for position in range(start, start + POSITIONS):
        for before, after, value in grid.get(position, ()):
            image[ORDER.index(after), position - start] = value
            wild_type[position] = before
    extent = (start - 0.5, start + POSITIONS - 0.5, len(ORDER) - 0.5, -0.5)
    shown = axes.imshow(image, aspect="auto", extent=extent, interpolation="nearest", **colours)
    for position, residue in wild_type.items():
        if residue in ORDER:
            axes.plot(position, ORDER.index(residue), ".", color="black", markersize=3)
    axes.set_xticks([at for at in range(start, start + POSITIONS) if at % 10 == 0 and at <= max(grid)])
    axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    letters = axes.secondary_xaxis("top")
    letters.set_xticks(list(wild_type), list(wild_type.values()), fontsize=8)
    letters.tick_params(length=0, pad=1)
    letters.spines[:].set_visible(False)
    return shown


def _grids(table: Path, score: str, only: str | None) -> dict[str, dict[int, list[tuple[str, str, float]]]]:
    """protein -> position -> (wild type, new residue, score) of its single substitutions."""
    grids: dict[str, dict[int, list]] = {}
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            words = re.fullmatch(r"([A-Z])(-?\d+)([A-Z])", row["mutant"].strip().upper())
            name = only or row["id"]
            if not words or words[3] not in ORDER or (name not in grids and len(grids) == PICTURED):
                continue
            effects = grids.setdefault(name, {}).setdefault(int(words[2]), [])
            effects.append((words[1], words[3], float(row[score])))
    return grids


def _lines(grid: dict[int, list]) -> list[int]:
    """Where the lines of a protein's picture start; those without a substitution are left out."""
    return sorted({(position - 1) // POSITIONS * POSITIONS + 1 for position in grid})
