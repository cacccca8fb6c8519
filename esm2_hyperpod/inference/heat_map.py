"""A picture of the effects of all single substitutions: residues by position."""

import csv
import re
from pathlib import Path

import numpy as np

from esm2_hyperpod.figures import new_figure, save_figure

PICTURED, LINES, POSITIONS = 4, 40, 100
"""At most so many proteins, the first of the table, and lines of so many positions: larger is too large."""
ORDER = "GAVLIMPFWYSTCNQDEKRH"
"""Residues by their chemistry: small, aliphatic, aromatic, polar, acidic, basic."""


def draw_heat_map(table: Path, score: str, path: Path, only: str | None) -> int:
    """Draw the single substitutions of the first proteins of a table of scores; returns how many proteins.

    `only` is the protein that all rows are of; without it their column `id` says. A substitution that is not
    in the table is blank, the wild type a dot.
    """
    grids = _grids(table, score, only)
    lines = [(name, start, grid) for name, grid in grids.items() for start in _lines(grid)][:LINES]
    if not lines:
        return 0
    figure, panels = new_figure(16, 3.2 * len(lines), rows=len(lines))
    found = [abs(value) for grid in grids.values() for effects in grid.values() for _, _, value in effects]
    most = max(found) if "marginals" in score else None
    for axes, (name, start, grid) in zip(panels, lines):
        image = np.full((len(ORDER), POSITIONS), np.nan)
        for position in range(start, start + POSITIONS):
            for before, after, value in grid.get(position, ()):
                image[ORDER.index(after), position - start] = value
                if before in ORDER:
                    axes.plot(position, ORDER.index(before), ".", color="black", markersize=2)
        limits = {"vmin": -most, "vmax": most, "cmap": "RdBu_r"} if most else {"cmap": "viridis"}
        extent = (start - 0.5, start + POSITIONS - 0.5, len(ORDER) - 0.5, -0.5)
        shown = axes.imshow(image, aspect="auto", extent=extent, interpolation="nearest", **limits)
        axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize="x-small")
        axes.set_title(f"{name}: {score}", loc="left", fontsize="medium")
        figure.colorbar(shown, ax=axes)
    panels[-1].set_xlabel("position (dot: wild type)")
    save_figure(figure, path)
    return len(grids)


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
    return sorted({position // POSITIONS * POSITIONS for position in grid})
