"""Proteins with a label a residue, and with a number, that a small model can learn; as a user has them."""

import csv
from pathlib import Path

import numpy as np

from helpers.proteins import RESIDUES


def residue_labels(sequence: str) -> str:
    """H where the residue and its neighbours hold two of A, E, L, K; else E at V, I, Y; else C."""
    letters = []
    for at, residue in enumerate(sequence):
        near = sequence[max(at - 1, 0) : at + 2]
        helix = sum(one in "AELK" for one in near) >= 2
        letters.append("H" if helix else "E" if residue in "VIY" else "C")
    return "".join(letters)


def number_of(sequence: str) -> float:
    """Ten times the share of charged residues, and two more with the motif WW; 50 on top."""
    return 10 * sum(one in "DEKR" for one in sequence) / len(sequence) + 2 * ("WW" in sequence) + 50


def proteins(count: int, seed: int) -> list[tuple[str, str]]:
    """(id, sequence) of unrelated proteins of 20 to 60 residues, more or less charged; half hold WW."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        charge = random.uniform(0.2, 8)
        weights = np.array([charge if one in "DEKR" else 1.0 for one in RESIDUES])
        letters = random.choice(list(RESIDUES), random.integers(20, 60), p=weights / weights.sum())
        if number % 2:
            at = random.integers(1, len(letters) - 3)
            letters[at : at + 2] = "W"
        rows.append((f"p{number}", "".join(letters)))
    return rows


def write_residue_labels(path: Path, count: int = 120, seed: int = 0) -> None:
    """A CSV of sequence and labels; every tenth residue has none."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "sequence", "labels"))
        for name, sequence in proteins(count, seed):
            labels = residue_labels(sequence)
            table.writerow((name, sequence, "".join("-" if n % 10 == 9 else x for n, x in enumerate(labels))))


def write_numbers(path: Path, count: int = 120, seed: int = 0) -> None:
    """A CSV of sequence and target."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "sequence", "target"))
        table.writerows((name, sequence, number_of(sequence)) for name, sequence in proteins(count, seed))
