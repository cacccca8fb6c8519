"""Train, validation and test proteins: as published, as given, or split off by similarity."""

import csv
import io
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from esm2_hyperpod.artifacts import (
    MANIFEST,
    read_manifest,
    write_json_atomically,
    write_text_atomically,
)
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization_data import Protein, Rejected, clean, count_labels
from esm2_hyperpod.protein_similarity import KMERS_METHOD, group_similar, similar_pairs

FOLDS = 10
HELD_OUT_FOLDS = {"test": (0, 1), "validation": (2,)}
METHODS = ("similarity", "random")
SPLITS = ("train", "validation", "test")


@dataclass
class Splits:
    """The proteins of each split, the rows that are not used, and how the split was made, in words."""

    train: list[Protein]
    validation: list[Protein]
    test: list[Protein]
    rejected: list[Rejected]
    facts: dict[str, Any]


def make_splits(given: dict[str, Iterable[Protein]], method: str, seed: int) -> Splits:
    """Complete what was given (`train`, perhaps `validation` and `test`) to three splits.

    A published test mark in `train` is respected. What is missing is split off `train`: a fifth for the
    test, a tenth for validation; by similarity (`method="similarity"`) or at random (`"random"`). Rows
    that cannot be used, and training rows that are held out or similar to what was split off by similarity,
    go to `rejected`.

    Raises `UserError` if there are too few proteins to split.
    """
    parts, rejected = {}, []
    for name, rows in given.items():
        parts[name], unusable = clean(rows)
        rejected += unusable
    train, origin = parts["train"], dict.fromkeys(given, "given")
    marked = [protein for protein in train if protein.test]
    if marked and "test" not in parts:
        parts["test"], origin["test"] = marked, "published test mark"
        train = [protein for protein in train if not protein.test]
    held_out = {p.sequence: p.where for name in ("validation", "test") for p in parts.get(name, [])}
    leaked = [protein for protein in train if protein.sequence in held_out]
    rejected += [Rejected(p.where, p.id, f"held out for evaluation: {held_out[p.sequence]}") for p in leaked]
    train = [protein for protein in train if protein.sequence not in held_out]

    facts: dict[str, Any] = {}
    missing = [name for name in ("validation", "test") if name not in parts]
    held_out = [protein for part in parts if part != "train" for protein in parts[part]]
    everybody = [*train, *held_out]
    pairs = similar_pairs([protein.sequence for protein in everybody])
    if missing:
        folds, facts["grouping"] = _folds(train, pairs[: len(train), : len(train)], method, seed)
        for name in missing:
            inside = np.isin(folds, HELD_OUT_FOLDS[name])
            parts[name], origin[name] = [train[index] for index in np.flatnonzero(inside)], method
        left = np.flatnonzero(~np.isin(folds, [fold for name in missing for fold in HELD_OUT_FOLDS[name]]))
        if method == "similarity":
            left, similar = _drop_relatives(left, train, pairs[: len(train), : len(train)])
            rejected += similar
        train = [train[index] for index in left]
    known = set(count_labels(train))
    for name in ("validation", "test"):
        parts[name], unknown = _with_known_labels(parts[name], known)
        rejected += unknown
        if not parts[name]:
            raise UserError(f"the {name} split is empty; give more proteins or a --{name}_file")
    facts["origin"] = {name: origin.get(name, f"what {method} leaves") for name in SPLITS}
    facts["proteins"] = {name: len(parts[name]) for name in ("validation", "test")} | {"train": len(train)}
    facts["labels"] = count_labels(train)
    facts["test_proteins_like_a_training_protein"] = _count_leaks(everybody, pairs, train, parts["test"])
    facts["leak_measured_by"] = KMERS_METHOD
    return Splits(train, parts["validation"], parts["test"], rejected, facts)


def _folds(proteins: list[Protein], pairs, method: str, seed: int) -> tuple[np.ndarray, str]:
    """Fold number of each protein, balanced over labels, groups kept whole; and the grouping in words."""
    if method == "random":
        groups, description = np.arange(len(proteins)), "none: split at random, homologues on both sides"
    else:
        groups, description = group_similar([protein.sequence for protein in proteins], pairs)
        largest = np.bincount(np.unique(groups, return_inverse=True)[1]).max(initial=0)
        description += f": {len(np.unique(groups)):,} groups, the largest of {largest:,} proteins"
    labels = np.array([protein.label for protein in proteins])
    kinds = len(np.unique(groups))
    if kinds < FOLDS or np.unique(labels, return_counts=True)[1].max(initial=0) < FOLDS:
        raise UserError(
            f"{len(proteins)} usable proteins in {kinds} groups of similar ones are too few to split "
            f"(at least {FOLDS} groups, and {FOLDS} proteins of one label); give --validation_file "
            "and --test_file"
        )
    folds = np.empty(len(proteins), dtype=np.int64)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # it still goes to some fold
        parts = [inside for _, inside in splitter.split(labels, labels, groups)]
    # A group too large for a fold makes an oversized one: sorted to the end, it is left to training.
    parts.sort(key=lambda inside: abs(len(inside) - len(proteins) / FOLDS))
    for number, inside in enumerate(parts):
        folds[inside] = number
    return folds, description


def _drop_relatives(left: np.ndarray, proteins: list[Protein], pairs) -> tuple[np.ndarray, list[Rejected]]:
    """The training proteins that are like none of those split off; the others, with the reason."""
    split_off = np.setdiff1d(np.arange(len(proteins)), left)
    similar = pairs[left][:, split_off].sum(axis=1) > 0
    rejected = [
        Rejected(proteins[index].where, proteins[index].id, "similar to a protein held out for evaluation")
        for index in left[similar]
    ]
    return left[~similar], rejected


def _with_known_labels(proteins: list[Protein], known: set[str]) -> tuple[list[Protein], list[Rejected]]:
    kept, rejected = [], []
    for protein in proteins:
        strangers = set(protein.label.split("|")) - known
        if strangers:
            reason = f"no training protein has the label {', '.join(sorted(strangers))}"
            rejected.append(Rejected(protein.where, protein.id, reason))
        else:
            kept.append(protein)
    return kept, rejected


def _count_leaks(everybody: list[Protein], pairs, train: list[Protein], test: list[Protein]) -> int:
    """Number of test proteins that are similar to a training protein."""
    position = {protein.where: index for index, protein in enumerate(everybody)}
    rows, columns = ([position[protein.where] for protein in part] for part in (test, train))
    return int((pairs[rows][:, columns].sum(axis=1) > 0).sum())


def write_splits(splits: Splits, folder: Path, options: dict[str, Any]) -> None:
    """Write `train.csv`, `validation.csv`, `test.csv`, `rejected.csv` and, last, `manifest.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        _write_csv(folder / f"{name}.csv", Protein, getattr(splits, name))
    _write_csv(folder / "rejected.csv", Rejected, splits.rejected)
    manifest = {"options": options, **splits.facts, "rejected": len(splits.rejected)}
    write_json_atomically(folder / MANIFEST, manifest)


def _write_csv(path: Path, kind: type, rows: list) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text_atomically(path, text.getvalue())


def read_splits(folder: Path, made_by: str) -> Splits:
    """What `write_splits` wrote. Raises `UserError` if it is unfinished."""
    facts = read_manifest(folder, made_by)
    parts = {}
    for name in (*SPLITS, "rejected"):
        with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        kind = Rejected if name == "rejected" else Protein
        parts[name] = [
            kind(**{**row, "test": row["test"] == "True"} if "test" in row else row) for row in rows
        ]
    return Splits(**parts, facts=facts)
